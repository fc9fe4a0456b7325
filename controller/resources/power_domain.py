"""PowerDomain: servers behind one breaker, what they may draw together, and how far Ballast may go to keep it.

It exists as the one truth about the resource. What one node is told is a NodePower's matter; what the constants mean is
said in `solver.domain.power`. Unlike other kinds it describes hardware, so that the worst case is known before anything
is measured.
"""

import json
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from controller.resources.gpu_profile import LABEL_KEY, LabelValue
from controller.resources.schema import (
    ATOMIC,
    PROMETHEUS_URL,
    Conditions,
    Label,
    ObjectName,
    Part,
    Text,
    Time,
    Url,
    list_map,
    rules,
    spelled,
)

MOST_MEMBERS = 512
MOST_MHZ = 10_000
Megahertz = Annotated[int, Field(ge=1, le=MOST_MHZ)]
BudgetWatts = Annotated[float, Field(ge=1, le=1e9)]
Seconds = Annotated[float, Field(ge=1, le=3600)]
Factor = Annotated[
    float, Field(gt=0, le=1, json_schema_extra=rules(("self >= 0.01", "is less than 0.01 of the budget")))
]
NodeLabels = Annotated[
    dict[str, LabelValue],
    Field(
        max_length=16,
        json_schema_extra=rules(
            (
                f"self.all(key, key.size() <= 317 && key.matches({json.dumps(LABEL_KEY)}))",
                "a key is no name of a label, such as nvidia.com/gpu.product",
            )
        ),
    ),
]


class Level(StrEnum):
    """Where in the power tree a domain is."""

    SITE = "site"
    UPS = "ups"
    ROW = "row"
    RACK = "rack"
    NODE = "node"


class PowerMode(StrEnum):
    """How far Ballast goes."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    AUTO = "Auto"


class Algorithm(StrEnum):
    """Policies that a domain may run."""

    GUARD = "guard"
    POLCA = "polca"


class Actuator(StrEnum):
    """What of a GPU is set."""

    CLOCKS = "clocks"
    POWER_LIMIT = "powerLimit"
    BOTH = "both"


class TelemetrySource(StrEnum):
    """Where the draw of the domain is read."""

    SUM_OF_NODES = "sumOfNodes"
    PDU = "pdu"
    PROMETHEUS = "prometheus"


class CurveName(StrEnum):
    """Breakers by name."""

    RACK_RPP = "rack_rpp_110pct_17min"
    MOLDED_CASE = "molded_case_135pct_2h"
    FAST_THERMAL = "fast_thermal_135pct_60s"
    UPS_FAILOVER = "ups_failover_133pct_10s"
    CUSTOM = "custom"


class BrakeAt(StrEnum):
    """What the brake is pulled on."""

    THETA = "theta"
    POWER = "power"


class Breaker(Part):
    """The thermal model of the breaker: dθ/dt = (u² - θ)/τ, trip at θ = K²."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.curve == 'custom' || (!has(self.tauSeconds) && !has(self.tripFactor))",
                "tauSeconds and tripFactor are given with curve custom only",
            ),
            (
                "self.curve != 'custom' || (has(self.tauSeconds) && has(self.tripFactor))",
                "curve custom needs tauSeconds and tripFactor",
            ),
        )
    )

    curve: CurveName = CurveName.RACK_RPP
    tau_seconds: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="τ, with curve custom only.",
        json_schema_extra=rules(("self >= 0.1", "is less than 0.1 s")),
    )
    trip_factor: Annotated[float, Field(ge=1, le=10)] | None = Field(
        default=None, description="K: the largest overload that never trips, with curve custom only."
    )
    margin_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Part of K - 1 that is kept free, for a breaker that is older than its curve.",
    )


class Failover(Part):
    """What is left of the budget while a feed is lost (annotation ballast.dev/failover)."""

    budget_factor: Factor
    deadline_seconds: Seconds = Field(default=10.0, description="The draw must be below it by then.")


class Members(Part):
    """The nodes of the domain, and what else draws behind its breaker."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.nodes) != has(self.nodeSelector)", "exactly one of nodes and nodeSelector is needed")
        )
    )

    node_selector: NodeLabels | None = Field(default=None, description="Labels of its nodes.")
    nodes: tuple[ObjectName, ...] | None = Field(
        default=None, min_length=1, max_length=MOST_MEMBERS, json_schema_extra=ATOMIC
    )
    static_watts: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="Switches, fans of the row: drawn always, by nothing that can be capped."
    )


class Server(Part):
    """What one server of the domain draws; the reference server (8 x A100) where nothing is said."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.minMHz <= self.maxMHz", "minMHz is larger than maxMHz"),
            ("self.gpuIdleWatts <= self.gpuTdpWatts", "gpuIdleWatts is larger than gpuTdpWatts"),
        )
    )

    gpus: Annotated[int, Field(ge=1, le=64)] = 8
    gpu_idle_watts: Annotated[float, Field(ge=1, le=1e4)] = 63.0
    gpu_tdp_watts: Annotated[float, Field(ge=1, le=1e4)] = 400.0
    peak_ratio: Annotated[float, Field(ge=1, le=2)] = Field(
        default=1.02, description="Largest draw of a GPU at its highest clock, of its TDP."
    )
    exponent: Annotated[float, Field(ge=0, le=4)] = Field(
        default=1.13, description="Draw above idle goes with (clock / highest clock) to this."
    )
    fixed_watts: Annotated[float, Field(ge=0, le=1e5)] = Field(
        default=1250.0, description="Of the server without its GPUs."
    )
    watts_per_gpu_watt: Annotated[float, Field(ge=1, le=3)] = Field(
        default=1.5, description="Watts at the plug per watt of a GPU: supplies and fans."
    )
    min_mhz: Megahertz = Field(default=210, alias="minMHz")
    max_mhz: Megahertz = Field(default=1410, alias="maxMHz")
    step_mhz: Annotated[int, Field(ge=1, le=1000)] = Field(default=15, alias="stepMHz")


class Correction(Part):
    """What is made of a reading: gain times it, plus offset watts."""

    gain: Annotated[float, Field(gt=0, le=10)] = Field(
        default=1.0, json_schema_extra=rules(("self >= 0.1", "is less than a tenth"))
    )
    offset: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0


class PowerTelemetry(Part):
    """How the draw is read. Agents are asked in any case: a meter alone is not believed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.source == 'sumOfNodes' || (has(self.url) && has(self.query))",
                "a meter needs url and query of a Prometheus",
            )
        )
    )

    source: TelemetrySource = Field(
        default=TelemetrySource.SUM_OF_NODES,
        description="pdu: everything behind the breaker; prometheus: the servers, without staticWatts.",
    )
    url: Url | None = Field(default=None, description=PROMETHEUS_URL)
    query: str = Field(default="", max_length=1024, description="PromQL that answers with watts.")
    period_seconds: Annotated[float, Field(ge=1, le=2)] = Field(
        default=2.0, description="One window and one decision."
    )
    max_age_seconds: Annotated[float, Field(ge=2, le=60)] = Field(
        default=5.0, description="Older readings of a node count as its worst case."
    )
    correction: Correction = Field(default=Correction(), description="Of the sum of the nodes.")


class Thresholds(Part):
    """Of polca, in parts of the budget."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.t1 <= self.t2", "t1 is larger than t2"),
            ("self.uncapMargin < self.t1", "uncapMargin is not smaller than t1"),
        )
    )

    t1: Factor = 0.8
    t2: Factor = 0.89
    uncap_margin: Annotated[float, Field(ge=0, lt=1)] = 0.05


class ClassSlo(Part):
    """What capping may cost a class."""

    max_increase: Annotated[float, Field(ge=0, le=100)] = Field(
        description="Largest part by which work may take longer: its floor is at least highest clock / (1 + this)."
    )


class PowerClass(Part):
    """Who slows down when: pods by their priority, or by labels."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.maxMHz) || self.minMHz <= self.maxMHz", "minMHz is larger than maxMHz")
        )
    )

    name: Label
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = Field(
        description="Least priority of its pods. The class with the lower one slows down first."
    )
    pod_selector: NodeLabels | None = Field(
        default=None, description="Labels of pods that belong here whatever their priority."
    )
    node_selector: NodeLabels | None = Field(
        default=None, description="Labels of nodes that belong here whatever runs on them."
    )
    min_mhz: Megahertz = Field(alias="minMHz", description="Floor: only an emergency goes lower.")
    max_mhz: Megahertz | None = Field(
        default=None, alias="maxMHz", description="A cap that stands always. Left out: the highest clock."
    )
    min_watts: Annotated[float, Field(ge=1, le=1e4)] | None = Field(
        default=None, description="Of a GPU: no clock is ordered at which it could not draw this much."
    )
    slo: ClassSlo | None = None


CLASSES = (
    PowerClass(name="low", priority=-(2**31), minMHz=1110),
    PowerClass(name="high", priority=1, minMHz=1305),
)


class Brake(Part):
    """The last resort: all GPUs to a very low clock."""

    enabled: bool = True
    at: BrakeAt = BrakeAt.THETA
    mhz: Megahertz = 288
    release_jitter_seconds: Annotated[float, Field(ge=0, le=10)] = Field(
        default=5.0, description="After the brake nodes are let go one after the other within this time."
    )


class ScheduledBudget(Part):
    """From each time that the line names, the budget is scaled by this, until the next line's time."""

    cron: str = spelled(
        r"^[0-9*,/-]+( [0-9*,/-]+){4}$",
        "is no cron line: minute hour day-of-month month day-of-week in UTC, numbers only",
        max_length=128,
    )
    budget_factor: Factor


class GridEvent(Part):
    """Demand response: from the deadline to its end the budget is scaled."""

    model_config = ConfigDict(
        json_schema_extra=rules(("self.deadline < self.until", "until is not after deadline"))
    )

    name: Label
    budget_factor: Factor
    deadline: Time = Field(description="The draw is below the scaled budget from here.")
    until: Time


class Train(Part):
    """Thresholds of polca from what the domain drew, instead of published ones."""

    window_hours: Annotated[float, Field(ge=24, le=192)] = Field(
        default=168.0, description="So much is recorded first."
    )


class AdmissionSpec(Part):
    """How many servers the budget holds, judged from what was recorded."""

    risk_minutes_per_year: Annotated[float, Field(gt=0, le=525_600)] = Field(
        default=1.0,
        description="Expected minutes per year over budget that are accepted.",
        json_schema_extra=rules(("self >= 0.001", "is less than 0.001 minutes per year")),
    )
    horizon_hours: Annotated[float, Field(ge=24, le=192)] = Field(
        default=168.0, description="How far back is looked."
    )


class PowerDomainSpec(Part):
    """Servers behind one breaker."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.members) || !has(self.members.nodes) || self.budgetWatts >"
                    " double(self.members.nodes.size()) * (self.server.fixedWatts + self.server.wattsPerGpuWatt"
                    " * double(self.server.gpus) * self.server.gpuIdleWatts) + self.members.staticWatts"
                ),
                "budgetWatts is below what the nodes draw without work",
            ),
            (
                "!has(self.thresholds) || self.algorithm == 'polca'",
                "thresholds belong to algorithm polca",
            ),
            (
                "!has(self.train) || self.algorithm == 'polca'",
                "train belongs to algorithm polca",
            ),
            (
                "!has(self.train) || !has(self.thresholds)",
                "thresholds are given or trained, not both",
            ),
            (
                "!has(self.target) || self.algorithm == 'guard'",
                "target belongs to algorithm guard",
            ),
            (
                "has(self.members) || self.level in ['site', 'ups', 'row']",
                "a rack or node needs its members",
            ),
        )
    )

    parent_ref: ObjectName | None = Field(default=None, description="The PowerDomain that feeds this one.")
    level: Level = Level.ROW
    budget_watts: BudgetWatts = Field(description="Rating of the breaker, or the contract, if that is less.")
    provisioned_watts: BudgetWatts | None = Field(
        default=None, description="What its servers are rated at; for people."
    )
    breaker: Breaker = Breaker()
    failover: Failover | None = None
    members: Members | None = Field(
        default=None, description="Left out where other domains name this one as their parent."
    )
    server: Server = Server()
    telemetry: PowerTelemetry = PowerTelemetry()
    mode: PowerMode = PowerMode.RECOMMEND
    algorithm: Algorithm = Algorithm.GUARD
    target: Factor | None = Field(default=None, description="Of guard: part of the budget that is aimed at.")
    thresholds: Thresholds | None = Field(default=None, description="Of polca.")
    train: Train | None = Field(default=None, description="Of polca, instead of thresholds.")
    actuator: Actuator = Actuator.CLOCKS
    actuator_latency_seconds: Annotated[float, Field(ge=1, le=120)] = Field(
        default=2.0, description="From an order to what an agent reads back."
    )
    lease_duration_seconds: Annotated[int, Field(ge=6, le=60)] = Field(
        default=15, description="Without a renewal for so long, agents go to their safe caps."
    )
    classes: tuple[PowerClass, ...] = Field(
        default=CLASSES, min_length=1, max_length=2, json_schema_extra=list_map("name")
    )
    brake: Brake = Brake()
    schedule: tuple[ScheduledBudget, ...] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    demand_response: tuple[GridEvent, ...] = Field(
        default=(), max_length=16, json_schema_extra=list_map("name")
    )
    admission: AdmissionSpec | None = Field(default=None, description="Left out: nothing is judged.")


class PowerState(StrEnum):
    """How a domain runs."""

    FREE = "Free"
    LP_BASE = "LpBase"
    LP_DEEP = "LpDeep"
    HP_CAPPED = "HpCapped"
    BRAKE = "Brake"
    SAFE = "Safe"


class ClassCap(Part):
    """Where the servers of one class stand."""

    name: str = Field(max_length=63)
    servers: int = Field(ge=0)
    mhz: int = Field(ge=0, description="Highest clock ordered.")
    seconds: float = Field(default=0.0, ge=0, description="Time below its highest clock, under this leader.")
    slowdown_ratio: float = Field(
        default=0.0, ge=0, description="Work takes at most so much longer at this clock, without queues."
    )


class Interval(Part):
    """Of a number of servers: 5 % and 95 % points over resampled hours."""

    low: int = Field(ge=0)
    high: int = Field(ge=0)


class AdmissionStatus(Part):
    """How many servers the budget holds, from recorded power."""

    servers: int = Field(ge=0, description="That were recorded.")
    servers_without_capping: int = Field(ge=0)
    servers_with_capping: int = Field(ge=0)
    interval: Interval | None = Field(default=None, description="Of serversWithCapping.")
    interval_without_capping: Interval | None = None
    binding: str = Field(
        default="", max_length=64, description="What keeps serversWithCapping from being larger."
    )
    expected_cap_seconds: float = Field(
        default=0.0, ge=0, description="Per day: what was recorded lies above the budget for so long."
    )
    hours: float = Field(default=0.0, ge=0, description="That were judged.")
    until: Time | None = Field(default=None, description="End of the recording.")
    message: Text = Field(default="", description="What makes it weaker than it looks.")


class TrainedStatus(Part):
    """Thresholds from recorded power, in parts of the budget."""

    t1: float = Field(ge=0, le=1)
    t2: float = Field(ge=0, le=1)
    uncap_margin: float = Field(ge=0, le=1)
    rise_ratio: float = Field(ge=0, description="What the row rises before an order acts.")
    budget_watts: float = Field(ge=0, description="With another budget they are trained again.")
    servers: int = Field(ge=0, description="With another number they are trained again.")
    hours: float = Field(default=0.0, ge=0, description="That were recorded.")
    until: Time | None = None


class PowerDomainStatus(Part):
    """How things stand; written every ten seconds, and at once when a condition or the state changes."""

    observed_generation: int = Field(default=0, ge=0)
    power_watts: float | None = Field(default=None, description="Of the last window, all behind the breaker.")
    budget_watts: float | None = Field(default=None, description="Now: with fail-over and schedule.")
    theta: float | None = None
    worst_case_theta: float | None = Field(
        default=None, description="If all servers jump to their largest draw before an order acts."
    )
    headroom_watts: float | None = None
    worst_case_watts: float | None = Field(default=None, description="Of the clocks in force and under way.")
    oversubscription_ratio: float | None = Field(
        default=None, description="Largest draw of all servers without caps, of the budget."
    )
    safe_mhz: int | None = Field(
        default=None, alias="safeMHz", description="Where agents go without a lease: it keeps the budget."
    )
    state: PowerState | None = None
    nodes: int | None = None
    last_sample_time: Time | None = None
    caps_by_class: tuple[ClassCap, ...] = Field(default=(), max_length=2, json_schema_extra=list_map("name"))
    brake_events: int = Field(default=0, ge=0)
    admission: AdmissionStatus | None = None
    trained: TrainedStatus | None = None
    conditions: Conditions = ()
    message: Text = ""
