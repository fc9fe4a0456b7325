"""From histograms of prompt and output sizes to a few request buckets.

It exists because engines tell how many requests had how many prompt tokens, and how many had how many output tokens,
but not which of them were the same requests, while the solver works on buckets of (prompt, output) sizes. It knows no
time but what it is given, and no rate but the one it is asked to spread.

Method, for prompts and outputs alike:

1. What was counted since the last look is added to a record that forgets: a request of ``memory_s`` ago weighs 1/e.
   Where nothing is added nothing is forgotten, so the last known sizes stay known.
2. A histogram tells between which edges a size was, and the sum of all. Every size is placed the same way up between
   its edges (`_placed`), so far that the sum comes out; tokens are whole, so between edges 100 and 200 lie 101 to 200.
   Above the last edge there is no bound; what the sum needs beyond the highest places below goes there.
3. Neighbours are joined into at most `MOST_GROUPS` groups with the least squared distance of log size (dynamic
   programming, exact), weighing each by its mean share of requests and of tokens. A group stands for its mean.

Buckets are all pairs of a prompt and an output group; a pair's share is the product of the two shares: prompt and
output sizes are taken to be independent, because nothing says how they hang together. Whatever the truth is, prompt
tokens and output tokens in all are as measured; if long prompts go with long outputs, KV reads of decode are
understated.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from solver.domain.gpu_mix import RequestBucket
from telemetry.engine_sample import CumulativeHistogram

MOST_GROUPS = 4
_NEGLIGIBLE_RATIO = 1e-9

Bin = tuple[float, float]
"""Smallest and largest size between two edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeGroup:
    """Share of the requests, and their mean size."""

    share: float
    tokens: float


class SizeRecord:
    """Counts by size that fade with time."""

    __slots__ = ("_counts", "_t_s", "_total", "memory_s")

    def __init__(self, *, memory_s: float) -> None:
        self.memory_s = memory_s
        self._counts: dict[Bin, float] = {}
        self._total = 0.0
        self._t_s = -math.inf

    def add(self, histograms: Iterable[CumulativeHistogram], *, t_s: float) -> None:
        """Add requests that were finished up to ``t_s``; those of engines with other edges, too."""
        added: dict[Bin, float] = {}
        total = 0.0
        for histogram in histograms:
            total += histogram.total
            for each, count in bins(histogram):
                added[each] = added.get(each, 0.0) + count
        if not added and total == 0.0:
            return
        kept = math.exp(-max(0.0, t_s - self._t_s) / self.memory_s)
        self._t_s = t_s
        self._total = self._total * kept + total
        counts = {
            each: self._counts.get(each, 0.0) * kept + added.get(each, 0.0)
            for each in self._counts.keys() | added.keys()
        }
        negligible = _NEGLIGIBLE_RATIO * sum(counts.values())
        self._counts = {each: count for each, count in counts.items() if count > negligible}

    def groups(self) -> tuple[SizeGroup, ...]:
        """Return at most `MOST_GROUPS` sizes with the measured mean; none if nothing was counted."""
        return size_groups(self._counts, self._total)


def sizes_of(histograms: Iterable[CumulativeHistogram | None]) -> tuple[SizeGroup, ...]:
    """Return at most `MOST_GROUPS` sizes of all that the known ones of the histograms hold."""
    record = SizeRecord(memory_s=1.0)
    record.add([histogram for histogram in histograms if histogram is not None], t_s=0.0)
    return record.groups()


def bins(histogram: CumulativeHistogram) -> list[tuple[Bin, float]]:
    """Return the sizes between neighbouring edges and how often they were counted, where they were."""
    lows = (0.0, *histogram.edges)
    highs = (*histogram.edges, math.inf)
    counts = [later - earlier for earlier, later in pairwise((0.0, *histogram.cumulative))]
    return [
        ((min(math.floor(low) + 1.0, high), float(math.floor(high)) if high < math.inf else high), count)
        for low, high, count in zip(lows, highs, counts, strict=True)
        if count > 0
    ]


def size_groups(counts: Mapping[Bin, float], total: float) -> tuple[SizeGroup, ...]:
    """Reduce counts by size, whose sizes sum to ``total``, to at most `MOST_GROUPS` groups, smallest first."""
    number = sum(counts.values())
    if number <= 0:
        return ()
    placed = sorted(_placed(counts, total))
    tokens = sum(size * count for size, count in placed)
    weights = [count / number + (size * count / tokens if tokens > 0 else 0.0) for size, count in placed]
    groups = []
    for start, end in _parts([math.log(max(size, 1.0)) for size, _ in placed], weights):
        count = sum(each for _, each in placed[start:end])
        mean = sum(size * each for size, each in placed[start:end]) / count
        groups.append(SizeGroup(share=count / number, tokens=mean))
    return tuple(groups)


def _placed(counts: Mapping[Bin, float], total: float) -> list[tuple[float, float]]:
    """Give every bin one size between its edges, so that all sum to ``total`` where edges allow it."""
    open_span = {each: each[0] if each[1] == math.inf else 0.0 for each in counts}
    span = {each: open_span[each] or max(0.0, each[1] - each[0]) for each in counts}
    least = sum(each[0] * count for each, count in counts.items())
    width = sum(span[each] * count for each, count in counts.items())
    raised = max(0.0, (total - least) / width) if width > 0 else 0.0
    beyond = raised
    if raised > 1.0:
        above = sum(open_span[each] * count for each, count in counts.items())
        below = width - above
        raised, beyond = 1.0, (total - least - below) / above if above > 0 else 1.0
    return [
        (each[0] + span[each] * (beyond if open_span[each] else raised), count)
        for each, count in counts.items()
    ]


def _parts(points: Sequence[float], weights: Sequence[float]) -> list[tuple[int, int]]:
    """Cut a rising sequence into at most `MOST_GROUPS` parts with the least weighted squared distance in all."""
    number = len(points)
    mass, first, second = [0.0], [0.0], [0.0]
    for point, weight in zip(points, weights, strict=True):
        mass.append(mass[-1] + weight)
        first.append(first[-1] + weight * point)
        second.append(second[-1] + weight * point * point)

    def distance(start: int, end: int) -> float:
        w, m = mass[end] - mass[start], first[end] - first[start]
        return max(0.0, second[end] - second[start] - m * m / w) if w > 0 else 0.0

    best = [0.0] + [math.inf] * number
    cuts: list[list[int]] = []
    for _ in range(min(MOST_GROUPS, number)):
        chosen = [0] * (number + 1)
        value = [math.inf] * (number + 1)
        for end in range(1, number + 1):
            chosen[end] = min(range(end), key=lambda start: best[start] + distance(start, end))
            value[end] = best[chosen[end]] + distance(chosen[end], end)
        cuts.append(chosen)
        best = value
    parts: list[tuple[int, int]] = []
    end = number
    for chosen in reversed(cuts):
        if end > 0:
            parts.append((chosen[end], end))
            end = chosen[end]
    return parts[::-1]


def request_buckets(
    rate_rps: float, prompts: Sequence[SizeGroup], outputs: Sequence[SizeGroup]
) -> tuple[RequestBucket, ...]:
    """Spread a rate over all pairs of prompt and output sizes, which are taken to be independent."""
    return tuple(
        RequestBucket(
            rate_rps=rate_rps * prompt.share * output.share,
            input_tokens=prompt.tokens,
            output_tokens=output.tokens,
        )
        for prompt in prompts
        for output in outputs
    )
