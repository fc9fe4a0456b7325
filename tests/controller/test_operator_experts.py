"""The loop over ExpertPlacements without a cluster: what is written when, what holds, and what the status says."""

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.operator.api import (
    CONFIG_MAPS,
    EXPERT_PLACEMENTS,
    STATEFUL_SETS,
    Api,
    ApiError,
    Object,
    Resource,
)
from controller.operator.experts.child import Failure, Placer, Task
from controller.operator.experts.group import topology_of
from controller.operator.experts.loop import ExpertLoop, ExpertSettings
from controller.operator.experts.outputs import MOST_BYTES, data_of, name_of
from controller.operator.experts.recorded import look
from controller.operator.experts.restart import EXPERT_MAP
from controller.operator.experts.smoothing import Smoothed
from controller.operator.notices import Notices
from controller.operator.views import APPROVED, PAUSED
from controller.operator.world import Pod, World
from controller.resources.expert_placement import ExpertPlacementSpec, ExpertPlacementStatus
from controller.resources.kinds import EXPERT_PLACEMENT
from solver.domain.errors import InputError
from solver.domain.moe import ExpertPlan, ExpertPlanStatus, Slots
from solver.experts.bounds import lower_bounds_s
from solver.experts.score import move_between, score_map
from telemetry.experts.recording import ExpertRecording
from tests.cluster import objects
from tests.cluster.scene import expert_placement
from tests.telemetry.loopback import say, serving

SPACE = "team"
KEY = (SPACE, "moe")
HOT_FIRST = [[500.0, 500, 500, 500, 100, 100, 100, 100]] * 2
HOT_LAST = [[500.0, 500, 100, 100, 100, 100, 500, 500]] * 2
"""Under the map for the first, its hot experts meet on one GPU."""


@dataclass
class Cluster:
    """A store of objects with resource versions; writes are counted."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    writes: list[tuple[str, str]] = field(default_factory=list)
    refuses: int = 0
    """Code that every write of a ConfigMap meets."""
    version: int = 10

    def put(self, resource: Resource, name: str, **body: Any) -> Object:
        self.version += 1
        known = self.objects.get((resource.kind, name), {"metadata": {}})
        metadata = {
            **known["metadata"],
            "name": name,
            "namespace": SPACE,
            **body.pop("metadata", {}),
            "resourceVersion": str(self.version),
        }
        whole = {**known, **body, "metadata": metadata}
        self.objects[resource.kind, name] = whole
        return copy.deepcopy(whole)

    def get(self, resource: Resource, _namespace: str | None, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((resource.kind, name)))

    def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        subresource: str | None = None,
        force: bool = False,
    ) -> Object:
        del manager, force
        name = body["metadata"]["name"]
        if self.refuses and resource is CONFIG_MAPS:
            raise ApiError(self.refuses, "refused")
        known = self.objects.get((resource.kind, name))
        asked = body["metadata"]["resourceVersion"]
        if asked != ("1" if known is None else known["metadata"]["resourceVersion"]):
            raise ApiError(409, "the object has been modified")
        self.writes.append((resource.kind, subresource or name))
        new = copy.deepcopy(body)
        if resource is STATEFUL_SETS:
            new["spec"] = {**(known or {}).get("spec", {}), **new["spec"]}
        return self.put(resource, name, **new)


def zigzag(task: Task) -> Slots:
    """Place the hottest experts on different GPUs, the next in the other direction, and so on."""
    gpus = task.instance.topology.gpus
    each = task.instance.slots // gpus
    rows = []
    for load in task.instance.load:
        order = np.argsort(-load, kind="stable")
        held: list[list[int]] = [[] for _ in range(gpus)]
        for place in range(task.instance.slots):
            turn, at = divmod(place, gpus)
            held[at if turn % 2 == 0 else gpus - 1 - at].append(int(order[place % len(order)]))
        assert all(len(part) == each for part in held)
        rows.append([expert for part in held for expert in part])
    return np.array(rows, dtype=np.int32)


@dataclass
class Zigzag(Placer):
    """A solver of a few lines, by the same rules of refusal."""

    tasks: list[Task] = field(default_factory=list)
    fails: Failure | None = None

    def place(self, task: Task) -> ExpertPlan | Failure:
        self.tasks.append(task)
        if self.fails is not None:
            return self.fails
        instance, p2l = task.instance, zigzag(task)
        move = proposed = None
        if task.previous is not None:
            saved_s = score_map(instance, task.previous).dispatch_s - score_map(instance, p2l).dispatch_s
            move = move_between(instance, task.previous, p2l, saved_s=saved_s)
            if not (move.net_gain_s or 0.0) > task.least_gain_s:
                p2l, proposed = task.previous, move
        bounds = lower_bounds_s(instance, "dispatch")
        return ExpertPlan(
            instance_name=instance.name,
            status=ExpertPlanStatus.FEASIBLE,
            method="ballast",
            communication="dispatch",
            physical_to_logical=p2l,
            score=score_map(instance, p2l),
            lower_bound_s=float(bounds.sum()),
            lower_bound_by_layer_s=(),
            move=move,
            refused=proposed is not None,
            proposed=proposed,
        )


@dataclass
class Stage:
    """A loop, its cluster, and a clock."""

    cluster: Cluster
    world: World
    placer: Zigzag
    loop: ExpertLoop
    now_s: float = 1_800_000_000.0

    def put(self, body: Object, generation: int = 1, **annotations: str) -> None:
        """Create or change the placement."""
        name = body["metadata"]["name"]
        metadata = {"uid": f"uid-{name}", "generation": generation, "annotations": annotations}
        whole = self.cluster.put(EXPERT_PLACEMENTS, name, spec=body["spec"], metadata=metadata)
        self.world.put(EXPERT_PLACEMENTS.kind, whole)

    def load(self, rows: Any, **more: Any) -> None:
        """Record loads."""
        self.cluster.put(CONFIG_MAPS, "moe", data={"load.json": json.dumps({"load": rows, **more})})

    def go(self, rounds: int = 1, *, later_s: float = 0.0) -> Object:
        """Let the loop go round; returns the status."""
        self.now_s += later_s
        for _ in range(rounds):
            self.loop.once()
        status: Object = self.cluster.objects[EXPERT_PLACEMENTS.kind, "moe"].get("status") or {}
        return status

    def condition(self, kind: str) -> Object:
        status = self.cluster.objects[EXPERT_PLACEMENTS.kind, "moe"]["status"]
        return next(dict(c) for c in status["conditions"] if c["type"] == kind)

    def maps(self) -> Object | None:
        return self.cluster.objects.get((CONFIG_MAPS.kind, "moe-experts"))


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as one:
        yield one


@contextmanager
def staged() -> Iterator[Stage]:
    """Set a loop up."""
    cluster: Any = Cluster()
    world, placer = World(), Zigzag()
    notices = Notices(api=cluster, instance="tests")
    loop = ExpertLoop(
        world=world, api=cluster, reading=cluster, notices=notices, settings=ExpertSettings(), placer=placer
    )
    one = Stage(cluster=cluster, world=world, placer=placer, loop=loop)
    loop.clock = lambda: one.now_s
    yield one
    loop._pool.shutdown()


def wish(**more: Any) -> Object:
    migration = {"minIntervalSeconds": 0, "windowsUntilNext": 100_000}
    return expert_placement(
        SPACE, "moe", nodes=2, gpus=2, experts=8, layers=2, **{"migration": migration, **more}
    )


def source(**more: Any) -> Object:
    return {"configMap": {"name": "moe"}, "ewmaAlpha": 1.0, **more}


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


def stateful_set(stage: Stage, *, updated: int = 1) -> None:
    known = stage.cluster.objects.get(
        (STATEFUL_SETS.kind, "engine"), {"spec": {"replicas": 1, "template": {}}}
    )
    generation = int(known["metadata"].get("generation", 0)) + 1 if "metadata" in known else 1
    counts = {"readyReplicas": 1, "replicas": 1, "updatedReplicas": updated, "observedGeneration": generation}
    metadata = {"uid": "s", "generation": generation}
    stage.cluster.put(STATEFUL_SETS, "engine", spec=known["spec"], status=counts, metadata=metadata)


def test_a_restart_waits_for_the_digest_and_no_other_map_comes_meanwhile(stage: Stage) -> None:
    body = wish(
        loadSource=source(), apply="rolloutRestart", targetRef={"kind": "StatefulSet", "name": "engine"}
    )
    stateful_set(stage)
    stage.put(body)
    stage.load(HOT_FIRST)
    status = stage.go(2)
    digest = status["digest"]
    assert status["phase"] == "Proposed"
    assert f"{APPROVED}={digest}" in status["message"]
    stage.load(HOT_LAST)
    stage.put(body, 1, **{APPROVED: "another"})
    assert stage.go(2)["digest"] == digest
    assert (STATEFUL_SETS.kind, "engine") not in stage.cluster.writes
    stage.put(body, 1, **{APPROVED: digest})
    assert stage.go()["phase"] == "Applying"
    template = stage.cluster.objects[STATEFUL_SETS.kind, "engine"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {EXPERT_MAP: digest}
    stateful_set(stage, updated=0)
    stage.go(3)
    assert stage.cluster.writes.count((STATEFUL_SETS.kind, "engine")) == 1  # one restart, not one per round
    assert len(stage.placer.tasks) == 1
    stateful_set(stage)
    status = stage.go(2)  # rolled out; now the drift counts, and is proposed
    assert len(stage.placer.tasks) == 2
    assert status["digest"] != digest
    assert status["phase"] == "Proposed"
    auto = copy.deepcopy(body)
    auto["spec"]["mode"] = "Auto"
    stage.put(auto, 2)
    assert stage.go()["phase"] == "Applying"
    stateful_set(stage)
    assert stage.go()["phase"] == "Applied"


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


def pod(name: str, node: str, gpus: int, owner: tuple[str, str]) -> Pod:
    return Pod(key=(SPACE, name), node=node, gpus=gpus, owner=owner, ip="", ready=True, serves=True)


def test_ranks_follow_the_ordinals_of_pods() -> None:
    body = wish(
        targetRef={"kind": "LeaderWorkerSet", "apiVersion": "leaderworkerset.x-k8s.io/v1", "name": "e"}
    )
    del body["spec"]["topology"]["nodes"]
    body["spec"] |= {"epSize": 24, "redundantExperts": 16}
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    owner = ("LeaderWorkerSet", "e")
    names = ["e-0", *(f"e-0-{index}" for index in range(1, 12))]
    pods = {
        (SPACE, name): pod(name, f"n{place // 4}", 2, owner) for place, name in reversed([*enumerate(names)])
    }
    pods[SPACE, "other"] = pod("other", "n9", 8, ("StatefulSet", "e"))
    topology = topology_of(KEY, spec, pods)
    assert topology.gpu_node == (0,) * 8 + (1,) * 8 + (2,) * 8
    del pods[SPACE, "e-0-3"]
    with pytest.raises(InputError, match="22 GPUs of all its pods, epSize is 24"):
        topology_of(KEY, spec, pods)


def test_nobody_knows_the_ranks_of_a_deployments_pods() -> None:
    body = wish(targetRef={"kind": "Deployment", "name": "e"})
    del body["spec"]["topology"]["nodes"]
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    owner = ("Deployment", "e")
    with pytest.raises(InputError, match="nobody knows their ranks"):
        topology_of(
            KEY, spec, {(SPACE, f"e-{index}"): pod(f"e-{index}", "n", 2, owner) for index in range(2)}
        )
    one = topology_of(KEY, spec, {(SPACE, "e"): pod("e", "n", 4, owner)})
    assert one.gpu_node == (0, 0, 0, 0)


def test_windows_are_weighed() -> None:
    def recording(*windows: float) -> ExpertRecording:
        rows = np.array([[[value]] for value in windows])
        return ExpertRecording(source="s", load=rows.sum(axis=0), windows=rows if len(windows) > 1 else None)

    smoothed = Smoothed()
    smoothed.add(recording(100.0), 0.25)
    smoothed.add(recording(200.0), 0.25)
    assert smoothed.load is not None
    assert smoothed.load.tolist() == [[125.0]]
    assert smoothed.windows == 2
    smoothed.add(recording(10.0, 20.0), 0.5)  # a recording with windows brings its history along
    assert smoothed.load.tolist() == [[15.0]]


def spec_of(load_source: Object) -> ExpertPlacementSpec:
    return ExpertPlacementSpec.model_validate(wish(loadSource=load_source)["spec"])


def test_a_dump_over_http_is_read_within_bounds() -> None:
    api: Any = None
    good = say(json.dumps({"logical_count": [[[0] * 8, *[[5] * 8] * 2]]}))
    with serving({"/good": good, "/bad": say("[]"), "/none": say("", 404)}) as address:
        found = look(api, KEY, spec_of({"httpDump": {"url": f"{address}/good"}}), folder="")
        assert found.recording is not None
        assert found.recording.load.tolist() == [[5.0] * 8] * 2
        for path, words in (("bad", "not an object"), ("none", "HTTP 404")):
            found = look(api, KEY, spec_of({"httpDump": {"url": f"{address}/{path}"}}), folder="")
            assert found.reason == "LoadInvalid"
            assert words in found.message


def test_a_prometheus_is_asked_once_per_window(stage: Stage) -> None:
    asked = []

    def answer(request: Any, form: dict[str, str]) -> None:
        asked.append(form["query"])
        result = [
            {"metric": {"layer": str(layer), "expert": str(expert)}, "value": [0, str(count)]}
            for layer, row in enumerate(HOT_FIRST)
            for expert, count in enumerate(row)
        ]
        say(json.dumps({"data": {"resultType": "vector", "result": result}}))(request, form)

    with serving({"/api/v1/query": answer}) as address:
        stage.now_s = time.time()  # what is measured is of now
        prometheus = {"url": address, "metric": "tokens_total"}
        stage.put(wish(loadSource={"prometheus": prometheus, "windowSeconds": 60}))
        assert stage.go(3)["phase"] == "Applied"
    assert asked == ["sum by (layer, expert) (increase(tokens_total{}[60s]))"]
    held = stage.maps()
    stage.loop._books[KEY].next_look_s = 0.0  # the window is over, and the server gone
    assert stage.go(2)["phase"] == "Held"
    assert stage.condition("Stale")["reason"] == "LoadInvalid"
    assert stage.maps() == held


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


def test_a_volume_is_read_in_the_folder_of_the_namespace_only(tmp_path: Path) -> None:
    api: Any = None
    own = tmp_path / "loads" / SPACE
    own.mkdir(parents=True)
    (tmp_path / "secret.json").write_text(json.dumps({"load": HOT_FIRST}), encoding="utf-8")
    spec = spec_of({"pvc": {"claim": "loads", "path": "now.json"}})
    assert look(api, KEY, spec, folder="").reason == "LoadMissing"
    assert look(api, KEY, spec, folder=str(tmp_path)).reason == "LoadMissing"
    (own / "now.json").symlink_to(tmp_path / "secret.json")
    assert look(api, KEY, spec, folder=str(tmp_path)).reason == "LoadUnreadable"
    (own / "now.json").unlink()
    (own / "now.json").write_text(json.dumps({"load": HOT_FIRST}), encoding="utf-8")
    found = look(api, KEY, spec, folder=str(tmp_path))
    assert found.recording is not None
    assert look(api, KEY, spec, folder=str(tmp_path), known=found) is found  # not read twice
    (own / "now.json").write_text("{", encoding="utf-8")
    broken = look(api, KEY, spec, folder=str(tmp_path), known=found)
    assert broken.reason == "LoadInvalid"
    assert str(tmp_path) not in broken.message


def test_old_recordings_are_stale_where_an_age_is_given(stage: Stage) -> None:
    stage.put(wish(loadSource=source(maxAgeSeconds=60)))
    stage.load(HOT_FIRST)
    stage.cluster.objects[CONFIG_MAPS.kind, "moe"]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    stage.go()
    assert stage.condition("Stale")["reason"] == "LoadOld"
    assert stage.maps() is None


def test_the_history_is_not_read_yet(stage: Stage) -> None:
    stage.put(wish(loadSource={"sqlStore": {"recording": "r"}}))
    stage.go()
    assert stage.condition("Stale")["reason"] == "SourceNotSupported"


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
