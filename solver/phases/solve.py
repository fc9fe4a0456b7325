"""The door to fleet planning: takes a problem, picks a method, returns a plan that says how good it is.

It exists so that the command, the simulator and the controller call one function. It is not a formulation: that is in
`program`; the ways to solve it are in `direct` (one program) and `projected` (cuts on replicas).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from solver.backends.choose import BackendName
from solver.backends.program import BackendError, SolveStatus
from solver.domain.deadline import Clock, Deadline
from solver.domain.errors import InputError
from solver.domain.fleet import (
    FleetFlow,
    FleetGoal,
    FleetInstance,
    FleetLimit,
    FleetPlan,
    Phase,
    Role,
)
from solver.domain.gpu_mix import PlanStatus
from solver.phases.bill import bill
from solver.phases.direct import Counts, FleetAnswer, scaled
from solver.phases.explain import binding_limits
from solver.phases.find import FleetMethod, find_fleet
from solver.phases.infeasible import explain_infeasible, explain_unservable
from solver.phases.prepare import ServedPhases, refuse_unbounded_rate, serve_all
from solver.phases.routing import FIT_TOLERANCE, PhaseRouting, loads_of, moved_of, route

OPTIMAL_GAP_RATIO = 1e-6
LEAST_GAP_RATIO = 5e-7
"""No solve goes on for less: it would settle differences that count as equal."""
LOAD_MARGIN = 2e-6
"""Loads are raised by so much and the problem solved again if rounding left a config above its capacity."""
JOINT_SHARE = 0.7
"""Part of the time after which the fleet is compared with the best without splitting."""
Number = TypeVar("Number", int, float)
EXPLAIN_SHARE = 0.1
"""Part of the time spent on what binds, at most."""
PHASES = {Role.BOTH: Phase.BOTH, Role.PREFILL: Phase.PREFILL, Role.DECODE: Phase.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """How to solve: seconds, the gap at which to stop, backend, method."""

    time_limit_s: float = 60.0
    gap_ratio: float = 0.0
    backend: BackendName = "highs"
    method: FleetMethod = "auto"
    compare: bool = True
    """Also find the best fleet without splitting (not where `FleetInstance.tells_replicas_apart`)."""
    explain: bool = True
    """Name the reason of an infeasible problem (takes more solves), and what binds unless ``binding`` is False."""
    binding: bool = True


def solve_fleet(instance: FleetInstance, options: FleetOptions, clock: Clock) -> FleetPlan:
    """Find the best fleet: replicas of each config and who serves which phase of what.

    Parameters
    ----------
    instance
        The problem; read by `telemetry.sources.fleet_file` or built by `solver.phases.from_demand`.
    options
        Limits and backend. The time limit covers the whole call: the comparison without splitting, the reason of an
        infeasible problem and what binds included.
    clock
        Seconds on a monotonic scale.

    Returns
    -------
    FleetPlan
        With status optimal (gap at most 1e-6), feasible, infeasible (with a reason) or timed-out.

    Raises
    ------
    InputError
        If goal rate is limited by nothing, or numbers are larger than solvers tell apart.
    """
    deadline = Deadline.after(options.time_limit_s, clock)
    options = replace(options, gap_ratio=max(options.gap_ratio, LEAST_GAP_RATIO))
    models = serve_all(instance)
    unservable = explain_unservable(instance)
    if unservable is not None:
        return _without_fleet(instance, PlanStatus.INFEASIBLE, infeasible=unservable)
    refuse_unbounded_rate(instance, models)
    options = replace(options, compare=options.compare and not instance.tells_replicas_apart)
    compare = options.compare and instance.splits
    joint = deadline.sooner(JOINT_SHARE * options.time_limit_s) if compare else deadline
    plan = _solve(instance, models, options, joint)
    if plan.status is PlanStatus.INFEASIBLE and options.explain:
        reason = explain_infeasible(instance, deadline=deadline, backend=options.backend)
        plan = replace(plan, infeasible=reason)
    if options.compare:
        plan = _compared(instance, plan, options, deadline)
    if options.explain and options.binding and plan.status is PlanStatus.OPTIMAL:
        binding, settled = _binding(instance, plan, options, deadline)
        plan = replace(plan, binding=binding, binding_settled=settled)
    return plan


def _binding(
    instance: FleetInstance, plan: FleetPlan, options: FleetOptions, deadline: Deadline
) -> tuple[tuple[FleetLimit, ...], bool]:
    """Find what binds, in a part of the time, and say whether that was enough."""
    until = deadline.sooner(EXPLAIN_SHARE * options.time_limit_s)

    def objective(varied: FleetInstance) -> float | None:
        models = serve_all(varied)
        try:
            refuse_unbounded_rate(varied, models)
        except InputError:  # without this limit nothing limits the rate
            return math.inf
        made = _solve(varied, models, replace(options, gap_ratio=LEAST_GAP_RATIO), until)
        return made.objective if made.status is PlanStatus.OPTIMAL else None

    return binding_limits(instance, plan, solve=objective, deadline=until)


def _without_fleet(instance: FleetInstance, status: PlanStatus, **more: object) -> FleetPlan:
    plan = FleetPlan(instance_name=instance.name, goal=instance.goal, status=status)
    return replace(plan, **more)  # type: ignore[arg-type]


def _solve(
    instance: FleetInstance, models: Sequence[ServedPhases], options: FleetOptions, deadline: Deadline
) -> FleetPlan:
    """Solve one problem as it stands."""
    answer = _search(instance, models, options, deadline)
    routings = _route_all(instance, models, answer.counts, options.backend)
    if answer.counts and routings is None:
        tighter = _search(instance, scaled(models, 1 + LOAD_MARGIN), options, deadline)
        answer = replace(tighter, bound=answer.bound)  # the tighter problem proves nothing about this one
        routings = _route_all(instance, models, answer.counts, options.backend)
        if answer.status is SolveStatus.INFEASIBLE or (answer.counts and routings is None):
            raise BackendError(f"{options.backend} cannot tell whether replicas this full carry the load")
    if answer.status is SolveStatus.INFEASIBLE:
        return _without_fleet(instance, PlanStatus.INFEASIBLE, method=answer.method)
    if not answer.counts or routings is None:
        return _without_fleet(instance, PlanStatus.TIMED_OUT, method=answer.method, bound=answer.bound)
    return describe_plan(instance, models, answer, routings)


def _search(
    instance: FleetInstance, models: Sequence[ServedPhases], options: FleetOptions, deadline: Deadline
) -> FleetAnswer:
    return find_fleet(
        instance,
        models,
        method=options.method,
        deadline=deadline,
        gap_ratio=options.gap_ratio,
        backend=options.backend,
    )


def _route_all(
    instance: FleetInstance, models: Sequence[ServedPhases], counts: Counts, backend: BackendName
) -> list[PhaseRouting] | None:
    """Route every model; None if there are no replicas or some do not suffice (goal rate: any factor will do)."""
    routings = []
    for model, row in zip(models, counts, strict=False):
        routing = route(model, row, backend=backend)
        if routing is None and instance.goal is FleetGoal.RATE:
            routing = PhaseRouting(np.zeros((model.buckets, model.configs)), 0.0)
        if routing is None or (instance.goal is not FleetGoal.RATE and routing.factor < 1 - FIT_TOLERANCE):
            return None
        routings.append(routing)
    return routings if len(routings) == len(models) else None


def describe_plan(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    answer: FleetAnswer,
    routings: Sequence[PhaseRouting],
) -> FleetPlan:
    """Write replicas and routing as a plan, with all figures added up anew and the gap to the proved bound."""
    total = bill(instance, answer.counts)
    maximised = instance.goal is FleetGoal.RATE
    factor = min((routing.factor for routing in routings), default=0.0) if maximised else 1.0
    objective = factor if maximised else total.objective(instance.goal)
    bound, gap = answer.bound, None
    if bound is not None:
        bound = (max(bound, objective) if maximised else min(bound, objective)) + 0.0  # solvers know a -0
        gap = abs(objective - bound) / max(abs(objective), 1e-9)
    flows, load_ratio, link_ratio = [], [], []
    for model, counts, routing in zip(models, answer.counts, routings, strict=True):
        count = np.maximum(np.array(counts, dtype=float), 1.0)
        load_ratio.append(tuple((factor * loads_of(model, routing.shares) / count).tolist()))
        link_ratio.append(tuple((factor * moved_of(model, routing.shares) / count).tolist()))
        flows += [
            FleetFlow(
                model=model.demand.name,
                bucket=int(model.bucket_index[b]),
                config=int(c),
                phase=PHASES[model.demand.configs[c].role],
                share=float(routing.shares[b, c]),
            )
            for b, c in zip(*np.nonzero(routing.shares), strict=True)
        ]
    return FleetPlan(
        instance_name=instance.name,
        goal=instance.goal,
        status=PlanStatus.OPTIMAL if gap is not None and gap <= OPTIMAL_GAP_RATIO else PlanStatus.FEASIBLE,
        objective=objective,
        bound=bound,
        gap_ratio=gap,
        replicas=answer.counts,
        flows=tuple(flows),
        load_ratio=tuple(load_ratio),
        link_ratio=tuple(link_ratio),
        bought_gpus=total.bought_gpus,
        cost_usd_per_h=total.cost_usd_per_h,
        change_cost_usd=total.changes_usd_per_h * instance.horizon_h,
        power_w=total.power_w,
        machines=total.machines,
        rate_factor=factor,
        method=answer.method,
    )


def _compared(
    instance: FleetInstance, plan: FleetPlan, options: FleetOptions, deadline: Deadline
) -> FleetPlan:
    """Add the best fleet without splitting, which is also taken if it is better than what was found with it."""
    if plan.status is PlanStatus.INFEASIBLE:
        return replace(plan, both_only_status=PlanStatus.INFEASIBLE)
    if not instance.splits or (plan.status is PlanStatus.OPTIMAL and not _uses_splitting(instance, plan)):
        return replace(
            plan,
            both_only_objective=plan.objective,
            both_only_bound=plan.bound,
            both_only_status=plan.status,
            worth_splitting=None if plan.objective is None else False,
        )
    narrow = instance.without_splitting
    if explain_unservable(narrow) is not None:
        return replace(
            plan,
            both_only_status=PlanStatus.INFEASIBLE,
            worth_splitting=None if plan.objective is None else True,
        )
    alone = _solve(narrow, serve_all(narrow), options, deadline)
    if alone.objective is not None and _better(instance.goal, alone.objective, plan.objective):
        plan = replace(_widened(instance, alone), bound=plan.bound)
        plan = _with_gap(plan)
    worth = None
    if plan.objective is not None and alone.status is not PlanStatus.TIMED_OUT:
        worth = alone.objective is None or _better(
            instance.goal, plan.objective, alone.objective, by=OPTIMAL_GAP_RATIO
        )
    return replace(
        plan,
        both_only_objective=alone.objective,
        both_only_bound=alone.bound,
        both_only_status=alone.status,
        worth_splitting=worth,
    )


def _uses_splitting(instance: FleetInstance, plan: FleetPlan) -> bool:
    return any(flow.phase is not Phase.BOTH for flow in plan.flows) or any(
        n > 0 and config.role is not Role.BOTH
        for model, row in zip(instance.models, plan.replicas, strict=True)
        for config, n in zip(model.configs, row, strict=True)
    )


def _better(goal: FleetGoal, ours: float, theirs: float | None, *, by: float = 0.0) -> bool:
    """Whether an objective is better than another by more than a part of it."""
    if theirs is None:
        return True
    gain = ours - theirs if goal.maximised else theirs - ours
    return gain > by * max(abs(ours), abs(theirs))


def _with_gap(plan: FleetPlan) -> FleetPlan:
    if plan.bound is None or plan.objective is None:
        return plan
    gap = abs(plan.objective - plan.bound) / max(abs(plan.objective), 1e-9)
    return replace(
        plan,
        gap_ratio=gap,
        status=PlanStatus.OPTIMAL if gap <= OPTIMAL_GAP_RATIO else PlanStatus.FEASIBLE,
    )


def _widened(instance: FleetInstance, plan: FleetPlan) -> FleetPlan:
    """Write a plan of the problem without splitting as one of the whole problem."""
    kept = {
        model.name: [c for c, config in enumerate(model.configs) if config.role is Role.BOTH]
        for model in instance.models
    }

    def spread(table: tuple[tuple[Number, ...], ...], zero: Number) -> tuple[tuple[Number, ...], ...]:
        rows = []
        for model, row in zip(instance.models, table, strict=True):
            wide = [zero] * len(model.configs)
            for c, value in zip(kept[model.name], row, strict=True):
                wide[c] = value
            rows.append(tuple(wide))
        return tuple(rows)

    return replace(
        plan,
        replicas=spread(plan.replicas, 0),
        load_ratio=spread(plan.load_ratio, 0.0),
        link_ratio=spread(plan.link_ratio, 0.0),
        flows=tuple(replace(flow, config=kept[flow.model][flow.config]) for flow in plan.flows),
    )
