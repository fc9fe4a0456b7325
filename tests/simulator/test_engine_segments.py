"""Whole segments at once against one iteration after the other: the same engine, the same results up to rounding."""

import dataclasses

import numpy as np
from hypothesis import HealthCheck, given, settings

from simulator.engine.run import simulate
from simulator.fleet import Links, Pool, Role, Scheduler
from simulator.record import RunRecord
from solver.domain.trace import Requests
from tests.simulator.random_fleets import Scenario, random_table, scenarios
from tests.simulator.simple_fleets import fleet, kind

EXACT = (
    "prefill_instance",
    "decode_instance",
    "status",
    "reject_reason",
    "preemptions",
    "prompt_tokens_done",
    "output_tokens_done",
    "backlog_at_arrivals",
)
SECONDS = ("queue_s", "ttft_s", "e2e_s", "busy_s", "up_s", "occupancy_request_s", "end_time_s", "horizon_s")
JOULES = ("energy_j", "energy_j_of_instance", "idle_j")


def run_both(scenario: Scenario) -> tuple[RunRecord, RunRecord]:
    fast, single = (
        simulate(
            scenario.fleet,
            scenario.requests,
            model_of_request=scenario.models,
            priority_of_request=scenario.priorities,
            seed=scenario.seed,
            single_steps=single_steps,
        )
        for single_steps in (False, True)
    )
    return fast, single


def assert_same(fast: RunRecord, single: RunRecord) -> None:
    for name in EXACT:
        np.testing.assert_array_equal(getattr(fast, name), getattr(single, name), err_msg=name)
    for name in SECONDS:
        np.testing.assert_allclose(
            getattr(fast, name), getattr(single, name), rtol=1e-12, atol=1e-6, err_msg=name
        )
    for name in JOULES:
        np.testing.assert_allclose(
            getattr(fast, name), getattr(single, name), rtol=1e-9, atol=1e-9, err_msg=name
        )
    assert fast.iterations == single.iterations == single.segments >= fast.segments
    assert fast.transfers == single.transfers
    assert fast.transfer_bytes == single.transfer_bytes
    assert fast.cached_tokens == single.cached_tokens
    assert fast.series.bin_s == single.series.bin_s
    for name in ("running", "waiting", "busy", "up"):
        np.testing.assert_allclose(
            getattr(fast.series, name), getattr(single.series, name), rtol=1e-6, atol=1e-3, err_msg=name
        )


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios(most_requests=80))
def test_segments_change_nothing(scenario: Scenario) -> None:
    assert_same(*run_both(scenario))


def test_thousands_of_requests_under_pressure() -> None:
    """Long answers, knots, too little memory, slow links: most iterations are skipped over."""
    random = np.random.default_rng(11)
    total = 4000
    sizes = random.integers(1, 60, total), random.integers(1, 200, total)
    asked = Requests(
        arrival_s=np.cumsum(random.exponential(0.06, total)), prompt_tokens=sizes[0], output_tokens=sizes[1]
    )
    for pools, capacity in (
        ((Pool(name="a", kind=0, count=4), Pool(name="b", kind=1, count=3)), 700),
        (
            (
                Pool(name="a", kind=0, count=2, role=Role.PREFILL),
                Pool(name="b", kind=1, count=5, role=Role.DECODE),
            ),
            600,
        ),
    ):
        kinds = tuple(
            dataclasses.replace(kind(capacity, step_table=random_table(random, knots=6)), layers=7)
            for _ in range(2)
        )
        built = fleet(
            *pools,
            kinds=kinds,
            scheduler=Scheduler(max_batch=6, max_batch_tokens=40),
            links=Links(bytes_per_s=2e4),
        )
        fast, single = run_both(Scenario(fleet=built, requests=asked, models=None, priorities=None, seed=0))
        assert_same(fast, single)
        assert fast.segments < 0.5 * fast.iterations
        assert fast.preemptions.sum() > 20
