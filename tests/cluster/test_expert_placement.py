"""ExpertPlacements on a real control plane with the chart's rights and policies: drift, pause, bad loads, restart."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.operator.api import (
    CONFIG_MAPS,
    CONTROLLER,
    EXPERT_PLACEMENTS,
    STATEFUL_SETS,
    Api,
    ApiError,
    connect,
)
from controller.operator.experts.restart import EXPERT_MAP, MANAGER
from controller.operator.views import APPROVED
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
def token(plane: ControlPlane, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a kubeconfig of the leading controller's pod, while it runs with the rights of the chart."""
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
    one = operators.start(f"--watch-namespaces={SPACE}", identity=pod)
    yield operators.kubeconfig
    operators.end()
    for body in api.list(EXPERT_PLACEMENTS, SPACE):
        scene.drop(api, EXPERT_PLACEMENTS, SPACE, body["metadata"]["name"])
    release.uninstall()
    assert "forbidden" not in one.text()
    assert "failed" not in one.text()


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
    digest = status(api, "rolled")["digest"]
    assert f"{APPROVED}={digest}" in status(api, "rolled")["message"]

    def template() -> Object:
        body = api.get(STATEFUL_SETS, SPACE, "engine") or {}
        return dict(body["spec"]["template"]["metadata"].get("annotations") or {})

    def approve(text: str) -> None:
        api.patch(
            EXPERT_PLACEMENTS,
            SPACE,
            "rolled",
            {"metadata": {"annotations": {APPROVED: text}}},
            manager="kubectl",
        )

    approve("0123456789abcdef")
    scene.wait_s(2.0)
    assert template() == {}
    approve(digest)
    assert eventually(lambda: template() == {EXPERT_MAP: digest})
    assert eventually(lambda: phase_is(api, "rolled", "Applied"), within_s=120)
    body = api.get(STATEFUL_SETS, SPACE, "engine") or {}
    assert body["spec"]["replicas"] == 2
    ours = [entry for entry in body["metadata"]["managedFields"] if entry["manager"] == MANAGER]
    assert len(ours) == 1
    assert "f:replicas" not in ours[0]["fieldsV1"]["f:spec"]
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "rolled")
    assert eventually(lambda: not config_map(api, "rolled"))  # the map goes with its placement
    assert template() == {EXPERT_MAP: digest}
    scene.drop(api, STATEFUL_SETS, SPACE, "engine")


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
