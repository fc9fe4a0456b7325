"""The report of a sweep: one HTML file that needs no network, with the front, a plot of the axes and the table.

It exists so that a grid of runs can be looked at. Every figure stands in the sweep's table too; nothing is computed
here but the order of the rows. With one axis it draws lines, with two a map, with more only cost against power.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.patches import Rectangle

from controller.reports.page import page_environment, write_page
from controller.reports.svg import FAINT, PALETTE, STYLE, Plot, number
from controller.sweeps import Row, SweepResult
from simulator.sweep import Sweep
from simulator.sweep_file import SweepSpec

MOST_ROWS = 500
"""Rows shown in the page; the file table.csv has all."""
COLUMNS = (
    ("attainment_ratio", "inside all targets", 100.0, " %"),
    ("ttft_p99_s", "TTFT p99, s", 1.0, ""),
    ("tbt_p99_s", "TBT p99, s", 1.0, ""),
    ("e2e_p99_s", "E2E p99, s", 1.0, ""),
    ("instances", "instances", 1.0, ""),
    ("power_mean_w", "kW", 0.001, ""),
    ("cost_usd_per_h", "US$/h", 1.0, ""),
)
MET, MISSED = PALETTE[2], PALETTE[4]


def write_sweep_report(spec: SweepSpec, result: SweepResult, path: Path) -> None:
    """Write the report."""
    environment = page_environment()
    rows = result.rows
    drawn = [Markup(svg) for svg in _plots(spec.sweep, rows)]  # noqa: S704 - our own SVG; every text in it is escaped
    text = environment.get_template("sweep.html.j2").render(
        name=Path(spec.source).stem,
        axes=[name for name, _ in spec.sweep.axes],
        columns=[title for _, title, _, _ in COLUMNS],
        front=[_line(spec.sweep, rows[k]) for k in result.front],
        table=[_line(spec.sweep, row) for row in rows[:MOST_ROWS]],
        rows=len(rows),
        most_rows=MOST_ROWS,
        met=sum(row.get("slo_met") is True for row in rows),
        failed=result.failed,
        seeds=len(spec.sweep.seeds),
        plots=drawn,
    )
    write_page(path, text)


def _line(sweep: Sweep, row: Row) -> dict[str, Any]:
    def shown(name: str, factor: float, unit: str) -> str:
        value = row.get(name)
        if value is None or isinstance(value, int):
            return "-" if value is None else f"{value:,}"
        return f"{number(value * factor)}{unit}"

    return {
        "axes": [str(row["changes"][name]) for name, _ in sweep.axes],
        "seed": row["seed"],
        "met": None if row["error"] else row.get("slo_met"),
        "error": row["error"],
        "figures": [shown(name, factor, unit) for name, _, factor, unit in COLUMNS],
    }


def _plots(sweep: Sweep, rows: tuple[Row, ...]) -> list[str]:
    sound = [row for row in rows if row["error"] is None]
    with rc_context(STYLE):
        plots = []
        if len(sweep.axes) == 1:
            plots.append(_along(sweep, sound))
        elif len(sweep.axes) == 2:
            plots.append(_map(sweep, sound))
        if any(row.get("cost_usd_per_h") and row.get("power_mean_w") for row in sound):
            plots.append(_cost_and_power(sound))
    return [plot for plot in plots if plot]


def _along(sweep: Sweep, rows: list[Row]) -> str:
    (name, values) = sweep.axes[0]
    plot = Plot("along", 3.4, f"Share of requests inside all targets, and p99 of TTFT, along {name}")
    left, right = plot.figure.subplots(1, 2)
    for axis, figure, factor, title in (
        (left, "attainment_ratio", 100.0, "requests inside all targets, %"),
        (right, "ttft_p99_s", 1.0, "TTFT p99, s"),
    ):
        at, heights, colours = [], [], []
        for row in rows:
            if row.get(figure) is not None:
                at.append(values.index(row["changes"][name]))
                heights.append(factor * row[figure])
                colours.append(MET if row.get("slo_met") else MISSED)
        axis.plot(at, heights, color=FAINT, linewidth=1, zorder=1)
        axis.scatter(at, heights, c=colours, s=36, zorder=2)
        axis.set_title(title)
        axis.set_xlabel(name)
        axis.set_xticks(range(len(values)), [str(value) for value in values])
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
    return plot.svg()


def _map(sweep: Sweep, rows: list[Row]) -> str:
    (first, across), (second, along) = sweep.axes
    plot = Plot("map", 1.2 + 0.34 * len(across), f"Requests inside all targets over {first} and {second}")
    axis = plot.figure.subplots()
    for row in rows:
        share = row.get("attainment_ratio")
        x, y = along.index(row["changes"][second]), across.index(row["changes"][first])
        colour = MET if row.get("slo_met") else MISSED
        axis.add_patch(_cell(x, y, colour, 0.25 if share is None else 0.2 + 0.6 * share))
        if len(along) <= 24:
            axis.text(
                x, y, "-" if share is None else f"{100 * share:.0f}", ha="center", va="center", fontsize=8
            )
    axis.set_xlim(-0.5, len(along) - 0.5)
    axis.set_ylim(-0.5, len(across) - 0.5)
    axis.set_xticks(range(len(along)), [str(value) for value in along])
    axis.set_yticks(range(len(across)), [str(value) for value in across])
    axis.set_xlabel(second)
    axis.set_ylabel(first)
    axis.set_title("requests inside all targets, % (green: SLO met)")
    return plot.svg()


def _cell(x: float, y: float, colour: str, alpha: float) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colour, alpha=alpha, linewidth=0)


def _cost_and_power(rows: list[Row]) -> str:
    plot = Plot("cost", 3.6, "Cost against mean power of every run; green runs meet the SLO")
    axis = plot.figure.subplots()
    for met, colour, label in ((False, MISSED, "SLO missed"), (True, MET, "SLO met")):
        chosen = [row for row in rows if (row.get("slo_met") is True) is met]
        known = [row for row in chosen if row.get("cost_usd_per_h") and row.get("power_mean_w")]
        if known:
            axis.scatter(
                [row["power_mean_w"] / 1000 for row in known],
                [row["cost_usd_per_h"] for row in known],
                s=26,
                color=colour,
                alpha=0.75,
                label=label,
                linewidths=0,
            )
    axis.set_xlabel("mean power, kW")
    axis.set_ylabel("US$ per hour")
    axis.set_title("cost against power")
    axis.legend()
    axis.grid(visible=True)
    return plot.svg()
