"""Maps in engines' files: what is written is what the engine reads, and what it would refuse is not written."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.moe import ExpertCosts, ExpertInstance, ExpertTopology, Slots
from telemetry.experts.map_formats import EXPERIMENTAL, MAP_FORMATS, MapFormat, read_engine_map, write_map

ENGINES = tuple(form for form in MAP_FORMATS if form != "native")


def _topology(*slots: int) -> ExpertTopology:
    gpus = len(slots)
    return ExpertTopology(gpu_node=(0,) * gpus, slots_per_gpu=slots, gpu_speed=(1.0,) * gpus)


def _instance(layers: int, experts: int, topology: ExpertTopology) -> ExpertInstance:
    return ExpertInstance(
        name="i",
        load=np.ones((layers, experts)),
        top_k=1,
        transitions=None,
        topology=topology,
        costs=ExpertCosts(
            token_expert_s=1e-6, token_copy_bytes=1.0, intra_node_bytes_per_s=1.0, inter_node_bytes_per_s=1.0
        ),
    )


@st.composite
def maps(draw: st.DrawFn) -> tuple[Slots, ExpertInstance]:
    """Return a map without an expert twice on a GPU, and its instance."""
    gpus, each, layers = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    experts = draw(st.integers(each, gpus * each))
    rows = []
    for _ in range(layers):
        order = draw(st.permutations(range(experts)))
        shift = np.arange(gpus * each) % experts
        rows.append(np.array(order)[shift])
    topology = _topology(*(each,) * gpus)
    return np.array(rows, dtype=np.int32), _instance(layers, experts, topology)


def _read(text: str, form: MapFormat, instance: ExpertInstance, first: int = 0) -> Slots:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map"
        path.write_text(text, encoding="utf-8")
        return read_engine_map(path, form, instance, first_moe_layer=first)


@given(maps(), st.sampled_from(MAP_FORMATS), st.integers(0, 3), st.integers(0, 2))
def test_round_trip(made: tuple[Slots, ExpertInstance], form: MapFormat, first: int, after: int) -> None:
    p2l, instance = made
    text = write_map(
        form,
        p2l,
        topology=instance.topology,
        experts=instance.experts,
        first_moe_layer=first,
        decoder_layers=first + instance.layers + after,
    )
    assert np.array_equal(_read(text, form, instance, first), p2l)


P2L = np.array([[0, 1, 2, 0], [2, 1, 1, 0]], dtype=np.int32)
TWO = _topology(2, 2)


def _written(form: MapFormat, **more: Any) -> str:
    return write_map(form, P2L, topology=TWO, experts=3, **more)


def test_native() -> None:
    assert _written("native") == '{"physical_to_logical_map":[[0,1,2,0],[2,1,1,0]]}'


def test_sglang_counts_all_decoder_layers() -> None:
    document = json.loads(_written("sglang", first_moe_layer=1, decoder_layers=4))
    assert list(document) == ["physical_to_logical_map"]  # SGLang passes every key on as an argument
    assert document["physical_to_logical_map"] == [[0, 1, 2, 0], *P2L.tolist(), [0, 1, 2, 0]]
    assert len(json.loads(_written("sglang", first_moe_layer=3))["physical_to_logical_map"]) == 5


def test_tensorrt_names_layers_as_in_the_model() -> None:
    text = _written("tensorrt-llm", first_moe_layer=3)
    assert text.splitlines()[2] == "  3: [0,1,2,0]"
    assert yaml.safe_load(text) == {
        "num_slots": 4,
        "initial_global_assignments": {3: [0, 1, 2, 0], 4: [2, 1, 1, 0]},
        "layer_updates_per_iter": 0,
    }


def test_vllm_ascend() -> None:
    document = json.loads(_written("vllm-ascend"))
    assert document["moe_layer_count"] == 2
    assert document["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 2,
        "device_list": [{"device_id": 0, "device_expert": [2, 1]}, {"device_id": 1, "device_expert": [1, 0]}],
    }


def test_vllm_is_experimental() -> None:
    assert json.loads(_written("vllm")) == P2L.tolist()
    assert {"vllm"} == EXPERIMENTAL


@pytest.mark.parametrize("form", ENGINES)
@pytest.mark.parametrize(
    ("rows", "topology", "experts", "message"),
    [
        ([[0, 1, 2, 0]], _topology(3, 1), 3, "GPU 1 has 1 slots, GPU 0 has 3; engines need equally many"),
        ([[0, 1, 2]], TWO, 3, r"shape \[1, 3\]; \[layers, 4\]"),
        ([], TWO, 3, r"shape \[0\]"),
        ([[0, 1, 2, 0], [0, 1, 2, 3]], TWO, 3, "layer 1, slot 3: expert 3; ids are 0 to 2"),
        ([[0, 1, 2, -1]], TWO, 3, "layer 0, slot 3: expert -1"),
        ([[0, 1, 2, 0], [0, 1, 1, 0]], TWO, 3, "layer 1: expert 2 has no slot"),
        ([[0, 1, 2, 2]], TWO, 3, "layer 0: GPU 1 holds expert 2 twice; once per GPU"),
        (
            [[0, 0, 1, 0, 0, 0]],
            _topology(3, 3),
            2,
            "layer 0: GPU 1 holds expert 0 twice|3 slots per GPU for 2",
        ),
        ([[0.0, 1.0, 2.0, 0.0]], TWO, 3, "not whole numbers"),
    ],
)
def test_what_engines_refuse(
    form: MapFormat, rows: list[list[int]], topology: ExpertTopology, experts: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        write_map(form, np.array(rows), topology=topology, experts=experts)
    assert str(caught.value).startswith(f"map for {form}: ")


def test_an_expert_may_be_twice_where_slots_leave_no_choice() -> None:
    wide = np.array([[0, 1, 0, 1, 1, 0]])
    assert write_map("sglang", wide, topology=_topology(3, 3), experts=2)
    with pytest.raises(InputError, match="3 slots per GPU for 2 experts; it cannot hold an expert twice"):
        write_map("vllm-ascend", wide, topology=_topology(3, 3), experts=2)


def test_native_maps_may_be_uneven() -> None:
    p2l = np.array([[0, 1, 2, 0]])
    text = write_map("native", p2l, topology=_topology(3, 1), experts=3)
    assert np.array_equal(_read(text, "native", _instance(1, 3, _topology(3, 1))), p2l)


@pytest.mark.parametrize("form", ["sglang", "tensorrt-llm"])
def test_layers_beyond_the_model(form: MapFormat) -> None:
    with pytest.raises(InputError, match="2 MoE layers from layer 3 on in a model of 4 layers"):
        _written(form, first_moe_layer=3, decoder_layers=4)
    with pytest.raises(InputError, match="the first MoE layer is -1"):
        _written(form, first_moe_layer=-1)


ASCEND: dict[str, Any] = json.loads(_written("vllm-ascend"))


def _ascend(**more: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(ASCEND))
    document["layer_list"][1] |= more
    return document


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("sglang", '{"logical_count": [[1]]}', "physical_to_logical_map: missing"),
        ("sglang", '{"physical_to_logical_map": [[0, 1, 2, 0]]}', "1 layers: layer 1 is missing"),
        ("vllm", '{"a": 1}', "an object is not a list"),
        ("vllm", "[[0, 1, 2, 0]]", r"shape \[1, 4\]"),
        ("tensorrt-llm", "[", "not YAML"),
        ("tensorrt-llm", "a: 1\na: 2", "the key 'a' stands twice"),
        ("tensorrt-llm", "!!python/object/apply:os.system [ls]", "not YAML"),
        ("tensorrt-llm", "? [a]\n: 1", "not YAML"),
        ("tensorrt-llm", "2001-99-99: 1", "not YAML"),
        ("tensorrt-llm", "\0", "not YAML"),
        ("tensorrt-llm", "7", "7 is not an object"),
        ("tensorrt-llm", "num_slots: 4", "initial_global_assignments: missing"),
        ("tensorrt-llm", "num_slots: x\ninitial_global_assignments: {}", "num_slots: 'x' is not a whole"),
        (
            "tensorrt-llm",
            "num_slots: 4\ninitial_global_assignments: {0: [0, 1, 2, 0], 2: [0, 1, 2, 0]}",
            r"initial_global_assignments\[1\]: missing",
        ),
        (
            "tensorrt-llm",
            "num_slots: 4\ninitial_global_assignments: {0: [0, 1, 2, 0], 1: [0, 1, 2]}",
            r"initial_global_assignments\[1\]: 3 slots; num_slots says 4",
        ),
        (
            "tensorrt-llm",
            "num_slots: 4\ninitial_global_assignments: {0: [0, 1, 2, 0], 1: [0, 1, 1, 0]}",
            "layer 1: expert 2 has no slot",
        ),
        ("vllm-ascend", "[]", "a list is not an object"),
        ("vllm-ascend", json.dumps(ASCEND | {"moe_layer_count": 3}), "moe_layer_count: 3, layer_list has 2"),
        ("vllm-ascend", json.dumps(_ascend(layer_id=0)), r"layer_list\[1\]\.layer_id: 0; 1 here"),
        ("vllm-ascend", json.dumps(_ascend(device_count=3)), r"layer_list\[1\]\.device_count: 3; 2 here"),
        ("vllm-ascend", json.dumps(_ascend(device_list=[])), r"device_count: 2; 0 here"),
        (
            "vllm-ascend",
            json.dumps(_ascend(device_list=[{"device_expert": [0, 1]}, {"device_expert": [2]}])),
            r"device_list\[1\]\.device_expert: layer 1: 1 experts; GPU 1 has 2 slots",
        ),
        (
            "vllm-ascend",
            json.dumps(_ascend(device_list=[{"device_expert": [0, 1]}, {"device_expert": [2, "x"]}])),
            r"layer_list: layer 1, slot 3: 'x' is not an expert",
        ),
    ],
)
def test_bad_engine_maps(form: MapFormat, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        _read(text, form, _instance(2, 3, TWO))
    assert str(caught.value).isprintable()


def test_older_ascend_maps_without_ids() -> None:
    text = json.dumps(
        {
            "moe_layer_count": 1,
            "layer_list": [
                {"device_count": 2, "device_list": [{"device_expert": [0, 1]}, {"device_expert": [2, 0]}]}
            ],
        }
    )
    assert _read(text, "vllm-ascend", _instance(1, 3, TWO)).tolist() == [[0, 1, 2, 0]]


@given(maps(), st.sampled_from(MAP_FORMATS), st.data())
def test_files_cut_off_anywhere(
    made: tuple[Slots, ExpertInstance], form: MapFormat, data: st.DataObject
) -> None:
    p2l, instance = made
    text = write_map(form, p2l, topology=instance.topology, experts=instance.experts).rstrip()
    end = data.draw(st.integers(0, len(text) - 1))
    refusal = ""
    try:
        _read(text[:end], form, instance)
    except InputError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert refusal or form == "tensorrt-llm"  # whose last line may go: it is not read
