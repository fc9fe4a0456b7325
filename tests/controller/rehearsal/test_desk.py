"""Rehearsals aside: the process that can be killed, the queue, what comes of a child that hangs or dies."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.operator.metrics import Metrics
from controller.operator.rehearsal.child import Replayer
from controller.operator.rehearsal.desk import Answered, RehearsalDesk
from controller.operator.rehearsal.gauges import follow_rehearsals
from controller.operator.rehearsal.question import (
    CANNOT,
    CRASHED,
    FALLS,
    HOLDS,
    MEMORY,
    OVERRAN,
    RehearsalAnswer,
    RehearsalQuestion,
)
from controller.resources.model_service import TraceSource
from tests.controller.rehearsal.stand import question

YES = RehearsalAnswer(
    allowed=True, reason=HOLDS, message="m", running_ratio=1.0, planned_ratio=0.99, requests=9, wall_s=0.1
)


@pytest.fixture(scope="module")
def replayer() -> Iterator[Replayer]:
    """Return a child's parent that waits half a minute."""
    one = Replayer(limit_s=30.0)
    yield one
    one.close()


def test_a_child_answers_is_killed_when_it_hangs_and_replaced_when_it_dies(replayer: Replayer) -> None:
    assert replayer.answer(question(4, 1), "").reason == FALLS
    child = replayer.child.pid
    assert child is not None
    assert replayer.answer(question(6, 4), "").reason == HOLDS
    assert replayer.child.pid == child
    os.kill(child, signal.SIGSTOP)
    replayer.limit_s = 0.5
    found = replayer.answer(question(), "")
    assert (found.allowed, found.reason) == (None, OVERRAN)
    assert "0.5 s" in found.message
    assert not Path(f"/proc/{child}").exists()
    replayer.limit_s = 30.0
    assert replayer.answer(question(trace=TraceSource(name="t")), "\n" * 10).reason == CANNOT
    child = replayer.child.pid
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    replayer.limit_s = 0.5  # and with more than a pipe holds
    assert replayer.answer(question(trace=TraceSource(name="t")), "x" * 2**20).reason == OVERRAN


def test_a_child_without_memory_says_so_or_dies_and_nobody_is_held() -> None:
    small = Replayer(memory_mib=64)
    found = small.answer(question(), "")
    assert found.allowed is None
    assert found.reason in {MEMORY, CRASHED}
    small.close()


class Fake(Replayer):
    """Answers at once, or when it may."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__()
        self.free = free
        self.begun, self.prepared = threading.Event(), threading.Event()
        self.seen: list[tuple[str, str]] = []
        self.closed = threading.Event()

    def prepare(self) -> None:
        self.prepared.set()

    def answer(self, question: RehearsalQuestion, trace: str) -> RehearsalAnswer:
        self.seen.append((question.service, trace or question.digest))
        self.begun.set()
        assert self.free.wait(30)
        if question.digest == "bad":
            raise ValueError("what a thought")
        return YES

    def close(self) -> None:
        self.closed.set()


def test_services_are_answered_in_turn_and_a_newer_question_takes_the_place_of_an_older() -> None:
    free, told = threading.Event(), threading.Semaphore(0)
    fake = Fake(free)
    answers: list[Answered] = []

    def on_answer(answered: Answered) -> None:
        answers.append(answered)
        told.release()
        raise ValueError("listeners may fail")

    desk = RehearsalDesk(
        replayer=fake,
        on_answer=on_answer,
        trace_of=lambda asked: None if asked.digest == "none" else "text",
    )
    first = question(service="team/a")
    desk.ask(first)
    assert fake.begun.wait(30)
    desk.ask(first)  # known
    desk.ask(question(service="team/b", digest="old"))
    newer = question(service="team/b", digest="bad")
    desk.ask(newer)
    desk.ask(replace(first, digest="d2"))  # while the first is being answered: that answer is of no use
    desk.ask(question(service="team/c", trace=TraceSource(name="t")))
    desk.ask(question(service="team/d", digest="none", trace=TraceSource(name="t")))
    desk.ask(question(service="team/e"))
    desk.forget("team/e")
    assert desk.waiting == 4
    assert desk.waits("team/b") is newer
    metrics = Metrics()
    follow_rehearsals(metrics, desk)
    assert list(metrics.rehearsal_waiting.rows()) == [((), 4.0)]
    free.set()
    for _ in range(4):
        assert told.acquire(timeout=30)
    assert fake.seen == [
        ("team/a", "d1"),
        ("team/b", "bad"),
        ("team/c", "text"),
        ("team/a", "d2"),
    ]
    said = {answered.question.service: answered.answer.reason for answered in answers}
    assert said == {"team/b": CRASHED, "team/c": HOLDS, "team/d": CANNOT, "team/a": HOLDS}
    assert [answered.question.service for answered in answers] == ["team/b", "team/c", "team/d", "team/a"]
    known = desk.known("team/a")
    assert known is not None
    assert (known.question.digest, known.answer) == ("d2", YES)
    rows = dict(metrics.rehearsal_attainment.rows())
    assert rows["team", "a", "planned"] == 0.99
    assert ("team", "b", "planned") not in rows
    desk.close()
    assert fake.closed.is_set()


def test_it_gets_ready_before_the_first_question() -> None:
    fake = Fake(threading.Event())
    desk = RehearsalDesk(replayer=fake)
    desk.prepare()
    desk.prepare()
    assert fake.prepared.wait(30)
    assert fake.seen == []
    desk.close()


def test_a_child_with_nothing_to_do_goes() -> None:
    fake = Fake(threading.Event())
    fake.free.set()
    desk = RehearsalDesk(replayer=fake, idle_s=0.01)
    desk.ask(question())
    assert fake.begun.wait(30)
    assert fake.closed.wait(30)
    desk.close()


def test_after_the_end_nothing_is_begun() -> None:
    fake = Fake(threading.Event())
    desk = RehearsalDesk(replayer=fake)
    desk.close()
    desk.ask(question())
    assert desk.waiting == 0
    assert fake.seen == []
