"""One object of each kind that the API server takes, for tests to change. It offers none."""

from collections.abc import Callable

from tests.cluster import scene
from tests.cluster.resources.offers import NOW, SPACE
from tests.cluster.scene import Object, histogram, variant


def good_service() -> Object:
    return scene.service(
        SPACE, "good", [variant("a", "one", "p"), variant("b", "two", "p")], traffic=histogram(1.0)
    )


def good_profile() -> Object:
    return scene.profile("good", "A10G", max_rps=1.0, price=1.0)


def good_plan() -> Object:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
    step = {
        "index": 0,
        "targetRef": target,
        "variant": "a",
        "fromReplicas": 0,
        "toReplicas": 2,
        "action": "ScaleUp",
    }
    return {
        "metadata": {"name": "good", "namespace": SPACE},
        "spec": {
            "solveId": "s",
            "digest": "0123456789abcdef",
            "modelServiceRef": {"name": "good"},
            "costUsdPerHour": 2.5,
            "lowerBoundUsdPerHour": 2.25,
            "gapRatio": 0.1,
            "madeAt": NOW,
            "desired": [{"variant": "a", "targetRef": target, "replicas": 2}],
            "steps": [step],
        },
    }


def experts_plan() -> Object:
    """Return a Plan of an ExpertPlacement."""
    file = {"key": "map.json", "format": "native", "sha256": "0" * 64, "text": "{}\n"}
    restart = {"index": 1, "action": "Restart", "targetRef": {"kind": "StatefulSet", "name": "engine"}}
    experts = {
        "placementRef": {"name": "moe", "generation": 2},
        "configMap": "moe-experts",
        "mapDigest": "0123456789abcdef",
        "files": [file],
        "objectiveUs": 12.5,
        "lowerBoundUs": 12.0,
        "steps": [{"index": 0, "action": "WriteMap"}, restart],
    }
    return {
        "metadata": {"name": "moe-experts", "namespace": SPACE},
        "spec": {"solveId": "s", "digest": "0123456789abcdef", "madeAt": NOW, "experts": experts},
    }


def good_placement() -> Object:
    return scene.expert_placement(SPACE, "good", nodes=2, gpus=2, experts=8, layers=3, redundant=4)


def good_domain() -> Object:
    return {
        "metadata": {"name": "good"},
        "spec": {"budgetWatts": 12_000, "members": {"nodes": ["n1", "n2", "n3"]}},
    }


def good_node() -> Object:
    return {
        "metadata": {"name": "good"},
        "spec": {
            "generation": 3,
            "renewSequence": 7,
            "gpus": [{"uuid": "GPU-a", "lockMaxMHz": 1305}, {"uuid": "GPU-b", "lockMaxMHz": 1305}],
            "safe": {"lockMaxMHz": 1050},
        },
    }


GOOD: dict[str, Callable[[], Object]] = {
    "PowerDomain": good_domain,
    "NodePower": good_node,
    "ExpertPlacement": good_placement,
    "ModelService": good_service,
    "GpuProfile": good_profile,
    "Plan": good_plan,
}
