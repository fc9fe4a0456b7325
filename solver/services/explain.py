"""Why a service gets the plan it gets: the next best choice, and what each of its limits costs.

It exists so that people need not take a plan on trust. A service's problem is solved anew within the GPUs that others
leave it, then again with one limit less at a time. It changes nothing and reads no cluster.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from solver.domain.cluster import ServiceState, VariantState
from solver.domain.deadline import Clock, Deadline
from solver.domain.fleet import FleetInstance, Role
from solver.domain.gpu_mix import PlanStatus
from solver.gpu_mix.explain import explain_plan
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.services.plan import LEAST_LIMIT_S, ServicesPlan, of_mix, solve
from solver.services.problem import Problem, alone, together

SAVING_RATIO = 1e-6
GAP_RATIO = 1e-6
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
    """gpus, min-replicas, max-replicas, locked, headroom, survive or kv-links."""
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
    without_splitting: Rival | None = None
    """The best plan of variants that serve whole requests; None also where no variant splits, or none is known."""
    message: str = ""
    """Why there is no plan."""


def explain_service(
    service: ServiceState, limits: ServiceLimits, *, time_limit_s: float, clock: Clock
) -> Explanation:
    """Explain a service's plan."""
    deadline = Deadline.after(time_limit_s, clock)
    explain = _explained_split if service.splits else _explained_mix
    plan, rivals = explain(service, limits, deadline)
    binding = []
    whole = True
    for kind, name, varied, varied_limits in _relaxed(service, limits):
        if deadline.remaining_s() <= LEAST_LIMIT_S:
            whole = False
            break
        other = _solve(_problem(varied, varied_limits), deadline)
        if other.objective_usd_per_h is None:
            whole = whole and other.status is PlanStatus.INFEASIBLE
            continue
        if plan.objective_usd_per_h is None:
            if plan.status is PlanStatus.INFEASIBLE:
                binding.append(BindingOne(kind=kind, name=name, saving_usd_per_h=None))
            continue
        saving = plan.objective_usd_per_h - other.objective_usd_per_h
        if saving > SAVING_RATIO * max(1.0, abs(plan.objective_usd_per_h)):
            binding.append(BindingOne(kind=kind, name=name, saving_usd_per_h=saving))
    return Explanation(
        status=plan.status.value,
        replicas=plan.replicas[0] if plan.replicas else None,
        cost_usd_per_h=plan.objective_usd_per_h,
        second_best=rivals.second_best,
        best_single_pool=rivals.best_single_pool,
        without_splitting=rivals.without_splitting,
        binding=tuple(binding),
        whole=whole,
        message=plan.message,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rivals:
    """Other plans that are worth knowing; None: there is none, or none was found in time."""

    second_best: Rival | None = None
    best_single_pool: Rival | None = None
    without_splitting: Rival | None = None


def _explained_mix(
    service: ServiceState, limits: ServiceLimits, deadline: Deadline
) -> tuple[ServicesPlan, _Rivals]:
    """Solve a service whose variants serve whole requests."""
    instance = _problem(service, limits)
    if isinstance(instance, FleetInstance):
        raise TypeError("the service splits its phases")
    options = SolveOptions(time_limit_s=max(LEAST_LIMIT_S, deadline.remaining_s()), gap_ratio=GAP_RATIO)
    plan = solve_gpu_mix(instance, options=options, clock=deadline.clock)
    options = replace(options, time_limit_s=max(LEAST_LIMIT_S, deadline.remaining_s() / 2))
    explained = explain_plan(instance, plan, options=options, clock=deadline.clock)
    rival, single = explained.second_best, explained.best_single_type
    pools = {v.pool: v.pool for v in service.variants} | {
        f"{v.pool}/{v.name}": v.pool for v in service.variants
    }
    return of_mix(instance, plan), _Rivals(
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
    )


def _explained_split(
    service: ServiceState, limits: ServiceLimits, deadline: Deadline
) -> tuple[ServicesPlan, _Rivals]:
    """Solve a service that may split its phases.

    Another set of pools leaves out one that is used or uses one that is not, so the best of those problems is the
    second best plan.
    """
    plan = _solve(_problem(service, limits), deadline)
    if not plan.replicas:
        return plan, _Rivals()
    until = deadline.sooner(deadline.remaining_s() / 2)
    names = list(dict.fromkeys(variant.pool for variant in service.variants))
    used = _pools_of(service, plan.replicas[0])
    others = [
        (service, _without(service, limits, [v.pool == name for v in service.variants]))
        for name in sorted(used)
    ]
    others += [
        (_with(service, index, min_replicas=max(1, variant.min_replicas)), limits)
        for index, variant in enumerate(service.variants)
        if variant.pool not in used and not variant.locked and _most(limits, index) != 0
    ]
    singles = [
        (service, _without(service, limits, [v.pool != name for v in service.variants])) for name in names
    ]
    whole = _without(service, limits, [v.role is not Role.BOTH for v in service.variants])
    return plan, _Rivals(
        without_splitting=_best_of([(service, whole)], until),
        second_best=_best_of(others, until),
        best_single_pool=_best_of(singles, until),
    )


def _best_of(varied: Iterable[tuple[ServiceState, ServiceLimits | None]], deadline: Deadline) -> Rival | None:
    """Return the cheapest plan of varied problems; those without limits are none."""
    best: tuple[float, ServiceState, ServicesPlan] | None = None
    proved = True
    for service, limits in varied:
        if limits is None:
            continue
        if deadline.remaining_s() <= LEAST_LIMIT_S:
            proved = False
            break
        plan = _solve(_problem(service, limits), deadline)
        proved = proved and plan.status in (PlanStatus.OPTIMAL, PlanStatus.INFEASIBLE)
        cost = plan.objective_usd_per_h
        if cost is not None and (best is None or cost < best[0]):
            best = cost, service, plan
    if best is None:
        return None
    cost, service, plan = best
    pools = tuple(sorted(_pools_of(service, plan.replicas[0])))
    return Rival(pools=pools, cost_usd_per_h=cost, proved=proved) if pools else None


def _pools_of(service: ServiceState, replicas: Sequence[int]) -> set[str]:
    return {variant.pool for variant, count in zip(service.variants, replicas, strict=True) if count}


def _without(service: ServiceState, limits: ServiceLimits, left_out: Sequence[bool]) -> ServiceLimits | None:
    """Allow no replicas of some variants; None where their owners want some of them."""
    for index, variant in enumerate(service.variants):
        wanted = variant.replicas if variant.locked else _least(variant.min_replicas, _most(limits, index))
        if left_out[index] and wanted:
            return None
    own_max = tuple(0 if out else most for out, most in zip(left_out, limits.own_max, strict=True))
    return replace(limits, own_max=own_max)


def _most(limits: ServiceLimits, index: int) -> int | None:
    """Most replicas of a variant, if that is known."""
    return _least(limits.own_max[index], limits.fit[index])


def _problem(service: ServiceState, limits: ServiceLimits) -> Problem:
    """Write the problem with its GPUs as limits, if a GPU costs the same in all variants of a pool."""
    bounded = tuple(
        replace(variant, max_replicas=_most(limits, index)) for index, variant in enumerate(service.variants)
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


def _solve(problem: Problem, deadline: Deadline) -> ServicesPlan:
    return solve(problem, time_limit_s=deadline.remaining_s(), gap_ratio=GAP_RATIO, clock=deadline.clock)


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
    if service.kv_bytes_per_prompt_token and any(v.kv_link_bytes_per_s is not None for v in service.variants):
        unlinked = tuple(replace(variant, kv_link_bytes_per_s=None) for variant in service.variants)
        yield "kv-links", "", replace(service, variants=unlinked), limits


def _with(service: ServiceState, index: int, **changes: bool | int) -> ServiceState:
    variants: list[VariantState] = list(service.variants)
    variants[index] = replace(variants[index], **changes)  # type: ignore[arg-type]
    return replace(service, variants=tuple(variants))
