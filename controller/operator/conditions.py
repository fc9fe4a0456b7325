"""Conditions of a ModelService: what is fine, what is not, and what to do, in the shape of metav1.Condition.

It exists so that statuses are computed from what is known, and keep their transition times while nothing changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TELEMETRY_READY = "TelemetryReady"
SOLVER_READY = "SolverReady"
PLAN_READY = "PlanReady"
APPLIED = "Applied"
ACTUATION_CONFLICT = "ActuationConflict"
DEGRADED = "Degraded"
FORECAST_READY = "ForecastReady"
"""Only where a forecast is wished."""
REHEARSED = "Rehearsed"
"""Only where a rehearsal is wished; also on Plans."""
READY = "Ready"
"""Of a GpuProfile."""
ORDER = (
    TELEMETRY_READY,
    SOLVER_READY,
    PLAN_READY,
    APPLIED,
    ACTUATION_CONFLICT,
    DEGRADED,
    FORECAST_READY,
    REHEARSED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One condition without its times."""

    type: str
    status: bool | None
    """None: unknown."""
    reason: str
    message: str = ""


STATUS = {True: "True", False: "False", None: "Unknown"}


def written(
    findings: Iterable[Finding], before: Iterable[Mapping[str, Any]], *, generation: int, now: str
) -> list[dict[str, Any]]:
    """Return conditions in their order; ``lastTransitionTime`` changes only with the status."""
    known = {str(condition.get("type")): condition for condition in before}
    conditions = []
    for finding in sorted(findings, key=lambda f: ORDER.index(f.type) if f.type in ORDER else -1):
        old = known.get(finding.type)
        status = STATUS[finding.status]
        same = old is not None and old.get("status") == status
        conditions.append(
            {
                "type": finding.type,
                "status": status,
                "reason": finding.reason,
                "message": finding.message[:4096],
                "lastTransitionTime": old["lastTransitionTime"] if same and old is not None else now,
                "observedGeneration": generation,
            }
        )
    return conditions
