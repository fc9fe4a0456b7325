"""Back-tests: the protocol against a plain second reading of it, calibration on known distributions, the targets."""

import math
from pathlib import Path

import numpy as np
import pytest

from solver.domain.errors import InputError
from solver.forecast.backtest import backtest
from solver.forecast.capacity import capacity_rate
from solver.forecast.distribution import crps
from telemetry.sources.demand_windows import read_demand_windows
from tests.solver.forecast.test_capacity import history, wandering

DATA = (
    Path(__file__).resolve().parents[4]
    / "shared"
    / "data"
    / "seeds"
    / "traces"
    / "servegen"
    / "window_rates.csv.gz"
)


def _plain_best(rates: list[float], judged: list[int], *, late: int, most: int, unit: float, k: int) -> float:
    """Replica-windows of the cheapest margin of max of last k, window by window."""
    best = math.inf
    for step in range(50, 601):
        cost, violated = 0.0, 0
        for j in judged:
            seen = [r for r in rates[max(0, j - late - k + 1) : j - late + 1] if not math.isnan(r)]
            replicas = max(1.0, math.ceil(max(seen) * (step / 100) / unit - 1e-9))
            cost += replicas
            violated += rates[j] > replicas * unit * (1 + 1e-9)
        if violated <= most:
            best = min(best, cost)
    return best


@pytest.mark.parametrize("lead_s", [600.0, 1800.0])
def test_the_protocol_read_a_second_time(lead_s: float) -> None:
    rates = wandering(300, seed=4)
    judged = backtest(history(rates), lead_s=lead_s, violations=0.05)
    late, unit = round(lead_s / 600), float(rates.mean() / 50)
    windows = list(range(210, 300))
    caps = [
        capacity_rate(history(rates[: j - late + 1]), lead_s=lead_s, hold_s=600, violations=0.05).rate_rps
        for j in windows[::30]
    ]
    replicas = [max(1, math.ceil(cap / unit - 1e-9)) for cap in caps]
    np.testing.assert_allclose(judged.capacity_rps[windows[::30]], np.array(replicas) * unit)
    shares = judged.capacity_rps[210:]
    assert judged.violation_ratio == pytest.approx(np.mean(rates[210:] > shares * (1 + 1e-9)))
    assert judged.replica_hours == pytest.approx(shares.sum() / unit / 6)
    assert judged.oracle_replica_hours == pytest.approx(np.ceil(rates[210:] / unit - 1e-9).sum() / 6)
    most = round(judged.violation_ratio * 90)
    found = {rule.name: rule.replica_hours for rule in judged.rules}
    for k, name in ((1, "last value"), (3, "max of last 3")):
        plain = _plain_best(rates.tolist(), windows, late=late, most=most, unit=unit, k=k)
        assert found[name] == pytest.approx(plain / 6)


def test_gaps_are_not_judged_and_ask_for_no_mountains() -> None:
    rates = wandering(600, seed=2) * 10
    rates[450:460] = 0.0
    rates[460] = 3.0
    judged = backtest(history(rates))
    assert judged.gaps == 10
    assert judged.judged_windows == 170
    assert np.nanmax(judged.capacity_rps) < 1.2 * rates.max()
    assert judged.cost_ratio_to_oracle < 2


@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_constant_series(rate: float) -> None:
    judged = backtest(history(np.full(200, rate)))
    assert judged.violation_ratio == 0
    assert judged.cost_ratio_to_oracle == pytest.approx(1, abs=0.03)
    assert judged.coverage_90_ratio == 1
    assert judged.best_rule is not None


def test_an_exact_forecast_of_large_rates_is_inside_its_interval() -> None:
    """What repeats is forecast to the last digit, or nearly."""
    judged = backtest(history(1e9 * (1 + np.arange(400) % 3)), lead_s=1800)
    assert judged.violation_ratio == 0
    assert judged.coverage_90_ratio == 1


def test_a_single_day() -> None:
    """101 windows before the judged part teach a quantile of 0.99 just about; the answer exists."""
    judged = backtest(history(wandering(144)))
    assert judged.judged_windows == 43
    assert judged.rules


def test_half_a_day_falls_back_and_says_so() -> None:
    judged = backtest(history(wandering(72)))
    assert judged.chosen == "max of last 3"
    assert judged.fallback is not None
    assert "short history" in judged.fallback


def test_almost_nothing() -> None:
    judged = backtest(history(np.array([1.0, 2.0, 3.0, 4.0])), judge_last=0.5)
    assert judged.judged_windows == 2
    assert math.isnan(judged.crps_ratio)
    assert math.isnan(judged.coverage_90_ratio)


def test_what_cannot_be_judged_is_said() -> None:
    only_late = np.concatenate((np.full(70, np.nan), np.ones(30)))
    for rates, lead_s in (
        (np.full(9, np.nan), 600.0),
        (np.ones(1), 600.0),
        (only_late, 600.0),
        (np.ones(9), 1e6),
    ):
        with pytest.raises(InputError, match="recorded windows to judge"):
            backtest(history(rates), lead_s=lead_s)
    with pytest.raises(InputError, match="a share between"):
        backtest(history(np.ones(9)), judge_last=1.0)
    with pytest.raises(InputError, match="a positive rate"):
        backtest(history(np.ones(9)), replica_rps=0.0)


def test_crps_of_a_known_distribution() -> None:
    """The CRPS of the right normal forecast is sigma / sqrt(pi); of a point it is the mean absolute error."""
    draw = np.random.default_rng(0)
    levels = [step / 1000 for step in range(1, 1000)]
    sample = np.sort(draw.standard_normal(200_001))
    quantiles = sample[[round(200_000 * level) for level in levels]]
    outcomes = draw.standard_normal(4000)
    score = crps(np.repeat(quantiles[:, None], 4000, axis=1), outcomes, levels)
    assert score == pytest.approx(1 / math.sqrt(math.pi), rel=0.03)
    assert crps(np.zeros((999, 4000)), outcomes, levels) == pytest.approx(np.abs(outcomes).mean(), rel=1e-9)
    assert math.isnan(crps(np.zeros((999, 1)), np.array([np.nan]), levels))


@pytest.mark.parametrize("lead_s", [600.0, 1800.0])
@pytest.mark.parametrize("kind", ["normal", "skewed", "bursts"])
def test_ninety_percent_intervals_hold_ninety_percent(kind: str, lead_s: float) -> None:
    """On generated series whose noise is known: independent of the day's pattern, normal, lognormal or with bursts."""
    draw = np.random.default_rng(11)
    number = 2592
    pattern = 100 + 30 * np.sin(2 * np.pi * np.arange(number) / 144)
    noise = {
        "normal": draw.normal(0, 8, number),
        "skewed": 8 * (draw.lognormal(0, 0.6, number) - 1),
        "bursts": draw.normal(0, 4, number) + 60 * (draw.random(number) < 0.05),
    }[kind]
    judged = backtest(history(np.maximum(pattern + noise, 1.0)), lead_s=lead_s, judge_last=0.6)
    assert 0.88 <= judged.coverage_90_ratio <= 0.92


@pytest.mark.skipif(not DATA.exists(), reason="needs ServeGen's windows in shared/data")
@pytest.mark.parametrize("lead_s", [600.0, 1800.0])
def test_targets_on_recorded_series(lead_s: float) -> None:
    judged = {record.name: backtest(record, lead_s=lead_s) for record in read_demand_windows(DATA)}
    ratios = []
    for name in ("m-large", "m-mid", "m-small"):
        one = judged[name]
        assert one.violation_ratio <= 0.015
        assert 0.87 <= one.coverage_90_ratio <= 0.93
        assert one.fallback is None
        assert one.cost_ratio_to_best_rule is not None
        ratios.append(one.cost_ratio_to_best_rule)
    assert max(ratios) <= 1.10
    for name in ("mm-image", "deepseek-r1"):
        assert judged[name].fallback is not None
