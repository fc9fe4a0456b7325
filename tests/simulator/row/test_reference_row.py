"""The reference row: stored server powers, and the figures of the goals' table, where the shared data are at hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from simulator.row.model import REFERENCE_PLANT
from simulator.row.plant import Plant
from simulator.row.request_file import read_row_requests
from simulator.row.run import reference_row, run_row, run_uncapped
from solver.power.policies.polca import Polca
from solver.power.policies.stepwise import Stepwise

DATA = Path(__file__).parents[3] / "../shared/data/power"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/power is not present")
PROTOTYPE = Stepwise(
    target_ratio=0.975, lower_mhz=1200.0, raise_mhz=300.0, raise_least_mhz=2.0, dead_ratio=0.005
)


@needs_data
def test_stored_server_powers() -> None:
    requests = read_row_requests(DATA / "requests_row60_8h.csv.gz")
    assert (requests.count, requests.duration_s) == (274_603, 28_800)
    plant = Plant(
        row=reference_row(60), model=REFERENCE_PLANT, requests=requests, seconds=28_800, start_theta=0.6
    )
    means = []
    for t in range(10, 28_801, 10):
        plant.advance_to(t)
        means.append(plant.server_mean_w(10))
    with gzip.open(DATA / "server_power_day_10s.csv.gz") as file:
        stored = np.loadtxt(file, delimiter=",", skiprows=1)
    start = int(np.searchsorted(stored[:, 0], 39_600))
    apart = np.abs(np.array(means) - stored[start : start + 2880, 1:])
    for server in (0, 17, 43):
        assert apart[24:, server].max() <= 2.0
        assert apart[180:, server].max() <= 0.5
    assert apart[24:, 44].max() <= 3.0


@needs_data
@pytest.mark.parametrize(
    ("servers", "over_s", "low", "high"),
    [
        (52, 28, (0.13, 0.34), (0.10, 0.61)),
        (54, 73, (8.54, 11.49), (0.75, 1.58)),
        (56, 50, (30.2, 34.5), (1.07, 2.91)),
    ],
)
def test_prototype_on_eight_hours(
    servers: int, over_s: int, low: tuple[float, float], high: tuple[float, float]
) -> None:
    requests = read_row_requests(DATA / "requests_row60_8h.csv.gz")
    row = reference_row(servers)
    uncapped = run_uncapped(requests, row)
    run = run_row(requests, row, PROTOTYPE)
    increase = run.increase(uncapped)
    assert run.seconds_over_budget == over_s
    assert [100 * x for x in increase["low"]] == pytest.approx(low, abs=0.06)
    assert [100 * x for x in increase["high"]] == pytest.approx(high, abs=0.06)
    assert (run.brakes, run.trips, run.guarantee_lost_s) == (0, 0, 0.0)
    assert run.completed == run.offered
    assert uncapped.seconds_over_budget == {52: 50, 54: 2632, 56: 16650}[servers]


@needs_data
def test_polca_storms_on_a_seed() -> None:
    requests = read_row_requests(DATA / "requests_row60_4h_seed13.csv.gz")
    calm = run_row(requests, reference_row(52, clock_latency_s=40.0), Polca())
    increase = calm.increase(run_uncapped(requests, reference_row(52)))
    assert [round(100 * x) for x in increase["low"]] == [112, 88]
    assert (calm.seconds_over_budget, calm.brakes) == (0, 0)
    storm = run_row(requests, reference_row(56, clock_latency_s=40.0), Polca())
    assert (storm.seconds_over_budget, storm.brakes, storm.trips) == (1664, 185, 0)
    assert storm.completed < storm.offered
