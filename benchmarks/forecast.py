"""Capacity from forecasts against simple rules tuned in hindsight, and how true the stated probabilities are.

It exists so that the targets of forecasting are measured in one run. The recorded part needs ServeGen's windows
(``--data``); the generated part has noise of known distribution. The settings of the method were chosen elsewhere
(docs/forecast.md).
"""

import statistics
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.results import Result, Setting, at_most, say
from controller.forecasting import backtest_series
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats
from solver.forecast.backtest import Judged
from solver.forecast.capacity import capacity_rate
from telemetry.sources.demand_windows import read_demand_windows

NINE_DAYS = ("m-large", "m-mid", "m-small")
LEADS_S = (600.0, 1800.0)
VIOLATIONS = 0.01
UTILISATION = 0.7
"""Of the reactive rule that most clusters run: replicas for the last rate at 70 %."""


def bench_forecast(setting: Setting) -> Iterator[Result]:
    """Judge recorded series, then generated ones."""
    yield from _recorded(setting)
    yield from _generated(setting)
    yield _asked_again()


def _recorded(setting: Setting) -> Iterator[Result]:
    path = setting.data / "seeds" / "traces" / "servegen" / "window_rates.csv.gz"
    if not path.exists():
        say(f"{path} is not there: recorded series are left out (--data DIR)")
        return
    records = read_demand_windows(path)
    ratios, walls = [], []
    for lead_s in LEADS_S:
        for record in records:
            timed = backtest_series(record, lead_s=lead_s, violations=VIOLATIONS)
            judged, name = timed.judged, f"forecast: {record.name}, lead {lead_s / 60:g} min"
            if record.name not in NINE_DAYS:
                yield Result(
                    name=f"{name}: falls back on a short history and says so",
                    value=float(judged.fallback is not None),
                    unit="yes",
                    target="= 1",
                    met=judged.fallback is not None,
                )
                continue
            walls.append(timed.wall_s)
            yield at_most(f"{name}: violated", judged.violation_ratio, "ratio", 0.015)
            if judged.best_rule is not None and judged.cost_ratio_to_best_rule is not None:
                ratios.append(judged.cost_ratio_to_best_rule)
                yield at_most(
                    f"{name}: cost against {judged.best_rule.name} x {judged.best_rule.margin_ratio:.2f}",
                    judged.cost_ratio_to_best_rule,
                    "ratio",
                    1.10,
                    peer_value=1.0,
                    ratio=1 / judged.cost_ratio_to_best_rule,
                )
            yield _within(f"{name}: coverage of the 90 % interval", judged.coverage_90_ratio, 0.87, 0.93)
            hours, missed = _reactive(judged)
            yield Result(
                name=f"{name}: replica-hours (peer: last rate at 70 %, {100 * missed:.1f} % violated)",
                value=judged.replica_hours,
                unit="h",
                peer_value=hours,
                ratio=hours / judged.replica_hours,
            )
    yield Result(
        name="forecast: least cost against the best simple rule in hindsight",
        value=min(ratios),
        unit="ratio",
        target="< 1",
        met=min(ratios) < 1,
    )
    yield at_most("forecast: longest back-test of a nine-day series", max(walls), "s", 1.0)


def _reactive(judged: Judged) -> tuple[float, float]:
    """Return replica-hours and violations of replicas for the last known rate at 70 %."""
    rates, unit = judged.learnt.rates, judged.replica_rps
    late = judged.learnt.ahead[-1]
    known = np.flatnonzero(~np.isnan(rates))
    hours = missed = windows = 0.0
    for window in range(judged.judged_from, judged.windows):
        if np.isnan(rates[window]):
            continue
        last = rates[known[np.searchsorted(known, window - late, side="right") - 1]]
        replicas = max(1.0, np.ceil(last / unit / UTILISATION))
        hours += replicas * judged.window_s / 3600
        missed += rates[window] > replicas * unit
        windows += 1
    return float(hours), missed / windows


def _within(name: str, value: float, low: float, high: float) -> Result:
    return Result(
        name=name, value=value, unit="ratio", target=f"{low:g} to {high:g}", met=low <= value <= high
    )


def generated_rates(kind: str, seed: int, *, windows: int = 2592) -> Floats:
    """Draw 18 days of 10-minute windows: a daily pattern and independent noise of a known distribution."""
    draw = np.random.default_rng(seed)
    pattern = 100 + 30 * np.sin(2 * np.pi * np.arange(windows) / 144)
    if kind == "normal":
        noise = draw.normal(0, 8, windows)
    elif kind == "lognormal":
        noise = 8 * (draw.lognormal(0, 0.6, windows) - 1)
    else:
        noise = draw.normal(0, 4, windows) + 60 * (draw.random(windows) < 0.05)
    return np.asarray(np.maximum(pattern + noise, 1.0), dtype=np.float64)


def _generated(setting: Setting) -> Iterator[Result]:
    seeds = range(2 if setting.quick else 8)
    for kind in ("normal", "lognormal", "bursts"):
        found = [
            backtest_series(
                RateWindows(name=kind, start_s=0.0, window_s=600.0, rate_rps=generated_rates(kind, seed)),
                lead_s=lead_s,
                violations=VIOLATIONS,
                judge_last=0.6,
            ).judged
            for seed in seeds
            for lead_s in LEADS_S
        ]
        covered = [judged.coverage_90_ratio for judged in found]
        yield _within(f"forecast: coverage, generated {kind}, mean", statistics.fmean(covered), 0.88, 0.92)
        yield _within(f"forecast: coverage, generated {kind}, lowest", min(covered), 0.88, 0.92)
        yield at_most(
            f"forecast: violated, generated {kind}, mean",
            statistics.fmean(judged.violation_ratio for judged in found),
            "ratio",
            0.015,
        )


def _asked_again() -> Result:
    """Time what a planner pays for every new window once it carries what was learnt."""
    rates = generated_rates("normal", 1)
    learnt = capacity_rate(_until(rates, 2000), lead_s=600.0).learnt
    began_s = time.perf_counter()
    for number in range(2001, 2101):
        learnt = capacity_rate(_until(rates, number), lead_s=600.0, earlier=learnt).learnt
    return at_most("forecast: a new window, 2,000 known", 10 * (time.perf_counter() - began_s), "ms", 20.0)


def _until(rates: Floats, number: int) -> RateWindows:
    return RateWindows(name="m", start_s=0.0, window_s=600.0, rate_rps=rates[:number])
