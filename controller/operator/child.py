"""A process of the operator's own that answers questions and can be killed: limits on time and on memory.

It exists so that whatever is heavy, compiled or may hang (maps of experts, rehearsals) stops nobody, and is loaded only
where it is asked for. It knows nothing of the questions. The solver of services has a process of another kind
(`controller.operator.brain`): it keeps what it was told, and says whom it is working on.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

Answerer = Callable[[Any], object]


class ChildOverranError(Exception):
    """It did not answer in time, and was killed."""


class ChildMemoryError(Exception):
    """It needed more memory than it may have, and was killed."""


class ChildEndedError(Exception):
    """It ended by itself."""


class AnswerError(Exception):
    """It failed on the question, and lives; the message names how."""


@dataclass(frozen=True, slots=True)
class _Answer:
    value: object = None
    memory: bool = False
    failed: str = ""


@dataclass(slots=True, kw_only=True)
class Child:
    """The parent's side. `ask` is for one thread, `close` for any."""

    name: str
    make: Callable[[], Answerer]
    """At the top of a module; called in the child, it loads what is needed and returns what answers."""
    memory_mib: int
    start_limit_s: float
    """For it to come up, what ``make`` does included."""
    nice: int = 0
    _process: SpawnProcess | None = None
    _pipe: Connection | None = None
    _closing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int | None:
        """Process id, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Let it come up before the first question; if it does not, that question will tell."""
        try:
            self._ready()
        except (OSError, EOFError):
            self.close()

    def ask(self, question: object, *, limit_s: float) -> Any:
        """Ask; a child that overruns, dies or needs too much memory is gone then, and the next question has another.

        Raises
        ------
        ChildOverranError, ChildMemoryError, ChildEndedError, AnswerError
            For what became of it.
        """
        began_s, most_s = time.monotonic(), self.start_limit_s
        try:
            pipe = self._ready()
            began_s, most_s = time.monotonic(), limit_s
            killer = threading.Timer(limit_s, self._kill)  # a frozen child takes no more than a pipe holds
            killer.daemon = True
            killer.start()
            try:
                pipe.send(question)
                answer: _Answer | None = pipe.recv() if pipe.poll(limit_s) else None
            finally:
                killer.cancel()
        except (OSError, EOFError):
            self.close()
            if time.monotonic() - began_s >= most_s:
                raise ChildOverranError from None
            raise ChildEndedError from None
        if answer is None:
            self.close()
            raise ChildOverranError
        if answer.memory:
            self.close()
            raise ChildMemoryError
        if answer.failed:
            raise AnswerError(answer.failed)
        return answer.value

    def _ready(self) -> Connection:
        """Return the pipe to a child that listens."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self.close()
        # more threads than cores make numpy's products slower by far, and the operator has few
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self.make, self.memory_mib, self.nice), name=self.name, daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        if not ours.poll(self.start_limit_s):
            raise EOFError
        ours.recv()
        return ours

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                process.kill()

    def close(self) -> None:
        """Stop it."""
        with self._closing:
            self._kill()
            if self._process is not None:
                self._process.join(5)
            if self._pipe is not None:
                self._pipe.close()
            self._process = self._pipe = None


def _serve(pipe: Connection, make: Callable[[], Answerer], memory_mib: int, nice: int) -> None:
    """Child: answer until the parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # solvers print lines of their own
    with contextlib.suppress(OSError):
        os.nice(nice)
    size = memory_mib * 2**20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    answerer: Answerer | None = None
    with contextlib.suppress(MemoryError):
        answerer = make()
    pipe.send(None)
    while True:
        try:
            question = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(_Answer(memory=True) if answerer is None else _Answer(answerer(question)))
        except MemoryError:
            pipe.send(_Answer(memory=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent names it in a condition
            pipe.send(_Answer(failed=f"{type(error).__name__}: {error}"))
