"""Capacity when the mix of request sizes drifts: the load to carry, and at which rates of each size to plan for it.

It exists because a total rate times yesterday's mix is wrong twice: long requests may surge while the total is calm,
and quantiles of every size on its own are not all reached at once, so their sum is far too much. It plans no replica,
reads no file and knows no clock; what one request of a size costs is an argument (`solver.forecast.work`).

The newsvendor on the load. Let r_b(t) be the rate of bucket b in window t and w_b > 0 the capacity that one request per
second of it takes. Capacity is one number, the load it carries, so what must be foreseen is

    y(t) = sum_b w_b r_b(t)          and the answer is   Q with  P(y > Q) <= violations,

the quantile of the *load*: `solver.forecast.capacity.capacity_rate` on the series y (same tournament, same conformal
margins, same fallback, same lead and hold). The probability is that of the capacity being exceeded, not of any bucket
exceeding its own rate: a bucket may, while others are low. Weights are scaled so that the mean of y is that of the
requests, so Q reads as requests per second of the mean size.

A planner still wants rates. With location l_b (mean of the last `RECENT_WINDOWS` recorded windows), and the residual
vectors e_b(o) = (r_b at the carried window o + h with the largest load - l_b(o)) / y_l(o), y_l = sum w_b l_b, of the
same past windows o for all buckets (whatever they share is in them), the buckets are raised together along

    d_b ~ max(0, sum_o e_b(o) e_y(o) + p l_b / y_l),    sum_b w_b d_b = 1,    e_y = sum_b w_b e_b,
    rates_b = max(0, l_b + (Q - y_l) d_b), scaled so that sum_b w_b rates_b = Q exactly.

sum e_b e_y / sum e_y^2 is the regression of a bucket's residual on the load's: what the bucket is expected to be when
the load is at Q (exact for elliptical distributions), which is also the Euler allocation of the quantile to its parts,
dQ/dw_b = E[r_b | y = Q] (Tasche 1999; Gouriéroux, Laurent and Scaillet 2000). Buckets that fall while the load surges
stay where they are expected. p speaks for `PRIOR_OUTCOMES` imagined outcomes in which all rose together by
`PRIOR_RATIO`: with few outcomes, or loads that never moved, the mix of late is raised as it is.

What it promises: with one GPU type the load that a fleet carries *is* sum r_b / T_b, and violations are those stated.
A fleet of several types, each good at other sizes, also depends on the mix in which Q arrives; the rates above are the
likeliest such mix, not all of them.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solver.domain.bucket_windows import BucketWindows
from solver.domain.errors import InputError
from solver.domain.trace import Floats
from solver.forecast.capacity import CapacityRate, capacity_rate, carried_windows
from solver.forecast.follow import Followed, Settings
from solver.forecast.recorded import without_gaps_as_zero

RECENT_WINDOWS = 6
"""From which a bucket's rate is expected: an hour of ten minutes; long enough to see rare sizes, short for a drift."""
PRIOR_OUTCOMES = 30
PRIOR_RATIO = 0.05
_DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapacityBySize:
    """The load to have capacity for and the rates at which a planner meets it."""

    rates_rps: Floats
    """[buckets], none below zero."""
    weights: Floats
    """[buckets] as they were scaled; where ``by_total`` is None, weights x rates sums to ``load.rate_rps``."""
    load: CapacityRate
    """Of the load, in requests of the mean size; else of the requests."""
    by_total: str | None
    """Why all sizes were scaled by the same factor instead; None where they were not."""

    @property
    def learnt(self) -> Followed:
        """For the next call's ``earlier``."""
        return self.load.learnt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residuals:
    """What each origin expected of every bucket, and what came."""

    locations: Floats
    """[windows, buckets] l at the end of each window."""
    errors: Floats = field(repr=False)
    """[windows, buckets] e; NaN where not known, or not yet."""


def capacity_by_size(
    history: BucketWindows,
    *,
    weights: Floats,
    lead_s: float,
    violations: float = 0.01,
    hold_s: float | None = None,
    settings: Settings = _DEFAULT_SETTINGS,
    earlier: Followed | None = None,
) -> CapacityBySize:
    """Return the rate of each bucket to plan for, so that the load exceeds what they make with ``violations``.

    With too little history for a quantile of the load, all sizes of the record are scaled to the capacity rate of
    their total, and the answer says so.

    Parameters
    ----------
    weights
        [buckets] capacity that one request per second of each bucket takes, in any unit.
    earlier
        ``learnt`` of the last answer with the same weights; any other is not used.

    Raises
    ------
    InputError
        If no window was recorded or nothing arrived, a rate is negative, a weight is not a positive number, or lead,
        hold or violations make no sense.
    """
    sound, scaled = known_and_weighed(history, weights)
    load = capacity_rate(
        sound.weighed(scaled),
        lead_s=lead_s,
        violations=violations,
        hold_s=hold_s,
        settings=settings,
        earlier=earlier,
    )
    if load.short:
        total = capacity_by_total(
            sound, lead_s=lead_s, violations=violations, hold_s=hold_s, settings=settings, earlier=earlier
        )
        return replace(total, weights=scaled, by_total=load.fallback)
    ahead = carried_windows(sound.window_s, lead_s=lead_s, hold_s=hold_s)
    seen = residuals(sound, scaled, ahead=ahead)
    lately = slice(max(0, len(sound) - ahead[-1] - settings.scored_windows), len(sound))
    location = seen.locations[-1] if seen.locations[-1].any() else mean_mix(sound)
    rates = raised(location, seen.errors[lately], scaled, load.rate_rps)
    return CapacityBySize(rates_rps=rates, weights=scaled, load=load, by_total=None)


def capacity_by_total(
    history: BucketWindows,
    *,
    lead_s: float,
    violations: float = 0.01,
    hold_s: float | None = None,
    settings: Settings = _DEFAULT_SETTINGS,
    earlier: Followed | None = None,
) -> CapacityBySize:
    """Return the mix of the whole record at the capacity rate of its total: right where the mix does not change.

    As `capacity_by_size`, with weights of 1.
    """
    sound, ones = known_and_weighed(history, np.ones(history.rates_rps.shape[1]))
    total = capacity_rate(
        sound.total,
        lead_s=lead_s,
        violations=violations,
        hold_s=hold_s,
        settings=settings,
        earlier=earlier,
    )
    return CapacityBySize(
        rates_rps=total.rate_rps * mean_mix(sound), weights=ones, load=total, by_total="as asked"
    )


def known_and_weighed(history: BucketWindows, weights: Floats) -> tuple[BucketWindows, Floats]:
    """Return the record without the gaps that its total shows, and the weights scaled to a mean of 1 per request."""
    rates = history.rates_rps
    bad = np.argwhere((rates < 0) | np.isinf(rates))
    if len(bad):
        window, bucket = bad[0]
        raise InputError(
            f"a rate of {rates[window, bucket]:g} requests/s in window {window}, bucket {bucket}"
            f" of {history.name!r}",
            right="rates of 0 or more (NaN: not recorded)",
        )
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != rates.shape[1:] or not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError(
            f"weights for {rates.shape[1]} buckets: {weights.tolist()}",
            right="one positive number per bucket",
        )
    total = without_gaps_as_zero(history.total).rate_rps
    if np.isnan(total).all():
        raise InputError(f"no window of {history.name!r} was recorded", right="windows with rates")
    sound = replace(history, rates_rps=np.where(np.isnan(total)[:, None], np.nan, rates))
    if not np.nansum(total) > 0:
        raise InputError(f"nothing arrived in {history.name!r}", right="a record with requests")
    return sound, weights / float((mean_mix(sound) * weights).sum())


def mean_mix(history: BucketWindows) -> Floats:
    """Return [buckets]: share of each in all requests of the record."""
    sums = np.nansum(history.rates_rps, axis=0)
    mix: Floats = sums / sums.sum()
    return mix


def residuals(history: BucketWindows, weights: Floats, *, ahead: range) -> Residuals:
    """Return locations and residual vectors of all origins (see the module)."""
    rates, number, late = history.rates_rps, len(history), ahead[-1]
    known = np.asarray(~np.isnan(rates).any(axis=1))
    locations = _recent_means(rates, known)
    errors = np.full_like(rates, np.nan)
    origins = np.arange(max(0, number - late))
    if len(origins):
        load = np.where(known, _sums(rates, weights), -np.inf)
        carried = origins[:, None] + np.arange(ahead[0], late + 1)[None, :]
        worst = carried[np.arange(len(origins)), load[carried].argmax(axis=1)]
        expected = _sums(locations[origins], weights)
        told = known[worst] & (expected > 0)
        rows = origins[told]
        errors[rows] = (rates[worst[told]] - locations[rows]) / expected[told, None]
    return Residuals(locations=locations, errors=errors)


def raised(location: Floats, errors: Floats, weights: Floats, load_rps: float) -> Floats:
    """Return [buckets]: rates that make ``load_rps``, raised from ``location`` along the residual vectors.

    ``location`` has a positive rate; ``errors`` is [origins, buckets], of which NaN rows are left out; see the module
    for the direction.
    """
    expected = float((weights * location).sum())
    known = errors[~np.isnan(errors).any(axis=1)]
    along = _sums(known, weights)
    together = PRIOR_OUTCOMES * PRIOR_RATIO**2 * location / expected
    direction = np.maximum((known * along[:, None]).sum(axis=0) + together, 0.0)
    direction /= float((weights * direction).sum())
    rates = np.maximum(location + (load_rps - expected) * direction, 0.0)
    made = float((weights * rates).sum())
    if not made > 0:  # far less than expected
        rates, made = location, expected
    answer: Floats = rates * (load_rps / made)
    return answer


def _recent_means(rates: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return [windows, buckets]: mean of the last recorded windows at the end of each; 0 where there was none."""
    padded = np.concatenate((np.zeros((1, rates.shape[1])), np.where(known[:, None], rates, 0.0)[known]))
    sums = np.cumsum(padded, axis=0)
    seen = np.cumsum(known)
    begin = np.maximum(seen - RECENT_WINDOWS, 0)
    means: Floats = (sums[seen] - sums[begin]) / np.maximum(seen - begin, 1)[:, None]
    return np.maximum(means, 0.0)


def _sums(rates: Floats, weights: Floats) -> Floats:
    """Return the weighted sum of each row; no matrix product, whose rounding may change with the number of threads."""
    sums: Floats = (rates * weights).sum(axis=-1)
    return sums
