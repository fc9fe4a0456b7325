"""Explanations: what binds and at what price, the best single type, the next best set, minimal reasons."""

import time
from dataclasses import replace
from itertools import count

import pytest

from solver.check.gpu_mix import check_gpu_mix
from solver.domain.errors import InputError
from solver.domain.gpu_mix import (
    BindingLimit,
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    ModelDemand,
    PlanStatus,
    RequestBucket,
    Variant,
)
from solver.gpu_mix import explain
from solver.gpu_mix.cost_step import cost_step_usd
from solver.gpu_mix.prepare import serve_all
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.pools.grid import next_step
from tests.solver.fleets import fleet

OPTIONS = SolveOptions()


def model(name: str, rate_rps: float, throughput_rps: tuple[float, ...], **more: float) -> ModelDemand:
    """Serve one bucket on one GPU of A, B, ... each."""
    variants = tuple(
        Variant(gpu_type=gpu, gpus_per_replica=1) for gpu, _ in zip("ABC", throughput_rps, strict=False)
    )
    return ModelDemand(
        name=name,
        variants=variants,
        buckets=(RequestBucket(rate_rps=rate_rps, input_tokens=100, output_tokens=10),),
        throughput_rps=(throughput_rps,),
        **more,  # type: ignore[arg-type]
    )


def instance_of(*models: ModelDemand, available: tuple[int | None, ...] = (None, None)) -> GpuMixInstance:
    prices = (1.0, 3.0)
    return GpuMixInstance(
        name="hand-made",
        gpu_types=tuple(
            GpuOffer(name=name, price_usd_per_h=price, available=stock, power_w=100.0)
            for name, price, stock in zip("AB", prices, available, strict=True)
        ),
        models=models,
    )


def planned(instance: GpuMixInstance) -> GpuMixPlan:
    plan = solve_gpu_mix(instance, options=OPTIONS, clock=time.monotonic)
    plan = explain.explain_plan(instance, plan, options=OPTIONS, clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    return plan


def test_a_scarce_type_has_the_price_of_doing_without_it() -> None:
    plan = planned(instance_of(model("m", 4.0, (1.0, 1.0)), available=(3, None)))
    assert plan.objective == pytest.approx(6.0)  # 3 A at 1, 1 B at 3
    assert plan.binding == (BindingLimit(kind="gpu-limit", name="A", price_usd_per_unit=2.0, step_units=1.0),)


def test_a_limit_that_acts_in_lumps_is_priced_over_the_lump() -> None:
    demand = model("m", 4.0, (1.0, 1.0))
    pairs = tuple(replace(v, gpus_per_replica=2 if v.gpu_type == "A" else 1) for v in demand.variants)
    plan = planned(instance_of(replace(demand, variants=pairs), available=(4, None)))
    (limit,) = plan.binding
    assert limit.step_units == 2.0
    assert limit.price_usd_per_unit == pytest.approx((3.0 - 2.0) / 2)


def test_limits_that_do_not_matter_are_not_named() -> None:
    assert planned(instance_of(model("m", 4.0, (1.0, 1.0)), available=(4, 9))).binding == ()


def test_surviving_and_budget_are_priced_too() -> None:
    base = instance_of(model("m", 2.0, (1.0, 1.0), survive=1))
    (limit,) = planned(base).binding
    assert (limit.kind, limit.name) == ("survive", "m")
    assert limit.price_usd_per_unit == pytest.approx(1.0)
    running = replace(model("m", 2.0, (1.0, 1.0)))
    variants = tuple(replace(v, current_replicas=n) for v, n in zip(running.variants, (0, 2), strict=True))
    tight = replace(
        instance_of(replace(running, variants=variants)),
        start_cost_usd=9.0,
        stop_cost_usd=0.0,
        budget_usd_per_h=5.0,
    )
    plan = planned(tight)  # keeping 2 B costs 6 an hour, more than the budget
    assert plan.objective == pytest.approx(1.0 + 3.0 + 9.0)
    assert [limit.kind for limit in plan.binding] == ["budget"]


def test_best_single_type_and_second_best_are_what_enumeration_says() -> None:
    plan = planned(instance_of(model("m", 4.5, (1.0, 4.0))))
    # 2 B carry all for 6; A alone takes 5 for 5; 1 B and 1 A carry 5 for 4.
    assert plan.objective == pytest.approx(4.0)
    assert plan.best_single_type is not None
    assert plan.best_single_type.gpu_type == "A"
    assert plan.best_single_type.cost_usd_per_h == pytest.approx(5.0)
    assert plan.second_best is not None
    assert plan.second_best.gpu_types == ("A",)
    assert plan.second_best.cost_usd_per_h == pytest.approx(5.0)
    assert plan.second_best.proved


def test_no_single_type_when_none_serves_everything() -> None:
    demand = ModelDemand(
        name="m",
        variants=(Variant(gpu_type="A", gpus_per_replica=1), Variant(gpu_type="B", gpus_per_replica=1)),
        buckets=(RequestBucket(rate_rps=1.0), RequestBucket(rate_rps=1.0)),
        throughput_rps=((2.0, 0.0), (0.0, 2.0)),
    )
    plan = planned(instance_of(demand))
    assert plan.best_single_type is None
    assert plan.second_best is None


def test_large_problems_are_explained_from_nearby(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "WHOLE_UP_TO_INTEGERS", 0)
    instance = fleet(4, seed=4, types=4, sizes=(1, 2))
    plan = planned(instance)
    assert plan.objective is not None
    if plan.second_best is not None:
        assert not plan.second_best.proved
        assert plan.second_best.cost_usd_per_h >= plan.objective * (1 - 1e-6)
    scarce = [offer.name for offer in instance.gpu_types if offer.available is not None]
    assert [limit.name for limit in plan.binding] == scarce
    assert all(limit.price_usd_per_unit > 0 and limit.step_units == 0 for limit in plan.binding)


def test_the_smallest_set_of_models_that_clash_is_named() -> None:
    instance = instance_of(
        model("small", 1.0, (1.0, 1.0)),
        model("large", 9.0, (1.0, 1.0)),
        model("tiny", 0.5, (1.0, 1.0)),
        available=(4, 3),
    )
    plan = solve_gpu_mix(instance, options=OPTIONS, clock=time.monotonic)
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    assert plan.infeasible.kind == "gpu-limit"
    assert plan.infeasible.models == ("large",)
    assert plan.infeasible.gpu_types == ("A", "B")
    assert "large" in plan.infeasible.message


def test_models_that_clash_only_together_are_both_named() -> None:
    instance = instance_of(
        model("one", 3.0, (1.0, 0.0)),
        model("other", 3.0, (1.0, 0.0)),
        model("elsewhere", 3.0, (0.0, 1.0)),
        available=(5, 5),
    )
    plan = solve_gpu_mix(instance, options=OPTIONS, clock=time.monotonic)
    assert plan.infeasible is not None
    assert plan.infeasible.models == ("one", "other")
    assert plan.infeasible.gpu_types == ("A",)


def test_a_large_fleet_without_enough_gpus_is_infeasible_with_a_reason() -> None:
    instance = fleet(25, seed=21)
    short = replace(instance, gpu_types=tuple(replace(offer, available=1) for offer in instance.gpu_types))
    plan = solve_gpu_mix(short, options=OPTIONS, clock=time.monotonic)
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    assert plan.infeasible.kind == "gpu-limit"
    assert len(plan.infeasible.models) < 25


def test_costs_lie_on_the_step_and_bounds_rise_to_it() -> None:
    instance = instance_of(model("m", 4.5, (1.0, 4.0)))
    assert cost_step_usd(instance, serve_all(instance)) == pytest.approx(1.0)
    cents = replace(
        instance,
        gpu_types=tuple(replace(o, price_usd_per_h=o.price_usd_per_h + 0.01) for o in instance.gpu_types),
    )
    assert cost_step_usd(cents, serve_all(cents)) == pytest.approx(0.01)
    odd = replace(
        instance,
        gpu_types=tuple(replace(o, price_usd_per_h=o.price_usd_per_h / 3) for o in instance.gpu_types),
    )
    assert cost_step_usd(odd, serve_all(odd)) in (0.0, pytest.approx(1.0 / 3))
    assert next_step(4.991, 0.01) == pytest.approx(5.0)
    assert next_step(5.0, 0.01) == pytest.approx(5.0)
    assert next_step(4.991, 0.0) == 4.991


def test_a_plan_that_is_not_the_best_gets_no_prices_of_limits() -> None:
    instance = fleet(3, seed=4, types=4, sizes=(1, 2))
    options = replace(OPTIONS, gap_ratio=0.5, method="direct")
    plan = solve_gpu_mix(instance, options=options, clock=time.monotonic)
    if plan.status is PlanStatus.OPTIMAL:
        plan = replace(plan, status=PlanStatus.FEASIBLE)
    told = explain.explain_plan(instance, plan, options=OPTIONS, clock=time.monotonic)
    assert told.binding == ()
    assert told.second_best is None


def test_both_backends_explain_alike() -> None:
    instance = instance_of(model("m", 4.5, (1.0, 4.0)), available=(3, None))
    told = []
    for backend in ("highs", "cbc"):
        options = replace(OPTIONS, backend=backend)
        plan = solve_gpu_mix(instance, options=options, clock=time.monotonic)
        told.append(explain.explain_plan(instance, plan, options=options, clock=time.monotonic))
    assert told[0].best_single_type == told[1].best_single_type
    assert told[0].second_best == told[1].second_best
    assert told[0].binding == told[1].binding


def test_what_cannot_be_counted_is_bad_input() -> None:
    with pytest.raises(InputError, match="replicas"):
        solve_gpu_mix(instance_of(model("m", 1e12, (1.0, 1.0))), options=OPTIONS, clock=time.monotonic)
    with pytest.raises(InputError, match="survive"):
        solve_gpu_mix(
            instance_of(model("m", 1.0, (1.0, 1.0), survive=20_000)), options=OPTIONS, clock=time.monotonic
        )


def test_the_time_limit_holds_for_models_apart_and_for_losses() -> None:
    """A clock that runs a second at each look: every loop must look at it."""
    apart = fleet(8, seed=5, types=4, sizes=(1, 2))
    apart = replace(apart, gpu_types=tuple(replace(offer, available=None) for offer in apart.gpu_types))
    losses = instance_of(model("m", 30.0, (1.0, 1.3), survive=8))
    for instance in (apart, losses):
        plan = solve_gpu_mix(
            instance, options=replace(OPTIONS, time_limit_s=4.0), clock=count(0.0, 1.0).__next__
        )
        assert plan.status is PlanStatus.TIMED_OUT
