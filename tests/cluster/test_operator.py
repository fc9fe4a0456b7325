"""The operator on a real control plane: approval, kinds of targets, owners of replicas, release, pause, annotations."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.operator.api import (
    CONTROLLER,
    DEPLOYMENTS,
    GPU_PROFILES,
    HTTP_ROUTES,
    LEADER_WORKER_SETS,
    MODEL_SERVICES,
    NODES,
    PLANS,
    STATEFUL_SETS,
    Api,
    ApiError,
    Resource,
)
from controller.operator.views import ADOPTED_BY, APPROVED, MANAGED, PAUSED, PREVIOUS_MANAGER
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.release import Release
from tests.cluster.scene import histogram, variant

SPACE = "operator-basics"
AUTOSCALERS = Resource(
    api_version="autoscaling/v2", kind="HorizontalPodAutoscaler", plural="horizontalpodautoscalers"
)


@pytest.fixture(scope="module")
def api(plane: ControlPlane, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return the API of a cluster with nodes, profiles, and an operator with the rights of the chart."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    install_leader_worker_sets(api)
    scene.add_nodes(plane, {"BasicA": 3, "BasicH": 2}, prefix="basics")
    scene.put(api, GPU_PROFILES, scene.profile("basic-a", "BasicA", max_rps=1.0, price=1.0))
    scene.put(api, GPU_PROFILES, scene.profile("basic-h", "BasicH", max_rps=6.0, price=5.0))
    scene.put(api, GPU_PROFILES, scene.profile("basic-group", "BasicH", max_rps=6.0, price=5.0, gpus=4))
    release = Release(helm=helm, plane=plane, name="ballast-basics", namespace=SPACE)
    release.install({"crds": {"install": False}, "watchNamespaces": [SPACE]})
    pod = release.pods()[0]
    folder = tmp_path_factory.mktemp("operators")
    operators = scene.Operators(release.kubeconfig(pod), folder, namespace=SPACE)
    one = operators.start(f"--watch-namespaces={SPACE}", identity=pod)
    yield api
    operators.end()
    release.uninstall()
    assert "forbidden" not in one.text()


def install_leader_worker_sets(api: Api) -> None:
    """Install a definition with the fields of a LeaderWorkerSet that are read and written."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    body = {
        "metadata": {
            "name": "leaderworkersets.leaderworkerset.x-k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": "leaderworkerset.x-k8s.io",
            "names": {
                "kind": "LeaderWorkerSet",
                "plural": "leaderworkersets",
                "listKind": "LeaderWorkerSetList",
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {
                                    "type": "object",
                                    "x-kubernetes-preserve-unknown-fields": True,
                                    "properties": {"replicas": {"type": "integer", "default": 1}},
                                },
                                "status": anything,
                            },
                        }
                    },
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.hpaPodSelector",
                        },
                    },
                }
            ],
        },
    }
    if api.get(scene.CRD, None, "leaderworkersets.leaderworkerset.x-k8s.io") is None:
        api.create(scene.CRD, None, body)
    assert eventually(lambda: served(api))


def served(api: Api) -> bool:
    """Whether the kind can be listed."""
    try:
        return api.names(LEADER_WORKER_SETS) is not None
    except ApiError:
        return False  # its storage is being set up


def put_pair(api: Api, name: str, rate: float, *, mode: str = "Auto", **more: Any) -> None:
    """Put a service with two Deployments on two GPU types."""
    for letter, product in (("a", "BasicA"), ("h", "BasicH")):
        if api.get(DEPLOYMENTS, SPACE, f"{name}-{letter}") is None:
            scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, f"{name}-{letter}", product))
    variants = [variant("a", f"{name}-a", "basic-a"), variant("h", f"{name}-h", "basic-h")]
    scene.put(
        api,
        MODEL_SERVICES,
        scene.service(SPACE, name, variants, traffic=histogram(rate), mode=mode, **more),
    )


def counts(api: Api, name: str) -> tuple[int | None, int | None]:
    return scene.replicas(api, SPACE, f"{name}-a"), scene.replicas(api, SPACE, f"{name}-h")


def applied(api: Api, name: str) -> bool:
    return scene.phase(api, SPACE, name) == "Applied"


def remove(api: Api, name: str) -> None:
    scene.drop(api, MODEL_SERVICES, SPACE, name)
    for letter in "ah":
        scene.drop(api, DEPLOYMENTS, SPACE, f"{name}-{letter}")
    assert eventually(lambda: api.get(PLANS, SPACE, name) is None)


def test_a_recommended_plan_waits_for_the_digest_and_another_digest_does_not_count(api: Api) -> None:
    put_pair(api, "ask", 8.0, mode="Recommend")
    assert eventually(lambda: scene.phase(api, SPACE, "ask") == "Proposed")
    plan = scene.plan_of(api, SPACE, "ask")["spec"]
    assert plan["costUsdPerHour"] == pytest.approx(8.0)
    assert plan["gapRatio"] <= 1e-6
    assert plan["lowerBoundUsdPerHour"] <= plan["costUsdPerHour"] + 1e-9
    assert {step["action"] for step in plan["steps"]} == {"ScaleUp"}

    def approve(digest: str) -> None:
        body = {"metadata": {"annotations": {APPROVED: digest}}}
        api.patch(PLANS, SPACE, "ask", body, manager="kubectl-annotate")

    approve("0123456789abcdef")
    time.sleep(2)
    assert counts(api, "ask") == (0, 0)
    message = scene.condition(api, SPACE, "ask", "Applied")["message"]
    assert plan["digest"] in message
    approve(plan["digest"])
    assert eventually(lambda: applied(api, "ask"))
    assert counts(api, "ask") == (3, 1)
    remove(api, "ask")


def test_a_pause_holds_everything_and_releases_the_field(api: Api) -> None:
    put_pair(api, "rest", 2.0)
    assert eventually(lambda: applied(api, "rest") and counts(api, "rest") == (3, 0))
    api.patch(
        MODEL_SERVICES,
        SPACE,
        "rest",
        {"metadata": {"annotations": {PAUSED: "true"}}},
        manager="kubectl-annotate",
    )
    assert eventually(lambda: scene.condition(api, SPACE, "rest", "Applied").get("reason") == "Paused")
    put_pair(api, "rest", 20.0)
    time.sleep(3)
    assert counts(api, "rest") == (3, 0)
    body = api.get(DEPLOYMENTS, SPACE, "rest-a") or {}
    assert eventually(
        lambda: (
            ADOPTED_BY not in (api.get(DEPLOYMENTS, SPACE, "rest-a") or {})["metadata"].get("annotations", {})
        )
    )
    body = api.get(DEPLOYMENTS, SPACE, "rest-a") or {}
    assert CONTROLLER not in {entry["manager"] for entry in body["metadata"]["managedFields"]}
    api.patch(
        MODEL_SERVICES,
        SPACE,
        "rest",
        {"metadata": {"annotations": {PAUSED: None}}},
        manager="kubectl-annotate",
    )
    assert eventually(lambda: applied(api, "rest") and counts(api, "rest") != (3, 0))
    remove(api, "rest")


def test_a_deleted_service_leaves_replicas_as_they_are_and_nothing_else(api: Api) -> None:
    put_pair(api, "gone", 2.0)
    assert eventually(lambda: applied(api, "gone") and counts(api, "gone") == (3, 0))
    annotations = (api.get(DEPLOYMENTS, SPACE, "gone-a") or {})["metadata"]["annotations"]
    assert annotations[ADOPTED_BY] == f"{SPACE}/gone"
    assert annotations[PREVIOUS_MANAGER] == "kubectl"
    scene.drop(api, MODEL_SERVICES, SPACE, "gone")

    def released() -> bool:
        metadata = (api.get(DEPLOYMENTS, SPACE, "gone-a") or {})["metadata"]
        managers = {entry["manager"] for entry in metadata["managedFields"]}
        return not [k for k in metadata.get("annotations", {}) if k.startswith("ballast.dev/")] and (
            CONTROLLER not in managers
        )

    assert eventually(released)
    assert eventually(lambda: api.get(PLANS, SPACE, "gone") is None)
    time.sleep(1)
    assert counts(api, "gone") == (3, 0)
    remove(api, "gone")


def test_a_stateful_set_is_scaled_like_a_deployment(api: Api) -> None:
    body = scene.deployment(SPACE, "sts", "BasicA", kind=STATEFUL_SETS)
    scene.put(api, STATEFUL_SETS, body)
    one = [variant("a", "sts", "basic-a", kind="StatefulSet")]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "sts", one, traffic=histogram(1.5)))
    assert eventually(lambda: applied(api, "sts"))
    assert scene.replicas(api, SPACE, "sts", STATEFUL_SETS) == 2
    scene.drop(api, MODEL_SERVICES, SPACE, "sts")
    scene.drop(api, STATEFUL_SETS, SPACE, "sts")


def test_groups_of_a_leader_worker_set_are_counted_not_pods(api: Api) -> None:
    template = scene.pod_template("lws", "BasicH", 2)
    body = {
        "metadata": {"name": "lws", "namespace": SPACE},
        "spec": {"replicas": 0, "leaderWorkerTemplate": {"size": 2, "workerTemplate": template}},
    }
    scene.put(api, LEADER_WORKER_SETS, body)
    one = [variant("g", "lws", "basic-group", kind="LeaderWorkerSet")]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "lws", one, traffic=histogram(8.0)))
    assert eventually(lambda: scene.replicas(api, SPACE, "lws", LEADER_WORKER_SETS) == 2)
    assert scene.phase(api, SPACE, "lws") == "Applying"  # nobody has made the groups yet
    status = {"replicas": 2, "readyReplicas": 2}  # two groups of two pods
    api.patch(LEADER_WORKER_SETS, SPACE, "lws", {"status": status}, subresource="status", manager="lws")
    assert eventually(lambda: applied(api, "lws"))
    managers = {
        entry["manager"]
        for entry in (api.get(LEADER_WORKER_SETS, SPACE, "lws") or {})["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
    assert CONTROLLER in managers
    scene.drop(api, MODEL_SERVICES, SPACE, "lws")
    scene.drop(api, LEADER_WORKER_SETS, SPACE, "lws")


def test_a_target_of_an_autoscaler_is_never_taken(api: Api) -> None:
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "hpa", "BasicA", replicas=1))
    api.create(
        AUTOSCALERS,
        SPACE,
        {
            "metadata": {"name": "hpa"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hpa"},
                "minReplicas": 1,
                "maxReplicas": 5,
            },
        },
    )
    one = [variant("a", "hpa", "basic-a")]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "hpa", one, traffic=histogram(3.0)))
    assert eventually(
        lambda: (
            scene.condition(api, SPACE, "hpa", "ActuationConflict").get("reason") == "AutoscalerOwnsReplicas"
        )
    )
    plan = eventually(lambda: scene.plan_of(api, SPACE, "hpa"))
    assert [wanted["replicas"] for wanted in plan["spec"]["desired"]] == [4]
    time.sleep(2)
    metadata = (api.get(DEPLOYMENTS, SPACE, "hpa") or {})["metadata"]
    assert CONTROLLER not in {entry["manager"] for entry in metadata["managedFields"]}
    scene.drop(api, MODEL_SERVICES, SPACE, "hpa")
    scene.drop(api, AUTOSCALERS, SPACE, "hpa")
    scene.drop(api, DEPLOYMENTS, SPACE, "hpa")


def test_annotations_alone_make_an_observing_service(api: Api) -> None:
    body = scene.deployment(SPACE, "noted", "BasicA", replicas=1)
    body["metadata"]["annotations"] = {
        MANAGED: "true",
        "ballast.dev/model": "m",
        "ballast.dev/gpu-profile": "basic-a",
        "ballast.dev/slo": "ttft_p99=1.0,tbt_p99=0.05",
    }
    scene.put(api, DEPLOYMENTS, body)
    made = eventually(lambda: api.get(MODEL_SERVICES, SPACE, "noted"))
    assert made is not None
    assert made["spec"]["mode"] == "Observe"
    assert made["metadata"]["ownerReferences"][0]["name"] == "noted"
    assert eventually(lambda: scene.condition(api, SPACE, "noted", "PlanReady").get("reason") == "Observing")
    assert api.get(PLANS, SPACE, "noted") is None
    scene.drop(api, DEPLOYMENTS, SPACE, "noted")
    assert eventually(lambda: api.get(MODEL_SERVICES, SPACE, "noted") is None)


def test_a_cordoned_node_takes_no_more_and_its_load_moves(api: Api) -> None:
    put_pair(api, "move", 6.0, headroomRatio=0.0)
    assert eventually(lambda: applied(api, "move") and counts(api, "move") == (0, 1))
    for index in range(2):
        cordon(api, f"basics-basich-{index}", unschedulable=True)
    try:
        assert eventually(lambda: applied(api, "move") and counts(api, "move") == (6, 0))
    finally:
        for index in range(2):
            cordon(api, f"basics-basich-{index}", unschedulable=False)
    remove(api, "move")


def cordon(api: Api, node: str, *, unschedulable: bool) -> None:
    body = {"spec": {"unschedulable": unschedulable}}
    api.patch(NODES, None, node, body, content_type="application/merge-patch+json", manager="kubectl")


def test_a_paused_profile_pauses_those_that_use_it(api: Api) -> None:
    put_pair(api, "still", 2.0)
    assert eventually(lambda: applied(api, "still"))
    body: dict[str, Any] = {"metadata": {"annotations": {PAUSED: "true"}}}
    api.patch(GPU_PROFILES, None, "basic-a", body, manager="kubectl-annotate")
    assert eventually(lambda: scene.condition(api, SPACE, "still", "Applied").get("reason") == "Paused")
    before = counts(api, "still")
    put_pair(api, "still", 9.0)
    time.sleep(2)
    assert counts(api, "still") == before
    body = {"metadata": {"annotations": {PAUSED: None}}}
    api.patch(GPU_PROFILES, None, "basic-a", body, manager="kubectl-annotate")
    assert eventually(lambda: applied(api, "still") and counts(api, "still") != before)
    remove(api, "still")


def test_traffic_shifts_before_replicas_go(api: Api, definitions_of_others: list[Path]) -> None:
    for path in definitions_of_others:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        if body["metadata"]["name"] == "httproutes.gateway.networking.k8s.io":
            scene.put(api, scene.CRD, {"metadata": body["metadata"], "spec": body["spec"]})
    backends = [{"name": name, "port": 80} for name in ("shift-a", "shift-h", "other")]
    route = {
        "metadata": {"name": "shift", "namespace": SPACE},
        "spec": {"rules": [{"backendRefs": backends}]},
    }

    def routed() -> bool:
        try:
            return bool(scene.put(api, HTTP_ROUTES, route))
        except ApiError:
            return False  # its storage is being set up

    assert eventually(routed)

    def weights() -> dict[str, int]:
        body = api.get(HTTP_ROUTES, SPACE, "shift") or {}
        return {b["name"]: b["weight"] for b in body["spec"]["rules"][0]["backendRefs"]}

    for letter, product in (("a", "BasicA"), ("h", "BasicH")):
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, f"shift-{letter}", product))
    both = [
        variant(letter, f"shift-{letter}", f"basic-{letter}", service=f"shift-{letter}") for letter in "ah"
    ]
    more: dict[str, Any] = {"httpRoute": {"name": "shift"}, "headroomRatio": 0.0}
    body = scene.service(SPACE, "shift", both, traffic=histogram(2.0), **more)
    scene.put(api, MODEL_SERVICES, body)
    assert eventually(lambda: applied(api, "shift") and counts(api, "shift") == (2, 0))
    assert weights() == {"shift-a": 1000, "shift-h": 0, "other": 1}
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "shift", both, traffic=histogram(6.0), **more))
    assert eventually(lambda: applied(api, "shift") and counts(api, "shift") == (0, 1))
    actions = [step["action"] for step in scene.plan_of(api, SPACE, "shift")["spec"]["steps"]]
    assert actions == ["ScaleUp", "Shift", "Drain"]
    assert weights() == {"shift-a": 0, "shift-h": 1000, "other": 1}
    scene.drop(api, HTTP_ROUTES, SPACE, "shift")
    remove(api, "shift")


def test_a_recorded_trace_in_a_config_map_is_traffic(api: Api) -> None:
    rows = "\n".join(f"{index * 0.5},512,128" for index in range(240))
    text = f"arrival_s,prompt_tokens,output_tokens\n{rows}\n"
    config = Resource(api_version="v1", kind="ConfigMap", plural="configmaps")
    scene.put(api, config, {"metadata": {"name": "t", "namespace": SPACE}, "data": {"trace.csv": text}})
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "traced", "BasicA"))
    one = [variant("a", "traced", "basic-a")]
    traffic = {"traceConfigMap": {"name": "t"}}
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "traced", one, traffic=traffic, headroomRatio=0.0))
    assert eventually(lambda: applied(api, "traced"))
    assert scene.replicas(api, SPACE, "traced") in {2, 3}
    body = api.get(MODEL_SERVICES, SPACE, "traced") or {}
    assert body["status"]["demand"]["requestsPerSecond"] == pytest.approx(2.0, rel=0.05)
    scene.drop(api, config, SPACE, "t")
    assert eventually(
        lambda: scene.condition(api, SPACE, "traced", "TelemetryReady").get("reason") == "TraceMissing"
    )
    assert scene.replicas(api, SPACE, "traced") in {2, 3}
    scene.drop(api, MODEL_SERVICES, SPACE, "traced")
    scene.drop(api, DEPLOYMENTS, SPACE, "traced")


def test_a_plan_that_breaks_the_slo_in_its_rehearsal_is_refused_and_another_passes(api: Api) -> None:
    """Sixty requests at once, once a minute: one replica carries the rate, and not the burst."""
    model = "meta-llama/Llama-3.1-8B-Instruct"
    known = scene.profile("basic-known", "A100-80-SXM", max_rps=10.0, price=2.0, model=model)
    known["spec"]["nodeSelector"] = {scene.LABEL: "BasicA"}
    scene.put(api, GPU_PROFILES, known)
    rows = [f"{60.0 * minute:.1f},512,64" for minute in range(20) for _ in range(60)]
    config = Resource(api_version="v1", kind="ConfigMap", plural="configmaps")
    text = "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n"
    scene.put(api, config, {"metadata": {"name": "bursts", "namespace": SPACE}, "data": {"trace.csv": text}})
    services = {"bursty": {"traceConfigMap": {"name": "bursts"}}, "even": histogram(1.0)}
    for name, traffic in services.items():
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, name, "BasicA", replicas=8))
        one = [variant("a", name, "basic-known")]
        body = scene.service(SPACE, name, one, traffic=traffic, model=model, rehearsal={"enabled": True})
        scene.put(api, MODEL_SERVICES, body)
    assert eventually(lambda: applied(api, "even"))

    def said() -> tuple[str | None, str | None]:
        found = scene.condition(api, SPACE, "even", "Rehearsed")
        return found.get("status"), found.get("reason")

    assert eventually(lambda: said() == ("True", "AttainmentHolds")), said()  # after the Plan, its service
    assert scene.replicas(api, SPACE, "even") == 1
    assert eventually(
        lambda: scene.condition(api, SPACE, "bursty", "Rehearsed").get("reason") == "AttainmentFalls"
    )
    held = scene.condition(api, SPACE, "bursty", "Applied")
    assert held["reason"] == "HeldByRehearsal"
    assert "% of 600 requests with the plan, 100.00 % with what runs" in held["message"]
    plan = scene.plan_of(api, SPACE, "bursty")
    assert plan["status"]["phase"] == "Proposed"
    assert [(c["type"], c["status"]) for c in plan["status"]["conditions"]] == [("Rehearsed", "False")]
    assert scene.replicas(api, SPACE, "bursty") == 8
    digest = plan["spec"]["digest"]  # somebody knows better
    body = {"metadata": {"annotations": {APPROVED: digest}}}
    api.patch(PLANS, SPACE, "bursty", body, manager="kubectl-annotate")
    assert eventually(lambda: applied(api, "bursty"))
    assert scene.replicas(api, SPACE, "bursty") == 1
    for name in services:
        scene.drop(api, MODEL_SERVICES, SPACE, name)
        scene.drop(api, DEPLOYMENTS, SPACE, name)


def test_definitions_are_the_generated_ones() -> None:
    for file in Path(scene.CRDS).glob("*.yaml"):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]["group"] == "ballast.dev"


def test_a_cluster_that_is_never_quiet_is_planned_for_all_the_same(api: Api) -> None:
    def desired() -> list[int]:
        status = (api.get(MODEL_SERVICES, SPACE, "steady") or {}).get("status") or {}
        return [entry["replicas"] for entry in status.get("desired") or []]

    put_pair(api, "steady", 0.5, mode="Recommend")
    put_pair(api, "restless", 0.5, mode="Recommend")
    assert eventually(lambda: sum(desired()) > 0)
    before = desired()
    stopping = threading.Event()

    def disturb() -> None:
        number = 0
        while not stopping.wait(0.05):
            number += 1
            other = {"spec": {"headroomRatio": 0.1 + 0.01 * (number % 2)}}
            api.patch(MODEL_SERVICES, SPACE, "restless", other, manager="noise")

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    try:
        put_pair(api, "steady", 4.5, mode="Recommend")
        assert eventually(lambda: desired() != before), "waited for a quiet that does not come"
    finally:
        stopping.set()
        thread.join()
    for name in ("steady", "restless"):
        remove(api, name)
