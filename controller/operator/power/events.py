"""What happened to PowerDomains, for people who run ``kubectl describe``: changes that lasted, each seldom.

It exists because a loop that decides every two seconds has much to say that nobody wants to read. A change is told when
it has held for a while, a reason of a domain at most once in ten minutes, and what a leader before has left in the
conditions is not told again. It decides nothing; `controller.operator.notices` writes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.operator.conditions import STATUS, Finding
from controller.operator.notices import QUIET_S
from controller.operator.power.figures import ACCEPTED, SERVERS_FIT, TRAINED, Figures
from controller.resources.power_domain import PowerState
from solver.power.row_control import (
    ACTUATORS_HEALTHY,
    GPU_LOST_CONDITION,
    GUARANTEE_HOLDS,
    LEASE_VALID,
    TELEMETRY_FRESH,
    WITHIN_BUDGET,
)

Tell = Callable[[str, str, str, str, str], None]
"""Name and uid of the domain, type, reason, message."""
NORMAL = "Normal"
WARNING = "Warning"
STATES: Mapping[PowerState, tuple[str, str, str]] = {
    PowerState.FREE: (NORMAL, "Uncapped", "all may run at their highest clock"),
    PowerState.LP_BASE: (NORMAL, "Slowed", "low priority is slowed"),
    PowerState.LP_DEEP: (NORMAL, "Slowed", "low priority is slowed"),
    PowerState.HP_CAPPED: (NORMAL, "HighPrioritySlowed", "high priority is slowed, too"),
    PowerState.BRAKE: (WARNING, "Brake", "all GPUs are at the clock of the brake"),
    PowerState.SAFE: (WARNING, "SafeClocks", "no samples: safe clocks are ordered"),
}
STATE_HELD_S = 30.0
"""A state is told when it has lasted so long; the brake at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """When a condition is worth an event."""

    held_s: float
    lost: str
    """Reason of the event when it is not as it should be; empty: the condition's own."""
    again: str
    """Reason when it is well again."""
    only: tuple[str, ...] = ()
    """Of the condition's reasons; none: all."""


RULES: Mapping[str, _Rule] = {
    ACCEPTED: _Rule(held_s=0.0, lost="", again="Accepted"),
    GUARANTEE_HOLDS: _Rule(
        held_s=4.0, lost="GuaranteeLost", again="GuaranteeHolds", only=("WorstCaseTrips", "ServerUnlike")
    ),
    ACTUATORS_HEALTHY: _Rule(
        held_s=4.0, lost="ActuatorMismatch", again="ActuatorsHealthy", only=("ActuatorMismatch",)
    ),
    GPU_LOST_CONDITION: _Rule(held_s=4.0, lost="GpuLost", again="AllGpusPresent"),
    TELEMETRY_FRESH: _Rule(held_s=30.0, lost="", again="TelemetryFresh"),
    LEASE_VALID: _Rule(held_s=30.0, lost="", again="LeaseValid"),
    WITHIN_BUDGET: _Rule(held_s=10.0, lost="OverBudget", again="WithinBudget"),
    SERVERS_FIT: _Rule(held_s=0.0, lost="", again="ServersFit"),
}


@dataclass(slots=True)
class _Known:
    """What was told of one domain."""

    uid: str
    state: str = ""
    next_state: str = ""
    since_s: float = 0.0
    bad: dict[str, bool] = field(default_factory=dict)
    """By condition, as told."""
    bad_since_s: dict[str, float] = field(default_factory=dict)
    trained: bool = False
    released: bool = False


@dataclass(slots=True, kw_only=True)
class PowerEvents:
    """For one thread."""

    tell: Tell
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, _Known] = field(default_factory=dict)
    _told_s: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, body: Mapping[str, Any], figures: Figures, *, released: bool) -> None:
        """Compare how a domain stands with what was told of it."""
        name, uid = str(body["metadata"]["name"]), str(body["metadata"].get("uid") or "")
        known = self._known.get(name)
        if known is None or known.uid != uid:
            known = self._known[name] = _left(body, uid)
        now_s = self.clock()
        for kind, finding in figures.findings.items():
            self._condition(name, known, kind, finding, now_s)
        self._state(name, known, figures, now_s)
        trained = figures.findings.get(TRAINED)
        if trained is not None and trained.status is not None:
            if trained.status and not known.trained:
                self._say(
                    name, known, NORMAL, "ThresholdsTrained", "thresholds from recorded power are in force"
                )
            known.trained = trained.status
        if released and not known.released:
            self._say(
                name, known, NORMAL, "Released", "agents give back the limits and clocks that they found"
            )
        known.released = released

    def forget(self, name: str) -> None:
        """Drop what is known of a domain that is gone."""
        self._known.pop(name, None)

    def _condition(self, name: str, known: _Known, kind: str, finding: Finding, now_s: float) -> None:
        rule = RULES.get(kind)
        if rule is None:
            return
        bad = finding.status is (kind == GPU_LOST_CONDITION)
        if bad and rule.only and finding.reason not in rule.only:
            return
        if finding.status is None:
            known.bad_since_s.pop(kind, None)
            return
        told = known.bad.get(kind, False)
        if bad == told:
            known.bad_since_s.pop(kind, None)
            return
        if now_s - known.bad_since_s.setdefault(kind, now_s) < rule.held_s:
            return
        known.bad[kind] = bad
        del known.bad_since_s[kind]
        if bad:
            reason = rule.lost or finding.reason
            self._say(name, known, WARNING, reason, finding.message or finding.reason)
        else:
            self._say(name, known, NORMAL, rule.again, finding.message or "as it should be")

    def _state(self, name: str, known: _Known, figures: Figures, now_s: float) -> None:
        lease = figures.findings.get(LEASE_VALID)
        if figures.state is None or lease is None or lease.reason == "NotEnforced":
            return
        kind, reason, message = STATES[figures.state]
        if reason == known.state:
            known.next_state = ""
            return
        if reason != known.next_state:
            known.next_state, known.since_s = reason, now_s
        if figures.state is PowerState.BRAKE or now_s - known.since_s >= STATE_HELD_S:
            first, known.state, known.next_state = not known.state, reason, ""
            if not (first and figures.state is PowerState.FREE):
                self._say(name, known, kind, reason, message)

    def _say(self, name: str, known: _Known, kind: str, reason: str, message: str) -> None:
        now_s, key = self.clock(), (known.uid, reason)
        if now_s - self._told_s.get(key, float("-inf")) < QUIET_S:
            return
        if len(self._told_s) > 10_000:
            self._told_s = {k: at for k, at in self._told_s.items() if now_s - at < QUIET_S}
        self._told_s[key] = now_s
        self.tell(name, known.uid, kind, reason, message)


def _left(body: Mapping[str, Any], uid: str) -> _Known:
    """Take what the leader before has left for told."""
    status = body.get("status") or {}
    known = _Known(uid)
    for condition in status.get("conditions") or ():
        kind = str(condition.get("type"))
        if kind in RULES:
            bad = condition.get("status") == STATUS[kind == GPU_LOST_CONDITION]
            only = RULES[kind].only
            known.bad[kind] = bad and (not only or condition.get("reason") in only)
        elif kind == TRAINED:
            known.trained = condition.get("status") == STATUS[True]
    if status.get("state") in {state.value for state in PowerState}:
        known.state = STATES[PowerState(status["state"])][1]
    return known
