"""Fleets beside one that holds: never worse, never outside the limits, asked about once each."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.fleet import check_fleet
from solver.domain.fleet import (
    FleetBudgets,
    FleetConfig,
    FleetGoal,
    FleetInstance,
    FleetModel,
    FleetPlan,
    Role,
)
from solver.domain.gpu_mix import GpuOffer, RequestBucket
from solver.phases.nearby import as_planned, improved_nearby
from solver.phases.settle import SettledFleet, Verdict
from solver.phases.solve import FleetOptions, solve_fleet

RATE_RPS = 10.0
CONFIGS = (
    FleetConfig(gpu_type="a", gpus_per_replica=1, role=Role.PREFILL),
    FleetConfig(gpu_type="b", gpus_per_replica=1, role=Role.PREFILL),
    FleetConfig(gpu_type="a", gpus_per_replica=2, role=Role.PREFILL),
    FleetConfig(gpu_type="a", gpus_per_replica=1, role=Role.DECODE),
    FleetConfig(gpu_type="b", gpus_per_replica=1, role=Role.DECODE),
)
BELIEVED = (2.0, 0.5, 4.2, 5.0, 1.0)
TRUE = (2.0, 4.0, 3.0, 5.0, 9.0)
"""What a replica of each really sustains: of b, far more than believed."""


def instance(**more: object) -> FleetInstance:
    return FleetInstance(
        name="t",
        gpu_types=(
            GpuOffer(name="a", price_usd_per_h=1.0, gpus_per_node=1, power_w=100.0),
            GpuOffer(name="b", price_usd_per_h=1.5, gpus_per_node=1, power_w=300.0),
        ),
        models=(
            FleetModel(
                name="m",
                configs=CONFIGS,
                buckets=(
                    RequestBucket(rate_rps=0.3 * RATE_RPS, input_tokens=100, output_tokens=10),
                    RequestBucket(rate_rps=0.7 * RATE_RPS, input_tokens=300, output_tokens=10),
                ),
                throughput_rps=(BELIEVED, BELIEVED),
                headroom_ratio=0.1,
            ),
        ),
        **more,  # type: ignore[arg-type]
    )


def solve(problem: FleetInstance) -> FleetPlan:
    return solve_fleet(problem, FleetOptions(compare=False, explain=False), time.monotonic)


class World:
    """Says whether a fleet holds, and keeps what it was asked."""

    def __init__(self, true: tuple[float, ...] = TRUE) -> None:
        self.true = true
        self.asked: list[tuple[tuple[int, ...], ...]] = []

    def enough(self, replicas: tuple[int, ...]) -> bool:
        prefill, decode = (
            sum(n * t for n, t, c in zip(replicas, self.true, CONFIGS, strict=True) if c.role is role)
            for role in (Role.PREFILL, Role.DECODE)
        )
        return min(prefill, decode) >= RATE_RPS - 1e-9

    def holds(self, problem: FleetInstance, plan: FleetPlan) -> bool:
        assert not check_fleet(problem, plan)
        self.asked.append(plan.replicas)
        return self.enough(plan.replicas[0])


def settled(problem: FleetInstance, replicas: tuple[int, ...]) -> SettledFleet:
    planned = as_planned(problem, (replicas,))
    assert planned is not None
    verdict = Verdict(sustained_ratio=1.0, factors={})
    return SettledFleet(instance=planned[0], plan=planned[1], verdict=verdict, rounds=1, runs=0)


def test_what_was_condemned_is_tried_as_a_whole() -> None:
    world = World()
    start = settled(instance(), (6, 0, 0, 3, 0))
    found = improved_nearby(start, solve=solve, holds=world.holds)
    assert start.plan.objective == 9.0
    assert found.plan.replicas == ((1, 2, 0, 2, 0),)  # 2 + 8 and 10 requests/s for 1 + 3 + 2 US$/h
    assert found.plan.objective == 6.0
    assert found.holds
    assert found.plan.bound is not None
    assert found.plan.bound <= 6.0
    assert not check_fleet(found.instance, found.plan)
    assert len(world.asked) == len(set(world.asked))


def test_limits_are_kept() -> None:
    stock = replace(
        instance(),
        gpu_types=tuple(
            replace(offer, available=1 if offer.name == "b" else None) for offer in instance().gpu_types
        ),
    )
    found = improved_nearby(settled(stock, (6, 0, 0, 3, 0)), solve=solve, holds=World().holds)
    assert found.plan.bought_gpus[1] <= 1
    watts = instance(budgets=FleetBudgets(power_w=899.0))
    found = improved_nearby(settled(watts, (6, 0, 0, 3, 0)), solve=solve, holds=World().holds)
    assert found.plan.power_w is not None
    assert found.plan.power_w <= 899.0
    assert found.plan.objective == 6.5  # two of b would draw too much


def test_the_goal_counts() -> None:
    power = instance(goal=FleetGoal.POWER)
    found = improved_nearby(settled(power, (1, 2, 0, 2, 0)), solve=solve, holds=World().holds)
    assert found.plan.objective == found.plan.power_w == 700.0  # five and two of a


def test_nothing_is_tried_where_nothing_can_be_gained_or_time_is_up() -> None:
    world = World()
    start = settled(instance(), (6, 0, 0, 3, 0))
    missed = replace(start, verdict=Verdict(sustained_ratio=0.5, factors={}))
    assert improved_nearby(missed, solve=solve, holds=world.holds) is missed
    largest = replace(start, plan=replace(start.plan, goal=FleetGoal.RATE))
    assert improved_nearby(largest, solve=solve, holds=world.holds) is largest
    assert improved_nearby(start, solve=solve, holds=world.holds, enough=lambda: True) is start
    assert not world.asked
    assert improved_nearby(start, solve=solve, holds=lambda *_: False) is start


@settings(max_examples=15, deadline=None)
@given(
    true=st.tuples(*[st.floats(0.5, 12.0) for _ in CONFIGS]),
    start=st.tuples(*[st.integers(0, 12) for _ in CONFIGS]),
)
def test_what_is_found_holds_and_nothing_less_of_it_does(
    true: tuple[float, ...], start: tuple[int, ...]
) -> None:
    world = World(true)
    if not world.enough(start):
        return
    given_fleet = settled(instance(), start)
    found = improved_nearby(given_fleet, solve=solve, holds=world.holds)
    (counts,) = found.plan.replicas
    assert world.enough(counts)
    assert (found.plan.objective or 0.0) <= (given_fleet.plan.objective or 0.0)
    assert not check_fleet(found.instance, found.plan)
    assert len(world.asked) == len(set(world.asked))
    for c, n in enumerate(counts):
        less = tuple(other - (place == c) for place, other in enumerate(counts))
        assert not n or not world.enough(less)


@pytest.mark.parametrize("replicas", [(6, 0, 0, 0, 0), (0, 0, 0, 4, 0), (6, 0, 0, -1, 4)])
def test_replicas_that_cannot_serve_are_no_plan(replicas: tuple[int, ...]) -> None:
    assert as_planned(instance(), (replicas,)) is None


def test_a_link_that_is_too_full_is_no_plan() -> None:
    model = replace(
        instance().models[0],
        kv_bytes_per_prompt_token=1.0,
        configs=tuple(replace(config, kv_link_bytes_per_s=500.0) for config in CONFIGS),
    )
    narrow = replace(instance(), models=(model,))
    assert as_planned(narrow, ((4, 0, 0, 4, 0),)) is None
    assert as_planned(narrow, ((5, 0, 0, 5, 0),)) is not None  # 2,400 bytes/s
