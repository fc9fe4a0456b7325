"""Profile tables: exact at points, between neighbours, no silent extrapolation; and the book that picks them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.performance.book import PerformanceBook
from solver.performance.profile_table import DecodePoint, PrefillPoint, ProfileTable
from solver.performance.protocol import OutsideRangeError, PerformanceModel, ReplicaKind
from solver.performance.roofline import Roofline
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles

GPUS = read_gpus()
MODELS = read_models()
TABLES = read_profiles(GPUS, MODELS)
KIND = ReplicaKind(model="bigscience/bloom", gpu_type="H100-SXM", gpus_per_replica=8, precision="bf16")
BLOOM = next(table for table in TABLES if table.kind == KIND)


def test_shipped_knots_are_exact() -> None:
    assert BLOOM.prefill_s(128) == 0.04828443902079016
    assert BLOOM.prefill_s(8192) == 1.4115745809976943
    assert BLOOM.decode_iteration_s(64, 32768) == 0.06382134215911762
    assert BLOOM.decode_iteration_s(1, 256) == 0.03615448040398219


def test_decode_between_knots_is_the_token_table_plus_the_cache_slope() -> None:
    """The table-kv form: token(512 n) + c (KV - 512 n)."""
    token_24 = (0.039016441875421554 + 0.045841567142679555) / 2
    assert BLOOM.decode_iteration_s(24, 24 * 512) == pytest.approx(token_24, rel=1e-12)
    assert BLOOM.decode_iteration_s(24, 24 * 512 + 1000) == pytest.approx(token_24 + 2.09e-4, rel=1e-12)


@given(low=st.floats(128, 32768), more=st.floats(0, 32768))
def test_prefill_is_monotone_between_points(low: float, more: float) -> None:
    high = min(low + more, 32768)
    assert BLOOM.prefill_s(low) <= BLOOM.prefill_s(high)


@given(sequences=st.floats(1, 64), kv=st.floats(128, 32768), more=st.floats(0, 32768))
def test_decode_is_monotone_in_cached_tokens(sequences: float, kv: float, more: float) -> None:
    high = min(kv + more, 32768)
    assert BLOOM.decode_iteration_s(sequences, kv) <= BLOOM.decode_iteration_s(sequences, high) + 1e-15


@pytest.mark.parametrize("tokens", [1, 127.9, 32769])
def test_prefill_outside_the_points_is_refused_unless_asked_for(tokens: float) -> None:
    with pytest.raises(
        OutsideRangeError, match=r"new_tokens .* outside the measured range 128 to 32768"
    ) as caught:
        BLOOM.prefill_s(tokens)
    assert (caught.value.low, caught.value.high) == (128, 32768)
    assert dataclasses.replace(BLOOM, extrapolate=True).prefill_s(tokens) > 0


def test_decode_outside_the_points_is_refused_unless_asked_for() -> None:
    for sequences, kv in ((0.5, 500), (65, 20_000), (8, 100), (8, 40_000)):
        with pytest.raises(OutsideRangeError):
            BLOOM.decode_iteration_s(sequences, kv)
    wide = dataclasses.replace(BLOOM, extrapolate=True)
    assert wide.decode_iteration_s(128, 65_536) > BLOOM.decode_iteration_s(64, 32_768)
    assert wide.prefill_s(65_536) == pytest.approx(3 * 4.99645 - 2 * 2.52191, rel=1e-5)
    assert wide.prefill_s(1) == BLOOM.prefill_s(128)


def test_prefill_with_context_is_the_difference_but_at_least_a_step() -> None:
    assert BLOOM.prefill_s(2048, context_tokens=4096) == pytest.approx(
        BLOOM.prefill_s(6144) - BLOOM.prefill_s(4096), rel=1e-12
    )
    assert BLOOM.prefill_s(128, context_tokens=128) == BLOOM.prefill_s(128)
    with pytest.raises(OutsideRangeError, match="context_tokens"):
        BLOOM.prefill_s(2048, context_tokens=32_000)


def test_what_was_not_measured_needs_a_fallback() -> None:
    for ask in (
        BLOOM.idle_w,
        BLOOM.kv_capacity_tokens,
        lambda: BLOOM.prefill_w(500),
        lambda: BLOOM.decode_w(4, 2000),
    ):
        with pytest.raises(InputError, match="was not measured for bigscience/bloom on 8 x H100-SXM"):
            ask()
    roofline = Roofline.of(KIND, GPUS["H100-SXM"], MODELS["bigscience/bloom"])
    filled = dataclasses.replace(BLOOM, fallback=roofline)
    assert filled.decode_w(4, 2000) == roofline.decode_w(4, 2000)
    assert filled.kv_capacity_tokens() == roofline.kv_capacity_tokens() > 0


def test_measured_watts_are_interpolated_and_never_extrapolated() -> None:
    table = ProfileTable(
        kind=KIND,
        prefill=(
            PrefillPoint(new_tokens=100, seconds=1, watts=400),
            PrefillPoint(new_tokens=300, seconds=2, watts=600),
        ),
        decode=(
            DecodePoint(sequences=1, kv_tokens=100, seconds=0.1, watts=300),
            DecodePoint(sequences=3, kv_tokens=300, seconds=0.2, watts=500),
        ),
    )
    assert table.prefill_w(200) == 500
    assert table.decode_w(2, 150) == 400
    with pytest.raises(OutsideRangeError):
        table.prefill_w(400)
    assert dataclasses.replace(table, extrapolate=True).prefill_w(400) == 600


def test_cache_slope_is_taken_from_rows_with_several_points() -> None:
    table = ProfileTable(
        kind=KIND,
        decode=(
            DecodePoint(sequences=1, kv_tokens=0, seconds=1.0),
            DecodePoint(sequences=1, kv_tokens=100, seconds=1.5),
            DecodePoint(sequences=2, kv_tokens=50, seconds=2.0),
        ),
    )
    assert table.kv_slope_s_per_token == pytest.approx(0.005)
    assert table.decode_iteration_s(2, 100) == pytest.approx(2.25)
    with pytest.raises(InputError, match="prefill time"):
        table.prefill_s(10)


def test_senseless_tables_are_refused() -> None:
    point = PrefillPoint(new_tokens=1, seconds=1)
    for points in ((), (point, point), (PrefillPoint(new_tokens=1, seconds=0),)):
        with pytest.raises(ValueError, match=r"point|positive"):
            ProfileTable(kind=KIND, prefill=points)


def test_the_book_prefers_a_table_and_says_so() -> None:
    book = PerformanceBook(gpus=GPUS, models=MODELS, tables=TABLES)
    entry = book.entry(KIND)
    assert entry.measured
    assert "splitwise_tp8.csv" in entry.provenance
    model: PerformanceModel = entry.performance
    assert model.prefill_s(128) == BLOOM.prefill_s(128)
    assert model.idle_w() == 8 * 72
    with pytest.raises(OutsideRangeError):
        model.prefill_s(1)
    assert dataclasses.replace(book, extrapolate_tables=True).performance(KIND).prefill_s(1) > 0


def test_the_book_takes_fp16_and_bf16_for_the_same_table_but_not_fp8() -> None:
    book = PerformanceBook(gpus=GPUS, models=MODELS, tables=TABLES)
    assert book.entry(dataclasses.replace(KIND, precision="fp16")).measured
    assert not book.entry(dataclasses.replace(KIND, precision="fp8")).measured


def test_the_book_falls_back_on_the_formula() -> None:
    book = PerformanceBook(gpus=GPUS, models=MODELS, tables=TABLES)
    entry = book.entry(dataclasses.replace(KIND, gpus_per_replica=4, gpu_type="B300"))
    assert not entry.measured
    assert entry.provenance.startswith("roofline (fitted on")
    assert "clock not known" in entry.provenance


def test_the_book_refuses_what_it_does_not_know() -> None:
    book = PerformanceBook(gpus=GPUS, models=MODELS)
    with pytest.raises(InputError, match="unknown GPU type 'H900'"):
        book.entry(dataclasses.replace(KIND, gpu_type="H900"))
    with pytest.raises(InputError, match="unknown model 'x'"):
        book.entry(dataclasses.replace(KIND, model="x"))
    with pytest.raises(InputError, match="two profiles of bigscience/bloom"):
        PerformanceBook(gpus=GPUS, models=MODELS, tables=(BLOOM, BLOOM))
