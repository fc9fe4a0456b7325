"""Names the backends and sends a program to one of them, loading only that one's library."""

from typing import Literal

from solver.backends.program import Program, Solution, SolveLimits

BackendName = Literal["highs", "cbc"]


def solve_program(
    program: Program, limits: SolveLimits, *, backend: BackendName = "highs", relaxed: bool = False
) -> Solution:
    """Minimise a program; ``relaxed`` drops integrality (then row duals are given)."""
    if backend == "highs":
        from solver.backends.highs import solve_with_highs  # noqa: PLC0415 - a command loads one library only

        return solve_with_highs(program, limits, relaxed=relaxed)
    from solver.backends.cbc import solve_with_cbc  # noqa: PLC0415 - as above

    return solve_with_cbc(program, limits, relaxed=relaxed)
