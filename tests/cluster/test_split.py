"""A service that serves prefill and decode apart, on a real control plane: measured, planned, applied, routed, told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli.explain import print_story
from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, HTTP_ROUTES, MODEL_SERVICES, Api, ApiError
from controller.operator.explain import Explainer
from controller.operator.snapshot import read_world
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually, free_port
from tests.cluster.engines import OUTPUT_TOKENS, PROMPT_TOKENS, Engines, engines
from tests.cluster.scene import Object, variant

SPACE = "split"
FAST, CHEAP = "SplitFast", "SplitCheap"
PREFILL_RPS, DECODE_RPS, WHOLE_RPS = 2.0, 1.6, 0.4
RATE_RPS = 4.3
"""3 prefill replicas carry 3.2 to 4.8 with a fifth to spare, 4 decode replicas 3.84 to 5.12."""
WANTED = (3, 4, 0)


def row(role: str, output_tokens: int, max_rps: float, **times: float) -> Object:
    return {"role": role, "inputTokens": 512, "outputTokens": output_tokens, "maxRps": max_rps, **times}


def profile(name: str, product: str, price: float, *rows: Object) -> Object:
    body = scene.profile(name, product, max_rps=1.0, price=price)
    body["spec"]["throughput"] = list(rows)
    return body


@pytest.fixture(scope="module")
def api(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return the API of a cluster with a fast and a cheap GPU type, and an operator."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {FAST: 1, CHEAP: 2}, prefix="split")
    whole = {"ttftSeconds": 0.5, "tbtSeconds": 0.02}
    fast = profile(
        "split-fast",
        FAST,
        2.0,
        row("prefill", 1, PREFILL_RPS, ttftSeconds=0.5),
        row("both", OUTPUT_TOKENS, WHOLE_RPS, **whole),
    )
    # Were outputs measured at prefill pods, one token each, a single decode replica would do.
    outputs = [
        row("decode", tokens, rps, tbtSeconds=0.02)
        for tokens, rps in ((1, 100.0), (OUTPUT_TOKENS, DECODE_RPS))
    ]
    scene.put(api, GPU_PROFILES, fast)
    scene.put(api, GPU_PROFILES, profile("split-cheap", CHEAP, 1.0, *outputs))
    for name, product, replicas in (("pre", FAST, 1), ("dec", CHEAP, 1), ("all", FAST, 0)):
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, name, product, replicas=replicas))
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("split"), namespace=SPACE)
    operators.start(f"--watch-namespaces={SPACE}", "--traffic-window=4")
    try:
        yield api
    finally:
        operators.end()


@pytest.fixture(scope="module")
def load(api: Api) -> Iterator[Engines]:
    """Return the engines: those of ``dec`` decode what the others prefill."""
    with engines(api, SPACE, free_port()) as running:
        running.decoding = frozenset({"dec"})
        yield running


def put(api: Api, traffic: Object, **more: Any) -> None:
    variants = [
        variant("fast", "pre", "split-fast", role="prefill", service="pre"),
        variant("cheap", "dec", "split-cheap", role="decode"),
        variant("whole", "all", "split-fast", service="all"),
    ]
    body = scene.service(SPACE, "chat", variants, traffic=traffic, headroomRatio=0.2, **more)
    scene.put(api, MODEL_SERVICES, body)


def stated(rate_rps: float) -> Object:
    """Return traffic of the size that the engines serve."""
    size = {"inputTokens": PROMPT_TOKENS, "outputTokens": OUTPUT_TOKENS}
    return {"histogram": {"buckets": [{**size, "rateRps": rate_rps}]}}


def asked(api: Api) -> tuple[int | None, ...]:
    return tuple(scene.replicas(api, SPACE, name) for name in ("pre", "dec", "all"))


def applied(api: Api, wanted: tuple[int, ...]) -> bool:
    return asked(api) == wanted and scene.phase(api, SPACE, "chat") == "Applied"


def steps(api: Api) -> list[tuple[str, str]]:
    """Return action and role of the steps of the plan."""
    spec = scene.plan_of(api, SPACE, "chat")["spec"]
    return [(step["action"], step.get("role", "both")) for step in spec["steps"]]


def status_of(api: Api) -> Object:
    return dict((api.get(MODEL_SERVICES, SPACE, "chat") or {}).get("status") or {})


def test_both_phases_are_scaled_for_arrivals_that_are_counted_once(api: Api, load: Engines) -> None:
    load.rate_rps = RATE_RPS
    put(api, {"scrape": {"engine": "vllm", "port": load.port, "path": "/metrics"}})
    assert eventually(lambda: applied(api, WANTED), within_s=40), (asked(api), status_of(api))
    rate = pytest.approx(RATE_RPS, rel=0.15)
    assert eventually(lambda: status_of(api)["demand"]["requestsPerSecond"] == rate), status_of(api)
    status = status_of(api)
    assert {(w["variant"], w.get("role"), w["replicas"]) for w in status["desired"]} == {
        ("fast", "prefill", 3),
        ("cheap", "decode", 4),
        ("whole", None, 0),
    }
    (size,) = {
        (r["inputTokens"], r["outputTokens"]) for r in scene.plan_of(api, SPACE, "chat")["spec"]["routing"]
    }
    assert size == (PROMPT_TOKENS, OUTPUT_TOKENS)


def test_people_are_told_the_roles(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert eventually(lambda: status_of(api).get("summary") == "prefill fast 3, decode cheap 4"), status_of(
        api
    )
    story = Explainer(snapshot=read_world(api, SPACE, gpu_resource="nvidia.com/gpu")).explain((SPACE, "chat"))
    assert story.explanation is not None
    assert story.explanation.replicas == WANTED
    print_story(story)
    told = capsys.readouterr().out
    assert "prefill fast" in told
    assert "decode cheap" in told
    assert max(map(len, told.splitlines())) <= 100


def test_neither_phase_goes_before_the_traffic_allows(api: Api) -> None:
    """Stated traffic that falls: prefill goes down before decode, and comes up after it."""
    put(api, stated(1.0))
    assert eventually(lambda: applied(api, (1, 1, 0))), (asked(api), status_of(api))
    assert steps(api) == [("ScaleDown", "prefill"), ("ScaleDown", "decode")]
    put(api, stated(3.0))
    assert eventually(lambda: applied(api, (2, 3, 0))), (asked(api), status_of(api))
    assert steps(api) == [("ScaleUp", "decode"), ("ScaleUp", "prefill")]


def test_no_request_is_routed_to_decode_replicas(api: Api, definitions_of_others: list[Path]) -> None:
    for path in definitions_of_others:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        if body["metadata"]["name"] == "httproutes.gateway.networking.k8s.io":
            scene.put(api, scene.CRD, {"metadata": body["metadata"], "spec": body["spec"]})
    backends = [{"name": name, "port": 80, "weight": 1} for name in ("pre", "all", "other")]
    route = {"metadata": {"name": "chat", "namespace": SPACE}, "spec": {"rules": [{"backendRefs": backends}]}}

    def routed() -> bool:
        try:
            return bool(scene.put(api, HTTP_ROUTES, route))
        except ApiError:
            return False  # its storage is being set up

    def weights() -> dict[str, int]:
        body = api.get(HTTP_ROUTES, SPACE, "chat") or {}
        return {b["name"]: b["weight"] for b in body["spec"]["rules"][0]["backendRefs"]}

    assert eventually(routed)
    put(api, stated(RATE_RPS), httpRoute={"name": "chat"})
    assert eventually(lambda: applied(api, WANTED)), (asked(api), status_of(api))
    assert weights() == {"pre": 1000, "all": 0, "other": 1}
    assert steps(api) == [("ScaleUp", "decode"), ("ScaleUp", "prefill"), ("Shift", "prefill")]
    scene.drop(api, HTTP_ROUTES, SPACE, "chat")
