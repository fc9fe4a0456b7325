"""What given replicas of a fleet buy, cost, draw and fill: plain sums of whole numbers, without any solver."""

from collections.abc import Sequence
from dataclasses import dataclass

from solver.domain.fleet import FleetGoal, FleetInstance
from solver.pools.purchase import change_cost_usd

BUDGET_SLACK_RATIO = 1e-9
"""Sums of prices and watts may exceed a budget by so much: rounding of floating-point sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBill:
    """Bought GPUs per type, US$ per hour, watts and machines; None where a figure of some type in use is not known.

    ``cost_usd_per_h`` runs without changes, ``changes_usd_per_h`` is their cost spread over the horizon.
    """

    bought_gpus: tuple[int, ...]
    cost_usd_per_h: float
    changes_usd_per_h: float
    power_w: float | None
    machines: float | None

    def objective(self, goal: FleetGoal) -> float:
        """Return the figure that a minimised goal asks about (not goal rate)."""
        figures = {
            FleetGoal.COST: self.cost_usd_per_h + self.changes_usd_per_h,
            FleetGoal.POWER: self.power_w,
            FleetGoal.MACHINES: self.machines,
        }
        figure = figures.get(goal)
        if figure is None:
            raise ValueError(f"the bill has no figure for goal {goal.value}")
        return figure


def bill(instance: FleetInstance, counts: Sequence[Sequence[int]]) -> FleetBill:
    """Add up what replicas [model][config] buy.

    cost = sum over g of price_g max(0, bought_g - reserved_g); power = sum over c of watts_c gpus_c n_c + sum over g of
    watts_g (bought_g - used_g); machines = sum over g of bought_g / gpus_per_node_g; changes as `change_cost_usd`.
    """
    used = dict.fromkeys((offer.name for offer in instance.gpu_types), 0)
    power: float | None = 0.0
    changes_usd = 0.0
    for model, row in zip(instance.models, counts, strict=True):
        for config, n in zip(model.configs, row, strict=True):
            changes_usd += change_cost_usd(instance, config, n)
            if n == 0:
                continue
            used[config.gpu_type] += config.gpus_per_replica * n
            watts = instance.config_power_w(config)
            power = None if power is None or watts is None else power + watts * config.gpus_per_replica * n
    cost, machines, bought = 0.0, 0.0, []
    known = True
    for offer in instance.gpu_types:
        gpus = used[offer.name]
        if offer.whole_nodes and offer.gpus_per_node:
            gpus = -(-gpus // offer.gpus_per_node) * offer.gpus_per_node
        bought.append(gpus)
        cost += offer.price_usd_per_h * max(0, gpus - offer.reserved)
        idle = gpus - used[offer.name]
        if idle:
            power = None if power is None or offer.power_w is None else power + offer.power_w * idle
        known = known and (gpus == 0 or offer.gpus_per_node is not None)
        machines += gpus / (offer.gpus_per_node or 1)
    return FleetBill(
        bought_gpus=tuple(bought),
        cost_usd_per_h=cost,
        changes_usd_per_h=changes_usd / instance.horizon_h,
        power_w=power,
        machines=machines if known else None,
    )


def within_limits(instance: FleetInstance, found: FleetBill) -> bool:
    """Whether a bill keeps stock and budgets (a figure that is not known keeps none)."""
    stock = all(
        offer.available is None or gpus <= offer.available
        for offer, gpus in zip(instance.gpu_types, found.bought_gpus, strict=True)
    )
    budgets = instance.budgets
    return stock and all(
        limit is None or (figure is not None and figure <= limit + BUDGET_SLACK_RATIO * max(1.0, limit))
        for limit, figure in (
            (budgets.cost_usd_per_h, found.cost_usd_per_h),
            (budgets.power_w, found.power_w),
            (budgets.machines, found.machines),
        )
    )
