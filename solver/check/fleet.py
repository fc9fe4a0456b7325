"""Verifies a fleet plan against the problem it answers, without the solver that made it.

It exists so that no fleet is shown or applied on the word of a solver: everything the README of fleet-instance/1 asks
is computed again here from the instance alone, and every rule that is broken becomes a sentence. It imports no solver
and no backend. It says nothing about how good a fleet is beyond what the plan itself claims.
"""

import itertools
import math
from collections.abc import Iterator
from typing import get_args

import numpy as np

from solver.check.game import Floats, least_largest_use
from solver.check.losses import unsurvived
from solver.domain.fleet import (
    FleetConfig,
    FleetGoal,
    FleetInfeasibleKind,
    FleetInstance,
    FleetModel,
    FleetPlan,
    Phase,
    Role,
)
from solver.domain.gpu_mix import PlanStatus

PHASE_OF = {Role.BOTH: Phase.BOTH, Role.PREFILL: Phase.PREFILL, Role.DECODE: Phase.DECODE}
FIGURES = (
    "objective",
    "bound",
    "gap_ratio",
    "cost_usd_per_h",
    "change_cost_usd",
    "power_w",
    "machines",
    "rate_factor",
)
TABLES = ("replicas", "flows", "load_ratio", "link_ratio", "bought_gpus", "binding")


def check_fleet(instance: FleetInstance, plan: FleetPlan, *, tolerance: float = 1e-6) -> tuple[str, ...]:
    """Return what is wrong with a plan, one sentence each; empty means sound.

    Parameters
    ----------
    instance
        The problem.
    plan
        The answer to verify.
    tolerance
        Relative on figures, absolute on shares, loads and load ratios.

    Notes
    -----
    With replicas n[m,c], shares x[m,b,c], rates r, throughputs T, headroom h and rate factor lambda (1 unless the goal
    is the rate): over both and prefill sum x = 1, over decode sum x = over prefill sum x; lambda sum_b r x / T <= (1 -
    h) n; lambda sum_b r bytes x <= u link n; stock, whole nodes, cost, power, machines and budgets as in the README.
    Where asked for: min <= n <= max of each config; changes cost gpus (start started + stop stopped) over the horizon;
    after the loss of any ``survive`` replicas some other flows carry the full rate on what is left.
    """
    violations = list(_named(instance, plan))
    if plan.status in (PlanStatus.INFEASIBLE, PlanStatus.TIMED_OUT):
        violations += _without_fleet(plan)
        violations += (
            _infeasible(instance, plan) if plan.status is PlanStatus.INFEASIBLE else _no_reason(plan)
        )
        return tuple(violations)
    violations += [*_no_reason(plan), *_shape(instance, plan)]
    if violations:
        return tuple(violations)  # the other rules would stumble over it
    for m, model in enumerate(instance.models):
        violations += _flows(model, m, plan, tolerance)
        violations += _loads(model, m, plan, tolerance)
        violations += _bounds(model, m, plan)
        violations += _survival(model, plan.replicas[m], tolerance)
    violations += _purchase(instance, plan, tolerance)
    violations += _claims(instance, plan, tolerance)
    return tuple(violations)


def _close(stated: float, true: float, tolerance: float) -> bool:
    return abs(stated - true) <= tolerance * abs(true) + 1e-9


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _named(instance: FleetInstance, plan: FleetPlan) -> Iterator[str]:
    if plan.instance_name != instance.name:
        yield f"the plan answers {plan.instance_name!r}, the instance is {instance.name!r}"
    if plan.goal is not instance.goal:
        yield f"the plan's goal is {plan.goal}, the instance's {instance.goal}"


def _no_reason(plan: FleetPlan) -> Iterator[str]:
    if plan.infeasible is not None:
        yield f"the status is {plan.status}, yet a reason for infeasibility is given"


def _without_fleet(plan: FleetPlan) -> Iterator[str]:
    """Nothing may be stated of a fleet that does not exist."""
    for field in FIGURES:
        if getattr(plan, field) is not None and not (
            field == "bound" and plan.status is PlanStatus.TIMED_OUT
        ):
            yield f"the status is {plan.status}, yet {field} is given"
    for field in TABLES:
        if getattr(plan, field):
            yield f"the status is {plan.status}, yet {field} is given"
    if plan.worth_splitting is not None:
        yield f"the status is {plan.status}, yet worth_splitting is given"
    if plan.status is PlanStatus.INFEASIBLE and plan.both_only_objective is not None:
        yield "the status is infeasible, yet there is a fleet without splitting"


def _servable(model: FleetModel, b: int) -> bool:
    roles = {
        config.role for config, rate in zip(model.configs, model.throughput_rps[b], strict=True) if rate > 0
    }
    return Role.BOTH in roles or {Role.PREFILL, Role.DECODE} <= roles


def _infeasible(instance: FleetInstance, plan: FleetPlan) -> Iterator[str]:
    """Hold the reason against the instance: it names what exists, and a limit that is there."""
    reason = plan.infeasible
    if reason is None:
        yield "the status is infeasible, yet no reason is given"
        return
    if reason.kind not in get_args(FleetInfeasibleKind):
        yield f"the reason's kind {reason.kind!r} is none of {', '.join(get_args(FleetInfeasibleKind))}"
    if not reason.message.strip():
        yield "the reason has no message"
    for what, names, known in (
        ("model", reason.models, {model.name for model in instance.models}),
        ("GPU type", reason.gpu_types, {offer.name for offer in instance.gpu_types}),
    ):
        for name in names:
            if name not in known:
                yield f"the reason names the {what} {name!r}, which the instance does not have"
    unservable = {
        (model.name, b)
        for model in instance.models
        for b, bucket in enumerate(model.buckets)
        if bucket.rate_rps > 0 and not _servable(model, b)
    }
    if (reason.kind == "bucket-unservable") != bool(unservable):
        yield f"the reason is {reason.kind}, yet {len(unservable)} buckets with traffic have no machine"
    if reason.kind == "bucket-unservable" and not reason.buckets:
        yield "the reason is bucket-unservable, yet no bucket is named"
    for b in reason.buckets:
        if not any((name, b) in unservable for name in reason.models):
            yield f"bucket {b} is named as unservable, but machines serve it or it has no traffic"
    budgets = instance.budgets
    there = {
        "budget": budgets.cost_usd_per_h is not None,
        "power-limit": budgets.power_w is not None,
        "machine-limit": budgets.machines is not None,
        "gpu-limit": any(offer.available is not None for offer in instance.gpu_types),
        "kv-transfer": any(
            config.kv_link_bytes_per_s is not None for model in instance.models for config in model.configs
        ),
        "survive": any(model.survive > 0 and model.rate_rps > 0 for model in instance.models),
        "replica-limit": any(
            config.min_replicas > 0 or config.max_replicas is not None
            for model in instance.models
            for config in model.configs
        ),
    }
    if not there.get(reason.kind, True):
        yield f"the reason is {reason.kind}, yet the instance has no such limit"


def _shape(instance: FleetInstance, plan: FleetPlan) -> Iterator[str]:
    """Everything is there, in the order of the instance, finite."""
    needed = {"objective", "cost_usd_per_h", "rate_factor"}
    if plan.status is PlanStatus.OPTIMAL:
        needed |= {"bound", "gap_ratio"}
    for field in FIGURES:
        value = getattr(plan, field)
        if (value is None and field in needed) or (value is not None and not _finite(value)):
            yield f"the status is {plan.status}, yet {field} is {value}"
    if (plan.bound is None) != (plan.gap_ratio is None):
        yield "bound and gap_ratio are not given together"
    sizes = [len(model.configs) for model in instance.models]
    for field in ("replicas", "load_ratio", "link_ratio"):
        if [len(row) for row in getattr(plan, field)] != sizes:
            yield f"{field} does not have one number per model and config"
    if len(plan.bought_gpus) != len(instance.gpu_types):
        yield "bought_gpus does not have one number per GPU type"
    for model, row in zip(instance.models, plan.replicas, strict=False):
        for c, count in enumerate(row):
            if type(count) is not int or count < 0:
                yield f"{model.name}, config {c}: {count!r} is not a whole number of replicas"
    known = {model.name for model in instance.models}
    for flow in plan.flows:
        if flow.model not in known:
            yield f"a flow names the model {flow.model!r}, which the instance does not have"


def _flows(model: FleetModel, m: int, plan: FleetPlan, tolerance: float) -> Iterator[str]:
    """Shares lie in [0, 1], go to machines that serve them, and sum to 1 in each phase."""
    first = [0.0] * len(model.buckets)
    balance = [0.0] * len(model.buckets)
    seen: set[tuple[int, int]] = set()
    for flow in plan.flows:
        if flow.model != model.name:
            continue
        at = f"{model.name}, bucket {flow.bucket}, config {flow.config}"
        if not (0 <= flow.bucket < len(model.buckets) and 0 <= flow.config < len(model.configs)):
            yield f"{at}: there is no such bucket or config"
            continue
        if (flow.bucket, flow.config) in seen:
            yield f"{at}: two flows"
        seen.add((flow.bucket, flow.config))
        role = model.configs[flow.config].role
        if flow.phase is not PHASE_OF[role]:
            yield f"{at}: gets phase {flow.phase} from a config of role {role}"
        if not _finite(flow.share) or not -tolerance <= flow.share <= 1 + tolerance:
            yield f"{at}: the share {flow.share} is outside 0 to 1"
            continue
        if model.buckets[flow.bucket].rate_rps == 0:
            yield f"{at}: a flow, though the bucket has no traffic"
        elif model.throughput_rps[flow.bucket][flow.config] == 0 and flow.share != 0:
            yield f"{at}: a flow to a config that cannot serve it"
        if role is not Role.DECODE:
            first[flow.bucket] += flow.share
        if role is not Role.BOTH:
            balance[flow.bucket] += flow.share if role is Role.PREFILL else -flow.share
    if plan.rate_factor == 0 and not seen:
        return  # nothing is served, by a fleet that serves nothing
    for b, bucket in enumerate(model.buckets):
        if bucket.rate_rps > 0 and abs(first[b] - 1) > tolerance:
            yield f"{model.name}, bucket {b}: the shares of both and prefill sum to {first[b]:.9g}, not 1"
        if abs(balance[b]) > tolerance:
            yield f"{model.name}, bucket {b}: prefill exceeds decode by the share {balance[b]:.9g}"
    if sum(plan.replicas[m]) < model.min_total_replicas:
        yield f"{model.name}: {sum(plan.replicas[m])} replicas, at least {model.min_total_replicas} are asked for"


def _loads(model: FleetModel, m: int, plan: FleetPlan, tolerance: float) -> Iterator[str]:
    """Replicas and links carry what is sent to them, and are as full as stated."""
    factor = plan.rate_factor or 0.0
    loads = [0.0] * len(model.configs)
    moved = [0.0] * len(model.configs)
    for flow in plan.flows:
        if flow.model != model.name or not 0 <= flow.config < len(model.configs):
            continue
        if not 0 <= flow.bucket < len(model.buckets):
            continue
        config = model.configs[flow.config]
        rate_rps = factor * model.buckets[flow.bucket].rate_rps * flow.share
        if model.throughput_rps[flow.bucket][flow.config] > 0:
            loads[flow.config] += rate_rps / model.throughput_rps[flow.bucket][flow.config]
        if config.role is Role.BOTH or config.kv_link_bytes_per_s is None:
            continue
        bytes_per_s = rate_rps * model.kv_bytes(flow.bucket)
        usable = config.kv_link_bytes_per_s * model.kv_utilisation_max_ratio
        if bytes_per_s > 0:
            moved[flow.config] += bytes_per_s / usable if usable > 0 else math.inf
    for c, count in enumerate(plan.replicas[m]):
        at = f"{model.name}, config {c}"
        room = (1 - model.headroom_ratio) * count
        if loads[c] > room + tolerance * max(1.0, room):
            yield f"{at}: the load {loads[c]:.9g} exceeds {room:.9g}, the room of {count} replicas with headroom"
        if moved[c] > count + tolerance * max(1.0, count):
            yield f"{at}: the links of {count} replicas are asked for {moved[c]:.9g} times what one may carry"
        for what, stated, true in (
            ("load", plan.load_ratio[m][c], loads[c] / max(count, 1)),
            ("link", plan.link_ratio[m][c], moved[c] / max(count, 1)),
        ):
            if not abs(stated - true) <= tolerance * max(1.0, true):
                yield f"{at}: the {what} ratio is stated as {stated}, it is {true:.9g}"


def _bounds(model: FleetModel, m: int, plan: FleetPlan) -> Iterator[str]:
    """Every config has as many replicas as its owner allows."""
    for c, (config, count) in enumerate(zip(model.configs, plan.replicas[m], strict=True)):
        most = math.inf if config.max_replicas is None else max(config.max_replicas, config.min_replicas)
        if not config.min_replicas <= count <= most:
            yield f"{model.name}, config {c}: {count} replicas, {config.min_replicas} to {most} are asked for"


def _survival(model: FleetModel, counts: tuple[int, ...], tolerance: float) -> Iterator[str]:
    """Whichever ``survive`` replicas are lost, some flows over the others carry both phases of the full rate.

    A bucket takes options: a config of role both, or a pair of a prefill and a decode config; resources are the
    replicas of each config and their links.
    """
    busy = [b for b, bucket in enumerate(model.buckets) if bucket.rate_rps > 0]
    if model.survive == 0 or not busy:
        return
    roles = [config.role for config in model.configs]
    named = {role: [c for c, own in enumerate(roles) if own is role] for role in Role}
    options: list[tuple[int, ...]] = [(c,) for c in named[Role.BOTH]]
    options += itertools.product(named[Role.PREFILL], named[Role.DECODE])
    count = len(counts)
    use = np.zeros((2 * count, len(busy), len(options)))
    for (row, b), (o, option) in itertools.product(enumerate(busy), enumerate(options)):
        for c in option:
            use[c, row, o], use[count + c, row, o] = _use_of(model, b, c)

    def carried(left: Floats) -> tuple[float, Floats]:
        capacity = np.concatenate((left, left))
        able = np.isfinite(use).all(axis=0) & np.array([min(left[list(o)]) > 0 for o in options], dtype=bool)
        if not able.any(axis=1).all():
            return math.inf, np.zeros(count)
        taken = np.where(np.isfinite(use), use, 0.0)
        shares, fullest, _ = least_largest_use(
            taken[capacity > 0] / capacity[capacity > 0][:, None, None], able, 1 + tolerance
        )
        loads = (taken * shares).sum(axis=(1, 2))
        return fullest, np.maximum(loads[:count], loads[count:])

    yield from unsurvived(model.name, counts, model.survive, carried, tolerance=tolerance)


def _use_of(model: FleetModel, b: int, c: int) -> tuple[float, float]:
    """Replicas, and links of replicas, that a whole bucket takes of a config; infinite: it cannot be served."""
    bucket, config, rate_rps = model.buckets[b], model.configs[c], model.throughput_rps[b][c]
    load = bucket.rate_rps / rate_rps if rate_rps > 0 else math.inf
    if config.role is Role.BOTH or config.kv_link_bytes_per_s is None or model.kv_bytes(b) == 0:
        return load, 0.0
    usable = config.kv_link_bytes_per_s * model.kv_utilisation_max_ratio
    return load, bucket.rate_rps * model.kv_bytes(b) / usable if usable > 0 else math.inf


def _changes_usd(instance: FleetInstance, plan: FleetPlan) -> float:
    """US$ of going from what runs to the plan."""

    def of(config: FleetConfig, count: int) -> float:
        if config.current_replicas is None:
            return 0.0
        more = count - config.current_replicas
        per_gpu = instance.start_cost_usd * max(0, more) + instance.stop_cost_usd * max(0, -more)
        return config.gpus_per_replica * per_gpu

    return sum(
        of(config, count)
        for model, row in zip(instance.models, plan.replicas, strict=True)
        for config, count in zip(model.configs, row, strict=True)
    )


def _purchase(instance: FleetInstance, plan: FleetPlan, tolerance: float) -> Iterator[str]:
    """GPUs, US$, watts and machines are as stated and within stock and budgets."""
    used = {offer.name: 0 for offer in instance.gpu_types}
    watts: float | None = 0.0
    for model, row in zip(instance.models, plan.replicas, strict=True):
        for config, count in zip(model.configs, row, strict=True):
            if count == 0:
                continue
            used[config.gpu_type] += config.gpus_per_replica * count
            own = instance.offer(config.gpu_type).power_w if config.power_w is None else config.power_w
            watts = None if own is None or watts is None else watts + own * config.gpus_per_replica * count
    cost = 0.0
    machines: float | None = 0.0
    for offer, stated in zip(instance.gpu_types, plan.bought_gpus, strict=True):
        bought = used[offer.name]
        if offer.whole_nodes and offer.gpus_per_node:
            bought = math.ceil(bought / offer.gpus_per_node) * offer.gpus_per_node
        if stated != bought:
            yield f"{offer.name}: {stated} GPUs are stated as bought, it is {bought}"
        if offer.available is not None and bought > offer.available:
            yield f"{offer.name}: {bought} GPUs are needed, {offer.available} are available"
        cost += offer.price_usd_per_h * max(0, bought - offer.reserved)
        if bought > used[offer.name]:
            idle = None if offer.power_w is None else offer.power_w * (bought - used[offer.name])
            watts = None if idle is None or watts is None else watts + idle
        if bought:
            machines = (
                None
                if machines is None or offer.gpus_per_node is None
                else machines + bought / offer.gpus_per_node
            )
    budgets = instance.budgets
    for name, true, stated_figure, limit, unit in (
        ("cost", cost, plan.cost_usd_per_h, budgets.cost_usd_per_h, "US$/h"),
        ("power", watts, plan.power_w, budgets.power_w, "W"),
        ("machines", machines, plan.machines, budgets.machines, "machines"),
    ):
        if (true is None) != (stated_figure is None):
            yield f"the {name} is stated as {stated_figure}, it is {'not known' if true is None else true}"
        elif true is not None and stated_figure is not None and not _close(stated_figure, true, tolerance):
            yield f"the {name} is stated as {stated_figure}, it is {true:.9g}"
        if limit is not None and true is not None and true > limit * (1 + tolerance) + 1e-9:
            yield f"{true:.9g} {unit} exceed the budget of {limit:g}"
        if limit is not None and true is None:
            yield f"there is a budget of {limit:g} {unit}, but the {name} is not known"


def _claims(instance: FleetInstance, plan: FleetPlan, tolerance: float) -> Iterator[str]:
    """Objective, bound, gap, status and the comparison without splitting agree with each other."""
    objective = plan.objective or 0.0
    factor = plan.rate_factor or 0.0
    changes = _changes_usd(instance, plan)
    if not _close(plan.change_cost_usd or 0.0, changes, tolerance):
        yield f"the cost of changes is stated as {plan.change_cost_usd}, it is {changes:.9g}"
    cost = None if plan.cost_usd_per_h is None else plan.cost_usd_per_h + changes / instance.horizon_h
    figures = {
        FleetGoal.COST: cost,
        FleetGoal.POWER: plan.power_w,
        FleetGoal.MACHINES: plan.machines,
        FleetGoal.RATE: plan.rate_factor,
    }
    figure = figures[instance.goal]
    if figure is None or not _close(objective, figure, tolerance):
        yield f"the objective is stated as {plan.objective}, the {instance.goal} is {figure}"
    if instance.goal is not FleetGoal.RATE and factor != 1.0:
        yield f"the rate factor is {plan.rate_factor}, though rates are not maximised"
    if factor < 0:
        yield f"the rate factor {factor} is negative"
    sign = -1.0 if instance.goal.maximised else 1.0
    if plan.bound is not None and plan.gap_ratio is not None:
        gap = sign * (objective - plan.bound) / max(abs(objective), 1e-9)
        if gap < -tolerance:
            yield f"the objective {objective:.9g} is better than the bound {plan.bound:.9g}, which would prove it wrong"
        if not abs(plan.gap_ratio - max(gap, 0.0)) <= tolerance:
            yield f"the gap is stated as {plan.gap_ratio}, it is {gap:.9g}"
        if plan.status is PlanStatus.OPTIMAL and plan.gap_ratio > tolerance:
            yield f"the status is optimal at a gap of {plan.gap_ratio}"
    alone = plan.both_only_objective
    if alone is not None and sign * (alone - objective) < -tolerance * max(abs(alone), abs(objective)):
        yield f"the best without splitting, {alone:.9g}, is better than the plan's {objective:.9g}"
    if plan.worth_splitting and plan.both_only_status in (None, PlanStatus.TIMED_OUT):
        yield "splitting is said to be worth it, though nothing is known of the best without splitting"
    if plan.worth_splitting and alone is not None and _close(alone, objective, tolerance / 2):
        yield "splitting is said to be worth it, though it gains nothing"
    if plan.worth_splitting is False and alone is None:
        yield "splitting is said not to be worth it, though there is no fleet without it"
