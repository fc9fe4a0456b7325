"""A day of requests with the days before it as rates: what the closed loop is tried on.

It exists so that the demo, the benchmark and tests take the same day: request sizes and their correlation resampled
from a trace, rates over the day (and the history before it) from recorded windows where there are some, else from
generated ones. It reads files and simulates nothing.

Generated rates (`generated_windows`) have what recorded ones of ServeGen show and a sine lacks: beside the daily swing
noise that lasts (AR(1) in the logarithm), and surges of some windows. They are made up, and say so.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controller.closed_loop.history import before
from controller.closed_loop.seen import sizes_of
from simulator.workload import ResampledSizes, Workload, generate, resampled_sizes
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Requests, concatenate
from telemetry.sources.traces.read import open_trace
from telemetry.sources.traces.servegen import read_rate_windows

DAY_S = 86_400.0
WINDOW_S = 600.0
_SWING = 0.4
_KEEPS, _SPREAD = 0.9, 0.1
_SURGES_PER_DAY = 2.0
_SURGE = (1.15, 1.5)
_SURGE_WINDOWS = (1, 5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Day:
    """Requests from 0 on, the rates before, and the sizes known beforehand."""

    name: str
    requests: Requests
    history: RateWindows
    """Ends at 0."""
    known_sizes: tuple[RequestBucket, ...]
    sizes_from: str


def recorded_windows(path: str | Path, service: str) -> RateWindows:
    """Read the windows of one service.

    Raises
    ------
    InputError
        If the file is not sound or has no such service.
    """
    series = {one.name: one for one in read_rate_windows(path)}
    if service not in series:
        raise InputError(f"no series {service!r} in {path}", right=f"one of {', '.join(series)}")
    return series[service]


def generated_windows(days: int, *, seed: int) -> RateWindows:
    """Make rates up: mean about 1, windows of 10 minutes, so many days."""
    randomness = np.random.default_rng([seed, 5])
    number = round(days * DAY_S / WINDOW_S)
    hours = np.arange(number) * WINDOW_S / 3600.0
    swing = 1.0 - _SWING * np.cos(2 * math.pi * (hours - 4.0) / 24.0)
    noise = np.zeros(number)
    steps = randomness.normal(0.0, _SPREAD * math.sqrt(1.0 - _KEEPS**2), number)
    for k in range(1, number):
        noise[k] = _KEEPS * noise[k - 1] + steps[k]
    surges = np.ones(number)
    for k in np.flatnonzero(randomness.random(number) < _SURGES_PER_DAY * WINDOW_S / DAY_S).tolist():
        lasts = int(randomness.integers(*_SURGE_WINDOWS))
        surges[k : k + lasts] = np.maximum(surges[k : k + lasts], randomness.uniform(*_SURGE))
    return RateWindows(
        name="generated", start_s=0.0, window_s=WINDOW_S, rate_rps=swing * np.exp(noise) * surges
    )


def day_of(
    windows: RateWindows,
    sizes_file: str | Path,
    *,
    day: int,
    mean_rps: float = 10.0,
    duration_s: float = DAY_S,
    seed: int = 0,
) -> Day:
    """Make the requests of one day of rate windows, counted from 0; the windows before it are its history.

    All rates are scaled so that those of the day have the wanted mean. Gaps in the day are bridged, those of the
    history stay.

    Raises
    ------
    InputError
        If the windows do not reach that far, or the day is the first.
    """
    first = round(day * DAY_S / windows.window_s)
    number = round(duration_s / windows.window_s)
    if day < 1 or first + number > len(windows):
        raise InputError(
            f"day {day} of {len(windows)} windows of {windows.window_s:g} s",
            right="a day with another before it, within the windows",
        )
    of_day = replace(windows, start_s=0.0, rate_rps=windows.filled().rate_rps[first : first + number])
    scale = mean_rps / float(of_day.rate_rps.mean())
    with open_trace(sizes_file) as stream:
        sizes = resampled_sizes(stream, seed=seed)
        name = Path(stream.name).name
    return Day(
        name=f"{windows.name}, day {day}",
        requests=_requests(of_day, sizes, mean_rps=mean_rps, duration_s=duration_s, seed=seed),
        history=before(windows, windows.start_s + first * windows.window_s, scale=scale),
        known_sizes=sizes_of(sizes.prompt_tokens, sizes.output_tokens),
        sizes_from=name,
    )


def _requests(
    rates: RateWindows, sizes: ResampledSizes, *, mean_rps: float, duration_s: float, seed: int
) -> Requests:
    workload = Workload(sizes=sizes, rate_rps=mean_rps, duration_s=duration_s, rates=rates)
    return concatenate(generate(workload, seed=seed))
