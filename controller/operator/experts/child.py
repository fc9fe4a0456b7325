"""Places experts in a child process that can be killed: a limit on time, a limit on memory.

It exists so that no instance stops the operator, and so that the compiler and its kernels are loaded only where there
is an ExpertPlacement, and never in the operator's own process. It decides nothing beyond the least net gain;
`solver.experts.place` does.
"""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import structlog

from controller.operator.brain import CRASHED, MEMORY, OVERRUN
from controller.operator.child import (
    Answerer,
    AnswerError,
    Child,
    ChildEndedError,
    ChildMemoryError,
    ChildOverranError,
)
from solver.domain.errors import InputError
from solver.domain.moe import ExpertCosts, ExpertInstance, ExpertPlan, ExpertTopology, Migration, Slots

log = structlog.get_logger(__name__)
GRACE_S = 10.0
"""Beyond the solver's own limit, before the child is killed."""
COMPILE_LIMIT_S = 240.0
"""For the kernels of a way to solve that this child has not used yet."""
START_LIMIT_S = 120.0
REFUSED = "SolverRefused"
UNSOUND = "CheckFailed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One problem and how it is to be solved."""

    instance: ExpertInstance
    communication: str
    mode: str
    time_limit_s: float
    seed: int = 0
    previous: Slots | None = None
    max_moved_ratio: float | None = None
    least_gain_s: float = 0.0
    """A move that brings no more than this is refused."""

    @property
    def way(self) -> tuple[str, str, bool]:
        """What decides which kernels are used."""
        return self.communication, self.mode, self.previous is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no answer."""

    reason: str
    message: str


@dataclass(slots=True)
class Placer:
    """The parent's side. `place` is for one thread; `close` for any."""

    memory_mib: int = 4096
    _child: Child = field(init=False)
    _warm: set[tuple[str, str, bool]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._child = Child(
            name="ballast-experts", make=_solver, memory_mib=self.memory_mib, start_limit_s=START_LIMIT_S
        )

    def place(self, task: Task) -> ExpertPlan | Failure:
        """Solve; the child is replaced if it overruns or dies."""
        if self._child.pid is None:
            self._warm = set()
        limit_s = task.time_limit_s + GRACE_S + (0.0 if task.way in self._warm else COMPILE_LIMIT_S)
        try:
            kind, value = self._child.ask(task, limit_s=limit_s)
        except ChildOverranError:
            return _failed(OVERRUN, f"the solver did not answer within {limit_s:g} s and was stopped")
        except ChildMemoryError:
            return _failed(MEMORY, f"the solver needed more than {self.memory_mib} MiB and was stopped")
        except ChildEndedError:
            return _failed(CRASHED, "the solver ended unexpectedly")
        except AnswerError as error:
            return Failure(reason=CRASHED, message=f"the solver failed: {error}")
        if kind == "done":
            self._warm.add(task.way)
            plan: ExpertPlan = value
            return plan
        return Failure(reason=kind, message=str(value))

    def close(self) -> None:
        """Stop the child."""
        self._child.close()


def _failed(reason: str, message: str) -> Failure:
    log.error("experts' solver", reason=reason)
    return Failure(reason=reason, message=f"{message}; the map in force stays, it is tried again later")


def _solver() -> Answerer:
    """Child: solve tasks one after the other."""
    warm: set[tuple[str, str, bool]] = set()

    def answer(task: Task) -> tuple[str, object]:
        try:
            if task.way not in warm:  # compiling is no part of the time to solve
                solved(_toy(task))
                warm.add(task.way)
            return solved(task)
        except InputError as error:
            return REFUSED, str(error)

    return answer


def solved(task: Task) -> tuple[str, object]:
    """Solve a task here: a plan, or what is wrong with it."""
    # here, not above: the operator's own process stays free of the compiler
    from solver.check.experts import check_experts  # noqa: PLC0415
    from solver.experts.place import PlaceOptions, place_experts  # noqa: PLC0415
    from solver.experts.score import move_between, score_map  # noqa: PLC0415

    limited = None if task.previous is None else task.max_moved_ratio
    options = PlaceOptions(
        mode=task.mode,  # type: ignore[arg-type]
        communication=task.communication,  # type: ignore[arg-type]
        seed=task.seed,
        time_limit_s=task.time_limit_s,
        previous=task.previous,
        max_moved_ratio=limited,
    )
    plan = place_experts(task.instance, options=options, clock=time.monotonic)
    faults = check_experts(task.instance, plan, previous=task.previous)
    if faults:
        return UNSOUND, f"the check of the map failed: {faults[0]}"
    if task.previous is None or plan.refused or plan.move is None or not plan.move.moved_ratio:
        return "done", plan
    gain_s = plan.move.net_gain_s
    if gain_s is None or gain_s > task.least_gain_s:
        return "done", plan
    stays = replace(
        plan,
        physical_to_logical=task.previous,
        score=score_map(task.instance, task.previous),
        move=move_between(task.instance, task.previous, task.previous, saved_s=0.0),
        refused=True,
        proposed=plan.move,
    )
    return "done", stays


def _toy(task: Task) -> Task:
    """Return a tiny task that is solved the same way."""
    topology = ExpertTopology(
        gpu_node=(0, 0, 1, 1), slots_per_gpu=(2, 2, 2, 2), gpu_speed=(1.0, 1.0, 1.0, 1.0)
    )
    load = np.arange(1.0, 19.0).reshape(3, 6)
    instance = ExpertInstance(
        name="toy",
        load=load,
        top_k=1,
        transitions=np.ones((2, 6, 6)),
        topology=topology,
        costs=ExpertCosts(
            token_expert_s=1e-6,
            token_copy_bytes=1e4,
            intra_node_bytes_per_s=1e11,
            inter_node_bytes_per_s=1e10,
        ),
        migration=Migration(expert_bytes=1e6, bytes_per_s=1e10, windows=10.0),
    )
    row = np.array([0, 1, 2, 3, 4, 5, 0, 1], dtype=np.int32)
    previous = None if task.previous is None else np.ascontiguousarray(np.tile(row, (3, 1)))
    return replace(task, instance=instance, previous=previous, max_moved_ratio=None, time_limit_s=60.0)
