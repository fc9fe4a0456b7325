"""Runs a row under a policy: plant, samples, decisions, orders that take their time, and what came of it.

It exists as the simulator's half of the loop: it plays servers, meters, agents and the breaker. What is decided is
decided by `solver.power.row_control`, as in a cluster.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.row.agents import RowAgents
from simulator.row.faults import RowFaults
from simulator.row.meter import Meter
from simulator.row.model import REFERENCE_PLANT, RowPlant
from simulator.row.plant import SPAN_S, Plant
from simulator.row.requests import RowRequests
from solver.domain.power import (
    BREAKER_CURVES,
    DEFAULT_CURVE,
    REFERENCE_SERVER,
    START_THETA,
    PowerRow,
    reference_priorities,
)
from solver.power.actuation import ClockOrder
from solver.power.breaker import worst_theta
from solver.power.policies.protocol import Policy
from solver.power.policies.uncapped import Uncapped
from solver.power.row_control import GUARANTEE_HOLDS, LEASE_VALID, ConditionChange, RowController
from solver.power.vetting import Sample

Floats = npt.NDArray[np.float64]

DRAIN_S = 3600


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Arrival to last token over the offered requests of one priority or class."""

    p50_s: float
    p99_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RowRun:
    """What came of a run. Series are by second of the measured time."""

    policy: str
    row: PowerRow
    offered: int
    completed: int
    latency: dict[str, Latency]
    """low, high and each class."""
    seconds_over_budget: int
    brakes: int
    trips: int
    theta_max: float
    guarantee_held: bool
    guarantee_lost_s: float
    caps_s: dict[str, float]
    """By priority: seconds in which a server was below the largest clock, mean over its servers."""
    conditions: tuple[ConditionChange, ...]
    events: tuple[tuple[float, str], ...]
    """When, and what controller and agents did."""
    row_w: Floats
    budget_w: Floats
    theta: Floats
    low_mhz: Floats
    """Mean over the servers, under the brake the brake's."""
    high_mhz: Floats
    braked: npt.NDArray[np.bool_]

    def increase(self, uncapped: "RowRun") -> dict[str, tuple[float, float]]:
        """Return by priority and class the increase of p50 and p99 over a run without policy."""
        return {
            name: (now.p50_s / before.p50_s - 1.0, now.p99_s / before.p99_s - 1.0)
            for name, now in self.latency.items()
            if (before := uncapped.latency.get(name)) is not None
        }


def reference_row(
    servers: int, *, curve: str = DEFAULT_CURVE, budget_w: float = 260_000.0, clock_latency_s: float = 2.0
) -> PowerRow:
    """Return the reference row with so many servers."""
    return PowerRow(
        server=REFERENCE_SERVER,
        priorities=reference_priorities(servers),
        budget_w=budget_w,
        curve=BREAKER_CURVES[curve],
        clock_latency_s=clock_latency_s,
    )


def run_row(
    requests: RowRequests,
    row: PowerRow,
    policy: Policy | None = None,
    *,
    model: RowPlant = REFERENCE_PLANT,
    start_theta: float = START_THETA,
    faults: RowFaults | None = None,
    seed: int = 0,
) -> RowRun:
    """Serve the requests of the row's servers under a policy.

    Parameters
    ----------
    policy
        None runs the row as it is.
    start_theta
        θ at t = 0; the controller knows it.
    seed
        Of what is random: orders that are dropped.
    """
    return _World(
        requests=requests,
        row=row,
        policy=policy or Uncapped(),
        model=model,
        start_theta=start_theta,
        faults=faults or RowFaults(),
        seed=seed,
    ).run()


def run_uncapped(
    requests: RowRequests,
    row: PowerRow,
    *,
    model: RowPlant = REFERENCE_PLANT,
    start_theta: float = START_THETA,
    faults: RowFaults | None = None,
) -> RowRun:
    """Serve the requests without a controller: what increases are measured against. No conditions, no guarantee."""
    return _World(
        requests=requests,
        row=row,
        policy=Uncapped(),
        model=model,
        start_theta=start_theta,
        faults=faults or RowFaults(),
        seed=0,
        decides=False,
    ).run()


class _World:
    """The state of a run outside the controller."""

    def __init__(
        self,
        *,
        requests: RowRequests,
        row: PowerRow,
        policy: Policy,
        model: RowPlant,
        start_theta: float,
        faults: RowFaults,
        seed: int,
        decides: bool = True,
    ) -> None:
        self.decides = decides
        self.requests, self.row, self.policy, self.faults = requests, row, policy, faults
        self.end_s = requests.duration_s
        self.last_s = self.end_s + DRAIN_S
        self.plant = Plant(
            row=row, model=model, requests=requests, seconds=self.last_s, start_theta=start_theta
        )
        self.agents = RowAgents(row)
        self.meter = Meter(row, faults)
        self.controller: RowController | None = RowController(row, policy, theta=start_theta)
        self.random = np.random.default_rng(seed)
        self.orders: list[tuple[int, int, ClockOrder, npt.NDArray[np.bool_] | None]] = []
        self.brake_orders: deque[tuple[int, bool]] = deque()
        self.brake_ordered = self.braked = False
        self.brakes = 0
        self.budget_w = row.budget_w
        self.wall_offset_s = 0.0
        self.conditions: list[ConditionChange] = []
        self.events: list[tuple[float, str]] = []
        self.guarantee_lost_s = 0.0
        self.guarantee_told = True
        self.budget_by_s = np.full(self.last_s, row.budget_w)
        self.low_mhz = np.zeros(self.last_s)
        self.high_mhz = np.zeros(self.last_s)
        self.brake_by_s = np.zeros(self.last_s, dtype=np.bool_)
        self.caps_s = {"low": 0.0, "high": 0.0}
        self._lows, self._highs = np.flatnonzero(row.is_low), np.flatnonzero(~row.is_low)
        self._marks = sorted(
            {math.ceil(mark) for event in faults.events for mark in (event.start_s, event.end_s)}
        )
        self._shown = (float(row.server.max_mhz), float(row.server.max_mhz), 0.0, 0.0)

    def run(self) -> RowRun:
        """Run to the end of the draining."""
        row, plant, period = self.row, self.plant, int(self.row.sample_s)
        first = period + math.ceil(row.delivery_s)
        step_by_second = bool(self.faults.events)
        trips, theta_max = 0, 0.0
        t = 0
        while t < self.last_s and not (t >= self.end_s and plant.is_empty):
            changed = False
            told = False
            if self._marks and self._marks[0] <= t:
                changed, told = self._pass_marks(t)
            changed |= self._arrive(t)
            if step_by_second and self.decides:
                moved, ended = self.agents.watch_leases(t)
                changed |= moved
                if ended:
                    self._note(t, LEASE_VALID, status=False, reason="LeaseExpired")
                    self.events.append((float(t), "leases ran out, agents go to their safe clocks"))
            if self.decides and ((t >= first and t % period == 0) or told):
                self._decide(t)
                changed |= self._arrive(t)
            if changed:
                self._apply()
            upto = t + 1 if step_by_second else self._next(t, period)
            plant.advance_to(upto)
            self._write_down(t, upto)
            t = upto
            if t % period == 0 and self.decides:
                self._measure(t, period)
            if t == self.end_s:
                trips, theta_max = plant.trips, float(plant.theta_after[:t].max())
        return self._result(t, trips, theta_max)

    def _next(self, t: int, period: int) -> int:
        upto = (t // period + 1) * period if self.decides else min(t + SPAN_S, max(self.end_s, t + 1))
        if self.orders:
            upto = min(upto, self.orders[0][0])
        if self.brake_orders:
            upto = min(upto, self.brake_orders[0][0])
        return min(max(upto, t + 1), self.last_s)

    def _pass_marks(self, t: int) -> tuple[bool, bool]:
        """Begin and end faults; returns whether clocks changed and whether the controller is to be told at once."""
        while self._marks and self._marks[0] <= t:
            self._marks.pop(0)
        faults, agents, row = self.faults, self.agents, self.row
        changed = False

        def chosen(kind: str) -> npt.NDArray[np.bool_]:
            mask = np.zeros(row.servers, dtype=np.bool_)
            for event in faults.active(kind, t):
                mask[list(event.servers)] = True
            return mask

        agents.deaf = chosen("actuator_ignored")
        agents.lying = chosen("set_returns_ok_but_readback_old")
        killed = chosen("agent_killed_sigkill")
        back = ~agents.alive & ~killed
        agents.alive = ~killed
        if back.any():
            agents.restart(back)
            self.events.append((float(t), "agents restarted with their journal, without a lease"))
        lost = chosen("gpu_lost")
        for server in np.flatnonzero(lost != agents.lost):
            if lost[server]:
                gone = {e.gpu for e in faults.active("gpu_lost", t) if e.servers == (int(server),)}
                self.plant.stop(int(server), len(gone))
            else:
                self.plant.start(int(server))
        agents.lost = lost
        for event in faults.events:
            if math.ceil(event.start_s) == t and event.kind == "driver_reload":
                mask = np.zeros(row.servers, dtype=np.bool_)
                mask[list(event.servers)] = True
                agents.reload_driver(mask, row.server.max_mhz)
                changed = True
            elif math.ceil(event.start_s) == t and event.kind == "clock_step":
                self.wall_offset_s += event.seconds
        factor = math.prod(event.factor for event in faults.active("budget_factor", t))
        told = False
        if row.budget_w * factor != self.budget_w:
            self.budget_w = row.budget_w * factor
            self.plant.set_breaker(row.curve, self.budget_w)
            self.events.append((float(t), f"the budget is {self.budget_w:.0f} W"))
            told = self.controller is not None
            if self.controller is not None:
                self.controller.set_budget(self.budget_w)
        if faults.any("controller_down", t):
            if self.controller is not None:
                self.events.append((float(t), "controller down"))
            self.controller = None
            told = False
        elif self.controller is None:
            self.events.append((float(t), "controller back, without memory"))
            self.controller = RowController(
                row,
                self.policy,
                theta=None,
                budget_w=self.budget_w,
                reports=agents.reports(t),
                braked=self.brake_ordered,
                now_s=float(t),
            )
        return changed, told

    def _arrive(self, t: int) -> bool:
        """Let orders act whose time has come."""
        changed = False
        while self.orders and self.orders[0][0] <= t:
            _, _, order, lost = heapq.heappop(self.orders)
            changed |= self.agents.carry_out(order, t, lost)
        while self.brake_orders and self.brake_orders[0][0] <= t:
            braked = self.brake_orders.popleft()[1]
            changed |= braked != self.braked
            self.braked = braked
        return changed

    def _decide(self, t: int) -> None:
        samples = self.meter.delivered(t)
        faults, agents, row = self.faults, self.agents, self.row
        controller = self.controller
        if controller is None:
            self._watch(t)
            return
        reachable = not faults.any("apiserver_unreachable", t)
        if reachable:
            agents.renew(t, row.server.safe_mhz(row.servers, self.budget_w) if faults.events else None)
        step = controller.step(
            float(t), samples, agents.reports(t), wall_s=t + self.wall_offset_s, reachable=reachable
        )
        self.conditions += step.changes
        self.events += ((float(t), what) for what in step.events)
        if step.order is not None and reachable:
            self._send(step.order, t)
        if step.brake != self.brake_ordered:
            self.brake_ordered = step.brake
            self.brake_orders.append((t + math.ceil(row.brake_latency_s), step.brake))
            self.brakes += step.brake and t < self.end_s
        # By what the controller knows, and by what is so.
        worst = worst_theta(self.plant.theta, step.worst_ratio, step.recourse_s, row.curve)
        held = step.guarantee_holds and worst < row.curve.trip_theta
        self.guarantee_told = held
        if not held and t < self.end_s:
            self.guarantee_lost_s += row.sample_s

    def _send(self, order: ClockOrder, t: int) -> None:
        row, faults = self.row, self.faults
        takes_s = row.clock_latency_s
        for event in faults.active("actuator_latency", t):
            takes_s = event.seconds
        lost = None
        for event in faults.active("actuator_drop", t):
            drawn = self.random.random(row.servers) < event.probability
            lost = drawn if lost is None else lost | drawn
        heapq.heappush(self.orders, (math.ceil(t + takes_s), order.generation, order, lost))

    def _watch(self, t: int) -> None:
        """Follow the guarantee while nobody decides: what is left is that leases run out."""
        row, plant = self.row, self.plant
        table = row.server.worst_by_mhz
        now_mhz = self.agents.applied_mhz.copy()
        for _, _, order, _ in self.orders:
            np.maximum(now_mhz, np.where(order.to, order.mhz, 0), out=now_mhz)
        after = float(table[self.agents.standing_mhz()].sum()) / self.budget_w
        draw = float(table[now_mhz].sum()) / self.budget_w
        if self.brake_ordered:
            after = draw = float(table[row.server.brake_mhz]) * row.servers / self.budget_w
        worst = max(worst_theta(plant.theta, draw, self.agents.safe_by_s(t), row.curve), after * after)
        held = worst < row.curve.trip_theta
        if held != self.guarantee_told:
            self._note(
                t, GUARANTEE_HOLDS, status=held, reason="LeasesEndInTime" if held else "ControllerDown"
            )
        self.guarantee_told = held
        if not held and t < self.end_s:
            self.guarantee_lost_s += row.sample_s

    def _note(self, t: int, kind: str, *, status: bool, reason: str) -> None:
        self.conditions.append(ConditionChange(t_s=float(t), kind=kind, status=status, reason=reason))

    def _apply(self) -> None:
        """Let clocks and brake act, and note what will be written down of them."""
        server, applied = self.row.server, self.agents.applied_mhz
        self.plant.set_clocks(applied, braked=self.braked)
        top = float(server.max_mhz)
        if self.braked:
            self._shown = (float(server.brake_mhz), float(server.brake_mhz), 1.0, 1.0)
            return
        low, high = applied[self._lows], applied[self._highs]
        self._shown = (
            float(np.add.reduce(low)) / low.size if low.size else top,
            float(np.add.reduce(high)) / high.size if high.size else top,
            int(np.count_nonzero(low < top)) / low.size if low.size else 0.0,
            int(np.count_nonzero(high < top)) / high.size if high.size else 0.0,
        )

    def _write_down(self, t: int, upto: int) -> None:
        low, high, low_capped, high_capped = self._shown
        self.low_mhz[t:upto] = low
        self.high_mhz[t:upto] = high
        if self.braked:
            self.brake_by_s[t:upto] = True
        if self.faults.events:
            self.budget_by_s[t:upto] = self.budget_w
        measured_s = min(upto, self.end_s) - t
        if measured_s > 0:
            self.caps_s["low"] += low_capped * measured_s
            self.caps_s["high"] += high_capped * measured_s

    def _measure(self, t: int, period: int) -> None:
        plant = self.plant
        span = slice(t - period, t)
        low_w = float(np.add.reduce(plant.low_w[span])) / period
        high_w = float(np.add.reduce(plant.high_w[span])) / period
        self.meter.measure(
            Sample(
                stamp_s=float(t),
                row_w=low_w + high_w,
                low_w=low_w,
                high_w=high_w,
                server_w=plant.server_mean_w(period),
            )
        )

    def _result(self, ended_s: int, trips: int, theta_max: float) -> RowRun:
        plant, end = self.plant, self.end_s
        row_w = plant.row_w[:end]
        return RowRun(
            policy=self.policy.name,
            row=self.row,
            offered=int(plant.order.size),
            completed=int(np.isfinite(plant.finish_s).sum()),
            latency=_latency(plant, self.requests, ended_s),
            seconds_over_budget=int((row_w > self.budget_by_s[:end]).sum()),
            brakes=self.brakes,
            trips=trips,
            theta_max=theta_max,
            guarantee_held=self.decides and self.guarantee_lost_s == 0.0,
            guarantee_lost_s=self.guarantee_lost_s,
            caps_s=self.caps_s,
            conditions=tuple(self.conditions),
            events=tuple(self.events),
            row_w=row_w,
            budget_w=self.budget_by_s[:end],
            theta=plant.theta_after[:end],
            low_mhz=self.low_mhz[:end],
            high_mhz=self.high_mhz[:end],
            braked=self.brake_by_s[:end],
        )


def _latency(plant: Plant, requests: RowRequests, ended_s: int) -> dict[str, Latency]:
    order = plant.order
    finish = np.where(np.isnan(plant.finish_s), float(ended_s), plant.finish_s)
    took = finish - requests.arrival_s[order]
    low = plant.row.is_low[requests.server[order]]
    kind = requests.kind[order]
    groups = {"low": low, "high": ~low}
    groups.update({name: kind == index for index, name in enumerate(requests.kinds)})
    found = {}
    for name, mask in groups.items():
        if mask.any():
            p50, p99 = np.percentile(took[mask], (50.0, 99.0))
            found[name] = Latency(p50_s=float(p50), p99_s=float(p99))
    return found
