"""The test bed itself: real versions, fake GPU nodes, pods that are bound and become ready."""

from tests.cluster.binaries import VERSION
from tests.cluster.control_plane import ControlPlane, add_node, eventually


def ready_nodes(plane: ControlPlane) -> set[str]:
    return {
        node.metadata.name
        for node in plane.api("CoreV1Api").list_node().items
        if any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
    }


def test_the_server_is_the_pinned_one(plane: ControlPlane) -> None:
    assert plane.api("VersionApi").get_code().git_version == VERSION


def test_gpu_pods_land_on_their_nodes_and_become_ready(plane: ControlPlane) -> None:
    names = {f"{kind.lower()}-{k}": kind for kind in ("A10G", "A100", "H100") for k in range(2)}
    for name, kind in names.items():
        add_node(plane, name, labels={"nvidia.com/gpu.product": kind}, gpus=8)
    assert eventually(lambda: set(names) <= ready_nodes(plane))
    labels = {"app": "chat"}
    pod = {
        "nodeSelector": {"nvidia.com/gpu.product": "A100"},
        "containers": [
            {"name": "engine", "image": "engine:1", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
        ],
    }
    plane.api("AppsV1Api").create_namespaced_deployment(
        "default",
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "chat"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    )

    def ready() -> int:
        status = plane.api("AppsV1Api").read_namespaced_deployment_status("chat", "default").status
        return status.ready_replicas or 0

    assert eventually(lambda: ready() == 2)  # two A100 nodes: the third pod waits
    pods = plane.api("CoreV1Api").list_namespaced_pod("default", label_selector="app=chat").items
    assert sorted(str(p.spec.node_name) for p in pods) == ["None", "a100-0", "a100-1"]
