"""A linear forecast of log rates from their last changes: the one model in the tournament that learns a shape.

It exists because ridge on 24 differenced lags equals a deep model on published cloud series at none of its cost. It
fits on what is known at its origin and gives a number; how far that is off is for `solver.forecast.conformal` to say.
"""

import numpy as np

from solver.domain.trace import Floats

LAGS = 24
_PENALTY = 10.0
_TRAIN_WINDOWS = 1008
_REFIT_WINDOWS = 72
_LEAST_ROWS = 60


def ridge_locations(
    log_rates: Floats, log_targets: Floats, *, origins: range, delay: int, fitted: Floats | None
) -> tuple[Floats, Floats | None]:
    """Return the forecasts at the origins and the weights last fitted (None: too little to fit, the last rate stands).

    Row o of the design is the last 24 changes of the log rate up to o; what is learnt is log target - log rate, where
    the target of o is known ``delay`` windows later. w = (X'X + 10 mean(X^2) I)^-1 X'y, on the last week of 10-minute
    windows, again every 72 windows.
    """
    changes = np.concatenate((np.zeros(LAGS), np.diff(log_rates, prepend=log_rates[:1])))
    design: Floats = np.lib.stride_tricks.sliding_window_view(changes, LAGS)[1:]
    answer = log_rates[origins.start : origins.stop].copy()
    if not len(origins):
        return answer, fitted
    fits = [o for o in origins if o % _REFIT_WINDOWS == 0]
    starts = sorted({origins.start, *fits})
    for begin, end in zip(starts, [*starts[1:], origins.stop], strict=True):
        if begin % _REFIT_WINDOWS == 0:
            new = _weights(design, log_rates, log_targets, last=begin - delay)
            fitted = fitted if new is None else new
        if fitted is not None:
            answer[begin - origins.start : end - origins.start] += design[begin:end] @ fitted
    return answer, fitted


def _weights(design: Floats, log_rates: Floats, log_targets: Floats, *, last: int) -> Floats | None:
    rows = np.arange(max(LAGS, last - _TRAIN_WINDOWS), last + 1)
    rows = rows[~np.isnan(log_targets[rows])] if len(rows) else rows
    if len(rows) < _LEAST_ROWS:
        return None
    used, wanted = design[rows], log_targets[rows] - log_rates[rows]
    penalty = _PENALTY * float(np.mean(used**2)) + 1e-12
    solved = np.linalg.solve(used.T @ used + penalty * np.eye(LAGS), used.T @ wanted)
    return np.asarray(solved, dtype=np.float64)
