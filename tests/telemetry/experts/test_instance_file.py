"""The reader of expert placement problems and maps: what it accepts, and its one line for everything else."""

import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solver.domain.errors import InputError
from telemetry.experts.instance_file import read_expert_instance, read_map, read_stored_map
from tests.telemetry.experts.engine_files import Array, instance_parts, write_instance

SHARED = Path("../shared/data/moe")


def test_reads_every_field_in_si_units(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    instance = read_expert_instance(write_instance(tmp_path, document, arrays))
    assert (instance.name, instance.layers, instance.experts, instance.slots) == ("small", 3, 4, 8)
    assert instance.topology.gpu_node == (0, 0, 1, 1)
    assert instance.topology.gpu_speed == (1.0, 1.0, 0.5, 2.0)
    assert instance.costs.token_expert_s == pytest.approx(2e-6)
    assert instance.costs.token_copy_bytes == 12288
    assert instance.costs.intra_node_bytes_per_s == pytest.approx(450e9)
    assert instance.costs.inter_node_bytes_per_s == pytest.approx(50e9)
    assert instance.migration is not None
    assert instance.migration.bytes_per_s == pytest.approx(25e9)
    assert (instance.migration.windows, instance.migration.margin_ratio) == (100, 0.1)
    for name, found in (
        ("load", instance.load),
        ("trans", instance.transitions),
        ("token_sample", instance.token_sample),
        ("load_windows", instance.load_windows),
    ):
        assert found is not None
        assert np.array_equal(found, arrays[name])


def test_optional_parts_may_be_absent(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    for name in (
        "expert_bytes",
        "migration_bw_GBps",
        "windows_until_next",
        "migration_margin",
        "name",
        "baselines",
    ):
        del document[name]
    path = write_instance(tmp_path, document, {"load": arrays["load"]})
    instance = read_expert_instance(path)
    assert instance.migration is None
    assert instance.transitions is None
    assert instance.token_sample is None
    assert instance.load_windows is None
    assert instance.name == "small"
    assert read_stored_map(path, instance, "previous_p2l") is None


@pytest.mark.parametrize("gone", ["expert_bytes", "migration_bw_GBps", "windows_until_next"])
def test_partial_migration_costs_state_nothing(tmp_path: Path, gone: str) -> None:
    document, arrays = instance_parts()
    del document[gone]
    assert read_expert_instance(write_instance(tmp_path, document, arrays)).migration is None


def test_extreme_but_sound_instances(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    big = arrays["load"].astype(np.uint64) * 10**9
    instance = read_expert_instance(write_instance(tmp_path, document, arrays | {"load": big}))
    assert instance.load.max() == float(big.max())
    zero = {name: np.zeros_like(array) for name, array in arrays.items()}
    assert read_expert_instance(write_instance(tmp_path, document, zero)).load.sum() == 0
    document |= {"layers": 1, "experts": 1, "top_k": 1, "gpus": 1}
    document |= {"gpu_node": [7], "slots_per_gpu": [1], "gpu_speed": [1]}
    one: dict[str, Array] = {"load": np.ones((1, 1)), "trans": np.zeros((0, 1, 1), dtype=np.uint8)}
    assert read_expert_instance(write_instance(tmp_path, document, one)).slots == 1


def _set(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Array]], None]:
    return lambda document, _: document.__setitem__(name, value)


def _drop(name: str) -> Callable[[dict[str, Any], dict[str, Array]], None]:
    return lambda document, _: document.__delitem__(name)


def _array(name: str, change: Callable[[Array], Array]) -> Callable[[dict[str, Any], dict[str, Array]], None]:
    return lambda _, arrays: arrays.__setitem__(name, change(arrays[name]))


def _with(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        changed = array.astype(np.float64)
        changed[(1, 2, 2)[: array.ndim] if array.shape[-1] > 2 else (1, 2, 1)] = value
        return changed

    return change


BAD: dict[str, tuple[Callable[[dict[str, Any], dict[str, Array]], None], str]] = {
    **{
        f"no {name}": (_drop(name), rf"small\.json: {name}: missing")
        for name in instance_parts()[0]
        if name not in {"name", "baselines"} and not name.startswith(("migration", "expert_b", "windows"))
    },
    "format": (_set("format", "x/2"), r"small\.json: format: 'x/2' is not a format known here; moe-"),
    "layers text": (_set("layers", "3"), "layers: '3' is not a whole number"),
    "layers 0": (_set("layers", 0), "layers: 0 is out of range"),
    "layers 1e300": (_set("layers", 1e300), "layers: 1e.300 is too large"),
    "too large": (_set("layers", 10**9), "1000000000 layers of 4 experts"),
    "gpus true": (_set("gpus", True), "gpus: True is not a whole number"),  # noqa: FBT003
    "top_k": (_set("top_k", 5), r"small\.json: top_k: 5 of 4 experts"),
    "slots count": (_set("slots_per_gpu", [2, 2, 4]), r"slots_per_gpu: 3 values for 4 GPUs"),
    "slots few": (_set("slots_per_gpu", [1, 1, 1, 0]), "slots_per_gpu: 4 experts do not fit into 3 slots"),
    "slots text": (_set("slots_per_gpu", [2, 2, 2, "2"]), r"slots_per_gpu\[3\]: '2' is not a whole number"),
    "slots below": (_set("slots_per_gpu", [2, -2, 2, 6]), r"slots_per_gpu\[1\]: -2 is out of range"),
    "speed 0": (_set("gpu_speed", [1, 1, 1, 0]), r"gpu_speed\[3\]: 0 is out of range"),
    "speed null": (_set("gpu_speed", [1, None, 1, 0]), r"gpu_speed\[1\]: null is not a number"),
    "node": (_set("gpu_node", [0, 0, 1, 1.5]), r"gpu_node\[3\]: 1.5 is not a node"),
    "nodes": (_set("gpu_node", "0011"), "gpu_node: '0011' is not a list"),
    "bandwidth 0": (_set("bw_inter_GBps", 0), r"bw_inter_GBps: 0 is out of range; .*GB/s"),
    "time": (_set("us_per_token_expert", -1), r"us_per_token_expert: -1 is out of range; .*µs"),
    "margin": (_set("migration_margin", "a"), "migration_margin: 'a' is not a number"),
    "name": (_set("name", 7), "name: 7 is not a name"),
    "arrays number": (_set("arrays", 7), "arrays: 7 is not a file name"),
    "arrays absent": (_set("arrays", "other.npz"), "arrays: there is no file 'other.npz'"),
    "arrays up": (_set("arrays", "../small.npz"), r"arrays: '\.\./small.npz' leaves the folder"),
    "arrays inside up": (_set("arrays", "a/../../small.npz"), "leaves the folder"),
    "arrays absolute": (_set("arrays", "/etc/passwd"), "arrays: '/etc/passwd' leaves the folder"),
    "load layers": (_array("load", lambda a: a[:2]), r"small\.npz: load: shape \[2, 4\]: layer 2 is missing"),
    "load experts": (_array("load", lambda a: a[:, :2]), r"load: shape \[3, 2\]; it must be \[3, 4\]"),
    "load flat": (_array("load", lambda a: a[0]), r"load: shape \[4\]; it must be"),
    "load nan": (_array("load", _with(float("nan"))), r"small\.npz: load: layer 1, expert 2: nan"),
    "load below": (_array("load", _with(-1)), r"load: layer 1, expert 2: -1"),
    "load endless": (_array("load", _with(float("inf"))), r"load: layer 1, expert 2: inf"),
    "load objects": (_array("load", lambda a: a.astype(object)), r"small\.npz: load: holds pickled objects"),
    "load text": (_array("load", lambda a: a.astype(str)), r"load: holds values of type '<U"),
    "load flags": (_array("load", lambda a: a > 0), r"load: not numbers"),
    "no load": (lambda _, arrays: arrays.__delitem__("load"), r"small\.npz: load: missing"),
    "trans layers": (_array("trans", lambda a: a[:1]), r"trans: shape \[1, 4, 4\]: layer 1 is missing"),
    "trans below": (_array("trans", _with(-2)), "trans: layer 1, expert 2, expert 2: -2"),
    "windows": (_array("load_windows", lambda a: a[:, :2]), r"load_windows: shape \[6, 2, 4\]: layer 2 is m"),
    "windows below": (_array("load_windows", _with(-3)), "load_windows: layer 2, expert 2: -3"),
    "sample": (_array("token_sample", lambda a: a[:, :, :1]), r"small\.npz: token_sample: shape \[5, 3, 1\]"),
    "sample id": (
        _array("token_sample", _with(4)),
        "token_sample: layer 2, token 1: expert 4.*; ids are 0 to 3",
    ),
    "sample half": (_array("token_sample", _with(0.5)), "token_sample: not whole numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_instances_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    document, arrays = instance_parts()
    change(document, arrays)
    with pytest.raises(InputError, match=message) as caught:
        read_expert_instance(write_instance(tmp_path, document, arrays))
    assert str(caught.value).startswith(str(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "a list is not an object"),
        (b"\xff", "not UTF-8"),
        (b'{"layers": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "the field 'a' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_bad_json(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "i.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_expert_instance(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json", "-", "a\0b"):
        with pytest.raises(InputError):
            read_expert_instance(path)


def test_arrays_cut_off_at_every_byte(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, {"load": arrays["load"]})
    whole = (tmp_path / "small.npz").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "small.npz").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"small\.npz"):
            read_expert_instance(path)


def test_damaged_arrays(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, {"load": arrays["load"]})
    whole = (tmp_path / "small.npz").read_bytes()
    for at in range(len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 0xFF
        (tmp_path / "small.npz").write_bytes(raw)
        try:
            read_expert_instance(path)
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017 - some damage is beside the numbers


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, arrays)
    raw = io.BytesIO()
    np.save(raw, np.zeros((3, 4)))
    lying = raw.getvalue().replace(b"(3, 4)", b"(3, 9)")
    with zipfile.ZipFile(tmp_path / "small.npz", "w") as archive:
        archive.writestr("load.npy", lying)
    with pytest.raises(InputError, match=r"load: the array is cut off: shape \[3, 9\]"):
        read_expert_instance(path)


def test_archives_that_numpy_does_not_write(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, arrays)
    raw = io.BytesIO()
    np.save(raw, arrays["load"])
    with zipfile.ZipFile(tmp_path / "small.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("load.npy", raw.getvalue())
    with pytest.raises(InputError, match="compressed in a way that is not known here"):
        read_expert_instance(path)
    for content, message in (
        (b"text", "not an npy array"),
        (raw.getvalue().replace(b"(3, 4)", b"(3, x)"), "header"),
    ):
        with zipfile.ZipFile(tmp_path / "small.npz", "w") as archive:
            archive.writestr("load.npy", content)
        with pytest.raises(InputError, match=message):
            read_expert_instance(path)
    with zipfile.ZipFile(tmp_path / "small.npz", "w") as archive:
        archive.writestr("load", raw.getvalue())
    with pytest.raises(InputError, match="load: missing"):
        read_expert_instance(path)


def test_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, arrays)
    instance = read_expert_instance(path)
    previous = read_stored_map(path, instance, "previous_p2l")
    assert previous is not None
    text = json.dumps({"status": "optimal", "physical_to_logical_map": previous.tolist()})
    map_file = tmp_path / "map.json"
    map_file.write_text(text, encoding="utf-8")
    assert np.array_equal(read_map(map_file, instance), previous)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert np.array_equal(read_map("-", instance), previous)


ROW = [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([ROW] * 2, r"shape \[2, 8\]; it must be \[3 layers\]\[8 slots\]"),
        ([ROW[:7]] * 3, r"shape \[3, 7\]"),
        ([ROW, ROW[:7], ROW], "layer 1 has 7 slots, layer 0 has 8"),
        ([ROW, [*ROW[:7], 4], ROW], "layer 1, slot 7: expert 4; ids are 0 to 3"),
        ([ROW, [*ROW[:7], -1], ROW], "layer 1, slot 7: expert -1"),
        ([ROW, ROW, [0] * 8], "layer 2: expert 1 has no slot"),
        ([ROW, [*ROW[:7], 2.0], ROW], "layer 1, slot 7: 2.0 is not an expert"),
        ([ROW, [*ROW[:7], True], ROW], "layer 1, slot 7: True is not an expert"),
        ([ROW, [*ROW[:7], 10**30], ROW], "layer 1, slot 7: a number of too many digits is not"),
        ([ROW, 7, ROW], "layer 1: 7 is not a list"),
        ([[], [], []], "layer 0: is empty"),
        ([], "there is no layer"),
        ({"a": 1}, "an object is not a list"),
        (None, "null is not a list"),
    ],
)
def test_bad_maps_are_refused_in_one_line(tmp_path: Path, value: Any, message: str) -> None:
    document, arrays = instance_parts()
    instance = read_expert_instance(write_instance(tmp_path, document, arrays))
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"physical_to_logical_map": value}), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_map(path, instance)
    assert re.match(rf"{re.escape(str(path))}: physical_to_logical_map: ", str(caught.value))


def test_a_map_file_without_the_key(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    path = write_instance(tmp_path, document, arrays)
    with pytest.raises(InputError, match="physical_to_logical_map: missing"):
        read_map(path, read_expert_instance(path))


def test_a_stored_map_that_does_not_fit(tmp_path: Path) -> None:
    document, arrays = instance_parts()
    arrays["previous_p2l"] = arrays["previous_p2l"][:2]
    path = write_instance(tmp_path, document, arrays)
    instance = read_expert_instance(path)
    with pytest.raises(InputError, match=r"small\.npz: previous_p2l: shape \[2, 8\]"):
        read_stored_map(path, instance, "previous_p2l")
    write_instance(tmp_path, document, arrays | {"previous_p2l": np.zeros((3, 8))})
    with pytest.raises(InputError, match=r"previous_p2l: not whole numbers"):
        read_stored_map(path, instance, "previous_p2l")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared instances are not here")
def test_shared_instances() -> None:
    paths = sorted(SHARED.glob("*.json"))
    assert paths
    for path in paths:
        instance = read_expert_instance(path)
        assert instance.transitions is not None
        assert instance.migration is not None
        best = read_stored_map(path, instance, "best_known_p2l")
        assert best is not None
        assert best.shape == (instance.layers, instance.slots)
