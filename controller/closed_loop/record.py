"""What was decided over a trace, and what ran when: noted on the way, handed over as a scenario to simulate.

It exists so that a planned run is told once, for the engine (events of the scenario, the lane of every request) and for
people (decisions, replicas and capacity over time). It decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from controller.closed_loop.lanes import drawn_lanes, whole_requests
from controller.closed_loop.pools import EDGE_S
from controller.closed_loop.rehearsals import Rehearsals
from controller.closed_loop.services import Services
from simulator.fleet import EventKind
from simulator.scenario import Scenario, ScenarioEvent
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.trace import Floats, Ints, Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A change that was decided."""

    time_s: float
    model: str
    rate_rps: float
    """That capacity was asked for."""
    rule: str
    """Which gave that rate."""
    why: str
    replicas: tuple[int, ...]
    """By pool of the model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedRun:
    """All that was decided for a trace, ready to be simulated. T times, P pools."""

    scenario: Scenario
    """With all instances that are ever used, and what happens to them as events."""
    lane_of_request: Ints | None
    """Lane of every request, by its first pool that takes prompts; None: every model has one."""
    decisions: tuple[Decision, ...]
    rules: Mapping[str, int]
    """Decisions by the rule that gave the rate, those that changed nothing included."""
    times_s: Floats
    """[T] since when the rows below hold; the first is 0."""
    asked: Ints
    """[T, P] instances that are to run."""
    ready: Ints
    """[T, P] instances that serve."""
    rate_rps: Floats
    """[T] that capacity was asked for, of all models."""
    carried_rps: Floats
    """[T, P] whole requests that the instances that serve carry inside the SLO (`whole_requests` where phases are
    split); 0 while no request size is known."""
    cap_ratio: Floats
    """[T] cap of every GPU as a share of its TDP."""
    started: int
    stopped: int
    rehearsed: int
    """Changes that were rehearsed before they were made."""
    refused: int
    """Those of them that were not made: SLO attainment would have fallen."""
    no_plan: Mapping[str, int]
    """Why there was no plan, and for how many questions; what ran then stayed."""

    @property
    def capacity_rps(self) -> Floats:
        """[T] of all pools."""
        total: Floats = self.carried_rps.sum(axis=1)
        return total


@dataclass(slots=True, kw_only=True)
class _Timeline:
    """What is noted whenever something changes."""

    times_s: list[float] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    ready: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    rate_rps: list[float] = field(default_factory=list)
    carried_rps: list[list[float]] = field(default_factory=list)
    cap_ratio: list[float] = field(default_factory=list)

    def note(self, time_s: float, **rows: object) -> None:
        if self.times_s and self.times_s[-1] >= time_s - EDGE_S:
            for name in rows:
                getattr(self, name).pop()
        else:
            if self.times_s and all(getattr(self, name)[-1] == row for name, row in rows.items()):
                return
            self.times_s.append(time_s)
        for name, row in rows.items():
            getattr(self, name).append(row)


@dataclass(slots=True, kw_only=True)
class Record:
    """What is noted while decisions are made."""

    scenario: Scenario
    services: Services
    decisions: list[Decision] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    """Decisions by the rule that gave the rate."""
    _line: _Timeline = field(default_factory=_Timeline)

    def note(self, now_s: float, cap_ratio: float) -> None:
        """Note what is asked for, serves and carries now; what was before the trace is nobody's business."""
        if now_s < 0.0:
            return
        pools, models = self.services.pools, self.services.models
        weights = [0.0] * len(pools)
        carried_rps = [0.0] * len(pools)
        for model in models:
            sizes = model.seen.sizes(now_s=now_s)
            ready = {role: sum(model.pools[p].ready(now_s) for p in model.of_role(role)) for role in Role}
            for p, pool in model.pools.items():
                carried_rps[p] = pool.ready(now_s) * (
                    self.services.carrying.linked_rps(p, cap_ratio, sizes, phase_size=ready[pool.role])
                    if sizes
                    else 0.0
                )
            whole = whole_requests(self.scenario, np.array(carried_rps))
            serves = any(whole[p] > 0.0 for p in model.pools)
            for p, pool in model.pools.items():  # where nobody holds the SLO, requests go to all who serve
                weights[p] = carried_rps[p] if serves else float(pool.ready(now_s))
        self._line.note(
            now_s,
            asked=[pool.asked for pool in pools],
            ready=[pool.ready(now_s) for pool in pools],
            weights=weights,
            rate_rps=sum(0.0 if model.asked is None else model.asked.rate_rps for model in models),
            carried_rps=carried_rps,
            cap_ratio=cap_ratio,
        )

    def planned_run(
        self,
        requests: Requests,
        model_of_request: Ints,
        *,
        rehearsals: Rehearsals,
        no_plan: Mapping[str, int],
        seed: int,
    ) -> PlannedRun:
        """Hand over all that was noted.

        Raises
        ------
        InputError
            If no instance ever runs.
        """
        events: list[ScenarioEvent] = []
        pools = []
        for given, pool in zip(self.scenario.pools, self.services.pools, strict=True):
            pools.append(replace(given, count=pool.slots, start_s=pool.start_s, drain_s=pool.drain_s))
            events += [
                ScenarioEvent(time_s=0.0, kind=EventKind.DOWN, pool=pool.name, index=number)
                for number in range(pool.slots)
                if number not in pool.at_start
            ]
        for pool in self.services.pools:
            events += pool.events
        if not any(pool.slots for pool in self.services.pools):
            raise InputError(
                "no instance ever runs: nothing is known of the traffic, or nobody can carry it inside the SLO",
                where=self.scenario.place("planner"),
                right="a count above 0 in some pool, or an SLO that a pool can hold",
            )
        kinds = [event.kind for event in events]
        line = self._line
        return PlannedRun(
            scenario=replace(
                self.scenario,
                pools=tuple(pools),
                events=tuple(sorted(events, key=lambda event: event.time_s)),
            ),
            lane_of_request=self._lanes(requests, model_of_request, seed),
            decisions=tuple(self.decisions),
            rules=dict(self.rules),
            times_s=np.array(line.times_s),
            asked=np.array(line.asked, dtype=np.int64),
            ready=np.array(line.ready, dtype=np.int64),
            rate_rps=np.array(line.rate_rps),
            carried_rps=whole_requests(self.scenario, np.array(line.carried_rps)),
            cap_ratio=np.array(line.cap_ratio),
            started=kinds.count(EventKind.UP),
            stopped=kinds.count(EventKind.DRAIN),
            rehearsed=rehearsals.made,
            refused=rehearsals.refused,
            no_plan=dict(no_plan),
        )

    def _lanes(self, requests: Requests, model_of_request: Ints, seed: int) -> Ints | None:
        row = np.searchsorted(np.array(self._line.times_s), requests.arrival_s, side="right") - 1
        return drawn_lanes(self.scenario, model_of_request, np.array(self._line.weights), row, seed=seed)
