"""Better fleets next to one that holds: a pool less, or other configs in its place, each asked about as a whole.

It exists because corrections only scale columns (`solver.phases.settle`): where a trace comes in bursts, what a replica
adds depends on all the others - how many GPUs a burst finds, and in what pieces - and the round that judged a config
beside others may have condemned it for good. So whole fleets are tried that are cheaper than the present one:

- *less*: a replica of a config less (the last one of its pool included);
- *instead*: a pool of one config in the place of another of the same role, or of all of them, as small as holds;
- *for*: a few replicas of a config for as many of another of its role as are still cheaper.

The first kind that finds something better is taken, the best of its kind, and all is tried again; no fleet is tried
twice. It is a local search: what it returns is at least as good as what it was given, and not proved.
It simulates nothing: asking is passed in (`Holds`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from solver.backends.program import SolveStatus
from solver.domain.fleet import FleetInstance, FleetPlan, Role
from solver.phases.bill import bill, within_limits
from solver.phases.direct import FleetAnswer
from solver.phases.prepare import serve_all
from solver.phases.routing import loads_of, moved_of, route
from solver.phases.settle import Enough, Holds, SettledFleet, Solve, Verdict, with_bound
from solver.phases.solve import describe_plan

Replicas = tuple[tuple[int, ...], ...]
MOST_TRIED = 400
"""Fleets asked about at most: a search of some seconds where each takes a few hundredths."""
TAKEN = (1, 2, 4)
"""Replicas that are given up at once for others."""
RAISED = 1.0 + 1e-6
_LINK_SLACK = 1.0 + 1e-9


def improved_nearby(
    settled: SettledFleet, *, solve: Solve, holds: Holds, enough: Enough = lambda: False
) -> SettledFleet:
    """Return a better fleet that holds, or the one given.

    Columns of its pools are raised where the problem would not believe it; what the program makes of that problem is
    the bound. Where the rate is maximised, or nothing holds yet, nothing is tried.
    """
    if settled.plan.goal.maximised or not settled.holds or settled.plan.objective is None:
        return settled
    search = _Search(instance=settled.instance, best=settled.plan, holds=holds, enough=enough)
    found = search.run()
    if found is None:
        return settled
    instance, plan = found
    plan = with_bound(plan, solve(instance))
    verdict = Verdict(sustained_ratio=1.0, factors={})
    return replace(settled, instance=instance, plan=plan, verdict=verdict)


@dataclass(slots=True, kw_only=True)
class _Search:
    instance: FleetInstance
    """With the columns as they were learnt; raised ones go with each fleet."""
    best: FleetPlan
    holds: Holds
    enough: Enough
    _tried: dict[Replicas, tuple[FleetInstance, FleetPlan] | None] = field(default_factory=dict)

    def run(self) -> tuple[FleetInstance, FleetPlan] | None:
        found = None
        while (better := self._step()) is not None:
            found, self.best = better, better[1]
        return found

    def _step(self) -> tuple[FleetInstance, FleetPlan] | None:
        for kind in (self._less, self._instead, self._for):
            good = [held for replicas in kind() if (held := self._held(replicas)) is not None]
            if good:
                return min(good, key=lambda one: one[1].objective or 0.0)
        return None

    def _held(self, replicas: Replicas) -> tuple[FleetInstance, FleetPlan] | None:
        """Return a cheaper fleet as problem and plan if it holds."""
        if replicas not in self._tried:
            if len(self._tried) >= MOST_TRIED or not self._cheaper(replicas) or self.enough():
                return None
            tried = as_planned(self.instance, replicas)
            self._tried[replicas] = tried if tried is not None and self.holds(*tried) else None
        found = self._tried[replicas]
        return found if found is not None and self._cheaper(replicas) else None

    def _cheaper(self, replicas: Replicas) -> bool:
        told = bill(self.instance, replicas)
        worth = told.objective(self.instance.goal) < (self.best.objective or 0.0) - 1e-9
        return worth and within_limits(self.instance, told)

    def _less(self) -> Iterator[Replicas]:
        for m, c, _ in self._used():
            yield self._changed(m, {c: 1})

    def _instead(self) -> Iterator[Replicas]:
        for m, given in self._pools():
            for d in self._same_role(m, given):
                low, high = 0, self._most(m, given, d)
                if not high or self._held(self._changed(m, given, d, high)) is None:
                    continue
                while high - low > 1:  # fewer of the same hold less, or nearly so
                    middle = (low + high) // 2
                    if self._held(self._changed(m, given, d, middle)) is None:
                        low = middle
                    else:
                        high = middle
                yield self._changed(m, given, d, high)

    def _for(self) -> Iterator[Replicas]:
        for m, c, n in self._used():
            for count in TAKEN:
                for d in self._same_role(m, {c: count}) if count <= n else ():
                    gained = self._most(m, {c: count}, d)
                    if gained:
                        yield self._changed(m, {c: count}, d, gained)

    def _used(self) -> list[tuple[int, int, int]]:
        return [(m, c, n) for m, row in enumerate(self.best.replicas) for c, n in enumerate(row) if n]

    def _pools(self) -> list[tuple[int, dict[int, int]]]:
        """List what one config may stand in for: each pool, and all of a role together."""
        alone = [(m, {c: n}) for m, c, n in self._used()]
        together: dict[tuple[int, Role], dict[int, int]] = {}
        for m, c, n in self._used():
            together.setdefault((m, self.instance.models[m].configs[c].role), {})[c] = n
        return alone + [(m, given) for (m, _), given in together.items() if len(given) > 1]

    def _same_role(self, m: int, given: dict[int, int]) -> list[int]:
        """List the other configs of the role that what is given up has."""
        configs = self.instance.models[m].configs
        role = configs[next(iter(given))].role
        lone = given if len(given) == 1 else ()
        return [d for d, config in enumerate(configs) if d not in lone and config.role is role]

    def _most(self, m: int, given: dict[int, int], d: int) -> int:
        """Return how many of d in place of what is given up are still cheaper."""

        def cheaper(gained: int) -> bool:
            return self._cheaper(self._changed(m, given, d, gained))

        high = 1
        while high < 1 << 20 and cheaper(high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cheaper(middle) else (low, middle)
        return low

    def _changed(self, m: int, given: dict[int, int], d: int = -1, gained: int = 0) -> Replicas:
        """Return the present fleet without what is given up, and so many more of d."""
        return tuple(
            tuple(n - given.get(c, 0) + (gained if c == d else 0) for c, n in enumerate(row))
            if i == m
            else row
            for i, row in enumerate(self.best.replicas)
        )


def as_planned(instance: FleetInstance, replicas: Replicas) -> tuple[FleetInstance, FleetPlan] | None:
    """Return given replicas as the plan of a problem whose columns say that they suffice; None where they cannot.

    Requests are routed so that most could be carried; the columns of pools that are too full are raised to what they
    then carry. None: a bucket is not served, or a link is too full.
    """
    models, routings, raised = serve_all(instance), [], []
    for model, row in zip(models, replicas, strict=True):
        if min(row, default=0) < 0 or sum(row) < model.demand.min_total_replicas:
            return None
        routing = route(model, row)
        if routing is None:
            return None
        count = np.maximum(np.array(row, dtype=float), 1.0)
        if (moved_of(model, routing.shares) > _LINK_SLACK * count).any():
            return None
        factors = np.maximum(1.0, RAISED * loads_of(model, routing.shares) / (model.capacity_ratio * count))
        columns = tuple(
            tuple(rate * factor for rate, factor in zip(rates, factors.tolist(), strict=True))
            for rates in model.demand.throughput_rps
        )
        routings.append(routing)
        raised.append(replace(model.demand, throughput_rps=columns))
    believing = replace(instance, models=tuple(raised))
    answer = FleetAnswer(status=SolveStatus.FEASIBLE, counts=replicas, method="nearby")
    return believing, describe_plan(believing, serve_all(believing), answer, routings)
