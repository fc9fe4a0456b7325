"""Loads as JSON: what is read, and that everything else is one line which names file and field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.domain.errors import InputError
from telemetry.experts.load_file import read_loads, read_recording
from telemetry.experts.recording import ExpertRecording
from tests.telemetry.experts.engine_files import safetensors_bytes, torch_bytes


def read(tmp_path: Path, document: Any, **more: Any) -> ExpertRecording:
    path = tmp_path / "load.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    shape = {"model": "moe", "layers": 2, "experts": 3, **more}
    return read_loads(path, **shape)


def test_a_load_alone_suffices(tmp_path: Path) -> None:
    found = read(tmp_path, {"load": [[1, 2, 3], [4, 0, 0.5]]})
    assert found.load.tolist() == [[1, 2, 3], [4, 0, 0.5]]
    assert (found.windows, found.transitions) == (None, None)


def test_windows_and_transitions_are_read(tmp_path: Path) -> None:
    windows = [[[1, 0, 0], [0, 1, 0]], [[0, 0, 2], [0, 2, 0]]]
    steps = [[[1, 0, 0], [0, 0, 0], [0, 2, 0]]]
    found = read(tmp_path, {"model": "moe", "load_windows": windows, "transitions": steps})
    assert found.load.tolist() == [[1, 0, 2], [0, 3, 0]]
    assert found.windows is not None
    assert found.windows.shape == (2, 2, 3)
    assert found.transitions is not None
    assert np.array_equal(found.transitions, steps)


def test_a_dump_of_sglang_is_read_without_its_dense_layers(tmp_path: Path) -> None:
    counts = [[[0, 0, 0], [1, 2, 3], [3, 2, 1], [0, 0, 0]]]
    found = read(tmp_path, {"logical_count": counts}, first_layer=1)
    assert found.load.tolist() == [[1, 2, 3], [3, 2, 1]]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"load": [[1, 2, 3]]}, "load: shape [1, 3]; 2 MoE layers of 3 experts"),
        ({"load": [[1, 2], [3, 4]]}, "load: shape [2, 2]"),
        ({"load": [[1, 2, 3], [4, 5]]}, "rows of different length"),
        ({"load": [[1, 2, 3], [4, 5, -1]]}, "load: layer 1: -1; counts are finite and not negative"),
        ({"load": [["1", "2", "3"]] * 2}, "not a full table of numbers in 2 dimensions"),
        ({"load": 7}, "not a full table of numbers"),
        ({"load": [[1, 2, 3]] * 2, "model": "other"}, "model: loads of 'other'; those of moe"),
        ({"load": [[1, 2, 3]] * 2, "transitions": [[[1]]]}, "transitions: shape [1, 1, 1]"),
        ({"load_windows": [[[1, 2, 3]]]}, "load: shape [1, 3]"),
        ({}, "neither load nor load_windows is there"),
        ([], "is not an object"),
        ('{"load": [[NaN, 1, 2]]}', "NaN is not JSON"),
        ('{"load": [[1e999, 1, 2], [1, 2, 3]]}', "counts are finite"),
        ("{", "not JSON"),
        ({"load": [[1, 2, 3]] * 2 + [[1, 1, 1]]}, "shape [3, 3]"),
    ],
)
def test_everything_else_is_refused_in_one_line(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(InputError) as refused:
        read(tmp_path, document)
    assert words in str(refused.value)
    assert "load.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_engines_write_is_one_window(tmp_path: Path) -> None:
    steps = np.array([[[0, 0, 0], [1, 2, 3], [3, 2, 1]]] * 4, dtype=np.int32)  # a dense layer in front
    dump = tmp_path / "dump.pt"
    dump.write_bytes(torch_bytes({"rank": 0, "logical_count": steps}))
    folder = tmp_path / "statistics"
    folder.mkdir()
    (folder / "meta_info.json").write_text('{"num_experts": 3, "num_experts_per_token": 1}', encoding="utf-8")
    counts = {
        f"{iteration}_{layer}": steps[iteration, layer] for iteration in range(4) for layer in range(1, 3)
    }
    (folder / "rank0.safetensors").write_bytes(safetensors_bytes(counts))
    written = tmp_path / "dump.json"
    written.write_text(json.dumps({"logical_count": steps.tolist()}), encoding="utf-8")
    for path in (dump, folder, written):
        for shape in ({}, {"layers": 2, "experts": 3}):
            found = read_recording(path, model="moe", **shape)
            assert found.load.tolist() == [[4, 8, 12], [12, 8, 4]]
            assert found.windows is None
        with pytest.raises(InputError, match="5 MoE layers of 3 experts"):
            read_recording(path, model="moe", layers=5, experts=3)


def test_windows_of_ones_own_stay_windows(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"load_windows": [[[1, 2]], [[3, 4]]]}), encoding="utf-8")
    found = read_recording(path, model="moe")  # as many layers and experts as it says
    assert found.windows is not None
    assert found.windows.tolist() == [[[1, 2]], [[3, 4]]]
    path.write_text(json.dumps({"load": [[1, 2]], "load_windows": [[[1, 2, 3]]]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"load_windows: shape \[1, 1, 3\]; 1 MoE layers of 2 experts"):
        read_recording(path, model="moe")
