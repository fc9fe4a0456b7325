"""The capacity estimate: known limits of queueing theory, monotone in SLO and size, and close to simulated replicas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.azure_mixtures import CODE, CONVERSATION
from benchmarks.one_instance import LinearReplica, draw_requests, largest_rate_rps, meets, simulate
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, parse_slo
from solver.performance.capacity import (
    CapacityLimit,
    MatrixRule,
    max_mixed_rate_rps,
    max_rate_rps,
    standalone_rates_rps,
    throughput_rps,
)
from solver.performance.iteration import EngineSettings, mixed_iteration_s, shared_s

REPLICA = LinearReplica()
USUAL = parse_slo("ttft_p99=2,tbt_p99=0.1")
SMALL = LinearReplica(
    floor_s=0.03, per_sequence_s=1e-4, per_kv_token_s=2.6e-7, per_prompt_token_s=2.4e-4, kv_tokens=40_000
)


def bucket(input_tokens: float, output_tokens: float, rate_rps: float = 1.0) -> RequestBucket:
    return RequestBucket(rate_rps=rate_rps, input_tokens=input_tokens, output_tokens=output_tokens)


# -- limits that are known exactly


def test_one_token_requests_under_whole_prefill_are_an_md1_queue() -> None:
    """Output 1 token, whole prompts, one at a time: M/D/1, whose 90th percentile of the wait is known."""
    service_s = 0.1
    model = LinearReplica(floor_s=0.0, per_prompt_token_s=service_s / 4096, per_pair_s=0.0)
    engine = EngineSettings(max_batch=4000, max_batch_tokens=4096, chunked_prefill=False)
    rho = 0.7
    # Exact law of the M/D/1 wait (Erlang 1909), in units of the service time.
    exact_p90 = next(t for t in np.arange(0.0, 20.0, 0.001) if _md1_wait_cdf(float(t), rho) >= 0.9)
    slo = parse_slo(f"ttft_p90={service_s * (1.0 + exact_p90):.6f}")
    estimate = max_rate_rps(model, 4096, 1, slo, engine)
    assert estimate.rate_rps * service_s == pytest.approx(rho, rel=0.05)
    assert estimate.limit is CapacityLimit.TTFT
    assert estimate.mean_batch == 0.0


def _md1_wait_cdf(t: float, rho: float) -> float:
    terms = ((rho * (k - t)) ** k / math.factorial(k) * math.exp(-rho * (k - t)) for k in range(int(t) + 1))
    return (1.0 - rho) * sum(terms)


def test_a_median_tbt_limit_gives_the_linear_law() -> None:
    """With affine iterations the mean gap is a / (1 - work), so a median limit of twice a leaves half the replica."""
    model = LinearReplica(per_prompt_token_s=1e-6, per_pair_s=0.0, kv_tokens=10**9)
    engine = EngineSettings(max_batch=1500, max_batch_tokens=8192)
    prompt, output = 200, 400
    estimate = max_rate_rps(model, prompt, output, parse_slo(f"tbt_p50={2 * model.floor_s}"), engine)
    context = prompt + output / 2
    per_gap = model.per_sequence_s + model.per_kv_token_s * context
    work = (output - 1) * per_gap + model.per_prompt_token_s * prompt
    assert estimate.rate_rps * work == pytest.approx(0.5, rel=0.03)
    assert estimate.limit is CapacityLimit.TBT
    # Little: sequences = rate x gaps x mean gap.
    stay = (output - 1) * estimate.tbt_mean_s
    assert estimate.mean_batch == pytest.approx(estimate.rate_rps * stay, rel=0.02)


def test_without_targets_only_stability_limits() -> None:
    estimate = max_rate_rps(replace(REPLICA, kv_tokens=10**7), 2000, 200, Slo())
    assert estimate.limit in (CapacityLimit.COMPUTE, CapacityLimit.BATCH)
    assert estimate.rate_rps >= max_rate_rps(REPLICA, 2000, 200, USUAL).rate_rps
    assert 0.9 < estimate.utilisation_ratio <= 1.0


def test_watts_lie_between_idle_and_prefill() -> None:
    estimate = max_rate_rps(REPLICA, 1000, 200, USUAL)
    assert estimate.watts is not None
    assert REPLICA.watts[0] < estimate.watts < REPLICA.watts[1]


# -- what cannot be served


@pytest.mark.parametrize(
    ("model", "size", "slo", "limit"),
    [
        (REPLICA, (1000, 100), "tbt_p99=0.01", CapacityLimit.TBT),
        (REPLICA, (60_000, 100), "ttft_p99=1", CapacityLimit.TTFT),
        (REPLICA, (100, 1000), "e2e_p50=5", CapacityLimit.E2E),
        (SMALL, (40_000, 100), "e2e_p50=5000", CapacityLimit.KV_MEMORY),
    ],
)
def test_unservable_is_zero_and_says_why(
    model: LinearReplica, size: tuple[int, int], slo: str, limit: CapacityLimit
) -> None:
    estimate = max_rate_rps(model, *size, parse_slo(slo))
    assert estimate.rate_rps == 0.0
    assert estimate.limit is limit


def test_scarce_memory_is_named() -> None:
    plenty = max_rate_rps(SMALL, 500, 500, parse_slo("ttft_p99=5"))
    scarce = max_rate_rps(replace(SMALL, kv_tokens=8_000), 500, 500, parse_slo("ttft_p99=5"))
    assert scarce.limit is CapacityLimit.KV_MEMORY
    assert 0.0 < scarce.rate_rps < 0.5 * plenty.rate_rps
    assert scarce.mean_batch <= 8


def test_relative_targets_need_and_use_a_reference() -> None:
    slo = parse_slo("ttft_p90=3x,tbt_p90=2x")
    with pytest.raises(ValueError, match="reference"):
        max_rate_rps(REPLICA, 1000, 200, slo)
    same = max_rate_rps(REPLICA, 1000, 200, slo, reference=REPLICA)
    slower = max_rate_rps(REPLICA, 1000, 200, slo, reference=SMALL)
    assert 0.0 < same.rate_rps < slower.rate_rps


# -- monotone

SIZES = st.tuples(st.integers(16, 8000), st.integers(2, 1000))


@settings(max_examples=40, deadline=None)
@given(
    size=SIZES,
    ttft_s=st.floats(0.2, 10),
    tbt_s=st.floats(0.02, 0.5),
    looser=st.floats(1.0, 3.0),
    percentile=st.sampled_from([50, 90, 99]),
)
def test_looser_targets_never_lower_the_rate(
    size: tuple[int, int], ttft_s: float, tbt_s: float, looser: float, percentile: int
) -> None:
    tight = max_rate_rps(REPLICA, *size, parse_slo(f"ttft_p{percentile}={ttft_s},tbt_p{percentile}={tbt_s}"))
    loose = max_rate_rps(
        REPLICA, *size, parse_slo(f"ttft_p{percentile}={ttft_s * looser},tbt_p{percentile}={tbt_s * looser}")
    )
    assert loose.rate_rps >= tight.rate_rps * (1.0 - 1e-6)
    assert math.isfinite(loose.rate_rps)


@settings(max_examples=40, deadline=None)
@given(size=SIZES, more=st.floats(1.1, 4.0), model=st.sampled_from([REPLICA, SMALL]))
def test_longer_prompts_never_raise_the_rate(
    size: tuple[int, int], more: float, model: LinearReplica
) -> None:
    slo = parse_slo("ttft_p90=3,tbt_p90=0.2")
    short = max_rate_rps(model, *size, slo).rate_rps
    long = max_rate_rps(model, size[0] * more, size[1], slo).rate_rps
    assert long <= short * 1.02  # the fit of the percentile's law moves by this much


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(1, 4000), st.integers(50, 1000)), more=st.floats(1.2, 4.0))
def test_longer_answers_never_raise_a_stable_rate(size: tuple[int, int], more: float) -> None:
    short = max_rate_rps(REPLICA, *size, Slo()).rate_rps
    long = max_rate_rps(REPLICA, size[0], size[1] * more, Slo()).rate_rps
    assert long <= short * (1.0 + 1e-3)


# -- mixtures and the throughput matrix


def test_a_mixture_of_one_size_is_that_size() -> None:
    alone = max_rate_rps(REPLICA, 700, 150, USUAL).rate_rps
    split = max_mixed_rate_rps(REPLICA, [bucket(700, 150, 0.2), bucket(700, 150, 5.0)], USUAL).rate_rps
    assert split == pytest.approx(alone, rel=1e-6)


def test_all_buckets_at_once_are_each_alone() -> None:
    together = standalone_rates_rps(REPLICA, CONVERSATION, USUAL)
    for item, estimate in list(zip(CONVERSATION, together, strict=True))[::5]:
        assert item.input_tokens is not None
        assert item.output_tokens is not None
        alone = max_rate_rps(REPLICA, item.input_tokens, item.output_tokens, USUAL)
        assert estimate.rate_rps == pytest.approx(alone.rate_rps, rel=1e-3)


@pytest.mark.parametrize("buckets", [CONVERSATION, CODE])
@pytest.mark.parametrize("model", [REPLICA, SMALL])
def test_the_mixed_rule_adds_up_on_the_mixture(
    model: LinearReplica, buckets: tuple[RequestBucket, ...]
) -> None:
    column = np.array(throughput_rps(model, buckets, USUAL, rule=MatrixRule.MIXED))
    share = np.array([item.rate_rps for item in buckets])
    linear = share.sum() / (share / column).sum()
    mixed = max_mixed_rate_rps(model, buckets, USUAL).rate_rps
    assert linear == pytest.approx(mixed, rel=1e-3)
    alone = np.array(throughput_rps(model, buckets, USUAL))
    assert ((column > 0) == (alone > 0)).all()


def test_the_standalone_rule_errs_to_the_safe_side_on_conversations() -> None:
    column = np.array(throughput_rps(REPLICA, CONVERSATION, USUAL))
    share = np.array([item.rate_rps for item in CONVERSATION])
    linear = share.sum() / (share / column).sum()
    mixed = max_mixed_rate_rps(REPLICA, CONVERSATION, USUAL).rate_rps
    assert 0.85 * mixed < linear < 1.02 * mixed


def test_buckets_without_traffic_or_chance_keep_their_standalone_rate() -> None:
    buckets = [bucket(500, 100, 1.0), bucket(900, 200, 2.0), bucket(700, 100, 0.0), bucket(60_000, 10, 1.0)]
    mixed = throughput_rps(REPLICA, buckets, USUAL, rule=MatrixRule.MIXED)
    alone = throughput_rps(REPLICA, buckets, USUAL)
    assert mixed[2] == alone[2] > 0.0
    assert mixed[3] == alone[3] == 0.0


def test_unknown_sizes_and_empty_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="input_tokens"):
        max_mixed_rate_rps(REPLICA, [RequestBucket(rate_rps=1.0)], USUAL)
    with pytest.raises(ValueError, match="at least one"):
        max_mixed_rate_rps(REPLICA, [bucket(10, 10, 0.0)], USUAL)
    with pytest.raises(ValueError, match="bucket"):
        max_mixed_rate_rps(REPLICA, [], USUAL)
    assert throughput_rps(REPLICA, [], USUAL) == ()
    with pytest.raises(ValueError, match="room"):
        EngineSettings(max_batch=512, max_batch_tokens=256)


# -- the reference simulation


def test_an_iteration_charges_the_shared_floor_once() -> None:
    shared = shared_s(REPLICA)
    both = mixed_iteration_s(
        REPLICA, new_tokens=512, context_tokens=0, sequences=10, kv_tokens=10_000, shared=shared
    )
    parts = REPLICA.prefill_s(512) + REPLICA.decode_iteration_s(10, 10_000)
    assert both == pytest.approx(parts - REPLICA.floor_s, rel=1e-3)
    alone = mixed_iteration_s(
        REPLICA, new_tokens=0, context_tokens=0, sequences=10, kv_tokens=10_000, shared=shared
    )
    assert alone == REPLICA.decode_iteration_s(10, 10_000)


def test_a_request_alone_takes_the_sum_of_its_iterations() -> None:
    requests = draw_requests([bucket(5000, 4)], 1, seed=1)
    outcome = simulate(REPLICA, requests, 1.0, EngineSettings(), warm_up_ratio=0.0)
    budget = EngineSettings().max_batch_tokens
    prefill = sum(
        REPLICA.prefill_s(min(budget, 5000 - done), context_tokens=done) for done in range(0, 5000, budget)
    )
    gaps = sum(REPLICA.decode_iteration_s(1, 5001 + k) for k in range(3))
    assert outcome.ttft_s[0] == pytest.approx(prefill)
    assert outcome.e2e_s[0] == pytest.approx(prefill + gaps)
    assert outcome.tbt_s[0] == pytest.approx(gaps / 3)


@pytest.mark.parametrize("chunked", [True, False])
def test_the_simulation_obeys_littles_law(*, chunked: bool) -> None:
    engine = EngineSettings(chunked_prefill=chunked)
    outcome = simulate(REPLICA, draw_requests(CONVERSATION, 1500, seed=3), 6.0, engine)
    assert not outcome.gave_up
    law = outcome.admitted_rps * outcome.mean_residence_s
    assert outcome.mean_in_service == pytest.approx(law, rel=1e-9)


def test_the_simulation_stops_when_overloaded() -> None:
    outcome = simulate(
        REPLICA, draw_requests([bucket(6000, 300)], 2000, seed=1), 20.0, EngineSettings(), give_up_wait_s=10.0
    )
    assert outcome.gave_up
    assert not meets(outcome, USUAL)


def test_same_seed_same_outcome() -> None:
    first, second = (
        simulate(REPLICA, draw_requests(CODE, 300, seed=5), 2.0, EngineSettings()) for _ in range(2)
    )
    assert first.e2e_s.tobytes() == second.e2e_s.tobytes()


@pytest.mark.parametrize(
    ("model", "buckets", "slo", "tolerance"),
    [
        (REPLICA, CONVERSATION, "ttft_p99=2,tbt_p99=0.1", 0.10),
        (REPLICA, CODE, "e2e_p50=8,ttft_p99=4", 0.10),
        (SMALL, (bucket(512, 128),), "ttft_p90=1,tbt_p90=0.05", 0.10),
    ],
)
def test_predicted_capacity_is_close_to_simulated(
    model: LinearReplica, buckets: tuple[RequestBucket, ...], slo: str, tolerance: float
) -> None:
    targets, engine = parse_slo(slo), EngineSettings()
    predicted = max_mixed_rate_rps(model, buckets, targets, engine).rate_rps
    simulated = largest_rate_rps(
        model, buckets, targets, engine, guess_rps=predicted, count=3000, seeds=(1, 2), tolerance=0.02
    )
    assert predicted == pytest.approx(simulated, rel=tolerance)
