"""Options of commands that build their problem from a request trace: which traffic, which hardware, which SLO.

It exists so that ``plan gpus --trace`` and ``plan fleet --trace`` ask in the same words. What only one of them asks
stands with it; where the rate comes from a forecast is `controller.cli.forecast_rate`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from controller.cli.forecast_rate import FORECAST_OPTIONS, AskedRate, asked_rate, forecast_options
from controller.cli.options import Command, FiniteRange

TRACE_OPTIONS = (
    "models",
    "gpu_types",
    "slo",
    "buckets",
    "rate_scale",
    "rate_kind",
    "window_s",
    "headroom_ratio",
    "catalogue_files",
    *FORECAST_OPTIONS,
)


def trace_options(*, buckets: int, free_part: str) -> Callable[[Command], Command]:
    """Add the options; ``buckets`` is the default number of sizes, ``free_part`` what leaves the headroom free."""
    options = (
        click.option(
            "--trace", type=click.Path(dir_okay=False), help="Build the problem from a request trace."
        ),
        click.option(
            "--model", "models", multiple=True, help="Model to serve (with --trace; may be repeated)."
        ),
        click.option(
            "--gpu-types", help="Comma-separated GPU types to choose from.  [default: all with a price]"
        ),
        click.option(
            "--slo", default="ttft_p99=2.0,tbt_p99=0.1", show_default=True, help="Targets (with --trace)."
        ),
        click.option(
            "--buckets",
            type=click.IntRange(1, 400),
            default=buckets,
            show_default=True,
            help="Request sizes to tell apart.",
        ),
        click.option(
            "--rate-scale",
            type=FiniteRange(min=0, min_open=True),
            default=1.0,
            show_default=True,
            help="Multiply the trace's rate.",
        ),
        click.option(
            "--rate",
            "rate_kind",
            type=click.Choice(["peak", "mean", "p99", "p95"]),
            default="peak",
            show_default=True,
            help="Which rate of the trace to plan for, over windows of --window-s.",
        ),
        click.option(
            "--window-s",
            type=FiniteRange(min=0, min_open=True),
            default=300.0,
            show_default=True,
            help="Window of the peak and quantile rates and of --forecast-own, in seconds.",
        ),
        click.option(
            "--headroom",
            "headroom_ratio",
            type=FiniteRange(0, 1, max_open=True),
            default=0.1,
            show_default=True,
            help=f"Share of every {free_part} that stays free (with --trace).",
        ),
        click.option(
            "--catalogue",
            "catalogue_files",
            multiple=True,
            type=click.Path(dir_okay=False),
            help="TOML file with more GPU types, models or prices (with --trace).",
        ),
        forecast_options,
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def file_or_trace(ctx: click.Context, given: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse both or neither of FILE and --trace, options of a trace with FILE, and a trace without a model."""
    if (given["file"] is None) == (given["trace"] is None):
        raise click.UsageError("give either FILE or --trace", ctx)
    if given["trace"] is not None:
        if not given["models"]:
            raise click.UsageError("--trace needs --model", ctx)
        return
    for option in ctx.command.params:
        said = ctx.get_parameter_source(str(option.name)) == click.core.ParameterSource.COMMANDLINE
        if said and option.name in names:
            raise click.UsageError(f"{option.opts[0]} goes with --trace, not with FILE", ctx)


def asked_of_trace(ctx: click.Context, given: dict[str, Any]) -> tuple[dict[str, Any], AskedRate]:
    """Return what `TraceQuestion` and `FleetQuestion` have in common, and where the rate comes from."""
    from solver.domain.slo import parse_slo

    rate = asked_rate(ctx, given)
    return {
        "models": given["models"],
        "slo": parse_slo(given["slo"], where="--slo"),
        "gpu_types": tuple(name.strip() for name in (given["gpu_types"] or "").split(",") if name.strip()),
        "largest_bucket_count": given["buckets"],
        "rate": rate.basis,
        "own_forecast": rate.own,
        "window_s": given["window_s"],
        "rate_scale": given["rate_scale"],
        "headroom_ratio": given["headroom_ratio"],
        "catalogue_files": tuple(Path(name) for name in given["catalogue_files"]),
    }, rate


def write_instance(path: str, document: dict[str, Any]) -> None:
    """Write a problem, whole or not at all."""
    import json

    from telemetry.sources.traces.write import whole_file

    with whole_file(Path(path)) as write:
        write(json.dumps(document, indent=1) + "\n")
