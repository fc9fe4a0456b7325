"""The window over a service's samples: the largest rate counts, missing is never zero, a fall needs a whole window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.operator.traffic import Traffic, Window, stated
from solver.domain.gpu_mix import RequestBucket

MISSING = Traffic(fresh=False, reason="Stale", message="no sample")


def sample(*rates: float) -> Traffic:
    buckets = tuple(
        RequestBucket(rate_rps=rate, input_tokens=100.0 * (i + 1), output_tokens=10.0)
        for i, rate in enumerate(rates)
    )
    return Traffic(buckets=buckets, rate_rps=sum(rates), fresh=True, reason="Fresh")


def planned(traffic: Traffic) -> float:
    return sum(bucket.rate_rps for bucket in traffic.buckets)


@given(st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=30), st.integers(1, 10))
def test_the_largest_rate_of_the_window_is_planned_for(rates: list[float], length: int) -> None:
    window = Window(window_s=float(length))
    for second, rate in enumerate(rates):
        traffic = window.add(sample(rate), now_s=float(second), gap_s=3.0)
        within = rates[max(0, second - length) : second + 1]
        assert planned(traffic) == pytest.approx(max(within), rel=0.01)
        assert traffic.rate_rps == rate
        assert traffic.fresh
        assert traffic.settled == (second >= length)


@given(
    st.lists(
        st.one_of(st.none(), st.floats(0.0, 100.0).map(lambda rate: float(f"{rate:.3g}"))),
        min_size=1,
        max_size=40,
    )
)
def test_missing_samples_never_lower_what_is_planned_for(samples: list[float | None]) -> None:
    window = Window(window_s=5.0)
    before = 0.0
    for second, rate in enumerate(samples):
        traffic = window.add(MISSING if rate is None else sample(rate), now_s=float(second), gap_s=3.0)
        if rate is None:
            assert not traffic.fresh
            assert not traffic.settled
            assert planned(traffic) == before
        before = planned(traffic)


def test_before_the_first_sample_nothing_is_known() -> None:
    traffic = Window(window_s=60.0).add(MISSING, now_s=0.0, gap_s=45.0)
    assert traffic.buckets == ()
    assert traffic.rate_rps is None
    assert (traffic.reason, traffic.message) == ("Stale", "no sample")


def test_a_fall_is_settled_only_after_a_whole_window_without_a_gap() -> None:
    window = Window(window_s=60.0)
    settled = {}
    for now in (*range(0, 50, 10), *range(100, 190, 10)):
        settled[now] = window.add(sample(1.0), now_s=float(now), gap_s=30.0).settled
    assert [now for now, whole in settled.items() if whole] == [160, 170, 180]


def test_a_sample_that_is_missing_starts_the_window_anew() -> None:
    window = Window(window_s=30.0)
    for now in range(0, 40, 10):
        last = window.add(sample(1.0), now_s=float(now), gap_s=30.0)
    assert last.settled
    window.add(MISSING, now_s=40.0, gap_s=30.0)
    settled = [window.add(sample(1.0), now_s=float(now), gap_s=30.0).settled for now in range(50, 100, 10)]
    assert settled == [False, False, False, True, True]


def test_a_rise_keeps_the_present_mix_of_sizes() -> None:
    window = Window(window_s=60.0)
    window.add(sample(8.0, 2.0), now_s=0.0, gap_s=30.0)
    traffic = window.add(sample(1.0, 1.0), now_s=10.0, gap_s=30.0)
    assert [bucket.rate_rps for bucket in traffic.buckets] == [5.0, 5.0]


def test_silence_after_traffic_keeps_the_last_sizes_until_the_window_is_over() -> None:
    window = Window(window_s=30.0)
    window.add(sample(3.0, 1.0), now_s=0.0, gap_s=30.0)
    for now in (10.0, 20.0, 30.0):
        traffic = window.add(sample(0.0, 0.0), now_s=now, gap_s=30.0)
        assert [bucket.rate_rps for bucket in traffic.buckets] == [3.0, 1.0]
    traffic = window.add(sample(0.0, 0.0), now_s=40.0, gap_s=30.0)
    assert planned(traffic) == 0.0
    assert traffic.settled


def test_a_rise_from_silence_counts_at_once() -> None:
    window = Window(window_s=30.0)
    window.add(sample(0.0), now_s=0.0, gap_s=30.0)
    assert planned(window.add(sample(7.0), now_s=10.0, gap_s=30.0)) == 7.0


def test_plans_need_not_change_for_less_than_three_digits() -> None:
    window = Window(window_s=0.5)
    first = window.add(sample(5.001), now_s=0.0, gap_s=30.0)
    second = window.add(sample(4.999), now_s=10.0, gap_s=30.0)
    assert planned(first) == planned(second) == 5.0


def test_what_is_stated_is_always_fresh_and_settled() -> None:
    traffic = stated([RequestBucket(rate_rps=2.0), RequestBucket(rate_rps=1.5)], at="2026-01-01T00:00:00Z")
    assert (traffic.rate_rps, traffic.fresh, traffic.settled, traffic.stated) == (3.5, True, True, True)
