"""The trace generator: it hits the statistics it was fitted to, is the same every time, and refuses what cannot be."""

import gzip
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload import (
    PRESETS,
    Arrivals,
    FittedSizes,
    QuantileTable,
    ResampledSizes,
    Workload,
    generate,
    resampled_sizes,
)
from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Requests, concatenate
from solver.domain.trace_summary import summarise
from telemetry.sources.traces.read import read_trace
from telemetry.sources.traces.shipped import shipped_trace_path
from telemetry.sources.traces.write import write_rows

PAIRS = ResampledSizes(prompt_tokens=np.array([10, 20, 30]), output_tokens=np.array([1, 2, 3]))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_statistics(name: str) -> None:
    preset = PRESETS[name]
    summary = summarise(
        generate(
            Workload(
                sizes=preset.sizes,
                rate_rps=preset.rate_rps,
                duration_s=250_000 / preset.rate_rps,
                arrivals=Arrivals.GAMMA,
                cv=preset.cv,
            ),
            seed=1,
        )
    )
    assert summary.mean_rps == pytest.approx(preset.rate_rps, rel=0.04)
    assert summary.burstiness_cv == pytest.approx(preset.cv, rel=0.05)
    assert summary.correlation == pytest.approx(preset.sizes.correlation, abs=0.01)
    for counts, table in ((summary.prompt, preset.sizes.prompt), (summary.output, preset.sizes.output)):
        assert counts.mean == pytest.approx(table.mean_tokens, rel=0.01)
        assert counts.smallest >= np.floor(table.knots[0][1])
        assert counts.largest <= table.knots[-1][1]
        for share, tokens in table.knots[1:-2]:
            assert counts.quantile(share) == pytest.approx(tokens, rel=0.02, abs=1)


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        (Arrivals.POISSON, 1.0),
        *((kind, cv) for kind in (Arrivals.GAMMA, Arrivals.WEIBULL) for cv in (0.3, 1.0, 2.5)),
    ],
)
def test_arrivals_have_the_wanted_rate_and_burstiness(arrivals: Arrivals, cv: float) -> None:
    workload = Workload(sizes=PAIRS, rate_rps=50.0, duration_s=4000.0, arrivals=arrivals, cv=cv)
    summary = summarise(generate(workload, seed=2))
    assert summary.mean_rps == pytest.approx(50.0, rel=0.02)
    assert summary.burstiness_cv == pytest.approx(cv, rel=0.03)


def test_a_daily_swing_begins_at_its_low() -> None:
    workload = Workload(
        sizes=PAIRS, rate_rps=100.0, duration_s=1200.0, diurnal_ratio=0.8, diurnal_period_s=600.0
    )
    rates = summarise(generate(workload, seed=0), windows_s=(60.0,)).windows[0].rates_rps
    middle_s = np.arange(len(rates)) * 60.0 + 30.0
    wanted = 100.0 * (1 - 0.8 * np.cos(2 * np.pi * middle_s / 600.0))
    # 60 s of Poisson arrivals scatter by sqrt(rate / 60); the window's mean differs from its middle by below 2 %.
    assert np.all(np.abs(rates - wanted) < 5 * np.sqrt(wanted / 60) + 0.02 * 100)


def _rates(*rate_rps: float) -> RateWindows:
    return RateWindows(name="m", start_s=0.0, window_s=100.0, rate_rps=np.array(rate_rps))


def test_the_rate_follows_recorded_windows() -> None:
    recorded = _rates(20.0, 80.0, np.nan, 40.0, 0.0, 60.0)
    # The gap is bridged: 60. The mean is 260 / 6, and half of it is wanted.
    workload = Workload(sizes=PAIRS, rate_rps=130 / 6, duration_s=550.0, rates=recorded)
    requests = concatenate(generate(workload, seed=4))
    counts = np.histogram(requests.arrival_s, bins=np.arange(0, 601, 100))[0]
    wanted = np.array([10, 40, 30, 20, 0, 15]) * 100.0
    assert np.all(np.abs(counts - wanted) <= 4 * np.sqrt(wanted))
    assert counts[4] == 0
    assert requests.arrival_s[-1] <= 550.0


def test_rates_that_cannot_be_followed() -> None:
    good = Workload(sizes=PAIRS, rate_rps=1.0, duration_s=150.0, rates=_rates(1.0, 2.0))

    def refusal(**changes: object) -> str:
        with pytest.raises(InputError) as caught:
            replace(good, **changes)  # type: ignore[arg-type]
        return str(caught.value)

    assert refusal(diurnal_ratio=0.5) == "a daily swing over recorded rates; either of them"
    assert refusal(duration_s=201.0) == "201 s of rates recorded for 200 s; a duration of at most that"
    assert refusal(rates=_rates(0.0, 0.0)).startswith("no window of 'm' has requests; ")
    assert refusal(rates=_rates(np.nan, np.nan)).startswith("no window of 'm' was recorded; ")


@given(
    seed=st.integers(0, 2**40),
    rate_rps=st.floats(0.5, 50),
    duration_s=st.floats(1, 100),
    swing=st.floats(0, 0.99),
)
@settings(deadline=None)
def test_same_seed_same_trace(seed: int, rate_rps: float, duration_s: float, swing: float) -> None:
    workload = Workload(
        sizes=PRESETS["code"].sizes,
        rate_rps=rate_rps,
        duration_s=duration_s,
        diurnal_ratio=swing,
        diurnal_period_s=50,
    )
    first, second = (list(generate(workload, seed=seed)) for _ in range(2))
    texts = []
    for chunks in (first, second):
        lines = io.StringIO()
        write_rows(chunks, lines.write)
        texts.append(lines.getvalue())
    assert texts[0] == texts[1]
    if first:
        requests = concatenate(first)
        assert np.all(np.diff(requests.arrival_s) >= 0)
        assert requests.arrival_s[0] >= 0
        assert requests.arrival_s[-1] <= duration_s + 1e-6
        assert min(requests.prompt_tokens.min(), requests.output_tokens.min()) >= 1


def test_other_seeds_and_arrivals() -> None:
    def some(seed: int, arrivals: Arrivals) -> Requests:
        workload = Workload(
            sizes=PRESETS["conversation"].sizes, rate_rps=10.0, duration_s=60.0, arrivals=arrivals
        )
        return concatenate(generate(workload, seed=seed))

    first, other_seed, other_gaps = (
        some(1, Arrivals.GAMMA),
        some(2, Arrivals.GAMMA),
        some(1, Arrivals.WEIBULL),
    )
    assert first.arrival_s[0] != other_seed.arrival_s[0]
    assert first.prompt_tokens[:100].tolist() != other_seed.prompt_tokens[:100].tolist()
    assert first.prompt_tokens[:100].tolist() == other_gaps.prompt_tokens[:100].tolist()


def test_more_than_a_chunk_goes_on_where_it_stopped() -> None:
    chunks = list(generate(Workload(sizes=PAIRS, rate_rps=1000.0, duration_s=150.0), seed=0))
    assert len(chunks) == 3
    assert np.all(np.diff(concatenate(chunks).arrival_s) >= 0)
    assert sum(map(len, chunks)) == pytest.approx(150_000, rel=0.02)


def test_resampling_keeps_pairs_together() -> None:
    prompt, output = PAIRS.draw(np.random.default_rng(0), 3000)
    assert np.all(prompt == 10 * output)
    assert np.bincount(output)[1:].min() > 900


def test_resampling_a_large_trace_keeps_a_fair_part() -> None:
    tokens = np.arange(1, 20_001)
    chunks = [
        Requests(arrival_s=np.zeros(len(part)), prompt_tokens=part, output_tokens=part)
        for part in np.array_split(tokens, 7)
    ]
    kept = resampled_sizes(chunks, seed=4, largest_count=2_000)
    assert len(kept.prompt_tokens) == 2_000 == len(set(kept.prompt_tokens.tolist()))
    assert kept.prompt_tokens.mean() == pytest.approx(10_000, rel=0.05)
    assert (
        kept.prompt_tokens.tolist()
        == resampled_sizes(chunks, seed=4, largest_count=2_000).prompt_tokens.tolist()
    )
    assert resampled_sizes(chunks, seed=4).prompt_tokens.tolist() == tokens.tolist()
    with pytest.raises(InputError, match="no request to resample"):
        resampled_sizes([], seed=0)


FLAT = QuantileTable(mean_tokens=500.0, knots=((0.0, 1.0), (0.5, 400.0), (1.0, 1500.0)))


def test_a_quantile_table_keeps_its_knots_and_its_mean() -> None:
    shares = (np.arange(100_000) + 0.5) / 100_000
    values = FLAT.at(shares)
    assert values.mean() == pytest.approx(500.0, rel=1e-3)
    assert FLAT.at(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx([1.0, 400.0, 1500.0])
    assert np.all(np.diff(values) >= 0)


def test_statistics_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match=r"a mean of 5000 tokens contradicts the quantiles; between"):
        QuantileTable(mean_tokens=5000.0, knots=FLAT.knots).at(np.array([0.5]))
    with pytest.raises(InputError, match=r"a correlation of 0\.9; between"):
        FittedSizes(prompt=FLAT, output=FLAT, correlation=0.9).draw(np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rate_rps", 0.0, "0 as rate_rps; a number above 0"),
        ("duration_s", float("inf"), "inf as duration_s"),
        ("cv", 0.0, "0 as cv; from 0.05 to 100"),
        ("cv", float("nan"), "nan as cv"),
        ("diurnal_ratio", 1.0, "1 as diurnal_ratio; from 0 to below 1"),
        ("diurnal_period_s", -1.0, "-1 as diurnal_period_s"),
        ("cv", 2.0, "a cv of 2 with poisson arrivals; gamma or weibull arrivals"),
    ],
)
def test_workloads_that_cannot_be(field: str, value: float, words: str) -> None:
    good: dict[str, float] = {"rate_rps": 1.0, "duration_s": 1.0}
    with pytest.raises(InputError) as caught:
        Workload(sizes=PAIRS, **(good | {field: value}))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_the_shipped_trace_is_what_its_readme_says() -> None:
    path = shipped_trace_path()
    readme = (path.parent / "README.txt").read_text("utf-8")
    assert (
        "ballast trace generate --preset conversation --duration-s 3600 --seed 0 --out telemetry/traces/"
        in readme
    )
    preset = PRESETS["conversation"]
    workload = Workload(
        sizes=preset.sizes, rate_rps=preset.rate_rps, duration_s=3600.0, arrivals=Arrivals.GAMMA, cv=preset.cv
    )
    lines = io.StringIO()
    write_rows(generate(workload, seed=0), lines.write)
    assert lines.getvalue().encode() == gzip.decompress(path.read_bytes())
    assert path.stat().st_size < 300_000
    assert f"{len(read_trace(path)):,} requests" in readme
