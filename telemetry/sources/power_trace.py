"""Reads recorded power: a table with one column per server, or the power of a row. CSV, gzip allowed.

It exists so that only this module knows the columns. Missing data is never zero: a gap, an empty field or a NaN is
refused, with its line.

Shapes: ``t_s`` and one column per server; or ``t_s,row_w`` with, if priorities are told apart, ``low_priority_w``.
"""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError, Place
from solver.domain.power_trace import LONGEST_PERIOD_S, RowPowerTrace, ServerPowerTrace

Floats = npt.NDArray[np.float64]

TIME, ROW, LOW, HIGH = "t_s", "row_w", "low_priority_w", "high_priority_w"
_LARGEST_BYTES = 2**31
_MOST_SERVERS = 10_000
_LARGEST_W = 1e9
_LARGEST_T_S = 1e12
_GAP_PERIODS = 1.5
_PRIORITIES_TOLERANCE = 0.01


def read_power_trace(
    path: str | Path, *, servers_in_trace: int | None = None
) -> ServerPowerTrace | RowPowerTrace:
    """Read a file of either shape.

    Parameters
    ----------
    servers_in_trace
        Servers of the recorded row; needed for the power of a row and refused for a table per server.

    Raises
    ------
    InputError
        With file and line: a column that is missing or named twice, values that are no power, times that do not
        rise, gaps, samples of more than 60 s, no samples.
    """
    source = str(path)
    data = _decompressed(path, source)
    header, names = _header(data, source)
    is_row = ROW in names
    if not is_row and servers_in_trace is not None:
        raise InputError(
            f"{len(names) - 1} columns of servers",
            where=Place(source, line=1),
            right=f"--servers-in-trace goes with a column {ROW}",
        )
    if is_row and servers_in_trace is None:
        raise InputError(
            "the power of a row, of how many servers is not told",
            where=Place(source, line=1),
            right="give --servers-in-trace N",
        )
    if is_row:
        used = [TIME, ROW] + ([LOW] if LOW in names else []) + ([HIGH] if HIGH in names else [])
    else:
        used = [TIME, *(name for name in names if name != TIME)]
    if len(used) < 2:
        raise InputError(
            "no column with power",
            where=Place(source, line=1),
            right=f"give one column per server, or {ROW}",
        )
    if len(used) - 1 > _MOST_SERVERS:
        raise InputError(
            f"{len(used) - 1} servers", where=Place(source, line=1), right=f"at most {_MOST_SERVERS:,}"
        )
    table = _numbers(data, header, names, used, source)
    t_s, watts = table[:, 0], table[:, 1:]
    period_s = _period_s(t_s, data, source)
    if not is_row:
        return ServerPowerTrace(
            name=Path(source).name,
            t_s=t_s,
            period_s=period_s,
            server_w=np.ascontiguousarray(watts),
            servers=tuple(used[1:]),
        )
    row_w = np.ascontiguousarray(watts[:, 0])
    low_w = _low(dict(zip(used[1:], watts.T, strict=True)), row_w, data, source)
    return RowPowerTrace(
        name=Path(source).name,
        t_s=t_s,
        period_s=period_s,
        row_w=row_w,
        servers=servers_in_trace or 0,
        low_w=low_w,
    )


def _decompressed(path: str | Path, source: str) -> bytes:
    try:
        with Path(path).open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw
            data = stream.read(_LARGEST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot be read: {reason}", where=source) from None
    if len(data) > _LARGEST_BYTES:
        raise InputError("more than 2 GiB", where=source, right="give fewer or longer samples")
    return data.removeprefix(b"\xef\xbb\xbf")


def _header(data: bytes, source: str) -> tuple[bytes, list[str]]:
    """Return the first line and its names."""
    header = data.split(b"\n", 1)[0]
    try:
        names = [name.strip().strip('"') for name in header.decode("utf-8").split(",")]
    except UnicodeDecodeError:
        raise InputError("not text", where=source, right="give a CSV file") from None
    if not data.strip():
        raise InputError("empty", where=source, right=f"give a CSV file with {TIME} and power")
    if TIME not in names:
        raise InputError(
            f"no column {TIME} in {','.join(names)[:60]!r}",
            where=Place(source, line=1),
            right=f"give {TIME} and one column per server, or {TIME},{ROW}",
        )
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or "" in names:
        raise InputError(
            f"column {twice[0]!r:.60} twice" if twice and twice[0] else "a column without a name",
            where=Place(source, line=1),
            right="give every column its own name",
        )
    return header, names


def _numbers(data: bytes, header: bytes, names: list[str], used: list[str], source: str) -> Floats:
    """Read the columns that are used, [T, columns]."""
    columns = [names.index(name) for name in used]
    body = data[len(header) + 1 :]
    if not body.strip():
        raise InputError("no samples", where=source, right="give at least a minute of them")
    limit = None if set(names) == set(used) else columns
    try:
        table = np.loadtxt(
            io.BytesIO(body), delimiter=",", comments=None, usecols=limit, ndmin=2, dtype=np.float64
        )
    except (ValueError, UnicodeDecodeError):
        raise _wrong_line(data, names, used, source) from None
    if limit is None:
        if table.shape[1] != len(names):
            raise _wrong_line(data, names, used, source)
        table = table[:, columns]
    largest = np.full(len(used), _LARGEST_W)
    largest[0] = _LARGEST_T_S
    if not ((table >= 0.0) & (table <= largest)).all():  # false for NaN too
        raise _wrong_line(data, names, used, source)
    return table


def _wrong_line(data: bytes, names: list[str], used: list[str], source: str) -> InputError:
    """Find the first value that is none: slow, and only taken when there is one."""
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if number == 1 or not raw.strip():
            continue
        fields = raw.decode("utf-8", errors="replace").strip().split(",")
        if len(fields) != len(names):
            return InputError(
                f"{len(fields)} values", where=Place(source, line=number), right=f"give {len(names)}"
            )
        for name in used:
            text = fields[names.index(name)].strip()
            most, unit = (_LARGEST_T_S, "seconds") if name == TIME else (_LARGEST_W, "watts")
            if not 0.0 <= _number(text) <= most:
                what = f"{text!r:.40}" if text else "an empty field"
                return InputError(
                    what,
                    where=Place(source, line=number, field=name),
                    right=f"a number of {unit} from 0 to {most:g}; missing data is not zero: leave the gap out",
                )
    return InputError("cannot be read as numbers", where=source, right="give a CSV file")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _period_s(t_s: Floats, data: bytes, source: str) -> float:
    """Return the time between samples; refuses what does not rise evenly."""
    if t_s.size < 2:
        raise InputError("one sample", where=source, right="give at least a minute of them")
    steps = np.diff(t_s)
    wrong = np.flatnonzero(steps <= 0.0)
    if wrong.size:
        index = int(wrong[0])
        raise InputError(
            f"{t_s[index + 1]:.12g} s after {t_s[index]:.12g} s",
            where=Place(source, line=_line(data, index + 1), field=TIME),
            right="times must rise",
        )
    period_s = float(np.median(steps))
    if period_s > LONGEST_PERIOD_S:
        raise InputError(
            f"samples of {period_s:g} s",
            where=Place(source, field=TIME),
            right=f"give samples of {LONGEST_PERIOD_S:g} s or less: longer means hide the peaks",
        )
    wrong = np.flatnonzero(steps > _GAP_PERIODS * period_s)
    if wrong.size:
        index = int(wrong[0])
        raise InputError(
            f"a gap of {steps[index]:g} s in samples of {period_s:g} s",
            where=Place(source, line=_line(data, index + 1), field=TIME),
            right="give a part without gaps: missing data is not zero",
        )
    return period_s


def _line(data: bytes, sample: int) -> int:
    """Return the line of a sample; blank lines count."""
    seen = -1
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if number > 1 and raw.strip():
            seen += 1
            if seen == sample:
                return number
    return 1


def _low(columns: dict[str, Floats], row_w: Floats, data: bytes, source: str) -> Floats | None:
    """Return the power of low priority where it is told, checked against the row."""
    low_w = columns.get(LOW)
    if low_w is None:
        return None
    high_w = columns.get(HIGH)
    slack_w = _PRIORITIES_TOLERANCE * row_w + 2.0  # whole watts are usual
    off = low_w - row_w > slack_w if high_w is None else np.abs(low_w + high_w - row_w) > slack_w
    wrong = np.flatnonzero(off)
    if wrong.size:
        index = int(wrong[0])
        told = f"{low_w[index]:g} W" + ("" if high_w is None else f" + {high_w[index]:g} W")
        raise InputError(
            f"priorities of {told} in a row of {row_w[index]:g} W",
            where=Place(source, line=_line(data, index), field=LOW),
            right="they must add up to the row",
        )
    return np.minimum(low_w, row_w)
