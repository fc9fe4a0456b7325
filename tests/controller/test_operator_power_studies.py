"""What recorded power says of a PowerDomain: the answer of plan power, thresholds, and why there are none yet."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.operator.api import POWER_DOMAINS
from controller.operator.power.studies import (
    CAPPED,
    DONE,
    NO_HISTORY,
    NOT_YET,
    TOO_LITTLE,
    Answer,
    Study,
    StudyQuestion,
    Training,
    study,
)
from controller.operator.power.study_desk import AGAIN_S, CHANGED_S, StudyDesk
from solver.domain.power import Priority, reference_priorities
from solver.domain.power_trace import Floats, RowPowerTrace, ServerPowerTrace
from solver.power.admission import AdmissionQuestion, admit_servers
from telemetry.store.power_windows import DOMAIN, PowerWindow
from telemetry.store.store import open_store
from tests.controller.test_operator_power_loop import NAMES, Stage

BEGIN_S = 1_763_726_400
NODES = ("n0", "n1", "n2", "n3", "n4")
ROWS = 25 * 360
BUDGET_W = 26_000.0
PRIORITIES = reference_priorities(len(NODES))
QUESTION = StudyQuestion(
    domain="row",
    nodes=NODES,
    priorities=PRIORITIES,
    admission=AdmissionQuestion(budget_w=BUDGET_W, priorities=PRIORITIES),
    horizon_s=7 * 86_400.0,
    training=Training(window_s=86_400.0, budget_w=BUDGET_W, clock_latency_s=40.0),
)
WATTS: Floats = np.random.default_rng(3).normal(4200, 250, size=(ROWS, len(NODES))).clip(2006)


@dataclass
class Recorded:
    """A day, as a store gives it."""

    watts: Floats = field(default_factory=lambda: WATTS)
    missing: dict[str, range] = field(default_factory=dict)
    capped: range = range(0)

    def power_windows(
        self, domain: str, *, window_s: int, since_s: float, until_s: float, node: str | None = None
    ) -> Iterator[PowerWindow]:
        for row, each in enumerate(self.watts.tolist()):
            start_s = BEGIN_S + window_s * row
            if not since_s <= start_s < until_s:
                continue
            named: dict[str, float] = dict(zip(NODES, each, strict=True))
            named = {name: w for name, w in named.items() if row not in self.missing.get(name, ())}
            named[DOMAIN] = sum(each)
            for name, watts in named.items():
                if node is None or node == name:
                    yield PowerWindow(
                        domain=domain,
                        node=name,
                        start_s=start_s,
                        window_s=window_s,
                        energy_j=watts * window_s,
                        covered_s=float(window_s),
                        max_w=watts * 1.02,
                        samples=5,
                        first_s=float(start_s),
                        last_s=float(start_s + window_s),
                        capped_s=float(window_s * (row in self.capped)) if name == DOMAIN else None,
                    )


UNTIL_S = BEGIN_S + 10.0 * ROWS + 20.0


def answered(store: Recorded, question: StudyQuestion = QUESTION) -> Study:
    return study(store, question, until_s=UNTIL_S)


def test_it_is_the_answer_of_plan_power_and_goes_on_beyond_the_recorded_servers() -> None:
    found = answered(Recorded()).admission
    assert (found.reason, found.message) == (DONE, "")
    told = found.told
    assert told is not None
    asked = QUESTION.admission
    assert asked is not None
    t_s = np.arange(ROWS, dtype=np.float64) * 10.0
    servers = ServerPowerTrace(name="x", t_s=t_s, period_s=10.0, server_w=WATTS, servers=NODES)
    by_hand = admit_servers(servers, asked)
    row = RowPowerTrace(
        name="x",
        t_s=t_s,
        period_s=10.0,
        row_w=WATTS.sum(axis=1),
        servers=5,
        low_w=WATTS[:, ::2].sum(axis=1),
    )
    scaled = admit_servers(row, asked)
    assert (by_hand.without.servers, by_hand.binding) == (5, "servers in the trace")
    assert told["serversWithoutCapping"] == scaled.without.servers
    assert told["serversWithCapping"] == scaled.servers_with_capping
    assert told["servers"] == 5
    assert told["hours"] == 25.0
    assert told["until"] == "2025-11-22T13:00:00Z"
    tight = answered(
        Recorded(), replace(QUESTION, admission=replace(asked, budget_w=18_500.0))
    ).admission.told
    assert tight is not None
    small = admit_servers(servers, replace(asked, budget_w=18_500.0))
    assert tight["serversWithoutCapping"] == small.without.servers < 5
    assert tight["serversWithCapping"] == small.servers_with_capping
    assert tight["expectedCapSeconds"] > 0
    interval = tight["interval"]
    assert interval["low"] <= tight["serversWithCapping"] <= interval["high"]


def test_minutes_in_which_somebody_is_missing_are_left_out() -> None:
    told = answered(Recorded(missing={"n1": range(600, 606)})).admission.told
    assert told is not None
    assert told["hours"] == pytest.approx(25.0, abs=0.06)
    few = answered(Recorded(missing={"n1": range(1000)})).admission
    assert (few.reason, few.told) == (TOO_LITTLE, None)
    assert "h with all servers are recorded of 24 h" in few.message
    none = answered(Recorded(missing={"n1": range(ROWS)})).admission
    assert (none.reason, none.message) == (TOO_LITTLE, "no power of n1")


def test_what_would_have_been_drawn_is_not_known_while_clocks_are_held_down() -> None:
    found = answered(Recorded(capped=range(1000)))
    assert (found.admission.reason, found.training.reason) == (CAPPED, CAPPED)
    assert "record in mode Recommend" in found.admission.message


def test_thresholds_leave_room_for_what_was_seen_to_rise() -> None:
    found = answered(Recorded()).training
    told = found.told
    assert told is not None
    assert 0.5 < told["t1"] < told["t2"] < 1.0
    assert told["t2"] == pytest.approx(1.0 - told["riseRatio"], abs=0.006)
    assert (told["budgetWatts"], told["servers"]) == (26_000, 5)
    calm = answered(Recorded(watts=np.full_like(WATTS, 4200.0))).training.told
    assert calm is not None
    assert calm["t2"] > told["t2"]
    soon = study(Recorded(watts=WATTS[:360]), QUESTION, until_s=UNTIL_S).training
    assert (soon.reason, soon.told) == (TOO_LITTLE, None)


# -- the desk ---------------------------------------------------------------------------------------------------------


def test_without_a_history_it_says_so() -> None:
    found = StudyDesk(url="").ask(QUESTION, now_s=0.0, wall_s=0.0)
    assert {found.admission.reason, found.training.reason} == {NO_HISTORY}


def test_questions_are_answered_one_after_the_other_and_again_when_they_change() -> None:
    begun: list[str] = []
    desk = StudyDesk(url="x", start=lambda _desk, question, _wall_s: begun.append(question.domain))
    other = replace(QUESTION, domain="other")
    found = Study(admission=Answer(reason=DONE, told={"servers": 1}))
    assert desk.ask(QUESTION, now_s=0.0, wall_s=0.0).admission.reason == NOT_YET
    desk.ask(other, now_s=1.0, wall_s=0.0)
    assert begun == ["row"]
    desk.take(found)
    assert desk.ask(QUESTION, now_s=2.0, wall_s=0.0) == found
    desk.ask(other, now_s=2.0, wall_s=0.0)
    desk.take(found)
    changed = replace(QUESTION, horizon_s=1.0)
    assert desk.ask(changed, now_s=10.0, wall_s=0.0) == found  # the old one, for a while
    desk.ask(changed, now_s=CHANGED_S, wall_s=0.0)
    assert begun == ["row", "other", "row"]
    desk.take(found)
    desk.ask(changed, now_s=CHANGED_S + AGAIN_S - 1.0, wall_s=0.0)
    desk.ask(changed, now_s=CHANGED_S + AGAIN_S, wall_s=0.0)
    assert begun == ["row", "other", "row", "row"]
    desk.forget("row")
    desk.take(found)  # of a domain that is gone


def test_a_process_of_its_own_reads_the_history(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/h.db"
    store = open_store(url)
    store.migrate()
    store.close()
    desk = StudyDesk(url=url)
    until_s, now_s = time.monotonic() + 60.0, 0.0
    while time.monotonic() < until_s:
        now_s += 0.1
        found = desk.ask(QUESTION, now_s=now_s, wall_s=UNTIL_S)
        if found.admission.reason != NOT_YET:
            break
        time.sleep(0.05)
    assert found.admission.reason == TOO_LITTLE
    assert "no power of n0" in found.admission.message
    desk.close()


# -- in the loop ------------------------------------------------------------------------------------------------------


def told(stage: Stage, found: Study | None) -> None:
    """Let every question have this answer at once."""

    def answer(desk: StudyDesk, _question: StudyQuestion, _wall_s: float) -> None:
        if found is not None:
            desk.take(found)

    stage.loop.studies = StudyDesk(url="x", start=answer)


ADMITTED: dict[str, Any] = {"servers": 3, "serversWithoutCapping": 2, "serversWithCapping": 4}
LEARNT: dict[str, Any] = {
    "t1": 0.9, "t2": 0.95, "uncapMargin": 0.03, "riseRatio": 0.04, "budgetWatts": 16_000.0, "servers": 3,
}  # fmt: skip
ANSWERS = Study(admission=Answer(reason=DONE, told=ADMITTED), training=Answer(reason=DONE, told=LEARNT))


def test_the_status_holds_how_many_servers_fit_and_keeps_it_for_the_next_leader() -> None:
    stage = Stage()
    spec: dict[str, Any] = {"mode": "Auto", "members": {"nodes": list(NAMES)}, "admission": {}}
    stage.domain("row", **spec)
    stage.go(4)
    assert stage.condition("row", "ServersFit")["reason"] == NO_HISTORY
    assert "admission" not in stage.status("row")
    told(stage, ANSWERS)
    stage.go(20)
    assert stage.status("row")["admission"] == ADMITTED
    assert stage.condition("row", "ServersFit")["status"] == "True"
    stage.domain("row", **{**spec, "mode": "Recommend"})
    stage.go(6)
    fit = stage.condition("row", "ServersFit")
    assert (fit["status"], fit["reason"]) == ("False", "TooManyServers")
    assert "the budget holds 2 without capping" in fit["message"]
    stage.loop = stage.begun()
    told(stage, None)
    stage.go(6)
    assert stage.status("row")["admission"] == ADMITTED
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)})
    stage.go(12)
    assert "admission" not in stage.status("row")
    assert all(c["type"] != "ServersFit" for c in stage.status("row")["conditions"])


def test_trained_thresholds_are_in_force_for_the_budget_they_were_trained_for() -> None:
    stage = Stage()
    spec: dict[str, Any] = {
        "mode": "Auto",
        "members": {"nodes": list(NAMES)},
        "algorithm": "polca",
        "train": {},
    }
    stage.domain("row", **spec)
    told(stage, Study(training=Answer(reason=TOO_LITTLE, message="3.0 h are recorded of 151.2 h at least")))
    stage.go(12)
    waits = stage.condition("row", "ThresholdsTrained")
    assert (waits["status"], waits["reason"]) == ("Unknown", TOO_LITTLE)
    assert "until then the published thresholds" in waits["message"]
    told(stage, ANSWERS)
    stage.go(12)
    assert stage.condition("row", "ThresholdsTrained")["status"] == "True"
    assert stage.status("row")["trained"] == LEARNT
    run = stage.loop._domains["row"].run
    assert run is not None
    assert run._key[-1].t2 == 0.95
    stage.domain("row", **spec, budgetWatts=15_000)
    told(stage, None)
    stage.go(12)
    assert stage.condition("row", "ThresholdsTrained")["status"] == "Unknown"
    assert run._key[-1] is None


def test_a_class_that_cannot_be_is_refused() -> None:
    stage = Stage()
    low = {"name": "low", "priority": 0, "minMHz": 1110, "maxMHz": 1200, "slo": {"maxIncrease": 0.05}}
    stage.domain("row", members={"nodes": list(NAMES)}, classes=[low])
    stage.go(4)
    assert stage.condition("row", "Accepted")["reason"] == "InvalidSpec"
    assert (
        "maxMHz 1200 is below the floor" in stage.api.objects[POWER_DOMAINS.kind, "row"]["status"]["message"]
    )
    assert Priority.LOW in PRIORITIES
