"""Which clocks can be in force: orders under way, what agents read back, and who does not answer.

It exists so that the worst case of a row is never assumed better than it is: an order counts when it is read back,
until then both its clock and the old one do, and a server that does not answer counts at its largest clock. It decides
no clock and sends nothing.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.power import Clocks, PowerRow

Flags = npt.NDArray[np.bool_]

GPU_LOST = 15
"""NVML's code for a device that fell off the bus."""
MISMATCH = -1
"""An agent's verdict: set calls succeed, the old value reads back."""
_MISMATCH_AFTER_S = 30.0
_MISMATCH_TRIES = 3
_RETRY_S = 8.0
_ASK_AGAIN_S = 10.0
_LATE_FOR_S = 60.0
"""Orders that were late once are expected to be for so long."""
_KEPT_GENERATIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """What the agents say now, by server. Arrays are not to be written to and not to be kept."""

    applied_mhz: Clocks
    """As read back."""
    acknowledged: npt.NDArray[np.int64]
    """Generation of the last order that was carried out."""
    failed: npt.NDArray[np.int64]
    """NVML's code of the last set call, 0 when it went well, `MISMATCH` when the old value reads back."""
    lease_valid: Flags


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOrder:
    """An order to some servers."""

    generation: int
    given_s: float
    to: Flags
    mhz: Clocks


class Actuation:
    """Orders and answers of one row."""

    def __init__(self, row: PowerRow, *, applied: Clocks | None = None, generation: int = 0) -> None:
        servers = row.servers
        self._row = row
        self.ordered_mhz: Clocks = np.full(servers, row.server.max_mhz, dtype=np.int64)
        """What each server should run at."""
        if applied is not None:
            self.ordered_mhz = applied.copy()
        self.generation = generation
        self._expected = np.full(servers, -1, dtype=np.int64)  # generation that a server has to acknowledge
        self._silent_since_s = np.zeros(servers)
        self._sent_s = np.full(servers, -np.inf)
        self._tries = np.zeros(servers, dtype=np.int64)
        self._under_way: deque[ClockOrder] = deque()
        self._late_until_s = -1.0
        self._asked_all_s = -np.inf
        self._acknowledged = np.zeros(servers, dtype=np.int64)  # as seen when last something was open
        self._given_s: dict[int, float] = {}  # by generation, the last ones
        self.silent: Flags = np.zeros(servers, dtype=np.bool_)
        """Servers that did not carry out their order in time."""
        self.silent_servers = 0
        """How many."""
        self.failing_servers = 0
        """Servers whose last set call did not go well."""
        self._astray: Flags = np.zeros(servers, dtype=np.bool_)
        self.behind: Flags = np.zeros(servers, dtype=np.bool_)
        """Servers that run below their order and are not on their way: a lease ran out, somebody lowered them."""
        self.latency_s = row.clock_latency_s
        """What orders take, as last seen."""
        self.trouble: str | None = None
        """ActuatorLate, ActuatorMismatch or None."""
        self._all_well = True
        self._settled = False  # nothing is under way, and all run where they were told to

    def read(self, reports: Reports, now_s: float) -> None:
        """Compare what agents say with what they were told."""
        acknowledged, applied = reports.acknowledged, reports.applied_mhz
        pending = acknowledged < self._expected
        self.failing_servers = int(np.count_nonzero(reports.failed))
        self._settled = False
        if not np.count_nonzero(pending):
            self._under_way.clear()
            if (
                self._all_well
                and not self.failing_servers
                and not np.count_nonzero(applied != self.ordered_mhz)
            ):
                self._settled = True
                if now_s > self._late_until_s:
                    self.latency_s = self._row.clock_latency_s
                return
        failing = reports.failed != 0
        overdue = self._overdue(acknowledged, pending, now_s)
        # Told and carried out, and yet elsewhere: a lock that was lost, or somebody else's hand.
        self._astray = (applied != self.ordered_mhz) & ~pending
        high = self._astray & (applied > self.ordered_mhz)
        silent = overdue | high | failing
        self._silent_since_s[silent & ~self.silent] = now_s
        self._tries[~silent] = 0
        self.silent = silent
        self.silent_servers = int(np.count_nonzero(silent))
        gone = reports.failed == GPU_LOST
        long_ago = (self._tries >= _MISMATCH_TRIES) & (now_s - self._silent_since_s > _MISMATCH_AFTER_S)
        mismatch = (failing | high | (overdue & long_ago)) & ~gone
        self.trouble = None
        if mismatch.any():
            self.trouble = "ActuatorMismatch"
        elif (overdue & ~gone).any():
            self.trouble = "ActuatorLate"
        self.behind = (applied < self.ordered_mhz) & (silent | ~pending)
        self._all_well = not (self.silent_servers or np.count_nonzero(self._astray))

    def _overdue(self, acknowledged: Clocks, pending: Flags, now_s: float) -> Flags:
        """Return who has not carried out an order in its time; learn how long orders take from those that did late."""
        overdue: Flags = self.silent & pending
        for generation in np.unique(acknowledged[self.silent & (acknowledged > self._acknowledged)]).tolist():
            took_s = now_s - self._given_s.get(generation, now_s)
            if took_s > self._row.clock_latency_s:
                self.latency_s = max(took_s, self.latency_s)
                self._late_until_s = now_s + _LATE_FOR_S
        self._acknowledged = acknowledged.copy()
        latency_s = self._row.clock_latency_s
        kept: deque[ClockOrder] = deque()
        for order in self._under_way:
            open_at = order.to & (acknowledged < order.generation)
            age_s = now_s - order.given_s
            if age_s > latency_s + 1e-9:
                overdue |= open_at
                if not (open_at & ~self.silent).any():
                    continue  # who has not answered this one counts at its largest clock from here on
            kept.append(order)
        self._under_way = kept
        return overdue

    def worst_mhz(self, reports: Reports) -> Clocks:
        """Return by server the highest clock that is in force or under way. Not to be written to."""
        if self._settled:
            return self.ordered_mhz
        worst: Clocks = np.maximum(reports.applied_mhz, self.ordered_mhz)
        for order in self._under_way:
            np.maximum(worst, np.where(order.to, order.mhz, 0), out=worst)
        if not self._all_well:
            worst[self.silent] = self._row.server.max_mhz
        return worst

    def order(self, wanted: Clocks, now_s: float) -> ClockOrder | None:
        """Return what has to be sent so that servers come to ``wanted``; None: nothing.

        Changes, orders that came to nothing, and now and then all of them.
        """
        to = wanted != self.ordered_mhz
        if now_s - self._asked_all_s >= _ASK_AGAIN_S:
            # The same again: whoever does not answer is known before it matters.
            to[:] = True
            self._asked_all_s = now_s
        if not self._all_well:
            wait_s = np.where(self._tries < _MISMATCH_TRIES, self._row.sample_s, _RETRY_S)
            to |= (self.silent | self._astray) & (now_s - self._sent_s >= wait_s)
        if not np.count_nonzero(to):
            return None
        self.generation += 1
        order = ClockOrder(generation=self.generation, given_s=now_s, to=to, mhz=wanted.copy())
        self._tries[to] += 1
        self._sent_s[to] = now_s
        self._expected[to] = self.generation
        self.ordered_mhz = order.mhz
        self._settled = False
        self._under_way.append(order)
        self._given_s[self.generation] = now_s
        if len(self._given_s) > _KEPT_GENERATIONS:
            del self._given_s[next(iter(self._given_s))]
        return order
