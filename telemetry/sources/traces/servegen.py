"""ServeGen: rates of production services at Alibaba in 10-minute windows (alibaba/ServeGen, Apache-2.0).

It holds no requests, so it is none of the formats of `telemetry.sources.traces.read`: it gives `RateWindows`, which a
generated workload follows. Three layouts are read, packed with gzip or not:

- a CSV with columns ``model,t_s,rate_rps``, one series per model; with ``active_clients`` too (the form that sums up
  ServeGen's clients) a window of rate 0 and no client was not recorded;
- a published ``chunk-<client>-trace.csv``: no header, start of the window, rate, cv of the gaps, their distribution
  with two parameters (both empty or 0 where the client was idle), of which start and rate are read;
- the folder of them, which is a model: its clients are summed; a window without any of them was not recorded.

Windows that are left out between others count as not recorded. How tokens are distributed (``chunk-*-dataset.json``)
is not read: prompts and outputs stand in it apart, and drawing them apart loses their correlation.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from solver.domain.errors import InputError, Place
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import LARGEST_WINDOW_COUNT, Floats
from telemetry.sources.traces.csv_rows import Columns, find_columns, header_names, read_columns
from telemetry.sources.traces.fields import Kind
from telemetry.sources.traces.lines import LineSource, quoted

_LAYOUT = "model,t_s,rate_rps"
_CLIENT_COLUMNS = ("t_s", "rate_rps", "cv", "distribution", "first_parameter", "second_parameter")
_CLIENT_FILES = "chunk-*-trace.csv"
_Row = tuple[str, float, float, Place]
"""Series, start of the window, rate (NaN: not recorded), where it stands."""


def read_rate_windows(path: str | Path) -> tuple[RateWindows, ...]:
    """Read the series of a file or folder, in the order in which they begin there.

    Raises
    ------
    InputError
        One line with file, line and field for everything that is not sound: also windows out of order or of unequal
        length, and a series of one window, whose length nobody knows.
    """
    folder = Path(path)
    if str(path) != "-" and "\0" not in str(path) and folder.is_dir():
        return (_of_clients(folder),)
    source = LineSource(path)
    try:
        series = _series(_rows(source))
    finally:
        source.close()
    if not series:
        raise InputError("no window in it", where=source.name, right=f"a file with columns {_LAYOUT}")
    return series


def _of_clients(folder: Path) -> RateWindows:
    clients = [read_rate_windows(file)[0] for file in sorted(folder.glob(_CLIENT_FILES))]
    if not clients:
        raise InputError(
            f"no {_CLIENT_FILES} in it", where=str(folder), right="a folder of ServeGen's clients"
        )
    first = clients[0]
    for client in clients:
        if (client.start_s, client.window_s) != (first.start_s, first.window_s):
            raise InputError(
                f"{client.name} has windows of {client.window_s:g} s from {client.start_s:g} s, "
                f"{first.name} of {first.window_s:g} s from {first.start_s:g} s",
                where=str(folder),
                right="clients with the same windows",
            )
    rates = np.zeros(max(map(len, clients)))
    for client in clients:
        rates[: len(client)] += np.nan_to_num(client.rate_rps)
    return RateWindows(
        name=folder.resolve().name,
        start_s=first.start_s,
        window_s=first.window_s,
        rate_rps=np.where(rates > 0, rates, np.nan),
    )


def _rows(source: LineSource) -> Iterator[_Row]:
    columns, name = _columns(source)
    for lines, values in read_columns(source, columns):
        rates: Floats = values["rate"]
        if "clients" in values:
            rates = np.where((rates == 0) & (values["clients"] == 0), np.nan, rates)
        names = [name] * len(lines) if "model" not in values else values["model"].to_list()
        for line, series, start_s, rate_rps in zip(
            lines.tolist(), names, values["start"].tolist(), rates.tolist(), strict=True
        ):
            yield series, start_s, rate_rps, source.place(line, "t_s")


def _columns(source: LineSource) -> tuple[Columns, str]:
    """Return the columns, and the name of the series if no column gives it."""
    line = source.first_line()
    text = line.decode("utf-8", "replace")
    name = Path(source.name).name.partition(".")[0]
    if header_names(text).issuperset(_LAYOUT.split(",")):
        required = {
            "model": ("model", Kind.TEXT),
            "start": ("t_s", Kind.SECONDS),
            "rate": ("rate_rps", Kind.RATE),
        }
        optional = {"clients": ("active_clients", Kind.TOKENS)}
        return find_columns(source, layout=_LAYOUT, required=required, optional=optional), name
    if text[:1].isdigit() and text.count(",") == len(_CLIENT_COLUMNS) - 1:
        wanted = {"start": (0, Kind.SECONDS), "rate": (1, Kind.RATE)}
        return Columns(names=_CLIENT_COLUMNS, wanted=wanted, header=False), name
    raise InputError(
        f"no windows of rates: it begins with {quoted(line)}",
        where=source.place(1),
        right=f"a CSV file with columns {_LAYOUT}, or a file or folder of ServeGen's clients",
    )


def _series(rows: Iterator[_Row]) -> tuple[RateWindows, ...]:
    starts: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    places: dict[str, Place] = {}
    for name, start_s, rate_rps, place in rows:
        known, own = starts.setdefault(name, []), rates.setdefault(name, [])
        _check_window(known, start_s, place)
        if len(known) > 1:
            missing = round((start_s - known[-1]) / (known[1] - known[0])) - 1
            if len(own) + missing >= LARGEST_WINDOW_COUNT:
                raise InputError(
                    f"more than {LARGEST_WINDOW_COUNT:,} windows",
                    where=place,
                    right="a shorter or coarser record",
                )
            own.extend([np.nan] * missing)
        known.append(start_s)
        own.append(rate_rps)
        places[name] = place
    for name, known in starts.items():
        if len(known) < 2:
            raise InputError(
                f"only one window of {quoted(name)}",
                where=places[name],
                right="at least two, for their length",
            )
    return tuple(
        RateWindows(name=name, start_s=known[0], window_s=known[1] - known[0], rate_rps=np.array(rates[name]))
        for name, known in starts.items()
    )


def _check_window(known: list[float], start_s: float, place: Place) -> None:
    if known and start_s <= known[-1]:
        raise InputError(
            f"a window from {start_s:.9g} s after one from {known[-1]:.9g} s",
            where=place,
            right="each series in the order of time",
        )
    if len(known) > 1:
        window_s = known[1] - known[0]
        number = (start_s - known[0]) / window_s
        if abs(number - round(number)) > 1e-6:
            raise InputError(
                f"a window from {start_s:.9g} s among windows of {window_s:.9g} s from {known[0]:.9g} s",
                where=place,
                right="windows of equal length",
            )
