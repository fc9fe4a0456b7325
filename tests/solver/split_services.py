"""What replicas of a service really carry, computed apart from the solver's own routing.

It exists so that services whose variants serve one phase only are held against another program: pairs of a prefill
and a decode variant (`tests.solver.phases.brute_force`) instead of balanced phases.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from solver.domain.cluster import ServiceState
from solver.domain.fleet import FleetConfig, FleetModel
from solver.services.plan import serves
from tests.solver.phases.brute_force import largest_factor

SLACK = 1e-7


def as_model(service: ServiceState, headroom_ratio: float = 0.0) -> FleetModel:
    """Write a service down as a model of a fleet."""
    return FleetModel(
        name=service.name,
        configs=tuple(
            FleetConfig(
                gpu_type=v.pool,
                gpus_per_replica=v.gpus_per_replica,
                role=v.role,
                kv_link_bytes_per_s=v.kv_link_bytes_per_s,
            )
            for v in service.variants
        ),
        buckets=service.buckets,
        throughput_rps=tuple(
            tuple(v.throughput_rps[b] for v in service.variants) for b in range(len(service.buckets))
        ),
        headroom_ratio=headroom_ratio,
        kv_bytes_per_prompt_token=service.kv_bytes_per_prompt_token,
    )


@lru_cache(maxsize=100_000)
def _factor(model: FleetModel, counts: tuple[int, ...]) -> float:
    return largest_factor(model, counts)


def carries(service: ServiceState, counts: Sequence[int], *, headroom_ratio: float = 0.0) -> bool:
    """Whether so many replicas carry the traffic; where phases are split, every part of it in both."""
    if not service.splits:
        return serves(service, counts, headroom_ratio=headroom_ratio)
    return _factor(as_model(service, headroom_ratio), tuple(counts)) >= 1.0 - SLACK


def survives(service: ServiceState, counts: Sequence[int]) -> bool:
    """Whether whichever replicas are lost, the others carry the traffic."""
    if not service.survive or not service.rate_rps:
        return True
    if sum(counts) <= service.survive:
        return False
    for lost in itertools.product(*(range(min(n, service.survive) + 1) for n in counts)):
        left = [n - gone for n, gone in zip(counts, lost, strict=True)]
        if sum(lost) == service.survive and not carries(replace(service, survive=0), left):
            return False
    return True
