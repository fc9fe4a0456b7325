"""Brings one Plan of an ExpertPlacement forward: approves, writes the ConfigMap, restarts, sees it done.

It exists so that actuation reads nothing but the Plan and what is observed: the files to write, their digests and the
target stand in it. Every call looks anew; a leader that dies between any two writes leaves something its follower
continues. Whether a change pays was decided before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from controller.operator.api import (
    ABSENT,
    CONFIG_MAPS,
    CONTROLLER,
    PLANS,
    STATUS,
    Api,
    ApiError,
    Object,
)
from controller.operator.experts.outputs import body_of, found, name_of
from controller.operator.experts.plans import data_in, plan_key, whole
from controller.operator.experts.restart import observed, restart
from controller.operator.rollout import STEP_LIMIT_S
from controller.operator.times import parse_time
from controller.operator.views import APPROVED, PlanView
from controller.operator.world import Key
from controller.resources.plan import ExpertAction, ExpertChange, ExpertStep, Phase, PlanSpec

Waits = tuple[str, str]
"""Reason and message of what it waits for; both empty when it is done."""
FAILED = "PlanFailed"


@dataclass(slots=True, kw_only=True)
class Actuation:
    """What bringing a Plan forward needs, and the ConfigMap as it is seen, also after a write."""

    key: Key
    """Of the placement."""
    uid: str
    api: Api
    reading: Api
    epoch: int
    now: str
    now_s: float
    """Seconds since 1970, of the same instant."""
    config_map: Object | None
    put: Callable[[str, Object], None]
    tell: Callable[..., None]
    """Writes an event: reason, message, warning."""
    on_step: Callable[[Key, PlanSpec, int, str], None]


def bring_forward(plan: PlanView, act: Actuation, *, automatic: bool) -> tuple[PlanView, Waits]:
    """Take a Plan as far as it can go now; returns it as it then is, and what it waits for.

    Raises
    ------
    ApiError
        If a write is refused; the next call sees the state as it then is.
    """
    change, phase = plan.spec.experts, plan.current.phase
    if change is None or phase in {Phase.APPLIED, Phase.FAILED, Phase.SUPERSEDED}:
        return plan, ("", "")
    digest = plan.spec.digest
    if phase is Phase.PROPOSED:
        if not automatic and digest not in {plan.approved, plan.current.approved_digest}:
            if plan.status.digest != digest:
                plan = set_phase(plan, act, phase=Phase.PROPOSED, approved_digest="", message="")
            return plan, ("WaitingForApproval", f"approve it by: {command_of(act.key, digest)}")
        plan = set_phase(
            plan, act, phase=Phase.APPROVED, approved_digest=digest, step=0, step_since=act.now, message=""
        )
        act.tell("PlanApproved", f"Plan {digest} is applied")
    if not whole(plan.spec):
        return _failed(plan, act, "its files, digests and steps do not belong together")
    while plan.current.step < len(change.steps):
        step = change.steps[plan.current.step]
        if step.action is ExpertAction.WRITE_MAP:
            plan, waits = _write_map(plan, change, act)
        else:
            plan, waits = _restart(plan, change, step, act)
        if waits[0]:
            return plan, waits
    if plan.current.phase is not Phase.APPLIED:
        plan = set_phase(plan, act, phase=Phase.APPLIED, message="")
    return plan, ("", "")


def command_of(key: Key, digest: str) -> str:
    """Return the command that approves a Plan."""
    namespace, name = plan_key(key)
    return f"kubectl annotate -n {namespace} plan/{name} --overwrite {APPROVED}={digest}"


def _write_map(plan: PlanView, change: ExpertChange, act: Actuation) -> tuple[PlanView, Waits]:
    data = data_in(change)
    written = found(act.config_map, act.uid)
    if change.config_map != name_of(act.key) or change.placement_ref.uid != act.uid:
        return _failed(plan, act, "it is of another ExpertPlacement")
    if not written.ours:
        taken = f"ConfigMap {change.config_map} is somebody else's: rename or delete it"
        return plan, ("ConfigMapTaken", taken)
    if dict(written.data) != data:
        if plan.current.phase is not Phase.APPLYING:
            plan = set_phase(plan, act, phase=Phase.APPLYING, step_since=act.now)
        body = body_of(act.key, act.uid, data, made_at=act.now, version=written.version or ABSENT)
        act.config_map = act.api.apply(CONFIG_MAPS, body, manager=CONTROLLER, force=True)
        moved = "" if not change.moved_ratio else f", {change.moved_ratio:.1%} of the experts move"
        act.tell("MapWritten", f"{change.config_map}: {change.objective_us:.6g} µs per window{moved}")
        act.on_step(act.key, plan.spec, plan.current.step, "written")
    return _observed(plan, act), ("", "")


def _restart(
    plan: PlanView, change: ExpertChange, step: ExpertStep, act: Actuation
) -> tuple[PlanView, Waits]:
    target = step.target_ref
    if target is None:
        return _failed(plan, act, "a restart without a target")
    if dict(found(act.config_map, act.uid).data) != data_in(change):
        return _failed(plan, act, f"ConfigMap {change.config_map} was changed before the restart")
    name = f"{target.kind} {target.name}"
    try:
        rollout = observed(act.reading, act.key, target)
    except ApiError as error:
        if error.code != 404:
            raise
        return _within_time(plan, act, ("TargetMissing", str(error)))
    if rollout.digest != change.map_digest:
        if plan.current.phase is not Phase.APPLYING:
            plan = set_phase(plan, act, phase=Phase.APPLYING, step_since=act.now)
        restart(act.api, act.key, target, rollout, change.map_digest)
        act.tell("Restarted", f"{name} is restarted with map {change.map_digest}")
        act.on_step(act.key, plan.spec, plan.current.step, "written")
    elif rollout.done:
        return _observed(plan, act), ("", "")
    waits = ("Restarting", f"{name} is being restarted with map {change.map_digest}")
    return _within_time(plan, act, waits)


def _within_time(plan: PlanView, act: Actuation, waits: Waits) -> tuple[PlanView, Waits]:
    since = plan.current.step_since
    if since is not None and act.now_s - parse_time(since) > STEP_LIMIT_S:
        step = plan.current.step + 1
        return _failed(plan, act, f"step {step} did not end in {STEP_LIMIT_S:.0f} s: {waits[1]}")
    return plan, waits


def _observed(plan: PlanView, act: Actuation) -> PlanView:
    """Go on to the next step."""
    step = plan.current.step
    act.on_step(act.key, plan.spec, step, "observed")
    phase = Phase.APPLIED if step + 1 == plan.spec.step_count else Phase.APPLYING
    return set_phase(plan, act, phase=phase, step=step + 1, step_since=act.now, message="")


def _failed(plan: PlanView, act: Actuation, why: str) -> tuple[PlanView, Waits]:
    plan = set_phase(plan, act, phase=Phase.FAILED, message=why)
    act.tell(FAILED, why, warning=True)
    return plan, (FAILED, why)


def supersede(plan: PlanView, act: Actuation, why: str) -> PlanView:
    """Take a Plan back that is not to be applied any more."""
    if plan.current.phase in {Phase.APPLIED, Phase.FAILED, Phase.SUPERSEDED}:
        return plan
    return set_phase(plan, act, phase=Phase.SUPERSEDED, message=why)


def set_phase(plan: PlanView, act: Actuation, **changes: object) -> PlanView:
    """Write a status on the version of the Plan that was decided on, with the leader's term."""
    more = {"epoch": act.epoch, "digest": plan.spec.digest, "steps": plan.spec.step_count}
    status = plan.current.model_copy(update={**changes, **more})
    namespace, name = plan_key(act.key)
    body: Object = {
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": plan.version},
        "status": status.written(),
    }
    answer = act.api.apply(PLANS, body, manager=STATUS, subresource="status", force=True)
    act.put(PLANS.kind, answer)
    return replace(plan, status=status, version=str(answer["metadata"]["resourceVersion"]))
