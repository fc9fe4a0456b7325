"""TensorRT-LLM's expert statistics: a folder of ``meta_info.json`` and ``rank<r>.safetensors``.

It exists so that only this module knows what EXPERT_STATISTIC_PATH holds (read by TensorRT-LLM's
``examples/wide_ep/ep_load_balancer/utils.py``): counts ``<iteration>_<layer>`` of [E] per rank, layers counted as in
the model. Some builds add the routed tokens ``[tokens, k]`` under the same keys, as ``rank<r>_raw.safetensors`` or
``token_selected_experts_rank<r>.safetensors``: then transitions are known.

Recorded while a load balancer is in force, all ids are slots, and ``num_experts`` is the number of slots: the map is
needed then.
"""

import re
from pathlib import Path

import numpy as np

from solver.domain.moe import Floats, Slots
from telemetry.experts.arrays import Numbers
from telemetry.experts.documents import count_of, entry_of, fail, json_of, read_bytes, table_of
from telemetry.experts.recording import (
    ExpertRecording,
    Sample,
    counts_by_expert,
    loads_of_sample,
    transitions_of,
)
from telemetry.experts.safetensors_file import read_safetensors
from telemetry.experts.token_sample_file import sample_of

_RIGHT = "a folder that TensorRT-LLM wrote under EXPERT_STATISTIC_PATH"
_COUNTS = re.compile(r"rank(\d{1,6})\.safetensors")
_TOKENS = re.compile(r"rank(\d{1,6})_raw\.safetensors|token_selected_experts_rank(\d{1,6})\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,6})")


def read_tensorrt_recording(
    folder: str | Path, *, experts: int | None = None, in_force: Slots | None = None
) -> ExpertRecording:
    """Read the statistics of all ranks and add them up; windows are iterations.

    Parameters
    ----------
    folder
        What EXPERT_STATISTIC_PATH named.
    experts
        E; None: as many as the map holds, without a map as the file says.
    in_force
        The map [L, S] of the load balancer that was in force while recording; None where there was none.

    Raises
    ------
    InputError
        With file and tensor: missing or damaged files, an iteration without a layer that others have, layers that do
        not follow each other, tokens that do not add up to the counts, a number of experts or slots that is not
        the file's.
    """
    root = Path(folder)
    source = str(root)
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError as error:
        fail(source, f"cannot be read: {error.strerror}", right=_RIGHT)
    meta_source = str(root / "meta_info.json")
    meta = table_of(
        json_of(read_bytes(root / "meta_info.json"), meta_source), meta_source, None, right=_RIGHT
    )
    recorded = count_of(
        entry_of(meta, "num_experts", meta_source, right=_RIGHT), meta_source, "num_experts", least=1
    )
    top_k = count_of(
        entry_of(meta, "num_experts_per_token", meta_source, right=_RIGHT),
        meta_source,
        "num_experts_per_token",
        least=1,
    )
    counts: dict[tuple[int, int], Floats] = {}
    for name in names:
        if not _COUNTS.fullmatch(name):
            continue
        for place, array in _by_place(root / name).items():
            load = _load(array, str(root / name), place, recorded)
            counts[place] = counts[place] + load if place in counts else load
    if not counts:
        fail(source, "no counts in rank*.safetensors", right=_RIGHT)
    iterations = sorted({iteration for iteration, _ in counts})
    layers = sorted({layer for _, layer in counts})
    if layers[-1] - layers[0] + 1 != len(layers):
        gap = next(layer for layer in range(layers[0], layers[-1]) if layer not in layers)
        fail(source, f"layer {gap} is missing", right="MoE layers in one row")
    for iteration in iterations:
        for layer in layers:
            if (iteration, layer) not in counts:
                fail(source, f"iteration {iteration}: layer {layer} is missing", right=_RIGHT)
    windows = np.array([[counts[iteration, layer] for layer in layers] for iteration in iterations])
    load = windows.sum(axis=0)
    sample = _tokens(root, names, layers, recorded, top_k)
    if sample is not None and not np.array_equal(loads_of_sample(sample, recorded), load):
        layer = layers[int(np.argwhere(loads_of_sample(sample, recorded) != load)[0][0])]
        fail(source, f"layer {layer}: the tokens do not add up to the counts", right="files of one recording")
    right = "the map [layers, slots] that was in force"
    if in_force is None:
        if experts not in (None, recorded):
            what = f"{recorded} slots were recorded, the model has {experts} experts"
            fail(meta_source, what, field="num_experts", right=right)
        experts = recorded
    else:
        if in_force.shape != (len(layers), recorded):
            what = f"{len(layers)} layers of {recorded}, the map has {list(in_force.shape)}"
            fail(meta_source, what, field="num_experts", right=right)
        experts = int(in_force.max()) + 1 if experts is None else experts
        if not 0 <= int(in_force.min()) <= int(in_force.max()) < experts:
            fail(
                meta_source,
                f"the map holds expert {int(in_force.max())}",
                right=f"ids are 0 to {experts - 1}",
            )
        windows = counts_by_expert(windows, in_force, experts)
        load = windows.sum(axis=0)
        if sample is not None:
            sample = in_force[np.arange(len(layers))[None, :, None], sample]
    return ExpertRecording(
        source=source,
        load=load,
        windows=windows,
        transitions=None if sample is None else transitions_of(sample, experts),
        token_sample=sample,
        top_k=top_k,
        first_layer=layers[0],
        physical_to_logical=in_force,
    )


def _by_place(path: Path) -> dict[tuple[int, int], Numbers]:
    """Return tensors by (iteration, layer)."""
    found: dict[tuple[int, int], Numbers] = {}
    for key, array in read_safetensors(path).items():
        match = _KEY.fullmatch(key)
        if match is None:
            fail(str(path), "not <iteration>_<layer>", field=key[:60], right=_RIGHT)
        found[int(match[1]), int(match[2])] = array
    return found


def _load(array: Numbers, source: str, place: tuple[int, int], experts: int) -> Floats:
    field = f"{place[0]}_{place[1]}"
    if array.shape != (experts,):
        fail(source, f"shape {list(array.shape)}", field=field, right=f"[{experts}]")
    load = array.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(load) & (load >= 0)))
    if wrong.size:
        fail(
            source,
            f"layer {place[1]}, expert {int(wrong[0])}: {load[wrong[0]]:g}",
            field=field,
            right="counts must be finite and not negative",
        )
    return load


def _tokens(root: Path, names: list[str], layers: list[int], experts: int, top_k: int) -> Sample | None:
    """Return the tokens of all ranks, [tokens, L, k]; within an iteration a rank's tokens keep their order."""
    parts: list[Sample] = []
    for name in names:
        if not _TOKENS.fullmatch(name):
            continue
        source = str(root / name)
        found = _by_place(root / name)
        for iteration in sorted({place[0] for place in found}):
            of_layers: list[Numbers] = []
            for layer in layers:
                array = found.get((iteration, layer))
                if array is None:
                    fail(source, f"iteration {iteration}: layer {layer} is missing", right=_RIGHT)
                if (
                    array.ndim != 2
                    or array.shape[1] != top_k
                    or array.shape != (of_layers or [array])[0].shape
                ):
                    fail(
                        source,
                        f"shape {list(array.shape)}",
                        field=f"{iteration}_{layer}",
                        right=f"[tokens, {top_k}], as many tokens as in layer {layers[0]}",
                    )
                of_layers.append(array)
            if of_layers[0].size:
                parts.append(
                    sample_of(np.stack(of_layers, axis=1), source, experts, f"iteration {iteration}")
                )
    return np.concatenate(parts) if parts else None
