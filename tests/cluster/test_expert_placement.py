"""ExpertPlacements on a real control plane with the chart's rights and policies: drift, pause, bad loads, restart."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from controller.operator.api import (
    CONFIG_MAPS,
    CONTROLLER,
    DEPLOYMENTS,
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    PLANS,
    STATEFUL_SETS,
    Api,
    ApiError,
    connect,
)
from controller.operator.experts.restart import EXPERT_MAP, MANAGER
from controller.operator.views import APPROVED
from telemetry.store.store import open_store
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.release import Release
from tests.cluster.scene import Object

SPACE = "experts"
PRODUCT = "ExpertsH"
LAYERS, EXPERTS, GPUS, REDUNDANT = 3, 8, 4, 4
FIRST_S = 400.0
"""The kernels are compiled once."""
MIGRATION = {"minIntervalSeconds": 0, "windowsUntilNext": 100_000, "minNetGainSeconds": 0.001}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of the controller's database."""
    return f"sqlite:///{tmp_path_factory.mktemp('history')}/history.db"


@pytest.fixture(scope="module")
def running(
    plane: ControlPlane, helm: Path, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, int]]:
    """Return a kubeconfig of the leading controller's pod and its port, while it runs with the chart's rights."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {PRODUCT: 2}, prefix="experts", gpus=2)
    release = Release(helm=helm, plane=plane, name="ballast-experts", namespace=SPACE)
    release.install({"crds": {"install": False}, "watchNamespaces": [SPACE]})
    pod = release.pods()[0]
    operators = scene.Operators(
        release.kubeconfig(pod), tmp_path_factory.mktemp("operators"), namespace=SPACE
    )
    one = operators.start(f"--watch-namespaces={SPACE}", f"--database-url={database}", identity=pod)
    yield operators.kubeconfig, one.port
    operators.end()
    for body in api.list(EXPERT_PLACEMENTS, SPACE):
        scene.drop(api, EXPERT_PLACEMENTS, SPACE, body["metadata"]["name"])
    release.uninstall()
    assert "forbidden" not in one.text()
    assert "failed" not in one.text()


@pytest.fixture(scope="module")
def token(running: tuple[Path, int]) -> Path:
    """Return a kubeconfig of the leading controller's pod."""
    return running[0]


@pytest.fixture(scope="module")
def api(plane: ControlPlane, token: Path) -> Api:
    """Return the administrator's API, while a controller runs."""
    assert token.exists()
    return scene.api_of(plane)


def hot(*which: int) -> list[list[float]]:
    """Return loads with some hot experts in every layer."""
    row = [100.0] * EXPERTS
    for expert in which:
        row[expert] = 900.0
    return [row] * LAYERS


def put_load(api: Api, name: str, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    scene.put(api, CONFIG_MAPS, {"metadata": {"name": name, "namespace": SPACE}, "data": {"load.json": text}})


def put(api: Api, name: str, **more: Any) -> None:
    source = {"configMap": {"name": name}, "ewmaAlpha": 1.0}
    body = scene.expert_placement(
        SPACE,
        name,
        nodes=2,
        gpus=GPUS // 2,
        experts=EXPERTS,
        layers=LAYERS,
        redundant=REDUNDANT,
        **{"loadSource": source, "migration": MIGRATION, **more},
    )
    if more.get("topology") is not None:
        body["spec"]["topology"] = more["topology"]
    scene.put(api, EXPERT_PLACEMENTS, body)


def status(api: Api, name: str) -> Object:
    body = api.get(EXPERT_PLACEMENTS, SPACE, name) or {}
    return dict(body.get("status") or {})


def condition(api: Api, name: str, kind: str) -> Object:
    return next((dict(c) for c in status(api, name).get("conditions") or [] if c["type"] == kind), {})


def phase_is(api: Api, name: str, phase: str) -> bool:
    return bool(status(api, name).get("phase") == phase)


def config_map(api: Api, name: str) -> Object:
    return api.get(CONFIG_MAPS, SPACE, f"{name}-experts") or {}


def version(body: Object) -> str:
    return str((body.get("metadata") or {}).get("resourceVersion") or "")


def rows_of(body: Object) -> list[list[int]]:
    found: list[list[int]] = json.loads(body["data"]["map.json"])["physical_to_logical_map"]
    return found


def sound(rows: list[list[int]]) -> bool:
    """Whether every expert has a slot in each layer and none stands twice on a GPU."""
    each = (EXPERTS + REDUNDANT) // GPUS
    parts = [row[at : at + each] for row in rows for at in range(0, len(row), each)]
    whole = all(set(row) == set(range(EXPERTS)) for row in rows)
    return whole and all(len(set(part)) == each for part in parts)


def fullest(rows: list[list[int]], load: list[list[float]]) -> float:
    """Return the load of the fullest GPU over the mean, on average over layers."""
    ratios = []
    for row, counts in zip(rows, load, strict=True):
        parts = [counts[expert] / row.count(expert) for expert in row]
        by_gpu = np.array(parts).reshape(GPUS, -1).sum(axis=1)
        ratios.append(by_gpu.max() / by_gpu.mean())
    return float(np.mean(ratios))


def test_a_drift_changes_the_map_once(api: Api) -> None:
    put_load(api, "drift", {"model": "moe", "load": hot(0, 1, 2, 3)})
    put(api, "drift")
    assert eventually(lambda: phase_is(api, "drift", "Applied"), within_s=FIRST_S)
    first, said = config_map(api, "drift"), status(api, "drift")
    rows = rows_of(first)
    assert sound(rows)
    assert fullest(rows, hot(0, 1, 2, 3)) == pytest.approx(said["balance"]["mean"], rel=1e-4)
    assert said["objectiveUs"] >= said["lowerBoundUs"] > 0
    assert "movedRatio" not in said  # there was no map to move from
    (owner,) = first["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("ExpertPlacement", "drift", True)
    assert first["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "ballast"
    assert {entry["manager"] for entry in first["metadata"]["managedFields"]} == {CONTROLLER}
    text = first["data"]["sglang.json"]
    (output,) = said["outputs"]
    assert output["format"] == "sglang"
    assert output["configMapRef"] == {"name": "drift-experts", "key": "sglang.json"}
    assert output["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(text)["physical_to_logical_map"][1:] == rows

    drifted = hot(0, 1, 6, 7)
    put_load(api, "drift", {"load": drifted})
    assert eventually(lambda: version(config_map(api, "drift")) != version(first), within_s=FIRST_S)
    second = config_map(api, "drift")
    assert eventually(lambda: status(api, "drift").get("movedRatio", 0.0) > 0.0)
    said = status(api, "drift")
    assert fullest(rows_of(second), drifted) < fullest(rows, drifted)
    assert said["netGainSeconds"] > 0.0
    assert said["predictedMoveSeconds"] > 0.0
    # and then nothing is written any more
    scene.wait_s(1.0)
    before = version(api.get(EXPERT_PLACEMENTS, SPACE, "drift") or {})
    scene.wait_s(4.0)
    assert version(config_map(api, "drift")) == version(second)
    assert version(api.get(EXPERT_PLACEMENTS, SPACE, "drift") or {}) == before


def test_a_drift_that_does_not_pay_changes_nothing(api: Api) -> None:
    put_load(api, "dear", {"load": hot(0, 1, 2, 3)})
    put(api, "dear", migration={**MIGRATION, "windowsUntilNext": 1, "bandwidthGBps": 0.001})
    assert eventually(lambda: phase_is(api, "dear", "Applied"), within_s=FIRST_S)
    first = config_map(api, "dear")
    put_load(api, "dear", {"load": hot(0, 1, 6, 7)})
    assert eventually(
        lambda: condition(api, "dear", "Solved").get("reason") == "MoveRefused", within_s=FIRST_S
    )
    said = status(api, "dear")
    assert "of the experts takes" in said["message"]
    assert "the map in force stays" in said["message"]
    assert said["netGainSeconds"] < 0.0 < said["movedRatio"]
    assert said["phase"] == "Applied"
    scene.wait_s(2.0)
    assert version(config_map(api, "dear")) == version(first)


def test_a_pause_holds_the_map(api: Api) -> None:
    put_load(api, "held", {"load": hot(0, 1, 2, 3)})
    put(api, "held")
    assert eventually(lambda: phase_is(api, "held", "Applied"), within_s=FIRST_S)
    first = config_map(api, "held")
    put(api, "held", paused=True)
    assert eventually(lambda: phase_is(api, "held", "Paused"))
    put_load(api, "held", {"load": hot(0, 1, 6, 7)})
    scene.wait_s(3.0)
    assert version(config_map(api, "held")) == version(first)
    put(api, "held")
    assert eventually(lambda: version(config_map(api, "held")) != version(first), within_s=FIRST_S)


@pytest.mark.parametrize(
    ("document", "reason", "words"),
    [
        ({"load": [[1.0, 2.0]] * LAYERS}, "LoadInvalid", "3 MoE layers of 8 experts"),
        ('{"load": [[NaN]]}', "LoadInvalid", "NaN is not JSON"),
        ({"load": hot(0), "model": "another"}, "LoadInvalid", "those of moe"),
        ({"load": [[-1.0] * EXPERTS] * LAYERS}, "LoadInvalid", "counts are finite and not negative"),
        (None, "LoadMissing", "does not exist"),
    ],
    ids=["shape", "nan", "model", "negative", "gone"],
)
def test_bad_loads_are_said_and_the_map_stays(api: Api, document: Any, reason: str, words: str) -> None:
    put_load(api, "bad", {"load": hot(0, 1, 2, 3)})
    put(api, "bad")
    assert eventually(lambda: phase_is(api, "bad", "Applied"), within_s=FIRST_S)
    first = config_map(api, "bad")
    if document is None:
        scene.drop(api, CONFIG_MAPS, SPACE, "bad")
    else:
        put_load(api, "bad", document)
    assert eventually(lambda: condition(api, "bad", "Stale").get("reason") == reason)
    assert words in condition(api, "bad", "Stale")["message"]
    assert status(api, "bad")["phase"] == "Held"
    assert condition(api, "bad", "Applied")["status"] == "True"
    assert version(config_map(api, "bad")) == version(first)


@pytest.mark.parametrize(
    ("engine", "file"),
    [("tensorrt-llm", "trtllm.yaml"), ("vllm", "vllm.json"), ("vllm-ascend", "ascend.json")],
)
def test_every_engine_finds_its_form(api: Api, engine: str, file: str) -> None:
    put_load(api, engine, {"load": hot(0, 1, 2, 3)})
    put(api, engine, engine=engine)
    assert eventually(lambda: phase_is(api, engine, "Applied"), within_s=FIRST_S)
    body = config_map(api, engine)
    rows, found = rows_of(body), yaml.safe_load(body["data"][file])
    if engine == "vllm":
        assert found == rows
    elif engine == "tensorrt-llm":
        assert found["num_slots"] == EXPERTS + REDUNDANT
        assert found["initial_global_assignments"] == {index + 1: row for index, row in enumerate(rows)}
    else:
        devices = [layer["device_list"] for layer in found["layer_list"]]
        assert [[e for d in layer for e in d["device_expert"]] for layer in devices] == rows


def test_a_config_map_of_somebody_else_is_not_touched(api: Api, token: Path) -> None:
    theirs = {"metadata": {"name": "taken-experts", "namespace": SPACE}, "data": {"sglang.json": "mine"}}
    scene.put(api, CONFIG_MAPS, theirs)
    put_load(api, "taken", {"load": hot(0)})
    put(api, "taken")
    assert eventually(lambda: condition(api, "taken", "Applied").get("reason") == "ConfigMapTaken")
    assert config_map(api, "taken")["data"] == {"sglang.json": "mine"}
    # nor could it be: the API server refuses the controller
    controller = Api(client=connect(str(token)))
    with pytest.raises(ApiError, match="Ballast writes ConfigMaps of ExpertPlacements only"):
        controller.apply(CONFIG_MAPS, theirs, manager=CONTROLLER, force=True)
    owner = {
        "apiVersion": EXPERT_PLACEMENTS.api_version,
        "kind": "ExpertPlacement",
        "name": "taken",
        "uid": "0",
        "controller": True,
    }
    grab = {**theirs, "metadata": {**theirs["metadata"], "ownerReferences": [owner]}}
    with pytest.raises(ApiError, match="Ballast never overwrites a ConfigMap of somebody else"):
        controller.apply(CONFIG_MAPS, grab, manager=CONTROLLER, force=True)
    with pytest.raises(ApiError, match="forbidden"):
        controller.request("DELETE", CONFIG_MAPS.path(SPACE, "taken-experts"))


def plan_of(api: Api, name: str) -> Object:
    return api.get(PLANS, SPACE, f"{name}-experts") or {}


def test_ranks_come_from_pods_and_a_restart_waits_for_approval(api: Api) -> None:
    engine = scene.deployment(SPACE, "engine", PRODUCT, replicas=2, gpus=2, kind=STATEFUL_SETS)
    scene.put(api, STATEFUL_SETS, engine)
    put_load(api, "rolled", {"load": hot(0, 1, 2, 3)})
    put(
        api,
        "rolled",
        topology={"bwIntraGBps": 450, "bwInterGBps": 50},
        targetRef={"kind": "StatefulSet", "name": "engine"},
        apply="rolloutRestart",
    )
    assert eventually(lambda: phase_is(api, "rolled", "Proposed"), within_s=FIRST_S)
    plan = plan_of(api, "rolled")
    digest, change = plan["spec"]["digest"], plan["spec"]["experts"]
    assert status(api, "rolled")["planRef"] == {"name": "rolled-experts", "digest": digest}
    assert f"plan/rolled-experts --overwrite {APPROVED}={digest}" in status(api, "rolled")["message"]
    assert plan["status"]["phase"] == "Proposed"
    (owner,) = plan["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("ExpertPlacement", "rolled", True)

    def template() -> Object:
        body = api.get(STATEFUL_SETS, SPACE, "engine") or {}
        return dict(body["spec"]["template"]["metadata"].get("annotations") or {})

    def approve(text: str) -> None:
        patch = {"metadata": {"annotations": {APPROVED: text}}}
        api.patch(PLANS, SPACE, "rolled-experts", patch, manager="kubectl")

    approve("0123456789abcdef")
    scene.wait_s(2.0)
    assert template() == {}
    assert config_map(api, "rolled") == {}  # nor is anything written that a pod could load by itself
    with pytest.raises(ApiError, match="only Ballast writes a Plan's spec"):
        api.patch(PLANS, SPACE, "rolled-experts", {"spec": {"digest": "mine"}}, manager="kubectl")
    approve(digest)
    assert eventually(lambda: template() == {EXPERT_MAP: change["mapDigest"]})
    assert config_map(api, "rolled")["data"] == {file["key"]: file["text"] for file in change["files"]}
    assert eventually(lambda: phase_is(api, "rolled", "Applied"), within_s=120)
    done = plan_of(api, "rolled")["status"]
    assert (done["phase"], done["step"], done["approvedDigest"]) == ("Applied", 2, digest)
    assert done["epoch"] > 0
    body = api.get(STATEFUL_SETS, SPACE, "engine") or {}
    assert body["spec"]["replicas"] == 2
    ours = [entry for entry in body["metadata"]["managedFields"] if entry["manager"] == MANAGER]
    assert len(ours) == 1
    assert "f:replicas" not in ours[0]["fieldsV1"]["f:spec"]
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "rolled")
    assert eventually(lambda: not config_map(api, "rolled"))  # the map goes with its placement
    assert eventually(lambda: not plan_of(api, "rolled"))
    assert template() == {EXPERT_MAP: change["mapDigest"]}
    scene.drop(api, STATEFUL_SETS, SPACE, "engine")


def test_what_may_be_written_at_once_has_a_plan_too(api: Api) -> None:
    put_load(api, "kept", {"load": hot(0, 1, 2, 3)})
    put(api, "kept")
    assert eventually(lambda: phase_is(api, "kept", "Applied"), within_s=FIRST_S)
    plan = plan_of(api, "kept")
    assert (plan["status"]["phase"], plan["status"]["step"]) == ("Applied", 1)
    assert [step["action"] for step in plan["spec"]["experts"]["steps"]] == ["WriteMap"]
    first = plan["spec"]["experts"]
    put_load(api, "kept", {"load": hot(0, 1, 6, 7)})
    assert eventually(
        lambda: plan_of(api, "kept")["spec"]["digest"] != plan["spec"]["digest"], within_s=FIRST_S
    )
    change = plan_of(api, "kept")["spec"]["experts"]
    assert eventually(lambda: status(api, "kept")["digest"] == change["mapDigest"])
    assert eventually(lambda: plan_of(api, "kept")["status"]["phase"] == "Applied")
    assert change["lowerBoundUs"] <= change["objectiveUs"] < change["objectiveBeforeUs"]
    assert change["netGainSeconds"] > 0 < change["movedRatio"]
    assert first["mapDigest"] != change["mapDigest"]


def test_gauges_come_and_go_with_the_object(api: Api, running: tuple[Path, int]) -> None:
    def rows() -> dict[str, float]:
        page = httpx.get(f"http://127.0.0.1:{running[1]}/metrics").text.splitlines()
        mine = [line.rsplit(" ", 1) for line in page if line.startswith("ballast_expert_")]
        return {name: float(value) for name, value in mine if 'name="seen"' in name}

    put_load(api, "seen", {"load": hot(0, 1, 2, 3)})
    put(api, "seen")
    assert eventually(lambda: phase_is(api, "seen", "Applied"), within_s=FIRST_S)
    assert eventually(lambda: len(rows()) >= 10)
    found, of = rows(), f'{{name="seen",namespace="{SPACE}"}}'
    said = status(api, "seen")
    assert found[f"ballast_expert_objective_seconds{of}"] == pytest.approx(said["objectiveUs"] * 1e-6)
    assert found[f"ballast_expert_balance_max_ratio{of}"] == said["balance"]["max"]
    assert found[f'ballast_expert_condition{{condition="Applied",name="seen",namespace="{SPACE}"}}'] == 1.0
    assert 0.0 <= found[f"ballast_expert_load_age_seconds{of}"] < 600.0
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "seen")
    assert eventually(lambda: not rows())


def test_a_service_of_the_plans_name_leaves_it_alone(api: Api) -> None:
    put_load(api, "clash", {"load": hot(0, 1, 2, 3)})
    put(api, "clash")
    assert eventually(lambda: phase_is(api, "clash", "Applied"), within_s=FIRST_S)
    before = plan_of(api, "clash")["spec"]
    scene.put(api, GPU_PROFILES, scene.profile("clash", PRODUCT, max_rps=1.0, price=1.0))
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "clash", PRODUCT, replicas=0))
    variants = [scene.variant("one", "clash", "clash")]
    body = scene.service(SPACE, "clash-experts", variants, traffic=scene.histogram(0.5))
    scene.put(api, MODEL_SERVICES, body)

    def message() -> str:
        return str(scene.condition(api, SPACE, "clash-experts", "PlanReady").get("message"))

    assert eventually(lambda: "is that of an ExpertPlacement" in message())
    assert plan_of(api, "clash")["spec"] == before
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "clash")
    # its Plan goes with it, and the name is free
    assert eventually(lambda: "modelServiceRef" in plan_of(api, "clash").get("spec", {}), within_s=60)
    put(api, "clash")  # and the other way round
    assert eventually(lambda: condition(api, "clash", "Applied").get("reason") == "PlanTaken")
    assert "modelServiceRef" in plan_of(api, "clash")["spec"]
    for resource, name in ((MODEL_SERVICES, "clash-experts"), (DEPLOYMENTS, "clash")):
        scene.drop(api, resource, SPACE, name)
    scene.drop(api, GPU_PROFILES, None, "clash")
    assert eventually(lambda: phase_is(api, "clash", "Applied"), within_s=60)


def test_pods_that_do_not_show_the_group_are_waited_for(api: Api) -> None:
    put_load(api, "alone", {"load": hot(0)})
    put(
        api,
        "alone",
        topology={"bwIntraGBps": 450, "bwInterGBps": 50},
        targetRef={"kind": "StatefulSet", "name": "nobody"},
    )
    assert eventually(lambda: condition(api, "alone", "Infeasible").get("reason") == "TopologyUnknown")
    assert "epSize is 4" in status(api, "alone")["message"]
    assert not config_map(api, "alone")


def test_loads_are_kept_in_the_history_and_read_from_it(api: Api, database: str, tmp_path: Path) -> None:
    fast = {"windowSeconds": 10, "ewmaAlpha": 1.0}
    put_load(api, "kept", {"load": hot(0, 1, 2, 3)})
    put(api, "kept", loadSource={"configMap": {"name": "kept"}, **fast})
    put(api, "second", loadSource={"sqlStore": {"recording": "kept"}, "maxAgeSeconds": 3600, **fast})
    put(api, "lonely", loadSource={"sqlStore": {"recording": "nobody"}, **fast})
    assert eventually(lambda: phase_is(api, "second", "Applied"), within_s=FIRST_S)
    first = config_map(api, "second")
    store = open_store(database)
    found = store.expert_load(f"{SPACE}/kept", window_s=10)
    assert found is not None
    assert np.array_equal(found.load, np.array(hot(0, 1, 2, 3)))
    assert eventually(lambda: condition(api, "lonely", "Stale").get("reason") == "LoadMissing")
    # a person records what comes next; the placement follows
    drifted = hot(0, 1, 6, 7)
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"load": drifted}), encoding="utf-8")
    os.utime(path, (found.end_s + 10, found.end_s + 10))
    words = [f"--recording={SPACE}/kept", "--model=moe", "--window-s=10", f"--database-url={database}"]
    assert eventually(lambda: time.time() > found.end_s + 10)
    command = [sys.executable, "-c", "from controller.cli.root import main; main()", "experts", "record"]
    done = subprocess.run([*command, str(path), *words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{SPACE}/kept: 1 of 1 windows written")
    assert eventually(lambda: version(config_map(api, "second")) != version(first), within_s=60)
    assert fullest(rows_of(config_map(api, "second")), drifted) < fullest(rows_of(first), drifted)
    assert condition(api, "second", "Stale")["reason"] == "Fresh"
    store.close()
