"""The step of which the cost of every GPU mix is a multiple; what that proves is in `solver.pools.grid`."""

import math
from collections.abc import Sequence

from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.prepare import ServedModel
from solver.pools.grid import common_step
from solver.pools.purchase import change_steps_usd


def cost_step_usd(instance: GpuMixInstance, models: Sequence[ServedModel]) -> float:
    """Return the largest step of which every plan's objective is a multiple (US$ per hour); 0 if there is none."""
    steps: list[float] = []
    for g, offer in enumerate(instance.gpu_types):
        sizes = {False: 0, True: 0}
        for model in models:
            for c in range(len(model.variants)):
                if model.gpu[c] == g and model.upper[c] > 0:
                    spot = bool(model.spot[c])
                    sizes[spot] = math.gcd(sizes[spot], int(model.gpus[c]))
        unit = offer.gpus_per_node if offer.whole_nodes and offer.gpus_per_node else sizes[False]
        steps.append(offer.price_usd_per_h * math.gcd(unit if sizes[False] else 0, offer.reserved))
        steps.append((offer.spot_price_usd_per_h or 0.0) * sizes[True])
    for model in models:
        steps += change_steps_usd(instance, model.variants)
    return common_step(steps)
