"""The slice model of Mélange, written anew from its description, as the baseline to measure against.

It exists to be compared with, and is used by nothing else. Each bucket is cut into equal slices; a slice goes to one
GPU type as a whole; GPUs of a type are pooled and whole (formulation: arXiv 2404.14527, as described in the
reference on GPU types, section 1.1). It knows none of the limits of gputype-instance: one model, replicas of one
GPU, no stock, no headroom.
"""

import time
from dataclasses import dataclass

import pulp

from solver.domain.gpu_mix import GpuMixInstance

SLICE_FACTOR = 4
TIME_CAP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineAnswer:
    """What a peer's method answers; cost and GPUs are None when it found nothing in its time."""

    cost_usd_per_h: float | None
    gpus: tuple[int, ...] | None
    seconds: float
    """Wall time of building and solving."""
    proved: bool
    """The solver ended by itself, not at the cap."""


def solve_slice_model(
    instance: GpuMixInstance, *, slice_factor: int = SLICE_FACTOR, time_cap_s: float = TIME_CAP_S
) -> BaselineAnswer:
    """Solve with CBC on one thread; a solver stopped at the cap gives its best answer so far.

    Raises
    ------
    ValueError
        If the instance asks for what the model cannot say.
    """
    started_s = time.perf_counter()
    units, proved = solve_slices(instance, slice_factor=slice_factor, units_per_gpu=1, time_cap_s=time_cap_s)
    seconds = time.perf_counter() - started_s
    return BaselineAnswer(
        cost_usd_per_h=None if units is None else _cost_usd_per_h(instance, units),
        gpus=units,
        seconds=seconds,
        proved=proved,
    )


def _cost_usd_per_h(instance: GpuMixInstance, gpus: tuple[int, ...]) -> float:
    prices = [instance.offer(variant.gpu_type).price_usd_per_h for variant in instance.models[0].variants]
    return sum(price * count for price, count in zip(prices, gpus, strict=True))


def solve_slices(
    instance: GpuMixInstance, *, slice_factor: int, units_per_gpu: int, time_cap_s: float
) -> tuple[tuple[int, ...] | None, bool]:
    """Return the whole units per variant (``units_per_gpu`` make a GPU) and whether they are proved optimal.

    Minimise sum over g of price[g] / units_per_gpu * y[g] subject to: sum over g of x[s,g] = 1 for each slice s,
    sum over s of x[s,g] * r[s] / T[s,g] * units_per_gpu <= y[g] for each type g; x binary, y whole.
    """
    _refuse_what_it_cannot_say(instance)
    model = instance.models[0]
    problem = pulp.LpProblem("slices", pulp.LpMinimize)
    units = [problem.add_variable(f"y{g}", lowBound=0, cat="Integer") for g in range(len(model.variants))]
    prices = [instance.offer(variant.gpu_type).price_usd_per_h for variant in model.variants]
    problem += pulp.lpSum(price / units_per_gpu * count for price, count in zip(prices, units, strict=True))
    load: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in model.variants]
    for b, (bucket, row) in enumerate(zip(model.buckets, model.throughput_rps, strict=True)):
        if bucket.rate_rps == 0:
            continue
        for s in range(slice_factor):
            chosen = []
            for g, throughput_rps in enumerate(row):
                if throughput_rps > 0:
                    variable = problem.add_variable(f"x{b}_{s}_{g}", cat="Binary")
                    chosen.append(variable)
                    load[g].append(
                        (variable, units_per_gpu * bucket.rate_rps / slice_factor / throughput_rps)
                    )
            problem += pulp.lpSum(chosen) == 1
    for g, terms in enumerate(load):
        problem += pulp.lpSum(factor * variable for variable, factor in terms) <= units[g]
    bundled = pulp.PULP_CBC_CMD.pulp_cbc_path  # the class itself is deprecated, the binary is what pulp ships
    problem.solve(pulp.COIN_CMD(path=bundled, msg=False, threads=1, timeLimit=time_cap_s))
    if problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None, False
    # "Optimal" is also said of an incumbent after a time-out; the two are told apart by sol_status only.
    return tuple(round(unit.value()) for unit in units), problem.sol_status == pulp.LpSolutionOptimal


def _refuse_what_it_cannot_say(instance: GpuMixInstance) -> None:
    model = instance.models[0]
    plain = (
        len(instance.models) == 1
        and all(variant.gpus_per_replica == 1 and not variant.spot for variant in model.variants)
        and all(offer.available is None and not offer.whole_nodes for offer in instance.gpu_types)
        and model.headroom_ratio == 0
        and model.survive == 0
        and instance.power_limit_w is None
        and instance.budget_usd_per_h is None
    )
    if not plain:
        raise ValueError(f"{instance.name} asks for more than the slice model can say")
