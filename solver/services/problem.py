"""A service's decision written as a GPU-type selection problem, alone or together with others.

It exists so that services are planned by the same solver as instance files. Solved alone a service has no GPU limits;
solved together, the limits are those of the pools. It decides nothing.
"""

from collections.abc import Mapping, Sequence

from solver.domain.cluster import ServiceState, VariantState
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, Variant

HORIZON_H = 1.0
"""Change costs are spread over so many hours."""


def alone(service: ServiceState) -> GpuMixInstance:
    """Write one service without GPU limits; each variant has an offer of its own, so prices need not agree."""
    names = [f"{variant.pool}/{variant.name}" for variant in service.variants]
    offers = tuple(
        GpuOffer(name=name, price_usd_per_h=variant.price_usd_per_h / variant.gpus_per_replica)
        for name, variant in zip(names, service.variants, strict=True)
    )
    return GpuMixInstance(
        name=service.name,
        gpu_types=offers,
        models=(_demand(service, names),),
        start_cost_usd=service.start_cost_usd,
        stop_cost_usd=service.stop_cost_usd,
        horizon_h=HORIZON_H,
    )


def together(services: Sequence[ServiceState], gpus: Mapping[str, int]) -> GpuMixInstance:
    """Write services that share pools; ``gpus`` are those they may use together.

    A pool has one price per GPU: the mean of its variants' where they differ, weighted by nothing (the plan's cost is
    added up from the replicas anew). Change costs are the largest of any service, so no change is undercharged.
    """
    prices: dict[str, list[float]] = {}
    for service in services:
        for variant in service.variants:
            prices.setdefault(variant.pool, []).append(variant.price_usd_per_h / variant.gpus_per_replica)
    return GpuMixInstance(
        name="+".join(service.name for service in services),
        gpu_types=tuple(
            GpuOffer(name=pool, price_usd_per_h=sum(known) / len(known), available=max(0, gpus[pool]))
            for pool, known in sorted(prices.items())
        ),
        models=tuple(_demand(service, [v.pool for v in service.variants]) for service in services),
        start_cost_usd=max(service.start_cost_usd for service in services),
        stop_cost_usd=max(service.stop_cost_usd for service in services),
        horizon_h=HORIZON_H,
    )


def _demand(service: ServiceState, offers: Sequence[str]) -> ModelDemand:
    return ModelDemand(
        name=service.name,
        variants=tuple(
            _variant(variant, offer) for variant, offer in zip(service.variants, offers, strict=True)
        ),
        buckets=service.buckets,
        throughput_rps=tuple(
            tuple(variant.throughput_rps[b] for variant in service.variants)
            for b in range(len(service.buckets))
        ),
        headroom_ratio=service.headroom_ratio,
        survive=service.survive,
    )


def _variant(state: VariantState, offer: str) -> Variant:
    return Variant(
        gpu_type=offer,
        gpus_per_replica=state.gpus_per_replica,
        current_replicas=state.replicas,
        min_replicas=state.replicas if state.locked else state.min_replicas,
        max_replicas=state.replicas if state.locked else state.max_replicas,
    )
