"""Rehearses in a process that can be killed, and says what became of one that was not answered.

It exists so that no rehearsal stops the operator or fills its memory. It judges nothing;
`controller.operator.rehearsal.replay` does.
"""

from dataclasses import dataclass, field

import structlog

from controller.operator.child import (
    Answerer,
    AnswerError,
    Child,
    ChildEndedError,
    ChildMemoryError,
    ChildOverranError,
)
from controller.operator.rehearsal.question import (
    CRASHED,
    MEMORY,
    OVERRAN,
    RehearsalAnswer,
    RehearsalQuestion,
)

log = structlog.get_logger(__name__)
LIMIT_S = 30.0
"""For one rehearsal; most take about a second."""
START_LIMIT_S = 600.0
"""For a child to come up; the first one in a pod compiles its kernels, at low priority."""


def _stage() -> Answerer:
    # here, not above: the operator's own process stays free of the simulator and the compiler
    from controller.operator.rehearsal.replay import warmed_up  # noqa: PLC0415

    stage = warmed_up()
    return lambda asked: stage.answer(*asked)


@dataclass(slots=True)
class Replayer:
    """The parent's side. `answer` is for one thread; `close` for any."""

    memory_mib: int = 4096
    limit_s: float = LIMIT_S
    child: Child = field(init=False)

    def __post_init__(self) -> None:
        self.child = Child(
            name="ballast-rehearsal",
            make=_stage,
            memory_mib=self.memory_mib,
            start_limit_s=START_LIMIT_S,
            nice=10,
        )

    def prepare(self) -> None:
        """Let the child come up: the first one in a pod compiles its kernels, and no plan need wait for that."""
        self.child.start()

    def answer(self, question: RehearsalQuestion, trace: str) -> RehearsalAnswer:
        """Rehearse; ``trace`` is the text of the recorded trace, where the question names one."""
        try:
            found: RehearsalAnswer = self.child.ask((question, trace), limit_s=self.limit_s)
        except ChildOverranError:
            return _failed(OVERRAN, f"it took more than {self.limit_s:g} s and was stopped")
        except ChildMemoryError:
            return _failed(MEMORY, f"it needed more than {self.memory_mib} MiB and was stopped")
        except ChildEndedError:
            return _failed(CRASHED, "its process ended unexpectedly")
        except AnswerError as error:
            return _failed(CRASHED, str(error))
        return found

    def close(self) -> None:
        """Stop the child."""
        self.child.close()


def _failed(reason: str, message: str) -> RehearsalAnswer:
    log.error("rehearsal", reason=reason, message=message)
    return RehearsalAnswer(allowed=None, reason=reason, message=message)
