"""The gate before a Plan's first step: what waits, what is refused, what goes ahead whatever a rehearsal would say."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.operator.conditions import REHEARSED
from controller.operator.rehearsal import hold
from controller.operator.rehearsal.hold import AGAIN_S, WAIT_LIMIT_S, Rehearsals, made_at_once
from controller.operator.rehearsal.question import (
    CANNOT,
    FALLS,
    HOLDS,
    NOT_NEEDED,
    OVERRAN,
    WAITS,
    RehearsalQuestion,
    question_of,
)
from controller.operator.rehearsal.said import rehearsed, said_of
from controller.operator.status import Progress, status_of
from controller.operator.traffic import Traffic
from controller.operator.views import APPROVED, ServiceView
from controller.resources.model_service import ModelServiceStatus, RouteRef
from controller.resources.plan import PlanStatus
from solver.domain.cluster import ServiceDecision, ServiceState, Stance, VariantState
from solver.domain.gpu_mix import RequestBucket
from tests.controller.rehearsal.stand import KEY, NOW, FakeApi, FakeDesk, Stand, partial


@dataclass(slots=True)
class Gate:
    """A stand with its gate."""

    stand: Stand
    desk: FakeDesk = field(default_factory=FakeDesk)
    api: FakeApi = field(init=False)
    gate: Rehearsals = field(init=False)
    others: Mapping[Any, ServiceView] = field(default_factory=dict)
    gpus: int = 64

    def __post_init__(self) -> None:
        self.api = FakeApi(self.stand.world)
        self.gate = Rehearsals(desk=self.desk, clock=lambda: self.desk.now_s)  # type: ignore[arg-type]

    def round(
        self,
        *,
        rate: float | None = None,
        traffic: Traffic | None = None,
        decision: ServiceDecision | None = None,
    ) -> str:
        """Go round once; returns what the plan is held for."""
        view = self.stand.view(rate=rate, traffic=traffic)
        assert view.state is not None
        decided = {} if decision is None else {view.name: (view.state, decision)}
        pool = view.state.variants[0].pool
        self.gate.begin({KEY: view, **self.others}, decided, {pool: self.gpus})
        return self.gate.hold(view, self.stand.act(self.api))

    @property
    def said(self) -> tuple[str, str]:
        """Status and reason on the Plan."""
        plan = self.stand.view().plan
        assert plan is not None
        found = said_of(plan)
        return ("", "") if found is None else (found.status, found.reason)


def less(**changes: Any) -> Gate:
    """Return a service of which a plan takes three of five replicas; one carries 1 request/s, 2 requests/s come."""
    return Gate(Stand(running={"a": 5}, wanted={"a": 2}, **changes))


def test_a_plan_waits_until_it_is_rehearsed_and_goes_ahead_if_the_slo_is_kept() -> None:
    gate = less()
    assert gate.round() != ""
    assert gate.said == ("Unknown", WAITS)
    for _ in range(3):
        assert gate.round() != ""
    assert (len(gate.desk.asked), gate.api.writes) == (1, 1)
    gate.desk.answer(HOLDS, allowed=True)
    gate.round()
    assert gate.said == ("True", HOLDS)
    for _ in range(3):
        assert gate.round() == ""
    assert (len(gate.desk.asked), gate.api.writes, gate.stand.events) == (1, 2, [])


def test_a_refused_plan_stays_refused_without_further_writes_until_the_traffic_changes() -> None:
    gate = less()
    gate.round()
    gate.desk.answer(FALLS, "99 % and 60 %", allowed=False)
    for _ in range(5):
        assert "99 % and 60 %" in gate.round()
    assert gate.said == ("False", FALLS)
    assert (gate.api.writes, gate.stand.events) == (2, ["PlanRefused"])
    gate.desk.now_s = 10 * AGAIN_S
    assert gate.round(rate=2.0 * 1.03) != ""  # much the same
    assert len(gate.desk.asked) == 1
    assert gate.round(rate=1.5) != ""
    assert len(gate.desk.asked) == 2
    assert gate.said == ("False", FALLS)  # stands until there is a newer one
    gate.desk.answer(HOLDS, allowed=True)
    gate.round(rate=1.5)
    assert gate.round(rate=1.5) == ""
    assert gate.api.writes == 3


def test_traffic_that_never_rests_is_not_rehearsed_more_often_than_now_and_then() -> None:
    gate = less()
    gate.round()
    gate.desk.answer(FALLS, allowed=False)
    for step in range(100):
        gate.desk.now_s = 0.9 * AGAIN_S * step / 100
        gate.round(rate=1.0 + 0.01 * step)
    assert (len(gate.desk.asked), gate.api.writes) == (1, 2)


def test_a_question_that_waits_is_not_asked_anew_while_the_traffic_moves() -> None:
    gate = less()
    for step in range(20):
        assert gate.round(rate=1.0 + 0.05 * step)
    assert len(gate.desk.asked) == 1


def test_another_plan_is_rehearsed_at_once() -> None:
    gate = less()
    gate.round()
    gate.desk.answer(FALLS, allowed=False)
    gate.round()
    gate.stand.plan("d2")
    assert gate.said == ("", "")
    gate.round()
    assert [asked.digest for asked in gate.desk.asked] == ["d1", "d2"]


def test_without_an_answer_the_plan_goes_ahead_in_the_end_unless_that_is_held_too() -> None:
    for strict in (False, True):
        gate = less(rehearsal={"enabled": True, "strict": strict})
        assert gate.round() != ""
        gate.desk.now_s = WAIT_LIMIT_S
        gate.round()
        assert gate.said == ("Unknown", OVERRAN)
        assert bool(gate.round()) is strict
        assert gate.api.writes == 2


def test_a_rehearsal_that_failed_lets_pass_and_is_tried_again_where_it_must_be() -> None:
    for strict in (False, True):
        gate = less(rehearsal={"enabled": True, "strict": strict})
        gate.round()
        gate.desk.answer(OVERRAN, allowed=None)
        gate.round()
        assert bool(gate.round()) is strict
        gate.desk.now_s = AGAIN_S + 1.0
        gate.round()
        assert len(gate.desk.asked) == 1 + strict


def test_what_cannot_be_asked_is_said_and_let_pass_unless_that_is_held_too() -> None:
    for strict in (False, True):
        stand = Stand(
            running={"a": 5, "b": 1},
            wanted={"a": 2, "b": 1},
            rehearsal={"enabled": True, "strict": strict},
        )
        gate = Gate(stand)
        odd = partial(stand.view())
        assert odd.spec is not None
        odd = replace(odd, spec=odd.spec.model_copy(update={"http_route": RouteRef(name="r")}))
        assert odd.state is not None
        gate.gate.begin({KEY: odd}, {}, {odd.state.variants[0].pool: 64})
        held = gate.gate.hold(odd, stand.act(gate.api))
        assert gate.said == ("Unknown", CANNOT)
        assert bool(held) is strict
        again = replace(odd, plan=stand.view().plan)
        assert bool(gate.gate.hold(again, stand.act(gate.api))) is strict
        assert (gate.desk.asked, gate.api.writes) == ([], 1)


def test_recommended_plans_show_the_result_and_are_never_held() -> None:
    gate = less(mode="Recommend")
    assert gate.round() == ""
    gate.desk.answer(FALLS, allowed=False)
    assert gate.round() == ""
    assert gate.said == ("False", FALLS)
    assert gate.stand.events == ["PlanRehearsed"]
    assert gate.round() == ""
    assert gate.api.writes == 2


def test_somebody_who_approves_the_digest_wins() -> None:
    gate = less(approved="d1")
    assert gate.round() == ""
    assert (gate.desk.asked, gate.api.writes) == ([], 0)


def test_a_question_is_put_together_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where variants serve only some sizes that takes milliseconds, and a recommended plan may wait for days."""
    made: list[str] = []

    def counted(view: ServiceView) -> RehearsalQuestion | str:
        made.append(view.name)
        return question_of(view)

    monkeypatch.setattr(hold, "question_of", counted)
    gate = less(mode="Recommend")
    gate.round()
    gate.desk.answer(HOLDS, allowed=True)
    gate.round()
    view = gate.stand.view()
    made.clear()
    for _ in range(3):
        assert gate.gate.hold(view, gate.stand.act(gate.api)) == ""
    assert len(made) == 1
    gate.gate.hold(gate.stand.view(rate=1.9), gate.stand.act(gate.api))
    assert len(made) == 2


@pytest.mark.parametrize("mode", ["Auto", "Recommend"])
def test_one_that_is_approved_before_the_answer_is_not_said_to_be_rehearsed_for_ever(mode: str) -> None:
    gate = less(mode=mode)
    gate.round()
    assert gate.said == ("Unknown", WAITS)
    plan = gate.stand.world.get("Plan", KEY)
    assert plan is not None
    gate.stand.world.put(
        "Plan",
        {**plan, "metadata": plan["metadata"] | {"resourceVersion": "9", "annotations": {APPROVED: "d1"}}},
    )
    assert gate.round() == ""
    assert gate.said == ("True", NOT_NEEDED)
    assert gate.round() == ""
    assert gate.api.writes == 2


@pytest.mark.parametrize("phase", ["Approved", "Applying", "Applied", "Failed", "Superseded"])
def test_a_plan_under_way_or_done_is_not_looked_at(phase: str) -> None:
    gate = less(phase=phase)
    assert gate.round() == ""
    assert (gate.desk.asked, gate.api.writes) == ([], 0)


@pytest.mark.parametrize("rehearsal", [None, {"enabled": False}])
def test_without_the_wish_nothing_is_rehearsed(rehearsal: dict[str, Any] | None) -> None:
    gate = less(rehearsal=rehearsal)
    assert gate.round() == ""
    assert (gate.desk.asked, gate.api.writes) == ([], 0)
    assert rehearsed(gate.stand.view()) == []
    assert not gate.desk.prepared


def test_what_is_needed_at_once_never_waits() -> None:
    short = ServiceDecision(service="team/chat", status="optimal", replicas=(2,), together_with=2)
    for gate, decision in (
        (less(rate=6.0), None),  # what runs does not carry it
        (less(ready={"a": 1}), None),  # what is ready does not
        (less(most=4), None),
        (less(rate=0.0), None),
        (less(), short),
        (Gate(Stand(running={"a": 5}, wanted={"a": 2}), gpus=4), None),  # fewer GPUs than are held
    ):
        assert gate.round(decision=decision) == ""
        assert (gate.desk.asked, gate.api.writes) == ([], 0)


def test_traffic_that_is_not_known_is_not_taken_for_none() -> None:
    """A leader that has measured nothing yet neither lets go what waits, nor what another refused."""
    gate = less()
    for _ in range(3):
        assert gate.round(traffic=Traffic())
    assert (gate.desk.asked, gate.api.writes, gate.said) == ([], 1, ("Unknown", WAITS))
    gate.desk.now_s = WAIT_LIMIT_S
    gate.round(traffic=Traffic())
    assert gate.said == ("Unknown", CANNOT)
    assert gate.round(traffic=Traffic()) == ""
    gate = less()
    gate.round()
    gate.desk.answer(FALLS, "99 % and 60 %", allowed=False)
    gate.round()
    later = Gate(gate.stand)
    for now_s in (0.0, WAIT_LIMIT_S, 2 * WAIT_LIMIT_S):
        later.desk.now_s = now_s
        assert "99 % and 60 %" in later.round(traffic=Traffic())
    assert (later.desk.asked, later.api.writes, later.said) == ([], 0, ("False", FALLS))


def test_without_known_traffic_plans_that_only_add_or_replace_what_is_down_go_ahead() -> None:
    for gate in (Gate(Stand(running={"a": 1}, wanted={"a": 2})), less(ready={"a": 0})):
        assert gate.round(traffic=Traffic()) == ""
        assert gate.api.writes == 0


def test_a_recommended_plan_that_needs_no_rehearsal_is_not_said_to_be_rehearsed() -> None:
    gate = less(
        mode="Recommend"
    )  # it is not applied at once, as in mode Auto: what is said of it stands for long
    for _ in range(3):
        assert gate.round(rate=6.0) == ""
    (found,) = rehearsed(gate.stand.view())
    assert (found.status, found.reason) == (True, NOT_NEEDED)
    assert (gate.desk.asked, gate.api.writes) == ([], 1)
    gate = Gate(Stand(running={"a": 1}, wanted={"a": 2}, mode="Recommend"))
    assert gate.round() == ""
    assert gate.api.writes == 0


def test_gpus_that_others_need_are_given_back_without_a_rehearsal() -> None:
    gate = less()
    gate.gpus = 7
    other = replace(gate.stand.view(), key=("team", "other"))
    assert other.state is not None
    few = replace(other.state.variants[0], replicas=2, ready=2, held=2)
    other = replace(other, state=replace(other.state, name="team/other", variants=(few,)))
    gate.others = {other.key: other}
    assert gate.round() != ""  # all fits
    more = ServiceDecision(service="team/other", status="optimal", replicas=(4,))
    view = gate.stand.view()
    assert view.state is not None
    assert other.state is not None
    gate.gate.begin(
        {KEY: view, other.key: other},
        {other.name: (other.state, more)},
        {few.pool: 7},
    )
    gate.gate.hold(view, gate.stand.act(gate.api))
    assert gate.said == ("True", NOT_NEEDED)
    assert gate.gate.hold(gate.stand.view(), gate.stand.act(gate.api)) == ""


@settings(max_examples=100)
@given(st.data())
def test_a_change_that_only_adds_is_never_held(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 3))
    running = data.draw(st.tuples(*[st.integers(0, 5)] * number))
    more = data.draw(st.tuples(*[st.integers(0, 3)] * number))
    rates = tuple(data.draw(st.floats(0.0, 5.0)) for _ in range(2))
    state = ServiceState(
        name="team/chat",
        stance=Stance.APPLIED,
        buckets=tuple(RequestBucket(rate_rps=rate, input_tokens=9.0, output_tokens=9.0) for rate in rates),
        variants=tuple(
            VariantState(
                name=str(place),
                pool="A",
                gpus_per_replica=1,
                price_usd_per_h=1.0,
                throughput_rps=(data.draw(st.floats(0.0, 3.0)), 1.0),
                replicas=count,
                ready=data.draw(st.integers(0, count)),
                held=count,
            )
            for place, count in enumerate(running)
        ),
    )
    wanted = {str(place): count + more[place] for place, count in enumerate(running)}
    assert made_at_once(state, wanted, None)


@settings(max_examples=30, deadline=None)
@given(running=st.integers(0, 4), more=st.integers(1, 4), rate=st.sampled_from([0.0, 0.5, 2.0, 9.0]))
def test_plans_that_only_add_are_not_even_asked_about(running: int, more: int, rate: float) -> None:
    gate = Gate(Stand(running={"a": running}, wanted={"a": running + more}, rate=rate))
    assert gate.round() == ""
    assert (gate.desk.asked, gate.api.writes) == ([], 0)


def test_the_service_says_what_came_of_it() -> None:
    gate = less()

    def status(held: str) -> dict[str, dict[str, Any]]:
        view = gate.stand.view()
        found = status_of(view, Progress(held_back=held), now=NOW)
        ModelServiceStatus.model_validate(found)
        PlanStatus.model_validate((gate.stand.world.get("Plan", KEY) or {})["status"])
        return {condition["type"]: condition for condition in found["conditions"]}

    held = gate.round()
    found = status(held)
    assert (found[REHEARSED]["status"], found[REHEARSED]["reason"]) == ("Unknown", WAITS)
    assert found["Applied"]["reason"] == "HeldByRehearsal"
    assert "ballast.dev/approved=d1" in found["Applied"]["message"]
    gate.desk.answer(FALLS, "80 % with the plan, 99 % with what runs", allowed=False)
    found = status(gate.round())
    assert (found[REHEARSED]["status"], found[REHEARSED]["reason"]) == ("False", FALLS)
    assert "80 % with the plan" in found[REHEARSED]["message"]
    added = Gate(Stand(running={"a": 1}, wanted={"a": 2}))
    said = rehearsed(added.stand.view())
    assert [(one.status, one.reason) for one in said] == [(True, NOT_NEEDED)]


def test_a_service_that_goes_or_rehearses_no_more_is_forgotten() -> None:
    gate = less()
    gate.round()
    gate.gate.begin({}, {}, {})
    assert gate.desk.pending is None
    gate.round()
    plain = Gate(Stand(running={"a": 5}, wanted={"a": 2}, rehearsal=None), desk=gate.desk)
    plain.gate = gate.gate
    plain.round()
    assert gate.desk.pending is None
