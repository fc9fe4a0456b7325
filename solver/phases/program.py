"""A fleet as one mixed-integer program: exact, and the reference for every other method.

It exists as the formulation of the README of fleet-instance/1: the pool program of `solver.pools` (serving and buying,
shared with GPU mixes) with roles, KV links, the watts of each config and four goals. It chooses no method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solver.backends.program import Expression, Program
from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.prepare import ServedPhases
from solver.pools.grid import common_step
from solver.pools.losses import LossCase, lost_replicas, survive_case
from solver.pools.purchase import (
    Purchase,
    PurchaseLimits,
    add_change_cost,
    add_purchase,
    change_steps_usd,
    stopping_usd_per_h,
)
from solver.pools.serving import (
    Shares,
    add_shares,
    least_replicas,
    load_within_replicas,
    share_expressions,
    someone_serves,
)


@dataclass(slots=True)
class FleetProgram:
    """The program and where its replicas, limits and rate factor are. It is always minimised: goal rate as -lambda."""

    program: Program
    replicas: list[dict[int, int]]
    purchase: Purchase
    factor: int | None
    link_rows: list[int]
    least_rows: dict[str, int]


def link_within_replicas(
    program: Program, model: ServedPhases, shares: Shares, replicas: dict[int, int]
) -> list[int]:
    """Links carry the KV of their requests: sum_b r_b k_b / (u w_c) x_bc <= n_c for prefill and decode configs."""
    rows = []
    for c, moved in share_expressions(shares, model.link).items():
        if not model.link[:, c].any():
            continue
        row = Expression([replicas[c]], [1.0])
        row.add_scaled(moved, -1.0)
        rows.append(program.add_expression_row(row, lower=0.0))
    return rows


def purchase_limits(instance: FleetInstance) -> PurchaseLimits:
    """Return the budgets as limits of the purchase."""
    budgets = instance.budgets
    return PurchaseLimits(
        power_w=budgets.power_w, budget_usd_per_h=budgets.cost_usd_per_h, machines=budgets.machines
    )


def add_goal(program: Program, goal: FleetGoal, purchase: Purchase, factor: int | None) -> None:
    """Set the objective: cost, power or machines at least, or -lambda at least."""
    if goal is FleetGoal.COST:
        program.add_cost(purchase.running_cost)
    elif goal is FleetGoal.POWER:
        program.add_cost(purchase.power)
    elif goal is FleetGoal.MACHINES:
        program.add_cost(purchase.machines)
    elif factor is not None:
        program.cost[factor] = -1.0


def buy(
    program: Program,
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    replicas: Sequence[dict[int, int]],
) -> Purchase:
    """Buy what the replicas of all models need, under stock and budgets.

    power = sum over g of power_g bought_g + sum over c of gpus_c (power_c - power_g) n_c: a GPU in a replica draws what
    its config says, a bought one in none what its type says.
    """
    used = [Expression() for _ in instance.gpu_types]
    extra = Expression()
    for model, variables in zip(models, replicas, strict=True):
        for c, n in variables.items():
            used[int(model.gpu[c])].add(n, float(model.gpus[c]))
            if model.extra_w[c]:
                extra.add(n, float(model.extra_w[c]))
    spot = [Expression() for _ in instance.gpu_types]
    return add_purchase(
        program, instance.gpu_types, used, spot, limits=purchase_limits(instance), extra_power=extra
    )


def add_replicas(program: Program, model: ServedPhases) -> dict[int, int]:
    """Add the whole replicas of a model's usable configs, within their bounds; returns the variable of each."""
    return {
        c: program.add_variable(lower=float(model.lower[c]), upper=float(model.upper[c]), integer=True)
        for c in model.usable
    }


def charge_changes(
    program: Program, instance: FleetInstance, model: ServedPhases, replicas: dict[int, int]
) -> None:
    """Charge starting and stopping replicas (`add_change_cost`), and stopping those that may not be used any more."""
    if not instance.charges_changes:
        return
    configs = model.demand.configs
    for c, n in replicas.items():
        add_change_cost(program, instance, configs[c], n)
    left_out = (config for c, config in enumerate(configs) if c not in replicas)
    program.offset += stopping_usd_per_h(instance, left_out)


def survive_losses(
    program: Program, model: ServedPhases, replicas: dict[int, int], cases: Sequence[LossCase]
) -> None:
    """Carry both phases and their KV after each of the given losses (`survive_case`, over loads and links)."""
    if not model.must_survive:
        return
    present = lost_replicas(program, model, replicas)
    for case in cases:
        survive_case(program, model, replicas, present, case, amounts=(model.load, model.link))


def fleet_program(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    cases: Mapping[int, Sequence[LossCase]] | None = None,
) -> FleetProgram:
    """Write the program of all given models under all limits; ``cases`` [model index] are losses to survive."""
    program = Program()
    factor = program.add_variable() if instance.goal is FleetGoal.RATE else None
    replicas, link_rows = [], []
    least_rows: dict[str, int] = {}
    for model in models:
        variables = add_replicas(program, model)
        if model.least_replicas:
            least_rows[model.demand.name] = program.rows
            least_replicas(program, model.least_replicas, variables)
        if model.buckets:
            shares = add_shares(program, model, list(variables), factor=factor)
            load_within_replicas(program, model, shares, variables)
            link_rows += link_within_replicas(program, model, shares, variables)
            if factor is None:
                someone_serves(program, model, variables, least=1.0 + model.must_survive)
            survive_losses(program, model, variables, (cases or {}).get(model.index, ()))
        charge_changes(program, instance, model, variables)
        replicas.append(variables)
    purchase = buy(program, instance, models, replicas)
    add_goal(program, instance.goal, purchase, factor)
    return FleetProgram(program, replicas, purchase, factor, link_rows, least_rows)


def objective_step(instance: FleetInstance, models: Sequence[ServedPhases]) -> float:
    """Return the largest step of which every plan's objective is a multiple; 0 if there is none (or goal rate)."""
    if instance.goal is FleetGoal.RATE:
        return 0.0
    steps: list[float] = []
    for g, offer in enumerate(instance.gpu_types):
        sizes = {int(model.gpus[c]) for model in models for c in model.usable if model.gpu[c] == g}
        if offer.whole_nodes and offer.gpus_per_node and sizes:
            sizes = {offer.gpus_per_node}
        if instance.goal is FleetGoal.COST:
            steps += [offer.price_usd_per_h * size for size in sizes]
            steps += [offer.price_usd_per_h * offer.reserved] if sizes else []
        elif instance.goal is FleetGoal.POWER:
            steps += [(offer.power_w or 0.0) * size for size in sizes]
        else:
            steps += [size / (offer.gpus_per_node or 1) for size in sizes]
    if instance.goal is FleetGoal.POWER:
        steps += [abs(float(model.extra_w[c])) for model in models for c in model.usable]
    if instance.charges_changes:
        for model in models:
            steps += change_steps_usd(instance, model.demand.configs)
    return common_step(steps)
