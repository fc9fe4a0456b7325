"""Recorded tokens in numpy's files: ExFlow's ``[tokens, layers]`` and ``[tokens, layers, k]``.

It exists so that a trace of routing, however it was taken, gives loads and transitions. An npz names its array
``token_sample`` (as instance files do), or holds one array only.
"""

from pathlib import Path

import numpy as np

from telemetry.experts.arrays import ArrayFile, Numbers, read_npy
from telemetry.experts.documents import fail, source_of
from telemetry.experts.recording import ExpertRecording, Sample, loads_of_sample, transitions_of

_LARGEST_EXPERT = 65_535


def read_token_sample(
    path: str | Path, *, experts: int | None = None, first_layer: int = 0
) -> ExpertRecording:
    """Read tokens and count them; two dimensions are top-1 (ExFlow).

    Parameters
    ----------
    path
        An npy or npz file.
    experts
        E; None: the largest id that was seen, plus one.
    first_layer
        Index in the model of the first MoE layer, which the file does not say.

    Raises
    ------
    InputError
        If the array has another shape, holds no whole numbers, or an id outside 0..E-1 (with its layer).
    """
    source = source_of(path)
    sample = sample_of(_array(path), source, experts)
    count = int(sample.max()) + 1 if experts is None else experts
    return ExpertRecording(
        source=source,
        load=loads_of_sample(sample, count),
        transitions=transitions_of(sample, count),
        token_sample=sample,
        top_k=int(sample.shape[2]),
        first_layer=first_layer,
    )


def _array(path: str | Path) -> Numbers:
    if Path(path).suffix == ".npy":
        return read_npy(path)
    file = ArrayFile(path)
    if "token_sample" in file.names:
        return file.read("token_sample")
    if len(file.names) != 1:
        fail(file.source, "missing", field="token_sample", right="the array's name, or one array only")
    return file.read(next(iter(file.names)))


def sample_of(array: Numbers, source: str, experts: int | None, field: str = "token_sample") -> Sample:
    """Return checked expert ids, [tokens, L, k]."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not array.size:
        fail(
            source,
            f"shape {list(array.shape)}",
            field=field,
            right="[tokens, layers] or [tokens, layers, experts per token], at least one of each",
        )
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and not np.array_equal(array, np.floor(array))):
        fail(source, "not whole numbers", field=field, right="expert ids")
    highest = _LARGEST_EXPERT if experts is None else experts - 1
    wrong = ~((array >= 0) & (array <= highest))
    if wrong.any():
        token, layer, at = (int(index) for index in np.argwhere(wrong)[0])
        fail(
            source,
            f"layer {layer}, token {token}: expert {array[token, layer, at]}",
            field=field,
            right=f"ids are 0 to {highest}",
        )
    return np.ascontiguousarray(array, dtype=np.int32)
