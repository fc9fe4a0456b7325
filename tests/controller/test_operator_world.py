"""What is known of the cluster: older versions are not taken, objects are trimmed, changes wake who waits."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.operator.world import Pod, World

DEPLOYMENT: dict[str, Any] = {
    "metadata": {
        "name": "d",
        "namespace": "s",
        "uid": "u",
        "resourceVersion": "10",
        "generation": 3,
        "labels": {"large": "x"},
        "annotations": {"ballast.dev/adopted-by": "s/m", "kubectl.kubernetes.io/last-applied": "long"},
        "managedFields": [
            {"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
            {"manager": "others", "fieldsV1": {"f:spec": {"f:template": {}}}},
            {"manager": "nothing"},
        ],
        "ownerReferences": [
            {"kind": "Gone", "name": "a"},
            {"kind": "Serving", "name": "b", "controller": True},
        ],
    },
    "spec": {
        "replicas": 4,
        "template": {
            "spec": {
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {"resources": {"limits": {"nvidia.com/gpu": "2"}}},
                    {"resources": {"requests": {"nvidia.com/gpu": 1}}},
                    {"resources": {"limits": {"cpu": "500m"}}},
                ],
                "initContainers": [
                    {"resources": {"limits": {"nvidia.com/gpu": "2"}}},
                    {"restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
                ],
            }
        },
    },
    "status": {"replicas": 5, "readyReplicas": 3, "observedGeneration": 2},
}


def kept(world: World, kind: str, key: tuple[str, str]) -> Any:
    """Return what is known of an object that is known."""
    found = world.get(kind, key)
    assert found is not None
    return found


def service(version: str, rate: float = 1.0) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "m",
            "namespace": "s",
            "uid": "u",
            "resourceVersion": version,
            "managedFields": [{"manager": "long"}],
            "labels": {"team": "x"},
        },
        "spec": {"rate": rate},
    }


@given(st.permutations([str(version) for version in range(95, 105)]))
def test_whatever_the_order_of_events_the_newest_version_is_kept(versions: list[str]) -> None:
    world = World()
    for version in versions:
        world.put("ModelService", service(version, float(version)))
    assert kept(world, "ModelService", ("s", "m"))["spec"] == {"rate": 104.0}
    assert world.known("ModelService") == {("s", "m"): "104"}


def test_an_object_made_anew_after_its_end_is_taken() -> None:
    world = World()
    world.put("ModelService", service("10"))
    world.remove("ModelService", ("s", "m"))
    assert world.get("ModelService", ("s", "m")) is None
    world.put("ModelService", service("12", 2.0))
    assert world.all("ModelService")["s", "m"]["spec"] == {"rate": 2.0}


def test_versions_that_are_no_numbers_are_taken_as_they_come() -> None:
    world = World()
    world.put("ModelService", service("b", 1.0))
    world.put("ModelService", service("a", 2.0))
    assert kept(world, "ModelService", ("s", "m"))["spec"] == {"rate": 2.0}


def test_what_no_decision_needs_is_not_kept() -> None:
    world = World()
    world.put("ModelService", service("10"))
    assert "managedFields" not in kept(world, "ModelService", ("s", "m"))["metadata"]
    assert "labels" not in kept(world, "ModelService", ("s", "m"))["metadata"]
    world.put("Deployment", DEPLOYMENT)
    target = kept(world, "Deployment", ("s", "d"))
    assert target.annotations == {"ballast.dev/adopted-by": "s/m"}
    assert target.replicas_managers == ("kubectl",)
    assert (target.replicas, target.ready, target.running, target.observed) == (4, 3, 5, False)
    assert target.gpus_per_pod == 4
    assert target.owner == ("Serving", "b")
    assert target.tolerations == ({"operator": "Exists"},)


def test_an_init_container_that_needs_more_gpus_than_the_others_together_counts() -> None:
    world = World()
    template = {
        "spec": {
            "containers": [{"resources": {"limits": {"nvidia.com/gpu": "2"}}}],
            "initContainers": [{"resources": {"limits": {"nvidia.com/gpu": "8"}}}],
        }
    }
    world.put("Deployment", {"metadata": {"name": "d", "namespace": "s"}, "spec": {"template": template}})
    assert kept(world, "Deployment", ("s", "d")).gpus_per_pod == 8


def test_a_target_without_replicas_has_one_as_the_api_server_would_say() -> None:
    world = World()
    body = {"metadata": {"name": "d", "namespace": "s"}, "spec": {}, "status": {}}
    world.put("Deployment", body)
    assert kept(world, "Deployment", ("s", "d")).replicas == 1
    world.put("Deployment", {**body, "spec": {"replicas": 0}})
    assert kept(world, "Deployment", ("s", "d")).replicas == 0


def test_a_change_that_no_decision_needs_wakes_nobody() -> None:
    world = World()
    world.put("Deployment", DEPLOYMENT)
    seen = world.changes
    world.put(
        "Deployment",
        {**DEPLOYMENT, "metadata": {**DEPLOYMENT["metadata"], "labels": {"other": "label"}}},
    )
    assert world.changes == seen
    assert world.wait(seen, timeout_s=0.01) == seen
    threading.Timer(0.05, world.remove, ("Deployment", ("s", "d"))).start()
    assert world.wait(seen, timeout_s=30.0) == seen + 1


def node(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"zone": "x"}},
        "spec": spec,
        "status": {
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "1"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def known_node(body: dict[str, Any]) -> Any:
    world = World()
    world.put("Node", body)
    return kept(world, "Node", ("", "n"))


def test_a_node_is_open_if_it_is_ready_and_not_cordoned() -> None:
    assert known_node(node()).open
    assert known_node(node()).gpus == 8
    assert not known_node(node(unschedulable=True)).open
    body = node()
    body["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert not known_node(body).open
    body["status"] = {}
    assert not known_node(body).open
    assert known_node(body).gpus == 0


def test_taints_that_only_discourage_do_not_keep_pods_away() -> None:
    taints = [
        {"key": "a", "effect": "PreferNoSchedule"},
        {"key": "b", "value": "x", "effect": "NoSchedule"},
        {"key": "c", "effect": "NoExecute"},
    ]
    assert known_node(node(taints=taints)).taints == (("b", "x", "NoSchedule"), ("c", "", "NoExecute"))


def pod(
    *,
    owner: tuple[str, str] = ("", ""),
    labels: dict[str, str] | None = None,
    gpus: str = "1",
    phase: str = "Running",
) -> Pod | None:
    body: dict[str, Any] = {
        "metadata": {
            "name": "p",
            "namespace": "s",
            "labels": labels or {},
            "ownerReferences": [{"kind": owner[0], "name": owner[1], "controller": True}] if owner[0] else [],
        },
        "spec": {"nodeName": "n", "containers": [{"resources": {"limits": {"nvidia.com/gpu": gpus}}}]},
        "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    world = World()
    world.put("Pod", body)
    return world.get("Pod", ("s", "p"))


def test_pods_are_known_by_their_scale_target() -> None:
    of_deployment = pod(owner=("ReplicaSet", "chat-a-5d4f"), labels={"pod-template-hash": "5d4f"})
    of_stateful_set = pod(owner=("StatefulSet", "chat"))
    lws = "leaderworkerset.sigs.k8s.io"
    leader = pod(owner=("StatefulSet", "g"), labels={f"{lws}/name": "g", f"{lws}/worker-index": "0"})
    worker = pod(owner=("StatefulSet", "g-0"), labels={f"{lws}/name": "g", f"{lws}/worker-index": "1"})
    assert [one.owner if one else None for one in (of_deployment, of_stateful_set, leader, worker)] == [
        ("Deployment", "chat-a"),
        ("StatefulSet", "chat"),
        ("LeaderWorkerSet", "g"),
        ("LeaderWorkerSet", "g"),
    ]
    assert [one.serves if one else None for one in (leader, worker)] == [True, False]


def test_pods_that_hold_no_gpus_and_serve_nothing_of_ours_are_not_kept() -> None:
    assert pod(owner=("DaemonSet", "logs"), gpus="0") is None
    assert pod(owner=("DaemonSet", "probe"), gpus="1") is not None
    assert pod(owner=("StatefulSet", "router"), gpus="0") is not None
    for phase in ("Succeeded", "Failed"):
        assert pod(phase=phase) is None


def test_a_pod_that_ends_is_forgotten_at_its_last_event() -> None:
    world = World()
    running: dict[str, Any] = {
        "metadata": {"name": "p", "namespace": "s", "resourceVersion": "1"},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        "status": {"phase": "Running"},
    }
    world.put("Pod", running)
    assert world.all("Pod")
    world.put(
        "Pod",
        {
            **running,
            "metadata": {**running["metadata"], "resourceVersion": "2"},
            "status": {"phase": "Succeeded"},
        },
    )
    assert not world.all("Pod")
    assert world.known("Pod") == {("s", "p"): "2"}
    world.put("Pod", running)
    assert not world.all("Pod")


@pytest.mark.parametrize(
    ("kind", "ref", "expected"),
    [
        (
            "HorizontalPodAutoscaler",
            {"kind": "StatefulSet", "name": "d"},
            ("StatefulSet", "s", "d"),
        ),
        ("ScaledObject", {"name": "d"}, ("Deployment", "s", "d")),
    ],
)
def test_of_autoscalers_only_the_target_is_kept(
    kind: str, ref: dict[str, str], expected: tuple[str, str, str]
) -> None:
    world = World()
    world.put(
        kind, {"metadata": {"name": "h", "namespace": "s"}, "spec": {"scaleTargetRef": ref, "large": 1}}
    )
    assert kept(world, kind, ("s", "h")) == expected


def test_gpus_of_another_resource_name_are_counted_by_it() -> None:
    world = World(gpu_resource="amd.com/gpu")
    body = node()
    body["status"]["allocatable"] = {"amd.com/gpu": "4", "nvidia.com/gpu": "8"}
    world.put("Node", body)
    assert kept(world, "Node", ("", "n")).gpus == 4
