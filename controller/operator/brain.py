"""Runs the solver in a child process that can be killed: a limit on time, a limit on memory, one culprit at a time.

It exists so that no problem, however hard or broken, stops the operator: a child that overruns, runs out of memory or
dies is replaced, and the services it was working on are left out for a while. The child keeps what it solved, so only
services that changed are sent and solved again. It decides nothing; `solver.services.decide` does.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import structlog

from solver.domain.cluster import ClusterState, ServiceDecision, ServiceState, Stance
from solver.services.decide import DecideOptions, decide
from solver.services.plan import Known

log = structlog.get_logger(__name__)
GRACE_S = 5.0
"""Beyond the solver's own limit, before the child is killed."""
START_LIMIT_S = 60.0
MOST_BACKOFF_S = 600.0
CRASHED = "SolverCrashed"
OVERRUN = "SolverOverran"
MEMORY = "SolverOutOfMemory"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainLimits:
    """Seconds for a solve and MiB for the child."""

    solve_s: float = 30.0
    memory_mib: int = 4096
    gap_ratio: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """A service that broke the solver: why, how often, and until when it is left out."""

    reason: str
    message: str
    times: int
    until_s: float


@dataclass(slots=True)
class Brain:
    """The parent's side. Not for use by several threads at once."""

    limits: BrainLimits = field(default_factory=BrainLimits)
    setbacks: dict[str, Setback] = field(default_factory=dict)
    last_s: float | None = None
    """Seconds the last solve took."""
    _process: SpawnProcess | None = None
    _pipe: Connection | None = None
    _sent: dict[str, ServiceState] = field(default_factory=dict)
    _told: dict[str, ServiceDecision] = field(default_factory=dict)
    """What the child decided last for each service; it tells only what is new."""

    @property
    def pid(self) -> int | None:
        """Process id of the child, if there is one."""
        return None if self._process is None else self._process.pid

    def held(self, service: str, now_s: float) -> str:
        """Say why a service is kept from the solver now; empty if it is not."""
        setback = self.setbacks.get(service)
        return "" if setback is None or now_s >= setback.until_s else setback.message

    def decide(self, state: ClusterState) -> tuple[ServiceDecision, ...] | None:
        """Decide; None if the child failed (`setbacks` then names whom it failed on)."""
        began_s = time.monotonic()
        services = {service.name: service for service in state.services}
        try:
            pipe = self._ready()
            changed = {name: s for name, s in services.items() if self._sent.get(name) is not s}
            gone = [name for name in self._sent if name not in services]
            with self._killed_after(
                self.limits.solve_s + GRACE_S
            ):  # a frozen child takes no more than a pipe holds
                pipe.send((state.pools, changed, gone, tuple(services)))
            self._sent = services
            answer = self._answer(pipe, began_s, services)
        except (OSError, EOFError, BrokenPipeError):
            late = time.monotonic() - began_s >= self.limits.solve_s + GRACE_S
            self._failed(OVERRUN if late else CRASHED, "", services)
            answer = None
        self.last_s = time.monotonic() - began_s
        return answer

    def _answer(
        self, pipe: Connection, began_s: float, services: Mapping[str, ServiceState]
    ) -> tuple[ServiceDecision, ...] | None:
        at = ""
        until_s = began_s + self.limits.solve_s + GRACE_S
        while True:
            if not pipe.poll(max(0.0, until_s - time.monotonic())):
                self._failed(OVERRUN, at, services)
                return None
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                self._failed(CRASHED, at, services)
                return None
            if kind == "at":
                at = value
            elif kind == "memory":
                self._failed(MEMORY, at, services)
                return None
            elif kind == "error":
                self._failed(CRASHED, at, services, value)
                return None
            else:
                for name in "+".join(value[1]).split("+"):
                    self.setbacks.pop(name, None)
                self._told = {name: told for name, told in self._told.items() if name in services}
                self._told |= {decision.service: decision for decision in value[0]}
                moving = (s for s in services.values() if s.stance is not Stance.FIXED)
                return tuple(self._told[service.name] for service in moving)

    @contextlib.contextmanager
    def _killed_after(self, limit_s: float) -> Iterator[None]:
        """Kill the child if what is done meanwhile takes longer."""
        process = self._process
        timer = threading.Timer(limit_s, lambda: None if process is None else process.kill())
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _ready(self) -> Connection:
        """Return the pipe to a child that listens."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, self.limits), name="ballast-solver", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        if not ours.poll(START_LIMIT_S):
            raise EOFError
        ours.recv()
        return ours

    def _failed(self, reason: str, at: str, services: Mapping[str, ServiceState], detail: str = "") -> None:
        code = None if self._process is None else self._process.exitcode
        self.close()
        what = {
            OVERRUN: f"the solver did not answer within {self.limits.solve_s:g} s and was stopped",
            MEMORY: f"the solver needed more than {self.limits.memory_mib} MiB and was stopped",
            CRASHED: f"the solver ended unexpectedly{'' if code is None else f' (exit code {code})'}",
        }[reason]
        message = f"{what}{f': {detail}' if detail else ''}; the last plan stays, it is tried again later"
        log.error("solver", reason=reason, at=at, detail=detail)
        for name in at.split("+") if at else services:
            if name not in services:
                continue
            times = self.setbacks[name].times + 1 if name in self.setbacks else 1
            wait_s = min(MOST_BACKOFF_S, 10.0 * 2 ** (times - 1))
            self.setbacks[name] = Setback(
                reason=reason,
                message=message,
                times=times,
                until_s=time.monotonic() + wait_s,
            )

    def close(self) -> None:
        """Stop the child."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.join(5)
        self._process = self._pipe = None
        self._sent, self._told = {}, {}


def _work(pipe: Connection, limits: BrainLimits) -> None:
    """Child: answer until the parent goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # HiGHS prints lines of its own on file descriptor 1; nothing of the child's belongs on the log
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    size = limits.memory_mib * 2**20
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    used = 0
    with contextlib.suppress(OSError):  # where the kernel tells
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    pipe.send(("ready", None))
    services: dict[str, ServiceState] = {}
    known: Known = {}
    told: dict[str, ServiceDecision] = {}
    while True:
        try:
            pools, changed, gone, order = pipe.recv()
        except (EOFError, OSError):
            return
        services.update(changed)
        for name in gone:
            services.pop(name, None)
            told.pop(name, None)
        if used >= size:  # what it would still get is chance
            pipe.send(("memory", None))
            continue
        state = ClusterState(pools=pools, services=tuple(services[name] for name in order))
        solved: list[str] = []

        def at(name: str, solved: list[str] = solved) -> None:
            solved.append(name)
            pipe.send(("at", name))

        try:
            decisions = decide(
                state,
                options=DecideOptions(time_limit_s=limits.solve_s, gap_ratio=limits.gap_ratio),
                clock=time.monotonic,
                known=known,
                at=at,
            )
            news = tuple(one for one in decisions if told.get(one.service) != one)
            pipe.send(("done", (news, solved)))
            told |= {decision.service: decision for decision in news}
        except MemoryError:
            pipe.send(("memory", None))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent names it in a condition
            pipe.send(("error", f"{type(error).__name__}: {error}"))
