"""The solver of GPU-type selection against trying everything: same cost, same verdict, a reason that is right."""

import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, event, given, settings

from solver.check.gpu_mix import check_gpu_mix
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix.explain import explain_plan
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from tests.solver.brute_force import (
    BruteForceAnswer,
    TooLarge,
    cheapest_other_set,
    solve_by_brute_force,
    without,
)
from tests.solver.strategies import gpu_mix_instances
from tests.solver.test_check import INSTANCE


def solve(instance: GpuMixInstance) -> GpuMixPlan:
    return solve_gpu_mix(instance, options=SolveOptions(), clock=time.monotonic)


def scaled(instance: GpuMixInstance, factor: float) -> GpuMixInstance:
    """Multiply all rates: an optimum that moves by a hair's breadth of load is not the solver's to decide."""
    models = tuple(
        replace(
            model,
            buckets=tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in model.buckets),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def assume_not_on_an_edge(instance: GpuMixInstance) -> BruteForceAnswer:
    """Return the exact answer; give up on problems that are too large or decided by solver tolerances."""
    try:
        exact = solve_by_brute_force(instance)
        for factor in (1 - 1e-5, 1 + 1e-5):
            near = solve_by_brute_force(scaled(instance, factor))
            assume((near.objective is None) == (exact.objective is None))
            if near.objective is not None and exact.objective is not None:
                assume(abs(near.objective - exact.objective) < 1e-7)
    except TooLarge:
        assume(False)  # noqa: FBT003 - hypothesis' way to say "draw another"
    return exact


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(instance=gpu_mix_instances())
def test_the_cost_is_the_least_there_is(instance: GpuMixInstance) -> None:
    exact = assume_not_on_an_edge(instance)
    plan = solve(instance)
    assert check_gpu_mix(instance, plan) == ()
    event(plan.status)
    if exact.objective is not None:
        assert plan.status is PlanStatus.OPTIMAL
        assert plan.objective == pytest.approx(exact.objective, rel=1e-6, abs=1e-9)
        return
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    event(plan.infeasible.kind)
    if exact.unservable:
        assert plan.infeasible.kind == "bucket-unservable"
    elif exact.feasible_when_dropped:
        assert plan.infeasible.kind in exact.feasible_when_dropped
    else:
        assert plan.infeasible.kind == "combination"


# GPUs that cost nothing can be added without need: a set of types that differs only by them is no rival.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(instance=gpu_mix_instances(max_models=1, free=False))
def test_rivals_are_what_they_say(instance: GpuMixInstance) -> None:
    """The best single type and a proved second best cost what trying everything of their kind costs."""
    exact = assume_not_on_an_edge(instance)
    assume(exact.objective is not None)
    plan = explain_plan(instance, solve(instance), options=SolveOptions(), clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    alone = {offer.name: cost_on_one_type(instance, offer.name) for offer in instance.gpu_types}
    costs = [cost for cost in alone.values() if cost is not None]
    if plan.best_single_type is None:
        assert not costs
    else:
        cost = alone[plan.best_single_type.gpu_type]
        assert plan.best_single_type.cost_usd_per_h == pytest.approx(cost, rel=1e-6, abs=1e-9)
        assert cost == pytest.approx(min(costs), rel=1e-6, abs=1e-9)
    used = frozenset(
        offer.name
        for offer, *gpus in zip(instance.gpu_types, plan.bought_gpus, plan.spot_gpus, strict=True)
        if any(gpus)
    )
    assume(used)  # who needs nothing has no rival worth naming
    least = cheapest_other_set(instance, used)
    # A type that can serve nothing makes another set when it idles: the solver may name it, but need not.
    sensible = cheapest_other_set(on_types(instance, serving_types(instance)), used)
    if plan.second_best is None:
        assert sensible is None
        return
    assert least is not None
    assert plan.second_best.cost_usd_per_h >= least - 1e-6
    if plan.second_best.proved and sensible is not None:
        event("second best proved")
        assert plan.second_best.cost_usd_per_h <= sensible + 1e-6


def serving_types(instance: GpuMixInstance) -> set[str]:
    """Return the types with a variant that serves some traffic."""
    return {
        variant.gpu_type
        for model in instance.models
        for c, variant in enumerate(model.variants)
        if any(
            bucket.rate_rps > 0 and row[c] > 0
            for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
        )
    }


def cost_on_one_type(instance: GpuMixInstance, name: str) -> float | None:
    """Return what the best plan on one type costs; None if there is none, or replicas of another must run."""
    if any(v.min_replicas and v.gpu_type != name for model in instance.models for v in model.variants):
        return None
    return solve_by_brute_force(on_types(instance, {name})).objective


def on_types(instance: GpuMixInstance, names: set[str]) -> GpuMixInstance:
    """Forbid the other types: no replica of theirs reaches the quality asked for."""
    models = tuple(
        replace(
            model,
            min_quality_ratio=max(model.min_quality_ratio, 1e-9),
            variants=tuple(
                variant if variant.gpu_type in names else replace(variant, quality_ratio=0.0)
                for variant in model.variants
            ),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def test_without_takes_each_limit_away() -> None:
    """The second opinion's own tool: dropping a limit changes exactly that limit."""
    instance = INSTANCE
    assert without(instance, "budget") == replace(instance, budget_usd_per_h=None)
    assert without(instance, "power-limit") == replace(instance, power_limit_w=None)
    assert without(instance, "survive").models[0].survive == 0
    assert without(instance, "quality").models[0].min_quality_ratio == 0.0
    assert without(instance, "gpu-limit").gpu_types[0].available is None
    with pytest.raises(ValueError, match="moon"):
        without(instance, "moon")
