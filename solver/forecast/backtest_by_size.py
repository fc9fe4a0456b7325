"""Judges capacity for a load of many sizes on a record: what following the mix is worth against scaling the total.

It exists because following every size costs margin where the mix stands still and saves the promise where it drifts:
which of the two holds on a record is measured, not believed. Protocol of `solver.forecast.backtest`: the decision at
the end of window o counts for window o + h alone, h = lead / window; both rules see the past only. Capacity is not
rounded to replicas: it is a load (`solver.forecast.by_size`).
"""

from dataclasses import dataclass

import numpy as np

from solver.domain.bucket_windows import BucketWindows
from solver.domain.errors import InputError
from solver.domain.trace import Floats
from solver.forecast.by_size import known_and_weighed
from solver.forecast.capacity import carried_windows, check_violations
from solver.forecast.follow import SHORT, Settings, follow

_SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCapacity:
    """What the decisions of one rule came to."""

    violation_ratio: float
    cost_ratio_to_oracle: float
    """Capacity over the load that came, both summed over the judged windows."""
    loss_ratio: float
    """Mean pinball loss at 1 - violations in units of the mean load: the newsvendor's cost of both errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBySize:
    """The two rules on the same windows."""

    judged_windows: int
    short_windows: int
    """Judged windows at which the history of the load was too short for the quantile."""
    by_size: JudgedCapacity
    """Quantile of the load."""
    by_total: JudgedCapacity
    """Quantile of the total times the mean weight of all requests so far."""


def backtest_by_size(
    record: BucketWindows,
    *,
    weights: Floats,
    lead_s: float,
    violations: float = 0.01,
    judge_last: float = 0.4,
    settings: Settings | None = None,
) -> JudgedBySize:
    """Judge both rules on the last ``judge_last`` of a record.

    Raises
    ------
    InputError
        If no window is left to judge, and as `solver.forecast.by_size.capacity_by_size`.
    """
    check_violations(violations)
    sound, scaled = known_and_weighed(record, weights)
    late = carried_windows(sound.window_s, lead_s=lead_s)[-1]
    load, total = sound.weighed(scaled), sound.total
    judged = np.arange(max(len(sound) - round(judge_last * len(sound)), late), len(sound))
    judged = judged[~np.isnan(load.rate_rps[judged])]
    first = int(np.flatnonzero(~np.isnan(load.rate_rps))[0])
    judged = judged[judged - late >= first]
    if not len(judged):
        raise InputError(
            f"{record.name!r} has no window to judge", right="a longer record, or a shorter lead"
        )
    ahead, settings = range(late, late + 1), settings or Settings()
    of_load = follow(load, ahead=ahead, violations=violations, settings=settings)
    of_total = follow(total, ahead=ahead, violations=violations, settings=settings)
    so_far = np.nancumsum(sound.rates_rps, axis=0)
    mean_weight = (so_far * scaled).sum(axis=1) / np.maximum(so_far.sum(axis=1), 1e-300)
    origins = judged - late
    outcomes = load.rate_rps[judged]
    return JudgedBySize(
        judged_windows=len(judged),
        short_windows=int((of_load.standing_in[origins] == SHORT).sum()),
        by_size=_judged(outcomes, of_load.capacity_rps[origins], violations),
        by_total=_judged(outcomes, of_total.capacity_rps[origins] * mean_weight[origins], violations),
    )


def _judged(outcomes: Floats, capacity: Floats, violations: float) -> JudgedCapacity:
    over = outcomes - capacity
    losses = np.maximum((1 - violations) * over, -violations * over)
    came = float(outcomes.sum())
    return JudgedCapacity(
        violation_ratio=float((outcomes > capacity * (1 + _SLACK)).mean()),
        cost_ratio_to_oracle=float(capacity.sum()) / came if came > 0 else float("nan"),
        loss_ratio=float(losses.sum()) / came if came > 0 else float("nan"),
    )
