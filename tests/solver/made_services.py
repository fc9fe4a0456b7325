"""Variants of services for tests that decide and explain: one GPU, a price of 1, nothing running unless said."""

from collections.abc import Sequence
from dataclasses import replace

from solver.domain.cluster import VariantState


def variant(name: str, pool: str, rps: Sequence[float], **changes: object) -> VariantState:
    """Return a variant on a pool with what a replica sustains of each bucket; the rest by name."""
    state = VariantState(
        name=name,
        pool=pool,
        gpus_per_replica=1,
        price_usd_per_h=1.0,
        throughput_rps=tuple(rps),
        replicas=0,
        ready=0,
        held=0,
    )
    return replace(state, **changes)  # type: ignore[arg-type]
