"""The kinds of ``ballast.dev/v1alpha1``: names, scope, what kubectl prints.

It exists so that the generator, the controller and the tests take group, plural and scope from one place.
"""

from dataclasses import dataclass

from controller.resources.expert_placement import ExpertPlacementSpec, ExpertPlacementStatus
from controller.resources.gpu_profile import GpuProfileSpec, GpuProfileStatus
from controller.resources.model_service import ModelServiceSpec, ModelServiceStatus
from controller.resources.plan import PlanSpec, PlanStatus
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
    description="What Ballast proposes or does for one ModelService. Written by Ballast only.",
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
KINDS = (MODEL_SERVICE, GPU_PROFILE, PLAN, EXPERT_PLACEMENT)
