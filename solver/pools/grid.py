"""The grid on which all values of an objective lie, and what it proves.

It exists because prices are whole cents or tenths of them, watts are round and GPUs are whole: the objective of any
plan is a multiple of some step, so a proved bound may be rounded up to the next multiple, and a search may stop as soon
as less than one step is left. Near-ties, the slowest cases of integer programs, end early that way.
"""

import math
from collections.abc import Iterable

MICRO = 1e-6
ROUNDING = 1e-4
"""Values must lie on the grid of millionths to this part of one."""
BOUND_SLACK_RATIO = 1e-7
"""Bounds of floating-point solvers are trusted to this part."""


def common_step(steps: Iterable[float]) -> float:
    """Return the largest step of which all given ones are multiples, in whole millionths; 0 if there is none."""
    grid = 0
    for step in steps:
        micro = step / MICRO
        if abs(micro - round(micro)) > ROUNDING:
            return 0.0
        grid = math.gcd(grid, round(micro))
    return grid * MICRO


def next_step(bound: float, step: float) -> float:
    """Round a proved lower bound up to the next value that a plan can have."""
    if step <= 0 or not math.isfinite(bound):
        return bound
    trusted = bound - BOUND_SLACK_RATIO * max(1.0, abs(bound))
    return max(bound, math.ceil(trusted / step) * step)
