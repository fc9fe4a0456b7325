"""The whole problem as one mixed-integer program: exact, and the fastest way up to a few hundred integers.

It exists as the reference formulation: whole replicas, continuous routing shares, every constraint of version 2.
Losses to survive are added only when an answer would not survive them, since few of the many cases ever matter.
It is not for a hundred models at once (see `columns`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Expression, Program, Solution, SolveLimits, SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.cost_step import cost_step_usd
from solver.gpu_mix.prepare import ServedModel
from solver.gpu_mix.routing import route
from solver.gpu_mix.serving import spot_share
from solver.pools import losses
from solver.pools.grid import next_step
from solver.pools.losses import LossCase, SurvivalTimeoutError
from solver.pools.purchase import (
    Purchase,
    PurchaseLimits,
    add_change_cost,
    add_purchase,
    stopping_usd_per_h,
)
from solver.pools.serving import add_shares, least_replicas, load_within_replicas, someone_serves

STEP_SHARE = 0.99
"""A search may stop when less than this part of a cost step is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """An answer to a program: replicas [model][variant] in the order of the models given, objective and bound."""

    status: SolveStatus
    counts: tuple[tuple[int, ...], ...] = ()
    objective: float = float("nan")
    bound: float = float("-inf")


@dataclass(slots=True)
class WholeProgram:
    """The program and where its replicas and limits are."""

    program: Program
    replicas: list[dict[int, int]]
    purchase: Purchase
    use_rows: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Rows whose duals price a GPU in use per type, on demand and spot; only if they were asked for."""


def add_model(
    program: Program,
    instance: GpuMixInstance,
    model: ServedModel,
    *,
    variants: Sequence[int] | None = None,
    cases: Sequence[LossCase] = (),
    whole: bool = True,
) -> dict[int, int]:
    """Add a model's replicas and everything that must hold for it alone; returns the variable of each variant."""
    if variants is None:
        variants = [c for c in range(len(model.variants)) if model.upper[c] > 0]
    replicas = {
        c: program.add_variable(lower=float(model.lower[c]), upper=float(model.upper[c]), integer=whole)
        for c in variants
    }
    for c, n in replicas.items():
        add_change_cost(program, instance, model.variants[c], n)
    least_replicas(program, model.least_replicas, replicas)
    if model.buckets:
        shares = add_shares(program, model, variants)
        load_within_replicas(program, model, shares, replicas)
        spot_share(program, model, shares)
        someone_serves(program, model, replicas, least=1.0 + model.must_survive)
        if model.must_survive:
            present = losses.lost_replicas(program, model, replicas)
            for case in cases:
                losses.survive_case(program, model, replicas, present, case, amounts=(model.load,))
    return replicas


def fixed_change_cost(instance: GpuMixInstance, model: ServedModel, variants: Collection[int]) -> float:
    """US$ per hour for stopping what runs on variants that may not be used any more."""
    left_out = (variant for c, variant in enumerate(model.variants) if c not in variants)
    return stopping_usd_per_h(instance, left_out)


@dataclass(frozen=True, slots=True)
class OtherUse:
    """GPUs per type that models outside the program use, on demand and spot."""

    used: NDArray[np.float64]
    spot: NDArray[np.float64]


def buy(
    program: Program, instance: GpuMixInstance, used: Sequence[Expression], spot: Sequence[Expression]
) -> Purchase:
    """Buy the GPUs in use (per type, on demand and spot) under the limits of an instance, at least running cost."""
    limits = PurchaseLimits(power_w=instance.power_limit_w, budget_usd_per_h=instance.budget_usd_per_h)
    purchase = add_purchase(program, instance.gpu_types, used, spot, limits=limits)
    program.add_cost(purchase.running_cost)
    return purchase


def whole_program(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    cases: Mapping[int, Sequence[LossCase]],
    *,
    others: OtherUse | None = None,
    priced_use: bool = False,
) -> WholeProgram:
    """Write the program of all given models under all limits of the instance, beside what ``others`` use.

    ``priced_use`` sets GPUs in use apart as variables, use_g >= sum gpus n, so that a relaxation prices them.
    """
    program = Program()
    used = [Expression() for _ in instance.gpu_types]
    spot = [Expression() for _ in instance.gpu_types]
    if others is not None:
        one = program.add_variable(lower=1.0, upper=1.0)
        for stock, amounts in ((used, others.used), (spot, others.spot)):
            for expression, amount in zip(stock, amounts, strict=True):
                if amount > 0:
                    expression.add(one, float(amount))
    replicas = []
    for model in models:
        variables = add_model(program, instance, model, cases=cases.get(model.index, ()))
        program.offset += fixed_change_cost(instance, model, variables)
        for c, n in variables.items():
            stock = spot if model.spot[c] else used
            stock[int(model.gpu[c])].add(n, float(model.gpus[c]))
        replicas.append(variables)
    if not priced_use:
        return WholeProgram(program, replicas, buy(program, instance, used, spot))
    use_rows: tuple[list[int], list[int]] = ([], [])
    for stock, rows in zip((used, spot), use_rows, strict=True):
        for g, expression in enumerate(stock):
            use = program.add_variable()
            row = Expression([use], [1.0])
            row.add_scaled(expression, -1.0)
            rows.append(program.add_expression_row(row, lower=0.0))
            stock[g] = Expression([use], [1.0])
    return WholeProgram(program, replicas, buy(program, instance, used, spot), use_rows)


def read_counts(
    models: Sequence[ServedModel], replicas: Sequence[Mapping[int, int]], values: NDArray[np.float64]
) -> tuple[tuple[int, ...], ...]:
    """Round the replica variables; all variants of a model in file order."""
    counts = []
    for model, variables in zip(models, replicas, strict=True):
        row = [0] * len(model.variants)
        for c, n in variables.items():
            row[c] = round(float(values[n]))
        counts.append(tuple(row))
    return tuple(counts)


def unsurvived_cases(
    model: ServedModel, counts: Sequence[int], *, backend: BackendName, deadline: Deadline
) -> list[LossCase]:
    """Find the losses (worst first) that the given replicas do not survive; `SurvivalTimeoutError` if time is up."""

    def fullest_after(case: LossCase) -> float:
        routing = route(model, counts, lost=case, backend=backend)
        return float("inf") if routing is None else routing.fullest_ratio

    return losses.unsurvived_cases(model, counts, fullest_after=fullest_after, deadline=deadline)


def _within_step(solution: Solution, step_usd: float) -> bool:
    """Whether less than a cost step is left, and the step stands out of the noise of the backend."""
    noise = 1e-8 * max(1.0, abs(solution.objective))
    return noise < (1 - STEP_SHARE) * step_usd and solution.objective - solution.bound < step_usd - noise


def solve_direct(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    *,
    deadline: Deadline,
    gap_ratio: float,
    backend: BackendName,
    others: OtherUse | None = None,
) -> Replicas:
    """Solve the whole problem; the bound stays proved when cases are added, since each program relaxes the next."""
    cases: dict[int, list[LossCase]] = {}
    bound = -np.inf
    step_usd = cost_step_usd(instance, models)
    while True:
        whole = whole_program(instance, models, cases, others=others)
        limits = SolveLimits(
            time_limit_s=deadline.remaining_s(), gap_ratio=gap_ratio, gap_absolute=STEP_SHARE * step_usd
        )
        solution = solve_program(whole.program, limits, backend=backend)
        bound = max(bound, next_step(solution.bound, step_usd if others is None else 0.0))
        if others is None and solution.status == SolveStatus.OPTIMAL and _within_step(solution, step_usd):
            bound = max(bound, solution.objective)
        if not solution.found:
            return Replicas(status=solution.status, bound=bound)
        counts = read_counts(models, whole.replicas, solution.values)
        try:
            missing = {
                model.index: found
                for model, row in zip(models, counts, strict=True)
                if (found := unsurvived_cases(model, row, backend=backend, deadline=deadline))
            }
        except SurvivalTimeoutError:
            return Replicas(status=SolveStatus.TIMED_OUT, bound=bound)
        if not missing:
            return Replicas(
                status=solution.status,
                counts=counts,
                objective=solution.objective,
                bound=min(bound, solution.objective),
            )
        if deadline.passed():
            return Replicas(status=SolveStatus.TIMED_OUT, bound=bound)
        for index, found in missing.items():
            cases.setdefault(index, []).extend(found)
