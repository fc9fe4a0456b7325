"""A service's decision written as a problem of GPU types, alone or together with others.

It exists so that services are planned by the same solvers as instance files: a `GpuMixInstance` where every variant
serves whole requests, a `FleetInstance` as soon as some variant serves one phase only. Solved alone a service has no
GPU limits; solved together, the limits are those of the pools. It decides nothing.
"""

from collections.abc import Mapping, Sequence

from solver.domain.cluster import ServiceState, VariantState
from solver.domain.fleet import FleetConfig, FleetInstance, FleetModel
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, Variant

HORIZON_H = 1.0
"""Change costs are spread over so many hours."""

Problem = GpuMixInstance | FleetInstance
"""Both have one model per service, with the service's variants and buckets in their order."""


def alone(service: ServiceState) -> Problem:
    """Write one service without GPU limits; each variant has an offer of its own, so prices need not agree."""
    names = [f"{variant.pool}/{variant.name}" for variant in service.variants]
    offers = tuple(
        GpuOffer(name=name, price_usd_per_h=variant.price_usd_per_h / variant.gpus_per_replica)
        for name, variant in zip(names, service.variants, strict=True)
    )
    return _problem([service], offers, [names])


def together(services: Sequence[ServiceState], gpus: Mapping[str, int]) -> Problem:
    """Write services that share pools; ``gpus`` are those they may use together.

    A pool has one price per GPU: the mean of its variants' where they differ, weighted by nothing (the plan's cost is
    added up from the replicas anew). Change costs are the largest of any service, so no change is undercharged. If any
    of the services splits, variants of the others are configs of role both.
    """
    prices: dict[str, list[float]] = {}
    for service in services:
        for variant in service.variants:
            prices.setdefault(variant.pool, []).append(variant.price_usd_per_h / variant.gpus_per_replica)
    offers = tuple(
        GpuOffer(name=pool, price_usd_per_h=sum(known) / len(known), available=max(0, gpus[pool]))
        for pool, known in sorted(prices.items())
    )
    return _problem(services, offers, [[v.pool for v in service.variants] for service in services])


def _problem(
    services: Sequence[ServiceState], offers: tuple[GpuOffer, ...], names: Sequence[Sequence[str]]
) -> Problem:
    """Write services whose variants take the offers of these names [service][variant]."""
    name = "+".join(service.name for service in services)
    start_cost_usd = max(service.start_cost_usd for service in services)
    stop_cost_usd = max(service.stop_cost_usd for service in services)
    if any(service.splits for service in services):
        return FleetInstance(
            name=name,
            gpu_types=offers,
            models=tuple(_phases(*pair) for pair in zip(services, names, strict=True)),
            start_cost_usd=start_cost_usd,
            stop_cost_usd=stop_cost_usd,
            horizon_h=HORIZON_H,
        )
    return GpuMixInstance(
        name=name,
        gpu_types=offers,
        models=tuple(_demand(*pair) for pair in zip(services, names, strict=True)),
        start_cost_usd=start_cost_usd,
        stop_cost_usd=stop_cost_usd,
        horizon_h=HORIZON_H,
    )


def _throughput_rps(service: ServiceState) -> tuple[tuple[float, ...], ...]:
    """[bucket][variant]."""
    return tuple(
        tuple(variant.throughput_rps[b] for variant in service.variants) for b in range(len(service.buckets))
    )


def _bounds(state: VariantState) -> tuple[int, int | None]:
    """Least and most replicas; those there are where somebody else owns their number."""
    if state.locked:
        return state.replicas, state.replicas
    return state.min_replicas, state.max_replicas


def _demand(service: ServiceState, offers: Sequence[str]) -> ModelDemand:
    return ModelDemand(
        name=service.name,
        variants=tuple(
            _variant(variant, offer) for variant, offer in zip(service.variants, offers, strict=True)
        ),
        buckets=service.buckets,
        throughput_rps=_throughput_rps(service),
        headroom_ratio=service.headroom_ratio,
        survive=service.survive,
    )


def _variant(state: VariantState, offer: str) -> Variant:
    least, most = _bounds(state)
    return Variant(
        gpu_type=offer,
        gpus_per_replica=state.gpus_per_replica,
        current_replicas=state.replicas,
        min_replicas=least,
        max_replicas=most,
    )


def _phases(service: ServiceState, offers: Sequence[str]) -> FleetModel:
    return FleetModel(
        name=service.name,
        configs=tuple(
            _config(variant, offer) for variant, offer in zip(service.variants, offers, strict=True)
        ),
        buckets=service.buckets,
        throughput_rps=_throughput_rps(service),
        headroom_ratio=service.headroom_ratio,
        survive=service.survive,
        kv_bytes_per_prompt_token=service.kv_bytes_per_prompt_token,
    )


def _config(state: VariantState, offer: str) -> FleetConfig:
    least, most = _bounds(state)
    return FleetConfig(
        gpu_type=offer,
        gpus_per_replica=state.gpus_per_replica,
        role=state.role,
        kv_link_bytes_per_s=state.kv_link_bytes_per_s,
        current_replicas=state.replicas,
        min_replicas=least,
        max_replicas=most,
    )
