"""Buying GPUs for pools of replicas: what the replicas of all services together need, cost and may draw.

It exists because every sizing problem (GPU mix now, prefill/decode pools later) shares the same linking constraints:
stock, whole nodes, reserved and spot GPUs, power, budget, change cost. It knows nothing of requests or routing.
Each constraint is one function. Symbols: used_g on-demand GPUs in use, spot_g spot GPUs in use, bought_g GPUs paid or
reserved, nodes_g whole nodes, paid_g GPUs that cost money, q_g GPUs per node, R_g reserved GPUs.
Source of the rules: README of gputype-instance, versions 1 and 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from solver.backends.program import Expression, Program
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit that links services: ``kind`` gpu-limit, spot-limit, power-limit or budget, and whose it is."""

    kind: str
    name: str


@dataclass(slots=True)
class Purchase:
    """Expressions of a program that say what is bought, and the row of each limit."""

    running_cost: Expression = field(default_factory=Expression)
    """US$ per hour."""
    power: Expression = field(default_factory=Expression)
    """Watts."""
    limit_rows: dict[Limit, int] = field(default_factory=dict)


def bought_gpus(program: Program, offer: GpuOffer, used: Expression) -> Expression:
    """On-demand GPUs that must be bought for those in use.

    Whole nodes: bought_g = q_g nodes_g, nodes_g integer, q_g nodes_g >= used_g; else bought_g = used_g.
    """
    if not offer.whole_nodes or not used.columns:
        return used
    size = float(offer.gpus_per_node or 1)
    nodes = program.add_variable(integer=True)
    row = Expression([nodes], [size])
    row.add_scaled(used, -1.0)
    program.add_expression_row(row, lower=0.0)
    return Expression([nodes], [size])


def paid_gpus(program: Program, offer: GpuOffer, bought: Expression) -> Expression:
    """GPUs that cost money beyond the reserved ones: paid_g >= bought_g - R_g, paid_g >= 0."""
    if offer.reserved == 0 or not bought.columns:
        return bought
    paid = program.add_variable()
    row = Expression([paid], [1.0])
    row.add_scaled(bought, -1.0)
    program.add_expression_row(row, lower=-float(offer.reserved))
    return Expression([paid], [1.0])


def stock_limit(program: Program, offer: GpuOffer, bought: Expression) -> int | None:
    """On-demand stock: bought_g <= available_g."""
    if offer.available is None or not bought.columns:
        return None
    return program.add_expression_row(bought, upper=float(offer.available))


def spot_limit(program: Program, offer: GpuOffer, spot: Expression) -> int | None:
    """Spot stock: spot_g <= spot_available_g."""
    if offer.spot_available is None or not spot.columns:
        return None
    return program.add_expression_row(spot, upper=float(offer.spot_available))


def power_limit(program: Program, limit_w: float | None, power: Expression) -> int | None:
    """Power: sum over g of power_g (bought_g + spot_g) <= limit."""
    if limit_w is None:
        return None
    return program.add_expression_row(power, upper=limit_w)


def budget_limit(program: Program, budget_usd_per_h: float | None, running_cost: Expression) -> int | None:
    """Budget: sum over g of price_g paid_g + spot_price_g spot_g <= budget."""
    if budget_usd_per_h is None:
        return None
    return program.add_expression_row(running_cost, upper=budget_usd_per_h)


def add_purchase(
    program: Program, instance: GpuMixInstance, used: Sequence[Expression], spot: Sequence[Expression]
) -> Purchase:
    """Add all purchase constraints and the running cost to a program.

    ``used`` and ``spot`` give the GPUs in use per GPU type, in the order of the instance.
    """
    purchase = Purchase()
    for offer, used_gpus, spot_gpus in zip(instance.gpu_types, used, spot, strict=True):
        bought = bought_gpus(program, offer, used_gpus)
        purchase.running_cost.add_scaled(paid_gpus(program, offer, bought), offer.price_usd_per_h)
        purchase.running_cost.add_scaled(spot_gpus, offer.spot_price_usd_per_h or 0.0)
        purchase.power.add_scaled(bought, offer.power_w or 0.0)
        purchase.power.add_scaled(spot_gpus, offer.power_w or 0.0)
        rows = {
            Limit(kind="gpu-limit", name=offer.name): stock_limit(program, offer, bought),
            Limit(kind="spot-limit", name=offer.name): spot_limit(program, offer, spot_gpus),
        }
        purchase.limit_rows.update({limit: row for limit, row in rows.items() if row is not None})
    rows = {
        Limit(kind="power-limit", name="power"): power_limit(program, instance.power_limit_w, purchase.power),
        Limit(kind="budget", name="budget"): budget_limit(
            program, instance.budget_usd_per_h, purchase.running_cost
        ),
    }
    purchase.limit_rows.update({limit: row for limit, row in rows.items() if row is not None})
    program.add_cost(purchase.running_cost)
    return purchase


def change_cost_usd(instance: GpuMixInstance, variant: Variant, replicas: int) -> float:
    """US$ for going from the current replicas of a variant to ``replicas``; 0 where no current ones are stated.

    gpus_per_replica (start max(0, n - current) + stop max(0, current - n)).
    """
    if variant.current_replicas is None:
        return 0.0
    started = max(0, replicas - variant.current_replicas)
    stopped = max(0, variant.current_replicas - replicas)
    return variant.gpus_per_replica * (instance.start_cost_usd * started + instance.stop_cost_usd * stopped)


def add_change_cost(program: Program, instance: GpuMixInstance, variant: Variant, replicas: int) -> None:
    """Charge starting and stopping over the horizon H.

    n = current + started - stopped, both >= 0; cost gpus_per_replica (start started + stop stopped) / H.
    """
    if variant.current_replicas is None or (instance.start_cost_usd == 0 and instance.stop_cost_usd == 0):
        return
    per_gpu = variant.gpus_per_replica / instance.horizon_h
    started = program.add_variable(cost=per_gpu * instance.start_cost_usd)
    stopped = program.add_variable(
        cost=per_gpu * instance.stop_cost_usd, upper=float(variant.current_replicas)
    )
    current = float(variant.current_replicas)
    program.add_row([replicas, started, stopped], [1.0, -1.0, 1.0], lower=current, upper=current)
