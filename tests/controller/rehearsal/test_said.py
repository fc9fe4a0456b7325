"""What people are told of a rehearsal: on the service, and by ``ballast explain``."""

import pytest

from controller.cli.explain import print_story
from controller.operator.explain import Explainer, Story
from controller.operator.rehearsal.question import CANNOT, FALLS, HOLDS, NOT_NEEDED, WAITS
from controller.operator.rehearsal.said import rehearsed
from controller.operator.snapshot import Snapshot
from controller.operator.status import Progress, status_of
from tests.controller.rehearsal.stand import KEY, NOW, Stand
from tests.controller.rehearsal.test_hold import Gate, less

SHARES = "inside the SLO: 61.00 % of 3000 requests with the plan, 99.90 % with what runs (99 % asked for)"


def story(gate: Gate, held: str) -> Story:
    """Write the status that the operator would, and ask why."""
    view = gate.stand.view()
    body = gate.stand.world.get("ModelService", KEY)
    assert body is not None
    version = str(int(body["metadata"]["resourceVersion"]) + 1)
    status = status_of(view, Progress(held_back=held), now=NOW)
    gate.stand.world.put(
        "ModelService",
        {**body, "metadata": body["metadata"] | {"resourceVersion": version}, "status": status},
    )
    snapshot = Snapshot(world=gate.stand.world, unseen=frozenset(), own_namespace_only=frozenset())
    return Explainer(snapshot=snapshot).explain(KEY)


def test_explain_says_what_was_refused_and_how_to_do_it_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = less()
    found = story(gate, gate.round())
    assert [advice.text for advice in found.advice] == ["nothing: the plan is being rehearsed"]
    gate.desk.answer(FALLS, SHARES, allowed=False)
    found = story(gate, gate.round())
    (advice,) = found.advice
    assert advice.command.endswith("plan/chat --overwrite ballast.dev/approved=d1")
    words = {one.type: one for one in found.conditions}
    assert words["Rehearsed"].meaning == "the SLO would be kept less with the plan than with what runs"
    assert words["Applied"].meaning == "the plan is held back; what runs stays"
    print_story(found)
    text = capsys.readouterr().out
    assert "61.00 % of 3000 requests" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100 or "kubectl" in max(text.splitlines(), key=len)


def test_explain_says_why_a_plan_that_cannot_be_rehearsed_is_held() -> None:
    gate = less(rehearsal={"enabled": True, "strict": True})
    gate.round()
    gate.desk.answer(CANNOT, "GpuProfile fast: unknown gpu 'BasicA'", allowed=None)
    found = story(gate, gate.round())
    (advice,) = found.advice
    assert "rehearsal.strict" in advice.text
    assert advice.command


def test_whoever_approves_is_warned() -> None:
    gate = less(mode="Recommend")
    gate.round()
    for allowed, begins in (
        (True, "approve it by: kubectl"),
        (False, f"its rehearsal fell short, {SHARES}; "),
    ):
        gate.desk.pending = gate.desk.pending or gate.desk.asked[-1]
        gate.desk.answer(HOLDS if allowed else FALLS, SHARES, allowed=allowed)
        gate.round()
        (applied,) = [one for one in story(gate, "").conditions if one.type == "Applied"]
        assert applied.reason == "WaitingForApproval"
        assert applied.message.startswith(begins)


def test_every_state_has_its_reason() -> None:
    gate = less()
    assert [(one.status, one.reason) for one in rehearsed(gate.stand.view())] == [(None, WAITS)]
    gate.round()
    gate.desk.answer(HOLDS, SHARES, allowed=True)
    gate.round()
    (found,) = rehearsed(gate.stand.view())
    assert (found.status, found.reason, found.message) == (True, HOLDS, SHARES)
    for phase, reason in (("Superseded", "NoPlan"), ("Applied", NOT_NEEDED)):
        view = Stand(running={"a": 5}, wanted={"a": 2}, phase=phase).view()
        assert [one.reason for one in rehearsed(view)] == [reason]
