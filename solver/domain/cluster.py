"""What is known of a cluster when a decision is made: pools of GPUs, and the services that run on them.

It exists so that the operator, the simulator and tests hand the Planner the same frozen values. It reads no cluster
and holds no decision; missing knowledge is None, never zero.
"""

from dataclasses import dataclass
from enum import StrEnum

from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket


class Stance(StrEnum):
    """How a service takes part in a decision."""

    FIXED = "fixed"
    """Counts with what it runs now (observed, paused, conflicting, without fresh traffic)."""
    PROPOSED = "proposed"
    """Gets a plan that waits for approval; counts with what it runs now for those that are applied."""
    APPLIED = "applied"
    """Its plan is applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPool:
    """GPUs of one type that can be told apart by node labels."""

    name: str
    gpus: int
    """Schedulable GPUs less those used by pods of others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantState:
    """One variant of a service: what a replica needs, costs and sustains, and what runs."""

    name: str
    pool: str
    gpus_per_replica: int
    price_usd_per_h: float
    """US$ per replica and hour."""
    throughput_rps: tuple[float, ...]
    """Per bucket of the service: largest rate inside the SLO; 0: cannot serve it.

    Whole requests for role both, prefills only for role prefill, decodes only for role decode."""
    replicas: int
    """Asked for now."""
    ready: int
    """Ready now."""
    held: int
    """Replicas that hold GPUs now: asked for, starting or ending."""
    min_replicas: int = 0
    max_replicas: int | None = None
    locked: bool = False
    """Somebody else owns the number of replicas: it stays what it is."""
    role: Role = Role.BOTH
    kv_link_bytes_per_s: float | None = None
    """What one replica's link can send (prefill) or take (decode); None: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """A service: its traffic by bucket, what must hold, and its variants."""

    name: str
    stance: Stance
    buckets: tuple[RequestBucket, ...]
    variants: tuple[VariantState, ...]
    headroom_ratio: float = 0.0
    survive: int = 0
    start_cost_usd: float = 0.0
    stop_cost_usd: float = 0.0
    kv_bytes_per_prompt_token: float = 0.0
    """What moves from a prefill to a decode replica for each token of a prompt."""

    @property
    def splits(self) -> bool:
        """Whether any variant serves only one phase."""
        return any(variant.role is not Role.BOTH for variant in self.variants)

    @property
    def rate_rps(self) -> float:
        """Requests per second over all buckets."""
        return sum(bucket.rate_rps for bucket in self.buckets)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Replicas asked for now, by variant."""
        return tuple(variant.replicas for variant in self.variants)

    @property
    def cost_usd_per_h(self) -> float:
        """US$ per hour of what is asked for now."""
        return sum(variant.price_usd_per_h * variant.replicas for variant in self.variants)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """Everything one decision looks at."""

    pools: tuple[GpuPool, ...]
    services: tuple[ServiceState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDecision:
    """What one service should run. ``replicas`` are by variant, None where there is no plan."""

    service: str
    status: str
    """A `solver.domain.gpu_mix.PlanStatus`."""
    replicas: tuple[int, ...] | None = None
    cost_usd_per_h: float | None = None
    lower_bound_usd_per_h: float | None = None
    """The cost less what another plan could save at most, changes counted."""
    gap_ratio: float | None = None
    routing: tuple[tuple[int, int, float], ...] = ()
    """Bucket, variant, share."""
    reason: str = ""
    """Why there is no plan: a kind of `solver.domain.gpu_mix.Infeasibility`, or timed-out."""
    message: str = ""
    together_with: int = 0
    """Services that were solved with it because they share GPUs that are short."""
