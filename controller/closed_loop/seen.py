"""What a planner may know at a time: rates before the trace, windows of arrivals that have ended, sizes seen so far.

It exists as the one gate between the requests of a simulation and whoever decides in it: every question carries the
time at which it is asked, and nothing that arrives later takes part in the answer. Time 0 is the trace's; the history
lies before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from solver.domain.demand import representative_buckets
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats, Ints
from solver.domain.trace_summary import size_histogram

FEWEST_REQUESTS = 100
"""Requests whose sizes say something."""
RELEARN_S = 21_600.0
"""Sizes are looked at anew so often."""
SIZES = 16
_EDGE_S = 1e-6


@dataclass(slots=True, kw_only=True, eq=False)
class Seen:
    """One model's traffic; answers about the past only."""

    name: str
    arrival_s: Floats
    """Of the model's requests, rising, from 0."""
    prompt_tokens: Ints
    output_tokens: Ints
    history: RateWindows | None = None
    """On the trace's clock: ends at 0 or before."""
    known_sizes: tuple[RequestBucket, ...] = ()
    """Sizes that are known before any request is seen, by rate."""
    _ended: dict[float, Floats] = field(default_factory=dict)
    _sizes: dict[int, tuple[RequestBucket, ...]] = field(default_factory=dict)

    @property
    def since_s(self) -> float:
        """Where what is known begins."""
        return 0.0 if self.history is None else self.history.start_s

    def rate_rps(self, from_s: float, to_s: float) -> float | None:
        """Return the mean rate from ``from_s`` to ``to_s``, both in the past; None where nothing was recorded."""
        if from_s >= -_EDGE_S:
            first, last = np.searchsorted(self.arrival_s, (from_s - _EDGE_S, to_s - _EDGE_S))
            return float(last - first) / (to_s - from_s)
        if self.history is None or from_s < self.history.start_s - _EDGE_S:
            return None
        if to_s > _EDGE_S:
            before, after = self.rate_rps(from_s, 0.0), self.rate_rps(0.0, to_s)
            return (
                None
                if before is None or after is None
                else (-before * from_s + after * to_s) / (to_s - from_s)
            )
        rate = _resampled(self.history, from_s, to_s - from_s, 1)[0]
        return None if np.isnan(rate) else float(rate)

    def windows(self, window_s: float, *, now_s: float) -> RateWindows:
        """Return all windows that have ended by ``now_s``, the history's before 0 included; NaN: not recorded."""
        if window_s not in self._ended:
            edges = np.arange(
                0.0, (self.arrival_s[-1] if len(self.arrival_s) else 0.0) + 2 * window_s, window_s
            )
            self._ended[window_s] = np.diff(np.searchsorted(self.arrival_s, edges - _EDGE_S)) / window_s
        ended = max(0, int((now_s + _EDGE_S) // window_s))
        rates = self._ended[window_s][:ended]
        if len(rates) < ended:  # nothing arrives any more
            rates = np.concatenate((rates, np.zeros(ended - len(rates))))
        start_s = 0.0
        if self.history is not None:
            number = int((-self.history.start_s + _EDGE_S) // window_s)
            start_s = -number * window_s
            known = _resampled(self.history, start_s, window_s, number)
            before = number if now_s >= 0.0 else max(0, int((now_s - start_s + _EDGE_S) // window_s))
            rates = np.concatenate((known[:before], rates))
        return RateWindows(name=self.name, start_s=start_s, window_s=window_s, rate_rps=rates)

    def sizes(self, *, now_s: float) -> tuple[RequestBucket, ...]:
        """Return request sizes with their shares of the rate (which sum to 1); empty: not known yet.

        Those that were known beforehand until `RELEARN_S`, or until enough requests were seen where none were; then of
        the `RELEARN_S` before the last multiple of it.
        """
        epoch = max(0, int((now_s + _EDGE_S) // RELEARN_S))
        known = self._sizes.get(epoch)
        if known:
            return known
        if epoch == 0:
            found = self.known_sizes or self._learnt(0.0, now_s)
        else:
            found = self._learnt((epoch - 1) * RELEARN_S, epoch * RELEARN_S) or self.sizes(
                now_s=(epoch - 1) * RELEARN_S
            )
        self._sizes[epoch] = found
        return found

    def _learnt(self, from_s: float, to_s: float) -> tuple[RequestBucket, ...]:
        first, last = np.searchsorted(self.arrival_s, (from_s - _EDGE_S, to_s - _EDGE_S))
        if last - first < FEWEST_REQUESTS:
            return ()
        return sizes_of(self.prompt_tokens[first:last], self.output_tokens[first:last])


def sizes_of(prompt_tokens: Ints, output_tokens: Ints) -> tuple[RequestBucket, ...]:
    """Sum sizes up in a few, with rates that sum to 1."""
    histogram = size_histogram(prompt_tokens, output_tokens)
    return representative_buckets(histogram, largest_bucket_count=SIZES, rate_rps=1.0).buckets


def _resampled(history: RateWindows, start_s: float, window_s: float, number: int) -> Floats:
    """Return the means of other windows of a history, weighted by time; NaN where nothing was recorded."""
    edges = start_s + window_s * np.arange(number + 1)
    grid = history.start_s + history.window_s * np.arange(len(history) + 1)
    known = ~np.isnan(history.rate_rps)

    def total(values: Floats) -> Floats:
        sums = np.concatenate(([0.0], np.cumsum(values * history.window_s)))
        return np.diff(np.interp(edges, grid, sums))

    seconds = total(known.astype(np.float64))
    requests = total(np.where(known, history.rate_rps, 0.0))
    enough = seconds > 0.5 * window_s
    return np.where(enough, requests / np.where(enough, seconds, 1.0), np.nan)


def latest_start_s(all_seen: Sequence[Seen]) -> float:
    """Return the time from which every model's rates are known."""
    return max(seen.since_s for seen in all_seen)
