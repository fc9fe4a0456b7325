"""Laws that any right simulator obeys: queueing formulas, conservation of tokens and joules, repeatability."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from simulator.engine import run
from simulator.engine.run import simulate
from simulator.fleet import EventKind, Fleet, Links, QueueOrder, Role, Router, RouterKind, Scheduler
from simulator.record import RequestStatus, RunRecord
from solver.domain.trace import Ints, Requests
from tests.simulator.random_fleets import Scenario, scenarios
from tests.simulator.record_digests import digest
from tests.simulator.simple_fleets import DECODE_S, PROMPT_TOKEN_S, fleet, kind, pool, table


def run_scenario(scenario: Scenario, **options: Any) -> RunRecord:
    return simulate(
        scenario.fleet,
        scenario.requests,
        model_of_request=scenario.models,
        priority_of_request=scenario.priorities,
        seed=scenario.seed,
        **options,
    )


def poisson(random: np.random.Generator, rate_rps: float, prompts: Ints, outputs: Ints) -> Requests:
    arrival_s = np.cumsum(random.exponential(1.0 / rate_rps, len(prompts)))
    return Requests(arrival_s=arrival_s, prompt_tokens=prompts, output_tokens=outputs)


# -- queueing theory --------------------------------------------------------------------------------------------------

ONE_PROMPT_AT_A_TIME = Scheduler(max_batch=1, max_batch_tokens=2048, chunked_prefill=False)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.75])
def test_one_server_with_constant_service(load: float) -> None:
    """M/D/1: mean wait rho / (2 mu (1 - rho))."""
    total = 600_000
    service_s = 100 * PROMPT_TOKEN_S
    asked = poisson(
        np.random.default_rng(3), load / service_s, np.full(total, 100), np.ones(total, dtype=np.int64)
    )
    record = simulate(fleet(scheduler=ONE_PROMPT_AT_A_TIME), asked)
    assert record.queue_s.mean() == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.02)
    assert np.allclose(record.e2e_s - record.queue_s, service_s, atol=1e-9, rtol=0)


def test_one_server_with_any_service() -> None:
    """M/G/1 (Pollaczek-Khinchine): mean wait lambda E[S^2] / (2 (1 - rho))."""
    total = 600_000
    random = np.random.default_rng(5)
    prompts = random.choice([20, 60, 400], size=total, p=[0.5, 0.4, 0.1])
    service_s = prompts * PROMPT_TOKEN_S
    rate_rps = 0.6 / service_s.mean()
    record = simulate(
        fleet(scheduler=ONE_PROMPT_AT_A_TIME),
        poisson(random, rate_rps, prompts, np.ones(total, dtype=np.int64)),
    )
    expected_s = rate_rps * (service_s**2).mean() / (2 * (1 - rate_rps * service_s.mean()))
    assert record.queue_s.mean() == pytest.approx(expected_s, rel=0.02)


def erlang_c(servers: int, offered: float) -> float:
    """Chance that an arrival waits in M/M/c."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (2, 0.7), (8, 0.8)])
def test_a_batch_of_constant_pace_is_that_many_servers(servers: int, load: float) -> None:
    """M/M/c: c places in the batch, iterations of one length, answers of geometric length (nearly exponential)."""
    total, mean_tokens = 600_000, 1000
    random = np.random.default_rng(7)
    tokens = random.geometric(1.0 / mean_tokens, total)
    # an iteration takes 10 ms whether it decodes, takes a prompt of one token, or both
    built = fleet(
        kinds=(kind(1_000_000, step_table=table(prefill_s=np.arange(2) * DECODE_S)),),
        scheduler=Scheduler(max_batch=servers, max_batch_tokens=2048),
    )
    service_s = tokens.mean() * DECODE_S
    rate_rps = load * servers / service_s
    record = simulate(built, poisson(random, rate_rps, np.ones(total, dtype=np.int64), tokens))
    expected_s = erlang_c(servers, load * servers) * service_s / (servers * (1 - load))
    # who finds a free place still waits for the end of the iteration, half of one on average
    assert record.queue_s.mean() == pytest.approx(expected_s, rel=0.02, abs=DECODE_S / 2)


def test_littles_law() -> None:
    """Requests present, from the state of the instances, against rate times mean time in the system."""
    random = np.random.default_rng(9)
    total = 20_000
    asked = poisson(random, 60.0, random.integers(1, 200, total), random.integers(1, 60, total))
    for pools in ((pool(count=6),), (pool(Role.PREFILL, count=2), pool(Role.DECODE, count=4))):
        built = fleet(*pools, kinds=(kind(1500),), links=Links(bytes_per_s=1e5))
        record = simulate(built, asked)
        assert np.all(record.status == RequestStatus.COMPLETED)
        present = record.occupancy_request_s.sum() / record.horizon_s
        assert present == pytest.approx(total / record.horizon_s * record.e2e_s.mean(), rel=1e-9)
        assert present > 2.0


# -- conservation -----------------------------------------------------------------------------------------------------


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(scenarios(most_requests=60))
def test_joules_and_time_add_up(scenario: Scenario) -> None:
    record = run_scenario(scenario, series_bins=16)
    series = record.series
    assume(not np.any(record.status == RequestStatus.INCOMPLETE))
    assert record.energy_j.sum() + record.idle_j.sum() == pytest.approx(
        record.energy_j_of_instance.sum(), rel=1e-9
    )
    assert np.all(record.busy_s <= record.up_s * (1 + 1e-12) + 1e-12)
    assert np.all(record.up_s <= record.horizon_s * (1 + 1e-12))
    for name, values, of_pool in (
        ("energy", record.energy_j_of_instance, series.power_w),
        ("busy", record.busy_s, series.busy),
        ("up", record.up_s, series.up),
        ("present", record.occupancy_request_s, series.running + series.waiting),
    ):
        for p in range(len(scenario.fleet.pools)):
            total = values[record.pool_of_instance == p].sum()
            assert of_pool[p].sum() * series.bin_s == pytest.approx(total, rel=1e-9, abs=1e-9), name
    at_once = (record.status == RequestStatus.REJECTED) & (record.prefill_instance < 0)
    if np.all(at_once | record.completed()):
        assert record.occupancy_request_s.sum() == pytest.approx(np.nansum(record.e2e_s), rel=1e-9, abs=1e-9)


@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(scenarios(most_requests=60))
def test_tokens_add_up(scenario: Scenario) -> None:
    record = run_scenario(scenario)
    served = record.prefill_instance >= 0
    assume(np.all(record.completed() == served))
    asked = scenario.requests
    assert record.output_tokens_done.sum() == asked.output_tokens[served].sum()
    processed = record.prompt_tokens_done.sum() + record.cached_tokens
    wanted = asked.prompt_tokens[served].sum()
    loses_kv = {EventKind.DOWN, EventKind.DRAIN} & {event.kind for event in scenario.fleet.events}
    if loses_kv or record.preemptions.any():
        assert processed >= wanted
    else:
        assert processed == wanted


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_times_are_in_order(scenario: Scenario) -> None:
    record = run_scenario(scenario)
    done = record.completed()
    assert np.all(record.queue_s[done] >= 0.0)
    assert np.all(record.ttft_s[done] >= record.queue_s[done])
    assert np.all(record.e2e_s[done] >= record.ttft_s[done])
    assert np.all(np.isnan(record.e2e_s[~done]))
    one = done & (scenario.requests.output_tokens == 1)
    assert np.array_equal(record.e2e_s[one], record.ttft_s[one])


# -- repeatability ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_same_inputs_same_bytes(scenario: Scenario) -> None:
    assert digest(run_scenario(scenario)) == digest(run_scenario(scenario))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios(most_requests=60))
def test_pauses_change_nothing(scenario: Scenario) -> None:
    """For more slots (from one on) and to tell of the progress."""
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "FIRST_SLOTS", 1)
        paused = run_scenario(scenario, on_progress=seen.append)
    assert digest(paused) == digest(run_scenario(scenario))
    assert seen == sorted(set(seen))


def loaded(seed: int, router: RouterKind) -> tuple[Fleet, Requests, Ints]:
    random = np.random.default_rng(seed)
    asked = poisson(random, 40.0, random.integers(1, 300, 30_000), random.integers(1, 80, 30_000))
    built = fleet(
        pool(Role.PREFILL, count=4),
        pool(Role.DECODE, count=4),
        kinds=(kind(1500),),
        links=Links(bytes_per_s=1e5),
        router=Router(kind=router),
    )
    built = dataclasses.replace(
        built, scheduler=dataclasses.replace(built.scheduler, order=QueueOrder.PRIORITY)
    )
    return built, asked, random.integers(0, 3, 30_000)


def test_runs_side_by_side_do_not_meet() -> None:
    """Kernels let other threads run; every run has its own state."""
    cases = [loaded(seed, router) for seed, router in enumerate(RouterKind)]

    def one(at: int) -> str:
        built, asked, priorities = cases[at]
        return digest(simulate(built, asked, priority_of_request=priorities, seed=at))

    alone = [one(at) for at in range(len(cases))]
    assert len(set(alone)) == len(cases)
    with ThreadPoolExecutor(max_workers=4) as threads:
        assert list(threads.map(one, list(range(len(cases))) * 2)) == alone * 2
