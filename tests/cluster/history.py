"""Watches the Deployments of a namespace and checks, at every event, that no capacity is lost and no GPU overdrawn.

It exists because a final state says nothing about the way there. It sees what any user of the API sees, in the order
in which the API server tells it, and knows nothing of the operator.
"""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.control_plane import TOKEN, ControlPlane


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What one replica of a Deployment carries and holds."""

    max_rps: float
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Deployment as one event showed it."""

    name: str
    replicas: int
    """Asked for."""
    ready: int
    held: int
    """Pods there are."""
    generation: int


@dataclass(slots=True, kw_only=True)
class History:
    """All events so far, and what was wrong at any of them."""

    plane: ControlPlane
    namespace: str
    kinds: Mapping[str, Kind]
    most_gpus: int
    seen: list[Seen] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _wanted_rps: float = 0.0
    _floor_rps: float = 0.0
    _latest: dict[str, Seen] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _line: socket.socket | None = None

    @contextmanager
    def watching(self) -> Iterator["History"]:
        """Watch while the context lasts."""
        thread = threading.Thread(target=self._run, name="history", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            with suppress(OSError):
                if self._line is not None:
                    self._line.shutdown(socket.SHUT_RDWR)
            thread.join(10)

    def demand(self, rate_rps: float) -> None:
        """Tell what the traffic is from now on: less counts at once, more once it has been reached."""
        with self._lock:
            self._wanted_rps = rate_rps
            self._floor_rps = min(self._floor_rps, rate_rps)
            self._judge("the new traffic")

    def replicas_of(self, name: str, since: int = 0) -> list[int]:
        """Return the numbers asked for one after the other, from an event on."""
        numbers: list[int] = []
        before = [one for one in self.seen[:since] if one.name == name][-1:]
        for one in before + [one for one in self.seen[since:] if one.name == name]:
            if not numbers or numbers[-1] != one.replicas:
                numbers.append(one.replicas)
        return numbers

    def _run(self) -> None:
        while not self.stopping.is_set():
            with suppress(OSError, http.client.HTTPException, ValueError, AttributeError, KeyError):
                self._watch()
            self.stopping.wait(0.2)

    def _watch(self) -> None:
        """Watch from the present state on, until the stream ends."""
        where = urlsplit(self.plane.server)
        authority = str(self.plane.folder / "certificates" / "apiserver.crt")
        connection = http.client.HTTPSConnection(
            where.hostname or "",
            where.port,
            timeout=600,
            context=ssl.create_default_context(cafile=authority),
        )
        try:
            connection.connect()
            self._line = connection.sock
            connection.request(
                "GET",
                f"/apis/apps/v1/namespaces/{self.namespace}/deployments?watch=true&timeoutSeconds=600",
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            answer = connection.getresponse()
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] in {"ADDED", "MODIFIED"}:
                    self._take(event["object"])
        finally:
            connection.close()

    def _take(self, body: Mapping[str, Any]) -> None:
        status = body.get("status") or {}
        seen = Seen(
            name=body["metadata"]["name"],
            replicas=int(body["spec"]["replicas"]),
            ready=int(status.get("readyReplicas") or 0),
            held=int(status.get("replicas") or 0),
            generation=int(body["metadata"]["generation"]),
        )
        if seen.name not in self.kinds:
            return
        with self._lock:
            self.seen.append(seen)
            self._latest[seen.name] = seen
            self._judge(f"event {len(self.seen)}")

    def _judge(self, when: str) -> None:
        latest = self._latest.values()
        ready_rps = sum(min(one.ready, one.replicas) * self.kinds[one.name].max_rps for one in latest)
        gpus = sum(max(one.replicas, one.held) * self.kinds[one.name].gpus for one in latest)
        stands = ", ".join(f"{one.name} {one.ready}/{one.replicas}" for one in latest)
        at = f"{when} at {time.monotonic():.2f} s: {stands}"
        if ready_rps < self._floor_rps:
            self.wrong.append(f"{ready_rps:g} of {self._floor_rps:g} requests/s are carried, {at}")
        if gpus > self.most_gpus:
            self.wrong.append(f"{gpus} of {self.most_gpus} GPUs are asked for, {at}")
        if ready_rps >= self._wanted_rps:
            self._floor_rps = self._wanted_rps
