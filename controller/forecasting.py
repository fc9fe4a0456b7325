"""Forecasts of recorded demand, from file to answer, with a clock: what the commands ask and the benchmarks measure.

It exists because the solver reads no file and knows no clock. It decides nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from solver.domain.bucket_windows import BucketWindows, bucket_windows
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats
from solver.domain.trace_summary import TraceSummary
from solver.forecast.backtest import Judged, backtest
from solver.forecast.by_size import CapacityBySize, capacity_by_size, capacity_by_total
from solver.forecast.capacity import CapacityRate, capacity_rate
from solver.forecast.distribution import quantiles_rps
from solver.forecast.follow import Settings
from solver.forecast.recorded import without_gaps_as_zero
from telemetry.sources.demand_windows import read_demand_windows
from telemetry.sources.traces.read import open_trace

SHOWN_LEVELS = (0.05, 0.5, 0.9, 0.95, 0.99)
"""Quantiles of demand that a forecast shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedJudged:
    """A back-test of one series and the seconds that it took."""

    judged: Judged
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """What is to come of one series at one lead."""

    lead_s: float
    capacity: CapacityRate
    quantiles_rps: Floats
    """Of `SHOWN_LEVELS`; NaN while too little is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesForecasts:
    """What is to come of one series."""

    record: RateWindows
    forecasts: tuple[Forecast, ...]

    @property
    def end_s(self) -> float:
        """End of the last window: when the forecast is made, on the record's own clock."""
        return self.record.start_s + self.record.duration_s


MOST_WINDOWS = 200_000
"""Longer records are refused: they are meant to be made coarser."""


def read_series(
    path: str | Path, names: Sequence[str] = (), *, window_s: float | None = None
) -> tuple[RateWindows, ...]:
    """Read all series of a file, or those named, as they are or as means over longer windows.

    Raises
    ------
    InputError
        If the file is not sound, has no series of a name, or one has too many windows.
    """
    series = read_demand_windows(path)
    for name in names:
        if name not in {one.name for one in series}:
            raise InputError(
                f"no series {name!r}",
                where=str(path),
                right=f"one of {', '.join(one.name for one in series[:20])}",
            )
    found = []
    for one in series:
        if names and one.name not in names:
            continue
        coarse = one if window_s is None else without_gaps_as_zero(one).coarsened(window_s)
        if len(coarse) > MOST_WINDOWS:
            raise InputError(
                f"{len(coarse):,} windows of {one.name!r}",
                where=str(path),
                right=f"at most {MOST_WINDOWS:,}: --window-s 600 takes means over ten minutes",
            )
        found.append(coarse)
    return tuple(found)


def backtest_series(
    record: RateWindows,
    *,
    lead_s: float,
    violations: float,
    replica_rps: float | None = None,
    judge_last: float = 0.3,
    scale_down_windows: int = 1,
) -> TimedJudged:
    """Judge one series and take the time."""
    began_s = time.monotonic()
    judged = backtest(
        record,
        lead_s=lead_s,
        violations=violations,
        replica_rps=replica_rps,
        judge_last=judge_last,
        settings=Settings(scale_down_windows=scale_down_windows),
    )
    return TimedJudged(judged=judged, wall_s=time.monotonic() - began_s)


def forecast_series(
    record: RateWindows,
    *,
    leads_s: Sequence[float],
    hold_s: float | None,
    violations: float,
    scale_down_windows: int = 1,
) -> SeriesForecasts:
    """Forecast one series at several leads from its last window."""
    settings = Settings(scale_down_windows=scale_down_windows)
    found = []
    for lead_s in leads_s:
        capacity = capacity_rate(
            record, lead_s=lead_s, hold_s=hold_s, violations=violations, settings=settings
        )
        last = len(record) - 1
        quantiles = quantiles_rps(capacity.learnt, origins=range(last, last + 1), levels=SHOWN_LEVELS)
        found.append(Forecast(lead_s=lead_s, capacity=capacity, quantiles_rps=quantiles[:, 0]))
    return SeriesForecasts(record=record, forecasts=tuple(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnForecast:
    """The wish to plan for what a trace's own windows foretell."""

    by: Literal["sizes", "total"]
    lead_s: float
    """From the end of the trace; the plan must carry all of it."""
    violations: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeseenBuckets:
    """What to plan one model for."""

    buckets: tuple[RequestBucket, ...]
    capacity: CapacityBySize

    @property
    def rate_rps(self) -> float:
        """Sum of the buckets' rates."""
        return sum(bucket.rate_rps for bucket in self.buckets)


def check_read_twice(path: str | Path) -> None:
    """Refuse a trace that is gone once it is read: `read_history` reads it a second time.

    Raises
    ------
    InputError
        If the trace is standard input, or a pipe such as a shell's ``<(…)``. A file that is missing is not judged.
    """
    if str(path) == "-":
        raise InputError("standard input cannot be read twice", where="--trace", right="a file")
    found = Path(path)
    if found.exists() and not (found.is_file() or found.is_dir()):
        raise InputError("a pipe cannot be read twice", where=str(path), right="a file as --trace")


def check_lasts(summary: TraceSummary, path: str | Path, *, window_s: float) -> None:
    """Refuse a trace of no length, which has no windows to forecast from.

    Raises
    ------
    InputError
        If all its requests arrive at one instant.
    """
    if summary.mean_rps is None:
        raise InputError(
            "all requests arrive at one instant, which foretells nothing",
            where=str(path),
            right=f"a trace of more than one window of {window_s:g} s, or --rate peak instead of --forecast-own",
        )


def read_history(
    path: str | Path,
    buckets: Sequence[RequestBucket],
    *,
    window_s: float,
    trace_format: str | None = None,
    seed: int = 0,
) -> BucketWindows:
    """Read a trace once more and count its requests by window and bucket, in bounded memory.

    Raises
    ------
    InputError
        If the trace cannot be read again, or covers no whole window.
    """
    check_read_twice(path)
    with open_trace(path, format=trace_format, seed=seed) as stream:
        return bucket_windows(stream, buckets, window_s=window_s, name=stream.name)


def foreseen_buckets(
    history: BucketWindows,
    buckets: Sequence[RequestBucket],
    weights: Mapping[str, Floats],
    asked: OwnForecast,
    *,
    rate_scale: float = 1.0,
) -> dict[str, ForeseenBuckets]:
    """Return by model the sizes at the rates to plan for; every model has its own weights."""
    found = {}
    for model, own in weights.items():
        if asked.by == "sizes":
            capacity = capacity_by_size(
                history,
                weights=own,
                lead_s=asked.lead_s,
                hold_s=asked.lead_s,
                violations=asked.violations,
            )
        else:
            capacity = capacity_by_total(
                history, lead_s=asked.lead_s, hold_s=asked.lead_s, violations=asked.violations
            )
        found[model] = ForeseenBuckets(
            buckets=tuple(
                replace(bucket, rate_rps=rate * rate_scale)
                for bucket, rate in zip(buckets, capacity.rates_rps.tolist(), strict=True)
            ),
            capacity=capacity,
        )
    return found
