"""Draws the plots of a simulated row as SVG text: power and breaker, clocks, latency against the row's size.

It exists apart from the report so that nothing else pays for importing matplotlib. It decides nothing. Whatever the
length of a run, a line has at most `MOST_BINS` steps; of one the highest second is kept where a limit is to be seen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from controller.reports.svg import FAINT, INK, PALETTE, STYLE, Plot
from controller.row_simulation import RowSize, SimulatedRow
from solver.domain.trace import Floats

MOST_BINS = 600
_MISSED = "#c44900"
_DASHES: Any = (0, (4, 2))
_PRIORITIES = (("low", "low priority", PALETTE[1]), ("high", "high priority", PALETTE[0]))


def power_plot(simulated: SimulatedRow) -> str:
    """Draw the draw over budget, with and without policy, and θ below."""
    run, uncapped, row = simulated.run, simulated.uncapped, simulated.row
    hours, width = _bins(run.row_w.size)
    plot = Plot("power", 4.6, "power of the row against its budget, and the state of its breaker, over time")
    with rc_context(STYLE):
        top, below = plot.figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        if uncapped is not run:
            top.plot(hours, _highest(uncapped.row_w, width) / 1e3, color=FAINT, lw=0.8, label="uncapped")
        top.plot(hours, _highest(run.row_w, width) / 1e3, color=PALETTE[0], lw=1.0, label=run.policy)
        top.plot(hours, _lowest(run.budget_w, width) / 1e3, color=INK, lw=1.2, ls=_DASHES, label="budget")
        top.set_ylabel("kW")
        top.set_title("Power, the highest second of each step")
        top.legend(loc="lower right", ncols=3)
        below.plot(hours, _highest(run.theta, width), color=PALETTE[4], lw=1.0)
        below.axhline(row.curve.trip_theta, color=_MISSED, lw=1.2, ls=_DASHES)
        below.annotate(
            "trips", (0, row.curve.trip_theta), color=_MISSED, xytext=(4, -12), textcoords="offset points"
        )
        below.set_ylim(0.0, 1.1 * max(row.curve.trip_theta, run.theta_max))
        below.set_ylabel("θ")
        below.set_xlabel("hours")
        below.set_title(f"State of the breaker, {row.curve.name}")
        for axes in (top, below):
            axes.grid(axis="y")
            axes.margins(x=0.0)
    return plot.svg()


def clock_plot(simulated: SimulatedRow) -> str:
    """Draw the mean clock of either priority over time."""
    run, row = simulated.run, simulated.row
    hours, width = _bins(run.low_mhz.size)
    plot = Plot("clocks", 2.8, "mean clock of low and high priority servers over time")
    with rc_context(STYLE):
        axes = plot.figure.subplots()
        for (_, label, colour), values in zip(_PRIORITIES, (run.low_mhz, run.high_mhz), strict=True):
            axes.step(hours, _mean(values, width), where="post", color=colour, lw=1.2, label=label)
        axes.set_ylim(0.0, 1.08 * row.server.max_mhz)
        axes.set_ylabel("MHz")
        axes.set_xlabel("hours")
        axes.set_title("Clocks in force")
        axes.legend(loc="lower right", ncols=2)
        axes.grid(axis="y")
        axes.margins(x=0.0)
    return plot.svg()


def size_plot(simulated: SimulatedRow, sizes: Sequence[RowSize]) -> str:
    """Draw the increase of latencies, and the time over budget, against the number of servers."""
    plot = Plot("sizes", 3.2, "increase of latency and seconds over budget against the number of servers")
    extra = [100.0 * (size.servers / simulated.base_servers - 1.0) for size in sizes]
    with rc_context(STYLE):
        left, right = plot.figure.subplots(1, 2, width_ratios=(3, 2))
        for name, label, colour in _PRIORITIES:
            for index, (part, style) in enumerate((("p50", "-"), ("p99", _DASHES))):
                known = [
                    (x, 100.0 * size.increase[name][index])
                    for x, size in zip(extra, sizes, strict=True)
                    if name in size.increase
                ]
                if known:
                    left.plot(
                        *zip(*known, strict=True),
                        color=colour,
                        ls=style,
                        marker="o",
                        ms=3,
                        label=f"{label} {part}",
                    )
        left.set_ylabel("% slower than uncapped")
        left.set_xlabel("% more servers than provisioned")
        left.set_title("Latency against oversubscription")
        left.legend(loc="upper left")
        right.bar(extra, [size.over_budget_s for size in sizes], width=2.5, color=PALETTE[0])
        right.set_ylabel("seconds over budget")
        right.set_xlabel("% more servers than provisioned")
        right.set_title("Over budget")
        for axes in (left, right):
            axes.grid(axis="y")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return plot.svg()


def _bins(seconds: int) -> tuple[Floats, int]:
    width = max(-(-seconds // MOST_BINS), 1)
    return np.arange(-(-seconds // width), dtype=np.float64) * (width / 3600.0), width


def _folded(values: Floats, width: int) -> Floats:
    short = -values.size % width
    return np.concatenate([values, np.full(short, values[-1])]).reshape(-1, width)


def _highest(values: Floats, width: int) -> Floats:
    return np.asarray(_folded(values, width).max(axis=1))


def _lowest(values: Floats, width: int) -> Floats:
    return np.asarray(_folded(values, width).min(axis=1))


def _mean(values: Floats, width: int) -> Floats:
    return np.asarray(_folded(values, width).mean(axis=1))
