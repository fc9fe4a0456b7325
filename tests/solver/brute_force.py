"""An exact answer to tiny GPU-type selection problems by trying every vector of replicas.

It exists as the second opinion on the solver: it knows no bound and no heuristic, only the README of
gputype-instance. Whether replicas can be routed is asked of the checker's certificate, which proves each
answer.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from solver.check.gpu_mix import certify_routing
from solver.domain.gpu_mix import GpuMixInstance, ModelDemand

Counts = tuple[int, ...]
Ints = npt.NDArray[np.int64]

LIMIT_KINDS = ("quality", "survive", "budget", "power-limit", "gpu-limit", "replica-limit")


class TooLarge(Exception):  # noqa: N818 - not an error: the caller draws a smaller problem
    """There are too many vectors to try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BruteForceAnswer:
    """The least objective and replicas that reach it, or None and what would help if removed alone."""

    objective: float | None
    replicas: tuple[Counts, ...] = ()
    unservable: bool = False
    feasible_when_dropped: tuple[str, ...] = ()


def cheapest_other_set(
    instance: GpuMixInstance, used: frozenset[str], *, most_vectors: int = 2_000
) -> float | None:
    """Return the least objective of the plans that use another set of GPU types; None if there is none."""
    best = _cheapest(instance, most_vectors, other_than=used)
    return None if best is None else best[0]


def solve_by_brute_force(instance: GpuMixInstance, *, most_vectors: int = 2_000) -> BruteForceAnswer:
    """Try everything; raises `TooLarge` where a model has more than ``most_vectors`` vectors of replicas."""
    best = _cheapest(instance, most_vectors)
    if best is not None:
        return BruteForceAnswer(objective=best[0], replicas=best[1])
    unservable = any(
        bucket.rate_rps > 0 and not any(row)
        for model in instance.models
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
    )
    dropped = tuple(
        kind for kind in LIMIT_KINDS if not unservable and _cheapest(without(instance, kind), most_vectors)
    )
    return BruteForceAnswer(objective=None, unservable=unservable, feasible_when_dropped=dropped)


def without(instance: GpuMixInstance, kind: str) -> GpuMixInstance:
    """Return the problem without one kind of limit."""
    match kind:
        case "quality":
            return replace(
                instance, models=tuple(replace(model, min_quality_ratio=0.0) for model in instance.models)
            )
        case "survive":
            return replace(instance, models=tuple(replace(model, survive=0) for model in instance.models))
        case "budget":
            return replace(instance, budget_usd_per_h=None)
        case "power-limit":
            return replace(instance, power_limit_w=None)
        case "gpu-limit":
            free = [replace(offer, available=None, spot_available=None) for offer in instance.gpu_types]
            return replace(instance, gpu_types=tuple(free))
        case "replica-limit":
            models = (
                replace(
                    model,
                    variants=tuple(
                        replace(variant, min_replicas=0, max_replicas=None) for variant in model.variants
                    ),
                )
                for model in instance.models
            )
            return replace(instance, models=tuple(models))
    raise ValueError(kind)


def _cheapest(
    instance: GpuMixInstance, most_vectors: int, *, other_than: frozenset[str] | None = None
) -> tuple[float, tuple[Counts, ...]] | None:
    """Combine the vectors of all models (at most two) and keep the cheapest within the shared limits."""
    least = 0 if other_than is None else 1  # a type may be used for no other reason than to be another set
    options = [list(_servings(model, most_vectors, least)) for model in instance.models]
    if not all(options):
        return None
    tables = [
        np.array(
            [
                [
                    *_gpus(instance, model, counts, spot=False),
                    *_gpus(instance, model, counts, spot=True),
                    _change_cost_usd(instance, model, counts),
                ]
                for counts in vectors
            ]
        )
        for model, vectors in zip(instance.models, options, strict=True)
    ]
    total = tables[0]
    for table in tables[1:]:
        total = (total[:, None, :] + table[None, :, :]).reshape(-1, table.shape[1])
    n_types = len(instance.gpu_types)
    occupied, spot, change = total[:, :n_types], total[:, n_types:-1], total[:, -1]
    running, power, fits = np.zeros(len(total)), np.zeros(len(total)), np.ones(len(total), dtype=bool)
    for g, offer in enumerate(instance.gpu_types):
        node = (offer.gpus_per_node or 1) if offer.whole_nodes else 1
        bought = np.ceil(occupied[:, g] / node) * node
        running += offer.price_usd_per_h * np.maximum(0, bought - offer.reserved)
        running += (offer.spot_price_usd_per_h or 0.0) * spot[:, g]
        power += (offer.power_w or 0.0) * (bought + spot[:, g])
        fits &= bought <= (math.inf if offer.available is None else offer.available)
        fits &= spot[:, g] <= (math.inf if offer.spot_available is None else offer.spot_available)
    if instance.budget_usd_per_h is not None:
        fits &= running <= instance.budget_usd_per_h + 1e-9
    if instance.power_limit_w is not None:
        fits &= power <= instance.power_limit_w + 1e-9
    if other_than is not None:
        in_set = np.array([offer.name in other_than for offer in instance.gpu_types])
        fits &= ((occupied + spot > 0) != in_set).any(axis=1)
    if not fits.any():
        return None
    objective = np.where(fits, running + change / instance.horizon_h, np.inf)
    best = int(objective.argmin())
    places = np.unravel_index(best, [len(vectors) for vectors in options])
    chosen = tuple(vectors[int(place)] for vectors, place in zip(options, places, strict=True))
    return float(objective[best]), chosen


def _gpus(instance: GpuMixInstance, model: ModelDemand, counts: Counts, *, spot: bool) -> list[float]:
    return [
        float(
            sum(
                variant.gpus_per_replica * count
                for variant, count in zip(model.variants, counts, strict=True)
                if variant.gpu_type == offer.name and variant.spot == spot
            )
        )
        for offer in instance.gpu_types
    ]


def _change_cost_usd(instance: GpuMixInstance, model: ModelDemand, counts: Counts) -> float:
    cost_usd = 0.0
    for variant, count in zip(model.variants, counts, strict=True):
        if variant.current_replicas is not None:
            started = max(0, count - variant.current_replicas)
            stopped = max(0, variant.current_replicas - count)
            cost_usd += variant.gpus_per_replica * (
                instance.start_cost_usd * started + instance.stop_cost_usd * stopped
            )
    return cost_usd


def _most(model: ModelDemand, c: int, least: int) -> int:
    """Return how many replicas of a variant an optimum needs at most.

    With more, one less still serves everything that the variant serves (also after losses), and costs no
    more: prices are not negative, and stopping is only charged below what runs now.
    """
    variant = model.variants[c]
    if variant.quality_ratio < model.min_quality_ratio:
        return 0
    load = sum(
        bucket.rate_rps / row[c]
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
        if row[c] > 0
    )
    serving = math.ceil(load / (1 - model.headroom_ratio) + 1e-9) + model.survive if load else 0
    return max(least, serving, variant.current_replicas or 0, model.min_total_replicas)


def _servings(model: ModelDemand, most_vectors: int, least: int) -> Iterator[Counts]:
    """Yield the vectors of replicas that serve a model; more replicas never serve less."""
    ranges = [
        range(
            variant.min_replicas,
            1
            + max(
                variant.min_replicas,
                min(
                    _most(model, c, least),
                    10**9 if variant.max_replicas is None else variant.max_replicas,
                ),
            ),
        )
        for c, variant in enumerate(model.variants)
    ]
    if math.prod(len(counts) for counts in ranges) > most_vectors:
        raise TooLarge
    servings: set[Counts] = set()
    for counts in itertools.product(*ranges):
        fewer = ((*counts[:c], count - 1, *counts[c + 1 :]) for c, count in enumerate(counts) if count)
        if any(less in servings for less in fewer) or _serves(model, counts):
            servings.add(counts)
            yield counts


def _serves(model: ModelDemand, counts: Counts) -> bool:
    if sum(counts) < model.min_total_replicas:
        return False
    busy = [b for b, bucket in enumerate(model.buckets) if bucket.rate_rps > 0]
    if not busy:
        return True
    rate_rps = np.array([[model.buckets[b].rate_rps] for b in busy])
    throughput_rps = np.array([model.throughput_rps[b] for b in busy])
    # Replicas below the quality may have to run for their owner, but serve nothing.
    good = np.array([variant.quality_ratio >= model.min_quality_ratio for variant in model.variants])
    allowed = (throughput_rps > 0) & good
    load = np.where(allowed, rate_rps / np.where(allowed, throughput_rps, 1.0), 0.0)
    spot = np.array([float(variant.spot) for variant in model.variants])
    plain = certify_routing(
        load,
        allowed,
        np.array(counts) * (1 - model.headroom_ratio),
        spot=rate_rps * spot,
        spot_capacity=model.max_spot_load_ratio * float(rate_rps.sum()),
        limit=1 + 1e-9,
    )
    if plain.utilisation > 1 + 1e-9:
        return False
    if model.survive == 0:
        return True
    if sum(counts) <= model.survive:
        return False
    return all(
        certify_routing(load, allowed, np.array(counts) - np.array(loss), limit=1 + 1e-9).utilisation
        <= 1 + 1e-9
        for loss in itertools.product(*(range(min(count, model.survive) + 1) for count in counts))
        if sum(loss) == model.survive
    )
