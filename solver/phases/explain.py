"""What binds a fleet: limits without which it would be better, and what one more unit of each gains.

It exists apart from the search because each answer is a varied problem solved again with the same solver; nothing here
changes the plan. Limits act in lumps (a node of eight GPUs needs its full price), so a gain is taken over the least of
1, 2, 4, ... steps that gains anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetInstance, FleetLimit, FleetLimitKind, FleetPlan
from solver.phases.infeasible import without_limit

GAIN_RATIO = 1e-6
MOST_STEPS = 5
PART = 0.01
"""Budgets are widened by so much of themselves at first, links by so much of their speed."""

Better = Callable[[FleetInstance], float | None]
"""Objective of a varied problem; None if it was not proved in time."""


@dataclass(frozen=True, slots=True)
class _Widening:
    """A limit that may be widened by ``unit`` at least; ``widened`` returns the problem with so many more units."""

    kind: FleetLimitKind
    name: str
    unit: float
    widened: Callable[[float], FleetInstance]
    dropped: FleetInstance


def binding_limits(
    instance: FleetInstance, plan: FleetPlan, *, solve: Better, deadline: Deadline
) -> tuple[tuple[FleetLimit, ...], bool]:
    """Return the limits that bind a proved plan, and whether time allowed to look at all of them."""
    found: list[FleetLimit] = []
    for widening in _widenings(instance):
        if deadline.passed():
            return tuple(found), False
        free = solve(widening.dropped)
        if free is None:
            return tuple(found), False
        limit = _priced(widening, instance, plan, free=free, solve=solve, deadline=deadline)
        if limit is not None:
            found.append(limit)
    return tuple(found), True


def _priced(
    widening: _Widening,
    instance: FleetInstance,
    plan: FleetPlan,
    *,
    free: float,
    solve: Better,
    deadline: Deadline,
) -> FleetLimit | None:
    now = plan.objective or 0.0
    sign = -1.0 if instance.goal.maximised else 1.0
    least = GAIN_RATIO * max(abs(now), 1e-9)
    if sign * (now - free) <= least:
        return None
    for exponent in range(MOST_STEPS):
        if deadline.passed():
            break
        units = widening.unit * 2**exponent
        objective = solve(widening.widened(units))
        if objective is not None and sign * (now - objective) > least:
            return FleetLimit(
                kind=widening.kind,
                name=widening.name,
                gain_per_unit=sign * (now - objective) / units,
                step_units=units,
            )
    return FleetLimit(kind=widening.kind, name=widening.name, gain_per_unit=0.0, step_units=0.0)


def _widenings(instance: FleetInstance) -> Iterator[_Widening]:
    """Yield all limits that are set, with the least widening that can matter."""
    budgets = instance.budgets
    for kind, field, name, least in (
        ("budget", "cost_usd_per_h", "cost", 0.01),
        ("power-limit", "power_w", "power", 1.0),
        ("machine-limit", "machines", "machines", 1.0),
    ):
        limit = getattr(budgets, field)
        if limit is None:
            continue
        unit = least if kind == "machine-limit" else max(least, PART * limit)

        def more(units: float, field: str = field, limit: float = limit) -> FleetInstance:
            return replace(instance, budgets=replace(budgets, **{field: limit + units}))

        yield _Widening(kind, name, unit, more, without_limit(instance, kind))  # type: ignore[arg-type]
    yield from _stocks(instance)
    if any(config.kv_link_bytes_per_s is not None for model in instance.models for config in model.configs):
        yield _Widening(
            "kv-transfer",
            "links",
            PART,
            lambda units: _faster_links(instance, 1.0 + units),
            without_limit(instance, "kv-transfer"),
        )
    if any(model.min_total_replicas for model in instance.models):
        yield _Widening(
            "min-replicas",
            "replicas",
            1.0,
            lambda units: _fewer_replicas(instance, int(units)),
            without_limit(instance, "min-replicas"),
        )


def _stocks(instance: FleetInstance) -> Iterator[_Widening]:
    for g, offer in enumerate(instance.gpu_types):
        if offer.available is None:
            continue
        sizes = [
            config.gpus_per_replica
            for model in instance.models
            for config in model.configs
            if config.gpu_type == offer.name
        ]
        if not sizes:
            continue
        unit = offer.gpus_per_node if offer.whole_nodes and offer.gpus_per_node else min(sizes)

        def stocked(amount: int | None, g: int = g) -> FleetInstance:
            offers = list(instance.gpu_types)
            offers[g] = replace(offers[g], available=amount)
            return replace(instance, gpu_types=tuple(offers))

        def more(
            units: float, now: int = offer.available, stocked: Callable[[int | None], FleetInstance] = stocked
        ) -> FleetInstance:
            return stocked(now + int(units))

        yield _Widening("gpu-limit", offer.name, float(unit), more, stocked(None))


def _faster_links(instance: FleetInstance, factor: float) -> FleetInstance:
    models = tuple(
        replace(
            model,
            configs=tuple(
                config
                if config.kv_link_bytes_per_s is None
                else replace(config, kv_link_bytes_per_s=factor * config.kv_link_bytes_per_s)
                for config in model.configs
            ),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def _fewer_replicas(instance: FleetInstance, fewer: int) -> FleetInstance:
    models = tuple(
        replace(model, min_total_replicas=max(0, model.min_total_replicas - fewer))
        for model in instance.models
    )
    return replace(instance, models=models)
