"""The upper tail of recorded minutes, and the risk that it tells: exponential, or a generalised Pareto.

It exists so that a recording and all resamplings of its hours are judged in one go: a resampling is a count by hour,
so that sorting is done once. It knows no servers and no budget: draws come as shares of one.

Symbols: m the largest u of a minute, h the value at rank ⌈.95 n⌉ of n, z the share of minutes above h, e their mean
excess over h, ξ and σ the shape and the scale of a generalised Pareto.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

MINUTES_PER_YEAR = 525_600.0
MINUTES_PER_HOUR = 60
TAIL_PERCENT = 95
_EXPONENTIAL_SHAPE = 1e-6
"""Shapes nearer to 0 are taken as 0."""


class Tails:
    """The tail of one set of minutes, or of each resampling of its hours; arrays are by resampling.

    Parameters
    ----------
    maxima
        The largest u of each minute, [minutes].
    counts
        How often each resampling draws each hour, [resamples, hours]; minutes beyond the last whole hour are left out.
    """

    def __init__(self, maxima: Floats, counts: Counts | None = None) -> None:
        if counts is None:
            weights = np.ones((1, maxima.size), dtype=np.int64)
        else:
            maxima = maxima[: MINUTES_PER_HOUR * counts.shape[1]]
        order = np.argsort(maxima)[::-1]
        self.hour, self.counts = order // MINUTES_PER_HOUR, counts
        self.falling = falling = maxima[order]
        self.total = total = falling.size
        # From the top: h is the value at ascending rank ⌈.95 n⌉.
        rank = total - (TAIL_PERCENT * total + 99) // 100 + 1
        kept = total if counts is None else min(total, 4 * rank + MINUTES_PER_HOUR)
        while True:
            if counts is not None:
                weights = counts[:, self.hour[:kept]]
            reached = weights.cumsum(axis=1) >= rank
            if kept == total or reached[:, -1].all():
                break
            kept = min(total, 2 * kept)
        self._values = values = falling[:kept]
        self.h = values[reached.argmax(axis=1)]
        self._above = above = np.where(values > self.h[:, None], weights, 0)
        self._share = share = above.sum(axis=1)
        self.z = share / total
        mean = (above * values).sum(axis=1) / np.maximum(share, 1)
        self.e = np.where(share > 0, mean - self.h, 0.0)

    def risk(self, scale: Floats | float = 1.0) -> Floats:
        """Return the risk if all draws were so many times as large, [resamples]; ``scale`` is one or [resamples]."""
        scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), self.h.shape)
        h, e = self.h * scale, self.e * scale
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.maximum(1.0 - h, 0.0) / np.where(e > 0.0, e, 1.0)
            tail = np.where(e > 0.0, self.z * np.exp(-far), 0.0)
        return self._yearly(tail, scale)

    @cached_property
    def pareto(self) -> tuple[Floats, Floats]:
        """Return ξ and σ of the excesses over h, by probability-weighted moments; NaN where a fit is impossible.

        Source: Hosking and Wallis, Technometrics 29(3), 1987: with a0 the mean and a1 the mean of x (1 - p),
        p = (rank - .35) / n: -ξ = a0 / (a0 - 2 a1) - 2, σ = 2 a0 a1 / (a0 - 2 a1).
        """
        above, n = self._above, self._share
        excess = np.where(above > 0, self._values - self.h[:, None], 0.0)
        # Draws of a minute share its place: ranks from the top, their middle.
        rank = above.cumsum(axis=1) - (above - 1) / 2.0
        with np.errstate(divide="ignore", invalid="ignore"):
            a0 = (above * excess).sum(axis=1) / n
            a1 = (above * excess * (rank - 0.65)).sum(axis=1) / n / n
            spread = a0 - 2.0 * a1
            fits = (n > 1) & (spread > 0.0)
            shape = np.where(fits, 2.0 - a0 / spread, np.nan)
            sigma = np.where(fits, 2.0 * a0 * a1 / spread, np.nan)
        return shape, sigma

    def pareto_risk(self, scale: Floats | float = 1.0) -> Floats:
        """Return the risk by the generalised Pareto, [resamples]; the exponential's where it does not fit."""
        scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), self.h.shape)
        shape, sigma = self.pareto
        with np.errstate(divide="ignore", invalid="ignore"):
            far = np.maximum(1.0 - self.h * scale, 0.0) / (sigma * scale)
            inside = 1.0 + shape * far
            curved = np.where(inside > 0.0, np.maximum(inside, 0.0) ** (-1.0 / shape), 0.0)
            tail = self.z * np.where(np.abs(shape) < _EXPONENTIAL_SHAPE, np.exp(-far), curved)
        found = self._yearly(tail, scale)
        unfit = np.isnan(shape)
        if unfit.any():
            found[unfit] = self.risk(scale)[unfit]
        return found

    def _yearly(self, tail: Floats, scale: Floats) -> Floats:
        """Turn the share of minutes over budget into minutes per year; counts them where h is over budget."""
        for index in np.flatnonzero(self.h * scale >= 1.0):
            most = int(np.searchsorted(-self.falling * scale[index], -1.0))
            if self.counts is not None:
                most = int(self.counts[index, self.hour[:most]].sum())
            tail[index] = most / self.total
        found: Floats = MINUTES_PER_YEAR * tail
        return found
