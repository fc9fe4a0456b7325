"""``ballast plan fleet``: which machines serve whole requests, which only prefill, which only decode."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.options import (
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    seed_option,
    time_limit_option,
)
from controller.cli.trace_options import (
    TRACE_OPTIONS,
    asked_of_trace,
    file_or_trace,
    trace_options,
    write_instance,
)

if TYPE_CHECKING:
    from controller.fleet_planning import TimedFleet
    from controller.fleet_trace_planning import FleetTracePlan
    from solver.domain.fleet import FleetInstance
    from solver.phases.solve import FleetOptions

FLEET_TRACE_OPTIONS = (
    *TRACE_OPTIONS,
    "precision",
    "caps",
    "kv_link_gbytes_per_s",
    "reference",
    "router",
    "write_instance",
)
GOALS = ("cost", "power", "machines", "rate")
BUDGETS = ("cost", "power", "machines")


def _budgets(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    """Read cost=1500 and the like."""
    budgets = []
    for value in values:
        name, _, amount = value.partition("=")
        if name not in BUDGETS or not amount:
            raise click.BadParameter(
                f"{value!r} is no budget such as cost=1500, power=440000 or machines=40.", param=parameter
            )
        budgets.append((name, FiniteRange(min=0).convert(amount, parameter, ctx)))
    return tuple(budgets)


def _goals(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    if names and (not 2 <= len(names) <= 3 or set(names) - set(BUDGETS) or len(set(names)) < len(names)):
        raise click.BadParameter(f"{value!r} is not two or three of {', '.join(BUDGETS)}.", param=parameter)
    return names


def _caps(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Read 0.5,0.7."""
    caps = []
    for part in (value or "").split(","):
        if not part.strip():
            continue
        cap = FiniteRange(min=0, min_open=True, max=1, max_open=True).convert(part.strip(), parameter, _ctx)
        caps.append(float(cap))
    return tuple(dict.fromkeys(caps))


def _reference(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Read H100-SXM:8."""
    if value is None:
        return None
    name, _, gpus = value.rpartition(":")
    if not name or not gpus.isdigit() or not int(gpus):
        raise click.BadParameter(f"{value!r} is no instance such as H100-SXM:8.", param=parameter)
    return name, int(gpus)


@click.command("fleet")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@trace_options(buckets=20, free_part="pool")
@click.option(
    "--reference",
    callback=_reference,
    metavar="GPU_TYPE:GPUS",
    help="Instance that relative targets such as ttft_p90=3x compare with.",
)
@click.option("--precision", help="Weight precision.  [default: the model's]")
@click.option(
    "--caps",
    callback=_caps,
    help="Power caps to offer beside none, as shares of TDP, e.g. 0.7 (with --trace).",
)
@click.option(
    "--kv-link",
    "kv_link_gbytes_per_s",
    type=FiniteRange(min=0),
    default=25.0,
    show_default=True,
    help="10^9 bytes/s of KV that a replica can send or take (with --trace).",
)
@click.option(
    "--router",
    type=click.Choice(["jsq", "mixed-pool", "least-kv", "round-robin"]),
    default="jsq",
    show_default=True,
    help="How requests find instances in the simulations: shortest queue, Splitwise's two levels, ...",
)
@click.option(
    "--write-instance", type=click.Path(dir_okay=False), help="Keep the problem as simulation corrected it."
)
@click.option(
    "--objective",
    type=click.Choice(GOALS),
    help="Ask for least cost, power or machines, or for the largest rate.  [default: what FILE asks]",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    callback=_budgets,
    metavar="NAME=NUMBER",
    help="Limit US$/h (cost), W (power) or machines, in place of FILE's (may be repeated).",
)
@click.option(
    "--pareto",
    "front_of",
    callback=_goals,
    metavar="GOAL,GOAL[,GOAL]",
    help="Also list fleets between these goals (cost, power, machines).",
)
@click.option(
    "--points",
    type=click.IntRange(2, 200),
    default=10,
    show_default=True,
    help="How many fleets to list with --pareto.",
)
@click.option(
    "--gap",
    "gap_ratio",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Stop once the fleet is proved to be so close to the best (0.005 = 0.5 %).",
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
    help="Also say what binds, and why nothing fits.",
)
@common_options(output_option, seed_option, time_limit_option, no_timings_option)
@click.pass_context
def fleet(ctx: click.Context, /, **given: Any) -> None:
    """Find the best prefill/decode fleet for FILE or a trace, and say whether splitting is worth it.

    FILE is a fleet-instance/1 in JSON ('-' reads standard input); docs/fleet.md tells its fields. With --trace the
    fleet is simulated before it is shown; exit code 3: in simulation no fleet found meets the SLO, 4: the time limit
    ended the search.

    \b
    Examples:
      ballast plan fleet fleet.json -o json
      ballast plan fleet fleet.json --objective rate --budget power=440000
      ballast plan fleet fleet.json --objective cost --pareto cost,power
      ballast plan fleet --trace conv.csv --model meta-llama/Llama-3.1-70B --gpu-types H100-SXM
      ballast plan fleet --trace conv.csv --model meta-llama/Llama-3.1-70B --forecast rates.csv --lead-s 1800
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from controller.cli.fleet_answers import fleet_answer, print_fleet
    from controller.cli.output import foreign_lines_on_stderr, print_structured, progress
    from controller.fleet_planning import plan_fleet
    from solver.domain.fleet import FleetGoal
    from telemetry.sources.fleet_file import read_fleet_instance, require_figures

    file_or_trace(ctx, given, FLEET_TRACE_OPTIONS)
    if given["trace"] is not None:
        ctx.exit(_plan_from_trace(ctx, given))
    instance = _asked(read_fleet_instance(given["file"]), given)
    front_of = tuple(FleetGoal(name) for name in given["front_of"])
    require_figures(instance, given["file"], also=front_of)
    options = _options(ctx, given)
    with progress(f"planning {instance.name}", None), foreign_lines_on_stderr():
        timed = plan_fleet(instance, options=options, front_of=front_of, points=given["points"])
    solve_s = None if given["no_timings"] else timed.solve_s
    front = timed.front if front_of else None
    if given["output"] == "table":
        print_fleet(instance, timed.plan, front=front, solve_s=solve_s)
    else:
        print_structured(fleet_answer(instance, timed.plan, front=front, solve_s=solve_s), given["output"])
    sys.stdout.flush()
    ctx.exit(_exit_code(timed, gap_ratio=given["gap_ratio"]))


def _exit_code(timed: "TimedFleet", *, gap_ratio: float) -> int:
    """4 also where the time limit ended the walk of the front, or left one of its points without its proof."""
    from controller.cli.answers import solved_exit_code

    plans = (timed.plan, *timed.front.points)
    codes = [solved_exit_code(plan.status, plan.gap_ratio, gap_ratio=gap_ratio) for plan in plans]
    codes.append(ExitCode.TIMED_OUT if timed.front.cut_short else ExitCode.DONE)
    return next((code for code in codes if code), 0)


def _options(ctx: click.Context, given: dict[str, Any]) -> "FleetOptions":
    """Take the options of the solve, with what is left of the time limit."""
    from controller.fleet_planning import LEAST_LIMIT_S
    from solver.phases.solve import FleetOptions

    spent_s = time.monotonic() - ctx.find_root().obj
    return FleetOptions(
        time_limit_s=max(LEAST_LIMIT_S, given["time_limit_s"] - spent_s),
        gap_ratio=given["gap_ratio"],
        backend=given["backend"],
        explain=given["explain"],
    )


def _plan_from_trace(ctx: click.Context, given: dict[str, Any]) -> int:
    """Plan for a trace, simulate, print; returns the exit code."""
    from dataclasses import replace
    from pathlib import Path

    from controller.cli.fleet_answers import fleet_answer, print_fleet
    from controller.cli.fleet_simulated import print_simulated, simulated_answer
    from controller.cli.forecast_rate import say_foreseen
    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.fleet_trace_planning import FleetQuestion, plan_fleet_trace
    from simulator.fleet import RouterKind
    from solver.domain.demand import GivenRate
    from solver.domain.fleet import FleetBudgets, FleetGoal

    common, rate = asked_of_trace(ctx, given)
    if isinstance(rate.basis, GivenRate):
        click.echo(f"planning for {rate.basis.rate_rps:.3f} req/s per model ({rate.says})", err=True)
    question = FleetQuestion(
        **common,
        goal=FleetGoal(given["objective"] or "cost"),
        budgets=replace(FleetBudgets(), **_limits(given)),
        precision=given["precision"],
        cap_ratios=given["caps"],
        kv_link_bytes_per_s=given["kv_link_gbytes_per_s"] * 1e9,
        reference=given["reference"],
        router=RouterKind(given["router"]),
    )
    announce_compilation()
    with progress(f"planning and simulating for {Path(given['trace']).name}", None) as advance:
        traced = plan_fleet_trace(
            given["trace"],
            question,
            options=_options(ctx, given),
            front_of=tuple(FleetGoal(name) for name in given["front_of"]),
            points=given["points"],
            seed=given["seed"],
            on_run=lambda: advance(0),
        )
    if question.own_forecast is not None:
        say_foreseen(traced.foreseen, question.own_forecast, window_s=question.window_s)
    if given["write_instance"] is not None:
        from telemetry.sources.fleet_file import fleet_instance_to_json

        write_instance(given["write_instance"], fleet_instance_to_json(traced.settled.instance))
    instance, plan = traced.settled.instance, traced.plan
    solve_s = None if given["no_timings"] else traced.solve_s
    if given["output"] == "table":
        print_fleet(instance, plan, front=traced.front, solve_s=solve_s)
        print_simulated(traced)
    else:
        answer = fleet_answer(instance, plan, front=traced.front, solve_s=solve_s)
        print_structured({**answer, "simulated": simulated_answer(traced)}, given["output"])
    sys.stdout.flush()
    return exit_code_of(traced)


def exit_code_of(traced: "FleetTracePlan") -> int:
    """0 a fleet that holds in simulation, 3 none exists or was found, 4 the time limit ended the search."""
    from solver.domain.gpu_mix import PlanStatus

    if traced.plan.status is PlanStatus.INFEASIBLE:
        return ExitCode.MISSED
    if traced.cut_short:
        return ExitCode.TIMED_OUT
    # The bound is one of what was learnt, so its gap is no failure.
    return ExitCode.DONE if traced.settled.holds else ExitCode.MISSED


def _asked(instance: "FleetInstance", given: dict[str, Any]) -> "FleetInstance":
    """Put the objective and budgets of the command in place of the file's."""
    from dataclasses import replace

    from solver.domain.fleet import FleetGoal

    goal: FleetGoal = instance.goal if given["objective"] is None else FleetGoal(given["objective"])
    return replace(instance, goal=goal, budgets=replace(instance.budgets, **_limits(given)))


def _limits(given: dict[str, Any]) -> dict[str, float]:
    """Return the budgets of the command by field of `FleetBudgets`."""
    from solver.domain.fleet import FleetGoal
    from solver.phases.front import FIELDS

    return {FIELDS[FleetGoal(name)]: amount for name, amount in given["budgets"]}
