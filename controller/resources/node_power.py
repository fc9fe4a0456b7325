"""NodePower: what the GPUs of one node are told, and what the node's agent made of it.

It exists as the one truth about the resource; its name is the node's. The controller writes spec, the agent of that
node writes status, nobody else either (the chart's admission policy). `controller.agent.node_power` reads and writes
the same fields without this model, so that an agent stays small; a test compares.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from controller.resources.power_domain import Megahertz
from controller.resources.schema import ATOMIC, ObjectName, Part, list_map

MOST_GPUS = 128
"""GPUs of a node, and instances of MIG."""
Uuid = Annotated[str, Field(min_length=1, max_length=96)]
LimitWatts = Annotated[float, Field(ge=1, le=1e5)]
Generation = Annotated[int, Field(ge=1, le=2**53)]


class OrderMode(StrEnum):
    """Whether orders are carried out or only shown."""

    RECOMMEND = "Recommend"
    AUTO = "Auto"


class GpuOrder(Part):
    """What one GPU may do."""

    uuid: Uuid
    lock_min_mhz: Megahertz | None = Field(default=None, alias="lockMinMHz")
    lock_max_mhz: Megahertz | None = Field(default=None, alias="lockMaxMHz")
    limit_watts: LimitWatts | None = None


class SafeCap(Part):
    """Of each GPU: if all nodes of the domain stand at theirs, it cannot exceed its budget."""

    lock_max_mhz: Megahertz | None = Field(default=None, alias="lockMaxMHz")
    limit_watts: LimitWatts | None = None


class LeaseRef(Part):
    """A Lease whose renewals renew a node's."""

    namespace: ObjectName
    name: ObjectName


class NodePowerSpec(Part):
    """Orders of the controller."""

    generation: Generation = Field(description="Grows with every change; agents refuse older ones.")
    renew_sequence: Annotated[int, Field(ge=0, le=2**53)] = Field(
        default=0, description="Grows with every renewal of the lease."
    )
    lease_duration_seconds: Annotated[float, Field(ge=1, le=3600)] = 15.0
    lease: LeaseRef | None = Field(default=None, description="Of the domain; its renewals count, too.")
    mode: OrderMode = OrderMode.RECOMMEND
    oversubscribed: bool = Field(
        default=True, description="Whether the domain could exceed its budget with all GPUs uncapped."
    )
    release: bool = Field(default=False, description="Back to what was found before the first write.")
    floor_mhz: Megahertz | None = Field(
        default=None, alias="floorMHz", description="Orders below are taken for errors."
    )
    budget_watts: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        default=None, description="Of the node's GPUs together; above it the agent acts by itself."
    )
    gpus: tuple[GpuOrder, ...] = Field(default=(), max_length=MOST_GPUS, json_schema_extra=list_map("uuid"))
    safe: SafeCap | None = None


class WantedCap(Part):
    """What a GPU is on its way to."""

    lock_min_mhz: int | None = Field(default=None, alias="lockMinMHz")
    lock_max_mhz: int | None = Field(default=None, alias="lockMaxMHz")
    limit_watts: float | None = None


class Constraints(Part):
    """What a GPU can be set to."""

    min_watts: float | None = None
    max_watts: float | None = None
    default_watts: float | None = None
    min_mhz: int | None = Field(default=None, alias="minMHz")
    max_mhz: int | None = Field(default=None, alias="maxMHz")


class GpuStatus(Part):
    """What an agent found and did; what it could not read is left out, never zero."""

    uuid: Uuid
    original_limit_watts: float | None = None
    original_clocks: str | None = Field(default=None, max_length=64)
    constraints: Constraints | None = None
    wanted: WantedCap | None = None
    applied_mhz: int | None = Field(default=None, alias="appliedMHz", description="As read back.")
    clock_confirmed: bool | None = None
    applied_watts: float | None = None
    foreign_watts: float | None = Field(default=None, description="A lower limit of somebody else's.")
    enforced_watts: float | None = None
    power_watts: float | None = None
    energy_j: float | None = Field(default=None, alias="energyJ")
    reasons: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        default=(), max_length=32, json_schema_extra=ATOMIC, description="Why its clock is not higher."
    )
    mig: bool | None = None
    error: str | None = Field(default=None, max_length=256)


class AgentCondition(Part):
    """One condition; agents keep no times."""

    type: str = Field(min_length=1, max_length=64)
    status: str = Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})
    reason: str = Field(default="", max_length=128)


class NodePowerStatus(Part):
    """What the agent of the node says."""

    observed_generation: int | None = None
    acknowledged_generation: int | None = Field(
        default=None, description="Of the last orders that were carried out and read back."
    )
    lease_state: str | None = Field(default=None, max_length=32, description="Valid, Expired or Never.")
    writes: bool | None = Field(default=None, description="Whether orders are carried out.")
    refused: str | None = Field(
        default=None, max_length=1024, description="Why the last orders are not followed."
    )
    reflex: str | None = Field(
        default=None, max_length=64, description="Why the node is at its safe caps of its own accord."
    )
    gpus: tuple[GpuStatus, ...] = Field(default=(), max_length=MOST_GPUS, json_schema_extra=list_map("uuid"))
    conditions: tuple[AgentCondition, ...] = Field(
        default=(), max_length=32, json_schema_extra=list_map("type")
    )
