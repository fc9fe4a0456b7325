"""Options that all commands share, and where their values come from: flag, then environment, then config file.

It exists so that ``--time-limit`` means the same everywhere and ``BALLAST_TIME_LIMIT`` sets it for all. It is not
the place for options of a single command.
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from solver.domain.errors import InputError, Place


class FiniteRange(click.FloatRange):
    """A number in a range that is neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what compares with nothing."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def read_time(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read a time, seconds since 1970: ISO 8601 with a zone, or those seconds."""
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(value)
        if when.tzinfo is not None:
            return when.timestamp()
    except ValueError:
        if re.fullmatch(r"\d{1,12}(\.\d+)?", value):
            return float(value)
    raise click.BadParameter(f"{value!r} is no time such as 2026-11-21T15:00:00Z or 1795273200.")


Command = TypeVar("Command", bound=Callable[..., Any])


def _load_config(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Make a YAML file of ``option: value`` lines the default of the options that are not given otherwise."""
    if value is None:
        return
    import yaml

    try:
        loaded = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"not a YAML file: {reason}", where=value, right="lines like 'time-limit: 30'"
        ) from None
    if not isinstance(loaded, dict):
        raise InputError("not a table of options", where=value, right="lines like 'time-limit: 30'")
    known = {name.lstrip("-"): p.name for p in ctx.command.params for name in p.opts if name.startswith("--")}
    defaults: dict[str, Any] = {}
    for key, setting in loaded.items():
        if str(key) not in known:
            raise InputError(
                f"unknown option {key!r}",
                where=Place(value, field=str(key)),
                right=f"one of {', '.join(sorted(known))}",
            )
        if setting is None or isinstance(setting, dict):
            raise InputError(
                f"{setting!r} is no value",
                where=Place(value, field=str(key)),
                right=f"a line like '{key}: VALUE'",
            )
        defaults[known[str(key)] or str(key)] = setting
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    envvar="BALLAST_CONFIG",
    help="YAML file with option: value lines; flags and BALLAST_* variables win over it.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    envvar="BALLAST_OUTPUT",
    help="How to print the answer.",
)
catalogue_option = click.option(
    "--catalogue",
    "catalogue_files",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="TOML file with more GPU types, models or prices.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    envvar="BALLAST_SEED",
    help="Seed of everything random.",
)
time_limit_option = click.option(
    "--time-limit",
    "time_limit_s",
    type=FiniteRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    envvar="BALLAST_TIME_LIMIT",
    help="Seconds after which the best answer so far is given.",
)
run_limit_option = click.option(
    "--time-limit",
    "run_limit_s",
    type=FiniteRange(min=0, min_open=True),
    default=None,
    envvar="BALLAST_TIME_LIMIT",
    help="Seconds after which the run is given up (exit code 4).  [default: none]",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    envvar="BALLAST_WORKERS",
    help="Processes to use.  [default: the machine's cores]",
)
no_timings_option = click.option(
    "--no-timings",
    is_flag=True,
    help="Leave out fields that time the run, so that equal runs give equal bytes.",
)


CHANGES_NOTHING = "Changes nothing here."


def _without_use(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Make an option that is checked and then ignored."""
    return click.option(*names, expose_value=False, help=CHANGES_NOTHING, **settings)


_WITHOUT_USE = {
    "--output": _without_use("-o", "--output", type=click.Choice(["table", "json", "yaml"])),
    "--seed": _without_use("--seed", type=click.IntRange(min=0)),
    "--time-limit": _without_use("--time-limit", type=FiniteRange(min=0, min_open=True)),
    "--workers": _without_use("--workers", type=click.IntRange(min=1)),
    "--no-timings": _without_use("--no-timings", is_flag=True),
}
"""By name what every command takes, for commands that have no use for it."""


def common_options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Add ``options``, ``--config`` and what else every command takes.

    A script may give all commands the same options: those that are not among ``options`` are checked and ignored.
    """
    used = _names(options)
    ignored = tuple(option for name, option in _WITHOUT_USE.items() if name not in used)

    def add(command: Command) -> Command:
        for option in reversed((*options, *ignored, config_option)):
            command = option(command)
        return command

    return add


def _names(options: Sequence[Callable[[Any], Any]]) -> set[str]:
    """Return how options are called on the command line."""

    @click.command()
    def bare() -> None:
        """Take nothing yet."""

    for option in options:
        option(bare)
    return {name for parameter in bare.params for name in parameter.opts}
