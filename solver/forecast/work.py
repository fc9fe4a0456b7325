"""What one request per second of each size costs: the weights of a load made of many sizes (`solver.forecast.by_size`).

It exists so that a forecast of the load speaks the planner's own currency. Without limits on stock the linear program
of a GPU mix falls apart into one problem per bucket, and the cost of serving rates r is exactly

    sum_b w_b r_b,      w_b = min over configs of (price or watts of a replica) / T[b, c],

so w_b is the price of the bucket's row in its dual. Where prefill and decode may be split, w_b is the cheaper of one
config that serves whole requests and the cheapest prefill plus the cheapest decode. It forecasts nothing.
"""

import math

import numpy as np

from solver.domain.fleet import FleetConfig, FleetGoal, FleetInstance, Role
from solver.domain.gpu_mix import GpuMixInstance, Variant
from solver.domain.trace import Floats


def mix_weights(instance: GpuMixInstance, model: int) -> Floats:
    """Return [buckets]: US$/h per request per second of one model's buckets, by the cheapest variant of each.

    A bucket that no variant serves weighs as much as the heaviest (planning then says that it cannot be served).
    """
    demand = instance.models[model]

    def price(variant: Variant) -> float:
        offer = instance.offer(variant.gpu_type)
        each = offer.spot_price_usd_per_h if variant.spot else offer.price_usd_per_h
        return math.inf if each is None else each * variant.gpus_per_replica

    prices = [price(variant) for variant in demand.variants]
    return _usable([_least(prices, row) for row in demand.throughput_rps])


def fleet_weights(instance: FleetInstance, model: int) -> Floats:
    """Return [buckets]: US$/h (W where power is the goal) per request per second, by the cheapest way to serve each.

    As `mix_weights` for buckets that nothing serves.
    """
    demand = instance.models[model]

    def price(config: FleetConfig, role: Role) -> float:
        if config.role is not role:
            return math.inf
        if instance.goal is FleetGoal.POWER:
            watts = instance.config_power_w(config)
            return math.inf if watts is None else watts * config.gpus_per_replica
        return instance.offer(config.gpu_type).price_usd_per_h * config.gpus_per_replica

    by_role = {role: [price(config, role) for config in demand.configs] for role in Role}
    return _usable(
        [
            min(
                _least(by_role[Role.BOTH], row),
                _least(by_role[Role.PREFILL], row) + _least(by_role[Role.DECODE], row),
            )
            for row in demand.throughput_rps
        ]
    )


def _least(prices: list[float], rates: tuple[float, ...]) -> float:
    return min(
        (cost / rate for cost, rate in zip(prices, rates, strict=True) if rate > 0.0), default=math.inf
    )


def _usable(costs: list[float]) -> Floats:
    """Return positive finite weights; those that are neither weigh as the heaviest (if none is, all weigh 1)."""
    weights = np.array(costs)
    sound = np.isfinite(weights) & (weights > 0.0)
    heaviest = weights[sound].max() if sound.any() else 1.0
    return np.where(sound, weights, heaviest)
