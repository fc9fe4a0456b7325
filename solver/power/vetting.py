"""What the controller believes of its telemetry: which samples count, what they say, and how warm the breaker is.

It exists because a wrong sample is worse than none: missing data is never zero, a meter that contradicts its servers is
not followed, and a gap is the worst case. It orders nothing.

A sample has two witnesses: the row's meter and the sum of the servers' own. Up to `ALARM_RATIO` apart the higher
counts; further apart, or where the meter's value is none, stuck or impossible, the servers do if all of them answer.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from solver.domain.power import PowerRow, Watts
from solver.power.breaker import theta_after

ALARM_RATIO = 0.10
"""Meter and servers this far apart: the meter is not believed (power.md §12, rule 7)."""
NOTICE_RATIO = 0.03
"""This far apart is told."""
_KEPT_WINDOWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One telemetry window as it was delivered. Its numbers may be anything."""

    stamp_s: float
    """End of the window, on the controller's monotonic clock."""
    row_w: float
    low_w: float
    high_w: float
    server_w: Watts | None = None
    server_stamp_s: Watts | None = None
    """By server; None where they are stamped like the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vetted:
    """What a fresh sample is taken to say."""

    stamp_s: float
    row_w: float
    low_w: float
    high_w: float
    server_w: Watts | None


class Telemetry:
    """Samples of one row, vetted in order of delivery, and the θ that follows from them.

    Two θ are kept: what the samples say, and the most it can be. They differ after a start without memory, where only
    the trip state bounds it, and after windows that never came, which count as the worst case in the second alone
    for as long as they may still come.
    """

    def __init__(self, row: PowerRow, *, theta: float | None) -> None:
        self._row = row
        self._lows = np.flatnonzero(row.is_low)
        full_w = row.servers * row.server.worst_w(row.server.max_mhz)
        self._least_w, self._most_w = 0.5 * row.servers * row.server.fixed_w, 1.05 * full_w
        trip = row.curve.trip_theta
        self.theta = 1.0 if theta is None else theta
        """At the end of the newest window; without memory the most that safe clocks let it be."""
        self.most_theta = trip - 1e-6 if theta is None else theta
        self.newest_s = -math.inf
        """End of the newest window with a usable sample."""
        self._last = (math.nan, math.nan, math.nan)  # the meter's last values
        self._last_sum_w = math.nan
        self._windows: deque[tuple[float, float, float, float]] = deque(maxlen=_KEPT_WINDOWS)
        self._kept_decay = (0.0, 0.0)

    def take(self, sample: Sample, *, budget_w: float, worst_w: float) -> tuple[Vetted | None, str | None]:
        """Return what a delivered sample says, None if nothing new, and what was wrong with it.

        Parameters
        ----------
        budget_w
            Of the breaker now.
        worst_w
            The most that the row can draw at the clocks in force: what a window that is missing counts as.
        """
        stamp = sample.stamp_s
        if stamp <= self.newest_s and any(stamp == window[0] for window in self._windows):
            return None, "DuplicateSample"
        vetted, wrong = self._believed(sample)
        if vetted is None:
            return None, wrong
        if stamp < self.newest_s:
            self._mend(vetted, budget_w)
            return None, "OutOfOrder"
        gap_s = 0.0 if math.isinf(self.newest_s) else stamp - self.newest_s - self._row.sample_s
        self._advance(stamp, max(gap_s, 0.0), vetted.row_w / budget_w, worst_w / budget_w)
        self.newest_s = stamp
        return vetted, wrong

    def _believed(self, sample: Sample) -> tuple[Vetted | None, str | None]:
        row_w, low_w, high_w = sample.row_w, sample.low_w, sample.high_w
        servers, skewed = sample.server_w, False
        sum_w = math.nan
        if servers is not None:
            sum_w = float(np.add.reduce(servers))
            if not 0.0 < sum_w < self._most_w or float(np.minimum.reduce(servers)) < 0.0:
                servers, sum_w = None, math.nan
        if sample.server_stamp_s is not None:
            skewed = bool(np.abs(sample.server_stamp_s - sample.stamp_s).max() >= 0.5)
        wrong = self._wrong_meter(row_w, low_w, high_w, sum_w)
        self._last, self._last_sum_w = (row_w, low_w, high_w), sum_w
        if wrong is None:
            if skewed:
                return _vetted(sample, row_w, low_w, high_w, servers), "ClockSkew"
            if math.isnan(sum_w) or sum_w <= row_w:
                apart = 0.0 if math.isnan(sum_w) else row_w / sum_w - 1.0
                reason = "MeterDisagrees" if apart > NOTICE_RATIO else None
                return _vetted(sample, row_w, low_w, high_w, servers), reason
        if servers is None or skewed:
            return None, wrong or "ClockSkew"
        low_sum_w = float(np.add.reduce(servers[self._lows]))
        if wrong is None and sum_w / row_w - 1.0 > NOTICE_RATIO:
            wrong = "MeterDisagrees"
        return _vetted(sample, sum_w, low_sum_w, sum_w - low_sum_w, servers), wrong

    def _wrong_meter(self, row_w: float, low_w: float, high_w: float, sum_w: float) -> str | None:
        if not (math.isfinite(row_w) and math.isfinite(low_w) and math.isfinite(high_w)):
            return "NotANumber"
        if row_w < 0.0 or low_w < 0.0 or high_w < 0.0:
            return "Negative"
        if not self._least_w <= row_w <= self._most_w or abs(low_w + high_w - row_w) > 0.02 * row_w:
            return "Implausible"
        same = (row_w, low_w, high_w) == self._last
        if same and not math.isnan(sum_w) and abs(sum_w - self._last_sum_w) > 1e-4 * sum_w:
            return "MeterStuck"
        if same and not math.isnan(sum_w) and abs(sum_w - row_w) > 1e-3 * sum_w:
            return "MeterStuck"
        if not math.isnan(sum_w) and abs(row_w / sum_w - 1.0) > ALARM_RATIO:
            return "MeterDisagrees"
        return None

    def _decay(self, seconds: float) -> float:
        if self._kept_decay[0] != seconds:
            self._kept_decay = (seconds, math.exp(-seconds / self._row.curve.tau_s))
        return self._kept_decay[1]

    def _advance(self, stamp: float, gap_s: float, draw: float, worst: float) -> None:
        theta, most = self.theta, self.most_theta
        tau_s, window_s = self._row.curve.tau_s, self._row.sample_s
        if gap_s > 0.0:
            # What the row drew there is not known: as much as now for the likely θ, the worst case for the most.
            theta = theta_after(theta, draw, gap_s, tau_s)
            most = theta_after(most, worst, gap_s, tau_s)
        self._windows.append((stamp, draw, theta, most))
        steady, left = draw * draw, self._decay(window_s)
        self.theta = steady + (theta - steady) * left
        self.most_theta = steady + (most - steady) * left

    def _mend(self, vetted: Vetted, budget_w: float) -> None:
        """Put a window that came late into its place: θ is followed anew from the window before it."""
        windows = list(self._windows)
        after = next((i for i, window in enumerate(windows) if window[0] > vetted.stamp_s), None)
        if after is None or after == 0:
            return  # too old to tell what came before it: the worst case stays counted
        before = windows[after - 1]
        rest = [(vetted.stamp_s, vetted.row_w / budget_w), *((w[0], w[1]) for w in windows[after:])]
        tau_s, window_s = self._row.curve.tau_s, self._row.sample_s
        theta, most = (theta_after(start, before[1], window_s, tau_s) for start in before[2:])
        self._windows = deque(windows[:after], maxlen=_KEPT_WINDOWS)
        at = before[0]
        gaps = {window[0]: (window[2], window[3]) for window in windows[after:]}
        for stamp, draw in rest:
            if stamp - at > window_s + 1e-9 and stamp in gaps:  # still a gap: keep what was assumed
                theta, most = gaps[stamp]
            self._windows.append((stamp, draw, theta, most))
            theta, most = (theta_after(start, draw, window_s, tau_s) for start in (theta, most))
            at = stamp
        self.theta, self.most_theta = theta, most


def _vetted(sample: Sample, row_w: float, low_w: float, high_w: float, servers: Watts | None) -> Vetted:
    return Vetted(stamp_s=sample.stamp_s, row_w=row_w, low_w=low_w, high_w=high_w, server_w=servers)
