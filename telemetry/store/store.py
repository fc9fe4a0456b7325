"""The history: traffic, decisions, what was done, where tokens went, what was drawn; in SQLite or PostgreSQL.

It exists so that forecasts can learn and people can look back. What steers the cluster reads of it past rates, where a
forecast is wished, and recordings that ExpertPlacements name. It never asks the clock. Writing the same thing twice
leaves one entry, so a writer that does not know whether it succeeded may try again.
"""

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TextIO, cast

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.orm import InstrumentedAttribute, Session

from solver.domain.errors import InputError
from telemetry.store.connections import make_engine, most_bytes, read_url, used_bytes, writing
from telemetry.store.expert_windows import ExpertWindow, RecordedLoad, last_windows, put_windows
from telemetry.store.migrations.upgrade import upgrade
from telemetry.store.power_windows import (
    PowerWindow,
    PowerWindows,
    check_windows,
    domains_with_power,
    nodes_with_power,
    put_power,
    read_power,
    rolled_up,
)
from telemetry.store.schema import (
    DECISION_ONCE,
    STEP_ONCE,
    Base,
    DecisionRow,
    ExpertWindowRow,
    PowerRow,
    StepRow,
    TrafficRow,
)

__all__ = [
    "DECISIONS_KEPT_S",
    "LEVELS",
    "POWER_LEVELS",
    "TRANSITIONS_KEPT_S",
    "WINDOWS_KEPT_S",
    "Decision",
    "Entry",
    "ExpertWindow",
    "Level",
    "PowerWindow",
    "PowerWindows",
    "RateWindow",
    "RecordedLoad",
    "StepDone",
    "Store",
    "TrafficSample",
    "is_fault_of_entry",
    "open_store",
    "read_url",
    "write_rates",
]

PRUNED_AT_ONCE = 5000
PRUNED_BYTES = 16 * 2**20
"""Of windows of expert loads at once: SQLite may write down all that it overwrites, beside the file."""
LARGEST_SHARE = 1 / 16
"""Of an SQLite file that entries written at once may take: pruning leaves a fifth of it free."""
NEARLY_FULL = 0.8
EXPERTS: frozenset[type[Base]] = frozenset({ExpertWindowRow})
POWER: frozenset[type[Base]] = EXPERTS | {PowerRow}
TRAFFIC: frozenset[type[Base]] = POWER | {TrafficRow}
ALL: frozenset[type[Base]] = TRAFFIC | {DecisionRow, StepRow}
LESS = tuple((what, 0.5**k) for what in (EXPERTS, POWER, TRAFFIC, ALL) for k in range(1, 15))
"""What is given up when a file is nearly full, and which share of its time is kept, step by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A rollup: windows of so many seconds, kept for so many."""

    window_s: int
    kept_s: int


LEVELS = (
    Level(window_s=10, kept_s=86_400),
    Level(window_s=60, kept_s=14 * 86_400),
    Level(window_s=3600, kept_s=400 * 86_400),
)
POWER_LEVELS = (
    Level(window_s=10, kept_s=8 * 86_400),
    Level(window_s=60, kept_s=30 * 86_400),
    Level(window_s=3600, kept_s=400 * 86_400),
)
"""The finest hold a whole week: how many servers a budget holds is asked of a week at 10 s."""
DECISIONS_KEPT_S = 400 * 86_400
WINDOWS_KEPT_S = 7 * 86_400
"""Windows of expert loads, some 0.1 MB each."""
TRANSITIONS_KEPT_S = 2 * 86_400
"""Those with transitions, some MB each; nobody asks for more than the last day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSample:
    """Traffic of a service at one time; None where nobody measured."""

    service: str
    t_s: float
    rate_rps: float
    desired: int
    ready: int
    running: float | None = None
    waiting: float | None = None
    ttft_p99_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A Plan that was made."""

    service: str
    t_s: float
    digest: str
    solve_id: str
    desired: Mapping[str, int]
    reasons: tuple[str, ...] = ()
    cost_usd_per_h: float | None = None
    lower_bound_usd_per_h: float | None = None
    gap_ratio: float | None = None
    status: str | None = None
    """A `solver.domain.gpu_mix.PlanStatus`, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step of a Plan that was written (``outcome`` written) or seen done (observed)."""

    service: str
    t_s: float
    digest: str
    step: int
    outcome: str
    target: str
    from_replicas: int
    to_replicas: int
    epoch: int


Entry = TrafficSample | Decision | StepDone | ExpertWindow | PowerWindows


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWindow:
    """What the traffic of one window was; ``t_s`` is its start, replicas are those at its last sample."""

    service: str
    t_s: float
    rate_rps: float
    rate_max_rps: float
    samples: int
    desired: int
    ready: int
    running_max: float | None = None
    waiting_max: float | None = None
    ttft_p99_max_s: float | None = None


def open_store(
    url: str,
    *,
    levels: Sequence[Level] = LEVELS,
    power_levels: Sequence[Level] = POWER_LEVELS,
    decisions_kept_s: int = DECISIONS_KEPT_S,
) -> "Store":
    """Open a store; nothing is connected before it is used.

    Raises
    ------
    InputError
        If the URL cannot be read, its driver is not installed, or levels do not fit into each other.
    """
    for each in (levels, power_levels):
        _check_levels(each)
    parsed = read_url(url)
    return Store(
        engine=make_engine(parsed),
        levels=tuple(levels),
        power_levels=tuple(power_levels),
        decisions_kept_s=decisions_kept_s,
        most_bytes=most_bytes(parsed),
    )


def _check_levels(levels: Sequence[Level]) -> None:
    for finer, coarser in pairwise(levels):
        if coarser.window_s <= finer.window_s or coarser.window_s % finer.window_s:
            raise InputError(
                f"windows of {coarser.window_s} s after those of {finer.window_s} s",
                right="each level is a whole multiple of the one before",
            )
    if not levels or min(min(level.window_s, level.kept_s) for level in levels) < 1:
        raise InputError(f"levels {list(levels)}", right="at least one, of at least a second, kept for one")


def is_fault_of_entry(error: Exception) -> bool:
    """Whether a write failed for what an entry holds, and would fail for ever; all else may pass."""
    if isinstance(error, DBAPIError):
        return isinstance(error, (DataError, IntegrityError))
    return isinstance(error, (StatementError, ValueError, TypeError, OverflowError))


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """One database."""

    engine: Engine
    levels: tuple[Level, ...] = LEVELS
    power_levels: tuple[Level, ...] = POWER_LEVELS
    decisions_kept_s: int = DECISIONS_KEPT_S
    windows_kept_s: int = WINDOWS_KEPT_S
    most_bytes: int | None = None
    """How large an SQLite file may get."""

    def said(self, error: Exception) -> str:
        """Return what a database said in one line that holds no password."""
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        password = self.engine.url.password
        text = lines[0] if lines else type(error).__name__
        return text.replace(password, "***") if password else text

    def migrate(self) -> None:
        """Bring the tables up to date; several processes may do so at once."""
        upgrade(self.engine)

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction; those that are there already are passed over.

        Raises
        ------
        InputError
            If an entry can never be stored: nothing is written then.
        """
        samples: list[TrafficSample] = []
        decisions: list[dict[str, Any]] = []
        steps: list[dict[str, Any]] = []
        windows: list[ExpertWindow] = []
        power: list[PowerWindows] = []
        for entry in entries:
            if isinstance(entry, TrafficSample):
                _check(entry)
                samples.append(entry)
            elif isinstance(entry, Decision):
                decisions.append(_decision_row(entry))
            elif isinstance(entry, ExpertWindow):
                self._check_window(entry)
                windows.append(entry)
            elif isinstance(entry, PowerWindows):
                self._check_power(entry)
                power.append(entry)
            else:
                steps.append(asdict(entry))
        if not (samples or decisions or steps or windows or power):
            return
        with writing(self.engine) as connection:
            for table, once, rows in ((DecisionRow, DECISION_ONCE, decisions), (StepRow, STEP_ONCE, steps)):
                if rows:
                    into = _insert(connection, table).on_conflict_do_nothing(index_elements=once)
                    connection.execute(into, rows)
            new: Sequence[TrafficSample] = sorted(samples, key=lambda sample: sample.t_s)
            for level in self.levels:
                if new:  # only the finest windows tell what is new; coarser ones take that, in any order
                    new = _roll_up(connection, level.window_s, new, finest=level == self.levels[0])
            put_windows(connection, windows)
            put_power(connection, power, [level.window_s for level in self.power_levels])

    def record(self, windows: Iterable[ExpertWindow]) -> int:
        """Write windows of expert loads; returns how many were not there yet.

        Raises
        ------
        InputError
            If one is too large for the file: nothing is written then.
        """
        windows = list(windows)
        for window in windows:
            self._check_window(window)
        with writing(self.engine) as connection:
            return put_windows(connection, windows)

    @property
    def most_at_once_bytes(self) -> float:
        """How much may be written in one transaction."""
        return math.inf if self.most_bytes is None else self.most_bytes * LARGEST_SHARE

    def _check_window(self, window: ExpertWindow) -> None:
        """Refuse what would never fit, however much is let go of."""
        if window.packed_bytes > self.most_at_once_bytes:
            raise InputError(
                f"a window of {window.recording} takes {window.packed_bytes} bytes",
                right=f"at most {self.most_at_once_bytes:.0f}, or a larger file (?most_mib=)",
            )

    def _check_power(self, entry: PowerWindows) -> None:
        """Refuse what would spoil a sum, and windows of another length."""
        check_windows(entry)
        finest_s = self.power_levels[0].window_s
        odd = next((each for each in entry.windows if each.window_s != finest_s), None)
        if odd is not None or any(each.start_s % finest_s for each in entry.windows):
            raise InputError("windows of power", right=f"of {finest_s} s, beginning at a multiple of it")

    def power_windows(
        self,
        domain: str,
        *,
        window_s: int,
        since_s: float = 0.0,
        until_s: float = math.inf,
        node: str | None = None,
    ) -> Iterator[PowerWindow]:
        """Give a domain's windows in the order of time; of a length that is a whole multiple of a level's.

        Of all nodes and, under the name `telemetry.store.power_windows.DOMAIN`, of the domain as a whole; or of one.

        Raises
        ------
        InputError
            If no level fits into such windows.
        """
        fitting = [
            each.window_s for each in self.power_levels if window_s > 0 and not window_s % each.window_s
        ]
        if not fitting:
            lengths = ", ".join(str(level.window_s) for level in self.power_levels)
            raise InputError(f"windows of {window_s} s", right=f"a multiple of one of {lengths}")
        level_s = max(fitting)
        found = read_power(self.engine, domain, level_s=level_s, since_s=since_s, until_s=until_s, node=node)
        return found if level_s == window_s else iter(rolled_up(found, window_s))

    def power_domains(self) -> tuple[str, ...]:
        """Return the domains of which power is recorded."""
        return domains_with_power(self.engine)

    def power_nodes(self, domain: str) -> tuple[str, ...]:
        """Return the nodes of a domain of which power is recorded."""
        return nodes_with_power(self.engine, domain)

    def expert_load(
        self, recording: str, *, window_s: float, until_s: float = math.inf
    ) -> RecordedLoad | None:
        """Add up the last ``window_s`` seconds of a recording's windows that ended by ``until_s``.

        Raises
        ------
        InputError
            If a window is damaged.
        """
        return last_windows(self.engine, recording, window_s=window_s, until_s=until_s)

    def traffic_windows(
        self, *, window_s: int, since_s: float = 0.0, until_s: float = math.inf, service: str | None = None
    ) -> tuple[RateWindow, ...]:
        """Return windows in the order of time; of a length that is a whole multiple of a level's.

        Raises
        ------
        InputError
            If no level fits into such windows.
        """
        fitting = [level.window_s for level in self.levels if window_s > 0 and window_s % level.window_s == 0]
        if not fitting:
            lengths = ", ".join(str(level.window_s) for level in self.levels)
            raise InputError(f"windows of {window_s} s", right=f"a multiple of one of {lengths}")
        query = (
            select(TrafficRow)
            .where(TrafficRow.level_s == max(fitting), TrafficRow.start_s >= since_s)
            .order_by(TrafficRow.start_s, TrafficRow.service)
        )
        if until_s < math.inf:
            query = query.where(TrafficRow.start_s < until_s)
        if service is not None:
            query = query.where(TrafficRow.service == service)
        windows: dict[tuple[float, str], RateWindow] = {}
        with Session(self.engine) as session:
            for row in session.scalars(query):
                start_s = float(row.start_s // window_s * window_s)
                earlier = windows.get((start_s, row.service))
                windows[start_s, row.service] = _joined(earlier, row, start_s)
        return tuple(windows[key] for key in sorted(windows))

    def decisions(self, service: str, *, most: int = 20) -> tuple[Decision, ...]:
        """Return the last decisions for a service, newest first."""
        query = (
            select(DecisionRow)
            .where(DecisionRow.service == service)
            .order_by(DecisionRow.t_s.desc(), DecisionRow.id.desc())
            .limit(most)
        )
        with Session(self.engine) as session:
            return tuple(
                Decision(
                    service=row.service,
                    t_s=row.t_s,
                    digest=row.digest,
                    solve_id=row.solve_id,
                    desired=dict(row.desired),
                    reasons=tuple(row.reasons),
                    cost_usd_per_h=row.cost_usd_per_h,
                    lower_bound_usd_per_h=row.lower_bound_usd_per_h,
                    gap_ratio=row.gap_ratio,
                    status=row.status,
                )
                for row in session.scalars(query)
            )

    def steps(self, service: str, *, most: int = 100) -> tuple[StepDone, ...]:
        """Return the last steps of a service, newest first."""
        query = (
            select(StepRow)
            .where(StepRow.service == service)
            .order_by(StepRow.t_s.desc(), StepRow.id.desc())
            .limit(most)
        )
        with Session(self.engine) as session:
            return tuple(
                StepDone(
                    service=row.service,
                    t_s=row.t_s,
                    digest=row.digest,
                    step=row.step,
                    outcome=row.outcome,
                    target=row.target,
                    from_replicas=row.from_replicas,
                    to_replicas=row.to_replicas,
                    epoch=row.epoch,
                )
                for row in session.scalars(query)
            )

    def prune(self, now_s: float, *, most_batches: int | None = None) -> int:
        """Delete what is older than it is kept, in small transactions; returns how many rows went.

        An SQLite file that is nearly as large as it may get keeps less: first of expert loads, then also of power, then
        also of traffic, then of all.
        """
        left = sys.maxsize if most_batches is None else most_batches
        gone = 0
        for what, share in ((ALL, 1.0), *LESS):
            if share < 1 and not self._nearly_full():
                break
            for table, age, which in self._old(now_s, share):
                while table in what and left > 0:
                    rows = self._delete_some(table, age, which)
                    gone += rows
                    left -= rows > 0
                    if not rows:
                        break
        return gone

    def _old(
        self, now_s: float, share: float
    ) -> Iterator[tuple[type[Base], InstrumentedAttribute[Any], ColumnElement[bool]]]:
        """Say what is too old, if that share of the time is kept."""
        for level in self.levels:
            too_old = TrafficRow.start_s < now_s - level.kept_s * share
            yield TrafficRow, TrafficRow.start_s, (TrafficRow.level_s == level.window_s) & too_old
        for level in self.power_levels:
            too_old = PowerRow.start_s < now_s - level.kept_s * share
            yield PowerRow, PowerRow.start_s, (PowerRow.level_s == level.window_s) & too_old
        ended_s = ExpertWindowRow.end_s
        heavy = ExpertWindowRow.transitions.is_not(None)
        yield ExpertWindowRow, ended_s, heavy & (ended_s < now_s - TRANSITIONS_KEPT_S * share)
        yield ExpertWindowRow, ended_s, ended_s < now_s - self.windows_kept_s * share
        until_s = now_s - self.decisions_kept_s * share
        yield DecisionRow, DecisionRow.t_s, DecisionRow.t_s < until_s
        yield StepRow, StepRow.t_s, StepRow.t_s < until_s

    def _delete_some(
        self, table: type[Base], age: InstrumentedAttribute[Any], which: ColumnElement[bool]
    ) -> int:
        """Delete the oldest, and those that are as old as the last of them."""
        with writing(self.engine) as connection:
            oldest = select(age, _bytes_of(table)).where(which).order_by(age).limit(PRUNED_AT_ONCE)
            last, size = None, 0
            for row_age, row_bytes in connection.execute(oldest).all():
                last = row_age
                size += row_bytes
                if size >= PRUNED_BYTES:
                    break
            if last is None:
                return 0
            return connection.execute(delete(table).where(which, age <= last)).rowcount

    def _nearly_full(self) -> bool:
        if self.most_bytes is None:
            return False
        with self.engine.connect() as connection:
            return used_bytes(connection) > NEARLY_FULL * self.most_bytes

    def close(self) -> None:
        """Give up all connections."""
        self.engine.dispose()


def write_rates(windows: Iterable[RateWindow], out: TextIO) -> None:
    """Write windows as the demand file that forecasts read: model, start of the window, rate."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "t_s", "rate_rps"))
    for window in windows:
        writer.writerow((window.service, f"{window.t_s:.15g}", f"{window.rate_rps:.9g}"))


def _joined(earlier: RateWindow | None, row: TrafficRow, start_s: float) -> RateWindow:
    """Take a row into a window that may hold earlier ones."""
    samples = row.samples + (earlier.samples if earlier else 0)
    rate = row.rate_mean_rps
    if earlier:
        rate = earlier.rate_rps + (rate - earlier.rate_rps) * row.samples / samples
    return RateWindow(
        service=row.service,
        t_s=start_s,
        rate_rps=rate,
        rate_max_rps=max(row.rate_max_rps, earlier.rate_max_rps if earlier else 0.0),
        samples=samples,
        desired=row.desired,
        ready=row.ready,
        running_max=_larger(row.running_max, earlier.running_max if earlier else None),
        waiting_max=_larger(row.waiting_max, earlier.waiting_max if earlier else None),
        ttft_p99_max_s=_larger(row.ttft_p99_max_s, earlier.ttft_p99_max_s if earlier else None),
    )


def _bytes_of(table: type[Base]) -> ColumnElement[int]:
    """Return the size of a row, as far as it matters."""
    if table is not ExpertWindowRow:
        return literal(0)
    transitions = func.coalesce(func.length(ExpertWindowRow.transitions), 0)
    return func.length(ExpertWindowRow.load) + transitions


def _table(row: type[Base]) -> Table:
    return cast("Table", row.__table__)


def _insert(connection: Connection, row: type[Base]) -> "sqlite.Insert | postgresql.Insert":
    """Begin an insert that may say what happens to rows that are there."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return insert(_table(row))


def _roll_up(
    connection: Connection, window_s: int, samples: Sequence[TrafficSample], *, finest: bool
) -> list[TrafficSample]:
    """Take samples, in the order of time, into the windows of one length; return those that were new."""
    keys = [(sample.service, int(sample.t_s // window_s) * window_s) for sample in samples]
    query = select(_table(TrafficRow)).where(
        TrafficRow.level_s == window_s,
        TrafficRow.service.in_({service for service, _ in keys}),
        TrafficRow.start_s.in_({start_s for _, start_s in keys}),
    )
    known = {(row["service"], row["start_s"]): dict(row) for row in connection.execute(query).mappings()}
    changed: dict[tuple[str, int], dict[str, Any]] = {}
    new = []
    for key, sample in zip(keys, samples, strict=True):
        row = known.get(key)
        if row is None:
            row = {
                "level_s": window_s,
                "service": key[0],
                "start_s": key[1],
                "samples": 0,
                "last_s": -math.inf,
            }
            row |= dict.fromkeys(("rate_mean_rps", "rate_max_rps"), 0.0)
            row |= dict.fromkeys(("running_max", "waiting_max", "ttft_p99_max_s"))
            known[key] = row
        elif finest and sample.t_s <= row["last_s"]:
            continue
        changed[key] = row
        new.append(sample)
        row["samples"] += 1
        row["rate_mean_rps"] += (sample.rate_rps - row["rate_mean_rps"]) / row["samples"]
        row["rate_max_rps"] = max(row["rate_max_rps"], sample.rate_rps)
        row["running_max"] = _larger(row["running_max"], _finite(sample.running))
        row["waiting_max"] = _larger(row["waiting_max"], _finite(sample.waiting))
        row["ttft_p99_max_s"] = _larger(row["ttft_p99_max_s"], _finite(sample.ttft_p99_s))
        if sample.t_s >= row["last_s"]:
            row |= {"desired": sample.desired, "ready": sample.ready, "last_s": sample.t_s}
    if changed:
        into = _insert(connection, TrafficRow)
        table = _table(TrafficRow)
        rest = {column.name: into.excluded[column.name] for column in table.columns if not column.primary_key}
        update = into.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=rest)
        connection.execute(update, list(changed.values()))
    return new


def _larger(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _check(sample: TrafficSample) -> None:
    """Refuse what would spoil a window."""
    if not (math.isfinite(sample.rate_rps) and sample.rate_rps >= 0 and math.isfinite(sample.t_s)):
        raise InputError(
            f"traffic of {sample.service} at {sample.t_s} s: {sample.rate_rps} requests/s",
            right="rates and times are finite, rates not negative",
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _decision_row(entry: Decision) -> dict[str, Any]:
    return {
        "t_s": entry.t_s,
        "service": entry.service,
        "digest": entry.digest,
        "solve_id": entry.solve_id,
        "cost_usd_per_h": _finite(entry.cost_usd_per_h),
        "lower_bound_usd_per_h": _finite(entry.lower_bound_usd_per_h),
        "gap_ratio": _finite(entry.gap_ratio),
        "desired": dict(entry.desired),
        "reasons": list(entry.reasons),
        "status": entry.status,
    }
