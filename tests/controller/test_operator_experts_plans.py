"""Plans of ExpertPlacements: approved by digest, rolled out, taken back, kept in the history."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from controller.operator.api import (
    CONFIG_MAPS,
    PLANS,
    STATEFUL_SETS,
    Api,
    ApiError,
    Object,
    Resource,
)
from controller.operator.experts.plans import whole
from controller.operator.experts.restart import EXPERT_MAP
from controller.operator.rollout import STEP_LIMIT_S
from controller.operator.run import Operator
from controller.operator.views import APPROVED, PAUSED
from controller.resources.plan import Phase, PlanSpec, PlanStatus
from telemetry.store.store import open_store
from tests.controller.experts_stage import (
    HOT_FIRST,
    HOT_LAST,
    KEY,
    SPACE,
    Stage,
    rolled,
    source,
    staged,
    stateful_set,
    template_of,
    wish,
)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as one:
        yield one


def test_a_restart_waits_for_the_digest_of_its_plan(stage: Stage) -> None:
    body = rolled()
    stateful_set(stage)
    stage.put(body)
    stage.load(HOT_FIRST)
    status = stage.go(2)
    plan = stage.plan()
    digest = plan["spec"]["digest"]
    assert status["phase"] == plan["status"]["phase"] == "Proposed"
    assert f"annotate -n {SPACE} plan/moe-experts --overwrite {APPROVED}={digest}" in status["message"]
    assert status["planRef"] == {"name": "moe-experts", "digest": digest}
    assert stage.maps() is None  # a pod that restarts by itself finds no map that nobody approved
    assert [step["action"] for step in plan["spec"]["experts"]["steps"]] == ["WriteMap", "Restart"]
    stage.load(HOT_LAST)
    stage.approve("another")
    stage.go(2)
    assert stage.plan()["spec"]["digest"] == digest  # no other before the interval is over
    assert stage.maps() is None
    assert (STATEFUL_SETS.kind, "engine") not in stage.cluster.writes
    stage.approve(digest)
    assert stage.go()["phase"] == "Applying"
    written = stage.maps()
    assert written is not None
    change = stage.plan()["spec"]["experts"]
    assert written["data"] == {file["key"]: file["text"] for file in change["files"]}
    assert template_of(stage) == {EXPERT_MAP: change["mapDigest"]}
    stateful_set(stage, updated=0)
    stage.go(3)
    assert stage.cluster.writes.count((STATEFUL_SETS.kind, "engine")) == 1  # one restart, not one per round
    assert len(stage.placer.tasks) == 1
    stateful_set(stage)
    assert stage.go()["phase"] == "Applied"
    assert stage.plan()["status"]["phase"] == "Applied"
    assert stage.plan()["status"]["step"] == 2
    status = stage.go(2, later_s=700.0)  # now the drift counts, and is proposed
    assert len(stage.placer.tasks) == 2
    assert status["planRef"]["digest"] == stage.plan()["spec"]["digest"] != digest
    assert status["phase"] == "Proposed"
    assert stage.maps() == written
    change = stage.plan()["spec"]["experts"]
    assert change["objectiveUs"] < change["objectiveBeforeUs"]
    assert change["movedRatio"] > 0 < change["netGainSeconds"]
    auto = copy.deepcopy(body)
    auto["spec"]["mode"] = "Auto"
    stage.put(auto, 2)
    assert stage.go()["phase"] == "Applying"
    stateful_set(stage)
    assert stage.go(2)["phase"] == "Applied"
    assert stage.maps() != written


def test_a_proposal_is_renewed_after_the_interval_or_taken_back(stage: Stage) -> None:
    body = rolled()
    stateful_set(stage)
    stage.put(body)
    stage.load(HOT_FIRST)
    stage.go(2)
    stage.approve(stage.plan()["spec"]["digest"])
    stage.go()
    stateful_set(stage)
    stage.go(2)
    stage.load(HOT_LAST)
    stage.go(later_s=700.0)
    first = stage.plan()
    assert first["status"]["phase"] == "Proposed"
    stage.load([[100.0, 500, 500, 100, 100, 500, 500, 100]] * 2)
    stage.go(later_s=700.0)
    second = stage.plan()
    assert second["status"]["phase"] == "Proposed"
    assert second["spec"]["digest"] != first["spec"]["digest"]
    # an approval of what was proposed before is none of this
    stage.approve(first["spec"]["digest"])
    assert stage.go()["phase"] == "Proposed"
    stage.load(HOT_FIRST)  # as when the map in force was made
    status = stage.go(2, later_s=700.0)
    assert status["phase"] == "Applied"
    assert stage.plan()["status"]["phase"] == "Superseded"
    assert "does not pay" in stage.plan()["status"]["message"]
    assert "planRef" not in status
    stage.approve(second["spec"]["digest"])
    assert stage.go()["phase"] == "Applied"
    assert stage.cluster.writes.count((STATEFUL_SETS.kind, "engine")) == 1


def test_the_plan_says_what_is_written_and_why(stage: Stage) -> None:
    told: list[tuple[int, str]] = []
    stage.loop.on_step = lambda _key, _spec, step, outcome: told.append((step, outcome))
    stage.loop.epoch = lambda: 7
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    plan = stage.plan()
    read = PlanSpec.model_validate(plan["spec"])
    assert read.written() == plan["spec"]
    assert whole(read)
    assert read.reasons[0] == "there is no map yet"
    assert any(reason.startswith("binds: ") for reason in read.reasons)
    assert read.experts is not None
    assert [step.action for step in read.experts.steps] == [
        "WriteMap"
    ]  # nobody is asked for our own ConfigMap
    assert {file.format for file in read.experts.files} == {"sglang", "native"}
    assert read.experts.moved_ratio is None
    assert plan["metadata"]["ownerReferences"][0]["uid"] == "uid-moe"
    status = PlanStatus.model_validate(plan["status"])
    assert (status.phase, status.step, status.steps, status.epoch) == (Phase.APPLIED, 1, 1, 7)
    assert status.approved_digest == read.digest
    assert told == [(-1, "planned"), (0, "written"), (0, "observed")]
    assert next(name for kind, name in stage.cluster.writes if kind == PLANS.kind) == "moe-experts"


def test_the_history_keeps_plans_and_steps(stage: Stage) -> None:
    kept: list[Any] = []
    replica = SimpleNamespace(election=SimpleNamespace(term=7), _keep=kept.append)
    stage.loop.on_step = lambda *said: Operator._on_expert_step(cast("Operator", replica), *said)
    stateful_set(stage)
    stage.put(rolled(mode="Auto"))
    stage.load(HOT_FIRST)
    stage.go()
    stateful_set(stage)
    stage.go(2)
    decision, *steps = kept
    spec = PlanSpec.model_validate(stage.plan()["spec"])
    assert (decision.service, decision.digest) == (f"{SPACE}/moe-experts", spec.digest)
    assert decision.reasons == spec.reasons
    assert [(s.target, s.outcome, s.epoch) for s in steps] == [
        ("ConfigMap moe-experts", "written", 7),
        ("ConfigMap moe-experts", "observed", 7),
        ("StatefulSet engine", "written", 7),
        ("StatefulSet engine", "observed", 7),
    ]
    store = open_store("sqlite://")
    store.migrate()
    store.write(kept)
    assert [d.digest for d in store.decisions(f"{SPACE}/moe-experts")] == [spec.digest]
    assert len(store.steps(f"{SPACE}/moe-experts")) == 4


def test_a_plan_that_does_not_hold_together_is_not_applied(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled())
    stage.load(HOT_FIRST)
    stage.go()
    plan = stage.plan()
    spec = copy.deepcopy(plan["spec"])
    spec["experts"]["files"][0]["text"] += " "
    stage.cluster.put(PLANS, "moe-experts", spec=spec)
    stage.approve(spec["digest"])
    status = stage.go()
    assert stage.plan()["status"]["phase"] == "Failed"
    assert "do not belong together" in status["message"]
    assert stage.maps() is None
    stage.go(later_s=30.0)
    assert stage.plan()["spec"]["digest"] == spec["digest"]
    stage.go(later_s=600.0)  # another is made
    assert stage.plan()["spec"]["digest"] != spec["digest"]
    assert stage.plan()["status"]["phase"] == "Proposed"


def test_whoever_leads_next_goes_on_with_the_plan(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled())
    stage.load(HOT_FIRST)
    stage.go()
    digest = stage.plan()["spec"]["digest"]
    stage.loop._books.clear()
    assert stage.go()["phase"] == "Proposed"
    assert stage.plan()["spec"]["digest"] == digest
    stage.approve(digest)
    applied = stage.cluster.apply

    def dies(resource: Resource, body: Object, **more: Any) -> Object:
        if resource is STATEFUL_SETS:
            raise ApiError(0, "gone")
        return applied(resource, body, **more)

    stage.loop.api = cast("Api", SimpleNamespace(apply=dies))
    stage.go()
    assert stage.maps() is not None
    assert stage.plan()["status"]["phase"] == "Applying"
    assert stage.plan()["status"]["step"] == 1
    tasks = len(stage.placer.tasks)
    stage.loop.api = cast("Api", stage.cluster)
    stage.loop._books.clear()
    stage.go()
    assert stage.plan()["spec"]["digest"] == digest
    stateful_set(stage)
    assert stage.go()["phase"] == "Applied"
    assert stage.cluster.writes.count((CONFIG_MAPS.kind, "moe-experts")) == 1
    assert len(stage.placer.tasks) <= tasks + 1


def test_another_wish_takes_a_plan_back_and_apply_none_does(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled())
    stage.load(HOT_FIRST)
    stage.go()
    first = stage.plan()["spec"]["digest"]
    stage.put(rolled(engine="vllm"), 2, **{APPROVED: first})  # approvals stand on the Plan
    stage.approve(first)
    stage.go()
    plan = stage.plan()
    assert plan["spec"]["digest"] != first
    assert plan["status"]["phase"] == "Proposed"
    assert {file["key"] for file in plan["spec"]["experts"]["files"]} == {"map.json", "vllm.json"}
    none = rolled()
    none["spec"]["apply"] = "none"
    stage.put(none, 3)
    assert stage.go()["phase"] == "Solved"
    assert stage.plan()["status"]["phase"] == "Superseded"
    assert stage.maps() is None


def test_a_restart_without_end_fails_and_no_other_follows(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled(mode="Auto"))
    stage.load(HOT_FIRST)
    assert stage.go()["phase"] == "Applying"
    stateful_set(stage, updated=0)
    assert stage.go(later_s=STEP_LIMIT_S - 10)["phase"] == "Applying"
    status = stage.go(later_s=20)
    assert status["phase"] == "Held"
    assert "step 2 did not end in 1800 s" in status["message"]
    assert stage.plan()["status"]["phase"] == "Failed"
    stage.load(HOT_LAST)
    stage.go(3, later_s=5000)
    assert len(stage.placer.tasks) == 1
    stateful_set(stage)  # it came up after all
    assert stage.go()["phase"] == "Applying"
    assert len(stage.placer.tasks) == 2


def test_pods_that_are_not_ready_later_are_named(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled(mode="Auto"))
    stage.load(HOT_FIRST)
    stage.go()
    stateful_set(stage)
    assert stage.go(2)["phase"] == "Applied"
    stateful_set(stage, updated=0)
    stage.load(HOT_LAST)
    status = stage.go(2, later_s=700.0)
    assert (status["phase"], stage.condition("Applied")["reason"]) == ("Held", "TargetNotReady")
    assert len(stage.placer.tasks) == 1


def test_a_plan_of_somebody_else_is_not_touched_and_one_that_is_deleted_is_made_again(stage: Stage) -> None:
    theirs = {"solveId": "s", "digest": "d", "modelServiceRef": {"name": "moe-experts"}, "madeAt": "x"}
    stage.world.put(PLANS.kind, stage.cluster.put(PLANS, "moe-experts", spec=theirs))
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.go()
    assert stage.condition("Applied")["reason"] == "PlanTaken"
    assert stage.plan()["spec"] == theirs
    del stage.cluster.objects[PLANS.kind, "moe-experts"]
    stage.world.remove(PLANS.kind, (SPACE, "moe-experts"))
    stateful_set(stage)
    stage.put(rolled(), 2)
    assert stage.go()["phase"] == "Proposed"
    digest = stage.plan()["spec"]["digest"]
    del stage.cluster.objects[PLANS.kind, "moe-experts"]
    stage.world.remove(PLANS.kind, (SPACE, "moe-experts"))
    assert stage.go(2)["phase"] == "Proposed"
    assert stage.plan()["spec"]["digest"] != digest


def test_a_paused_plan_waits(stage: Stage) -> None:
    stateful_set(stage)
    stage.put(rolled())
    stage.load(HOT_FIRST)
    stage.go()
    digest = stage.plan()["spec"]["digest"]
    stage.approve(digest, **{PAUSED: "true"})
    status = stage.go(2)
    assert (status["phase"], stage.maps()) == ("Paused", None)
    assert "Plan moe-experts is paused" in status["message"]
    stage.approve(digest, **{PAUSED: "false"})
    assert stage.go()["phase"] == "Applying"


def test_a_plan_that_may_not_be_written_is_tried_less_and_less(stage: Stage) -> None:
    stage.cluster.refuses, stage.cluster.refused = 403, PLANS
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    for times in range(1, 4):
        stage.go(2)
        assert stage.condition("Applied")["reason"] == "WriteRefused"
        book = stage.loop._books[KEY]
        assert (book.failures, len(stage.placer.tasks)) == (times, times)
        book.until_s = 0.0
    assert stage.maps() is None
    stage.cluster.refuses = 0
    assert stage.go()["phase"] == "Applied"
    assert stage.loop._books[KEY].failures == 0
