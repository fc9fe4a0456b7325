"""All definitions on a real API server: good objects are taken, read by the models, and printed for people."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from controller.operator.api import (
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    NODE_POWERS,
    PLANS,
    POWER_DOMAINS,
    STATUS,
    Api,
    ApiError,
    Resource,
)
from controller.resources.generate import definition
from controller.resources.kinds import KINDS, MODEL_SERVICE
from tests.cluster import objects, scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.resources.good_objects import (
    GOOD,
    good_domain,
    good_node,
    good_placement,
    good_plan,
    good_profile,
    good_service,
)
from tests.cluster.resources.offers import NOW, RESOURCES, SPACE, kubectl_says, offered
from tests.cluster.scene import Object
from tests.controller.test_resources import TOY


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_object_is_taken(api: Api, kind: str) -> None:
    assert offered(api, RESOURCES[kind], GOOD[kind]())


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
        (POWER_DOMAINS, good_domain()),
        (NODE_POWERS, good_node()),
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
    status = {
        "powerWatts": 11_000,
        "budgetWatts": 12_000,
        "theta": 0.84,
        "oversubscriptionRatio": 1.2,
        "state": "Free",
    }
    api.apply(
        POWER_DOMAINS, {"metadata": {"name": "good"}, "status": status}, manager=STATUS, subresource="status"
    )
    said = kubectl_says(kubectl, plane, "get", "pdom", "-lprinted=yes")
    assert said.splitlines()[0].split() == [
        "NAME", "LEVEL", "MODE", "POWER", "BUDGET", "THETA", "RATIO", "STATE", "AGE",
    ]  # fmt: skip
    assert said.splitlines()[1].split()[:-1] == [
        "good", "row", "Recommend", "11000", "12000", "0.84", "1.2", "Free",
    ]  # fmt: skip
    said = kubectl_says(kubectl, plane, "get", "npow", "-lprinted=yes")
    assert said.splitlines()[0].split() == [
        "NAME",
        "MODE",
        "SAFE",
        "ORDERED",
        "DONE",
        "LEASE",
        "HEALTHY",
        "AGE",
    ]
    assert "modelservice.ballast.dev/good" in kubectl_says(kubectl, plane, "get", "llm", "-o", "name")
    assert "expertplacement.ballast.dev/good" in kubectl_says(kubectl, plane, "get", "ballast", "-o", "name")
    assert "Requests per second." in kubectl_says(
        kubectl, plane, "explain", "modelservice.spec.traffic.histogram.buckets.rateRps"
    )
    for resource in RESOURCES.values():
        scene.drop(api, resource, SPACE if resource.namespaced else None, "good")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_models_read_every_object_the_server_takes(api: Api, kind: Any) -> None:
    """Strategies made from the schema: what they make is taken; what is mutated and taken nevertheless is read, too."""
    resource = RESOURCES[kind.kind]
    refusals = []

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(spec=objects.valid_specs(kind), mutation=objects.mutations())
    def offer(spec: Object, mutation: objects.Mutation) -> None:
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

    offer()
    assert {error.code for error in refusals} <= {400, 422}
    assert len(refusals) >= 15
    assert all(map(str, refusals))


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
