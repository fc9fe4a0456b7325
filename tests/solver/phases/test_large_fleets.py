"""Fleets too large to try everything: methods and backends against each other, and the bound on the largest."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet_instances import random_fleet
from solver.backends.choose import solve_program
from solver.backends.program import Program, Solution, SolveLimits, SolveStatus
from solver.check.fleet import check_fleet
from solver.domain.fleet import FleetBudgets, FleetGoal, FleetInstance, FleetPlan
from solver.domain.gpu_mix import PlanStatus
from solver.phases import projected
from solver.phases.dominated import without_dominated
from solver.phases.prepare import serve_all
from solver.phases.solve import FleetOptions, solve_fleet


def solved(instance: FleetInstance, **options: object) -> FleetPlan:
    options = {"compare": False, "explain": False, **options}
    plan = solve_fleet(instance, FleetOptions(**options), time.monotonic)  # type: ignore[arg-type]
    assert check_fleet(instance, plan) == ()
    return plan


def medium(seed: int, goal: FleetGoal) -> FleetInstance:
    instance = random_fleet(seed, goal=goal, types=3, buckets=8, rate_rps=60.0)
    return replace(instance, gpu_types=tuple(replace(offer, available=None) for offer in instance.gpu_types))


@pytest.mark.parametrize("goal", list(FleetGoal))
def test_both_methods_prove_the_same_optimum(goal: FleetGoal) -> None:
    instance = medium(1, goal)
    one, other = (solved(instance, method=method) for method in ("direct", "projected"))
    assert one.status is other.status is PlanStatus.OPTIMAL
    assert one.objective == pytest.approx(other.objective, rel=2e-6)
    assert (one.method, other.method) == ("direct", "projected")


def test_the_other_backend_proves_the_same_optimum() -> None:
    instance = medium(2, FleetGoal.COST)
    one, other = (solved(instance, backend=backend) for backend in ("highs", "cbc"))
    assert one.objective == pytest.approx(other.objective, rel=2e-6)


def test_two_models_share_what_is_scarce() -> None:
    first, second = (random_fleet(seed, types=3, buckets=6, rate_rps=40.0) for seed in (1, 2))
    models = (first.models[0], replace(second.models[0], name="other"))
    instance = replace(first, models=models)
    apart = [solved(replace(first, models=(model,))) for model in models]
    together = solved(instance)
    assert together.status is PlanStatus.OPTIMAL
    assert all(plan.objective is not None for plan in apart)
    # Nodes may be shared, stock must be.
    assert together.objective == pytest.approx(solved(instance, method="direct").objective, rel=2e-6)


def test_the_largest_is_within_half_a_percent() -> None:
    instance = random_fleet(7)
    plan = solved(instance, gap_ratio=0.005, compare=True)
    assert plan.method == "projected"
    assert plan.gap_ratio is not None
    assert plan.gap_ratio <= 0.005
    assert plan.worth_splitting
    assert plan.both_only_objective is not None


def test_the_large_infeasible_is_settled_with_its_reason() -> None:
    instance = replace(random_fleet(7), budgets=FleetBudgets(power_w=5000.0))
    plan = solve_fleet(instance, FleetOptions(), time.monotonic)
    assert plan.infeasible is not None
    assert plan.infeasible.kind == "power-limit"
    assert check_fleet(instance, plan) == ()


def test_dominated_configs_are_left_out_and_caps_only_where_watts_do_not_matter() -> None:
    instance = random_fleet(7)
    for varied, least, most in (
        (instance, 50, 150),
        (replace(instance, goal=FleetGoal.POWER), 250, 450),
        (replace(instance, budgets=FleetBudgets(power_w=1e6)), 250, 450),
    ):
        (kept,) = without_dominated(varied, serve_all(varied))
        assert least <= len(kept.usable) <= most


@pytest.mark.parametrize("goal", [FleetGoal.COST, FleetGoal.RATE])
@pytest.mark.parametrize("cut_off_after", [0, 3, 8, 20])
def test_a_relaxation_that_is_cut_off_proves_nothing(
    goal: FleetGoal, cut_off_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = medium(1, goal)
    best = solved(instance, method="direct").objective
    assert best is not None
    calls = 0

    def interrupted(program: Program, limits: SolveLimits, **how: Any) -> Solution:
        nonlocal calls
        if how["relaxed"]:
            calls += 1
            if calls > cut_off_after:
                nothing = np.zeros(program.variables)
                return Solution(
                    status=SolveStatus.FEASIBLE,
                    objective=0.0,
                    values=nothing,
                    row_duals=np.zeros(program.rows),
                )
        return solve_program(program, limits, **how)

    monkeypatch.setattr(projected, "solve_program", interrupted)
    plan = solve_fleet(
        instance, FleetOptions(method="projected", compare=False, explain=False), time.monotonic
    )
    assert plan.status is not PlanStatus.INFEASIBLE
    if plan.bound is not None:
        worse = plan.bound >= best * (1 - 1e-6) if goal.maximised else plan.bound <= best * (1 + 1e-6)
        assert worse
    if plan.objective is not None:
        assert check_fleet(instance, plan) == ()
