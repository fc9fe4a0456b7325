"""Why no fleet exists: the bucket that no machine serves, or the limit that is too tight.

It exists because "infeasible" alone helps nobody. The kind is the first limit, in the order of the README of
fleet-instance/1, whose removal alone makes the problem feasible; all that would do are listed beside it.
"""

from collections.abc import Sequence
from dataclasses import replace

from solver.backends.choose import BackendName
from solver.backends.program import SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.fleet import (
    FleetGoal,
    FleetInfeasibility,
    FleetInstance,
    FleetLimitKind,
    FleetModel,
    Role,
)
from solver.phases.find import find_fleet
from solver.phases.prepare import serve_all, unservable_buckets

LIMITS: tuple[FleetLimitKind, ...] = (
    "kv-transfer",
    "survive",
    "budget",
    "power-limit",
    "machine-limit",
    "gpu-limit",
    "replica-limit",
    "min-replicas",
)
"""Limits that can make a problem infeasible, in the order in which they are named as the reason."""
ANY_ANSWER_GAP_RATIO = 1e9
"""A gap that every answer has: the first feasible one is enough."""
MOST_BUCKETS_NAMED = 3


def without_limit(instance: FleetInstance, kind: FleetLimitKind) -> FleetInstance:
    """Drop all limits of a kind."""
    budgets = instance.budgets
    if kind == "budget":
        return replace(instance, budgets=replace(budgets, cost_usd_per_h=None))
    if kind == "power-limit":
        return replace(instance, budgets=replace(budgets, power_w=None))
    if kind == "machine-limit":
        return replace(instance, budgets=replace(budgets, machines=None))
    if kind == "gpu-limit":
        offers = tuple(replace(offer, available=None) for offer in instance.gpu_types)
        return replace(instance, gpu_types=offers)
    if kind == "kv-transfer":
        models = tuple(
            replace(
                model,
                configs=tuple(replace(config, kv_link_bytes_per_s=None) for config in model.configs),
                kv_utilisation_max_ratio=1.0,
            )
            for model in instance.models
        )
        return replace(instance, models=models)
    if kind == "survive":
        return replace(instance, models=tuple(replace(model, survive=0) for model in instance.models))
    if kind == "replica-limit":
        return _without_replica_limits(instance)
    return replace(instance, models=tuple(replace(model, min_total_replicas=0) for model in instance.models))


def _without_replica_limits(instance: FleetInstance) -> FleetInstance:
    """Drop the least and most replicas of all configs."""
    models = tuple(
        replace(
            model,
            configs=tuple(replace(config, min_replicas=0, max_replicas=None) for config in model.configs),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def has_limit(instance: FleetInstance, kind: FleetLimitKind) -> bool:
    """Whether any limit of a kind is set."""
    if kind == "kv-transfer":
        return any(
            config.role is not Role.BOTH and config.kv_link_bytes_per_s is not None
            for model in instance.models
            for config in model.configs
        )
    return without_limit(instance, kind) != instance


def is_feasible(instance: FleetInstance, *, deadline: Deadline, backend: BackendName) -> bool | None:
    """Whether a fleet exists that serves all rates; None if that was not settled in time."""
    if instance.goal is FleetGoal.RATE:
        instance = replace(instance, goal=FleetGoal.COST)
        instance = replace(
            instance, models=tuple(replace(model, buckets=(), throughput_rps=()) for model in instance.models)
        )
    answer = find_fleet(
        instance,
        serve_all(instance),
        method="auto",
        deadline=deadline,
        gap_ratio=ANY_ANSWER_GAP_RATIO,
        backend=backend,
    )
    if answer.counts:
        return True
    return False if answer.status is SolveStatus.INFEASIBLE else None


def explain_infeasible(
    instance: FleetInstance, *, deadline: Deadline, backend: BackendName
) -> FleetInfeasibility:
    """Name the reason for a problem that is known to have no fleet."""
    unservable = explain_unservable(instance)
    if unservable is not None:
        return unservable
    verdicts = {
        kind: is_feasible(without_limit(instance, kind), deadline=deadline, backend=backend)
        for kind in LIMITS
        if has_limit(instance, kind)
    }
    enough = tuple(kind for kind, feasible in verdicts.items() if feasible)
    unsettled = tuple(kind for kind, feasible in verdicts.items() if feasible is None)
    kind = (enough or unsettled or ("combination",))[0]
    models = _fewest_models(instance, deadline, backend)
    short = ""
    if unsettled and not enough:
        short = " (not settled in time; raise --time-limit)"
    return FleetInfeasibility(
        kind="combination" if kind == "min-replicas" else kind,
        models=models,
        buckets=(),
        gpu_types=_scarce(instance) if kind in ("gpu-limit", "combination") else (),
        message=_message(instance, kind, enough, models) + short,
        feasible_when_dropped=enough,
    )


def explain_unservable(instance: FleetInstance) -> FleetInfeasibility | None:
    """Find buckets with traffic that neither a both config nor a prefill and a decode config serve."""
    for model in instance.models:
        buckets = unservable_buckets(model)
        if buckets:
            return FleetInfeasibility(
                kind="bucket-unservable",
                models=(model.name,),
                buckets=buckets,
                gpu_types=(),
                message=_unservable_message(model, buckets),
            )
    return None


def _unservable_message(model: FleetModel, buckets: Sequence[int]) -> str:
    named = ", ".join(_bucket_name(model, b) for b in buckets[:MOST_BUCKETS_NAMED])
    more = f" and {len(buckets) - MOST_BUCKETS_NAMED} more" if len(buckets) > MOST_BUCKETS_NAMED else ""
    plural = "s" if len(buckets) > 1 else ""
    what = f"no config of model {model.name} serves bucket{plural} {named}{more} inside the SLO"
    first = buckets[0]
    prefilled, decoded = (
        any(
            rate > 0 and config.role is role
            for config, rate in zip(model.configs, model.throughput_rps[first], strict=True)
        )
        for role in (Role.PREFILL, Role.DECODE)
    )
    if prefilled or decoded:
        have, lack = ("prefill", "decode") if prefilled else ("decode", "prefill")
        return (
            f"{what}: there are {have} configs for it but no {lack} config; add one, or a config of role both"
        )
    slo = [
        text
        for text, limit in (
            (f"TTFT {model.ttft_slo_s:g} s" if model.ttft_slo_s is not None else "", model.ttft_slo_s),
            (f"TBT {1000 * model.tbt_slo_s:g} ms" if model.tbt_slo_s is not None else "", model.tbt_slo_s),
        )
        if limit is not None
    ]
    told = f" ({', '.join(slo)})" if slo else ""
    return f"{what}{told}; offer a larger GPU or replica, or relax the SLO"


def _bucket_name(model: FleetModel, b: int) -> str:
    bucket = model.buckets[b]
    if bucket.input_tokens is None or bucket.output_tokens is None:
        return str(b)
    return f"{b} ({bucket.input_tokens:.0f} input, {bucket.output_tokens:.0f} output tokens)"


def _fewest_models(instance: FleetInstance, deadline: Deadline, backend: BackendName) -> tuple[str, ...]:
    """Drop models while the rest still clashes with the limits."""
    kept = list(instance.models)
    for model in instance.models:
        rest = [other for other in kept if other.name != model.name]
        if not rest or deadline.passed():
            continue
        narrower = replace(instance, models=tuple(rest))
        if is_feasible(narrower, deadline=deadline, backend=backend) is False:
            kept = rest
    return tuple(model.name for model in kept)


def _scarce(instance: FleetInstance) -> tuple[str, ...]:
    return tuple(offer.name for offer in instance.gpu_types if offer.available is not None)


def _message(
    instance: FleetInstance, kind: str, enough: Sequence[FleetLimitKind], models: Sequence[str]
) -> str:
    """Say in one sentence who clashes with what and what would help."""
    budgets = instance.budgets
    limits = {
        "budget": f"the budget of {_figure(budgets.cost_usd_per_h)} US$/h",
        "power-limit": f"the power budget of {_figure(budgets.power_w)} W",
        "machine-limit": f"the budget of {_figure(budgets.machines)} machines",
        "gpu-limit": "the GPUs available ("
        + ", ".join(f"{o.name} {o.available}" for o in instance.gpu_types if o.available is not None)
        + ")",
        "kv-transfer": "the KV links between prefill and decode machines",
        "survive": f"the loss of {max((model.survive for model in instance.models), default=0)} replicas",
        "replica-limit": "the least and most replicas asked for",
        "min-replicas": "the replicas asked for at least",
    }
    one = kind in limits and kind != "min-replicas"  # those clash with whatever is short
    acting = [kind] if one else [name for name in LIMITS if has_limit(instance, name)]
    what = " and ".join(limits[name] for name in acting) or "the given limits"
    plural = "s" if len(models) > 1 else ""
    advice = (
        f"; enough to drop one of: {', '.join(enough)}" if enough else "; no single limit alone is to blame"
    )
    return f"model{plural} {', '.join(models)} cannot be served within {what}{advice}"


def _figure(value: float | None) -> str:
    """Write a limit as people do: 300,000 rather than 300000.0."""
    return "none" if value is None else f"{value:,.12g}"
