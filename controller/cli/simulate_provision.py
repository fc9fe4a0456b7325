"""``ballast simulate provision``: the smallest fleets that serve a rate within the SLO, by simulation."""

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
    from controller.capacity import Design, Provision, Question


@click.command("provision")
@click.argument("scenario", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--rate",
    "rate_rps",
    type=FiniteRange(min=1e-9, max=1e9),
    required=True,
    help="Requests per second to serve.",
)
@click.option(
    "--objective",
    type=click.Choice(["cost", "power", "count"]),
    default="cost",
    show_default=True,
    help="What the best design has least of: US$/h, simulated mean watts, or instances.",
)
@click.option("--slo", help="Targets instead of the scenario's own.")
@click.option("--trace", type=click.Path(dir_okay=False), help="Trace instead of the scenario's own.")
@click.option("--gpu-types", help="Comma-separated GPU types to try.  [default: those of the scenario]")
@click.option(
    "--caps",
    default="1.0",
    show_default=True,
    help="Comma-separated power caps of decode pools, as shares of TDP.",
)
@click.option(
    "--max-instances",
    "largest_count",
    type=click.IntRange(min=1, max=2000),
    default=64,
    show_default=True,
    help="Largest number of instances of a pool.",
)
@catalogue_option
@common_options(output_option, seed_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def provision(ctx: click.Context, /, **given: Any) -> None:
    """Find the smallest fleets that serve a rate within the SLO of SCENARIO.

    Tries every GPU type alone and every pair split into prefill and decode pools, with everything else as in SCENARIO.
    More instances are taken never to hurt, so each family needs few runs. Exit code 3: nothing tried meets the SLO.

    Example: ballast simulate provision examples/chat-split.yaml --rate 70 --gpu-types A100-80-SXM,H100-SXM
    """
    from pathlib import Path

    from controller.capacity import ask, families_of
    from controller.capacity import provision as search
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
    names = tuple(name.strip() for name in (given["gpu_types"] or "").split(",") if name.strip())
    families = families_of(question.scenario, question.catalogues, gpu_types=names, caps=_caps(given["caps"]))
    announce_compilation_of_workers("simulator.engine", "simulator.splitwise")
    with progress(f"provisioning {question.scenario.name}", len(families)) as advance:
        found = search(
            question,
            families,
            rate_rps=given["rate_rps"],
            objective=given["objective"],
            largest_count=given["largest_count"],
            workers=given["workers"],
            time_limit_s=given["run_limit_s"],
            began_s=ctx.find_root().obj,
            on_family=lambda name: advance(note=name),
        )
    wall_s = None if given["no_timings"] else time.monotonic() - began_s
    if given["output"] == "table":
        _print(question, found, given, wall_s)
    else:
        print_structured(provision_answer(question, found, given, wall_s=wall_s), given["output"])
    sys.stdout.flush()
    if not found.complete:
        ctx.exit(ExitCode.TIMED_OUT)
    ctx.exit(ExitCode.DONE if found.best is not None else ExitCode.MISSED)


def _caps(text: str) -> list[float]:
    from solver.domain.errors import InputError

    right = "shares of the TDP above 0 and at most 1, e.g. 0.7,1.0"
    caps = []
    for part in text.split(","):
        try:
            cap = float(part)
        except ValueError:
            raise InputError(f"cap {part.strip()!r} is no number", where="--caps", right=right) from None
        if not 0.0 < cap <= 1.0:
            raise InputError(f"cap {part.strip()}", where="--caps", right=right)
        caps.append(cap)
    return list(dict.fromkeys(caps))


def _design_answer(design: "Design") -> dict[str, Any]:
    from controller.cli.simulate_answers import number

    figures = design.figures
    return {
        "family": design.family,
        "pools": [
            {
                "name": pool.name,
                "role": str(pool.role),
                "gpu_type": pool.gpu_type,
                "gpus_per_instance": pool.gpus_per_instance,
                "count": pool.count,
                "power_cap_w_per_gpu": number(pool.power_cap_w_per_gpu),
            }
            for pool in design.pools
        ],
        "instances": design.instances,
        "gpus": design.gpus,
        "cost_usd_per_h": number(design.cost_usd_per_h),
        "power_mean_w": number(design.power_w),
        "step_model": {"kind": design.step_model, "known_error": design.known_error},
        "checks": [
            {"target": str(check.target), "value": number(check.value), "met": check.met}
            for check in figures.slo.checks
        ],
    }


def provision_answer(
    question: "Question", found: "Provision", given: dict[str, Any], *, wall_s: float | None
) -> dict[str, Any]:
    """Write ``cluster-provision/1``."""
    from controller.cli.answers import ballast_version
    from controller.cli.simulate_answers import number
    from simulator.metrics import definitions
    from simulator.scenario import StepModelKind

    return {
        "schema": "cluster-provision/1",
        "version": ballast_version(),
        "scenario": question.scenario.name,
        "slo": str(question.scenario.slo),
        "rate_rps": number(given["rate_rps"]),
        "objective": given["objective"],
        "status": _status(found),
        "best": None if found.best is None else _design_answer(found.designs[found.best]),
        "pareto": [_design_answer(found.designs[k]) for k in found.front],
        "runs": found.runs,
        "trace": question.trace.name,
        "trace_sha256": question.trace.sha256,
        "seed": question.seed,
        "warm_up_s": number(question.scenario.trace.warm_up_s),
        "definitions": definitions(
            tbt_per_output_token=question.scenario.step_model.kind is StepModelKind.SPLITWISE_COMPAT
        ),
        **({} if wall_s is None else {"wall_s": round(wall_s, 3)}),
    }


def _status(found: "Provision") -> str:
    if found.complete:
        return "optimal" if found.best is not None else "infeasible"
    return "feasible" if found.best is not None else "timed-out"


def _print(question: "Question", found: "Provision", given: dict[str, Any], wall_s: float | None) -> None:
    from controller.cli.output import print_table

    took = "" if wall_s is None else f" in {wall_s:.1f} s"
    click.echo(
        f"{question.scenario.name}: {given['rate_rps']:g} requests/s; {found.runs} runs{took}\n"
        f"SLO: {str(question.scenario.slo).replace(',', ', ')}"
    )
    if not found.complete:
        click.echo("The time limit was reached: what follows was found until then")
    if found.best is None:
        click.echo(f"Nothing with at most {given['largest_count']} instances per pool meets the SLO")
        return

    def row(k: int) -> tuple[object, ...]:
        design = found.designs[k]
        tightest = design.figures.slo.limiting
        counts = " + ".join(f"{pool.count} {pool.role}" for pool in design.pools)
        return (
            "*" if k == found.best else "",
            design.family,
            counts,
            design.instances,
            None if design.cost_usd_per_h is None else f"{design.cost_usd_per_h:.2f}",
            None if design.power_w is None else f"{design.power_w / 1000:.1f}",
            "-" if tightest is None else f"{tightest.target.key} {100 * tightest.margin_ratio:.0f} %",
        )

    order = [found.best, *(k for k in found.front if k != found.best)]
    print_table(
        f"Designs that nothing else beats in cost, power and count (*: least {given['objective']})",
        ("", "GPUs per instance", "instances", "all", "US$/h", "kW", "tightest target"),
        [row(k) for k in order],
        right=(3, 4, 5),
    )
