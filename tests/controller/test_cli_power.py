"""``ballast power export`` as users run it: its file goes into ``plan power`` as it is; gaps and names in one line."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from controller.cli.root import ballast as command_line
from solver.domain.errors import InputError
from telemetry.sources.power_trace import read_power_trace
from telemetry.store.power_windows import DOMAIN, PowerWindow, PowerWindows
from telemetry.store.store import open_store
from tests.controller.test_cli_plan import ballast
from tests.telemetry.postgres import NoServerError, running_server

BEGIN_S = 1_763_726_400  # 2025-11-21T12:00:00Z, a multiple of an hour
NODES = tuple(f"node-{k:02}" for k in range(12))
WATTS = np.random.default_rng(0).normal(4500, 300, size=(360, len(NODES))).clip(2006).round(1)


def windows(
    rows: Iterable[int], *, domain: str = "row-1", leave_out: str = "", capped_s: float = 0.0
) -> Iterator[PowerWindows]:
    """Return an hour of a row, or some windows of it."""
    for row in rows:
        watts: dict[str, float] = dict(zip(NODES, WATTS[row].tolist(), strict=True))
        watts.pop(leave_out, None)
        watts[DOMAIN] = sum(watts.values())
        start_s = BEGIN_S + 10 * row
        yield PowerWindows(
            windows=tuple(
                PowerWindow(
                    domain=domain,
                    node=node,
                    start_s=start_s,
                    window_s=10,
                    energy_j=10.0 * each_w,
                    covered_s=10.0,
                    max_w=each_w,
                    samples=5,
                    first_s=float(start_s),
                    last_s=start_s + 10.0,
                    theta_max=0.5 if node == DOMAIN else None,
                    capped_s=capped_s if node == DOMAIN else None,
                )
                for node, each_w in watts.items()
            )
        )


Fill = Callable[..., str]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Return what writes into a history and says its URL."""

    def filled(*batches: Iterable[PowerWindows]) -> str:
        url = f"sqlite:///{tmp_path}/history.db"
        store = open_store(url)
        store.migrate()
        store.write([entry for batch in batches for entry in batch])
        store.close()
        return url

    return filled


@dataclass
class Done:
    """How a command ended, as a process would have."""

    returncode: int
    stdout: str
    stderr: str


def called(*args: str) -> Done:
    """Run a command in this process; what ends one is one line and a code, as `controller.cli.root.main` says it."""
    found = CliRunner().invoke(command_line, args, standalone_mode=False)
    error = found.exception
    if isinstance(error, InputError | click.ClickException):
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        code = 2 if isinstance(error, click.UsageError) else 1
        return Done(code, found.stdout, f"{found.stderr}ballast: {text}\n")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Done(found.exit_code, found.stdout, found.stderr)


def export(url: str, *args: str, code: int = 0, domain: str = "row-1", run: Any = called) -> Any:
    done = run("power", "export", "--domain", domain, "--database-url", url, *args)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    return done


def check_against_plan(url: str, tmp_path: Path, run: Any = called) -> None:
    """Export an hour, read it back, and ask how many servers a budget holds, beside a table made by hand."""
    out, by_hand = tmp_path / "row.csv.gz", tmp_path / "hand.csv"
    done = export(url, "--out", str(out), run=run)
    assert "row-1: 12 servers, 360 means of 10 s, 2025-11-21T12:00:00Z to 2025-11-21T13:00:00Z" in done.stderr
    trace: Any = read_power_trace(out)
    assert (trace.period_s, trace.servers, trace.t_s[0]) == (10.0, NODES, BEGIN_S)
    np.testing.assert_array_equal(trace.server_w, WATTS)
    lines = [
        "t_s," + ",".join(NODES),
        *(f"{10 * t}," + ",".join(map(str, row)) for t, row in enumerate(WATTS)),
    ]
    by_hand.write_text("\n".join(lines) + "\n")
    told = []
    for file in (out, by_hand):
        planned = run("plan", "power", str(file), "--budget-w", "40000", "-o", "json", "--no-timings")
        assert planned.returncode == 0, planned.stderr
        told.append(json.loads(planned.stdout))
    assert told[0]["servers_without_capping"] >= 1
    for name in ("servers_without_capping", "servers_with_capping", "interval_90", "binding"):
        assert told[0][name] == told[1][name]


def test_the_file_goes_into_plan_power_as_it_is(fill: Fill, tmp_path: Path) -> None:
    check_against_plan(fill(windows(range(360))), tmp_path, run=ballast)


def test_the_same_out_of_postgresql(tmp_path: Path) -> None:
    try:
        with running_server() as server:
            store = open_store(server.url)
            store.migrate()
            store.write(windows(range(360)))
            store.close()
            check_against_plan(server.url, tmp_path)
    except NoServerError as error:
        pytest.skip(str(error))


def test_a_part_of_the_time_and_of_the_servers_to_standard_output(fill: Fill) -> None:
    url = fill(windows(range(360)))
    args = ("--from", "2025-11-21T12:01:00Z", "--to", str(BEGIN_S + 95), "--leave-out", "node-03")
    lines = export(url, *args).stdout.splitlines()
    assert lines[0].split(",") == ["t_s", *(name for name in NODES if name != "node-03")]
    assert [int(line.split(",")[0]) - BEGIN_S for line in lines[1:]] == [60, 70, 80]
    minutes = export(url, "--window", "60").stdout.splitlines()
    assert len(minutes) == 61
    assert float(minutes[1].split(",")[1]) == pytest.approx(WATTS[:6, 0].mean(), abs=0.06)


def test_gaps_are_refused_and_the_longest_part_is_named(fill: Fill, tmp_path: Path) -> None:
    url = fill(windows(range(100)), windows(range(100, 102), leave_out="node-07"), windows(range(102, 200)))
    out = tmp_path / "row.csv"
    out.write_text("before")
    told = export(url, "--out", str(out), code=1).stderr
    assert "1 gaps in the power of row-1, the first of 20 s at 2025-11-21T12:16:40Z: node-07" in told
    assert "--longest-part, which is 2025-11-21T12:00:00Z to 2025-11-21T12:16:40Z" in told
    assert out.read_text() == "before"
    export(url, "--out", str(out), "--longest-part")
    assert len(read_power_trace(out).t_s) == 100
    export(url, "--out", str(out), "--leave-out", "node-07")
    assert len(read_power_trace(out).t_s) == 200


def test_capped_time_is_told(fill: Fill) -> None:
    done = export(fill(windows(range(30)), windows(range(30, 40), capped_s=4.0)))
    assert "clocks were held down in 10.0% of this time" in done.stderr


@pytest.mark.parametrize(
    ("args", "domain", "says"),
    [
        ((), "row-2", "no power of a domain row-2 in the history; one of row-1, site"),
        ((), "site", "no servers of site in the history; a domain with nodes of its own"),
        (("--to", "1000"), "row-1", "no power of row-1 in windows of 10 s at that time"),
        (("--leave-out", "x"), "row-1", "--leave-out x: no server of row-1; one of node-00, node-01"),
        (("--to", str(BEGIN_S + 15)), "row-1", "1 whole windows of row-1; at least two"),
        (("--out", "/nowhere/row.csv"), "row-1", "/nowhere"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(fill: Fill, args: tuple[str, ...], domain: str, says: str) -> None:
    site = [
        PowerWindows(windows=tuple(each for each in entry.windows if each.node == DOMAIN))
        for entry in windows(range(3), domain="site")
    ]
    assert says in export(fill(windows(range(6)), site), *args, domain=domain, code=1).stderr


def test_a_history_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    told = export(f"sqlite:///{tmp_path}/typo.db", code=1).stderr
    assert "typo.db: no such file" in told
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.db").touch()  # of a version without tables of power
    assert "no power of a domain row-1" in export(f"sqlite:///{tmp_path}/old.db", code=1).stderr
    assert "the database: " in export("postgresql://nobody@127.0.0.1:1/x", code=1).stderr


def test_wrong_usage(fill: Fill) -> None:
    url = fill(windows(range(3)))
    assert "--to is not after --from" in export(url, "--from", "20", "--to", "10", code=2).stderr
    assert "is no time such as" in export(url, "--from", "yesterday", code=2).stderr
    assert "--domain" in called("power", "export").stderr


def test_help_loads_no_database() -> None:
    code = (
        "import sys; from controller.cli.root import ballast\n"
        "ballast.main(['power', 'export', '--help'], standalone_mode=False)\n"
        "print([name for name in ('sqlalchemy', 'numpy', 'alembic') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_packed_file_holds_no_time_of_day(fill: Fill, tmp_path: Path) -> None:
    url = fill(windows(range(6)))
    files = []
    for name in ("one.csv.gz", "two.csv.gz"):
        export(url, "--out", str(tmp_path / name))
        files.append((tmp_path / name).read_bytes())
        time.sleep(0.01)
    assert files[0] == files[1]
    assert gzip.decompress(files[0]).startswith(b"t_s,node-00,")
