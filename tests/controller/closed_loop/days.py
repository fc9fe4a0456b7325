"""Small days for tests of the closed loop: a scenario with two measured pools, requests at a course of rates."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from controller.closed_loop.record import PlannedRun
from controller.closed_loop.run import plan_over_time
from controller.cluster_fleet import ClusterCatalogues, catalogues_for
from simulator.scenario import Scenario
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Requests

VALUES: dict[str, Any] = {
    "schema": "scenario/1",
    "models": [{"name": "m", "model": "meta-llama/Llama-2-70b-hf"}],
    "pools": [
        {"name": "h100", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 2},
        {"name": "a100", "gpu_type": "A100-80-SXM", "gpus_per_instance": 8, "count": 0},
    ],
    "slo": "ttft_p99=2.0,tbt_p99=0.1",
    "scheduler": {"max_batch": 256},
}


SPLIT = [
    {"name": "whole", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 2},
    {"name": "in", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 0, "role": "prefill"},
    {"name": "out", "gpu_type": "A100-80-SXM", "gpus_per_instance": 8, "count": 0, "role": "decode"},
    {"name": "fast", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 0, "role": "decode"},
]
"""Pools of all roles."""
APART = [{**pool, "count": 2} for pool in SPLIT[1:]]
"""Pools that serve one phase only."""


def scenario(**planner: Any) -> Scenario:
    """Two pools and a planner; ``power``, ``pools`` and ``slo`` are taken out of the settings."""
    others: dict[str, Any] = {
        name: planner.pop(name) for name in ("power", "pools", "slo", "kv") if name in planner
    }
    values = {**VALUES, **others, "planner": planner}
    return scenario_of(ScenarioDocument(values=values, source="s.yaml", folder=Path()))


@cache
def catalogues() -> ClusterCatalogues:
    """Read once."""
    return catalogues_for(scenario())


def requests(rates: Sequence[float], *, window_s: float = 600.0, seed: int = 0) -> Requests:
    """Poisson arrivals at these rates, of two sizes."""
    draw = np.random.default_rng(seed)
    parts = [
        k * window_s + np.sort(draw.uniform(0.0, window_s, draw.poisson(rate * window_s)))
        for k, rate in enumerate(rates)
    ]
    arrival_s = np.concatenate(parts)
    short = draw.random(len(arrival_s)) < 0.5
    return Requests(
        arrival_s=arrival_s,
        prompt_tokens=np.where(short, 400, 1600),
        output_tokens=np.where(short, 120, 250),
    )


def history(rates: Sequence[float], *, window_s: float = 600.0) -> RateWindows:
    """Windows that end at 0."""
    return RateWindows(
        name="m",
        start_s=-len(rates) * window_s,
        window_s=window_s,
        rate_rps=np.array(rates, dtype=np.float64),
    )


SIZES = (
    RequestBucket(rate_rps=0.5, input_tokens=400.0, output_tokens=120.0),
    RequestBucket(rate_rps=0.5, input_tokens=1600.0, output_tokens=250.0),
)


def planned(given: Requests, before: RateWindows | None = None, **planner: Any) -> PlannedRun:
    """Decide for these requests; with a history their sizes are known beforehand."""
    return plan_over_time(
        scenario(**planner),
        catalogues(),
        given,
        np.zeros(len(given), dtype=np.int64),
        history=before,
        known_sizes=() if before is None else SIZES,
    )
