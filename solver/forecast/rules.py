"""The rules that compete for a service: each says one number for the windows to come, from the windows before.

It exists because no rule wins everywhere: the best one changes with the service, the lead and the week. Numbers are
logs of rates, so that a margin is a sum. What is added on top (`solver.forecast.conformal`) and who wins
(`solver.forecast.follow`) are decided elsewhere.

Same time yesterday is 24 elapsed hours before, whatever a wall clock did in between: on the day after a change to or
from daylight saving time the pattern of people sits an hour beside it, which its margin and the tournament notice.
"""

from dataclasses import dataclass

import numpy as np

from solver.domain.trace import Floats
from solver.forecast.ridge import ridge_locations

_DAY_S = 86400.0
PEAKS = (1, 2, 3, 4, 6, 12, 24)
"""k of the rules "max of last k"; 1 is the last value."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A rule with a way to learn its margin."""

    name: str
    base: str
    """Of `BASES`; empty for the blend."""
    local: bool = False
    """Whether the margin breathes with how wrong the rule was lately."""


def _last(k: int) -> str:
    return "last value" if k == 1 else f"max of last {k}"


BASES = (*(_last(k) for k in PEAKS), "ridge", "same time yesterday", "same time last week", "static")
REACTIVE = "max of last 3"
BLEND = "blend"
ENTRANTS = (
    *(Entrant(name, name) for name in BASES),
    *(
        Entrant(f"{name}, local margin", name, local=True)
        for name in ("last value", "max of last 2", "max of last 3", "ridge")
    ),
    Entrant(BLEND, ""),
)
BLENDED = tuple(
    row
    for row, entrant in enumerate(ENTRANTS)
    if entrant.local
    or entrant.base in {"max of last 4", "max of last 6", "max of last 12", "max of last 24", "ridge"}
)
"""Entrants whose capacities the blend averages (in logs): every local one, and rules that look further back."""


def log_locations(
    log_rates: Floats,
    log_targets: Floats,
    *,
    origins: range,
    ahead: range,
    window_s: float,
    fitted: Floats | None,
) -> tuple[Floats, Floats | None]:
    """Return [bases, origins], NaN where a rule has nothing to say yet, and the ridge's weights."""
    answer = np.full((len(BASES), len(origins)), np.nan)
    here = slice(origins.start, origins.stop)
    for row, k in enumerate(PEAKS):
        answer[row] = peaks_of(log_rates, k)[here]
    answer[len(PEAKS)], fitted = ridge_locations(
        log_rates, log_targets, origins=origins, delay=ahead[-1], fitted=fitted
    )
    for row, days in ((len(PEAKS) + 1, 1), (len(PEAKS) + 2, 7)):
        back = days * _DAY_S / window_s
        if abs(back - round(back)) < 1e-6 and round(back) >= ahead[-1]:
            answer[row] = _seasonal(log_rates, round(back), ahead, origins)
    answer[-1] = 0.0
    return answer, fitted


def peaks_of(values: Floats, number: int) -> Floats:
    """Return the largest of each value and the ``number`` - 1 before it."""
    padded = np.concatenate((np.full(number - 1, -np.inf), values))
    peaks: Floats = np.lib.stride_tricks.sliding_window_view(padded, number).max(axis=1)
    return peaks


def _seasonal(log_rates: Floats, back: int, ahead: range, origins: range) -> Floats:
    """Return the largest log rate of the carried windows one season before."""
    answer = np.full(len(origins), np.nan)
    first = max(origins.start, back - ahead[0])
    if first >= origins.stop:
        return answer
    rows = np.arange(first, origins.stop)[:, None] - back + np.arange(ahead.start, ahead.stop)[None, :]
    answer[first - origins.start :] = log_rates[rows].max(axis=1)
    return answer
