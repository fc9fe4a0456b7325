"""ModelService: a served model, its SLO, where its traffic is measured, and the variants that may serve it.

It exists as the one truth about the resource: the CRD is generated from it and the controller reads objects with it.
What a target already states (image, GPUs per pod, replicas) is never repeated here.
"""

from enum import StrEnum

from pydantic import ConfigDict, Field

from controller.resources.schema import (
    ATOMIC,
    PATH,
    Amount,
    Conditions,
    DataKey,
    Label,
    Latency,
    ModelName,
    Money,
    ObjectName,
    Part,
    Rate,
    Replicas,
    Selector,
    TargetRef,
    Text,
    Time,
    Tokens,
    Url,
    list_map,
    rules,
    spelled,
)

MOST_VARIANTS = 16
MOST_BUCKETS = 256


class Mode(StrEnum):
    """How far Ballast goes on its own."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"


class Engine(StrEnum):
    """Serving engines whose metrics can be read."""

    VLLM = "vllm"
    SGLANG = "sglang"


class PrecisionName(StrEnum):
    """Number format of the weights."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"
    MXFP4 = "mxfp4"
    INT4 = "int4"


class SloSpec(Part):
    """What the given percentile of the requests must see."""

    ttft_seconds: Latency = Field(description="Seconds to the first token.")
    tbt_seconds: Latency = Field(description="Seconds between tokens.")
    percentile: int = Field(default=99, ge=50, le=99)


class Bucket(Part):
    """Requests of one size and their rate."""

    input_tokens: Tokens
    output_tokens: Tokens
    rate_rps: Rate = Field(description="Requests per second.")


class Histogram(Part):
    """Traffic that is stated, not measured."""

    buckets: tuple[Bucket, ...] = Field(min_length=1, max_length=MOST_BUCKETS, json_schema_extra=ATOMIC)


class Scrape(Part):
    """Traffic read from the metrics of the variants' pods."""

    engine: Engine = Engine.VLLM
    port: int = Field(default=8000, ge=1, le=65535)
    path: str = spelled(
        f"^{PATH}$",
        "is no path such as /metrics, without spaces, ? and #",
        default="/metrics",
        max_length=256,
    )


class PrometheusSource(Part):
    """Traffic read from a Prometheus server."""

    url: Url
    selector: Selector = ""
    engine: Engine = Engine.VLLM


class TraceSource(Part):
    """Traffic taken from a recorded trace in a ConfigMap."""

    name: ObjectName
    key: DataKey = "trace.csv"


class Traffic(Part):
    """Exactly one source of traffic."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "(has(self.histogram) ? 1 : 0) + (has(self.scrape) ? 1 : 0) + (has(self.prometheus) ? 1 : 0)"
                    " + (has(self.traceConfigMap) ? 1 : 0) == 1"
                ),
                "exactly one of histogram, scrape, prometheus and traceConfigMap is needed",
            )
        )
    )

    histogram: Histogram | None = None
    scrape: Scrape | None = None
    prometheus: PrometheusSource | None = None
    trace_config_map: TraceSource | None = None


class VariantSpec(Part):
    """One way to serve the model: a target to scale, and what one replica of it can do."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas is larger than maxReplicas",
            )
        )
    )

    name: Label
    target_ref: TargetRef
    gpu_profile: ObjectName = Field(description="Name of a GpuProfile.")
    service: ObjectName | None = Field(
        default=None, description="Service of its pods, as named in the backendRefs of httpRoute."
    )
    min_replicas: Replicas = 0
    max_replicas: Replicas | None = Field(default=None, description="No limit but the GPUs if left out.")


class RouteRef(Part):
    """The HTTPRoute that splits the traffic among the variants, in the namespace of the resource."""

    name: ObjectName


class Change(Part):
    """What a change costs, and how often one may be made without need."""

    start_cost_usd: Money = Field(default=0.5, description="US$ per GPU started.")
    stop_cost_usd: Money = Field(default=0.1, description="US$ per GPU stopped.")
    min_interval_seconds: int = Field(
        default=300,
        ge=0,
        le=86_400,
        description="Seconds between changes that save money; more capacity for more traffic does not wait.",
    )


class ModelServiceSpec(Part):
    """The wishes of a team for one served model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "self.variants.all(a, self.variants.exists_one(b, b.targetRef.kind == a.targetRef.kind"
                    " && b.targetRef.name == a.targetRef.name))"
                ),
                "two variants name the same targetRef",
            ),
            (
                "!has(self.httpRoute) || self.variants.all(v, has(v.service))",
                "httpRoute needs the service of every variant",
            ),
            (
                (
                    "!has(self.httpRoute) || self.variants.exists(v, !has(v.service))"
                    " || self.variants.all(a, self.variants.exists_one(b, b.service == a.service))"
                ),
                "two variants name the same service: httpRoute could not tell them apart",
            ),
            (
                (
                    "self.survive == 0 || self.variants.exists(v, !has(v.maxReplicas))"
                    " || self.variants.map(v, v.maxReplicas).sum() > self.survive"
                ),
                "survive is not smaller than the sum of maxReplicas: nothing would be left to serve",
            ),
            ("self.model == oldSelf.model", "model cannot change: make another ModelService"),
        )
    )

    model: ModelName = Field(description="What is served, such as meta-llama/Llama-3.1-8B-Instruct.")
    precision: PrecisionName = PrecisionName.BF16
    mode: Mode = Mode.RECOMMEND
    paused: bool = Field(default=False, description="Leave everything as it is.")
    slo: SloSpec
    traffic: Traffic
    variants: tuple[VariantSpec, ...] = Field(
        min_length=1, max_length=MOST_VARIANTS, json_schema_extra=list_map("name")
    )
    http_route: RouteRef | None = Field(
        default=None,
        description="HTTPRoute whose backend weights follow the plan; each variant names its service.",
    )
    headroom_ratio: float = Field(
        default=0.1, ge=0, le=0.9, description="Part of the capacity that stays free of planned traffic."
    )
    survive: int = Field(
        default=0, ge=0, le=50, description="Whichever so many replicas fail, the rest serve."
    )
    change: Change = Change()


class DemandStatus(Part):
    """The traffic that was planned for."""

    requests_per_second: Amount
    sampled_at: Time


class CurrentReplicas(Part):
    """What runs of one variant."""

    variant: Label
    replicas: int = Field(ge=0)
    ready: int = Field(ge=0)


class DesiredReplicas(Part):
    """What the plan wants of one variant."""

    variant: Label
    replicas: int = Field(ge=0)


class PlanRef(Part):
    """The Plan in force or waiting for approval, in the same namespace."""

    name: ObjectName
    digest: str = Field(max_length=128)


class ModelServiceStatus(Part):
    """What Ballast sees and wants."""

    observed_generation: int = Field(default=0, ge=0)
    conditions: Conditions = ()
    demand: DemandStatus | None = None
    current: tuple[CurrentReplicas, ...] = Field(
        default=(), max_length=MOST_VARIANTS, json_schema_extra=list_map("variant")
    )
    desired: tuple[DesiredReplicas, ...] = Field(
        default=(), max_length=MOST_VARIANTS, json_schema_extra=list_map("variant")
    )
    cost_usd_per_hour: float | None = None
    lower_bound_usd_per_hour: float | None = None
    gap_ratio: float | None = None
    plan_ref: PlanRef | None = None
    message: Text = ""
    summary: str = Field(default="", max_length=512, description="Replicas now → wanted, for people.")
