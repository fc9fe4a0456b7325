"""Which windows of a record can be learnt from: gaps and half-recorded windows are no traffic of zero.

It exists because a single recording gap, taken for an idle service, makes every relative margin explode (a window of
14 requests/s in front of one of 2,000 asks for a margin of 150). It changes no rate that it keeps.
"""

from dataclasses import replace

import numpy as np

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats

_RARE_RATIO = 0.1
_IMPOSSIBLE_BY_CHANCE = 20
"""Requests that even a calm window of the service has: at that mean an empty one happens once in 5e8 (Poisson)."""
_PARTIAL_RATIO = 0.5


def without_gaps_as_zero(history: RateWindows) -> RateWindows:
    """Return the same windows with those of rate 0 that cannot be true as not recorded (NaN).

    Zeros count as gaps if they are rare (less than a tenth of what is recorded) and the service is otherwise busy: the
    5 % quantile of its other windows holds 20 requests or more. A service that is often idle keeps its zeros.

    Raises
    ------
    InputError
        If a rate is negative or infinite.
    """
    rates = history.rate_rps
    bad = np.flatnonzero((rates < 0) | np.isinf(rates))
    if len(bad):
        raise InputError(
            f"a rate of {rates[bad[0]]:g} requests/s in window {bad[0]} of {history.name!r}",
            right="rates of 0 or more (NaN: not recorded)",
        )
    zero = rates == 0
    busy = rates[rates > 0]
    if not zero.any() or not len(busy) or zero.sum() >= _RARE_RATIO * (zero.sum() + len(busy)):
        return history
    if np.quantile(busy, 0.05) * history.window_s < _IMPOSSIBLE_BY_CHANCE:
        return history
    return replace(history, rate_rps=np.where(zero, np.nan, rates))


def without_partial_windows(rate_rps: Floats) -> Floats:
    """Return the rates with the first window after a gap masked if it has less than half the last rate before it.

    Recording resumes in the middle of a window, whose mean then counts the missing part as no traffic.
    """
    rates: Floats = rate_rps.copy()
    known = ~np.isnan(rates)
    resumed = np.flatnonzero(known[1:] & ~known[:-1]) + 1
    for window in resumed:
        before = np.flatnonzero(known[:window])
        if len(before) and rates[window] < _PARTIAL_RATIO * rates[before[-1]]:
            rates[window] = np.nan
    return rates


def carried_forward(rate_rps: Floats) -> Floats:
    """Return the rates with each unrecorded window at the last recorded rate; before the first one: the first."""
    known = np.flatnonzero(~np.isnan(rate_rps))
    last = np.searchsorted(known, np.arange(len(rate_rps)), side="right") - 1
    filled: Floats = rate_rps[known[np.maximum(last, 0)]]
    return filled
