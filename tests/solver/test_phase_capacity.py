"""What pools of one phase sustain: queueing limits, economies of scale, and sums that stay exact."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, parse_slo
from solver.performance.capacity import CapacityLimit
from solver.performance.iteration import EngineSettings
from solver.performance.phase_capacity import pool_capacity, predicted_at, slo_of_role
from solver.performance.protocol import ReplicaKind


@dataclass(frozen=True)
class Steps:
    """A replica with straight lines: seconds per prompt token, per sequence and per cached token."""

    token_s: float = 1e-4
    floor_s: float = 0.01
    sequence_s: float = 1e-4
    kv_s: float = 1e-7
    kv_tokens: int = 1_000_000

    @property
    def kind(self) -> ReplicaKind:
        return ReplicaKind(model="m", gpu_type="g", gpus_per_replica=1, precision="bf16")

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        return self.token_s * new_tokens + 0.0 * context_tokens

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        return self.floor_s + self.sequence_s * sequences + self.kv_s * kv_tokens if sequences else 0.0

    def prefill_w(self, new_tokens: float) -> float:
        return 400.0 + 0.0 * new_tokens

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        return 300.0 + 0.0 * (sequences + kv_tokens)

    def idle_w(self) -> float:
        return 100.0

    def kv_capacity_tokens(self) -> int:
        return self.kv_tokens


def bucket(rate_rps: float = 1.0, prompt: float = 1000.0, output: float = 101.0) -> RequestBucket:
    return RequestBucket(rate_rps=rate_rps, input_tokens=prompt, output_tokens=output)


def test_each_role_answers_for_its_own_metrics() -> None:
    slo = parse_slo("ttft_p99=1,tbt_p99=0.05,e2e_p50=10")
    assert str(slo_of_role(slo, Role.PREFILL)) == "ttft_p99=1"
    assert str(slo_of_role(slo, Role.DECODE)) == "tbt_p99=0.05,e2e_p50=10"
    assert slo_of_role(slo, Role.BOTH) == slo


def test_prefill_without_targets_is_bound_by_work() -> None:
    """1000 tokens take 0.1 s: no more than 10 a second, whatever the pool."""
    found = pool_capacity(Steps(), [bucket()], Slo(), role=Role.PREFILL, replicas=3)
    assert found.rate_rps == pytest.approx(10.0, rel=0.01)
    assert found.limit is CapacityLimit.COMPUTE


def test_one_server_waits_as_pollaczek_and_khinchine_say() -> None:
    """M/D/1: mean wait rho x / (2 (1 - rho)); half the prompts wait no longer than ln(2 rho) of the mean of those."""
    engine = EngineSettings(max_batch=64, max_batch_tokens=1000)  # no two prompts share an iteration
    rate = pool_capacity(Steps(), [bucket()], parse_slo("ttft_p90=0.4"), engine, role=Role.PREFILL).rate_rps
    rho = rate * 0.1
    wait_of_the_waiting = 0.1 / (2.0 * (1.0 - rho))
    assert rho * 2.718281828 ** (-0.3 / wait_of_the_waiting) == pytest.approx(0.1, rel=0.01)


def test_larger_prefill_pools_do_more_per_replica() -> None:
    slo = parse_slo("ttft_p99=0.3")
    rates = [
        pool_capacity(Steps(), [bucket()], slo, role=Role.PREFILL, replicas=c).rate_rps for c in (1, 2, 8, 64)
    ]
    assert rates == sorted(rates)
    assert rates[-1] > 2.0 * rates[0]


def test_decode_is_bound_by_tbt_and_does_not_see_prompts() -> None:
    slo = parse_slo("tbt_p99=0.03,ttft_p99=0.000001")
    quick = pool_capacity(Steps(token_s=1e-9), [bucket()], slo, role=Role.DECODE, replicas=4)
    slow = pool_capacity(Steps(token_s=1.0), [bucket()], slo, role=Role.DECODE, replicas=4)
    assert quick.rate_rps == slow.rate_rps
    assert quick.limit is CapacityLimit.TBT
    # 30 ms = 10 ms + n (0.1 ms + 1e-7 x 1050): n just below 97.6 on average.
    assert 0.85 * 97.6 < quick.rate_rps * 100.0 * 0.03 <= 97.6


def test_decode_is_bound_by_memory() -> None:
    slo = parse_slo("tbt_p99=1")
    found = pool_capacity(Steps(kv_tokens=20_000), [bucket()], slo, role=Role.DECODE, replicas=8)
    assert found.limit is CapacityLimit.KV_MEMORY
    assert found.rate_rps * 100.0 * 0.013 < 20_000 / 1101
    tiny = pool_capacity(Steps(kv_tokens=500), [bucket()], slo, role=Role.DECODE)
    assert tiny.rate_rps == 0.0
    assert tiny.limit is CapacityLimit.KV_MEMORY


@pytest.mark.parametrize(
    ("role", "slo"),
    [(Role.PREFILL, "ttft_p50=0.05"), (Role.DECODE, "tbt_p50=0.005"), (Role.BOTH, "tbt_p50=0.005")],
)
def test_what_nobody_can_do_is_zero(role: Role, slo: str) -> None:
    found = pool_capacity(Steps(), [bucket()], parse_slo(slo), role=role)
    assert found.rate_rps == 0.0
    assert found.throughput_rps == (0.0,)


def test_relative_targets_compare_with_the_reference() -> None:
    slo = parse_slo("ttft_p99=3x")
    twice = pool_capacity(Steps(), [bucket()], slo, role=Role.PREFILL, reference=Steps(token_s=2e-4))
    same = pool_capacity(Steps(), [bucket()], parse_slo("ttft_p99=0.6"), role=Role.PREFILL)
    assert twice.rate_rps == pytest.approx(same.rate_rps)
    with pytest.raises(ValueError, match="reference"):
        pool_capacity(Steps(), [bucket()], slo, role=Role.PREFILL)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 10.0), st.floats(10.0, 6000.0), st.floats(2.0, 800.0)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(list(Role)),
    st.integers(1, 40),
)
def test_loads_add_up_to_one_at_the_mixture(
    sizes: list[tuple[float, float, float]], role: Role, replicas: int
) -> None:
    buckets = [bucket(*size) for size in sizes]
    found = pool_capacity(
        Steps(), buckets, parse_slo("ttft_p90=2,tbt_p90=0.04"), role=role, replicas=replicas
    )
    total = sum(b.rate_rps for b in buckets)
    load = sum(
        b.rate_rps / total * found.rate_rps / t for b, t in zip(buckets, found.throughput_rps, strict=True)
    )
    assert load == pytest.approx(1.0, rel=1e-6)
    looser = pool_capacity(
        Steps(), buckets, parse_slo("ttft_p90=4,tbt_p90=0.08"), role=role, replicas=replicas
    )
    assert looser.rate_rps >= found.rate_rps * (1.0 - 1e-6)


def test_a_mixture_needs_traffic_and_a_pool_a_replica() -> None:
    with pytest.raises(ValueError, match="traffic"):
        pool_capacity(Steps(), [bucket(0.0)], Slo(), role=Role.DECODE)
    with pytest.raises(ValueError, match="replica"):
        pool_capacity(Steps(), [bucket()], Slo(), role=Role.DECODE, replicas=0)


@pytest.mark.parametrize(("role", "text"), [(Role.PREFILL, "ttft_p90=0.7"), (Role.DECODE, "tbt_p90=0.03")])
def test_a_prediction_is_the_capacity_read_the_other_way(role: Role, text: str) -> None:
    slo = parse_slo(text)
    most = pool_capacity(Steps(), [bucket()], slo, role=role, replicas=5).rate_rps
    (target,) = slo.targets
    told = predicted_at(Steps(), [bucket(5.0 * most)], target, role=role, replicas=5)
    assert told == pytest.approx(target.limit_s, rel=0.02)
    assert predicted_at(Steps(), [bucket(1e6)], target, role=role, replicas=5) is None
    (other,) = parse_slo("tbt_p90=1x" if role is Role.PREFILL else "ttft_p90=1x").targets
    assert predicted_at(Steps(), [bucket()], other, role=role) is None
