"""Why a service gets the plan it gets: the next best choice, and what each of its limits costs.

It exists so that people need not take a plan on trust. A service's problem is solved anew within the GPUs that others
leave it, then again with one limit less at a time. It changes nothing and reads no cluster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from solver.domain.cluster import ServiceState, VariantState
from solver.domain.deadline import Clock, Deadline
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix.explain import explain_plan
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.services.problem import alone, together

SAVING_RATIO = 1e-6
GAP_RATIO = 1e-6
LEAST_LIMIT_S = 0.05
PRICE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What keeps a service from other plans, beside its traffic and SLO."""

    own_max: tuple[int | None, ...]
    """By variant: ``maxReplicas`` of its owner."""
    fit: tuple[int | None, ...]
    """By variant: replicas that the nodes of its pool hold; None: not known, or not to be minded."""
    free_gpus: Mapping[str, int] | None
    """By pool: GPUs that others leave to this service, its own included; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingOne:
    """A limit without which the plan would be cheaper, or without which there would be one."""

    kind: str
    """gpus, min-replicas, max-replicas, locked, headroom or survive."""
    name: str
    """Pool or variant; empty for what concerns the whole service."""
    saving_usd_per_h: float | None
    """Changes counted; None where there is no plan with the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The best plan that uses other pools."""

    pools: tuple[str, ...]
    cost_usd_per_h: float
    """Changes counted."""
    proved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What was found; costs per hour count changes, spread over an hour, as the plan's own objective does."""

    status: str
    """A `solver.domain.gpu_mix.PlanStatus`."""
    replicas: tuple[int, ...] | None
    """Best now, by variant."""
    cost_usd_per_h: float | None
    second_best: Rival | None
    best_single_pool: Rival | None
    binding: tuple[BindingOne, ...]
    whole: bool
    """Every limit was tried before the time was up."""
    message: str = ""
    """Why there is no plan."""


def explain_service(
    service: ServiceState, limits: ServiceLimits, *, time_limit_s: float, clock: Clock
) -> Explanation:
    """Explain a service's plan."""
    deadline = Deadline.after(time_limit_s, clock)
    instance = _instance(service, limits)
    plan = _solve(instance, deadline)
    options = SolveOptions(time_limit_s=max(LEAST_LIMIT_S, deadline.remaining_s() / 2), gap_ratio=GAP_RATIO)
    explained = explain_plan(instance, plan, options=options, clock=clock)
    rival, single = explained.second_best, explained.best_single_type
    pools = {v.pool: v.pool for v in service.variants} | {
        f"{v.pool}/{v.name}": v.pool for v in service.variants
    }
    binding = []
    whole = True
    for kind, name, varied, varied_limits in _relaxed(service, limits):
        if deadline.remaining_s() <= LEAST_LIMIT_S:
            whole = False
            break
        other = _solve(_instance(varied, varied_limits), deadline)
        if other.objective is None:
            whole = whole and other.status is PlanStatus.INFEASIBLE
            continue
        if plan.objective is None:
            if plan.status is PlanStatus.INFEASIBLE:
                binding.append(BindingOne(kind=kind, name=name, saving_usd_per_h=None))
            continue
        saving = plan.objective - other.objective
        if saving > SAVING_RATIO * max(1.0, abs(plan.objective)):
            binding.append(BindingOne(kind=kind, name=name, saving_usd_per_h=saving))
    return Explanation(
        status=plan.status.value,
        replicas=plan.replicas[0] if plan.replicas else None,
        cost_usd_per_h=plan.objective,
        second_best=None
        if rival is None
        else Rival(
            pools=tuple(dict.fromkeys(pools[name] for name in rival.gpu_types)),
            cost_usd_per_h=rival.cost_usd_per_h,
            proved=rival.proved,
        ),
        best_single_pool=None
        if single is None
        else Rival(pools=(pools[single.gpu_type],), cost_usd_per_h=single.cost_usd_per_h, proved=True),
        binding=tuple(binding),
        whole=whole,
        message="" if plan.infeasible is None else plan.infeasible.message,
    )


def _instance(service: ServiceState, limits: ServiceLimits) -> GpuMixInstance:
    """Write the problem with its GPUs as limits, if a GPU costs the same in all variants of a pool."""
    bounded = tuple(
        replace(variant, max_replicas=_least(own, fit))
        for variant, own, fit in zip(service.variants, limits.own_max, limits.fit, strict=True)
    )
    bounded = tuple(replace(v, min_replicas=_least(v.min_replicas, v.max_replicas) or 0) for v in bounded)
    service = replace(service, variants=bounded)
    if limits.free_gpus is None or not _one_price_per_pool(service):
        return alone(service)
    return together([service], {v.pool: limits.free_gpus.get(v.pool, 0) for v in service.variants})


def _least(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return min(known) if known else None


def _one_price_per_pool(service: ServiceState) -> bool:
    prices: dict[str, float] = {}
    for variant in service.variants:
        price = variant.price_usd_per_h / variant.gpus_per_replica
        known = prices.setdefault(variant.pool, price)
        if abs(known - price) > PRICE_TOLERANCE * max(1.0, known):
            return False
    return True


def _solve(instance: GpuMixInstance, deadline: Deadline) -> GpuMixPlan:
    options = SolveOptions(time_limit_s=max(LEAST_LIMIT_S, deadline.remaining_s()), gap_ratio=GAP_RATIO)
    return solve_gpu_mix(instance, options=options, clock=deadline.clock)


def _relaxed(
    service: ServiceState, limits: ServiceLimits
) -> Iterator[tuple[str, str, ServiceState, ServiceLimits]]:
    """Take one limit away at a time."""
    for pool in dict.fromkeys(variant.pool for variant in service.variants):
        inside = [variant.pool == pool for variant in service.variants]
        if limits.free_gpus is None and not any(
            fit is not None for fit, own in zip(limits.fit, inside, strict=True) if own
        ):
            continue
        fit = tuple(None if own else fit for fit, own in zip(limits.fit, inside, strict=True))
        free = None if limits.free_gpus is None else {**limits.free_gpus, pool: 10**9}
        yield "gpus", pool, service, replace(limits, fit=fit, free_gpus=free)
    for index, variant in enumerate(service.variants):
        if variant.locked:
            yield "locked", variant.name, _with(service, index, locked=False), limits
            continue
        if variant.min_replicas:
            yield "min-replicas", variant.name, _with(service, index, min_replicas=0), limits
        if limits.own_max[index] is not None:
            own = tuple(None if place == index else most for place, most in enumerate(limits.own_max))
            yield "max-replicas", variant.name, service, replace(limits, own_max=own)
    if service.headroom_ratio:
        yield "headroom", "", replace(service, headroom_ratio=0.0), limits
    if service.survive:
        yield "survive", "", replace(service, survive=0), limits


def _with(service: ServiceState, index: int, **changes: bool | int) -> ServiceState:
    variants: list[VariantState] = list(service.variants)
    variants[index] = replace(variants[index], **changes)  # type: ignore[arg-type]
    return replace(service, variants=tuple(variants))
