"""The report of a simulated row: one HTML file that needs no network, with power, breaker, clocks and latencies.

It exists so that people can judge a policy before anyone risks a breaker. It decides nothing; the file appears whole or
not at all.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from controller.reports.page import page_environment, write_page
from controller.reports.row_plots import clock_plot, power_plot, size_plot
from controller.row_simulation import RowSize, SimulatedRow

MOST_LINES = 60
"""Conditions and events that are listed."""


def write_row_report(
    path: Path, simulated: SimulatedRow, sizes: Sequence[RowSize], *, version: str = "", command: str = ""
) -> None:
    """Write the report; its folder is made if it is missing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = render_row_report(simulated, sizes, version=version, command=command)
    write_page(path, text)


def render_row_report(
    simulated: SimulatedRow, sizes: Sequence[RowSize], *, version: str = "", command: str = ""
) -> str:
    """Return the report as HTML text."""
    environment = page_environment()
    environment.filters["percent"] = lambda ratio: f"{100.0 * ratio:+.2f} %"
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    run = simulated.run
    told = [(c.t_s, f"{c.kind} is {c.status}: {c.reason}") for c in run.conditions]
    happened = sorted([*told, *run.events], key=lambda entry: entry[0])
    plots = {"power": power_plot(simulated), "clocks": clock_plot(simulated)}
    if len(sizes) > 1:
        plots["sizes"] = size_plot(simulated, sizes)
    return environment.get_template(
        "row.html.j2"
    ).render(
        run=run,
        row=simulated.row,
        simulated=simulated,
        sizes=sizes,
        headline=_headline(simulated),
        increase=run.increase(simulated.uncapped),
        extra_ratio=simulated.row.servers / simulated.base_servers - 1.0,
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704 - our own drawings, escaped text
        happened=happened[:MOST_LINES],
        more=max(len(happened) - MOST_LINES, 0),
        recalled=run.policy.startswith(("polca", "one-threshold")),
        version=version,
        command=command,
    )


def _headline(simulated: SimulatedRow) -> str:
    run = simulated.run
    if run.trips:
        return "The breaker trips"
    if run.brakes:
        return f"The breaker holds, with {run.brakes:,} brakes"
    if not run.guarantee_held:
        return "The breaker holds, but not by guarantee"
    return "The breaker holds, guaranteed at every decision"
