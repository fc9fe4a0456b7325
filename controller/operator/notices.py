"""Events for people who run ``kubectl describe``: each reason of an object at most once in ten minutes.

It exists so that what happened can be read where people look, without flooding the API server. An event that cannot be
written is dropped; nothing waits for it.
"""

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any

import structlog

from controller.operator.api import EVENTS, MODEL_SERVICES, TARGETS, Api, ApiError, Object, Resource
from controller.operator.views import ServiceView
from controller.operator.world import Target

QUIET_S = 600.0
MOST_WAITING = 1000
log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Notices:
    """Writes events in a thread of its own."""

    api: Api
    instance: str
    stopping: threading.Event = field(default_factory=threading.Event)
    _queue: "Queue[tuple[str, Object]]" = field(default_factory=lambda: Queue(MOST_WAITING))
    _seen: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def event(self, view: ServiceView, type_: str, reason: str, message: str) -> None:
        """Tell of a ModelService."""
        regarding = {
            "apiVersion": MODEL_SERVICES.api_version,
            "kind": MODEL_SERVICES.kind,
            "namespace": view.key[0],
            "name": view.key[1],
            "uid": view.uid,
        }
        self._tell(regarding, type_, reason, message)

    def event_on(self, target: Target, type_: str, reason: str, message: str) -> None:
        """Tell of a scale target."""
        regarding = {
            "apiVersion": TARGETS[target.kind].api_version,
            "kind": target.kind,
            "namespace": target.key[0],
            "name": target.key[1],
            "uid": target.uid,
        }
        self._tell(regarding, type_, reason, message)

    def event_for(
        self, resource: Resource, which: tuple[str, str, str], type_: str, reason: str, message: str
    ) -> None:
        """Tell of any object: its namespace, name and uid."""
        regarding = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "namespace": which[0],
            "name": which[1],
            "uid": which[2],
        }
        self._tell(regarding, type_, reason, message)

    def _tell(self, regarding: Mapping[str, Any], type_: str, reason: str, message: str) -> None:
        key = (str(regarding["uid"]), reason, message)
        now_s = time.monotonic()
        if now_s - self._seen.get(key, float("-inf")) < QUIET_S:
            return
        if len(self._seen) > 20_000:
            self._seen = {k: at for k, at in self._seen.items() if now_s - at < QUIET_S}
        self._seen[key] = now_s
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        body: Object = {
            "metadata": {"name": f"ballast.{uuid.uuid4().hex[:16]}", "namespace": regarding["namespace"]},
            "eventTime": stamp,
            "reportingController": "ballast.dev/controller",
            "reportingInstance": self.instance[:128],
            "action": reason,
            "reason": reason,
            "type": type_,
            "note": message[:1024],
            "regarding": dict(regarding),
        }
        try:
            self._queue.put_nowait((str(regarding["namespace"]), body))
        except Full:
            log.warning("an event is dropped", reason=reason)

    def run(self) -> None:
        """Write events until stopped."""
        while not self.stopping.is_set():
            try:
                namespace, body = self._queue.get(timeout=0.5)
            except Empty:
                continue
            try:
                self.api.create(EVENTS, namespace, body)
            except ApiError as error:
                log.debug("event", error=str(error))
