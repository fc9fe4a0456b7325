"""What is to come of a service's traffic: its rate history in windows, and the rate that plans should be made for.

It exists so that the operator plans with the forecast that `ballast forecast` shows and the simulated loop uses
(`solver.forecast.capacity`). The history is what the leader itself has sampled, before that what the database has, if
there is one. It never asks the clock and never waits: the database is read by a thread of its own, and until it has
answered, or where it does not, the service's own samples must do. It decides no replicas.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from controller.resources.model_service import ForecastSpec
from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.forecast.capacity import CapacityRate, capacity_rate, planned_rate
from solver.forecast.follow import Followed

MOST_WINDOWS = 2016
"""Windows that are remembered: two weeks of ten minutes."""
WINDOWS_S = (600, 300, 120, 60)
"""Lengths of windows, longest first: levels of the database fit into each."""
HORIZON_WINDOWS = 2
"""A horizon should be so many windows: the present one is not over, and cannot be learnt from."""
AGAIN_S = 600.0
"""After which a database that failed is asked again."""

PastRates = Sequence[tuple[float, float]]
"""Start of a window, in seconds since 1970, and its rate."""
Reader = Callable[[str, int, float, float], "Future[PastRates]"]
"""Service, seconds of a window, from when, until when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What a forecast said of a service."""

    rate_rps: float
    """To plan for."""
    rule: str
    """Of `solver.forecast.rules`; "largest sample" while none can be used."""
    level_ratio: float
    """Quantile of the rule's past errors."""
    horizon_s: float
    violations: float
    fallback: str = ""
    """Why plans are made for the largest rate of late instead; empty if they are not."""
    reason: str = "Forecasting"
    """For the condition."""
    note: str = ""
    """What was wrong with the database, if anything."""


def window_of(horizon_s: float) -> int:
    """Return the length of the windows that a horizon is seen in, in seconds."""
    return next((w for w in WINDOWS_S if w * HORIZON_WINDOWS <= horizon_s), WINDOWS_S[-1])


@dataclass(slots=True, kw_only=True)
class Outlook:
    """The rates of one service and what they foretell. Not for use by several threads at once."""

    service: str
    spec: ForecastSpec
    read: Reader | None = None
    """Of the database; None without one."""
    _first: int | None = None
    """Number of the first window, counted from 1970."""
    _rates: list[float] = field(default_factory=list)
    """Of whole windows, NaN where nothing was sampled."""
    _sum: float = 0.0
    _count: int = 0
    _asked: "Future[PastRates] | None" = None
    _asked_s: float = float("-inf")
    _read_until: int | None = None
    """Windows before it came from the database, or never will."""
    _learnt: Followed | None = None
    _capacity: CapacityRate | None = None
    _stale: bool = True
    _note: str = ""

    @property
    def window_s(self) -> int:
        """Seconds of a window."""
        return window_of(self.spec.horizon_s)

    def add(self, rate_rps: float, now_s: float) -> None:
        """Take a sample; ``now_s`` is in seconds since 1970."""
        number = int(now_s // self.window_s)
        if self._first is None:
            self._first = number
        present = self._first + len(self._rates)
        if number < present:  # the clock was set back: what is written stays
            return
        if number > present:
            self._rates.append(self._sum / self._count if self._count else float("nan"))
            self._rates.extend([float("nan")] * min(number - present - 1, MOST_WINDOWS))
            self._first = number - len(self._rates)
            self._sum, self._count, self._stale = 0.0, 0, True
            self._forget()
        self._sum += rate_rps
        self._count += 1
        self._look_back(now_s)

    def foreseen(self, reactive_rps: float) -> Foreseen:
        """Return what to plan for; ``reactive_rps`` is the largest rate of the stabilisation window."""
        if self._stale:
            self._stale = False
            self._capacity = self._forecast()
        capacity, spec = self._capacity, self.spec
        if capacity is None or capacity.fallback is not None:
            why = "no whole window is known yet" if capacity is None else capacity.fallback or ""
            return Foreseen(
                rate_rps=reactive_rps,
                rule="largest sample",
                level_ratio=1 - spec.violation_probability,
                horizon_s=spec.horizon_s,
                violations=spec.violation_probability,
                fallback=why,
                reason="TooManyViolations" if "failed too often" in why else "ShortHistory",
                note=self._note,
            )
        return Foreseen(
            rate_rps=planned_rate(reactive_rps, capacity),
            rule=capacity.rule,
            level_ratio=float(f"{capacity.level_ratio:.4g}"),
            horizon_s=spec.horizon_s,
            violations=spec.violation_probability,
            note=self._note,
        )

    def _forecast(self) -> CapacityRate | None:
        if self._first is None or not self._rates or np.isnan(self._rates).all():
            return None
        history = RateWindows(
            name=self.service,
            start_s=float(self._first * self.window_s),
            window_s=float(self.window_s),
            rate_rps=np.array(self._rates),
        )
        # The answer stands until the present window is over: it must carry that much more.
        ahead_s = self.spec.horizon_s + self.window_s
        found = capacity_rate(
            history,
            lead_s=ahead_s,
            hold_s=ahead_s,
            violations=self.spec.violation_probability,
            earlier=self._learnt,
        )
        self._learnt = found.learnt
        return found

    def _forget(self) -> None:
        """Drop the oldest windows, and those before the first that was recorded."""
        more = max(0, len(self._rates) - MOST_WINDOWS)
        while more < len(self._rates) and np.isnan(self._rates[more]):
            more += 1
        if more and self._first is not None:
            del self._rates[:more]
            self._first += more

    def _look_back(self, now_s: float) -> None:
        """Ask the database for what was before the first sample, and take its answer when it has come."""
        if self.read is None or self._first is None:
            return
        if self._asked is None:
            if self._read_until is None and now_s - self._asked_s >= AGAIN_S:
                self._asked_s = now_s
                until_s = float((self._first + len(self._rates)) * self.window_s)
                since_s = until_s - MOST_WINDOWS * self.window_s
                self._asked = self.read(self.service, self.window_s, since_s, until_s)
            return
        if not self._asked.done():
            return
        asked, self._asked = self._asked, None
        try:
            past = asked.result()
        except InputError as error:
            self._note = f"history: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
            self._note = f"history: {error}"
        else:
            self._note = ""
            self._read_until = self._first
            self._put_before(past)

    def _put_before(self, past: PastRates) -> None:
        """Fill what is not known, at the front and in gaps."""
        if self._first is None:
            return
        known = {int(start_s // self.window_s): rate for start_s, rate in past}
        present = self._first + len(self._rates)
        oldest = min([number for number in known if number >= present - MOST_WINDOWS], default=self._first)
        first = min(self._first, oldest)
        rates = [known.get(number, float("nan")) for number in range(first, present)]
        for row, rate in enumerate(self._rates):
            if not np.isnan(rate):
                rates[self._first - first + row] = rate
        self._first, self._rates, self._stale = first, rates, True
        self._forget()
