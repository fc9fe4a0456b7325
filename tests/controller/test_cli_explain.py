"""``ballast explain`` and ``ballast doctor`` as text: narrow with the longest names, commands whole, plain words."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.cli.doctor import doctor_answer, print_report
from controller.cli.explain import _found, explain_answer, print_story
from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, MODEL_SERVICES, NODES, PLANS
from controller.operator.doctor.findings import Finding, Mark, Product, Report
from controller.operator.explain import Explainer, Story, find_service
from controller.operator.snapshot import Snapshot
from controller.operator.world import World
from solver.domain.errors import InputError
from solver.services.explain import Explanation, Rival

Object = dict[str, Any]
SPACE = "n" * 63
NAME = "service-" + "s" * 55
COMMAND = "kubectl "


def put(world: World, kind: str, name: str, spec: Object, *, space: str = SPACE, **more: Any) -> None:
    metadata = {
        "name": name,
        "namespace": space,
        "uid": f"uid-{name}",
        "resourceVersion": "1",
        "generation": 1,
    }
    metadata |= more.pop("metadata", {})
    world.put(kind, {"metadata": metadata, "spec": spec, **more})


def cluster(
    variants: int, *, phase: str = "Proposed", routes: int = 1, conditions: list[Object] | None = None
) -> World:
    """Return a world with one service of many variants with the longest names, its plan, and a node."""
    world = World()
    names = [f"v{index:02}-{'v' * 59}" for index in range(variants)]
    refs = [{"kind": "Deployment", "name": f"{name}-target"} for name in names]
    for index, (name, ref) in enumerate(zip(names, refs, strict=True)):
        spec = {"replicas": index, "template": {"spec": {}}}
        put(world, DEPLOYMENTS.kind, ref["name"], spec, status={"replicas": index, "readyReplicas": index})
        put(
            world,
            GPU_PROFILES.kind,
            f"profile-{name}",
            {
                "model": "m",
                "gpuType": f"GPU{index}",
                "priceUsdPerHour": 1.5 + index,
                "provenance": {"kind": "measured"},
                "throughput": [
                    {
                        "inputTokens": 9999,
                        "outputTokens": 999,
                        "ttftSeconds": 0.1,
                        "tbtSeconds": 0.01,
                        "maxRps": 2.0,
                    }
                ],
            },
            space="",
        )
        node: Object = {
            "metadata": {"name": f"node-{index}", "labels": {"nvidia.com/gpu.product": f"GPU{index}"}}
        }
        ready = [{"type": "Ready", "status": "True"}]
        node |= {"spec": {}, "status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": ready}}
        world.put(NODES.kind, node)
    put(
        world,
        MODEL_SERVICES.kind,
        NAME,
        {
            "model": "organisation/" + "m" * 200,
            "mode": "Recommend",
            "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05},
            "traffic": {"scrape": {}},
            "variants": [
                {"name": name, "targetRef": ref, "gpuProfile": f"profile-{name}"}
                for name, ref in zip(names, refs, strict=True)
            ],
        },
        status={
            "observedGeneration": 1,
            "message": "it waits " * 40,
            "demand": {"requestsPerSecond": 1.25, "sampledAt": "2026-01-01T00:00:00Z"},
            "conditions": waiting() if conditions is None else conditions,
        },
    )
    routing = [
        {
            "inputTokens": 100 + index,
            "outputTokens": 10,
            "variant": names[0],
            "share": 1.0,
            "requestsPerSecond": 1.25 / routes,
        }
        for index in range(routes)
    ]
    steps = [
        {
            "index": index,
            "targetRef": {"apiVersion": "apps/v1", **ref},
            "variant": name,
            "fromReplicas": index,
            "toReplicas": 1 if index == 0 else 0,
            "action": "ScaleUp" if index == 0 else "Drain",
        }
        for index, (name, ref) in enumerate(zip(names, refs, strict=True))
    ]
    put(
        world,
        PLANS.kind,
        NAME,
        {
            "solveId": "s",
            "digest": "0123456789abcdef",
            "modelServiceRef": {"name": NAME, "generation": 1},
            "costUsdPerHour": 1.5,
            "lowerBoundUsdPerHour": 1.4,
            "gapRatio": 0.0667,
            "madeAt": "2026-01-01T00:00:00Z",
            "reasons": ["because " * 30],
            "routing": routing,
            "desired": [
                {"variant": name, "targetRef": {"apiVersion": "apps/v1", **ref}, "replicas": int(index == 0)}
                for index, (name, ref) in enumerate(zip(names, refs, strict=True))
            ],
            "steps": steps,
        },
        status={"phase": phase, "step": 1, "steps": len(steps), "digest": "0123456789abcdef"},
    )
    return world


def waiting(reason: str = "WaitingForApproval", message: str = "") -> list[Object]:
    return [
        {"type": "TelemetryReady", "status": "True", "reason": "Fresh", "message": ""},
        {"type": "SolverReady", "status": "True", "reason": "Optimal", "message": ""},
        {"type": "PlanReady", "status": "True", "reason": "Proposed", "message": ""},
        {"type": "Applied", "status": "False", "reason": reason, "message": message},
        {"type": "ActuationConflict", "status": "False", "reason": "NoConflict", "message": ""},
        {"type": "Degraded", "status": "False", "reason": "AsExpected", "message": ""},
    ]


def story_of(world: World) -> Story:
    snapshot = Snapshot(world=world, unseen=frozenset(), own_namespace_only=frozenset({"Pod"}))
    return Explainer(snapshot=snapshot).explain(find_service(snapshot, SPACE, "ModelService", NAME))


def printed(story: Story, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_story(story)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("variants", [1, 16])
def test_the_longest_names_fit(variants: int, capsys: pytest.CaptureFixture[str]) -> None:
    story = story_of(cluster(variants, routes=100))
    lines = printed(story, capsys)
    wide = [line for line in lines if len(line) > 100 and not line.strip().startswith(COMMAND)]
    assert [line for line in wide if len(line.split()) > 2] == [], "only single words may be wider"
    assert any("and 60 more rows" in line for line in lines)
    (command,) = [line.strip() for line in lines if line.strip().startswith(COMMAND)]
    assert command == (
        f"kubectl annotate -n {SPACE} plan/{NAME} --overwrite ballast.dev/approved=0123456789abcdef"
    )
    assert any(line.startswith("(read in this namespace only") for line in lines)


def test_the_answer_for_programs_says_the_same() -> None:
    story = story_of(cluster(2, routes=3))
    answer = json.loads(json.dumps(explain_answer(story), allow_nan=False))
    assert (answer["schema"], answer["name"], answer["mode"]) == ("explain/1", NAME, "Recommend")
    assert answer["current_cost_usd_per_h"] == 2.5
    assert answer["best"]["traffic_from"] == "plan"
    assert answer["best"]["cost_with_changes_usd_per_h"] is not None
    assert len(answer["plan"]["routing"]) == 3
    assert [step["state"] for step in answer["plan"]["steps"]] == ["proposed", "proposed"]


def test_a_forecast_is_shown_with_its_rule_and_quantile(capsys: pytest.CaptureFixture[str]) -> None:
    ready = {"type": "ForecastReady", "status": "True", "reason": "Forecasting", "message": "blend at 0.99"}
    world = cluster(1, conditions=[*waiting(), ready])
    body = world.get(MODEL_SERVICES.kind, (SPACE, NAME))
    assert body is not None
    used = {"requestsPerSecond": 1.75, "rule": "max of last 2, local margin", "quantile": 0.9925}
    newer = {**body["metadata"], "resourceVersion": "2"}
    changed = {**body, "metadata": newer, "status": {**body["status"], "forecast": used}}
    world.put(MODEL_SERVICES.kind, changed)
    story = story_of(world)
    lines = printed(story, capsys)
    text = " ".join(" ".join(lines).split())
    assert "forecast 1.75 (max of last 2, local margin, quantile 0.9925)" in text
    assert any("plans are made for what is forecast" in line for line in lines)
    assert [line for line in lines if len(line) > 100 and len(line.split()) > 2 and COMMAND not in line] == []
    assert explain_answer(story)["forecast"] == {
        "rate_rps": 1.75,
        "rule": "max of last 2, local margin",
        "quantile": 0.9925,
        "fallback": None,
    }


def test_steps_tell_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    applying = waiting("Applying", "step 2 of 3: 1 of 2 replicas are ready")
    story = story_of(cluster(3, phase="Applying", conditions=applying))
    answer = explain_answer(story)
    assert [step["state"] for step in answer["plan"]["steps"]] == ["done", "under way", "to come"]
    assert answer["plan"]["waits_for"] == "1 of 2 replicas are ready"
    assert "  it waits: 1 of 2 replicas are ready" in printed(story, capsys)
    failed = story_of(cluster(3, phase="Failed", conditions=waiting("Failed")))
    states = [step["state"] for step in explain_answer(failed)["plan"]["steps"]]
    assert states == ["done", "failed", "not reached"]
    superseded = story_of(cluster(1, phase="Superseded"))
    assert explain_answer(superseded)["plan"] is None


def test_what_to_do_comes_from_the_conditions() -> None:
    def advice(conditions: list[Object]) -> list[str]:
        return [one.text for one in story_of(cluster(1, conditions=conditions)).advice]

    def changed(kind: str, status: str, reason: str, message: str = "") -> list[Object]:
        rest = [c for c in waiting("Applied") if c["type"] != kind]
        return [*rest, {"type": kind, "status": status, "reason": reason, "message": message}]

    assert advice(waiting("Applied")) == ["nothing: all is as planned"]
    assert advice(waiting("Applying")) == ["nothing: the plan is being applied, step by step"]
    assert "ballast doctor" in story_of(cluster(1, conditions=[])).advice[0].command
    (limit,) = advice(changed("SolverReady", "False", "GpuLimit"))
    assert "add GPU nodes" in limit
    (crashed,) = advice(changed("SolverReady", "False", "SolverCrashed"))
    assert "it tries again" in crashed
    (mute,) = advice(changed("TelemetryReady", "False", "SeriesMissing"))
    assert "let the traffic be measured" in mute
    assert advice(changed("ActuationConflict", "True", "FieldOwned", "do this")) == ["do this"]
    (stuck,) = advice(changed("PlanReady", "False", "NoWayThere", "no free GPUs"))
    assert "free some GPUs" in stuck
    (broken,) = advice(changed("Degraded", "True", "VariantUnusable", "variant a: gone"))
    assert broken.endswith("variant a: gone")


def test_a_name_that_is_not_there_brings_those_that_are() -> None:
    snapshot = Snapshot(world=cluster(1), unseen=frozenset(), own_namespace_only=frozenset())
    with pytest.raises(InputError, match=f"there is no ModelService chat in namespace x; there are {SPACE}/"):
        find_service(snapshot, "x", "ModelService", "chat")
    assert find_service(snapshot, SPACE, "Plan", NAME) == (SPACE, NAME)


def test_doctor_fits_whatever_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(
            area="permissions", mark=Mark.MISSING, what=f"{SPACE}/{NAME} may not [get]" * 3, do="do " * 60
        ),
        *(Finding(area="gpus", mark=Mark.OK, what=f"fine {index}") for index in range(60)),
    ]
    product = Product(
        label="L" * 63, gpu_type="", nodes=1000, gpus=8000, closed=12, profiles=("p" * 63, "q" * 63, "r", "s")
    )
    report = Report(
        server_version="v1.36.3",
        namespace=SPACE,
        leader="",
        findings=tuple(findings),
        products=(product,),
    )
    print_report("https://example.test:6443", report)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "[get]" in out
    assert "21 more; -o json has all of them" in out
    assert out.rstrip().endswith("1 missing, 0 warnings: do what the arrows (→) say, then ask again.")
    assert "MISSING" in out
    answer = doctor_answer("https://example.test:6443", report)
    assert answer["complete"] is False
    assert len(answer["findings"]) == 61


@pytest.mark.parametrize(("whole_usd_per_h", "told"), [(48.0, "+24.00"), (24.0, "splitting is not worth it")])
def test_what_splitting_saves_is_told(whole_usd_per_h: float, told: str) -> None:
    found = Explanation(
        status="optimal",
        replicas=(0, 3, 1),
        cost_usd_per_h=24.0,
        second_best=None,
        best_single_pool=None,
        binding=(),
        whole=True,
        without_splitting=Rival(pools=("a100",), cost_usd_per_h=whole_usd_per_h, proved=True),
    )
    lines = list(_found(cast("Any", SimpleNamespace(explanation=found, best_now=""))))
    assert any("without prefill and decode variants: a100" in line and told in line for line in lines)
