"""Closed forms of a segment: how long k iterations of a constant batch take, and how many have ended by a time.

It exists so that everything that asks about the middle of a segment asks the same equations. It changes
nothing.
"""

import math

from simulator.engine.layout import (
    DECODES,
    DECODING_SEGMENT,
    KV_USED,
    SEGMENT_FIRST_S,
    SEGMENT_KIND,
    SEGMENT_SLOPE_S,
    SEGMENT_START_S,
    World,
)
from solver.compiled import compiled


@compiled
def many_s(first_s: float, slope_s: float, iterations: int) -> float:
    """Return the seconds of k iterations: k a + s k (k - 1) / 2."""
    k = float(iterations)
    return first_s * k + slope_s * (k * (k - 1.0) / 2.0)


@compiled
def iterations_until(first_s: float, slope_s: float, span_s: float) -> int:
    """Return the smallest k >= 1 whose iterations take at least ``span_s``.

    Solves s k^2 / 2 + (a - s / 2) k = span in the form that does not cancel, then corrects rounding by single steps.
    """
    if span_s <= first_s:
        return 1
    middle = first_s - slope_s / 2.0
    k = int(math.ceil(2.0 * span_s / (middle + math.sqrt(middle * middle + 2.0 * slope_s * span_s))))
    k = max(k, 1)
    while k > 1 and many_s(first_s, slope_s, k - 1) >= span_s:
        k -= 1
    while many_s(first_s, slope_s, k) < span_s:
        k += 1
    return k


@compiled
def kv_now(w: World, i: int, now_s: float) -> int:
    """Return the KV tokens reserved on an instance, counting the iterations of its segment that ended before now."""
    used = int(w.inst_counts[KV_USED, i])
    if w.inst_counts[SEGMENT_KIND, i] == DECODING_SEGMENT:
        span_s = now_s - w.inst_reals[SEGMENT_START_S, i]
        ended = (
            iterations_until(w.inst_reals[SEGMENT_FIRST_S, i], w.inst_reals[SEGMENT_SLOPE_S, i], span_s) - 1
        )
        used += ended * int(w.inst_counts[DECODES, i])
    return used
