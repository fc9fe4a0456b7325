"""The history: what traffic was, what was decided, what was done; in SQLite or PostgreSQL.

It exists so that forecasts can learn and people can look back. Nothing that steers the cluster reads it, and it never
asks the clock. Writing the same thing twice leaves one entry, so a writer that does not know whether it succeeded may
try again.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    delete,
    event,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session

from solver.domain.errors import InputError
from telemetry.store.schema import DecisionRow, StepRow, TrafficRow

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x62616C6C  # any number that is ours
PRUNED_AT_ONCE = 5000
EXAMPLES = "sqlite:////var/lib/ballast/history.db or postgresql+psycopg://user@host/name"


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
DECISIONS_KEPT_S = 400 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSample:
    """Traffic of a service at one time."""

    service: str
    t_s: float
    rate_rps: float
    desired: int
    ready: int


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


Entry = TrafficSample | Decision | StepDone


@dataclass(frozen=True, slots=True, kw_only=True)
class RateWindow:
    """Mean and largest rate of one window; ``t_s`` is its start."""

    service: str
    t_s: float
    rate_rps: float
    rate_max_rps: float
    samples: int


def read_url(url: str) -> URL:
    """Read a database URL; errors never show its password."""
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        where = url.rpartition("@")[2] if "@" in url else url.partition("://")[0]
        raise InputError(f"database URL …{where}: {str(error).splitlines()[0]}", right=EXAMPLES) from None
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise InputError(f"database URL {parsed.render_as_string()}: not supported", right=EXAMPLES)
    return parsed


def open_store(url: str, *, levels: Sequence[Level] = LEVELS) -> "Store":
    """Open a store; nothing is connected before it is used.

    Raises
    ------
    InputError
        If the URL cannot be read or its driver is not installed.
    """
    parsed = read_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    arguments = {"timeout": 30.0} if sqlite else {"connect_timeout": 5}
    try:
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
    except ImportError as error:
        raise InputError(
            f"database URL {parsed.render_as_string()}: {error}", right="pip install kube-ballast[postgresql]"
        ) from None
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
    return Store(engine=engine, levels=tuple(levels))


def _prepare_sqlite(connection: object, _record: object) -> None:
    """Let readers and the writer not block each other."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """One database."""

    engine: Engine
    levels: tuple[Level, ...] = field(default=LEVELS)

    def migrate(self) -> None:
        """Bring the tables up to date; several processes may do so at once."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.engine.connect() as connection:
            self._locked_upgrade(connection, config)

    def _locked_upgrade(self, connection: Connection, config: Config) -> None:
        """Upgrade while no other process does."""
        config.attributes["connection"] = connection
        if self.engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        command.upgrade(config, "head")
        connection.commit()

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction; those that are there already are passed over."""
        samples: list[TrafficSample] = []
        with Session(self.engine) as session, session.begin():
            for entry in entries:
                if isinstance(entry, TrafficSample):
                    samples.append(entry)
                else:
                    self._once(session, entry)
            for level in self.levels if samples else ():
                self._roll_up(session, level, samples)

    def _roll_up(self, session: Session, level: Level, samples: Sequence[TrafficSample]) -> None:
        """Take samples into the windows of a level; the windows are read at once."""
        starts = {int(sample.t_s // level.window_s) * level.window_s for sample in samples}
        query = select(TrafficRow).where(
            TrafficRow.level_s == level.window_s,
            TrafficRow.start_s.in_(starts),
            TrafficRow.service.in_({sample.service for sample in samples}),
        )
        rows = {(row.service, row.start_s): row for row in session.scalars(query)}
        for sample in samples:
            start_s = int(sample.t_s // level.window_s) * level.window_s
            row = rows.get((sample.service, start_s))
            if row is None:
                row = TrafficRow(
                    level_s=level.window_s,
                    service=sample.service,
                    start_s=start_s,
                    samples=1,
                    rate_mean_rps=sample.rate_rps,
                    rate_max_rps=sample.rate_rps,
                    desired=sample.desired,
                    ready=sample.ready,
                    last_s=sample.t_s,
                )
                rows[sample.service, start_s] = row
                session.add(row)
            elif sample.t_s > row.last_s:
                row.rate_mean_rps += (sample.rate_rps - row.rate_mean_rps) / (row.samples + 1)
                row.rate_max_rps = max(row.rate_max_rps, sample.rate_rps)
                row.samples += 1
                row.desired, row.ready, row.last_s = sample.desired, sample.ready, sample.t_s

    def _once(self, session: Session, entry: Decision | StepDone) -> None:
        row: DecisionRow | StepRow
        if isinstance(entry, Decision):
            row = DecisionRow(
                t_s=entry.t_s,
                service=entry.service,
                digest=entry.digest,
                solve_id=entry.solve_id,
                cost_usd_per_h=entry.cost_usd_per_h,
                lower_bound_usd_per_h=entry.lower_bound_usd_per_h,
                gap_ratio=entry.gap_ratio,
                desired=dict(entry.desired),
                reasons=list(entry.reasons),
            )
        else:
            row = StepRow(
                t_s=entry.t_s,
                service=entry.service,
                digest=entry.digest,
                step=entry.step,
                outcome=entry.outcome,
                target=entry.target,
                from_replicas=entry.from_replicas,
                to_replicas=entry.to_replicas,
                epoch=entry.epoch,
            )
        with suppress(IntegrityError), session.begin_nested():
            session.add(row)

    def traffic_windows(
        self, *, window_s: int, since_s: float = 0.0, service: str | None = None
    ) -> tuple[RateWindow, ...]:
        """Return windows of one level in the order of time."""
        query = (
            select(TrafficRow)
            .where(TrafficRow.level_s == window_s, TrafficRow.start_s >= since_s)
            .order_by(TrafficRow.start_s, TrafficRow.service)
        )
        if service is not None:
            query = query.where(TrafficRow.service == service)
        with Session(self.engine) as session:
            return tuple(
                RateWindow(
                    service=row.service,
                    t_s=float(row.start_s),
                    rate_rps=row.rate_mean_rps,
                    rate_max_rps=row.rate_max_rps,
                    samples=row.samples,
                )
                for row in session.scalars(query)
            )

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

    def prune(self, now_s: float) -> int:
        """Delete what is older than its level keeps, in batches; returns how many rows went."""
        gone = 0
        for level in self.levels:
            old = (TrafficRow.level_s == level.window_s) & (TrafficRow.start_s < now_s - level.kept_s)
            gone += self._prune(TrafficRow.start_s, old, TrafficRow)
        for table in (DecisionRow, StepRow):
            gone += self._prune(table.id, table.t_s < now_s - DECISIONS_KEPT_S, table)
        return gone

    def _prune(
        self,
        order: object,
        old: ColumnElement[bool],
        table: type[TrafficRow | DecisionRow | StepRow],
    ) -> int:
        gone = 0
        while True:
            with Session(self.engine) as session, session.begin():
                keys = select(order).where(old).order_by(order).limit(PRUNED_AT_ONCE)  # type: ignore[call-overload]
                last = session.scalars(keys).all()
                if not last:
                    return gone
                done = session.execute(delete(table).where(old, order <= last[-1]))
                gone += int(getattr(done, "rowcount", 0))

    def close(self) -> None:
        """Give up all connections."""
        self.engine.dispose()
