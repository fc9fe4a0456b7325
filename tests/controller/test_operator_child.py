"""A process that answers questions: what it says, and what becomes of one that hangs, dies, fails or has no memory."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.operator.child import (
    Answerer,
    AnswerError,
    Child,
    ChildEndedError,
    ChildMemoryError,
    ChildOverranError,
)


def counting() -> Answerer:
    """Answer with the length of what is asked; odd questions do odd things."""
    asked = []

    def answer(question: str | int) -> object:
        asked.append(question)
        if question == "memory":
            return len(b"x" * 2**40)
        if question == "fail":
            raise ValueError("so it is")
        if question == "die":
            os._exit(3)
        os.write(1, b"what a solver prints is no part of the log")
        return len(asked), len(str(question))

    return answer


@pytest.fixture
def child() -> Iterator[Child]:
    """Return a child that has not been started."""
    one = Child(name="counting", make=counting, memory_mib=1024, start_limit_s=60.0)
    yield one
    one.close()


def test_it_answers_fails_and_goes_on(child: Child, capfd: pytest.CaptureFixture[str]) -> None:
    assert child.pid is None
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    pid = child.pid
    with pytest.raises(AnswerError, match="ValueError: so it is"):
        child.ask("fail", limit_s=30.0)
    assert child.ask("x" * 2**20, limit_s=30.0) == (3, 2**20)
    assert child.pid == pid
    with pytest.raises(ChildMemoryError):
        child.ask("memory", limit_s=30.0)
    assert child.pid is None
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    with pytest.raises(ChildEndedError):
        child.ask("die", limit_s=30.0)
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("size", [3, 2**20])
def test_one_that_hangs_is_killed_whether_it_reads_or_not(child: Child, size: int) -> None:
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    pid = child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ChildOverranError):
        child.ask("x" * size, limit_s=0.3)
    assert not Path(f"/proc/{pid}").exists()
    assert child.ask("abc", limit_s=30.0) == (1, 3)


def test_one_that_died_meanwhile_is_replaced(child: Child) -> None:
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    pid = child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    try:
        found = child.ask("abc", limit_s=30.0)
    except ChildEndedError:  # it was seen to be alive still
        found = child.ask("abc", limit_s=30.0)
    assert found == (1, 3)


def test_it_may_come_up_before_it_is_asked(child: Child) -> None:
    child.start()
    pid = child.pid
    assert pid is not None
    assert child.ask("abc", limit_s=30.0) == (1, 3)
    assert child.pid == pid
    child.close()
    child.start_limit_s = 0.001
    child.start()
    assert child.pid is None


def test_one_that_does_not_come_up_overran(child: Child) -> None:
    child.start_limit_s = 0.001
    with pytest.raises(ChildOverranError):
        child.ask("abc", limit_s=30.0)
    assert child.pid is None
