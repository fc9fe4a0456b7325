"""Printing answers: JSON and YAML for programs, tables that fit 100 columns for people, progress on stderr.

It exists so that all commands print alike and results never mix with progress. It is not for logs.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

TABLE_WIDTH = 100


def print_structured(answer: dict[str, Any], output: str) -> None:
    """Print an answer as ``json`` or ``yaml``; keys keep their order, so equal answers give equal bytes."""
    if output == "json":
        click.echo(json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True, width=TABLE_WIDTH), nl=False)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> None:
    """Print a table on stdout; ``right`` are the indices of right-aligned (numeric) columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)
    console.width = min(console.width, TABLE_WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(("-" if cell is None else escape(str(cell))) for cell in row))
    if title:
        console.print(f"\n{title}", style="bold", markup=False)
    console.print(table)
    console.print()


def announce_compilation() -> None:
    """Say on stderr when this process begins to compile kernels, if it does."""
    from solver.compiled import before_compiling

    before_compiling(_say_compiling)


def announce_compilation_of_workers(*packages: str) -> None:
    """Say on stderr that worker processes are about to compile kernels, if none of these packages has any yet."""
    from solver.compiled import kernels_are_kept

    if not any(map(kernels_are_kept, packages)):
        _say_compiling()


def _say_compiling() -> None:
    if sys.stderr is not None:  # None: closed before we began
        # Not by click, which would write into a progress bar.
        sys.stderr.write("compiling for this machine (once, about half a minute)\n")


@contextmanager
def foreign_lines_on_stderr() -> Iterator[None]:
    """Keep stdout for answers alone: HiGHS writes a debugging line there now and then."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (AttributeError, OSError):  # stdout was closed before we began
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Advance(Protocol):
    """Tells the progress bar that work was done."""

    def __call__(self, amount: float = 1.0, *, note: str | None = None) -> None:
        """Advance by ``amount`` of the total and show ``note``."""
        ...


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Advance]:
    """Show a progress bar on stderr while it is a terminal; silent otherwise."""
    if sys.stderr is None or not sys.stderr.isatty():  # None: closed before we began

        def silent(amount: float = 1.0, *, note: str | None = None) -> None:
            pass

        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(amount: float = 1.0, *, note: str | None = None) -> None:
            bar.update(task, advance=amount, description=note or description)

        yield advance
