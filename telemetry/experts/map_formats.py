"""Expert maps in the files that engines load and dump, written and read.

It exists so that a plan reaches an engine in the form which that engine reads, and only if it will accept it. Layouts:

- native: a JSON object ``{"physical_to_logical_map": [L][S]}``, MoE layers only;
- sglang (``--init-expert-location``): the same single key, but a row for every decoder layer;
- tensorrt-llm (``moe_config.load_balancer``): YAML ``num_slots``, ``initial_global_assignments`` by the layer's index
  in the model, ``layer_updates_per_iter`` 0 (static);
- vllm-ascend (``expert_map_path``, ``expert_map_record_path``): JSON by layer and device, MoE layers only;
- vllm: a JSON list ``[L][S]``. Experimental: upstream vLLM loads no map yet; this is the form of an open proposal.

Slots are ordered by GPU, GPU by rank: rank g holds the g-th of equally long parts of every row.
"""

import json
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError, Place
from solver.domain.moe import ExpertInstance, ExpertTopology, Slots, check_map
from telemetry.experts.documents import (
    LARGEST_COUNT,
    count_of,
    entry_of,
    fail,
    json_of,
    list_of,
    read_bytes,
    shown,
    slots_of,
    source_of,
    table_of,
    yaml_of,
)

MapFormat = Literal["native", "sglang", "tensorrt-llm", "vllm-ascend", "vllm"]
MAP_FORMATS: tuple[MapFormat, ...] = get_args(MapFormat)
EXPERIMENTAL: frozenset[MapFormat] = frozenset({"vllm"})
"""Formats that no released engine loads."""

_KEY = "physical_to_logical_map"
_Rows = npt.NDArray[np.int64]


def write_map(
    form: MapFormat,
    p2l: Slots,
    *,
    topology: ExpertTopology,
    experts: int,
    first_moe_layer: int = 0,
    decoder_layers: int | None = None,
) -> str:
    """Return a map [L, S] as an engine's file.

    Parameters
    ----------
    form
        The engine's format.
    p2l
        Logical expert of every slot, MoE layers only.
    topology
        GPUs in order of their expert-parallel rank.
    experts
        E, routed experts of a layer.
    first_moe_layer
        Index in the model of the first MoE layer (DeepSeek-V3: 3). For sglang and tensorrt-llm.
    decoder_layers
        All layers of the model; None: the last MoE layer is the last. For sglang, whose rows of dense layers get the
        trivial map (slot s holds expert s mod E).

    Raises
    ------
    InputError
        With the layer, and slot, expert or GPU, for what the engine would refuse or could not express: GPUs with
        different numbers of slots, ids out of range, an expert without a slot, an expert twice on a GPU that need not.
    """
    rows = np.asarray(p2l)
    if rows.ndim != 2 or not rows.size or rows.shape[1] != topology.slots:
        _refuse(form, f"shape {list(rows.shape)}", f"[layers, {topology.slots}]")
    _check_ids(form, rows, experts)
    if form != "native":
        _check_engine(form, rows, topology, experts)
    after = 0
    if form in ("sglang", "tensorrt-llm"):
        if first_moe_layer < 0:
            _refuse(form, f"the first MoE layer is {first_moe_layer}", "0 or more")
        after = 0 if decoder_layers is None else decoder_layers - first_moe_layer - rows.shape[0]
        if after < 0:
            _refuse(
                form,
                f"{rows.shape[0]} MoE layers from layer {first_moe_layer} on in a model of {decoder_layers} layers",
                "the number of all decoder layers, dense ones included",
            )
    match form:
        case "native":
            return _compact({_KEY: rows.tolist()})
        case "sglang":
            dense = (np.arange(topology.slots) % experts).tolist()
            return _compact({_KEY: [dense] * first_moe_layer + rows.tolist() + [dense] * after})
        case "tensorrt-llm":
            lines = [f"num_slots: {topology.slots}", "initial_global_assignments:"]
            lines += [
                f"  {first_moe_layer + layer}: {_compact(row)}" for layer, row in enumerate(rows.tolist())
            ]
            return "\n".join([*lines, "layer_updates_per_iter: 0", ""])
        case "vllm-ascend":
            return _compact(_by_device(rows, topology.gpus))
        case "vllm":
            return _compact(rows.tolist())


def read_engine_map(
    path: str | Path, form: MapFormat, instance: ExpertInstance, *, first_moe_layer: int = 0
) -> Slots:
    """Read a map in force from an engine's file; ``-`` is standard input.

    Rows of dense layers (sglang, tensorrt-llm) are left out: those below ``first_moe_layer`` and above the instance's
    last.

    Raises
    ------
    InputError
        With file, field and layer: not such a file, or a map that does not fit the instance.
    """
    source = source_of(path)
    if first_moe_layer < 0:
        fail(source, f"the first MoE layer is {first_moe_layer}", right="0 or more")
    raw = read_bytes(path)
    field = _KEY
    match form:
        case "native" | "sglang":
            right = f"a JSON object with {_KEY}"
            document = table_of(json_of(raw, source), source, None, right=right)
            rows = slots_of(entry_of(document, _KEY, source, right=right), source, _KEY)
            if form == "sglang":
                rows = _moe_rows(rows, source, first_moe_layer, instance.layers)
        case "tensorrt-llm":
            field = "initial_global_assignments"
            rows = _from_tensorrt(yaml_of(raw, source), source, first_moe_layer, instance.layers)
        case "vllm-ascend":
            field = "layer_list"
            rows = _from_ascend(json_of(raw, source), source, instance.topology)
        case "vllm":
            field = "the list"
            rows = slots_of(json_of(raw, source), source, field)
    try:
        return check_map(instance, rows)
    except InputError as error:
        raise InputError(error.what, where=Place(source, field=field), right=error.right) from None


def _refuse(form: MapFormat, what: str, right: str) -> NoReturn:
    raise InputError(what, where=f"map for {form}", right=right)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _check_ids(form: MapFormat, rows: npt.NDArray[Any], experts: int) -> None:
    if rows.dtype.kind not in "iu":
        _refuse(form, "not whole numbers", "expert ids")
    wrong = np.argwhere((rows < 0) | (rows >= experts))
    if wrong.size:
        layer, slot = (int(index) for index in wrong[0])
        _refuse(
            form,
            f"layer {layer}, slot {slot}: expert {int(rows[layer, slot])}",
            f"ids are 0 to {experts - 1}",
        )
    for layer, row in enumerate(rows):
        absent = np.setdiff1d(np.arange(experts), row)
        if absent.size:
            _refuse(form, f"layer {layer}: expert {int(absent[0])} has no slot", "every expert needs one")


def _check_engine(form: MapFormat, rows: npt.NDArray[Any], topology: ExpertTopology, experts: int) -> None:
    """Refuse what engines assert: equal parts on every rank, and no expert twice on one where slots allow."""
    each = topology.slots_per_gpu[0]
    for gpu, slots in enumerate(topology.slots_per_gpu):
        if slots != each:
            _refuse(
                form,
                f"GPU {gpu} has {slots} slots, GPU 0 has {each}",
                "engines need equally many on every GPU",
            )
    if each > experts and form == "vllm-ascend":
        _refuse(
            form, f"{each} slots per GPU for {experts} experts", "it cannot hold an expert twice on a GPU"
        )
    parts = np.sort(rows.reshape(rows.shape[0], topology.gpus, each), axis=2)
    twin = parts[:, :, 1:] == parts[:, :, :-1]
    unavoidable = max(0, each - experts)
    wrong = np.argwhere(twin.sum(axis=2) > unavoidable)
    if wrong.size:
        layer, gpu = (int(index) for index in wrong[0])
        expert = int(parts[layer, gpu, 1:][twin[layer, gpu]][0])
        _refuse(form, f"layer {layer}: GPU {gpu} holds expert {expert} twice", "once per GPU")


def _by_device(rows: npt.NDArray[Any], gpus: int) -> dict[str, Any]:
    return {
        "moe_layer_count": len(rows),
        "layer_list": [
            {
                "layer_id": layer,
                "device_count": gpus,
                "device_list": [
                    {"device_id": gpu, "device_expert": part}
                    for gpu, part in enumerate(row.reshape(gpus, -1).tolist())
                ],
            }
            for layer, row in enumerate(rows)
        ],
    }


def _moe_rows(rows: _Rows, source: str, first: int, layers: int) -> _Rows:
    if len(rows) < first + layers:
        fail(
            source,
            f"{len(rows)} layers: layer {len(rows)} is missing",
            field=_KEY,
            right=f"{layers} MoE layers from layer {first} on",
        )
    return rows[first : first + layers]


def _from_tensorrt(document: Any, source: str, first: int, layers: int) -> _Rows:
    right = "a YAML file with num_slots and initial_global_assignments"
    table = table_of(document, source, None, right=right)
    field = "initial_global_assignments"
    slots = count_of(entry_of(table, "num_slots", source, right=right), source, "num_slots", least=1)
    assigned = table_of(entry_of(table, field, source, right=right), source, field, right=right)
    rows: list[Any] = []
    for layer in range(first, first + layers):
        if layer not in assigned:
            fail(source, "missing", field=f"{field}[{layer}]", right="one list of experts per MoE layer")
        row = list_of(assigned[layer], source, f"{field}[{layer}]", right="one expert per slot")
        if len(row) != slots:
            fail(source, f"{len(row)} slots", field=f"{field}[{layer}]", right=f"num_slots says {slots}")
        rows.append(row)
    return slots_of(rows, source, field)


def _from_ascend(document: Any, source: str, topology: ExpertTopology) -> _Rows:
    right = "a JSON object with moe_layer_count and layer_list"
    table = table_of(document, source, None, right=right)
    listed = list_of(entry_of(table, "layer_list", source, right=right), source, "layer_list", right=right)
    said = count_of(
        entry_of(table, "moe_layer_count", source, right=right), source, "moe_layer_count", least=1
    )
    if said != len(listed):
        fail(source, f"{said}, layer_list has {len(listed)}", field="moe_layer_count", right="as many")
    rows: list[list[Any]] = []
    for layer, value in enumerate(listed):
        path = f"layer_list[{layer}]"
        entry = table_of(value, source, path, right=right)
        _same(entry.get("layer_id", layer), layer, source, f"{path}.layer_id")
        devices = list_of(
            entry_of(entry, "device_list", source, f"{path}.", right="a list of devices"),
            source,
            f"{path}.device_list",
            right="a list of devices",
        )
        _same(entry.get("device_count", len(devices)), len(devices), source, f"{path}.device_count")
        _same(len(devices), topology.gpus, source, f"{path}.device_list")
        rows.append([])
        for gpu, part in enumerate(devices):
            where = f"{path}.device_list[{gpu}]"
            device = table_of(part, source, where, right="an object with device_expert")
            _same(device.get("device_id", gpu), gpu, source, f"{where}.device_id")
            held = list_of(
                entry_of(device, "device_expert", source, f"{where}.", right="a list of experts"),
                source,
                f"{where}.device_expert",
                right="a list of experts",
            )
            if len(held) != topology.slots_per_gpu[gpu]:
                fail(
                    source,
                    f"layer {layer}: {len(held)} experts",
                    field=f"{where}.device_expert",
                    right=f"GPU {gpu} has {topology.slots_per_gpu[gpu]} slots",
                )
            rows[-1].extend(held)
    return slots_of(rows, source, "layer_list")


def _same(found: Any, right: int, source: str, field: str) -> None:
    """Refuse a number other than the one that the file's own order gives: engines read by order."""
    if type(found) is not int or found != right:
        text = shown(found) if type(found) is not int or abs(found) > LARGEST_COUNT else str(found)
        fail(source, text, field=field, right=f"{right} here")
