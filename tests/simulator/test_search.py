"""The searches against brute force on monotone questions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.search import (
    Verdict,
    interval_90,
    largest_rate,
    largest_step,
    pareto,
    smallest_splits,
)


@given(limit=st.floats(0.01, 1e4), start=st.floats(0.05, 5e3), tolerance=st.floats(0.001, 0.2))
def test_largest_rate_brackets_the_limit(limit: float, start: float, tolerance: float) -> None:
    asked: list[float] = []

    def judge(rate: float) -> Verdict:
        asked.append(rate)
        return Verdict(met=rate <= limit, limiting=None if rate <= limit else "ttft_p99")

    found = largest_rate(judge, start=start, tolerance_ratio=tolerance, smallest=1e-3, largest=1e6)
    assert found.runs == len(asked)
    assert found.first_missed is not None
    assert found.rate <= limit < found.first_missed <= found.rate * (1 + tolerance) * (1 + 1e-12)
    assert found.limiting == "ttft_p99"


def test_largest_rate_that_nothing_meets_is_zero() -> None:
    found = largest_rate(lambda _: Verdict(met=False, limiting="e2e_p50"), start=8.0, smallest=1.0)
    assert (found.rate, found.first_missed, found.limiting) == (0.0, 1.0, "e2e_p50")


def test_largest_rate_that_everything_meets_says_so() -> None:
    found = largest_rate(lambda _: Verdict(met=True), start=8.0, largest=64.0)
    assert (found.rate, found.first_missed) == (64.0, None)


@given(limit=st.integers(-1, 30), step=st.sampled_from([0.1, 2.0, 10.0]))
def test_largest_step_equals_trying_all(limit: int, step: float) -> None:
    def judge(rate: float) -> Verdict:
        return Verdict(met=round((rate - 5.0) / step) <= limit)

    found = largest_step(judge, first=5.0, last=5.0 + 20 * step, step=step)
    met = [5.0 + step * k for k in range(21) if k <= limit]
    assert found.rate == (met[-1] if met else 0.0)
    assert (found.first_missed is None) == (limit >= 20)
    assert found.runs <= math.ceil(math.log2(22)) + 1


@given(
    needs=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6),
    width=st.integers(1, 12),
    height=st.integers(1, 12),
)
def test_smallest_splits_equal_brute_force(needs: list[tuple[int, int]], width: int, height: int) -> None:
    def judge(a: int, b: int) -> Verdict:
        return Verdict(met=any(a >= x and b >= y for x, y in needs))

    corners, runs = smallest_splits(judge, largest_first=width, largest_second=height)
    met = [(a, b) for a in range(1, width + 1) for b in range(1, height + 1) if judge(a, b).met]
    smallest = [p for p in met if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in met)]
    assert sorted(corners) == sorted(smallest)
    assert runs <= width + height


@given(points=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_pareto_front_is_what_nobody_beats(points: list[tuple[int, int, int]]) -> None:
    front = pareto(points)
    kept = {points[k] for k in front}
    assert len(kept) == len(front)
    for point in points:
        beaten = any(q != point and all(a <= b for a, b in zip(q, point, strict=True)) for q in points)
        assert (point in kept) == (not beaten)


def test_interval_is_that_of_students_t() -> None:
    low, high = interval_90(10.0, [9.0, 10.0, 11.0]) or (0.0, 0.0)
    assert low == pytest.approx(10.0 - 2.920)
    assert high == pytest.approx(10.0 + 2.920)
    assert interval_90(10.0, [9.0]) is None
    low, high = interval_90(1.0, [0.0] * 10 + [5.0] * 10) or (0.0, 0.0)
    assert low == 0.0
    assert high == pytest.approx(1.0 + 1.645 * math.sqrt(20 * 6.25 / 19))
