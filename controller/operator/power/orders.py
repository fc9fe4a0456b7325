"""What the nodes of a domain are told: NodePowers, their generations, the renewals of their leases.

It exists so that orders are written only when they say something else or a lease has to be renewed, never out of order,
and never in the way of a decision: writes go on in threads. The core's orders count rounds of the whole row; a node's
generation counts what this node was told; `NodeBook` knows which answers which. It decides no clock.
"""

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from controller.operator.api import CONTROLLER, NODE_POWERS, Api, ApiError, Object
from controller.operator.power.agents import Reading
from controller.resources.power_domain import Actuator, PowerDomainSpec
from solver.domain.power import PowerRow

DOMAIN_LABEL = "ballast.dev/power-domain"
WRITERS = 8
KEPT = 64


@dataclass(slots=True, kw_only=True)
class NodeBook:
    """What one node was told and what it answered."""

    node: str
    generation: int = 0
    """Of the content that is wanted now."""
    renewal: int = 0
    content: Object = field(default_factory=dict)
    """Wanted: the spec without generation and renewal."""
    written: int = 0
    """Generation that the API server took last."""
    renewed_s: float = float("-inf")
    """When the last write that succeeded was sent."""
    trouble: str = ""
    """Why the last write failed."""
    pending: "Future[float] | None" = None
    pending_generation: int = 0
    carried: deque[tuple[int, int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """Core's order, generation that has to be acknowledged for it, when it was given."""
    done: int = 0
    """Core's order that this node has carried out."""

    def told(self, content: Object, order: int | None, now_s: float) -> None:
        """Note what the node is to be told, and which order of the core that answers."""
        if content != self.content:
            self.content = content
            self.generation += 1
        if order is not None:
            self.carried.append((order, self.generation, now_s))

    def again(self, observed: int) -> None:
        """Say the same under a number above all that the node has seen: it refused this one."""
        self.generation = max(self.generation, observed) + 1

    def heard(self, reading: Reading | None) -> int:
        """Return the last order of the core that the node has carried out.

        One that said nothing new counts as soon as the node was seen after it, at the generation it has.
        """
        if reading is not None:
            for order, generation, given_s in self.carried:
                if reading.acknowledged >= generation and reading.looked_s > given_s - 1.0:
                    self.done = max(self.done, order)
        return self.done

    def due(self, now_s: float, renew_s: float) -> bool:
        """Whether it has to be written."""
        return bool(self.content) and (
            self.generation != self.written or now_s - self.renewed_s >= renew_s - 1e-6
        )


@dataclass(slots=True, kw_only=True)
class OrderDesk:
    """Writes NodePowers, a few at a time, in threads."""

    api: Api
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WRITERS, "orders"))

    def take_in(self, book: NodeBook) -> None:
        """Note how the last write of a node went."""
        if book.pending is None or not book.pending.done():
            return
        try:
            book.renewed_s = book.pending.result()
            book.written, book.trouble = book.pending_generation, ""
        except ApiError as error:
            book.trouble = str(error).replace("\n", " ")
        book.pending = None

    def send(self, book: NodeBook, domain: str, now_s: float) -> None:
        """Begin to write; not while another write of this node is under way."""
        if book.pending is not None:
            return
        book.renewal += 1
        book.pending_generation = book.generation
        spec = {"generation": book.generation, "renewSequence": book.renewal, **book.content}
        body = {
            "metadata": {"name": book.node, "labels": {DOMAIN_LABEL: domain[:63].strip("-._")}},
            "spec": spec,
        }

        def write() -> float:
            self.api.apply(NODE_POWERS, body, manager=CONTROLLER, force=True)
            return now_s

        book.pending = self._pool.submit(write)

    def submit(self, action: Any) -> "Future[Any]":
        """Do something else that talks to the API server, in the same threads."""
        return self._pool.submit(action)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def book_of(node: str, body: Mapping[str, Any] | None) -> NodeBook:
    """Go on from what a node was told by whoever led before: under higher numbers."""
    spec = (body or {}).get("spec") or {}
    status = (body or {}).get("status") or {}
    generation = max(
        int(spec.get("generation") or 0),
        int(status.get("observedGeneration") or 0),
        int(status.get("acknowledgedGeneration") or 0),
    )
    return NodeBook(
        node=node, generation=generation, written=generation, renewal=int(spec.get("renewSequence") or 0)
    )


def order_content(
    spec: PowerDomainSpec, row: PowerRow, reading: Reading | None, mhz: int, safe_mhz: int
) -> dict[str, Any]:
    """Return the part of a NodePower's spec that says how fast its GPUs may run, now and without a lease."""
    server = row.server

    def cap(clock: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if spec.actuator is not Actuator.POWER_LIMIT:
            fields["lockMaxMHz"] = clock
        if spec.actuator is not Actuator.CLOCKS:
            fields["limitWatts"] = math.floor(server.gpu_w(server.prompt_tdp_ratio, clock) * 10.0) / 10.0
        return fields

    uuids = [] if reading is None else sorted(gpu.uuid for gpu in reading.gpus)
    return {
        "leaseDurationSeconds": spec.lease_duration_seconds,
        "safe": cap(safe_mhz),
        "gpus": [{"uuid": uuid, **cap(mhz)} for uuid in uuids],
    }
