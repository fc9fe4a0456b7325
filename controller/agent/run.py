"""Runs the agent until it is told to stop, or NVML is gone.

It exists so that signals, threads and the end of the process stand in one place. A second agent on the same node would
set what the first lowers: a lock on the journal's folder keeps it out.
"""

import fcntl
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import structlog

from controller.agent.journal import BOOT_ID, Journal, boot_id
from controller.agent.loop import Agent
from controller.agent.orders import OrderSource
from controller.agent.page import Page
from solver.domain.errors import InputError
from solver.domain.node_power import Cap
from telemetry.sources.nvml.failures import DriverGoneError
from telemetry.sources.nvml.reader import NvmlReader

ENDING = {signal.SIGTERM, signal.SIGINT}
WATCH_S = 0.1
"""Between two looks at whether the loop still runs, and whether it is to end."""
AT_ONCE_S = 0.02
"""Before a round that orders called for: nobody makes it spin."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Everything ``ballast agent run`` can be told."""

    node: str
    journal: Path
    enforce: bool = False
    period_s: float = 1.0
    host: str = "127.0.0.1"
    port: int = 9409
    fallback: Cap = field(default_factory=Cap)
    jitter_s: float = 5.0
    boot_id_file: Path = BOOT_ID
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None


def only_one(folder: Path) -> TextIO:
    """Return a lock on the journal's folder; it holds as long as the file is open.

    Raises
    ------
    InputError
        The folder cannot be written, or another agent has the lock.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            right="a folder of the host for the journal",
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(
            "another agent runs on this node",
            where=str(path),
            right="one agent per node; stop the other one first",
        ) from None
    return file


def run(settings: AgentSettings, source: OrderSource) -> int:
    """Run; returns the exit code.

    Raises
    ------
    InputError
        No driver, no journal, another agent.
    """
    lock = only_one(settings.journal) if settings.enforce else None
    # Blocked here and in all threads, and looked for below: a handler would run in the midst of whatever holds a lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    reader = NvmlReader()
    journal = Journal(settings.journal, boot_id(settings.boot_id_file))
    agent = Agent(
        reader=reader,
        journal=journal,
        source=source,
        enforce=settings.enforce,
        random=random.Random(os.urandom(8)),  # noqa: S311 - a jitter
        fallback=settings.fallback,
        jitter_s=settings.jitter_s,
    )
    page = Page(
        host=settings.host,
        port=settings.port,
        node=settings.node,
        state=lambda: agent.state,
        clock=time.monotonic,
        certificate=settings.certificate,
        key=settings.key,
        token=settings.token,
    )
    source.start()
    agent.tick()
    try:
        port = page.start()
    except OSError as error:
        raise InputError(
            f"cannot listen: {error.strerror or error}",
            where=f"{settings.host}:{settings.port}",
            right="a free port, and PEM files of a certificate and its key where TLS is asked for",
        ) from None
    log.info("agent", node=settings.node, gpus=len(reader.identities), port=port, enforce=settings.enforce)
    code = _looped(agent, settings.period_s, source.wake)
    final = None
    if code == 0:
        try:
            final = agent.leave()
        except DriverGoneError as error:
            log.error("driver", told=str(error))  # noqa: TRY400 - one line says it
            code = 1
    source.stop(final)
    page.stop()
    reader.close()
    if lock is not None:
        lock.close()
    sys.stderr.flush()
    return code


def _looped(agent: Agent, period_s: float, wake: threading.Event) -> int:
    """Let the loop run until a signal comes, or it ends by itself; returns the exit code."""
    stopping = threading.Event()
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(_loop(agent, period_s, stopping, wake)), name="loop"
    )
    thread.start()
    while thread.is_alive():
        thread.join(WATCH_S)
        # not sigtimedwait: after a SIGSTOP longer than its timeout CPython lets it tell of a signal that never came
        if ENDING & signal.sigpending():
            stopping.set()
            wake.set()
            thread.join()
    return codes[0] if codes else 1


def _loop(agent: Agent, period_s: float, stopping: threading.Event, wake: threading.Event) -> int:
    """Do rounds at a steady pace, and one soon when there are other orders; late ones are not caught up with."""
    next_s = time.monotonic() + period_s
    while True:
        woken = wake.wait(max(next_s - time.monotonic(), 0.0))
        if woken:
            stopping.wait(AT_ONCE_S)
        wake.clear()
        if stopping.is_set():
            return 0
        try:
            agent.tick()
        except DriverGoneError as error:
            log.error("driver", told=str(error))  # noqa: TRY400 - one line says it
            return 1
        except Exception:
            log.exception("a round failed")  # the next process goes to safe caps
            return 1
        if not woken:
            next_s = max(next_s + period_s, time.monotonic())
