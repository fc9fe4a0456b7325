"""How the history's database is reached: which URLs are taken, how long it may take, and who writes when.

It exists apart from the store because each database needs its own care here and nowhere else. Writers take turns, so a
writer may read a row, change it and write it back.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from solver.domain.errors import InputError

EXAMPLES = "sqlite:////var/lib/ballast/history.db or postgresql+psycopg://user@host/name"
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""Names that are taken, and what they stand for: secrets of others often hold the short ones."""
WRITERS = 0x62616C6D
"""Advisory lock of who writes; any number that is ours."""
MOST_MIB = 768
"""Size of an SQLite file unless its URL says ``?most_mib=``; a pod is evicted above the chart's limit, 1 GiB."""
BUSY_S = 10.0
"""How long SQLite waits for another process."""
AGAIN_S = 0.01
"""Where it does not wait by itself, how long until it is asked again."""
POSTGRESQL = {
    "application_name": "ballast",
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "prepare_threshold": None,  # poolers in front of PostgreSQL lose prepared statements
}


def read_url(url: str) -> URL:
    """Read a database URL; errors never show its password.

    Raises
    ------
    InputError
        If it is none, or of a database that is not supported.
    """
    shown = _without_secrets(url)
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(f"database URL {shown}: not a URL", right=EXAMPLES) from None
    except ValueError:  # its text may be part of a password
        right = "a number after host:, and in user and password %40 for @, %3A for :, %2F for /"
        raise InputError(f"database URL {shown}: the port is not a number", right=right) from None
    known = DRIVERS.get(parsed.drivername)
    if known is None:
        raise InputError(f"database URL {shown}: {parsed.drivername} is not supported", right=EXAMPLES)
    if known == "sqlite":
        most_bytes(parsed)
    password = parsed.query.get("password")
    if isinstance(password, str):  # where it would be shown
        parsed = parsed.difference_update_query(["password"]).set(password=password)
    return parsed.set(drivername=known)


def _without_secrets(url: str) -> str:
    scheme, found, rest = url.partition("://")
    if not found:
        return "…"
    where = rest.rpartition("@")[2] if "@" in rest else ""
    return f"{scheme}://…{where.partition('?')[0]}"


def most_bytes(url: URL) -> int | None:
    """Return how large a database may get; None if that is its own business.

    Raises
    ------
    InputError
        If the URL says it in other words than a whole number of MiB.
    """
    if url.get_backend_name() != "sqlite":
        return None
    text = url.query.get("most_mib", str(MOST_MIB))
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000_000):
        raise InputError(f"database URL {url}: most_mib={text}", right="whole MiB, from 1 to 1000000")
    return int(text) << 20


def used_bytes(connection: Connection) -> int:
    """Return how much of an SQLite file holds something."""
    pages = ("page_count", "freelist_count", "page_size")
    count, free, size = (int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0) for name in pages)
    return (count - free) * size


def make_engine(url: URL) -> Engine:
    """Make what connects to a database; nothing is connected yet.

    Raises
    ------
    InputError
        If the driver is not installed or does not know a parameter.
    """
    try:
        if url.get_backend_name() == "postgresql":
            wanted: dict[str, Any] = {k: v for k, v in POSTGRESQL.items() if k not in url.query}
            return create_engine(url, connect_args=wanted, pool_pre_ping=True, pool_size=1)
        in_memory = url.database in {None, "", ":memory:"}
        # a file is opened anew each time: one that was replaced or removed would be written on unseen
        pool = None if in_memory else NullPool
        file = url.difference_update_query(["most_mib"])
        engine = create_engine(file, connect_args={"timeout": BUSY_S}, poolclass=pool)
    except (ImportError, NoSuchModuleError) as error:
        shown = _without_secrets(url.render_as_string())
        raise InputError(
            f"database URL {shown}: {error}", right="pip install kube-ballast[postgresql]"
        ) from None
    most = most_bytes(url)
    event.listen(engine, "connect", lambda connection, _record: _prepare_sqlite(connection, most))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, most: int | None) -> None:
    """Let readers and the writer not block each other; leave transactions to `_begin_sqlite`."""
    connection.isolation_level = None
    cursor = connection.cursor()
    _share_sqlite(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    if most is not None:
        (page_bytes,) = cursor.execute("PRAGMA page_size").fetchone()
        cursor.execute(f"PRAGMA max_page_count={most // page_bytes}")
    cursor.close()


def _share_sqlite(cursor: sqlite3.Cursor) -> None:
    """Turn a new file's journal to WAL: where others are about to, SQLite refuses at once instead of waiting."""
    end_s = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # of all its kinds
            if not busy or time.monotonic() >= end_s:
                raise
            time.sleep(AGAIN_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Begin as a writer at once: SQLite does not let a reader become one when another wrote meanwhile."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine, *, within_s: int = 15) -> Iterator[Connection]:
    """Give a connection in one transaction that only reads; each statement has so much time."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{within_s}s'")
        yield connection


@contextmanager
def writing(engine: Engine, *, turn: int = WRITERS, within_s: int = 30) -> Iterator[Connection]:
    """Give a connection in one transaction that waits for its turn; each statement has so much time."""
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            # not with the connection: a pooler in front of PostgreSQL would refuse or forget it
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{within_s}s'")
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{within_s}s'")
            connection.execute(text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": turn})
        yield connection
