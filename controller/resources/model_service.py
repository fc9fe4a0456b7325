"""ModelService: a served model, its SLO, where its traffic is measured, and the variants that may serve it.

It exists as the one truth about the resource: the CRD is generated from it and the controller reads objects with it.
What a target already states (image, GPUs per pod, replicas) is never repeated here.
"""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from controller.resources.schema import (
    ATOMIC,
    PATH,
    PROMETHEUS_URL,
    Amount,
    Conditions,
    DataKey,
    Label,
    Latency,
    ModelName,
    Money,
    ObjectName,
    Part,
    PlanRef,
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
from solver.domain.fleet import Role

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

    url: Url = Field(description=PROMETHEUS_URL)
    selector: Selector = ""
    output_selector: Selector | None = Field(
        default=None,
        description="Label matchers of the engines that tell how long outputs are, where others take the requests in:"
        " with prefill and decode variants selector names the pods of prefill (and both), this those of decode (and"
        " both).",
    )
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
    role: Role = Field(
        default=Role.BOTH,
        description="What its pods do: whole requests, only prompts (prefill), or only what follows (decode).",
    )
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


_TO_A_DAY = (
    "(6[0-9]|[7-9][0-9]|[1-9][0-9]{2,3}|[1-7][0-9]{4}|8[0-5][0-9]{3}|86[0-3][0-9]{2}|86400)s?"
    "|([1-9][0-9]{0,2}|1[0-3][0-9]{2}|14[0-3][0-9]|1440)m"
    "|([1-9]|1[0-9]|2[0-4])h"
)


def _seconds(value: object) -> object:
    """Read a time such as 30m, 1800s or 1800 as whole seconds."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(_TO_A_DAY, value) is None:
        raise ValueError("is no time from 60 s to 24 h, such as 1800 or 30m")
    return int(value.rstrip("smh")) * {"m": 60, "h": 3600}.get(value[-1], 1)


Horizon = Annotated[
    int,
    Field(ge=60, le=86_400),
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 60,
            "maximum": 86_400,
            "maxLength": 6,
            **rules(
                (
                    f"type(self) == int || self.matches('^({_TO_A_DAY})$')",
                    "is no time from 60 s to 24 h, such as 1800 or 30m",
                )
            ),
        }
    ),
]


class ForecastSpec(Part):
    """Plan for the rate that is to come, not only for what was just seen."""

    horizon: Horizon = Field(
        default=1800,
        description="Plans carry the traffic up to so far ahead: seconds, or a time such as 30m. At least the time from"
        " a decision to ready replicas, plus the time to the next decision.",
    )
    violation_probability: float = Field(
        default=0.01,
        ge=0,
        le=0.25,
        description="Probability that the traffic up to the horizon exceeds what is planned for; at least 0.0001.",
        json_schema_extra=rules(("self >= 0.0001", "is smaller than 0.0001")),
    )

    @property
    def horizon_s(self) -> float:
        """The horizon in seconds."""
        return float(self.horizon)


class RehearsalSpec(Part):
    """Simulate a plan on the last window of traffic before it is applied."""

    enabled: bool = Field(
        default=False,
        description="Refuse a plan in mode Auto that would keep the SLO for fewer requests than what runs does, and for"
        " fewer than its percentile asks. A plan that only adds, or is needed at once, is never held.",
    )
    window_seconds: int = Field(
        default=600, ge=60, le=3600, description="Seconds of traffic that are simulated."
    )
    strict: bool = Field(default=False, description="Hold a plan that cannot be rehearsed, too.")


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
                (
                    "self.variants.exists(v, v.role == 'prefill')"
                    " == self.variants.exists(v, v.role == 'decode')"
                ),
                "a variant of role prefill needs one of role decode, and the reverse: nobody would do the rest",
            ),
            (
                (
                    "!has(self.traffic.prometheus) || self.variants.all(v, v.role == 'both')"
                    " || (has(self.traffic.prometheus.selector) && self.traffic.prometheus.selector != ''"
                    " && has(self.traffic.prometheus.outputSelector)"
                    " && self.traffic.prometheus.outputSelector != '')"
                ),
                (
                    "traffic.prometheus needs selector and outputSelector with prefill and decode variants: the pods"
                    " that take requests in, and those that give outputs"
                ),
            ),
            (
                "!has(self.httpRoute) || self.variants.all(v, v.role == 'decode' || has(v.service))",
                "httpRoute needs the service of every variant but those of role decode",
            ),
            (
                (
                    "!has(self.httpRoute) || self.variants.all(a, !has(a.service)"
                    " || self.variants.exists_one(b, has(b.service) && b.service == a.service))"
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
        description="HTTPRoute whose backend weights follow the plan; each variant that requests are sent to names its"
        " service, those of role decode need none.",
    )
    kv_bytes_per_prompt_token: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None,
        description="Bytes of KV cache that go from a prefill to a decode replica for each token of a prompt; those of"
        " Ballast's catalogue of models if left out.",
        json_schema_extra=rules(("self >= 1.0", "is less than 1 byte per token")),
    )
    headroom_ratio: float = Field(
        default=0.1, ge=0, le=0.9, description="Part of the capacity that stays free of planned traffic."
    )
    survive: int = Field(
        default=0, ge=0, le=50, description="Whichever so many replicas fail, the rest serve."
    )
    change: Change = Change()
    forecast: ForecastSpec | None = Field(
        default=None,
        description="Plan for the measured traffic as it is forecast; by the largest rate of late if left out.",
    )
    rehearsal: RehearsalSpec | None = Field(
        default=None, description="Simulate plans before they are applied; not done if left out."
    )


class DemandStatus(Part):
    """The traffic that was planned for."""

    requests_per_second: Amount
    sampled_at: Time


class ForecastStatus(Part):
    """How the rate that was planned for was found."""

    requests_per_second: Amount = Field(description="What is planned for.")
    rule: str = Field(max_length=64, description="The rule that gave it, as ballast forecast names it.")
    quantile: float = Field(ge=0, le=1, description="Quantile of the rule's past errors that was taken.")
    fallback: Text = Field(default="", description="Why the largest rate of late is planned for instead.")


class CurrentReplicas(Part):
    """What runs of one variant."""

    variant: Label
    role: Role | None = Field(default=None, description="Left out for whole requests.")
    replicas: int = Field(ge=0)
    ready: int = Field(ge=0)


class DesiredReplicas(Part):
    """What the plan wants of one variant."""

    variant: Label
    role: Role | None = Field(default=None, description="Left out for whole requests.")
    replicas: int = Field(ge=0)


class ModelServiceStatus(Part):
    """What Ballast sees and wants."""

    observed_generation: int = Field(default=0, ge=0)
    conditions: Conditions = ()
    demand: DemandStatus | None = None
    forecast: ForecastStatus | None = None
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
