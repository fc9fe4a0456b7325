"""Plots of fleets that change while requests arrive: the mix beside the traffic, windows that missed, watts.

It exists so that the report of one run and the comparison of several look alike. It draws and decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from controller.reports.svg import FAINT, INK, PALETTE, STYLE, Plot
from solver.domain.trace import Floats

_HOUR_S = 3600.0
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixPanel:
    """One fleet over time. T times, P pools."""

    label: str
    times_s: Floats
    """[T] since when a row holds."""
    carried_rps: Floats
    """[T, P] what the instances that serve carry inside the SLO."""
    cap_ratio: Floats
    """[T] cap of the GPUs as a share of their TDP."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Something in equal steps of time, one row for each fleet."""

    labels: tuple[str, ...]
    step_s: float
    values: tuple[Floats, ...]


def mix_over_time(
    panels: Sequence[MixPanel],
    pools: Sequence[str],
    *,
    rate_rps: Floats,
    window_s: float,
    end_s: float,
    name: str = "mix",
) -> str:
    """Draw, one below the other, what each fleet carries by pool beside the traffic, and caps where there are any."""
    with rc_context(STYLE):
        says = "What the fleets carry inside the SLO over time, by pool, beside the traffic: "
        says += "; ".join(panel.label for panel in panels)
        plot = Plot(name, 1.0 + 1.75 * len(panels), says)
        rows = np.atleast_1d(plot.figure.subplots(len(panels), 1, sharex=True, sharey=True))
        edges = np.append(np.arange(len(rate_rps)) * window_s, min(end_s, len(rate_rps) * window_s)) / _HOUR_S
        edges[-1] = max(edges[-1], edges[-2] + 1e-6)
        colours = [PALETTE[p % len(PALETTE)] for p in range(len(pools))]
        most = float(rate_rps.max())
        for axes, panel in zip(rows, panels, strict=True):
            _stack(axes, panel, colours, end_s)
            axes.stairs(rate_rps, edges, baseline=None, color=INK, linewidth=1.2)
            axes.set_title(panel.label)
            axes.grid(visible=True, axis="y")
            most = max(most, float(panel.carried_rps.sum(axis=1).max(initial=0.0)))
            _caps(axes, panel, end_s)
        rows[0].set_ylim(0, 1.08 * most)
        rows[0].set_xlim(0, end_s / _HOUR_S)
        for axes in rows:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
            axes.set_ylabel("requests/s")
        _hours(rows[-1], end_s)
        handles = [
            Patch(color=colour, label=f"carried by {pool}")
            for colour, pool in zip(colours, pools, strict=True)
        ]
        handles.append(Patch(color=INK, label="arriving"))
        plot.figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), handlelength=1.0
        )
        return plot.svg()


def _stack(axes: Axes, panel: MixPanel, colours: Sequence[str], end_s: float) -> None:
    times = np.append(panel.times_s, max(end_s, float(panel.times_s[-1]) + 1e-6)) / _HOUR_S
    below = np.zeros(len(panel.times_s))
    for p, colour in enumerate(colours):
        above = below + panel.carried_rps[:, p]
        axes.stairs(above, times, baseline=below, fill=True, color=colour, alpha=0.45, linewidth=0)
        below = above


def _caps(axes: Axes, panel: MixPanel, end_s: float) -> None:
    """Write the lowest cap into the panel, and draw caps where they change."""
    if not len(panel.cap_ratio) or float(panel.cap_ratio.min()) >= 1.0:
        return
    times = np.append(panel.times_s, max(end_s, float(panel.times_s[-1]) + 1e-6)) / _HOUR_S
    other = axes.twinx()
    other.stairs(
        100.0 * panel.cap_ratio, times, baseline=None, color=PALETTE[4], linewidth=1.0, linestyle=(0, (3, 2))
    )
    other.set_ylim(0, 105)
    other.set_ylabel("cap, % of TDP", color=PALETTE[4])


def missed_windows(rows: Rows, *, name: str = "missed", allowed_ratio: float) -> str:
    """Draw the share of each window's requests outside the SLO's limits; the allowed share is a line."""
    with rc_context(STYLE):
        worst = max((float(np.nanmax(values, initial=0.0)) for values in rows.values), default=0.0)
        says = f"Share of requests outside the limits, window by window; at most {100 * worst:.3g} %"
        plot = Plot(name, 2.7, says)
        axes = plot.figure.add_subplot()
        end_s = _lines(axes, rows, scale=100.0)
        axes.axhline(100.0 * allowed_ratio, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(0, max(10.0, 130.0 * worst))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_title(
            f"Requests outside the limits, by window of {rows.step_s / 60.0:g} minutes (dashed: allowed)"
        )
        _hours(axes, end_s)
        return plot.svg()


def watts(rows: Rows, *, budget_w: float | None = None, name: str = "watts") -> str:
    """Draw the draw of all GPUs of each fleet, and the budget as a line."""
    with rc_context(STYLE):
        most_w = max(float(values.max(initial=0.0)) for values in rows.values)
        plot = Plot(
            name,
            2.7,
            f"Power of the fleets over time, at most {most_w / 1000.0:,.1f} kW in the mean of a step",
        )
        axes = plot.figure.add_subplot()
        end_s = _lines(axes, rows, scale=1e-3)
        if budget_w is not None:
            axes.axhline(budget_w / 1000.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.set_ylim(0, 1.08 * max(most_w, budget_w or 0.0) / 1000.0)
        axes.set_title("Power, kW" if budget_w is None else "Power, kW (dashed: budget)")
        _hours(axes, end_s)
        return plot.svg()


def _lines(axes: Axes, rows: Rows, *, scale: float) -> float:
    end_s = 0.0
    for r, (label, values) in enumerate(zip(rows.labels, rows.values, strict=True)):
        edges = np.arange(len(values) + 1) * rows.step_s / _HOUR_S
        axes.stairs(
            values * scale, edges, baseline=None, color=PALETTE[r % len(PALETTE)], linewidth=1.2, label=label
        )
        end_s = max(end_s, len(values) * rows.step_s)
    axes.grid(visible=True, axis="y")
    axes.set_xlim(0, end_s / _HOUR_S)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(rows.labels), borderaxespad=0.2)
    return end_s


def _hours(axes: Axes, end_s: float) -> None:
    axes.set_xlabel("hours from the start" if end_s > 2 * _HOUR_S else "hours", color=FAINT)
