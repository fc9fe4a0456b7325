"""``ballast simulate row``: a row of servers under a power budget, request by request.

It exists as the thin shell around `controller.row_simulation`. It decides nothing.
"""

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from controller.cli.options import (
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    seed_option,
)
from controller.cli.power_names import CURVES, POLICY_NAMES

if TYPE_CHECKING:
    from controller.row_simulation import RowSize


@click.command("row")
@click.option(
    "--requests",
    "requests_file",
    default=None,
    type=click.Path(dir_okay=False),
    help="CSV t_ms,server,priority,class,prompt_tokens,output_tokens; gzip allowed.",
)
@click.option(
    "--generate",
    "hours",
    type=FiniteRange(min=0.01, max=24 * 366),
    default=None,
    help="Hours of generated requests instead, like the reference row's; --seed draws others.",
)
@click.option(
    "--start-hour",
    type=FiniteRange(min=0, max=24),
    default=0.0,
    show_default=True,
    help="Time of day at which generated requests start.",
)
@click.option("--servers", required=True, type=click.IntRange(min=1, max=10_000), help="Servers of the row.")
@click.option(
    "--policy", type=click.Choice(POLICY_NAMES), default="guard", show_default=True, help="Who caps, and how."
)
@click.option(
    "--train",
    "train_file",
    type=click.Path(dir_okay=False),
    help="CSV t_s,row_w of the provisioned row, e.g. its first week: thresholds of polca-trained.",
)
@click.option(
    "--plant", "plant_file", type=click.Path(dir_okay=False), help="JSON with the servers' constants."
)
@click.option(
    "--breaker",
    type=click.Choice(CURVES),
    default=None,
    help=f"Curve of the row's breaker.  [default: as --faults says, else {CURVES[0]}]",
)
@click.option(
    "--budget-w",
    type=FiniteRange(min=0, min_open=True),
    default=None,
    help="Budget and breaker rating.  [default: as --faults or --plant says, else 260000]",
)
@click.option(
    "--actuator-latency",
    "actuator_latency_s",
    type=FiniteRange(min=0, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds from a clock order to its effect: 2 from the node, 40 through a BMC.",
)
@click.option("--faults", "faults_file", type=click.Path(dir_okay=False), help="JSON row-faults/1.")
@click.option(
    "--duration",
    "duration_s",
    type=click.IntRange(min=1, max=10**8),
    default=None,
    help="Measured seconds.  [default: to the last arrival, in full minutes]",
)
@click.option("--trace-out", type=click.Path(dir_okay=False), help="CSV file for one row per second.")
@click.option("--report", type=click.Path(dir_okay=False), help="HTML file to write a report to.")
@common_options(output_option, seed_option, run_limit_option, no_timings_option)
@click.pass_context
def row(ctx: click.Context, /, **given: Any) -> None:
    """Serve recorded or generated requests with a row of servers under a power budget and a policy.

    Increases are against the same requests and servers without policy. docs/power.md describes servers, policies,
    faults and figures. POLCA's thresholds are recalled from the paper, not confirmed.

    \b
    Examples:
      ballast simulate row --requests requests.csv.gz --servers 52 --policy guard --report row.html
      ballast simulate row --requests requests.csv.gz --servers 52 --policy polca --actuator-latency 40
      ballast simulate row --generate 168 --servers 52 --seed 7
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from pathlib import Path

    if (given["requests_file"] is None) == (given["hours"] is None):
        raise click.UsageError("give either --requests or --generate", ctx)
    if given["hours"] is not None and given["duration_s"] is not None:
        raise click.UsageError("--duration goes with --requests", ctx)
    if given["train_file"] is not None and given["policy"] != "polca-trained":
        raise click.UsageError("--train goes with --policy polca-trained", ctx)
    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.row_simulation import RowQuestion, other_sizes, simulate_row, write_row_trace
    from controller.time_limit import within

    announce_compilation()
    names = ("requests_file", "servers", "policy", "plant_file", "breaker", "budget_w", "actuator_latency_s")
    question = RowQuestion(
        **{name: given[name] for name in names},
        faults_file=given["faults_file"],
        duration_s=given["duration_s"] if given["hours"] is None else round(3600.0 * given["hours"]),
        start_s=3600.0 * given["start_hour"],
        seed=given["seed"],
        train_file=given["train_file"],
    )
    sizes: tuple[RowSize, ...] = ()
    with (
        within(given["run_limit_s"], began_s=ctx.find_root().obj),
        progress(f"simulating {question.servers} servers", None) as advance,
    ):
        simulated = simulate_row(question)
        if given["report"] is not None:
            sizes = other_sizes(simulated, on_progress=lambda n: advance(note=f"a row of {n} servers"))
    if given["trace_out"] is not None:
        write_row_trace(simulated.run, Path(given["trace_out"]))
        click.echo(f"trace written to {given['trace_out']}", err=True)
    if given["report"] is not None:
        from controller.cli.answers import ballast_version
        from controller.reports.row import write_row_report

        write_row_report(
            Path(given["report"]),
            simulated,
            sizes,
            version=ballast_version(),
            command=_command_line(given),
        )
        click.echo(f"report written to {given['report']}", err=True)
    if given["output"] == "table":
        from controller.cli.row_answers import print_row

        print_row(simulated, timings=not given["no_timings"])
    else:
        from controller.cli.row_answers import row_answer

        print_structured(row_answer(simulated, timings=not given["no_timings"]), given["output"])
    sys.stdout.flush()


def _command_line(given: dict[str, Any]) -> str:
    """Write the command down for the report, without what only says how to print."""
    parts = ["ballast", "simulate", "row"]
    if given["requests_file"] is not None:
        parts += ["--requests", str(given["requests_file"])]
    else:
        parts += ["--generate", f"{given['hours']:g}", "--start-hour", f"{given['start_hour']:g}"]
    parts += ["--servers", str(given["servers"]), "--policy", given["policy"]]
    for flag, name in (
        ("--train", "train_file"),
        ("--plant", "plant_file"),
        ("--breaker", "breaker"),
        ("--budget-w", "budget_w"),
        ("--faults", "faults_file"),
        ("--duration", "duration_s"),
    ):
        if given[name] is not None:
            parts += [flag, str(given[name])]
    if given["actuator_latency_s"] != 2.0:
        parts += ["--actuator-latency", f"{given['actuator_latency_s']:g}"]
    if given["seed"]:
        parts += ["--seed", str(given["seed"])]
    return shlex.join(parts)
