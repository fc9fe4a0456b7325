"""The ConfigMap that carries a map: what stands in it, whose it is, and what it held before.

It exists so that an engine finds its file, and Ballast its own map again after a restart, in one object that is ours or
is not touched. It decides nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controller.operator.api import EXPERT_PLACEMENTS, Object
from controller.operator.world import Key
from controller.resources.expert_placement import ExpertEngine, ExpertPlacementSpec
from controller.resources.plan import MOST_FILE_BYTES
from solver.domain.errors import InputError
from solver.domain.moe import ExpertTopology, Slots
from telemetry.experts.documents import json_of, slots_of
from telemetry.experts.map_formats import MapFormat, write_map

MOST_BYTES = MOST_FILE_BYTES
"""Of all files together."""
MADE_AT = "ballast.dev/made-at"
OWN_KEY = "map.json"
"""The map in our own form."""
FILES: Mapping[ExpertEngine, tuple[MapFormat, str]] = {
    ExpertEngine.SGLANG: ("sglang", "sglang.json"),
    ExpertEngine.TENSORRT_LLM: ("tensorrt-llm", "trtllm.yaml"),
    ExpertEngine.VLLM: ("vllm", "vllm.json"),
    ExpertEngine.VLLM_ASCEND: ("vllm-ascend", "ascend.json"),
}
_SUFFIX = "-experts"


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """The ConfigMap as it was found."""

    version: str = ""
    """Its resource version; empty: there is none."""
    ours: bool = True
    made_at: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    p2l: Slots | None = None
    """The map in it, if it fits the spec as it is now."""

    @property
    def digest(self) -> str:
        """Change with the map."""
        return digest_of(self.data)


def name_of(key: Key) -> str:
    """Return the ConfigMap's name."""
    return key[1][: 253 - len(_SUFFIX)].rstrip("-.") + _SUFFIX


def digest_of(data: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits of what a ConfigMap holds; empty for nothing."""
    if not data:
        return ""
    text = "\n".join(f"{name}\n{data[name]}" for name in sorted(data))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def found(body: Object | None, uid: str, spec: ExpertPlacementSpec | None = None) -> Written:
    """Read the ConfigMap that has our name; the map in it only for a spec that it may fit."""
    if body is None:
        return Written()
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or []
    ours = any(owner.get("uid") == uid and owner.get("controller") for owner in owners)
    data = dict(body.get("data") or {}) if ours else {}
    return Written(
        version=str(metadata["resourceVersion"]),
        ours=ours,
        made_at=str((metadata.get("annotations") or {}).get(MADE_AT) or ""),
        data=data,
        p2l=None if spec is None else _map_in(data.get(OWN_KEY), spec),
    )


def _map_in(text: str | None, spec: ExpertPlacementSpec) -> Slots | None:
    """Return the map that serves now; None for one of another shape, or that somebody has broken."""
    if text is None:
        return None
    model = spec.model_ref
    try:
        document = json_of(text.encode(), OWN_KEY)
        rows = slots_of(document["physical_to_logical_map"], OWN_KEY, "physical_to_logical_map")
    except (InputError, LookupError, TypeError):
        return None
    wanted = (model.moe_layers, model.experts + spec.redundant_experts)
    if rows.shape != wanted or rows.min() < 0 or rows.max() >= model.experts:
        return None
    if any(np.unique(row).size < model.experts for row in rows):
        return None
    return np.ascontiguousarray(rows, dtype=np.int32)


def data_of(spec: ExpertPlacementSpec, topology: ExpertTopology, p2l: Slots) -> dict[str, str]:
    """Return what is to stand in the ConfigMap.

    Raises
    ------
    InputError
        If the engine would refuse the map, or it is too large for a ConfigMap.
    """
    model = spec.model_ref
    form, file = FILES[spec.engine]
    shape: dict[str, Any] = {"topology": topology, "experts": model.experts}
    data = {
        file: write_map(
            form,
            p2l,
            first_moe_layer=model.first_moe_layer,
            decoder_layers=model.decoder_layers,
            **shape,
        ),
        OWN_KEY: write_map("native", p2l, **shape),
    }
    size = sum(len(name) + len(text.encode()) for name, text in data.items())
    if size > MOST_BYTES:
        raise InputError(
            f"the map takes {size} bytes, a ConfigMap holds {MOST_BYTES}",
            where="apply",
            right="use apply: none, and ballast plan experts for the map",
        )
    return data


def body_of(key: Key, uid: str, data: Mapping[str, str], *, made_at: str, version: str) -> Object:
    """Return the ConfigMap to apply."""
    return {
        "metadata": {
            "name": name_of(key),
            "namespace": key[0],
            "resourceVersion": version,
            "labels": {
                "app.kubernetes.io/managed-by": "ballast",
                "app.kubernetes.io/component": "expert-map",
            },
            "annotations": {MADE_AT: made_at},
            "ownerReferences": [
                {
                    "apiVersion": EXPERT_PLACEMENTS.api_version,
                    "kind": EXPERT_PLACEMENTS.kind,
                    "name": key[1],
                    "uid": uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "data": dict(data),
    }


def outputs_of(key: Key, spec: ExpertPlacementSpec, data: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the outputs of a status."""
    form, file = FILES[spec.engine]
    if file not in data:
        return []
    return [
        {
            "format": form,
            "configMapRef": {"name": name_of(key), "key": file},
            "sha256": hashlib.sha256(data[file].encode()).hexdigest(),
        }
    ]
