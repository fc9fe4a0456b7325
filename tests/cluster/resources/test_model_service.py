"""ModelServices on a real API server: what is refused and in which words, and what is filled in."""

import json
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import GPU_PROFILES, MODEL_SERVICES, Api, ApiError
from controller.resources.model_service import ModelServiceSpec
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane
from tests.cluster.resources.good_objects import good_profile, good_service
from tests.cluster.resources.offers import (
    GONE,
    NAME,
    SPACE,
    URL,
    Rows,
    changed,
    each_of,
    kubectl_says,
    offered,
    refuse,
)
from tests.cluster.scene import Object, histogram, variant

LWS = "leaderworkerset.x-k8s.io/v1"
BUCKET = {"inputTokens": 1, "outputTokens": 1, "rateRps": 1}
TRAFFIC = "exactly one of histogram, scrape, prometheus and traceConfigMap is needed"
MATCHERS = 'is no list of label matchers such as namespace="chat",model_name="m"'
BIG = "a" * 254

INVALID: Rows = (
    ("spec", GONE, "spec: Required value"),
    ("spec", "chat", "spec in body must be of type object"),
    ("spec.model", GONE, "spec.model: Required value"),
    ("spec.model", "", "is no name of a model"),
    (
        "spec.model",
        "two words",
        "is no name of a model: letters, digits and signs, no spaces",
    ),
    ("spec.model", "a\u00a0b", "is no name of a model"),
    ("spec.model", "m\n", "is no name of a model"),
    ("spec.model", BIG, "may not be more than 253"),
    ("spec.model", 7, "spec.model in body must be of type string"),
    ("spec.forecast", {"horizon": 59}, "should be greater than or equal to 60"),
    (
        "spec.forecast",
        {"horizon": "25h"},
        "is no time from 60 s to 24 h, such as 1800 or 30m",
    ),
    ("spec.forecast", {"horizon": 1.5}, "must be of type integer,string"),
    ("spec.forecast", {"violationProbability": 0.3}, "should be less than or equal to 0.25"),
    ("spec.forecast", {"violationProbability": 0}, "is smaller than 0.0001"),
    ("spec.precision", "fp7", 'supported values: "bf16", "fp16", "fp8", "int8", "fp4"'),
    ("spec.mode", "Automatic", 'supported values: "Observe", "Recommend", "Auto"'),
    ("spec.mode", "auto", 'supported values: "Observe", "Recommend", "Auto"'),
    ("spec.mod", "Auto", 'unknown field "spec.mod"'),
    ("spec.paused", "yes", "spec.paused in body must be of type boolean"),
    ("spec.slo", GONE, "spec.slo: Required value"),
    ("spec.slo", None, "spec.slo: Required value"),
    ("spec.slo.ttftSeconds", GONE, "spec.slo.ttftSeconds: Required value"),
    ("spec.slo.ttftSeconds", 0, "should be greater than 0"),
    ("spec.slo.ttftSeconds", -1.0, "should be greater than 0"),
    ("spec.slo.ttftSeconds", "1s", "must be of type number"),
    ("spec.slo.ttftSeconds", float("nan"), "invalid character 'N'"),
    ("spec.slo.tbtSeconds", float("inf"), "invalid character 'I'"),
    ("spec.slo.tbtSeconds", 3601, "should be less than or equal to 3600"),
    ("spec.slo.percentile", 100, "should be less than or equal to 99"),
    ("spec.slo.percentile", 49, "should be greater than or equal to 50"),
    ("spec.slo.percentile", 99.9, "must be of type integer"),
    ("spec.slo.percentile", "p99", "must be of type integer"),
    ("spec.traffic", GONE, "spec.traffic: Required value"),
    ("spec.traffic", {}, TRAFFIC),
    ("spec.traffic", {"histogram": None}, TRAFFIC),
    ("spec.traffic.scrape", {}, TRAFFIC),
    ("spec.traffic.traceConfigMap", {"name": "t"}, TRAFFIC),
    ("spec.traffic.histogram.buckets", [], "should have at least 1 items"),
    ("spec.traffic.histogram.buckets", [BUCKET] * 257, "must have at most 256 items"),
    ("spec.traffic.histogram.buckets.0.rateRps", -1, "should be greater than or equal to 0"),
    (
        "spec.traffic.histogram.buckets.0.rateRps",
        1e300,
        "should be less than or equal to 1e+06",
    ),
    ("spec.traffic.histogram.buckets.0.inputTokens", 0, "should be greater than 0"),
    ("spec.traffic.histogram.buckets.0.inputTokens", 1.5, "must be of type integer"),
    ("spec.traffic.histogram.buckets.0.outputTokens", 10**30, "must be of type integer"),
    ("spec.traffic.histogram.buckets.0", None, "must be of type object"),
    ("spec.traffic", {"scrape": {"port": 0}}, "should be greater than or equal to 1"),
    ("spec.traffic", {"scrape": {"port": 65536}}, "should be less than or equal to 65535"),
    ("spec.traffic", {"scrape": {"path": "metrics"}}, "is no path such as /metrics"),
    ("spec.traffic", {"scrape": {"path": "/m?a=b"}}, "without spaces, ? and #"),
    ("spec.traffic", {"scrape": {"engine": "tgi"}}, 'supported values: "vllm", "sglang"'),
    ("spec.traffic", {"prometheus": {}}, "spec.traffic.prometheus.url: Required value"),
    ("spec.traffic", {"prometheus": {"url": "prometheus:9090"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "ftp://prometheus"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://a b/"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://a..b"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://p:99999"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://u:secret@p"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://p/?q=1"}}, URL),
    ("spec.traffic", {"prometheus": {"url": "http://p", "selector": "m"}}, MATCHERS),
    (
        "spec.traffic",
        {"prometheus": {"url": "http://p", "selector": 'a="b"} or up{'}},
        MATCHERS,
    ),
    ("spec.traffic", {"prometheus": {"url": "http://p", "selector": "{a='b'}"}}, MATCHERS),
    ("spec.traffic", {"prometheus": {"url": "http://p", "selector": '{a="b"'}}, MATCHERS),
    (
        "spec.traffic",
        {"prometheus": {"url": "http://p", "selector": '__name__="up"'}},
        "names a series; labels only: Ballast names the series",
    ),
    ("spec.traffic", {"traceConfigMap": {}}, "traceConfigMap.name: Required value"),
    ("spec.traffic", {"traceConfigMap": {"name": "T"}}, NAME),
    (
        "spec.traffic",
        {"traceConfigMap": {"name": "t", "key": ".."}},
        "is no key of a ConfigMap",
    ),
    (
        "spec.traffic",
        {"traceConfigMap": {"name": "t", "key": "a/b"}},
        "is no key of a ConfigMap",
    ),
    ("spec.variants", GONE, "spec.variants: Required value"),
    ("spec.variants", [], "should have at least 1 items"),
    ("spec.variants", "a", "must be of type array"),
    (
        "spec.variants",
        [variant(f"v{i}", f"t{i}", "p") for i in range(17)],
        "at most 16 items",
    ),
    ("spec.variants.1.name", "a", 'Duplicate value: {"name":"a"}'),
    ("spec.variants.1.name", "B", "is no name: lower-case letters and digits"),
    ("spec.variants.1.name", GONE, "name: Required value"),
    ("spec.variants.1.name", "b" * 64, "may not be more than 63"),
    ("spec.variants.1.targetRef.name", "one", "two variants name the same targetRef"),
    ("spec.variants.1.targetRef.name", "one..two", NAME),
    (
        "spec.variants.1.targetRef.kind",
        "Pod",
        '"Deployment", "StatefulSet", "LeaderWorkerSet"',
    ),
    ("spec.variants.1.targetRef.apiVersion", LWS, "apiVersion is apps/v1 for Deployment"),
    ("spec.variants.1.targetRef.kind", "LeaderWorkerSet", "v1 for LeaderWorkerSet"),
    ("spec.variants.1.targetRef", GONE, "targetRef: Required value"),
    ("spec.variants.1.gpuProfile", GONE, "gpuProfile: Required value"),
    ("spec.variants.1.gpuProfile", "A100", NAME),
    ("spec.variants.1.minReplicas", -1, "should be greater than or equal to 0"),
    ("spec.variants.1.minReplicas", 100_001, "should be less than or equal to 100000"),
    (
        "spec.variants.1",
        variant("b", "two", "p", minReplicas=3, maxReplicas=2),
        "spec.variants[1]: Invalid value: minReplicas is larger than maxReplicas",
    ),
    ("spec.variants.1.maxReplicas", -1, "should be greater than or equal to 0"),
    ("spec.httpRoute", {"name": "r"}, "httpRoute needs the service of every variant"),
    ("spec.httpRoute", {}, "spec.httpRoute.name: Required value"),
    ("spec.variants.0.service", "a_b", NAME),
    ("spec.headroomRatio", -0.1, "should be greater than or equal to 0"),
    ("spec.headroomRatio", 1.0, "should be less than or equal to 0.9"),
    ("spec.survive", -1, "should be greater than or equal to 0"),
    ("spec.survive", 51, "should be less than or equal to 50"),
    ("spec.survive", 0.5, "must be of type integer"),
    ("spec.change.startCostUsd", -0.5, "should be greater than or equal to 0"),
    ("spec.change.minIntervalSeconds", 86_401, "should be less than or equal to 86400"),
    ("spec.change.minIntervalSeconds", "5m", "must be of type integer"),
    ("spec.variants.0.role", "prompt", '"both", "prefill", "decode"'),
    ("spec.kvBytesPerPromptToken", 0, "should be greater than 0"),
    ("spec.kvBytesPerPromptToken", 0.5, "is less than 1 byte per token"),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("ModelService", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, MODEL_SERVICES, changed(good_service(), path, value), words)


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


def split_service(**traffic: Any) -> Object:
    """Return a service of three variants: prefill, decode, and one for whole requests."""
    variants = [variant(name, name, "p") for name in ("pre", "dec", "all")]
    body = scene.service(SPACE, "split", variants, traffic=traffic or histogram(1.0))
    for role, one in zip(("prefill", "decode", "both"), variants, strict=True):
        one["role"] = role
    return body


def test_prefill_and_decode_need_each_other(api: Api) -> None:
    taken = offered(api, MODEL_SERVICES, split_service())
    assert [v["role"] for v in taken["spec"]["variants"]] == ["prefill", "decode", "both"]
    for lost in (0, 1):
        body = split_service()
        del body["spec"]["variants"][lost]
        with pytest.raises(ApiError, match="a variant of role prefill needs one of role decode"):
            offered(api, MODEL_SERVICES, body)
    body = split_service()
    del body["spec"]["variants"][2]["role"]
    assert offered(api, MODEL_SERVICES, body)["spec"]["variants"][2]["role"] == "both"


def test_a_route_needs_no_service_of_decode_variants(api: Api) -> None:
    body = split_service()
    body["spec"]["httpRoute"] = {"name": "r"}
    first, decode, whole = body["spec"]["variants"]
    first["service"] = "one"
    with pytest.raises(
        ApiError, match="httpRoute needs the service of every variant but those of role decode"
    ):
        offered(api, MODEL_SERVICES, body)
    whole["service"] = "two"
    offered(api, MODEL_SERVICES, body)
    decode["service"] = "one"
    with pytest.raises(ApiError, match="two variants name the same service"):
        offered(api, MODEL_SERVICES, body)
    decode["service"] = "three"
    offered(api, MODEL_SERVICES, body)


def test_prometheus_is_told_which_pods_are_which(api: Api) -> None:
    source: Object = {"url": "http://prometheus:9090", "selector": 'pod=~"pre.*"'}
    with pytest.raises(ApiError, match=r"traffic\.prometheus needs selector and outputSelector"):
        offered(api, MODEL_SERVICES, split_service(prometheus=source))
    source["outputSelector"] = 'pod=~"dec.*"'
    offered(api, MODEL_SERVICES, split_service(prometheus=source))
    with pytest.raises(ApiError, match=r"traffic\.prometheus needs selector and outputSelector"):
        offered(api, MODEL_SERVICES, split_service(prometheus={**source, "selector": ""}))


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


@pytest.mark.parametrize("horizon", [60, 86400, "90", "30m", "24h"])
def test_a_horizon_is_a_number_or_a_time(api: Api, horizon: object) -> None:
    body = changed(good_service(), "spec.forecast", {"horizon": horizon})
    taken = offered(api, MODEL_SERVICES, body)["spec"]
    assert taken["forecast"] == {"horizon": horizon, "violationProbability": 0.01}
    assert ModelServiceSpec.model_validate(taken) == ModelServiceSpec.model_validate(body["spec"])


def test_the_model_of_a_service_never_changes(api: Api) -> None:
    body = good_service()
    scene.put(api, MODEL_SERVICES, body)
    with pytest.raises(ApiError, match="model cannot change: make another ModelService"):
        scene.put(api, MODEL_SERVICES, changed(body, "spec.model", "another"))
    scene.drop(api, MODEL_SERVICES, SPACE, "good")


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
