"""``ballast simulate capacity``: the largest rate that a fleet serves within its SLO, and how sure it is."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.options import (
    FiniteRange,
    catalogue_option,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    seed_option,
    workers_option,
)

if TYPE_CHECKING:
    from controller.capacity import Capacity, Question


@click.command("capacity")
@click.argument("scenario", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--slo", help="Targets instead of the scenario's own, e.g. ttft_p99=2.0,tbt_p99=0.1.")
@click.option("--trace", type=click.Path(dir_okay=False), help="Trace instead of the scenario's own.")
@click.option(
    "--tolerance",
    "tolerance_ratio",
    type=FiniteRange(min=0.0001, max=0.5),
    default=0.01,
    show_default=True,
    help="How much above the answer a rate may still be met.",
)
@click.option(
    "--replicates",
    type=click.IntRange(min=0, max=200),
    default=8,
    show_default=True,
    help="Resampled traces that the interval rests on; 0: no interval.",
)
@catalogue_option
@common_options(output_option, seed_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def capacity(ctx: click.Context, /, **given: Any) -> None:
    """Find the largest rate that the fleet of SCENARIO serves within the SLO.

    The trace's clock is run faster and slower (the same requests at every rate) until the SLO just holds. The interval
    says where the answer would lie for nine of ten other traces of the same kind. Exit code 3: no rate meets the SLO.

    Example: ballast simulate capacity examples/one-pool.yaml --slo ttft_p99=2.0,tbt_p99=0.1
    """
    from pathlib import Path

    from controller.capacity import ask, capacity_of
    from controller.cli.output import announce_compilation_of_workers, print_structured, progress
    from simulator.scenario_file import read_scenario
    from solver.domain.slo import parse_slo

    began_s = time.monotonic()
    slo = None if given["slo"] is None else parse_slo(given["slo"], where="--slo")
    question = ask(
        read_scenario(given["scenario"]),
        slo=slo,
        trace_file=given["trace"],
        catalogue_files=tuple(Path(name) for name in given["catalogue_files"]),
        seed=given["seed"],
    )
    announce_compilation_of_workers("simulator.engine", "simulator.splitwise")
    with progress(f"searching {question.scenario.name}", None) as advance:
        found = capacity_of(
            question,
            tolerance_ratio=given["tolerance_ratio"],
            replicates=given["replicates"],
            workers=given["workers"],
            time_limit_s=given["run_limit_s"],
            began_s=ctx.find_root().obj,
            on_step=lambda note: advance(note=note),
        )
    wall_s = None if given["no_timings"] else time.monotonic() - began_s
    if given["output"] == "table":
        _print(question, found, wall_s)
    else:
        print_structured(capacity_answer(question, found, wall_s=wall_s), given["output"])
    sys.stdout.flush()
    if not found.complete:
        ctx.exit(ExitCode.TIMED_OUT)
    ctx.exit(ExitCode.DONE if found.rate_rps > 0.0 else ExitCode.MISSED)


def capacity_answer(question: "Question", found: "Capacity", *, wall_s: float | None) -> dict[str, Any]:
    """Write ``cluster-capacity/1``."""
    from controller.cli.answers import ballast_version
    from controller.cli.simulate_answers import number
    from controller.cluster_fleet import resolve
    from simulator.metrics import definitions

    longest = int(question.trace.requests.prompt_tokens.max())
    cluster = resolve(question.scenario, question.catalogues, longest_prompt_tokens=longest)
    interval = found.interval_90
    return {
        "schema": "cluster-capacity/1",
        "version": ballast_version(),
        "scenario": question.scenario.name,
        "slo": str(question.scenario.slo),
        "status": _status(found),
        "rate_rps": number(found.rate_rps),
        "interval_90": None if interval is None else [number(interval[0]), number(interval[1])],
        "limiting_target": found.limiting_target,
        "first_missed_rps": number(found.first_missed_rps),
        "replicates_rps": [number(rate) for rate in found.replicates],
        "runs": found.runs,
        "saturation": None if found.figures is None else str(found.figures.saturation),
        "trace": question.trace.name,
        "trace_rps": number(question.rate_rps),
        "trace_sha256": question.trace.sha256,
        "seed": question.seed,
        "warm_up_s": number(question.scenario.trace.warm_up_s),
        "step_model": {
            "kind": ", ".join(dict.fromkeys(pool.step_model for pool in cluster.pools)),
            "known_error": "; ".join(dict.fromkeys(pool.known_error for pool in cluster.pools)),
        },
        "definitions": definitions(tbt_per_output_token=cluster.tbt_per_output_token),
        **({} if wall_s is None else {"wall_s": round(wall_s, 3)}),
    }


def _status(found: "Capacity") -> str:
    if found.complete:
        return "optimal" if found.rate_rps > 0.0 else "infeasible"
    return "feasible" if found.rate_rps > 0.0 else "timed-out"


def _print(question: "Question", found: "Capacity", wall_s: float | None) -> None:
    from controller.cli.output import print_table

    took = "" if wall_s is None else f" in {wall_s:.1f} s"
    click.echo(f"{question.scenario.name}: {found.runs} runs{took}")
    click.echo(f"SLO: {str(question.scenario.slo).replace(',', ', ')}")
    if not found.complete:
        click.echo("The time limit was reached: what follows was found until then")
    if found.rate_rps <= 0.0 and found.first_missed_rps is None:
        return
    if found.rate_rps <= 0.0:
        click.echo(
            f"No rate meets the SLO: even at {found.first_missed_rps:.3g} requests/s"
            f" {found.limiting_target or 'the SLO'} is missed"
        )
        return
    interval = found.interval_90
    rows = [
        ("largest rate within the SLO", f"{found.rate_rps:.3f}", "requests/s"),
        (
            "90 % interval over traces of this kind",
            "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
            "requests/s",
        ),
        (
            "smallest rate tried that misses it",
            "-" if found.first_missed_rps is None else f"{found.first_missed_rps:.3f}",
            "requests/s",
        ),
        ("what stops more", found.limiting_target or "-", ""),
        ("the trace as recorded", f"{question.rate_rps:.3f}", "requests/s"),
    ]
    print_table("", ("what", "value", "unit"), rows, right=(1,))
