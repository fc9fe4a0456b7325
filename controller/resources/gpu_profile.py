"""GpuProfile: what one replica of a model on a GPU type sustains, costs and draws, and how that is known.

It exists as the one truth about the resource. It is data, cluster-wide: many ModelServices may name one profile.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from controller.resources.model_service import PrecisionName
from controller.resources.schema import ATOMIC, Amount, Conditions, Part, Positive, Text, Time, rules

MOST_ROWS = 512


class ProvenanceKind(StrEnum):
    """Whether somebody measured it."""

    MEASURED = "measured"
    MODELLED = "modelled"


class Provenance(Part):
    """Where the numbers come from."""

    kind: ProvenanceKind
    source: str = Field(default="", max_length=1024)
    date: str = Field(default="", max_length=10, pattern=r"^(\d{4}-\d{2}-\d{2})?$")


class ThroughputRow(Part):
    """At requests of this size one replica sustains ``maxRps`` with these latencies."""

    input_tokens: Annotated[int, Field(gt=0, le=10_000_000)]
    output_tokens: Annotated[int, Field(gt=0, le=10_000_000)]
    ttft_seconds: Annotated[float, Field(gt=0, le=3600)]
    tbt_seconds: Annotated[float, Field(gt=0, le=3600)]
    max_rps: Positive


class Power(Part):
    """Watts of one replica."""

    idle_watts: Amount | None = None
    prefill_watts: Amount | None = None
    decode_watts: Amount | None = None


class GpuProfileSpec(Part):
    """One replica of a model on a GPU type."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "(has(self.throughput) && self.throughput.size() > 0)"
                    " != (has(self.modelled) && self.modelled)"
                ),
                "give either rows of throughput or modelled: true",
            )
        )
    )

    model: str = Field(min_length=1, max_length=253, pattern=r"^\S+$")
    precision: PrecisionName = PrecisionName.BF16
    gpu_type: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    gpus_per_replica: Annotated[int, Field(ge=1, le=1024)] = 1
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default={}, max_length=16, description="Labels of the nodes whose GPUs are meant."
    )
    price_usd_per_hour: Amount = Field(description="US$ per hour of one replica (all its GPUs).")
    provenance: Provenance
    throughput: tuple[ThroughputRow, ...] = Field(default=(), max_length=MOST_ROWS, json_schema_extra=ATOMIC)
    modelled: bool = Field(default=False, description="Use Ballast's performance model for the GPU type.")
    power: Power | None = None


class GpuProfileStatus(Part):
    """What Ballast makes of the profile."""

    observed_generation: int = Field(default=0, ge=0)
    conditions: Conditions = ()
    message: Text = ""
    checked_at: Time | None = None
