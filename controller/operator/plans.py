"""Writes a decision as a Plan: steps, digest, and the reasons in words.

It exists so that what people approve is exactly what is applied: the digest covers the service, the targets and the
steps. It writes to no cluster.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from controller.operator.variants import VariantView
from controller.operator.views import PlanView, ServiceView
from controller.resources.model_service import Mode
from controller.resources.plan import Action, Phase, PlanSpec, Route, ServiceRef, Step, Wanted
from solver.domain.cluster import ServiceDecision, ServiceState
from solver.domain.fleet import Role
from solver.services.steps import Rollout, RolloutStep, StepKind

ACTIONS = {
    StepKind.SCALE_UP: Action.SCALE_UP,
    StepKind.SCALE_DOWN: Action.SCALE_DOWN,
    StepKind.DRAIN: Action.DRAIN,
}


def usable(view: ServiceView) -> list[VariantView]:
    """Variants in the order of the service's state."""
    return [variant for variant in view.variants if variant.usable]


def write_plan(
    view: ServiceView,
    state: ServiceState,
    decision: ServiceDecision,
    rollout: Rollout,
    *,
    solve_id: str,
    made_at: str,
    why: str,
) -> PlanSpec:
    """Return the spec of a Plan."""
    if decision.replicas is None:
        raise ValueError(f"{view.name} has no plan to write")
    variants = usable(view)
    desired = tuple(
        Wanted(
            variant=variant.spec.name,
            role=_role(variant),
            target_ref=variant.spec.target_ref,
            replicas=count,
        )
        for variant, count in zip(variants, decision.replicas, strict=True)
    )
    steps = _steps(view, rollout, decision.replicas)
    return PlanSpec(
        solve_id=solve_id,
        digest=digest_of(view.uid, solve_id, desired, steps),
        model_service_ref=ServiceRef(name=view.key[1], uid=view.uid, generation=view.generation),
        cost_usd_per_hour=_cents(decision.cost_usd_per_h),
        lower_bound_usd_per_hour=_cents(decision.lower_bound_usd_per_h),
        gap_ratio=None if decision.gap_ratio is None else round(decision.gap_ratio, 6),
        current_cost_usd_per_hour=_cents(state.cost_usd_per_h),
        planned_requests_per_second=round(state.rate_rps, 6),
        made_at=made_at,
        reasons=tuple(_reasons(view, state, decision, rollout, why)),
        routing=tuple(
            Route(
                input_tokens=state.buckets[bucket].input_tokens or 0.0,
                output_tokens=state.buckets[bucket].output_tokens or 0.0,
                variant=variants[config].spec.name,
                role=_role(variants[config]),
                share=round(share, 6),
                requests_per_second=round(state.buckets[bucket].rate_rps * share, 6),
            )
            for bucket, config, share in decision.routing
        ),
        desired=desired,
        steps=steps,
    )


def _steps(view: ServiceView, rollout: Rollout, replicas: Sequence[int]) -> tuple[Step, ...]:
    """Write the steps; where an HTTPRoute splits the traffic, it shifts between what comes and what goes last."""
    variants = usable(view)
    moves: list[RolloutStep | None] = list(rollout.steps)
    if moves and view.spec is not None and view.spec.http_route is not None:
        place = len(moves)
        while place and rollout.steps[place - 1].kind is not StepKind.SCALE_UP:
            place -= 1
        moves.insert(place, None)
    entered = [v for v, variant in enumerate(variants) if variant.spec.role is not Role.DECODE] or [0]
    steps = []
    for index, move in enumerate(moves):
        which = max(entered, key=lambda v: replicas[v]) if move is None else move.variant
        steps.append(
            Step(
                index=index,
                target_ref=variants[which].spec.target_ref,
                variant=variants[which].spec.name,
                role=_role(variants[which]),
                from_replicas=replicas[which] if move is None else move.from_replicas,
                to_replicas=replicas[which] if move is None else move.to_replicas,
                action=Action.SHIFT if move is None else ACTIONS[move.kind],
            )
        )
    return tuple(steps)


def _role(variant: VariantView) -> Role | None:
    """Return what a Plan says of a variant's role: nothing where it serves whole requests."""
    return None if variant.spec.role is Role.BOTH else variant.spec.role


def digest_of(uid: str, solve_id: str, desired: Sequence[Wanted], steps: Sequence[Step]) -> str:
    """Return what an approval names: 16 hexadecimal digits over service, solve, targets and steps.

    The solve is part of it, so that yesterday's approval is none of today's plan with the same steps.
    """
    content = {
        "service": uid,
        "solve": solve_id,
        "desired": [wanted.written() for wanted in desired],
        "steps": [step.written() for step in steps],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _cents(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _reasons(
    view: ServiceView, state: ServiceState, decision: ServiceDecision, rollout: Rollout, why: str
) -> list[str]:
    spec = view.spec
    reasons = [why]
    if spec is not None:
        reasons.append(
            f"{state.rate_rps:.3g} requests/s within ttft_p{spec.slo.percentile}={spec.slo.ttft_seconds:g}"
            f" and tbt_p{spec.slo.percentile}={spec.slo.tbt_seconds:g} s, {spec.headroom_ratio:.0%} to spare"
        )
    if state.splits and decision.replicas is not None:
        told = ", ".join(f"{v.named} {n}" for v, n in zip(usable(view), decision.replicas, strict=True))
        reasons.append(f"prompts and what follows are planned apart: {told}")
    if view.unlimited:
        reasons.append(view.unlimited)
    if decision.cost_usd_per_h is not None:
        reasons.append(
            f"costs {decision.cost_usd_per_h:.2f} US$/h, what is asked for now {state.cost_usd_per_h:.2f}"
        )
    if decision.gap_ratio is not None:
        reasons.append(f"no plan is more than {decision.gap_ratio:.2%} cheaper (proved)")
    if decision.together_with:
        reasons.append(f"decided together with {decision.together_with - 1} others that share short GPUs")
    if rollout.swaps:
        reasons.append("GPUs are short: some replicas go before others come, within what the traffic leaves")
    return reasons


def standing_replicas(plan: PlanView | None, state: ServiceState) -> tuple[int, ...] | None:
    """Return what the plan wants of each variant of a state; None if they are not the same variants."""
    if plan is None or plan.current.phase in {Phase.SUPERSEDED, Phase.FAILED}:
        return None
    wanted: Mapping[str, int] = {entry.variant: entry.replicas for entry in plan.spec.desired}
    if set(wanted) != {variant.name for variant in state.variants}:
        return None
    return tuple(wanted[variant.name] for variant in state.variants)


def is_approved(view: ServiceView) -> bool:
    """Whether the plan may be applied: by mode, or because somebody approved this digest."""
    plan = view.plan
    if plan is None or view.spec is None or view.spec.mode is Mode.OBSERVE:
        return False
    digest = plan.spec.digest
    return view.spec.mode is Mode.AUTO or digest in {plan.approved, plan.current.approved_digest}


def step_of(view: ServiceView, index: int) -> RolloutStep | None:
    """Return a step of the plan for the variants of the service's state; None if its variant is gone."""
    plan = view.plan
    if plan is None:
        return None
    step = plan.spec.steps[index]
    for place, variant in enumerate(usable(view)):
        if variant.spec.name == step.variant and variant.spec.target_ref == step.target_ref:
            return RolloutStep(variant=place, from_replicas=step.from_replicas, to_replicas=step.to_replicas)
    return None
