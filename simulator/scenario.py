"""A scenario as a value: what the user wrote, with names where a catalogue has the facts.

It exists so that commands, searches and sweeps change a scenario in one place (another count, another rate) before
anything is looked up. It reads no file (`simulator.scenario_file` does) and knows no catalogue: `controller.simulation`
resolves the names into a `simulator.fleet.Fleet`. docs/simulation.md describes the fields for users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from simulator.fleet import EventKind, Links, Role, Router, Scheduler
from solver.domain.errors import Place
from solver.domain.slo import Slo

SHIPPED_TRACE = "shipped"
"""Name of the trace that Ballast ships, where a scenario asks for a file."""


class StepModelKind(StrEnum):
    """How long an iteration takes; equations in docs/simulation.md."""

    SPLITWISE_COMPAT = "splitwise-compat"
    TABLE_KV = "table-kv"
    PHYSICS = "physics"
    BLIS_COMPAT = "blis-compat"
    FITTED = "fitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioModel:
    """A model that is served; pools and traces call it by ``name``."""

    name: str
    model: str
    """Name or alias in the model catalogue."""
    precision: str | None = None
    """None: the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioPool:
    """Instances of one kind; they are created in the order of the pools."""

    name: str
    gpu_type: str
    """Name or node label in the GPU catalogue."""
    gpus_per_instance: int
    count: int
    role: Role = Role.BOTH
    model: str
    """Name of a `ScenarioModel`."""
    power_cap_w_per_gpu: float | None = None
    start_s: float = 0.0
    drain_s: float = 0.0
    longest_prompt_tokens: int | None = None
    """Routing by length: a request goes to the pools of its model with the least such bound that holds its prompt, and
    the router chooses among those. None: any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModelChoice:
    """Which step model, and what it needs."""

    kind: StepModelKind | None = None
    """None: ``table-kv`` where a table exists, ``physics`` otherwise, pool by pool."""
    table: str | None = None
    """Profile file of the user (a path), or the name of a shipped one."""
    fit: str | None = None
    """File with fitted coefficients (a path)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceInstance:
    """The instance that relative SLO targets compare with: each request alone on it."""

    gpu_type: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRules:
    """What the cluster may draw."""

    budget_w: float | None = None
    """Reported against; only a planner with ``caps`` acts on it."""
    caps: bool = False
    """The planner caps the GPUs so that all that run, each at its cap, stay within the budget."""


class PlannerPolicy(StrEnum):
    """Who changes the pools while the requests arrive; rules in docs/closed-loop.md."""

    BALLAST = "ballast"
    STATIC = "static"
    """Enough for the busiest windows of the trace, all the time: what hindsight would have bought."""
    HPA = "hpa"
    """The rule of Kubernetes' horizontal autoscaler on one pool."""
    ORACLE = "oracle"
    """Knows the windows to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateHistory:
    """Request rates of the time before the trace."""

    file: str
    """Windows of rates (a path)."""
    service: str | None = None
    """Name of the series; None: the only one."""
    until_s: float | None = None
    """Second of the file at which the trace begins; nothing from there on is read. None: its end."""
    scale: float = 1.0
    """Times which the rates of the file are those of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerRules:
    """How the pools follow the traffic."""

    policy: PlannerPolicy = PlannerPolicy.BALLAST
    interval_s: float = 30.0
    """Between two decisions."""
    start_s: float = 120.0
    """From the decision to start an instance until it serves; wins over that of the pools."""
    drain_s: float = 300.0
    """Longest drain; 0: until the last request is done. Wins over that of the pools."""
    horizon_s: float | None = None
    """How far ahead a decision must carry the traffic; None: until the next one is ready, start_s + interval_s."""
    window_s: float = 120.0
    """Windows in which rates are forecast."""
    judged_window_s: float = 600.0
    """Windows that are judged one by one; what static buys for, and what the oracle knows."""
    sample_s: float = 30.0
    """Arrivals are counted over the last so many seconds for the rule that reacts."""
    stabilisation_s: float = 300.0
    """A fall counts only when all samples of so long show it."""
    min_interval_s: float = 300.0
    """Between changes that only save."""
    headroom_ratio: float = 0.1
    change_s: float = 900.0
    """A change of the mix must earn its start-ups back in so long; 0: start-ups are not counted."""
    target_ratio: float = 0.7
    """hpa: how much of what it carries an instance is to be given."""
    forecast: bool = True
    violations: float = 0.25
    """Share of the windows whose rate the forecast capacity may miss."""
    rehearse: bool = False
    """Before something is taken away, the last judged window is replayed with the new plan."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """GPUs that may be used, by type; a type that is not named has no limit."""
    history: RateHistory | None = None
    sizes: str | None = None
    """Trace whose request sizes are known at the start (a path, or `SHIPPED_TRACE`)."""

    @property
    def ahead_s(self) -> float:
        """Seconds that a decision must look ahead."""
        return self.start_s + self.interval_s if self.horizon_s is None else self.horizon_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioEvent:
    """Something that happens to one instance of a pool, or to all of them."""

    time_s: float
    kind: EventKind
    pool: str
    index: int | None = None
    """Within the pool; None: every instance of it."""
    value_w: float | None = None
    """For a cap: watts per GPU from then on; None lifts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChoice:
    """Which requests arrive, and when. The cuts count in the trace's own seconds, before the clock is run faster."""

    file: str | None = None
    """A path, `SHIPPED_TRACE`, or None: to be given elsewhere."""
    scale: float = 1.0
    """Requests arrive so many times as fast; they stay the same requests."""
    warm_up_s: float = 0.0
    """Requests that arrive before it are simulated and left out of latencies."""
    duration_s: float | None = None
    """Requests that arrive from here on are left out altogether."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a run of the cluster simulator is made of, by names."""

    name: str
    models: tuple[ScenarioModel, ...]
    pools: tuple[ScenarioPool, ...]
    step_model: StepModelChoice = StepModelChoice()
    scheduler: Scheduler = field(default_factory=Scheduler)
    priorities: Mapping[str, int] = field(default_factory=dict)
    """Priority of each class of the trace, 0 served first; empty: the classes are such numbers themselves."""
    router: Router = field(default_factory=Router)
    links: Links = field(default_factory=Links)
    slo: Slo = field(default_factory=Slo)
    reference: ReferenceInstance | None = None
    power: PowerRules = PowerRules()
    planner: PlannerRules | None = None
    """None: the pools are what they are."""
    events: tuple[ScenarioEvent, ...] = ()
    trace: TraceChoice = TraceChoice()
    source: str = "scenario"
    """File it was read from."""
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Line of each field in that file, for errors."""

    def place(self, path: str) -> Place:
        """Name the place of a field, as ``pools[0].gpu_type``, for an error."""
        return Place(self.source, self.lines.get(path), path)
