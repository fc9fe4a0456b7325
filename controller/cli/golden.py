"""``ballast simulate golden``: run the reference runs of other simulators again, and say how exactly they agree."""

from typing import Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.options import (
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    workers_option,
)


@click.command("golden")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@common_options(output_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def golden(ctx: click.Context, /, folder: str, output: str, no_timings: bool, **given: Any) -> None:
    """Compare with recorded runs of another simulator.

    DIR holds one JSON file per run, its trace and the times of every request. Every request must agree to 1e-9 s and
    every recorded counter exactly; if not, the exit code is 3. One process runs them all, whatever --workers says.

    Example: ballast simulate golden golden/ -o json
    """
    from controller.cli.answers import ballast_version
    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.golden import check_golden
    from controller.time_limit import within

    announce_compilation()
    with (
        within(given["run_limit_s"], began_s=ctx.find_root().obj),
        progress("simulating", None) as advance,
    ):
        results = check_golden(folder, on_run=lambda name: advance(note=name))
    met = all(result.agreement.met for result in results)
    if output == "table":
        _print_table(results, timings=not no_timings)
    else:
        runs: list[dict[str, Any]] = []
        for result in results:
            agreement = result.agreement
            runs.append(
                {
                    "id": result.id,
                    "peer": result.peer,
                    "requests": agreement.requests,
                    "max_abs_ttft_difference_s": agreement.max_abs_ttft_difference_s,
                    "max_abs_e2e_difference_s": agreement.max_abs_e2e_difference_s,
                    "max_percentile_error_ratio": agreement.max_percentile_error_ratio,
                    "counters_differ": list(agreement.counters_differ),
                    "met": agreement.met,
                }
            )
            if not no_timings:
                runs[-1]["wall_s"] = result.wall_s
        print_structured(
            {"schema": "golden-check/1", "version": ballast_version(), "met": met, "runs": runs}, output
        )
    ctx.exit(ExitCode.DONE if met else ExitCode.MISSED)


def _print_table(results: "tuple[Any, ...]", *, timings: bool) -> None:
    from controller.cli.output import print_table

    def shown(value: float | None) -> str | None:
        return None if value is None else f"{value:.1e}"

    rows = []
    for result in results:
        agreement = result.agreement
        row: list[object] = [
            result.id,
            agreement.requests,
            shown(agreement.max_abs_ttft_difference_s),
            shown(agreement.max_abs_e2e_difference_s),
            shown(agreement.max_percentile_error_ratio),
            ", ".join(agreement.counters_differ) or "equal",
            "yes" if agreement.met else "NO",
        ]
        rows.append([*row, f"{result.wall_s:.3f}"] if timings else row)
    columns = ["run", "requests", "ttft, s", "e2e, s", "statistics", "counters", "agrees"]
    print_table(
        "Largest differences from the recorded runs (statistics: relative, of mean, p50, p90, p99)",
        [*columns, "wall, s"] if timings else columns,
        rows,
        right=(1, 2, 3, 4, 7),
    )
