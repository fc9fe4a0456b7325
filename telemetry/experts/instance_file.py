"""Reads problems of expert placement, schema ``moe-placement-instance/1``: a JSON file and an npz beside it.

It exists so that only this module knows the layout and its foreign units (µs, GB/s). What a file may leave out
(transitions, token sample, windows, migration costs) stays None; nothing is filled in. Fields and arrays it does not
know are passed over.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

import numpy as np

from solver.domain.errors import InputError, Place
from solver.domain.moe import (
    ExpertCosts,
    ExpertInstance,
    ExpertTopology,
    Floats,
    Migration,
    Slots,
    check_map,
)
from telemetry.experts.arrays import ArrayFile
from telemetry.experts.documents import (
    LARGEST_COUNT,
    count_of,
    entry_of,
    fail,
    json_of,
    list_of,
    quantity_of,
    read_bytes,
    shown,
    slots_of,
    source_of,
    table_of,
)
from telemetry.experts.token_sample_file import sample_of

SCHEMA = "moe-placement-instance/1"
MAP_FIELD = "physical_to_logical_map"
StoredMap = Literal["previous_p2l", "best_known_p2l"]

_LARGEST_ARRAY_BYTES = 2**32
# Names in our vocabulary, where it differs, and the file's.
_THEIR_NAMES = {
    "token_expert_s": "us_per_token_expert",
    "token_copy_bytes": "bytes_per_token_copy",
    "intra_node_bytes_per_s": "bw_intra_GBps",
    "inter_node_bytes_per_s": "bw_inter_GBps",
}
_ARRAYS = ("load", "trans", "token_sample", "load_windows")


def read_expert_instance(path: str | Path) -> ExpertInstance:
    """Read an instance.

    Migration costs are None unless expert_bytes, migration_bw_GBps and windows_until_next are all there.

    Raises
    ------
    InputError
        In one line with the file, the field, and the layer where there is one.
    """
    document, source = _document(path)
    layers, experts, gpus = (
        count_of(entry_of(document, name, source, right="a whole number"), source, name, least=1)
        for name in ("layers", "experts", "gpus")
    )
    top_k = count_of(entry_of(document, "top_k", source, right="experts per token"), source, "top_k", least=1)
    if layers * experts * 8 > _LARGEST_ARRAY_BYTES or gpus > 10**6:
        fail(source, f"{layers} layers of {experts} experts on {gpus} GPUs", right="fewer")
    arrays = _arrays(document, path, source)
    load = _numbers(arrays, "load", (layers, experts))
    if load is None:
        fail(arrays.source, "missing", field="load", right=f"an array [{layers}, {experts}]")
    try:
        return ExpertInstance(
            name=_name(document, path, source),
            load=load,
            top_k=top_k,
            transitions=_numbers(arrays, "trans", (layers - 1, experts, experts)),
            topology=_topology(document, source, gpus),
            costs=_costs(document, source),
            migration=_migration(document, source),
            token_sample=(
                sample_of(arrays.read("token_sample"), arrays.source, experts)
                if "token_sample" in arrays.names
                else None
            ),
            load_windows=_numbers(arrays, "load_windows", (None, layers, experts)),
        )
    except InputError as error:
        _with_file(error, source, arrays.source)


def read_map(path: str | Path, instance: ExpertInstance) -> Slots:
    """Read a map: a JSON object with ``physical_to_logical_map``, as every answer has it; ``-`` is standard input.

    Raises
    ------
    InputError
        With file, layer, and slot or expert: not such an object, or a map that does not fit the instance.
    """
    source = source_of(path)
    right = f"a JSON object with {MAP_FIELD}"
    document = table_of(json_of(read_bytes(path), source), source, None, right=right)
    rows = slots_of(entry_of(document, MAP_FIELD, source, right=right), source, MAP_FIELD)
    try:
        return check_map(instance, rows)
    except InputError as error:
        _with_file(error, source, source)


def read_stored_map(path: str | Path, instance: ExpertInstance, name: StoredMap) -> Slots | None:
    """Read a map that the instance's arrays hold: the one in force, or the best known; None where there is none."""
    document, source = _document(path)
    arrays = _arrays(document, path, source)
    if name not in arrays.names:
        return None
    found = arrays.read(name)
    if found.dtype.kind not in "iu":
        fail(arrays.source, "not whole numbers", field=name, right="expert ids")
    try:
        return check_map(instance, found.astype(np.int64))
    except InputError as error:
        raise InputError(error.what, where=Place(arrays.source, field=name), right=error.right) from None


def _document(path: str | Path) -> tuple[dict[Any, Any], str]:
    source = source_of(path)
    if str(path) == "-":
        fail(source, "an instance has arrays beside it", right="a file in a folder")
    document = table_of(
        json_of(read_bytes(path), source), source, None, right=f"a JSON object of format {SCHEMA}"
    )
    found = entry_of(document, "format", source, right=SCHEMA)
    if found != SCHEMA:
        fail(source, f"{shown(found)} is not a format known here", field="format", right=SCHEMA)
    return document, source


def _name(document: dict[Any, Any], path: str | Path, source: str) -> str:
    name = document.get("name", Path(path).stem)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        fail(source, f"{shown(name)} is not a name", field="name", right="text of printable characters")
    return name


def _arrays(document: dict[Any, Any], path: str | Path, source: str) -> ArrayFile:
    """Open the npz that the file names; it must lie in the file's folder or below."""
    right = "the name of an npz file in this file's folder"
    name = entry_of(document, "arrays", source, right=right)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        fail(source, f"{shown(name)} is not a file name", field="arrays", right=right)
    inner = PurePosixPath(name.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or Path(name).is_absolute():
        fail(source, f"{shown(name)} leaves the folder", field="arrays", right=right)
    there = Path(path).parent / name
    if not there.is_file():
        fail(source, f"there is no file {shown(name)}", field="arrays", right=right)
    return ArrayFile(there)


def _numbers(arrays: ArrayFile, name: str, shape: tuple[int | None, ...]) -> Floats | None:
    """Return an array of a shape (None: any size) as floats; None where it is absent."""
    if name not in arrays.names:
        return None
    found = arrays.read(name)
    at = shape.index(None) + 1 if None in shape else 0
    sound = found.ndim == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(found.shape, shape, strict=True)
    )
    if not sound:
        words = ", ".join("windows" if size is None else str(size) for size in shape)
        what = f"shape {list(found.shape)}"
        wanted = shape[at]
        if found.ndim == len(shape) and wanted is not None and found.shape[at] < wanted:
            what += f": layer {found.shape[at]} is missing"
        fail(arrays.source, what, field=name, right=f"it must be [{words}]")
    if found.dtype.kind == "b":
        fail(arrays.source, "not numbers", field=name, right="counts")
    return np.ascontiguousarray(found, dtype=np.float64)


def _per_gpu(document: dict[Any, Any], name: str, source: str, gpus: int) -> list[Any]:
    values = list_of(
        entry_of(document, name, source, right="a list, one value per GPU"),
        source,
        name,
        right="one value per GPU",
    )
    if len(values) != gpus:
        fail(source, f"{len(values)} values for {gpus} GPUs", field=name, right="give one per GPU")
    return values


def _topology(document: dict[Any, Any], source: str, gpus: int) -> ExpertTopology:
    nodes = _per_gpu(document, "gpu_node", source, gpus)
    for gpu, node in enumerate(nodes):
        if type(node) is not int or abs(node) > LARGEST_COUNT:
            fail(source, f"{shown(node)} is not a node", field=f"gpu_node[{gpu}]", right="a whole number")
    return ExpertTopology(
        gpu_node=tuple(nodes),
        slots_per_gpu=tuple(
            count_of(slots, source, f"slots_per_gpu[{gpu}]")
            for gpu, slots in enumerate(_per_gpu(document, "slots_per_gpu", source, gpus))
        ),
        gpu_speed=tuple(
            quantity_of(speed, source, f"gpu_speed[{gpu}]", right="a number above 0", above_0=True)
            for gpu, speed in enumerate(_per_gpu(document, "gpu_speed", source, gpus))
        ),
    )


def _quantity(document: dict[Any, Any], name: str, source: str, unit: str, *, above_0: bool) -> float:
    right = f"a number {'above' if above_0 else 'of at least'} 0 ({unit})"
    value = entry_of(document, name, source, right=right)
    return quantity_of(value, source, name, right=right, above_0=above_0)


def _costs(document: dict[Any, Any], source: str) -> ExpertCosts:
    return ExpertCosts(
        token_expert_s=_quantity(document, "us_per_token_expert", source, "µs", above_0=False) / 1e6,
        token_copy_bytes=_quantity(document, "bytes_per_token_copy", source, "bytes", above_0=False),
        intra_node_bytes_per_s=_quantity(document, "bw_intra_GBps", source, "GB/s", above_0=True) * 1e9,
        inter_node_bytes_per_s=_quantity(document, "bw_inter_GBps", source, "GB/s", above_0=True) * 1e9,
    )


def _migration(document: dict[Any, Any], source: str) -> Migration | None:
    found = {
        name: _quantity(document, name, source, unit, above_0=name == "migration_bw_GBps")
        for name, unit in (
            ("expert_bytes", "bytes"),
            ("migration_bw_GBps", "GB/s"),
            ("windows_until_next", "windows"),
            ("migration_margin", "of the move time"),
        )
        if document.get(name) is not None
    }
    if not {"expert_bytes", "migration_bw_GBps", "windows_until_next"} <= found.keys():
        return None
    return Migration(
        expert_bytes=found["expert_bytes"],
        bytes_per_s=found["migration_bw_GBps"] * 1e9,
        windows=found["windows_until_next"],
        margin_ratio=found.get("migration_margin", 0.0),
    )


def _with_file(error: InputError, source: str, arrays: str) -> NoReturn:
    """Raise an error of the domain again, naming the file that the field is from."""
    if isinstance(error.where, Place):
        raise error
    field = None if error.where is None else _THEIR_NAMES.get(error.where, error.where)
    where = Place(arrays if field in _ARRAYS else source, field=field)
    raise InputError(error.what, where=where, right=error.right) from None
