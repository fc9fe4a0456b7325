"""Picks the method that looks for replicas: one program where it is small, cuts on replicas else."""

from collections.abc import Sequence
from typing import Literal

from solver.backends.choose import BackendName
from solver.backends.program import SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.direct import FleetAnswer, solve_direct
from solver.phases.dominated import without_dominated
from solver.phases.prepare import ServedPhases
from solver.phases.projected import solve_projected

FleetMethod = Literal["auto", "direct", "projected"]

DIRECT_UP_TO_FLOWS = 600
"""One program is used up to so many routing shares; above it cuts on replicas are faster."""


def find_fleet(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    *,
    method: FleetMethod,
    deadline: Deadline,
    gap_ratio: float,
    backend: BackendName,
) -> FleetAnswer:
    """Find replicas, without dominated configs; infeasible at once where no link lets some bucket be served.

    Bounds of configs, change costs and losses to survive are only in the one program, whichever method is asked for.
    """
    if instance.goal is not FleetGoal.RATE and not all(m.covered_by(m.usable).all() for m in models):
        return FleetAnswer(status=SolveStatus.INFEASIBLE)
    kept = without_dominated(instance, models)
    if instance.tells_replicas_apart:
        method = "direct"  # cuts say what replicas serve, and nothing else of them
    elif method == "auto":
        flows = sum(int(model.served_by[:, model.usable].sum()) for model in kept)
        method = "direct" if flows <= DIRECT_UP_TO_FLOWS else "projected"
    solve = solve_direct if method == "direct" else solve_projected
    return solve(instance, kept, deadline=deadline, gap_ratio=gap_ratio, backend=backend)
