"""ExFlow's program: keep tokens where they are between layers, with equal counts of experts, nodes before GPUs.

It exists to reproduce the paper (arXiv 2401.08383) with solvers that need no licence, and as a method to choose where
traffic is all that matters. **Load is not in its model**: hot experts that follow each other end up on one GPU, so that
its maps move the least traffic and may compute far longer than any other method's.

The paper has one variable per profiled token and step, cost[k,s] >= |x[e,c] - x[f,c]|. Tokens that take the same step
cost the same, so the program is written over counts of transitions: maximise the transitions between experts of equal
parts, with as many experts of every layer in a part as it has slots (`affinity_program`). Its linear relaxation always
has crossing 0 (all experts spread evenly), which is why solvers prove nothing about it; `least_crossing` bounds it
by what an expert's partners allow: at most the m largest of its transitions stay in a part of m slots.

Staged as in the paper: nodes first, then GPUs within each node. Parts are any number and any sizes (the published
recursive bisection is wrong for numbers that are not powers of two). Without a backend the stages are solved by local
search from several starts.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Program, SolveLimits
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance, Floats, ProgramAnswer
from solver.experts.answers import MethodAnswer
from solver.experts.kernels.affinity import keep_together

Numbers = npt.NDArray[np.int64]

STARTS = 6
STARTS_EXPERTS = 256
"""Layers of few experts are searched from more starts: this over their number."""
SWEEPS = 60


def place_by_exflow(
    instance: ExpertInstance, *, deadline: Deadline, backend: BackendName | None = None, seed: int = 0
) -> MethodAnswer:
    """Return the map of both stages, and the shares of transitions that cross nodes and GPUs, with their bounds.

    Parameters
    ----------
    backend
        Solve each stage as an integer program in this backend, for small problems only. None: local search.
    seed
        Of the search's starts. The answer hangs on the time only where the deadline passes.

    Raises
    ------
    InputError
        If there are more slots than experts (the program makes no replicas), or transitions are not known.
    """
    if instance.slots > instance.experts:
        raise InputError(
            f"ExFlow makes no replicas, and {instance.slots} slots are more than {instance.experts} experts",
            where="slots_per_gpu",
            right="give as many slots as experts, or use --method ballast",
        )
    transitions = instance.transitions
    if transitions is None:
        raise InputError(
            "ExFlow needs the transitions between layers, which are not known",
            where="trans",
            right="record them, or use --method ballast",
        )
    topology = instance.topology
    gpu_slots = np.array(topology.slots_per_gpu, dtype=np.int64)
    node_of = topology.node_index.astype(np.int64)
    total = float(transitions.sum())
    programs: list[ProgramAnswer] = []
    stages: list[tuple[Literal["nodes", "GPUs"], Numbers, Numbers]] = []
    if topology.nodes > 1:
        node_slots = np.bincount(node_of, weights=gpu_slots).astype(np.int64)
        stages.append(("nodes", node_slots, np.zeros(topology.nodes, dtype=np.int64)))
    stages.append(("GPUs", gpu_slots, node_of))
    among = np.zeros((instance.layers, instance.experts), dtype=np.int64)
    for stage, (name, slots, group_of) in enumerate(stages):
        until = deadline.sooner(deadline.remaining_s() / (len(stages) - stage))
        part, proved = _solve_stage(
            transitions, slots, group_of, among, deadline=until, backend=backend, seed=seed
        )
        crossing = crossing_transitions(transitions, part)
        least = min(crossing, max(least_crossing(transitions, slots), proved))
        programs.append(
            ProgramAnswer(
                name=f"transitions between {name}",
                unit="share of all",
                objective=crossing / total if total else 0.0,
                lower_bound=least / total if total else 0.0,
            )
        )
        among = part
    p2l = np.argsort(among, axis=1, kind="stable").astype(np.int32)
    return MethodAnswer(physical_to_logical=np.ascontiguousarray(p2l), programs=tuple(programs))


def _solve_stage(
    transitions: Floats,
    slots: Numbers,
    group_of: Numbers,
    among: Numbers,
    *,
    deadline: Deadline,
    backend: BackendName | None,
    seed: int,
) -> tuple[Numbers, float]:
    """Solve one stage: part of every expert [L, E], each inside its group of ``among``; and what a backend proved.

    Within groups a backend proves nothing about other groups: then the proof is 0.
    """
    best: Numbers | None = None
    proved = 0.0
    if backend is not None:
        program = affinity_program(transitions, slots, group_of, among)
        limits = SolveLimits(time_limit_s=deadline.remaining_s())
        solution = solve_program(program, limits, backend=backend)
        if solution.found:
            chosen = solution.values[: among.size * slots.size].reshape(*among.shape, slots.size)
            best = np.asarray(chosen.argmax(axis=2), dtype=np.int64)
        if not group_of.any():
            proved = max(0.0, solution.bound)
    rng = np.random.default_rng(seed)
    most = -1.0 if best is None else float(transitions.sum()) - crossing_transitions(transitions, best)
    for start in range(max(STARTS, STARTS_EXPERTS // among.shape[1])):
        if start and deadline.passed():
            break
        part = _start(slots, group_of, among, rng if start else None)
        kept = keep_together(part, among, transitions, slots.size, SWEEPS)
        if kept > most:
            best, most = part, kept
    assert best is not None  # noqa: S101 - the first start is always made
    return best, proved


def _start(slots: Numbers, group_of: Numbers, among: Numbers, rng: np.random.Generator | None) -> Numbers:
    """Fill the parts of each group in order, with experts in order or at random."""
    part = np.empty_like(among)
    for layer, groups in enumerate(among):
        order = np.arange(groups.size) if rng is None else rng.permutation(groups.size)
        for group in np.unique(group_of):
            members = order[groups[order] == group]
            parts = np.flatnonzero(group_of == group)
            part[layer, members] = np.repeat(parts, slots[parts])
    return part


def crossing_transitions(transitions: Floats, part: Numbers) -> float:
    """Return the transitions between experts of different parts, [L, E]."""
    return float(
        sum(
            pairs[here[:, None] != there[None, :]].sum()
            for pairs, here, there in zip(transitions, part[:-1], part[1:], strict=True)
        )
    )


def least_crossing(transitions: Floats, slots: Numbers) -> float:
    """Return how many transitions cross parts of so many slots at least, whatever the parts."""
    apart = max(0, transitions.shape[1] - int(slots.max()))
    return float(
        sum(
            max(np.sort(pairs, axis=axis).take(range(apart), axis=axis).sum() for axis in (0, 1))
            for pairs in transitions
        )
    )


def affinity_program(transitions: Floats, slots: Numbers, group_of: Numbers, among: Numbers) -> Program:
    """Write the program of one stage: x[l,e,c] first, row by row, then what each kind of transition pays, 0 to 1."""
    program = Program()
    layers, experts = among.shape
    parts = slots.size
    x = [
        [
            [
                program.add_variable(upper=float(group_of[c] == among[layer, e]), integer=True)
                for c in range(parts)
            ]
            for e in range(experts)
        ]
        for layer in range(layers)
    ]
    for layer in range(layers):
        for row in x[layer]:
            program.add_row(row, [1.0] * parts, lower=1.0, upper=1.0)
        for c in range(parts):
            column = [x[layer][e][c] for e in range(experts)]
            program.add_row(column, [1.0] * experts, lower=float(slots[c]), upper=float(slots[c]))
    for step, e, f in np.argwhere(transitions > 0).tolist():
        crosses = program.add_variable(upper=1.0, cost=float(transitions[step, e, f]))
        for c in range(parts):
            program.add_row([x[step][e][c], x[step + 1][f][c], crosses], [1.0, -1.0, -1.0], upper=0.0)
            program.add_row([x[step][e][c], x[step + 1][f][c], crosses], [-1.0, 1.0, -1.0], upper=0.0)
    return program
