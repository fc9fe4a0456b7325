"""Runs the pure planner in the real world: with a clock, worker processes and a time limit for the whole answer.

It exists so that the command, the report and later the plan loop start the solver in the same way. It holds no
decision.
"""

import importlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from controller.processes import worker_pool
from solver.check.gpu_mix import check_gpu_mix
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan
from solver.gpu_mix.explain import explain_plan
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix

MODELS_FOR_WORKERS = 8
"""Below so many models starting processes costs more than they save."""
EXPLAIN_SHARE = 0.15
EXPLAIN_MOST_S = 10.0
EXPLAIN_LEAST_S = 1.0
FINISH_SHARE = 0.04
LEAST_LIMIT_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPlan:
    """A plan with its explanation."""

    plan: GpuMixPlan
    solve_s: float
    """Seconds until the plan was found and proved, or its absence explained; on the trace path, reading included."""


def _load_solver() -> None:
    """Load what a worker needs, while the first prices are still being computed."""
    for module in ("solver.backends.highs", "solver.gpu_mix.pricing"):
        importlib.import_module(module)


@contextmanager
def worker_processes(models: int, workers: int | None) -> Iterator[Executor | None]:
    """Start processes for many models; None where they would not pay."""
    count = workers if workers is not None else (os.cpu_count() or 1)
    if models < MODELS_FOR_WORKERS or count < 2:
        yield None
        return
    with worker_pool(count) as pool:
        for _ in range(count):
            pool.submit(_load_solver)
        yield pool


@contextmanager
def spawned(workers: int | None, *, tasks: int) -> Iterator[Executor | None]:
    """Start processes for independent tasks; None where there is only one process or one task."""
    count = min(workers if workers is not None else (os.cpu_count() or 1), tasks)
    if count < 2:
        yield None
        return
    with worker_pool(count) as pool:
        yield pool


def plan_gpu_mix(
    instance: GpuMixInstance, *, options: SolveOptions, workers: int | None = None, explain: bool = True
) -> TimedPlan:
    """Solve and explain within one time limit."""
    began_s = time.monotonic()
    deadline_s = began_s + options.time_limit_s
    reserve_s = min(EXPLAIN_MOST_S, EXPLAIN_SHARE * options.time_limit_s)
    if (
        not explain or reserve_s < EXPLAIN_LEAST_S
    ):  # too little to explain a large problem; small ones need none
        reserve_s = FINISH_SHARE * options.time_limit_s
    with worker_processes(len(instance.models), workers) as executor:
        left_s = max(LEAST_LIMIT_S, deadline_s - reserve_s - time.monotonic())
        plan = solve_gpu_mix(
            instance, options=replace(options, time_limit_s=left_s), clock=time.monotonic, executor=executor
        )
    solve_s = time.monotonic() - began_s
    if explain:
        plan = explained(instance, plan, options=options, spent_s=solve_s)
    verify(instance, plan)
    return TimedPlan(plan=plan, solve_s=solve_s)


def verify(instance: GpuMixInstance, plan: GpuMixPlan) -> None:
    """Refuse to show a plan that its independent check finds wrong: that is a bug of ours."""
    violations = check_gpu_mix(instance, plan)
    if violations:
        raise RuntimeError(f"the plan of {instance.name} fails its check: {violations[0]}; please report it")


def explained(
    instance: GpuMixInstance, plan: GpuMixPlan, *, options: SolveOptions, spent_s: float
) -> GpuMixPlan:
    """Explain a plan in what is left of the time limit, but not for long."""
    left_s = max(LEAST_LIMIT_S, min(EXPLAIN_MOST_S, options.time_limit_s - spent_s))
    return explain_plan(instance, plan, options=replace(options, time_limit_s=left_s), clock=time.monotonic)
