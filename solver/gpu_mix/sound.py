"""From linear loads to a plan that holds the SLO: solve, judge with the routed mixtures, correct, solve again.

It exists because the solver adds loads linearly, while what a replica sustains depends on the mixture it serves. With
standalone throughputs the sum is safe (a little dear), with mixed ones it is exact at one mixture only, and a solver
finds where it is wrong. It formulates nothing and knows no performance model: solving and judging are passed in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan
from solver.gpu_mix.from_demand import RoutedLoad
from solver.gpu_mix.variations import on_one_type

SETTLED_RATIO = 0.01
"""A variant may be so much fuller than headroom leaves, well within the error of any capacity model."""
STRONGEST_FACTOR = 0.5
SINGLE_TYPE_ROUNDS = 3
CAREFUL_FACTOR = 0.99

Solve = Callable[[GpuMixInstance], GpuMixPlan]
Judge = Callable[[GpuMixInstance, GpuMixPlan], tuple[RoutedLoad, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundPlan:
    """A plan with the loads it really puts on its replicas, and the (corrected) instance that it solves.

    Status and bound of the plan are those of this instance: of all mixtures that were tried, not of all that exist.
    """

    instance: GpuMixInstance
    plan: GpuMixPlan
    loads: tuple[RoutedLoad, ...]
    worst_ratio: float
    """Largest load over what headroom leaves; above 1 some variant is predicted to break its promise."""

    @property
    def within_slo(self) -> bool:
        """Whether every variant is predicted to hold the SLO with its headroom, to within 1 %."""
        return self.worst_ratio <= 1.0 + SETTLED_RATIO


def plan_within_slo(
    starts: Sequence[GpuMixInstance], *, solve: Solve, judge: Judge, rounds: int = 5
) -> SoundPlan:
    """Find the cheapest plan whose variants all hold the mixture that is routed to them.

    From each starting point, and from each GPU type alone (so that a mix is never dearer than a single type that
    holds), every round multiplies the column of each used variant by linear_load_ratio / load_ratio, whichever way
    that points. If nothing holds, columns are only lowered from the least overfull plan on. Models that share no
    limit are planned apart, so that one cannot spoil a good round of another.

    Parameters
    ----------
    starts
        Starting points that differ in throughputs (and what they left out) only, e.g. one built with each
        `MatrixRule`; the last should be exact for a model's whole mixture.
    solve
        `solver.gpu_mix.solve.solve_gpu_mix` with its options.
    judge
        `solver.gpu_mix.from_demand.routed_loads` with its models and SLO.
    rounds
        At most so many solves per starting point.
    """
    if not starts or rounds < 1:
        raise ValueError("at least one starting point and one round are needed")
    first = starts[0]
    if len(first.models) > 1 and not first.links_models:
        parts = [
            plan_within_slo(
                [replace(start, models=(start.models[m],)) for start in starts],
                solve=solve,
                judge=judge,
                rounds=rounds,
            )
            for m in range(len(first.models))
        ]
        return _judged(replace(first, models=tuple(part.instance.models[0] for part in parts)), solve, judge)
    best: SoundPlan | None = None
    for start in starts:
        for found in _explored(start, solve, judge, rounds):
            best = _better(best, found)
    for offer in first.gpu_types:
        narrow = on_one_type(starts[-1], offer.name)
        if narrow is None or narrow == starts[-1]:
            continue
        plan = solve(narrow)
        cost = float("inf") if plan.objective is None else plan.objective
        if best is not None and best.within_slo and cost >= _cost(best):
            continue  # with throughputs of the whole mixture, corrections do not make it cheaper
        for found in _explored(narrow, solve, judge, SINGLE_TYPE_ROUNDS):
            best = _better(best, found)
    if best is None:
        raise ValueError("at least one starting point and one round are needed")
    if best.within_slo or best.plan.objective is None:
        return best
    for found in _lowered(best, solve, judge, 2 * rounds):
        best = _better(best, found)
    return best


def _judged(instance: GpuMixInstance, solve: Solve, judge: Judge) -> SoundPlan:
    plan = solve(instance)
    if plan.objective is None:
        return SoundPlan(instance=instance, plan=plan, loads=(), worst_ratio=float("inf"))
    loads = judge(instance, plan)
    spare = {model.name: 1.0 - model.headroom_ratio for model in instance.models}
    worst = max((load.load_ratio / spare[load.model] for load in loads), default=0.0)
    return SoundPlan(instance=instance, plan=plan, loads=loads, worst_ratio=worst)


def _explored(instance: GpuMixInstance, solve: Solve, judge: Judge, rounds: int) -> Iterator[SoundPlan]:
    """Yield the plans of rounds of correction both ways, until nothing changes any more."""
    for _ in range(rounds):
        found = _judged(instance, solve, judge)
        yield found
        factors = {(load.model, load.config): _correction(load) for load in found.loads}
        if all(abs(factor - 1.0) < SETTLED_RATIO for factor in factors.values()):
            return
        instance = _scaled(instance, factors)


def _lowered(found: SoundPlan, solve: Solve, judge: Judge, rounds: int) -> Iterator[SoundPlan]:
    """Yield the plans of rounds in which the columns of overfull variants only fall, until a plan holds."""
    for _ in range(rounds):
        room = {model.name: 1.0 - model.headroom_ratio for model in found.instance.models}
        factors = {
            (load.model, load.config): max(
                STRONGEST_FACTOR, CAREFUL_FACTOR * min(1.0, load.linear_load_ratio / load.load_ratio)
            )
            for load in found.loads
            if load.load_ratio > room[load.model]
        }
        found = _judged(_scaled(found.instance, factors), solve, judge)
        yield found
        if found.within_slo or found.plan.objective is None:
            return


def _better(best: SoundPlan | None, found: SoundPlan) -> SoundPlan:
    return found if best is None or _rank(found) < _rank(best) else best


def _cost(found: SoundPlan) -> float:
    return float("inf") if found.plan.objective is None else found.plan.objective


def _rank(found: SoundPlan) -> tuple[float, float]:
    """Plans that hold first, the cheapest of them; then the least overfull."""
    return (0.0, _cost(found)) if found.within_slo else (found.worst_ratio, _cost(found))


def _correction(load: RoutedLoad) -> float:
    if load.load_ratio <= 0.0:
        return 1.0
    return min(max(load.linear_load_ratio / load.load_ratio, STRONGEST_FACTOR), 1.0 / STRONGEST_FACTOR)


def _scaled(instance: GpuMixInstance, factors: Mapping[tuple[str, int], float]) -> GpuMixInstance:
    """Multiply whole columns of the throughput matrices."""
    models = tuple(
        replace(
            model,
            throughput_rps=tuple(
                tuple(rate * factors.get((model.name, config), 1.0) for config, rate in enumerate(row))
                for row in model.throughput_rps
            ),
        )
        for model in instance.models
    )
    return replace(instance, models=models)
