"""One model alone, when every GPU has a price: the subproblem of column generation and of independent models.

It exists because with prices for GPUs the models no longer meet, so each is a small exact program that any process
can solve. Variants that a cheaper one can always stand in for are left out first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Program, SolveLimits, SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.direct import add_model, fixed_change_cost, read_counts, unsurvived_cases
from solver.gpu_mix.prepare import ServedModel
from solver.pools.losses import LossCase, SurvivalTimeoutError
from solver.pools.purchase import change_cost_usd

ROUNDING_RATIO = 1e-9
"""A load so little above whole replicas is taken to fit them; routing allows for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingTask:
    """What a process needs to price one model: ``prices`` [C] are US$ per replica and hour."""

    instance: GpuMixInstance
    """Without models: only its change costs and horizon are read."""
    model: ServedModel
    prices: NDArray[np.float64]
    gap_ratio: float
    time_limit_s: float
    """Of the program; at most what is left until ``deadline``."""
    deadline: Deadline
    backend: BackendName
    competitive_ratio: float | None = None
    """Leave out variants that serve no bucket within so much of the cheapest; the bound is then not proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedAnswer:
    """Cheapest replicas at the prices (None if not found in time), and the proved bound on their priced cost."""

    status: SolveStatus
    counts: tuple[int, ...] | None = None
    bound: float = float("-inf")


def undominated(model: ServedModel, prices: NDArray[np.float64]) -> list[int]:
    """Variants that no other can replace at these prices.

    Variant c is dominated by d if w replicas of d cost no more than one of c and carry at least as much of every
    bucket: w prices_d <= prices_c, w / l_bd >= 1 / l_bc for all b, with w whole. Exact for any plan: replacing each
    replica of c by w of d keeps every constraint of the model alone, losses included. d must not be spot unless c is,
    neither may have a change cost, and stock must not bound d below what would carry everything.
    """
    usable = [
        c
        for c in range(len(model.variants))
        if model.upper[c] > 0 and (model.served_by[:, c].any() or _stays(model, c))
    ]
    with np.errstate(divide="ignore"):
        rate = np.where(model.served_by, 1.0 / model.load, 0.0)
    finite = np.where(model.served_by, model.load, 0.0).sum(axis=0) / model.capacity_ratio
    enough = np.ceil(finite) + model.must_survive
    kept: list[int] = []
    for c in sorted(usable, key=lambda j: (prices[j], j)):
        if not _stays(model, c) and any(_stands_in(model, rate, enough, prices, c=c, d=d) for d in kept):
            continue
        kept.append(c)
    return sorted(kept)


def competitive(
    model: ServedModel, prices: NDArray[np.float64], variants: Sequence[int], ratio: float
) -> list[int]:
    """Variants that serve some bucket at most ``ratio`` dearer than the cheapest variant does, or run already."""
    cost = model.priced_load(prices)[:, variants]
    near = (cost <= (1.0 + ratio) * cost.min(axis=1, keepdims=True)).any(axis=0)
    return [c for c, kept in zip(variants, near, strict=True) if kept or _stays(model, c)]


def _stays(model: ServedModel, c: int) -> bool:
    """Whether a variant matters even if it serves nothing: it runs already, or must."""
    return model.variants[c].current_replicas is not None or bool(model.lower[c] > 0)


def _stands_in(
    model: ServedModel,
    rate: NDArray[np.float64],
    enough: NDArray[np.float64],
    prices: NDArray[np.float64],
    *,
    c: int,
    d: int,
) -> bool:
    first, second = model.variants[c], model.variants[d]
    if second.current_replicas is not None or (second.spot and not first.spot):
        return False
    needs = rate[:, c] > 0
    if (rate[needs, d] <= 0).any() or model.upper[d] < enough[d]:
        return False
    times = float(np.ceil((rate[needs, c] / rate[needs, d]).max() - 1e-12))
    return bool(max(times, 1.0) * prices[d] <= prices[c])


def _price_only_variant(task: PricingTask) -> PricedAnswer:
    """Price a model with a single variant: as few replicas as suffice, or those that run if stopping costs more.

    The cost is convex and has its only kink at the present replicas, so one of these or the most allowed is best.
    """
    model = task.model
    (variant,) = model.variants
    need = max(int(model.lower[0]), model.least_replicas)
    if model.buckets:
        if not model.served_by.all():
            return PricedAnswer(status=SolveStatus.INFEASIBLE, bound=float("inf"))
        load = float(model.load[:, 0].sum())
        whole = load / model.capacity_ratio
        need = max(need, 1 + model.must_survive, math.ceil(whole * (1 - ROUNDING_RATIO)))
        if model.must_survive:
            need = max(need, math.ceil(load * (1 - ROUNDING_RATIO)) + model.must_survive)
    if need > model.upper[0]:
        return PricedAnswer(status=SolveStatus.INFEASIBLE, bound=float("inf"))
    most = int(model.upper[0])
    running = min(max(need, variant.current_replicas or 0), most)

    def cost(count: int) -> float:
        change = change_cost_usd(task.instance, variant, count) / task.instance.horizon_h
        return float(task.prices[0]) * count + change

    best = min((need, running, most), key=lambda count: (cost(count), count))
    return PricedAnswer(status=SolveStatus.OPTIMAL, counts=(best,), bound=cost(best))


def price_model(task: PricingTask) -> PricedAnswer:
    """Solve one model at given prices, exactly up to ``gap_ratio``."""
    model = task.model
    if len(model.variants) == 1 and not model.limits_spot:
        return _price_only_variant(task)
    if model.least_replicas == 0 and model.buckets == 0:
        variants: Sequence[int] = [c for c in range(len(model.variants)) if model.upper[c] > 0]
    elif model.buckets == 0 or model.demand.min_total_replicas > 0:
        variants = [c for c in range(len(model.variants)) if model.upper[c] > 0]
    else:
        variants = undominated(model, task.prices)
        if task.competitive_ratio is not None and not model.must_survive and not model.limits_spot:
            variants = competitive(model, task.prices, variants, task.competitive_ratio)
    cases: list[LossCase] = []
    bound = -np.inf
    while True:
        program = Program()
        replicas = add_model(program, task.instance, model, variants=variants, cases=cases)
        for c, n in replicas.items():
            program.cost[n] += float(task.prices[c])
        usable = {c for c in range(len(model.variants)) if model.upper[c] > 0}
        program.offset = fixed_change_cost(task.instance, model, usable)
        if task.deadline.passed():
            return PricedAnswer(status=SolveStatus.TIMED_OUT, bound=bound)
        limit_s = min(task.time_limit_s, task.deadline.remaining_s())
        limits = SolveLimits(time_limit_s=limit_s, gap_ratio=task.gap_ratio)
        solution = solve_program(program, limits, backend=task.backend)
        bound = max(bound, solution.bound)
        if not solution.found:
            return PricedAnswer(status=solution.status, bound=bound)
        counts = read_counts([model], [replicas], solution.values)[0]
        try:
            missing = unsurvived_cases(model, counts, backend=task.backend, deadline=task.deadline)
        except SurvivalTimeoutError:
            return PricedAnswer(status=SolveStatus.TIMED_OUT, bound=bound)
        if not missing:
            return PricedAnswer(status=solution.status, counts=counts, bound=min(bound, solution.objective))
        cases.extend(missing)
