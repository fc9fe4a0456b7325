"""``ballast explain`` for ExpertPlacements as text and JSON: why this map, why not another, what binds, what to do."""

import copy
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.cli.explain_experts import expert_answer, print_expert_story
from controller.operator.api import EXPERT_PLACEMENTS, PLANS, Api, Resource
from controller.operator.experts.explain import ExpertStory, find_placement, read_story, tell
from controller.operator.times import parse_time
from controller.operator.views import PAUSED
from solver.domain.errors import InputError
from tests.cluster.scene import expert_placement

Object = dict[str, Any]
SPACE = "n" * 63
NAME = "placement-" + "p" * 200
MADE = "2026-01-01T00:00:00Z"
NOW_S = parse_time(MADE) + 100.0
DIGEST = "0123456789abcdef"
COMMAND = "kubectl "


def conditions(**reasons: tuple[str, str, str]) -> list[Object]:
    """Return conditions; what is not named is well."""
    good = {
        "Solved": ("True", "Feasible", ""),
        "Applied": ("True", "Applied", ""),
        "Stale": ("False", "Fresh", ""),
        "Infeasible": ("False", "Feasible", ""),
    }
    return [
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": MADE}
        for kind, (status, reason, message) in (good | reasons).items()
    ]


def placement(said: list[Object] | None = None, *, status: Object | None = None, **more: Any) -> Object:
    annotations = more.pop("annotations", {})
    body = expert_placement(SPACE, NAME, nodes=2, gpus=2, experts=8, layers=2, **more)
    body["spec"]["modelRef"]["name"] = "organisation/" + "m" * 200
    body["metadata"] |= {"uid": "u", "generation": 1, "annotations": annotations}
    figures = {
        "objectiveUs": 412.0,
        "lowerBoundUs": 400.0,
        "gap": 0.029,
        "balance": {"mean": 1.02, "max": 1.125},
        "crossGpu": 0.8,
        "crossNode": 0.25,
        "movedRatio": 0.05,
        "predictedMoveSeconds": 2.0,
        "netGainSeconds": 7.8,
    }
    body["status"] = {
        "observedGeneration": 1,
        "phase": "Applied",
        "conditions": conditions() if said is None else said,
        "message": "as planned",
        **figures,
        **(status or {}),
    }
    return body


def plan(phase: str = "Proposed", *, step: int = 0, **status: Any) -> Object:
    target = {"kind": "StatefulSet", "name": "engine-" + "e" * 200}
    files = [
        {"key": key, "format": form, "sha256": "a" * 64, "text": "{}" * 40_000}
        for key, form in (("map.json", "native"), ("sglang.json", "sglang"))
    ]
    experts = {
        "placementRef": {"name": NAME, "uid": "u", "generation": 1},
        "configMap": f"{NAME}-experts",
        "mapDigest": "f" * 16,
        "files": files,
        "objectiveUs": 412.0,
        "objectiveBeforeUs": 450.0,
        "lowerBoundUs": 400.0,
        "movedRatio": 0.05,
        "predictedMoveSeconds": 2.0,
        "netGainSeconds": 7.8,
        "steps": [
            {"index": 0, "action": "WriteMap"},
            {"index": 1, "action": "Restart", "targetRef": target},
        ],
    }
    reasons = ["another map " + "pays " * 60, "binds: computing on the fullest GPU"]
    owner = {"uid": "u", "controller": True}
    return {
        "metadata": {"name": f"{NAME}-experts", "namespace": SPACE, "ownerReferences": [owner]},
        "spec": {
            "solveId": "s",
            "digest": DIGEST,
            "gapRatio": 0.029,
            "madeAt": MADE,
            "reasons": reasons,
            "experts": experts,
        },
        "status": {"phase": phase, "step": step, "steps": 2, "digest": DIGEST, **status},
    }


def story_of(body: Object, plan_body: Object | None = None) -> ExpertStory:
    return tell((SPACE, NAME), body, plan_body, now_s=NOW_S)


WAITING = {"Applied": ("False", "WaitingForApproval", "approve it by: kubectl annotate")}


def test_a_proposal_says_why_what_binds_and_how_to_approve(capsys: pytest.CaptureFixture[str]) -> None:
    story = story_of(placement(conditions(**WAITING), apply="rolloutRestart"), plan())
    print_expert_story(story)
    lines = capsys.readouterr().out.splitlines()
    wide = [line for line in lines if len(line) > 100 and not line.strip().startswith(COMMAND)]
    assert [line for line in wide if len(line.split()) > 3] == [], "only single words may be wider"
    (command,) = [line.strip() for line in lines if line.strip().startswith(COMMAND)]
    assert command == (
        f"kubectl annotate -n {SPACE} plan/{NAME}-experts --overwrite ballast.dev/approved={DIGEST}"
    )
    text = "\n".join(lines)
    assert "  a plan waits for approval" in lines
    assert "no map below 400 (proved; gap 2.90 %)" in text
    assert "Why this map\n  - another map pays" in text
    assert f"plan {DIGEST} waits for approval" in text
    assert "no other map before minIntervalSeconds 600 are over, in 500 s" in text
    assert "What binds\n  - computing on the fullest GPU" in text
    assert "80,000" in text
    answer = json.loads(json.dumps(expert_answer(story), allow_nan=False))
    assert (answer["schema"], answer["name"], answer["mode"]) == ("explain-experts/1", NAME, "Recommend")
    assert answer["plan"]["objective_before_us"] == 450.0
    assert [step["state"] for step in answer["plan"]["steps"]] == ["proposed", "proposed"]
    assert answer["plan"]["steps"][1]["target"].startswith("StatefulSet/engine-")
    assert answer["next"] == [{"what": "approve the plan", "command": command}]
    assert "text" not in answer["plan"]["files"][0]


def test_steps_tell_how_far_they_are() -> None:
    restarting = conditions(Applied=("False", "Restarting", "StatefulSet engine is being restarted"))
    answer = expert_answer(story_of(placement(restarting), plan("Applying", step=1)))
    assert [step["state"] for step in answer["plan"]["steps"]] == ["done", "under way"]
    assert answer["why_not"][0] == "StatefulSet engine is being restarted"
    failed = conditions(Applied=("False", "PlanFailed", "step 2 did not end"))
    answer = expert_answer(story_of(placement(failed), plan("Failed", step=1, message="step 2 did not end")))
    assert [step["state"] for step in answer["plan"]["steps"]] == ["done", "failed"]
    answer = expert_answer(story_of(placement(), plan("Superseded", message="it does not pay any more")))
    assert answer["plan"] is None
    assert f"plan {DIGEST} was taken back: it does not pay any more" in answer["why_not"]


def test_a_refused_move_says_when_it_would_pay() -> None:
    refused = conditions(Solved=("True", "MoveRefused", "moving 5 %: the map in force stays"))
    figures = {"predictedMoveSeconds": 10.0, "netGainSeconds": -5.5}  # 11 s with the margin, 5.5 s saved
    story = story_of(placement(refused, status=figures))
    assert story.why_not == ("moving 5 %: the map in force stays",)
    assert story.binds[0] == "no map is more than 2.90% faster (proved)"
    assert "it would pay if the map served more than 24 windows (windowsUntilNext 12)" in story.binds[1]
    story = story_of(placement(refused, status={**figures, "netGainSeconds": -12.0}))
    assert story.binds[1] == "the other map saves nothing"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "nothing: all is as planned: see to it that engines load ConfigMap"),
        ({"Stale": ("True", "LoadMissing", "gone")}, "let the loads be recorded"),
        ({"Infeasible": ("True", "TopologyUnknown", "no pods")}, "wait until all pods"),
        ({"Applied": ("False", "TargetNotReady", "engine")}, "see why pods of the target"),
        ({"Applied": ("False", "PlanTaken", "x")}, "another name"),
        ({"Applied": ("False", "NotAsked", "x")}, "to have the map written"),
        (
            {"Applied": ("False", "NoMap", ""), "Solved": ("False", "SolverCrashed", "x")},
            "tried again by itself",
        ),
    ],
)
def test_what_to_do_comes_from_the_conditions(said: Any, words: str) -> None:
    assert words in story_of(placement(conditions(**said))).advice[0].text


def test_pauses_and_absent_controllers_are_named() -> None:
    held = plan()
    held["metadata"]["annotations"] = {PAUSED: "true"}
    body = placement(conditions(**WAITING), paused=True, annotations={PAUSED: "true"})
    told = [advice.text for advice in story_of(body, held).advice]
    assert told[:3] == ["spec.paused holds it", "an annotation pauses it", "an annotation pauses its Plan"]
    body["metadata"]["generation"] = 2
    assert story_of(body).advice[0].command == "ballast doctor"
    broken = copy.deepcopy(body)
    broken["spec"]["epSize"] = "many"
    story = story_of(broken)
    assert story.spec is None
    assert "spec.epSize" in story.why_not[0]
    print_expert_story(story)


def test_a_plan_leads_to_its_placement_and_an_absent_one_to_those_that_are_there() -> None:
    service = {"spec": {"modelServiceRef": {"name": "chat"}}}
    bodies = {
        (PLANS.kind, "chat"): service,
        (PLANS.kind, "x"): plan(),
        (EXPERT_PLACEMENTS.kind, NAME): placement(),
    }

    def get(resource: Resource, _space: str, name: str) -> Object | None:
        return bodies.get((resource.kind, name))

    names = {(SPACE, f"p{index}"): "1" for index in range(7)}
    api = cast("Api", SimpleNamespace(get=get, names=lambda *_: names))
    assert find_placement(api, SPACE, "Plan", "x") == NAME
    assert find_placement(api, SPACE, "Plan", "chat") is None
    assert find_placement(api, SPACE, "Plan", "absent") is None
    assert find_placement(api, SPACE, "ExpertPlacement", "absent") == "absent"
    assert read_story(api, SPACE, NAME).key == (SPACE, NAME)
    with pytest.raises(InputError, match="there are p0, p1, p2, p3, p4 and 2 more"):
        read_story(api, SPACE, "absent")
    names.clear()
    with pytest.raises(InputError, match="there is none in this namespace"):
        read_story(api, SPACE, "absent")
    unknown = cast("Api", SimpleNamespace(get=get, names=lambda *_: None))
    with pytest.raises(InputError, match="ballast doctor"):
        read_story(unknown, SPACE, "absent")
