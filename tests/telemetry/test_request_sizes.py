"""Request buckets from histograms: sums are kept, sizes stay between their edges, groups are the best ones."""

import itertools
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.engine_sample import CumulativeHistogram
from telemetry.request_sizes import (
    MOST_GROUPS,
    SizeGroup,
    SizeRecord,
    bins,
    request_buckets,
)
from tests.telemetry.engine_pages import TOKEN_EDGES, Counted


def counted(sizes: list[int], edges: tuple[float, ...] = TOKEN_EDGES) -> CumulativeHistogram:
    histogram = Counted(edges)
    for size in sizes:
        histogram.observe(size)
    return CumulativeHistogram(
        edges=edges, cumulative=tuple(itertools.accumulate(histogram.counts)), total=histogram.total
    )


def groups_of(*histograms: CumulativeHistogram) -> tuple[SizeGroup, ...]:
    record = SizeRecord(memory_s=60)
    record.add(histograms, t_s=0)
    return record.groups()


def mean(groups: tuple[SizeGroup, ...]) -> float:
    return sum(group.share * group.tokens for group in groups)


SIZES = st.lists(st.integers(1, 20_000), min_size=1, max_size=60)
EDGES = st.lists(st.integers(1, 8000), max_size=12, unique=True).map(
    lambda edges: tuple(map(float, sorted(edges)))
)


@given(sizes=SIZES, edges=EDGES)
def test_the_measured_mean_is_kept(sizes: list[int], edges: tuple[float, ...]) -> None:
    groups = groups_of(counted(sizes, edges))
    assert 1 <= len(groups) <= MOST_GROUPS
    assert sum(group.share for group in groups) == pytest.approx(1)
    assert mean(groups) == pytest.approx(sum(sizes) / len(sizes))
    assert [group.tokens for group in groups] == sorted(group.tokens for group in groups)


@given(one=SIZES, other=SIZES)
def test_engines_of_different_edges_are_added(one: list[int], other: list[int]) -> None:
    groups = groups_of(counted(one), counted(other, TOKEN_EDGES[:5]))
    assert mean(groups) == pytest.approx(sum(one + other) / len(one + other))


@given(sizes=SIZES)
def test_few_sizes_stay_between_their_edges(sizes: list[int]) -> None:
    histogram = counted(sizes)
    inside = bins(histogram)
    groups = groups_of(histogram)
    if len(inside) > MOST_GROUPS:
        return
    assert len(groups) == len(inside)
    for group, ((low, high), count) in zip(groups, inside, strict=True):
        assert group.share == pytest.approx(count / len(sizes))
        assert low * (1 - 1e-9) <= group.tokens <= high * (1 + 1e-9)


def test_groups_are_the_best_of_all_cuts() -> None:
    sizes = [3, 3, 7, 15, 15, 15, 40, 90, 150, 400, 400, 700, 1500, 1500, 4000, 9000]
    histogram = counted(sizes)
    groups = groups_of(histogram)
    placed = bins(histogram)
    total = sum(sizes)
    spots = _spots(placed, total)
    weights = [count / len(sizes) + size * count / total for size, count in spots]

    def distance(cut: tuple[int, ...]) -> float:
        value = 0.0
        for start, end in pairwise((0, *cut, len(spots))):
            logs = [math.log(size) for size, _ in spots[start:end]]
            mass = weights[start:end]
            centre = sum(w * x for w, x in zip(mass, logs, strict=True)) / sum(mass)
            value += sum(w * (x - centre) ** 2 for w, x in zip(mass, logs, strict=True))
        return value

    best = min(itertools.combinations(range(1, len(spots)), MOST_GROUPS - 1), key=distance)
    shares = [
        sum(count for _, count in spots[start:end]) / len(sizes)
        for start, end in pairwise((0, *best, len(spots)))
    ]
    assert [group.share for group in groups] == pytest.approx(shares)


def _spots(placed: list[tuple[tuple[float, float], float]], total: float) -> list[tuple[float, float]]:
    """Place sizes between their edges by search, not by formula."""

    def at(up: float) -> list[tuple[float, float]]:
        return [
            (low + up * (low if high == math.inf else high - low), count) for (low, high), count in placed
        ]

    below, above = 0.0, 1.0
    for _ in range(200):
        middle = (below + above) / 2
        if sum(size * count for size, count in at(middle)) < total:
            below = middle
        else:
            above = middle
    return at(below)


def test_a_mean_alone_is_one_group() -> None:
    assert groups_of(CumulativeHistogram(edges=(), cumulative=(4,), total=1000)) == (
        SizeGroup(share=1.0, tokens=250.0),
    )


def test_a_sum_that_edges_do_not_allow_stays_between_them() -> None:
    low = CumulativeHistogram(edges=(100.0, 200.0), cumulative=(0, 5, 5), total=1)
    high = CumulativeHistogram(edges=(100.0, 200.0), cumulative=(0, 5, 5), total=1e9)
    assert groups_of(low)[0].tokens == 101
    assert groups_of(high)[0].tokens == 200


def test_sizes_fade_but_the_last_stay_known() -> None:
    record = SizeRecord(memory_s=100)
    record.add([counted([10] * 10)], t_s=0)
    for t_s in range(15, 100_000, 15):
        record.add([counted([])], t_s=t_s)
    assert mean(record.groups()) == pytest.approx(10)
    record.add([counted([1000] * 10)], t_s=100_100)
    assert mean(record.groups()) == pytest.approx(1000)


def test_a_request_of_one_memory_ago_weighs_one_part_in_e() -> None:
    record = SizeRecord(memory_s=100)
    record.add([counted([8] * 10)], t_s=0)
    record.add([counted([700] * 10)], t_s=100)
    weight = 1 / math.e
    assert mean(record.groups()) == pytest.approx((8 * weight + 700) / (1 + weight))


def test_nothing_counted_gives_no_groups() -> None:
    assert groups_of(counted([])) == ()
    assert groups_of() == ()
    # vLLM counts prompt tokens before a request is finished: tokens without requests are kept for later
    record = SizeRecord(memory_s=1e9)
    record.add([CumulativeHistogram(edges=(), cumulative=(0,), total=500)], t_s=0)
    assert record.groups() == ()
    record.add([CumulativeHistogram(edges=(), cumulative=(5,), total=0)], t_s=1)
    assert mean(record.groups()) == pytest.approx(100)


@given(prompts=SIZES, outputs=SIZES, rate=st.floats(0, 1000))
def test_buckets_keep_rate_and_tokens(prompts: list[int], outputs: list[int], rate: float) -> None:
    buckets = request_buckets(rate, groups_of(counted(prompts)), groups_of(counted(outputs)))
    assert len(buckets) <= MOST_GROUPS**2
    assert sum(each.rate_rps for each in buckets) == pytest.approx(rate)
    prompt = sum(each.rate_rps * (each.input_tokens or 0) for each in buckets)
    output = sum(each.rate_rps * (each.output_tokens or 0) for each in buckets)
    assert prompt == pytest.approx(rate * sum(prompts) / len(prompts))
    assert output == pytest.approx(rate * sum(outputs) / len(outputs))
