"""Has questions to recorded power answered in a process of its own, one after the other.

It exists because a week of a row is millions of rows, and the loop over PowerDomains waits for nobody: it asks in every
round and gets what is known. What takes too long or too much memory is ended and said. It judges nothing.
"""

import contextlib
import math
import multiprocessing
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import structlog

from controller.operator.power.studies import FAILED, NO_HISTORY, Answer, Study, StudyQuestion, study
from solver.domain.errors import InputError
from telemetry.store.store import open_store

log = structlog.get_logger(__name__)
AGAIN_S = 6 * 3600.0
CHANGED_S = 300.0
"""Another question of a domain is answered no sooner."""
LIMIT_S = 900.0


@dataclass(slots=True, kw_only=True)
class _Asked:
    question: StudyQuestion | None = None
    """That was answered last, or is being answered."""
    begun_s: float = -math.inf
    study: Study | None = None


@dataclass(slots=True, kw_only=True)
class StudyDesk:
    """Has questions answered one after the other; never waits. For one thread."""

    url: str
    """Of the history; empty: there is none."""
    memory_mib: int = 4096
    start: Callable[[Any, StudyQuestion, float], None] | None = None
    """Instead of a process, for tests: answers through `take`."""
    _asked: dict[str, _Asked] = field(default_factory=dict)
    _at_work: str = ""
    _process: SpawnProcess | None = None
    _pipe: Connection | None = None
    _until_s: float = -math.inf

    def ask(self, question: StudyQuestion, *, now_s: float, wall_s: float) -> Study:
        """Return what is known, and see to it that it is known soon."""
        if not self.url:
            none = Answer(reason=NO_HISTORY, message="the controller keeps no history (--database-url)")
            return Study(admission=none, training=none)
        self._collect(now_s)
        asked = self._asked.setdefault(question.domain, _Asked())
        age_s = now_s - asked.begun_s
        due = age_s >= AGAIN_S or (asked.question != question and age_s >= CHANGED_S)
        if due and not self._at_work:
            asked.question, asked.begun_s, self._at_work = question, now_s, question.domain
            (self.start or StudyDesk._start)(self, question, wall_s)
            self._until_s = now_s + LIMIT_S
        return asked.study or Study()

    def forget(self, domain: str) -> None:
        """Drop what is known of a domain that is gone."""
        self._asked.pop(domain, None)

    def take(self, found: Study) -> None:
        """Take the answer to the question that is being worked on."""
        asked = self._asked.get(self._at_work)
        if asked is not None:
            asked.study = found
        self._at_work = ""

    def close(self) -> None:
        """Stop the process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.join(1.0)
        self._process = self._pipe = None

    def _start(self, question: StudyQuestion, wall_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work,
            args=(theirs, self.url, question, wall_s, self.memory_mib),
            name="ballast-study",
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def _collect(self, now_s: float) -> None:
        if self._pipe is None or self._process is None:
            return
        found: Study | None = None
        try:
            if self._pipe.poll(0.0):
                found = self._pipe.recv()
            elif now_s < self._until_s and self._process.is_alive():
                return
        except (EOFError, OSError):
            pass
        if found is None:
            failed = Answer(reason=FAILED, message="judging it took too long or too much memory")
            found = Study(admission=failed, training=failed)
            log.warning("power study", domain=self._at_work, exit_code=self._process.exitcode)
        self.close()
        self.take(found)


def _work(pipe: Connection, url: str, question: StudyQuestion, wall_s: float, memory_mib: int) -> None:
    """Answer one question and end."""
    with contextlib.suppress(OSError):
        os.nice(10)
    size = memory_mib * 2**20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    store = open_store(url)
    try:
        found = study(store, question, until_s=wall_s)
    except InputError as error:
        wrong = Answer(reason=FAILED, message=str(error))
        found = Study(admission=wrong, training=wrong)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
        wrong = Answer(reason=FAILED, message=f"the database: {store.said(error)}")
        found = Study(admission=wrong, training=wrong)
    finally:
        store.close()
    pipe.send(found)
