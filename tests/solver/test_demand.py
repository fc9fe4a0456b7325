"""Demand: representative buckets keep the rate and the load, never understate it, and are the same every time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.demand import Demand, chosen_rate_rps, demand_of, representative_buckets
from solver.domain.errors import InputError
from solver.domain.trace import Floats, Requests
from solver.domain.trace_summary import size_histogram, summarise

AZURE = Path("../shared/data/sim/azure")
ROUNDING = 1e-9


def _loads(sizes: list[tuple[float, float]], rates: Floats) -> Floats:
    """Prefill tokens, decode tokens and KV tokens read by decode, per second."""
    prompt, output = np.array(sizes, dtype=np.float64).T
    return np.array([rates @ prompt, rates @ output, rates @ (output * (prompt + output / 2))])


def _bucket_loads(demand: Demand) -> Floats:
    return _loads(
        [(bucket.input_tokens or 0, bucket.output_tokens or 0) for bucket in demand.buckets],
        np.array([bucket.rate_rps for bucket in demand.buckets]),
    )


sizes = st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 20_000)), min_size=1, max_size=60)


@given(sizes=sizes, buckets=st.integers(1, 20), rate_rps=st.floats(0.01, 1e4))
@settings(deadline=None, max_examples=150)
def test_load_is_kept_and_never_understated(
    sizes: list[tuple[int, int]], buckets: int, rate_rps: float
) -> None:
    prompt, output = np.array(sizes).T
    demand = representative_buckets(
        size_histogram(prompt, output), largest_bucket_count=buckets, rate_rps=rate_rps
    )
    assert 1 <= len(demand.buckets) <= buckets
    assert sum(bucket.rate_rps for bucket in demand.buckets) == pytest.approx(rate_rps, rel=1e-12)
    recorded = _loads([(float(a), float(b)) for a, b in sizes], np.full(len(sizes), rate_rps / len(sizes)))
    error = _bucket_loads(demand) / recorded - 1
    assert error.min() > -ROUNDING
    assert abs(error[1]) < ROUNDING
    told = (demand.prefill_error_ratio, demand.decode_error_ratio, demand.kv_error_ratio)
    np.testing.assert_allclose(error, told, atol=ROUNDING)
    keys = [(bucket.input_tokens, bucket.output_tokens) for bucket in demand.buckets]
    assert keys == sorted(keys)


@given(sizes=sizes)
@settings(deadline=None, max_examples=50)
def test_as_many_buckets_as_sizes_are_nearly_exact(sizes: list[tuple[int, int]]) -> None:
    prompt, output = np.array(sizes).T
    demand = representative_buckets(size_histogram(prompt, output), largest_bucket_count=60, rate_rps=1.0)
    # What is left is the width of a histogram cell, an eighth of an octave on each side.
    assert demand.prefill_error_ratio < 0.005
    assert demand.kv_error_ratio < 0.005


def test_distinct_sizes_come_back_as_they_are() -> None:
    demand = representative_buckets(
        size_histogram(np.array([100, 100, 100, 1000]), np.array([10, 10, 10, 500])),
        largest_bucket_count=8,
        rate_rps=4.0,
    )
    assert [(b.rate_rps, b.input_tokens, b.output_tokens) for b in demand.buckets] == [
        (3.0, 100.0, 10.0),
        (1.0, 1000.0, 500.0),
    ]


def test_clear_groups_are_found() -> None:
    randomness = np.random.default_rng(5)
    centres = np.array([(50, 20), (50, 900), (4000, 20), (4000, 900)])
    chosen = np.repeat(np.arange(4), [400, 300, 200, 100])
    prompt, output = (centres[chosen] * randomness.uniform(0.8, 1.25, (1000, 2))).astype(np.int64).T
    demand = representative_buckets(size_histogram(prompt, output), largest_bucket_count=4, rate_rps=1000.0)
    assert [round(bucket.rate_rps) for bucket in demand.buckets] == [400, 300, 200, 100]


def test_prompt_size_stands_for_long_answers_to_long_prompts() -> None:
    demand = representative_buckets(
        size_histogram(np.array([100, 4000]), np.array([10, 400])), largest_bucket_count=1, rate_rps=1.0
    )
    (bucket,) = demand.buckets
    assert bucket.output_tokens == 205
    # One bucket of mean size (2050, 205) would read 441k KV tokens per second instead of 840k.
    assert (bucket.input_tokens or 0) > 2050
    assert demand.kv_error_ratio == pytest.approx(0, abs=ROUNDING)


def _steady(seconds: int, per_second: int) -> Requests:
    times = np.arange(seconds * per_second) / per_second
    return Requests(
        arrival_s=times, prompt_tokens=np.full(len(times), 7), output_tokens=np.full(len(times), 3)
    )


def test_rates_to_plan_for() -> None:
    calm, busy = _steady(120, 1), _steady(61, 4)
    summary = summarise([calm, busy.at_times(busy.arrival_s + 120)], windows_s=(60.0, 10.0))
    assert demand_of(summary, rate="mean").rate_rps == pytest.approx(364 / 180.75)
    assert demand_of(summary, rate="peak").rate_rps == 4.0
    assert demand_of(summary, rate=0.5).rate_rps == 1.0
    assert demand_of(summary, rate=1.0, window_s=10.0).rate_rps == 4.0
    with pytest.raises(KeyError):
        demand_of(summary, rate="peak", window_s=7.0)
    with pytest.raises(InputError, match=r"quantile 1\.5 of the rate; a share between 0 and 1"):
        demand_of(summary, rate=1.5)
    with pytest.raises(InputError, match="0 buckets; at least 1"):
        demand_of(summary, largest_bucket_count=0)


def test_a_trace_of_one_instant_has_a_peak_but_no_mean() -> None:
    requests = _steady(1, 1)
    summary = summarise([requests])
    assert chosen_rate_rps(summary, "peak", window_s=60.0) == pytest.approx(1 / 60)
    with pytest.raises(InputError, match="all requests arrive at one instant"):
        chosen_rate_rps(summary, "mean", window_s=60.0)


def test_very_many_cells_are_coarsened_without_losing_load() -> None:
    randomness = np.random.default_rng(0)
    prompt = np.exp(randomness.uniform(0, 20, 30_000)).astype(np.int64)
    output = np.exp(randomness.uniform(0, 20, 30_000)).astype(np.int64)
    histogram = size_histogram(prompt, output)
    assert len(histogram.keys) > 2048
    coarse = histogram.coarsened(2048)
    assert len(coarse.keys) <= 2048
    assert coarse.counts.sum() == 30_000
    assert coarse.kv.sum() == pytest.approx(histogram.kv.sum(), rel=1e-12)


@pytest.mark.skipif(not AZURE.is_dir(), reason="the recorded traces are not here")
@pytest.mark.parametrize("name", ["conv", "code"])
def test_sixteen_buckets_stand_for_an_azure_trace_within_half_a_percent(name: str) -> None:
    rows = np.loadtxt(
        AZURE / f"AzureLLMInferenceTrace_{name}.csv",
        delimiter=",",
        skiprows=1,
        usecols=(1, 2),
        dtype=np.int64,
    )
    histogram = size_histogram(rows[:, 0], rows[:, 1])
    demand = representative_buckets(histogram, largest_bucket_count=16, rate_rps=5.0)
    assert demand == representative_buckets(histogram, largest_bucket_count=16, rate_rps=5.0)
    assert len(demand.buckets) == 16
    assert -ROUNDING < demand.prefill_error_ratio < 0.005
    assert -ROUNDING < demand.kv_error_ratio < 0.005
    assert abs(demand.decode_error_ratio) < ROUNDING
