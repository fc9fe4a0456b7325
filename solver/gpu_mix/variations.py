"""The same problem with one thing changed: a limit dropped or widened, models or GPU types left out.

It exists because explanations (what binds, why infeasible, what a single type would cost) are answers to varied
problems. All functions return a new instance; the given one is never touched.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand

RuleKind = Literal["quality", "survive", "budget", "power-limit", "gpu-limit", "replica-limit"]
RULES: tuple[RuleKind, ...] = ("quality", "survive", "budget", "power-limit", "gpu-limit", "replica-limit")
"""Kinds of rules that can make a problem infeasible, in the order in which they are named as the reason."""


def _each_model(instance: GpuMixInstance, **changes: float) -> GpuMixInstance:
    models = tuple(replace(model, **changes) for model in instance.models)  # type: ignore[arg-type]
    return replace(instance, models=models)


def without_rule(instance: GpuMixInstance, kind: RuleKind) -> GpuMixInstance:
    """Drop all rules of a kind."""
    if kind == "quality":
        return _each_model(instance, min_quality_ratio=0.0)
    if kind == "survive":
        return _each_model(instance, survive=0)
    if kind == "budget":
        return replace(instance, budget_usd_per_h=None)
    if kind == "power-limit":
        return replace(instance, power_limit_w=None)
    if kind == "replica-limit":
        return _without_replica_limits(instance)
    return without_stock_limits(instance, {offer.name for offer in instance.gpu_types})


def _without_replica_limits(instance: GpuMixInstance) -> GpuMixInstance:
    """Drop the least and most replicas of all variants."""
    models = tuple(
        replace(model, variants=tuple(replace(v, min_replicas=0, max_replicas=None) for v in model.variants))
        for model in instance.models
    )
    return replace(instance, models=models)


def has_rule(instance: GpuMixInstance, kind: RuleKind) -> bool:
    """Whether any rule of a kind is set."""
    return without_rule(instance, kind) != instance


def without_stock_limits(instance: GpuMixInstance, names: Collection[str]) -> GpuMixInstance:
    """Give the named GPU types unlimited stock, on demand and spot."""
    return _each_offer(
        instance, lambda o: replace(o, available=None, spot_available=None) if o.name in names else o
    )


def _each_offer(instance: GpuMixInstance, change: Callable[[GpuOffer], GpuOffer]) -> GpuMixInstance:
    return replace(instance, gpu_types=tuple(change(offer) for offer in instance.gpu_types))


def only_models(instance: GpuMixInstance, names: Collection[str]) -> GpuMixInstance:
    """Keep the named models."""
    return replace(instance, models=tuple(model for model in instance.models if model.name in names))


def without_gpu_types(instance: GpuMixInstance, names: Collection[str]) -> GpuMixInstance:
    """Take the named GPU types off the market; the variants stay in place with no stock."""
    return _each_offer(
        instance, lambda o: replace(o, available=0, spot_available=0) if o.name in names else o
    )


def change_model(instance: GpuMixInstance, name: str, **changes: float) -> GpuMixInstance:
    """Change fields of one model."""

    def changed(model: ModelDemand) -> ModelDemand:
        return replace(model, **changes) if model.name == name else model  # type: ignore[arg-type]

    return replace(instance, models=tuple(changed(model) for model in instance.models))


def change_offer(instance: GpuMixInstance, name: str, **changes: int | None) -> GpuMixInstance:
    """Change fields of one GPU type."""
    return _each_offer(instance, lambda o: replace(o, **changes) if o.name == name else o)  # type: ignore[arg-type]


def on_one_type(instance: GpuMixInstance, gpu_type: str) -> GpuMixInstance | None:
    """Keep the variants of one GPU type; None if some model has none."""
    models = []
    for model in instance.models:
        kept = [c for c, variant in enumerate(model.variants) if variant.gpu_type == gpu_type]
        if not kept:
            return None
        models.append(
            replace(
                model,
                variants=tuple(model.variants[c] for c in kept),
                throughput_rps=tuple(tuple(row[c] for c in kept) for row in model.throughput_rps),
            )
        )
    return replace(instance, models=tuple(models))
