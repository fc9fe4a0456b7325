"""Quantiles of a rule's own past errors: how much above its number demand may lie.

It exists because a rule's margin must be learnt from the past alone, and the share of violations that it promises must
follow what happens. Rolling split-conformal quantiles (Vovk, Gammerman and Shafer 2005; Lei et al. 2018): of n past
errors the ceil((n + 1) level)-th smallest. The level itself is moved by `moved_risk` (adaptive conformal inference,
Gibbs and Candès 2021, eq. 2). It knows no rule and no rate.
"""

from collections.abc import Sequence

import numpy as np

from solver.domain.trace import Floats

_CHUNK_ELEMENTS = 1 << 21


def rolling_quantiles(
    errors: Floats, *, origins: range, delay: int, length: int, levels: Sequence[float], least: int
) -> Floats:
    """Return [levels, origins]: conformal quantiles of the errors known at each origin.

    ``errors`` has one error per origin of a forecast, NaN where none is known; an error is known ``delay`` windows
    after its origin. The last ``length`` origins count. NaN where fewer than ``least`` errors are known; the largest
    error where the level asks for more errors than there are.
    """
    answer = np.full((len(levels), len(origins)), np.nan)
    rows = max(1, _CHUNK_ELEMENTS // length)
    wanted = np.asarray(levels)[:, None]
    for begin in range(0, len(origins), rows):
        part = np.arange(origins.start + begin, min(origins.start + begin + rows, origins.stop))
        low, high = int(part[0]) - delay - length + 1, int(part[-1]) - delay + 1
        known = errors[max(low, 0) : max(high, 0)]
        padded = np.concatenate((np.full(high - low - len(known), np.nan), known))
        ordered = np.sort(np.lib.stride_tricks.sliding_window_view(padded, length), axis=1)
        count = (~np.isnan(ordered)).sum(axis=1)
        rank = np.ceil((count + 1) * wanted - 1e-9).astype(np.int64) - 1
        rank = np.maximum(np.minimum(rank, count - 1), 0)
        found = ordered[np.arange(len(part)), rank]
        answer[:, begin : begin + len(part)] = np.where(count < least, np.nan, found)
    return answer


def at_risk(quantiles: Floats, risks: Sequence[float], risk: Floats) -> Floats:
    """Return the quantiles [entrants] at each entrant's own risk, between the listed ones by straight lines.

    ``quantiles`` is [entrants, risks] with ``risks`` descending; ``risk`` lies within them.
    """
    steps = -np.asarray(risks)
    place = np.clip(np.searchsorted(steps, -risk, side="right") - 1, 0, len(steps) - 2)
    weight = (-risk - steps[place]) / (steps[place + 1] - steps[place])
    rows = np.arange(len(risk))
    between: Floats = quantiles[rows, place] * (1 - weight) + quantiles[rows, place + 1] * weight
    return between


def moved_risk(
    risk: Floats, violated: Floats, *, wanted: float, rate: float, lowest: float, highest: float
) -> Floats:
    """Return the risks after one outcome: risk + rate (wanted - violated), within bounds (NaN: no outcome)."""
    moved: Floats = np.where(np.isnan(violated), risk, risk + rate * (wanted - violated))
    return np.clip(moved, lowest, highest)
