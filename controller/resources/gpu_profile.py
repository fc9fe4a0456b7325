"""GpuProfile: what one replica of a model on a GPU type sustains, costs and draws, and how that is known.

It exists as the one truth about the resource. It is data, cluster-wide: many ModelServices may name one profile.
"""

import json
from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from controller.resources.model_service import PrecisionName
from controller.resources.schema import (
    ATOMIC,
    Conditions,
    Latency,
    ModelName,
    Money,
    Part,
    Text,
    Time,
    Tokens,
    Watts,
    rules,
    spelled,
)
from solver.domain.fleet import Role

MOST_ROWS = 512
_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_PREFIX = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABEL_KEY = rf"^({_PREFIX}(\.{_PREFIX})*/)?{_WORD}$"
LabelValue = Annotated[
    str,
    spelled(
        f"^({_WORD})?$",
        "is no value of a label: letters and digits, with -, _ and . between them",
        max_length=63,
    ),
]


class ProvenanceKind(StrEnum):
    """Whether somebody measured it."""

    MEASURED = "measured"
    MODELLED = "modelled"


class Provenance(Part):
    """Where the numbers come from."""

    kind: ProvenanceKind
    source: str = Field(default="", max_length=1024, description="Report, file or commit, for people.")
    date: str = Field(default="", max_length=10, json_schema_extra={"format": "date"})


class ThroughputRow(Part):
    """At requests of this size one replica sustains ``maxRps`` with these latencies.

    A row of role prefill speaks of prompts alone: its output tokens and seconds between tokens do not count. One of
    role decode speaks of what follows a prompt that others have read: its seconds to the first token do not count.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.role == 'decode' || has(self.ttftSeconds)",
                "ttftSeconds is needed, but for rows of role decode",
            ),
            (
                "self.role == 'prefill' || has(self.tbtSeconds)",
                "tbtSeconds is needed, but for rows of role prefill",
            ),
        )
    )

    role: Role = Field(
        default=Role.BOTH,
        description="What was measured: whole requests, only prompts (prefill), or only what follows (decode).",
    )
    input_tokens: Tokens
    output_tokens: Tokens
    ttft_seconds: Latency | None = Field(default=None, description="Seconds to the first token at maxRps.")
    tbt_seconds: Latency | None = Field(default=None, description="Seconds between tokens at maxRps.")
    max_rps: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="Requests (or prompts, or decodes) per second of one replica, all its GPUs together.",
        json_schema_extra=rules(("self >= 0.000001", "is less than 0.000001 requests per second")),
    )


class Power(Part):
    """Watts of one replica."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.idleWatts) || !has(self.prefillWatts) || self.idleWatts <= self.prefillWatts",
                "idleWatts is larger than prefillWatts",
            ),
            (
                "!has(self.idleWatts) || !has(self.decodeWatts) || self.idleWatts <= self.decodeWatts",
                "idleWatts is larger than decodeWatts",
            ),
        )
    )

    idle_watts: Watts | None = None
    prefill_watts: Watts | None = None
    decode_watts: Watts | None = None


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

    model: ModelName = Field(description="The model, as ModelServices name it.")
    precision: PrecisionName = PrecisionName.BF16
    gpu_type: str = spelled(
        f"^{_WORD}$",
        "is no GPU type: letters and digits, with -, _ and . between them, as in the label of the nodes",
        min_length=1,
        max_length=63,
        description="A GPU of the catalogue, or the product label of its nodes.",
    )
    gpus_per_replica: Annotated[int, Field(ge=1, le=1024)] = 1
    node_selector: dict[str, LabelValue] = Field(
        default={},
        max_length=16,
        description="Labels of the nodes whose GPUs are meant.",
        json_schema_extra=rules(
            (
                f"self.all(key, key.size() <= 317 && key.matches({json.dumps(LABEL_KEY)}))",
                "a key is no name of a label, such as nvidia.com/gpu.product",
            )
        ),
    )
    price_usd_per_hour: Money = Field(description="US$ per hour of one replica (all its GPUs).")
    provenance: Provenance
    throughput: tuple[ThroughputRow, ...] = Field(default=(), max_length=MOST_ROWS, json_schema_extra=ATOMIC)
    modelled: bool = Field(default=False, description="Use Ballast's performance model for the GPU type.")
    kv_link_gbytes_per_second: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="GB/s of KV cache that one replica sends (role prefill) or takes (role decode), all its GPUs"
        " together; no limit if left out.",
        json_schema_extra=rules(("self >= 0.001", "is less than 0.001 GB/s")),
    )
    power: Power | None = None


class GpuProfileStatus(Part):
    """What Ballast makes of the profile."""

    observed_generation: int = Field(default=0, ge=0)
    conditions: Conditions = ()
    message: Text = ""
    checked_at: Time | None = None
