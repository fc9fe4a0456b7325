"""Turns a fleet problem into arrays and drops what can never be used.

It exists so that every method starts from the same reading of the instance: loads instead of throughputs, only buckets
with traffic, KV links as loads of their own, and a largest sensible number of replicas. It decides nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.domain.errors import InputError
from solver.domain.fleet import FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuOffer
from solver.pools.losses import refuse_many_losses

MOST_REPLICAS = 1e8
"""Beyond this, floating-point solvers no longer tell whole replicas apart."""


@dataclass(frozen=True, slots=True)
class ServedPhases:
    """One model as arrays over its B buckets with traffic and its C configs.

    ``load`` [B, C] is the share of one replica that a config's part of the whole rate of a bucket takes, r_b / T[b,c];
    infinite where it cannot be served (throughput 0, or KV to move over a link that carries none). ``link`` [B, C] is
    likewise the share of the usable part of one replica's link, r_b k_b / (u w_c); 0 where nothing limits it.
    ``upper`` [C] bounds the replicas of some best plan; ``lower`` [C] are those every plan must have. ``gpu`` [C] is
    the index of the GPU type, ``gpus`` [C] the GPUs of a replica, ``extra_w`` [C] what a replica draws beyond the
    figure of its GPU type.
    """

    index: int
    demand: FleetModel
    bucket_index: NDArray[np.int64]
    load: NDArray[np.float64]
    link: NDArray[np.float64]
    upper: NDArray[np.float64]
    lower: NDArray[np.float64]
    gpu: NDArray[np.int64]
    gpus: NDArray[np.int64]
    extra_w: NDArray[np.float64]
    prefills: NDArray[np.bool_]
    decodes: NDArray[np.bool_]

    @property
    def buckets(self) -> int:
        """Number of buckets with traffic."""
        return len(self.bucket_index)

    @property
    def configs(self) -> int:
        """Number of configs, also those that may not be used (upper 0)."""
        return len(self.upper)

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
        """[B, C] which config can serve its part of which bucket."""
        served: NDArray[np.bool_] = np.isfinite(self.load)
        return served

    @property
    def usable(self) -> list[int]:
        """Configs that may have replicas."""
        return [c for c in range(self.configs) if self.upper[c] > 0]

    def covered_by(self, configs: Sequence[int]) -> NDArray[np.bool_]:
        """[B] whether one of the given configs, or a pair of them, serves a bucket."""
        served = np.zeros_like(self.served_by)
        served[:, configs] = self.served_by[:, configs]
        return _coverable(served, self.prefills, self.decodes)


def _coverable(
    served: NDArray[np.bool_], prefills: NDArray[np.bool_], decodes: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """[B] whether a config of both phases serves a bucket, or one of prefill and one of decode."""
    both = ~(prefills | decodes)
    split = np.logical_and(served[:, prefills].any(axis=1), served[:, decodes].any(axis=1))
    return np.logical_or(served[:, both].any(axis=1), split)


def unservable_buckets(model: FleetModel) -> tuple[int, ...]:
    """Buckets with traffic that no config, or pair of configs, serves at any link speed."""
    if not model.buckets:
        return ()
    roles = [config.role for config in model.configs]
    served = np.array(model.throughput_rps, dtype=float).reshape(len(model.buckets), len(roles)) > 0
    prefills = np.array([role is Role.PREFILL for role in roles], dtype=bool)
    decodes = np.array([role is Role.DECODE for role in roles], dtype=bool)
    busy = np.array([bucket.rate_rps > 0 for bucket in model.buckets], dtype=bool)
    return tuple(int(b) for b in np.flatnonzero(busy & ~_coverable(served, prefills, decodes)))


def serve_model(instance: FleetInstance, index: int) -> ServedPhases:
    """Read one model of an instance."""
    demand = instance.models[index]
    names = {offer.name: number for number, offer in enumerate(instance.gpu_types)}
    rate = np.array([bucket.rate_rps for bucket in demand.buckets], dtype=float)
    busy = np.flatnonzero(rate > 0)
    count = len(demand.configs)
    throughput = np.array(demand.throughput_rps, dtype=float).reshape(len(demand.buckets), count)[busy]
    roles = [config.role for config in demand.configs]
    split = np.array([role is not Role.BOTH for role in roles], dtype=bool)
    kv_bytes_per_s = rate[busy] * np.array([demand.kv_bytes(int(b)) for b in busy])
    usable_link = np.array(
        [
            np.inf
            if config.kv_link_bytes_per_s is None
            else config.kv_link_bytes_per_s * demand.kv_utilisation_max_ratio
            for config in demand.configs
        ]
    )
    moved = np.where(split, kv_bytes_per_s[:, None], 0.0)
    link = np.zeros_like(throughput)
    np.divide(moved, usable_link, out=link, where=(moved > 0) & (usable_link > 0))
    load = np.full(throughput.shape, np.inf)
    blocked = (moved > 0) & (usable_link <= 0)
    np.divide(rate[busy][:, None], throughput, out=load, where=(throughput > 0) & ~blocked)
    link[~np.isfinite(load)] = 0.0
    gpu = np.array([names[config.gpu_type] for config in demand.configs], dtype=np.int64)
    gpus = np.array([config.gpus_per_replica for config in demand.configs], dtype=np.int64)
    watts = np.array([offer.power_w or 0.0 for offer in instance.gpu_types])[gpu]
    own = np.array([np.nan if c.power_w is None else c.power_w for c in demand.configs])
    return ServedPhases(
        index=index,
        demand=demand,
        bucket_index=busy,
        load=load,
        link=link,
        upper=np.array(list(_replica_bounds(instance, demand, load, link))),
        lower=np.array([float(config.min_replicas) for config in demand.configs]),
        gpu=gpu,
        gpus=gpus,
        extra_w=np.where(np.isnan(own), 0.0, own - watts) * gpus.astype(float),
        prefills=np.array([role is Role.PREFILL for role in roles], dtype=bool),
        decodes=np.array([role is Role.DECODE for role in roles], dtype=bool),
    )


def _replica_bounds(
    instance: FleetInstance, demand: FleetModel, load: NDArray[np.float64], link: NDArray[np.float64]
) -> Iterator[float]:
    """Bound the replicas of each config in some best plan.

    Minimised goals: enough for everything it can serve (and for the losses to survive) is enough, or what runs and
    would cost something to stop; more serve nothing, but where the config draws less than an idle GPU of its type they
    may fill a bought node, at most until whole nodes are filled with them. Goal rate: what stock and budgets allow.
    """
    survive = demand.survive if len(load) else 0
    refuse_many_losses(demand.name, survive)
    if demand.min_total_replicas > MOST_REPLICAS:
        raise InputError(
            f"model {demand.name} asks for at least {demand.min_total_replicas:.3g} replicas",
            right=f"at most {MOST_REPLICAS:.0e}",
        )
    finite = np.where(np.isfinite(load), load, 0.0).sum(axis=0) / (1.0 - demand.headroom_ratio)
    everything = np.maximum(finite, link.sum(axis=0))
    for c, config in enumerate(demand.configs):
        offer = instance.offer(config.gpu_type)
        size = config.gpus_per_replica
        own_w = instance.config_power_w(config)
        most = math.inf if offer.available is None else float(offer.available // size)
        most = min(most, _within_budgets(instance, offer, size, own_w))
        if instance.goal is not FleetGoal.RATE:
            if everything[c] > MOST_REPLICAS:
                raise InputError(
                    f"model {demand.name} would need {everything[c]:.3g} replicas of one config",
                    right=f"rates, throughputs, links and headroom for at most {MOST_REPLICAS:.0e}",
                )
            serving = math.ceil(everything[c] * (1 + 1e-6)) + (survive if everything[c] > 0 else 0)
            needed = max(serving, demand.min_total_replicas, survive + 1 if survive else 0)
            if instance.charges_changes:
                needed = max(needed, config.current_replicas or 0)
            if offer.whole_nodes and offer.gpus_per_node and (own_w or 0.0) < (offer.power_w or 0.0):
                needed += offer.gpus_per_node // math.gcd(offer.gpus_per_node, size) - 1
            most = min(most, float(needed))
        if config.max_replicas is not None:
            most = min(most, float(config.max_replicas))
        yield max(min(most, MOST_REPLICAS), float(config.min_replicas))


def _within_budgets(instance: FleetInstance, offer: GpuOffer, size: int, own_w: float | None) -> float:
    """Most replicas of one config that the budgets allow on their own."""
    budgets = instance.budgets
    most = math.inf
    if budgets.cost_usd_per_h is not None and offer.price_usd_per_h > 0:
        gpus = offer.reserved + budgets.cost_usd_per_h / offer.price_usd_per_h
        most = min(most, gpus / size)
    if budgets.power_w is not None and own_w:
        most = min(most, budgets.power_w / (own_w * size))
    if budgets.machines is not None and offer.gpus_per_node:
        most = min(most, budgets.machines * offer.gpus_per_node / size)
    return most if math.isinf(most) else float(math.floor(most * (1 + 1e-9) + 1e-9))


def serve_all(instance: FleetInstance) -> tuple[ServedPhases, ...]:
    """Read all models of an instance."""
    return tuple(serve_model(instance, index) for index in range(len(instance.models)))


def refuse_unbounded_rate(instance: FleetInstance, models: tuple[ServedPhases, ...]) -> None:
    """Raise `InputError` where the goal is the rate and nothing limits it, or losses are to be survived at any rate."""
    if instance.goal is not FleetGoal.RATE:
        return
    if any(model.must_survive for model in models):
        raise InputError(
            "losses to survive, though the goal is the rate",
            right="goal cost, power or machines; or survive 0",
        )
    busy = [model for model in models if model.buckets]
    if not busy:
        raise InputError(
            "no bucket has traffic, so no factor on the rates can be largest", right="a rate above 0"
        )
    for model in busy:
        free = model.upper >= MOST_REPLICAS
        if not model.covered_by(np.flatnonzero(free).tolist()).all():
            return
    raise InputError(
        "nothing limits the rate: configs without limit of stock or budget serve all traffic",
        right="a budget (cost_usd_per_hour, power_watts or machines) that acts on every GPU type",
    )
