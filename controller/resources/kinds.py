"""The kinds of ``ballast.dev/v1alpha1``: names, scope, what kubectl prints.

It exists so that the generator, the controller and the tests take group, plural and scope from one place.
"""

from dataclasses import dataclass

from controller.resources.expert_placement import ExpertPlacementSpec, ExpertPlacementStatus
from controller.resources.gpu_profile import GpuProfileSpec, GpuProfileStatus
from controller.resources.model_service import ModelServiceSpec, ModelServiceStatus
from controller.resources.node_power import NodePowerSpec, NodePowerStatus
from controller.resources.plan import PlanSpec, PlanStatus
from controller.resources.power_domain import PowerDomainSpec, PowerDomainStatus
from controller.resources.schema import Part

GROUP = "ballast.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One printed column; ``wide`` ones appear with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Paths of a scale subresource."""

    spec_replicas: str
    status_replicas: str
    selector: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A custom resource."""

    kind: str
    plural: str
    namespaced: bool
    spec: type[Part]
    status: type[Part]
    columns: tuple[Column, ...]
    description: str
    scale: Scale | None = None
    short_names: tuple[str, ...] = ()

    @property
    def singular(self) -> str:
        """Lower-case name of one."""
        return self.kind.lower()

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")

MODEL_SERVICE = Kind(
    kind="ModelService",
    plural="modelservices",
    namespaced=True,
    spec=ModelServiceSpec,
    status=ModelServiceStatus,
    description="A served model: its SLO, its traffic, and the variants Ballast may scale.",
    short_names=("msvc",),
    columns=(
        Column(name="Model", path=".spec.model"),
        Column(name="Mode", path=".spec.mode"),
        Column(name="Rate", path=".status.demand.requestsPerSecond", type="number", description="requests/s"),
        Column(name="Replicas", path=".status.summary", description="now → wanted"),
        Column(name="USD/h", path=".status.costUsdPerHour", type="number"),
        Column(name="Applied", path='.status.conditions[?(@.type=="Applied")].reason'),
        Column(name="Message", path=".status.message", wide=True),
        AGE,
    ),
)
GPU_PROFILE = Kind(
    kind="GpuProfile",
    plural="gpuprofiles",
    namespaced=False,
    spec=GpuProfileSpec,
    status=GpuProfileStatus,
    description="What one replica of a model on a GPU type sustains, costs and draws.",
    columns=(
        Column(name="Model", path=".spec.model"),
        Column(name="GPU", path=".spec.gpuType"),
        Column(name="GPUs", path=".spec.gpusPerReplica", type="integer"),
        Column(name="USD/h", path=".spec.priceUsdPerHour", type="number"),
        Column(name="Source", path=".spec.provenance.kind"),
        Column(name="Message", path=".status.message", wide=True),
        AGE,
    ),
)
PLAN = Kind(
    kind="Plan",
    plural="plans",
    namespaced=True,
    spec=PlanSpec,
    status=PlanStatus,
    description="What Ballast proposes or does for one ModelService or ExpertPlacement. Written by Ballast only.",
    columns=(
        Column(name="Phase", path=".status.phase"),
        Column(name="Step", path=".status.step", type="integer"),
        Column(name="Of", path=".status.steps", type="integer"),
        Column(name="USD/h", path=".spec.costUsdPerHour", type="number"),
        Column(name="Bound", path=".spec.lowerBoundUsdPerHour", type="number"),
        Column(name="Gap", path=".spec.gapRatio", type="number"),
        Column(name="Digest", path=".spec.digest", wide=True),
        Column(name="Message", path=".status.message", wide=True),
        AGE,
    ),
)
EXPERT_PLACEMENT = Kind(
    kind="ExpertPlacement",
    plural="expertplacements",
    namespaced=True,
    spec=ExpertPlacementSpec,
    status=ExpertPlacementStatus,
    description="Where the experts of an MoE model sit: shape, GPUs, loads, and the map in force.",
    short_names=("eplace",),
    columns=(
        Column(name="Model", path=".spec.modelRef.name"),
        Column(name="Engine", path=".spec.engine"),
        Column(name="EP", path=".spec.epSize", type="integer"),
        Column(name="Phase", path=".status.phase"),
        Column(
            name="Balance",
            path=".status.balance.mean",
            type="number",
            description="fullest GPU over the mean",
        ),
        Column(name="Gap", path=".status.gap", type="number"),
        Column(name="Moved", path=".status.movedRatio", type="number", wide=True),
        Column(name="Message", path=".status.message", wide=True),
        AGE,
    ),
)
POWER_DOMAIN = Kind(
    kind="PowerDomain",
    plural="powerdomains",
    namespaced=False,
    spec=PowerDomainSpec,
    status=PowerDomainStatus,
    description="Servers behind one breaker: what they may draw together, and how it is kept.",
    short_names=("pdom",),
    columns=(
        Column(name="Level", path=".spec.level"),
        Column(name="Mode", path=".spec.mode"),
        Column(name="Power", path=".status.powerWatts", type="number", description="W"),
        Column(name="Budget", path=".status.budgetWatts", type="number", description="W, now"),
        Column(name="Theta", path=".status.theta", type="number", description="state of the breaker"),
        Column(
            name="Ratio",
            path=".status.oversubscriptionRatio",
            type="number",
            description="largest draw without caps over the budget",
        ),
        Column(name="State", path=".status.state"),
        Column(name="Guarantee", path='.status.conditions[?(@.type=="GuaranteeHolds")].status', wide=True),
        Column(name="Message", path=".status.message", wide=True),
        AGE,
    ),
)
NODE_POWER = Kind(
    kind="NodePower",
    plural="nodepowers",
    namespaced=False,
    spec=NodePowerSpec,
    status=NodePowerStatus,
    description="Orders for the GPUs of one node, and what its agent did. Written by Ballast only.",
    short_names=("npow",),
    columns=(
        Column(name="Mode", path=".spec.mode"),
        Column(name="Safe", path=".spec.safe.lockMaxMHz", type="integer", description="MHz without a lease"),
        Column(name="Ordered", path=".spec.generation", type="integer"),
        Column(name="Done", path=".status.acknowledgedGeneration", type="integer"),
        Column(name="Lease", path=".status.leaseState"),
        Column(name="Healthy", path='.status.conditions[?(@.type=="ActuatorsHealthy")].reason'),
        AGE,
    ),
)
KINDS = (MODEL_SERVICE, GPU_PROFILE, PLAN, EXPERT_PLACEMENT, POWER_DOMAIN, NODE_POWER)
