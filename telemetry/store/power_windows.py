"""What servers and domains drew, in windows of time: how windows are rolled up, written once, and read back.

It exists apart from the store because power is summed over time, not counted by samples. A window says how many of its
seconds it covers; what was not measured is missing, never zero. It knows no breaker and judges nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import cast

from sqlalchemy import Connection, Engine, ScalarSelect, Table, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from solver.domain.errors import InputError
from telemetry.store.connections import reading
from telemetry.store.schema import PowerRow

DOMAIN = ""
"""Stands for the domain as a whole, where nodes have their names."""
READ_AT_ONCE = 10_000
SERVER_BYTES = 400
"""What a window takes in memory while it waits, nearly."""
SAME_S = 1e-3
"""Times that are so near are one: clocks are read more than once."""
_NAME_LENGTH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerWindow:
    """What one node, or a domain as a whole, drew in one window of ``window_s`` seconds."""

    domain: str
    node: str
    """`DOMAIN` for the domain as a whole."""
    start_s: int
    """Seconds since 1970."""
    window_s: int
    energy_j: float
    """Over the time that is covered."""
    covered_s: float
    max_w: float
    """The largest sample, itself a mean of a second or two."""
    samples: int
    """That began in it."""
    first_s: float
    last_s: float
    """From when to when there were samples."""
    theta_max: float | None = None
    """The largest thermal state of the domain's breaker, where it is known."""
    capped_s: float | None = None
    """Seconds in which clocks of the domain were held down; None for nodes, and where nobody said."""

    @property
    def mean_w(self) -> float:
        """The mean over the seconds that are covered."""
        return self.energy_j / self.covered_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerWindows:
    """Windows of one domain that are written together."""

    windows: tuple[PowerWindow, ...]

    @property
    def packed_bytes(self) -> int:
        """What they take in memory, nearly."""
        return SERVER_BYTES * len(self.windows)


def joined(one: PowerWindow, other: PowerWindow) -> PowerWindow:
    """Add up two windows of the same node that share no second; the first one's place in time is kept.

    Energy, time and samples add up, of what is largest the larger stays; so the order in which windows are joined
    does not matter.
    """
    return replace(
        one,
        energy_j=one.energy_j + other.energy_j,
        covered_s=one.covered_s + other.covered_s,
        max_w=max(one.max_w, other.max_w),
        samples=one.samples + other.samples,
        first_s=min(one.first_s, other.first_s),
        last_s=max(one.last_s, other.last_s),
        theta_max=_known(max, one.theta_max, other.theta_max),
        capped_s=_known(lambda a, b: a + b, one.capped_s, other.capped_s),
    )


def _known(how: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return how(one, other)


def rolled_up(windows: Iterable[PowerWindow], window_s: int) -> tuple[PowerWindow, ...]:
    """Return what windows are together in longer ones of ``window_s`` seconds, a whole multiple of theirs.

    In the order of time, domain and node. A window in which nothing was measured is not there.
    """
    found: dict[tuple[int, str, str], PowerWindow] = {}
    for window in windows:
        start_s = window.start_s // window_s * window_s
        key = (start_s, window.domain, window.node)
        known = found.get(key)
        found[key] = (
            replace(window, start_s=start_s, window_s=window_s) if known is None else joined(known, window)
        )
    return tuple(found[key] for key in sorted(found))


def check_windows(entry: PowerWindows) -> None:
    """Refuse what would spoil a sum.

    Raises
    ------
    InputError
        A power that is negative or not finite, a window that covers nothing or more than it is long, names that are
        too long.
    """
    for window in entry.windows:
        values = (window.energy_j, window.max_w, window.first_s, window.last_s, window.capped_s or 0.0)
        right = "powers are finite and not negative, and a window covers a part of itself"
        if not all(math.isfinite(value) and value >= 0.0 for value in values) or not (
            0.0 < window.covered_s <= window.window_s + SAME_S
        ):
            raise InputError(f"power of {window.domain}/{window.node} at {window.start_s} s", right=right)
        if window.theta_max is not None and not math.isfinite(window.theta_max):
            raise InputError(f"θ of {window.domain} at {window.start_s} s", right="a finite number")
        if max(len(window.domain), len(window.node)) > _NAME_LENGTH:
            raise InputError(f"a name of {window.domain[:80]}", right=f"at most {_NAME_LENGTH} characters")


def put_power(connection: Connection, entries: Iterable[PowerWindows], levels_s: Sequence[int]) -> None:
    """Write windows of the finest level and what they add to the longer ones. Who calls is the only writer.

    A window whose first sample is older than the last that is there is a repetition: written before, or measured by
    two leaders at once. Only what is new goes on to the longer windows, in any order.
    """
    given = sorted((each for entry in entries for each in entry.windows), key=lambda each: each.first_s)
    new: list[PowerWindow] = []
    known = _there(connection, given, levels_s[0])
    for window in given:
        key = (window.start_s, window.domain, window.node)
        before = known.get(key)
        if before is not None and window.first_s < before.last_s - SAME_S:
            continue
        known[key] = window if before is None else joined(before, window)
        new.append(window)
    _write(connection, [known[key] for key in {(w.start_s, w.domain, w.node): None for w in new}])
    for level_s in levels_s[1:]:
        parts = rolled_up(new, level_s)
        there = _there(connection, parts, level_s)
        added = []
        for part in parts:
            before = there.get((part.start_s, part.domain, part.node))
            added.append(part if before is None else joined(before, part))
        _write(connection, added)


_COLUMNS = tuple(each.name for each in fields(PowerWindow) if each.name != "window_s")


def _there(
    connection: Connection, windows: Sequence[PowerWindow], level_s: int
) -> dict[tuple[int, str, str], PowerWindow]:
    """Return what is written already of the same times and domains."""
    if not windows:
        return {}
    table = PowerRow.__table__
    query = select(*(table.c[name] for name in _COLUMNS)).where(
        table.c.level_s == level_s,
        table.c.start_s.in_({window.start_s for window in windows}),
        table.c.domain.in_({window.domain for window in windows}),
    )
    rows = connection.execute(query).mappings()
    return {
        (row["start_s"], row["domain"], row["node"]): PowerWindow(window_s=level_s, **row) for row in rows
    }


def _write(connection: Connection, windows: Sequence[PowerWindow]) -> None:
    if not windows:
        return
    table = cast("Table", PowerRow.__table__)
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    into = insert(table)
    rest = {column.name: into.excluded[column.name] for column in table.columns if not column.primary_key}
    update = into.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=rest)
    rows = []
    for window in windows:
        row = asdict(window)
        row["level_s"] = row.pop("window_s")
        rows.append(row)
    connection.execute(update, rows)


def read_power(
    engine: Engine,
    domain: str,
    *,
    level_s: int,
    since_s: float = 0.0,
    until_s: float = math.inf,
    node: str | None = None,
    within_s: int = 60,
) -> Iterator[PowerWindow]:
    """Give the windows of a level that began from ``since_s`` on and before ``until_s``, in the order of time.

    All nodes and the domain as a whole, or one of them.
    """
    table = PowerRow.__table__
    query = (
        select(*(table.c[name] for name in _COLUMNS))
        .where(table.c.level_s == level_s, table.c.start_s >= since_s, table.c.domain == domain)
        .order_by(table.c.start_s, table.c.node)
    )
    if until_s < math.inf:
        query = query.where(table.c.start_s < until_s)
    if node is not None:
        query = query.where(table.c.node == node)
    with (
        reading(engine, within_s=within_s) as connection,
        connection.execute(query, execution_options={"yield_per": READ_AT_ONCE}) as rows,
    ):
        for row in rows:
            yield PowerWindow(window_s=level_s, **dict(zip(_COLUMNS, row, strict=True)))


def domains_with_power(engine: Engine) -> tuple[str, ...]:
    """Return the domains of which anything is recorded; none in a history of a version that recorded no power."""
    table = PowerRow.__table__
    with reading(engine) as connection:
        if not inspect(connection).has_table(PowerRow.__tablename__):
            return ()
        names = select(table.c.domain).where(table.c.level_s == _longest()).distinct()
        return tuple(connection.scalars(names.order_by(table.c.domain)))


def nodes_with_power(engine: Engine, domain: str) -> tuple[str, ...]:
    """Return the nodes of a domain of which anything is recorded."""
    table = PowerRow.__table__
    with reading(engine) as connection:
        names = select(table.c.node).where(
            table.c.level_s == _longest(), table.c.domain == domain, table.c.node != DOMAIN
        )
        return tuple(connection.scalars(names.distinct().order_by(table.c.node)))


def _longest() -> ScalarSelect[int]:
    return select(func.max(PowerRow.__table__.c.level_s)).scalar_subquery()
