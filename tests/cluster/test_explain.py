"""``ballast explain`` on a real control plane: what it tells is what the cluster says, and what it advises works."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    PLANS,
    STATEFUL_SETS,
    Api,
)
from controller.operator.views import PAUSED
from tests.cluster import scene
from tests.cluster.accounts import ACCOUNTS, BINDINGS, ROLES, kubeconfig_of
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.scene import histogram, variant
from tests.commands import BALLAST

SPACE = "explain"
CHEAP, FAST = "ExplainCheap", "ExplainFast"


@pytest.fixture(scope="module")
def api(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return the API of a cluster with two small pools and a running operator."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {CHEAP: 2, FAST: 1}, prefix="explain", gpus=4)
    scene.put(api, GPU_PROFILES, scene.profile("explain-cheap", CHEAP, max_rps=1.0, price=1.0))
    scene.put(api, GPU_PROFILES, scene.profile("explain-fast", FAST, max_rps=6.0, price=5.0))
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("explain"), namespace=SPACE)
    operators.start(f"--watch-namespaces={SPACE}")
    try:
        yield api
    finally:
        operators.end()


def put(api: Api, name: str, *, traffic: Any, running: int = 0, **more: Any) -> None:
    """Put a service with a cheap and a fast variant."""
    for letter, product in (("c", CHEAP), ("f", FAST)):
        if api.get(DEPLOYMENTS, SPACE, f"{name}-{letter}") is None:
            replicas = running if letter == "c" else 0
            body = scene.deployment(SPACE, f"{name}-{letter}", product, replicas=replicas)
            scene.put(api, DEPLOYMENTS, body)
    bounds = more.pop("bounds", {})
    variants = [
        variant("cheap", f"{name}-c", "explain-cheap", **bounds),
        variant("fast", f"{name}-f", "explain-fast"),
    ]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, name, variants, traffic=traffic, **more))


def remove(api: Api, name: str) -> None:
    scene.drop(api, MODEL_SERVICES, SPACE, name)
    for letter in "cf":
        scene.drop(api, DEPLOYMENTS, SPACE, f"{name}-{letter}")
    assert eventually(lambda: api.get(PLANS, SPACE, name) is None)


def run(*words: str, kubeconfig: Path, space: str | None = SPACE) -> subprocess.CompletedProcess[str]:
    where = ["--kubeconfig", str(kubeconfig), *(["-n", space] if space else [])]
    return subprocess.run(
        [*BALLAST, "explain", *words, *where],
        check=False,
        capture_output=True,
        text=True,
        cwd=scene.ROOT,
        timeout=120,
    )


def told(resource: str, plane: ControlPlane, *, schema: str = "explain/1") -> dict[str, Any]:
    done = run(resource, "-o", "json", kubeconfig=plane.kubeconfig)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["schema"] == schema
    return answer


def test_from_proposal_to_plan_by_its_own_advice(api: Api, plane: ControlPlane, kubectl: Path) -> None:
    put(api, "chat", traffic=histogram(8.0), running=3, mode="Recommend")
    assert eventually(lambda: scene.ready(api, SPACE, "chat-c") == 3)
    assert eventually(lambda: scene.phase(api, SPACE, "chat") == "Proposed")
    assert eventually(
        lambda: scene.condition(api, SPACE, "chat", "Applied").get("reason") == "WaitingForApproval"
    )
    answer = told("modelservice/chat", plane)
    spec = scene.plan_of(api, SPACE, "chat")["spec"]
    assert answer["plan"]["digest"] == spec["digest"]
    assert answer["plan"]["phase"] == "Proposed"
    assert answer["current_cost_usd_per_h"] == 3.0
    assert answer["plan"]["cost_usd_per_h"] == spec["costUsdPerHour"] == 8.0
    assert {v["name"]: (v["replicas"], v["planned"]) for v in answer["variants"]} == {
        "cheap": (3, 3),
        "fast": (0, 1),
    }
    assert answer["best"]["replicas"] == {"cheap": 3, "fast": 1}
    assert answer["best"]["differs"] is None
    # nine cheap ones would be needed and only eight fit; two fast ones cost ten
    assert answer["second_best"] == {
        "gpu_pools": [FAST],
        "cost_with_changes_usd_per_h": 10.0,
        "proved": True,
    }
    assert {"kind": "headroom", "name": None, "saving_usd_per_h": 1.0} in answer["binding"]
    assert [step["state"] for step in answer["plan"]["steps"]] == ["proposed"]
    routed = sum(row["requests_per_s"] for row in answer["plan"]["routing"])
    assert routed == pytest.approx(8.0, abs=1e-4)
    (advice,) = answer["next"]
    words = shlex.split(advice["command"])
    assert words[0] == "kubectl"
    done = subprocess.run(
        [kubectl, "--kubeconfig", plane.kubeconfig, *words[1:]],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: scene.phase(api, SPACE, "chat") == "Applied")
    assert eventually(lambda: scene.condition(api, SPACE, "chat", "Applied").get("status") == "True")
    answer = told("plan/chat", plane)
    assert [step["state"] for step in answer["plan"]["steps"]] == ["done"]
    assert answer["current_cost_usd_per_h"] == 8.0
    table = run("modelservice/chat", kubeconfig=plane.kubeconfig)
    assert table.returncode == 0, table.stderr
    assert max(map(len, table.stdout.splitlines())) <= 100
    assert "- nothing: all is as planned" in table.stdout
    assert f"second best on other GPUs: {FAST}" in table.stdout
    remove(api, "chat")


def test_experts_from_proposal_to_plan_by_its_own_advice(
    api: Api, plane: ControlPlane, kubectl: Path
) -> None:
    scene.put(api, STATEFUL_SETS, scene.deployment(SPACE, "moe", CHEAP, replicas=1, kind=STATEFUL_SETS))
    loads = json.dumps({"load": [[900.0, 900, 900, 900, 100, 100, 100, 100]] * 3})
    scene.put(
        api, CONFIG_MAPS, {"metadata": {"name": "moe", "namespace": SPACE}, "data": {"load.json": loads}}
    )
    body = scene.expert_placement(
        SPACE,
        "moe",
        nodes=2,
        gpus=2,
        experts=8,
        layers=3,
        redundant=4,
        apply="rolloutRestart",
        targetRef={"kind": "StatefulSet", "name": "moe"},
    )
    scene.put(api, EXPERT_PLACEMENTS, body)

    def status() -> Any:
        return (api.get(EXPERT_PLACEMENTS, SPACE, "moe") or {}).get("status") or {}

    assert eventually(lambda: status().get("phase") == "Proposed", within_s=400)
    answer = told("expertplacement/moe", plane, schema="explain-experts/1")
    assert answer["plan"]["digest"] == status()["planRef"]["digest"]
    assert [step["state"] for step in answer["plan"]["steps"]] == ["proposed", "proposed"]
    assert answer["why"][0] == "there is no map yet"
    assert any("computing on the fullest GPU" in one for one in answer["binds"])
    assert any("waits for approval" in one for one in answer["why_not"])
    (advice,) = answer["next"]
    done = subprocess.run(
        [kubectl, "--kubeconfig", plane.kubeconfig, *shlex.split(advice["command"])[1:]],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: status().get("phase") == "Applied", within_s=120)
    answer = told("plan/moe-experts", plane, schema="explain-experts/1")
    assert [step["state"] for step in answer["plan"]["steps"]] == ["done", "done"]
    assert any("minIntervalSeconds 600" in one for one in answer["why_not"])
    table = run("eplace/moe", kubeconfig=plane.kubeconfig)
    assert table.returncode == 0, table.stderr
    assert max(map(len, table.stdout.splitlines())) <= 100
    assert "- nothing: all is as planned" in table.stdout
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "moe")
    scene.drop(api, STATEFUL_SETS, SPACE, "moe")


def test_what_others_hold_binds(api: Api, plane: ControlPlane) -> None:
    put(api, "big", traffic=histogram(5.0), bounds={"minReplicas": 6})
    assert eventually(lambda: scene.ready(api, SPACE, "big-c") == 6)
    put(api, "late", traffic=histogram(3.6), mode="Recommend")
    assert eventually(lambda: scene.phase(api, SPACE, "late") == "Proposed")
    answer = told("modelservice/late", plane)
    # four cheap ones would do, two are left; one fast one costs five
    assert answer["best"]["replicas"] == {"cheap": 0, "fast": 1}
    assert answer["binding"] == [{"kind": "gpus", "name": CHEAP, "saving_usd_per_h": 1.0}]
    big = told("modelservice/big", plane)
    assert {"kind": "min-replicas", "name": "cheap", "saving_usd_per_h": 1.0} in big["binding"]
    remove(api, "late")
    remove(api, "big")


def test_an_infeasible_service_is_told_what_would_help(api: Api, plane: ControlPlane) -> None:
    put(api, "huge", traffic=histogram(100.0))
    assert eventually(lambda: scene.condition(api, SPACE, "huge", "SolverReady").get("status") == "False")
    answer = told("modelservice/huge", plane)
    assert answer["plan"] is None
    assert answer["best"]["status"] == "infeasible"
    assert {one["name"] for one in answer["binding"]} == {CHEAP, FAST}
    assert all(one["saving_usd_per_h"] is None for one in answer["binding"])
    assert "add GPU nodes" in answer["next"][0]["what"]
    table = run("modelservice/huge", kubeconfig=plane.kubeconfig).stdout
    assert "without this there would be a plan" in table
    remove(api, "huge")


def test_measured_traffic_is_explained_by_the_plan_s_own(api: Api, plane: ControlPlane) -> None:
    rows = "\n".join(f"{index * 0.5},512,128" for index in range(240))
    text = f"arrival_s,prompt_tokens,output_tokens\n{rows}\n"
    body = {"metadata": {"name": "t", "namespace": SPACE}, "data": {"trace.csv": text}}
    scene.put(api, CONFIG_MAPS, body)
    put(api, "trace", traffic={"traceConfigMap": {"name": "t", "key": "trace.csv"}})
    assert eventually(lambda: scene.phase(api, SPACE, "trace") == "Applied")
    answer = told("modelservice/trace", plane)
    assert answer["best"]["traffic_from"] == "plan"
    assert answer["best"]["replicas"] == {"cheap": 3, "fast": 0}
    assert answer["best"]["differs"] is None
    remove(api, "trace")


def test_a_pause_is_named_where_it_stands(api: Api, plane: ControlPlane, kubectl: Path) -> None:
    put(api, "calm", traffic=histogram(1.0), paused=True)
    patch = {"metadata": {"annotations": {PAUSED: "true"}}}
    api.patch(MODEL_SERVICES, SPACE, "calm", patch, manager="kubectl")
    assert eventually(lambda: scene.condition(api, SPACE, "calm", "Applied").get("reason") == "Paused")
    answer = told("modelservice/calm", plane)
    assert answer["paused"]
    assert [advice["what"] for advice in answer["next"]] == [
        "spec.paused holds it",
        "an annotation pauses it",
    ]
    for advice in answer["next"]:
        words = shlex.split(advice["command"])[1:]
        subprocess.run([kubectl, "--kubeconfig", plane.kubeconfig, *words], check=True, capture_output=True)
    assert eventually(lambda: scene.phase(api, SPACE, "calm") == "Applied")
    remove(api, "calm")


def test_with_rights_in_one_namespace_only(api: Api, plane: ControlPlane) -> None:
    put(api, "mine", traffic=histogram(1.0))
    assert eventually(lambda: scene.phase(api, SPACE, "mine") == "Applied")
    account = {"metadata": {"name": "team", "namespace": SPACE}}
    api.apply(ACCOUNTS, account, manager="tests", force=True)
    rules = [
        {"apiGroups": [group], "resources": resources, "verbs": ["get", "list"]}
        for group, resources in (
            ("", ["pods"]),
            ("apps", ["deployments", "statefulsets"]),
            ("ballast.dev", ["modelservices", "plans"]),
        )
    ]
    metadata = {"name": "team", "namespace": SPACE}
    api.apply(ROLES, {"metadata": metadata, "rules": rules}, manager="tests", force=True)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "team"}
    subjects = [{"kind": "ServiceAccount", "name": "team", "namespace": SPACE}]
    binding = {"metadata": metadata, "roleRef": reference, "subjects": subjects}
    api.apply(BINDINGS, binding, manager="tests", force=True)
    config = kubeconfig_of(plane, SPACE, "team")
    done = run("modelservice/mine", "-o", "json", kubeconfig=config, space=None)  # the context's namespace
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["plan"]["phase"] == "Applied"
    assert any("GpuProfile" in note and "Node" in note for note in answer["notes"])
    assert any("in this namespace only" in note and "Pod" in note for note in answer["notes"])
    remove(api, "mine")


def test_what_is_not_there_is_one_line(api: Api, plane: ControlPlane) -> None:
    put(api, "there", traffic=histogram(1.0))
    for words, code, part in (
        (("modelservice/absent",), 1, f"there are {SPACE}/there"),
        (("plan/absent",), 1, "there is no Plan absent"),
        (("pod/there",), 2, "is not modelservice/NAME, expertplacement/NAME or plan/NAME"),
        (("eplace/absent",), 1, "there is no ExpertPlacement absent"),
        (("there",), 2, "is not modelservice/NAME, expertplacement/NAME or plan/NAME"),
    ):
        done = run(*words, kubeconfig=plane.kubeconfig)
        assert done.returncode == code
        (line,) = done.stderr.splitlines()
        assert part in line
    remove(api, "there")


def test_a_service_nobody_looks_after(api: Api, plane: ControlPlane) -> None:
    space = "explain-alone"
    scene.ensure_namespace(api, space)
    body = scene.service(space, "lone", [variant("one", "x", "explain-cheap")], traffic=histogram(1.0))
    scene.put(api, MODEL_SERVICES, body)
    done = run("modelservice/lone", kubeconfig=plane.kubeconfig, space=space)
    assert done.returncode == 0, done.stderr
    assert "no controller has looked at this service" in done.stdout
    assert "      ballast doctor" in done.stdout
    scene.drop(api, MODEL_SERVICES, space, "lone")
