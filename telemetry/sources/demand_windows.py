"""Recorded rates as a forecast takes them: a CSV of windows that may have gaps, in seconds or in calendar time.

It exists because records for a forecast come from people's own monitoring: with missing rows, empty cells, NaN, and
time stamps with a zone, all of which `telemetry.sources.traces.servegen` has no need to take. What is missing stays
missing (NaN); what cannot be true is an error with its line. It judges no rate and fills no gap.

Columns: ``t_s`` (start of the window: seconds, or ISO 8601 with a zone, read as seconds since 1970, so that a change
to or from daylight saving time is no jump), ``rate_rps`` (empty or NaN: not recorded) and, if there, ``model`` (else
the file is one series) and ``active_clients`` (rate 0 without a client was not recorded). ServeGen's own client files
and folders are read as `read_rate_windows` does.
"""

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError, Place
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import LARGEST_WINDOW_COUNT
from telemetry.sources.traces.csv_rows import find_columns, header_names, read_columns
from telemetry.sources.traces.fields import BadFieldError, Kind, rate_rps, seconds, stamp_ns
from telemetry.sources.traces.lines import LineSource, quoted
from telemetry.sources.traces.servegen import read_rate_windows

_LAYOUT = "model,t_s,rate_rps"
_MISSING = {"", "nan", "null", "none", "na"}
_ZONED = re.compile(r"(?:Z|[+-][0-9]{2}:[0-9]{2})")


def read_demand_windows(path: str | Path) -> tuple[RateWindows, ...]:
    """Read the series of a file, in the order in which they begin there.

    The length of a series' windows is the shortest time between two of them; windows between others that have no row
    were not recorded.

    Raises
    ------
    InputError
        One line with file, line and field: a negative rate, a time without a zone, windows out of order, twice or
        beside the grid, a series of one window.
    """
    if str(path) != "-" and "\0" not in str(path) and Path(path).is_dir():
        return read_rate_windows(path)
    source = LineSource(path)
    try:
        names = header_names(_header(source))
        if not names.issuperset({"t_s", "rate_rps"}) and str(path) != "-":
            return read_rate_windows(path)
        rows = _rows(source)
    finally:
        source.close()
    if not rows:
        raise InputError("no window in it", where=source.name, right=f"a file with columns {_LAYOUT}")
    return tuple(_series(name, windows) for name, windows in rows.items())


def _header(source: LineSource) -> str:
    try:
        return source.first_line().decode("utf-8", "replace")
    except InputError as error:  # what it says is right is for traces of requests
        raise InputError(error.what, where=error.where, right=f"a file with columns {_LAYOUT}") from None


def _rows(source: LineSource) -> dict[str, list[tuple[float, float, Place]]]:
    columns = find_columns(
        source,
        layout=_LAYOUT,
        required={"start": ("t_s", Kind.TEXT), "rate": ("rate_rps", Kind.TEXT)},
        optional={"model": ("model", Kind.TEXT), "clients": ("active_clients", Kind.TEXT)},
    )
    alone = Path(source.name).name.partition(".")[0] if source.name != "standard input" else "demand"
    rows: dict[str, list[tuple[float, float, Place]]] = {}
    for lines, values in read_columns(source, columns):
        texts = {role: column.to_list() for role, column in values.items()}
        for row, line in enumerate(lines.tolist()):
            start_s = _field(source, line, "t_s", texts["start"][row])
            rate = _field(source, line, "rate_rps", texts["rate"][row])
            if rate == 0 and "clients" in texts and texts["clients"][row].strip() == "0":
                rate = math.nan
            name = texts["model"][row] if "model" in texts else alone
            rows.setdefault(name, []).append((start_s, rate, source.place(line, "t_s")))
    return rows


def _field(source: LineSource, line: int, name: str, text: str) -> float:
    try:
        if name == "rate_rps":
            return math.nan if text.strip().lower() in _MISSING else rate_rps(text)
        return _time_s(text)
    except BadFieldError as error:
        raise InputError(error.what, where=source.place(line, name), right=error.right) from None


def _time_s(text: str) -> float:
    if ":" not in text and "-" not in text.strip()[1:]:
        return seconds(text)
    if not _ZONED.search(text, text.find(":")):
        raise BadFieldError(
            f"{quoted(text)} is a time without a zone", "one such as 2026-03-29T01:00:00+01:00"
        )
    return stamp_ns(text) / 1e9


def _beside(places: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the windows that do not stand at a whole number of windows from the first."""
    return np.flatnonzero(np.abs(places - np.round(places)) > 1e-6)


def _series(name: str, windows: list[tuple[float, float, Place]]) -> RateWindows:
    if len(windows) < 2:
        raise InputError(
            f"only one window of {quoted(name)}", where=windows[0][2], right="at least two, for their length"
        )
    starts = np.array([start_s for start_s, _, _ in windows])
    steps = np.diff(starts)
    wrong = np.flatnonzero(steps <= 0)
    if len(wrong):
        at = int(wrong[0])
        what = "a second window" if steps[at] == 0 else "a window"
        raise InputError(
            f"{what} from {starts[at + 1]:.9g} s after one from {starts[at]:.9g} s",
            where=windows[at + 1][2],
            right="each series in the order of time, one row per window (sort -t, -k2,2n sorts by the second column)",
        )
    window_s = float(steps.min())
    places = (starts - starts[0]) / window_s
    if len(_beside(places)):
        lengths, times = np.unique(steps, return_counts=True)
        usual_s = float(lengths[np.argmax(times)])  # a window that is off may make the shortest step
        at = int([*_beside((starts - starts[0]) / usual_s), *_beside(places)][0])
        raise InputError(
            f"a window from {starts[at]:.9g} s among windows of {usual_s:.9g} s from {starts[0]:.9g} s",
            where=windows[at][2],
            right="windows of equal length",
        )
    number = round(float(places[-1])) + 1
    if number > LARGEST_WINDOW_COUNT:
        raise InputError(
            f"more than {LARGEST_WINDOW_COUNT:,} windows of {quoted(name)}",
            where=windows[-1][2],
            right="a shorter or coarser record",
        )
    rates = np.full(number, np.nan)
    rates[np.round(places).astype(np.int64)] = [rate for _, rate, _ in windows]
    return RateWindows(name=name, start_s=float(starts[0]), window_s=window_s, rate_rps=rates)
