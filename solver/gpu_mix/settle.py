"""From demand to a plan that holds with the mixtures it routes: solve, judge, correct, solve again.

It exists because the solver adds loads linearly while a replica's true capacity depends on the mixture it serves
(`solver.performance.capacity`): the throughput matrix is exact for a model's whole mixture, and routing sends each
variant only a part of it. Where a variant turns out fuller than counted, its column is lowered and the problem solved
again; a few rounds suffice. It holds no formulation of its own.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from solver.domain.deadline import Clock, Deadline
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix.from_demand import RoutedLoad
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix

MOST_ROUNDS = 6
FULL_TOLERANCE_RATIO = 0.01
"""A variant may be so much fuller than it should be by the mixture's capacity, well within that model's error."""
SMALLEST_CORRECTION = 0.5
LEAST_LIMIT_S = 0.05

Judge = Callable[[GpuMixInstance, GpuMixPlan], tuple[RoutedLoad, ...]]
Corrections = Mapping[tuple[str, int], float]
"""Factor on the throughput of a model's variant (by index)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledPlan:
    """The last instance, its plan, what its replicas really carry, and how many rounds it took."""

    instance: GpuMixInstance
    plan: GpuMixPlan
    loads: tuple[RoutedLoad, ...]
    rounds: int
    settled: bool
    """No variant is fuller than it may be. Otherwise the last round still left some above it; see ``loads``."""


def corrected(instance: GpuMixInstance, corrections: Corrections) -> GpuMixInstance:
    """Lower the throughput of single variants, in all buckets alike."""
    models = []
    for model in instance.models:
        factors = [corrections.get((model.name, c), 1.0) for c in range(len(model.variants))]
        rows = tuple(
            tuple(rate * factor for rate, factor in zip(row, factors, strict=True))
            for row in model.throughput_rps
        )
        models.append(replace(model, throughput_rps=rows))
    return replace(instance, models=tuple(models))


def solve_for_demand(
    instance: GpuMixInstance,
    *,
    judge: Judge,
    options: SolveOptions,
    clock: Clock,
    executor: Executor | None = None,
) -> SettledPlan:
    """Solve until the routed mixtures fit.

    Parameters
    ----------
    instance
        Made by `from_demand.build_gpu_mix_instance`.
    judge
        Tells what each used variant carries with the mixture routed to it (`from_demand.routed_loads`).
    options, clock, executor
        As for `solve_gpu_mix`; the time limit is one for all rounds.
    """
    deadline = Deadline.after(options.time_limit_s, clock)
    corrections: dict[tuple[str, int], float] = {}
    room = {
        model.name: (1.0 - model.headroom_ratio) * (1.0 + FULL_TOLERANCE_RATIO) for model in instance.models
    }
    rounds = 0
    while True:
        rounds += 1
        current = corrected(instance, corrections)
        left = replace(options, time_limit_s=max(LEAST_LIMIT_S, deadline.remaining_s()))
        plan = solve_gpu_mix(current, options=left, clock=clock, executor=executor)
        if plan.status not in (PlanStatus.OPTIMAL, PlanStatus.FEASIBLE):
            return SettledPlan(instance=current, plan=plan, loads=(), rounds=rounds, settled=False)
        loads = judge(current, plan)
        overfull = [load for load in loads if load.load_ratio > room[load.model]]
        if not overfull or rounds >= MOST_ROUNDS or deadline.passed():
            return SettledPlan(instance=current, plan=plan, loads=loads, rounds=rounds, settled=not overfull)
        for load in overfull:
            key = (load.model, load.config)
            factor = max(SMALLEST_CORRECTION, load.linear_load_ratio / load.load_ratio)
            corrections[key] = corrections.get(key, 1.0) * factor
