"""What people see on a PowerDomain: figures, state, conditions with reasons, one line on what is to be known first.

It exists so that kubectl, alerts and the next leader read the same. It is computed from what the loop knows; it writes
nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

from controller.operator.conditions import Finding, written
from controller.operator.power.figures import ACCEPTED, CONDITIONS, SERVERS_FIT, TRAINED, Figures
from controller.operator.times import written_time
from solver.power.row_control import GPU_LOST_CONDITION, GUARANTEE_HOLDS, WITHIN_BUDGET

ORDER = (*CONDITIONS, TRAINED, SERVERS_FIT)
WORDS = {
    "OverBudget": "the draw is above the budget",
    "WorstCaseTrips": "if all servers jumped to their largest draw, the breaker could trip before an order acts",
    "NoSamples": "no samples: safe clocks are ordered",
    "SampleLate": "the last sample is late",
    "LeaseExpired": "agents have no lease yet, or lost it: they are at their safe caps or on their way",
    "RenewalFailed": "leases cannot be renewed",
    "ActuatorLate": "orders are not carried out in time: those servers count at their largest draw",
    "ActuatorMismatch": "what is set is not what is read back: those servers count at their largest draw",
}


def status_of(body: Mapping[str, Any], figures: Figures, *, now: str) -> dict[str, Any]:
    """Return the status; times of unchanged conditions are kept."""
    before = body.get("status") or {}
    generation = int(body["metadata"].get("generation") or 0)
    findings = [_told(figures.findings[kind]) for kind in ORDER if kind in figures.findings]
    numbers = {
        "powerWatts": _watts(figures.power_w),
        "budgetWatts": _watts(figures.budget_w),
        "theta": _ratio(figures.theta),
        "worstCaseTheta": _ratio(figures.worst_theta),
        "headroomWatts": None if figures.power_w is None else _watts(figures.budget_w - figures.power_w),
        "worstCaseWatts": _watts(figures.worst_w),
        "oversubscriptionRatio": None
        if figures.full_w is None or figures.budget_w <= 0.0
        else _ratio(figures.full_w / figures.budget_w),
        "safeMHz": figures.safe_mhz,
        "state": None if figures.state is None else figures.state.value,
        "lastSampleTime": None if figures.sampled_s is None else written_time(figures.sampled_s),
    }
    return {
        "observedGeneration": generation,
        **{name: value for name, value in numbers.items() if value is not None},
        "nodes": figures.nodes,
        "capsByClass": [
            {
                "name": name,
                "servers": servers,
                "mhz": mhz,
                "seconds": round(seconds, 1),
                "slowdownRatio": round(slowdown, 4),
            }
            for name, servers, mhz, seconds, slowdown in figures.caps
        ],
        "brakeEvents": figures.brakes,
        **({"admission": dict(figures.admission)} if figures.admission is not None else {}),
        **({"trained": dict(figures.trained)} if figures.trained is not None else {}),
        "conditions": written(findings, before.get("conditions") or [], generation=generation, now=now),
        "message": message_of(findings)[:4096],
    }


def _watts(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(round(value))


def _ratio(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _told(finding: Finding) -> Finding:
    if finding.message or finding.reason not in WORDS:
        return finding
    return Finding(
        type=finding.type, status=finding.status, reason=finding.reason, message=WORDS[finding.reason]
    )


def message_of(findings: list[Finding]) -> str:
    """Say what is to be known first: what is refused, what is not safe, what is broken."""
    by_type = {finding.type: finding for finding in findings}
    order = [ACCEPTED, WITHIN_BUDGET, GPU_LOST_CONDITION]
    order += [kind for kind in ORDER if kind not in {*order, GUARANTEE_HOLDS}] + [GUARANTEE_HOLDS]
    for kind in order:
        finding = by_type.get(kind)
        if finding is None:
            continue
        bad = finding.status is (kind == GPU_LOST_CONDITION)
        if bad:
            return finding.message or finding.reason
    return "as ordered"


def lasting(status: Mapping[str, Any]) -> Any:
    """Return what of a status is worth a write of its own at once."""
    conditions = [(c["type"], c["status"], c["reason"]) for c in status["conditions"]]
    return (
        status["observedGeneration"],
        status.get("state"),
        status["budgetWatts"],
        conditions,
        status["nodes"],
    )
