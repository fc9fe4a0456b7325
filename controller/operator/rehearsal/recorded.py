"""Reads the recorded trace that a rehearsal replays out of its ConfigMap. It judges nothing."""

from dataclasses import dataclass

import structlog

from controller.operator.api import CONFIG_MAPS, Api, ApiError
from controller.operator.rehearsal.question import RehearsalQuestion

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTexts:
    """The traces in a cluster."""

    api: Api

    def read(self, question: RehearsalQuestion) -> str | None:
        """Return the text of the trace that a question names; None: it is not there, or may not be read."""
        source = question.trace
        if source is None:
            return None
        try:
            body = self.api.get(CONFIG_MAPS, question.key[0], source.name)
        except ApiError as error:
            log.warning("trace", service=question.service, config_map=source.name, error=str(error))
            return None
        text = ((body or {}).get("data") or {}).get(source.key)
        return None if text is None else str(text)
