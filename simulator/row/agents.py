"""The node agents of a row in virtual time: orders arrive, clocks change or do not, leases run out.

It exists so that faults of actuators have somewhere to happen. What agents may do is decided by the node agent's own
rules (`solver.power.agent_core`), here for all servers at once. An agent without a lease reacts a second later.
"""

import numpy as np
import numpy.typing as npt

from solver.domain.power import Clocks, PowerRow
from solver.power.actuation import GPU_LOST, MISMATCH, ClockOrder, Reports
from solver.power.agent_core import LEASE_S, goes_safe, obeys

Flags = npt.NDArray[np.bool_]

REACTION_S = 1
"""From the end of a lease, or a start without one, to the safe clock."""
DRIVER_RELOADED = 9


class RowAgents:
    """All agents of a row, as columns by server."""

    def __init__(self, row: PowerRow) -> None:
        servers = row.servers
        top = row.server.max_mhz
        self.applied_mhz: Clocks = np.full(servers, top, dtype=np.int64)
        self._acknowledged = np.zeros(servers, dtype=np.int64)
        self._failed = np.zeros(servers, dtype=np.int64)
        self._lease_until_s = np.full(servers, float(LEASE_S))
        safe = row.server.safe_mhz(servers, row.budget_w)
        self.safe_mhz = np.full(servers, row.server.min_mhz if safe is None else safe, dtype=np.int64)
        """What each goes to without a lease, as last told."""
        self.alive: Flags = np.ones(servers, dtype=np.bool_)
        self.deaf: Flags = np.zeros(servers, dtype=np.bool_)
        """Orders do not reach them."""
        self.lying: Flags = np.zeros(servers, dtype=np.bool_)
        """Set calls report success and change nothing."""
        self.lost: Flags = np.zeros(servers, dtype=np.bool_)
        """A GPU is gone."""
        self._reloaded: Flags = np.zeros(servers, dtype=np.bool_)
        self._safe_at_s = np.full(servers, np.inf)
        self._expired: Flags = np.zeros(servers, dtype=np.bool_)

    def reports(self, now_s: float) -> Reports:
        """Return what they say. The columns are theirs and change with them: read them now."""
        failed = self._failed
        if np.count_nonzero(self.lost):
            failed = np.where(self.lost, GPU_LOST, failed)
        return Reports(
            applied_mhz=self.applied_mhz,
            acknowledged=self._acknowledged,
            failed=failed,
            lease_valid=self._lease_until_s > now_s,
        )

    def renew(self, now_s: float, safe_mhz: int | None) -> None:
        """Renew the leases of those that live; ``safe_mhz`` comes with it."""
        self._lease_until_s[self.alive] = now_s + LEASE_S
        if safe_mhz is not None:
            self.safe_mhz[self.alive] = safe_mhz

    def carry_out(self, order: ClockOrder, now_s: float, lost_on_the_way: Flags | None = None) -> bool:
        """Let an order act that has arrived; returns whether any clock changed."""
        # What is refused is not acknowledged: an older generation, and a raise without a lease.
        to = order.to & self.alive & ~self.deaf
        to &= obeys(
            generation=order.generation,
            newest=self._acknowledged,
            lease_until_s=self._lease_until_s,
            now_s=now_s,
            wanted=order.mhz,
            in_force=self.applied_mhz,
        )
        if lost_on_the_way is not None:
            to &= ~lost_on_the_way
        failing = to & self._reloaded
        if failing.any():
            self._reloaded[failing] = False
            self._failed[failing] = DRIVER_RELOADED
            to &= ~failing
        unmoved = to & (self.lying | self.lost)
        differs = unmoved & (order.mhz != self.applied_mhz)
        self._acknowledged[to] = order.generation
        self._failed[to] = 0
        self._failed[differs & self.lying] = MISMATCH
        to &= ~unmoved
        changed = bool((self.applied_mhz[to] != order.mhz[to]).any())
        self.applied_mhz[to] = order.mhz[to]
        return changed

    def watch_leases(self, now_s: float) -> tuple[bool, bool]:
        """Let those without a lease go to their safe clock; returns whether clocks changed and leases ended."""
        expired = self.alive & (self._lease_until_s <= now_s)
        new = expired & ~self._expired
        self._safe_at_s[new] = now_s + REACTION_S
        self._safe_at_s[~expired] = np.inf
        self._expired = expired
        above = goes_safe(
            lease_until_s=self._lease_until_s, now_s=now_s, in_force=self.applied_mhz, safe=self.safe_mhz
        )
        due = expired & above & (self._safe_at_s <= now_s) & ~self.lying & ~self.lost
        if due.any():
            self.applied_mhz[due] = self.safe_mhz[due]
            return True, bool(new.any())
        return False, bool(new.any())

    def restart(self, servers: Flags) -> None:
        """Start agents again: with their journal, without a lease."""
        self.alive[servers] = True
        self._lease_until_s[servers] = -np.inf
        self._expired[servers] = False

    def reload_driver(self, servers: Flags, top_mhz: int) -> None:
        """Lose the clock locks of servers; their next set call fails."""
        self.applied_mhz[servers] = top_mhz
        self._reloaded[servers] = True
        self._failed[servers] = DRIVER_RELOADED  # telemetry fails as well: seen at once

    def safe_by_s(self, now_s: float) -> float:
        """Return the seconds until all that live have reached their safe clock if nobody renews."""
        if not self.alive.any():
            return 0.0
        return max(float(self._lease_until_s[self.alive].max()) - now_s, 0.0) + 2.0 * REACTION_S

    def standing_mhz(self) -> Clocks:
        """Return the clocks once all leases have run out."""
        stuck = ~self.alive | self.lying | self.lost
        return np.where(stuck, self.applied_mhz, np.minimum(self.applied_mhz, self.safe_mhz))
