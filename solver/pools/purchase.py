"""Buying GPUs for pools of replicas: what the replicas of all services together need, cost and may draw.

It exists because every sizing problem (GPU mix, prefill/decode fleets) shares the same linking constraints: stock,
whole nodes, reserved and spot GPUs, power, budget, machines, change cost. It knows nothing of requests or routing.
Each constraint is one function. Symbols: used_g on-demand GPUs in use, spot_g spot GPUs in use, bought_g GPUs paid or
reserved, nodes_g whole nodes, paid_g GPUs that cost money, q_g GPUs per node, R_g reserved GPUs.
Source of the rules: READMEs of gputype-instance, versions 1 and 2, and of fleet-instance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from solver.backends.program import Expression, Program
from solver.domain.gpu_mix import GpuOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit that links services: ``kind`` gpu-limit, spot-limit, power-limit, budget or machine-limit, and whose."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurchaseLimits:
    """Limits on all GPU types together; None: no such limit."""

    power_w: float | None = None
    budget_usd_per_h: float | None = None
    machines: float | None = None


@dataclass(slots=True)
class Purchase:
    """Expressions of a program that say what is bought, and the row of each limit."""

    running_cost: Expression = field(default_factory=Expression)
    """US$ per hour."""
    power: Expression = field(default_factory=Expression)
    """Watts."""
    machines: Expression = field(default_factory=Expression)
    """Nodes; GPU types that state no node size are left out."""
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


def machine_limit(program: Program, limit: float | None, machines: Expression) -> int | None:
    """Machines: sum over g of bought_g / q_g <= limit."""
    if limit is None:
        return None
    return program.add_expression_row(machines, upper=limit)


def add_purchase(
    program: Program,
    offers: Sequence[GpuOffer],
    used: Sequence[Expression],
    spot: Sequence[Expression],
    *,
    limits: PurchaseLimits,
    extra_power: Expression | None = None,
) -> Purchase:
    """Add all purchase constraints to a program and return what is bought; what of it costs is for the caller to say.

    ``used`` and ``spot`` give the GPUs in use per offer. ``extra_power`` is what GPUs in use draw beyond the figure of
    their type (less than nothing under a power cap): power = sum over g of power_g (bought_g + spot_g) + extra.
    """
    purchase = Purchase()
    for offer, used_gpus, spot_gpus in zip(offers, used, spot, strict=True):
        bought = bought_gpus(program, offer, used_gpus)
        purchase.running_cost.add_scaled(paid_gpus(program, offer, bought), offer.price_usd_per_h)
        purchase.running_cost.add_scaled(spot_gpus, offer.spot_price_usd_per_h or 0.0)
        purchase.power.add_scaled(bought, offer.power_w or 0.0)
        purchase.power.add_scaled(spot_gpus, offer.power_w or 0.0)
        if offer.gpus_per_node is not None:
            purchase.machines.add_scaled(bought, 1.0 / offer.gpus_per_node)
        rows = {
            Limit(kind="gpu-limit", name=offer.name): stock_limit(program, offer, bought),
            Limit(kind="spot-limit", name=offer.name): spot_limit(program, offer, spot_gpus),
        }
        purchase.limit_rows.update({limit: row for limit, row in rows.items() if row is not None})
    if extra_power is not None:
        purchase.power.add_scaled(extra_power, 1.0)
    rows = {
        Limit(kind="power-limit", name="power"): power_limit(program, limits.power_w, purchase.power),
        Limit(kind="budget", name="budget"): budget_limit(
            program, limits.budget_usd_per_h, purchase.running_cost
        ),
        Limit(kind="machine-limit", name="machines"): machine_limit(
            program, limits.machines, purchase.machines
        ),
    }
    purchase.limit_rows.update({limit: row for limit, row in rows.items() if row is not None})
    return purchase


class ChangePrices(Protocol):
    """What starting and stopping costs, in US$ per GPU, and the hours over which that is spread."""

    @property
    def start_cost_usd(self) -> float:
        """US$ per GPU started."""
        ...

    @property
    def stop_cost_usd(self) -> float:
        """US$ per GPU stopped."""
        ...

    @property
    def horizon_h(self) -> float:
        """Hours over which a change is spread."""
        ...


class RunningPool(Protocol):
    """A pool of which replicas may run already."""

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of a replica."""
        ...

    @property
    def current_replicas(self) -> int | None:
        """Replicas that run; None: changes are not charged."""
        ...


def change_cost_usd(prices: ChangePrices, pool: RunningPool, replicas: int) -> float:
    """US$ for going from the current replicas of a pool to ``replicas``; 0 where no current ones are stated.

    gpus_per_replica (start max(0, n - current) + stop max(0, current - n)).
    """
    if pool.current_replicas is None:
        return 0.0
    started = max(0, replicas - pool.current_replicas)
    stopped = max(0, pool.current_replicas - replicas)
    return pool.gpus_per_replica * (prices.start_cost_usd * started + prices.stop_cost_usd * stopped)


def add_change_cost(program: Program, prices: ChangePrices, pool: RunningPool, replicas: int) -> None:
    """Charge starting and stopping over the horizon H.

    n = current + started - stopped, both >= 0; cost gpus_per_replica (start started + stop stopped) / H.
    """
    if pool.current_replicas is None or (prices.start_cost_usd == 0 and prices.stop_cost_usd == 0):
        return
    per_gpu = pool.gpus_per_replica / prices.horizon_h
    started = program.add_variable(cost=per_gpu * prices.start_cost_usd)
    stopped = program.add_variable(cost=per_gpu * prices.stop_cost_usd, upper=float(pool.current_replicas))
    current = float(pool.current_replicas)
    program.add_row([replicas, started, stopped], [1.0, -1.0, 1.0], lower=current, upper=current)


def stopping_usd_per_h(prices: ChangePrices, left_out: Iterable[RunningPool]) -> float:
    """US$ per hour for stopping what runs in pools that may not be used any more: stop sum gpus current / H."""
    stopped = sum(pool.gpus_per_replica * (pool.current_replicas or 0) for pool in left_out)
    return prices.stop_cost_usd * stopped / prices.horizon_h


def change_steps_usd(prices: ChangePrices, pools: Iterable[RunningPool]) -> list[float]:
    """US$ per hour of starting or stopping one replica of each pool that runs: all change costs are sums of them."""
    steps = []
    for pool in pools:
        if pool.current_replicas is not None:
            per_gpu = pool.gpus_per_replica / prices.horizon_h
            steps += [per_gpu * prices.start_cost_usd, per_gpu * prices.stop_cost_usd]
    return steps
