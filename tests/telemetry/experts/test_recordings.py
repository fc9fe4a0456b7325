"""Engines' recordings as loads, transitions and tokens; their faults as one line."""

import itertools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from solver.domain.errors import InputError
from telemetry.experts.recording import ExpertRecording, loads_of_sample, thinned, transitions_of
from telemetry.experts.safetensors_file import read_safetensors
from telemetry.experts.sglang_recording import read_sglang_recording
from telemetry.experts.tensorrt_recording import read_tensorrt_recording
from telemetry.experts.token_sample_file import read_token_sample
from tests.telemetry.experts.engine_files import Array, safetensors_bytes, torch_bytes

SAMPLES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.integers(0, 4))
)


@given(SAMPLES)
def test_sums_against_counting_by_hand(sample: Array) -> None:
    tokens, layers, k = sample.shape
    load = np.zeros((layers, 5))
    pairs = np.zeros((layers - 1, 5, 5))
    for t, layer in itertools.product(range(tokens), range(layers)):
        for i in range(k):
            load[layer, sample[t, layer, i]] += 1
            if layer + 1 < layers:
                for j in range(k):
                    pairs[layer, sample[t, layer, i], sample[t, layer + 1, j]] += 1
    assert np.array_equal(loads_of_sample(sample, 5), load)
    found = transitions_of(sample, 5)
    assert np.array_equal(found, pairs)
    assert np.array_equal(found.sum(axis=2), k * load[:-1])
    assert np.array_equal(found.sum(axis=1), k * load[1:])


def test_sums_of_many_tokens_in_parts() -> None:
    sample = np.random.default_rng(0).integers(0, 7, (70_000, 2, 2)).astype(np.int32)
    assert loads_of_sample(sample, 7).sum() == sample.size
    pairs = transitions_of(sample, 7)
    assert pairs.sum() == 70_000 * 4
    first = np.bincount((sample[:, 0, :, None] * 7 + sample[:, 1, None, :]).ravel(), minlength=49)
    assert np.array_equal(pairs[0].ravel(), first)


def test_thinned_samples() -> None:
    sample = np.arange(10, dtype=np.int32)[:, None, None]
    assert thinned(sample, 20) is sample
    assert thinned(sample, 4).ravel().tolist() == [0, 3, 6, 9]


# Tokens in numpy's files


def test_exflow_traces(tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", np.array([[4, 1, 2], [0, 2, 4]]))
    found = read_token_sample(tmp_path / "trace.npy", experts=8)
    assert (found.layers, found.experts, found.top_k) == (3, 8, 1)
    assert found.transitions is not None
    assert found.transitions[0, 4, 1] == found.transitions[1, 2, 4] == 1
    assert read_token_sample(tmp_path / "trace.npy", first_layer=3).experts == 5


def test_samples_in_npz(tmp_path: Path) -> None:
    sample = np.zeros((2, 3, 2), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", token_sample=sample, other=sample)
    assert read_token_sample(tmp_path / "a.npz").top_k == 2
    np.savez(tmp_path / "b.npz", anything=sample)
    assert read_token_sample(tmp_path / "b.npz").top_k == 2
    np.savez(tmp_path / "c.npz", some=sample, other=sample)
    with pytest.raises(InputError, match="token_sample: missing"):
        read_token_sample(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3, dtype=int), r"shape \[3\]"),
        (np.zeros((0, 3), dtype=int), r"shape \[0, 3, 1\]"),
        (np.array([[0, 1], [2, 8]]), "layer 1, token 1: expert 8; ids are 0 to 7"),
        (np.array([[0, 1], [-1, 2]]), "layer 0, token 1: expert -1"),
        (np.array([[0.5, 1]]), "not whole numbers"),
        (np.array([[0, np.nan]]), "not whole numbers"),
        (np.array([[True]]), "not whole numbers"),
        (np.array([[None]]), "holds pickled objects"),
        (np.array([["a"]]), "holds values of type"),
        (np.array([(1, 2)], dtype=[("a", int), ("b", int)]), "holds values of type"),
    ],
)
def test_bad_traces(tmp_path: Path, array: Array, message: str) -> None:
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(InputError, match=message):
        read_token_sample(tmp_path / "t.npy", experts=8)


def test_traces_cut_off_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    np.save(path, np.array([[0, 1], [2, 3]], dtype=np.int16))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            read_token_sample(path)


@given(st.binary(max_size=90))
def test_any_header(header: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(InputError) as caught:
            read_token_sample(path)
        assert str(caught.value).isprintable()


# SGLang

PER_TOKEN_MAP = np.array([[0, 1, 2, 0], [2, 1, 0, 2], [0, 0, 1, 2]])
PHYSICAL = np.full((3, 4, 8), -1)
PHYSICAL[1:, :3, :2] = [[[0, 1], [2, 3], [1, 3]], [[1, 3], [2, 0], [3, 2]]]
"""One dense layer, three tokens and one of padding, two experts per token in eight columns."""


def _record(step: int, **more: Any) -> dict[str, Any]:
    return {"forward_pass_id": step, "rank": 0, "gatherer_key": "primary", **more}


def _details(*records: dict[str, Any]) -> dict[str, Any]:
    return {"records": list(records), "last_physical_to_logical_map": PER_TOKEN_MAP}


def _sglang(folder: Path, document: dict[str, Any], form: str, **more: Any) -> ExpertRecording:
    path = folder / f"expert_distribution_recorder_1.{form}"
    if form == "pt":
        path.write_bytes(torch_bytes(document))
    else:
        path.write_text(json.dumps(document, default=lambda array: array.tolist()), encoding="utf-8")
    return read_sglang_recording(path, **more)


@pytest.mark.parametrize("form", ["pt", "json"])
def test_sglang_counts(tmp_path: Path, form: str) -> None:
    counts = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    counts[:, 0] = 0
    more = {"rank": 0, "average_utilization_rate_over_window": None}
    found = _sglang(tmp_path, {**more, "logical_count": counts}, form)
    assert (found.first_layer, found.decoder_layers, found.layers) == (1, 3, 2)
    assert np.array_equal(found.load, counts[:, 1:].sum(axis=0))
    assert found.windows is not None
    assert np.array_equal(found.windows, counts[:, 1:])
    assert found.transitions is None
    assert found.token_sample is None
    flat = _sglang(tmp_path, {"logical_count": counts.sum(axis=0, dtype=np.int32)}, form)
    assert flat.windows is None
    assert np.array_equal(flat.load, found.load)


@pytest.mark.parametrize("form", ["pt", "json"])
def test_sglang_passes(tmp_path: Path, form: str) -> None:
    physical = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.int32)
    document = _details(
        _record(4, global_physical_count=physical), _record(5, global_physical_count=2 * physical)
    )
    found = _sglang(tmp_path, document, form)
    assert (found.first_layer, found.experts) == (1, 3)
    assert found.load.tolist() == [[9.0, 6.0, 15.0], [33.0, 21.0, 24.0]]
    assert found.windows is not None
    assert found.windows[0].tolist() == [[3, 2, 5], [11, 7, 8]]
    assert found.transitions is None
    assert found.physical_to_logical is not None
    assert found.physical_to_logical.tolist() == PER_TOKEN_MAP[1:].tolist()


@pytest.mark.parametrize("form", ["pt", "json"])
def test_sglang_tokens_in_logical_ids(tmp_path: Path, form: str) -> None:
    document = _details(
        _record(4, topk_ids_of_layer=PHYSICAL, input_ids=[7, 8, 9, 0], forward_mode=1, misc_objects=[])
    )
    found = _sglang(tmp_path, document, form)
    assert found.token_sample is not None
    assert found.token_sample.tolist() == [[[2, 1], [0, 2]], [[0, 2], [1, 0]], [[1, 2], [2, 1]]]
    assert (found.top_k, found.first_layer, found.decoder_layers) == (2, 1, 3)
    assert np.array_equal(found.load, loads_of_sample(found.token_sample, 3))
    assert found.transitions is not None
    assert np.array_equal(found.transitions, transitions_of(found.token_sample, 3))


def test_sglang_ranks_are_added_up(tmp_path: Path) -> None:
    paths = []
    for rank in range(2):
        paths.append(tmp_path / f"r_{rank}.pt")
        paths[-1].write_bytes(torch_bytes(_details(_record(4, topk_ids_of_layer=PHYSICAL))))
    one, both = read_sglang_recording(paths[0]), read_sglang_recording(*paths)
    assert np.array_equal(both.load, 2 * one.load)
    assert both.windows is not None
    assert both.windows.shape[0] == 1
    assert both.token_sample is not None
    assert both.token_sample.shape == (6, 2, 2)
    other = _details(_record(4, topk_ids_of_layer=PHYSICAL)) | {
        "last_physical_to_logical_map": PER_TOKEN_MAP[::-1]
    }
    paths[1].write_bytes(torch_bytes(other))
    with pytest.raises(InputError, match="last_physical_to_logical_map: differs between the files"):
        read_sglang_recording(*paths)


def test_sglang_first_layer_may_be_named(tmp_path: Path) -> None:
    counts = np.array([[0, 0], [0, 0], [3, 4], [0, 0]])
    document = {"logical_count": counts}
    with pytest.raises(InputError, match="layer 3 has no counts, layer 2 has"):
        _sglang(tmp_path, document, "json")
    found = _sglang(tmp_path, document, "json", first_layer=1)
    assert found.load.tolist() == [[0, 0], [3, 4], [0, 0]]
    with pytest.raises(InputError, match="layer 2 has counts; dense below layer 3"):
        _sglang(tmp_path, document, "json", first_layer=3)
    with pytest.raises(InputError, match="4 layers, the first MoE layer is 4"):
        _sglang(tmp_path, document, "json", first_layer=4)


def _holes() -> Array:
    changed = PHYSICAL.copy()
    changed[2, 1, 1] = -1
    return changed


def _beyond() -> Array:
    changed = PHYSICAL.copy()
    changed[2, 1, 1] = 4
    return changed


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "neither logical_count nor records is there"),
        ({"logical_count": None}, "logical_count: null is not a list"),
        ({"logical_count": [1, 2]}, r"logical_count: shape \[2\]"),
        ({"logical_count": [[1, 2], [3]]}, "logical_count: rows of different length"),
        ({"logical_count": [["a"]]}, "logical_count: not all values are numbers"),
        ({"logical_count": [[None]]}, "logical_count: not all values are numbers"),
        ({"logical_count": [[True]]}, "logical_count: not all values are numbers"),
        ({"logical_count": [[]]}, r"logical_count: shape \[1, 0\]"),
        ({"logical_count": [[1, 2], [3, -4]]}, "logical_count: layer 1, expert 1: -4"),
        ({"logical_count": [[1, 1e400]]}, "logical_count: layer 0, expert 1: inf"),
        ({"logical_count": [[0, 0]]}, "nothing was recorded"),
        ({"records": []}, "last_physical_to_logical_map: missing"),
        (_details(), "records: nothing was recorded"),
        (_details(_record(1)), r"records\[0\]\.global_physical_count: missing"),
        (_details(_record(1, global_physical_count=[[1]])), r"shape \[1, 1\]; \[3, 4\]"),
        (_details(_record(-1)), r"records\[0\]\.forward_pass_id: -1 is out of range"),
        (_details(_record(1, topk_ids_of_layer=PHYSICAL[1:])), r"shape \[2, 4, 8\]; \[3 layers, tokens"),
        (_details(_record(1, topk_ids_of_layer=_beyond())), "layer 2, token 1: slot 4; slots are 0 to 3"),
        (_details(_record(1, topk_ids_of_layer=_holes())), "layer 2, token 1: fewer experts than other"),
        (
            _details(
                _record(1, topk_ids_of_layer=PHYSICAL), _record(2, topk_ids_of_layer=PHYSICAL[:, :, :2])
            ),
            "different numbers of experts per token",
        ),
        (
            _details() | {"last_physical_to_logical_map": [[0, 9]]},
            "layer 0, slot 1: expert 9; ids are 0 to 1",
        ),
        (_details() | {"last_physical_to_logical_map": [[0.5]]}, r"shape \[1, 1\]"),
        (_details() | {"records": [7]}, r"records\[0\]: 7 is not an object"),
    ],
)
def test_bad_sglang_dumps(tmp_path: Path, document: dict[str, Any], message: str) -> None:
    text = json.dumps(document, default=lambda array: array.tolist()).replace("Infinity", "1e999")
    path = tmp_path / "d.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_sglang_recording(path)
    assert re.match(re.escape(str(path)), str(caught.value))
    assert str(caught.value).isprintable()


def test_several_files_of_counts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text('{"logical_count": [[1, 2]]}', encoding="utf-8")
    with pytest.raises(InputError, match="several dumps of counts"):
        read_sglang_recording(path, path)


# TensorRT-LLM


def _statistics(folder: Path) -> tuple[Array, Array]:
    """Write two ranks, two iterations, layers 3 and 4; return tokens [rank, iteration, tokens, layer, k] and loads."""
    tokens = np.random.default_rng(3).integers(0, 4, (2, 2, 5, 2, 2)).astype(np.int32)
    (folder / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}', encoding="utf-8")
    for rank in range(2):
        counts, raw = {}, {}
        for iteration, layer in itertools.product(range(2), range(2)):
            key = f"{100 + iteration}_{3 + layer}"
            raw[key] = tokens[rank, iteration, :, layer]
            counts[key] = np.bincount(raw[key].ravel(), minlength=4).astype(np.int32)
        (folder / f"rank{rank}.safetensors").write_bytes(safetensors_bytes(counts))
        (folder / f"rank{rank}_raw.safetensors").write_bytes(safetensors_bytes(raw))
    flat = tokens.reshape(-1, 2, 2)
    return flat, loads_of_sample(flat, 4)


def test_tensorrt_statistics(tmp_path: Path) -> None:
    tokens, load = _statistics(tmp_path)
    found = read_tensorrt_recording(tmp_path)
    assert (found.first_layer, found.layers, found.experts, found.top_k) == (3, 2, 4, 2)
    assert np.array_equal(found.load, load)
    assert found.windows is not None
    assert np.array_equal(found.windows.sum(axis=0), load)
    assert found.windows.shape == (2, 2, 4)
    assert found.transitions is not None
    assert np.array_equal(found.transitions, transitions_of(tokens, 4))
    for rank in range(2):
        there = tmp_path / f"rank{rank}_raw.safetensors"
        there.rename(tmp_path / f"token_selected_experts_rank{rank}.safetensors")
    again = read_tensorrt_recording(tmp_path)
    assert again.transitions is not None
    assert np.array_equal(again.transitions, found.transitions)


def test_tensorrt_counts_alone(tmp_path: Path) -> None:
    _, load = _statistics(tmp_path)
    for path in tmp_path.glob("*_raw.safetensors"):
        path.unlink()
    found = read_tensorrt_recording(tmp_path)
    assert np.array_equal(found.load, load)
    assert found.transitions is None


def test_tensorrt_slots_of_a_balancer_in_force(tmp_path: Path) -> None:
    tokens, load = _statistics(tmp_path)
    in_force = np.array([[0, 1, 2, 0], [2, 1, 0, 2]], dtype=np.int32)
    found = read_tensorrt_recording(tmp_path, in_force=in_force)
    assert found.experts == 3
    assert found.load[0].tolist() == [load[0, 0] + load[0, 3], load[0, 1], load[0, 2]]
    logical = np.stack([in_force[layer, tokens[:, layer]] for layer in range(2)], axis=1)
    assert np.array_equal(found.load, loads_of_sample(logical, 3))
    assert found.transitions is not None
    assert np.array_equal(found.transitions, transitions_of(logical, 3))
    with pytest.raises(
        InputError, match="num_experts: 4 slots were recorded, the model has 3 experts; the map"
    ):
        read_tensorrt_recording(tmp_path, experts=3)
    with pytest.raises(InputError, match=r"num_experts: 2 layers of 4, the map has \[1, 4\]"):
        read_tensorrt_recording(tmp_path, in_force=in_force[:1])
    with pytest.raises(InputError, match="the map holds expert 2; ids are 0 to 1"):
        read_tensorrt_recording(tmp_path, in_force=in_force, experts=2)


def _rank0(folder: Path, arrays: dict[str, Array]) -> None:
    for path in folder.glob("rank*"):
        path.unlink()
    (folder / "rank0.safetensors").write_bytes(safetensors_bytes(arrays))


COUNT = np.ones(4, dtype=np.int32)
FAULTS: dict[str, Callable[[Path], Any]] = {
    "meta_info.json: cannot be read": lambda folder: (folder / "meta_info.json").unlink(),
    "meta_info.json: num_experts: missing": lambda folder: (folder / "meta_info.json").write_text("{}"),
    "no counts in rank": lambda folder: _rank0(folder, {}),
    "not <iteration>_<layer>": lambda folder: _rank0(folder, {"100": COUNT}),
    r"100_3: shape \[3\]; \[4\]": lambda folder: _rank0(folder, {"100_3": COUNT[:3]}),
    "100_3: layer 3, expert 0: -1": lambda folder: _rank0(folder, {"100_3": -COUNT}),
    "layer 4 is missing; MoE": lambda folder: _rank0(folder, {"100_3": COUNT, "100_5": COUNT}),
    "iteration 101: layer 4 is missing": lambda folder: _rank0(
        folder, {"100_3": COUNT, "100_4": COUNT, "101_3": COUNT}
    ),
    "the tokens do not add up to the counts": lambda folder: (folder / "rank1.safetensors").unlink(),
    r"rank0_raw.safetensors: iteration 100: layer 4 is missing": lambda folder: (
        folder / "rank0_raw.safetensors"
    ).write_bytes(safetensors_bytes({"100_3": np.zeros((5, 2), dtype=np.int32)})),
    r"100_4: shape \[4, 2\]; \[tokens, 2\], as many": lambda folder: (
        folder / "rank0_raw.safetensors"
    ).write_bytes(
        safetensors_bytes(
            {"100_3": np.zeros((5, 2), dtype=np.int32), "100_4": np.zeros((4, 2), dtype=np.int32)}
        )
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_tensorrt_statistics(tmp_path: Path, message: str) -> None:
    _statistics(tmp_path)
    FAULTS[message](tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_tensorrt_recording(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_tensorrt_recording(tmp_path / "absent")


def test_safetensors_cut_off_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = safetensors_bytes({"1_2": np.arange(5, dtype=np.int64), "1_3": np.ones((2, 2), dtype=np.float32)})
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError) as caught:
            read_safetensors(path)
        assert str(caught.value).isprintable()
    path.write_bytes(whole)
    assert read_safetensors(path)["1_2"].tolist() == [0, 1, 2, 3, 4]


HEADERS = st.dictionaries(
    st.text(max_size=4),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["I32", "I64", "BF16", 3, None]),
            "shape": st.one_of(
                st.none(), st.lists(st.sampled_from([0, 1, 2, -1, 2**50, 0.5, "1"]), max_size=3)
            ),
            "data_offsets": st.lists(st.sampled_from([0, 4, 8, -4, 2**60, "0", None]), max_size=3),
        },
    ),
    max_size=3,
)


@given(HEADERS)
def test_any_safetensors_header(header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
        refusal = ""
        try:
            read_safetensors(path)
        except InputError as error:
            refusal = str(error)
        assert refusal.isprintable()
