"""Who serves what: shares of each bucket for given replicas.

It exists apart from the search for replicas because many routings are equally cheap: of these it picks the one whose
fullest variant is least loaded, so that spare capacity is spread and the answer does not depend on the method that
found the replicas. It also answers whether given replicas suffice at all, and whether they survive losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Expression, Program, SolveLimits
from solver.gpu_mix.prepare import ServedModel
from solver.gpu_mix.serving import spot_share
from solver.pools.losses import LossCase
from solver.pools.serving import add_shares, load_expressions

SMALLEST_SHARE = 1e-9
FIT_TOLERANCE = 1e-8
"""Replicas are taken to suffice if the fullest variant is at most so far above its capacity (relative)."""


@dataclass(frozen=True, slots=True)
class Routing:
    """``shares`` [B, C] over buckets with traffic, and the load of the fullest variant over its capacity."""

    shares: NDArray[np.float64]
    fullest_ratio: float

    @property
    def fits(self) -> bool:
        """Whether the replicas carry the traffic."""
        return self.fullest_ratio <= 1.0 + FIT_TOLERANCE


def route(
    model: ServedModel,
    replicas: Sequence[int],
    *,
    lost: LossCase | None = None,
    backend: BackendName = "highs",
) -> Routing | None:
    """Minimise the fullest variant's load over capacity: min t with sum_b l_bc x_bc <= t (1 - h) n_c.

    With ``lost`` the capacity is n_c - lost_c, and neither headroom nor spot share are required. None: some bucket
    cannot be served at all.
    """
    count = np.asarray(replicas, dtype=float)
    left = count if lost is None else np.maximum(count - np.asarray(lost, dtype=float), 0.0)
    capacity = left * (model.capacity_ratio if lost is None else 1.0)
    if model.buckets == 0:
        return Routing(np.zeros((0, len(count))), 0.0)
    running = [c for c in range(len(count)) if capacity[c] > 0]
    if not model.served_by[:, running].any(axis=1).all():
        return None
    if len(running) == 1 and not (lost is None and model.limits_spot):
        (only,) = running  # there is nothing to choose
        table = np.zeros((model.buckets, len(count)))
        table[:, only] = 1.0
        return Routing(table, float(model.load[:, only].sum() / capacity[only]))
    program = Program()
    fullest = program.add_variable(cost=1.0)
    shares = add_shares(program, model, running)
    for c, load in load_expressions(model, shares).items():
        row = Expression([fullest], [float(capacity[c])])
        row.add_scaled(load, -1.0)
        program.add_expression_row(row, lower=0.0)
    if lost is None:
        spot_share(program, model, shares)
    solution = solve_program(program, SolveLimits(), backend=backend)
    if not solution.found:
        return None
    table = np.zeros((model.buckets, len(count)))
    for (b, c), column in shares.items():
        table[b, c] = solution.values[column]
    table[table < SMALLEST_SHARE] = 0.0
    table /= table.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        loads = np.nansum(np.where(table > 0, model.load * table, 0.0), axis=0)
    return Routing(table, float((loads[running] / capacity[running]).max()))
