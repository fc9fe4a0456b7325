"""The annotation-only start: which targets get a ModelService, what it says, and what is said if they get none."""

from typing import Any

import pytest

from controller.operator.annotated import wanted_services
from controller.operator.world import Target, World
from controller.resources.model_service import Mode, ModelServiceSpec

COMPLETE = {
    "ballast.dev/managed": "true",
    "ballast.dev/model": "meta-llama/Llama-3.1-8B",
    "ballast.dev/gpu-profile": "llama8b-a10g",
    "ballast.dev/slo": "ttft_p95=1.0,tbt_p95=0.05",
}


def target(annotations: dict[str, str], kind: str = "Deployment") -> Target:
    world = World()
    metadata = {"name": "chat", "namespace": "team", "uid": "u", "annotations": annotations}
    world.put(kind, {"metadata": metadata, "spec": {"replicas": 3}})
    found = world.get(kind, ("team", "chat"))
    assert isinstance(found, Target)
    return found


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("Deployment", "apps/v1"),
        ("StatefulSet", "apps/v1"),
        ("LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1"),
    ],
)
def test_a_target_with_all_annotations_gets_a_service_that_only_observes(kind: str, version: str) -> None:
    body, trouble = wanted_services(target(COMPLETE, kind), set())
    assert trouble == ""
    assert body is not None
    spec = ModelServiceSpec.model_validate(body["spec"])
    assert spec.mode is Mode.OBSERVE
    assert (spec.slo.ttft_seconds, spec.slo.tbt_seconds, spec.slo.percentile) == (1.0, 0.05, 95)
    assert spec.model == COMPLETE["ballast.dev/model"]
    (variant,) = spec.variants
    assert variant.gpu_profile == "llama8b-a10g"
    assert (variant.target_ref.api_version, variant.target_ref.kind) == (version, kind)
    assert variant.target_ref.name == "chat"
    metadata: dict[str, Any] = body["metadata"]
    assert (metadata["namespace"], metadata["name"]) == ("team", "chat")
    assert metadata["ownerReferences"] == [{"apiVersion": version, "kind": kind, "name": "chat", "uid": "u"}]


@pytest.mark.parametrize("managed", [{}, {"ballast.dev/managed": "false"}, {"ballast.dev/managed": "yes"}])
def test_only_true_asks_for_a_service(managed: dict[str, str]) -> None:
    rest = {name: value for name, value in COMPLETE.items() if name != "ballast.dev/managed"}
    assert wanted_services(target(rest | managed), set()) == (None, "")


def test_a_target_that_a_service_names_gets_no_other() -> None:
    assert wanted_services(target(COMPLETE), {("Deployment", "team", "chat")}) == (None, "")
    for other in (("StatefulSet", "team", "chat"), ("Deployment", "elsewhere", "chat")):
        assert wanted_services(target(COMPLETE), {other})[0] is not None


@pytest.mark.parametrize("missing", sorted(set(COMPLETE) - {"ballast.dev/managed"}))
def test_what_is_missing_is_named_and_nothing_else(missing: str) -> None:
    for value in (None, ""):
        annotations = {name: text for name, text in COMPLETE.items() if name != missing}
        if value is not None:
            annotations[missing] = value
        body, trouble = wanted_services(target(annotations), set())
        assert body is None
        assert trouble == f"ballast.dev/managed needs {missing} beside it"


@pytest.mark.parametrize(
    "slo", ["fast", "ttft_p95=-1,tbt_p95=0.05", "ttft_p95=1.0", "tbt_p95=0.05", "ttft_p95=2x,tbt_p95=0.05"]
)
def test_an_slo_that_cannot_be_used_is_quoted(slo: str) -> None:
    body, trouble = wanted_services(target(COMPLETE | {"ballast.dev/slo": slo}), set())
    assert body is None
    assert trouble.startswith("ballast.dev/slo: ")
    assert len(trouble) > len("ballast.dev/slo: ")


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("ballast.dev/slo", "ttft_p99.9=1.0,tbt_p99.9=0.05", "spec.slo.percentile"),
        ("ballast.dev/slo", "ttft_p99=9999,tbt_p99=0.05", "spec.slo.ttft"),
        ("ballast.dev/model", "two words", "spec.model"),
        ("ballast.dev/gpu-profile", "Not_A_Name", "spec.variants.0.gpu"),
    ],
)
def test_what_the_api_server_would_refuse_is_not_asked_of_it(name: str, value: str, field: str) -> None:
    body, trouble = wanted_services(target(COMPLETE | {name: value}), set())
    assert body is None
    assert field in trouble
