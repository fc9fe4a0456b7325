"""``ballast plan gpus``: ask for the cheapest GPU mix and print it, without touching any cluster."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from controller.planning import TimedPlan
    from solver.domain.gpu_mix import GpuMixInstance
    from solver.gpu_mix.solve import SolveOptions

from controller.cli.options import (
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    seed_option,
    time_limit_option,
    workers_option,
)
from controller.cli.trace_options import (
    TRACE_OPTIONS,
    asked_of_trace,
    file_or_trace,
    trace_options,
    write_instance,
)


@click.command("gpus")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@trace_options(buckets=30, free_part="replica")
@click.option(
    "--precision", "precisions", multiple=True, help="Weight precision to offer.  [default: the model's]"
)
@click.option("--write-instance", type=click.Path(dir_okay=False), help="Keep the problem that was built.")
@click.option(
    "--gap",
    "gap_ratio",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Stop once the plan is proved to be so close to the best (0.005 = 0.5 %).",
)
@click.option(
    "--backend",
    type=click.Choice(["highs", "cbc"]),
    default="highs",
    show_default=True,
    help="Solver: OR-Tools with HiGHS, or PuLP with CBC.",
)
@click.option(
    "--explain/--no-explain",
    default=True,
    show_default=True,
    help="Also find the best single type, the second best and what binds.",
)
@common_options(output_option, seed_option, time_limit_option, workers_option, no_timings_option)
@click.pass_context
def gpus(ctx: click.Context, /, **given: Any) -> None:
    """Find the cheapest GPU mix for the problem in FILE, or for a recorded trace.

    FILE is a gputype-instance/1 or /2 in JSON ('-' reads standard input).

    \b
    Examples:
      ballast plan gpus instance.json -o json
      ballast plan gpus --trace conv.csv --model meta-llama/Llama-3.1-8B --slo ttft_p99=1.0,tbt_p99=0.05
      ballast plan gpus --trace conv.csv --model meta-llama/Llama-3.1-8B --forecast rates.csv --lead-s 1800
      ballast plan gpus --trace week.csv --model meta-llama/Llama-3.1-8B --forecast-own sizes --window-s 600
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from controller.cli.answers import gpu_mix_answer, plan_exit_code
    from controller.cli.output import foreign_lines_on_stderr, print_structured, progress
    from controller.planning import plan_gpu_mix

    file_or_trace(ctx, given, (*TRACE_OPTIONS, "precisions"))
    if given["file"] is not None:
        from telemetry.sources.gpu_mix_file import read_gpu_mix_instance

        instance = read_gpu_mix_instance(given["file"])
        with progress(f"planning {instance.name}", None), foreign_lines_on_stderr():
            timed = plan_gpu_mix(
                instance, options=_options(ctx, given), workers=given["workers"], explain=given["explain"]
            )
    else:
        instance, timed = _plan_from_trace(ctx, given)
    if given["write_instance"] is not None:
        from telemetry.sources.gpu_mix_file import gpu_mix_instance_to_json

        write_instance(given["write_instance"], gpu_mix_instance_to_json(instance))
    solve_s = None if given["no_timings"] else timed.solve_s
    if given["output"] == "table":
        from controller.cli.plan_tables import print_gpu_mix

        print_gpu_mix(instance, timed.plan, solve_s=solve_s)
    else:
        print_structured(gpu_mix_answer(instance, timed.plan, solve_s=solve_s), given["output"])
    sys.stdout.flush()
    ctx.exit(plan_exit_code(timed.plan, gap_ratio=given["gap_ratio"]))


def _options(ctx: click.Context, given: dict[str, Any]) -> "SolveOptions":
    """Take the options of the solve, with what is left of the time limit."""
    from controller.planning import LEAST_LIMIT_S
    from solver.gpu_mix.solve import SolveOptions

    spent_s = time.monotonic() - ctx.find_root().obj
    return SolveOptions(
        time_limit_s=max(LEAST_LIMIT_S, given["time_limit_s"] - spent_s),
        gap_ratio=given["gap_ratio"],
        backend=given["backend"],
        seed=given["seed"],
    )


def _plan_from_trace(ctx: click.Context, given: dict[str, Any]) -> "tuple[GpuMixInstance, TimedPlan]":
    """Read the trace, plan for it, say on stderr what was assumed."""
    from pathlib import Path

    from controller.cli.forecast_rate import say_foreseen
    from controller.cli.output import progress
    from controller.planning import TimedPlan, explained
    from controller.trace_planning import TraceQuestion, plan_trace

    options = _options(ctx, given)
    common, rate = asked_of_trace(ctx, given)
    question = TraceQuestion(**common, precisions=given["precisions"])
    with progress(f"planning for {Path(given['trace']).name}", None):
        traced = plan_trace(given["trace"], question, options=options, workers=given["workers"])
    summary, settled = traced.summary, traced.settled
    planned = (
        f"planning for {traced.demand.rate_rps * question.rate_scale:.3f} req/s ({rate.says}) per model, "
    )
    click.echo(
        f"{traced.trace_name}: {summary.requests:,} requests in {summary.duration_s:,.0f} s; "
        f"{'' if rate.own is not None else planned}{len(traced.demand.buckets)} request sizes",
        err=True,
    )
    if rate.own is not None:
        say_foreseen(traced.foreseen, rate.own, window_s=question.window_s)
    for reason, rows in traced.dropped_rows.items():
        if rows:
            click.echo(f"left out {rows:,} rows: {reason.replace('_', ' ')}", err=True)
    if traced.left_out:
        click.echo(f"{len(traced.left_out)} variants cannot be used:", err=True)
        reasons: dict[str, list[str]] = {}
        for left in traced.left_out:
            name = f"{left.variant.gpus_per_replica} x {left.variant.gpu_type}"
            reasons.setdefault(f"{left.model}: {left.reason}", []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            click.echo(f"  {reason}: {shown}", err=True)
    if settled.loads and not settled.within_slo:
        click.echo("the routed mixture still overfills a variant; take more --headroom", err=True)
    plan = traced.plan
    if given["explain"]:
        plan = explained(settled.instance, plan, options=options, spent_s=traced.solve_s)
    return settled.instance, TimedPlan(plan=plan, solve_s=traced.solve_s)
