"""``ballast simulate``: virtual clusters under recorded requests.

It exists as the thin shell around `controller.simulation`. It decides nothing. Commands of the group are imported when
they are called; to add one, enter it in `COMMANDS`.
"""

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.lazy import LazyGroup
from controller.cli.options import (
    catalogue_option,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    seed_option,
    workers_option,
)
from controller.cli.trace import FORMATS

if TYPE_CHECKING:
    from controller.simulation import SimulatedCluster

COMMANDS = {
    "capacity": "controller.cli.simulate_capacity:capacity",
    "cluster": "controller.cli.simulate:cluster",
    "golden": "controller.cli.golden:golden",
    "provision": "controller.cli.simulate_provision:provision",
    "row": "controller.cli.simulate_row:row",
    "validate": "controller.cli.simulate_validate:validate",
}


@click.command("simulate", cls=LazyGroup, members=COMMANDS)
def simulate() -> None:
    """Simulate clusters that serve recorded requests.

    Example: ballast simulate cluster examples/chat-split.yaml
    """


@click.command("cluster")
@click.argument("scenario", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--trace", type=click.Path(dir_okay=False), help="Trace to serve instead of the scenario's own."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=None,
    envvar="BALLAST_TRACE_FORMAT",
    help="Format of the trace.  [default: recognised by its first line]",
)
@click.option("--report", type=click.Path(dir_okay=False), help="HTML file to write a report to.")
@click.option("--requests-out", type=click.Path(dir_okay=False), help="CSV file for one row per request.")
@catalogue_option
@click.option("--stop-when-overloaded", is_flag=True, help="Break off once the backlog grows without end.")
@common_options(output_option, seed_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def cluster(ctx: click.Context, /, **given: Any) -> None:
    """Serve a trace with the fleet of SCENARIO, request by request.

    SCENARIO is a scenario/1 file in YAML or JSON ('-' reads standard input); docs/simulation.md describes it. The
    exit code is 3 when the scenario's SLO is missed. One run takes one process, whatever --workers says.

    Example: ballast simulate cluster examples/chat-split.yaml --report out.html
    """
    from pathlib import Path

    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.simulation import simulate_scenario
    from controller.time_limit import within
    from simulator.scenario_file import read_scenario

    scenario = read_scenario(given["scenario"])
    announce_compilation()
    with (
        within(given["run_limit_s"], began_s=ctx.find_root().obj),
        progress(f"simulating {scenario.name}", None) as advance,
    ):
        run = simulate_scenario(
            scenario,
            trace_file=given["trace"],
            trace_format=given["form"],
            catalogue_files=tuple(Path(name) for name in given["catalogue_files"]),
            seed=given["seed"],
            stop_when_overloaded=given["stop_when_overloaded"],
            on_progress=lambda arrived: advance(note=f"{arrived:,} requests arrived"),
            command=_command_line(given),
        )
    for reason, rows in run.dropped_rows.items():
        if rows:
            click.echo(f"left out {rows:,} rows: {reason.replace('_', ' ')}", err=True)
    _write_files(run, given)
    if given["output"] == "table":
        from controller.cli.simulate_tables import print_cluster

        print_cluster(run, timings=not given["no_timings"])
    else:
        from controller.cli.simulate_answers import cluster_answer

        print_structured(cluster_answer(run, timings=not given["no_timings"]), given["output"])
    sys.stdout.flush()
    ctx.exit(ExitCode.MISSED if run.figures.slo.met is False else ExitCode.DONE)


def _command_line(given: dict[str, Any]) -> str:
    """Write the command down for the report, without what only says how to print."""
    parts = ["ballast", "simulate", "cluster", str(given["scenario"])]
    if given["trace"] is not None:
        parts += ["--trace", str(given["trace"])]
    if given["form"] is not None:
        parts += ["--format", given["form"]]
    for name in given["catalogue_files"]:
        parts += ["--catalogue", str(name)]
    if given["stop_when_overloaded"]:
        parts.append("--stop-when-overloaded")
    if given["seed"]:
        parts += ["--seed", str(given["seed"])]
    return shlex.join(parts)


def _write_files(run: "SimulatedCluster", given: dict[str, Any]) -> None:
    from pathlib import Path

    if given["requests_out"] is not None:
        from controller.cli.simulate_answers import write_request_rows
        from telemetry.sources.traces.write import whole_file

        with whole_file(Path(given["requests_out"])) as write:
            write_request_rows(run, write)
        click.echo(f"requests written to {given['requests_out']}", err=True)
    if given["report"] is not None:
        from controller.cli.answers import ballast_version
        from controller.reports.cluster import write_cluster_report

        write_cluster_report(
            Path(given["report"]), run, version=ballast_version(), timings=not given["no_timings"]
        )
        click.echo(f"report written to {given['report']}", err=True)
