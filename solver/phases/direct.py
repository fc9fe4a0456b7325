"""One mixed-integer program for the whole fleet: the fastest way for small problems, and the reference for others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Solution, SolveLimits, SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.prepare import ServedPhases
from solver.phases.program import FleetProgram, fleet_program, objective_step
from solver.phases.routing import route
from solver.pools.grid import next_step
from solver.pools.losses import LossCase, SurvivalTimeoutError, unsurvived_cases

STEP_SHARE = 0.99
"""A search may stop when less than this part of a step of the objective is left."""
SMALLEST_FACTOR = 1e-12
"""A rate factor below this is none."""

Counts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAnswer:
    """Replicas [model][config] and the proved bound, in the goal's own sense: above the rate factor, below the rest."""

    status: SolveStatus
    counts: Counts = ()
    objective: float | None = None
    """As the method saw it; `describe_plan` adds it up anew."""
    bound: float | None = None
    method: str = "direct"

    @property
    def gap_ratio(self) -> float:
        """|objective - bound| over the objective; infinite without an answer or a bound."""
        if self.objective is None or self.bound is None:
            return math.inf
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-9)


def scaled(models: Sequence[ServedPhases], factor: float) -> tuple[ServedPhases, ...]:
    """Multiply all rates."""
    return tuple(replace(model, load=model.load * factor, link=model.link * factor) for model in models)


def read_counts(
    models: Sequence[ServedPhases], replicas: Sequence[dict[int, int]], values: NDArray[np.float64]
) -> Counts:
    """Round the replica variables; all configs of a model in file order."""
    counts = []
    for model, variables in zip(models, replicas, strict=True):
        row = [0] * model.configs
        for c, n in variables.items():
            row[c] = round(float(values[n]))
        counts.append(tuple(row))
    return tuple(counts)


def relaxed(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    *,
    deadline: Deadline,
    backend: BackendName,
) -> tuple[FleetProgram, Solution]:
    """Solve the program without whole numbers."""
    whole = fleet_program(instance, models)
    limits = SolveLimits(time_limit_s=deadline.remaining_s())
    return whole, solve_program(whole.program, limits, backend=backend, relaxed=True)


def solve_direct(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    *,
    deadline: Deadline,
    gap_ratio: float,
    backend: BackendName,
) -> FleetAnswer:
    """Solve the whole program.

    Goal rate is solved in units of its relaxation, so that factors far from 1 cost no accuracy. Losses to survive are
    added when an answer would not survive them; the bound stays proved, since each program relaxes the next.
    """
    unit = 1.0
    if instance.goal is FleetGoal.RATE:
        _, loose = relaxed(instance, models, deadline=deadline, backend=backend)
        if not loose.found:
            return FleetAnswer(status=loose.status)
        unit = -loose.objective
        if unit <= SMALLEST_FACTOR:
            unit = 1.0
        models = scaled(models, unit)
    step = objective_step(instance, models)
    cases: dict[int, list[LossCase]] = {}
    bound = -math.inf
    while True:
        whole = fleet_program(instance, models, cases)
        limits = SolveLimits(
            time_limit_s=deadline.remaining_s(), gap_ratio=gap_ratio, gap_absolute=STEP_SHARE * step
        )
        solution = solve_program(whole.program, limits, backend=backend)
        bound = max(bound, next_step(solution.bound, step))
        if solution.status is SolveStatus.OPTIMAL and _within_step(solution, step):
            bound = max(bound, solution.objective)
        told = -bound * unit if instance.goal is FleetGoal.RATE else bound
        proved = told if math.isfinite(told) else None
        if not solution.found:
            return FleetAnswer(status=solution.status, bound=proved)
        counts = read_counts(models, whole.replicas, solution.values)
        try:
            missing = _unsurvived(models, counts, backend=backend, deadline=deadline)
        except SurvivalTimeoutError:
            return FleetAnswer(status=SolveStatus.TIMED_OUT, bound=proved)
        if not missing:
            return FleetAnswer(
                status=solution.status,
                counts=counts,
                objective=-solution.objective * unit
                if instance.goal is FleetGoal.RATE
                else solution.objective,
                bound=proved,
            )
        if deadline.passed():
            return FleetAnswer(status=SolveStatus.TIMED_OUT, bound=proved)
        for index, found in missing.items():
            cases.setdefault(index, []).extend(found)


def _unsurvived(
    models: Sequence[ServedPhases], counts: Counts, *, backend: BackendName, deadline: Deadline
) -> dict[int, list[LossCase]]:
    """Find losses that an answer does not survive, by index of the model."""
    missing = {}
    for model, row in zip(models, counts, strict=True):

        def fullest_after(case: LossCase, model: ServedPhases = model, row: tuple[int, ...] = row) -> float:
            routing = route(model, row, lost=case, backend=backend)
            return math.inf if routing is None else 1.0 / routing.factor

        found = unsurvived_cases(model, row, fullest_after=fullest_after, deadline=deadline)
        if found:
            missing[model.index] = found
    return missing


def _within_step(solution: Solution, step: float) -> bool:
    """Whether less than a step of the objective is left, and the step stands out of the noise of the backend."""
    noise = 1e-8 * max(1.0, abs(solution.objective))
    return noise < (1 - STEP_SHARE) * step and solution.objective - solution.bound < step - noise
