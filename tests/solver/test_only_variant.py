"""A model with a single variant is priced without a program; the program says the same."""

import time
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from solver.check.gpu_mix import check_gpu_mix
from solver.domain.gpu_mix import (
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    ModelDemand,
    PlanStatus,
    RequestBucket,
    Variant,
)
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix


@st.composite
def problems(draw: st.DrawFn) -> GpuMixInstance:
    least = draw(st.integers(0, 3))
    variant = Variant(
        gpu_type="A",
        gpus_per_replica=draw(st.sampled_from((1, 2))),
        current_replicas=draw(st.one_of(st.none(), st.integers(0, 9))),
        min_replicas=least,
        max_replicas=draw(st.one_of(st.none(), st.integers(least, 8))),
    )
    count = draw(st.integers(0, 3))
    return GpuMixInstance(
        name="one",
        gpu_types=(GpuOffer(name="A", price_usd_per_h=draw(st.sampled_from((0.0, 0.5, 2.25)))),),
        models=(
            ModelDemand(
                name="m",
                variants=(variant,),
                buckets=tuple(
                    RequestBucket(rate_rps=draw(st.sampled_from((0.0, 0.3, 1.1, 5.0)))) for _ in range(count)
                ),
                throughput_rps=tuple((draw(st.sampled_from((0.0, 0.61, 1.0, 2.5))),) for _ in range(count)),
                headroom_ratio=draw(st.sampled_from((0.0, 0.1, 0.5))),
                survive=draw(st.sampled_from((0, 0, 1, 2))),
                min_total_replicas=draw(st.sampled_from((0, 0, 4))),
            ),
        ),
        start_cost_usd=draw(st.sampled_from((0.0, 0.4))),
        stop_cost_usd=draw(st.sampled_from((0.0, 0.4, 3.0))),
    )


def with_a_useless_variant(problem: GpuMixInstance) -> GpuMixInstance:
    """Say the same with a second variant that may have no replicas, so that a program is solved."""
    (model,) = problem.models
    (variant,) = model.variants
    useless = replace(variant, min_replicas=0, max_replicas=0, current_replicas=None)
    wider = replace(
        model,
        variants=(variant, useless),
        throughput_rps=tuple((row[0], row[0]) for row in model.throughput_rps),
    )
    return replace(problem, models=(wider,))


def solved(problem: GpuMixInstance) -> GpuMixPlan:
    return solve_gpu_mix(problem, options=SolveOptions(), clock=time.monotonic)


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_it_costs_what_the_program_says(problem: GpuMixInstance) -> None:
    plan, other = solved(problem), solved(with_a_useless_variant(problem))
    event(plan.status)
    assert plan.status is other.status
    if plan.status is PlanStatus.INFEASIBLE:
        assert plan.infeasible is not None
        assert other.infeasible is not None
        assert plan.infeasible.kind == other.infeasible.kind
        return
    assert check_gpu_mix(problem, plan) == ()
    assert plan.objective == pytest.approx(other.objective, rel=1e-6, abs=1e-9)
    assert plan.lower_bound_usd_per_h == pytest.approx(plan.objective, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "replicas"), [(3.0, 3), (3.0 + 1e-7, 4), (3.0 + 1e-12, 3), (1e-300, 1), (0.0, 0)]
)
def test_a_load_at_the_edge_of_whole_replicas(rate: float, replicas: int) -> None:
    problem = GpuMixInstance(
        name="edge",
        gpu_types=(GpuOffer(name="A", price_usd_per_h=1.0),),
        models=(
            ModelDemand(
                name="m",
                variants=(Variant(gpu_type="A", gpus_per_replica=1),),
                buckets=(RequestBucket(rate_rps=rate),),
                throughput_rps=((1.0,),),
            ),
        ),
    )
    assert solved(problem).replicas == ((replicas,),)
