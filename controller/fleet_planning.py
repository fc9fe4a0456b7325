"""Runs the pure fleet planner in the real world: with a clock, a time limit for the whole answer, and its check.

It exists so that the command, the report and the plan loop start the solver in the same way. It holds no decision.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from solver.check.fleet import check_fleet
from solver.domain.deadline import Clock, Deadline
from solver.domain.fleet import FleetGoal, FleetInstance, FleetPlan
from solver.phases.front import Front, pareto_front
from solver.phases.solve import FleetOptions, solve_fleet

LEAST_LIMIT_S = 0.05
FRONT_SHARE = 0.5
"""Part of the time left for the front that one of its solves may take at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedFleet:
    """A plan, the front around it if one was asked for, and the seconds it took."""

    plan: FleetPlan
    front: Front
    """Empty where none was asked for."""
    solve_s: float


def plan_fleet(
    instance: FleetInstance,
    *,
    options: FleetOptions,
    front_of: Sequence[FleetGoal] = (),
    points: int = 10,
    clock: Clock = time.monotonic,
) -> TimedFleet:
    """Solve, check, and walk the Pareto front of the goals in ``front_of``, all within one time limit."""
    began_s = clock()
    deadline = Deadline.after(options.time_limit_s, clock)
    own_s = options.time_limit_s * (FRONT_SHARE if front_of else 1.0)
    plan = solve_fleet(instance, replace(options, time_limit_s=own_s), clock)
    verify(instance, plan)
    front = Front(points=())
    if front_of and plan.objective is not None:

        def solve(varied: FleetInstance) -> FleetPlan:
            left_s = max(LEAST_LIMIT_S, FRONT_SHARE * deadline.remaining_s())
            quick = replace(options, time_limit_s=left_s, compare=False, explain=False)
            made = solve_fleet(varied, quick, clock)
            verify(varied, made)
            return made

        front = pareto_front(
            instance,
            front_of,
            solve=solve,
            points=points,
            enough=lambda: deadline.remaining_s() <= LEAST_LIMIT_S,
        )
    return TimedFleet(plan=plan, front=front, solve_s=clock() - began_s)


def verify(instance: FleetInstance, plan: FleetPlan) -> None:
    """Refuse to show a plan that its independent check finds wrong: that is a bug of ours."""
    if plan.infeasible is None and plan.objective is None:
        return
    violations = check_fleet(instance, plan)
    if violations:
        raise RuntimeError(
            f"the fleet for {instance.name} fails its check: {violations[0]}; please report it"
        )
