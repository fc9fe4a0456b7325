"""Turns a problem into arrays and drops what can never be used.

It exists so that every method starts from the same reading of the instance: loads instead of throughputs, only
buckets with traffic, only variants of sufficient quality, and a largest sensible number of replicas. It decides
nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.gpu_mix import GpuMixInstance, ModelDemand, Variant
from solver.pools.losses import refuse_many_losses

MOST_REPLICAS = 1e8
"""Beyond this, floating-point solvers no longer tell whole replicas apart."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as arrays over its B buckets with traffic and its C variants.

    ``load`` [B, C] is the share of one replica that the whole rate of a bucket takes, r_b / T[b,c]; infinite where a
    variant cannot serve (throughput 0, or quality below the minimum). ``upper`` [C] bounds the replicas of any best
    plan; ``lower`` [C] are those every plan must have. ``gpu`` [C] is the index of the GPU type, ``gpus`` [C] the
    GPUs of a replica.
    """

    index: int
    demand: ModelDemand
    bucket_index: NDArray[np.int64]
    rate_rps: NDArray[np.float64]
    load: NDArray[np.float64]
    upper: NDArray[np.int64]
    lower: NDArray[np.int64]
    gpu: NDArray[np.int64]
    gpus: NDArray[np.int64]
    spot: NDArray[np.bool_]

    @property
    def buckets(self) -> int:
        """Number of buckets with traffic."""
        return len(self.rate_rps)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All variants, also those that may not be used (upper 0)."""
        return self.demand.variants

    @property
    def capacity_ratio(self) -> float:
        """Usable share of a replica, 1 - headroom."""
        return 1.0 - self.demand.headroom_ratio

    @property
    def must_survive(self) -> int:
        """Replicas that may be lost; 0 without traffic."""
        return self.demand.survive if self.buckets else 0

    @property
    def least_replicas(self) -> int:
        """Replicas needed in total: the stated minimum, and more than may be lost."""
        return max(self.demand.min_total_replicas, self.must_survive + 1 if self.must_survive else 0)

    @property
    def served_by(self) -> NDArray[np.bool_]:
        """[B, C] which variant can serve which bucket."""
        served: NDArray[np.bool_] = np.isfinite(self.load)
        return served

    @property
    def prefills(self) -> NDArray[np.bool_]:
        """[C] all false: every variant serves whole requests."""
        return np.zeros(len(self.upper), dtype=bool)

    @property
    def decodes(self) -> NDArray[np.bool_]:
        """[C] all false: every variant serves whole requests."""
        return np.zeros(len(self.upper), dtype=bool)

    def gpus_in_use(
        self, counts: Sequence[int], types: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """GPUs per type [types] that replicas [C] use, on demand and spot."""
        gpus = np.asarray(counts, dtype=float) * self.gpus
        used, spot = np.zeros(types), np.zeros(types)
        np.add.at(used, self.gpu[~self.spot], gpus[~self.spot])
        np.add.at(spot, self.gpu[self.spot], gpus[self.spot])
        return used, spot

    def replica_prices(self, used: NDArray[np.float64], spot: NDArray[np.float64]) -> NDArray[np.float64]:
        """US$ per replica and hour [C] from prices per GPU of each type, on demand and spot."""
        prices: NDArray[np.float64] = np.where(self.spot, spot[self.gpu], used[self.gpu]) * self.gpus
        return prices

    def priced_load(self, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """US$ per hour [B, C] of serving a whole bucket on one variant, fractions of replicas allowed.

        ``prices`` [C] are US$ per replica and hour; infinite where a variant cannot serve.
        """
        finite = np.where(self.served_by, self.load, 0.0)
        priced: NDArray[np.float64] = np.where(self.served_by, finite * prices, np.inf)
        return priced

    @property
    def limits_spot(self) -> bool:
        """Whether the spot share can bind."""
        return bool(self.demand.max_spot_load_ratio < 1.0 and self.spot.any() and self.buckets)


def serve_model(instance: GpuMixInstance, index: int) -> ServedModel:
    """Read one model of an instance."""
    demand = instance.models[index]
    names = {offer.name: number for number, offer in enumerate(instance.gpu_types)}
    rate = np.array([bucket.rate_rps for bucket in demand.buckets], dtype=float)
    busy = np.flatnonzero(rate > 0)
    count = len(demand.variants)
    throughput = np.array(demand.throughput_rps, dtype=float).reshape(len(demand.buckets), count)[busy]
    allowed = np.array([v.quality_ratio >= demand.min_quality_ratio for v in demand.variants], dtype=bool)
    load = np.full(throughput.shape, np.inf)
    usable = (throughput > 0) & allowed
    np.divide(rate[busy][:, None], throughput, out=load, where=usable)
    spot = np.array([v.spot for v in demand.variants], dtype=bool)
    upper = _replica_bounds(instance, demand, load, allowed)
    return ServedModel(
        index=index,
        demand=demand,
        bucket_index=busy,
        rate_rps=rate[busy],
        load=load,
        upper=upper,
        lower=np.array([v.min_replicas for v in demand.variants], dtype=np.int64),
        gpu=np.array([names[v.gpu_type] for v in demand.variants], dtype=np.int64),
        gpus=np.array([v.gpus_per_replica for v in demand.variants], dtype=np.int64),
        spot=spot,
    )


def _replica_bounds(
    instance: GpuMixInstance, demand: ModelDemand, load: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Bound the replicas of each variant in some best plan: enough for everything it can serve is enough.

    More replicas than that (plus those that may be lost, or the stated minimum, or those that run already and would
    cost something to stop) never make a plan feasible or cheaper.
    """
    survive = demand.survive if len(load) else 0
    refuse_many_losses(demand.name, survive)
    everything = np.where(np.isfinite(load), load, 0.0).sum(axis=0) / (1.0 - demand.headroom_ratio)
    upper = np.zeros(len(demand.variants), dtype=np.int64)
    stock = {offer.name: (offer.available, offer.spot_available) for offer in instance.gpu_types}
    for c, variant in enumerate(demand.variants):
        if not allowed[c]:
            upper[c] = variant.min_replicas
            continue
        if everything[c] > MOST_REPLICAS:
            raise InputError(
                f"model {demand.name} would need {everything[c]:.3g} replicas of one variant",
                right=f"rates, throughputs and headroom for at most {MOST_REPLICAS:.0e}",
            )
        serving = math.ceil(everything[c] * (1 + 1e-6)) + survive if everything[c] > 0 else 0
        bound = max(
            serving, demand.min_total_replicas, survive + 1 if survive else 0, variant.current_replicas or 0
        )
        available = stock[variant.gpu_type][1 if variant.spot else 0]
        if available is not None:
            bound = min(bound, available // variant.gpus_per_replica)
        if variant.max_replicas is not None:
            bound = min(bound, variant.max_replicas)
        upper[c] = max(bound, variant.min_replicas)
    return upper


def serve_all(instance: GpuMixInstance) -> tuple[ServedModel, ...]:
    """Read all models of an instance."""
    return tuple(serve_model(instance, index) for index in range(len(instance.models)))
