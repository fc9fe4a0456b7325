"""Whether a fleet kept up: queues whose answer is known."""

import numpy as np
import pytest

from simulator.record import RunRecord, Saturation
from simulator.saturation import saturation_of
from solver.domain.trace import Floats, Requests
from tests.simulator.records import record_of, requests_of

STABLE, BACKLOGGED, OVERLOADED = Saturation.STABLE, Saturation.BACKLOGGED, Saturation.OVERLOADED


def queue(arrival_s: Floats, service_s: Floats, own_s: float = 0.0) -> tuple[RunRecord, Requests]:
    """One server, first come first served (Lindley); ``own_s`` seconds more that hold nobody up."""
    wait_s, free_s = np.zeros(len(arrival_s)), 0.0
    for k, (at_s, takes_s) in enumerate(zip(arrival_s.tolist(), service_s.tolist(), strict=True)):
        wait_s[k] = max(0.0, free_s - at_s)
        free_s = at_s + wait_s[k] + takes_s
    record = record_of(wait_s + service_s + own_s, queue_s=wait_s, arrival_s=arrival_s)
    return record, requests_of(arrival_s)


def poisson(load: float, *, total: int = 4000, seed: int = 1) -> tuple[Floats, Floats]:
    """Arrivals at ``load`` times what a server with exponential services of mean 1 s can do."""
    random = np.random.default_rng(seed)
    return np.cumsum(random.exponential(1.0 / load, total)), random.exponential(1.0, total)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("load", "expected"), [(0.3, STABLE), (0.5, STABLE), (1.2, OVERLOADED), (3.0, OVERLOADED)]
)
def test_the_load_of_a_queue_is_told(load: float, expected: Saturation, seed: int) -> None:
    # Ten seconds of service that hold nobody up: the usual shape, queueing for a prompt before a long answer.
    assert saturation_of(*queue(*poisson(load, seed=seed), own_s=10.0)) is expected


def test_a_burst_that_is_worked_off_is_a_backlog() -> None:
    arrival_s, service_s = poisson(0.3)
    burst = np.sort(np.concatenate((arrival_s, np.linspace(5000.0, 5100.0, 800))))
    record, requests = queue(burst, np.concatenate((service_s, np.ones(800))))
    assert saturation_of(record, requests) is BACKLOGGED


def test_a_fleet_that_only_fills_up_is_stable() -> None:
    # Nobody waits; requests stay longer than the trace is long, so that their number only grows.
    arrival_s = np.linspace(0.0, 60.0, 600)
    stay_s = np.random.default_rng(3).uniform(50.0, 100.0, 600)
    assert saturation_of(record_of(stay_s, arrival_s=arrival_s), requests_of(arrival_s)) is STABLE


def test_a_run_that_was_broken_off_is_overloaded() -> None:
    record = record_of([1.0, np.nan], stopped_early=True)
    assert saturation_of(record, requests_of([0, 1])) is OVERLOADED


def test_all_requests_at_once_are_a_backlog() -> None:
    arrival_s = np.zeros(400)
    assert saturation_of(*queue(arrival_s, np.ones(400))) is BACKLOGGED


@pytest.mark.parametrize("total", [1, 2, 3, 7, 20])
def test_too_few_requests_to_tell_count_as_stable(total: int) -> None:
    assert saturation_of(*queue(*poisson(5.0, total=total))) is STABLE
