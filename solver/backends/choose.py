"""Names the backends and sends a program to one of them, loading only that one's library."""

from dataclasses import replace
from typing import Literal

import numpy as np

from solver.backends.program import Program, Solution, SolveLimits

BackendName = Literal["highs", "cbc"]

SMALL_COST = 1e-2
"""Backends stop by absolute tolerances; a program whose largest cost is below this is solved in larger units."""


def solve_program(
    program: Program, limits: SolveLimits, *, backend: BackendName = "highs", relaxed: bool = False
) -> Solution:
    """Minimise a program; ``relaxed`` drops integrality (then row duals are given)."""
    largest = float(np.abs(program.cost).max(initial=0.0))
    if not 0.0 < largest < SMALL_COST:
        return _solve(program, limits, backend=backend, relaxed=relaxed)
    unit = largest
    costs, offset = program.cost, program.offset
    program.cost, program.offset = [cost / unit for cost in costs], offset / unit
    try:
        scaled = _solve(
            program,
            replace(limits, gap_absolute=limits.gap_absolute / unit),
            backend=backend,
            relaxed=relaxed,
        )
    finally:
        program.cost, program.offset = costs, offset
    return replace(
        scaled,
        objective=scaled.objective * unit,
        bound=scaled.bound * unit,
        row_duals=scaled.row_duals * unit,
    )


def _solve(program: Program, limits: SolveLimits, *, backend: BackendName, relaxed: bool) -> Solution:
    if backend == "highs":
        from solver.backends.highs import solve_with_highs  # noqa: PLC0415 - a command loads one library only

        return solve_with_highs(program, limits, relaxed=relaxed)
    from solver.backends.cbc import solve_with_cbc  # noqa: PLC0415 - as above

    return solve_with_cbc(program, limits, relaxed=relaxed)
