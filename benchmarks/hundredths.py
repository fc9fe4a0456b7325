"""AIBrix's rule, written anew from its description: optimise hundredths of a GPU, then round each type up.

It exists to be compared with: the rounding after the optimisation undoes the whole-GPU optimum (the reference on GPU
types, section 1.2). The model below it is the slice model with slice factor 4.
"""

import time

from benchmarks.slice_model import SLICE_FACTOR, BaselineAnswer, solve_slices
from solver.domain.gpu_mix import GpuMixInstance

UNITS_PER_GPU = 100
TIME_CAP_S = 20.0


def solve_hundredths(instance: GpuMixInstance, *, time_cap_s: float = TIME_CAP_S) -> BaselineAnswer:
    """Return the rounded-up GPUs and what they cost."""
    started_s = time.perf_counter()
    hundredths, proved = solve_slices(
        instance, slice_factor=SLICE_FACTOR, units_per_gpu=UNITS_PER_GPU, time_cap_s=time_cap_s
    )
    gpus = None if hundredths is None else tuple(-(-units // UNITS_PER_GPU) for units in hundredths)
    prices = [instance.offer(variant.gpu_type).price_usd_per_h for variant in instance.models[0].variants]
    cost = None if gpus is None else sum(price * count for price, count in zip(prices, gpus, strict=True))
    return BaselineAnswer(
        cost_usd_per_h=cost, gpus=gpus, seconds=time.perf_counter() - started_s, proved=proved
    )
