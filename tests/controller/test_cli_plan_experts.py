"""``ballast plan experts`` as users run it: answers, engines' files, exit codes, one line when it fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.controller.test_cli_plan import ballast

FIELDS = {
    "schema",
    "version",
    "status",
    "physical_to_logical_map",
    "objective_us",
    "objective_transition_us",
    "objective_dispatch_us",
    "lower_bound_us",
    "gap_ratio",
    "balance_max_over_mean",
    "cross_gpu_ratio",
    "cross_node_ratio",
    "moved_ratio",
    "move_s",
    "net_gain_s",
    "refused",
    "solve_s",
}
LAYERS, EXPERTS = 3, 8


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """Write a small problem: 3 layers of 8 experts on 4 GPUs of 2 nodes, 3 slots each."""
    draw = np.random.default_rng(0)
    tokens = draw.zipf(1.4, size=(600, LAYERS)) % EXPERTS
    sample = np.stack([tokens, (tokens + 1 + draw.integers(0, 2, tokens.shape)) % EXPERTS], axis=2)
    load = np.array([np.bincount(sample[:, k].ravel(), minlength=EXPERTS) for k in range(LAYERS)])
    trans = np.zeros((LAYERS - 1, EXPERTS, EXPERTS), dtype=np.int64)
    for k in range(LAYERS - 1):
        for here in range(2):
            for there in range(2):
                np.add.at(trans[k], (sample[:, k, here], sample[:, k + 1, there]), 1)
    np.savez(tmp_path / "small.npz", load=load, trans=trans)
    document = {
        "format": "moe-placement-instance/1",
        "name": "small",
        "layers": LAYERS,
        "experts": EXPERTS,
        "top_k": 2,
        "gpus": 4,
        "gpu_node": [0, 0, 1, 1],
        "slots_per_gpu": [3, 3, 3, 3],
        "gpu_speed": [1.0, 1.0, 1.0, 1.0],
        "us_per_token_expert": 0.5,
        "bytes_per_token_copy": 8192,
        "bw_intra_GBps": 450.0,
        "bw_inter_GBps": 50.0,
        "expert_bytes": 1000,
        "migration_bw_GBps": 25.0,
        "windows_until_next": 10,
        "migration_margin": 0.1,
        "arrays": "small.npz",
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(document))
    return path


def answer(*args: str) -> dict[str, Any]:
    done = ballast("plan", "experts", *args, "-o", "json")
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def refusal(*args: str, code: int = 1) -> str:
    done = ballast("plan", "experts", *args)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1, lines
    return lines[-1]


def test_the_answer_has_every_field_of_the_contract(instance: Path) -> None:
    found = answer(str(instance))
    assert set(found) >= FIELDS
    assert found["schema"] == "expert-placement/1"
    rows = found["physical_to_logical_map"]
    assert [len(row) for row in rows] == [12] * LAYERS
    assert all(set(row) == set(range(EXPERTS)) for row in rows)
    assert found["objective_us"] == found["objective_transition_us"]
    assert found["lower_bound_us"] <= found["objective_us"]
    assert found["moved_ratio"] is None


def test_equal_runs_give_equal_bytes(instance: Path) -> None:
    runs = [ballast("plan", "experts", str(instance), "-o", "json", "--no-timings").stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert "solve_s" not in runs[0]


def test_a_plan_scores_as_it_says_and_can_be_the_map_in_force(instance: Path, tmp_path: Path) -> None:
    found = answer(str(instance), "--comm", "dispatch")
    assert found["objective_us"] == found["objective_dispatch_us"]
    path = tmp_path / "map.json"
    path.write_text(json.dumps(found))
    scored = answer(str(instance), "--score", str(path))
    for field in (
        "objective_transition_us",
        "objective_dispatch_us",
        "balance_max_over_mean",
        "cross_gpu_ratio",
    ):
        assert scored[field] == pytest.approx(found[field], rel=1e-9)
    again = answer(str(instance), "--previous", str(path), "--comm", "dispatch")
    assert again["moved_ratio"] == 0.0
    assert again["physical_to_logical_map"] == found["physical_to_logical_map"]


def test_a_move_that_does_not_pay_is_refused(instance: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    linear = [[s % EXPERTS for s in range(12)] for _ in range(LAYERS)]
    path.write_text(json.dumps({"physical_to_logical_map": linear}))
    moved = answer(str(instance), "--previous", str(path))
    assert not moved["refused"]
    assert moved["net_gain_s"] > 0
    few = answer(str(instance), "--previous", str(path), "--max-moved", "0.06")
    assert 0 < few["moved_ratio"] <= 0.06
    document = json.loads(instance.read_text())
    instance.write_text(json.dumps({**document, "expert_bytes": 10**15}))
    refused = answer(str(instance), "--previous", str(path))
    assert refused["refused"]
    assert refused["moved_ratio"] == 0.0
    assert refused["physical_to_logical_map"] == linear
    assert refused["proposed"]["net_gain_s"] <= 0


@pytest.mark.parametrize("method", ["moetuner", "exflow", "eplb"])
def test_other_methods(instance: Path, method: str) -> None:
    document = json.loads(instance.read_text())
    instance.write_text(json.dumps({**document, "slots_per_gpu": [2, 2, 2, 2]}))
    assert answer(str(instance), "--method", method)["method"] == method


def test_engines_load_what_is_printed(instance: Path) -> None:
    def printed(form: str, *more: str) -> str:
        done = ballast("plan", "experts", str(instance), "--comm", "dispatch", "--format", form, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sglang = json.loads(printed("sglang", "--first-moe-layer", "1"))
    assert list(sglang) == ["physical_to_logical_map"]
    assert len(sglang["physical_to_logical_map"]) == LAYERS + 1
    tensorrt = yaml.safe_load(printed("tensorrt-llm", "--first-moe-layer", "3"))
    assert list(tensorrt["initial_global_assignments"]) == [3, 4, 5]
    assert tensorrt["num_slots"] == 12
    ascend = json.loads(printed("vllm-ascend"))
    assert ascend["moe_layer_count"] == LAYERS


def test_loads_come_from_a_recording_too(instance: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, EXPERTS, (50, LAYERS, 2)).astype(np.int32)
    tokens[:, :, 1] = (tokens[:, :, 0] + 1) % EXPERTS
    np.save(tmp_path / "tokens.npy", tokens)
    recording = ("--recording", str(tmp_path / "tokens.npy"), "--recording-format", "tokens")
    assert answer(str(instance), *recording)["nodes_per_token"] is not None
    np.save(tmp_path / "tokens.npy", tokens[:, :2])
    assert "another model" in refusal(str(instance), *recording)


def test_a_table_is_for_people(instance: Path) -> None:
    done = ballast("plan", "experts", str(instance))
    assert done.returncode == 0
    assert "gap to the bound" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_bad_input_is_told_in_one_line(instance: Path, tmp_path: Path) -> None:
    assert "no such file" in refusal(str(tmp_path / "nothing.json")).lower()
    bad = tmp_path / "map.json"
    bad.write_text(json.dumps({"physical_to_logical_map": [[0] * 12] * LAYERS}))
    assert "layer 0: expert 1 has no slot" in refusal(str(instance), "--score", str(bad))
    bad.write_text(json.dumps({"physical_to_logical_map": [[99] * 12] * LAYERS}))
    assert "layer 0, slot 0: expert 99" in refusal(str(instance), "--previous", str(bad))
    document = json.loads(instance.read_text())
    instance.write_text(json.dumps({**document, "slots_per_gpu": [1, 1, 1, 1]}))
    assert "8 experts do not fit into 4 slots" in refusal(str(instance))
    with np.load(tmp_path / "small.npz") as stored:
        load = stored["load"].astype(float)
    instance.write_text(json.dumps(document))
    load[1, 2] = np.nan
    np.savez(tmp_path / "small.npz", load=load)
    message = refusal(str(instance), "--comm", "dispatch")
    assert "layer 1" in message
    assert "nan" in message
    load[1, 2] = 5
    np.savez(tmp_path / "small.npz", load=load)
    assert "--comm dispatch" in refusal(str(instance))
    assert answer(str(instance), "--comm", "dispatch")["objective_transition_us"] is None


def test_options_that_do_not_go_together(instance: Path) -> None:
    assert "--previous" in refusal(str(instance), "--max-moved", "0.1", code=2)
    assert "--score" in refusal(str(instance), "--score", str(instance), "--format", "sglang", code=2)
    assert "--format" in refusal(str(instance), "--first-moe-layer", "3", code=2)
    refusal(str(instance), "--max-moved", "2", code=2)


def test_a_time_limit_still_answers(instance: Path) -> None:
    done = ballast("plan", "experts", str(instance), "--mode", "full", "--time-limit", "0.0001", "-o", "json")
    assert done.returncode in {0, 4}
    assert json.loads(done.stdout)["physical_to_logical_map"]
