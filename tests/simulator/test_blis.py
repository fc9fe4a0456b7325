"""The general engine under BLIS's rules, request by request against that peer's recorded run."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from simulator.blis import simulate_blis
from simulator.engine.run import simulate
from simulator.fleet import Fleet, Pool, Router, RouterKind, Scheduler
from simulator.step_models import instance_kind
from solver.domain.trace import Requests
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models

SIM = Path(__file__).resolve().parents[3] / "shared" / "data" / "sim"
MODEL = "meta-llama/Llama-3.1-70B"
KIND = ReplicaKind(model=MODEL, gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16")


def physics() -> TrainedPhysics:
    return TrainedPhysics(roofline=Roofline.of(KIND, read_gpus()["H100-SXM"], read_models()[MODEL]))


def recorded() -> tuple[Requests, dict[str, np.ndarray]]:
    trace, times = SIM / "golden" / "traces" / "rr_conv_70_120s.csv", SIM / "golden_blis"
    if not trace.exists():
        pytest.skip("needs ../shared/data/sim/golden_blis")
    with trace.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:2000]
    with gzip.open(times / "rr8.per_request.csv.gz", "rt", encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    columns = {
        name: np.array([float(row[name]) for row in told]) for name in ("ttft_s", "e2e_s", "itl_mean_s")
    }
    requests = Requests(
        arrival_s=np.array([float(row["arrival_s"]) for row in rows]),
        prompt_tokens=np.array([int(row["prompt_tokens"]) for row in rows]),
        output_tokens=np.array([int(row["output_tokens"]) for row in rows]),
    )
    return requests, columns


def test_every_request_equals_the_recorded_run() -> None:
    requests, told = recorded()
    record = simulate_blis(physics(), requests, instances=8)
    assert record.completed().all()
    assert np.max(np.abs(record.ttft_s - told["ttft_s"])) < 1e-9
    assert np.max(np.abs(record.e2e_s - told["e2e_s"])) < 1e-9
    gaps_s = (record.e2e_s - 777e-6 - record.ttft_s) / (requests.output_tokens - 1)
    assert np.max(np.abs(gaps_s - told["itl_mean_s"])) < 1e-8  # recorded to 1e-8


def test_closed_forms_stay_within_one_percent_of_the_recorded_run() -> None:
    requests, told = recorded()
    shape = read_models()[MODEL]
    kind = instance_kind("i", physics(), shape, max_batch=256, longest_step_tokens=2048)
    fleet = Fleet(
        models=(MODEL,),
        kinds=(kind,),
        pools=(Pool(name="p", kind=0, count=8),),
        scheduler=Scheduler(max_batch=256),
        router=Router(kind=RouterKind.ROUND_ROBIN),
    )
    record = simulate(fleet, requests)
    found = {
        "ttft_s": record.ttft_s,
        "e2e_s": record.e2e_s,
        "itl_mean_s": (record.e2e_s - record.ttft_s) / (requests.output_tokens - 1),
    }
    for name, values in found.items():
        assert np.mean(values) == pytest.approx(np.mean(told[name]), rel=0.01)
        for percentile in (50, 90, 99):
            expected = np.percentile(told[name], percentile)
            assert np.percentile(values, percentile) == pytest.approx(expected, rel=0.01), (name, percentile)


def test_times_are_whole_microseconds() -> None:
    requests = Requests(
        arrival_s=np.array([0.1, 0.1000005, 0.3]),
        prompt_tokens=np.array([100, 5000, 7]),
        output_tokens=np.array([3, 1, 9]),
    )
    record = simulate_blis(physics(), requests, instances=2)
    assert record.completed().all()
    for seconds in (record.ttft_s, record.e2e_s):
        assert np.allclose(seconds * 1e6, np.rint(seconds * 1e6), rtol=0, atol=1e-6)
