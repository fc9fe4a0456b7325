"""The rate that capacity must carry some time from now, so that it is rarely exceeded: what a planner asks a forecast.

It exists because capacity takes time to start: a plan made now must fit the traffic then. It turns recorded rates into
one rate; it plans no replica (that is `solver.gpu_mix`), knows no clock (the history's end is "now") and reads no file.

Three lengths of time, in seconds:

- window: the history's own step; a rate is the mean of a window, and a window is violated when its rate exceeds that
  of the capacity;
- lead: from the end of the last recorded window ("now") to the end of the last window that the capacity must carry.
  A loop that plans every I seconds and whose instances take S seconds to start has a lead of S + I: what it decides now
  is ready at S and stays until the next decision is ready, at S + I;
- hold (the horizon over which one decision must do): how much of the lead, counted back from its end, the capacity
  must carry: I in such a loop. One window if it is not told, which is the protocol of the back-tests: only the window
  that ends at the lead counts.

So with windows of w seconds the windows 1 + floor((lead - hold) / w) to ceil(lead / w) after now are carried (at least
one). ``violations`` is the probability that any of them exceeds the answer.

It is cheap to ask again: hand ``earlier`` the ``learnt`` of the last answer, and only the new windows are looked at (a
few milliseconds); without it the whole record is walked through again (about 0.2 s for nine days of ten minutes). Both
give the same answer.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.forecast.follow import DEGRADED, SHORT, WATCHED_WINDOWS, Followed, Settings, follow, least_scored
from solver.forecast.recorded import without_gaps_as_zero
from solver.forecast.rules import ENTRANTS, REACTIVE

_DEFAULT_SETTINGS = Settings()
MOST_AHEAD = 100_000
"""Windows that a lead may be: ten weeks of minutes. No record teaches more, and all of them are walked through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRate:
    """The rate to have capacity for, and how it was found."""

    rate_rps: float
    """Never below zero; not rounded to replicas."""
    rule: str
    """The rule that gave it, such as "max of last 3" (`solver.forecast.rules`)."""
    level_ratio: float
    """Quantile of the rule's own past errors that was taken: 1 - violations, moved by how often it failed so far."""
    fallback: str | None
    """Why the reactive rule stands in for the winner; None where it does not."""
    known_windows: int
    """Recorded windows that it rests on."""
    learnt: Followed = field(repr=False, compare=False)
    """For the next call's ``earlier``."""

    @property
    def short(self) -> bool:
        """Whether the history teaches no such quantile yet."""
        return int(self.learnt.standing_in[-1]) == SHORT


def carried_windows(window_s: float, *, lead_s: float, hold_s: float | None = None) -> range:
    """Return which windows after now the capacity must carry: 1 is the first one (see the module).

    Raises
    ------
    InputError
        If lead or hold is not a positive number, or the lead is of more than `MOST_AHEAD` windows.
    """
    hold_s = window_s if hold_s is None else hold_s
    for name, value in (("lead", lead_s), ("hold", hold_s)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"a {name} of {value:g} s", right="a positive number of seconds")
    if lead_s > MOST_AHEAD * window_s:
        raise InputError(
            f"a lead of {lead_s:g} s in windows of {window_s:g} s",
            right=f"at most {MOST_AHEAD:,} windows: a shorter lead, or wider windows",
        )
    last = max(1, math.ceil(lead_s / window_s - 1e-9))
    first = 1 + math.floor((lead_s - hold_s) / window_s + 1e-9)
    return range(min(max(first, 1), last), last + 1)


def capacity_rate(
    history: RateWindows,
    *,
    lead_s: float,
    violations: float = 0.01,
    hold_s: float | None = None,
    settings: Settings = _DEFAULT_SETTINGS,
    earlier: Followed | None = None,
) -> CapacityRate:
    """Return the rate to have capacity for, from what was recorded up to now.

    Windows that were not recorded (NaN, or zeros that cannot be: `solver.forecast.recorded`) teach nothing.

    Raises
    ------
    InputError
        If no window was recorded, a rate is negative, or lead, hold or violations make no sense.
    """
    check_violations(violations)
    ahead = carried_windows(history.window_s, lead_s=lead_s, hold_s=hold_s)
    sound = without_gaps_as_zero(history)
    known = len(sound) - sound.gaps
    if not known:
        raise InputError(f"no window of {history.name!r} was recorded", right="windows with rates")
    learnt = follow(sound, ahead=ahead, violations=violations, settings=settings, earlier=earlier)
    return CapacityRate(
        rate_rps=float(learnt.capacity_rps[-1]),
        rule=REACTIVE if learnt.standing_in[-1] else ENTRANTS[int(learnt.played[-1])].name,
        level_ratio=1 - float(learnt.risk_used[-1]),
        fallback=why_reactive(learnt, len(learnt) - 1),
        known_windows=known,
        learnt=learnt,
    )


def planned_rate(reactive_rps: float, forecast: CapacityRate) -> float:
    """Return what a planner plans for: never less than what was just seen, and no forecast that is none."""
    return reactive_rps if forecast.fallback is not None else max(reactive_rps, forecast.rate_rps)


def check_violations(violations: float) -> None:
    """Refuse what is no probability to plan for."""
    if not 1e-4 <= violations <= 0.25:
        raise InputError(
            f"violations of {violations:g}", right="a probability from 0.0001 to 0.25, such as 0.01"
        )


def why_reactive(learnt: Followed, window: int) -> str | None:
    """Say why the reactive rule decided at the end of a window; None where it stood in for nobody."""
    why = int(learnt.standing_in[window])
    if why == SHORT:
        known = int((~np.isnan(learnt.rates[: window + 1])).sum())
        need = max(least_scored(learnt.violations), learnt.settings.least_scored)
        return (
            f"short history: {known} recorded windows, "
            f"{need + learnt.ahead[-1]} teach a quantile of {1 - learnt.violations:.4g}"
        )
    if why == DEGRADED:
        return f"{ENTRANTS[int(learnt.played[window])].name} failed too often in the last {WATCHED_WINDOWS} windows"
    return None
