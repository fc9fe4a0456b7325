"""The loop over ExpertPlacements without a cluster: what is written when, what holds, and what the status says."""

import copy
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from controller.operator.api import (
    CONFIG_MAPS,
    EXPERT_PLACEMENTS,
    Api,
    Object,
)
from controller.operator.experts.child import Failure
from controller.operator.experts.gauges import follow_experts
from controller.operator.experts.group import topology_of
from controller.operator.experts.outputs import MOST_BYTES, data_of, name_of
from controller.operator.metrics import Metrics
from controller.operator.times import written_time
from controller.operator.views import PAUSED
from controller.resources.expert_placement import ExpertPlacementSpec, ExpertPlacementStatus
from controller.resources.kinds import EXPERT_PLACEMENT
from solver.domain.errors import InputError
from tests.cluster import objects
from tests.cluster.scene import expert_placement
from tests.controller.experts_stage import (
    HOT_FIRST,
    HOT_LAST,
    KEY,
    SPACE,
    Stage,
    source,
    staged,
    wish,
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as one:
        yield one


def test_a_map_is_written_once_and_found_again(stage: Stage) -> None:
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    status = stage.go()
    body = stage.maps()
    assert body is not None
    assert set(body["data"]) == {"sglang.json", "map.json"}
    rows = json.loads(body["data"]["sglang.json"])["physical_to_logical_map"]
    assert len(rows) == 3  # one dense layer in front
    assert rows[1:] == json.loads(body["data"]["map.json"])["physical_to_logical_map"]
    assert body["metadata"]["ownerReferences"][0]["uid"] == "uid-moe"
    assert (status["phase"], status["message"]) == ("Applied", "as planned")
    assert status["outputs"][0]["configMapRef"] == {"name": "moe-experts", "key": "sglang.json"}
    assert len(status["outputs"][0]["sha256"]) == 64
    assert status["objectiveUs"] >= status["lowerBoundUs"] > 0
    assert 0 <= status["gap"] < 1
    assert status["balance"]["max"] >= status["balance"]["mean"] >= 1
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Solved": "True",
        "Applied": "True",
        "Stale": "False",
        "Infeasible": "False",
    }
    writes = len(stage.cluster.writes)
    stage.go(5, later_s=1000.0)
    assert len(stage.cluster.writes) == writes  # nothing changes, nothing is written
    assert len(stage.placer.tasks) == 1
    # whoever leads next finds the map, and nothing moves
    stage.loop._books.clear()
    stage.go(2)
    assert stage.placer.tasks[-1].previous is not None
    assert [kind for kind, _ in stage.cluster.writes].count(CONFIG_MAPS.kind) == 1


def test_a_drift_changes_the_map_once_and_one_that_does_not_pay_changes_nothing(stage: Stage) -> None:
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    first = copy.deepcopy(stage.maps())
    stage.load(HOT_LAST)
    status = stage.go(3)
    second = stage.maps()
    assert first is not None
    assert second is not None
    assert first["data"] != second["data"]
    assert status["movedRatio"] > 0
    assert status["netGainSeconds"] > 0
    assert [kind for kind, _ in stage.cluster.writes].count(CONFIG_MAPS.kind) == 2
    # a drift so small that moving costs more than it saves
    little = wish(loadSource=source())
    little["spec"]["migration"] |= {"windowsUntilNext": 1, "bandwidthGBps": 0.001}
    stage.put(little, 2)
    stage.load(HOT_FIRST)
    status = stage.go(3)
    assert stage.maps() == second
    solved = stage.condition("Solved")
    assert (solved["status"], solved["reason"]) == ("True", "MoveRefused")
    assert "of the experts takes" in solved["message"]
    assert "the map in force stays" in status["message"]
    assert status["netGainSeconds"] < 0
    assert status["phase"] == "Applied"


def test_a_gain_below_the_least_is_passed_on(stage: Stage) -> None:
    body = wish(loadSource=source())
    body["spec"]["migration"]["minNetGainSeconds"] = 12.5
    stage.put(body)
    stage.load(HOT_FIRST)
    stage.go()
    assert stage.placer.tasks[0].least_gain_s == 12.5


def test_the_interval_holds_but_not_against_another_wish(stage: Stage) -> None:
    body = wish(loadSource=source())
    body["spec"]["migration"]["minIntervalSeconds"] = 600
    stage.put(body)
    stage.load(HOT_FIRST)
    stage.go()
    stage.load(HOT_LAST)
    status = stage.go(later_s=500.0)
    assert "another map is sought 600 s after the last" in status["message"]
    writes = len(stage.cluster.writes)
    stage.go(3, later_s=10.0)
    assert len(stage.cluster.writes) == writes
    assert len(stage.placer.tasks) == 1
    stage.go(later_s=100.0)
    assert len(stage.placer.tasks) == 2
    stage.load(HOT_FIRST)
    body["spec"]["engine"] = "vllm"
    stage.put(body, 2)
    stage.go()
    assert len(stage.placer.tasks) == 3
    found = stage.maps()
    assert found is not None
    assert set(found["data"]) >= {"vllm.json", "map.json"}


def test_a_pause_holds_everything(stage: Stage) -> None:
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    held = stage.maps()
    stage.put(wish(loadSource=source(), paused=True), 2)
    stage.load(HOT_LAST)
    status = stage.go(3)
    assert stage.maps() == held
    assert status["phase"] == "Paused"
    assert stage.condition("Applied")["reason"] == "Paused"
    assert status["outputs"]  # where the map is stays said
    stage.put(wish(loadSource=source()), 3, **{PAUSED: "true"})
    assert stage.go()["phase"] == "Paused"
    assert len(stage.placer.tasks) == 1
    stage.put(wish(loadSource=source()), 3)
    stage.go()
    assert stage.maps() != held


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (None, "LoadMissing", "ConfigMap moe does not exist"),
        ({"other": "{}"}, "LoadMissing", "has no key load.json"),
        ({"load.json": "{"}, "LoadInvalid", "ConfigMap moe, load.json: not JSON"),
        ({"load.json": '{"load": [[1, 2], [3, 4]]}'}, "LoadInvalid", "2 MoE layers of 8 experts"),
        ({"load.json": '{"load": [[NaN]]}'}, "LoadInvalid", "NaN"),
        ({"load.json": json.dumps({"load": HOT_LAST, "model": "x"})}, "LoadInvalid", "those of moe"),
        ({"load.json": json.dumps({"load": [[0] * 8] * 2})}, "NoTokens", "no tokens"),
    ],
)
def test_bad_loads_are_said_and_the_map_stays(
    stage: Stage, data: Object | None, reason: str, words: str
) -> None:
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    held = stage.maps()
    if data is None:
        del stage.cluster.objects[CONFIG_MAPS.kind, "moe"]
    else:
        stage.cluster.put(CONFIG_MAPS, "moe", data=data)
    status = stage.go(2)
    stale = stage.condition("Stale")
    assert (stale["status"], stale["reason"]) == ("True", reason)
    assert words in stale["message"]
    assert status["phase"] == "Held"
    assert stage.maps() == held
    assert stage.condition("Applied")["status"] == "True"
    stage.load(HOT_FIRST)
    assert stage.go()["phase"] == "Applied"  # the same recording is back: nothing new
    assert stage.maps() == held
    stage.load(HOT_LAST)
    assert stage.go()["phase"] == "Applied"
    assert stage.maps() != held


def test_somebody_elses_config_map_is_never_touched(stage: Stage) -> None:
    theirs = stage.cluster.put(CONFIG_MAPS, "moe-experts", data={"sglang.json": "mine"})
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    status = stage.go(2)
    assert stage.maps() == theirs
    assert stage.condition("Applied")["reason"] == "ConfigMapTaken"
    assert "rename or delete it" in status["message"]
    assert stage.placer.tasks == []


def test_apply_none_says_figures_and_writes_nothing(stage: Stage) -> None:
    stage.put(wish(loadSource=source(), apply="none"))
    stage.load(HOT_FIRST)
    status = stage.go(2)
    assert stage.maps() is None
    assert status["phase"] == "Solved"
    assert status["objectiveUs"] > 0
    assert "outputs" not in status
    assert stage.condition("Applied")["reason"] == "NotAsked"


def test_gauges_say_what_the_status_says_and_go_with_the_object(stage: Stage) -> None:
    metrics = Metrics()
    follow_experts(metrics, stage.loop)

    def read() -> dict[str, float]:
        rows = generate_latest(metrics.registry).decode().splitlines()
        pairs = [row.rsplit(" ", 1) for row in rows if row.startswith("ballast_expert_")]
        return {name.removeprefix("ballast_expert_"): float(value) for name, value in pairs}

    assert read() == {}
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    stage.load(HOT_LAST)
    stamp = {"creationTimestamp": written_time(stage.now_s - 90.0)}
    stage.cluster.objects[CONFIG_MAPS.kind, "moe"]["metadata"] |= stamp
    status = stage.go(2)
    found = read()
    of = f'{{name="moe",namespace="{SPACE}"}}'
    assert found[f"objective_seconds{of}"] == pytest.approx(status["objectiveUs"] * 1e-6)
    assert found[f"lower_bound_seconds{of}"] == pytest.approx(status["lowerBoundUs"] * 1e-6)
    assert found[f"gap_ratio{of}"] == status["gap"]
    assert found[f"balance_max_ratio{of}"] == status["balance"]["max"]
    assert found[f"moved_ratio{of}"] == status["movedRatio"] > 0
    assert found[f"net_gain_seconds{of}"] == status["netGainSeconds"]
    assert found[f"solve_seconds{of}"] >= 0
    assert found[f"load_age_seconds{of}"] == pytest.approx(90.0, abs=1.0)
    told = {name: value for name, value in found.items() if name.startswith("condition")}
    assert len(told) == 4
    assert told[f'condition{{condition="Applied",name="moe",namespace="{SPACE}"}}'] == 1.0
    assert told[f'condition{{condition="Stale",name="moe",namespace="{SPACE}"}}'] == 0.0
    stage.world.remove(EXPERT_PLACEMENTS.kind, KEY)
    assert read() == {}
    stage.loop.once()
    assert read() == {}


def test_a_solver_that_fails_is_said_and_tried_later(stage: Stage) -> None:
    stage.placer.fails = Failure(reason="SolverOverran", message="too slow; the map in force stays")
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    status = stage.go(3)
    assert stage.condition("Solved")["reason"] == "SolverOverran"
    assert status["message"].startswith("too slow")
    assert len(stage.placer.tasks) == 1
    stage.placer.fails = None
    stage.loop._books[KEY].until_s = 0.0
    assert stage.go()["phase"] == "Applied"


def test_a_refused_write_is_tried_again(stage: Stage) -> None:
    stage.cluster.refuses = 409
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go(2)
    assert stage.maps() is None
    stage.cluster.refuses = 0
    assert stage.go()["phase"] == "Applied"


def test_a_write_that_may_not_be_is_said_and_waits(stage: Stage) -> None:
    stage.cluster.refuses = 403
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    status = stage.go(4)
    assert stage.condition("Applied")["reason"] == "WriteRefused"
    assert status["message"] == "a write was refused: refused"
    assert len(stage.placer.tasks) == 1
    stage.cluster.refuses = 0
    stage.loop._books[KEY].until_s = 0.0
    assert stage.go()["phase"] == "Applied"


def test_uneven_slots_are_no_engines(stage: Stage) -> None:
    body = wish(loadSource=source())
    gpus = [{"id": index, "slots": slots} for index, slots in enumerate((3, 1, 2, 2))]
    body["spec"]["topology"]["nodes"] = [{"name": "n", "gpus": gpus}]
    stage.put(body)
    stage.load(HOT_FIRST)
    status = stage.go()
    assert status["phase"] == "Infeasible"
    assert stage.condition("Infeasible")["reason"] == "EngineRefuses"
    assert stage.maps() is None
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    topology = topology_of(KEY, spec, {})
    assert topology.slots_per_gpu == (3, 1, 2, 2)
    rows = np.array([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, dtype=np.int32)
    with pytest.raises(InputError, match="engines need equally many"):
        data_of(spec, topology, rows)


@pytest.mark.parametrize(
    ("engine", "file"),
    [
        ("sglang", "sglang.json"),
        ("tensorrt-llm", "trtllm.yaml"),
        ("vllm", "vllm.json"),
        ("vllm-ascend", "ascend.json"),
    ],
)
def test_every_engine_has_its_file(engine: str, file: str) -> None:
    spec = ExpertPlacementSpec.model_validate(wish(engine=engine)["spec"])
    rows = np.array([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, dtype=np.int32)
    assert set(data_of(spec, topology_of(KEY, spec, {}), rows)) == {file, "map.json"}


def test_a_map_beyond_a_config_map_is_refused() -> None:
    body = expert_placement(SPACE, "moe", nodes=4, gpus=16, experts=2048, layers=256)
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    rows = np.tile(np.arange(2048, dtype=np.int32), (256, 1))
    with pytest.raises(InputError, match=f"a ConfigMap holds {MOST_BYTES}"):
        data_of(spec, topology_of(KEY, spec, {}), rows)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(spec=objects.valid_specs(EXPERT_PLACEMENT), recorded=st.booleans())
def test_whatever_the_server_takes_gets_a_status(spec: Object, recorded: bool) -> None:  # noqa: FBT001
    with staged() as stage:
        spec["loadSource"] = source(ewmaAlpha=spec["loadSource"].get("ewmaAlpha", 0.3))
        model = spec["modelRef"]
        stage.put({"metadata": {"name": "moe"}, "spec": spec})
        if recorded and model["moeLayers"] * model["experts"] < 20_000:
            stage.load([[float(expert) for expert in range(model["experts"])]] * model["moeLayers"])
        status = stage.go(2)
        assert ExpertPlacementStatus.model_validate(status).written()["phase"] == status["phase"]
        assert status["message"]


def test_an_odd_object_does_not_stand_in_the_way_of_others(stage: Stage) -> None:
    broken = wish(loadSource=source())
    broken["metadata"]["name"] = "broken"
    broken["spec"]["epSize"] = "many"
    stage.put(broken)
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    assert stage.go()["phase"] == "Applied"
    status = stage.cluster.objects[EXPERT_PLACEMENTS.kind, "broken"]["status"]
    assert status["phase"] == "Infeasible"
    assert "spec.epSize" in status["message"]


def test_names_of_config_maps_fit() -> None:
    assert name_of((SPACE, "a")) == "a-experts"
    assert len(name_of((SPACE, "a" * 253))) == 253
    assert name_of((SPACE, f"{'a' * 244}.{'b' * 8}")) == f"{'a' * 244}-experts"


def test_the_api_has_what_the_loop_calls() -> None:
    assert {"get", "apply"} <= set(dir(Api))
