"""How well a fleet that changes kept its SLO: over all requests, and window by window.

It exists because a whole day can look well while an hour of it did not. Definitions are in docs/closed-loop.md. It
simulates nothing.
"""

import math
from dataclasses import dataclass

import numpy as np

from simulator.metrics import Alone, inside_limits
from simulator.record import RunRecord
from solver.domain.slo import Slo
from solver.domain.trace import Floats, Requests


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attained:
    """Shares of requests and of windows. W windows."""

    request_ratio: float
    """Share of the offered requests (after the warm-up) inside the limits of all targets; rejected ones are not."""
    window_ratio: float
    """Share of the windows with requests in which the percentile was kept."""
    percentile: float
    """The lowest of the targets'; so large a share of a window's requests must be inside all limits."""
    window_s: float
    of_window: Floats
    """[W] share of each window's requests inside all limits, by arrival; NaN: none arrived."""


def attained_of(
    record: RunRecord,
    requests: Requests,
    slo: Slo,
    *,
    window_s: float,
    alone: Alone | None = None,
    warm_up_s: float = 0.0,
) -> Attained:
    """Judge a run; requests that arrive before ``warm_up_s`` are left out."""
    counted = requests.arrival_s >= warm_up_s
    inside = inside_limits(record, requests, slo, alone=alone) & counted
    windows = (requests.arrival_s // window_s).astype(np.int64)
    number = int(windows[-1]) + 1
    arrived = np.bincount(windows[counted], minlength=number)
    good = np.bincount(windows[inside], minlength=number)
    of_window = np.where(arrived > 0, good / np.maximum(1, arrived), math.nan)
    percentile = min((target.percentile for target in slo.targets), default=0.0)
    known = of_window[arrived > 0]
    return Attained(
        request_ratio=float(inside.sum()) / max(1, int(counted.sum())),
        window_ratio=float((known >= percentile / 100.0).mean()) if len(known) else math.nan,
        percentile=percentile,
        window_s=window_s,
        of_window=of_window,
    )
