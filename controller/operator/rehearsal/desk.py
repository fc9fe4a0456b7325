"""Has changes rehearsed in the background, one after the other, and remembers the answers.

It exists so that the operator's round never waits: it asks, and gets what is known. One question per service waits at
most; a newer one takes its place in the queue. What is lost with the process is asked again. It judges nothing.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from controller.operator.rehearsal.child import Replayer
from controller.operator.rehearsal.question import CANNOT, CRASHED, RehearsalAnswer, RehearsalQuestion

log = structlog.get_logger(__name__)
IDLE_S = 120.0
"""Without a question for so long the child goes, and its memory with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question with its answer, and when it came."""

    question: RehearsalQuestion
    answer: RehearsalAnswer
    at_s: float
    """Monotonic."""


@dataclass(slots=True, kw_only=True)
class RehearsalDesk:
    """Answers questions in a thread of its own, which begins when it is first needed."""

    replayer: Replayer = field(default_factory=Replayer)
    trace_of: Callable[[RehearsalQuestion], str | None] = lambda _question: None
    """Reads the text of the trace that a question names; None: it is not there."""
    on_answer: Callable[[Answered], None] = lambda _answered: None
    idle_s: float = IDLE_S
    _waiting: dict[str, RehearsalQuestion] = field(default_factory=dict)
    _answers: dict[str, Answered] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _closed: bool = False

    def prepare(self) -> None:
        """Get ready for questions; once."""
        with self._changed:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="rehearsals", daemon=True)
                self._thread.start()

    def ask(self, question: RehearsalQuestion) -> None:
        """Put a question; an older one of the same service is dropped."""
        self.prepare()
        with self._changed:
            if self._waiting.get(question.service) == question or self._closed:
                return
            self._waiting[question.service] = question
            self._changed.notify()

    def known(self, service: str) -> Answered | None:
        """Return the last answer for a service."""
        return self._answers.get(service)

    def waits(self, service: str) -> RehearsalQuestion | None:
        """Return the question of a service that is not answered yet."""
        return self._waiting.get(service)

    @property
    def answers(self) -> Mapping[str, Answered]:
        """The last answers by service, as they are now."""
        return dict(self._answers)

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    def forget(self, service: str) -> None:
        """Drop what is known of a service that is gone, or rehearses no more."""
        with self._changed:
            self._waiting.pop(service, None)
            self._answers.pop(service, None)

    def close(self) -> None:
        """End the thread and the child."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.replayer.close()

    def _run(self) -> None:
        self.replayer.prepare()
        while (question := self._next()) is not None:
            answer = self._answer(question)
            answered = Answered(question=question, answer=answer, at_s=time.monotonic())
            if not self._keep(answered):
                continue
            log.info(
                "rehearsal",
                service=question.service,
                digest=question.digest,
                reason=answer.reason,
                running=answer.running_ratio,
                planned=answer.planned_ratio,
                requests=answer.requests,
                seconds=round(answer.wall_s, 3),
            )
            with contextlib.suppress(Exception):  # whoever listens must not end the thread
                self.on_answer(answered)

    def _next(self) -> RehearsalQuestion | None:
        """Wait for a question; None: closed."""
        with self._changed:
            while not self._closed:
                if self._waiting:
                    return next(iter(self._waiting.values()))
                if not self._changed.wait(self.idle_s):
                    self.replayer.close()
        return None

    def _keep(self, answered: Answered) -> bool:
        """Remember an answer if it is still wanted; one that was asked anew meanwhile lets the others go first."""
        question = answered.question
        with self._changed:
            wanted = self._waiting.pop(question.service, None)
            if wanted is None or self._closed:
                return False
            if wanted is not question:
                self._waiting[question.service] = wanted
                return False
            self._answers[question.service] = answered
            return True

    def _answer(self, question: RehearsalQuestion) -> RehearsalAnswer:
        trace = ""
        try:
            if question.trace is not None:
                found = self.trace_of(question)
                if found is None:
                    named = f"ConfigMap {question.trace.name}, {question.trace.key}"
                    return RehearsalAnswer(allowed=None, reason=CANNOT, message=f"{named} cannot be read")
                trace = found
            return self.replayer.answer(question, trace)
        except Exception as error:
            log.exception("rehearsal failed", service=question.service)
            return RehearsalAnswer(allowed=None, reason=CRASHED, message=f"{type(error).__name__}: {error}")
