"""Traces as values: windows, scaling, slicing, spreading, and summaries that do not depend on where chunks begin."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.trace import (
    Labels,
    PrefixBlocks,
    Requests,
    Trace,
    between,
    concatenate,
    scaled,
    spread,
    windows,
)
from solver.domain.trace_summary import TraceSummary, summarise, token_counts


def _requests(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    number = len(arrivals)
    widths = [prompt % 3 for prompt in prompts]
    return Requests(
        arrival_s=np.array(arrivals, dtype=np.float64),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        model=Labels(codes=np.arange(number) % 2, names=("a", "b")),
        blocks=PrefixBlocks(ids=np.arange(sum(widths)), offsets=np.cumsum([0, *widths])),
    )


@st.composite
def requests(draw: st.DrawFn, *, largest: int = 10**9) -> Requests:
    number = draw(st.integers(1, 30))

    def some(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=number, max_size=number))

    arrivals = some(st.one_of(st.floats(0, 1e5), st.integers(0, 20).map(float)))
    return _requests(sorted(arrivals), some(st.integers(1, largest)), some(st.integers(1, largest)))


@st.composite
def cut_requests(draw: st.DrawFn) -> tuple[Requests, list[Requests]]:
    whole = draw(requests())
    edges = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return whole, [
        whole.take(slice(start, end)) for start, end in zip([0, *edges], [*edges, len(whole)], strict=True)
    ]


def _blocks(requests: Requests) -> list[list[int]]:
    assert requests.blocks is not None
    ids, offsets = requests.blocks.ids.tolist(), requests.blocks.offsets.tolist()
    return [ids[start:end] for start, end in itertools.pairwise(offsets)]


@given(cut=cut_requests())
@settings(deadline=None)
def test_chunks_join_to_the_whole(cut: tuple[Requests, list[Requests]]) -> None:
    whole, chunks = cut
    joined = concatenate(chunks)
    assert joined.arrival_s.tolist() == whole.arrival_s.tolist()
    assert joined.output_tokens.tolist() == whole.output_tokens.tolist()
    assert joined.model is not None
    assert whole.model is not None
    assert joined.model.to_list() == whole.model.to_list()
    assert _blocks(joined) == _blocks(whole)


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_column_that_a_chunk_lacks_is_dropped(lacking: int) -> None:
    chunks = [_requests([0.0, 1.0], [1, 2], [1, 1]), _requests([2.0], [2], [1])]
    chunks[lacking] = replace(chunks[lacking], model=None, blocks=None)
    joined = concatenate(chunks)
    assert joined.model is None
    assert joined.blocks is None
    assert joined.prompt_tokens.tolist() == [1, 2, 2]


def test_nothing_joins_to_nothing() -> None:
    joined = concatenate([])
    assert len(joined) == 0
    assert (joined.session, joined.model, joined.request_class, joined.blocks) == (None,) * 4


@given(whole=requests(), data=st.data())
@settings(deadline=None)
def test_taking_keeps_rows_together(whole: Requests, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))))
    part = whole.take(mask)
    index = np.flatnonzero(mask)
    assert part.prompt_tokens.tolist() == [whole.prompt_tokens[i] for i in index]
    assert _blocks(part) == [_blocks(whole)[i] for i in index]


def test_columns_cannot_be_changed() -> None:
    source = np.array([0.0, 1.0])
    kept = Requests(arrival_s=source, prompt_tokens=np.array([1, 2]), output_tokens=np.array([1, 2]))
    with pytest.raises(ValueError, match="read-only"):
        kept.arrival_s[0] = 5.0
    source[1] = 2.0  # the caller's array is still the caller's


def test_windows_by_hand() -> None:
    counted = windows(np.array([100.0, 100.5, 109.999, 110.0, 125.0, 125.5, 126.0]), window_s=10.0)
    assert counted.count.tolist() == [3, 1, 3]
    assert counted.rates_rps.tolist() == [0.3, 0.1]  # the third is not over yet
    assert counted.peak_rps == 0.3
    assert counted.quantile_rps(0.5) == pytest.approx(0.2)
    assert (
        windows(np.array([0.0, 1, 12, 13, 14, 14]), window_s=10.0).peak_rps == 0.4
    )  # unfinished, yet the largest
    assert windows(np.array([5.0, 6.0, 7.0]), window_s=60.0).rates_rps.tolist() == [1.5]
    assert windows(np.array([5.0, 5.0]), window_s=4.0).rates_rps.tolist() == [0.5]


def test_windows_that_cannot_be() -> None:
    with pytest.raises(
        InputError, match=r"windows of 1e-06 s cut 1e\+06 s into more than 4,000,000 pieces; longer"
    ):
        windows(np.array([0.0, 1e6]), window_s=1e-6)
    with pytest.raises(InputError, match="no request to count"):
        windows(np.array([]), window_s=1.0)


@given(whole=requests(), window_s=st.floats(0.1, 1e5))
@settings(deadline=None)
def test_windows_count_every_request_once(whole: Requests, window_s: float) -> None:
    counted = windows(whole.arrival_s, window_s=window_s)
    assert counted.count.sum() == len(whole)
    assert counted.peak_rps >= counted.quantile_rps(1.0) >= counted.quantile_rps(0.3)
    assert len(counted.rates_rps) <= max(1, len(counted.count))


def _same(first: TraceSummary, second: TraceSummary) -> None:
    assert first.requests == second.requests
    assert (first.first_s, first.last_s, first.equal_stamps) == (
        second.first_s,
        second.last_s,
        second.equal_stamps,
    )
    for mine, its in ((first.prompt, second.prompt), (first.output, second.output)):
        assert mine.values.tolist() == its.values.tolist()
        assert mine.counts.tolist() == its.counts.tolist()
        assert (mine.total, mine.smallest, mine.largest) == (its.total, its.smallest, its.largest)
    assert first.sizes.keys.tolist() == second.sizes.keys.tolist()
    assert first.sizes.counts.tolist() == second.sizes.counts.tolist()
    np.testing.assert_allclose(first.sizes.kv, second.sizes.kv, rtol=1e-12)
    for counted, recounted in zip(first.windows, second.windows, strict=True):
        assert counted.count.tolist() == recounted.count.tolist()
        assert (counted.start_s, counted.end_s) == (recounted.start_s, recounted.end_s)
    for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
        pair = [getattr(summary.size_moments, name) for summary in (first, second)]
        scale = max(abs(pair[0]), first.size_moments.xx, first.size_moments.yy, 1.0)
        assert abs(pair[0] - pair[1]) <= 1e-9 * scale
    np.testing.assert_allclose(first.gap_moments.mean_x, second.gap_moments.mean_x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(first.gap_moments.xx, second.gap_moments.xx, rtol=1e-7, atol=1e-6)


@given(cut=cut_requests())
@settings(deadline=None)
def test_a_summary_does_not_depend_on_the_chunks(cut: tuple[Requests, list[Requests]]) -> None:
    whole, chunks = cut
    _same(summarise([whole], windows_s=(10.0, 1000.0)), summarise(chunks, windows_s=(10.0, 1000.0)))


@given(whole=requests(largest=5000))
@settings(deadline=None)
def test_a_summary_agrees_with_numpy(whole: Requests) -> None:
    summary = summarise([whole])
    for share in (0.0, 0.25, 0.5, 0.9, 0.99, 1.0):
        assert summary.prompt.quantile(share) == pytest.approx(
            np.quantile(whole.prompt_tokens, share), rel=1e-12
        )
    assert summary.output.mean == pytest.approx(whole.output_tokens.mean(), rel=1e-12)
    if whole.prompt_tokens.std() > 0 < whole.output_tokens.std():
        expected = np.corrcoef(whole.prompt_tokens, whole.output_tokens)[0, 1]
        assert summary.correlation == pytest.approx(expected, abs=1e-9)
    else:
        assert summary.correlation is None
    gaps = np.diff(whole.arrival_s)
    if len(gaps) and gaps.mean() > 1e-9:
        assert summary.burstiness_cv == pytest.approx(gaps.std() / gaps.mean(), rel=1e-6, abs=1e-6)


@given(tokens=st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
@settings(deadline=None)
def test_large_token_counts_are_cut_by_less_than_two_to_minus_16(tokens: list[int]) -> None:
    counts = token_counts(np.array(tokens))
    expanded = np.repeat(counts.values, counts.counts)
    exact = np.sort(tokens)
    assert np.all(expanded <= exact)
    assert np.all(exact - expanded <= exact * 2.0**-16)
    assert np.all((expanded == exact) | (exact >= 1 << 17))
    assert (counts.total, counts.largest) == (sum(tokens), max(tokens))


def test_no_requests_are_an_error() -> None:
    with pytest.raises(InputError, match="no request to summarise"):
        summarise([])
    empty = _requests([], [], [])
    with pytest.raises(InputError, match="no request to summarise"):
        summarise([empty])


@given(whole=requests(largest=10**6), rate=st.floats(0.1, 10), tokens=st.floats(0.1, 10))
@settings(deadline=None)
def test_scaling(whole: Requests, rate: float, tokens: float) -> None:
    result = scaled(whole, rate_ratio=rate, tokens_ratio=tokens)
    np.testing.assert_allclose(result.arrival_s * rate, whole.arrival_s, rtol=1e-12, atol=1e-300)
    assert result.prompt_tokens.min() >= 1
    assert np.all(np.abs(result.prompt_tokens - whole.prompt_tokens * tokens) <= np.maximum(0.5000001, 1))


@given(whole=requests(), start_s=st.floats(0, 1e5), length_s=st.floats(0, 1e5))
@settings(deadline=None)
def test_between_is_half_open(whole: Requests, start_s: float, length_s: float) -> None:
    kept = between(whole, start_s, start_s + length_s).arrival_s
    wanted = [time for time in whole.arrival_s.tolist() if start_s <= time < start_s + length_s]
    assert kept.tolist() == wanted


@given(cut=cut_requests(), within_s=st.floats(0.01, 50), seed=st.integers(0, 5))
@settings(deadline=None)
def test_spreading_moves_requests_into_their_own_step(
    cut: tuple[Requests, list[Requests]], within_s: float, seed: int
) -> None:
    whole, chunks = cut
    result = concatenate(spread(chunks, within_s=within_s, seed=seed))
    times, moved = whole.arrival_s, result.arrival_s
    assert result.prompt_tokens.tolist() == whole.prompt_tokens.tolist()
    assert np.all(np.diff(moved) >= 0)
    assert np.all(moved >= times)
    assert np.all(moved <= times + within_s)
    later = np.searchsorted(times, times, side="right")
    following = np.append(times, np.inf)[later]
    assert np.all(moved <= following)
    again = concatenate(spread([whole], within_s=within_s, seed=seed))
    assert again.arrival_s.tolist() == moved.tolist()


def test_a_trace_knows_its_length() -> None:
    trace = Trace(name="t", sha256="0", requests=_requests([5.0, 9.0], [1, 2], [3, 4]))
    assert (len(trace), trace.duration_s) == (2, 4.0)
