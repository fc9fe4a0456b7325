"""One PostgreSQL server for all tests of the history, and an empty store in each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry.store.store import Store, open_store
from tests.telemetry.history_entries import emptied
from tests.telemetry.postgres import NoServerError, Postgres, running_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a running server; who stops it starts it again."""
    try:
        with running_server() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return a store of which nothing exists yet."""
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/history.db")
    else:
        server: Postgres = request.getfixturevalue("postgres")
        opened = emptied(open_store(server.url))
    yield opened
    opened.close()


@pytest.fixture
def store(empty: Store) -> Store:
    """Return a store with its tables."""
    empty.migrate()
    return empty
