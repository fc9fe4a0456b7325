"""Draws the plots of a back-test as SVG text: rate, capacity and violations over the judged time, costs side by side.

It exists apart from the report so that nothing else pays for importing matplotlib. It decides nothing. Whatever the
length of a record, a line has at most `MOST_POINTS` points: of each bin the highest rate and the lowest capacity, so
that no violation is hidden.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from controller.reports.svg import FAINT, INK, PALETTE, STYLE, Plot
from solver.domain.trace import Floats
from solver.forecast.backtest import Judged

MOST_POINTS = 800
_MISSED = "#c44900"
_DASHES: Any = (0, (4, 2))


def capacity_plot(judged: Judged, number: int) -> str:
    """Draw the rate under the capacity in force, the 90 % interval, and the windows in which it was not enough."""
    first, end = judged.judged_from, judged.windows
    rates, capacity = judged.learnt.rates[first:end], judged.capacity_rps[first:end]
    low, high = (ends[-(end - first) :] for ends in judged.interval_90_rps)
    width = max(1, -(-len(rates) // MOST_POINTS))
    hours = (first + width * np.arange(-(-len(rates) // width))) * judged.window_s / 3600
    plot = Plot(f"capacity-{number}", 3.1, f"rate, capacity and violations of {judged.name} over time")
    with rc_context(STYLE):
        axes = plot.figure.subplots()
        axes.fill_between(
            hours,
            _binned(low, width, np.nanmin),
            _binned(high, width, np.nanmax),
            color=PALETTE[5],
            alpha=0.25,
            lw=0,
            label="90 % interval of the forecast",
        )
        axes.step(
            hours,
            _binned(capacity, width, np.nanmin),
            where="post",
            color=PALETTE[1],
            lw=1.1,
            label="capacity",
        )
        axes.plot(hours, _binned(rates, width, np.nanmax), color=PALETTE[0], lw=0.9, label="rate")
        missed = np.flatnonzero(rates > capacity * (1 + 1e-9))
        axes.plot(
            (first + missed) * judged.window_s / 3600,
            rates[missed],
            "o",
            color=_MISSED,
            ms=4,
            label=f"violated ({len(missed)})",
        )
        axes.set_ylim(bottom=0.0)
        axes.set_ylabel("requests/s")
        axes.set_xlabel("hours of the record")
        axes.set_title(f"{judged.name}, lead {judged.lead_s / 60:g} min")
        axes.legend(loc="lower right", ncols=4)
        axes.grid(axis="y")
        axes.margins(x=0.0)
    return plot.svg()


def cost_plot(series: Sequence[Judged]) -> str:
    """Draw what each series cost against the oracle, beside the best simple rule in hindsight."""
    plot = Plot(
        "costs", 0.9 + 0.42 * len(series), "replica-hours against the oracle, ours and the best simple rule's"
    )
    with rc_context(STYLE):
        axes = plot.figure.subplots()
        for row, judged in enumerate(reversed(series)):
            axes.barh(row, judged.cost_ratio_to_oracle, height=0.55, color=PALETTE[0])
            if judged.best_rule is not None:
                best = judged.best_rule.replica_hours / judged.oracle_replica_hours
                axes.plot([best, best], [row - 0.38, row + 0.38], color=INK, lw=2)
        axes.axvline(1.0, color=FAINT, lw=1.0, ls=_DASHES)
        axes.set_yticks(range(len(series)), [judged.name[:30] for judged in reversed(series)])
        axes.set_xlim(left=0.0)
        axes.set_xlabel(
            "replica-hours / those of an oracle (bar: decided; mark: best simple rule in hindsight)"
        )
        axes.grid(axis="x")
    return plot.svg()


def _binned(values: Floats, width: int, pick: Any) -> Floats:
    if width == 1:
        return values
    padded = np.concatenate((values, np.full(-len(values) % width, np.nan))).reshape(-1, width)
    known = ~np.isnan(padded).all(axis=1)
    answer = np.full(len(padded), np.nan)
    answer[known] = pick(padded[known], axis=1)
    return answer
