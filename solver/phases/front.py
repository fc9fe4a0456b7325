"""The Pareto front of fleets that serve all rates: what less power, cost or machines takes of the others.

It exists to show what a single optimum hides. Method: the epsilon constraint - one figure is minimised under budgets on
the others, which are tightened step by step - so that every point is proved, also those a weighted sum never finds
(Haimes et al., 1971). Each point is a whole plan of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from solver.domain.fleet import FleetGoal, FleetInstance, FleetPlan
from solver.domain.gpu_mix import PlanStatus

TIGHTER_RATIO = 1e-6
"""The next point must be better in the constrained figure by more than so much of it."""
FIELDS = {FleetGoal.COST: "cost_usd_per_h", FleetGoal.POWER: "power_w", FleetGoal.MACHINES: "machines"}

Solve = Callable[[FleetInstance], FleetPlan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Fleets of which none is better than another in every goal, best in the first goal first."""

    points: tuple[FleetPlan, ...]
    cut_short: bool = False
    """Further points were not looked for, or not found, for want of time."""


def pareto_front(
    instance: FleetInstance,
    goals: Sequence[FleetGoal],
    *,
    solve: Solve,
    points: int = 10,
    enough: Callable[[], bool] = lambda: False,
) -> Front:
    """Return fleets of which none is better than another in every goal, best in the first goal first.

    Parameters
    ----------
    instance
        The problem; its own goal does not matter, its budgets hold.
    goals
        Two or three of cost, power and machines.
    solve
        `solver.phases.solve.solve_fleet` with its options.
    points
        At most about so many; they are spread evenly over the last goal.
    enough
        Asked before each point; none is looked for once it says so.

    Raises
    ------
    ValueError
        If goals repeat, are fewer than two, or one is the rate.
    """
    if len(set(goals)) < len(goals) or len(goals) < 2 or FleetGoal.RATE in goals:
        raise ValueError("a front needs two or three different goals of cost, power and machines")
    walk = _Walk(solve=solve, enough=enough)
    found = walk.front(instance, tuple(goals), points)
    return Front(points=undominated(found, goals), cut_short=walk.cut_short)


def undominated(plans: Sequence[FleetPlan], goals: Sequence[FleetGoal]) -> tuple[FleetPlan, ...]:
    """Return plans than which no other is better in every goal, of equals the first; best in the first goal first."""
    kept = [
        plan
        for index, plan in enumerate(plans)
        if not any(
            _dominates(other, plan, goals) and not (_dominates(plan, other, goals) and position > index)
            for position, other in enumerate(plans)
            if position != index
        )
    ]
    return tuple(sorted(kept, key=lambda plan: tuple(_figure(plan, goal) for goal in goals)))


def _figure(plan: FleetPlan, goal: FleetGoal) -> float:
    value: float | None = getattr(plan, FIELDS[goal])
    return float("inf") if value is None else value


def _dominates(plan: FleetPlan, other: FleetPlan, goals: Sequence[FleetGoal]) -> bool:
    """Whether a plan is nowhere worse than another."""
    return all(
        _figure(plan, goal) <= _figure(other, goal) + TIGHTER_RATIO * abs(_figure(other, goal))
        for goal in goals
    )


def _within(instance: FleetInstance, goal: FleetGoal, limit: float) -> FleetInstance:
    """Tighten a budget."""
    field = FIELDS[goal]
    now = getattr(instance.budgets, field)
    tighter = limit if now is None else min(now, limit)
    return replace(instance, budgets=replace(instance.budgets, **{field: tighter}))


@dataclass(slots=True, kw_only=True)
class _Walk:
    solve: Solve
    enough: Callable[[], bool]
    cut_short: bool = False

    def best(self, instance: FleetInstance, goals: Sequence[FleetGoal]) -> FleetPlan | None:
        """Minimise the goals one after the other, each at the optimum of those before."""
        plan: FleetPlan | None = None
        for goal in goals:
            if self._over():
                return plan
            made = self.solve(replace(instance, goal=goal))
            if made.objective is None:
                self.cut_short |= made.status is PlanStatus.TIMED_OUT
                return plan
            plan = made
            slack = made.objective * (1 + 1e-9)
            instance = _within(instance, goal, slack)
        return plan

    def front(self, instance: FleetInstance, goals: tuple[FleetGoal, ...], points: int) -> list[FleetPlan]:
        *first, last = goals
        rest = tuple(first)
        start = self.best(instance, goals)
        end = self.best(instance, (last, *rest))
        if start is None or end is None:
            return [plan for plan in (start, end) if plan is not None]
        high, low = _figure(start, last), _figure(end, last)
        found = [start, end]
        step = (high - low) / max(1, points - 1)
        limit = high
        inner = points if len(rest) == 1 else max(2, round(points**0.5))
        if len(rest) > 1:
            step = (high - low) / max(1, inner - 1)
            found += self.front(instance, rest, points)
        while True:
            limit = min(limit - step, limit * (1 - 2 * TIGHTER_RATIO))
            if limit <= low * (1 + TIGHTER_RATIO) or len(found) >= points * inner or self._over():
                return found
            tighter = _within(instance, last, limit)
            made = [self.best(tighter, goals)] if len(rest) == 1 else self.front(tighter, rest, inner)
            plans = [plan for plan in made if plan is not None]
            if not plans:
                return found
            found += plans
            limit = min(limit, max(_figure(plan, last) for plan in plans))

    def _over(self) -> bool:
        over = self.enough()
        self.cut_short |= over
        return over
