"""Plans on a real API server: what is refused and in which words, of services and of experts."""

from typing import Any

import pytest

from controller.operator.api import PLANS, Api, ApiError
from controller.resources.plan import MOST_FILE_BYTES, PlanSpec
from tests.cluster import scene
from tests.cluster.resources.good_objects import experts_plan, good_plan
from tests.cluster.resources.offers import GONE, SPACE, Rows, changed, each_of, offered, refuse

REF = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "one"}
EXPERTS = experts_plan()["spec"]["experts"]
STEP = good_plan()["spec"]["steps"][0]

INVALID: Rows = (
    ("spec.digest", GONE, "spec.digest: Required value"),
    ("spec.steps.0.action", "Explode", '"ScaleUp", "Shift", "Drain", "ScaleDown"'),
    ("spec.steps.0.toReplicas", -1, "should be greater than or equal to 0"),
    ("spec.madeAt", "now", "must be of type date-time"),
    ("spec.desired.0.targetRef.kind", "Pod", '"Deployment", "StatefulSet", "LeaderWorkerSet"'),
    ("spec.modelServiceRef", GONE, "exactly one of modelServiceRef and experts is needed"),
    ("spec.experts", EXPERTS, "exactly one of modelServiceRef and experts is needed"),
)
INVALID_EXPERTS: Rows = (
    ("spec.experts", GONE, "exactly one of modelServiceRef and experts is needed"),
    ("spec.modelServiceRef", {"name": "good"}, "exactly one of modelServiceRef and experts is needed"),
    ("spec.steps", [STEP], "experts has steps of its own"),
    ("spec.desired", [{"variant": "a", "targetRef": REF, "replicas": 1}], "experts has steps of its own"),
    ("spec.experts.steps.1.targetRef", GONE, "Restart needs targetRef"),
    ("spec.experts.steps.0.action", "Explode", '"WriteMap", "Restart"'),
    ("spec.experts.files.0.key", "../x", "is no key of a ConfigMap"),
    ("spec.experts.files.0.sha256", GONE, "sha256: Required value"),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("Plan", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, PLANS, changed(good_plan(), path, value), words)


@pytest.mark.parametrize(("path", "value", "words"), INVALID_EXPERTS)
def test_an_invalid_plan_of_experts_is_refused(api: Api, path: str, value: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        offered(api, PLANS, changed(experts_plan(), path, value))


def test_a_plan_of_experts_is_taken_with_the_largest_map(api: Api) -> None:
    body = experts_plan()
    offered(api, PLANS, body)
    body["spec"]["experts"]["files"][0]["text"] = "1,\n2" * (MOST_FILE_BYTES // 4)
    taken = scene.put(api, PLANS, body)[
        "spec"
    ]  # kept, too: the database behind the server has bounds of its own
    read = PlanSpec.model_validate(taken)
    assert (read.step_count, read.generation) == (2, 2)
    assert PlanSpec.model_validate(read.written()) == read
    scene.drop(api, PLANS, SPACE, "moe-experts")
