"""The generated fleet problems are what they say: reproducible, of a realistic shape, servable."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.fleet import bench_fleet
from benchmarks.fleet_instances import CAP_RATIOS, TENSOR_PARALLEL, TWELVE_GPUS, random_fleet
from benchmarks.results import Setting
from solver.domain.fleet import FleetGoal, Role
from solver.phases.prepare import unservable_buckets


def test_the_same_seed_draws_the_same_problem() -> None:
    assert random_fleet(3, types=2, buckets=6) == random_fleet(3, types=2, buckets=6)
    assert random_fleet(3, types=2, buckets=6) != random_fleet(4, types=2, buckets=6)


def test_the_full_problem_has_every_config_and_size() -> None:
    instance = random_fleet(0)
    (model,) = instance.models
    assert len(model.configs) == len(TWELVE_GPUS) * len(TENSOR_PARALLEL) * len(Role) * len(CAP_RATIOS) == 576
    assert len(model.buckets) == 60
    assert unservable_buckets(model) == ()
    assert model.rate_rps > 0
    assert random_fleet(0, goal=FleetGoal.RATE).budgets.cost_usd_per_h is not None


def test_more_gpus_and_more_watts_never_serve_less() -> None:
    (model,) = random_fleet(1).models
    table = np.array(model.throughput_rps)
    place = {
        (c.gpu_type, c.gpus_per_replica, c.role, c.power_cap_w or np.inf): index
        for index, c in enumerate(model.configs)
    }
    caps = sorted({key[3] for key in place if key[0] == "H100"})
    for role in Role:
        for size in TENSOR_PARALLEL:
            columns = [table[:, place["H100", size, role, cap]] for cap in caps]
            assert all((more >= less).all() for less, more in pairwise(columns))
        columns = [table[:, place["H100", size, role, np.inf]] for size in TENSOR_PARALLEL]
        assert all((more >= less).all() for less, more in pairwise(columns))


def test_the_benchmark_meets_its_own_format(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    small = [random_fleet(seed, goal=goal, types=1, buckets=4) for seed in (0,) for goal in FleetGoal]
    by_goal = {instance.goal: instance for instance in small}
    monkeypatch.setattr(
        "benchmarks.fleet.random_fleet", lambda seed, goal: replace(by_goal[goal], name=f"small-{seed}")
    )
    rows = list(bench_fleet(Setting(data=tmp_path, n_instances=1, quick=True)))  # type: ignore[arg-type]
    assert {row.met for row in rows} <= {True, None}
    assert any("worst gap" in row.name for row in rows)
