"""The whole story on one cluster: recommend, approve, automatic, more traffic, no metrics, cordon, pause, delete."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.operator.api import (
    CONTROLLER,
    DEPLOYMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    NODES,
    PLANS,
    PODS,
    Api,
)
from controller.operator.views import APPROVED
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually, free_port
from tests.cluster.engines import Engines, engines
from tests.cluster.release import Release
from tests.cluster.scene import variant

SPACE = "scene"
PRODUCTS = {"SceneA10G": 8, "SceneA100": 8, "SceneH100": 4}
NAMES = {"a10g": "SceneA10G", "a100": "SceneA100", "h100": "SceneH100"}
PROFILES = {"a10g": (0.5, 1.0), "a100": (2.0, 3.7), "h100": (6.0, 9.0)}
"""Requests per second and US$ per hour of one replica of four GPUs."""


@pytest.fixture(scope="module")
def api(plane: ControlPlane, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return the API of a cluster of twenty nodes and three targets, and an operator with the rights of the chart."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, PRODUCTS, prefix="scene")
    for name, (rate, price) in PROFILES.items():
        product = NAMES[name]
        scene.put(
            api,
            GPU_PROFILES,
            scene.profile(f"scene-{name}", product, max_rps=rate, price=price, gpus=4),
        )
        started = 2 if name == "a10g" else 0
        body = scene.deployment(SPACE, f"chat-{name}", product, replicas=started, gpus=4)
        scene.put(api, DEPLOYMENTS, body)
    release = Release(helm=helm, plane=plane, name="ballast-scene", namespace=SPACE)
    release.install({"crds": {"install": False}, "watchNamespaces": [SPACE]})
    pod = release.pods()[0]
    operators = scene.Operators(release.kubeconfig(pod), tmp_path_factory.mktemp("scene"), namespace=SPACE)
    one = operators.start(f"--watch-namespaces={SPACE}", "--traffic-window=6", identity=pod)
    yield api
    operators.end()
    release.uninstall()
    assert "forbidden" not in one.text()


@pytest.fixture(scope="module")
def load(api: Api) -> Iterator[Engines]:
    """Return the engines that answer for the pods."""
    with engines(api, SPACE, free_port()) as running:
        yield running


def put(api: Api, port: int, *, mode: str, paused: bool = False) -> None:
    variants = [variant(name, f"chat-{name}", f"scene-{name}", minReplicas=0) for name in PROFILES]
    traffic = {"scrape": {"engine": "vllm", "port": port, "path": "/metrics"}}
    more = {"paused": paused, "forecast": {"horizon": "1m"}}
    body = scene.service(SPACE, "chat", variants, traffic=traffic, mode=mode, interval_s=6, **more)
    scene.put(api, MODEL_SERVICES, body)


def asked(api: Api) -> dict[str, int]:
    return {name: scene.replicas(api, SPACE, f"chat-{name}") or 0 for name in PROFILES}


def ready(api: Api) -> dict[str, int]:
    return {name: scene.ready(api, SPACE, f"chat-{name}") for name in PROFILES}


def capacity(replicas: dict[str, int]) -> float:
    return sum(PROFILES[name][0] * count for name, count in replicas.items())


def wait_watching(api: Api, rate: float, until: str) -> None:
    """Wait until the plan is applied; at no look may ready capacity fall below the traffic once it was above."""
    deadline = time.monotonic() + 60
    carried = False
    while time.monotonic() < deadline:
        now = capacity(ready(api))
        assert now >= rate or not carried, f"{until}: {now} requests/s ready for {rate}"
        carried = carried or now >= rate
        if scene.phase(api, SPACE, "chat") == "Applied" and carried:
            plan = scene.plan_of(api, SPACE, "chat")["spec"]
            if {w["variant"]: w["replicas"] for w in plan["desired"]} == asked(api) == ready(api):
                return
        time.sleep(0.05)
    pytest.fail(f"{until}: not applied; {asked(api)}, {scene.plan_of(api, SPACE, 'chat').get('status')}")


def test_the_whole_story(api: Api, load: Engines) -> None:
    # Recommend: a plan with cost, bound and gap appears and waits
    load.rate_rps = 0.9
    put(api, load.port, mode="Recommend")
    assert eventually(lambda: ready(api)["a10g"] == 2)

    def proposed() -> dict[str, int]:
        plan = scene.plan_of(api, SPACE, "chat")
        if not plan or (plan.get("status") or {}).get("phase") != "Proposed":
            return {}
        return {w["variant"]: w["replicas"] for w in plan["spec"]["desired"]}

    load.rate_rps = 5.0
    wanted = eventually(lambda: plan if capacity(plan := proposed()) >= 5.0 / 0.95 else {}, within_s=60)
    assert wanted, scene.condition(api, SPACE, "chat", "TelemetryReady")
    spec = scene.plan_of(api, SPACE, "chat")["spec"]
    assert spec["costUsdPerHour"] >= spec["lowerBoundUsdPerHour"] > 0
    assert 0 <= spec["gapRatio"] <= 1
    told = scene.condition(api, SPACE, "chat", "ForecastReady")
    assert (told["status"], told["reason"]) == ("False", "ShortHistory"), told
    service = api.get(MODEL_SERVICES, SPACE, "chat") or {}
    assert service["status"]["forecast"]["rule"] == "largest sample"
    assert asked(api) == {"a10g": 2, "a100": 0, "h100": 0}

    # approve: what is missing comes first, pods land on their nodes, what is not needed goes
    digest = spec["digest"]
    api.patch(
        PLANS, SPACE, "chat", {"metadata": {"annotations": {APPROVED: digest}}}, manager="kubectl-annotate"
    )
    wait_watching(api, 0.9, "approved")
    wanted = {w["variant"]: w["replicas"] for w in spec["desired"]}
    assert asked(api) == wanted
    for pod in api.list(PODS, SPACE):
        product = pod["spec"].get("nodeSelector", {}).get(scene.LABEL)
        if product is None:
            continue  # of the controller itself
        assert pod["spec"]["nodeName"].startswith(f"scene-{product.lower()}-")

    # Auto, traffic doubles
    put(api, load.port, mode="Auto")
    load.rate_rps = 10.0
    assert eventually(lambda: capacity(asked(api)) >= 10.0, within_s=60), asked(api)
    wait_watching(api, 10.0, "doubled")

    # metrics vanish: a plan that was under way may still add what it was to add, nothing is taken away
    load.mute = True
    assert eventually(lambda: scene.condition(api, SPACE, "chat", "TelemetryReady").get("status") == "False")
    before = asked(api)
    time.sleep(6)
    held = asked(api)
    assert all(held[name] >= before[name] for name in held), (before, held)
    load.mute = False
    assert eventually(lambda: scene.condition(api, SPACE, "chat", "TelemetryReady").get("status") == "True")

    # an H100 node is cordoned, then all: another plan
    assert held["h100"] >= 1
    for index in range(PRODUCTS["SceneH100"]):
        api.patch(
            NODES, None, f"scene-sceneh100-{index}", {"spec": {"unschedulable": True}}, manager="kubectl"
        )
    assert eventually(lambda: asked(api)["h100"] == 0, within_s=60), scene.plan_of(api, SPACE, "chat")
    wait_watching(api, 10.0, "cordoned")

    # paused: nothing moves
    put(api, load.port, mode="Auto", paused=True)
    assert eventually(lambda: scene.condition(api, SPACE, "chat", "Applied").get("reason") == "Paused")
    held = asked(api)
    load.rate_rps = 20.0
    time.sleep(6)
    assert asked(api) == held

    # deleted: replicas stay, nothing else does
    scene.drop(api, MODEL_SERVICES, SPACE, "chat")
    assert eventually(lambda: api.get(PLANS, SPACE, "chat") is None)
    assert eventually(lambda: not leftovers(api)), leftovers(api)
    assert asked(api) == held


def leftovers(api: Api) -> list[str]:
    """Name what still speaks of Ballast on the targets."""
    found = []
    for name in PROFILES:
        metadata = (api.get(DEPLOYMENTS, SPACE, f"chat-{name}") or {})["metadata"]
        found += [key for key in metadata.get("annotations") or {} if key.startswith("ballast.dev/")]
        found += [e["manager"] for e in metadata["managedFields"] if e["manager"] == CONTROLLER]
    return found
