"""``ballast power``: take what a domain's servers drew out of the history.

It exists as the thin shell around `telemetry.store` (reading) for ``ballast plan power``, which takes the file as it
is. It fills no gap and judges nothing.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controller.cli.history import history_option, opened_history
from controller.cli.lazy import LazyGroup
from controller.cli.options import common_options, read_time
from solver.domain.errors import InputError

if TYPE_CHECKING:
    from telemetry.store.power_table import PowerTable
    from telemetry.store.store import Store


@click.group(cls=LazyGroup, members={"export": "controller.cli.power:export"})
def power() -> None:
    """Take recorded power out of the history.

    Example: ballast power export --domain row-1 --database-url sqlite:///h.db --out row-1.csv.gz
    """


@click.command()
@click.option("--domain", required=True, metavar="NAME", help="PowerDomain whose servers are wanted.")
@history_option
@click.option(
    "--from", "since_s", metavar="TIME", callback=read_time, help="Begin.  [default: the oldest that is kept]"
)
@click.option("--to", "until_s", metavar="TIME", callback=read_time, help="End.  [default: the newest]")
@click.option(
    "--window",
    type=click.Choice(["10", "60"]),
    default="10",
    show_default=True,
    help="Seconds of each mean: 10 s are kept for 8 days, minutes for 30 but hide peaks.",
)
@click.option("--leave-out", metavar="NODE", multiple=True, help="Without this server; may be repeated.")
@click.option("--longest-part", is_flag=True, help="Where there are gaps, only the longest part without.")
@click.option(
    "--out", type=click.Path(), default="-", help="CSV file to write (.gz is packed).  [default: stdout]"
)
@common_options()
def export(
    *,
    domain: str,
    database_url: str,
    since_s: float | None,
    until_s: float | None,
    window: str,
    leave_out: tuple[str, ...],
    longest_part: bool,
    out: str,
) -> None:
    """Write the mean power of a domain's servers as the file that ballast plan power reads.

    Columns are t_s (start of the window, seconds since 1970) and one per server, in watts. Gaps are refused.

    \b
    Examples:
      ballast power export --domain row-1 --database-url sqlite:///h.db --out row-1.csv.gz
      ballast power export --domain row-1 --from 2026-11-14T00:00:00Z --to 2026-11-21T00:00:00Z --out week.csv.gz
      ballast plan power week.csv.gz --budget-w 260000
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from telemetry.sources.traces.write import whole_file
    from telemetry.store.power_table import longest_part as longest
    from telemetry.store.power_table import without_ragged_ends, write_table

    if since_s is not None and until_s is not None and until_s <= since_s:
        raise click.UsageError("--to is not after --from")
    with opened_history(database_url) as store:
        found = _read(
            store,
            domain,
            int(window),
            leave_out,
            since_s=0.0 if since_s is None else since_s,
            until_s=math.inf if until_s is None else until_s,
        )
    table = without_ragged_ends(found)
    if longest_part:
        table = longest(table) or table
    _refuse_gaps(table)
    if out == "-":
        write_table(table, lambda line: click.echo(line, nl=False))
    else:
        with whole_file(Path(out)) as write:
            write_table(table, write)
    click.echo(
        f"{domain}: {len(table.servers)} servers, {table.windows} means of {window} s, "
        f"{_shown(table.at_s(0))} to {_shown(table.at_s(table.windows))}",
        err=True,
    )
    ratio = float(table.capped_s.sum()) / (table.windows * table.window_s)
    if ratio > 0.0:
        click.echo(
            f"{domain}: clocks were held down in {ratio:.1%} of this time; uncapped, the servers would have drawn more",
            err=True,
        )


def _read(
    store: "Store", domain: str, window_s: int, leave_out: tuple[str, ...], *, since_s: float, until_s: float
) -> "PowerTable":
    """Read the windows that lie in a time; the database is left as it is."""
    from telemetry.store.power_table import table_of

    file = store.engine.url.database
    if store.engine.dialect.name == "sqlite" and not Path(file or "").is_file():  # it would be made
        raise InputError("no such file", where=file, right="the history that the controller writes")
    known = store.power_domains()
    if domain not in known:
        right = f"one of {_some(known)}" if known else "a controller with --database-url writes it"
        raise InputError(f"no power of a domain {domain} in the history", right=right)
    servers = store.power_nodes(domain)
    if not servers:
        right = "a domain with nodes of its own, whose agents are heard"
        raise InputError(f"no servers of {domain} in the history", right=right)
    absent = next((name for name in leave_out if name not in servers), None)
    if absent is not None:
        raise InputError(f"--leave-out {absent}: no server of {domain}", right=f"one of {_some(servers)}")
    windows = store.power_windows(
        domain, window_s=window_s, since_s=since_s, until_s=until_s - window_s + 1e-6
    )
    table = table_of(windows, domain=domain, window_s=window_s, leave_out=leave_out)
    if table is None:
        raise InputError(
            f"no power of {domain} in windows of {window_s} s at that time",
            right="another --from and --to; 10 s are kept for 8 days, --window 60 for 30",
        )
    return table


def _refuse_gaps(table: "PowerTable") -> None:
    from telemetry.store.power_table import gaps_of
    from telemetry.store.power_table import longest_part as longest

    if table.windows < 2:
        raise InputError(
            f"{table.windows} whole windows of {table.domain}", right="at least two, better a week"
        )
    gaps = gaps_of(table)
    if not gaps:
        return
    first, part = gaps[0], longest(table)
    seconds = (first.end - first.first) * table.window_s
    right = "missing data is not zero: --leave-out the server"
    if part is not None:
        right += f", or --longest-part, which is {_shown(part.at_s(0))} to {_shown(part.at_s(part.windows))}"
    raise InputError(
        f"{len(gaps)} gaps in the power of {table.domain}, the first of {seconds} s at "
        f"{_shown(table.at_s(first.first))}: {first.server} is missing",
        right=right,
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _shown(t_s: float) -> str:
    return datetime.fromtimestamp(t_s, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
