"""Capacity for a load of many sizes: the promise is kept whatever the sizes do together, at no needless cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from solver.domain.bucket_windows import BucketWindows
from solver.domain.errors import InputError
from solver.forecast.backtest_by_size import JudgedBySize, backtest_by_size
from solver.forecast.by_size import capacity_by_size, capacity_by_total, mean_mix, raised, residuals
from solver.forecast.capacity import capacity_rate

WEIGHTS = np.array([1.0, 3.0, 10.0])
SHARES = np.array([0.6, 0.3, 0.1])
SEEDS = range(3)


def history(rates_rps: np.ndarray, window_s: float = 600.0) -> BucketWindows:
    return BucketWindows(name="m", start_s=0.0, window_s=window_s, rates_rps=rates_rps)


def generated(kind: str, seed: int, windows: int = 1200) -> BucketWindows:
    """Three sizes with a daily pattern; what is random is known."""
    draw = np.random.default_rng(seed)
    base = 100 * (1 + 0.3 * np.sin(2 * np.pi * np.arange(windows) / 144))[:, None] * SHARES
    if kind == "independent":
        rates = base * np.exp(0.2 * draw.standard_normal((windows, 3)))
    elif kind == "together":
        rates = base * np.exp(0.2 * draw.standard_normal((windows, 1)))
    elif kind == "opposite":  # what the cheap size gains in work, the dear one loses
        swing = 0.5 * draw.uniform(-1, 1, windows)
        rates = base.copy()
        rates[:, 2] *= 1 + swing
        rates[:, 0] -= base[:, 2] * swing * WEIGHTS[2] / WEIGHTS[0] * 0.5
    else:  # drifting: the total is calm, the mix wanders
        walk = np.zeros((windows, 3))
        for i in range(1, windows):
            walk[i] = 0.98 * walk[i - 1] + 0.08 * draw.standard_normal(3)
        mix = SHARES * np.exp(walk)
        rates = base.sum(axis=1, keepdims=True) * mix / mix.sum(axis=1, keepdims=True)
    return history(np.maximum(rates, 0.0))


def judged(kind: str, violations: float = 0.01) -> list[JudgedBySize]:
    return [
        backtest_by_size(generated(kind, seed), weights=WEIGHTS, lead_s=1200.0, violations=violations)
        for seed in SEEDS
    ]


@pytest.mark.parametrize("kind", ["independent", "together", "opposite", "drifting"])
def test_the_load_exceeds_its_capacity_as_rarely_as_stated(kind: str) -> None:
    found = judged(kind)
    assert np.mean([one.by_size.violation_ratio for one in found]) <= 0.015
    assert all(one.short_windows == 0 for one in found)


def test_scaling_the_total_breaks_its_promise_where_the_mix_drifts() -> None:
    found = judged("drifting")
    assert np.mean([one.by_total.violation_ratio for one in found]) > 0.05
    assert np.mean([one.by_size.loss_ratio for one in found]) < 0.5 * np.mean(
        [one.by_total.loss_ratio for one in found]
    )


def sum_of_quantiles(record: BucketWindows, violations: float = 0.01) -> float:
    """Return the weighted sum of what every size on its own would ask for."""
    total = 0.0
    for bucket, weight in enumerate(WEIGHTS):
        alone = BucketWindows(
            name="b", start_s=0.0, window_s=record.window_s, rates_rps=record.rates_rps[:, [bucket]]
        ).total
        total += weight * capacity_rate(alone, lead_s=600.0, violations=violations).rate_rps
    return total


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("independent", 0.7, 0.97), ("together", 0.999, 1.001), ("opposite", 0.5, 0.95)],
)
def test_sizes_that_are_not_high_at_once_need_less_than_the_sum_of_their_quantiles(
    kind: str, least: float, most: float
) -> None:
    ratios = []
    for seed in SEEDS:
        record = generated(kind, seed, 700)
        found = capacity_by_size(record, weights=WEIGHTS, lead_s=600.0)
        ratios.append(float((WEIGHTS * found.rates_rps).sum()) / sum_of_quantiles(record))
    assert max(ratios) <= most
    assert min(ratios) >= least


def test_a_mix_that_never_changes_is_scaled_by_its_total() -> None:
    draw = np.random.default_rng(5)
    total = 80 * np.exp(0.3 * draw.standard_normal(400))
    found = capacity_by_size(history(total[:, None] * SHARES), weights=WEIGHTS, lead_s=600.0)
    whole = capacity_by_total(history(total[:, None] * SHARES), lead_s=600.0)
    assert found.by_total is None
    assert found.rates_rps == pytest.approx(whole.rates_rps, rel=1e-9)
    assert whole.rates_rps == pytest.approx(whole.load.rate_rps * SHARES)


def test_a_short_record_is_scaled_by_its_total_and_says_so() -> None:
    record = history(np.array([[3.0, 1.0, 0.0], [np.nan] * 3, [1.0, 1.0, 2.0]]))
    found = capacity_by_size(record, weights=WEIGHTS, lead_s=600.0)
    assert found.by_total == "short history: 2 recorded windows, 100 teach a quantile of 0.99"
    assert found.rates_rps == pytest.approx(found.load.rate_rps * np.array([0.5, 0.25, 0.25]))
    assert found.load.rate_rps >= 4.0


rates = numpy_strategies.arrays(
    np.float64, (60, 3), elements=st.one_of(st.just(0.0), st.floats(0.5, 200.0))
).filter(lambda values: bool(values.any()))
weights = numpy_strategies.arrays(np.float64, 3, elements=st.floats(0.01, 100.0))


@settings(max_examples=40, deadline=None)
@given(rates=rates, weights=weights, scale=st.floats(0.01, 100.0))
def test_rates_make_the_load_whatever_the_record(
    rates: np.ndarray, weights: np.ndarray, scale: float
) -> None:
    record = history(rates)
    found = capacity_by_size(record, weights=weights, lead_s=600.0, violations=0.1)
    assert found.rates_rps.min() >= 0.0
    if found.by_total is None:
        made = float((found.weights * found.rates_rps).sum())
        assert made == pytest.approx(found.load.rate_rps, rel=1e-9, abs=1e-12)
    assert float((found.weights * mean_mix(record)).sum()) == pytest.approx(1.0) or found.by_total
    other = capacity_by_size(record, weights=weights * scale, lead_s=600.0, violations=0.1)
    assert other.rates_rps == pytest.approx(found.rates_rps, rel=1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(rates=rates, weights=weights, share=st.floats(0.05, 0.95))
def test_telling_a_size_apart_from_its_like_changes_nothing(
    rates: np.ndarray, weights: np.ndarray, share: float
) -> None:
    whole = capacity_by_size(history(rates), weights=weights, lead_s=600.0, violations=0.1)
    parted = np.column_stack((rates, rates[:, 2] * (1 - share)))
    parted[:, 2] *= share
    found = capacity_by_size(
        history(parted), weights=np.append(weights, weights[2]), lead_s=600.0, violations=0.1
    )
    together = np.append(found.rates_rps[:2], found.rates_rps[2:].sum())
    assert together == pytest.approx(whole.rates_rps, rel=1e-6, abs=1e-9)


def test_surges_are_planned_for_the_size_that_surges() -> None:
    draw = np.random.default_rng(2)
    rates = np.tile([50.0, 20.0, 5.0], (500, 1))
    rates[:, 2] *= np.exp(0.5 * draw.standard_normal(500))
    found = capacity_by_size(history(rates), weights=WEIGHTS, lead_s=600.0)
    assert found.rates_rps[2] > 1.5 * rates[:, 2].mean()
    assert found.rates_rps[:2] == pytest.approx([50.0, 20.0], rel=0.1)


def test_the_direction_is_that_of_the_conditional_mean() -> None:
    """For normal rates E[r | load = Q] = mean + (Q - mean load) cov(r, load) / var(load)."""
    draw = np.random.default_rng(3)
    spread = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
    rates = draw.multivariate_normal([60.0, 40.0, 20.0], spread, 20_000)
    seen = residuals(history(rates), WEIGHTS, ahead=range(1, 2))
    location = np.array([60.0, 40.0, 20.0])
    load = float((WEIGHTS * location).sum()) + 10.0
    along = spread @ WEIGHTS
    expected = location + 10.0 * along / float(WEIGHTS @ along)
    found = raised(location, seen.errors, WEIGHTS, load)
    assert found == pytest.approx(expected, abs=0.15)


def test_what_was_learnt_gives_the_same_answer() -> None:
    record = generated("independent", 1, 300)
    before = history(record.rates_rps[:280])
    once = capacity_by_size(before, weights=WEIGHTS, lead_s=600.0)
    again = capacity_by_size(record, weights=WEIGHTS, lead_s=600.0, earlier=once.learnt)
    anew = capacity_by_size(record, weights=WEIGHTS, lead_s=600.0)
    assert again.rates_rps == pytest.approx(anew.rates_rps, rel=1e-9)


@pytest.mark.parametrize(
    ("rates_rps", "weights", "words"),
    [
        (np.full((3, 3), np.nan), WEIGHTS, "no window"),
        (np.zeros((3, 3)), WEIGHTS, "nothing arrived"),
        (np.array([[1.0, -1.0, 0.0]]), WEIGHTS, "window 0, bucket 1"),
        (np.ones((3, 3)), np.array([1.0, 0.0, 1.0]), "positive number per bucket"),
        (np.ones((3, 3)), np.ones(2), "positive number per bucket"),
        (np.ones((3, 3)), np.array([1.0, np.nan, 1.0]), "positive number per bucket"),
    ],
)
def test_what_cannot_be_is_named(rates_rps: np.ndarray, weights: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        capacity_by_size(history(rates_rps), weights=weights, lead_s=600.0)


def test_gaps_and_idle_windows_teach_nothing_and_break_nothing() -> None:
    rates = generated("independent", 4, 400).rates_rps.copy()
    rates[50:60] = np.nan
    rates[-8:] = 0.0  # of a busy service: not recorded
    found = capacity_by_size(history(rates), weights=WEIGHTS, lead_s=600.0)
    assert found.rates_rps.min() > 0.0
    with pytest.raises(InputError, match="to judge"):
        backtest_by_size(history(rates[:1]), weights=WEIGHTS, lead_s=600.0)
