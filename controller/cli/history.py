"""The history's database, for commands that read it or write to it.

It exists so that they take its address alike, and tell in one line what a database thinks. The store is imported when a
command opens it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from solver.domain.errors import InputError

if TYPE_CHECKING:
    from telemetry.store.store import Store

history_option = click.option(
    "--database-url",
    required=True,
    metavar="URL",
    envvar="BALLAST_DATABASE_URL",
    help="History: sqlite:///FILE or postgresql+psycopg://…",
)


@contextmanager
def opened_history(url: str) -> "Iterator[Store]":
    """Open the store at an address and close it again.

    Raises
    ------
    InputError
        For an address that is none, and for whatever goes wrong with the database meanwhile.
    """
    from telemetry.store.store import open_store

    store = open_store(url)
    try:
        yield store
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
        raise InputError(f"the database: {store.said(error)}", right="see: ballast doctor") from None
    finally:
        store.close()
