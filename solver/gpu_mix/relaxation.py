"""The problem without whole numbers: a quick bound, and what it would pay for one more unit of each limit.

It exists to give column generation its first prices and the explanation its prices for problems too large to be
solved again. Its bound is weak where few replicas serve little traffic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Solution, SolveLimits
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.direct import whole_program
from solver.gpu_mix.prepare import ServedModel
from solver.pools.purchase import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US$ per GPU in use and hour, per type, on demand and spot."""

    used: NDArray[np.float64]
    spot: NDArray[np.float64]

    def towards(self, other: "Prices", weight: float) -> "Prices":
        """Mix: (1 - weight) of these and ``weight`` of the other."""
        return Prices(
            used=(1 - weight) * self.used + weight * other.used,
            spot=(1 - weight) * self.spot + weight * other.spot,
        )


def relaxed_prices(
    instance: GpuMixInstance, models: Sequence[ServedModel], *, deadline: Deadline, backend: BackendName
) -> tuple[Solution, Prices]:
    """Solve the relaxation; prices are the duals of GPUs in use (0 when there is no solution)."""
    whole = whole_program(instance, models, {}, priced_use=True)
    limits = SolveLimits(time_limit_s=deadline.remaining_s())
    solution = solve_program(whole.program, limits, backend=backend, relaxed=True)
    types = len(instance.gpu_types)
    if not solution.found or not len(solution.row_duals):
        return solution, Prices(used=np.zeros(types), spot=np.zeros(types))
    used, spot = whole.use_rows
    duals = np.maximum(solution.row_duals, 0.0)
    return solution, Prices(used=duals[used], spot=duals[spot])


def limit_prices(
    instance: GpuMixInstance, models: Sequence[ServedModel], *, deadline: Deadline, backend: BackendName
) -> dict[Limit, float]:
    """US$ per hour that one more unit of each limit saves in the relaxation."""
    whole = whole_program(instance, models, {})
    limits = SolveLimits(time_limit_s=deadline.remaining_s())
    solution = solve_program(whole.program, limits, backend=backend, relaxed=True)
    if not len(solution.row_duals):
        return {}
    return {
        limit: max(0.0, -float(solution.row_duals[row])) for limit, row in whole.purchase.limit_rows.items()
    }
