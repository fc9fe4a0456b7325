"""The vocabulary of GPU-type selection: the problem (`GpuMixInstance`) and its answer (`GpuMixPlan`).

It exists so that the reader of instance files, the solver, the checker, the simulator and the command speak about
the same values without knowing each other. It holds no decision and no file format; the JSON layout of
``gputype-instance/1`` and ``/2`` is read in `telemetry.sources.gpu_mix_file`.

Symbols used in the docstrings of the solver and the checker: models m, buckets b (rate r_b in requests/s), variants
(configurations) c, GPU types g, throughput T[b,c], replicas n[m,c], routing shares x[m,b,c].
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOffer:
    """A GPU type as it can be had: price, stock, node size, reserved and spot GPUs.

    ``available``, ``reserved`` and ``whole_nodes`` speak of on-demand GPUs; spot GPUs are a stock of their own.
    None means "no such limit" or "not known", never zero.
    """

    name: str
    price_usd_per_h: float
    """US$ per on-demand GPU and hour."""
    available: int | None = None
    power_w: float | None = None
    """Watts that one bought GPU counts against the power limit."""
    gpus_per_node: int | None = None
    whole_nodes: bool = False
    """On-demand GPUs are bought in whole nodes of ``gpus_per_node``."""
    reserved: int = 0
    """The first so many bought GPUs cost nothing."""
    spot_price_usd_per_h: float | None = None
    spot_available: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run a replica of a model: so many GPUs of one type, on demand or spot, at one precision."""

    gpu_type: str
    gpus_per_replica: int
    spot: bool = False
    precision: str | None = None
    quality_ratio: float = 1.0
    current_replicas: int | None = None
    """Replicas running now; None means that starting and stopping this variant is not charged."""
    min_replicas: int = 0
    max_replicas: int | None = None
    """Bounds that the owner of the variant sets, beside what stock allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBucket:
    """Requests of one size and how many of them arrive per second. Sizes may be unknown (None)."""

    rate_rps: float
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """A served model: its traffic by bucket, its variants, and what must hold for it."""

    name: str
    variants: tuple[Variant, ...]
    buckets: tuple[RequestBucket, ...]
    throughput_rps: tuple[tuple[float, ...], ...]
    """[bucket][variant]: largest rate one replica sustains inside the SLO if it serves nothing else; 0: cannot."""
    headroom_ratio: float = 0.0
    """Share of every replica that stays free: load <= (1 - headroom) x replicas."""
    min_total_replicas: int = 0
    min_quality_ratio: float = 0.0
    max_spot_load_ratio: float = 1.0
    """Largest share of the requests that spot variants may serve."""
    survive: int = 0
    """Whichever so many replicas are lost, the others carry the full rate (headroom and spot share not required)."""

    @property
    def rate_rps(self) -> float:
        """Total request rate."""
        return sum(bucket.rate_rps for bucket in self.buckets)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMixInstance:
    """A whole GPU-type selection problem; source of the model: the README of gputype-instance, after Mélange."""

    name: str
    gpu_types: tuple[GpuOffer, ...]
    models: tuple[ModelDemand, ...]
    start_cost_usd: float = 0.0
    """US$ per GPU started."""
    stop_cost_usd: float = 0.0
    """US$ per GPU stopped."""
    horizon_h: float = 1.0
    """Change cost is spread over so many hours."""
    power_limit_w: float | None = None
    budget_usd_per_h: float | None = None
    """Limit on the running cost (without change cost)."""

    @property
    def links_models(self) -> bool:
        """Whether any rule makes one model's choice depend on another's."""
        return (
            self.budget_usd_per_h is not None
            or self.power_limit_w is not None
            or any(
                offer.available is not None
                or offer.spot_available is not None
                or offer.whole_nodes
                or offer.reserved > 0
                for offer in self.gpu_types
            )
        )

    def offer(self, gpu_type: str) -> GpuOffer:
        """Return the offer of a GPU type (KeyError if it is not declared)."""
        for offer in self.gpu_types:
            if offer.name == gpu_type:
                return offer
        raise KeyError(gpu_type)


class PlanStatus(StrEnum):
    """How far a solve came."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    TIMED_OUT = "timed-out"
    """The time limit was reached without any feasible answer."""


InfeasibleKind = Literal[
    "bucket-unservable",
    "gpu-limit",
    "power-limit",
    "budget",
    "quality",
    "survive",
    "replica-limit",
    "combination",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasibility:
    """A minimal reason why no plan exists."""

    kind: InfeasibleKind
    models: tuple[str, ...]
    buckets: tuple[int, ...]
    gpu_types: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingShare:
    """``share`` of the requests of (model, bucket index) goes to the variant with index ``config``."""

    model: str
    bucket: int
    config: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleTypePlan:
    """The cheapest plan in which every model runs on one and the same GPU type."""

    gpu_type: str
    cost_usd_per_h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RivalPlan:
    """The cheapest plan found that uses another set of GPU types."""

    gpu_types: tuple[str, ...]
    cost_usd_per_h: float
    proved: bool
    """No cheaper plan with another set of types exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingLimit:
    """A limit without which the plan would be cheaper, and what one more unit of it would save."""

    kind: str
    name: str
    price_usd_per_unit: float
    step_units: float
    """The price was taken over this many more units (limits act in lumps); 0: it is the price of the relaxation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMixPlan:
    """The answer: how many replicas of each variant, who serves what, at what cost, and how good that is.

    ``replicas`` and ``load_ratio`` are [model][variant] in the order of the instance; load_ratio is load divided by
    replicas (0 where there are none). Costs are None when there is no plan.
    """

    instance_name: str
    status: PlanStatus
    objective: float | None = None
    running_cost_usd_per_h: float | None = None
    change_cost_usd: float | None = None
    lower_bound_usd_per_h: float | None = None
    gap_ratio: float | None = None
    replicas: tuple[tuple[int, ...], ...] = ()
    routing: tuple[RoutingShare, ...] = ()
    load_ratio: tuple[tuple[float, ...], ...] = ()
    bought_gpus: tuple[int, ...] = ()
    """On-demand GPUs paid or reserved, per GPU type of the instance."""
    spot_gpus: tuple[int, ...] = ()
    power_w: float | None = None
    """Power of the bought and spot GPUs; None when a used type's power is not known."""
    method: str = ""
    infeasible: Infeasibility | None = None
    best_single_type: SingleTypePlan | None = None
    second_best: RivalPlan | None = None
    binding: tuple[BindingLimit, ...] = field(default=())
