"""How many servers a power budget holds, without capping and with it (power.md §6, "Admission").

It exists as the answer of ``ballast plan power``. Without capping the risk is read off the upper tail of the recorded
minutes; with capping the same tail is taken at the floors of the clocks, and the breaker must survive the worst jump.
It simulates nothing: what capping does to latency is the simulator's to say.

Symbols: u = draw / budget, m the largest u of a minute, r the risk in expected minutes per year with m > 1, R the
seconds until an order answers a jump, θ, K, τ of the breaker.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError
from solver.domain.power import (
    BREAKER_CURVES,
    DEFAULT_CURVE,
    REFERENCE_SERVER,
    BreakerCurve,
    Priority,
    ServerPowerModel,
    reference_priorities,
)
from solver.domain.power_trace import RowPowerTrace, ServerPowerTrace
from solver.power.breaker import worst_theta
from solver.power.tails import MINUTES_PER_YEAR, Tails

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Binding = Literal["risk at the floors", "breaker", "servers in the trace"]

PEAK_PER_LOG_PERIOD = 0.0217
"""How far a 2 s peak lies above a mean over a longer period, per ln(period / 2 s): fitted to the reference row."""
TELEMETRY_PERIOD_S = 2.0
STRETCH_RATIO = 1.03
"""Draw above idle that capping adds by stretching work: 1.02 to 1.03 in the simulation."""
START_THETA = 1.0
"""The breaker stands at full load when the worst jump comes."""
RESAMPLES = 200
MOST_SERVERS = 1_000_000
MINUTES_PER_DAY = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionQuestion:
    """What a domain allows, and how it is capped."""

    budget_w: float
    risk_minutes_per_year: float = 1.0
    curve: BreakerCurve = BREAKER_CURVES[DEFAULT_CURVE]
    server: ServerPowerModel = REFERENCE_SERVER
    low_floor_mhz: int = 1110
    high_floor_mhz: int = 1305
    priorities: tuple[Priority, ...] = ()
    """By server in the order of the recording; those beyond are low where even, high where odd."""
    recourse_s: float = 8.0
    """R."""
    warm_up_s: float = 0.0
    """Left out at the start of the recording."""
    seed: int = 0
    """Of the resampling."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and a budget that one idle server exceeds."""
        if not 0.0 < self.budget_w < math.inf:
            raise InputError(f"{self.budget_w:g} W", where="budget_w", right="it must be above 0")
        if self.budget_w < self.server.idle_w:
            raise InputError(
                f"{self.budget_w:g} W is below what one idle server draws ({self.server.idle_w:.0f} W)",
                where="budget_w",
                right="give a larger budget",
            )
        if not 0.0 < self.risk_minutes_per_year <= MINUTES_PER_YEAR:
            raise InputError(
                f"{self.risk_minutes_per_year:g} minutes per year",
                where="risk",
                right=f"it must be above 0 and at most {MINUTES_PER_YEAR:g}",
            )
        for name in ("low_floor_mhz", "high_floor_mhz"):
            mhz = getattr(self, name)
            if not self.server.min_mhz <= mhz <= self.server.max_mhz:
                raise InputError(
                    f"{mhz} MHz",
                    where=name,
                    right=f"it must be {self.server.min_mhz} to {self.server.max_mhz}",
                )
        for name in ("recourse_s", "warm_up_s"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise InputError(f"{value:g} s", where=name, right="it must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TailFit:
    """A second opinion: the same with a generalised Pareto. No answer: on the reference row it allows too many."""

    shape: float | None
    """ξ at the admitted number; above 0 the exponential tail is not on the safe side. None where nothing fits."""
    shape_interval_90: tuple[float, float] | None
    servers: int
    interval_90: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The largest N that the risk allows."""

    servers: int
    risk_minutes_per_year: float
    """At ``servers``; 0 where that is 0."""
    next_risk_minutes_per_year: float | None
    """With one server more; None where the recording has no more."""
    interval_90: tuple[int, int] | None
    """5 % and 95 % points of N over resampled hours; None for recordings below two whole hours."""
    pareto: TailFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How many servers a domain holds, and why not more."""

    question: AdmissionQuestion
    trace: str
    minutes: int
    """Full minutes that were judged."""
    peak_allowance_ratio: float
    """c: what the draw is raised by because samples longer than 2 s hide peaks."""
    without: Admitted
    servers_in_trace: int | None
    """Columns of a table per server: no more can be judged; None for a scaled row."""
    at_floors: Admitted | None
    """By the risk alone, everybody at the floor of its priority; None where the trace does not tell priorities."""
    breaker_servers: int
    """By the breaker alone: largest N whose worst jump it survives."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes the answer weaker than it looks, one sentence each."""
        found = []
        if self.minutes < MINUTES_PER_DAY:
            found.append("less than a day is recorded: its busiest hours may be missing")
        shapes = self.without.pareto.shape_interval_90
        if shapes is not None and shapes[0] > 0.0:
            found.append(
                f"the tail is heavier than exponential (shape {shapes[0]:.2f} or more): the risk may be too low"
            )
        if self.breaker_servers < self.without.servers:
            found.append(
                "without capping the breaker is not safe from the worst jump: only capping guarantees that"
            )
        return tuple(found)

    @property
    def servers_with_capping(self) -> int | None:
        """The smaller of what risk and breaker allow; None where the trace does not tell priorities."""
        return None if self.at_floors is None else min(self.at_floors.servers, self.breaker_servers)

    @property
    def binding(self) -> Binding | None:
        """What keeps ``servers_with_capping`` from being larger."""
        if self.at_floors is None:
            return None
        if self.breaker_servers < self.at_floors.servers:
            return "breaker"
        return (
            "servers in the trace"
            if self.at_floors.servers == self.servers_in_trace
            else "risk at the floors"
        )

    @property
    def interval_with_capping(self) -> tuple[int, int] | None:
        """The interval of ``servers_with_capping``; the breaker's bound knows no chance."""
        if self.at_floors is None or self.at_floors.interval_90 is None:
            return None
        low, high = self.at_floors.interval_90
        return min(low, self.breaker_servers), min(high, self.breaker_servers)


def admit_servers(trace: ServerPowerTrace | RowPowerTrace, question: AdmissionQuestion) -> Admission:
    """Answer how many servers like those of the recording a budget holds.

    Raises
    ------
    InputError
        If no full minute is left after the warm-up.
    """
    minutes = _Minutes(trace.t_s, trace.period_s, name=trace.name, warm_up_s=question.warm_up_s)
    allowance = peak_allowance_ratio(trace.period_s)
    unit = (1.0 + allowance) / question.budget_w
    counts = minutes.resampled_hours(question.seed)
    at_floors: Admitted | None = None
    if isinstance(trace, ServerPowerTrace):
        priorities = _priorities(len(trace.servers), question)
        without = _of_servers(trace.server_w.T, minutes, unit, counts, question)
        capped = (
            _at_floor(watts, 1, priority, question)
            for watts, priority in zip(trace.server_w.T, priorities, strict=True)
        )
        at_floors = _of_servers(capped, minutes, unit, counts, question)
    else:
        without = _of_row(trace.row_w / trace.servers, minutes, unit, counts, question)
        if trace.low_w is not None:
            lows = _priorities(trace.servers, question).count(Priority.LOW)
            row_w = _at_floor(trace.low_w, lows, Priority.LOW, question) + _at_floor(
                trace.row_w - trace.low_w, trace.servers - lows, Priority.HIGH, question
            )
            at_floors = _of_row(row_w / trace.servers, minutes, unit, counts, question)
    return Admission(
        question=question,
        trace=trace.name,
        minutes=minutes.count,
        peak_allowance_ratio=allowance,
        without=without,
        servers_in_trace=len(trace.servers) if isinstance(trace, ServerPowerTrace) else None,
        at_floors=at_floors,
        breaker_servers=breaker_servers(question),
    )


def peak_allowance_ratio(period_s: float) -> float:
    """Return c = .0217 ln(period / 2 s), to three decimals (.035 for 10 s); 0 up to 2 s."""
    return round(PEAK_PER_LOG_PERIOD * math.log(max(period_s / TELEMETRY_PERIOD_S, 1.0)), 3)


def breaker_servers(question: AdmissionQuestion) -> int:
    """Return the largest N that survives N Pmax for R seconds from θ = 1.0 and then has a clock that is safe.

    Both grow with N, so that it is found by halving.
    """
    server, budget_w = question.server, question.budget_w

    def holds(servers: int) -> bool:
        worst_ratio = servers * server.worst_w(server.max_mhz) / budget_w
        theta = worst_theta(START_THETA, worst_ratio, question.recourse_s, question.curve)
        return theta < question.curve.trip_theta and server.safe_mhz(servers, budget_w) is not None

    return _largest(holds)


def risk_minutes_per_year(maxima: Floats) -> float:
    """Return the expected minutes per year over budget, from the largest u of each recorded minute.

    With h the value at rank ⌈.95 n⌉, z the share of maxima above h and e their mean excess: 525,600 z
    exp(-(1 - h)/e). The exponential tail lies on the safe side of a fitted generalised Pareto, whose shape is negative
    on the reference row. With h ≥ 1 the minutes over budget are counted instead.
    """
    return float(Tails(maxima).risk()[0])


def _largest(holds: Callable[[int], bool]) -> int:
    """Return the largest N in 0..MOST_SERVERS that holds, where all smaller ones do too."""
    low, high = 0, 1
    while high <= MOST_SERVERS and holds(high):
        low, high = high, 2 * high
    high = min(high, MOST_SERVERS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _priorities(servers: int, question: AdmissionQuestion) -> tuple[Priority, ...]:
    told = question.priorities[:servers]
    return told + reference_priorities(servers)[len(told) :]


def _at_floor(watts: Floats, servers: int, priority: Priority, question: AdmissionQuestion) -> Floats:
    """Replace the draw above idle of so many servers by what is left of it at the floor of their priority."""
    server = question.server
    mhz = question.low_floor_mhz if priority is Priority.LOW else question.high_floor_mhz
    idle_w = servers * server.idle_w
    capped: Floats = idle_w + STRETCH_RATIO * (watts - idle_w) * (mhz / server.max_mhz) ** server.exponent
    return capped


class _Minutes:
    """Which samples make which full minute, and which minutes which whole hour."""

    def __init__(self, t_s: Floats, period_s: float, *, name: str, warm_up_s: float) -> None:
        self.first = int(np.searchsorted(t_s, t_s[0] + warm_up_s - 1e-6))
        after_s = t_s[self.first :]
        self.count = 0
        if after_s.size:
            minute = np.floor((after_s - after_s[0] + 1e-6) / 60.0).astype(np.int64)
            self.count = math.floor((after_s[-1] - after_s[0] + period_s + 1e-6) / 60.0)
            self.starts = np.searchsorted(minute, np.arange(self.count))
            self.end = self.first + int(np.searchsorted(minute, self.count))
        if self.count < 1:
            raise InputError(
                f"{t_s[-1] - t_s[0] + period_s:g} s, of which {warm_up_s:g} s are left out as warm-up",
                where=name,
                right="give at least a minute more, better a week",
            )
        self.hours = self.count // 60

    def maxima(self, draw: Floats) -> Floats:
        """Return the largest sample of each full minute, [minutes]."""
        largest: Floats = np.maximum.reduceat(draw[self.first : self.end], self.starts)
        return largest

    def resampled_hours(self, seed: int) -> Counts | None:
        """Return how often each whole hour is drawn, [resamples, hours]; None below two hours."""
        if self.hours < 2:
            return None
        drawn = np.random.default_rng(seed).integers(0, self.hours, size=(RESAMPLES, self.hours))
        return np.stack([np.bincount(row, minlength=self.hours) for row in drawn])


class _Growing:
    """Servers are added one by one until the risk is too large, in the recording and in every resampling."""

    def __init__(self, most: float, *, resampled: bool) -> None:
        self.most = most
        self.risks = [0.0]
        self.found: int | None = None
        self.drawn = np.zeros(RESAMPLES, dtype=np.int64)
        self.alive = np.full(RESAMPLES, resampled)

    def take(self, risk: Floats, resampled: Floats | None) -> None:
        """Judge one server more."""
        if self.found is None:
            self.risks.append(float(risk[0]))
            if self.risks[-1] > self.most:
                self.found = len(self.risks) - 2
        if resampled is not None:
            self.alive &= resampled <= self.most
            self.drawn[self.alive] += 1

    @property
    def done(self) -> bool:
        """Whether no more servers can change anything."""
        return self.found is not None and not self.alive.any()

    @property
    def servers(self) -> int:
        """The largest number so far."""
        return len(self.risks) - 1 if self.found is None else self.found


def _of_servers(
    server_w: Iterable[Floats],
    minutes: _Minutes,
    unit: float,
    counts: Counts | None,
    question: AdmissionQuestion,
) -> Admitted:
    most = question.risk_minutes_per_year
    straight, curved = (_Growing(most, resampled=counts is not None) for _ in range(2))
    draw: Floats | None = None
    shape, shape_interval = None, None
    for watts in server_w:
        draw = watts.astype(np.float64) if draw is None else draw + watts
        maxima = minutes.maxima(draw) * unit
        tails = Tails(maxima)
        resampled = None if counts is None else Tails(maxima, counts)
        straight.take(tails.risk(), None if resampled is None else resampled.risk())
        curved.take(tails.pareto_risk(), None if resampled is None else resampled.pareto_risk())
        if straight.found is None:
            shape, shape_interval = _shape(tails), _shape_interval(resampled)
        if straight.done and curved.done:
            break
    told = straight.servers
    return Admitted(
        servers=told,
        risk_minutes_per_year=straight.risks[told],
        next_risk_minutes_per_year=None if straight.found is None else straight.risks[told + 1],
        interval_90=None if counts is None else _interval(straight.drawn),
        pareto=TailFit(
            shape=shape,
            shape_interval_90=shape_interval,
            servers=curved.servers,
            interval_90=None if counts is None else _interval(curved.drawn),
        ),
    )


def _of_row(
    server_w: Floats,
    minutes: _Minutes,
    unit: float,
    counts: Counts | None,
    question: AdmissionQuestion,
) -> Admitted:
    """Scale the mean server of a row: the risk grows with N, which is found by halving, in all resamplings at once."""
    most = question.risk_minutes_per_year
    maxima = minutes.maxima(server_w) * unit
    tails = Tails(maxima)
    told = _largest(lambda n: bool(tails.risk(float(n))[0] <= most))
    if told >= MOST_SERVERS:
        raise InputError(
            f"the budget holds {MOST_SERVERS:,} servers and more",
            where="budget_w",
            right="is it in watts, like the power, and the risk small?",
        )
    resampled = None if counts is None else Tails(maxima, counts)
    return Admitted(
        servers=told,
        risk_minutes_per_year=float(tails.risk(float(told))[0]) if told else 0.0,
        next_risk_minutes_per_year=float(tails.risk(told + 1.0)[0]),
        interval_90=None if resampled is None else _interval(_largest_each(resampled.risk, most)),
        pareto=TailFit(
            shape=_shape(tails),
            shape_interval_90=_shape_interval(resampled),
            servers=_largest(lambda n: bool(tails.pareto_risk(float(n))[0] <= most)),
            interval_90=None if resampled is None else _interval(_largest_each(resampled.pareto_risk, most)),
        ),
    )


def _largest_each(risk: Callable[[Floats], Floats], most: float) -> Counts:
    """Return by resampling the largest N whose risk is small enough."""
    low, high = np.zeros(RESAMPLES, dtype=np.int64), np.full(RESAMPLES, MOST_SERVERS + 1)
    while (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 1)
        holds = risk(middle.astype(np.float64)) <= most
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return low


def _interval(servers: Counts) -> tuple[int, int]:
    low, high = np.percentile(servers, [5, 95], method="inverted_cdf")
    return int(low), int(high)


def _shape(tails: Tails) -> float | None:
    shape = float(tails.pareto[0][0])
    return None if math.isnan(shape) else shape


def _shape_interval(resampled: Tails | None) -> tuple[float, float] | None:
    if resampled is None:
        return None
    shapes = resampled.pareto[0]
    shapes = shapes[np.isfinite(shapes)]
    if shapes.size < RESAMPLES // 2:
        return None
    low, high = np.percentile(shapes, [5, 95])
    return float(low), float(high)
