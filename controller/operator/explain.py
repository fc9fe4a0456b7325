"""Why a service runs what it runs: its plan, what else there was, what binds, what it waits for, what to do next.

It exists so that people can ask instead of reading logs. It reads the cluster once, through the operator's own views,
solves the service's problem again, and writes nothing. How it is printed is the command's business.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.operator.api import MODEL_SERVICES, PLANS
from controller.operator.conditions import (
    ACTUATION_CONFLICT,
    APPLIED,
    DEGRADED,
    FORECAST_READY,
    PLAN_READY,
    REHEARSED,
    SOLVER_READY,
    TELEMETRY_READY,
)
from controller.operator.inventory import Inventory
from controller.operator.plans import standing_replicas, usable
from controller.operator.profiles import ProfileBook
from controller.operator.snapshot import Snapshot
from controller.operator.times import parse_time
from controller.operator.traffic import Traffic, stated
from controller.operator.views import APPROVED, PAUSED, ServiceView, Views
from controller.operator.world import Key
from controller.resources.model_service import Mode
from controller.resources.plan import Phase, PlanSpec
from solver.domain.cluster import ServiceState
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.services.explain import Explanation, ServiceLimits, explain_service
from solver.services.settle import Standing, settle

DRA_DRIVER = "gpu.nvidia.com"
WORDS: Mapping[tuple[str, str], str] = {
    (TELEMETRY_READY, "True"): "the traffic is known",
    (TELEMETRY_READY, "False"): "the traffic is not known, so the last plan stays",
    (SOLVER_READY, "True"): "a plan can be found",
    (SOLVER_READY, "False"): "no plan can be found",
    (PLAN_READY, "True"): "there is a plan",
    (PLAN_READY, "False"): "there is no plan to go by",
    (APPLIED, "True"): "what runs is what was planned",
    (APPLIED, "False"): "no plan is in force",
    (ACTUATION_CONFLICT, "True"): "somebody else scales a target",
    (ACTUATION_CONFLICT, "False"): "nobody else scales its targets",
    (DEGRADED, "True"): "something does not work as it should",
    (DEGRADED, "False"): "nothing is degraded",
    (FORECAST_READY, "True"): "plans are made for what is forecast",
    (FORECAST_READY, "False"): "plans are made for the largest rate of late, not for a forecast",
    (REHEARSED, "True"): "the SLO is kept with the plan, simulated on the last window of traffic",
    (REHEARSED, "False"): "the SLO would be kept less with the plan than with what runs",
}
BY_REASON: Mapping[str, str] = {
    "Paused": "nothing is changed now",
    "Observing": "nothing is planned or changed in this mode",
    "WaitingForApproval": "the plan waits for approval",
    "Applying": "the plan is being applied",
    "Failed": "the plan could not be applied",
    "HeldByRehearsal": "the plan is held back; what runs stays",
    "Rehearsing": "what runs and what is planned are being simulated",
    "NoRehearsalNeeded": "the plan takes nothing away, or was needed at once",
}
"""What conditions mean where the reason says more than the status."""
SOLVER_ADVICE: Mapping[str, str] = {
    "InvalidSpec": "correct the ModelService, or upgrade the chart if the field is a new one",
    "NoUsableVariant": "create the missing targets or GpuProfiles",
    "BucketUnservable": "add rows of that size to a GpuProfile (or modelled: true), loosen spec.slo, or add a"
    " variant on faster GPUs",
    "GpuLimit": "add GPU nodes, add a variant on other GPUs, or lower headroomRatio or survive",
    "KvTransfer": "let more replicas of prefill and decode variants fit, correct kvLinkGbytesPerSecond of the"
    " GpuProfiles, or add a variant of role both",
    "ReplicaLimit": "raise maxReplicas, add GPU nodes, or add a variant on other GPUs",
    "Survive": "lower survive, or let more replicas fit",
    "Combination": "give way in one of the named limits",
    "TimedOut": "raise --solve-limit of the controller (chart: controller.solveLimitSeconds)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something to do: in words, and as a command if it is one."""

    text: str
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A condition, with what it means."""

    type: str
    status: str
    reason: str
    meaning: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything there is to say about one service."""

    view: ServiceView
    current_cost_usd_per_h: float | None
    demand_rps: float | None
    """As the operator saw it last."""
    forecast: Mapping[str, Any] | None
    """status.forecast: the rate that plans are made for, with rule and quantile, where a forecast is wished."""
    traffic_from: str
    """Where the traffic of the explanation comes from: spec, plan, or empty."""
    explanation: Explanation | None
    best_now: str
    """What the solver would choose now, and why the plan stands all the same; empty if it is the plan."""
    conditions: tuple[Words, ...]
    waits_for: str
    message: str
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]

    @property
    def plan(self) -> PlanSpec | None:
        """The plan that stands or waits; None if there is none or it was taken back."""
        plan = self.view.plan
        return None if plan is None or plan.current.phase is Phase.SUPERSEDED else plan.spec


def find_service(snapshot: Snapshot, namespace: str, kind: str, name: str) -> Key:
    """Return the key of the service that is meant by a ModelService or a Plan.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    world = snapshot.world
    if kind == PLANS.kind:
        plan = world.get(PLANS.kind, (namespace, name))
        if plan is None:
            raise InputError(
                f"there is no Plan {name} in namespace {namespace}",
                right=_known(snapshot, namespace, PLANS.kind),
            )
        name = str((plan["spec"].get("modelServiceRef") or {}).get("name") or name)
    if world.get(MODEL_SERVICES.kind, (namespace, name)) is None:
        raise InputError(
            f"there is no ModelService {name} in namespace {namespace}",
            right=_known(snapshot, namespace, MODEL_SERVICES.kind),
        )
    return namespace, name


def _known(snapshot: Snapshot, namespace: str, kind: str) -> str:
    """Name some that are there, those of the namespace first."""
    keys = sorted(snapshot.world.all(kind), key=lambda key: (key[0] != namespace, key))
    names = [f"{space}/{name}" for space, name in keys]
    if not names:
        return f"there is no {kind} anywhere that we may look"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"there are {', '.join(names[:5])}{more}; -n names the namespace"


@dataclass(slots=True, kw_only=True)
class Explainer:
    """Tells the story of services of one snapshot."""

    snapshot: Snapshot
    gpu_label: str = "nvidia.com/gpu.product"
    time_limit_s: float = 20.0
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the time limit."""
    now: Callable[[], float] = time.time
    """Seconds since 1970."""
    _views: Views = field(init=False)

    def __post_init__(self) -> None:
        self._views = Views(world=self.snapshot.world, book=ProfileBook(), gpu_label=self.gpu_label)

    def explain(self, key: Key) -> Story:
        """Tell the story of a service."""
        views = self._views
        specs = views.specs()
        owners = views.owners(specs)
        autoscaled = views.autoscaled()
        inventory = views.inventory(specs, owners, dra_driver=DRA_DRIVER)
        notes = self.snapshot.notes()

        def view_of(which: Key, traffic: Traffic) -> ServiceView:
            return views.view(
                which,
                specs[which],
                traffic=traffic,
                owners=owners,
                autoscaled=autoscaled,
                inventory=inventory,
            )

        if key not in specs:
            raise InputError(f"ModelService {key[1]} in {key[0]} is being deleted")
        traffic, source = _traffic(specs[key], views.plan(key))
        view = view_of(key, traffic)
        explanation, best_now = None, ""
        if view.state is not None and traffic.buckets:
            pools = {variant.pool for variant in view.state.variants}
            others = [
                view_of(other, Traffic())
                for other, (_, spec, _) in specs.items()
                if other != key and spec is not None and pools & self._pools(spec)
            ]
            limits = self._limits(view, view.state, others, inventory)
            explanation = explain_service(
                view.state, limits, time_limit_s=self.time_limit_s, clock=self.clock
            )
            best_now = self._best_now(view, view.state, explanation)
            if not explanation.whole:
                notes.append("not every limit was tried within --time-limit")
        elif view.state is not None:
            notes.append(
                "the plan carries no traffic, and none is stated: what binds cannot be told from here"
            )
        conditions = _conditions(view)
        return Story(
            view=view,
            current_cost_usd_per_h=None if view.state is None else view.state.cost_usd_per_h,
            demand_rps=((view.body.get("status") or {}).get("demand") or {}).get("requestsPerSecond"),
            forecast=(view.body.get("status") or {}).get("forecast"),
            traffic_from=source,
            explanation=explanation,
            best_now=best_now,
            conditions=conditions,
            waits_for=_waits_for(conditions),
            message=str((view.body.get("status") or {}).get("message") or ""),
            advice=tuple(_advice(view, conditions)),
            notes=tuple(notes),
        )

    def _pools(self, spec: Any) -> set[str]:
        found = set()
        for variant in spec.variants:
            profile = self._views.profile(variant.gpu_profile)[0]
            if profile is not None:
                found.add(self._views.pool_of(profile).name)
        return found

    def _limits(
        self, view: ServiceView, state: ServiceState, others: Sequence[ServiceView], inventory: Inventory
    ) -> ServiceLimits:
        """Say what keeps a service in: its owner's bounds, and the GPUs that the others do not hold."""
        variants = usable(view)
        nothing: tuple[int | None, ...] = (None,) * len(variants)
        own = tuple(variant.spec.max_replicas for variant in variants)
        if "Node" in self.snapshot.unseen:
            return ServiceLimits(own_max=own, fit=nothing, free_gpus=None)
        free = {variant.pool: inventory.gpus.get(variant.pool, 0) for variant in state.variants}
        for other in others:
            for held in other.state.variants if other.state is not None else ():
                if held.pool in free:
                    free[held.pool] -= held.held * held.gpus_per_replica
        fit = tuple(
            None
            if variant.spec.target_ref.kind == "LeaderWorkerSet"
            else inventory.replicas_that_fit(s.pool, s.gpus_per_replica)
            for variant, s in zip(variants, state.variants, strict=True)
        )
        return ServiceLimits(
            own_max=own, fit=fit, free_gpus={pool: max(0, gpus) for pool, gpus in free.items()}
        )

    def _best_now(self, view: ServiceView, state: ServiceState, found: Explanation) -> str:
        """Say what would be chosen now if it is not the plan, and why the plan stands."""
        plan, spec = view.plan, view.spec
        standing = standing_replicas(plan, state)
        if plan is None or spec is None or standing is None or found.replicas is None:
            return ""
        if tuple(found.replicas) == standing:
            return ""
        verdict = settle(
            state,
            found.replicas,
            Standing(
                replicas=standing,
                same_wish=plan.spec.generation == view.generation,
                since_s=self.now() - parse_time(plan.spec.made_at),
                reached=plan.current.phase is Phase.APPLIED,
            ),
            settled=True,
            slack_ratio=0.0,
            overdrawn=False,
            min_interval_s=spec.change.min_interval_seconds,
        )
        named = ", ".join(
            f"{variant.named} {count}" for variant, count in zip(usable(view), found.replicas, strict=True)
        )
        why = "the next plan should bring it: " if verdict.replace else ""
        return f"for the same traffic the best would now be {named} ({why}{verdict.why})"


def _traffic(entry: tuple[Mapping[str, Any], Any, str], plan: Any) -> tuple[Traffic, str]:
    """Return the traffic to explain by: what is stated, else what the plan was made for."""
    spec = entry[1]
    if spec is not None and spec.traffic.histogram is not None:
        told = tuple(
            RequestBucket(
                rate_rps=bucket.rate_rps,
                input_tokens=float(bucket.input_tokens),
                output_tokens=float(bucket.output_tokens),
            )
            for bucket in spec.traffic.histogram.buckets
        )
        return stated(told, at=""), "spec"
    rates: dict[tuple[float, float], float] = {}
    for route in plan.spec.routing if plan is not None else ():
        if route.role is Role.DECODE:
            continue  # the same requests, after their prefill
        size = (route.input_tokens, route.output_tokens)
        if route.requests_per_second is None:
            return Traffic(), ""
        rates[size] = rates.get(size, 0.0) + route.requests_per_second
    if not rates:
        return Traffic(), ""
    buckets = tuple(
        RequestBucket(rate_rps=rate, input_tokens=size[0], output_tokens=size[1])
        for size, rate in rates.items()
    )
    return Traffic(buckets=buckets, rate_rps=sum(rates.values()), fresh=True, settled=True), "plan"


def _conditions(view: ServiceView) -> tuple[Words, ...]:
    return tuple(
        Words(
            type=str(found.get("type")),
            status=str(found.get("status")),
            reason=str(found.get("reason")),
            meaning=BY_REASON.get(str(found.get("reason")))
            or WORDS.get((str(found.get("type")), str(found.get("status"))), "it is not known"),
            message=str(found.get("message") or ""),
        )
        for found in (view.body.get("status") or {}).get("conditions") or []
    )


def _waits_for(conditions: Sequence[Words]) -> str:
    """Take what a step waits for out of the condition: the operator knows it, the Plan does not say it."""
    applied = next((c for c in conditions if c.type == APPLIED), None)
    if applied is None or applied.reason != "Applying":
        return ""
    return applied.message.partition(": ")[2]


def _advice(view: ServiceView, conditions: Sequence[Words]) -> list[Advice]:
    """Say what to do next, what is needed first first."""
    space, name = view.key
    known = {c.type: c for c in conditions}
    status = view.body.get("status") or {}
    if not known or int(status.get("observedGeneration") or 0) < view.generation:
        return [
            Advice(
                text="no controller has looked at this service as it is now: see whether one runs",
                command="ballast doctor",
            )
        ]
    found: list[Advice] = []
    solver, telemetry = known.get(SOLVER_READY), known.get(TELEMETRY_READY)
    if view.spec is None or (solver is not None and solver.status == "False"):
        reason = "InvalidSpec" if view.spec is None or solver is None else solver.reason
        found.append(Advice(text=SOLVER_ADVICE.get(reason, "look at the controller's log; it tries again")))
    if telemetry is not None and telemetry.status == "False":
        found.append(
            Advice(
                text="let the traffic be measured; doctor says which pods, series or rights are missing",
                command="ballast doctor",
            )
        )
    conflict = known.get(ACTUATION_CONFLICT)
    if conflict is not None and conflict.status == "True":
        found.append(Advice(text=conflict.message))
    found += _pauses(view)
    applied = known.get(APPLIED)
    if applied is not None and applied.reason == "WaitingForApproval" and view.plan is not None:
        digest = view.plan.spec.digest
        found.append(
            Advice(
                text="approve the plan",
                command=f"kubectl annotate -n {space} plan/{name} --overwrite {APPROVED}={digest}",
            )
        )
    elif applied is not None and applied.reason == "Applying":
        found.append(Advice(text="nothing: the plan is being applied, step by step"))
    elif applied is not None and applied.reason == "HeldByRehearsal" and view.plan is not None:
        found += _held(view, known.get(REHEARSED))
    elif view.spec is not None and view.spec.mode is Mode.OBSERVE:
        patch = '{"spec":{"mode":"Recommend"}}'
        found.append(
            Advice(
                text="to get a plan that waits for approval, leave mode Observe",
                command=f"kubectl patch -n {space} modelservice/{name} --type=merge -p '{patch}'",
            )
        )
    elif applied is not None and applied.reason == "Failed":
        found.append(Advice(text="a new plan is made a minute after the failed one; mend what it names"))
    plan_ready, degraded = known.get(PLAN_READY), known.get(DEGRADED)
    if plan_ready is not None and plan_ready.reason == "NoWayThere":
        found.append(Advice(text="free some GPUs or add nodes: capacity never goes down before it goes up"))
    if degraded is not None and degraded.reason == "VariantUnusable":
        found.append(Advice(text=f"repair what is unusable: {degraded.message}"))
    if degraded is not None and degraded.reason == "ReadyCapacityTooSmall" and not found:
        found.append(
            Advice(text="see why replicas are not ready", command=f"kubectl get pods -n {space} -o wide")
        )
    return found or [Advice(text="nothing: all is as planned")]


def _held(view: ServiceView, rehearsed: Words | None) -> list[Advice]:
    """Say what can be done about a plan that its rehearsal holds back."""
    if view.plan is None or rehearsed is None or rehearsed.reason == "Rehearsing":
        return [Advice(text="nothing: the plan is being rehearsed")]
    space, name = view.key
    command = f"kubectl annotate -n {space} plan/{name} --overwrite {APPROVED}={view.plan.spec.digest}"
    if rehearsed.status == "False":
        text = "nothing: what runs stays, and other traffic is rehearsed anew; to apply the plan all the same"
    else:
        text = "mend what keeps it from being rehearsed, or set rehearsal.strict to false; to apply it all the same"
    return [Advice(text=text, command=command)]


def _pauses(view: ServiceView) -> list[Advice]:
    """Name what pauses a service, each with how to take it off."""
    space, name = view.key
    found = []
    annotations = view.body["metadata"].get("annotations") or {}
    if view.spec is not None and view.spec.paused:
        patch = '{"spec":{"paused":false}}'
        found.append(
            Advice(
                text="spec.paused holds it",
                command=f"kubectl patch -n {space} modelservice/{name} --type=merge -p '{patch}'",
            )
        )
    if annotations.get(PAUSED) == "true":
        found.append(
            Advice(
                text="an annotation pauses it",
                command=f"kubectl annotate -n {space} modelservice/{name} {PAUSED}-",
            )
        )
    if view.plan is not None and view.plan.paused:
        found.append(
            Advice(
                text="an annotation pauses its Plan",
                command=f"kubectl annotate -n {space} plan/{name} {PAUSED}-",
            )
        )
    conditions = (view.body.get("status") or {}).get("conditions") or []
    if not found and any(c.get("type") == APPLIED and c.get("reason") == "Paused" for c in conditions):
        found.append(
            Advice(text="everything, or a GpuProfile that it uses, is paused: see the condition Applied")
        )
    return found
