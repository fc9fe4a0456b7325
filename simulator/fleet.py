"""The virtual cluster as values: kinds of instances, pools of them, scheduler, router, links, events.

It exists so that the engine is handed everything it needs with names resolved to numbers: it reads no file, knows
no catalogue (`simulator.scenario` reads the file, `controller` resolves its names). A fleet is a value; two runs never
meet.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from simulator.step_table import StepTable


class Role(StrEnum):
    """Which phases the instances of a pool serve."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class RouterKind(StrEnum):
    """How a request finds its instances; equations in docs/simulation.md."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    JSQ = "jsq"
    """Fewest outstanding tokens: prompt tokens not yet processed plus one per unfinished decode."""
    MIXED_POOL = "mixed-pool"
    """Splitwise's two levels (docs/splitwise-rules.md)."""
    LEAST_KV = "least-kv"
    PREFIX_AWARE = "prefix-aware"
    """Fewest outstanding tokens, counting only the part of the prompt that is not cached there."""


class QueueOrder(StrEnum):
    """Who is served first on an instance."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    """Lower class number first, then first come."""


class Overlap(StrEnum):
    """Whether KV moves while the prompt is still being processed."""

    NONE = "none"
    LAYERWISE = "layerwise"


class EventKind(StrEnum):
    """What may happen to an instance from outside."""

    DOWN = "instance-down"
    """Fails at once; its requests start again elsewhere."""
    DRAIN = "instance-drain"
    """Takes no new requests; fails what is left after the pool's drain time (0: no limit)."""
    UP = "instance-up"
    """Starts; serves after the pool's start-up time."""
    CAP = "cap"
    """Runs at another speed and power from its next iteration on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InstanceKind:
    """One kind of instance: how fast, how much memory, what it costs."""

    name: str
    gpu_type: str
    gpus: int
    table: StepTable
    kv_capacity_tokens: int
    """Tokens of KV cache beside the weights."""
    kv_bytes_per_token: float
    """Of the whole instance; what a transfer moves per prompt token."""
    layers: int
    price_usd_per_h: float | None = None
    """Of the whole instance; None: not known."""
    accept_s: float = 0.0
    """Outside the iterations: from arrival until the engine can schedule a request (API server, tokeniser)."""
    per_token_s: float = 0.0
    """Outside the iterations: from the end of an iteration until a token is out, added up over the tokens."""
    finish_s: float = 0.0
    """Outside the iterations: after the last token."""
    provenance: str = ""
    """Where the times come from, in one line."""
    known_error: str = ""
    """How far off they are known to be, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Instances of one kind, created in the order of the pools; ties go to the first."""

    name: str
    kind: int
    """Index into ``Fleet.kinds``."""
    count: int
    role: Role = Role.BOTH
    model: int = 0
    """Index into ``Fleet.models``."""
    start_s: float = 0.0
    """From an instance-up event until it serves; instances there at the start serve at once."""
    drain_s: float = 0.0
    """Longest drain; 0: until its last request is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """Continuous batching on every instance (names after vLLM)."""

    max_batch: int = 512
    max_batch_tokens: int = 2048
    chunked_prefill: bool = True
    """False: prompts run whole, in iterations of their own that stop all decodes."""
    max_preemptions: int = 4
    """A request preempted so often is not chosen again while another can be."""
    order: QueueOrder = QueueOrder.FCFS
    watermark_ratio: float = 0.01
    """Share of the KV cache that admission leaves free on a busy instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How requests find instances."""

    kind: RouterKind = RouterKind.JSQ
    prompt_limit_tokens: int = 8192
    """mixed-pool: a busy prefill machine with more pending prompt tokens than this is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """KV transfer between prefill and decode instances, and the prefix cache."""

    bytes_per_s: float = 200.0 * 2.0**30
    contention: bool = True
    """One transfer at a time leaves an instance and one at a time enters it; False: links without limit."""
    overlap: Overlap = Overlap.LAYERWISE
    prefix_cache_blocks: int = 0
    """Blocks that an instance keeps beside its KV cache, least recently used out first; 0: no prefix cache."""
    block_tokens: int = 512
    """Tokens of one block (Mooncake: 512)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """Something that happens to one instance at a given time."""

    time_s: float
    kind: EventKind
    pool: int
    index: int
    """Within the pool."""
    instance_kind: int = -1
    """For CAP: index into ``Fleet.kinds`` of the capped speed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """Everything that serves, and the rules by which it does."""

    models: tuple[str, ...]
    kinds: tuple[InstanceKind, ...]
    pools: tuple[Pool, ...]
    scheduler: Scheduler = field(default_factory=Scheduler)
    router: Router = field(default_factory=Router)
    links: Links = field(default_factory=Links)
    events: tuple[FleetEvent, ...] = ()

    @property
    def instances(self) -> int:
        """Number of instances of all pools."""
        return sum(pool.count for pool in self.pools)
