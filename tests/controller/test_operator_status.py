"""Statuses in every state a service can be in: allowed by the resource's schema, each condition with its reason."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.operator.api import NODES
from controller.operator.conditions import ORDER, Finding, written
from controller.operator.inventory import InventoryRules, PoolKey, take_inventory
from controller.operator.profiles import ProfileBook
from controller.operator.status import Progress, status_of, unchanged
from controller.operator.traffic import Traffic, stated
from controller.operator.views import ADOPTED_BY, PAUSED, ServiceView, Views
from controller.operator.world import World
from controller.resources.model_service import ModelServiceStatus
from controller.resources.plan import Phase
from solver.domain.cluster import ServiceDecision
from solver.domain.gpu_mix import RequestBucket

NOW = "2026-11-01T12:00:00Z"
LABEL = "nvidia.com/gpu.product"
GOOD = {
    "TelemetryReady": "True",
    "SolverReady": "True",
    "PlanReady": "True",
    "Applied": "True",
    "ActuationConflict": "False",
    "Degraded": "False",
}
FLOWING = stated([RequestBucket(rate_rps=4.0, input_tokens=512.0, output_tokens=128.0)], at=NOW)
SILENT = Traffic(reason="Stale", message="no sample for 60 s")
HELD = replace(FLOWING, fresh=False, settled=False, reason="Stale", message="no sample for 60 s")


def reference(target: str) -> dict[str, str]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}


def service(variants: Mapping[str, str], **spec: Any) -> dict[str, Any]:
    """Return a ModelService with variants (name: target)."""
    return {
        "metadata": {
            "name": "chat",
            "namespace": "team",
            "uid": "u1",
            "resourceVersion": "5",
            "generation": 2,
            "creationTimestamp": NOW,
        },
        "spec": {
            "model": "m",
            "mode": "Auto",
            "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05},
            "traffic": {
                "histogram": {"buckets": [{"inputTokens": 512, "outputTokens": 128, "rateRps": 4.0}]}
            },
            "variants": [
                {"name": name, "targetRef": reference(target), "gpuProfile": "fast"}
                for name, target in variants.items()
            ],
            **spec,
        },
    }


def target(name: str, replicas: int, *, ready: int | None = None, **annotations: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", "annotations": annotations},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "readyReplicas": replicas if ready is None else ready},
    }


def plan(phase: Phase, wanted: Mapping[str, int], **status: Any) -> dict[str, Any]:
    steps = [
        {
            "index": 0,
            "targetRef": reference(name),
            "variant": name,
            "fromReplicas": 0,
            "toReplicas": count,
            "action": "ScaleUp",
        }
        for name, count in list(wanted.items())[:1]
    ]
    return {
        "metadata": {"name": "chat", "namespace": "team"},
        "spec": {
            "solveId": "s",
            "digest": "d1",
            "modelServiceRef": {"name": "chat", "uid": "u1", "generation": 2},
            "costUsdPerHour": 4.0,
            "lowerBoundUsdPerHour": 4.0,
            "gapRatio": 0.0,
            "madeAt": NOW,
            "desired": [
                {"variant": name, "targetRef": reference(name), "replicas": count}
                for name, count in wanted.items()
            ],
            "steps": steps,
        },
        "status": {"phase": phase.value, "digest": "d1", "steps": len(steps), **status},
    }


PROFILE = {
    "metadata": {"name": "fast", "uid": "p", "generation": 1},
    "spec": {
        "model": "m",
        "gpuType": "A",
        "priceUsdPerHour": 1.0,
        "provenance": {"kind": "measured"},
        "throughput": [
            {"inputTokens": 4096, "outputTokens": 1024, "ttftSeconds": 0.5, "tbtSeconds": 0.02, "maxRps": 1.0}
        ],
    },
}
NODE = {
    "metadata": {"name": "n", "labels": {LABEL: "A"}},
    "status": {
        "allocatable": {"nvidia.com/gpu": "3"},
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def seen(*objects: tuple[str, dict[str, Any]], traffic: Traffic = FLOWING, hold: str = "") -> ServiceView:
    """Return the view of team/chat in a world of these objects."""
    world = World()
    for kind, body in objects:
        world.put(kind, json.loads(json.dumps(body)))
    views = Views(world=world, book=ProfileBook(), gpu_label=LABEL)
    specs = views.specs()
    owners = views.owners(specs)
    pools = {PoolKey(gpu_type="A"): list(world.all("Deployment").values())}
    inventory = take_inventory(
        world.all(NODES.kind),
        {},
        pools,
        ours=set(owners),
        rules=InventoryRules(gpu_label=LABEL, labels_of=views.book.labels_of),
    )
    key = ("team", "chat")
    return views.view(
        key,
        specs[key],
        traffic=traffic,
        owners=owners,
        autoscaled=views.autoscaled(),
        inventory=inventory,
        hold=hold,
    )


def ordinary(**spec: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("ModelService", service({"a": "chat-a"}, **spec)),
        ("GpuProfile", PROFILE),
        ("Deployment", target("chat-a", 4)),
        ("Node", NODE),
    ]


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in status["conditions"]}


def judged(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the conditions of a status: all of them, in a form the API server takes, none of them mute."""
    ModelServiceStatus.model_validate(status)
    found = conditions(status)
    assert tuple(found) == tuple(GOOD)
    assert status["message"]
    for kind, condition in found.items():
        if condition["status"] != GOOD[kind]:
            assert condition["message"], f"{kind}: {condition['reason']} says nothing"
    return found


DECISIONS = (
    None,
    ServiceDecision(service="team/chat", status="optimal", replicas=(4,), cost_usd_per_h=4.0),
    ServiceDecision(
        service="team/chat", status="infeasible", reason="replica-limit", message="model cannot be served"
    ),
    ServiceDecision(service="team/chat", status="timed_out", reason="timed-out", message="no plan in time"),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_state_has_a_reason_a_message_and_a_form_the_schema_allows(data: st.DataObject) -> None:
    draw = data.draw
    spec: dict[str, Any] = {"mode": draw(st.sampled_from(("Observe", "Recommend", "Auto")))}
    if draw(st.booleans()):
        spec["paused"] = True
    names = {f"v{i}": f"t{i}" for i in range(draw(st.integers(1, 3)))}
    body = service(names, **spec)
    if draw(st.integers(0, 9)) == 0:
        body["spec"]["slo"]["ttftSeconds"] = -1
    if draw(st.booleans()):
        body["metadata"]["annotations"] = {PAUSED: "true"}
    objects = [("ModelService", body)]
    if draw(st.integers(0, 4)):
        objects.append(("GpuProfile", PROFILE))
    if draw(st.booleans()):
        objects.append(("Node", NODE))
    for name in names.values():
        fate = draw(st.sampled_from(("there", "there", "gone", "scaled by others", "autoscaled", "taken")))
        annotations = {ADOPTED_BY: "team/chat"} if fate == "scaled by others" else {}
        if fate != "gone":
            replicas = draw(st.integers(0, 5))
            deployment = target(name, replicas, ready=draw(st.integers(0, replicas)), **annotations)
            objects.append(("Deployment", deployment))
        if fate == "autoscaled":
            autoscaler = {"metadata": {"name": "h", "namespace": "team"}}
            objects.append(
                ("HorizontalPodAutoscaler", {**autoscaler, "spec": {"scaleTargetRef": reference(name)}})
            )
        if fate == "taken":
            other = service({"x": name})
            other["metadata"] |= {"name": "first", "creationTimestamp": "2026-01-01T00:00:00Z"}
            objects.append(("ModelService", other))
    phase = draw(st.sampled_from((None, *Phase)))
    if phase is not None:
        ended = phase in {Phase.FAILED, Phase.SUPERSEDED}
        message = "step 1 did not end in 1800 s" if ended else ""
        objects.append(("Plan", plan(phase, dict.fromkeys(names, 3), message=message)))
    view = seen(
        *objects,
        traffic=draw(st.sampled_from((FLOWING, SILENT, HELD, Traffic()))),
        hold=draw(st.sampled_from(("", "the solver did not answer"))),
    )
    decision = draw(st.sampled_from(DECISIONS))
    if decision is not None and decision.replicas is not None:
        decision = replace(decision, replicas=(4,) * len(view.variants))
    progress = Progress(
        decision=decision,
        solver_reason=draw(st.sampled_from(("", "SolverOverran"))),
        solver_message="the solver did not answer within 1 s and was stopped",
        refused=draw(st.sampled_from(("", "no free GPUs"))),
        waits_for=draw(st.sampled_from(("", "2 of 3 replicas are ready"))),
        held=draw(st.sampled_from(("", "paused by the chart's values"))),
    )
    status = status_of(view, progress, now=NOW)
    judged(status)
    again = replace(view, body={**view.body, "status": status})
    later = status_of(again, progress, now="2026-11-02T00:00:00Z")
    assert unchanged(later, status)


def test_a_service_that_runs_as_planned_is_all_well() -> None:
    view = seen(*ordinary(), ("Plan", plan(Phase.APPLIED, {"a": 4}, step=1)))
    status = status_of(view, Progress(decision=DECISIONS[1]), now=NOW)
    assert {kind: found["status"] for kind, found in judged(status).items()} == GOOD
    assert status["message"] == "as planned"
    assert status["summary"] == "a 4"
    assert status["costUsdPerHour"] == 4.0
    assert status["demand"] == {"requestsPerSecond": 4.0, "sampledAt": NOW}


def test_a_plan_that_waits_says_the_very_command_that_approves_it() -> None:
    view = seen(*ordinary(mode="Recommend"), ("Plan", plan(Phase.PROPOSED, {"a": 6})))
    status = status_of(view, Progress(decision=DECISIONS[1]), now=NOW)
    found = judged(status)
    assert found["Applied"]["reason"] == "WaitingForApproval"
    assert "kubectl annotate -n team plan/chat --overwrite ballast.dev/approved=d1" in status["message"]
    assert status["summary"] == "a 4→6"


def test_too_little_ready_is_degraded() -> None:
    objects = ordinary()
    objects[2] = ("Deployment", target("chat-a", 4, ready=3))
    found = judged(status_of(seen(*objects), Progress(), now=NOW))
    assert found["Degraded"]["reason"] == "ReadyCapacityTooSmall"


@pytest.mark.parametrize(
    ("most", "expected"),
    [(None, "3 of variant a fit the GPUs of A"), (2, "maxReplicas of variant a is 2")],
)
def test_what_limits_an_infeasible_service_is_named(most: int | None, expected: str) -> None:
    objects = ordinary()
    if most is not None:
        objects[0][1]["spec"]["variants"][0]["maxReplicas"] = most
    status = status_of(seen(*objects), Progress(decision=DECISIONS[2]), now=NOW)
    found = judged(status)["SolverReady"]
    assert (found["status"], found["reason"]) == ("False", "ReplicaLimit")
    assert expected in found["message"]
    assert expected in status["message"]


def test_sixteen_variants_with_long_names_fit_the_summary() -> None:
    names = {f"{'long-variant-name-' * 3}{i:02}": f"t{i}" for i in range(16)}
    objects = [("ModelService", service(names)), ("GpuProfile", PROFILE)]
    objects += [("Deployment", target(name, 99_999)) for name in names.values()]
    view = seen(*objects, ("Plan", plan(Phase.APPLYING, dict.fromkeys(names, 100_000))))
    status = status_of(view, Progress(decision=DECISIONS[1]), now=NOW)
    judged(status)
    assert status["summary"].startswith("long-variant-name-")


def test_a_rate_that_moves_little_is_not_written_again() -> None:
    first = status_of(seen(*ordinary()), Progress(), now=NOW)
    for rate, same in ((4.1, True), (4.3, False)):
        buckets = [replace(FLOWING.buckets[0], rate_rps=rate)]
        view = seen(*ordinary(), traffic=stated(buckets, at="2026-11-01T13:00:00Z"))
        again = status_of(replace(view, body={**view.body, "status": first}), Progress(), now=NOW)
        assert (again["demand"] == first["demand"]) is same


def finding(*, status: bool | None, reason: str = "R", kind: str = "Applied") -> Finding:
    return Finding(type=kind, status=status, reason=reason, message="m")


def test_the_transition_time_changes_with_the_status_only() -> None:
    first = written([finding(status=True)], [], generation=1, now="t1")
    second = written([finding(status=True, reason="Other")], first, generation=2, now="t2")
    third = written([finding(status=False)], second, generation=2, now="t3")
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == ["t1", "t1", "t3"]
    assert [c[0]["observedGeneration"] for c in (first, second, third)] == [1, 2, 2]
    assert second[0]["reason"] == "Other"


def test_conditions_are_in_one_order_and_long_messages_are_cut() -> None:
    findings = [finding(status=None, kind=kind) for kind in reversed(ORDER)]
    assert [c["type"] for c in written(findings, [], generation=1, now="t")] == list(ORDER)
    long = Finding(type="Applied", status=False, reason="R", message="x" * 10_000)
    assert len(written([long], [], generation=1, now="t")[0]["message"]) == 4096


def test_whom_nobody_can_serve_is_told_the_same_as_ever_where_all_variants_serve_whole_requests() -> None:
    """Variants that are not there are said by Degraded."""
    body = service({"a10g": "a10g", "gone": "gone"})
    view = seen(
        ("ModelService", body), ("GpuProfile", PROFILE), ("Node", NODE), ("Deployment", target("a10g", 1))
    )
    refused = ServiceDecision(
        service="team/chat", status="infeasible", reason="bucket-unservable", message="nobody can"
    )
    found = conditions(status_of(view, Progress(decision=refused), now=NOW))
    assert found["SolverReady"]["message"] == "nobody can"
    assert "Deployment gone does not exist" in found["Degraded"]["message"]
