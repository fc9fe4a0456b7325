"""Verifies a plan against the problem it answers, without the solver that made it.

It exists so that no plan is applied or shown on the word of a solver: everything the README of
gputype-instance asks is computed again here from the instance alone, and every rule that is broken
becomes a sentence. It imports no solver and no backend; whether a routing exists at all (after replicas
are lost) is settled by a small certificate of its own (`certify_routing`, `solver.check.game`). It says
nothing about how good a plan is beyond what the plan itself claims.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from solver.check.game import Floats, least_largest_use
from solver.check.losses import unsurvived
from solver.domain.gpu_mix import (
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    InfeasibleKind,
    ModelDemand,
    PlanStatus,
)


def check_gpu_mix(instance: GpuMixInstance, plan: GpuMixPlan, *, tolerance: float = 1e-6) -> tuple[str, ...]:
    """Return what is wrong with a plan, one sentence each; empty means sound.

    Parameters
    ----------
    instance
        The problem.
    plan
        The answer to verify.
    tolerance
        Relative on costs and watts, absolute on shares, loads and load ratios.

    Notes
    -----
    With replicas n[m,c], shares x[m,b,c], rates r and throughputs T: the sum over c of x[m,b,c] is 1
    where r[m,b] > 0; load[m,c] = sum over b of r[m,b] x[m,b,c] / T[m,b,c] <= (1 - headroom) n[m,c]; the
    limits, costs and the survival of losses are those of the README of gputype-instance, version 2.
    """
    if plan.status is PlanStatus.INFEASIBLE:
        return (*_named(instance, plan), *_without_plan(plan), *_infeasible(instance, plan))
    if plan.status is PlanStatus.TIMED_OUT:
        return (*_named(instance, plan), *_without_plan(plan), *_no_reason(plan))
    shape = [*_named(instance, plan), *_no_reason(plan), *_shape(instance, plan)]
    if shape:
        return tuple(shape)  # the other rules would stumble over it
    violations: list[str] = []
    for m, model in enumerate(instance.models):
        violations += _routing(model, m, plan, tolerance)
        violations += _replicas(model, plan.replicas[m])
        violations += _survival(model, plan.replicas[m], tolerance)
    violations += _limits(instance, plan, tolerance)
    violations += _costs(instance, plan, tolerance)
    violations += _rivals(instance, plan, tolerance)
    return tuple(violations)


def _close(stated: float, true: float, tolerance: float) -> bool:
    return abs(stated - true) <= tolerance * abs(true) + 1e-9


def _finite(value: float | None) -> bool:
    return value is not None and not isinstance(value, bool) and math.isfinite(value)


def _named(instance: GpuMixInstance, plan: GpuMixPlan) -> Iterator[str]:
    if plan.instance_name != instance.name:
        yield f"the plan answers {plan.instance_name!r}, the instance is {instance.name!r}"


def _no_reason(plan: GpuMixPlan) -> Iterator[str]:
    if plan.infeasible is not None:
        yield f"the status is {plan.status}, yet a reason for infeasibility is given"


def _without_plan(plan: GpuMixPlan) -> Iterator[str]:
    """Nothing may be stated of a plan that does not exist."""
    for field in (
        "objective",
        "running_cost_usd_per_h",
        "change_cost_usd",
        "gap_ratio",
        "power_w",
        "best_single_type",
        "second_best",
    ):
        if getattr(plan, field) is not None:
            yield f"the status is {plan.status}, yet {field} is given"
    for field in ("replicas", "routing", "load_ratio", "bought_gpus", "spot_gpus", "binding"):
        if getattr(plan, field):
            yield f"the status is {plan.status}, yet {field} is given"
    if plan.status is PlanStatus.INFEASIBLE and plan.lower_bound_usd_per_h is not None:
        yield "the status is infeasible, yet lower_bound_usd_per_h is given"


def _unservable(instance: GpuMixInstance) -> set[tuple[str, int]]:
    """Return the buckets with traffic that no configuration serves."""
    return {
        (model.name, b)
        for model in instance.models
        for b, bucket in enumerate(model.buckets)
        if bucket.rate_rps > 0 and not any(rate_rps > 0 for rate_rps in model.throughput_rps[b])
    }


def _infeasible(instance: GpuMixInstance, plan: GpuMixPlan) -> Iterator[str]:
    """Hold the reason against the instance: it names what exists, and a limit that is there."""
    reason = plan.infeasible
    if reason is None:
        yield "the status is infeasible, yet no reason is given"
        return
    if reason.kind not in get_args(InfeasibleKind):
        yield f"the reason's kind {reason.kind!r} is none of {', '.join(get_args(InfeasibleKind))}"
    if not reason.message.strip():
        yield "the reason has no message"
    models = {model.name: model for model in instance.models}
    for name in reason.models:
        if name not in models:
            yield f"the reason names the model {name!r}, which the instance does not have"
    for name in reason.gpu_types:
        if name not in {offer.name for offer in instance.gpu_types}:
            yield f"the reason names the GPU type {name!r}, which the instance does not have"
    unservable = _unservable(instance)
    if (reason.kind == "bucket-unservable") != bool(unservable):
        yield (
            f"the reason is {reason.kind}, yet {len(unservable)} buckets with traffic have no configuration"
        )
    if reason.kind == "bucket-unservable":
        if not reason.buckets:
            yield "the reason is bucket-unservable, yet no bucket is named"
        for b in reason.buckets:
            if not any((name, b) in unservable for name in reason.models):
                yield f"bucket {b} is named as unservable, but a configuration serves it or it has no traffic"
    there = {
        "gpu-limit": any(
            limit is not None
            for offer in instance.gpu_types
            for limit in (offer.available, offer.spot_available)
        ),
        "power-limit": instance.power_limit_w is not None,
        "budget": instance.budget_usd_per_h is not None,
        "quality": any(
            variant.quality_ratio < model.min_quality_ratio
            for model in instance.models
            for variant in model.variants
        ),
        "replica-limit": any(
            variant.min_replicas > 0 or variant.max_replicas is not None
            for model in instance.models
            for variant in model.variants
        ),
        "survive": any(model.survive > 0 and model.rate_rps > 0 for model in instance.models),
    }
    if not there.get(reason.kind, True):
        yield f"the reason is {reason.kind}, yet the instance has no such limit that acts"


def _shape(instance: GpuMixInstance, plan: GpuMixPlan) -> Iterator[str]:
    """Everything is there, in the order of the instance, finite."""
    for field in (
        "objective",
        "running_cost_usd_per_h",
        "change_cost_usd",
        "lower_bound_usd_per_h",
        "gap_ratio",
    ):
        if not _finite(getattr(plan, field)):
            yield f"the status is {plan.status}, yet {field} is {getattr(plan, field)}"
    if not plan.method:
        yield "the method is not named"
    for field, table in (("replicas", plan.replicas), ("load_ratio", plan.load_ratio)):
        if [len(row) for row in table] != [len(model.variants) for model in instance.models]:
            yield f"{field} does not have one number per model and configuration"
    for field, row in (("bought_gpus", plan.bought_gpus), ("spot_gpus", plan.spot_gpus)):
        if len(row) != len(instance.gpu_types):
            yield f"{field} does not have one number per GPU type"
    for model, row in zip(instance.models, plan.replicas, strict=False):
        for c, count in enumerate(row):
            if type(count) is not int or count < 0:
                yield f"{model.name}, configuration {c}: {count!r} is not a whole number of replicas"


def _routing(model: ModelDemand, m: int, plan: GpuMixPlan, tolerance: float) -> Iterator[str]:
    """Shares lie in [0, 1] and sum to 1 where there is traffic; loads are as stated and fit."""
    shares = np.zeros((len(model.buckets), len(model.variants)))
    seen: set[tuple[int, int]] = set()
    for entry in plan.routing:
        if entry.model != model.name:
            continue
        at = f"{model.name}, bucket {entry.bucket}, configuration {entry.config}"
        if not (0 <= entry.bucket < len(model.buckets) and 0 <= entry.config < len(model.variants)):
            yield f"{at}: there is no such bucket or configuration"
            continue
        if (entry.bucket, entry.config) in seen:
            yield f"{at}: routed twice"
        seen.add((entry.bucket, entry.config))
        if not _finite(entry.share) or not -tolerance <= entry.share <= 1 + tolerance:
            yield f"{at}: the share {entry.share} is outside 0 to 1"
            continue
        shares[entry.bucket, entry.config] += entry.share
        if model.buckets[entry.bucket].rate_rps == 0:
            yield f"{at}: routed, though the bucket has no traffic"
        elif model.throughput_rps[entry.bucket][entry.config] == 0 and entry.share != 0:
            yield f"{at}: routed to a configuration that cannot serve it"
        elif model.variants[entry.config].quality_ratio < model.min_quality_ratio and entry.share != 0:
            yield f"{at}: routed to a configuration below the quality asked for"
    rate_rps = np.array([bucket.rate_rps for bucket in model.buckets])
    for b in np.flatnonzero((rate_rps > 0) & (np.abs(shares.sum(axis=1) - 1) > tolerance)):
        yield f"{model.name}, bucket {b}: the shares sum to {shares[b].sum():.9g}, not 1"
    loads = (_load_per_share(model) * shares).sum(axis=0)
    for c, (load, count) in enumerate(zip(loads.tolist(), plan.replicas[m], strict=True)):
        at = f"{model.name}, configuration {c}"
        room = (1 - model.headroom_ratio) * count
        if load > room + tolerance:
            yield f"{at}: the load {load:.9g} exceeds {room:.9g}, the room of {count} replicas with headroom"
        ratio = load / count if count else 0.0
        if not abs(plan.load_ratio[m][c] - ratio) <= tolerance:
            yield f"{at}: the load ratio is stated as {plan.load_ratio[m][c]}, it is {ratio:.9g}"
    spot = np.array([variant.spot for variant in model.variants])
    spot_rps = float((rate_rps[:, None] * shares)[:, spot].sum())
    if spot_rps > (model.max_spot_load_ratio + tolerance) * model.rate_rps:
        yield (
            f"{model.name}: spot configurations serve {spot_rps:.9g} of {model.rate_rps:.9g} requests/s,"
            f" more than the share {model.max_spot_load_ratio} allowed"
        )


def _load_per_share(model: ModelDemand) -> Floats:
    """Return r[b] / T[b,c], the replicas that the whole bucket takes; 0 where it cannot be served."""
    rate_rps = np.array([bucket.rate_rps for bucket in model.buckets])
    throughput_rps = np.array(model.throughput_rps).reshape(len(model.buckets), len(model.variants))
    served = throughput_rps > 0
    return np.where(served, rate_rps[:, None] / np.where(served, throughput_rps, 1.0), 0.0)


def _replicas(model: ModelDemand, counts: tuple[int, ...]) -> Iterator[str]:
    """Enough replicas in total and of each variant, none below the quality asked for."""
    if sum(counts) < model.min_total_replicas:
        yield f"{model.name}: {sum(counts)} replicas, at least {model.min_total_replicas} are asked for"
    for c, (variant, count) in enumerate(zip(model.variants, counts, strict=True)):
        most = math.inf if variant.max_replicas is None else variant.max_replicas
        if not variant.min_replicas <= count <= most:
            yield f"{model.name}, configuration {c}: {count} replicas, {variant.min_replicas} to {most} are allowed"
        if count > variant.min_replicas and variant.quality_ratio < model.min_quality_ratio:
            yield (
                f"{model.name}, configuration {c}: {count} replicas of quality {variant.quality_ratio},"
                f" at least {model.min_quality_ratio} is asked for"
            )


def _survival(model: ModelDemand, counts: tuple[int, ...], tolerance: float) -> Iterator[str]:
    """Whichever ``survive`` replicas are lost, some routing over the others carries the full rate."""
    if model.survive == 0 or model.rate_rps <= 0:
        return
    load = _load_per_share(model)
    good = np.array([variant.quality_ratio >= model.min_quality_ratio for variant in model.variants])
    allowed = (np.array(model.throughput_rps).reshape(load.shape) > 0) & good
    busy = np.array([bucket.rate_rps > 0 for bucket in model.buckets])
    load, allowed = load[busy], allowed[busy]

    def carried(left: Floats) -> tuple[float, Floats]:
        certificate = certify_routing(load, allowed, left, limit=1 + tolerance)
        return certificate.utilisation, certificate.loads

    yield from unsurvived(model.name, counts, model.survive, carried, tolerance=tolerance)


def _gpus(instance: GpuMixInstance, plan: GpuMixPlan, offer: GpuOffer, *, spot: bool) -> int:
    """Return the GPUs of a type that the replicas occupy."""
    return sum(
        variant.gpus_per_replica * count
        for model, counts in zip(instance.models, plan.replicas, strict=True)
        for variant, count in zip(model.variants, counts, strict=True)
        if variant.gpu_type == offer.name and variant.spot == spot
    )


def _bought(instance: GpuMixInstance, plan: GpuMixPlan, offer: GpuOffer) -> int:
    """Return the on-demand GPUs to buy: those occupied, in whole nodes where the type is sold so."""
    occupied = _gpus(instance, plan, offer, spot=False)
    if not offer.whole_nodes or offer.gpus_per_node is None:
        return occupied
    return -(-occupied // offer.gpus_per_node) * offer.gpus_per_node


def _limits(instance: GpuMixInstance, plan: GpuMixPlan, tolerance: float) -> Iterator[str]:
    """GPUs, spot GPUs and watts are as stated and within their limits."""
    known = {model.name for model in instance.models}
    for entry in plan.routing:
        if entry.model not in known:
            yield f"routing names the model {entry.model!r}, which the instance does not have"
    power_w: float | None = 0.0
    for g, offer in enumerate(instance.gpu_types):
        bought = _bought(instance, plan, offer)
        spot = _gpus(instance, plan, offer, spot=True)
        if plan.bought_gpus[g] != bought:
            yield f"{offer.name}: {plan.bought_gpus[g]} bought GPUs are stated, the replicas take {bought}"
        if plan.spot_gpus[g] != spot:
            yield f"{offer.name}: {plan.spot_gpus[g]} spot GPUs are stated, the replicas take {spot}"
        if offer.available is not None and bought > offer.available:
            yield f"{offer.name}: {bought} GPUs are bought, {offer.available} are available"
        if offer.spot_available is not None and spot > offer.spot_available:
            yield f"{offer.name}: {spot} spot GPUs are taken, {offer.spot_available} are available"
        if bought + spot:
            power_w = (
                None
                if power_w is None or offer.power_w is None
                else power_w + offer.power_w * (bought + spot)
            )
    if power_w is None:
        if plan.power_w is not None:
            yield f"power is stated as {plan.power_w} W, though the power of a used GPU type is not known"
        if instance.power_limit_w is not None:
            yield "power is limited, though the power of a used GPU type is not known"
        return
    if plan.power_w is None or not _close(plan.power_w, power_w, tolerance):
        yield f"power is stated as {plan.power_w} W, it is {power_w:.9g} W"
    if instance.power_limit_w is not None and power_w > instance.power_limit_w * (1 + tolerance):
        yield f"power is {power_w:.9g} W, the limit {instance.power_limit_w} W"


def _costs(instance: GpuMixInstance, plan: GpuMixPlan, tolerance: float) -> Iterator[str]:
    """Costs follow from the replicas; the bound lies below them; gap and status fit."""
    running = 0.0
    for offer in instance.gpu_types:
        running += offer.price_usd_per_h * max(0, _bought(instance, plan, offer) - offer.reserved)
        spot = _gpus(instance, plan, offer, spot=True)
        if spot and offer.spot_price_usd_per_h is None:
            yield f"{offer.name}: spot GPUs are taken, but there is no spot price"
        running += spot * (offer.spot_price_usd_per_h or 0.0)
    change = sum(
        variant.gpus_per_replica
        * (
            instance.start_cost_usd * max(0, count - variant.current_replicas)
            + instance.stop_cost_usd * max(0, variant.current_replicas - count)
        )
        for model, counts in zip(instance.models, plan.replicas, strict=True)
        for variant, count in zip(model.variants, counts, strict=True)
        if variant.current_replicas is not None
    )
    true_objective = running + change / instance.horizon_h
    for field, true in (
        ("running_cost_usd_per_h", running),
        ("change_cost_usd", change),
        ("objective", true_objective),
    ):
        if not _close(getattr(plan, field), true, tolerance):
            yield f"{field} is stated as {getattr(plan, field)}, it is {true:.9g}"
    budget = instance.budget_usd_per_h
    if budget is not None and running > budget * (1 + tolerance) + 1e-9:
        yield f"the running cost is {running:.9g} US$/h, the budget {budget} US$/h"
    objective, bound, gap = plan.objective or 0.0, plan.lower_bound_usd_per_h or 0.0, plan.gap_ratio or 0.0
    if bound > objective + tolerance * abs(objective) + 1e-9:
        yield f"the lower bound {bound} lies above the objective {objective}"
    true_gap = (objective - bound) / max(abs(objective), 1e-9)
    if not abs(gap - true_gap) <= tolerance * max(1.0, abs(true_gap)):
        yield f"gap_ratio is stated as {gap}, it is {true_gap:.9g}"
    if plan.status is PlanStatus.OPTIMAL and gap > tolerance:
        yield f"the status is optimal, yet gap_ratio is {gap}"


def _rivals(instance: GpuMixInstance, plan: GpuMixPlan, tolerance: float) -> Iterator[str]:
    """Hold the other plans named, and the prices of limits, against what is possible."""
    names = [offer.name for offer in instance.gpu_types]
    used = {name for name, *gpus in zip(names, plan.bought_gpus, plan.spot_gpus, strict=True) if any(gpus)}
    objective, bound = plan.objective or 0.0, plan.lower_bound_usd_per_h or 0.0
    slack = tolerance * abs(objective) + 1e-9
    single, second = plan.best_single_type, plan.second_best
    if single is not None:
        if single.gpu_type not in names:
            yield f"the best single type {single.gpu_type!r} is not one of the instance's"
        elif not _serves_alone(instance, single.gpu_type):
            yield f"the best single type {single.gpu_type} cannot serve every bucket"
        if not _finite(single.cost_usd_per_h) or single.cost_usd_per_h < bound - slack:
            yield f"the best single type costs {single.cost_usd_per_h}, less than the lower bound {bound}"
        if plan.status is PlanStatus.OPTIMAL and len(used) == 1 and single.cost_usd_per_h > objective + slack:
            yield f"the plan uses one GPU type only, yet the best single type costs {single.cost_usd_per_h}"
    if second is not None:
        if not set(second.gpu_types) <= set(names) or len(set(second.gpu_types)) < len(second.gpu_types):
            yield f"the second best plan names {', '.join(second.gpu_types)}: no set of the instance's types"
        if set(second.gpu_types) == used:
            yield "the second best plan uses the same GPU types as the plan"
        if not _finite(second.cost_usd_per_h) or second.cost_usd_per_h < bound - slack:
            yield f"the second best plan costs {second.cost_usd_per_h}, less than the lower bound {bound}"
    for limit in plan.binding:
        if not _finite(limit.price_usd_per_unit) or limit.price_usd_per_unit < 0:
            yield f"the price of the limit {limit.kind} {limit.name} is {limit.price_usd_per_unit}"


def _serves_alone(instance: GpuMixInstance, gpu_type: str) -> bool:
    """Tell whether every bucket with traffic has an allowed configuration on the type."""
    return all(
        any(
            rate_rps > 0 and variant.gpu_type == gpu_type and variant.quality_ratio >= model.min_quality_ratio
            for variant, rate_rps in zip(model.variants, row, strict=True)
        )
        for model in instance.models
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
        if bucket.rate_rps > 0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingCertificate:
    """A routing and a proof of how good it is: the least largest utilisation lies between the numbers."""

    utilisation: float
    """Largest load divided by capacity of the routing below; infinite if a bucket cannot be routed."""
    lower_bound: float
    """No routing has a smaller largest utilisation."""
    shares: Floats
    """[bucket][configuration]."""
    loads: Floats
    """[configuration]."""


def certify_routing(
    load: Floats,
    allowed: npt.NDArray[np.bool_],
    capacity: Floats,
    *,
    spot: Floats | None = None,
    spot_capacity: float = math.inf,
    limit: float | None = 1.0,
) -> RoutingCertificate:
    """Find shares whose largest utilisation is at most ``limit``, or prove that there are none.

    Parameters
    ----------
    load
        [bucket][configuration]: replicas that the whole bucket takes.
    allowed
        [bucket][configuration]: whether the bucket may go there.
    capacity
        [configuration]: replicas there are; a configuration without any takes nothing.
    spot, spot_capacity
        [bucket][configuration] use of one more shared resource, and how much of it there is.
    limit
        The search stops as soon as the answer is known to lie below or above it; None: at the least value.

    Notes
    -----
    Solved as a matrix game: `least_largest_use`, with each bucket wholly to one configuration as its assignments.
    """
    n_buckets, n_configs = load.shape
    zero = np.zeros((n_buckets, n_configs))
    uses = [
        np.where(np.arange(n_configs) == c, load, 0.0) / capacity[c] for c in np.flatnonzero(capacity > 0)
    ]
    allowed = allowed & (capacity > 0)
    if spot is not None and math.isfinite(spot_capacity):
        if spot_capacity > 0:
            uses.append(spot / spot_capacity)
        else:
            allowed = allowed & (spot == 0)
    if n_buckets == 0:
        return RoutingCertificate(utilisation=0.0, lower_bound=0.0, shares=zero, loads=np.zeros(n_configs))
    if not allowed.any(axis=1).all():
        return RoutingCertificate(
            utilisation=math.inf, lower_bound=math.inf, shares=zero, loads=np.zeros(n_configs)
        )
    mixed, utilisation, lower_bound = least_largest_use(np.array(uses), allowed, limit)
    return RoutingCertificate(
        utilisation=utilisation, lower_bound=lower_bound, shares=mixed, loads=(load * mixed).sum(axis=0)
    )
