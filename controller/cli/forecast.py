"""``ballast forecast``: how much capacity the time to come needs, and how such answers would have done.

It exists as the thin shell around `controller.forecasting`. It decides nothing.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from controller.cli.options import (
    Command,
    FiniteRange,
    common_options,
    no_timings_option,
    output_option,
    run_limit_option,
)


@click.group()
def forecast() -> None:
    """Say what rate capacity must carry, from recorded rates.

    Example: ballast forecast backtest rates.csv.gz
    """


_PROBABILITY = FiniteRange(0.0001, 0.25)
_POSITIVE = FiniteRange(min=0, min_open=True)


def _shared(command: Command) -> Command:
    for option in reversed(
        (
            click.argument("file", type=click.Path(allow_dash=True)),
            click.option(
                "--violations",
                type=_PROBABILITY,
                default=None,
                help="Probability that a window exceeds the capacity.  [default: 0.01]",
            ),
            click.option(
                "--replica-usd-per-h",
                type=_POSITIVE,
                help="Instead of --violations: price of a replica; with --penalty-usd-per-request.",
            ),
            click.option(
                "--penalty-usd-per-request",
                type=_POSITIVE,
                help="What a request above capacity costs; with --replica-usd-per-h and --replica-rps.",
            ),
            click.option(
                "--replica-rps", type=_POSITIVE, help="Requests per second that a replica sustains."
            ),
            click.option(
                "--scale-down-after",
                "scale_down_windows",
                type=click.IntRange(1, 1000),
                default=1,
                show_default=True,
                help="Capacity falls only when the lower plan has held for so many windows.",
            ),
            click.option(
                "--window-s",
                type=_POSITIVE,
                help="Take means over so many seconds, a multiple of what is recorded.  [default: as it is]",
            ),
            click.option("--model", "models", multiple=True, help="Only this series; may be repeated."),
        )
    ):
        command = option(command)
    return command


def _violations(ctx: click.Context, given: dict[str, Any]) -> float:
    """Return the probability: as given, as the prices say, or 1 %."""
    prices = (given["replica_usd_per_h"], given["penalty_usd_per_request"])
    if prices == (None, None):
        return 0.01 if given["violations"] is None else float(given["violations"])
    if None in prices or given["replica_rps"] is None:
        raise click.UsageError(
            "--replica-usd-per-h, --penalty-usd-per-request and --replica-rps go together", ctx
        )
    if given["violations"] is not None:
        raise click.UsageError("give either --violations or prices", ctx)
    from solver.forecast.newsvendor import violations_from_cost

    return violations_from_cost(
        cost_usd_per_replica_h=prices[0], penalty_usd_per_request=prices[1], replica_rps=given["replica_rps"]
    )


@forecast.command("run")
@_shared
@click.option(
    "--lead-s",
    "leads_s",
    type=_POSITIVE,
    multiple=True,
    default=(600.0, 1800.0),
    show_default=True,
    help="Seconds from the last window to the end of what is forecast; may be repeated.",
)
@click.option(
    "--hold-s",
    type=_POSITIVE,
    help="Seconds before the end of the lead that one answer must carry.  [default: one window]",
)
@common_options(output_option, run_limit_option)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Forecast the series of FILE from where they end: quantiles of demand, and the rate to have capacity for.

    FILE is a CSV with columns model,t_s,rate_rps: windows of equal length, in seconds or ISO 8601 with a zone; rows
    may be missing. docs/forecast.md says how the rate is found.

    \b
    Examples:
      ballast forecast run rates.csv.gz
      ballast forecast run rates.csv --lead-s 720 --hold-s 600 --violations 0.02 --replica-rps 4
      ballast forecast run rates.csv --replica-rps 4 --replica-usd-per-h 2.5 --penalty-usd-per-request 0.01
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    violations = _violations(ctx, given)
    from controller.cli.forecast_answers import print_forecasts, run_answer
    from controller.cli.output import print_structured
    from controller.forecasting import forecast_series, read_series
    from controller.time_limit import within

    with within(given["run_limit_s"], began_s=ctx.find_root().obj):
        found = [
            forecast_series(
                record,
                leads_s=given["leads_s"],
                hold_s=given["hold_s"],
                violations=violations,
                scale_down_windows=given["scale_down_windows"],
            )
            for record in read_series(given["file"], given["models"], window_s=given["window_s"])
        ]
    if given["output"] == "table":
        print_forecasts(found, violations=violations, replica_rps=given["replica_rps"])
    else:
        print_structured(
            run_answer(found, violations=violations, replica_rps=given["replica_rps"]), given["output"]
        )


@forecast.command("backtest")
@_shared
@click.option(
    "--lead-s",
    type=_POSITIVE,
    default=600.0,
    show_default=True,
    help="Seconds from a decision to the end of the window it is for.",
)
@click.option(
    "--judge-last",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.3,
    show_default=True,
    help="Share of the record, its end, that is judged; what is before may be learnt from.",
)
@click.option("--report", type=click.Path(dir_okay=False), help="HTML file to write a report to.")
@common_options(output_option, run_limit_option, no_timings_option)
@click.pass_context
def backtest(ctx: click.Context, /, **given: Any) -> None:
    """Judge the capacity that would have been decided on in the last part of FILE, beside simple rules in hindsight.

    Each decision sees the windows before it only. A window is violated when its rate exceeds replicas x --replica-rps
    (default: the series' mean rate / 50). The simple rules (last value, max of the last k, same time yesterday, each
    times a margin) are tuned on the judged part itself, to no more violations. FILE as for forecast run.

    \b
    Examples:
      ballast forecast backtest rates.csv.gz
      ballast forecast backtest rates.csv.gz --lead-s 1800 --violations 0.01 --report backtest.html
      ballast forecast backtest rates.csv.gz --model chat --judge-last 0.5 --replica-rps 4 -o json
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    violations = _violations(ctx, given)
    from controller.cli.forecast_answers import backtest_answer, print_backtests
    from controller.cli.output import print_structured, progress
    from controller.forecasting import backtest_series, read_series
    from controller.time_limit import within

    with within(given["run_limit_s"], began_s=ctx.find_root().obj):
        records = read_series(given["file"], given["models"], window_s=given["window_s"])
        found = []
        with progress("judging", len(records)) as advance:
            for record in records:
                advance(0, note=f"judging {record.name}")
                found.append(
                    backtest_series(
                        record,
                        lead_s=given["lead_s"],
                        violations=violations,
                        replica_rps=given["replica_rps"],
                        judge_last=given["judge_last"],
                        scale_down_windows=given["scale_down_windows"],
                    )
                )
                advance()
    if given["report"] is not None:
        from controller.cli.answers import ballast_version
        from controller.reports.forecast import write_forecast_report

        write_forecast_report(
            Path(given["report"]),
            [timed.judged for timed in found],
            violations=violations,
            source=given["file"],
            version=ballast_version(),
            command=shlex.join(["ballast", *sys.argv[1:]]),
        )
        click.echo(f"report written to {given['report']}", err=True)
    if given["output"] == "table":
        print_backtests(found, violations=violations)
    else:
        print_structured(
            backtest_answer(
                found,
                violations=violations,
                judge_last=given["judge_last"],
                timings=not given["no_timings"],
            ),
            given["output"],
        )
