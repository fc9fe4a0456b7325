"""Reads the requests of a row: CSV ``t_ms,server,priority,class,prompt_tokens,output_tokens``, gzip allowed.

It exists so that only this module knows the columns and their unit. Priority belongs to a server: a file that gives one
server both is refused.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator.row.requests import RowRequests
from solver.domain.errors import InputError, Place

COLUMNS = ("t_ms", "server", "priority", "class", "prompt_tokens", "output_tokens")
_LARGEST_BYTES = 2**31
_LARGEST = {"t_ms": 10**12, "server": 10**5, "prompt_tokens": 10**7, "output_tokens": 10**7}


def read_row_requests(path: str | Path, *, duration_s: int | None = None) -> RowRequests:
    """Read a file; ``duration_s`` is by default the last arrival, rounded up to a full minute.

    Raises
    ------
    InputError
        With file and line: unknown columns, values that are none, a server of the other priority, no requests.
    """
    source = str(path)
    lines = _lines(path, source)
    header = tuple(name.strip() for name in lines[0].split(",")) if lines else ()
    if header != COLUMNS:
        raise InputError(
            f"columns {','.join(header)[:80]!r}",
            where=Place(source, line=1),
            right=f"give {','.join(COLUMNS)}",
        )
    rows = [line.split(",") for line in lines[1:]]
    while rows and rows[-1] == [""]:
        rows.pop()
    if not rows:
        raise InputError("no requests", where=source, right="give one line per request")
    for index, row in enumerate(rows):
        if len(row) != len(COLUMNS):
            raise InputError(
                f"{len(row)} values", where=Place(source, line=index + 2), right=f"give {len(COLUMNS)}"
            )
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    del rows
    numbers = {name: _numbers(name, columns[name], source) for name in _LARGEST}
    low_priority = _priorities(numbers["server"], columns["priority"], source)
    kinds = sorted(set(columns["class"]))
    if len(kinds) > 100 or "" in kinds or {"low", "high"} & set(kinds):
        raise InputError(
            f"{len(kinds)} classes, e.g. {kinds[0]!r}",
            where=Place(source, field="class"),
            right="1 to 100 names, none of them empty, low or high",
        )
    index_of = {kind: index for index, kind in enumerate(kinds)}
    arrival_s = numbers["t_ms"] / 1000.0
    if duration_s is None:
        duration_s = max(60 * math.ceil((float(arrival_s.max()) + 1e-9) / 60.0), 60)
    inside = arrival_s < duration_s
    return RowRequests(
        name=Path(source).name,
        arrival_s=arrival_s[inside],
        server=numbers["server"].astype(np.int32)[inside],
        kind=np.array([index_of[kind] for kind in columns["class"]], dtype=np.int8)[inside],
        kinds=tuple(kinds),
        prompt_tokens=numbers["prompt_tokens"].astype(np.int32)[inside],
        output_tokens=numbers["output_tokens"].astype(np.int32)[inside],
        duration_s=duration_s,
        low_priority=low_priority,
    )


def _priorities(
    server: npt.NDArray[np.int64], priority: tuple[str, ...], source: str
) -> npt.NDArray[np.bool_]:
    """Return by server whether its priority is low; servers that the file does not name: even ones."""
    told = np.array(priority)
    wrong = np.flatnonzero((told != "low") & (told != "high"))
    if wrong.size:
        index = int(wrong[0])
        raise InputError(
            f"{priority[index]!r:.60}",
            where=Place(source, line=index + 2, field="priority"),
            right="low or high",
        )
    is_low = told == "low"
    found: npt.NDArray[np.bool_] = np.arange(int(server.max()) + 1) % 2 == 0
    found[server[::-1]] = is_low[
        ::-1
    ]  # the first line of a server counts, so that a later one is the wrong one
    wrong = np.flatnonzero(found[server] != is_low)
    if wrong.size:
        index = int(wrong[0])
        raise InputError(
            f"server {server[index]} is {priority[index]} here and of the other priority elsewhere",
            where=Place(source, line=index + 2, field="priority"),
            right="a server has one priority",
        )
    return found


def _lines(path: str | Path, source: str) -> list[str]:
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
        raise InputError("more than 2 GiB", where=source, right="give fewer requests")
    try:
        return data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise InputError("not text", where=source, right="give a CSV file") from None


def _numbers(name: str, texts: tuple[str, ...], source: str) -> npt.NDArray[np.int64]:
    try:
        values = np.array(texts).astype(np.float64)
    except ValueError:
        values = np.array([_number(text) for text in texts])
    least = 1 if name.endswith("_tokens") else 0
    right = f"a whole number from {least} to {_LARGEST[name]}"
    wrong = ~((values >= least) & (values <= _LARGEST[name]) & (values == np.floor(values)))
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{texts[index]!r:.60}", where=Place(source, line=index + 2, field=name), right=right
        )
    return values.astype(np.int64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
