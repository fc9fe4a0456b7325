"""Judges capacity decisions on a record: how often they fell short, what they cost, and what a simple rule would have.

It exists because a forecast is worth what it saves at equal violations. `solver.forecast.follow` decides, which sees
the past only; the rules beside it are tuned in hindsight on the very windows that are judged, which no
live system can do. It starts nothing and reads no clock.

Protocol. A lead of h windows: the decision at the end of window o is judged on window o + h alone. Replicas are the
capacity rate over ``replica_rps``, rounded up, one at least; a window is violated if its rate exceeds replicas x
replica_rps; replica-hours are counted. The oracle knows the window. Windows that were not recorded are not judged.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Floats
from solver.forecast.capacity import carried_windows, check_violations, why_reactive
from solver.forecast.distribution import central_interval_rps, crps, quantiles_rps
from solver.forecast.follow import Followed, Settings, follow
from solver.forecast.recorded import carried_forward, without_gaps_as_zero, without_partial_windows
from solver.forecast.rules import ENTRANTS, REACTIVE, peaks_of

PEAK_GRID = tuple(range(1, 25))
"""k of the rules "max of last k x margin" in hindsight; 1 is the last value."""
_DAY_S = 86400.0
_SLACK = 1e-9


@lru_cache(maxsize=1)
def margin_grid() -> Floats:
    """Return the margins tried in hindsight: 0.50 to 6.00 in steps of 0.01."""
    return np.arange(50, 601) / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class HindsightRule:
    """A simple rule at the margin that was cheapest on the judged windows with no more violations than ours."""

    name: str
    margin_ratio: float
    violation_ratio: float
    replica_hours: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """What decisions came to on the judged windows of one series."""

    name: str
    lead_s: float
    window_s: float
    windows: int
    """In the record, gaps included."""
    gaps: int
    judged_from: int
    """First judged window."""
    judged_windows: int
    """Judged windows that were recorded."""
    replica_rps: float
    chosen: str
    """The rule that decided most of the judged windows."""
    played: tuple[tuple[str, float], ...]
    """Every rule that decided some, with its share of them, most first."""
    fallback: str | None
    """Why the reactive rule stood in at the last judged window where it did; None if it never did."""
    violation_ratio: float
    replica_hours: float
    oracle_replica_hours: float
    best_rule: HindsightRule | None
    """None if no simple rule has so few violations at any margin of the grid."""
    rules: tuple[HindsightRule, ...]
    """The best margin of every simple rule, cheapest first."""
    crps_ratio: float
    """In units of the series' mean; NaN if too little was known to forecast a distribution."""
    coverage_90_ratio: float
    learnt: Followed
    capacity_rps: Floats
    """[windows] rate of the replicas in force in each window; NaN before the first judged one."""
    interval_90_rps: Floats
    """[2, windows from the first judged one] the central interval forecast for each; NaN where too little was known."""

    @property
    def cost_ratio_to_oracle(self) -> float:
        """Replica-hours against the oracle's."""
        return self.replica_hours / self.oracle_replica_hours

    @property
    def cost_ratio_to_best_rule(self) -> float | None:
        """Replica-hours against the cheapest simple rule in hindsight with no more violations."""
        return None if self.best_rule is None else self.replica_hours / self.best_rule.replica_hours


def backtest(
    record: RateWindows,
    *,
    lead_s: float = 600.0,
    violations: float = 0.01,
    replica_rps: float | None = None,
    judge_last: float = 0.3,
    settings: Settings | None = None,
) -> Judged:
    """Judge the decisions on the last ``judge_last`` of a record; ``replica_rps`` defaults to its mean rate / 50.

    Raises
    ------
    InputError
        If nothing was recorded in the judged part or before it, or an argument makes no sense.
    """
    check_violations(violations)
    if not 0 < judge_last < 1:
        raise InputError(f"judging the last {judge_last:g}", right="a share between 0 and 1, such as 0.3")
    late = carried_windows(record.window_s, lead_s=lead_s)[-1]
    sound = without_gaps_as_zero(record)
    rates, number = sound.rate_rps, len(sound)
    begin = number - round(judge_last * number)
    judged = np.arange(max(begin, late), number)
    judged = judged[~np.isnan(rates[judged])]
    earlier = np.flatnonzero(~np.isnan(rates))
    if not len(judged) or earlier[0] + late > judged[0]:
        raise InputError(
            f"{record.name!r} has {len(judged)} recorded windows to judge and "
            f"{int((earlier < begin).sum())} before them",
            right=f"at least one of each, {late} apart (--judge-last, --lead-s)",
        )
    mean_rps = float(rates[earlier].mean())
    if replica_rps is None:
        replica_rps = mean_rps / 50
    if mean_rps > 0 and not 0 < replica_rps < math.inf:
        raise InputError(f"a replica of {replica_rps:g} requests/s", right="a positive rate")
    learnt = follow(
        sound, ahead=range(late, late + 1), violations=violations, settings=settings or Settings()
    )
    replica_rps = replica_rps or 1.0  # of a service that was never asked anything, any will do
    outcomes = rates[judged]
    replicas = _replicas(learnt.capacity_rps[judged - late], replica_rps)
    violated = int(_violated(outcomes, replicas, replica_rps).sum())
    hours = record.window_s / 3600
    rules = _hindsight(sound, judged, late=late, most_violated=violated, replica_rps=replica_rps)
    capacity = np.full(number, np.nan)
    capacity[judged] = replicas * replica_rps
    played = _played(learnt, judged - late)
    forecast_from = range(int(judged[0]) - late, number - late)
    shown = rates[forecast_from.start + late :]
    interval = central_interval_rps(learnt, origins=forecast_from)
    known = ~np.isnan(shown) & ~np.isnan(interval).any(axis=0)
    slack = _SLACK * (1 + np.nan_to_num(shown))
    inside = (interval[0] - slack <= shown) & (shown <= interval[1] + slack)
    score = crps(quantiles_rps(learnt, origins=forecast_from), shown)
    return Judged(
        name=record.name,
        lead_s=lead_s,
        window_s=record.window_s,
        windows=number,
        gaps=sound.gaps,
        judged_from=int(judged[0]),
        judged_windows=len(judged),
        replica_rps=replica_rps,
        chosen=played[0][0],
        played=played,
        fallback=_last_fallback(learnt, judged - late),
        violation_ratio=violated / len(judged),
        replica_hours=float(replicas.sum()) * hours,
        oracle_replica_hours=float(_replicas(outcomes, replica_rps).sum()) * hours,
        best_rule=rules[0] if rules else None,
        rules=rules,
        crps_ratio=score / mean_rps if mean_rps > 0 else score,
        coverage_90_ratio=float(inside[known].mean()) if known.any() else math.nan,
        learnt=learnt,
        capacity_rps=capacity,
        interval_90_rps=interval,
    )


def _replicas(rates: Floats, replica_rps: float) -> Floats:
    replicas: Floats = np.maximum(np.ceil(rates / replica_rps - _SLACK), 1.0)
    return replicas


def _violated(outcomes: Floats, replicas: Floats, replica_rps: float) -> NDArray[np.bool_]:
    violated: NDArray[np.bool_] = outcomes > replicas * replica_rps * (1 + _SLACK)
    return violated


def _played(learnt: Followed, origins: NDArray[np.int64]) -> tuple[tuple[str, float], ...]:
    names = [REACTIVE if learnt.standing_in[o] else ENTRANTS[int(learnt.played[o])].name for o in origins]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return tuple(
        (name, count / len(names)) for name, count in sorted(counts.items(), key=lambda item: -item[1])
    )


def _last_fallback(learnt: Followed, origins: NDArray[np.int64]) -> str | None:
    stood_in = origins[learnt.standing_in[origins] != 0]
    return why_reactive(learnt, int(stood_in[-1])) if len(stood_in) else None


def _hindsight(
    sound: RateWindows, judged: NDArray[np.int64], *, late: int, most_violated: int, replica_rps: float
) -> tuple[HindsightRule, ...]:
    """Return each simple rule at its cheapest margin with no more violations, cheapest first.

    Each sees the record as it is and without the half-recorded windows after gaps, whichever suits it better.
    """
    outcomes, margins = sound.rate_rps[judged], margin_grid()
    hours = sound.window_s / 3600
    back = _DAY_S / sound.window_s
    best: dict[str, HindsightRule] = {}
    for rates in (sound.rate_rps, without_partial_windows(sound.rate_rps)):
        carried = carried_forward(rates)
        bases = {
            "last value" if k == 1 else f"max of last {k}": peaks_of(carried, k)[judged - late]
            for k in PEAK_GRID
        }
        if abs(back - round(back)) < 1e-6 and late <= round(back) <= judged[0]:
            bases["same time yesterday"] = carried[judged - round(back)]
        for name, base in bases.items():
            replicas = _replicas(base[None, :] * margins[:, None], replica_rps)
            violated = _violated(outcomes, replicas, replica_rps).sum(axis=1)
            cost = np.where(violated <= most_violated, replicas.sum(axis=1) * hours, np.inf)
            row = int(cost.argmin())
            if cost[row] < (best[name].replica_hours if name in best else math.inf):
                best[name] = HindsightRule(
                    name=name,
                    margin_ratio=float(margins[row]),
                    violation_ratio=float(violated[row]) / len(judged),
                    replica_hours=float(cost[row]),
                )
    return tuple(sorted(best.values(), key=lambda rule: (rule.replica_hours, rule.name)))
