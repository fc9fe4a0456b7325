"""The Pareto front of fleets that were tried: points that fail are corrected, those that were not tried are told.

It exists because a front of the corrected problem (`solver.phases.front`) is one of what was learnt around a single
fleet; away from it columns are guesses. A point that does not hold is settled again under its own limits, a little
wider, and left out if that finds nothing. It simulates nothing: asking is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from solver.domain.fleet import FleetGoal, FleetInstance, FleetPlan
from solver.phases.front import FIELDS, pareto_front, undominated
from solver.phases.settle import Enough, Holds, Judge, SettledFleet, Solve, settle_fleet, trimmed

WIDER = 1.1
"""A point that fails is looked for again with so much more of what limited it."""
ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedFront:
    """Fleets of which none is better than another in every goal, best in the first goal first."""

    points: tuple[FleetPlan, ...]
    tried: tuple[bool, ...]
    """Whether each was tried, and held; the others were not tried because time was up."""
    missed: int
    """Points that did not hold, nor did anything that was found in their place: left out."""
    cut_short: bool = False
    """Points were not looked for, not tried or not settled again, for want of time."""


def tried_front(
    settled: SettledFleet,
    goals: Sequence[FleetGoal],
    *,
    solve: Solve,
    judge: Judge,
    holds: Holds,
    points: int = 10,
    enough: Enough = lambda: False,
) -> TriedFront:
    """Walk the front around a settled fleet and try its points, the settled fleet among them.

    Raises
    ------
    ValueError
        As `solver.phases.front.pareto_front`.
    """
    late = False

    def over() -> bool:
        nonlocal late
        late = late or enough()
        return late

    walked = pareto_front(settled.instance, goals, solve=solve, points=points, enough=over)
    held = [settled.plan] if settled.holds and settled.plan.objective is not None else []
    untried: list[FleetPlan] = []
    missed = 0
    for plan in walked.points:
        found = None if over() else holds(settled.instance, plan)
        if found is None:
            untried.append(plan)
        elif found:
            held.append(plan)
        else:
            again = settle_fleet(
                _limited(settled.instance, goals, plan),
                solve=solve,
                judge=judge,
                rounds=ROUNDS,
                enough=over,
            )
            again = trimmed(again, solve=solve, holds=holds, enough=over)
            if again.holds and again.plan.objective is not None:
                held.append(again.plan)
            else:
                missed += 1
    best = undominated([*held, *untried], goals)
    return TriedFront(
        points=best,
        tried=tuple(any(plan is one for one in held) for plan in best),
        missed=missed,
        cut_short=late or walked.cut_short or bool(untried),
    )


def _limited(instance: FleetInstance, goals: Sequence[FleetGoal], plan: FleetPlan) -> FleetInstance:
    """Minimise the first goal with a little more of the others than a plan has, within the instance's own budgets."""
    budgets = instance.budgets
    for goal in goals[1:]:
        figure, own = getattr(plan, FIELDS[goal]), getattr(budgets, FIELDS[goal])
        wider = None if figure is None else WIDER * figure
        limits = [limit for limit in (wider, own) if limit is not None]
        budgets = replace(budgets, **{FIELDS[goal]: min(limits, default=None)})
    return replace(instance, goal=goals[0], budgets=budgets)
