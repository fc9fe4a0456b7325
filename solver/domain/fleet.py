"""The vocabulary of prefill/decode fleets: the problem (`FleetInstance`) and its answer (`FleetPlan`).

It exists so that the reader of instance files, the builder from traces, the solver, the checker, the simulator and the
command speak about the same values without knowing each other. It holds no decision and no file format; the JSON
layout of ``fleet-instance/1`` is read in `telemetry.sources.fleet_file`. What a fleet has in common with a GPU mix
(offers, buckets, status) is the very type of `solver.domain.gpu_mix`.

Symbols used in the docstrings of the solver and the checker: models m, buckets b (rate r_b in requests/s), configs c
(GPU type x size x role x power cap), GPU types g, throughput T[b,c], replicas n[m,c], shares x[m,b,c], rate factor
lambda, headroom h, KV bytes k_b of a request, KV link w_c and its usable part u.
Source: Splitwise (Patel et al., ISCA 2024), section IV; README of fleet-instance/1 for the exact rules.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from solver.domain.gpu_mix import GpuOffer, PlanStatus, RequestBucket


class Role(StrEnum):
    """Which part of a request a replica serves."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class Phase(StrEnum):
    """What a flow of requests gets from a config: the whole request, or one of its two parts."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class FleetGoal(StrEnum):
    """What is optimised: the first three are minimised, the rate factor is maximised."""

    COST = "cost"
    POWER = "power"
    MACHINES = "machines"
    RATE = "rate"

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self is FleetGoal.RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBudgets:
    """Limits on the whole fleet; None: no such limit."""

    cost_usd_per_h: float | None = None
    power_w: float | None = None
    machines: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """One way to run a replica: so many GPUs of one type, in one role, perhaps under a power cap."""

    gpu_type: str
    gpus_per_replica: int
    role: Role = Role.BOTH
    power_w: float | None = None
    """Watts that one GPU of such a replica counts; None: those of its GPU type."""
    power_cap_w: float | None = None
    """Cap per GPU, for information: its effect is in ``power_w`` and the throughputs."""
    kv_link_bytes_per_s: float | None = None
    """What one replica's link can send (prefill) or take (decode); None: no limit, 0: no transfer at all."""
    current_replicas: int | None = None
    """Replicas running now; None means that starting and stopping this config is not charged."""
    min_replicas: int = 0
    max_replicas: int | None = None
    """Bounds that the owner of the config sets, beside what stock and budgets allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """A served model: its traffic by bucket, its configs, and what must hold for it."""

    name: str
    configs: tuple[FleetConfig, ...]
    buckets: tuple[RequestBucket, ...]
    throughput_rps: tuple[tuple[float, ...], ...]
    """[bucket][config]: largest rate one replica sustains inside the SLO if it serves nothing else; 0: cannot.

    Whole requests for role both, prefills only for role prefill, decodes only for role decode."""
    headroom_ratio: float = 0.0
    """Share of every replica that stays free: load <= (1 - headroom) x replicas."""
    min_total_replicas: int = 0
    kv_bytes_per_prompt_token: float = 0.0
    kv_utilisation_max_ratio: float = 1.0
    """Usable part of every KV link."""
    ttft_slo_s: float | None = None
    """For information: already inside the throughputs."""
    tbt_slo_s: float | None = None
    """For information: already inside the throughputs."""
    survive: int = 0
    """Whichever so many replicas are lost, the others carry both phases of the full rate (headroom not required)."""

    @property
    def rate_rps(self) -> float:
        """Total request rate."""
        return sum(bucket.rate_rps for bucket in self.buckets)

    def kv_bytes(self, bucket: int) -> float:
        """Bytes that one request of a bucket moves from its prefill to its decode machine."""
        return (self.buckets[bucket].input_tokens or 0.0) * self.kv_bytes_per_prompt_token

    def keeping(self, configs: Iterable[int]) -> "FleetModel":
        """Return the model with only the configs of these indices, in this order."""
        kept = tuple(configs)
        return replace(
            self,
            configs=tuple(self.configs[c] for c in kept),
            throughput_rps=tuple(tuple(row[c] for c in kept) for row in self.throughput_rps),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInstance:
    """A whole fleet problem; the exact rules are those of the README of fleet-instance/1."""

    name: str
    gpu_types: tuple[GpuOffer, ...]
    models: tuple[FleetModel, ...]
    goal: FleetGoal = FleetGoal.COST
    budgets: FleetBudgets = field(default_factory=FleetBudgets)
    start_cost_usd: float = 0.0
    """US$ per GPU started."""
    stop_cost_usd: float = 0.0
    """US$ per GPU stopped."""
    horizon_h: float = 1.0
    """Change cost is spread over so many hours. It counts where the goal is the cost, and against no budget."""

    def offer(self, gpu_type: str) -> GpuOffer:
        """Return the offer of a GPU type (KeyError if it is not declared)."""
        for offer in self.gpu_types:
            if offer.name == gpu_type:
                return offer
        raise KeyError(gpu_type)

    def config_power_w(self, config: FleetConfig) -> float | None:
        """Watts per GPU of a config; None when neither it nor its GPU type states them."""
        return self.offer(config.gpu_type).power_w if config.power_w is None else config.power_w

    @property
    def splits(self) -> bool:
        """Whether any config serves only one phase."""
        return any(config.role is not Role.BOTH for model in self.models for config in model.configs)

    @property
    def charges_changes(self) -> bool:
        """Whether starting or stopping some replica adds to the objective."""
        return (
            self.goal is FleetGoal.COST
            and (self.start_cost_usd > 0 or self.stop_cost_usd > 0)
            and any(config.current_replicas is not None for model in self.models for config in model.configs)
        )

    @property
    def tells_replicas_apart(self) -> bool:
        """Whether more is asked of replicas than to serve: bounds of single configs, losses, costs of changes."""
        return self.charges_changes or any(
            model.survive > 0
            or any(config.min_replicas > 0 or config.max_replicas is not None for config in model.configs)
            for model in self.models
        )

    @property
    def without_splitting(self) -> "FleetInstance":
        """The same problem with role-both configs only (indices of configs then differ)."""
        return replace(
            self,
            models=tuple(
                model.keeping(c for c, config in enumerate(model.configs) if config.role is Role.BOTH)
                for model in self.models
            ),
        )


FleetInfeasibleKind = Literal[
    "bucket-unservable",
    "kv-transfer",
    "survive",
    "budget",
    "power-limit",
    "machine-limit",
    "gpu-limit",
    "replica-limit",
    "combination",
]
FleetLimitKind = Literal[
    "kv-transfer",
    "survive",
    "budget",
    "power-limit",
    "machine-limit",
    "gpu-limit",
    "replica-limit",
    "min-replicas",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInfeasibility:
    """Why no fleet exists: the first kind of limit whose removal alone would help, and all that would."""

    kind: FleetInfeasibleKind
    models: tuple[str, ...]
    buckets: tuple[int, ...]
    gpu_types: tuple[str, ...]
    message: str
    feasible_when_dropped: tuple[FleetLimitKind, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFlow:
    """``share`` of the requests of (model, bucket index) gets ``phase`` from the config with index ``config``.

    Shares of phases both and prefill sum to 1 over a bucket, those of decode to those of prefill, whatever the rate
    factor.
    """

    model: str
    bucket: int
    config: int
    phase: Phase
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimit:
    """A limit without which the fleet would be better, and what one more unit of it gains."""

    kind: FleetLimitKind
    name: str
    gain_per_unit: float
    """In units of the objective per US$/h, W, machine, GPU or replica; links: per 1 (all links twice as fast)."""
    step_units: float
    """The gain was taken over this many more units (limits act in lumps); 0: no small widening gains anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """The answer: replicas of each config, who serves which phase of what, and how good that is.

    ``replicas``, ``load_ratio`` and ``link_ratio`` are [model][config] in the order of the instance; loads are divided
    by replicas, link loads by what the links may carry (0 where there are none). Numbers are None without a plan.
    """

    instance_name: str
    goal: FleetGoal
    status: PlanStatus
    objective: float | None = None
    """US$/h (changes counted), W, machines, or the rate factor."""
    bound: float | None = None
    """Proved: no fleet is better. A lower bound where the goal is minimised, an upper bound on the rate factor."""
    gap_ratio: float | None = None
    """|objective - bound| / max(|objective|, 1e-9)."""
    replicas: tuple[tuple[int, ...], ...] = ()
    flows: tuple[FleetFlow, ...] = ()
    load_ratio: tuple[tuple[float, ...], ...] = ()
    link_ratio: tuple[tuple[float, ...], ...] = ()
    bought_gpus: tuple[int, ...] = ()
    """GPUs paid or reserved, per GPU type of the instance."""
    cost_usd_per_h: float | None = None
    """Running cost, without changes."""
    change_cost_usd: float | None = None
    """Of going from what runs to these replicas; spread over the horizon it is part of goal cost."""
    power_w: float | None = None
    """None also when the power of some GPU in use is not known."""
    machines: float | None = None
    """None also when the node size of some GPU type in use is not known."""
    rate_factor: float | None = None
    """All rates times this are served; 1 unless the goal is the rate."""
    both_only_objective: float | None = None
    """Best without prefill and decode configs; None when there is no such fleet or it was not looked for."""
    both_only_status: PlanStatus | None = None
    """How far the search without splitting came; None: not looked for."""
    both_only_bound: float | None = None
    worth_splitting: bool | None = None
    """Whether this fleet is better than the best without splitting (more than 1e-6); None: not known."""
    binding: tuple[FleetLimit, ...] = ()
    binding_settled: bool = False
    """Every limit was looked at; else more than those in ``binding`` may bind."""
    infeasible: FleetInfeasibility | None = None
    method: str = ""
