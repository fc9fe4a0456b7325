"""``ballast sweep``: many runs of a scenario along axes, resumable, here or as an Indexed Job."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from controller.cli.exit_codes import ExitCode
from controller.cli.options import (
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    workers_option,
)

if TYPE_CHECKING:
    from controller.sweeps import SweepResult
    from simulator.sweep_file import SweepSpec

SHOWN_ROWS = 20


@click.command("sweep")
@click.argument("sweep_file", metavar="SWEEP", type=click.Path(dir_okay=False))
@click.option("--resume", is_flag=True, help="Go on with what lies in the sweep's folder.")
@click.option("--shard", metavar="K/N", help="Run only every N-th point, from the K-th on (K from 0).")
@click.option("--merge", is_flag=True, help="Make the table of the shards that were run.")
@click.option("--kubernetes", is_flag=True, help="Run as an Indexed Job; needs --image and --claim.")
@click.option("--image", help="Image of the Job's pods.")
@click.option("--claim", help="PersistentVolumeClaim with the sweep file at its top.")
@click.option("--namespace", default="default", show_default=True, help="Namespace of the Job.")
@click.option(
    "--shards", type=click.IntRange(1, 10_000), default=8, show_default=True, help="Pods of the Job."
)
@click.option("--only-write", is_flag=True, help="With --kubernetes: write job.yaml and stop.")
@common_options(output_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def sweep(ctx: click.Context, /, **given: Any) -> None:
    """Run a scenario along axes: every combination, each with every seed.

    SWEEP is a sweep/1 file (docs/sweeps.md). Results lie in its folder: runs.jsonl grows with every run, table.csv,
    pareto.json and sweep.html are written at the end. Exit code 1 if a point's scenario was wrong.

    Example: ballast sweep examples/sweep.yaml --workers 2
    """
    from pathlib import Path

    from controller.cli.output import announce_compilation_of_workers, print_structured, progress
    from controller.sweeps import merge, run_sweep
    from controller.time_limit import TimeLimitError, within
    from simulator.sweep_file import read_sweep

    began_s = time.monotonic()
    spec = read_sweep(given["sweep_file"])
    shard = None if given["shard"] is None else _shard(ctx, given["shard"])
    if sum((shard is not None, given["merge"], given["kubernetes"])) > 1:
        raise click.UsageError("--shard, --merge and --kubernetes exclude each other", ctx)
    if given["kubernetes"]:
        _as_job(ctx, Path(given["sweep_file"]), spec, given)
        return
    if given["merge"]:
        result = merge(spec)
    else:
        with progress(f"sweep {Path(given['sweep_file']).stem}", len(spec.sweep)) as advance:
            shown = 0

            def on_row(done: int, total: int) -> None:
                nonlocal shown
                if not shown and done < total:
                    announce_compilation_of_workers("simulator.engine", "simulator.splitwise")
                advance(done - shown)
                shown = done

            try:
                with within(given["run_limit_s"], began_s=ctx.find_root().obj):
                    result = run_sweep(
                        spec, workers=given["workers"], resume=given["resume"], shard=shard, on_row=on_row
                    )
            except TimeLimitError:
                raise TimeLimitError(
                    f"the time limit of {given['run_limit_s']:g} s is reached after {shown} of"
                    f" {len(spec.sweep)} runs; --resume goes on"
                ) from None
    if shard is None:
        from controller.reports.sweep import write_sweep_report

        write_sweep_report(spec, result, spec.out / "sweep.html")
    wall_s = None if given["no_timings"] else time.monotonic() - began_s
    if given["output"] == "table":
        _print(spec, result, shard is None, wall_s)
    else:
        print_structured(sweep_answer(spec, result, wall_s=wall_s), given["output"])
    sys.stdout.flush()
    if result.failed:
        first = next(row["error"] for row in result.rows if row["error"] is not None)
        click.echo(
            f"ballast: {result.failed} of {len(result.rows)} runs are wrong; the first: {first}", err=True
        )
    ctx.exit(ExitCode.ERROR if result.failed else ExitCode.DONE)


def _shard(ctx: click.Context, text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise click.UsageError(f"--shard {text}: write it as K/N with K from 0 to N-1, e.g. 0/8", ctx)


def _as_job(ctx: click.Context, path: Any, spec: "SweepSpec", given: dict[str, Any]) -> None:
    import yaml

    from controller.cli.output import progress
    from controller.sweep_job import JobPlace, job_manifest, submit_and_follow
    from telemetry.sources.traces.write import whole_file

    for name in ("image", "claim"):
        if not given[name]:
            raise click.UsageError(f"--kubernetes needs --{name}", ctx)
    shards = min(given["shards"], len(spec.sweep))
    place = JobPlace(
        namespace=given["namespace"],
        image=given["image"],
        claim=given["claim"],
        shards=shards,
        parallelism=min(shards, given["workers"] or shards),
    )
    manifest = job_manifest(path, place)
    spec.out.mkdir(parents=True, exist_ok=True)
    with whole_file(spec.out / "job.yaml") as write:
        write(yaml.safe_dump(manifest, sort_keys=False))
    click.echo(f"manifest: {spec.out / 'job.yaml'}")
    if given["only_write"]:
        return
    with progress("following the Job", None) as advance:
        complete = submit_and_follow(manifest, on_progress=lambda note: advance(0.0, note=note))
    click.echo(
        f"all {shards} shards are done; make the table with --merge where the claim is mounted"
        if complete
        else f"the Job failed: kubectl -n {given['namespace']} describe job {manifest['metadata']['name']}"
    )
    ctx.exit(ExitCode.DONE if complete else ExitCode.ERROR)


def sweep_answer(spec: "SweepSpec", result: "SweepResult", *, wall_s: float | None) -> dict[str, Any]:
    """Write ``sweep-result/1``."""
    from controller.cli.answers import ballast_version

    rows = [{name: value for name, value in row.items() if name != "wall_s"} for row in result.rows]
    return {
        "schema": "sweep-result/1",
        "version": ballast_version(),
        "out": str(spec.out),
        "runs": len(result.rows),
        "failed": result.failed,
        "definitions": _definitions(result),
        "pareto": [rows[k] for k in result.front],
        "rows": rows,
        **({} if wall_s is None else {"ran": result.ran, "wall_s": round(wall_s, 3)}),
    }


def _definitions(result: "SweepResult") -> dict[str, str]:
    """Say what the figures mean; where some runs divide TBT by other tokens, both ways."""
    from simulator.metrics import definitions
    from simulator.scenario import StepModelKind

    peer = StepModelKind.SPLITWISE_COMPAT.value
    ways = {row.get("step_model") == peer for row in result.rows if row["error"] is None}
    words = definitions(tbt_per_output_token=ways == {True})
    if len(ways) > 1:
        words["tbt_s"] += f"; {peer}: {definitions(tbt_per_output_token=True)['tbt_s']}"
    return words


def _print(spec: "SweepSpec", result: "SweepResult", whole: bool, wall_s: float | None) -> None:
    from controller.cli.output import print_table

    took = "" if wall_s is None else f"; {result.ran} run now in {wall_s:.1f} s"
    met = sum(row.get("slo_met") is True for row in result.rows)
    click.echo(f"{len(result.rows)} runs, {met} meet the SLO{took}")
    if not whole:
        return

    def number(value: float | None, factor: float = 1.0) -> str | None:
        return None if value is None else f"{value * factor:.4g}"

    rows = [
        (
            ", ".join(f"{name}={value}" for name, value in row["changes"].items()),
            row["instances"],
            number(row["cost_usd_per_h"]),
            number(row["power_mean_w"], 0.001),
            number(row["ttft_p99_s"]),
            number(row["tbt_p99_s"]),
        )
        for row in (result.rows[k] for k in result.front[:SHOWN_ROWS])
    ]
    if rows:
        print_table(
            "Runs that meet the SLO and that nothing beats in cost, power and instances",
            ("point", "instances", "US$/h", "kW", "TTFT p99", "TBT p99"),
            rows,
            right=(1, 2, 3, 4, 5),
        )
    click.echo(f"table.csv, pareto.json and sweep.html lie in {spec.out}")
