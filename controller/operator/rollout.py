"""Brings one Plan forward: approves, writes a step, sees it done, writes the next.

It exists so that actuation reads nothing but Plans and what is observed. Every call looks at the whole state anew and
makes at most one write to a target; a leader that dies between any two writes leaves something its follower continues.
When a step may be taken is decided by `solver.services.steps.next_move`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from controller.operator.api import PLANS, STATUS, Api, Object
from controller.operator.conditions import Finding, written
from controller.operator.plans import is_approved, step_of, usable
from controller.operator.route import shift
from controller.operator.targets import scale
from controller.operator.times import parse_time
from controller.operator.views import PlanView, ServiceView
from controller.operator.world import World
from controller.resources.plan import Action, Phase, PlanStatus
from controller.resources.schema import Condition
from solver.services.steps import Move, next_move

STEP_LIMIT_S = 1800.0
"""A step that is not seen done after so long has failed; another plan is made."""


@dataclass(slots=True, kw_only=True)
class Actuation:
    """What a rollout needs: the API, the world to put answers into, the ledger of free GPUs."""

    api: Api
    world: World
    free_gpus: dict[str, int]
    """By pool; lowered by what is written."""
    epoch: int
    now: str
    now_s: float
    """Seconds since 1970, of the same instant."""
    event: Callable[..., None]
    on_step: Callable[..., None]


def bring_forward(view: ServiceView, act: Actuation) -> str:
    """Take a plan as far as it can go now; returns what it waits for, or an empty text.

    Raises
    ------
    ApiError
        If a write is refused; the next call sees the state as it then is.
    """
    plan = view.plan
    if plan is None or view.spec is None:
        return ""
    status = plan.current
    if status.phase in {Phase.APPLIED, Phase.FAILED, Phase.SUPERSEDED}:
        return status.message if status.phase is Phase.FAILED else ""
    if not is_approved(view):
        if plan.status.digest != plan.spec.digest or status.phase is not Phase.PROPOSED:
            _write(view, act, _changed(status, phase=Phase.PROPOSED, approved_digest="", message=""))
        return ""
    if status.phase is Phase.PROPOSED:
        status = _changed(
            status, phase=Phase.APPROVED, approved_digest=plan.spec.digest, step=0, step_since=act.now
        )
        status = _write(view, act, status)
        act.event(view, "Normal", "PlanApproved", f"Plan {plan.spec.digest} is applied")
    return _steps(view, plan, status, act)


def _steps(view: ServiceView, plan: PlanView, status: PlanStatus, act: Actuation) -> str:
    state = view.state
    while status.step < len(plan.spec.steps):
        if plan.spec.steps[status.step].action is Action.SHIFT:
            why = shift(act.api, view)
            if why:
                return why
            status = _observed(view, act, plan, status)
            continue
        step = step_of(view, status.step)
        if step is None or state is None:
            return _fail(view, act, status, f"the variant of step {status.step} can no longer be scaled")
        variant = usable(view)[step.variant]
        move = next_move(state, step, free_gpus=act.free_gpus, fresh=view.traffic.fresh)
        if move.move is Move.ADVANCE:
            status = _observed(view, act, plan, status)
            continue
        why = move.why
        if variant.conflict is not None and move.move is Move.WRITE:
            why = variant.conflict[1]
        elif move.move is Move.WRITE and variant.target is not None:
            if status.phase is not Phase.APPLYING:
                status = _write(view, act, _changed(status, phase=Phase.APPLYING, step_since=act.now))
            held = state.variants[step.variant].held
            scaled = scale(act.api, variant.target, step.to_replicas, view.key)
            act.world.put(variant.target.kind, scaled.body)
            pool = state.variants[step.variant].pool
            more = max(0, step.to_replicas - held) * state.variants[step.variant].gpus_per_replica
            act.free_gpus[pool] = act.free_gpus.get(pool, 0) - more
            if scaled.adopted_from is not None:
                act.event(
                    view,
                    "Normal",
                    "Adopted",
                    f"spec.replicas of {variant.target.kind} {variant.target.key[1]} taken over from"
                    f" {scaled.adopted_from}",
                )
            act.event(
                view,
                "Normal",
                "Scaled",
                f"{variant.target.kind} {variant.target.key[1]}: {variant.target.replicas} → {step.to_replicas}"
                f" (plan {plan.spec.digest}, step {status.step + 1} of {len(plan.spec.steps)})",
            )
            act.on_step(view, status.step, "written")
            return f"{variant.target.kind} {variant.target.key[1]} goes to {step.to_replicas}"
        since_s = act.now_s if status.step_since is None else parse_time(status.step_since)
        if act.now_s - since_s > STEP_LIMIT_S:
            return _fail(
                view, act, status, f"step {status.step + 1} did not end in {STEP_LIMIT_S:.0f} s: {why}"
            )
        return why
    if status.phase is not Phase.APPLIED:
        _write(view, act, _changed(status, phase=Phase.APPLIED, message=""))
    return ""


def _observed(view: ServiceView, act: Actuation, plan: PlanView, status: PlanStatus) -> PlanStatus:
    """Go on to the next step."""
    done = status.step + 1 == len(plan.spec.steps)
    act.on_step(view, status.step, "observed")
    changes = {"phase": Phase.APPLIED if done else Phase.APPLYING, "step": status.step + 1}
    return _write(view, act, _changed(status, step_since=act.now, message="", **changes))


def supersede(view: ServiceView, act: Actuation, why: str) -> None:
    """Take a plan back that is not to be applied any more."""
    plan = view.plan
    if plan is not None and plan.current.phase not in {Phase.APPLIED, Phase.FAILED, Phase.SUPERSEDED}:
        _write(view, act, _changed(plan.current, phase=Phase.SUPERSEDED, message=why))


def note(view: ServiceView, act: Actuation, finding: Finding) -> None:
    """Say something of a Plan on itself, as a condition; it stays where it is."""
    plan = view.plan
    if plan is None:
        return
    before = [condition.written() for condition in plan.current.conditions]
    found = written([finding], before, generation=view.generation, now=act.now)
    conditions = tuple(Condition.model_validate(condition) for condition in found)
    _write(view, act, _changed(plan.current, conditions=conditions))


def _fail(view: ServiceView, act: Actuation, status: PlanStatus, why: str) -> str:
    _write(view, act, _changed(status, phase=Phase.FAILED, message=why))
    act.event(view, "Warning", "PlanFailed", why)
    return why


def _changed(status: PlanStatus, **changes: object) -> PlanStatus:
    return status.model_copy(update=changes)


def _write(view: ServiceView, act: Actuation, status: PlanStatus) -> PlanStatus:
    """Write a status on the version of the Plan that was decided on, with the leader's term."""
    plan = view.plan
    if plan is None:
        raise ValueError(f"{view.name} has no Plan")
    known = act.world.get(PLANS.kind, view.key)
    version = str(known["metadata"]["resourceVersion"]) if known is not None else plan.version
    status = _changed(status, epoch=act.epoch, digest=plan.spec.digest, steps=len(plan.spec.steps))
    if known is not None and known["spec"].get("digest") != plan.spec.digest:
        version = plan.version  # another plan has come: this write must fail
    body: Object = {
        "metadata": {"name": view.key[1], "namespace": view.key[0], "resourceVersion": version},
        "status": status.written(),
    }
    answer = act.api.apply(PLANS, body, manager=STATUS, subresource="status", force=True)
    act.world.put(PLANS.kind, answer)
    return status
