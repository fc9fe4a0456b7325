"""The demand to come as quantiles: what is likely, beside what capacity must carry.

It exists because a single rate hides how sure it is. The quantiles are those of the ridge's location plus its own past
errors in units of its local scale (rolling conformal, `solver.forecast.follow` names both), not of the rule that is
played: that one is chosen for one high quantile only. The two ends of the central interval move with how often it
missed so far (adaptive conformal inference). It decides nothing.
"""

from collections.abc import Sequence

import numpy as np

from solver.domain.trace import Floats
from solver.forecast.conformal import rolling_quantiles
from solver.forecast.follow import Followed
from solver.forecast.rules import BASES

LEVELS = tuple(step / 100 for step in range(1, 100))
"""For the CRPS, as in the reference measurements: a mean over 99 quantiles."""
_LEAST_ERRORS = 30
_RIDGE = BASES.index("ridge")
_MISS_STEPS = tuple(step / 100 for step in range(2, 31, 2))
"""Shares of misses of the central interval that are kept ready."""
_MISS_RATE = 0.02


def quantiles_rps(learnt: Followed, *, origins: range, levels: Sequence[float] = LEVELS) -> Floats:
    """Return [levels, origins]: quantiles of the carried windows' rate; NaN while fewer than 30 outcomes are known."""
    ends = rolling_quantiles(
        _errors(learnt),
        origins=origins,
        delay=learnt.ahead[-1],
        length=learnt.settings.scored_windows,
        levels=levels,
        least=_LEAST_ERRORS,
    )
    return _rates(learnt, origins, ends)


def central_interval_rps(learnt: Followed, *, origins: range, miss_ratio: float = 0.1) -> Floats:
    """Return [2, origins]: low and high end of the interval that demand leaves in ``miss_ratio`` of all windows."""
    late = learnt.ahead[-1]
    walked = range(max(0, origins.start - 3 * learnt.settings.scored_windows), origins.stop)
    levels = [miss / 2 for miss in _MISS_STEPS] + [1 - miss / 2 for miss in _MISS_STEPS]
    ends = rolling_quantiles(
        _errors(learnt),
        origins=walked,
        delay=late,
        length=learnt.settings.scored_windows,
        levels=levels,
        least=_LEAST_ERRORS,
    )
    scaled = _errors(learnt)
    answer = np.full((2, len(walked)), np.nan)
    wanted = miss_ratio
    for column, origin in enumerate(walked):
        past = origin - late
        if (
            past >= walked.start
            and not np.isnan(scaled[past])
            and not np.isnan(answer[0, past - walked.start])
        ):
            low, high = answer[:, past - walked.start]
            missed = not low <= scaled[past] <= high
            wanted = min(max(wanted + _MISS_RATE * (miss_ratio - missed), _MISS_STEPS[0]), _MISS_STEPS[-1])
        half = len(_MISS_STEPS)
        answer[0, column] = np.interp(wanted, _MISS_STEPS, ends[:half, column])
        answer[1, column] = np.interp(wanted, _MISS_STEPS, ends[half:, column])
    return _rates(learnt, origins, answer[:, origins.start - walked.start :])


def crps(quantiles: Floats, outcomes: Floats, levels: Sequence[float] = LEVELS) -> float:
    """Return the mean continuous ranked probability score, in the outcomes' unit (NaN columns left out).

    CRPS = 2 integral over tau of the pinball loss max(tau (y - q), (tau - 1) (y - q)) (Gneiting and Raftery 2007,
    eq. 20 with the quantile form), here twice the mean over the levels. ``quantiles`` is [levels, outcomes].
    """
    known = ~np.isnan(outcomes) & ~np.isnan(quantiles).any(axis=0)
    if not known.any():
        return float("nan")
    over = outcomes[None, known] - quantiles[:, known]
    level = np.asarray(levels)[:, None]
    return float(2 * np.maximum(level * over, (level - 1) * over).mean())


def _errors(learnt: Followed) -> Floats:
    errors: Floats = (learnt.log_targets - learnt.locations[_RIDGE]) / learnt.scales[_RIDGE]
    return errors


def _rates(learnt: Followed, origins: range, ends: Floats) -> Floats:
    here = slice(origins.start, origins.stop)
    logs = learnt.locations[_RIDGE, here] + learnt.scales[_RIDGE, here] * ends
    logs = np.minimum(logs, learnt.log_tops[here])
    return np.asarray(np.maximum(np.exp(logs) - 1 / learnt.window_s, 0.0), dtype=np.float64)
