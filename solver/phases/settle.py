"""From linear loads to a fleet that holds: solve, be told what it really sustains, correct, solve again.

It exists because the program takes a pool's capacity as replicas times a number, while the truth depends on the mixture
routed there, the size of the pool and the scheduler; a queueing formula or a simulation knows better about one given
fleet. What they say is turned into a factor on the columns of that fleet's pools, and the program decides again with
all that has been learnt. It formulates nothing and simulates nothing: solving and judging are passed in.

Pools that no fleet has used yet take the geometric mean of the factors known for their role (a formula that is too
hopeful about one GPU type is mostly so about all), and a little more, `BENEFIT_OF_DOUBT`: a pool about which the
formula was too gloomy would never be tried otherwise. So rounds go on until the program chooses pools it knows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from solver.domain.fleet import FleetInstance, FleetPlan, Role
from solver.domain.gpu_mix import PlanStatus
from solver.phases.bill import bill

Number = TypeVar("Number", int, float)
OPTIMAL_GAP_RATIO = 1e-6
SETTLED_RATIO = 0.01
"""A fleet may sustain so much less than planned; well within the error of any model."""
SECOND_THOUGHTS = 2
CAREFUL_FACTOR = 0.98
BENEFIT_OF_DOUBT = 1.15
"""About what the formulas of `solver.performance.phase_capacity` are off by between GPU types."""
TRIM_SLACK = 1.0 + 1e-6
WITHOUT_SHARE = 0.35
"""Part of the time for the fleet without splitting."""
SEARCHED_SHARE = 0.85
"""Part of the time after which no further fleet is tried."""
ROUNDS_SHARE = 0.6
"""Part of either that rounds may take; the rest is for what is beside the fleet they settled on."""
WITHOUT = " without splitting"
"""What is said of fleets that split nothing."""
LEAST_FACTOR, MOST_FACTOR = 0.5, 16.0
"""One round changes a column by so much at most; less downwards: a small pool may fail at any load, a large one not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a fleet really sustains."""

    sustained_ratio: float
    """Largest multiple of the planned load (and headroom) that it carries inside the SLO; below 1 it misses it."""
    factors: Mapping[tuple[str, int], float]
    """By model and config: what its throughputs must be multiplied by for the linear sum to say so."""
    runs: int = 0
    """Simulations it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledFleet:
    """A fleet, the corrected problem it solves, and what was said about it.

    Status and bound of the plan are those of that problem: of all that was learnt, not of the world.
    """

    instance: FleetInstance
    plan: FleetPlan
    verdict: Verdict | None
    """None: there is no plan, or time ran out before it was judged."""
    rounds: int
    runs: int
    """Simulations of all rounds."""
    not_done: tuple[str, ...] = ()
    """What would have been tried and was not, for want of time, in words."""

    @property
    def cut_short(self) -> bool:
        """Whether time ran out for a part of the search."""
        return bool(self.not_done)

    @property
    def holds(self) -> bool:
        """Whether the fleet sustains its planned load, to within 1 %."""
        return self.verdict is not None and self.verdict.sustained_ratio >= 1.0 - SETTLED_RATIO

    @property
    def sustained_factor(self) -> float:
        """Multiple of the instance's own rates that the fleet really carries."""
        if self.verdict is None:
            return 0.0
        factor = 1.0 if self.plan.rate_factor is None else self.plan.rate_factor
        return factor * self.verdict.sustained_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What was said about a fleet."""

    sustained_factor: float
    told: Mapping[tuple[str, int], float]
    """What the columns of the first problem must be multiplied by: one round may correct by less."""


Solve = Callable[[FleetInstance], FleetPlan]
Enough = Callable[[], bool]
Judge = Callable[[FleetInstance, FleetPlan], Verdict | None]
"""None: time ran out before all was said."""
Holds = Callable[[FleetInstance, FleetPlan], bool | None]
"""Whether a fleet serves its planned load within the SLO; None: time ran out before that was said."""


def settle_fleet(
    instance: FleetInstance,
    *,
    solve: Solve,
    judge: Judge,
    rounds: int = 14,
    enough: Enough = lambda: False,
) -> SettledFleet:
    """Return the best fleet of at most ``rounds`` rounds; earlier if a round ends at a fleet that is known to hold.

    Best: where a goal is minimised the least objective among fleets that hold, else the one nearest to holding; where
    the rate is maximised the largest rate that is really sustained. Throughputs of the instance are a starting point
    only. The same fleet is never judged twice: chosen again, all that was said of it is believed, undamped; if the
    program insists on one that does not hold (a pool sustains less per replica the smaller it is, which a column cannot
    say), its pools are taken for a little less. No round starts once ``enough`` says so, but for the first. A fleet
    that was not judged in time is returned, without a verdict, only where none was judged before.
    """
    if rounds < 1:
        raise ValueError("at least one round is needed")
    learnt: dict[tuple[str, int], float] = {}
    last: dict[tuple[str, int], float] = {}
    judged: dict[tuple[tuple[int, ...], ...], _Judged] = {}
    best: SettledFleet | None = None
    runs = 0

    def unjudged(number: int, current: FleetInstance, plan: FleetPlan) -> SettledFleet:
        found = SettledFleet(instance=current, plan=plan, verdict=None, rounds=number, runs=runs)
        return found if best is None else replace(best, rounds=number, runs=runs)

    for number in range(1, rounds + 1):
        if best is not None and enough():
            break
        current = corrected(instance, learnt)
        plan = solve(current)
        if plan.objective is None:
            return unjudged(number, current, plan)
        factor = 1.0 if plan.rate_factor is None else plan.rate_factor
        known = judged.get(plan.replicas)
        if known is None:
            verdict = judge(current, plan)
            if verdict is None:
                return unjudged(number, current, plan)
            runs += verdict.runs
            told = {key: _factor(instance, learnt, key) * wrong for key, wrong in verdict.factors.items()}
            judged[plan.replicas] = _Judged(sustained_factor=factor * verdict.sustained_ratio, told=told)
            found = SettledFleet(instance=current, plan=plan, verdict=verdict, rounds=number, runs=runs)
            if best is None or _rank(found) < _rank(best):
                best = found
            news = {key: _damped(wrong, last.get(key, 1.0)) for key, wrong in verdict.factors.items()}
        else:  # the same replicas, perhaps routed or promised otherwise: only the fleet that was judged may be best
            sustained_ratio = known.sustained_factor / factor
            news = {key: told / learnt[key] for key, told in known.told.items()}
            if all(abs(wrong - 1.0) <= SETTLED_RATIO for wrong in news.values()):
                # All that was said of this fleet is believed, and the program still wants it.
                if sustained_ratio >= 1.0 - SETTLED_RATIO or plan.goal.maximised:
                    break
                news = dict.fromkeys(known.told, min(CAREFUL_FACTOR, sustained_ratio))
                # What is believed from now on is less than was said.
                judged[plan.replicas] = replace(
                    known, told={key: learnt[key] * wrong for key, wrong in news.items()}
                )
        learnt |= {key: _factor(instance, learnt, key) * wrong for key, wrong in news.items()}
        last |= news
    assert best is not None  # noqa: S101 - the first round set it or returned
    return replace(best, rounds=number, runs=runs)


def settle_with_and_without(
    instance: FleetInstance,
    *,
    solve: Solve,
    judge: Judge,
    holds: Holds,
    rounds: int = 14,
    spent: Callable[[], float] = lambda: 0.0,
    improve: Callable[[SettledFleet, Enough], SettledFleet] = lambda settled, _: settled,
) -> tuple[SettledFleet, SettledFleet | None]:
    """Settle the fleet and, beside it, the best without splitting; both are trimmed.

    What is learnt of pools that serve whole requests counts for the fleet as well, so that splitting is held against
    what they really do. Returns the better of the two first; the second is None where no config serves whole requests,
    or all do.

    Parameters
    ----------
    holds
        Whether a fleet serves its planned load within the SLO; asked of fleets that are a little smaller.
    spent
        Share of the time that has passed: without splitting, which is looked for first, and rounds must leave some.
    improve
        Looks for better fleets beside a settled one (`solver.phases.nearby`) until that is enough.
    """
    whole = instance.without_splitting
    not_done: dict[str, None] = {}

    def until(share: float, what: str) -> Enough:
        def enough() -> bool:
            if spent() <= share:
                return False
            not_done[what] = None
            return True

        return enough

    def best_of(problem: FleetInstance, since: float, share: float, of: str = "") -> SettledFleet:
        what, beside = f"rounds{of}", f"fleets beside the best{of}"
        found = settled_twice(problem, until(since + ROUNDS_SHARE * (share - since), what))
        if found.verdict is None:
            if found.plan.status is not PlanStatus.INFEASIBLE:  # not one fleet was judged
                not_done[what] = None
            return found
        found = improve(found, until(share, beside))
        last = what in not_done and share >= SEARCHED_SHARE
        if (last or not found.holds) and spent() <= share:
            # The rest of the time is nobody else's, or there was nothing to look beside of: more rounds.
            not_done.pop(what, None)
            again = settled_twice(found.instance, until(share, what))
            runs = found.runs + again.runs
            if _rank(again) < _rank(found):
                found = improve(again, until(share, beside))
            found = replace(found, runs=runs)
        return found

    def settled_twice(problem: FleetInstance, enough: Enough) -> SettledFleet:
        found = settle_fleet(problem, solve=solve, judge=judge, rounds=rounds, enough=enough)
        found = trimmed(found, solve=solve, holds=holds, enough=enough)
        for _ in range(SECOND_THOUGHTS):
            # From what the last fleet taught, everything it does not use gets the benefit of the doubt once more.
            if found.verdict is None or enough():
                break
            again = settle_fleet(found.instance, solve=solve, judge=judge, rounds=rounds, enough=enough)
            again = trimmed(again, solve=solve, holds=holds, enough=enough)
            runs = found.runs + again.runs
            if _rank(again) >= _rank(found):
                return replace(found, runs=runs)
            found = replace(again, rounds=found.rounds + again.rounds, runs=runs)
        return found

    if not instance.splits or not all(model.configs for model in whole.models):
        only = _at_what_it_sustains(best_of(instance, 0.0, SEARCHED_SHARE))
        return replace(only, not_done=tuple(not_done)), None
    both = best_of(whole, 0.0, WITHOUT_SHARE, WITHOUT)
    hurried = [what for what in not_done if what.endswith(WITHOUT)]
    joint = best_of(_with_columns_of(instance, both.instance), WITHOUT_SHARE, SEARCHED_SHARE)
    if (
        hurried and both.verdict is not None and spent() <= SEARCHED_SHARE
    ):  # the other part left some of its time
        for what in hurried:
            del not_done[what]
        again = best_of(both.instance, WITHOUT_SHARE, SEARCHED_SHARE, WITHOUT)
        both = again if _rank(again) < _rank(both) else both
        hurried = [what for what in not_done if what.endswith(WITHOUT)]
    both, joint = _at_what_it_sustains(both), _at_what_it_sustains(joint)
    # A fleet found among all that splits nothing: its problem, and so its bound, knows what was learnt of split pools.
    alone = joint if _rank(joint) <= _rank(both) and not _uses_splitting(joint) else both
    worth = _rank(joint) < _rank(alone)
    found = joint if worth or alone is joint else _both_as_joint(instance, both)
    if not found.holds and found.plan.objective is not None:  # neither is proved to do: nothing to compare
        plan = replace(found.plan, both_only_objective=None, both_only_status=None, worth_splitting=None)
    elif alone.holds:
        plan = replace(
            found.plan,
            both_only_objective=alone.plan.objective,
            both_only_status=alone.plan.status,
            both_only_bound=alone.plan.bound,
            worth_splitting=worth,
        )
    elif hurried and both.plan.status is not PlanStatus.INFEASIBLE:
        plan = replace(
            found.plan, both_only_objective=None, both_only_status=PlanStatus.TIMED_OUT, worth_splitting=None
        )
    else:  # without splitting the limits leave no fleet that holds
        plan = replace(
            found.plan,
            both_only_objective=None,
            both_only_status=PlanStatus.INFEASIBLE,
            worth_splitting=None if found.plan.objective is None else True,
        )
    return replace(found, plan=plan, not_done=tuple(not_done)), both


def _at_what_it_sustains(settled: SettledFleet) -> SettledFleet:
    """Where the rate is maximised, promise the rate that was seen instead of the one that was computed."""
    plan, verdict = settled.plan, settled.verdict
    if not plan.goal.maximised or verdict is None or plan.rate_factor is None:
        return settled
    seen, instance = verdict.sustained_ratio, settled.instance
    if seen > 1.0:  # more than computed: so do its pools
        for m, row in enumerate(plan.replicas):
            for c, n in enumerate(row):
                instance = _scaled(instance, (m, c), TRIM_SLACK * seen) if n else instance
    scale = min(seen, 1.0 / TRIM_SLACK)
    rate = plan.rate_factor * seen
    bound = rate if plan.bound is None else max(plan.bound, rate)
    gap = abs(bound - rate) / max(rate, 1e-9)
    plan = replace(
        plan,
        objective=rate,
        rate_factor=rate,
        bound=bound,
        gap_ratio=gap,
        status=PlanStatus.OPTIMAL if gap <= OPTIMAL_GAP_RATIO else PlanStatus.FEASIBLE,
        load_ratio=tuple(tuple(load * scale for load in row) for row in plan.load_ratio),
        link_ratio=tuple(tuple(load * seen for load in row) for row in plan.link_ratio),
    )
    return replace(settled, instance=instance, plan=plan, verdict=replace(verdict, sustained_ratio=1.0))


def _uses_splitting(settled: SettledFleet) -> bool:
    return any(
        n and config.role is not Role.BOTH
        for model, row in zip(settled.instance.models, settled.plan.replicas, strict=False)
        for config, n in zip(model.configs, row, strict=True)
    )


def _both_as_joint(instance: FleetInstance, whole: SettledFleet) -> SettledFleet:
    """Say a fleet without splitting in the configs of the whole problem."""
    if whole.plan.objective is None:
        return replace(whole, instance=_with_columns_of(instance, whole.instance))
    places = [{config: c for c, config in enumerate(model.configs)} for model in instance.models]
    kept = [
        [place[config] for config in model.configs]
        for place, model in zip(places, whole.instance.models, strict=True)
    ]
    names = {model.name: m for m, model in enumerate(instance.models)}

    def wide(table: tuple[tuple[Number, ...], ...], zero: Number) -> tuple[tuple[Number, ...], ...]:
        rows = []
        for model, kept_here, row in zip(instance.models, kept, table, strict=True):
            values = dict(zip(kept_here, row, strict=True))
            rows.append(tuple(values.get(c, zero) for c in range(len(model.configs))))
        return tuple(rows)

    plan = replace(
        whole.plan,
        replicas=wide(whole.plan.replicas, 0),
        load_ratio=wide(whole.plan.load_ratio, 0.0),
        link_ratio=wide(whole.plan.link_ratio, 0.0) if whole.plan.link_ratio else (),
        flows=tuple(replace(flow, config=kept[names[flow.model]][flow.config]) for flow in whole.plan.flows),
    )
    return replace(whole, instance=_with_columns_of(instance, whole.instance), plan=plan)


def trimmed(
    settled: SettledFleet,
    *,
    solve: Solve,
    holds: Holds,
    enough: Enough = lambda: False,
) -> SettledFleet:
    """Try the fleet with one replica less of each config, as long as that is better and still holds.

    Capacities are told in steps and pools are whole, so a settled fleet may be a replica too large. Where one less of a
    config will do, its columns are raised until the problem says so too; what the program makes of that problem is the
    bound. Where the rate is maximised nothing is trimmed.
    """
    if settled.plan.goal.maximised or not settled.holds or settled.plan.objective is None:
        return settled
    improved = True
    while improved:
        improved = False
        for m, model in enumerate(settled.instance.models):
            for c in range(len(model.configs)):
                smaller = _one_less(settled, m, c, solve=solve, holds=holds, enough=enough)
                if smaller is not None:
                    settled, improved = smaller, True
    return settled


def _one_less(
    settled: SettledFleet,
    m: int,
    c: int,
    *,
    solve: Solve,
    holds: Holds,
    enough: Enough,
) -> SettledFleet | None:
    """Return the fleet with one replica less of one config; None where that is not better, not tried, or fails."""
    plan, instance = settled.plan, settled.instance
    n, load = plan.replicas[m][c], plan.load_ratio[m][c]
    if n < 2 or load <= 0.0:
        return None
    replicas = tuple(
        tuple(count - ((i, j) == (m, c)) for j, count in enumerate(row))
        for i, row in enumerate(plan.replicas)
    )
    told = bill(instance, replicas)
    objective = told.objective(plan.goal)
    if objective >= (plan.objective or 0.0) - 1e-9:
        return None
    smaller = replace(plan, replicas=replicas)
    if enough() or not holds(instance, smaller):
        return None
    wanted = load * n / (n - 1)
    factor = max(1.0, TRIM_SLACK * wanted / (1.0 - instance.models[m].headroom_ratio))
    raised = _scaled(instance, (m, c), factor)
    smaller = replace(
        smaller,
        objective=objective,
        load_ratio=_changed(plan.load_ratio, (m, c), wanted / factor),
        link_ratio=_changed(plan.link_ratio, (m, c), plan.link_ratio[m][c] * n / (n - 1))
        if plan.link_ratio
        else (),
        bought_gpus=told.bought_gpus,
        cost_usd_per_h=told.cost_usd_per_h,
        power_w=told.power_w,
        machines=told.machines,
    )
    smaller = with_bound(smaller, solve(raised))
    return replace(settled, instance=raised, plan=smaller, verdict=Verdict(sustained_ratio=1.0, factors={}))


def with_bound(plan: FleetPlan, bounded: FleetPlan) -> FleetPlan:
    """Give a fleet the bound that the program found for its problem, if any, the goal being minimised."""
    if bounded.bound is None:
        return replace(plan, bound=None, gap_ratio=None, status=PlanStatus.FEASIBLE)
    objective = plan.objective or 0.0
    bound = min(bounded.bound, objective)
    gap = abs(objective - bound) / max(abs(objective), 1e-9)
    status = PlanStatus.OPTIMAL if gap <= OPTIMAL_GAP_RATIO else PlanStatus.FEASIBLE
    return replace(plan, bound=bound, gap_ratio=gap, status=status)


def _changed(
    table: tuple[tuple[float, ...], ...], which: tuple[int, int], value: float
) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(value if (i, j) == which else old for j, old in enumerate(row)) for i, row in enumerate(table)
    )


def _scaled(instance: FleetInstance, which: tuple[int, int], factor: float) -> FleetInstance:
    models = tuple(
        replace(
            model,
            throughput_rps=tuple(
                tuple(rate * (factor if (m, c) == which else 1.0) for c, rate in enumerate(row))
                for row in model.throughput_rps
            ),
        )
        for m, model in enumerate(instance.models)
    )
    return replace(instance, models=models)


def _with_columns_of(instance: FleetInstance, whole: FleetInstance) -> FleetInstance:
    """Take over the columns of the configs that both problems have."""
    models = []
    for model, other in zip(instance.models, whole.models, strict=True):
        place = {config: c for c, config in enumerate(other.configs)}
        rows = tuple(
            tuple(
                other_row[place[config]] if config in place else rate
                for config, rate in zip(model.configs, row, strict=True)
            )
            for row, other_row in zip(model.throughput_rps, other.throughput_rps, strict=True)
        )
        models.append(replace(model, throughput_rps=rows))
    return replace(instance, models=tuple(models))


def corrected(instance: FleetInstance, learnt: Mapping[tuple[str, int], float]) -> FleetInstance:
    """Multiply the columns by what was learnt, those of unknown pools by the mean of their role and a little more."""
    if not learnt:
        return instance
    models = tuple(
        replace(
            model,
            throughput_rps=tuple(
                tuple(
                    rate * _factor(instance, learnt, (model.name, config)) for config, rate in enumerate(row)
                )
                for row in model.throughput_rps
            ),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def _damped(wrong: float, last: float) -> float:
    """Bound a correction; one that turns round the last one goes half of the way, since the truth lies between."""
    bounded = min(max(wrong, LEAST_FACTOR), MOST_FACTOR)
    return math.sqrt(bounded) if math.log(bounded) * math.log(last) < 0.0 else bounded


def _factor(instance: FleetInstance, learnt: Mapping[tuple[str, int], float], key: tuple[str, int]) -> float:
    if key in learnt:
        return learnt[key]
    roles = {model.name: [config.role for config in model.configs] for model in instance.models}
    role: Role = roles[key[0]][key[1]]
    same = [math.log(value) for (model, c), value in learnt.items() if roles[model][c] is role]
    if not learnt:
        return 1.0
    return BENEFIT_OF_DOUBT * (math.exp(sum(same) / len(same)) if same else 1.0)


def _rank(found: SettledFleet) -> tuple[float, float]:
    """Smaller is better."""
    if found.plan.goal.maximised:
        return (0.0, -found.sustained_factor)
    objective = math.inf if found.plan.objective is None else found.plan.objective
    if found.holds:
        return (0.0, objective)
    return (1.0, -found.sustained_factor)
