"""Forecasts and back-tests for programs and people: ``forecast-run/1``, ``forecast-backtest/1`` and their tables."""

import math
from collections.abc import Sequence
from typing import Any

import click

from controller.cli.answers import ballast_version, rounded
from controller.cli.output import print_table
from controller.forecasting import SHOWN_LEVELS, SeriesForecasts, TimedJudged
from solver.forecast.backtest import HindsightRule, Judged

_SHOWN_RULES = 3
_NAME_WIDTH = 24


def run_answer(
    found: Sequence[SeriesForecasts], *, violations: float, replica_rps: float | None
) -> dict[str, Any]:
    """Write ``forecast-run/1``."""
    return {
        "schema": "forecast-run/1",
        "version": ballast_version(),
        "violations": rounded(violations),
        "replica_rps": rounded(replica_rps),
        "series": [
            {
                "name": one.record.name,
                "end_s": rounded(one.end_s),
                "window_s": rounded(one.record.window_s),
                "windows": len(one.record),
                "gaps": len(one.record) - one.forecasts[0].capacity.known_windows,
                "forecasts": [
                    {
                        "lead_s": rounded(forecast.lead_s),
                        "capacity_rps": rounded(forecast.capacity.rate_rps),
                        "replicas": _replicas(forecast.capacity.rate_rps, replica_rps),
                        "rule": forecast.capacity.rule,
                        "level_ratio": rounded(forecast.capacity.level_ratio),
                        "fallback": forecast.capacity.fallback,
                        "quantiles_rps": {
                            f"q{round(100 * level):02d}": _known(float(rate))
                            for level, rate in zip(SHOWN_LEVELS, forecast.quantiles_rps, strict=True)
                        },
                    }
                    for forecast in one.forecasts
                ],
            }
            for one in found
        ],
    }


def backtest_answer(
    found: Sequence[TimedJudged], *, violations: float, judge_last: float, timings: bool
) -> dict[str, Any]:
    """Write ``forecast-backtest/1``; without timings equal runs give equal bytes."""
    return {
        "schema": "forecast-backtest/1",
        "version": ballast_version(),
        "lead_s": rounded(found[0].judged.lead_s),
        "violations": rounded(violations),
        "judge_last": rounded(judge_last),
        "series": [
            {**_judged(timed.judged), **({"wall_s": round(timed.wall_s, 6)} if timings else {})}
            for timed in found
        ],
    }


def _judged(judged: Judged) -> dict[str, Any]:
    return {
        "name": judged.name,
        "chosen": judged.chosen,
        "violation_ratio": rounded(judged.violation_ratio),
        "replica_hours": rounded(judged.replica_hours),
        "cost_ratio_to_oracle": rounded(judged.cost_ratio_to_oracle),
        "cost_ratio_to_best_rule": rounded(judged.cost_ratio_to_best_rule),
        "crps": _known(judged.crps_ratio),
        "coverage_90_ratio": _known(judged.coverage_90_ratio),
        "fallback": judged.fallback,
        "played": [{"rule": rule, "share": rounded(share)} for rule, share in judged.played],
        "window_s": rounded(judged.window_s),
        "windows": judged.windows,
        "gaps": judged.gaps,
        "judged_windows": judged.judged_windows,
        "replica_rps": rounded(judged.replica_rps),
        "oracle_replica_hours": rounded(judged.oracle_replica_hours),
        "best_rule": None if judged.best_rule is None else _rule(judged.best_rule),
        "rules": [_rule(rule) for rule in judged.rules],
    }


def _rule(rule: HindsightRule) -> dict[str, Any]:
    return {
        "rule": rule.name,
        "margin_ratio": rounded(rule.margin_ratio),
        "violation_ratio": rounded(rule.violation_ratio),
        "replica_hours": rounded(rule.replica_hours),
    }


def print_forecasts(
    found: Sequence[SeriesForecasts], *, violations: float, replica_rps: float | None
) -> None:
    """Print one line per series and lead."""
    rows = []
    for one in found:
        for forecast in one.forecasts:
            capacity = forecast.capacity
            replicas = _replicas(capacity.rate_rps, replica_rps)
            rows.append(
                (
                    _short(one.record.name),
                    f"{forecast.lead_s / 60:g} min",
                    *(
                        _figure(float(forecast.quantiles_rps[SHOWN_LEVELS.index(q)]))
                        for q in (0.05, 0.5, 0.95)
                    ),
                    _figure(capacity.rate_rps),
                    *(() if replica_rps is None else (replicas,)),
                    capacity.rule,
                )
            )
    print_table(
        f"Requests/s to come, exceeded with probability {violations:g}",
        (
            "series",
            "lead",
            "5 %",
            "median",
            "95 %",
            "capacity",
            *(() if replica_rps is None else ("replicas",)),
            "rule",
        ),
        rows,
        right=(1, 2, 3, 4, 5) if replica_rps is None else (1, 2, 3, 4, 5, 6),
    )
    for one in found:
        for forecast in one.forecasts:
            if forecast.capacity.fallback is not None:
                click.echo(
                    f"{_short(one.record.name)}, {forecast.lead_s / 60:g} min: {forecast.capacity.fallback}"
                )


def print_backtests(found: Sequence[TimedJudged], *, violations: float) -> None:
    """Print what was judged, one line per series, and the best simple rules below."""
    first = found[0].judged
    print_table(
        f"Lead {first.lead_s / 60:g} min, wanted violations {100 * violations:g} %",
        ("series", "chosen", "violated", "replica-h", "to oracle", "to best rule", "CRPS", "in 90 %"),
        [
            (
                _short(judged.name),
                judged.chosen + (" (fallback)" if judged.fallback else ""),
                f"{100 * judged.violation_ratio:.2f} %",
                f"{judged.replica_hours:,.0f}",
                f"{judged.cost_ratio_to_oracle:.3f}",
                None if judged.cost_ratio_to_best_rule is None else f"{judged.cost_ratio_to_best_rule:.3f}",
                None if math.isnan(judged.crps_ratio) else f"{judged.crps_ratio:.4f}",
                None if math.isnan(judged.coverage_90_ratio) else f"{100 * judged.coverage_90_ratio:.1f} %",
            )
            for judged in (timed.judged for timed in found)
        ],
        right=(2, 3, 4, 5, 6, 7),
    )
    print_table(
        "Simple rules tuned in hindsight to no more violations",
        ("series", "rule", "margin", "violated", "replica-h"),
        [
            (
                _short(timed.judged.name),
                rule.name,
                f"{rule.margin_ratio:.2f}",
                f"{100 * rule.violation_ratio:.2f} %",
                f"{rule.replica_hours:,.0f}",
            )
            for timed in found
            for rule in timed.judged.rules[:_SHOWN_RULES]
        ],
        right=(2, 3, 4),
    )
    for timed in found:
        judged = timed.judged
        if judged.gaps:
            click.echo(f"{_short(judged.name)}: {judged.gaps} of {judged.windows} windows were not recorded")
        if judged.fallback is not None:
            click.echo(f"{_short(judged.name)}: the reactive rule stood in: {judged.fallback}")
        if judged.best_rule is None:
            click.echo(f"{_short(judged.name)}: no simple rule has so few violations at any margin tried")


def _replicas(rate_rps: float, replica_rps: float | None) -> int | None:
    return None if replica_rps is None else max(1, math.ceil(rate_rps / replica_rps - 1e-9))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else rounded(value)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…"
