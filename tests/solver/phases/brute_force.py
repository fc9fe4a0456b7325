"""An exact answer to tiny fleet problems by trying every vector of replicas.

It exists as the second opinion on the solver: it knows no bound and no heuristic, only the README of fleet-instance/1.
What given replicas carry is a linear program over pairs (prefill config, decode config), unlike the solver's, which
balances the phases.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from solver.backends.choose import solve_program
from solver.backends.program import Expression, Program, SolveLimits
from solver.domain.fleet import FleetGoal, FleetInstance, FleetModel, Role

Counts = tuple[int, ...]


class TooLarge(Exception):  # noqa: N818 - not an error: the caller draws a smaller problem
    """There are too many vectors to try."""


def best_by_trying(instance: FleetInstance, *, most: int = 4, most_vectors: int = 3000) -> float | None:
    """Return the best objective over all fleets of at most ``most`` replicas per config; None if none is feasible.

    Raises `TooLarge` if that is no proof (a best fleet may need more) or there are too many vectors.
    """
    ranges = [
        range(_enough(instance, model, c, most) + 1)
        for model in instance.models
        for c in range(len(model.configs))
    ]
    if math.prod(len(counts) for counts in ranges) > most_vectors:
        raise TooLarge
    offers = [0]
    for model in instance.models:
        offers.append(offers[-1] + len(model.configs))

    @cache
    def factor(m: int, counts: Counts) -> float:
        return largest_factor(instance.models[m], counts)

    maximised = instance.goal is FleetGoal.RATE
    fleets: list[tuple[float, tuple[Counts, ...]]] = []
    for vector in itertools.product(*ranges):
        counts = tuple(vector[first:last] for first, last in itertools.pairwise(offers))
        figures = _figures(instance, counts)
        if figures is not None:
            fleets.append((0.0 if maximised else figures[instance.goal], counts))
    best: float | None = None
    for objective, counts in sorted(fleets):
        carried = min(factor(m, row) for m, row in enumerate(counts))
        if maximised:
            best = carried if best is None else max(best, carried)
        elif carried >= 1 - 1e-9:
            return objective
    return best


def _enough(instance: FleetInstance, model: FleetModel, c: int, most: int) -> int:
    """How many replicas of a config some best fleet has at most."""
    config = model.configs[c]
    offer = instance.offer(config.gpu_type)
    limits = [math.inf if offer.available is None else offer.available // config.gpus_per_replica]
    budgets = instance.budgets
    if budgets.cost_usd_per_h is not None and offer.price_usd_per_h > 0:
        free = offer.reserved + budgets.cost_usd_per_h / offer.price_usd_per_h
        limits.append(math.floor(free / config.gpus_per_replica + 1e-9))
    if budgets.machines is not None and offer.gpus_per_node:
        limits.append(math.floor(budgets.machines * offer.gpus_per_node / config.gpus_per_replica + 1e-9))
    if instance.goal is not FleetGoal.RATE:
        load = link = 0.0
        for b, bucket in enumerate(model.buckets):
            if model.throughput_rps[b][c] > 0 and bucket.rate_rps > 0:
                load += bucket.rate_rps / model.throughput_rps[b][c] / (1 - model.headroom_ratio)
                speed = _link(model, c)
                if config.role is not Role.BOTH and speed > 0:
                    link += bucket.rate_rps * model.kv_bytes(b) / speed
        needed = max(math.ceil(max(load, link) + 1e-9), model.min_total_replicas)
        node = offer.gpus_per_node if offer.whole_nodes and offer.gpus_per_node else 1
        needed += node - 1  # idle GPUs of a node may be put under a cap
        limits.append(needed)
    if min(limits) > most:
        raise TooLarge
    return int(min(limits))


def _link(model: FleetModel, c: int) -> float:
    speed = model.configs[c].kv_link_bytes_per_s
    return math.inf if speed is None else speed * model.kv_utilisation_max_ratio


def _figures(instance: FleetInstance, counts: tuple[Counts, ...]) -> dict[FleetGoal, float] | None:
    """Cost, power and machines; None where a limit is broken."""
    cost = watts = machines = 0.0
    for model, row in zip(instance.models, counts, strict=True):
        if sum(row) < model.min_total_replicas:
            return None
    for offer in instance.gpu_types:
        used = 0
        for model, row in zip(instance.models, counts, strict=True):
            for config, n in zip(model.configs, row, strict=True):
                if config.gpu_type == offer.name:
                    used += config.gpus_per_replica * n
                    own = offer.power_w if config.power_w is None else config.power_w
                    watts += (own or 0.0) * config.gpus_per_replica * n
        node = offer.gpus_per_node or 1
        bought = math.ceil(used / node) * node if offer.whole_nodes else used
        if offer.available is not None and bought > offer.available:
            return None
        cost += offer.price_usd_per_h * max(0, bought - offer.reserved)
        watts += (offer.power_w or 0.0) * (bought - used)
        machines += bought / node
    budgets = instance.budgets
    for figure, limit in (
        (cost, budgets.cost_usd_per_h),
        (watts, budgets.power_w),
        (machines, budgets.machines),
    ):
        if limit is not None and figure > limit + 1e-9:
            return None
    return {FleetGoal.COST: cost, FleetGoal.POWER: watts, FleetGoal.MACHINES: machines}


def _pairs(model: FleetModel, b: int) -> Iterator[tuple[int, int]]:
    """Ways to serve a bucket: (c, c) for role both, (prefill, decode) else."""
    able = [c for c, rate in enumerate(model.throughput_rps[b]) if rate > 0]
    moves = model.kv_bytes(b) > 0
    for c in able:
        if model.configs[c].role is Role.BOTH:
            yield c, c
    for p, d in itertools.product(able, able):
        roles = (model.configs[p].role, model.configs[d].role)
        if roles == (Role.PREFILL, Role.DECODE) and not (
            moves and min(_link(model, p), _link(model, d)) <= 0
        ):
            yield p, d


def largest_factor(model: FleetModel, counts: Counts) -> float:
    """Return the largest factor on all rates that given replicas carry; infinite without traffic."""
    busy = [b for b, bucket in enumerate(model.buckets) if bucket.rate_rps > 0]
    if not busy:
        return math.inf
    program = Program()
    factor = program.add_variable(cost=-1.0)
    loads = [Expression() for _ in counts]
    links = [Expression() for _ in counts]
    for b in busy:
        rate = model.buckets[b].rate_rps
        served = Expression([factor], [-1.0])
        for p, d in _pairs(model, b):
            flow = program.add_variable()
            served.add(flow, 1.0)
            for c in {p, d}:
                loads[c].add(flow, rate / model.throughput_rps[b][c])
                if p != d and np.isfinite(_link(model, c)) and model.kv_bytes(b) > 0:
                    links[c].add(flow, rate * model.kv_bytes(b) / _link(model, c))
        program.add_expression_row(served, lower=0.0, upper=0.0)
    for load, link, n in zip(loads, links, counts, strict=True):
        if load.columns:
            program.add_expression_row(load, upper=(1 - model.headroom_ratio) * n)
        if link.columns:
            program.add_expression_row(link, upper=float(n))
    return -solve_program(program, SolveLimits()).objective


def without(instance: FleetInstance, kind: str) -> FleetInstance:
    """Return the problem without one kind of limit."""
    budgets = instance.budgets
    match kind:
        case "budget":
            return replace(instance, budgets=replace(budgets, cost_usd_per_h=None))
        case "power-limit":
            return replace(instance, budgets=replace(budgets, power_w=None))
        case "machine-limit":
            return replace(instance, budgets=replace(budgets, machines=None))
        case "gpu-limit":
            return replace(
                instance, gpu_types=tuple(replace(offer, available=None) for offer in instance.gpu_types)
            )
        case "kv-transfer":
            models = tuple(
                replace(
                    model,
                    configs=tuple(replace(config, kv_link_bytes_per_s=None) for config in model.configs),
                )
                for model in instance.models
            )
            return replace(instance, models=models)
        case "min-replicas":
            return replace(
                instance, models=tuple(replace(model, min_total_replicas=0) for model in instance.models)
            )
    raise ValueError(kind)
