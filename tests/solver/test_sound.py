"""Plans from demand hold with the mixtures they route, and are never dearer than a single type that holds."""

from dataclasses import replace

import pytest

from benchmarks.azure_mixtures import CONVERSATION
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, GpuOffer, RequestBucket
from solver.gpu_mix.from_demand import (
    RoutedLoad,
    build_gpu_mix_instance,
    candidate_variants,
    routed_loads,
)
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.gpu_mix.sound import SoundPlan, plan_within_slo
from solver.gpu_mix.variations import on_one_type
from solver.performance.capacity import MatrixRule
from tests.solver.test_from_demand import OFFERS, SLO, performance


def solve(instance: GpuMixInstance) -> GpuMixPlan:
    return solve_gpu_mix(instance, options=SolveOptions(gap_ratio=1e-3), clock=lambda: 0.0)


def judge(instance: GpuMixInstance, plan: GpuMixPlan) -> tuple[RoutedLoad, ...]:
    return routed_loads(instance, plan, performance=performance, slo=SLO)


def starts(factor: float, *models: str, offers: tuple[GpuOffer, ...] = OFFERS) -> list[GpuMixInstance]:
    buckets = [replace(bucket, rate_rps=factor * bucket.rate_rps) for bucket in CONVERSATION]
    return [
        build_gpu_mix_instance(
            name=rule,
            demands=dict.fromkeys(models, buckets),
            offers=offers,
            variants=dict.fromkeys(models, candidate_variants(offers, precisions=("bf16",))),
            performance=performance,
            slo=SLO,
            headroom_ratio=0.1,
            rule=rule,
        ).instance
        for rule in MatrixRule
    ]


@pytest.mark.parametrize("factor", [3.0, 10.0, 60.0])
def test_a_mix_is_never_dearer_than_a_type_alone(factor: float) -> None:
    from_here = starts(factor, "m")
    found = plan_within_slo(from_here, solve=solve, judge=judge)
    assert found.within_slo
    assert found.plan.objective is not None
    for offer in OFFERS:
        narrow = [on_one_type(start, offer.name) for start in from_here]
        alone = plan_within_slo([n for n in narrow if n is not None], solve=solve, judge=judge)
        if alone.within_slo and alone.plan.objective is not None:
            assert found.plan.objective <= alone.plan.objective * 1.001


def test_models_that_share_nothing_are_planned_as_if_alone() -> None:
    both = plan_within_slo(starts(20.0, "one", "two"), solve=solve, judge=judge)
    one = plan_within_slo(starts(20.0, "one"), solve=solve, judge=judge)
    assert both.within_slo
    assert both.plan.objective is not None
    assert one.plan.objective is not None
    assert both.plan.objective == pytest.approx(2 * one.plan.objective, rel=2e-3)


def test_models_that_share_stock_are_planned_together() -> None:
    scarce = tuple(replace(offer, available=6) for offer in OFFERS)
    found = plan_within_slo(starts(4.0, "one", "two", offers=scarce), solve=solve, judge=judge)
    assert found.instance.links_models
    if found.plan.objective is not None:
        assert all(gpus <= 6 for gpus in found.plan.bought_gpus)


def test_when_nothing_holds_columns_fall_until_something_does() -> None:
    """A judge that finds every mix 30 % fuller than counted, and a type alone 60 %."""

    def harsh(instance: GpuMixInstance, plan: GpuMixPlan) -> tuple[RoutedLoad, ...]:
        alone = len({v.gpu_type for v in instance.models[0].variants}) == 1
        true = starts(10.0, "m")[0]
        return tuple(
            replace(
                load,
                load_ratio=_true_load(true, instance, plan, load) * (1.6 if alone else 1.3),
            )
            for load in judge(instance, plan)
        )

    found = plan_within_slo(starts(10.0, "m")[:1], solve=solve, judge=harsh, rounds=1)
    assert isinstance(found, SoundPlan)
    assert found.within_slo


def _true_load(true: GpuMixInstance, instance: GpuMixInstance, plan: GpuMixPlan, load: RoutedLoad) -> float:
    """Load of a variant by the throughputs before any correction."""
    variant = instance.models[0].variants[load.config]
    column = true.models[0].variants.index(variant)
    rates = true.models[0].throughput_rps
    replicas = plan.replicas[0][load.config]
    total = sum(
        share.share * instance.models[0].buckets[share.bucket].rate_rps / rates[share.bucket][column]
        for share in plan.routing
        if share.config == load.config
    )
    return total / replicas


def test_no_start_is_refused() -> None:
    with pytest.raises(ValueError, match="starting point"):
        plan_within_slo([], solve=solve, judge=judge)


def test_an_infeasible_model_makes_the_whole_infeasible() -> None:
    (start,) = starts(4.0, "one", "two")[:1]
    models = (
        start.models[0],
        replace(
            start.models[1],
            buckets=(RequestBucket(rate_rps=1.0),),
            throughput_rps=((0.0,) * len(start.models[1].variants),),
        ),
    )
    found = plan_within_slo([replace(start, models=models)], solve=solve, judge=judge)
    assert found.plan.objective is None
    assert not found.within_slo
    assert found.plan.infeasible is not None
    assert found.plan.infeasible.models == ("two",)
