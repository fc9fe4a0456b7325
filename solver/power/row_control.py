"""The controller of one row, as a pure core: samples and reports in, orders, brake, lease renewals and conditions out.

It exists so that the simulator and the cluster's controller are the same controller. It has no clock of its own, sends
nothing, and leaves how to run close to the budget to a policy. What it adds to every policy: telemetry is vetted, what
does not answer counts at its worst, and after two missed samples safe clocks are ordered. For policies that ask for it
(`Policy.guarded`) it also keeps the invariant of power.md §5 ahead of time: at no decision may the breaker reach its
trip state before the fastest recourse acts, even if every server jumps to its largest draw at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solver.domain.power import Clocks, PowerRow
from solver.power.actuation import GPU_LOST, Actuation, ClockOrder, Flags, Reports
from solver.power.breaker import largest_ratio, worst_theta
from solver.power.policies.protocol import Orders, Policy, Seen
from solver.power.vetting import Sample, Telemetry, Vetted

TELEMETRY_FRESH = "TelemetryFresh"
ACTUATORS_HEALTHY = "ActuatorsHealthy"
LEASE_VALID = "LeaseValid"
WITHIN_BUDGET = "WithinBudget"
GUARANTEE_HOLDS = "GuaranteeHolds"
GPU_LOST_CONDITION = "GpuLost"

_AT_REST = {
    TELEMETRY_FRESH: (True, "Fresh"),
    ACTUATORS_HEALTHY: (True, "AsOrdered"),
    LEASE_VALID: (True, "Renewed"),
    WITHIN_BUDGET: (True, "WithinBudget"),
    GUARANTEE_HOLDS: (True, "WorstCaseBelowTrip"),
    GPU_LOST_CONDITION: (False, "AllGpusPresent"),
}
_TOLD_AT_REST = [(kind, status, reason) for kind, (status, reason) in _AT_REST.items()]
_CLEAR_AFTER_S = 10.0
_RELEASE_STEPS = 3
_BRAKE_HOLD_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionChange:
    """A condition that became true or false, or has another reason."""

    t_s: float
    kind: str
    status: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decision."""

    order: ClockOrder | None
    """To send; None when all servers are, or are on their way, where they should be."""
    brake: bool
    """Whether the brake should be on."""
    worst_theta: float
    """θ_w: the warmest the breaker can get before the recourse acts."""
    guarantee_holds: bool
    worst_ratio: float
    """u_w: the worst case of the clocks in force or ordered, of the budget."""
    recourse_s: float
    """R, with the age of the samples; infinite without recourse."""
    changes: tuple[ConditionChange, ...]
    events: tuple[str, ...]


@dataclass(slots=True)
class _Condition:
    status: bool | None  # None: not told yet
    reason: str
    bad_s: float  # when it was last not as it should be


class RowController:
    """The state of the controller of one row."""

    def __init__(
        self,
        row: PowerRow,
        policy: Policy,
        *,
        theta: float | None,
        budget_w: float | None = None,
        reports: Reports | None = None,
        braked: bool = False,
        now_s: float = 0.0,
    ) -> None:
        """Start.

        Parameters
        ----------
        theta
            θ now; None when nothing is known of it (a restart without memory).
        reports
            What the servers run at, when they were not started just now; clocks then rise gradually.
        """
        self._row, self._policy = row, policy
        self._run = policy.begin(row)
        self._telemetry = Telemetry(row, theta=theta)
        generation = 0 if reports is None else int(reports.acknowledged.max())
        applied = None if reports is None else reports.applied_mhz
        self._actuation = Actuation(row, applied=applied, generation=generation)
        self.budget_w = row.budget_w if budget_w is None else budget_w
        """Of the breaker now."""
        self._began_s = now_s
        self._lows, self._highs = np.flatnonzero(row.is_low), np.flatnonzero(~row.is_low)
        # Beyond rounding the most that the row can draw: what allows this much allows any clocks.
        self._most_w = row.servers * row.server.worst_w(row.server.max_mhz) * (1.0 + 1e-9)
        self._capped_always = bool((row.top_mhz < row.server.max_mhz).any())
        self._highest_of: Clocks | None = None
        self._highest_mhz = (row.server.max_mhz, row.server.max_mhz)
        self._wall_minus_now_s: float | None = None
        self._vetted: Vetted | None = None
        self._releasing = reports is not None
        self._safe = False
        self._braked = braked
        self._brake_ordered_s = now_s
        self._policy_braked = braked
        # After a restart nothing is known to have been said: every condition is told anew.
        told = reports is None
        self._conditions = {
            kind: _Condition(status if told else None, reason if told else "", -math.inf)
            for kind, (status, reason) in _AT_REST.items()
        }
        self._at_rest = told  # all conditions are told to be as they should be
        self._recourse_key: tuple[float, int] | None = None
        self._recourse_mhz: int | None = None

    # --- what is known -------------------------------------------------------------------------------------------

    @property
    def theta(self) -> float:
        """θ at the end of the newest window, from the samples."""
        return self._telemetry.theta

    @property
    def most_theta(self) -> float:
        """The most that θ can be: windows that never came count as the worst case."""
        return self._telemetry.most_theta

    def warm_to(self, theta: float) -> None:
        """Tell that the breaker may be so warm, whatever the samples say: nobody looked for a while."""
        self._telemetry.most_theta = max(self._telemetry.most_theta, theta)

    def stands_at(self, theta: float) -> None:
        """Tell how warm the breaker likely is, before the first sample; the most that it can be stays."""
        self._telemetry.theta = min(theta, self._telemetry.most_theta)

    @property
    def ordered_mhz(self) -> Clocks:
        """What each server should run at."""
        return self._actuation.ordered_mhz

    def set_budget(self, budget_w: float) -> None:
        """Tell of another budget and rating (fail-over, demand response). A decision may follow at once."""
        self.budget_w = budget_w

    def _safe_mhz(self) -> int | None:
        """Return the largest clock at which the row cannot exceed its budget, with those silent at their largest."""
        silent = self._actuation.silent_servers
        key = (self.budget_w, silent)
        if key != self._recourse_key:
            server = self._row.server
            left_w = self.budget_w - silent * server.worst_w(server.max_mhz)
            self._recourse_key = key
            self._recourse_mhz = server.safe_mhz(self._row.servers - silent, left_w)
        return self._recourse_mhz

    def _highest(self, ordered: Clocks) -> tuple[int, int]:
        """Return the highest clock ordered to low and to high priority; orders are new arrays, never changed ones."""
        if ordered is not self._highest_of:
            top = self._row.server.max_mhz
            self._highest_of = ordered
            self._highest_mhz = (
                int(np.maximum.reduce(ordered[self._lows])) if self._lows.size else top,
                int(np.maximum.reduce(ordered[self._highs])) if self._highs.size else top,
            )
        return self._highest_mhz

    # --- a decision ----------------------------------------------------------------------------------------------

    def step(
        self,
        now_s: float,
        samples: Sequence[Sample],
        reports: Reports,
        *,
        wall_s: float | None = None,
        reachable: bool = True,
    ) -> Step:
        """Decide.

        Parameters
        ----------
        now_s
            On the monotonic clock that samples are stamped with.
        samples
            What was delivered since the last decision, in order of delivery.
        reports
            What the agents say.
        wall_s
            Wall clock, watched only for jumps: nothing is decided by it.
        reachable
            Whether orders and renewals can be written at all.
        """
        events: list[str] = []
        row, actuation, telemetry = self._row, self._actuation, self._telemetry
        actuation.read(reports, now_s)
        worst_mhz = actuation.worst_mhz(reports)
        worst_w = _worst_w(row, worst_mhz)
        fresh, wrong = None, None
        for sample in samples:
            found, complaint = telemetry.take(sample, budget_w=self.budget_w, worst_w=worst_w)
            fresh = found or fresh
            wrong = complaint or wrong
        if fresh is not None:
            self._vetted = fresh
        if wall_s is not None:
            if self._wall_minus_now_s is not None and abs(wall_s - now_s - self._wall_minus_now_s) > 0.5:
                wrong = wrong or "ClockStep"
            self._wall_minus_now_s = wall_s - now_s
        since_s = max(telemetry.newest_s, self._began_s if math.isinf(telemetry.newest_s) else -math.inf)
        late_s = max(now_s - since_s - row.delivery_s, 0.0)
        if math.isinf(telemetry.newest_s):
            late_s = max(late_s - row.sample_s, 0.0)
        missed = int(late_s // row.sample_s)
        if missed >= 1:
            wrong = wrong or ("NoSamples" if missed >= 2 else "SampleLate")
        wanted, brake = self._wanted(fresh=fresh, missed=missed, reports=reports, now_s=now_s, events=events)
        if self._policy.guarded:
            wanted, brake = self._kept_safe(
                wanted=wanted, worst_w=worst_w, late_s=late_s, brake=brake, now_s=now_s, events=events
            )
        order = None if wanted is None else actuation.order(wanted, now_s)
        if order is not None:
            worst_w = _worst_w(row, np.maximum(worst_mhz, order.mhz))
        if brake != self._braked:
            events.append("brake ordered" if brake else "brake released")
            self._braked = brake
            self._brake_ordered_s = now_s
        recourse_s = self._recourse_s(braked=brake) + late_s
        worst = worst_theta(telemetry.most_theta, worst_w / self.budget_w, recourse_s, row.curve)
        holds = worst < row.curve.trip_theta
        leases = reachable and int(np.count_nonzero(reports.lease_valid)) == row.servers
        lost = np.flatnonzero(reports.failed == GPU_LOST).tolist() if actuation.failing_servers else []
        told = [
            (TELEMETRY_FRESH, wrong is None, wrong or "Fresh"),
            (ACTUATORS_HEALTHY, actuation.trouble is None, actuation.trouble or "AsOrdered"),
            (LEASE_VALID, leases, "Renewed" if leases else "LeaseExpired" if reachable else "RenewalFailed"),
            (GUARANTEE_HOLDS, holds, "WorstCaseBelowTrip" if holds else "WorstCaseTrips"),
            (GPU_LOST_CONDITION, bool(lost), f"Server{lost[0]}" if lost else "AllGpusPresent"),
        ]
        if fresh is not None:
            over = fresh.row_w > self.budget_w
            told.append((WITHIN_BUDGET, not over, "OverBudget" if over else "WithinBudget"))
        changes: list[ConditionChange] = []
        if not (self._at_rest and told == _TOLD_AT_REST):
            changes = [
                change for condition in told if (change := self._noted(*condition, now_s=now_s)) is not None
            ]
            self._at_rest = all(
                (condition.status, condition.reason) == _AT_REST[kind]
                for kind, condition in self._conditions.items()
            )
        return Step(
            order=order,
            brake=brake,
            worst_theta=worst,
            guarantee_holds=holds,
            worst_ratio=worst_w / self.budget_w,
            recourse_s=recourse_s,
            changes=tuple(changes),
            events=tuple(events),
        )

    def _wanted(
        self,
        *,
        fresh: Vetted | None,
        missed: int,
        reports: Reports,
        now_s: float,
        events: list[str],
    ) -> tuple[Clocks | None, bool]:
        """Return the clocks and the brake that the policy, or the lack of samples, asks for."""
        row, policy, ordered = self._row, self._policy, self._actuation.ordered_mhz
        brake = self._policy_braked
        if missed >= 2 and policy.caps:
            safe = self._safe_mhz()
            safe = row.server.min_mhz if safe is None else safe
            if not self._safe:
                events.append(f"safe clocks ordered: {safe} MHz, no samples")
            self._safe = self._releasing = True
            return np.minimum(ordered, safe), brake
        if fresh is None:
            return (ordered if policy.caps else None), brake
        if self._safe:
            events.append("samples are back, clocks rise gradually")
            self._safe = False
        emergency = self.budget_w < row.budget_w * (1.0 - 1e-9) or self._actuation.silent_servers > 0
        low_floor, high_floor = row.low_floor_mhz, row.high_floor_mhz
        if emergency:
            lowest = self._safe_mhz() or row.server.min_mhz
            low_floor, high_floor = min(low_floor, lowest), min(high_floor, lowest)
        low_mhz, high_mhz = self._highest(ordered)
        seen = Seen(
            t_s=now_s,
            sample_s=fresh.stamp_s,
            row_w=fresh.row_w,
            low_w=fresh.low_w,
            high_w=fresh.high_w,
            server_w=fresh.server_w,
            theta=self._telemetry.theta,
            budget_w=self.budget_w,
            curve=row.curve,
            clock_latency_s=self._actuation.latency_s,
            low_floor_mhz=low_floor,
            high_floor_mhz=high_floor,
            low_mhz=low_mhz,
            high_mhz=high_mhz,
            in_force_mhz=reports.applied_mhz,
            braked=self._braked,
        )
        orders = self._run.decide(seen)
        if orders.brake is not None:
            brake = self._policy_braked = orders.brake
        wanted = _clocks_of(orders, row, ordered)
        if not policy.caps:
            wanted = None
        elif wanted is None:
            wanted = ordered
        elif self._releasing or np.count_nonzero(self._actuation.behind):
            # Everybody at once would be a jump of its own: so many steps per decision, until the policy is reached.
            self._releasing = True
            at = np.where(self._actuation.behind, reports.applied_mhz, ordered)
            most = at + _RELEASE_STEPS * row.server.step_mhz
            if (wanted <= most).all():
                self._releasing = False
            wanted = np.minimum(wanted, most)
        if wanted is not None and self._capped_always:
            wanted = np.minimum(wanted, row.top_mhz)
        return wanted, brake

    def _kept_safe(
        self,
        *,
        wanted: Clocks | None,
        worst_w: float,
        late_s: float,
        brake: bool,
        now_s: float,
        events: list[str],
    ) -> tuple[Clocks | None, bool]:
        """Lower what a policy wants, or brake, where the invariant would not hold at the next decision."""
        row, curve, theta = self._row, self._row.curve, self._telemetry.most_theta
        ahead_s = late_s + row.sample_s
        over_now = self._vetted is not None and self._vetted.row_w > self.budget_w * 1.02
        if wanted is not None and over_now and self.budget_w < row.budget_w * (1.0 - 1e-9):
            safe = self._safe_mhz() or row.server.min_mhz
            if (wanted > safe).any():
                events.append(f"safe clocks ordered: {safe} MHz, the budget was cut")
                self._releasing = True
            wanted = np.minimum(wanted, safe)
        if wanted is not None and self._safe_mhz() is not None:
            # New clocks take their latency to act: by then a decision and an order have passed.
            recourse_s = row.recourse_s(self._actuation.latency_s) + ahead_s + self._actuation.latency_s
            allowed_w = largest_ratio(theta, recourse_s, curve) * self.budget_w
            if allowed_w < self._most_w:
                silent = self._actuation.silent
                reached = np.where(silent, row.server.max_mhz, wanted)
                if _worst_w(row, reached) > allowed_w:
                    wanted = _lowered(row, wanted, silent, allowed_w)
        if not self._policy.brakes:
            return wanted, brake
        now_worst = worst_w / self.budget_w
        if not brake:
            by_clocks = math.inf
            if self._policy.caps and self._safe_mhz() is not None:
                by_clocks = row.recourse_s(self._actuation.latency_s) + ahead_s
            by_brake = row.recourse_s(row.brake_latency_s) + ahead_s
            soonest_s = min(by_clocks, by_brake)
            if worst_theta(theta, now_worst, by_brake, curve) >= curve.trip_theta and (
                by_brake <= by_clocks or worst_theta(theta, now_worst, soonest_s, curve) >= curve.trip_theta
            ):
                return wanted, True
        elif self._braked and not self._policy_braked:
            held = now_s - self._brake_ordered_s <= _BRAKE_HOLD_S
            return wanted, held
        return wanted, brake

    def _recourse_s(self, *, braked: bool) -> float:
        """Return R of the fastest recourse there really is: safe clocks that can be reached, or the brake."""
        row, policy = self._row, self._policy
        recourse_s = math.inf
        if policy.caps and self._safe_mhz() is not None:
            recourse_s = row.recourse_s(self._actuation.latency_s)
        if policy.brakes or braked:
            recourse_s = min(recourse_s, row.recourse_s(row.brake_latency_s))
        return recourse_s

    def _noted(self, kind: str, status: bool, reason: str, *, now_s: float) -> ConditionChange | None:  # noqa: FBT001 - a condition's status
        """Note a condition; what is well again says so only after a while."""
        condition = self._conditions[kind]
        good = kind != GPU_LOST_CONDITION
        if status != good:
            condition.bad_s = now_s
        elif condition.status != good and now_s - condition.bad_s < _CLEAR_AFTER_S:
            return None
        if condition.status == status and condition.reason == reason:
            return None
        condition.status, condition.reason = status, reason
        return ConditionChange(t_s=now_s, kind=kind, status=status, reason=reason)


def _worst_w(row: PowerRow, clocks: Clocks) -> float:
    """Return the most that servers can draw at clocks."""
    return float(np.add.reduce(row.server.worst_by_mhz[clocks]))


def _clocks_of(orders: Orders, row: PowerRow, ordered: Clocks) -> Clocks | None:
    """Return the clocks that a policy's orders mean, on the steps there are; None if it orders none."""
    if orders.server_mhz is not None:
        return orders.server_mhz.astype(np.int64, copy=False)
    if orders.low_mhz is None and orders.high_mhz is None:
        return None
    low = ordered if orders.low_mhz is None else orders.low_mhz
    high = ordered if orders.high_mhz is None else orders.high_mhz
    return np.where(row.is_low, low, high).astype(np.int64)


def _lowered(row: PowerRow, wanted: Clocks, silent: Flags, most_w: float) -> Clocks:
    """Lower clocks until their worst case fits: low priority to its floor, high to its own, then both alike.

    Standing caps: the price of a breaker that trips before an order acts (power.md §5).
    """
    server, is_low = row.server, row.is_low
    table = server.worst_by_mhz
    stages = (
        (is_low & ~silent, row.low_floor_mhz),
        (~is_low & ~silent, row.high_floor_mhz),
        (~silent, server.min_mhz),
    )
    clocks = wanted.copy()
    for whom, floor in stages:
        rest_w = most_w - float(
            table[np.where(whom, 0, np.where(silent, server.max_mhz, clocks))][~whom].sum()
        )
        steps = server.clocks_mhz
        low, high = 0, len(steps) - 1  # the largest step that fits
        while low < high:
            middle = (low + high + 1) // 2
            if float(table[np.minimum(clocks[whom], steps[middle])].sum()) <= rest_w:
                low = middle
            else:
                high = middle - 1
        clocks[whom] = np.minimum(clocks[whom], max(steps[low], floor))
        if float(table[np.minimum(clocks[whom], steps[low])].sum()) <= rest_w and steps[low] >= floor:
            break
    return clocks
