"""The pools of a scenario as a planner sees and changes them: what an instance carries, which run, start and stop.

It exists so that everybody who decides in a simulation (`controller.closed_loop.deciders`) works on the same values as
the operator, `solver.domain.cluster.ServiceState`, and so that what was decided becomes events of the scenario. It
decides nothing and looks at no request.

A pool that serves one phase gains with the size of its phase (one queue in front of many servers), while a plan counts
what one instance carries. What one carries is therefore read at a number of instances that no plan of that state is
below (`Carrying.enough`, `controller.closed_loop.services`): a phase is never taken to carry more than it does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.fleet import EventKind
from simulator.scenario import PlannerRules, Scenario, ScenarioEvent
from solver.domain.cluster import ServiceState, Stance, VariantState
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo
from solver.performance.capacity import max_mixed_rate_rps
from solver.performance.iteration import EngineSettings
from solver.performance.phase_capacity import pool_capacity
from solver.performance.protocol import PerformanceModel
from solver.services.problem import HORIZON_H

LARGEST_PHASE = 32
"""Instances beyond which a phase gains next to nothing more by being larger."""
UNBOUNDED_DRAIN_S = 3600.0
"""A drain without a limit is taken to have ended after so long."""
EDGE_S = 1e-6

Sizes = tuple[RequestBucket, ...]


@dataclass(slots=True, kw_only=True)
class TrackedPool:
    """One pool: instances by number, since when each serves or was stopped."""

    name: str
    gpu_type: str
    """As the catalogue calls it."""
    gpus_per_instance: int
    role: Role = Role.BOTH
    tdp_w: float
    """Of one GPU."""
    price_usd_per_h: float
    """Of one instance."""
    own_cap_w: float | None
    start_s: float
    drain_s: float
    ready_at_s: dict[int, float] = field(default_factory=dict)
    """Of the instances that were started and not stopped."""
    stopped_at_s: dict[int, float] = field(default_factory=dict)
    """Of those that were stopped last."""
    events: list[ScenarioEvent] = field(default_factory=list)
    at_start: frozenset[int] = frozenset()
    """Instances that serve when the trace begins."""

    @property
    def asked(self) -> int:
        """Instances asked for."""
        return len(self.ready_at_s)

    @property
    def slots(self) -> int:
        """Instances that ever were."""
        return len(self.ready_at_s) + len(self.stopped_at_s)

    def ready(self, now_s: float) -> int:
        """Count those that serve."""
        return sum(at_s <= now_s + EDGE_S for at_s in self.ready_at_s.values())

    def held(self, now_s: float) -> int:
        """Count those that may hold GPUs: asked for, or draining."""
        return self.asked + sum(
            now_s < at_s + self._drained_s - EDGE_S for at_s in self.stopped_at_s.values()
        )

    @property
    def _drained_s(self) -> float:
        return self.drain_s if self.drain_s > 0.0 else UNBOUNDED_DRAIN_S

    def next_ready_s(self, now_s: float) -> float:
        """Return when the next instance will serve; infinity: none is starting."""
        return min((at_s for at_s in self.ready_at_s.values() if at_s > now_s + EDGE_S), default=float("inf"))

    def scale(self, to: int, now_s: float, *, cap_w: float | None) -> None:
        """Start or stop instances; an instance that may still be draining is not taken back."""
        while self.asked < to:
            free = [n for n, at_s in self.stopped_at_s.items() if at_s + self._drained_s <= now_s + EDGE_S]
            number = min(free, default=self.slots)
            self.stopped_at_s.pop(number, None)
            self.ready_at_s[number] = now_s + self.start_s
            if now_s >= 0.0:
                if cap_w is not None:
                    self._note(EventKind.CAP, number, now_s, cap_w)
                self._note(EventKind.UP, number, now_s)
        while self.asked > to:
            number = max(self.ready_at_s, key=lambda n: (self.ready_at_s[n], n))
            starting = self.ready_at_s.pop(number) > now_s + EDGE_S
            self.stopped_at_s[number] = now_s - (self._drained_s if starting else 0.0)
            if now_s >= 0.0:
                self._note(EventKind.DRAIN, number, now_s)

    def cap(self, cap_w: float | None, now_s: float) -> None:
        """Cap every instance that is asked for or may be draining."""
        for number in sorted({*self.ready_at_s, *self.stopped_at_s}):
            self._note(EventKind.CAP, number, now_s, cap_w)

    def begin(self) -> None:
        """Say that the trace begins: what was asked for before serves."""
        self.at_start = frozenset(self.ready_at_s)
        self.ready_at_s = dict.fromkeys(sorted(self.ready_at_s), 0.0)

    def _note(self, kind: EventKind, number: int, now_s: float, value_w: float | None = None) -> None:
        self.events.append(
            ScenarioEvent(time_s=now_s, kind=kind, pool=self.name, index=number, value_w=value_w)
        )


@dataclass(slots=True, kw_only=True)
class Carrying:
    """What one instance of each pool carries inside the SLO, by request sizes and cap; remembered.

    Of whole requests, or of the phase that its pool serves; a link that moves KV carries no more than it can.
    """

    scenario: Scenario
    performance: Mapping[float, Sequence[PerformanceModel]]
    """By cap ratio: of every pool."""
    reference: Mapping[str, PerformanceModel]
    kv_bytes_per_token: Mapping[str, float]
    """By model: what moves between phases for each token of a prompt."""
    _known: dict[tuple[int, float, Sizes, int], float] = field(default_factory=dict)

    def role(self, pool: int) -> Role:
        """Return what a pool serves."""
        return Role(self.scenario.pools[pool].role.value)

    def link_bytes_per_s(self, pool: int) -> float | None:
        """Return what an instance's link moves; None: it moves no KV, or without limit."""
        links = self.scenario.links
        return links.bytes_per_s if links.contention and self.role(pool) is not Role.BOTH else None

    def rate_rps(self, pool: int, cap_ratio: float, sizes: Sizes, *, phase_size: int = 1) -> float:
        """Return the largest rate of that mixture; 0: it cannot be served inside the SLO.

        ``phase_size``: instances that serve the pool's phase together; it matters where that is one phase only.
        """
        size = 0 if self.role(pool) is Role.BOTH else min(max(1, phase_size), LARGEST_PHASE)
        key = (pool, cap_ratio, sizes, size)
        if key not in self._known:
            self._known[key] = self._rate_rps(
                pool, self.performance[cap_ratio][pool], sizes, self.scenario.slo, size
            )
        return self._known[key]

    def linked_rps(self, pool: int, cap_ratio: float, sizes: Sizes, *, phase_size: int = 1) -> float:
        """Return that rate, or what the link moves where that is less."""
        rate_rps = self.rate_rps(pool, cap_ratio, sizes, phase_size=phase_size)
        link = self.link_bytes_per_s(pool)
        moved = mean_prompt_tokens(sizes) * self.kv_bytes_per_token[self.scenario.pools[pool].model]
        return rate_rps if link is None or moved <= 0.0 else min(rate_rps, link / moved)

    def enough(self, pool: int, cap_ratio: float, sizes: Sizes, rate_rps: float) -> int:
        """Return the fewest instances of a phase that carry a rate; `LARGEST_PHASE` if so many do not."""
        low, high = 1, LARGEST_PHASE
        while low < high:
            middle = (low + high) // 2
            if middle * self.rate_rps(pool, cap_ratio, sizes, phase_size=middle) >= rate_rps:
                high = middle
            else:
                low = middle + 1
        return low

    def _rate_rps(self, pool: int, model: PerformanceModel, sizes: Sizes, slo: Slo, phase_size: int) -> float:
        if model.kv_capacity_tokens() <= 0:
            return 0.0
        scheduler = self.scenario.scheduler
        engine = EngineSettings(
            max_batch=scheduler.max_batch,
            max_batch_tokens=scheduler.max_batch_tokens,
            chunked_prefill=scheduler.chunked_prefill,
        )
        reference = self.reference.get(self.scenario.pools[pool].model)
        if phase_size:
            return pool_capacity(
                model, sizes, slo, engine, role=self.role(pool), replicas=phase_size, reference=reference
            ).rate_rps
        return max_mixed_rate_rps(model, sizes, slo, engine, reference=reference).rate_rps


def mean_prompt_tokens(sizes: Sizes) -> float:
    """Return the mean over sizes whose rates sum to 1."""
    return sum(size.rate_rps * (size.input_tokens or 0.0) for size in sizes)


def service_state(
    model: str,
    pools: Mapping[int, TrackedPool],
    *,
    carried_rps: Mapping[int, float],
    links_bytes_per_s: Mapping[int, float | None],
    kv_bytes_per_token: float,
    sizes: Sizes,
    rate_rps: float,
    rules: PlannerRules,
    now_s: float,
) -> ServiceState:
    """Write a model as the service that the Planner knows.

    Requests are spread over the pools by what each carries, so every instance gets the whole mixture: one bucket that
    stands for it, and what an instance carries of that mixture (`Carrying`). A start costs what an instance costs while
    it starts, at the largest price per GPU of the pools, so that no change is undercharged; the Planner spreads that
    over an hour, so it is scaled to be earned back in ``change_s``. Links keep the headroom free that instances do.
    """
    dearest_usd_per_h = max(pool.price_usd_per_h / pool.gpus_per_instance for pool in pools.values())
    mean_in = mean_prompt_tokens(sizes)
    mean_out = sum(size.rate_rps * (size.output_tokens or 0.0) for size in sizes)
    return ServiceState(
        name=model,
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=rate_rps, input_tokens=mean_in, output_tokens=mean_out),),
        variants=tuple(
            VariantState(
                name=pool.name,
                pool=pool.gpu_type,
                gpus_per_replica=pool.gpus_per_instance,
                price_usd_per_h=pool.price_usd_per_h,
                throughput_rps=(carried_rps[p],),
                replicas=pool.asked,
                ready=pool.ready(now_s),
                held=pool.held(now_s),
                role=pool.role,
                kv_link_bytes_per_s=_usable(links_bytes_per_s[p], rules.headroom_ratio),
            )
            for p, pool in pools.items()
        ),
        headroom_ratio=rules.headroom_ratio,
        kv_bytes_per_prompt_token=kv_bytes_per_token
        if any(pool.role is not Role.BOTH for pool in pools.values())
        else 0.0,
        start_cost_usd=dearest_usd_per_h * rules.start_s / rules.change_s * HORIZON_H
        if rules.change_s
        else 0.0,
    )


def _usable(link_bytes_per_s: float | None, headroom_ratio: float) -> float | None:
    return None if link_bytes_per_s is None else link_bytes_per_s * (1.0 - headroom_ratio)
