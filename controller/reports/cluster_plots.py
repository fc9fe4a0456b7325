"""Draws the plots of simulated runs as SVG text: distributions, targets, where time goes, pools over time, power.

It exists apart from the report so that nothing else pays for importing matplotlib, and takes plain values so that other
reports can put predicted beside simulated. It decides nothing. Whatever the size of a run, a curve has at most
`MOST_POINTS` points, a line over time at most `MOST_BINS` steps, and a plot at most `MOST_LINES` pools.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from controller.reports.svg import FAINT, INK, PALETTE, STYLE, Plot
from simulator.record import Series
from solver.domain.trace import Floats

MOST_POINTS = 300
MOST_BINS = 400
MOST_LINES = 8
FEWEST_PER_STEP = 5
"""Requests per step, in the mean, that a rate over time is drawn from."""
MET, MISSED = "#00795a", "#c44900"
WASH = "#f0f2f5"
STAGE_COLOURS = ("#D55E00", "#E69F00", "#0072B2")
CUT_AT = 2.5
"""Bars are cut at so many times the limit, or one hopeless target would flatten all others."""
LOG_FROM = 8.0
"""Latencies that span more than so many times their smallest are drawn on a logarithmic axis."""
_NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_DASHES: Any = (0, (4, 2))
_ROUND_STEPS = (1, 2, 2.5, 5, 10)
# (smallest value that is written in a unit, the unit, its name), largest first
_WATTS = ((2e6, 1e6, "MW"), (2e3, 1e3, "kW"), (0.0, 1.0, "W"))
_JOULES = ((7.2e9, 3.6e9, "MWh"), (3.6e6, 3.6e6, "kWh"), (0.0, 3.6e3, "Wh"))
_SECONDS = ((14400.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One distribution."""

    label: str
    values_s: Floats
    """Finite ones only."""
    lost: int = 0
    """Requests that have no value because they were rejected: infinitely late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A target in seconds."""

    percentile: float
    limit_s: float
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """Distributions of one latency; the first curve is the one that is judged."""

    title: str
    curves: tuple[Curve, ...]
    limits: tuple[Limit, ...] = ()
    milliseconds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetBars:
    """How near one target of an SLO is: a bar for each of several answers."""

    label: str
    shares: tuple[float | None, ...]
    """Value over limit; infinite: never reached; None: not known."""
    words: tuple[str, ...]
    """What to write beside each bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Mean seconds of some requests: waiting, until the first token, until the last."""

    label: str
    seconds: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolLine:
    """One pool over time (or the rest of many pools), in the steps of a `Timeline`."""

    label: str
    colour: str
    power_w: Floats
    running: Floats
    waiting: Floats
    busy: Floats
    up: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """A run over time, coarse enough to be drawn."""

    edges_s: Floats
    pools: tuple[PoolLine, ...]
    rate_edges_s: Floats
    """Steps of the two rates: as coarse as it takes for a handful of requests in each."""
    arrivals_rps: Floats
    completions_rps: Floats
    warm_up_s: float = 0.0
    marks_s: tuple[float, ...] = ()
    """Events, numbered from 1 in the plots."""

    @property
    def widths_s(self) -> Floats:
        """Length of each step."""
        widths: Floats = np.diff(self.edges_s)
        return widths


def timeline(
    series: Series,
    names: Sequence[str],
    *,
    horizon_s: float,
    arrivals_s: Floats,
    ends_s: Floats,
    warm_up_s: float = 0.0,
    marks_s: Sequence[float] = (),
) -> Timeline | None:
    """Merge the bins of a run into at most `MOST_BINS` steps, and its pools into `MOST_LINES`; None: it has no length.

    The last step ends where the run does, and its means are over what there is of it.
    """
    bins = series.up.shape[1]
    together = max(1, math.ceil(bins / MOST_BINS))
    first = np.arange(0, bins, together)
    edges_s: Floats = np.append(first * series.bin_s, horizon_s)
    if len(first) > 1 and edges_s[-1] - edges_s[-2] < 0.01 * together * series.bin_s:
        first, edges_s = first[:-1], np.delete(edges_s, -2)
    widths_s = np.diff(edges_s)
    if widths_s[-1] <= 0.0:
        return None

    def means(rows: Floats) -> Floats:
        merged: Floats = np.add.reduceat(rows, first) * series.bin_s / widths_s
        return merged

    coarse = max(1, math.ceil(FEWEST_PER_STEP * len(widths_s) / max(1, len(arrivals_s))))
    rate_edges_s: Floats = np.append(edges_s[:-1:coarse], horizon_s)

    def rate(times_s: Floats) -> Floats:
        # An end may lie a rounding beyond the last event; arrivals after a run was broken off never happened.
        within = np.minimum(times_s[times_s <= horizon_s * (1.0 + 1e-9)], horizon_s)
        counts: Floats = np.histogram(within, rate_edges_s)[0] / np.diff(rate_edges_s)
        return counts

    lines = []
    for label, rows, colour in _grouped(names, series.up.sum(axis=1)):
        lines.append(
            PoolLine(
                label=label,
                colour=colour,
                power_w=means(series.power_w[rows].sum(axis=0)),
                running=means(series.running[rows].sum(axis=0)),
                waiting=means(series.waiting[rows].sum(axis=0)),
                busy=means(series.busy[rows].sum(axis=0)),
                up=means(series.up[rows].sum(axis=0)),
            )
        )
    return Timeline(
        edges_s=edges_s,
        pools=tuple(lines),
        rate_edges_s=rate_edges_s,
        arrivals_rps=rate(arrivals_s),
        completions_rps=rate(ends_s),
        warm_up_s=warm_up_s,
        marks_s=tuple(marks_s),
    )


def pool_colours(names: Sequence[str], sizes: Floats) -> dict[str, str]:
    """Give every pool the colour of its line."""
    return {names[p]: colour for _, rows, colour in _grouped(names, sizes) for p in rows}


def _grouped(names: Sequence[str], sizes: Floats) -> list[tuple[str, list[int], str]]:
    """Return (label, rows, colour): the largest pools one by one in their order, all others as one."""
    if len(names) <= MOST_LINES:
        return [(name, [p], PALETTE[p]) for p, name in enumerate(names)]
    kept = np.sort(np.argsort(-sizes, kind="stable")[: MOST_LINES - 1]).tolist()
    rest = [p for p in range(len(names)) if p not in kept]
    lines = [(names[p], [p], PALETTE[place]) for place, p in enumerate(kept)]
    return [*lines, (f"{len(rest)} other pools", rest, PALETTE[MOST_LINES - 1])]


def distributions(panels: Sequence[Panel], *, name: str = "latencies") -> str:
    """Draw cumulative distributions side by side; targets in seconds are corners to stay left of."""
    with rc_context(STYLE):
        says = "Cumulative distributions: " + "; ".join(
            f"{panel.title} of {len(panel.curves[0].values_s):,} requests" for panel in panels
        )
        plot = Plot(name, 3.75, says)
        grid = plot.figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        top = max(_top(panel) for panel in panels)
        for axes, panel in zip(grid, panels, strict=True):
            _distribution(axes, panel, top)
        grid[0].set_ylabel("requests that are at most so slow")
        labels = [curve.label for curve in panels[0].curves]
        if len(labels) > 1:
            handles = [
                Line2D([], [], color=colour, linewidth=1.8, label=label)
                for label, colour in zip(labels, _curve_colours(len(labels)), strict=True)
            ]
            plot.figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
        return plot.svg()


def _top(panel: Panel) -> float:
    most = max((len(curve.values_s) + curve.lost for curve in panel.curves), default=1)
    highest = max((_stretched(limit.percentile) for limit in panel.limits), default=0.0)
    return max(1.15, min(3.3, math.log10(max(2, most))), highest + 0.2)


def _stretched(percentile: float) -> float:
    """Return the place of a percentile on an axis that gives every further nine the same room."""
    return -math.log10(1.0 - percentile / 100.0)


def _curve_colours(curves: int) -> list[str]:
    return [INK, *(PALETTE[k % len(PALETTE)] for k in range(curves - 1))]


def _distribution(axes: Axes, panel: Panel, top: float) -> None:
    scale = 1000.0 if panel.milliseconds else 1.0
    unit = "ms" if panel.milliseconds else "s"
    axes.set_title(f"{panel.title}, {unit}")
    axes.set_ylim(0, top)
    nines = [percentile for percentile in _NINES if _stretched(percentile) <= top]
    axes.set_yticks([_stretched(percentile) for percentile in nines], [f"{p:g} %" for p in nines])
    axes.grid(visible=True)
    drawn = [
        (curve, colour)
        for curve, colour in zip(panel.curves, _curve_colours(len(panel.curves)), strict=True)
        if len(curve.values_s)
    ]
    if not drawn:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no request has it", transform=axes.transAxes, ha="center", color=FAINT)
        return
    limits = [limit.limit_s * scale for limit in panel.limits]
    ends = [value * scale for curve, _ in drawn for value in (curve.values_s.min(), curve.values_s.max())]
    positive = [value for value in (*ends, *limits) if value > 0.0]
    log = bool(positive) and max(positive) > LOG_FROM * min(positive)
    if log:
        low, high = min(positive), max(positive)
        margin = (high / low) ** 0.06
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.2 else ((1.0, 3.0) if decades < 3.5 else (1.0,))
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.0, 1.06 * max([*ends, *limits, 1e-9]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    left = axes.get_xlim()[0]
    for curve, colour in reversed(drawn):
        values, places = curve_points(curve, top)
        axes.plot(
            np.maximum(values * scale, left),
            places,
            color=colour,
            linewidth=2.0 if curve is panel.curves[0] else 1.4,
            solid_capstyle="round",
        )
    for limit in panel.limits:
        _corner(axes, limit, limit.limit_s * scale, unit)


def curve_points(curve: Curve, top: float) -> tuple[Floats, Floats]:
    """Return values and their places on the stretched axis, numpy's linear percentiles at every place."""
    ordered = np.sort(curve.values_s)
    total = len(ordered) + curve.lost
    places = np.linspace(0.0, top, MOST_POINTS)
    ranks = (1.0 - 10.0**-places) * (total - 1)
    known = ranks <= len(ordered) - 1
    values: Floats = np.interp(ranks[known], np.arange(len(ordered)), ordered)
    return values, places[known]


def _corner(axes: Axes, limit: Limit, x: float, unit: str) -> None:
    colour = MET if limit.met else MISSED
    y = _stretched(limit.percentile)
    axes.plot(
        [axes.get_xlim()[0], x, x], [y, y, 0.0], color=colour, linewidth=1.1, linestyle=_DASHES, zorder=3
    )
    axes.plot([x], [y], color=colour, marker="o" if limit.met else "X", markersize=5.5, zorder=4)
    roomy = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0] > 0.5
    axes.annotate(
        f"p{limit.percentile:g} ≤ {x:.4g} {unit}",
        (x, y),
        xytext=(-5 if roomy else 6, 3),
        textcoords="offset points",
        ha="right" if roomy else "left",
        va="bottom",
        fontsize=8.5,
        color=colour,
    )


def targets(
    rows: Sequence[TargetBars], answers: Sequence[str] = ("reached",), *, name: str = "targets"
) -> str:
    """Draw how near each target is: bars of value over limit, the limit a line; over it the bar is red.

    Several answers (as predicted and simulated) stand below each other, told apart by shade.
    """
    with rc_context(STYLE):
        says = "Value over limit of every target: " + "; ".join(
            f"{row.label}: {', '.join(row.words)}" for row in rows
        )
        height = 0.3 * len(rows) * len(answers) ** 0.8 + (1.0 if len(answers) > 1 else 0.65)
        plot = Plot(name, height, says)
        axes = plot.figure.add_subplot()
        known = [share for row in rows for share in row.shares if share is not None]
        widest = min(CUT_AT, max([1.0, *known]))
        deep = 0.72 / len(answers)
        for y, row in enumerate(rows):
            for a, (share, words) in enumerate(zip(row.shares, row.words, strict=True)):
                at = y - 0.36 + (a + 0.5) * deep
                length = 0.0 if share is None else min(share, widest)
                cut = share is not None and share > widest
                met = share is not None and share <= 1.0
                alpha = 1.0 if len(answers) == 1 else 0.4 + 0.6 * a / (len(answers) - 1)
                axes.barh(at, length, height=deep * 0.9, color=MET if met else MISSED, alpha=alpha)
                axes.text(
                    1.02 * widest,
                    at,
                    words,
                    va="center",
                    fontsize=9,
                    color=FAINT if share is None else (INK if met else MISSED),
                )
                if cut:
                    axes.text(
                        0.99 * widest, at, "…", ha="right", va="center", color="white", fontweight="bold"
                    )
        axes.axvline(1.0, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(0, 1.3 * widest)
        axes.xaxis.set_major_locator(
            FixedLocator([step for step in (0, 0.5, 1, 1.5, 2, 2.5) if step <= widest])
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.set_xlabel("of the limit")
        axes.grid(visible=True, axis="x")
        if len(answers) > 1:
            handles = [
                Patch(color=MET, alpha=0.4 + 0.6 * a / (len(answers) - 1), label=answer)
                for a, answer in enumerate(answers)
            ]
            axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(answers))
        return plot.svg()


def stages(rows: Sequence[Stages], *, name: str = "stages") -> str:
    """Draw where the time of requests goes: shares of their mean stay, with seconds beside the bars."""
    with rc_context(STYLE):
        parts = ("waiting for the first iteration", "until the first token", "until the last token")
        says = "Where time goes: " + "; ".join(
            f"{row.label}: "
            + ", ".join(f"{part} {value:.3g} s" for part, value in zip(parts, row.seconds, strict=True))
            for row in rows
        )
        plot = Plot(name, 0.85 + 0.36 * len(rows), says)
        axes = plot.figure.add_subplot()
        for y, row in enumerate(rows):
            whole = sum(row.seconds) or 1.0
            left = 0.0
            for seconds, colour in zip(row.seconds, STAGE_COLOURS, strict=True):
                share = seconds / whole
                axes.barh(y, share, left=left, height=0.7, color=colour, edgecolor="white", linewidth=0.8)
                left += share
            axes.text(
                1.015,
                y,
                " + ".join(f"{seconds:.3g}" for seconds in row.seconds) + " s",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(0, 1.26)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        handles = [Patch(color=colour, label=part) for part, colour in zip(parts, STAGE_COLOURS, strict=True)]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            handlelength=1.0,
            borderaxespad=0.2,
        )
        return plot.svg()


def load(line: Timeline, *, name: str = "load") -> str:
    """Draw what arrives and ends, how busy the pools are, their batches and their queues, over time."""
    with rc_context(STYLE):
        says = (
            "Over time: requests arriving and completing per second, and for each pool the share of instances"
        )
        says += " at work, requests in batches and requests waiting per instance: "
        says += ", ".join(pool.label for pool in line.pools)
        plot = Plot(name, 8.4, says)
        rates, busy, batch, queue = plot.figure.subplots(4, 1, sharex=True)
        unit_s = _frame(line, (rates, busy, batch, queue))
        edges = line.edges_s / unit_s
        rates.set_title("Requests/s")
        rates.stairs(
            line.arrivals_rps, line.rate_edges_s / unit_s, fill=True, color="#d3dae2", label="arriving"
        )
        rates.stairs(
            line.completions_rps, line.rate_edges_s / unit_s, color=INK, linewidth=1.3, label="completing"
        )
        rates.set_ylim(0, 1.1 * max(float(line.arrivals_rps.max()), float(line.completions_rps.max()), 1e-9))
        rates.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, borderaxespad=0.2)
        busy.set_title("Instances at work, share of those that are up")
        _lines(busy, line, edges, lambda pool: pool.busy)
        busy.set_ylim(0, 1.04)
        busy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        batch.set_title("Batch: requests prefilling or decoding, per instance")
        _lines(batch, line, edges, lambda pool: pool.running)
        queue.set_title("Queue: requests waiting, per instance")
        _lines(queue, line, edges, lambda pool: pool.waiting)
        for axes in (rates, batch, queue):
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=_ROUND_STEPS))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        _legend_of_pools(plot, line)
        return plot.svg()


def power(line: Timeline, *, budget_w: float | None = None, name: str = "power") -> str:
    """Draw watts of the pools on top of each other, the budget, and the energy that adds up."""
    with rc_context(STYLE):
        most_w = float(sum((pool.power_w for pool in line.pools), np.zeros(1)).max())
        watts = max(most_w, budget_w or 0.0)
        unit_w, unit = _unit(watts, _WATTS)
        total_j = sum(float((pool.power_w * line.widths_s).sum()) for pool in line.pools)
        unit_j, energy_unit = _unit(total_j, _JOULES)
        says = f"Power over time, at most {most_w:,.0f} watts in the mean of a step, and energy adding up to"
        says += f" {total_j / unit_j:,.3g} {energy_unit}"
        if budget_w is not None:
            says += f"; budget {budget_w:,.0f} watts"
        plot = Plot(name, 4.8, says)
        drawn, spent = plot.figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        unit_s = _frame(line, (drawn, spent))
        edges = line.edges_s / unit_s
        drawn.set_title(f"Power, {unit}")
        spent.set_title(f"Energy so far, {energy_unit}")
        below_w, below_j = np.zeros(len(edges) - 1), np.zeros(len(edges))
        for pool in line.pools:
            drawn.stairs(
                (below_w + pool.power_w) / unit_w,
                edges,
                baseline=below_w / unit_w,
                fill=True,
                color=pool.colour,
                linewidth=0,
            )
            so_far_j = np.append(0.0, np.cumsum(pool.power_w * line.widths_s))
            spent.fill_between(
                edges, below_j / unit_j, (below_j + so_far_j) / unit_j, color=pool.colour, linewidth=0
            )
            below_w = below_w + pool.power_w
            below_j = below_j + so_far_j
        drawn.set_ylim(0, 1.12 * watts / unit_w if watts > 0 else 1.0)
        if budget_w is not None:
            # A white line below it, or it would drown in the colours of the pools.
            drawn.axhline(budget_w / unit_w, color="white", linewidth=3.5)
            drawn.axhline(budget_w / unit_w, color=MISSED, linewidth=1.6, linestyle=_DASHES)
            words = f"budget {budget_w / unit_w:,.4g} {unit}"
            drawn.legend(
                handles=[Line2D([], [], color=MISSED, linewidth=1.6, linestyle=_DASHES, label=words)],
                loc="lower right",
                bbox_to_anchor=(1, 1.0),
                borderaxespad=0.2,
            )
        spent.set_ylim(bottom=0)
        for axes in (drawn, spent):
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=_ROUND_STEPS))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        _legend_of_pools(plot, line)
        return plot.svg()


def _unit(most: float, units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """Choose the unit for an axis that reaches so far."""
    return next((size, name) for from_here, size, name in units if most >= from_here)


def _frame(line: Timeline, rows: Sequence[Axes]) -> float:
    """Lay out panels over one time axis, with warm-up and events; return the seconds of its unit."""
    horizon_s = float(line.edges_s[-1])
    unit_s, words = _unit(horizon_s, _SECONDS)
    for axes in rows:
        axes.grid(visible=True, axis="y")
        axes.set_xlim(0.0, horizon_s / unit_s)
        if line.warm_up_s > 0.0:
            axes.axvspan(0.0, min(line.warm_up_s, horizon_s) / unit_s, color=WASH, linewidth=0, zorder=0)
        for time_s in line.marks_s:
            if time_s <= horizon_s:
                axes.axvline(time_s / unit_s, color=FAINT, linewidth=1.0, linestyle=(0, (1, 2)), zorder=3)
    for place, time_s in enumerate(line.marks_s):
        if time_s <= horizon_s:
            rows[0].annotate(
                str(place + 1),
                (time_s / unit_s, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=FAINT,
            )
    rows[-1].set_xlabel(f"{words} from the start of the trace")
    return unit_s


def _lines(axes: Axes, line: Timeline, edges: Floats, of: Callable[[PoolLine], Floats]) -> None:
    """Draw a sum of each pool per instance that is up; there is a gap where none is."""
    highest = 0.0
    for pool in line.pools:
        values = np.full(len(pool.up), np.nan)
        np.divide(of(pool), pool.up, out=values, where=pool.up > 1e-9)
        axes.stairs(values, edges, baseline=None, color=pool.colour, linewidth=1.3)
        highest = max(highest, float(np.nanmax(values, initial=0.0)))
    axes.set_ylim(0, 1.1 * highest if highest > 0.0 else 1.0)


def _legend_of_pools(plot: Plot, line: Timeline) -> None:
    handles = [Patch(color=pool.colour, label=pool.label) for pool in line.pools]
    plot.figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), handlelength=1.0
    )
