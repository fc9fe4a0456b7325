"""A front of fleets that were tried: what fails is settled again or left out, what was not tried is told."""

import time
from dataclasses import replace
from itertools import pairwise

from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetModel, FleetPlan
from solver.domain.gpu_mix import GpuOffer, RequestBucket
from solver.phases.settle import SettledFleet, Verdict, settle_fleet
from solver.phases.solve import FleetOptions, solve_fleet
from solver.phases.tried_front import TriedFront, tried_front

GOALS = (FleetGoal.COST, FleetGoal.POWER)
INSTANCE = FleetInstance(
    name="t",
    gpu_types=(
        GpuOffer(name="a", price_usd_per_h=1.0, gpus_per_node=1, power_w=300.0),
        GpuOffer(name="b", price_usd_per_h=2.0, gpus_per_node=1, power_w=100.0),
    ),
    models=(
        FleetModel(
            name="m",
            configs=tuple(FleetConfig(gpu_type=name, gpus_per_replica=1) for name in "ab"),
            buckets=(RequestBucket(rate_rps=10.0, input_tokens=100, output_tokens=10),),
            throughput_rps=((2.0, 2.0),),
        ),
    ),
)


def solve(problem: FleetInstance) -> FleetPlan:
    return solve_fleet(problem, FleetOptions(compare=False, explain=False), time.monotonic)


def sustained(plan: FleetPlan, true_b: float) -> float:
    a, b = plan.replicas[0]
    return (2.0 * a + true_b * b) / 10.0


def front(true_b: float, *, tries: int = 1000, budget_w: float | None = None) -> TriedFront:
    def judge(_: FleetInstance, plan: FleetPlan) -> Verdict:
        factors = {("m", 0): 1.0, ("m", 1): true_b / 2.0}
        return Verdict(sustained_ratio=sustained(plan, true_b), factors=factors)

    def holds(_: FleetInstance, plan: FleetPlan) -> bool:
        asked.append(plan)
        return sustained(plan, true_b) >= 1.0 - 1e-9

    asked: list[FleetPlan] = []
    problem = replace(INSTANCE, budgets=FleetBudgets(power_w=budget_w))
    settled: SettledFleet = settle_fleet(problem, solve=solve, judge=judge, rounds=6)
    assert settled.holds
    return tried_front(
        settled, GOALS, solve=solve, judge=judge, holds=holds, enough=lambda: len(asked) >= tries
    )


def test_points_that_hold_are_shown() -> None:
    found = front(2.0)
    assert [(point.cost_usd_per_h, point.power_w) for point in found.points] == [
        (5.0 + n, 1500.0 - 200.0 * n) for n in range(6)
    ]
    assert all(found.tried)
    assert found.missed == 0


def test_points_that_fail_are_settled_again_or_left_out() -> None:
    found = front(1.0)  # b does half of what was believed
    assert all(found.tried)
    assert all(sustained(point, 1.0) >= 1.0 - 1e-9 for point in found.points)
    assert found.points[0].cost_usd_per_h == 5.0
    assert len(found.points) > 1
    figures = [(point.cost_usd_per_h or 0.0, point.power_w or 0.0) for point in found.points]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(figures))
    narrow = front(1.0, budget_w=1500.0)
    assert all((point.power_w or 0.0) <= 1500.0 for point in narrow.points)


def test_what_was_not_tried_is_told() -> None:
    found = front(2.0, tries=2)
    assert found.tried.count(True) == 2  # the settled fleet stands for the cheapest of the two
    assert found.tried[0]
    assert not all(found.tried)
    assert found.missed == 0
    assert found.cut_short
    assert not front(2.0).cut_short


def test_a_point_that_was_not_tried_to_the_end_is_no_miss() -> None:
    settled = settle_fleet(INSTANCE, solve=solve, judge=lambda *_: Verdict(sustained_ratio=1.0, factors={}))
    found = tried_front(
        settled,
        GOALS,
        solve=solve,
        judge=lambda *_: None,
        holds=lambda *_: None,
    )
    assert found.missed == 0
    assert found.cut_short
    assert found.tried.count(True) == 1
