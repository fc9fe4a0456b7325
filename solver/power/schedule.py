"""Budgets that follow the clock, and ramps that a training row may take.

It exists for the two ways in which a limit is a series instead of a number: a budget by time of day and by events of
the grid (demand response: a factor with a deadline), and the watts per second by which a row may rise or fall. It
knows no time of its own: whoever asks says what time it is, in the zone that the schedule is meant in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError, Place

Floats = npt.NDArray[np.float64]

_CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
_FARTHEST_DAYS = 8 * 366 + 1
"""29 February comes at least every eight years."""


@dataclass(frozen=True, kw_only=True)
class TimedFactor:
    """From each time that a cron line names, the budget is scaled by this, until the next line's time."""

    cron: str
    """minute hour day-of-month month day-of-week; numbers, ``*``, lists, ranges, steps; Sunday is 0 or 7."""
    factor: float

    def __post_init__(self) -> None:
        """Refuse what is no cron line or no factor, and times that never come."""
        _refuse_factor(self.factor, f"schedule {self.cron!r}")
        parts = self.cron.split()
        if len(parts) != len(_CRON_FIELDS):
            raise InputError(
                f"{len(parts)} fields",
                where=Place("schedule", field=repr(self.cron)),
                right="give minute, hour, day of month, month, day of week",
            )
        sets = self._sets
        longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
        if not sets[4] and not any(day <= longest.get(month, 31) for month in sets[3] for day in sets[2]):
            raise InputError(
                "a day that no such month has",
                where=Place("schedule", field=repr(self.cron)),
                right="give a day that comes",
            )

    @cached_property
    def _sets(self) -> tuple[frozenset[int], ...]:
        """Allowed values by field; days of the week empty where only days of the month count, and the reverse."""
        parts = self.cron.split()
        sets = [
            _cron_field(text, name, low, high, self.cron)
            for text, (name, low, high) in zip(parts, _CRON_FIELDS, strict=True)
        ]
        week = frozenset(day % 7 for day in sets[4])
        # Cron's rule: with both days told, either is enough; with one told, the other does not count.
        month = sets[2]
        if parts[4].startswith("*"):
            week = frozenset()
        elif parts[2].startswith("*"):
            month = frozenset()
        return (sets[0], sets[1], month, sets[3], week)

    def _days(self, day: datetime, step: int) -> Iterator[datetime]:
        _, _, month_days, months, week_days = self._sets
        for count in range(_FARTHEST_DAYS):
            when = day + timedelta(days=step * count)
            if when.month in months and (when.day in month_days or (when.weekday() + 1) % 7 in week_days):
                yield when

    def last(self, now: datetime) -> datetime:
        """Return the latest time of the line at or before ``now``."""
        now = now.replace(second=0, microsecond=0)
        for day in self._days(now.replace(hour=0, minute=0), -1):
            for hour in sorted(self._sets[1], reverse=True):
                for minute in sorted(self._sets[0], reverse=True):
                    when = day.replace(hour=hour, minute=minute)
                    if when <= now:
                        return when
        raise AssertionError(self.cron)

    def next(self, now: datetime) -> datetime:
        """Return the earliest time of the line after ``now``."""
        for day in self._days(now.replace(hour=0, minute=0, second=0, microsecond=0), 1):
            for hour in sorted(self._sets[1]):
                for minute in sorted(self._sets[0]):
                    when = day.replace(hour=hour, minute=minute)
                    if when > now:
                        return when
        raise AssertionError(self.cron)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandResponse:
    """An event of the grid: from the deadline to its end, the budget is scaled by a factor."""

    name: str
    factor: float
    deadline: datetime
    """The draw must be below the scaled budget from here."""
    until: datetime

    def __post_init__(self) -> None:
        """Refuse what is no factor, and an end before the deadline."""
        _refuse_factor(self.factor, self.name)
        if (self.deadline.tzinfo is None) != (self.until.tzinfo is None) or self.until <= self.deadline:
            raise InputError(
                f"from {self.deadline.isoformat()} until {self.until.isoformat()}",
                where=self.name,
                right="it must end after its deadline, both with a time zone or both without",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the budget is now, and what comes."""

    factor: float
    """To keep now; lower ones that start within the lead count already."""
    changes_at: datetime | None
    """When the schedule changes next; None if it never does."""
    next_factor: float | None
    reason: str
    """Line or event that sets ``factor``; empty where none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSchedule:
    """Cron lines and events of a domain. The last line that came due holds; events only lower it."""

    lines: tuple[TimedFactor, ...] = ()
    events: tuple[DemandResponse, ...] = field(default=())

    def at(self, now: datetime) -> tuple[float, str]:
        """Return the factor that is due at a time, and why."""
        factor, reason = 1.0, ""
        if self.lines:
            # Of two lines due at once, the lower factor.
            line = max(self.lines, key=lambda line: (line.last(now), -line.factor))
            factor, reason = line.factor, line.cron
        for event in self.events:
            if event.deadline <= now < event.until and event.factor < factor:
                factor, reason = event.factor, event.name
        return factor, reason

    def demand(self, now: datetime, *, lead_s: float = 0.0) -> Demand:
        """Return what to keep now.

        Parameters
        ----------
        lead_s
            How long orders take: a budget that falls within this time is kept already, so that the draw is below it
            at the deadline. A budget that rises is used only when it is due.
        """
        if not 0.0 <= lead_s <= 86_400.0:
            raise InputError(f"{lead_s:g} s", where="lead_s", right="it must be 0 to 86400")
        factor, reason = self.at(now)
        end = now + timedelta(seconds=lead_s)
        when = now
        while (due := self._next(when)) is not None and due <= end:
            when = due
            coming, why = self.at(when)
            if coming < factor:
                factor, reason = coming, why
        changes_at = self._next(now)
        return Demand(
            factor=factor,
            changes_at=changes_at,
            next_factor=None if changes_at is None else self.at(changes_at)[0],
            reason=reason,
        )

    def _next(self, now: datetime) -> datetime | None:
        """Return the next time at which anything may change."""
        times = [line.next(now) for line in self.lines]
        times += [when for event in self.events for when in (event.deadline, event.until) if when > now]
        return min(times, default=None)


def _refuse_factor(factor: float, where: str) -> None:
    if not 0.0 < factor <= 1.0:
        raise InputError(f"a factor of {factor:g}", where=where, right="it must be above 0 and at most 1")


def _cron_field(text: str, name: str, low: int, high: int, cron: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            start, end = (low, high) if span == "*" else (int(first), int(last if dash else first))
            if slash and not dash and span != "*":
                end = high
            step = int(step_text) if slash else 1
        except ValueError:
            start, end, step = 0, -1, 1
        if not (low <= start <= end <= high and step >= 1) or not part.isascii():
            raise InputError(
                f"{part!r:.40} is no {name}",
                where=Place("schedule", field=repr(cron)),
                right=f"{low} to {high}, *, ranges like {low}-{high}, steps like */5",
            )
        found.update(range(start, end + 1, step))
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class RampLimit:
    """How fast a row may rise and fall, and between what."""

    rise_w_per_s: float
    fall_w_per_s: float
    floor_w: float = 0.0
    """Held up by a secondary load once the row runs; 0: none."""
    ceiling_w: float = math.inf

    def __post_init__(self) -> None:
        """Refuse ramps that are none, and a floor above the ceiling."""
        for name in ("rise_w_per_s", "fall_w_per_s"):
            if not getattr(self, name) > 0.0:
                raise InputError(f"{getattr(self, name):g} W/s", where=name, right="it must be above 0")
        if not (0.0 <= self.floor_w <= self.ceiling_w and math.isfinite(self.floor_w)):
            raise InputError(
                f"{self.floor_w:g} to {self.ceiling_w:g} W",
                where="floor_w",
                right="0 <= floor_w <= ceiling_w",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ramped:
    """A series under ramp limits; all by sample."""

    cap_w: Floats
    """Set-point: the most that the row may draw for its work."""
    drawn_w: Floats
    """What the grid sees: work below the cap, and the secondary load."""
    secondary_w: Floats
    """Load that is burnt so that the draw does not fall faster (or below the floor)."""
    period_s: float

    @property
    def secondary_j(self) -> float:
        """Energy that is burnt."""
        return float(self.secondary_w.sum() * self.period_s)


def ramp_set_points(
    wanted_w: Floats, period_s: float, limit: RampLimit, *, before_w: float | None = None
) -> Ramped:
    """Return the set-points that keep a training row within its ramps.

    Each sample depends on those before it only, so that a controller can do the same live. Work above the cap is not
    carried over: a capped step takes longer, which the series does not tell.

    Parameters
    ----------
    wanted_w
        What the row draws when nobody limits it, [T].
    before_w
        Draw before the first sample; None: the first sample's.

    Raises
    ------
    InputError
        For a series that is empty or holds what is no power.
    """
    wanted = np.asarray(wanted_w, dtype=np.float64)
    if wanted.ndim != 1 or not wanted.size or not (np.isfinite(wanted).all() and (wanted >= 0.0).all()):
        raise InputError(
            "no series of powers", where="wanted_w", right="give watts of 0 and more, one per sample"
        )
    if not 0.0 < period_s < math.inf:
        raise InputError(f"{period_s:g} s", where="period_s", right="it must be above 0")
    rise, fall = limit.rise_w_per_s * period_s, limit.fall_w_per_s * period_s
    drawn = wanted[0] if before_w is None else before_w
    drawn = min(max(float(drawn), limit.floor_w), limit.ceiling_w)
    caps, draws = [], []
    for want in wanted.tolist():
        cap = min(drawn + rise, limit.ceiling_w)
        drawn = max(min(want, cap), drawn - fall, limit.floor_w)
        caps.append(cap)
        draws.append(drawn)
    cap_w, drawn_w = np.array(caps), np.array(draws)
    return Ramped(
        cap_w=cap_w,
        drawn_w=drawn_w,
        secondary_w=np.maximum(drawn_w - np.minimum(wanted, cap_w), 0.0),
        period_s=period_s,
    )


def largest_swing_w(power_w: Floats, period_s: float, within_s: float) -> float:
    """Return the largest change between any two samples that lie at most ``within_s`` apart."""
    span = min(max(round(within_s / period_s), 1), power_w.size - 1)
    if span < 1:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(power_w, span + 1)
    return float((windows.max(axis=1) - windows.min(axis=1)).max())


def band_ratio(power_w: Floats, period_s: float, low_hz: float, high_hz: float) -> float:
    """Return the share of the variance that lies in a band of frequencies: what a grid's specification limits.

    Source: arXiv 2508.14318 (specifications in the frequency domain).
    """
    varying = power_w - power_w.mean()
    power = np.abs(np.fft.rfft(varying)) ** 2
    frequency = np.fft.rfftfreq(power_w.size, period_s)
    total = float(power[1:].sum())
    inside = (frequency >= low_hz) & (frequency <= high_hz)
    inside[0] = False
    return float(power[inside].sum()) / total if total > 0.0 else 0.0
