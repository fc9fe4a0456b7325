"""The models of a scenario while decisions are made, and how each is written as a service for whoever decides.

It exists because what one instance of a phase carries depends on how many serve the phase, and a phase has one kind of
instance: states are written, asked about and written again until the plan fits what was read. It decides nothing and
moves nothing.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from controller.closed_loop.deciders import Asked, Decider
from controller.closed_loop.pools import Carrying, TrackedPool, service_state
from controller.closed_loop.seen import Seen
from simulator.scenario import PlannerRules
from solver.domain.cluster import ServiceState
from solver.domain.fleet import Role
from solver.services.settle import change_usd, cost_usd_per_h
from solver.services.steps import RolloutStep


@dataclass(slots=True, kw_only=True)
class PlannedModel:
    """One model: what of it was seen, its pools, and what is wished for."""

    name: str
    seen: Seen
    pools: dict[int, TrackedPool]
    """By index in the scenario."""
    steps: list[RolloutStep] = field(default_factory=list)
    asked: Asked | None = None
    wanted: tuple[int, ...] = ()
    """Instances by pool that were wished for last."""
    phase_sizes: Mapping[Role, int] = field(default_factory=dict)
    """Instances of each phase at which it is read what one carries."""
    left_out: frozenset[int] = frozenset()
    """Pools that the plan does not use, since another kind serves their phase."""

    def of_role(self, role: Role) -> list[int]:
        """Return the pools that serve a phase only."""
        return [p for p, pool in self.pools.items() if pool.role is role]

    @property
    def split_roles(self) -> tuple[Role, ...]:
        """Phases that some pool serves alone."""
        return tuple(role for role in (Role.PREFILL, Role.DECODE) if self.of_role(role))

    def phase_size(self, role: Role) -> int:
        """Return the size at which what one instance carries was last read."""
        return self.phase_sizes.get(role, 1)


@dataclass(slots=True, kw_only=True)
class Services:
    """The models with their pools, and what is asked when they are written as services."""

    pools: Sequence[TrackedPool]
    """All, in the scenario's order."""
    models: Sequence[PlannedModel]
    carrying: Carrying
    rules: PlannerRules
    decider: Decider

    def state(self, model: PlannedModel, rate_rps: float, now_s: float, cap_ratio: float) -> ServiceState:
        """Write a model with what one instance carries at its phase sizes; 0 for the pools that are left out."""
        sizes = model.seen.sizes(now_s=now_s)
        carrying = self.carrying
        return service_state(
            model.name,
            model.pools,
            carried_rps={
                p: 0.0
                if p in model.left_out
                else carrying.rate_rps(p, cap_ratio, sizes, phase_size=model.phase_size(pool.role))
                for p, pool in model.pools.items()
            },
            links_bytes_per_s={p: carrying.link_bytes_per_s(p) for p in model.pools},
            kv_bytes_per_token=carrying.kv_bytes_per_token[model.name],
            sizes=sizes,
            rate_rps=rate_rps,
            rules=self.rules,
            now_s=now_s,
        )

    def states(self, asked: Mapping[str, Asked], now_s: float, cap_ratio: float) -> list[ServiceState]:
        """Write the models that are asked for.

        What one instance of a phase carries is read at so many as carry the whole rate, at fewer if fewer run or are
        wished for, and at fewer again while the plan has fewer. A phase has one kind of instance: routers balance
        requests, not speeds, so of two kinds the slower would miss the SLO.
        """
        models = [model for model in self.models if model.name in asked]
        for model in models:
            model.left_out = frozenset()
            model.phase_sizes = {
                role: self._phase_size(model, role, asked[model.name].rate_rps, now_s, cap_ratio)
                for role in model.split_roles
            }

        def written() -> list[ServiceState]:
            return [self.state(model, asked[model.name].rate_rps, now_s, cap_ratio) for model in models]

        while True:
            states = written()
            if not any(model.split_roles for model in models):
                return states
            needed = self.decider.needed(states)
            mixing = [model for model in models if _kinds_mixed(model, needed.get(model.name))]
            for model in mixing:
                model.left_out = self._cheapest_without(model, written)
            if not mixing and not any(_shrunk(model, needed.get(model.name)) for model in models):
                return states

    def _cheapest_without(
        self, model: PlannedModel, written: Callable[[], list[ServiceState]]
    ) -> frozenset[int]:
        """Return the pools that the cheapest plan with one kind of instance per phase leaves out."""
        phases = [model.of_role(role) for role in model.split_roles]
        best_usd, best = math.inf, frozenset[int]()
        for kept in itertools.product(*phases):
            model.left_out = frozenset(p for phase in phases for p in phase) - set(kept)
            states = written()
            state = next(state for state in states if state.name == model.name)
            replicas = self.decider.needed(states).get(model.name)
            if replicas is None:
                continue
            usd = cost_usd_per_h(state, replicas) + change_usd(state, replicas)
            if usd < best_usd:
                best_usd, best = usd, model.left_out
        return best

    def _phase_size(
        self, model: PlannedModel, role: Role, rate_rps: float, now_s: float, cap_ratio: float
    ) -> int:
        sizes = model.seen.sizes(now_s=now_s)
        room_rps = rate_rps / (1.0 - self.rules.headroom_ratio)
        pools = model.of_role(role)
        enough = min(self.carrying.enough(p, cap_ratio, sizes, room_rps) for p in pools)
        running = sum(model.pools[p].asked for p in pools)
        wished = _of_role(model, role, model.wanted) if model.wanted else 0
        return min(size for size in (enough, running, wished) if size > 0)


def _of_role(model: PlannedModel, role: Role, replicas: tuple[int, ...]) -> int:
    """Count instances of a phase."""
    return sum(count for pool, count in zip(model.pools.values(), replicas, strict=True) if pool.role is role)


def _kinds_mixed(model: PlannedModel, replicas: tuple[int, ...] | None) -> bool:
    """Whether a plan serves some phase by several pools, though it need not."""
    if replicas is None or model.left_out:
        return False
    used = [pool.role for pool, count in zip(model.pools.values(), replicas, strict=True) if count]
    return any(used.count(role) > 1 for role in model.split_roles)


def _shrunk(model: PlannedModel, replicas: tuple[int, ...] | None) -> bool:
    """Take what a phase carries at fewer instances where a plan has fewer; whether any was."""
    if replicas is None:
        return False
    fewer = {
        role: planned
        for role, size in model.phase_sizes.items()
        if 0 < (planned := _of_role(model, role, replicas)) < size
    }
    model.phase_sizes = {**model.phase_sizes, **fewer}
    return bool(fewer)
