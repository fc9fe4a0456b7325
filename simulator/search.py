"""Searches over simulated runs: the largest rate a fleet sustains, and the smallest fleets that sustain a rate.

It exists because both questions are the same for every scenario and step model: a run answers yes or no, and yes at one
rate means yes at every lower one. The searches know no scenario: they are handed a function that runs one. Common
random numbers (the same requests, only the clock faster) make the answers monotone, so that few runs decide.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STUDENT_95 = (
    6.314,
    2.920,
    2.353,
    2.132,
    2.015,
    1.943,
    1.895,
    1.860,
    1.833,
    1.812,
    1.796,
    1.782,
    1.771,
    1.761,
)
"""95 % quantiles of Student's t for 1 to 14 degrees of freedom (any table); a two-sided 90 % interval."""
STUDENT_95_LIMIT = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run says about a rate or a fleet."""

    met: bool
    limiting: str | None = None
    """The target that is furthest over its limit, or nearest to it; None: nothing is asked but stability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestRate:
    """The largest rate that was met, how sure it is and what stops more."""

    rate: float
    """In the unit of the search; 0: not even the smallest rate tried was met."""
    first_missed: float | None
    """The smallest rate that was not met; None: all that were tried were met."""
    limiting: str | None
    """The target that fails there."""
    runs: int


def largest_rate(
    judge: Callable[[float], Verdict],
    *,
    start: float,
    tolerance_ratio: float = 0.01,
    smallest: float | None = None,
    largest: float | None = None,
) -> LargestRate:
    """Find the largest rate that is met, by doubling or halving from ``start`` and then bisection.

    The answer is met, and a rate at most ``tolerance_ratio`` above it is not. Rates outside ``smallest`` (default:
    ``start`` / 4096) and ``largest`` (``start`` x 4096) are not tried.
    """
    if not start > 0.0 or not 0.0 < tolerance_ratio < 1.0:
        raise ValueError("start must be above 0, tolerance_ratio between 0 and 1")
    smallest = start / 4096.0 if smallest is None else smallest
    largest = start * 4096.0 if largest is None else largest
    runs = 0
    limiting: str | None = None

    def met(rate: float) -> bool:
        nonlocal runs, limiting
        runs += 1
        verdict = judge(rate)
        if not verdict.met:
            limiting = verdict.limiting
        return verdict.met

    low, high = 0.0, math.inf
    if met(start):
        low = start
        while high == math.inf and low < largest:
            rate = min(low * 2.0, largest)
            if met(rate):
                low = rate
            else:
                high = rate
    else:
        high = start
        while low == 0.0 and high > smallest:
            rate = max(high / 2.0, smallest)
            if met(rate):
                low = rate
            else:
                high = rate
    if low == 0.0 or high == math.inf:
        return LargestRate(
            rate=low, first_missed=None if high == math.inf else high, limiting=limiting, runs=runs
        )
    while high > low * (1.0 + tolerance_ratio):
        middle = math.sqrt(low * high)
        if met(middle):
            low = middle
        else:
            high = middle
    return LargestRate(rate=low, first_missed=high, limiting=limiting, runs=runs)


def largest_step(judge: Callable[[float], Verdict], *, first: float, last: float, step: float) -> LargestRate:
    """Find the largest rate on the grid ``first``, ``first`` + ``step``, ... ``last`` that is met, by bisection."""
    count = math.floor((last - first) / step + 1e-9) + 1
    low, high = -1, count
    runs = 0
    limiting: str | None = None
    while high - low > 1:
        middle = (low + high) // 2
        runs += 1
        verdict = judge(first + step * middle)
        if verdict.met:
            low = middle
        else:
            high = middle
            limiting = verdict.limiting
    return LargestRate(
        rate=first + step * low if low >= 0 else 0.0,
        first_missed=first + step * high if high < count else None,
        limiting=limiting,
        runs=runs,
    )


def interval_90(rate: float, replicates: Sequence[float]) -> tuple[float, float] | None:
    """Return the two-sided 90 % interval around ``rate`` from resampled answers; None with fewer than two.

    rate +- t sd, t Student's 95 % quantile with as many degrees of freedom as replicates less one: what one more trace
    of the same kind would give, not how well the mean over traces is known.
    """
    number = len(replicates)
    if number < 2:
        return None
    mean = sum(replicates) / number
    deviation = math.sqrt(sum((value - mean) ** 2 for value in replicates) / (number - 1))
    t = STUDENT_95[number - 2] if number - 2 < len(STUDENT_95) else STUDENT_95_LIMIT
    return max(0.0, rate - t * deviation), rate + t * deviation


def smallest_splits(
    judge: Callable[[int, int], Verdict],
    *,
    largest_first: int,
    largest_second: int,
    give_up: int | None = None,
) -> tuple[list[tuple[int, int]], int]:
    """Find all pairs (a, b) that are met while (a - 1, b) and (a, b - 1) are not, walking the staircase once.

    Assumes that more of either never hurts. Needs about ``largest_first`` + ``largest_second`` runs instead of their
    product. Returns the corners and the number of runs. ``give_up``: stop once a + b of the walk passes it.
    """
    corners: list[tuple[int, int]] = []
    runs = 0
    a, b = 1, largest_second
    lowest_met: int | None = None
    while a <= largest_first and b >= 1:
        if give_up is not None and a > give_up:
            break
        runs += 1
        if judge(a, b).met:
            lowest_met = b
            b -= 1
        else:
            if lowest_met is not None:
                corners.append((a, lowest_met))
                lowest_met = None
            a += 1
    if lowest_met is not None:
        corners.append((a, lowest_met))
    return _undominated(corners), runs


def _undominated(corners: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for a, b in corners:
        if not any(other_a <= a and other_b <= b for other_a, other_b in kept):
            kept.append((a, b))
    return kept


def pareto(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points that no other point beats or equals in every coordinate (smaller is better).

    Of equal points the first stays. Order of the indices: by the first coordinate, then the next.
    """
    order = sorted(range(len(points)), key=lambda k: (*points[k], k))
    front: list[int] = []
    for k in order:
        if not any(all(points[f][d] <= points[k][d] for d in range(len(points[k]))) for f in front):
            front.append(k)
    return front
