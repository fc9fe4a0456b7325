"""Requests counted by window and size, and the busiest stretch: chunk by chunk, the same wherever chunks begin."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.bucket_windows import BucketWindows, bucket_windows, nearest_bucket
from solver.domain.busiest import BusiestStretch
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.trace import Requests

BUCKETS = (
    RequestBucket(rate_rps=1.0, input_tokens=100.0, output_tokens=10.0),
    RequestBucket(rate_rps=1.0, input_tokens=5000.0, output_tokens=10.0),
)


def requests(arrival_s: list[float], prompts: list[int] | None = None) -> Requests:
    prompt = np.array(prompts or [100] * len(arrival_s))
    return Requests(
        arrival_s=np.array(arrival_s), prompt_tokens=prompt, output_tokens=np.full(len(arrival_s), 10)
    )


def chunked(whole: Requests, cuts: list[int]) -> list[Requests]:
    ends = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    return [whole.take(slice(a, b)) for a, b in itertools.pairwise(ends) if b > a]


def test_requests_are_counted_by_window_and_nearest_size() -> None:
    found = bucket_windows(
        [requests([5.0, 6.0], [90, 4000]), requests([14.9, 15.0, 31.0], [120, 6000, 1])],
        BUCKETS,
        window_s=10.0,
        name="t",
    )
    assert found.rates_rps.tolist() == [[0.2, 0.1], [0.0, 0.1]]  # the third window is not covered in full
    assert (found.start_s, found.window_s, len(found)) == (5.0, 10.0, 2)
    assert found.total.rate_rps.tolist() == pytest.approx([0.3, 0.1])
    assert found.weighed(np.array([1.0, 10.0])).rate_rps.tolist() == pytest.approx([1.2, 1.0])
    with pytest.raises(ValueError, match="read-only"):
        found.rates_rps[0, 0] = 1.0


def test_a_window_that_nothing_fills_is_told() -> None:
    with pytest.raises(InputError, match="no whole window of 60 s in 2 s"):
        bucket_windows([requests([0.0, 2.0])], BUCKETS, window_s=60.0, name="t")
    with pytest.raises(InputError, match="a longer --window-s"):
        bucket_windows([requests([0.0, 1e9])], BUCKETS, window_s=1.0, name="t")


arrivals = st.lists(st.integers(0, 50), min_size=2, max_size=60).map(
    lambda gaps: np.cumsum(gaps).astype(float)
)
cuts = st.lists(st.integers(0, 60), max_size=5)


@settings(max_examples=60, deadline=None)
@given(arrival_s=arrivals, cuts=cuts, number=st.integers(1, 70))
def test_the_busiest_stretch_is_that_of_the_whole(
    arrival_s: np.ndarray, cuts: list[int], number: int
) -> None:
    whole = requests(arrival_s.tolist(), list(range(1, len(arrival_s) + 1)))
    stretch = BusiestStretch(number=number)
    passed = list(stretch.watching(chunked(whole, cuts)))
    assert sum(map(len, passed)) == len(whole)
    count = min(number, len(whole))
    spans = whole.arrival_s[count - 1 :] - whole.arrival_s[: len(whole) - count + 1]
    start = int(np.argmin(spans))
    expected = whole.prompt_tokens[start : start + count]
    assert stretch.requests.prompt_tokens.tolist() == expected.tolist()


@settings(max_examples=30, deadline=None)
@given(arrival_s=arrivals, cuts=cuts)
def test_counts_do_not_depend_on_where_chunks_begin(arrival_s: np.ndarray, cuts: list[int]) -> None:
    whole = requests([*(arrival_s + 3).tolist(), arrival_s[-1] + 100.0])
    once = bucket_windows([whole], BUCKETS, window_s=7.0, name="t")
    parts = bucket_windows(chunked(whole, cuts), BUCKETS, window_s=7.0, name="t")
    assert np.array_equal(once.rates_rps, parts.rates_rps)


def test_nothing_seen_is_an_error_and_unknown_sizes_are_one_token() -> None:
    with pytest.raises(ValueError, match="no request"):
        _ = BusiestStretch(number=3).requests
    assert nearest_bucket((RequestBucket(rate_rps=1.0),), requests([0.0])).tolist() == [0]
    assert len(BucketWindows(name="x", start_s=0.0, window_s=1.0, rates_rps=np.zeros((4, 2)))) == 4
