"""Why experts sit where they sit: the map's Plan, why nothing else is done, what binds, what to do next.

It exists so that people can ask instead of reading logs. It reads an ExpertPlacement and its Plan, solves nothing again
(what binds was written into the Plan when it was made), and writes nothing. Printing is the command's business.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from controller.operator.api import EXPERT_PLACEMENTS, PLANS, Api, Object
from controller.operator.experts.plans import plan_key, plan_of
from controller.operator.experts.rollout import command_of
from controller.operator.experts.status import APPLIED, INFEASIBLE, SOLVED, STALE
from controller.operator.explain import Advice, Words
from controller.operator.times import parse_time
from controller.operator.views import PAUSED, PlanView, first_problem
from controller.operator.world import Key
from controller.resources.expert_placement import ApplyMode, ExpertPlacementSpec, ExpertPlacementStatus
from controller.resources.plan import Phase, PlanSpec
from solver.domain.errors import InputError

BINDS = "binds: "
WORDS: Mapping[tuple[str, str], str] = {
    (SOLVED, "True"): "a map is known",
    (SOLVED, "False"): "no map is known",
    (APPLIED, "True"): "the map is where it should be",
    (APPLIED, "False"): "no map is in force as it should be",
    (STALE, "True"): "the loads are not known, so the map stays",
    (STALE, "False"): "the loads are known",
    (INFEASIBLE, "True"): "experts cannot be placed as it is stated",
    (INFEASIBLE, "False"): "nothing is in the way",
}
BY_REASON: Mapping[str, str] = {
    "MoveRefused": "a better map is known, but moving to it does not pay",
    "WaitingForApproval": "the plan waits for approval",
    "Restarting": "the target is being restarted",
    "Paused": "nothing is changed now",
    "NotAsked": "figures only are asked for",
}
"""What conditions mean where the reason says more than the status."""
ADVICE: Mapping[str, str] = {
    "InvalidSpec": "correct the ExpertPlacement, or upgrade the chart if the field is a new one",
    "TopologyUnknown": "wait until all pods of targetRef run, or name topology.nodes",
    "LoadInsufficient": "record transitions, or use commModel: dispatch",
    "EngineRefuses": "give every GPU as many slots as the others; a map too large for a ConfigMap: apply: none",
    "LoadMissing": "let the loads be recorded where loadSource looks for them",
    "LoadUnreadable": "see that the controller may read loadSource",
    "LoadInvalid": "mend what the recording lacks; it is read again by itself",
    "LoadIncomplete": "wait until more is recorded, or make loadSource.windowSeconds shorter",
    "NoDatabase": "run the controller with --database-url, or name another loadSource",
    "LoadOld": "record the loads anew, or raise loadSource.maxAgeSeconds",
    "NoTokens": "record while there is traffic",
    "ConfigMapTaken": "rename or delete the ConfigMap, or give the ExpertPlacement another name",
    "PlanTaken": "give the ModelService or the ExpertPlacement another name",
    "TargetMissing": "create the target, or correct targetRef",
    "TargetNotReady": "see why pods of the target are not ready",
    "PlanFailed": "mend what it names; another plan is made when it is done, or when the ExpertPlacement changes",
    "WriteRefused": "see which rights are missing: ballast doctor",
    "Restarting": "nothing: the plan is being applied, step by step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStory:
    """Everything there is to say about one ExpertPlacement."""

    key: Key
    spec: ExpertPlacementSpec | None
    status: ExpertPlacementStatus
    known: PlanView | None
    """Its Plan, also one that was taken back."""
    why: tuple[str, ...]
    why_not: tuple[str, ...]
    """Why nothing moves now."""
    binds: tuple[str, ...]
    conditions: tuple[Words, ...]
    advice: tuple[Advice, ...]

    @property
    def plan(self) -> PlanSpec | None:
        """The plan that stands or waits; None if there is none or it was taken back."""
        known = self.known
        return None if known is None or known.current.phase is Phase.SUPERSEDED else known.spec


def find_placement(api: Api, namespace: str, kind: str, name: str) -> str | None:
    """Return the placement that is meant by an ExpertPlacement or a Plan; None for a Plan of something else.

    Raises
    ------
    ApiError
        If the API server cannot be reached, or refuses.
    """
    if kind != PLANS.kind:
        return name
    plan = api.get(PLANS, namespace, name)
    change = {} if plan is None else plan["spec"].get("experts") or {}
    ref = change.get("placementRef")
    return None if not ref else str(ref["name"])


def read_story(api: Api, namespace: str, name: str, *, now: Callable[[], float] = time.time) -> ExpertStory:
    """Read an ExpertPlacement and its Plan, and tell.

    Raises
    ------
    ApiError
        If the API server cannot be reached, or refuses.
    InputError
        If there is none of that name.
    """
    key = (namespace, name)
    body = api.get(EXPERT_PLACEMENTS, *key)
    if body is None:
        raise InputError(
            f"there is no ExpertPlacement {name} in namespace {namespace}", right=_known(api, namespace)
        )
    return tell(key, body, api.get(PLANS, *plan_key(key)), now_s=now())


def _known(api: Api, namespace: str) -> str:
    found = api.names(EXPERT_PLACEMENTS, namespace)
    if found is None:
        return "the cluster does not know ExpertPlacements: install the chart; see: ballast doctor"
    names = sorted(name for _, name in found)
    if not names:
        return "there is none in this namespace; -n names another"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"there are {', '.join(names[:5])}{more}; -n names the namespace"


def tell(key: Key, body: Object, plan_body: Object | None, *, now_s: float) -> ExpertStory:
    """Tell the story of a placement and its Plan."""
    try:
        spec = ExpertPlacementSpec.model_validate(body["spec"])
        trouble = ""
    except ValidationError as error:
        spec, trouble = None, first_problem(error)
    status = ExpertPlacementStatus.model_validate(body.get("status") or {})
    known, _ = plan_of(plan_body, str(body["metadata"].get("uid") or ""))
    conditions = tuple(_conditions(status))
    stands = None if known is None or known.current.phase is Phase.SUPERSEDED else known.spec
    reasons = () if stands is None else stands.reasons
    return ExpertStory(
        key=key,
        spec=spec,
        status=status,
        known=known,
        why=tuple(reason for reason in reasons if not reason.startswith(BINDS)),
        why_not=tuple(_why_not(spec, status, known, conditions, trouble=trouble, now_s=now_s)),
        binds=(
            *(reason.removeprefix(BINDS) for reason in reasons if reason.startswith(BINDS)),
            *_binds(spec, status),
        ),
        conditions=conditions,
        advice=tuple(_advice(key, body, spec, conditions, known)),
    )


def _conditions(status: ExpertPlacementStatus) -> Iterator[Words]:
    for found in status.conditions:
        yield Words(
            type=found.type,
            status=found.status,
            reason=found.reason,
            meaning=BY_REASON.get(found.reason) or WORDS.get((found.type, found.status), "it is not known"),
            message=found.message,
        )


def _why_not(
    spec: ExpertPlacementSpec | None,
    status: ExpertPlacementStatus,
    known: PlanView | None,
    conditions: tuple[Words, ...],
    *,
    trouble: str,
    now_s: float,
) -> Iterator[str]:
    """Say what keeps the map as it is, what is in the way first."""
    if trouble:
        yield trouble
        return
    by_type = {c.type: c for c in conditions}
    for kind in (INFEASIBLE, STALE):
        found = by_type.get(kind)
        if found is not None and found.status == "True":
            yield f"{found.meaning}: {found.message}"
    applied, solved = by_type.get(APPLIED), by_type.get(SOLVED)
    if applied is not None and applied.reason == "WaitingForApproval" and known is not None:
        yield f"plan {known.spec.digest} waits for approval"
    elif applied is not None and applied.status != "True" and applied.message:
        yield applied.message
    refused = solved is not None and (solved.status != "True" or solved.reason == "MoveRefused")
    if solved is not None and refused and solved.message:
        yield solved.message
    if known is not None and known.current.phase is Phase.SUPERSEDED:
        yield f"plan {known.spec.digest} was taken back: {known.current.message}"
    if spec is None:
        return
    waits = _interval(spec, status, known, now_s)
    if waits:
        yield waits


def _interval(
    spec: ExpertPlacementSpec, status: ExpertPlacementStatus, known: PlanView | None, now_s: float
) -> str:
    times = [] if status.made_at is None else [status.made_at]
    if known is not None and known.current.phase is Phase.PROPOSED:
        times.append(known.spec.made_at)
    least_s = spec.migration.min_interval_seconds
    left_s = max((least_s - (now_s - parse_time(at)) for at in times), default=0.0)
    if left_s <= 0.0:
        return ""
    return f"no other map before minIntervalSeconds {least_s} are over, in {left_s:.0f} s"


def _binds(spec: ExpertPlacementSpec | None, status: ExpertPlacementStatus) -> Iterator[str]:
    """Say what binds a decision of which only the figures are known."""
    if spec is None or status.objective_us is None or status.gap is None:
        return
    yield f"no map is more than {status.gap:.2%} faster (proved)"
    refused = any(c.type == SOLVED and c.reason == "MoveRefused" for c in status.conditions)
    move_s, net_s, limits = status.predicted_move_seconds, status.net_gain_seconds, spec.migration
    if not refused or move_s is None or net_s is None:
        return
    cost_s = move_s * (1.0 + limits.margin)
    gain_s = net_s + cost_s
    if gain_s <= 0.0:
        yield "the other map saves nothing"
        return
    windows = (cost_s + limits.min_net_gain_seconds) / gain_s * limits.windows_until_next
    yield (
        f"the cost of moving: {move_s:.3g} s and a margin of {limits.margin:.0%} against a saving of {gain_s:.3g} s; it"
        f" would pay if the map served more than {windows:.0f} windows (windowsUntilNext {limits.windows_until_next})"
    )


def _advice(
    key: Key,
    body: Object,
    spec: ExpertPlacementSpec | None,
    conditions: tuple[Words, ...],
    known: PlanView | None,
) -> list[Advice]:
    """Say what to do next, what is needed first first."""
    space, name = key
    status = body.get("status") or {}
    if not conditions or int(status.get("observedGeneration") or 0) < int(
        body["metadata"].get("generation") or 0
    ):
        return [
            Advice(
                text="no controller has looked at this ExpertPlacement as it is now: see whether one runs",
                command="ballast doctor",
            )
        ]
    found = list(_pauses(key, body, spec, known))
    by_type = {c.type: c for c in conditions}
    applied = by_type.get(APPLIED)
    if applied is not None and applied.reason == "WaitingForApproval" and known is not None:
        found.append(Advice(text="approve the plan", command=command_of(key, known.spec.digest)))
    for kind in (INFEASIBLE, STALE, APPLIED):
        reason = "" if kind not in by_type else by_type[kind].reason
        if reason in ADVICE:
            command = f"kubectl get pods -n {space} -o wide" if reason == "TargetNotReady" else ""
            found.append(Advice(text=ADVICE[reason], command=command))
    solved = by_type.get(SOLVED)
    if solved is not None and solved.status == "False" and not found:
        found.append(Advice(text="nothing: it is tried again by itself; the controller's log says more"))
    if applied is not None and applied.reason == "NotAsked":
        patch = '{"spec":{"apply":"configMap"}}'
        command = f"kubectl patch -n {space} expertplacement/{name} --type=merge -p '{patch}'"
        found.append(Advice(text="to have the map written", command=command))
    if applied is not None and applied.status == "True" and not found:
        engines = spec is not None and spec.apply is ApplyMode.CONFIG_MAP
        more = f": see to it that engines load ConfigMap {plan_key(key)[1]}" if engines else ""
        found.append(Advice(text=f"nothing: all is as planned{more}"))
    return found or [Advice(text="nothing: it is awaited")]


def _pauses(
    key: Key, body: Object, spec: ExpertPlacementSpec | None, known: PlanView | None
) -> Iterator[Advice]:
    """Name what pauses a placement, each with how to take it off."""
    space, name = key
    if spec is not None and spec.paused:
        patch = '{"spec":{"paused":false}}'
        yield Advice(
            text="spec.paused holds it",
            command=f"kubectl patch -n {space} expertplacement/{name} --type=merge -p '{patch}'",
        )
    if (body["metadata"].get("annotations") or {}).get(PAUSED) == "true":
        yield Advice(
            text="an annotation pauses it",
            command=f"kubectl annotate -n {space} expertplacement/{name} {PAUSED}-",
        )
    if known is not None and known.paused:
        yield Advice(
            text="an annotation pauses its Plan",
            command=f"kubectl annotate -n {space} plan/{plan_key(key)[1]} {PAUSED}-",
        )
