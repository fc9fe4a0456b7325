"""How a PowerDomain stands after a tick: the values that status, metrics, events and history are written from.

It exists so that who writes them knows these values, not the run that made them. It measures and decides nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.operator.conditions import Finding
from controller.operator.power import tree
from controller.resources.power_domain import PowerDomainSpec, PowerState
from solver.power.row_control import (
    ACTUATORS_HEALTHY,
    GPU_LOST_CONDITION,
    GUARANTEE_HOLDS,
    LEASE_VALID,
    TELEMETRY_FRESH,
    WITHIN_BUDGET,
)

ACCEPTED, TRAINED, SERVERS_FIT = "Accepted", "ThresholdsTrained", "ServersFit"
CONDITIONS = (
    ACCEPTED,
    TELEMETRY_FRESH,
    LEASE_VALID,
    WITHIN_BUDGET,
    ACTUATORS_HEALTHY,
    GUARANTEE_HOLDS,
    GPU_LOST_CONDITION,
)
"""Of every domain; those that are asked for follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a domain stands after a tick; None: not known."""

    budget_w: float
    power_w: float | None = None
    theta: float | None = None
    worst_theta: float | None = None
    worst_w: float | None = None
    full_w: float | None = None
    """Largest draw without caps."""
    recourse_s: float = math.inf
    safe_mhz: int | None = None
    state: PowerState | None = None
    nodes: int = 0
    sampled_s: float | None = None
    """Wall clock of the last sample."""
    caps: tuple[tuple[str, int, int, float, float], ...] = ()
    """By class: name, servers, highest clock ordered, seconds below its highest, the most that work takes longer."""
    brakes: int = 0
    findings: Mapping[str, Finding] = field(default_factory=dict)
    node_w: Mapping[str, float] = field(default_factory=dict)
    """What each server drew in this window, for the history: who was not heard is missing."""
    measured_w: float | None = None
    """Of the domain in this window; None as soon as a part of it is only counted at its worst."""
    capped: bool = False
    """Whether any clock is held down."""
    admission: Mapping[str, Any] | None = None
    """As the status has it."""
    trained: Mapping[str, Any] | None = None


def refused_figures(place: tree.Place, spec: PowerDomainSpec | None, reason: str, message: str) -> Figures:
    """Return how a domain stands that is not run: nothing is known, nothing is promised."""
    findings = {
        kind: Finding(type=kind, status=None, reason="NotRun")
        for kind in CONDITIONS
        if kind not in {ACCEPTED, GUARANTEE_HOLDS}
    }
    findings[ACCEPTED] = Finding(type=ACCEPTED, status=False, reason=reason, message=message)
    findings[GUARANTEE_HOLDS] = Finding(
        type=GUARANTEE_HOLDS, status=False, reason="NotRun", message="nobody looks after this breaker"
    )
    budget_w = place.budget_w or (0.0 if spec is None else spec.budget_watts)
    return Figures(budget_w=budget_w, nodes=len(place.nodes), findings=findings)


def idle_w(spec: PowerDomainSpec, nodes: int) -> float:
    """Return what the nodes draw without work."""
    server = spec.server
    each_w = server.fixed_watts + server.watts_per_gpu_watt * server.gpus * server.gpu_idle_watts
    return nodes * each_w + (spec.members.static_watts if spec.members else 0.0)
