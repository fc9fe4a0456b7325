"""The pace at which a performance model carries what was measured."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.trace_planning import read_catalogues
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import parse_slo
from solver.performance.capacity import max_mixed_rate_rps
from solver.performance.pace import LARGEST_FACTOR, Paced, pace_that_carries
from solver.performance.phase_capacity import pool_capacity
from solver.performance.protocol import ReplicaKind

MODEL = read_catalogues().book.performance(
    ReplicaKind(model="meta-llama/Llama-3.1-8B", gpu_type="A100-80-SXM", gpus_per_replica=1, precision="bf16")
)
SLO = parse_slo("ttft_p99=1.0,tbt_p99=0.05")
SIZES = (
    RequestBucket(rate_rps=0.7, input_tokens=512.0, output_tokens=128.0),
    RequestBucket(rate_rps=0.3, input_tokens=1500.0, output_tokens=200.0),
)


def carried(factor: float) -> float:
    return max_mixed_rate_rps(Paced(model=MODEL, factor=factor), SIZES, SLO).rate_rps


@settings(max_examples=10, deadline=None)
@given(st.floats(0.4, 2.5))
@example(1.0)
def test_the_pace_is_found_again(factor: float) -> None:
    rate = carried(factor)
    if rate <= 0.0:
        return
    found = pace_that_carries(MODEL, SIZES, SLO, rate)
    assert found is not None
    assert carried(found) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_the_pace_of_one_phase_is_found(role: Role) -> None:
    for factor in (0.6, 1.5):
        paced = Paced(model=MODEL, factor=factor)
        rate = pool_capacity(paced, SIZES, SLO, role=role).rate_rps
        found = pace_that_carries(MODEL, SIZES, SLO, rate, role=role)
        assert found is not None
        again = pool_capacity(Paced(model=MODEL, factor=found), SIZES, SLO, role=role).rate_rps
        assert again == pytest.approx(rate, rel=0.01)


def test_a_slower_replica_carries_less() -> None:
    rates = [carried(factor) for factor in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(max_mixed_rate_rps(MODEL, SIZES, SLO).rate_rps)


def test_what_no_pace_within_bounds_carries_has_none() -> None:
    assert pace_that_carries(MODEL, SIZES, SLO, 1.05 * carried(1 / LARGEST_FACTOR)) is None
    assert pace_that_carries(MODEL, SIZES, SLO, 0.95 * carried(LARGEST_FACTOR) or 1e-6) is None


def test_only_seconds_change() -> None:
    slow = Paced(model=MODEL, factor=2.0)
    assert slow.kind == MODEL.kind
    assert slow.prefill_s(100.0, context_tokens=50.0) == 2 * MODEL.prefill_s(100.0, context_tokens=50.0)
    assert slow.decode_iteration_s(8.0, 4000.0) == 2 * MODEL.decode_iteration_s(8.0, 4000.0)
    assert slow.prefill_w(100.0) == MODEL.prefill_w(100.0)
    assert slow.decode_w(8.0, 4000.0) == MODEL.decode_w(8.0, 4000.0)
    assert slow.idle_w() == MODEL.idle_w()
    assert slow.kv_capacity_tokens() == MODEL.kv_capacity_tokens()
