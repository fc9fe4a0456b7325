"""Fleets against trying everything, on tiny problems; both backends, both methods."""

import time

import pytest
from hypothesis import HealthCheck, given, reject, settings

from solver.backends.choose import BackendName
from solver.check.fleet import check_fleet
from solver.domain.errors import InputError
from solver.domain.fleet import FleetGoal, FleetInstance
from solver.domain.gpu_mix import GpuMixInstance, ModelDemand, PlanStatus, Variant
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.phases.find import FleetMethod
from solver.phases.solve import FleetOptions, solve_fleet
from tests.solver.phases.brute_force import TooLarge, best_by_trying, without
from tests.solver.phases.drawn import fleet_instances

SLACK = settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
MINIMISED = (FleetGoal.COST, FleetGoal.POWER, FleetGoal.MACHINES)


def tried(instance: FleetInstance) -> float | None:
    try:
        return best_by_trying(instance)
    except TooLarge:
        reject()


def agrees(instance: FleetInstance, backend: BackendName, method: FleetMethod) -> None:
    expected = tried(instance)
    options = FleetOptions(backend=backend, method=method)
    try:
        plan = solve_fleet(instance, options, time.monotonic)
    except InputError:  # nothing limits the rate
        reject()
    assert check_fleet(instance, plan) == ()
    if plan.infeasible is not None:
        if plan.infeasible.kind == "bucket-unservable":
            assert expected is None or instance.goal is FleetGoal.RATE
            return
        assert expected is None
        for kind in plan.infeasible.feasible_when_dropped:
            assert tried(without(instance, kind)) is not None
        return
    assert expected is not None
    assert plan.status is PlanStatus.OPTIMAL
    assert plan.objective == pytest.approx(expected, rel=1e-6, abs=1e-9)
    narrow = tried(instance.without_splitting)
    if plan.both_only_objective is None:
        assert narrow is None or instance.goal is FleetGoal.RATE
    else:
        assert plan.both_only_objective == pytest.approx(narrow, rel=1e-6, abs=1e-9)


@given(instance=fleet_instances())
@settings(SLACK, max_examples=60)
def test_one_program_finds_the_best_fleet(instance: FleetInstance) -> None:
    agrees(instance, "highs", "direct")


@given(instance=fleet_instances())
@settings(SLACK, max_examples=60)
def test_cuts_on_replicas_find_the_best_fleet(instance: FleetInstance) -> None:
    agrees(instance, "highs", "projected")


@given(instance=fleet_instances())
@settings(SLACK, max_examples=15)
def test_the_other_backend_finds_the_best_fleet(instance: FleetInstance) -> None:
    agrees(instance, "cbc", "direct")


def as_gpu_mix(instance: FleetInstance) -> GpuMixInstance:
    """Write a fleet of role both as a GPU mix."""
    return GpuMixInstance(
        name=instance.name,
        gpu_types=instance.gpu_types,
        models=tuple(
            ModelDemand(
                name=model.name,
                variants=tuple(
                    Variant(gpu_type=config.gpu_type, gpus_per_replica=config.gpus_per_replica)
                    for config in model.configs
                ),
                buckets=model.buckets,
                throughput_rps=model.throughput_rps,
                headroom_ratio=model.headroom_ratio,
                min_total_replicas=model.min_total_replicas,
            )
            for model in instance.models
        ),
        power_limit_w=instance.budgets.power_w,
        budget_usd_per_h=instance.budgets.cost_usd_per_h,
    )


@given(instance=fleet_instances(split=False, goals=(FleetGoal.COST,)))
@settings(SLACK, max_examples=40)
def test_a_fleet_of_role_both_is_a_gpu_mix(instance: FleetInstance) -> None:
    instance = without(instance, "machine-limit")
    mix = solve_gpu_mix(as_gpu_mix(instance), options=SolveOptions(explain=False), clock=time.monotonic)
    plan = solve_fleet(instance, FleetOptions(explain=False), time.monotonic)
    assert plan.status is mix.status
    assert plan.objective == (None if mix.objective is None else pytest.approx(mix.objective, rel=1e-6))
    assert not plan.worth_splitting
