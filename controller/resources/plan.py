"""Plan: what Ballast proposes or does for one ModelService, step by step; the only thing actuation reads.

It exists as the one truth about the resource. Only Ballast writes it; people approve it by an annotation that names
its digest.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from controller.resources.schema import (
    ATOMIC,
    Amount,
    Conditions,
    Label,
    ObjectName,
    Part,
    Replicas,
    TargetRef,
    Text,
    Time,
    list_map,
)

MOST_STEPS = 512


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
    from_replicas: Replicas
    to_replicas: Replicas
    action: Action


class Route(Part):
    """Share of the requests of one size that a variant serves."""

    input_tokens: Amount
    output_tokens: Amount
    variant: Label
    share: Annotated[float, Field(ge=0, le=1.000001)]
    requests_per_second: Amount | None = Field(default=None, description="Of this size, to this variant.")


class Wanted(Part):
    """Replicas of a variant when the plan is done."""

    variant: Label
    target_ref: TargetRef
    replicas: Replicas


class PlanSpec(Part):
    """The decision."""

    solve_id: str = Field(min_length=1, max_length=64)
    digest: str = Field(
        min_length=1, max_length=128, description="Name it to approve: it covers targets and steps."
    )
    model_service_ref: ServiceRef
    cost_usd_per_hour: float | None = None
    lower_bound_usd_per_hour: float | None = None
    gap_ratio: float | None = None
    current_cost_usd_per_hour: float | None = None
    planned_requests_per_second: Amount | None = None
    made_at: Time
    reasons: tuple[Text, ...] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    routing: tuple[Route, ...] = Field(default=(), max_length=4096, json_schema_extra=ATOMIC)
    desired: tuple[Wanted, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("variant"))
    steps: tuple[Step, ...] = Field(default=(), max_length=MOST_STEPS, json_schema_extra=list_map("index"))


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
