"""Events for people who run ``kubectl describe``: each reason of an object at most once in ten minutes.

It exists so that what happened can be read where people look, without flooding the API server. An event that cannot be
written is dropped; nothing waits for it.
"""

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any

import structlog

from controller.operator.api import EVENTS, MODEL_SERVICES, TARGETS, Api, ApiError, Object, Resource
from controller.operator.views import ServiceView
from controller.operator.world import Target

QUIET_S = 600.0
MOST_WAITING = 1000
MOST_TOLD = 20_000
"""Events of the last ten minutes that are remembered; beyond it the oldest may be told again."""
log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Notices:
    """Writes events in a thread of its own."""

    api: Api
    instance: str
    stopping: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    _queue: "Queue[tuple[str, Object]]" = field(default_factory=lambda: Queue(MOST_WAITING))
    _told_s: OrderedDict[tuple[str, str, str], float] = field(default_factory=OrderedDict)
    """By uid, reason and message: when, the oldest first. Messages name digests, so few ever come again."""
    _telling: threading.Lock = field(default_factory=threading.Lock)

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
        if not self._is_news((str(regarding["uid"]), reason, message)):
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        # Events of what has no namespace are looked for in this one.
        namespace = str(regarding["namespace"]) or "default"
        body: Object = {
            "metadata": {"name": f"ballast.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": stamp,
            "reportingController": "ballast.dev/controller",
            "reportingInstance": self.instance[:128],
            "action": reason,
            "reason": reason,
            "type": type_,
            "note": message[:1024],
            "regarding": {field: value for field, value in regarding.items() if value},
        }
        try:
            self._queue.put_nowait((namespace, body))
        except Full:
            log.warning("an event is dropped", reason=reason)

    def _is_news(self, key: tuple[str, str, str]) -> bool:
        """Note that something is told, unless it was of late; what was told long ago is forgotten."""
        now_s = self.clock()
        with self._telling:  # several loops tell
            while self._told_s:
                oldest_s = next(iter(self._told_s.values()))
                if now_s - oldest_s < QUIET_S and len(self._told_s) < MOST_TOLD:
                    break
                self._told_s.popitem(last=False)
            if key in self._told_s:
                return False
            self._told_s[key] = now_s
            return True

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
