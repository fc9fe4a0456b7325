"""What people see on a ModelService: conditions, replicas, cost, and one line on what happens or what to do.

It exists so that every state of a service, also "nothing happens", has a reason. It is computed from a view, a decision
and what actuation waits for; it writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controller.operator.conditions import (
    ACTUATION_CONFLICT,
    APPLIED,
    DEGRADED,
    FORECAST_READY,
    PLAN_READY,
    SOLVER_READY,
    TELEMETRY_READY,
    Finding,
    written,
)
from controller.operator.outlook import Foreseen
from controller.operator.plans import is_approved
from controller.operator.rehearsal.said import held, rehearsed, warning
from controller.operator.views import APPROVED, ServiceView
from controller.resources.model_service import Mode
from controller.resources.plan import Phase
from solver.domain.cluster import ServiceDecision
from solver.domain.fleet import Role
from solver.services.plan import serves

MOST_SUMMARY = 512
MOST_MESSAGE = 4096
"""Characters that the resource's schema allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the loop knows beside the view."""

    decision: ServiceDecision | None = None
    solver_reason: str = ""
    """Why the solver was kept from the service, or failed on it."""
    solver_message: str = ""
    refused: str = ""
    """Why a decision cannot be reached from here."""
    waits_for: str = ""
    held_back: str = ""
    """What the plan's rehearsal holds it for."""
    held: str = ""
    """Why everything is held (chart's pause)."""


def status_of(view: ServiceView, progress: Progress, *, now: str) -> dict[str, Any]:
    """Return the status; times of unchanged conditions are kept."""
    before = view.body.get("status") or {}
    findings = [
        _telemetry(view),
        _solver(view, progress),
        _plan_ready(view, progress),
        _applied(view, progress),
        _conflict(view),
        _degraded(view),
        *_forecast_ready(view),
        *rehearsed(view),
    ]
    status: dict[str, Any] = {
        "observedGeneration": view.generation,
        "conditions": written(findings, before.get("conditions") or [], generation=view.generation, now=now),
        "message": _cut(_message(findings, view, progress), MOST_MESSAGE),
    }
    current = [
        {
            "variant": v.spec.name,
            **_role(v.spec.role),
            "replicas": v.target.replicas,
            "ready": v.target.ready,
        }
        for v in view.variants
        if v.target is not None
    ]
    if current:
        status["current"] = current
    if view.traffic.rate_rps is not None:
        status["demand"] = _demand(before.get("demand"), view)
    if view.traffic.forecast is not None:
        status["forecast"] = _forecast(before.get("forecast"), view.traffic.forecast)
    plan = view.plan
    if plan is not None and plan.current.phase is not Phase.SUPERSEDED:
        status["desired"] = [
            {"variant": w.variant, **_role(w.role), "replicas": w.replicas} for w in plan.spec.desired
        ]
        status["planRef"] = {"name": view.key[1], "digest": plan.spec.digest}
        costs = {
            "costUsdPerHour": plan.spec.cost_usd_per_hour,
            "lowerBoundUsdPerHour": plan.spec.lower_bound_usd_per_hour,
            "gapRatio": plan.spec.gap_ratio,
        }
        status |= {name: value for name, value in costs.items() if value is not None}
    elif view.state is not None:
        status["costUsdPerHour"] = round(view.state.cost_usd_per_h, 6)
    status["summary"] = _summary(view)
    return status


def _role(role: Role | None) -> dict[str, str]:
    """Name the phase that is served, where it is one only."""
    return {} if role in {None, Role.BOTH} else {"role": str(role)}


def _demand(before: Any, view: ServiceView) -> dict[str, Any]:
    """Rate and time of the sample; a sample that says the same is not worth a write."""
    rate = float(f"{view.traffic.rate_rps or 0.0:.4g}")
    if before and abs(float(before.get("requestsPerSecond") or 0.0) - rate) <= 0.05 * rate:
        return {"requestsPerSecond": before["requestsPerSecond"], "sampledAt": before["sampledAt"]}
    return {"requestsPerSecond": rate, "sampledAt": view.traffic.sampled_at}


def _forecast(before: Any, found: Foreseen) -> dict[str, Any]:
    """Return what is planned for and why; a rate that is nearly the same is not worth a write."""
    rate = float(f"{found.rate_rps:.4g}")
    if before and abs(float(before.get("requestsPerSecond") or 0.0) - rate) <= 0.05 * rate:
        rate = before["requestsPerSecond"]
    return {
        "requestsPerSecond": rate,
        "rule": found.rule,
        "quantile": found.level_ratio,
        **({"fallback": _cut(found.fallback, MOST_MESSAGE)} if found.fallback else {}),
    }


def _forecast_ready(view: ServiceView) -> list[Finding]:
    """Say whether the forecast that is wished is used; nothing where none is wished."""
    spec, found = view.spec, view.traffic.forecast
    if spec is None or spec.forecast is None:
        return []
    if found is None:
        if view.traffic.stated:
            message = "the traffic is stated, not measured: there is nothing to forecast"
            return [Finding(type=FORECAST_READY, status=False, reason="NotMeasured", message=message)]
        message = "the traffic was not sampled yet"
        return [Finding(type=FORECAST_READY, status=False, reason="NeverSampled", message=message)]
    note = f"; {found.note}" if found.note else ""
    if found.fallback:
        message = f"plans are made for the largest rate of late: {found.fallback}{note}"
        return [Finding(type=FORECAST_READY, status=False, reason=found.reason, message=message)]
    message = (
        f"plans carry the next {found.horizon_s / 60:g} min with probability {1 - found.violations:g}:"
        f" {found.rule} at quantile {found.level_ratio:g}{note}"
    )
    return [Finding(type=FORECAST_READY, status=True, reason=found.reason, message=message)]


def _summary(view: ServiceView) -> str:
    wanted = {}
    if view.plan is not None and view.plan.current.phase is not Phase.SUPERSEDED:
        wanted = {w.variant: w.replicas for w in view.plan.spec.desired}
    parts = []
    for variant in view.variants:
        if variant.target is None:
            continue
        now, want = variant.target.replicas, wanted.get(variant.spec.name)
        if now or want:
            parts.append(f"{variant.named} {now}" + (f"→{want}" if want not in {None, now} else ""))
    return _cut(", ".join(parts) or "none", MOST_SUMMARY)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _telemetry(view: ServiceView) -> Finding:
    traffic = view.traffic
    if view.spec is None:
        return Finding(type=TELEMETRY_READY, status=None, reason="InvalidSpec", message=view.trouble)
    if traffic.fresh:
        return Finding(type=TELEMETRY_READY, status=True, reason=traffic.reason, message=traffic.message)
    return Finding(type=TELEMETRY_READY, status=False, reason=traffic.reason, message=traffic.message)


def _troubles(view: ServiceView) -> str:
    return "; ".join(f"variant {v.named}: {v.trouble}" for v in view.variants if v.trouble)


def _solver(view: ServiceView, progress: Progress) -> Finding:
    if view.spec is None:
        return Finding(type=SOLVER_READY, status=False, reason="InvalidSpec", message=view.trouble)
    if progress.solver_reason:
        return Finding(
            type=SOLVER_READY, status=False, reason=progress.solver_reason, message=progress.solver_message
        )
    if view.state is None:
        return Finding(
            type=SOLVER_READY,
            status=False,
            reason="NoUsableVariant",
            message=_troubles(view) or "no variant has both a target and a profile",
        )
    decision = progress.decision
    if decision is None:
        return Finding(type=SOLVER_READY, status=True, reason="NotNeeded", message=view.unlimited)
    if decision.replicas is None:
        message = decision.message
        if "replica-limit" in f"{decision.reason} {message}":
            message = f"{message}; {_limits(view)}"
        if decision.reason == "bucket-unservable" and view.unserved:
            message = f"{message}; {view.unserved}"
        roles = any(variant.unknown or variant.spec.role is not Role.BOTH for variant in view.variants)
        if roles and _troubles(view):
            message = f"{message}; {_troubles(view)}"  # without one phase the other serves nobody
        return Finding(type=SOLVER_READY, status=False, reason=_camel(decision.reason), message=message)
    return Finding(type=SOLVER_READY, status=True, reason=_camel(decision.status), message=view.unlimited)


def _limits(view: ServiceView) -> str:
    """Name what keeps each variant from more replicas: its own maxReplicas, its owner, or the GPUs of its pool."""
    variants = {variant.spec.name: variant for variant in view.variants}
    parts = []
    for state in view.state.variants if view.state is not None else ():
        variant = variants[state.name]
        if state.locked:
            why = "its role is not in its GpuProfile" if variant.unknown else "somebody else scales it"
            parts.append(f"variant {variant.named} stays at {state.replicas}, {why}")
        elif state.max_replicas is not None and state.max_replicas == variant.spec.max_replicas:
            parts.append(f"maxReplicas of variant {variant.named} is {state.max_replicas}")
        elif state.max_replicas is not None:
            parts.append(f"{state.max_replicas} of variant {variant.named} fit the GPUs of {state.pool}")
    return ", ".join(parts)


def _camel(text: str) -> str:
    return "".join(part.capitalize() for part in text.replace("-", " ").split()) or "Unknown"


def _plan_ready(view: ServiceView, progress: Progress) -> Finding:
    spec, plan = view.spec, view.plan
    if spec is not None and spec.mode is Mode.OBSERVE:
        return Finding(
            type=PLAN_READY,
            status=False,
            reason="Observing",
            message="mode Observe makes no plan; set mode Recommend or Auto",
        )
    if progress.refused:
        return Finding(type=PLAN_READY, status=False, reason="NoWayThere", message=progress.refused)
    if plan is None or plan.current.phase is Phase.SUPERSEDED:
        return Finding(type=PLAN_READY, status=False, reason="NoPlan", message="no plan could be made yet")
    phase = plan.current.phase
    if phase is Phase.FAILED:
        return Finding(type=PLAN_READY, status=False, reason="PlanFailed", message=plan.current.message)
    return Finding(type=PLAN_READY, status=True, reason=phase.value)


def _applied(view: ServiceView, progress: Progress) -> Finding:
    spec, plan = view.spec, view.plan
    if progress.held or view.paused:
        return Finding(
            type=APPLIED,
            status=False,
            reason="Paused",
            message=progress.held or "paused: nothing is changed until it is taken off",
        )
    if spec is not None and spec.mode is Mode.OBSERVE:
        return Finding(type=APPLIED, status=False, reason="Observing", message="mode Observe changes nothing")
    if plan is None:
        return Finding(
            type=APPLIED,
            status=False,
            reason="NoPlan",
            message=progress.waits_for or "there is no plan to apply yet",
        )
    status = plan.current
    if status.phase is Phase.APPLIED:
        return Finding(type=APPLIED, status=True, reason="Applied")
    if status.phase in {Phase.FAILED, Phase.SUPERSEDED}:
        return Finding(type=APPLIED, status=False, reason=status.phase.value, message=status.message)
    if not is_approved(view):
        return Finding(
            type=APPLIED,
            status=False,
            reason="WaitingForApproval",
            message=f"{warning(plan)}approve it by: kubectl annotate -n {view.key[0]} plan/{view.key[1]} --overwrite"
            f" {APPROVED}={plan.spec.digest}",
        )
    if progress.held_back:
        return held(view, progress.held_back)
    return Finding(
        type=APPLIED,
        status=False,
        reason="Applying",
        message=f"step {status.step + 1} of {len(plan.spec.steps)}"
        + (f": {progress.waits_for}" if progress.waits_for else ""),
    )


def _conflict(view: ServiceView) -> Finding:
    conflicts = [variant.conflict for variant in view.variants if variant.conflict is not None]
    if not conflicts:
        return Finding(type=ACTUATION_CONFLICT, status=False, reason="NoConflict")
    return Finding(
        type=ACTUATION_CONFLICT,
        status=True,
        reason=conflicts[0][0],
        message="; ".join(message for _, message in conflicts),
    )


def _degraded(view: ServiceView) -> Finding:
    troubles = _troubles(view)
    if view.spec is not None and troubles:
        return Finding(type=DEGRADED, status=True, reason="VariantUnusable", message=troubles)
    state = view.state
    if state is not None and state.buckets and state.rate_rps > 0:
        ready = [variant.ready for variant in state.variants]
        if not serves(state, ready):
            return Finding(
                type=DEGRADED,
                status=True,
                reason="ReadyCapacityTooSmall",
                message=f"what is ready does not carry {state.rate_rps:.3g} requests/s within the SLO",
            )
    return Finding(type=DEGRADED, status=False, reason="AsExpected")


def _message(findings: Sequence[Finding], view: ServiceView, progress: Progress) -> str:
    """Say what is to be known first: what is broken, else what is awaited, else that all is well."""
    by_type = {finding.type: finding for finding in findings}
    if view.spec is None:
        return view.trouble
    for type_ in (SOLVER_READY, TELEMETRY_READY):
        finding = by_type[type_]
        if finding.status is False:
            return finding.message or finding.reason
    conflict = by_type[ACTUATION_CONFLICT]
    if conflict.status:
        return conflict.message
    if progress.refused:
        return progress.refused
    applied = by_type[APPLIED]
    if not applied.status and applied.message:
        return applied.message
    degraded = by_type[DEGRADED]
    if degraded.status:
        return degraded.message
    return "as planned" if applied.status else applied.reason


def unchanged(status: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a status says what the object already says."""
    return all(before.get(name) == value for name, value in status.items()) and not (
        before.keys() - status.keys()
    )
