"""Column generation against the one-program method, against the other backend, and against its own bound."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from solver.check.gpu_mix import check_gpu_mix
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix import columns
from solver.gpu_mix.direct import solve_direct
from solver.gpu_mix.prepare import serve_all
from solver.gpu_mix.pricing import PricingTask, price_model
from solver.gpu_mix.relaxation import relaxed_prices
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.gpu_mix.variations import without_stock_limits
from tests.solver.fleets import fleet
from tests.solver.strategies import gpu_mix_instances

EXACT = SolveOptions(gap_ratio=0.0, time_limit_s=60.0)


def solve(instance: GpuMixInstance, options: SolveOptions = EXACT) -> GpuMixPlan:
    plan = solve_gpu_mix(instance, options=options, clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    return plan


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instance=gpu_mix_instances())
def test_columns_agree_with_one_program(instance: GpuMixInstance) -> None:
    direct = solve(instance, replace(EXACT, method="direct"))
    other = solve(instance, replace(EXACT, method="columns"))
    assert other.status == direct.status
    if direct.objective is not None:
        assert other.objective == pytest.approx(direct.objective, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_backends_agree_on_medium_fleets(seed: int) -> None:
    instance = fleet(3, seed=seed, types=4, sizes=(1, 2))
    costs = {
        backend: solve(instance, replace(EXACT, backend=backend, method="direct")).objective
        for backend in ("highs", "cbc")
    }
    assert costs["highs"] == pytest.approx(costs["cbc"], rel=1e-6)


def unlimited(instance: GpuMixInstance) -> GpuMixInstance:
    return without_stock_limits(instance, {offer.name for offer in instance.gpu_types})


def search_of(instance: GpuMixInstance) -> columns.ColumnSearch:
    """Run column generation alone, without the whole program that settles small problems afterwards."""
    deadline = Deadline.after(60.0, time.monotonic)
    models = serve_all(instance)
    start, prices = relaxed_prices(instance, models, deadline=deadline, backend="highs")
    search = columns.ColumnSearch(instance, models, deadline, 0.0, "highs", None, 0)
    search.overrun_usd = abs(start.objective)
    columns._generate(search, prices)
    search.combine(10.0)
    return search


@pytest.mark.parametrize("seed", [4, 6, 8])
def test_the_lagrangian_bound_and_the_answer_enclose_the_optimum(seed: int) -> None:
    instance = fleet(4, seed=seed, types=4, sizes=(1, 2))
    optimum = solve_direct(
        instance,
        serve_all(instance),
        deadline=Deadline.after(60.0, time.monotonic),
        gap_ratio=0.0,
        backend="highs",
    )
    search = search_of(instance)
    relaxed, _ = relaxed_prices(
        instance, serve_all(instance), deadline=Deadline.after(60.0, time.monotonic), backend="highs"
    )
    assert search.bound <= optimum.objective * (1 + 1e-7)
    assert search.best_cost >= optimum.objective * (1 - 1e-7)
    assert search.bound >= relaxed.objective * (1 - 1e-4)


def test_limits_really_bind_in_the_fleets() -> None:
    instance = fleet(4, seed=4, types=4, sizes=(1, 2))
    assert (solve(unlimited(instance)).objective or 0) < (solve(instance).objective or 0) - 1e-6


def test_a_large_fleet_is_solved_to_a_small_proved_gap() -> None:
    instance = fleet(25, seed=11)
    plan = solve(instance, SolveOptions(gap_ratio=0.01, time_limit_s=60.0))
    assert plan.method == "columns"
    assert plan.gap_ratio is not None
    assert plan.gap_ratio <= 0.01


def test_processes_and_repetition_change_nothing() -> None:
    instance = fleet(12, seed=12)
    options = SolveOptions(gap_ratio=0.01, time_limit_s=60.0)
    alone = solve(instance, options)
    assert solve(instance, options) == alone
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert solve_gpu_mix(instance, options=options, clock=time.monotonic, executor=executor) == alone


def test_a_short_time_limit_is_kept_and_told() -> None:
    instance = fleet(25, seed=13)
    ticks = iter(np.arange(0.0, 1e6, 0.05))
    plan = solve_gpu_mix(instance, options=SolveOptions(time_limit_s=5.0), clock=lambda: float(next(ticks)))
    assert plan.status in (PlanStatus.FEASIBLE, PlanStatus.TIMED_OUT)
    assert check_gpu_mix(instance, plan) == ()


def test_no_time_at_all_is_timed_out_with_a_bound_or_none() -> None:
    plan = solve_gpu_mix(fleet(25, seed=14), options=SolveOptions(time_limit_s=1e-9), clock=time.monotonic)
    assert plan.status in (PlanStatus.TIMED_OUT, PlanStatus.FEASIBLE)


def test_models_that_share_nothing_are_solved_apart() -> None:
    instance = fleet(6, seed=15, types=4, sizes=(1, 2))
    free = unlimited(instance)
    apart = solve(free)
    assert apart.method == "independent"
    together = solve(free, replace(EXACT, method="direct"))
    assert apart.objective == pytest.approx(together.objective, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dominated_variants_are_never_missed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instance = unlimited(fleet(1, seed=seed, types=3, sizes=(1, 2)))
    (model,) = serve_all(instance)
    prices = np.round(rng.uniform(0.5, 9.0, len(model.variants)), 2)
    task = PricingTask(
        instance=instance,
        model=model,
        prices=prices,
        gap_ratio=0.0,
        time_limit_s=30.0,
        deadline=Deadline.after(30.0, time.monotonic),
        backend="highs",
    )
    assert price_model(task).bound == pytest.approx(_cheapest_by_program(instance, prices), rel=1e-6)


def _cheapest_by_program(instance: GpuMixInstance, prices: NDArray[np.float64]) -> float:
    """Price every variant through a GPU type of its own, so that no variant is left out."""
    (model,) = instance.models
    offers = tuple(
        replace(
            instance.offer(variant.gpu_type),
            name=f"own{c}",
            available=None,
            price_usd_per_h=float(prices[c]) / variant.gpus_per_replica,
        )
        for c, variant in enumerate(model.variants)
    )
    variants = tuple(replace(variant, gpu_type=f"own{c}") for c, variant in enumerate(model.variants))
    own = replace(instance, gpu_types=offers, models=(replace(model, variants=variants),))
    answer = solve_direct(
        own, serve_all(own), deadline=Deadline.after(30.0, time.monotonic), gap_ratio=0.0, backend="cbc"
    )
    return answer.objective
