"""Recorded loads as JSON, for whoever records them without an engine's own dump.

It exists so that a load can be handed over in a few lines: an object with

- ``load``: routed tokens [L][E], MoE layers only; or ``load_windows``: [W][L][E], the newest last;
- ``transitions`` (may be left out): pairs of experts of successive layers, [L - 1][E][E], k·k per token;
- ``model`` (may be left out): whose loads they are.

An SGLang dump as JSON (`telemetry.experts.sglang_recording`) is taken, too; `read_recording` also takes what engines
write themselves.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from solver.domain.moe import Floats
from telemetry.experts.documents import fail, json_of, read_bytes, shown, source_of, table_of
from telemetry.experts.recording import ExpertRecording
from telemetry.experts.sglang_recording import read_sglang_recording
from telemetry.experts.tensorrt_recording import read_tensorrt_recording

_RIGHT = "a JSON object with load [layers][experts], load_windows, or a dump of SGLang's recorder"


def read_recording(
    path: str | Path,
    *,
    model: str,
    layers: int | None = None,
    experts: int | None = None,
    first_layer: int | None = None,
) -> ExpertRecording:
    """Read a file of `read_loads`, a dump of SGLang's recorder, or a folder of TensorRT-LLM's statistics.

    An engine's own steps are too short for windows: such a recording counts as one.

    Raises
    ------
    InputError
        With file, field and layer.
    """
    if Path(path).is_dir():
        found = of_shape(read_tensorrt_recording(path), layers=layers, experts=experts)
        return replace(found, windows=None)
    if Path(path).suffix in {".pt", ".pth"}:
        found = read_sglang_recording(path, experts=experts, first_layer=first_layer)
        found = of_shape(found, layers=layers, experts=experts)
    else:
        found = read_loads(path, model=model, layers=layers, experts=experts, first_layer=first_layer)
    return found if found.decoder_layers is None else replace(found, windows=None)


def read_loads(
    path: str | Path,
    *,
    model: str,
    layers: int | None = None,
    experts: int | None = None,
    first_layer: int | None = None,
) -> ExpertRecording:
    """Read the loads of a model's MoE layers; as many layers and experts as the file says where none are given.

    Raises
    ------
    InputError
        With file, field and layer: no such file, another model, another shape, values that are no counts.
    """
    source = source_of(path)
    document = table_of(json_of(read_bytes(path), source), source, None, right=_RIGHT)
    if "logical_count" in document or "records" in document:
        return of_shape(
            read_sglang_recording(path, experts=experts, first_layer=first_layer),
            layers=layers,
            experts=experts,
        )
    stated = document.get("model", model)
    if stated != model:
        fail(source, f"loads of {shown(stated)}", field="model", right=f"those of {model}")
    load = windows = None
    if "load_windows" in document:
        windows = _counts(document["load_windows"], source, "load_windows", 3)
        load = windows.sum(axis=0)
    if "load" in document:
        load = _counts(document["load"], source, "load", 2)
    if load is None:
        fail(source, "neither load nor load_windows is there", right=_RIGHT)
    transitions = None
    if document.get("transitions") is not None:
        transitions = _counts(document["transitions"], source, "transitions", 3)
    return of_shape(
        ExpertRecording(
            source=source, load=load, windows=windows, transitions=transitions, first_layer=first_layer or 0
        ),
        layers=layers,
        experts=experts,
    )


def of_shape(recording: ExpertRecording, *, layers: int | None, experts: int | None) -> ExpertRecording:
    """Return a recording of so many layers and experts; dense layers behind the last (rows of zeros) are cut off.

    None: as many as the loads have.

    Raises
    ------
    InputError
        If it has another shape: loads of another model say nothing.
    """
    load, windows, transitions = recording.load, recording.windows, recording.transitions
    layers = int(load.shape[0]) if layers is None else layers
    experts = int(load.shape[1]) if experts is None else experts
    if load.shape[0] > layers and not load[layers:].any():
        load = load[:layers]
        windows = None if windows is None else windows[:, :layers]
        transitions = None if transitions is None else transitions[: layers - 1]
    for field, found, right in (
        ("load", load, (layers, experts)),
        ("load_windows", windows, (None, layers, experts)),
        ("transitions", transitions, (layers - 1, experts, experts)),
    ):
        if found is None:
            continue
        wanted = tuple(size if size is not None else found.shape[0] for size in right)
        if found.shape != wanted:
            fail(
                recording.source,
                f"shape {list(found.shape)}",
                field=field,
                right=f"{layers} MoE layers of {experts} experts",
            )
    return replace(recording, load=load, windows=windows, transitions=transitions)


def _counts(value: Any, source: str, field: str, dimensions: int) -> Floats:
    try:
        found = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        fail(source, "rows of different length", field=field, right="a full table of numbers")
    if (
        found.dtype.kind not in "iuf"
        or found.ndim != dimensions
        or not (found.size or field == "transitions")
    ):
        fail(
            source,
            f"not a full table of numbers in {dimensions} dimensions",
            field=field,
            right="counts, MoE layers only",
        )
    counts = found.astype(np.float64)
    wrong = ~np.isfinite(counts) | (counts < 0)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        layer = place[1] if field == "load_windows" else place[0]
        fail(
            source,
            f"layer {layer}: {counts[place]:g}",
            field=field,
            right="counts are finite and not negative",
        )
    return counts
