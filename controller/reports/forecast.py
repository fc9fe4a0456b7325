"""The report of a back-test: one HTML file that needs no network, with rate, capacity and violations of every series.

It exists so that people can see where a forecast would have fallen short. It decides nothing; the file appears whole or
not at all.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from controller.reports.forecast_plots import capacity_plot, cost_plot
from controller.reports.page import page_environment, write_page
from solver.forecast.backtest import Judged

MOST_PLOTS = 24
"""Series that are drawn; the table has all."""
MOST_RULES = 5


def write_forecast_report(
    path: Path,
    series: Sequence[Judged],
    *,
    violations: float,
    source: str,
    version: str = "",
    command: str = "",
) -> None:
    """Write the report; its folder is made if it is missing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = render_forecast_report(
        series, violations=violations, source=source, version=version, command=command
    )
    write_page(path, text)


def render_forecast_report(
    series: Sequence[Judged], *, violations: float, source: str, version: str = "", command: str = ""
) -> str:
    """Return the report as HTML text."""
    environment = page_environment()
    environment.filters["percent"] = lambda ratio: "-" if math.isnan(ratio) else f"{100 * ratio:.2f} %"
    environment.filters["ratio"] = lambda ratio: "-" if ratio is None or math.isnan(ratio) else f"{ratio:.3f}"
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    windows = sum(judged.judged_windows for judged in series)
    hours = sum(judged.replica_hours for judged in series)
    oracle = sum(judged.oracle_replica_hours for judged in series)
    violated = sum(judged.violation_ratio * judged.judged_windows for judged in series)
    best = [judged.best_rule.replica_hours for judged in series if judged.best_rule is not None]
    plots = [capacity_plot(judged, number) for number, judged in enumerate(series[:MOST_PLOTS])]
    return environment.get_template(
        "forecast.html.j2"
    ).render(
        series=series,
        plots=[Markup(svg) for svg in plots],  # noqa: S704 - our own drawings, escaped text
        costs=Markup(cost_plot(series[:MOST_PLOTS])),  # noqa: S704 - as above
        wanted=violations,
        violated=violated / windows,
        windows=windows,
        to_oracle=hours / oracle,
        to_best=hours / sum(best) if len(best) == len(series) else None,
        most_rules=MOST_RULES,
        source=Path(source).name,
        version=version,
        command=command,
    )
