"""From measured or forecast demand to a GPU-type selection problem: which variants exist and what each sustains.

It exists so that a trace, a resource and a test build the same instance in the same way: every GPU type on offer times
every replica size times every precision, and for each bucket the rate that `solver.performance.capacity` predicts
inside the SLO. It solves nothing and reads nothing. `routed_loads` is the way back: what a plan's replicas really
carry with the mixture that was routed to them, since the solver adds loads linearly.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from solver.domain.errors import InputError
from solver.domain.gpu_mix import (
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    ModelDemand,
    RequestBucket,
    Variant,
)
from solver.domain.hardware import GpuType
from solver.domain.slo import Slo
from solver.performance.capacity import (
    DEFAULT_ENGINE,
    CapacityEstimate,
    MatrixRule,
    max_mixed_rate_rps,
    throughput_rps,
)
from solver.performance.iteration import EngineSettings
from solver.performance.protocol import OutsideRangeError, PerformanceModel, ReplicaKind

PerformanceOf = Callable[[ReplicaKind], PerformanceModel]

"""One round changes a column by a factor of two at most: far from the routed mixture the ratio says little."""

Mixture = tuple[tuple[float | None, float | None, float], ...]
"""Input tokens, output tokens and share of the rate of each bucket: what a capacity depends on."""
MIXTURE_DECIMALS = 9
KnownCapacities = dict[tuple[ReplicaKind, Slo, Mixture], CapacityEstimate]

REPLICA_SIZES = (1, 2, 4, 8)
"""Tensor-parallel sizes that serving engines run and head counts divide by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A variant that is not in the instance, and why, in words for people."""

    model: str
    variant: Variant
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInstance:
    """The instance and what was kept out of it."""

    instance: GpuMixInstance
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedLoad:
    """What one variant of a plan carries, judged with the mixture routed to it instead of the linear sum."""

    model: str
    config: int
    """Index of the variant in the instance."""
    rate_rps: float
    """Of all its replicas."""
    capacity: CapacityEstimate
    """Of one replica on that mixture."""
    load_ratio: float
    """rate / (replicas × capacity); above 1 the SLO is predicted to be missed. Infinite where capacity is 0."""
    linear_load_ratio: float
    """The same as the solver counts it."""


def offer_of(gpu: GpuType, *, available: int | None = None) -> GpuOffer:
    """Offer a catalogue type at its catalogue price, with its full power as what a bought GPU counts.

    Raises
    ------
    InputError
        If the catalogue knows no price (missing is never zero).
    """
    if gpu.price_usd_per_h is None:
        raise InputError(
            f"no price of {gpu.name} is known", right="a price in a GPU catalogue file of your own"
        )
    return GpuOffer(
        name=gpu.name,
        price_usd_per_h=gpu.price_usd_per_h,
        available=available,
        power_w=gpu.tdp_w,
        gpus_per_node=gpu.gpus_per_node,
    )


def candidate_variants(
    offers: Iterable[GpuOffer],
    *,
    precisions: Sequence[str],
    replica_sizes: Sequence[int] = REPLICA_SIZES,
    quality_ratio: Mapping[str, float] | None = None,
) -> tuple[Variant, ...]:
    """List every GPU type × replica size within a node × precision, spot copies where spot GPUs are offered.

    ``quality_ratio`` gives the answer quality per precision; a precision that it lacks has quality 1.
    """
    quality = quality_ratio or {}
    variants = []
    for offer, size, precision in product(offers, replica_sizes, precisions):
        if offer.gpus_per_node is not None and size > offer.gpus_per_node:
            continue
        variant = Variant(
            gpu_type=offer.name,
            gpus_per_replica=size,
            precision=precision,
            quality_ratio=quality.get(precision, 1.0),
        )
        variants.append(variant)
        if offer.spot_price_usd_per_h is not None and not offer.whole_nodes:
            variants.append(replace(variant, spot=True))
    return tuple(variants)


def build_gpu_mix_instance(
    *,
    name: str,
    demands: Mapping[str, Sequence[RequestBucket]],
    offers: Sequence[GpuOffer],
    variants: Mapping[str, Sequence[Variant]],
    performance: PerformanceOf,
    slo: Slo | Mapping[str, Slo],
    engine: EngineSettings = DEFAULT_ENGINE,
    headroom_ratio: float = 0.0,
    rule: MatrixRule = MatrixRule.STANDALONE,
    reference: Mapping[str, PerformanceModel] | None = None,
) -> BuiltInstance:
    """Build the instance; nothing is dropped silently.

    Parameters
    ----------
    demands
        Buckets per model, sizes known; models and buckets keep their order.
    variants
        Candidates per model, with their precision (see `candidate_variants`); types that are not offered are left
        out with that reason.
    performance
        Finds the performance model of a replica kind; its `InputError` and `OutsideRangeError` become reasons.
    slo
        One for all models, or one per model.
    rule
        How a bucket's throughput is told. MIXED makes the linear sum exact on each model's own mixture, but a plan
        that sends some buckets here and some there can overfill its replicas: use it with `plan_within_slo`.
    reference
        Per model the instance that relative targets compare with.

    A variant is left out when the model does not fit its memory, the precision does not run there, its measured
    range does not cover the demand, or it serves no bucket with traffic inside the SLO. A model all of whose
    variants fall out keeps those (with throughput 0), so that solving says which bucket nobody can serve.

    Raises
    ------
    InputError
        For a model without variants, without SLO, without buckets, or a bucket whose sizes are not known.
    """
    offered = {offer.name for offer in offers}
    models = []
    left_out: list[LeftOut] = []
    for model, buckets in demands.items():
        _check(model, buckets, variants, slo)
        columns: dict[Variant, tuple[float, ...]] = {}
        dropped: list[LeftOut] = []
        solved: dict[ReplicaKind, tuple[tuple[float, ...], str | None]] = {}
        for variant in variants[model]:
            if variant.gpu_type not in offered:
                dropped.append(LeftOut(model=model, variant=variant, reason="its GPU type is not on offer"))
                continue
            kind = _kind(model, variant)
            if kind not in solved:  # spot copies and other prices share it
                solved[kind] = _column(
                    kind,
                    buckets,
                    slo if isinstance(slo, Slo) else slo[model],
                    performance=performance,
                    engine=engine,
                    rule=rule,
                    reference=None if reference is None else reference.get(model),
                )
            column, reason = solved[kind]
            if reason is not None:
                dropped.append(LeftOut(model=model, variant=variant, reason=reason))
                continue
            columns[variant] = column
        if not columns:
            columns = {
                item.variant: (0.0,) * len(buckets) for item in dropped if item.variant.gpu_type in offered
            }
        left_out += dropped
        models.append(
            ModelDemand(
                name=model,
                variants=tuple(columns),
                buckets=tuple(buckets),
                throughput_rps=tuple(zip(*columns.values(), strict=True)),
                headroom_ratio=headroom_ratio,
            )
        )
    instance = GpuMixInstance(name=name, gpu_types=tuple(offers), models=tuple(models))
    return BuiltInstance(instance=instance, left_out=tuple(left_out))


def routed_loads(
    instance: GpuMixInstance,
    plan: GpuMixPlan,
    *,
    performance: PerformanceOf,
    slo: Slo | Mapping[str, Slo],
    engine: EngineSettings = DEFAULT_ENGINE,
    reference: Mapping[str, PerformanceModel] | None = None,
    known: KnownCapacities | None = None,
) -> tuple[RoutedLoad, ...]:
    """Judge every used variant of a plan on the mixture that the plan routes to it.

    ``load_ratio`` above ``1 - headroom_ratio`` means that the linear sum was wrong about that mixture;
    `solver.gpu_mix.sound` repairs it. ``known`` remembers capacities from call to call (same performance, engine
    and reference throughout): the same mixture comes up again and again.
    """
    known = {} if known is None else known
    loads = []
    for m, model in enumerate(instance.models):
        routed: dict[int, list[RequestBucket]] = {}
        linear: dict[int, float] = {}
        for share in plan.routing:
            bucket = model.buckets[share.bucket]
            rate = bucket.rate_rps * share.share
            if share.model != model.name or rate <= 0.0:
                continue
            routed.setdefault(share.config, []).append(replace(bucket, rate_rps=rate))
            linear[share.config] = (
                linear.get(share.config, 0.0) + rate / model.throughput_rps[share.bucket][share.config]
            )
        for config, buckets in sorted(routed.items()):
            total = sum(bucket.rate_rps for bucket in buckets)
            kind = _kind(model.name, model.variants[config])
            own_slo = slo if isinstance(slo, Slo) else slo[model.name]
            mixture = tuple(
                (bucket.input_tokens, bucket.output_tokens, round(bucket.rate_rps / total, MIXTURE_DECIMALS))
                for bucket in buckets
            )
            capacity = known.get((kind, own_slo, mixture))
            if capacity is None:
                capacity = max_mixed_rate_rps(
                    performance(kind),
                    buckets,
                    own_slo,
                    engine,
                    reference=None if reference is None else reference.get(model.name),
                )
                known[kind, own_slo, mixture] = capacity
            replicas = plan.replicas[m][config]
            room = replicas * capacity.rate_rps
            loads.append(
                RoutedLoad(
                    model=model.name,
                    config=config,
                    rate_rps=total,
                    capacity=capacity,
                    load_ratio=total / room if room > 0.0 else float("inf"),
                    linear_load_ratio=linear[config] / replicas if replicas else float("inf"),
                )
            )
    return tuple(loads)


def _check(
    model: str,
    buckets: Sequence[RequestBucket],
    variants: Mapping[str, Sequence[Variant]],
    slo: Slo | Mapping[str, Slo],
) -> None:
    if not buckets:
        raise InputError(f"model {model!r} has no buckets", right="at least one bucket of requests")
    if not variants.get(model):
        raise InputError(f"model {model!r} has no variants", right="at least one GPU type and replica size")
    if not isinstance(slo, Slo) and model not in slo:
        raise InputError(f"model {model!r} has no SLO", right="one SLO for all, or one per model")
    for index, bucket in enumerate(buckets):
        if bucket.input_tokens is None or bucket.output_tokens is None:
            raise InputError(
                f"bucket {index} of model {model!r} has no size", right="input_tokens and output_tokens"
            )


def _kind(model: str, variant: Variant) -> ReplicaKind:
    if variant.precision is None:
        raise InputError(f"a variant of {model!r} on {variant.gpu_type} has no precision", right="e.g. bf16")
    return ReplicaKind(
        model=model,
        gpu_type=variant.gpu_type,
        gpus_per_replica=variant.gpus_per_replica,
        precision=variant.precision,
    )


def _column(
    kind: ReplicaKind,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    *,
    performance: PerformanceOf,
    engine: EngineSettings,
    rule: MatrixRule,
    reference: PerformanceModel | None,
) -> tuple[tuple[float, ...], str | None]:
    """Throughput per bucket, or why the kind is left out."""
    try:
        model = performance(kind)
        if model.kv_capacity_tokens() <= 0:
            return (), "the weights do not fit its memory"
        column = throughput_rps(model, buckets, slo, engine, rule=rule, reference=reference)
    except OutsideRangeError as error:
        return (), f"not measured there: {error}"
    except InputError as error:
        return (), str(error)
    served = [rate > 0.0 for rate, bucket in zip(column, buckets, strict=True) if bucket.rate_rps > 0.0]
    if served and not any(served):
        return (), "it serves no bucket with traffic inside the SLO"
    return column, None
