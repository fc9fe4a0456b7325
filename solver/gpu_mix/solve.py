"""The door to GPU-type selection: takes a problem, picks a method, returns a plan that says how good it is.

It exists so that the command, the simulator and the controller call one function. It is not a formulation: the
methods live in `direct` (one program), `pricing` (independent models) and `columns` (many models, shared limits).
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from solver.backends.choose import BackendName
from solver.backends.program import BackendError, SolveStatus
from solver.domain.deadline import Clock, Deadline
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus, RoutingShare
from solver.gpu_mix.columns import solve_by_columns
from solver.gpu_mix.direct import Replicas, solve_direct
from solver.gpu_mix.infeasible import explain_infeasible
from solver.gpu_mix.prepare import ServedModel, serve_all
from solver.gpu_mix.pricing import PricingTask, price_model
from solver.gpu_mix.routing import Routing, route
from solver.pools.purchase import change_cost_usd

Method = Literal["auto", "direct", "columns"]

DIRECT_UP_TO_INTEGERS = 24
"""One program is used up to so many replica counts; above it column generation is faster to a small gap."""
OPTIMAL_GAP_RATIO = 1e-6
LEAST_GAP_RATIO = 5e-7
"""No solve goes on for less: it would settle differences that count as equal."""
PROCESSES_ASSUMED = 2
"""Models solved side by side get so many times their share of the time."""
LOAD_MARGIN = 2e-6
"""Loads are raised by so much and the problem solved again if rounding left a variant above its capacity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveOptions:
    """How to solve: seconds, the gap at which to stop, backend, method; ``seed`` orders the improvement rounds."""

    time_limit_s: float = 60.0
    gap_ratio: float = 0.0
    backend: BackendName = "highs"
    method: Method = "auto"
    explain: bool = True
    """Reduce an infeasible problem to a minimal reason (takes more solves)."""
    seed: int = 0


def solve_gpu_mix(
    instance: GpuMixInstance, *, options: SolveOptions, clock: Clock, executor: Executor | None = None
) -> GpuMixPlan:
    """Find the cheapest replicas and routing.

    Parameters
    ----------
    instance
        The problem; read by `telemetry.sources.gpu_mix_file` or built by `solver.gpu_mix.from_demand`.
    options
        Limits and method. The time limit covers the whole call, the reason for an infeasible problem included; what
        explains a plan is asked for apart (`solver.gpu_mix.explain`).
    clock
        Seconds on a monotonic scale.
    executor
        Processes for pricing many models side by side; None prices one after the other. The answer is the same.

    Returns
    -------
    GpuMixPlan
        With status optimal (gap at most 1e-6), feasible, infeasible (with a minimal reason) or timed-out.
    """
    deadline = Deadline.after(options.time_limit_s, clock)
    options = replace(options, gap_ratio=max(options.gap_ratio, LEAST_GAP_RATIO))
    models = serve_all(instance)
    answer, method = _search(instance, models, options, deadline, executor)
    routings = _route_all(models, answer, options.backend)
    if answer.counts and routings is None:
        tighter = tuple(replace(model, load=model.load * (1 + LOAD_MARGIN)) for model in models)
        bound = answer.bound  # the tighter problem proves nothing about this one
        answer, method = _search(instance, tighter, options, deadline, executor)
        answer = replace(answer, bound=bound)
        routings = _route_all(models, answer, options.backend)
        if answer.status == SolveStatus.INFEASIBLE or (answer.counts and routings is None):
            raise BackendError(f"{options.backend} cannot tell whether replicas this full carry the load")
    if answer.status == SolveStatus.INFEASIBLE:
        reason = None
        if options.explain:
            reason = explain_infeasible(instance, deadline=deadline, backend=options.backend)
        return GpuMixPlan(
            instance_name=instance.name, status=PlanStatus.INFEASIBLE, method=method, infeasible=reason
        )
    if not answer.counts or routings is None:
        return GpuMixPlan(
            instance_name=instance.name,
            status=PlanStatus.TIMED_OUT,
            method=method,
            lower_bound_usd_per_h=float(answer.bound) if np.isfinite(answer.bound) else None,
        )
    return describe_plan(instance, models, answer, routings, method)


def _search(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    options: SolveOptions,
    deadline: Deadline,
    executor: Executor | None,
) -> tuple[Replicas, str]:
    """Pick the method; returns its answer and its name."""
    if any(not model.served_by.any(axis=1).all() for model in models):
        return Replicas(status=SolveStatus.INFEASIBLE), "direct"
    integers = sum(int((model.upper > 0).sum()) for model in models)
    if options.method == "auto" and not instance.links_models:
        return _solve_apart(instance, models, options, deadline, executor), "independent"
    if options.method == "columns" or (
        options.method == "auto" and integers > DIRECT_UP_TO_INTEGERS and len(models) > 1
    ):
        answer = solve_by_columns(
            instance,
            models,
            deadline=deadline,
            gap_ratio=options.gap_ratio,
            backend=options.backend,
            executor=executor,
            seed=options.seed,
        )
        return answer, "columns"
    return solve_direct(
        instance, models, deadline=deadline, gap_ratio=options.gap_ratio, backend=options.backend
    ), "direct"


def _solve_apart(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    options: SolveOptions,
    deadline: Deadline,
    executor: Executor | None,
) -> Replicas:
    """Solve models that share nothing one by one, at list prices.

    Each gets its share of the time; what one leaves over goes to the next where they run one after the other.
    """
    price = np.array([offer.price_usd_per_h for offer in instance.gpu_types])
    spot_price = np.array([offer.spot_price_usd_per_h or 0.0 for offer in instance.gpu_types])
    bare = replace(instance, models=())
    tasks = [
        PricingTask(
            instance=bare,
            model=model,
            prices=model.replica_prices(price, spot_price),
            gap_ratio=options.gap_ratio,
            time_limit_s=PROCESSES_ASSUMED * deadline.remaining_s() / len(models),
            deadline=deadline,
            backend=options.backend,
        )
        for model in models
    ]
    if executor is None:
        answers = []
        for waiting, task in zip(range(len(tasks), 0, -1), tasks, strict=True):
            share_s = deadline.remaining_s() / waiting
            answers.append(price_model(replace(task, time_limit_s=share_s)))
    else:
        answers = list(executor.map(price_model, tasks, chunksize=1))
    bound = sum(answer.bound for answer in answers)
    statuses = {answer.status for answer in answers}
    if SolveStatus.INFEASIBLE in statuses:
        return Replicas(status=SolveStatus.INFEASIBLE)
    counts = tuple(answer.counts for answer in answers if answer.counts is not None)
    if len(counts) < len(models):
        return Replicas(status=SolveStatus.TIMED_OUT, bound=bound)
    return Replicas(
        status=SolveStatus.OPTIMAL if statuses == {SolveStatus.OPTIMAL} else SolveStatus.FEASIBLE,
        counts=counts,
        objective=bound,
        bound=bound,
    )


def _route_all(models: Sequence[ServedModel], answer: Replicas, backend: BackendName) -> list[Routing] | None:
    """Route every model; None if there are no replicas or some do not suffice."""
    routings = []
    for model, counts in zip(models, answer.counts, strict=False):
        routing = route(model, counts, backend=backend)
        if routing is None or not routing.fits:
            return None
        routings.append(routing)
    return routings if len(routings) == len(models) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What given replicas buy, cost and draw; GPUs per type in the order of the instance."""

    bought_gpus: tuple[int, ...]
    spot_gpus: tuple[int, ...]
    running_cost_usd_per_h: float
    change_cost_usd: float
    power_w: float | None


def bill(instance: GpuMixInstance, counts: Sequence[Sequence[int]]) -> Bill:
    """Add up what replicas [model][variant] buy and cost, exactly (whole numbers times prices)."""
    used = dict.fromkeys((offer.name for offer in instance.gpu_types), 0)
    spot = dict(used)
    change = 0.0
    for model, row in zip(instance.models, counts, strict=True):
        for variant, n in zip(model.variants, row, strict=True):
            stock = spot if variant.spot else used
            stock[variant.gpu_type] += variant.gpus_per_replica * n
            change += change_cost_usd(instance, variant, n)
    cost, power = 0.0, 0.0
    known = True
    bought = []
    for offer in instance.gpu_types:
        gpus = used[offer.name]
        if offer.whole_nodes and offer.gpus_per_node:
            gpus = -(-gpus // offer.gpus_per_node) * offer.gpus_per_node
        bought.append(gpus)
        cost += offer.price_usd_per_h * max(0, gpus - offer.reserved)
        cost += (offer.spot_price_usd_per_h or 0.0) * spot[offer.name]
        drawing = gpus + spot[offer.name]
        known = known and (drawing == 0 or offer.power_w is not None)
        power += drawing * (offer.power_w or 0.0)
    return Bill(
        bought_gpus=tuple(bought),
        spot_gpus=tuple(spot.values()),
        running_cost_usd_per_h=cost,
        change_cost_usd=change,
        power_w=power if known else None,
    )


def describe_plan(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    answer: Replicas,
    routings: Sequence[Routing],
    method: str,
) -> GpuMixPlan:
    """Write replicas and routing as a plan, with costs added up anew and the gap to the proved bound."""
    total = bill(instance, answer.counts)
    objective = total.running_cost_usd_per_h + total.change_cost_usd / instance.horizon_h
    bound = min(float(answer.bound), objective)
    gap = (objective - bound) / max(abs(objective), 1e-9)
    shares = []
    load_ratio = []
    for model, counts, routing in zip(models, answer.counts, routings, strict=True):
        for b, c in zip(*np.nonzero(routing.shares), strict=True):
            shares.append(
                RoutingShare(
                    model=model.demand.name,
                    bucket=int(model.bucket_index[b]),
                    config=int(c),
                    share=float(routing.shares[b, c]),
                )
            )
        finite = np.where(routing.shares > 0, model.load, 0.0)
        loads = (finite * routing.shares).sum(axis=0) if model.buckets else np.zeros(len(counts))
        load_ratio.append(tuple(float(load) / n if n else 0.0 for load, n in zip(loads, counts, strict=True)))
    return GpuMixPlan(
        instance_name=instance.name,
        status=PlanStatus.OPTIMAL if gap <= OPTIMAL_GAP_RATIO else PlanStatus.FEASIBLE,
        objective=objective,
        running_cost_usd_per_h=total.running_cost_usd_per_h,
        change_cost_usd=total.change_cost_usd,
        lower_bound_usd_per_h=bound,
        gap_ratio=gap,
        replicas=answer.counts,
        routing=tuple(shares),
        load_ratio=tuple(load_ratio),
        bought_gpus=total.bought_gpus,
        spot_gpus=total.spot_gpus,
        power_w=total.power_w,
        method=method,
    )
