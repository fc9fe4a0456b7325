"""A domain's power as a table, one column per server, in the form that `ballast plan power` reads.

It exists because a recording has gaps, and the question of how many servers a budget holds may not be asked of a
recording with gaps: it names them, finds the parts without, and fills nothing in. It reads windows; it asks no
database itself.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.power_trace import Floats
from telemetry.store.power_windows import DOMAIN, PowerWindow

LEAST_COVERED_RATIO = 0.5
"""Of a window: the mean over less is not the mean of the window, and counts as missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PowerTable:
    """Mean power of every server of a domain, window by window; NaN where it is missing. Not to be written to."""

    domain: str
    window_s: int
    start_s: int
    """Of the first window, seconds since 1970; the others follow without a break."""
    servers: tuple[str, ...]
    """By column."""
    server_w: Floats
    """[T, N]; NaN where less than half of a window is covered."""
    capped_s: Floats
    """Seconds of each window in which clocks of the domain were held down, [T]; 0 where nobody said so."""

    @property
    def windows(self) -> int:
        """How many there are, T."""
        return len(self.server_w)

    def at_s(self, window: int) -> int:
        """Return when a window begins; the end of the table is that of the window after the last."""
        return self.start_s + window * self.window_s

    def part(self, first: int, end: int) -> "PowerTable":
        """Return the windows from one to before another."""
        return PowerTable(
            domain=self.domain,
            window_s=self.window_s,
            start_s=self.at_s(first),
            servers=self.servers,
            server_w=self.server_w[first:end],
            capped_s=self.capped_s[first:end],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Windows in a row in which a server is missing."""

    server: str
    """The first that is; others may be, too."""
    first: int
    end: int
    """Windows, by number; the end is not part of it."""


def table_of(
    windows: Iterable[PowerWindow], *, domain: str, window_s: int, leave_out: Sequence[str] = ()
) -> PowerTable | None:
    """Put windows of one length in the order of time into a table; None if there is no server among them.

    The table reaches from the first window to the last; times without any windows are missing for all servers.
    """
    columns: dict[str, int] = {}
    starts_s, places, means_w = array("q"), array("q"), array("d")  # a week of a row is millions of values
    capped: list[tuple[int, float]] = []
    for window in windows:
        if window.node == DOMAIN:
            capped.append((window.start_s, window.capped_s or 0.0))
            continue
        if window.node in leave_out:
            continue
        starts_s.append(window.start_s)
        places.append(columns.setdefault(window.node, len(columns)))
        known = window.covered_s >= LEAST_COVERED_RATIO * window_s
        means_w.append(window.mean_w if known else math.nan)
    if not columns:
        return None
    start_s, count = starts_s[0], (starts_s[-1] - starts_s[0]) // window_s + 1
    servers = sorted(columns)
    order = np.argsort(np.array([servers.index(name) for name in columns]))
    watts = np.full((count, len(columns)), np.nan)
    watts[(np.array(starts_s) - start_s) // window_s, np.array(places)] = means_w
    capped_s = np.zeros(count)
    for t_s, seconds in capped:
        if 0 <= (row := (t_s - start_s) // window_s) < count:
            capped_s[row] = seconds
    return PowerTable(
        domain=domain,
        window_s=window_s,
        start_s=start_s,
        servers=tuple(servers),
        server_w=np.ascontiguousarray(watts[:, order]),
        capped_s=capped_s,
    )


def without_ragged_ends(table: PowerTable) -> PowerTable:
    """Return a table without a first and a last window that are not whole: recording began or ended within them."""
    missing = _ragged(table)
    first = int(missing[0])
    return table.part(first, max(first, table.windows - int(missing[-1])))


def gaps_of(table: PowerTable) -> tuple[Gap, ...]:
    """Return the stretches in which any server is missing."""
    missing = np.isnan(table.server_w)
    return tuple(
        Gap(server=table.servers[int(missing[first].argmax())], first=first, end=end)
        for first, end in _runs(_ragged(table))
    )


def longest_part(table: PowerTable) -> PowerTable | None:
    """Return the longest part in which no server is missing, the first of equally long ones; None if there is none."""
    whole = _runs(~_ragged(table))
    if not whole:
        return None
    first, end = max(whole, key=lambda run: (run[1] - run[0], -run[0]))
    return table.part(first, end)


def _ragged(table: PowerTable) -> npt.NDArray[np.bool_]:
    """Return in which windows any server is missing, [T]."""
    return np.asarray(np.isnan(table.server_w).any(axis=1))


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def write_table(table: PowerTable, write: Callable[[str], object]) -> None:
    """Write a table without gaps as CSV: ``t_s`` (start of the window, seconds since 1970) and a column per server."""
    for line in _lines(table):
        write(line)


def _lines(table: PowerTable) -> Iterator[str]:
    yield ",".join(("t_s", *table.servers)) + "\n"
    for number, watts in enumerate(table.server_w):
        yield f"{table.at_s(number)}," + ",".join([f"{value:.1f}" for value in watts.tolist()]) + "\n"
