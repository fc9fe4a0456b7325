"""Where the rate to plan for comes from: the trace as it was, a file of recorded rates, or the trace's own forecast.

It exists so that commands that build their problem from a trace take a forecast in the same way. The rates are
`solver.forecast`'s; the trace still gives the sizes of the requests.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from controller.cli.options import Command, FiniteRange

if TYPE_CHECKING:
    from controller.forecasting import ForeseenBuckets, OwnForecast
    from solver.domain.demand import RateBasis

FORECAST_OPTIONS = ("forecast", "forecast_model", "forecast_own", "lead_s", "violations")


class AskedRate(NamedTuple):
    """The rate to plan for, and where it comes from in a few words."""

    basis: "RateBasis"
    own: "OwnForecast | None"
    """Where the trace's own windows decide, instead of ``basis``."""
    says: str


def forecast_options(command: Command) -> Command:
    """Add the options."""
    for option in reversed(
        (
            click.option(
                "--forecast",
                type=click.Path(dir_okay=True),
                help="Recorded rates (as ballast forecast reads them): plan for what they foretell, not for --rate.",
            ),
            click.option("--forecast-model", help="Series of --forecast, where it has several."),
            click.option(
                "--forecast-own",
                type=click.Choice(["sizes", "total"]),
                help="Plan for what the trace's own windows foretell: each size by its record (where the mix of"
                " sizes drifts), or all by their total.",
            ),
            click.option(
                "--lead-s",
                type=FiniteRange(min=0, min_open=True),
                default=1800.0,
                show_default=True,
                help="Seconds from the end of what was recorded that a forecast must carry.",
            ),
            click.option(
                "--violations",
                type=FiniteRange(0.0001, 0.25),
                default=0.01,
                show_default=True,
                help="Probability that traffic exceeds the capacity forecast.",
            ),
        )
    ):
        command = option(command)
    return command


def asked_rate(ctx: click.Context, given: dict[str, Any]) -> AskedRate:
    """Return the rate to plan for, with the forecast of ``--forecast`` where it is given.

    Raises
    ------
    InputError
        If the file is not sound, or has several series and none is named.
    """
    said = {
        name
        for name in ("rate_kind", *FORECAST_OPTIONS)
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    }
    sources = [
        flag
        for flag, name in (
            ("--rate", "rate_kind"),
            ("--forecast", "forecast"),
            ("--forecast-own", "forecast_own"),
        )
        if name in said or (name != "rate_kind" and given[name] is not None)
    ]
    if len(sources) > 1:
        raise click.UsageError(f"give either {' or '.join(sources)}", ctx)
    lead_s, violations, kind = given["lead_s"], given["violations"], given["rate_kind"]
    if given["forecast"] is None and "forecast_model" in said:
        raise click.UsageError("--forecast-model goes with --forecast", ctx)
    if given["forecast"] is None and given["forecast_own"] is None:
        for name in sorted(said - {"rate_kind"}):
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --forecast or --forecast-own", ctx)
        basis = int(kind[1:]) / 100 if kind.startswith("p9") else kind
        return AskedRate(basis, None, f"{kind} over {given['window_s']:g} s")
    if given["forecast_own"] is not None:
        from controller.forecasting import OwnForecast, check_read_twice

        check_read_twice(given["trace"])  # now, not when an hour of it is read
        own = OwnForecast(by=given["forecast_own"], lead_s=lead_s, violations=violations)
        return AskedRate("mean", own, "")
    from controller.forecasting import read_series
    from solver.domain.demand import GivenRate
    from solver.domain.errors import InputError
    from solver.forecast.capacity import capacity_rate

    names = () if given["forecast_model"] is None else (given["forecast_model"],)
    records = read_series(given["forecast"], names)
    if len(records) > 1:
        raise InputError(
            f"{len(records)} series",
            where=given["forecast"],
            right=f"--forecast-model with one of {', '.join(record.name for record in records[:20])}",
        )
    found = capacity_rate(records[0], lead_s=lead_s, hold_s=lead_s, violations=violations)
    why = f"; {found.fallback}" if found.fallback else ""
    return AskedRate(
        GivenRate(found.rate_rps),
        None,
        f"forecast of the next {lead_s / 60:g} min: {found.rule}, quantile {found.level_ratio:.4g}{why}",
    )


def say_foreseen(foreseen: Mapping[str, "ForeseenBuckets"], own: "OwnForecast", *, window_s: float) -> None:
    """Tell on stderr what each model is planned for and by what."""
    for model, one in foreseen.items():
        load = one.capacity.load
        click.echo(
            f"{model}: planning for {one.rate_rps:.3f} req/s, the forecast of the next {own.lead_s / 60:g} min"
            f" by {'sizes' if one.capacity.by_total is None else 'their total'}: {load.rule}, quantile"
            f" {load.level_ratio:.4g} of {load.known_windows:,} windows of {window_s:g} s",
            err=True,
        )
        short = one.capacity.by_total if own.by == "sizes" else load.fallback
        if short is not None:
            click.echo(
                f"  {short}: all sizes are scaled alike; a shorter --window-s gives more windows", err=True
            )
        elif load.fallback is not None:
            click.echo(f"  {load.fallback}", err=True)
