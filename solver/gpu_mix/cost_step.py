"""The grid on which all costs of a problem lie, and what it proves.

It exists because prices are whole cents or tenths of them and GPUs are whole: the cost of any plan is a multiple of
some step, so a proved bound may be rounded up to the next multiple, and a search may stop as soon as less than one
step is left. Near-ties, the slowest cases of integer programs, end early that way.
"""

import math
from collections.abc import Sequence

from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.prepare import ServedModel

MICRO_USD = 1e-6
ROUNDING = 1e-4
"""Costs must lie on the grid of micro-dollars to this part of one."""
BOUND_SLACK_RATIO = 1e-7
"""Bounds of floating-point solvers are trusted to this part."""


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
        for variant in model.variants:
            if variant.current_replicas is not None:
                per_gpu = variant.gpus_per_replica / instance.horizon_h
                steps += [per_gpu * instance.start_cost_usd, per_gpu * instance.stop_cost_usd]
    grid = 0
    for step in steps:
        micro = step / MICRO_USD
        if abs(micro - round(micro)) > ROUNDING:
            return 0.0
        grid = math.gcd(grid, round(micro))
    return grid * MICRO_USD


def next_step(bound: float, step_usd: float) -> float:
    """Round a proved bound up to the next cost that a plan can have."""
    if step_usd <= 0 or not math.isfinite(bound):
        return bound
    trusted = bound - BOUND_SLACK_RATIO * max(1.0, abs(bound))
    return max(bound, math.ceil(trusted / step_usd) * step_usd)
