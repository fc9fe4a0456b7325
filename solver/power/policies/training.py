"""Trains POLCA's thresholds on a row's own first week, as the paper does.

It exists because published thresholds do not transfer: on a row whose mean is high they cap all day. The rule here is
ours, since the paper's is not published: a threshold lies below the budget by what the row may rise before an order
acts.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError
from solver.power.policies.polca import Polca

_ROUND = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Thresholds and what they come from."""

    policy: Polca
    rise_ratio: float
    """What the row rises within the latency of an order, at the quantile asked for, of the budget."""
    samples: int


def train_polca(
    row_w: npt.NDArray[np.float64],
    *,
    period_s: float,
    budget_w: float,
    servers_in_trace: int,
    servers: int,
    clock_latency_s: float,
    quantile: float = 0.999,
    uncap_margin_ratio: float = 0.03,
    peak_w: npt.NDArray[np.float64] | None = None,
) -> Trained:
    """Return thresholds for a row of ``servers`` from the recorded power of a row of ``servers_in_trace``.

    T2 = 1 - rise(latency + telemetry), T1 = T2 - half of that rise, both rounded down to 0.005: an order at
    T2 acts before a rise of the recorded kind has reached the budget.

    Parameters
    ----------
    row_w
        Means, evenly spaced; NaN where nothing is known.
    peak_w
        The largest draw within each period, where that is more than the mean: rises are taken up to it.

    Raises
    ------
    InputError
        Fewer samples than an hour, values that are not finite, a latency beyond the trace.
    """
    unit = (servers / servers_in_trace) / budget_w
    power = np.asarray(row_w, dtype=np.float64) * unit
    peak = power if peak_w is None else np.asarray(peak_w, dtype=np.float64) * unit
    if np.isinf(power).any() or np.isinf(peak).any() or (power < 0.0).any():
        raise InputError("power that is infinite, or negative", where="row_w", right="finite watts")
    known = int(np.count_nonzero(np.isfinite(power)))
    if known * period_s < 3600.0:
        raise InputError(f"{known} samples", where="row_w", right="an hour or more, a week is usual")
    ahead = max(math.ceil((clock_latency_s + 4.0) / period_s - 1e-9), 1)
    if ahead >= power.size:
        raise InputError(f"{clock_latency_s:g} s", where="clock_latency_s", right="shorter than the trace")
    # Only rises that start where capping matters: in the upper half of what the row draws.
    start = power[:-ahead]
    reach = np.lib.stride_tricks.sliding_window_view(peak[1:], ahead).max(axis=1)
    rise = (reach - start)[start >= np.nanmedian(power)]
    rise = rise[np.isfinite(rise)]
    if not rise.size:
        raise InputError("no two samples in a row", where="row_w", right="a recording with fewer gaps")
    step = float(np.clip(np.quantile(rise, quantile), 0.0, 0.5))
    t2 = np.floor((1.0 - step) / _ROUND) * _ROUND
    t1 = np.floor((t2 - step / 2.0) / _ROUND) * _ROUND
    policy = Polca(
        t1_ratio=round(float(t1), 3),
        t2_ratio=round(float(t2), 3),
        uncap_margin_ratio=uncap_margin_ratio,
        label="polca-trained",
    )
    return Trained(policy=policy, rise_ratio=step, samples=known)
