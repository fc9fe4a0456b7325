"""SGLang's expert distribution dumps: ``expert_distribution_recorder_*.pt``, or the same as JSON.

It exists so that only this module knows the recorder's layout (``sglang/srt/eplb/expert_distribution.py``):

- modes stat and stat_approx: ``{rank, logical_count: [steps, L, E] or [L, E], average_utilization_rate_over_window}``,
  summed over all ranks by the engine;
- modes per_pass and per_token, one file per rank: ``{records: [{forward_pass_id, rank, global_physical_count: [L, S],
  (per_token:) topk_ids_of_layer: [L, tokens, columns]}], last_physical_to_logical_map: [L, S]}``. Ids are physical;
  unused columns (SGLang keeps eight), padded tokens and dense layers hold -1.

L counts every decoder layer; dense ones in front are rows of zeros.
"""

from pathlib import Path
from typing import Any

import numpy as np

from solver.domain.moe import Floats
from telemetry.experts.arrays import Numbers
from telemetry.experts.documents import (
    count_of,
    entry_of,
    fail,
    json_of,
    list_of,
    read_bytes,
    source_of,
    table_of,
)
from telemetry.experts.recording import (
    ExpertRecording,
    Sample,
    counts_by_expert,
    loads_of_sample,
    transitions_of,
)
from telemetry.experts.torch_archive import read_torch

_RIGHT = "a dump of SGLang's expert distribution recorder"


def read_sglang_recording(
    *paths: str | Path, experts: int | None = None, first_layer: int | None = None
) -> ExpertRecording:
    """Read one dump, or the dumps of all ranks of one recording in mode per_pass or per_token.

    Parameters
    ----------
    paths
        ``.pt``, else JSON. Ranks are added up: give all of them where ranks see different tokens (attention data
        parallelism), one where all ranks see the same.
    experts
        E; needed for per_pass and per_token only where the map does not show the last expert. None: as the file says.
    first_layer
        The first MoE layer; None: the first row with counts.

    Raises
    ------
    InputError
        With file, field and layer, for everything that is no sound dump, and for layers without counts between
        layers that have some.
    """
    if not paths:
        raise ValueError("name at least one dump")
    documents = [(source_of(path), _document(path)) for path in paths]
    source = ", ".join(name for name, _ in documents)
    if all("logical_count" in document for _, document in documents):
        if len(documents) > 1:
            fail(source, "several dumps of counts", right="one: the engine has summed over its ranks")
        counts = _counts(documents[0][1]["logical_count"], source, "logical_count", (2, 3))
        steps = counts if counts.ndim == 3 else counts[None]
        first = _first_layer(steps.sum(axis=0), source, "logical_count", first_layer)
        return ExpertRecording(
            source=source,
            load=steps[:, first:].sum(axis=0),
            windows=np.ascontiguousarray(steps[:, first:]) if counts.ndim == 3 else None,
            first_layer=first,
            decoder_layers=int(steps.shape[1]),
        )
    return _details(documents, source, experts, first_layer)


def _document(path: str | Path) -> dict[Any, Any]:
    source = source_of(path)
    value = read_torch(path) if Path(path).suffix in (".pt", ".pth") else json_of(read_bytes(path), source)
    document = table_of(value, source, None, right=_RIGHT)
    if "logical_count" not in document and "records" not in document:
        fail(source, "neither logical_count nor records is there", right=_RIGHT)
    return document


def _numbers(value: Any, source: str, field: str) -> Numbers:
    if not isinstance(value, np.ndarray):
        list_of(value, source, field, right="a list of lists of numbers, or a tensor")
        try:
            value = np.array(value)
        except (ValueError, OverflowError, RecursionError):
            fail(source, "rows of different length", field=field, right="a full table of numbers")
    if value.dtype.kind not in "iuf":
        fail(source, "not all values are numbers", field=field, right="a full table of numbers")
    numbers: Numbers = value
    return numbers


def _counts(value: Any, source: str, field: str, dimensions: tuple[int, ...]) -> Floats:
    """Return finite counts of at least 0; the layer is the last dimension but one."""
    found = _numbers(value, source, field)
    if found.ndim not in dimensions or not found.size:
        fail(
            source, f"shape {list(found.shape)}", field=field, right="[layers, experts], at least one of each"
        )
    counts = found.astype(np.float64)
    wrong = ~(np.isfinite(counts) & (counts >= 0))
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        fail(
            source,
            f"layer {place[-2]}, expert {place[-1]}: {counts[place]:g}",
            field=field,
            right="counts must be finite and not negative",
        )
    return counts


def _first_layer(load: Floats, source: str, field: str, first_layer: int | None) -> int:
    """Return how many dense layers come before the MoE layers."""
    if first_layer is not None:
        if not 0 <= first_layer < load.shape[0]:
            fail(
                source,
                f"{load.shape[0]} layers, the first MoE layer is {first_layer}",
                field=field,
                right="less",
            )
        if load[:first_layer].any():
            layer = int(np.flatnonzero(load.any(axis=1))[0])
            fail(source, f"layer {layer} has counts", field=field, right=f"dense below layer {first_layer}")
        return first_layer
    busy = np.flatnonzero(load.any(axis=1))
    if not busy.size:
        fail(source, "nothing was recorded: all counts are 0", field=field, right="record under traffic")
    first = int(busy[0])
    idle = np.flatnonzero(~load[first:].any(axis=1))
    if idle.size:
        fail(
            source,
            f"layer {first + int(idle[0])} has no counts, layer {first} has",
            field=field,
            right="MoE layers in one row, or name the first MoE layer",
        )
    return first


def _details(
    documents: list[tuple[str, dict[Any, Any]]], source: str, experts: int | None, first_layer: int | None
) -> ExpertRecording:
    in_force = _map_in_force(documents, experts)
    experts = int(in_force.max()) + 1 if experts is None else experts
    passes: dict[int, Floats] = {}
    tokens: list[Sample] = []
    without_tokens = False
    for name, document in documents:
        records = list_of(entry_of(document, "records", name, right=_RIGHT), name, "records", right=_RIGHT)
        for index, value in enumerate(records):
            path = f"records[{index}]."
            record = table_of(value, name, path[:-1], right=_RIGHT)
            step = count_of(record.get("forward_pass_id", index), name, f"{path}forward_pass_id")
            if record.get("topk_ids_of_layer") is not None:
                ids = _logical_tokens(record["topk_ids_of_layer"], name, f"{path}topk_ids_of_layer", in_force)
                tokens.append(ids)
                load = _loads(ids, experts)
            else:
                without_tokens = True
                field = f"{path}global_physical_count"
                right = "counts, or topk_ids_of_layer"
                counts = entry_of(record, "global_physical_count", name, path, right=right)
                physical = _counts(counts, name, field, (2,))
                if physical.shape != in_force.shape:
                    fail(name, f"shape {list(physical.shape)}", field=field, right=f"{list(in_force.shape)}")
                load = counts_by_expert(physical, in_force, experts)
            passes[step] = passes[step] + load if step in passes else load
    if not passes:
        fail(source, "nothing was recorded", field="records", right="record under traffic")
    windows = np.stack([passes[step] for step in sorted(passes)])
    first = _first_layer(windows.sum(axis=0), source, "records", first_layer)
    sample = None if without_tokens or not tokens else _joined(tokens, first, source)
    return ExpertRecording(
        source=source,
        load=windows[:, first:].sum(axis=0),
        windows=np.ascontiguousarray(windows[:, first:]),
        transitions=None if sample is None else transitions_of(sample, experts),
        token_sample=sample,
        top_k=None if sample is None else int(sample.shape[2]),
        first_layer=first,
        decoder_layers=int(windows.shape[1]),
        physical_to_logical=np.ascontiguousarray(in_force[first:], dtype=np.int32),
    )


def _map_in_force(documents: list[tuple[str, dict[Any, Any]]], experts: int | None) -> Numbers:
    """Return the map of every layer that all files agree on."""
    field = "last_physical_to_logical_map"
    maps: list[Numbers] = []
    for name, document in documents:
        found = _numbers(entry_of(document, field, name, right=_RIGHT), name, field)
        if found.ndim != 2 or not found.size or found.dtype.kind == "f":
            fail(name, f"shape {list(found.shape)}", field=field, right="[layers, slots] of expert ids")
        highest = found.shape[1] - 1 if experts is None else experts - 1
        wrong = np.argwhere((found < 0) | (found > highest))
        if wrong.size:
            layer, slot = (int(index) for index in wrong[0])
            what = f"layer {layer}, slot {slot}: expert {int(found[layer, slot])}"
            fail(name, what, field=field, right=f"ids are 0 to {highest}")
        if maps and not np.array_equal(found, maps[0]):
            fail(name, "differs between the files", field=field, right="files of one recording")
        maps.append(found)
    return maps[0]


def _logical_tokens(value: Any, source: str, field: str, in_force: Numbers) -> Sample:
    """Return logical ids [tokens, all layers, columns] of physical ids [all layers, tokens, columns]; -1 stays."""
    found = _numbers(value, source, field)
    layers, slots = in_force.shape
    if found.ndim != 3 or found.shape[0] != layers or found.dtype.kind == "f":
        fail(source, f"shape {list(found.shape)}", field=field, right=f"[{layers} layers, tokens, experts]")
    wrong = (found < -1) | (found >= slots)
    if wrong.any():
        layer, token, column = (int(index) for index in np.argwhere(wrong)[0])
        fail(
            source,
            f"layer {layer}, token {token}: slot {int(found[layer, token, column])}",
            field=field,
            right=f"slots are 0 to {slots - 1}, or -1 for none",
        )
    rows = np.arange(layers)[:, None, None]
    ids = np.where(found >= 0, in_force[rows, np.maximum(found, 0)], -1)
    return np.ascontiguousarray(ids.transpose(1, 0, 2), dtype=np.int32)


def _loads(sample: Sample, experts: int) -> Floats:
    """Count tokens by expert, leaving -1 out."""
    return np.ascontiguousarray(loads_of_sample(sample + 1, experts + 1)[:, 1:])


def _joined(tokens: list[Sample], first: int, source: str) -> Sample:
    """Return the tokens of all passes at the MoE layers, without padding: tokens and columns used nowhere."""
    field = "topk_ids_of_layer"
    columns = max(some.shape[2] for some in tokens)
    if any(some.shape[2] != columns for some in tokens):
        fail(
            source, "records keep different numbers of experts per token", field=field, right="one recording"
        )
    sample = np.concatenate(tokens)[:, first:]
    used = sample >= 0
    sample = sample[used.any(axis=(1, 2))][:, :, used.any(axis=(0, 1))]
    holes = np.argwhere(sample < 0)
    if holes.size:
        token, layer = int(holes[0][0]), first + int(holes[0][1])
        fail(
            source,
            f"layer {layer}, token {token}: fewer experts than other tokens have",
            field=field,
            right="every routed token has equally many in every MoE layer",
        )
    return np.ascontiguousarray(sample)
