"""Leaves out configs that another config can always stand in for.

It exists because a fleet problem lists every size, role and cap of every GPU type, and most of them never pay: a power
cap without any question of power, a replica twice as large that does not serve twice as much. It decides nothing:
some best plan uses only what is kept.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.prepare import ServedPhases

SAME_RATIO = 1e-12


def power_matters(instance: FleetInstance) -> bool:
    """Whether watts are asked for or limited."""
    return instance.goal is FleetGoal.POWER or instance.budgets.power_w is not None


def without_dominated(instance: FleetInstance, models: Sequence[ServedPhases]) -> tuple[ServedPhases, ...]:
    """Set the upper bound of dominated configs to 0.

    c' stands in for c of the same model, GPU type and role if its size divides that of c, k c' = c in GPUs, and k
    replicas of it serve every bucket and move its KV at least as fast, T[b,c'] k >= T[b,c], and draw no more. Where
    replicas are counted (a least number of them) more of them never hurt. Nothing is left out where replicas of equal
    worth differ: by bounds of their config, by what runs, or because a loss takes more of the larger one.
    """
    if instance.tells_replicas_apart:
        return tuple(models)
    return tuple(_without_dominated(model, watts=power_matters(instance)) for model in models)


def _without_dominated(model: ServedPhases, *, watts: bool) -> ServedPhases:
    upper = model.upper.copy()
    if model.buckets and not model.least_replicas:
        upper[~model.served_by.any(axis=0) & ~(watts & (model.extra_w < 0))] = 0.0
    gpus = model.gpus.astype(float)
    per_gpu = model.load * gpus  # load of one GPU's part of a replica: what is larger is slower
    link = model.link * gpus
    extra = model.extra_w / gpus
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for c in range(model.configs):
        if upper[c] > 0:
            key = (int(model.gpu[c]), bool(model.prefills[c]), bool(model.decodes[c]))
            groups.setdefault(key, []).append(c)
    tables = (per_gpu, link, extra[None, :]) if watts else (per_gpu, link)
    for members in groups.values():
        for c in members:
            others = np.array(
                [d for d in members if d != c and upper[d] > 0 and model.gpus[c] % model.gpus[d] == 0]
            )
            if len(others) and _stands_in(c, others, model.gpus, extra, tables):
                upper[c] = 0.0
    return replace(model, upper=upper)


def _stands_in(
    c: int,
    others: NDArray[np.int64],
    gpus: NDArray[np.int64],
    extra: NDArray[np.float64],
    tables: Sequence[NDArray[np.float64]],
) -> bool:
    """Whether one of the others is at least as good as c everywhere; of equals the one of least watts, or the first."""
    better = np.ones(len(others), dtype=bool)
    equal = gpus[others] == gpus[c]
    for table in tables:
        own = table[:, [c]]
        slack = SAME_RATIO * np.where(np.isfinite(own), np.abs(own), 0.0)
        better &= (table[:, others] <= own + slack).all(axis=0)
        equal &= (table[:, others] == own).all(axis=0)
    first = (extra[others] < extra[c]) | ((extra[others] == extra[c]) & (others < c))
    return bool((better & (~equal | first)).any())
