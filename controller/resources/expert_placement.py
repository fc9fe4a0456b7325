"""ExpertPlacement: where the experts of one MoE model sit on the GPUs of one expert-parallel group.

It exists as the one truth about the resource. It says the shape of the model, the GPUs, where loads are read and what
may be done with the answer; the map itself stands in a ConfigMap that the status names, for it is too large for a
status. How many GPUs serve the model at all is a ModelService's matter.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from controller.resources.schema import (
    PROMETHEUS_URL,
    Conditions,
    DataKey,
    ModelName,
    ObjectName,
    Part,
    PlanRef,
    Selector,
    TargetRef,
    Text,
    Time,
    Url,
    list_map,
    rules,
    spelled,
)

MOST_NODES = 128
MOST_GPUS_OF_NODE = 72
"""Of one NVLink domain."""
MOST_OUTPUTS = 8
Layers = Annotated[int, Field(ge=1, le=512)]
Experts = Annotated[int, Field(ge=1, le=2048)]
Bandwidth = Annotated[
    float, Field(gt=0, le=1e5, json_schema_extra=rules(("self >= 0.001", "is less than 0.001 GB/s")))
]
"""GB/s, so in 10⁹ bytes."""


class ExpertEngine(StrEnum):
    """Serving engines whose maps can be written."""

    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    VLLM = "vllm"
    VLLM_ASCEND = "vllm-ascend"


class CommModel(StrEnum):
    """Where tokens go between layers: back to their own rank, or from expert to expert."""

    DISPATCH = "dispatch"
    TRANSITION = "transition"


class SolveMode(StrEnum):
    """How hard the solver tries."""

    FAST = "fast"
    FULL = "full"
    EXACT = "exact"


class ApplyMode(StrEnum):
    """What becomes of a map."""

    NONE = "none"
    CONFIG_MAP = "configMap"
    ROLLOUT_RESTART = "rolloutRestart"


class Approval(StrEnum):
    """Whether a Plan with a restart waits for people."""

    RECOMMEND = "Recommend"
    AUTO = "Auto"


class ModelRef(Part):
    """The shape of the model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.topK <= self.experts", "topK is larger than experts"),
            (
                "!has(self.expertGroups) || self.experts % self.expertGroups == 0",
                "expertGroups does not divide experts",
            ),
            (
                ("!has(self.decoderLayers) || self.firstMoeLayer + self.moeLayers <= self.decoderLayers"),
                "firstMoeLayer and moeLayers go beyond decoderLayers",
            ),
            ("self.name == oldSelf.name", "the model cannot change: make another ExpertPlacement"),
        )
    )

    name: ModelName = Field(description="Such as deepseek-ai/DeepSeek-V3.")
    moe_layers: Layers = Field(description="Layers with experts, one after the other.")
    first_moe_layer: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="Dense decoder layers before the first one with experts."
    )
    decoder_layers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="All decoder layers; firstMoeLayer + moeLayers if left out."
    )
    experts: Experts = Field(
        description="Routed experts of a layer, without shared ones and without replicas."
    )
    top_k: Annotated[int, Field(ge=1, le=256)] = Field(description="Experts that a token is routed to.")
    expert_groups: Annotated[int, Field(ge=1, le=2048)] | None = Field(
        default=None, description="Groups of group-limited routing."
    )
    expert_bytes: Annotated[int, Field(ge=1, le=10**12)] = Field(
        description="Weights of one expert in one layer: what moving it costs."
    )


class ExpertGpu(Part):
    """One GPU of a node."""

    id: Annotated[int, Field(ge=0, le=1023)] = Field(description="Number within the node.")
    speed: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0,
        description="1 is the reference GPU.",
        json_schema_extra=rules(("self >= 0.001", "is less than 0.001 of the reference GPU")),
    )
    slots: Annotated[int, Field(ge=0, le=2048)] | None = Field(
        default=None,
        description="Experts that it holds in each layer; (experts + redundantExperts) / epSize if left out.",
    )


class ExpertNode(Part):
    """The GPUs of one node, in the order of their ranks."""

    name: ObjectName
    gpus: tuple[ExpertGpu, ...] = Field(
        min_length=1, max_length=MOST_GPUS_OF_NODE, json_schema_extra=list_map("id")
    )


class Topology(Part):
    """Where the ranks are: nodes in the order of their ranks, and what links them."""

    nodes: tuple[ExpertNode, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_NODES,
        description="Taken from the pods of targetRef if left out.",
        json_schema_extra=list_map("name"),
    )
    bw_intra_g_bps: Bandwidth = Field(
        alias="bwIntraGBps", description="GB/s per GPU and direction within a node."
    )
    bw_inter_g_bps: Bandwidth = Field(
        alias="bwInterGBps", description="GB/s per GPU and direction between nodes."
    )


class LoadConfigMap(Part):
    """A recording in a ConfigMap of the same namespace."""

    name: ObjectName
    key: DataKey = "load.json"


class LoadVolume(Part):
    """A recording on a volume that is mounted into the controller."""

    claim: ObjectName = Field(description="PersistentVolumeClaim in the controller's namespace.")
    path: str = spelled(
        r"^[-_a-zA-Z0-9][-._a-zA-Z0-9]*(/[-_a-zA-Z0-9][-._a-zA-Z0-9]*)*$",
        "is no path of a file such as loads/latest.json, without a leading / and without ..",
        max_length=256,
        description="Within the folder of this namespace on the volume.",
    )


class LoadPrometheus(Part):
    """A counter of routed tokens by layer and expert."""

    url: Url = Field(description=PROMETHEUS_URL)
    metric: str = spelled(
        "^[a-zA-Z_:][a-zA-Z0-9_:]*$", "is no name of a metric: letters, digits, _ and :", max_length=200
    )
    selector: Selector = ""
    layer_label: str = spelled(
        "^[a-zA-Z_][a-zA-Z0-9_]*$",
        "is no name of a label: letters, digits and _",
        default="layer",
        max_length=100,
    )
    expert_label: str = spelled(
        "^[a-zA-Z_][a-zA-Z0-9_]*$",
        "is no name of a label: letters, digits and _",
        default="expert",
        max_length=100,
    )


class LoadHttp(Part):
    """An address that answers with a recording."""

    url: Url


class LoadStore(Part):
    """A recording in the controller's database."""

    recording: ObjectName = Field(
        description="An ExpertPlacement of this namespace whose loads are kept, or what ballast experts record wrote."
    )


class LoadSource(Part):
    """Exactly one source of loads, and how they are smoothed."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "(has(self.configMap) ? 1 : 0) + (has(self.pvc) ? 1 : 0) + (has(self.prometheus) ? 1 : 0)"
                    " + (has(self.httpDump) ? 1 : 0) + (has(self.sqlStore) ? 1 : 0) == 1"
                ),
                "exactly one of configMap, pvc, prometheus, httpDump and sqlStore is needed",
            )
        )
    )

    config_map: LoadConfigMap | None = None
    pvc: LoadVolume | None = None
    prometheus: LoadPrometheus | None = None
    http_dump: LoadHttp | None = None
    sql_store: LoadStore | None = None
    window_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        default=300,
        description="Time that one recording covers; prometheus, httpDump and sqlStore are read so often.",
    )
    ewma_alpha: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.3,
        description="Weight of the newest window; 1 forgets all others.",
        json_schema_extra=rules(("self >= 0.001", "is less than 0.001: loads would never be believed")),
    )
    max_age_seconds: Annotated[int, Field(ge=10, le=31_536_000)] | None = Field(
        default=None,
        description="Older recordings are stale; 3 windows for prometheus, httpDump, sqlStore, else no limit.",
    )


class ExpertObjective(Part):
    """What a routed token costs."""

    us_per_token_expert: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="µs of one routed token on the reference GPU.",
        json_schema_extra=rules(("self >= 0.000001", "is less than 0.000001 µs per token")),
    )
    bytes_per_token_copy: Annotated[int, Field(ge=0, le=10**9)] = Field(
        description="Bytes to another GPU and back, per token and expert."
    )


class ExpertSolver(Part):
    """How the map is sought."""

    mode: SolveMode = SolveMode.FAST
    time_limit_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class ExpertMigration(Part):
    """What moving experts costs, and how much of it is allowed."""

    max_moved_ratio: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Most of all holdings that one change may move; no limit if left out."
    )
    bandwidth_g_bps: Bandwidth = Field(
        default=10.0, alias="bandwidthGBps", description="GB/s at which a GPU receives weights."
    )
    windows_until_next: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=12, description="Windows that a new map is expected to serve: its gain counts so often."
    )
    margin: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.1, description="A move must pay for so much more than it takes."
    )
    min_net_gain_seconds: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="A move must bring more than this."
    )
    min_interval_seconds: Annotated[int, Field(ge=0, le=604_800)] = Field(
        default=600, description="Least time between two maps."
    )


class ExpertPlacementSpec(Part):
    """The wish for one expert-parallel group."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "(self.modelRef.experts + self.redundantExperts) % self.epSize == 0",
                "experts + redundantExperts is no multiple of epSize",
            ),
            (
                (
                    "!has(self.topology.nodes)"
                    " || self.topology.nodes.map(n, n.gpus.size()).sum() == self.epSize"
                ),
                "the GPUs of topology.nodes are not as many as epSize",
            ),
            (
                (
                    "!has(self.topology.nodes)"
                    " || self.topology.nodes.all(n, n.gpus.all(g, !has(g.slots)))"
                    " || (self.topology.nodes.all(n, n.gpus.all(g, has(g.slots)))"
                    " && self.topology.nodes.map(n, n.gpus.map(g, g.slots).sum()).sum()"
                    " == self.modelRef.experts + self.redundantExperts)"
                ),
                "slots are needed of every GPU or of none, and their sum is experts + redundantExperts",
            ),
            (
                "has(self.topology.nodes) || has(self.targetRef)",
                "topology.nodes or targetRef is needed: nobody says where the GPUs are",
            ),
            (
                "self.apply != 'rolloutRestart' || has(self.targetRef)",
                "rolloutRestart needs targetRef: what is to be restarted",
            ),
        )
    )

    model_ref: ModelRef
    engine: ExpertEngine
    ep_size: Annotated[int, Field(ge=1, le=4096)] = Field(description="GPUs of the expert-parallel group.")
    redundant_experts: Annotated[int, Field(ge=0, le=8192)] = Field(
        default=0, description="Replicas of experts in each layer, beside one of each."
    )
    target_ref: TargetRef | None = Field(default=None, description="What runs the engine.")
    topology: Topology
    load_source: LoadSource
    comm_model: CommModel = Field(
        default=CommModel.DISPATCH,
        description="dispatch is what the engines do; transition needs recorded transitions.",
    )
    objective: ExpertObjective
    solver: ExpertSolver = ExpertSolver()
    migration: ExpertMigration = ExpertMigration()
    apply: ApplyMode = Field(
        default=ApplyMode.CONFIG_MAP,
        description="none: figures only; configMap: write the map; rolloutRestart: and restart targetRef.",
    )
    mode: Approval = Field(
        default=Approval.RECOMMEND,
        description="Recommend: a Plan with a restart waits for approval; Auto: it does not.",
    )
    paused: bool = Field(default=False, description="Leave everything as it is.")


class ExpertPhase(StrEnum):
    """How things stand, in a word."""

    WAITING = "Waiting"
    PROPOSED = "Proposed"
    APPLYING = "Applying"
    APPLIED = "Applied"
    SOLVED = "Solved"
    HELD = "Held"
    PAUSED = "Paused"
    INFEASIBLE = "Infeasible"


class Balance(Part):
    """Load of the fullest GPU over the mean: of all layers on average, and of the worst."""

    mean: float
    max: float


class ConfigMapRef(Part):
    """A key of a ConfigMap in the namespace of the resource."""

    name: ObjectName
    key: DataKey


class MapOutput(Part):
    """A map in the form that an engine reads."""

    format: str = Field(max_length=32)
    config_map_ref: ConfigMapRef
    sha256: str = Field(max_length=64)


class ExpertPlacementStatus(Part):
    """What Ballast makes of it. Figures are those of the smoothed loads."""

    observed_generation: int = Field(default=0, ge=0)
    phase: ExpertPhase = ExpertPhase.WAITING
    conditions: Conditions = ()
    objective_us: float | None = Field(default=None, description="µs per window of the map decided on.")
    lower_bound_us: float | None = Field(default=None, description="No map takes less.")
    gap: float | None = Field(default=None, description="How far from the bound, as a part of objectiveUs.")
    balance: Balance | None = None
    cross_gpu: float | None = Field(default=None, description="Part of the copies that change GPU.")
    cross_node: float | None = Field(default=None, description="Part of the copies that change node.")
    moved_ratio: float | None = Field(default=None, description="Holdings that the last decision moves.")
    predicted_move_seconds: float | None = None
    net_gain_seconds: float | None = None
    plan_ref: PlanRef | None = None
    digest: str = Field(default="", max_length=64, description="Of the map that stands in the ConfigMap.")
    made_at: Time | None = Field(default=None, description="When the map was written.")
    outputs: tuple[MapOutput, ...] = Field(
        default=(), max_length=MOST_OUTPUTS, json_schema_extra=list_map("format")
    )
    message: Text = ""
