"""What a GpuProfile sustains: interpolation of its rows, the SLO as a filter, the model where there are no rows."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import controller.operator.profiles
from controller.operator.profiles import KNOWN_PER_VARIANT, ProfileBook
from controller.resources.gpu_profile import GpuProfileSpec
from controller.resources.model_service import SloSpec
from solver.domain.gpu_mix import RequestBucket

SLO = SloSpec(ttft_seconds=1.0, tbt_seconds=0.05, percentile=99)
Row = tuple[int, int, float]
"""Input tokens, output tokens, requests/s."""


def profile(rows: Sequence[Row], *, ttft_s: float = 0.5, tbt_s: float = 0.02, **more: Any) -> GpuProfileSpec:
    written = [
        {"inputTokens": i, "outputTokens": o, "ttftSeconds": ttft_s, "tbtSeconds": tbt_s, "maxRps": r}
        for i, o, r in rows
    ]
    return GpuProfileSpec.model_validate(
        {
            "model": "m",
            "gpuType": "A",
            "priceUsdPerHour": 1.0,
            "provenance": {"kind": "measured"},
            "throughput": written,
            **more,
        }
    )


def sustained(spec: GpuProfileSpec, *sizes: tuple[float, float], slo: SloSpec = SLO) -> tuple[float, ...]:
    return found(spec, *sizes, slo=slo)[0]


def found(
    spec: GpuProfileSpec, *sizes: tuple[float, float], slo: SloSpec = SLO
) -> tuple[tuple[float, ...], str]:
    buckets = [RequestBucket(rate_rps=1.0, input_tokens=i, output_tokens=o) for i, o in sizes]
    answer = ProfileBook().sustained(spec, "v", slo, buckets)
    return answer.throughput_rps, answer.trouble


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[int], list[int], dict[tuple[int, int], float]]:
    inputs = sorted(draw(st.sets(st.integers(1, 8192), min_size=1, max_size=4)))
    outputs = sorted(draw(st.sets(st.integers(1, 2048), min_size=1, max_size=4)))
    rates = {(i, o): draw(st.floats(0.01, 100)) for i in inputs for o in outputs}
    return inputs, outputs, rates


@given(grids(), st.floats(1, 8192), st.floats(1, 2048))
def test_between_rows_the_rate_is_between_those_of_the_corners(
    grid: tuple[list[int], list[int], dict[tuple[int, int], float]], size_in: float, size_out: float
) -> None:
    inputs, outputs, rates = grid
    (rate,) = sustained(profile([(i, o, r) for (i, o), r in rates.items()]), (size_in, size_out))
    if size_in > inputs[-1] or size_out > outputs[-1]:
        assert rate == 0.0
        return
    corners = [rates[i, o] for i in neighbours(inputs, size_in) for o in neighbours(outputs, size_out)]
    assert min(corners) * (1 - 1e-9) <= rate <= max(corners) * (1 + 1e-9)


def neighbours(points: Sequence[int], value: float) -> set[int]:
    """Return the points on both sides of a value."""
    return {
        max((p for p in points if p <= value), default=points[0]),
        min(p for p in points if p >= value),
    }


@given(grids())
def test_at_a_row_the_rate_is_the_rows(
    grid: tuple[list[int], list[int], dict[tuple[int, int], float]],
) -> None:
    rates = grid[2]
    spec = profile([(i, o, r) for (i, o), r in rates.items()])
    assert sustained(spec, *rates) == pytest.approx(tuple(rates.values()))


def test_half_way_the_time_per_request_is_the_mean() -> None:
    spec = profile([(100, 10, 4.0), (300, 10, 1.0)])
    assert sustained(spec, (200, 10)) == pytest.approx((1.0 / (0.5 / 4.0 + 0.5 / 1.0),))


def test_rows_that_are_no_grid_answer_with_the_best_row_that_is_large_enough() -> None:
    spec = profile([(100, 100, 4.0), (200, 50, 3.0), (400, 400, 1.0)])
    assert sustained(spec, (150, 80), (90, 40), (401, 1)) == (1.0, 4.0, 0.0)


def test_the_better_of_two_rows_of_one_size_counts() -> None:
    assert sustained(profile([(100, 100, 1.0), (100, 100, 2.0)]), (100, 100)) == (2.0,)


def test_rows_outside_the_slo_do_not_count() -> None:
    slow = profile([(100, 100, 4.0)], ttft_s=1.0, tbt_s=0.05)
    assert sustained(slow, (100, 100)) == (4.0,)
    for slo in (
        SloSpec(ttft_seconds=0.999, tbt_seconds=0.05, percentile=99),
        SloSpec(ttft_seconds=1.0, tbt_seconds=0.049, percentile=99),
    ):
        rates, trouble = found(slow, (100, 100), slo=slo)
        assert rates == (0.0,)
        assert "none of its 1 rows is within ttft" in trouble


def test_a_size_beyond_the_table_is_named() -> None:
    rates, trouble = found(profile([(100, 100, 4.0)]), (50, 50), (101, 100))
    assert rates == (4.0, 0.0)
    assert "covers 101 input and 100 output tokens" in trouble


def test_a_modelled_profile_uses_the_performance_model() -> None:
    spec = profile([], model="meta-llama/Llama-3.1-8B", gpuType="H100-SXM", modelled=True)
    (small, large), trouble = found(spec, (256, 64), (4096, 512))
    assert trouble == ""
    assert small > large > 0


@pytest.mark.parametrize(
    ("gpu_type", "model", "named"),
    [("Q1", "meta-llama/Llama-3.1-8B", "Q1"), ("H100-SXM", "nobody/knows", "nobody/knows")],
)
def test_what_cannot_be_modelled_serves_nothing_and_says_why(gpu_type: str, model: str, named: str) -> None:
    rates, trouble = found(profile([], model=model, gpuType=gpu_type, modelled=True), (256, 64))
    assert rates == (0.0,)
    assert named in trouble


def test_weights_that_do_not_fit_are_said() -> None:
    spec = profile([], model="bigscience/bloom", gpuType="H100-SXM", modelled=True)
    rates, trouble = found(spec, (256, 64))
    assert rates == (0.0,)
    assert trouble


def test_labels_of_a_known_gpu_type_are_its_product_labels() -> None:
    book = ProfileBook()
    assert "NVIDIA-H100-80GB-HBM3" in book.labels_of("H100-SXM")
    assert book.labels_of("Unheard") == ("Unheard",)


def test_a_new_state_of_a_profile_is_read_anew() -> None:
    book = ProfileBook()
    bucket = [RequestBucket(rate_rps=1.0, input_tokens=10.0, output_tokens=10.0)]
    first = book.sustained(profile([(10, 10, 1.0)]), "v1", SLO, bucket)
    same = book.sustained(profile([(10, 10, 2.0)]), "v1", SLO, bucket)
    second = book.sustained(profile([(10, 10, 2.0)]), "v2", SLO, bucket)
    assert (first.throughput_rps, same.throughput_rps, second.throughput_rps) == ((1.0,), (1.0,), (2.0,))


def test_sizes_that_change_all_the_time_are_forgotten_and_those_asked_for_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller.operator.profiles, "LEAST_KNOWN", 10)
    spec, book = profile([(1000, 100, 2.0)]), ProfileBook()
    lasting = [RequestBucket(rate_rps=1.0, input_tokens=500.0, output_tokens=50.0)]
    first = book.sustained(spec, "v", SLO, lasting)
    for tokens in range(1, 200):
        passing = [RequestBucket(rate_rps=1.0, input_tokens=float(tokens), output_tokens=10.0)]
        assert book.sustained(spec, "v", SLO, passing).throughput_rps == (2.0,)
        assert len(book._known) <= 10
        assert book.sustained(spec, "v", SLO, lasting) is first
    book.variants = 20
    for tokens in range(1, 200):
        passing = [RequestBucket(rate_rps=1.0, input_tokens=float(tokens), output_tokens=20.0)]
        book.sustained(spec, "v", SLO, passing)
    assert len(book._known) == KNOWN_PER_VARIANT * book.variants
