"""Fleets on the public reference problems, whose optima two other solvers proved."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from solver.backends.choose import BackendName
from solver.check.fleet import check_fleet
from solver.domain.gpu_mix import PlanStatus
from solver.phases.solve import FleetOptions, solve_fleet
from telemetry.sources.fleet_file import read_fleet_instance

PATHS = sorted(Path("../shared/data/fleet/instances").glob("*.json"))

pytestmark = pytest.mark.skipif(not PATHS, reason="../shared/data is not present")


@pytest.mark.parametrize("backend", ["highs", "cbc"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_optimum_is_proved_or_the_reason_named(path: Path, backend: BackendName) -> None:
    expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["expected"]
    instance = read_fleet_instance(path)
    plan = solve_fleet(instance, FleetOptions(backend=backend, explain=backend == "highs"), time.monotonic)
    if plan.infeasible is not None or backend == "highs":
        assert check_fleet(instance, plan) == ()
    if expected["status"] == "infeasible":
        assert plan.status is PlanStatus.INFEASIBLE
        if plan.infeasible is not None:
            assert plan.infeasible.kind == expected["infeasible_kind"]
            assert list(plan.infeasible.feasible_when_dropped) == expected["feasible_when_dropped"]
        return
    assert plan.status is PlanStatus.OPTIMAL
    assert plan.objective == pytest.approx(expected["objective_value"], rel=1e-6)
    assert plan.bound == pytest.approx(expected["proved_bound"], rel=1e-6)
    if expected["role_both_only"] == "infeasible":
        assert plan.both_only_status is PlanStatus.INFEASIBLE
        assert plan.worth_splitting
    else:
        assert plan.both_only_objective == pytest.approx(expected["role_both_only"], rel=1e-6)
        assert plan.worth_splitting == (expected["gain_of_splitting_ratio"] > 1)
