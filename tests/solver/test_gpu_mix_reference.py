"""The solver of GPU-type selection on the public reference problems, whose optima two other solvers proved."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from solver.backends.choose import BackendName
from solver.check.gpu_mix import check_gpu_mix
from solver.domain.gpu_mix import PlanStatus
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from telemetry.sources.gpu_mix_file import read_gpu_mix_instance

INSTANCES = Path("../shared/data/gputype/instances")
PATHS = sorted(INSTANCES.glob("*.json"))

pytestmark = pytest.mark.skipif(not PATHS, reason="../shared/data is not present")


def expected_of(path: Path) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["expected"]
    return expected


def paths_with(status: str) -> list[Any]:
    chosen = [path for path in PATHS if expected_of(path)["status"] == status]
    return [pytest.param(path, id=path.stem) for path in chosen]


@pytest.mark.parametrize("backend", ["highs", "cbc"])
@pytest.mark.parametrize("path", paths_with("optimal"))
def test_the_optimum_is_reached_and_proved(path: Path, backend: BackendName) -> None:
    instance = read_gpu_mix_instance(path)
    plan = solve_gpu_mix(instance, options=SolveOptions(backend=backend), clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    assert plan.status is PlanStatus.OPTIMAL
    assert plan.objective == pytest.approx(expected_of(path)["cost_per_hour"], rel=1e-6)


@pytest.mark.parametrize("path", paths_with("infeasible"))
def test_the_infeasible_are_told_why(path: Path) -> None:
    instance, expected = read_gpu_mix_instance(path), expected_of(path)
    plan = solve_gpu_mix(instance, options=SolveOptions(), clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    # Version 1 files name no kind: with limits on GPUs only, that is what is left.
    kind = expected.get("infeasible_kind", "gpu-limit")
    assert plan.infeasible.kind in {kind, *expected.get("feasible_when_dropped", ())}


@pytest.mark.parametrize("path", [param for param in paths_with("bounded") if "p14" in str(param.id)])
def test_what_nobody_solved_is_bounded_from_both_sides(path: Path) -> None:
    """The other bounded problem, of 100 models, belongs to the benchmark."""
    instance, expected = read_gpu_mix_instance(path), expected_of(path)
    plan = solve_gpu_mix(instance, options=SolveOptions(time_limit_s=3.0), clock=time.monotonic)
    assert check_gpu_mix(instance, plan) == ()
    assert plan.objective is not None
    assert plan.lower_bound_usd_per_h is not None
    assert plan.lower_bound_usd_per_h <= expected["best_known_cost_per_hour"] * (1 + 1e-6)
    assert plan.objective >= expected["proved_lower_bound"] * (1 - 1e-6)
