"""``ballast plan power``: how many servers a power domain holds, without capping and with it.

It exists as the thin shell around `controller.power_planning`. It decides nothing.
"""

import sys
from typing import Any

import click

from controller.cli.options import (
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    seed_option,
)
from controller.cli.power_names import CURVES, CUSTOM_CURVE, POLICY_NAMES


@click.command("power")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--servers-in-trace",
    type=click.IntRange(min=1, max=1_000_000),
    help="Servers behind row_w, where FILE is the power of a row.",
)
@click.option(
    "--budget-w",
    type=FiniteRange(min=0, min_open=True),
    help="Budget of the domain.  [default: as --plant says, else 260000]",
)
@click.option(
    "--risk",
    "risk_minutes_per_year",
    type=FiniteRange(min=0, max=525_600, min_open=True),
    default=1.0,
    show_default=True,
    help="Expected minutes per year over budget that are accepted.",
)
@click.option(
    "--breaker",
    type=click.Choice((*CURVES, CUSTOM_CURVE)),
    default=CURVES[0],
    show_default=True,
    help="Its curve.",
)
@click.option(
    "--breaker-tau-s",
    "tau_s",
    type=FiniteRange(min=0, min_open=True),
    help="Time constant of --breaker custom.",
)
@click.option(
    "--breaker-trip-ratio",
    "trip_ratio",
    type=FiniteRange(min=1),
    help="Largest overload that --breaker custom never trips at.",
)
@click.option(
    "--plant", "plant_file", type=click.Path(dir_okay=False), help="JSON with the servers' constants."
)
@click.option(
    "--actuator-latency",
    "actuator_latency_s",
    type=FiniteRange(min=0, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds from a clock order to its effect: 2 from the node, 40 through a BMC.",
)
@click.option(
    "--low-floor-mhz", type=click.IntRange(min=1), help="Low priority goes no lower.  [default: 1110]"
)
@click.option(
    "--high-floor-mhz", type=click.IntRange(min=1), help="High priority goes no lower.  [default: 1305]"
)
@click.option(
    "--warm-up",
    "warm_up_s",
    type=FiniteRange(min=0),
    help="Seconds to leave out at the start.  [default: 3600 for the power of a row, else 0]",
)
@click.option(
    "--policy",
    type=click.Choice(POLICY_NAMES),
    default="guard",
    show_default=True,
    help="Who caps in the simulation; none: nobody.",
)
@click.option(
    "--requests",
    "requests_file",
    type=click.Path(dir_okay=False),
    help="CSV t_ms,server,priority,class,prompt_tokens,output_tokens: simulate the answer and judge the SLO.",
)
@click.option(
    "--slo",
    default=None,
    help="Increases that capping may cost, like low_p99=0.5.  [default: POLCA's, as recalled]",
)
@common_options(output_option, seed_option, run_limit_option, no_timings_option)
@click.pass_context
def power(ctx: click.Context, /, **given: Any) -> None:
    """Say how many servers a power budget holds, from their recorded power.

    FILE has t_s and one column per server, or t_s,row_w of a whole row (uncapped; CSV, gzip allowed).
    docs/power-admission.md has the criterion. With --requests a missed SLO is exit code 3.

    \b
    Examples:
      ballast plan power server_power_day.csv.gz --budget-w 260000
      ballast plan power row_week.csv.gz --servers-in-trace 40 --budget-w 260000 --risk 5
      ballast plan power server_power_day.csv.gz --requests requests.csv.gz --policy polca --actuator-latency 40
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.power_planning import POLCA_SLO, PowerQuestion, plan_power
    from controller.time_limit import within

    if (given["breaker"] == "custom") != (given["tau_s"] is not None and given["trip_ratio"] is not None) or (
        given["breaker"] != "custom" and (given["tau_s"] is not None or given["trip_ratio"] is not None)
    ):
        raise click.UsageError("--breaker custom goes with --breaker-tau-s and --breaker-trip-ratio", ctx)
    if given["slo"] is not None and given["requests_file"] is None:
        raise click.UsageError("--slo is judged by simulation: give --requests", ctx)
    if given["requests_file"] is not None:
        announce_compilation()
    question = PowerQuestion(
        trace_file=given["file"],
        slo=given["slo"] or POLCA_SLO,
        **{
            name: given[name]
            for name in (
                "servers_in_trace",
                "budget_w",
                "risk_minutes_per_year",
                "breaker",
                "tau_s",
                "trip_ratio",
                "plant_file",
                "actuator_latency_s",
                "low_floor_mhz",
                "high_floor_mhz",
                "warm_up_s",
                "policy",
                "requests_file",
                "seed",
            )
        },
    )
    with (
        within(given["run_limit_s"], began_s=ctx.find_root().obj),
        progress("judging the recording", None) as advance,
    ):
        planned = plan_power(question, on_progress=lambda n: advance(note=f"simulating {n} servers"))
    from controller.cli.power_answers import power_answer, power_exit_code, print_power

    if given["output"] == "table":
        print_power(planned, timings=not given["no_timings"])
    else:
        print_structured(power_answer(planned, timings=not given["no_timings"]), given["output"])
    sys.stdout.flush()
    ctx.exit(power_exit_code(planned))
