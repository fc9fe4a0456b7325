"""Compares a run with the recorded results of another simulator, request by request.

It exists so that agreement is one number per quantity: the largest difference over all requests, never a mean, and the
largest relative difference of the statistics that people look at. It reads no file and runs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from solver.domain.trace import Floats

TOLERANCE_S = 1e-9
"""Recorded results are rounded to it."""

STATISTICS = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a run is from the recorded one."""

    requests: int
    max_abs_ttft_difference_s: float | None
    """None: a request finished in one run and not in the other."""
    max_abs_e2e_difference_s: float | None
    max_percentile_error_ratio: float | None
    """Over mean, p50, p90 and p99 of each metric that was recorded; None: none was, or none can be formed."""
    counters_differ: tuple[str, ...] = ()
    """Recorded counters, or the end of the run, that came out different."""

    @property
    def met(self) -> bool:
        """Whether every request and every counter agrees."""
        return not self.counters_differ and all(
            difference is not None and difference <= TOLERANCE_S
            for difference in (self.max_abs_ttft_difference_s, self.max_abs_e2e_difference_s)
        )


def compare_times(
    found: Mapping[str, Floats],
    recorded: Mapping[str, Floats],
    statistics: Mapping[str, Mapping[str, float]],
    *,
    counters_differ: tuple[str, ...] = (),
) -> Agreement:
    """Compare columns of seconds by name; ``ttft_s`` and ``e2e_s`` are judged per request, all by their statistics."""
    errors = [
        abs(statistic(found[metric], name) / value - 1.0)
        for metric, values in statistics.items()
        if metric in found
        for name, value in values.items()
        if name in STATISTICS and value
    ]
    largest = max(errors, default=None)
    return Agreement(
        requests=len(recorded["ttft_s"]),
        max_abs_ttft_difference_s=_largest_difference(found["ttft_s"], recorded["ttft_s"]),
        max_abs_e2e_difference_s=_largest_difference(found["e2e_s"], recorded["e2e_s"]),
        max_percentile_error_ratio=None if largest is None or np.isnan(largest) else largest,
        counters_differ=counters_differ,
    )


def statistic(values: Floats, name: str) -> float:
    """Return the mean, or a percentile (numpy linear), of the requests that finished; NaN if none did."""
    finished = values[~np.isnan(values)]
    if not len(finished):
        return float("nan")
    return float(finished.mean() if name == "mean" else np.percentile(finished, float(name[1:])))


def _largest_difference(found: Floats, recorded: Floats) -> float | None:
    missing = np.isnan(recorded)
    if np.any(np.isnan(found) != missing):
        return None
    return float(np.max(np.abs(found - recorded)[~missing], initial=0.0))
