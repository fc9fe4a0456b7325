"""ExpertPlacements on a real API server: what is refused and in which words, and what is filled in."""

from typing import Any

import pytest

from controller.operator.api import EXPERT_PLACEMENTS, Api, ApiError
from controller.resources.expert_placement import ExpertPlacementSpec
from tests.cluster import scene
from tests.cluster.resources.good_objects import good_placement
from tests.cluster.resources.offers import GONE, SPACE, URL, Rows, changed, each_of, offered, refuse
from tests.cluster.scene import Object

INVALID: Rows = (
    ("spec.modelRef", GONE, "spec.modelRef: Required value"),
    ("spec.modelRef.name", "two words", "is no name of a model"),
    ("spec.modelRef.moeLayers", 0, "should be greater than or equal to 1"),
    ("spec.modelRef.moeLayers", 513, "should be less than or equal to 512"),
    ("spec.modelRef.experts", 2049, "should be less than or equal to 2048"),
    ("spec.modelRef.expertBytes", 0, "should be greater than or equal to 1"),
    ("spec.modelRef.topK", 9, "topK is larger than experts"),
    ("spec.modelRef.expertGroups", 3, "expertGroups does not divide experts"),
    (
        "spec.modelRef.decoderLayers",
        3,
        "firstMoeLayer and moeLayers go beyond decoderLayers",
    ),
    ("spec.engine", "tgi", '"sglang", "tensorrt-llm", "vllm", "vllm-ascend"'),
    ("spec.redundantExperts", 3, "experts + redundantExperts is no multiple of epSize"),
    ("spec.epSize", 6, "the GPUs of topology.nodes are not as many as epSize"),
    ("spec.topology.nodes.0.gpus.1.slots", 3, "slots are needed of every GPU or of none"),
    (
        "spec.topology.nodes",
        [{"name": "n", "gpus": [{"id": i, "slots": 2 + (i == 3)} for i in range(4)]}],
        "their sum is experts + redundantExperts",
    ),
    ("spec.topology.nodes", GONE, "nobody says where the GPUs are"),
    ("spec.topology.nodes", [], "should have at least 1 items"),
    ("spec.topology.nodes.1.name", "node-0", "Duplicate value"),
    ("spec.topology.nodes.1.gpus.1.id", 0, "Duplicate value"),
    ("spec.topology.nodes.1.gpus.1.speed", 0, "should be greater than 0"),
    (
        "spec.topology.nodes.1.gpus.1.speed",
        1e-4,
        "is less than 0.001 of the reference GPU",
    ),
    ("spec.topology.bwInterGBps", GONE, "spec.topology.bwInterGBps: Required value"),
    ("spec.topology.bwIntraGBps", 1e-300, "is less than 0.001 GB/s"),
    (
        "spec.loadSource",
        {},
        "exactly one of configMap, pvc, prometheus, httpDump and sqlStore",
    ),
    ("spec.loadSource.sqlStore", {"recording": "r"}, "exactly one of configMap, pvc"),
    ("spec.loadSource.configMap.key", "a/b", "is no key of a ConfigMap"),
    ("spec.loadSource", {"pvc": {"claim": "c", "path": "../x"}}, "is no path of a file"),
    ("spec.loadSource", {"pvc": {"claim": "c", "path": "a/.."}}, "is no path of a file"),
    (
        "spec.loadSource",
        {"pvc": {"claim": "c", "path": "/etc/passwd"}},
        "is no path of a file",
    ),
    ("spec.loadSource", {"httpDump": {"url": "file:///etc/passwd"}}, URL),
    (
        "spec.loadSource",
        {"prometheus": {"url": "http://p", "metric": "a{} or b"}},
        "is no name of a metric",
    ),
    (
        "spec.loadSource",
        {"prometheus": {"url": "http://p", "metric": "m", "layerLabel": "a) or b"}},
        "is no name of a label",
    ),
    ("spec.loadSource.ewmaAlpha", 0, "should be greater than 0"),
    ("spec.loadSource.ewmaAlpha", 1.5, "should be less than or equal to 1"),
    ("spec.loadSource.windowSeconds", 1, "should be greater than or equal to 10"),
    ("spec.commModel", "gossip", '"dispatch", "transition"'),
    ("spec.objective.usPerTokenExpert", 0, "should be greater than 0"),
    ("spec.objective.bytesPerTokenCopy", -1, "should be greater than or equal to 0"),
    ("spec.solver", {"mode": "slow"}, '"fast", "full", "exact"'),
    ("spec.solver", {"timeLimitSeconds": 601}, "should be less than or equal to 600"),
    ("spec.migration", {"maxMovedRatio": 1.1}, "should be less than or equal to 1"),
    ("spec.migration", {"windowsUntilNext": 0}, "should be greater than or equal to 1"),
    ("spec.apply", "rolloutRestart", "rolloutRestart needs targetRef"),
    ("spec.apply", "restart", '"none", "configMap", "rolloutRestart"'),
    ("spec.mode", "Observe", '"Recommend", "Auto"'),
    ("spec.targetRef", {"kind": "Pod", "name": "p"}, '"Deployment", "StatefulSet"'),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("ExpertPlacement", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, EXPERT_PLACEMENTS, changed(good_placement(), path, value), words)


def test_the_model_of_a_placement_never_changes(api: Api) -> None:
    body = good_placement()
    scene.put(api, EXPERT_PLACEMENTS, body)
    with pytest.raises(ApiError, match="the model cannot change: make another ExpertPlacement"):
        scene.put(api, EXPERT_PLACEMENTS, changed(body, "spec.modelRef.name", "another"))
    scene.drop(api, EXPERT_PLACEMENTS, SPACE, "good")


@pytest.mark.parametrize(
    "source",
    [
        {"pvc": {"claim": "loads", "path": "team/latest.json"}},
        {"prometheus": {"url": "http://p:9090", "metric": "expert_tokens_total", "selector": 'model="m"'}},
        {"httpDump": {"url": "http://recorder.chat:8080/dump"}},
        {"sqlStore": {"recording": "r"}},
        {"configMap": None, "httpDump": {"url": "http://r"}},
    ],
)
def test_each_source_of_loads_is_taken(api: Api, source: Object) -> None:
    body = changed(good_placement(), "spec.loadSource", source)
    taken = offered(api, EXPERT_PLACEMENTS, body)
    assert ExpertPlacementSpec.model_validate(taken["spec"]).load_source.written()


def test_a_placement_without_nodes_names_its_target(api: Api) -> None:
    body = changed(good_placement(), "spec.topology.nodes", GONE)
    body["spec"] |= {"targetRef": {"kind": "StatefulSet", "name": "engine"}, "apply": "rolloutRestart"}
    filled = offered(api, EXPERT_PLACEMENTS, body)["spec"]
    assert filled["targetRef"]["apiVersion"] == "apps/v1"
    assert (filled["commModel"], filled["mode"], filled["paused"]) == ("dispatch", "Recommend", False)
    assert filled["solver"] == {"mode": "fast", "timeLimitSeconds": 30, "seed": 0}
    assert filled["loadSource"]["ewmaAlpha"] == 0.3
    assert ExpertPlacementSpec.model_validate(body["spec"]) == ExpertPlacementSpec.model_validate(filled)
    del body["spec"]["apply"]
    assert offered(api, EXPERT_PLACEMENTS, body)["spec"]["apply"] == "configMap"


def test_the_largest_group_costs_the_server_no_more_than_it_allows(api: Api) -> None:
    nodes = [{"name": f"n{i}", "gpus": [{"id": g, "slots": 1} for g in range(32)]} for i in range(128)]
    body = changed(good_placement(), "spec.topology.nodes", nodes)
    body["spec"] |= {"epSize": 4096, "redundantExperts": 2048}
    body["spec"]["modelRef"]["experts"] = 2048
    offered(api, EXPERT_PLACEMENTS, body)
