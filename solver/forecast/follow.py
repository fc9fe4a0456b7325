"""Walks along a record window by window, as a live service would: every rule's capacity, its risk, and who is played.

It exists so that a back-test and a running planner take the same decisions: both call `follow`, the one over a whole
record at once, the other with what it returned last time and a few windows more (the answer is the same). Nothing in
it looks at a window before its time.

At origin o (the end of window o) a decision is made for the carried windows o + first .. o + last; y(o), the largest of
their rates, is known at o + last. With z = log(rate + one request per window):

- entrant e has a location l_e(o) (`solver.forecast.rules`) and, if its margin is local, a scale s_e(o) = half the mean
  of |error| over the last 432 + half its exponential mean over the last 12, errors cut at 1; else s_e = 1;
- its capacity is min(l_e + s_e q, top): q the rolling conformal quantile of (y - l_e) / s_e over the last 720 origins
  at level 1 - risk_e, top the largest rate seen x 1.1 (x 1.5 in the first 288 windows), so counts are bounded;
- the blend's quantile is the mean of its members' at each risk;
- risk_e begins at the wanted violations and moves with every outcome (adaptive conformal inference);
- every 12 windows the tournament is looked at (`_winner`): the blend is played unless another entrant's pinball loss
  at 1 - violations over the last 576 outcomes is lower by far more than luck explains;
- the reactive rule stands in while fewer outcomes are known than the wanted quantile needs (1 / violations - 1), and
  while what is played fails far more often than wanted (`_degraded`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats
from solver.forecast.conformal import at_risk, moved_risk, rolling_quantiles
from solver.forecast.recorded import carried_forward, without_partial_windows
from solver.forecast.rules import BASES, BLEND, BLENDED, ENTRANTS, REACTIVE, log_locations

RISK_STEPS = (3.0, 2.0, 1.5, 1.25, 1.0, 0.75, 0.5, 0.375, 0.25)
"""Risks for which quantiles are kept, in units of the wanted violations; what lies between is interpolated."""
BLEND_ROW = next(row for row, entrant in enumerate(ENTRANTS) if entrant.name == BLEND)
REACTIVE_ROW = next(row for row, entrant in enumerate(ENTRANTS) if entrant.name == REACTIVE)
SHORT = 1
DEGRADED = 2
_LONG_WINDOWS = 432
_RECENT_SPAN = 12
_RECENT_WINDOWS = 72
"""Over which the exponential mean is taken: older ones weigh less than 1e-5."""
_LEAST_SCALE = 1e-6
_LOOK_AGAIN_WINDOWS = 12
_BLOCK_WINDOWS = 48
_LEAST_BLOCKS = 6
WATCHED_WINDOWS = 144
_LARGEST_ERROR = 1.0
_LARGEST_PART = 8192
_YOUNG_FACTOR = 1.5
_UNTAUGHT_MARGIN = 1.5
"""Of the last peak, before anything is known: about what 1 % of violations cost on bursty services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the method leaves open; chosen on the first six days of three services and on groups of their clients."""

    scored_windows: int = 720
    """Past outcomes that a margin is learnt from (5 days of 10 minutes)."""
    judged_windows: int = 576
    """Past outcomes that decide who is played."""
    better_ratio: float = 0.8
    """A challenger's loss must be below this share of the present one's."""
    worse_ratio: float = 0.9
    """From which on the blend is played again."""
    sure_factor: float = 4.0
    """Standard errors by which its loss must be lower."""
    risk_rate: float = 0.0005
    """How far one outcome moves a risk."""
    least_scored: int = 30
    """Outcomes below which no margin is learnt at all."""
    top_factor: float = 1.1
    """Of the largest rate seen: no capacity above it."""
    young_windows: int = 288
    """Windows before which the largest rate seen says little: the factor is 1.5."""
    scale_down_windows: int = 1
    """Capacity falls only when the lower plan has held for so many windows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Followed:
    """What following a record up to its end has taught; carry it to the next call. Nothing writes into its arrays."""

    start_s: float
    window_s: float
    ahead: range
    violations: float
    settings: Settings
    rates: Floats
    """[windows] as recorded: to see that the next call's record continues this one."""
    log_targets: Floats
    """[windows] y; NaN where not known, or not yet."""
    locations: Floats
    """[bases, windows] l."""
    scales: Floats
    """[bases, windows] s."""
    log_caps: Floats
    """[entrants, windows] what each would decide; NaN where it has nothing to say."""
    losses: Floats
    """[entrants, windows] pinball loss of what was decided there, 0 where not known, infinite where nothing was."""
    risks: Floats
    """[entrants] after the last window."""
    risk_used: Floats
    """[windows] risk of the entrant played."""
    played: NDArray[np.int64]
    """[windows] entrant."""
    standing_in: NDArray[np.int64]
    """[windows] why the reactive rule stands in for it: 0 it does not, `SHORT` or `DEGRADED`."""
    chosen: Floats
    """[windows] log of the decision."""
    weights: Floats | None
    """Of the ridge."""

    def __len__(self) -> int:
        return len(self.rates)

    @property
    def log_tops(self) -> Floats:
        """[windows] log of what nothing said at the end of each may exceed: the largest rate seen x a factor."""
        settings = self.settings
        factor = np.where(np.arange(len(self)) < settings.young_windows, _YOUNG_FACTOR, settings.top_factor)
        seen = np.fmax.accumulate(without_partial_windows(self.rates))
        first = seen[np.argmax(~np.isnan(seen))]
        tops: Floats = np.log((np.where(np.isnan(seen), first, seen) + 1 / self.window_s) * factor)
        return tops

    @property
    def capacity_rps(self) -> Floats:
        """[windows] rate decided on at the end of each window, after the rule on scaling down."""
        caps = np.maximum(np.exp(self.chosen) - 1 / self.window_s, 0.0)
        held = max(1, self.settings.scale_down_windows)
        padded = np.concatenate((np.zeros(held - 1), caps))
        highest: Floats = np.lib.stride_tricks.sliding_window_view(padded, held).max(axis=1)
        return highest


def least_scored(violations: float) -> int:
    """Return how many outcomes a quantile at 1 - violations needs to exist."""
    return math.ceil(1 / violations - 1e-9) - 1


def follow(
    history: RateWindows,
    *,
    ahead: range,
    violations: float,
    settings: Settings,
    earlier: Followed | None = None,
) -> Followed:
    """Return what the record teaches, going on from ``earlier`` where the record continues that one's.

    ``history`` is sound (`solver.forecast.recorded.without_gaps_as_zero`) and has a recorded window; old windows may
    have been dropped from its front since.
    """
    state = _continued(earlier, history, ahead, violations, settings)
    if state is None:
        state = _nothing(history, ahead, violations, settings)
    while len(state) < len(history):  # a part at a time: memory stays bounded
        part = replace(history, rate_rps=history.rate_rps[: len(state) + _LARGEST_PART])
        state = _extended(state, part)
    return state


def _extended(before: Followed, history: RateWindows) -> Followed:
    """Walk on to the end of the record."""
    ahead = before.ahead
    origins = range(len(before), len(history))
    masked = without_partial_windows(history.rate_rps)
    log_rates = np.log(carried_forward(masked) + 1 / history.window_s)
    targets = _targets(np.log(masked + 1 / history.window_s), ahead)
    found, weights = log_locations(
        log_rates, targets, origins=origins, ahead=ahead, window_s=history.window_s, fitted=before.weights
    )
    locations = np.concatenate((before.locations, found), axis=1)
    errors = targets[None, :] - locations
    fresh = len(origins)
    grown = replace(
        before,
        rates=history.rate_rps,
        log_targets=targets,
        locations=locations,
        scales=np.concatenate((before.scales, _scales(errors, origins, ahead[-1])), axis=1),
        weights=weights,
        log_caps=_widened(before.log_caps, fresh),
        losses=_widened(before.losses, fresh),
        risk_used=_widened(before.risk_used, fresh),
        played=np.concatenate((before.played, np.zeros(fresh, np.int64))),
        standing_in=np.concatenate((before.standing_in, np.zeros(fresh, np.int64))),
        chosen=_widened(before.chosen, fresh),
    )
    tops = grown.log_tops[origins.start :]
    quantiles = np.minimum(_quantiles(grown, errors, origins), tops[:, None, None])
    return replace(grown, risks=_decide(grown, quantiles, tops, origins))


def _continued(
    earlier: Followed | None, history: RateWindows, ahead: range, violations: float, settings: Settings
) -> Followed | None:
    """Return the earlier state without what was dropped from the front since; None if the record is another one."""
    if earlier is None:
        return None
    same = (earlier.window_s, earlier.ahead, earlier.violations, earlier.settings)
    if same != (history.window_s, ahead, violations, settings):
        return None
    moved = (history.start_s - earlier.start_s) / history.window_s
    dropped = round(moved)
    if abs(moved - dropped) > 1e-6 or not 0 <= dropped < len(earlier):
        return None
    kept = earlier.rates[dropped:]
    if len(kept) > len(history) or not np.array_equal(kept, history.rate_rps[: len(kept)], equal_nan=True):
        return None
    if not dropped:
        return earlier
    return replace(
        earlier,
        start_s=history.start_s,
        rates=kept,
        log_targets=earlier.log_targets[dropped:],
        locations=earlier.locations[:, dropped:],
        scales=earlier.scales[:, dropped:],
        log_caps=earlier.log_caps[:, dropped:],
        losses=earlier.losses[:, dropped:],
        risk_used=earlier.risk_used[dropped:],
        played=earlier.played[dropped:],
        standing_in=earlier.standing_in[dropped:],
        chosen=earlier.chosen[dropped:],
    )


def _nothing(history: RateWindows, ahead: range, violations: float, settings: Settings) -> Followed:
    none = np.empty(0)
    return Followed(
        start_s=history.start_s,
        window_s=history.window_s,
        ahead=ahead,
        violations=violations,
        settings=settings,
        rates=none,
        log_targets=none,
        locations=np.empty((len(BASES), 0)),
        scales=np.empty((len(BASES), 0)),
        log_caps=np.empty((len(ENTRANTS), 0)),
        losses=np.empty((len(ENTRANTS), 0)),
        risks=np.full(len(ENTRANTS), violations),
        risk_used=none,
        played=np.empty(0, np.int64),
        standing_in=np.empty(0, np.int64),
        chosen=none,
        weights=None,
    )


def _widened(values: Floats, number: int) -> Floats:
    wide: Floats = np.concatenate((values, np.full((*values.shape[:-1], number), np.nan)), axis=-1)
    return wide


def _targets(log_known: Floats, ahead: range) -> Floats:
    """Return y(o): the largest known log rate of the carried windows; NaN if none of them is known, or not all yet."""
    number = len(log_known)
    targets = np.full(number, np.nan)
    for step in ahead:
        targets[: max(0, number - ahead[-1])] = np.fmax(
            targets[: max(0, number - ahead[-1])], log_known[step : step + max(0, number - ahead[-1])]
        )
    return targets


def _scales(errors: Floats, origins: range, late: int) -> Floats:
    """Return [bases, origins]: half the long, half the recent mean of what was wrong; 1 where nothing is known."""
    wrong = np.minimum(np.abs(errors), _LARGEST_ERROR)
    long = _weighted_mean(wrong, np.ones(_LONG_WINDOWS), origins, late)
    decay = 1 - 2 / (_RECENT_SPAN + 1)
    fading = np.asarray(decay ** np.arange(_RECENT_WINDOWS)[::-1], dtype=np.float64)
    recent = _weighted_mean(wrong, fading, origins, late)
    scales = (long + np.where(np.isnan(recent), long, recent)) / 2
    # A rule that was never wrong (constant traffic) still needs a scale to divide by.
    return np.where(np.isnan(scales), 1.0, np.maximum(scales, _LEAST_SCALE))


def _weighted_mean(values: Floats, weights: Floats, origins: range, late: int) -> Floats:
    """Return [rows, origins]: mean of what is known at each origin, the last weight for the newest; NaN if nothing."""
    low, high = origins.start - late - len(weights) + 1, origins.stop - late
    part = values[:, max(low, 0) : max(high, 0)]
    missing = np.full((len(values), high - low - part.shape[1]), np.nan)
    padded = np.concatenate((missing, part), axis=1)
    known = ~np.isnan(padded)
    summed = _dots(np.where(known, padded, 0.0), weights)
    mass = _dots(known.astype(np.float64), weights)
    return np.where(mass > 0, summed / np.where(mass > 0, mass, 1.0), np.nan)


def _dots(values: Floats, weights: Floats) -> Floats:
    dots: Floats = np.stack([np.convolve(row, weights[::-1], mode="valid") for row in values])
    return dots


def _quantiles(state: Followed, errors: Floats, origins: range) -> Floats:
    """Return [origins, entrants, risks]: log capacity of each entrant at each risk, before the top."""
    levels = [1 - step * state.violations for step in RISK_STEPS]
    answer = np.full((len(origins), len(ENTRANTS), len(RISK_STEPS)), np.nan)
    here = slice(origins.start, origins.stop)
    for row, entrant in enumerate(ENTRANTS):
        if not entrant.base:
            continue
        base = BASES.index(entrant.base)
        scale = state.scales[base] if entrant.local else np.ones(len(state))
        found = rolling_quantiles(
            errors[base] / scale,
            origins=origins,
            delay=state.ahead[-1],
            length=state.settings.scored_windows,
            levels=levels,
            least=state.settings.least_scored,
        )
        answer[:, row] = (state.locations[base, here] + scale[here] * found).T
    members = answer[:, BLENDED]
    spoken = ~np.isnan(members)
    count = spoken.sum(axis=1)
    answer[:, BLEND_ROW] = np.where(
        count > 0, np.where(spoken, members, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan
    )
    return answer


def _decide(state: Followed, quantiles: Floats, tops: Floats, origins: range) -> Floats:
    """Fill in every decision at the origins (into arrays made for this call) and return the risks after the last."""
    settings, wanted, late = state.settings, state.violations, state.ahead[-1]
    need = max(least_scored(wanted), settings.least_scored)
    risks = state.risks
    steps = [step * wanted for step in RISK_STEPS]
    scored = int((~np.isnan(state.log_targets[: max(0, origins.start - late)])).sum())
    playing = int(state.played[origins.start - 1]) if origins.start else BLEND_ROW
    for row, origin in enumerate(origins):
        past = origin - late
        if past >= 0:
            outcome = state.log_targets[past]
            state.losses[:, past] = _losses(outcome, state.log_caps[:, past], 1 - wanted)
            if not np.isnan(outcome):
                scored += 1
                risks = moved_risk(
                    risks,
                    np.where(
                        np.isnan(state.log_caps[:, past]), np.nan, outcome > state.log_caps[:, past] + 1e-12
                    ),
                    wanted=wanted,
                    rate=settings.risk_rate,
                    lowest=steps[-1],
                    highest=steps[0],
                )
        caps = at_risk(quantiles[row], steps, risks)
        state.log_caps[:, origin] = caps
        if origin % _LOOK_AGAIN_WINDOWS == 0:
            playing = _winner(state, past, playing)
        state.played[origin] = playing
        cap, used, why = caps[playing], risks[playing], 0
        if scored < need or np.isnan(cap):
            cap, used, why = _untaught(state, origin, scored, need, tops[row]), wanted, SHORT
        elif _degraded(state, past):
            cap, used, why = caps[REACTIVE_ROW], risks[REACTIVE_ROW], DEGRADED
        state.chosen[origin], state.risk_used[origin], state.standing_in[origin] = cap, used, why
    return risks


def _losses(outcome: float, log_caps: Floats, level: float) -> Floats:
    """Return the pinball loss of each capacity, in requests/s: max(level (y - c), (1 - level) (c - y))."""
    if np.isnan(outcome) or np.isnan(log_caps[BLEND_ROW]):
        return np.zeros(len(log_caps))  # nothing to tell them apart by
    over = np.exp(outcome) - np.exp(log_caps)
    losses: Floats = np.where(np.isnan(over), np.inf, np.maximum(level * over, (level - 1) * over))
    return losses


def _winner(state: Followed, past: int, playing: int) -> int:
    """Return who is played from now on: the blend, unless another lost less in clearly more than luck explains.

    d = the blend's loss - the challenger's, summed over blocks of 48 windows (neighbours are alike); it is played if
    mean(d) > `Settings.sure_factor` sd(d) / sqrt(blocks) and its total is below `Settings.better_ratio` of the
    blend's, and until its total is above `Settings.worse_ratio` of it.
    """
    blocks = min(state.settings.judged_windows, past + 1) // _BLOCK_WINDOWS
    if blocks < _LEAST_BLOCKS:
        return playing
    lately = state.losses[:, past + 1 - blocks * _BLOCK_WINDOWS : past + 1]
    sums = lately.reshape(len(lately), blocks, _BLOCK_WINDOWS).sum(axis=2)
    totals = sums.sum(axis=1)
    blend = totals[BLEND_ROW]
    able = np.flatnonzero(np.isfinite(totals))
    gained = sums[BLEND_ROW] - sums[able]
    sure = gained.mean(axis=1) > state.settings.sure_factor * gained.std(axis=1, ddof=1) / math.sqrt(blocks)
    sure &= totals[able] < state.settings.better_ratio * blend
    if sure.any():
        best = int(able[sure][totals[able][sure].argmin()])
        if totals[best] < state.settings.better_ratio * totals[playing]:
            return best
    return playing if totals[playing] < state.settings.worse_ratio * blend else BLEND_ROW


def _untaught(state: Followed, origin: int, scored: int, need: int, top: float) -> float:
    """Return log of the reactive capacity while errors are too few: the largest so far, and a margin that fades."""
    base = BASES.index(REACTIVE)
    known = max(0, origin + 1 - state.ahead[-1])
    errors = state.log_targets[:known] - state.locations[base, :known]
    errors = errors[~np.isnan(errors)]
    margin = max(0.0, float(errors.max())) if len(errors) else 0.0
    margin += max(0.0, 1 - scored / need) * math.log(_UNTAUGHT_MARGIN)
    return min(float(state.locations[base, origin]) + margin, top)


def _degraded(state: Followed, past: int) -> bool:
    """Tell whether decisions of the last day or so failed far more often than wanted, and the reactive rule's did not.

    More than 3 standard deviations above the wanted count of the last 144 outcomes, and more than twice what the
    reactive rule's would have.
    """
    lately = slice(max(0, past + 1 - WATCHED_WINDOWS), past + 1)
    outcomes = state.log_targets[lately]
    failed = int((outcomes > state.chosen[lately] + 1e-12).sum())
    expected = state.violations * int((~np.isnan(outcomes)).sum())
    if failed <= expected + 3 * math.sqrt(expected) + 1:
        return False
    return failed > 2 * int((outcomes > state.log_caps[REACTIVE_ROW, lately] + 1e-12).sum())
