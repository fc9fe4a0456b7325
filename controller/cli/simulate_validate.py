"""``ballast simulate validate``: a scenario held against requests that were really served."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controller.cli.options import (
    catalogue_option,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
    seed_option,
    workers_option,
)

if TYPE_CHECKING:
    from controller.validation import Judged, Validation

SCHEMA = "simulation-validation/1"


@click.command("validate")
@click.argument("scenario", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--observed",
    required=True,
    type=click.Path(dir_okay=False),
    help="CSV file of served requests (columns of --requests-out).",
)
@click.option(
    "--calibrate", is_flag=True, help="Fit step times to the first 60 % of the requests, judge on the rest."
)
@click.option("--write-fit", type=click.Path(dir_okay=False), help="File for the fit (with --calibrate).")
@catalogue_option
@common_options(output_option, seed_option, run_limit_option, workers_option, no_timings_option)
@click.pass_context
def validate(ctx: click.Context, /, **given: Any) -> None:
    """Compare SCENARIO with observed requests, percentile by percentile.

    The observed arrivals and sizes are simulated instead of the scenario's trace. With --calibrate step times are
    fitted to the first part of the requests, and both step models are judged on the rest. All of it takes one process,
    whatever --workers says, and no answer times itself.

    Example: ballast simulate validate scenario.yaml --observed served.csv --calibrate --write-fit fit.json
    """
    from controller.cli.output import print_structured, progress
    from controller.time_limit import within
    from controller.validation import validate_scenario
    from simulator.scenario_file import read_scenario

    if given["write_fit"] is not None and not given["calibrate"]:
        raise click.UsageError("--write-fit needs --calibrate")
    if given["observed"] == "-":
        raise click.UsageError("--observed needs a file: it is read twice")
    scenario = read_scenario(given["scenario"])
    with (
        within(given["run_limit_s"], began_s=ctx.find_root().obj),
        progress(f"simulating {scenario.name}", None),
    ):
        validation = validate_scenario(
            scenario,
            given["observed"],
            calibrate=given["calibrate"],
            catalogue_files=tuple(Path(name) for name in given["catalogue_files"]),
            seed=given["seed"],
        )
    if given["write_fit"] is not None:
        _write_fit(validation, Path(given["write_fit"]))
    if given["output"] == "table":
        _print(validation)
    else:
        print_structured(validation_answer(validation), given["output"])


def validation_answer(validation: "Validation") -> dict[str, Any]:
    """Write ``simulation-validation/1``."""
    from controller.cli.answers import ballast_version
    from controller.validation import DEFINITIONS
    from telemetry.sources.step_fits import step_fits_document

    calibrated = validation.calibrated
    return {
        "schema": SCHEMA,
        "version": ballast_version(),
        "scenario": validation.scenario.name,
        "observed": validation.observed_name,
        "observed_sha256": validation.observed_sha256,
        "seed": validation.seed,
        "requests": validation.requests,
        **_judged_answer(validation.plain),
        "calibration": None
        if calibrated is None
        else {
            "fitted_on": validation.fitted_on,
            **_judged_answer(calibrated),
            "fits": step_fits_document(validation.fits)["fits"],
        },
        "definitions": DEFINITIONS,
    }


def _judged_answer(judged: "Judged") -> dict[str, Any]:
    from controller.cli.simulate_answers import number

    return {
        "step_model": {"kind": judged.step_model, "known_error": judged.known_error},
        "judged": judged.judged,
        "only_observed": judged.only_observed,
        "errors": {
            metric: None
            if statistics is None
            else {
                name: {
                    "simulated": number(agreement.simulated),
                    "observed": number(agreement.observed),
                    "error_ratio": number(agreement.error_ratio),
                }
                for name, agreement in statistics.items()
            }
            for metric, statistics in judged.agreement.items()
        },
    }


def _write_fit(validation: "Validation", path: Path) -> None:
    import json

    from telemetry.sources.step_fits import step_fits_document
    from telemetry.sources.traces.write import whole_file

    with whole_file(path) as write:
        write(json.dumps(step_fits_document(validation.fits), indent=1, allow_nan=False) + "\n")
    click.echo(f"fit written to {path}", err=True)


def _print(validation: "Validation") -> None:
    from controller.cli.output import TABLE_WIDTH, print_table

    calibrated = validation.calibrated
    seen = f"; the first {validation.fitted_on:,} fitted and not judged" if calibrated is not None else ""
    click.echo(
        f"{validation.scenario.name}: {validation.requests:,} requests of {validation.observed_name}{seen}"
    )
    for judged in (validation.plain, calibrated):
        if judged is None:
            continue
        rows = []
        for metric, statistics in judged.agreement.items():
            for name, agreement in ({} if statistics is None else statistics).items():
                ratio = agreement.error_ratio
                rows.append(
                    (
                        metric.removesuffix("_s").upper(),
                        name,
                        f"{agreement.simulated:.5g}",
                        f"{agreement.observed:.5g}",
                        None if ratio is None else f"{ratio:+.2%}",
                    )
                )
        missed = (
            f", {judged.only_observed:,} served ones not simulated to an end" if judged.only_observed else ""
        )
        print_table(
            f"{judged.step_model}: {judged.judged:,} requests judged{missed}",
            ("latency", "", "simulated, s", "observed, s", "error"),
            rows,
            right=(2, 3, 4),
        )
        click.echo(click.wrap_text(f"Known error: {judged.known_error}", TABLE_WIDTH, subsequent_indent="  "))
