"""Plan: what Ballast proposes or does for one ModelService or ExpertPlacement; the only thing actuation reads.

It exists as the one truth about the resource. Only Ballast writes it; people approve it by an annotation that names
its digest. A Plan of an ExpertPlacement holds the very files that are to be written, so that what was approved is what
engines find.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from controller.resources.schema import (
    ATOMIC,
    Amount,
    Conditions,
    DataKey,
    Label,
    ObjectName,
    Part,
    Replicas,
    TargetRef,
    Text,
    Time,
    list_map,
    rules,
)
from solver.domain.fleet import Role

MOST_STEPS = 512
ROLE = Field(default=None, description="Left out for whole requests.")
MOST_FILE_BYTES = 2**20 - 2**14
"""A ConfigMap holds 1 MiB with its names and annotations."""


class Action(StrEnum):
    """What one step does."""

    SCALE_UP = "ScaleUp"
    SHIFT = "Shift"
    DRAIN = "Drain"
    SCALE_DOWN = "ScaleDown"


class Phase(StrEnum):
    """How far a Plan has come."""

    PROPOSED = "Proposed"
    APPROVED = "Approved"
    APPLYING = "Applying"
    APPLIED = "Applied"
    SUPERSEDED = "Superseded"
    FAILED = "Failed"


class ServiceRef(Part):
    """The ModelService of the plan."""

    name: ObjectName
    uid: str = Field(default="", max_length=64)
    generation: int = Field(default=0, ge=0)


class Step(Part):
    """One idempotent write, and what must be seen before the next."""

    index: int = Field(ge=0)
    target_ref: TargetRef
    variant: Label
    role: Role | None = ROLE
    from_replicas: Replicas
    to_replicas: Replicas
    action: Action


class Route(Part):
    """Share of the requests of one size that a variant serves, or whose prompts or outputs alone it does."""

    input_tokens: Amount
    output_tokens: Amount
    variant: Label
    role: Role | None = ROLE
    share: Annotated[float, Field(ge=0, le=1.000001)]
    requests_per_second: Amount | None = Field(default=None, description="Of this size, to this variant.")


class Wanted(Part):
    """Replicas of a variant when the plan is done."""

    variant: Label
    role: Role | None = ROLE
    target_ref: TargetRef
    replicas: Replicas


class ExpertAction(StrEnum):
    """What one step of a change of experts does."""

    WRITE_MAP = "WriteMap"
    RESTART = "Restart"


class PlacementRef(Part):
    """The ExpertPlacement of the plan."""

    name: ObjectName
    uid: str = Field(default="", max_length=64)
    generation: int = Field(default=0, ge=0)


class MapFile(Part):
    """One key of the ConfigMap as it is to be."""

    key: DataKey
    format: str = Field(max_length=32)
    sha256: str = Field(max_length=64)
    text: str = Field(max_length=MOST_FILE_BYTES, pattern=r"^[ -~\n]*$")


class ExpertStep(Part):
    """One idempotent write: of the ConfigMap, or of what lets a target's pods load it anew."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.action != 'Restart' || has(self.targetRef)", "Restart needs targetRef")
        )
    )

    index: int = Field(ge=0)
    action: ExpertAction
    target_ref: TargetRef | None = Field(default=None, description="What is restarted.")


class ExpertChange(Part):
    """Where experts are to sit. Figures are those of the loads that it was made for."""

    placement_ref: PlacementRef
    config_map: ObjectName
    map_digest: str = Field(max_length=64, description="What a restart leaves on the pod template.")
    files: tuple[MapFile, ...] = Field(max_length=2, json_schema_extra=list_map("key"))
    objective_us: float = Field(description="µs per window of this map.")
    objective_before_us: float | None = Field(
        default=None, description="µs per window of the map in force, for the same loads."
    )
    lower_bound_us: float = Field(description="No map takes less.")
    moved_ratio: float | None = Field(default=None, description="Part of all holdings that must be fetched.")
    predicted_move_seconds: float | None = None
    net_gain_seconds: float | None = Field(
        default=None, description="What it saves until the next, less the move and its margin."
    )
    steps: tuple[ExpertStep, ...] = Field(max_length=2, json_schema_extra=list_map("index"))


class PlanSpec(Part):
    """The decision."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.modelServiceRef) != has(self.experts)",
                "exactly one of modelServiceRef and experts is needed",
            ),
            (
                (
                    "!has(self.experts) || ((!has(self.steps) || self.steps.size() == 0)"
                    " && (!has(self.desired) || self.desired.size() == 0)"
                    " && (!has(self.routing) || self.routing.size() == 0))"
                ),
                "experts has steps of its own: steps, desired and routing are of a ModelService",
            ),
        )
    )

    solve_id: str = Field(min_length=1, max_length=64)
    digest: str = Field(
        min_length=1, max_length=128, description="Name it to approve: it covers targets and steps."
    )
    model_service_ref: ServiceRef | None = None
    cost_usd_per_hour: float | None = None
    lower_bound_usd_per_hour: float | None = None
    gap_ratio: float | None = None
    current_cost_usd_per_hour: float | None = None
    planned_requests_per_second: Amount | None = None
    made_at: Time = Field(  # without the rule the server takes a list of times, too
        json_schema_extra={"format": "date-time", **rules(("self.getFullYear() >= 1", "is no time"))}
    )
    reasons: tuple[Text, ...] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    routing: tuple[Route, ...] = Field(default=(), max_length=4096, json_schema_extra=ATOMIC)
    desired: tuple[Wanted, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("variant"))
    steps: tuple[Step, ...] = Field(default=(), max_length=MOST_STEPS, json_schema_extra=list_map("index"))
    experts: ExpertChange | None = None

    @property
    def step_count(self) -> int:
        """How many steps it has, of replicas or of experts."""
        return len(self.steps) if self.experts is None else len(self.experts.steps)

    @property
    def generation(self) -> int:
        """Of the wish that it was made for."""
        ref = self.model_service_ref if self.experts is None else self.experts.placement_ref
        return -1 if ref is None else ref.generation


class PlanStatus(Part):
    """How far it has come."""

    phase: Phase = Phase.PROPOSED
    step: int = Field(
        default=0, ge=0, description="Index of the step under way; the number of steps when done."
    )
    steps: int = Field(default=0, ge=0)
    conditions: Conditions = ()
    approved_digest: str = Field(default="", max_length=128)
    digest: str = Field(
        default="", max_length=128, description="The digest of the spec that this status speaks of."
    )
    epoch: int = Field(default=0, ge=0, description="Term of the leader that wrote last.")
    step_since: Time | None = None
    message: Text = ""
