"""Brings a database's tables up to date, one process at a time.

It exists so that nobody has to run alembic by hand. Rule for revisions: they only add (tables, indexes, columns that
may be empty) and are numbered upwards, so that the version before can still write after a rollback.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from telemetry.store.connections import writing

MIGRATORS = 0x62616C6C
"""Advisory lock of who migrates; any number that is ours."""
LONGEST_S = 600


def configuration() -> Config:
    """Say to alembic where the revisions are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(engine: Engine, *, to: str = "head") -> None:
    """Make what is missing. A database that a later version of Ballast made is left as it is."""
    config = configuration()
    newest = ScriptDirectory.from_config(config).get_current_head() or ""
    with engine.connect() as connection:
        if _at(connection) >= newest:
            return
    with writing(engine, turn=MIGRATORS, within_s=LONGEST_S) as connection:
        if _at(connection) < newest:  # nobody else did it while we waited
            config.attributes["connection"] = connection
            command.upgrade(config, to)


def _at(connection: Connection) -> str:
    """Return the revision of a database; empty if it has none."""
    return max(MigrationContext.configure(connection).get_current_heads(), default="")
