"""The definitions on a real API server: what is refused and in which words, what is filled in, how it is printed."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from controller.operator.api import (
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    PLANS,
    STATUS,
    Api,
    ApiError,
    Resource,
)
from controller.resources.expert_placement import ExpertPlacementSpec
from controller.resources.generate import definition
from controller.resources.kinds import KINDS, MODEL_SERVICE
from controller.resources.model_service import ModelServiceSpec
from tests.cluster import objects, scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.scene import Object, histogram, variant
from tests.controller.test_resources import TOY

SPACE = "resources"
LWS = "leaderworkerset.x-k8s.io/v1"
NOW = "2026-11-21T10:00:00Z"
GONE: Any = ...
RESOURCES = {
    "ModelService": MODEL_SERVICES,
    "GpuProfile": GPU_PROFILES,
    "Plan": PLANS,
    "ExpertPlacement": EXPERT_PLACEMENTS,
}


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Api:
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    return api


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


def good_placement() -> Object:
    return scene.expert_placement(SPACE, "good", nodes=2, gpus=2, experts=8, layers=3, redundant=4)


GOOD: dict[str, Callable[[], Object]] = {
    "ExpertPlacement": good_placement,
    "ModelService": good_service,
    "GpuProfile": good_profile,
    "Plan": good_plan,
}


def changed(body: Object, path: str, value: Any) -> Object:
    """Set what lies at a path of dots; GONE takes it away."""
    place: Any = body
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        place = place[part]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return body


def offered(api: Api, resource: Resource, body: Object, *, validation: str = "Strict") -> Object:
    """Ask the server whether it would take an object."""
    return api.request(
        "POST",
        resource.path(body["metadata"].get("namespace")),
        body={"apiVersion": resource.api_version, "kind": resource.kind, **body},
        query={"dryRun": "All", "fieldValidation": validation},
    )


BUCKET = {"inputTokens": 1, "outputTokens": 1, "rateRps": 1}
ROW = {"inputTokens": 1, "outputTokens": 1, "ttftSeconds": 1, "tbtSeconds": 1, "maxRps": 1}
REF = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
TRAFFIC = "exactly one of histogram, scrape, prometheus and traceConfigMap is needed"
URL = "is no address such as http://prometheus.monitoring:9090, without user, ? and #"
MATCHERS = 'is no list of label matchers such as namespace="chat",model_name="m"'
NAME = "is no name of an object: lower-case letters and digits, with - and . between them"
BIG = "a" * 254

INVALID: tuple[tuple[str, str, Any, str], ...] = (
    ("ModelService", "spec", GONE, "spec: Required value"),
    ("ModelService", "spec", "chat", "spec in body must be of type object"),
    ("ModelService", "spec.model", GONE, "spec.model: Required value"),
    ("ModelService", "spec.model", "", "is no name of a model"),
    (
        "ModelService",
        "spec.model",
        "two words",
        "is no name of a model: letters, digits and signs, no spaces",
    ),
    ("ModelService", "spec.model", "a\u00a0b", "is no name of a model"),
    ("ModelService", "spec.model", "m\n", "is no name of a model"),
    ("ModelService", "spec.model", BIG, "may not be more than 253"),
    ("ModelService", "spec.model", 7, "spec.model in body must be of type string"),
    ("ModelService", "spec.precision", "fp7", 'supported values: "bf16", "fp16", "fp8", "int8", "fp4"'),
    ("ModelService", "spec.mode", "Automatic", 'supported values: "Observe", "Recommend", "Auto"'),
    ("ModelService", "spec.mode", "auto", 'supported values: "Observe", "Recommend", "Auto"'),
    ("ModelService", "spec.mod", "Auto", 'unknown field "spec.mod"'),
    ("ModelService", "spec.paused", "yes", "spec.paused in body must be of type boolean"),
    ("ModelService", "spec.slo", GONE, "spec.slo: Required value"),
    ("ModelService", "spec.slo", None, "spec.slo: Required value"),
    ("ModelService", "spec.slo.ttftSeconds", GONE, "spec.slo.ttftSeconds: Required value"),
    ("ModelService", "spec.slo.ttftSeconds", 0, "should be greater than 0"),
    ("ModelService", "spec.slo.ttftSeconds", -1.0, "should be greater than 0"),
    ("ModelService", "spec.slo.ttftSeconds", "1s", "must be of type number"),
    ("ModelService", "spec.slo.ttftSeconds", float("nan"), "invalid character 'N'"),
    ("ModelService", "spec.slo.tbtSeconds", float("inf"), "invalid character 'I'"),
    ("ModelService", "spec.slo.tbtSeconds", 3601, "should be less than or equal to 3600"),
    ("ModelService", "spec.slo.percentile", 100, "should be less than or equal to 99"),
    ("ModelService", "spec.slo.percentile", 49, "should be greater than or equal to 50"),
    ("ModelService", "spec.slo.percentile", 99.9, "must be of type integer"),
    ("ModelService", "spec.slo.percentile", "p99", "must be of type integer"),
    ("ModelService", "spec.traffic", GONE, "spec.traffic: Required value"),
    ("ModelService", "spec.traffic", {}, TRAFFIC),
    ("ModelService", "spec.traffic", {"histogram": None}, TRAFFIC),
    ("ModelService", "spec.traffic.scrape", {}, TRAFFIC),
    ("ModelService", "spec.traffic.traceConfigMap", {"name": "t"}, TRAFFIC),
    ("ModelService", "spec.traffic.histogram.buckets", [], "should have at least 1 items"),
    ("ModelService", "spec.traffic.histogram.buckets", [BUCKET] * 257, "must have at most 256 items"),
    ("ModelService", "spec.traffic.histogram.buckets.0.rateRps", -1, "should be greater than or equal to 0"),
    (
        "ModelService",
        "spec.traffic.histogram.buckets.0.rateRps",
        1e300,
        "should be less than or equal to 1e+06",
    ),
    ("ModelService", "spec.traffic.histogram.buckets.0.inputTokens", 0, "should be greater than 0"),
    ("ModelService", "spec.traffic.histogram.buckets.0.inputTokens", 1.5, "must be of type integer"),
    ("ModelService", "spec.traffic.histogram.buckets.0.outputTokens", 10**30, "must be of type integer"),
    ("ModelService", "spec.traffic.histogram.buckets.0", None, "must be of type object"),
    ("ModelService", "spec.traffic", {"scrape": {"port": 0}}, "should be greater than or equal to 1"),
    ("ModelService", "spec.traffic", {"scrape": {"port": 65536}}, "should be less than or equal to 65535"),
    ("ModelService", "spec.traffic", {"scrape": {"path": "metrics"}}, "is no path such as /metrics"),
    ("ModelService", "spec.traffic", {"scrape": {"path": "/m?a=b"}}, "without spaces, ? and #"),
    ("ModelService", "spec.traffic", {"scrape": {"engine": "tgi"}}, 'supported values: "vllm", "sglang"'),
    ("ModelService", "spec.traffic", {"prometheus": {}}, "spec.traffic.prometheus.url: Required value"),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "prometheus:9090"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "ftp://prometheus"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://a b/"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://a..b"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://p:99999"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://u:secret@p"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://p/?q=1"}}, URL),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://p", "selector": "m"}}, MATCHERS),
    (
        "ModelService",
        "spec.traffic",
        {"prometheus": {"url": "http://p", "selector": 'a="b"} or up{'}},
        MATCHERS,
    ),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://p", "selector": "{a='b'}"}}, MATCHERS),
    ("ModelService", "spec.traffic", {"prometheus": {"url": "http://p", "selector": '{a="b"'}}, MATCHERS),
    (
        "ModelService",
        "spec.traffic",
        {"prometheus": {"url": "http://p", "selector": '__name__="up"'}},
        "names a series; labels only: Ballast names the series",
    ),
    ("ModelService", "spec.traffic", {"traceConfigMap": {}}, "traceConfigMap.name: Required value"),
    ("ModelService", "spec.traffic", {"traceConfigMap": {"name": "T"}}, NAME),
    (
        "ModelService",
        "spec.traffic",
        {"traceConfigMap": {"name": "t", "key": ".."}},
        "is no key of a ConfigMap",
    ),
    (
        "ModelService",
        "spec.traffic",
        {"traceConfigMap": {"name": "t", "key": "a/b"}},
        "is no key of a ConfigMap",
    ),
    ("ModelService", "spec.variants", GONE, "spec.variants: Required value"),
    ("ModelService", "spec.variants", [], "should have at least 1 items"),
    ("ModelService", "spec.variants", "a", "must be of type array"),
    (
        "ModelService",
        "spec.variants",
        [variant(f"v{i}", f"t{i}", "p") for i in range(17)],
        "at most 16 items",
    ),
    ("ModelService", "spec.variants.1.name", "a", 'Duplicate value: {"name":"a"}'),
    ("ModelService", "spec.variants.1.name", "B", "is no name: lower-case letters and digits"),
    ("ModelService", "spec.variants.1.name", GONE, "name: Required value"),
    ("ModelService", "spec.variants.1.name", "b" * 64, "may not be more than 63"),
    ("ModelService", "spec.variants.1.targetRef.name", "one", "two variants name the same targetRef"),
    ("ModelService", "spec.variants.1.targetRef.name", "one..two", NAME),
    (
        "ModelService",
        "spec.variants.1.targetRef.kind",
        "Pod",
        '"Deployment", "StatefulSet", "LeaderWorkerSet"',
    ),
    ("ModelService", "spec.variants.1.targetRef.apiVersion", LWS, "apiVersion is apps/v1 for Deployment"),
    ("ModelService", "spec.variants.1.targetRef.kind", "LeaderWorkerSet", "v1 for LeaderWorkerSet"),
    ("ModelService", "spec.variants.1.targetRef", GONE, "targetRef: Required value"),
    ("ModelService", "spec.variants.1.gpuProfile", GONE, "gpuProfile: Required value"),
    ("ModelService", "spec.variants.1.gpuProfile", "A100", NAME),
    ("ModelService", "spec.variants.1.minReplicas", -1, "should be greater than or equal to 0"),
    ("ModelService", "spec.variants.1.minReplicas", 100_001, "should be less than or equal to 100000"),
    (
        "ModelService",
        "spec.variants.1",
        variant("b", "two", "p", minReplicas=3, maxReplicas=2),
        "spec.variants[1]: Invalid value: minReplicas is larger than maxReplicas",
    ),
    ("ModelService", "spec.variants.1.maxReplicas", -1, "should be greater than or equal to 0"),
    ("ModelService", "spec.httpRoute", {"name": "r"}, "httpRoute needs the service of every variant"),
    ("ModelService", "spec.httpRoute", {}, "spec.httpRoute.name: Required value"),
    ("ModelService", "spec.variants.0.service", "a_b", NAME),
    ("ModelService", "spec.headroomRatio", -0.1, "should be greater than or equal to 0"),
    ("ModelService", "spec.headroomRatio", 1.0, "should be less than or equal to 0.9"),
    ("ModelService", "spec.survive", -1, "should be greater than or equal to 0"),
    ("ModelService", "spec.survive", 51, "should be less than or equal to 50"),
    ("ModelService", "spec.survive", 0.5, "must be of type integer"),
    ("ModelService", "spec.change.startCostUsd", -0.5, "should be greater than or equal to 0"),
    ("ModelService", "spec.change.minIntervalSeconds", 86_401, "should be less than or equal to 86400"),
    ("ModelService", "spec.change.minIntervalSeconds", "5m", "must be of type integer"),
    ("GpuProfile", "spec.model", "a b", "is no name of a model"),
    ("GpuProfile", "spec.gpuType", "A100 80GB", "is no GPU type: letters and digits"),
    ("GpuProfile", "spec.gpuType", "", "should be at least 1 chars long"),
    ("GpuProfile", "spec.gpusPerReplica", 0, "should be greater than or equal to 1"),
    ("GpuProfile", "spec.gpusPerReplica", 1025, "should be less than or equal to 1024"),
    ("GpuProfile", "spec.priceUsdPerHour", -1, "should be greater than or equal to 0"),
    ("GpuProfile", "spec.priceUsdPerHour", GONE, "spec.priceUsdPerHour: Required value"),
    ("GpuProfile", "spec.priceUsdPerHour", "1.006", "must be of type number"),
    (
        "GpuProfile",
        "spec.nodeSelector",
        {"two words": "x"},
        "a key is no name of a label, such as nvidia.com",
    ),
    ("GpuProfile", "spec.nodeSelector", {"a/b/c": "x"}, "a key is no name of a label"),
    ("GpuProfile", "spec.nodeSelector", {"a": "two words"}, "is no value of a label"),
    ("GpuProfile", "spec.nodeSelector", {"a": "b" * 64}, "may not be more than 63"),
    ("GpuProfile", "spec.nodeSelector", {"a": 1}, "must be of type string"),
    ("GpuProfile", "spec.nodeSelector", {f"k{i}": "v" for i in range(17)}, "must have at most 16 items"),
    ("GpuProfile", "spec.provenance", GONE, "spec.provenance: Required value"),
    ("GpuProfile", "spec.provenance.kind", "guessed", 'supported values: "measured", "modelled"'),
    ("GpuProfile", "spec.provenance.date", "2026-02-30", "must be of type date"),
    ("GpuProfile", "spec.provenance.date", "yesterday", "must be of type date"),
    ("GpuProfile", "spec.modelled", True, "give either rows of throughput or modelled: true"),
    ("GpuProfile", "spec.throughput", [], "give either rows of throughput or modelled: true"),
    ("GpuProfile", "spec.throughput", [ROW] * 513, "must have at most 512 items"),
    ("GpuProfile", "spec.throughput.0.maxRps", 0, "should be greater than 0"),
    ("GpuProfile", "spec.throughput.0.maxRps", 1e-7, "is less than 0.000001 requests per second"),
    ("GpuProfile", "spec.throughput.0.ttftSeconds", 0, "should be greater than 0"),
    ("GpuProfile", "spec.throughput.0.inputTokens", 0, "should be greater than 0"),
    ("GpuProfile", "spec.power", {"idleWatts": -1}, "should be greater than or equal to 0"),
    (
        "GpuProfile",
        "spec.power",
        {"idleWatts": 9, "prefillWatts": 8},
        "idleWatts is larger than prefillWatts",
    ),
    ("GpuProfile", "spec.power", {"idleWatts": 9, "decodeWatts": 8}, "idleWatts is larger than decodeWatts"),
    ("ExpertPlacement", "spec.modelRef", GONE, "spec.modelRef: Required value"),
    ("ExpertPlacement", "spec.modelRef.name", "two words", "is no name of a model"),
    ("ExpertPlacement", "spec.modelRef.moeLayers", 0, "should be greater than or equal to 1"),
    ("ExpertPlacement", "spec.modelRef.moeLayers", 513, "should be less than or equal to 512"),
    ("ExpertPlacement", "spec.modelRef.experts", 2049, "should be less than or equal to 2048"),
    ("ExpertPlacement", "spec.modelRef.expertBytes", 0, "should be greater than or equal to 1"),
    ("ExpertPlacement", "spec.modelRef.topK", 9, "topK is larger than experts"),
    ("ExpertPlacement", "spec.modelRef.expertGroups", 3, "expertGroups does not divide experts"),
    (
        "ExpertPlacement",
        "spec.modelRef.decoderLayers",
        3,
        "firstMoeLayer and moeLayers go beyond decoderLayers",
    ),
    ("ExpertPlacement", "spec.engine", "tgi", '"sglang", "tensorrt-llm", "vllm", "vllm-ascend"'),
    ("ExpertPlacement", "spec.redundantExperts", 3, "experts + redundantExperts is no multiple of epSize"),
    ("ExpertPlacement", "spec.epSize", 6, "the GPUs of topology.nodes are not as many as epSize"),
    ("ExpertPlacement", "spec.topology.nodes.0.gpus.1.slots", 3, "slots are needed of every GPU or of none"),
    (
        "ExpertPlacement",
        "spec.topology.nodes",
        [{"name": "n", "gpus": [{"id": i, "slots": 2 + (i == 3)} for i in range(4)]}],
        "their sum is experts + redundantExperts",
    ),
    ("ExpertPlacement", "spec.topology.nodes", GONE, "nobody says where the GPUs are"),
    ("ExpertPlacement", "spec.topology.nodes", [], "should have at least 1 items"),
    ("ExpertPlacement", "spec.topology.nodes.1.name", "node-0", "Duplicate value"),
    ("ExpertPlacement", "spec.topology.nodes.1.gpus.1.id", 0, "Duplicate value"),
    ("ExpertPlacement", "spec.topology.nodes.1.gpus.1.speed", 0, "should be greater than 0"),
    (
        "ExpertPlacement",
        "spec.topology.nodes.1.gpus.1.speed",
        1e-4,
        "is less than 0.001 of the reference GPU",
    ),
    ("ExpertPlacement", "spec.topology.bwInterGBps", GONE, "spec.topology.bwInterGBps: Required value"),
    ("ExpertPlacement", "spec.topology.bwIntraGBps", 1e-300, "is less than 0.001 GB/s"),
    (
        "ExpertPlacement",
        "spec.loadSource",
        {},
        "exactly one of configMap, pvc, prometheus, httpDump and sqlStore",
    ),
    ("ExpertPlacement", "spec.loadSource.sqlStore", {"recording": "r"}, "exactly one of configMap, pvc"),
    ("ExpertPlacement", "spec.loadSource.configMap.key", "a/b", "is no key of a ConfigMap"),
    ("ExpertPlacement", "spec.loadSource", {"pvc": {"claim": "c", "path": "../x"}}, "is no path of a file"),
    ("ExpertPlacement", "spec.loadSource", {"pvc": {"claim": "c", "path": "a/.."}}, "is no path of a file"),
    (
        "ExpertPlacement",
        "spec.loadSource",
        {"pvc": {"claim": "c", "path": "/etc/passwd"}},
        "is no path of a file",
    ),
    ("ExpertPlacement", "spec.loadSource", {"httpDump": {"url": "file:///etc/passwd"}}, URL),
    (
        "ExpertPlacement",
        "spec.loadSource",
        {"prometheus": {"url": "http://p", "metric": "a{} or b"}},
        "is no name of a metric",
    ),
    (
        "ExpertPlacement",
        "spec.loadSource",
        {"prometheus": {"url": "http://p", "metric": "m", "layerLabel": "a) or b"}},
        "is no name of a label",
    ),
    ("ExpertPlacement", "spec.loadSource.ewmaAlpha", 0, "should be greater than 0"),
    ("ExpertPlacement", "spec.loadSource.ewmaAlpha", 1.5, "should be less than or equal to 1"),
    ("ExpertPlacement", "spec.loadSource.windowSeconds", 1, "should be greater than or equal to 10"),
    ("ExpertPlacement", "spec.commModel", "gossip", '"dispatch", "transition"'),
    ("ExpertPlacement", "spec.objective.usPerTokenExpert", 0, "should be greater than 0"),
    ("ExpertPlacement", "spec.objective.bytesPerTokenCopy", -1, "should be greater than or equal to 0"),
    ("ExpertPlacement", "spec.solver", {"mode": "slow"}, '"fast", "full", "exact"'),
    ("ExpertPlacement", "spec.solver", {"timeLimitSeconds": 601}, "should be less than or equal to 600"),
    ("ExpertPlacement", "spec.migration", {"maxMovedRatio": 1.1}, "should be less than or equal to 1"),
    ("ExpertPlacement", "spec.migration", {"windowsUntilNext": 0}, "should be greater than or equal to 1"),
    ("ExpertPlacement", "spec.apply", "rolloutRestart", "rolloutRestart needs targetRef"),
    ("ExpertPlacement", "spec.apply", "restart", '"none", "configMap", "rolloutRestart"'),
    ("ExpertPlacement", "spec.mode", "Observe", '"Recommend", "Auto"'),
    ("ExpertPlacement", "spec.targetRef", {"kind": "Pod", "name": "p"}, '"Deployment", "StatefulSet"'),
    ("Plan", "spec.digest", GONE, "spec.digest: Required value"),
    ("Plan", "spec.steps.0.action", "Explode", '"ScaleUp", "Shift", "Drain", "ScaleDown"'),
    ("Plan", "spec.steps.0.toReplicas", -1, "should be greater than or equal to 0"),
    ("Plan", "spec.madeAt", "now", "must be of type date-time"),
    ("Plan", "spec.desired.0.targetRef.kind", "Pod", '"Deployment", "StatefulSet", "LeaderWorkerSet"'),
)


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_object_is_taken(api: Api, kind: str) -> None:
    assert offered(api, RESOURCES[kind], GOOD[kind]())


@pytest.mark.parametrize(
    ("kind", "path", "value", "words"),
    INVALID,
    ids=[f"{kind} {path} {words}"[:90] for kind, path, _, words in INVALID],
)
def test_an_invalid_object_is_refused_in_readable_words(
    api: Api, kind: str, path: str, value: Any, words: str
) -> None:
    body = changed(GOOD[kind](), path, copy.deepcopy(value))
    with pytest.raises(ApiError) as refused:
        offered(api, RESOURCES[kind], body)
    assert refused.value.code in {400, 422}
    assert words in str(refused.value)
    assert "should match" not in str(refused.value)  # a pattern is no message


def test_nothing_can_survive_the_loss_of_all_replicas(api: Api) -> None:
    body = good_service()
    body["spec"]["survive"] = 5
    for one in body["spec"]["variants"]:
        one["maxReplicas"] = 3
    offered(api, MODEL_SERVICES, body)
    body["spec"]["variants"][0]["maxReplicas"] = 2
    with pytest.raises(ApiError, match="survive is not smaller than the sum of maxReplicas"):
        offered(api, MODEL_SERVICES, body)


def test_a_route_needs_services_that_can_be_told_apart(api: Api) -> None:
    body = good_service()
    body["spec"]["httpRoute"] = {"name": "r"}
    first, second = body["spec"]["variants"]
    first["service"], second["service"] = "one", "two"
    offered(api, MODEL_SERVICES, body)
    second["service"] = "one"
    with pytest.raises(ApiError, match="two variants name the same service"):
        offered(api, MODEL_SERVICES, body)
    del body["spec"]["httpRoute"]
    offered(api, MODEL_SERVICES, body)  # one Service for all is fine as long as no route splits the traffic


@pytest.mark.parametrize(
    "traffic",
    [
        {"scrape": {}},
        {
            "prometheus": {
                "url": "https://prometheus.monitoring.svc:9090/prefix/",
                "selector": '{a="b", c=~"d.*",}',
            }
        },
        {"prometheus": {"url": "http://[::1]:9090", "selector": 'model_name="say \\"hi\\""'}},
        {"traceConfigMap": {"name": "a.b-c"}},
        {"histogram": None, "scrape": {"engine": "sglang"}},
    ],
)
def test_each_source_of_traffic_is_taken(api: Api, traffic: Object) -> None:
    body = good_service()
    body["spec"]["traffic"] = traffic
    taken = offered(api, MODEL_SERVICES, body)
    assert ModelServiceSpec.model_validate(taken["spec"]).traffic.written()


def test_the_model_of_a_service_never_changes(api: Api) -> None:
    body = good_service()
    scene.put(api, MODEL_SERVICES, body)
    with pytest.raises(ApiError, match="model cannot change: make another ModelService"):
        scene.put(api, MODEL_SERVICES, changed(body, "spec.model", "another"))
    scene.drop(api, MODEL_SERVICES, SPACE, "good")


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


def test_what_is_left_out_is_filled_in(api: Api) -> None:
    body = good_service()
    spec = body["spec"]
    del (
        spec["change"],
        spec["mode"],
        spec["slo"]["percentile"],
        spec["variants"][0]["targetRef"]["apiVersion"],
    )
    spec["traffic"] = {"scrape": {}}
    filled = offered(api, MODEL_SERVICES, body)["spec"]
    assert filled["change"] == {"startCostUsd": 0.5, "stopCostUsd": 0.1, "minIntervalSeconds": 300}
    assert (filled["mode"], filled["precision"], filled["paused"]) == ("Recommend", "bf16", False)
    assert (filled["headroomRatio"], filled["survive"], filled["slo"]["percentile"]) == (0.1, 0, 99)
    assert filled["traffic"]["scrape"] == {"engine": "vllm", "port": 8000, "path": "/metrics"}
    assert filled["variants"][0]["targetRef"]["apiVersion"] == "apps/v1"
    assert filled["variants"][0]["minReplicas"] == 0
    # the models fill in the same, so that reading is the same with and without a server
    assert ModelServiceSpec.model_validate(spec) == ModelServiceSpec.model_validate(filled)
    profile = offered(api, GPU_PROFILES, changed(good_profile(), "spec.gpusPerReplica", GONE))["spec"]
    assert (profile["gpusPerReplica"], profile["precision"], profile["modelled"]) == (1, "bf16", False)


def test_unknown_fields_are_warned_of_and_pruned(api: Api, kubectl: Path, plane: ControlPlane) -> None:
    body = changed(good_service(), "spec.variants.0.replicas", 3)
    body["spec"]["unknown"] = {"deep": [1]}
    taken = offered(api, MODEL_SERVICES, body, validation="Ignore")
    assert "unknown" not in taken["spec"]
    assert "replicas" not in taken["spec"]["variants"][0]
    words = ["apply", "--dry-run=server", "--validate=warn", "-f", "-"]
    text = json.dumps({"apiVersion": MODEL_SERVICES.api_version, "kind": MODEL_SERVICES.kind, **body})
    said = kubectl_says(kubectl, plane, *words, text=text)
    assert 'unknown field "spec.variants[0].replicas"' in said
    assert 'unknown field "spec.unknown"' in said


def kubectl_says(kubectl: Path, plane: ControlPlane, *words: str, text: str = "") -> str:
    command = [str(kubectl), f"--kubeconfig={plane.kubeconfig}", f"--namespace={SPACE}", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def test_kubectl_prints_what_matters(api: Api, kubectl: Path, plane: ControlPlane) -> None:
    service = good_service()
    service["spec"] |= {"model": "meta-llama/Llama-3.1-8B-Instruct", "mode": "Recommend"}
    waiting = {
        "type": "Applied",
        "status": "False",
        "reason": "WaitingForApproval",
        "message": "",
        "lastTransitionTime": NOW,
    }
    message = "approve it by: kubectl annotate -n resources plan/good ballast.dev/approved=0123456789abcdef"
    status = {
        "conditions": [waiting],
        "demand": {"requestsPerSecond": 8.5, "sampledAt": NOW},
        "costUsdPerHour": 8.05,
        "summary": "a10g 8→0, h100 0→2",
        "message": message,
    }
    for resource, body in (
        (MODEL_SERVICES, service),
        (GPU_PROFILES, good_profile()),
        (PLANS, good_plan()),
        (EXPERT_PLACEMENTS, good_placement()),
    ):
        body["metadata"]["labels"] = {"printed": "yes"}
        scene.put(api, resource, body)
    for resource, written in (
        (MODEL_SERVICES, status),
        (PLANS, {"phase": "Applying", "step": 1, "steps": 3, "message": "Deployment one goes to 2"}),
        (
            EXPERT_PLACEMENTS,
            {
                "phase": "Applied",
                "balance": {"mean": 1.02, "max": 1.1},
                "gap": 0.03,
                "movedRatio": 0.05,
                "message": "as planned",
            },
        ),
    ):
        metadata = {"name": "good", "namespace": SPACE}
        api.apply(resource, {"metadata": metadata, "status": written}, manager=STATUS, subresource="status")
    said = kubectl_says(
        kubectl, plane, "get", "modelservices,plans,gpuprofiles,eplace", "-lprinted=yes", "-owide"
    )
    services, plans, profiles, placements = [table.splitlines() for table in said.strip().split("\n\n")]
    heads = [table[0].split() for table in (services, plans, profiles, placements)]
    assert heads[0] == ["NAME", "MODEL", "MODE", "RATE", "REPLICAS", "USD/H", "APPLIED", "MESSAGE", "AGE"]
    assert heads[1] == ["NAME", "PHASE", "STEP", "OF", "USD/H", "BOUND", "GAP", "DIGEST", "MESSAGE", "AGE"]
    assert heads[2] == ["NAME", "MODEL", "GPU", "GPUS", "USD/H", "SOURCE", "MESSAGE", "AGE"]
    assert heads[3] == ["NAME", "MODEL", "ENGINE", "EP", "PHASE", "BALANCE", "GAP", "MOVED", "MESSAGE", "AGE"]
    row = [cell.strip() for cell in placements[1].split("   ") if cell.strip()]
    assert row[1:-1] == ["moe", "sglang", "4", "Applied", "1.02", "0.03", "0.05", "as planned"]
    row = [cell.strip() for cell in services[1].split("   ") if cell.strip()]
    assert row[:-1] == [
        "modelservice.ballast.dev/good",
        "meta-llama/Llama-3.1-8B-Instruct",
        "Recommend",
        "8.5",
        "a10g 8→0, h100 0→2",
        "8.05",
        "WaitingForApproval",
        message,
    ]
    row = [cell.strip() for cell in plans[1].split("   ") if cell.strip()]
    assert row[1:-1] == [
        "Applying",
        "1",
        "3",
        "2.5",
        "2.25",
        "0.1",
        "0123456789abcdef",
        "Deployment one goes to 2",
    ]
    narrow = kubectl_says(kubectl, plane, "get", "modelservices", "-lprinted=yes")
    assert message not in narrow
    assert max(map(len, narrow.splitlines())) <= 120  # it fits a window
    assert "modelservice.ballast.dev/good" in kubectl_says(kubectl, plane, "get", "llm", "-o", "name")
    assert "expertplacement.ballast.dev/good" in kubectl_says(kubectl, plane, "get", "ballast", "-o", "name")
    assert "Requests per second." in kubectl_says(
        kubectl, plane, "explain", "modelservice.spec.traffic.histogram.buckets.rateRps"
    )
    for resource in (MODEL_SERVICES, PLANS, GPU_PROFILES, EXPERT_PLACEMENTS):
        scene.drop(api, resource, SPACE if resource.namespaced else None, "good")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_models_read_every_object_the_server_takes(api: Api, kind: Any) -> None:
    """Strategies made from the schema: what they make is taken; what is mutated and taken nevertheless is read, too."""
    resource = RESOURCES[kind.kind]
    taken, refusals = 0, []

    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(spec=objects.valid_specs(kind), mutation=objects.mutations())
    def offer(spec: Object, mutation: objects.Mutation) -> None:
        nonlocal taken
        metadata = {"name": "any", **({"namespace": SPACE} if kind.namespaced else {})}
        answer = offered(api, resource, {"metadata": metadata, "spec": spec})
        read = kind.spec.model_validate(answer["spec"])
        assert kind.spec.model_validate(read.written()) == read
        broken = {"metadata": metadata, "spec": mutation.applied(spec)}
        try:
            answer = offered(api, resource, broken, validation="Ignore")
        except ApiError as error:
            refusals.append(error)
        else:
            kind.spec.model_validate(answer["spec"])
            taken += 1

    offer()
    assert {error.code for error in refusals} <= {400, 422}
    assert len(refusals) >= 30
    assert all(map(str, refusals))
    assert taken


@pytest.mark.parametrize(
    "text", ["\U0001f600", "\x7f\x80\u2028\ufeff\ufffe", "a\\ud83d\\ude00", "\x00\n\t\"'", "é→"]
)
def test_any_text_can_be_applied(api: Api, text: str) -> None:
    body = changed(good_profile(), "spec.provenance.source", text)
    assert scene.put(api, GPU_PROFILES, body)["spec"]["provenance"]["source"] == text
    scene.drop(api, GPU_PROFILES, None, "good")


def test_a_scale_subresource_works_by_kubectl(api: Api, kubectl: Path, plane: ControlPlane) -> None:
    toys = Resource(api_version="ballast.dev/v1alpha1", kind="Toy", plural="toys")
    api.apply(scene.CRD, definition(TOY), manager="tests", force=True)
    try:
        body = {"metadata": {"name": "bear", "namespace": SPACE}, "spec": {"code": "7"}}
        assert eventually(lambda: created(api, toys, body))
        kubectl_says(kubectl, plane, "scale", "toys/bear", "--replicas=3")
        status = {"metadata": body["metadata"], "status": {"replicas": 2, "selector": "app=bear"}}
        api.apply(toys, status, manager=STATUS, subresource="status")
        scale = api.request("GET", toys.path(SPACE, "bear", "scale"))
        assert (scale["spec"], scale["status"]) == ({"replicas": 3}, {"replicas": 2, "selector": "app=bear"})
    finally:
        scene.drop(api, scene.CRD, None, "toys.ballast.dev")


def created(api: Api, resource: Resource, body: Object) -> bool:
    """Whether the kind is served already."""
    try:
        api.create(resource, body["metadata"]["namespace"], body)
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


def test_the_operator_watches_what_the_definitions_define() -> None:
    assert {kind.kind for kind in KINDS} == set(RESOURCES)
    assert MODEL_SERVICE.plural == MODEL_SERVICES.plural
