"""The compiled engine against the plain one: random small fleets, request by request."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from simulator.engine.run import simulate
from simulator.record import RunRecord
from tests.simulator.plain_engine import PlainEngine, PlainRecord, status_of
from tests.simulator.random_fleets import Scenario, scenarios


def run_both(scenario: Scenario, *, single_steps: bool = False) -> tuple[RunRecord, PlainRecord]:
    record = simulate(
        scenario.fleet,
        scenario.requests,
        model_of_request=scenario.models,
        priority_of_request=scenario.priorities,
        seed=scenario.seed,
        single_steps=single_steps,
    )
    plain = PlainEngine(
        scenario.fleet,
        scenario.requests,
        model_of_request=scenario.models,
        priority_of_request=scenario.priorities,
        seed=scenario.seed,
    ).run()
    return record, plain


def assert_same(record: RunRecord, plain: PlainRecord) -> None:
    jobs, machines = plain.jobs, plain.machines
    tolerance_s = 1e-9 * max(1.0, plain.horizon_s)
    assert record.status.tolist() == [status_of(job) for job in jobs]
    assert record.reject_reason.tolist() == [job.reason for job in jobs]
    assert record.preemptions.tolist() == [job.losses for job in jobs]
    assert record.prefill_instance.tolist() == plain.prefill_instance
    assert record.decode_instance.tolist() == plain.decode_instance
    for name in ("queue_s", "ttft_s", "e2e_s"):
        np.testing.assert_allclose(
            getattr(record, name),
            [getattr(job, name) for job in jobs],
            rtol=0,
            atol=tolerance_s,
            err_msg=name,
        )
    taken_j = [job.energy_j for job in jobs]
    np.testing.assert_allclose(record.energy_j, taken_j, rtol=1e-9, atol=1e-9)
    for name, values in (
        ("busy_s", [machine.busy_s for machine in machines]),
        ("up_s", [machine.up_s for machine in machines]),
        ("energy_j_of_instance", [machine.energy_j for machine in machines]),
        ("idle_j", [machine.idle_j for machine in machines]),
        ("occupancy_request_s", [machine.occupancy_s for machine in machines]),
        ("prompt_tokens_done", [machine.prompt_done for machine in machines]),
        ("output_tokens_done", [machine.output_done for machine in machines]),
    ):
        np.testing.assert_allclose(getattr(record, name), values, rtol=1e-9, atol=tolerance_s, err_msg=name)
    assert record.transfers == plain.transfers
    assert math.isclose(record.transfer_bytes, plain.transfer_bytes, rel_tol=1e-12)
    assert record.cached_tokens == plain.cached_tokens
    assert record.iterations == plain.iterations
    assert record.horizon_s == pytest.approx(plain.horizon_s, abs=tolerance_s)


@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_every_request_and_instance_as_in_the_plain_engine(scenario: Scenario) -> None:
    record, plain = run_both(scenario)
    assert_same(record, plain)
