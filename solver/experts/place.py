"""Places the experts of a model: the one way in for commands, simulator and operator.

It exists to choose the method, to hold a found map against the one in force, and to state what is known about the
answer: its score, its bound, what moving takes. It searches nothing itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from solver.domain.deadline import Clock, Deadline
from solver.domain.errors import InputError
from solver.domain.moe import (
    Communication,
    ExpertInstance,
    ExpertPlan,
    ExpertPlanStatus,
    Floats,
    Move,
    ProgramAnswer,
    Slots,
    check_map,
)
from solver.experts.bounds import lower_bounds_s
from solver.experts.duplicates import without_duplicates
from solver.experts.eplb import place_by_eplb
from solver.experts.exact import place_exactly
from solver.experts.exflow import place_by_exflow
from solver.experts.moetuner import place_by_moetuner
from solver.experts.repair import repairs
from solver.experts.score import move_between, score_map
from solver.experts.search import search

Method = Literal["ballast", "moetuner", "exflow", "eplb"]
Mode = Literal["fast", "full", "exact"]

EXACT_SHARE = 0.5
"""Share of the time for a proof; the rest is for a good map without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceOptions:
    """How to place."""

    method: Method = "ballast"
    mode: Mode = "fast"
    communication: Communication = "transition"
    seed: int = 0
    time_limit_s: float = 60.0
    previous: Slots | None = None
    """The map in force, [L, S]."""
    max_moved_ratio: float | None = None
    """At most this share of holdings may be fetched; needs ``previous``."""

    def __post_init__(self) -> None:
        """Refuse a limit on moves from nowhere."""
        if self.max_moved_ratio is None:
            return
        if self.previous is None:
            raise InputError(
                "a limit on moves needs the map in force",
                where="max-moved",
                right="give --previous MAP as well",
            )
        if not 0.0 <= self.max_moved_ratio <= 1.0:
            raise InputError(f"{self.max_moved_ratio:g}", where="max-moved", right="it must be from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """A map and what is known of it beside its score."""

    p2l: Slots
    proved: bool = False
    programs: tuple[ProgramAnswer, ...] = ()
    cut_short: bool = False


def place_experts(instance: ExpertInstance, *, options: PlaceOptions, clock: Clock) -> ExpertPlan:
    """Find a map and say how good it is.

    With a map in force the answer is the best of: fewest changes at several prices, and a map from scratch; by net
    gain where the instance says what moving costs, else by objective. If better maps were found but no net gain is
    above 0, the map in force is the answer, and ``refused`` says so.

    Raises
    ------
    InputError
        Transitions asked for but not known; a method that cannot express the instance; a map in force that does not
        fit.
    """
    deadline = Deadline.after(options.time_limit_s, clock)
    if options.communication == "transition" and instance.transitions is None and instance.layers > 1:
        raise InputError(
            "transitions between layers are not known",
            where="trans",
            right="record them, or use --comm dispatch",
        )
    bounds = lower_bounds_s(instance, options.communication)
    if options.previous is None:
        found = _from_scratch(instance, options, deadline)
        return _plan(instance, options, found, bounds)
    previous = check_map(instance, options.previous)
    return _from_previous(instance, options, previous, bounds, deadline)


def _from_scratch(instance: ExpertInstance, options: PlaceOptions, deadline: Deadline) -> _Found:
    if options.method == "eplb":
        # the rule may put an expert twice on a GPU, which engines refuse
        found = place_by_eplb(instance, communication=options.communication)
        return _Found(p2l=without_duplicates(instance, found))
    if options.method in {"moetuner", "exflow"}:
        place = place_by_moetuner if options.method == "moetuner" else place_by_exflow
        answer = place(instance, deadline=deadline)
        return _Found(p2l=answer.physical_to_logical, programs=answer.programs, cut_short=deadline.passed())
    if options.mode != "fast":
        exact = place_exactly(
            instance, options.communication, deadline.sooner(EXACT_SHARE * deadline.remaining_s())
        )
        if exact is not None:
            return _Found(p2l=exact, proved=True)
    found = search(
        instance, options.communication, full=options.mode != "fast", seed=options.seed, deadline=deadline
    )
    return _Found(p2l=found, cut_short=deadline.passed())


def _from_previous(
    instance: ExpertInstance, options: PlaceOptions, previous: Slots, bounds: Floats, deadline: Deadline
) -> ExpertPlan:
    old_s = score_map(instance, previous).objective_s(options.communication)
    best: tuple[float, _Found, Move] | None = None
    for found in _candidates(instance, options, previous, deadline):
        now_s = score_map(instance, found.p2l).objective_s(options.communication)
        move = move_between(instance, previous, found.p2l, saved_s=old_s - now_s)
        if now_s >= old_s or not move.moved_ratio:
            continue
        if options.max_moved_ratio is not None and move.moved_ratio > options.max_moved_ratio + 1e-12:
            continue
        gain_s = old_s - now_s if move.net_gain_s is None else move.net_gain_s
        if best is None or gain_s > best[0]:
            best = (gain_s, found, move)
    if best is not None and best[0] > 0.0:
        return replace(_plan(instance, options, best[1], bounds), move=best[2])
    nothing = move_between(instance, previous, previous, saved_s=0.0)
    stay = replace(_plan(instance, options, _Found(p2l=previous), bounds), move=nothing)
    return stay if best is None else replace(stay, refused=True, proposed=best[2])


def _candidates(
    instance: ExpertInstance, options: PlaceOptions, previous: Slots, deadline: Deadline
) -> Iterator[_Found]:
    if options.method == "ballast":
        for p2l in repairs(
            instance,
            options.communication,
            previous,
            max_moved_ratio=options.max_moved_ratio,
            full=options.mode != "fast",
            seed=options.seed,
            deadline=deadline,
        ):
            yield _Found(p2l=p2l)
    yield _aligned(instance, _from_scratch(instance, options, deadline), previous)


def _aligned(instance: ExpertInstance, found: _Found, previous: Slots) -> _Found:
    """Keep experts that stay on their GPU in the slots they have: engines move only what changed slots."""
    p2l = found.p2l.copy()
    first = 0
    for count in instance.topology.slots_per_gpu:
        for before, row in zip(
            previous[:, first : first + count], p2l[:, first : first + count], strict=True
        ):
            row[:] = in_old_slots(before, row)
        first += count
    return replace(found, p2l=p2l)


def in_old_slots(before: Slots, row: Slots) -> Slots:
    """Return ``row`` reordered so that what ``before`` holds too stands where it stood."""
    left = list(row)
    placed = np.full(row.shape, -1, dtype=np.int32)
    for s, e in enumerate(before):
        if e in left:
            left.remove(e)
            placed[s] = e
    placed[placed < 0] = left
    return placed


def _plan(instance: ExpertInstance, options: PlaceOptions, found: _Found, bounds: Floats) -> ExpertPlan:
    score = score_map(instance, found.p2l)
    objective_s = score.objective_s(options.communication)
    bound_s = min(float(bounds.sum()), objective_s)  # rounding only: a bound never exceeds a map's cost
    if found.proved:
        bound_s = objective_s
    proved = found.proved or objective_s - bound_s <= 1e-9 * max(objective_s, 1e-15)
    return ExpertPlan(
        instance_name=instance.name,
        status=ExpertPlanStatus.OPTIMAL if proved else ExpertPlanStatus.FEASIBLE,
        method=options.method,
        communication=options.communication,
        physical_to_logical=found.p2l,
        score=score,
        lower_bound_s=bound_s,
        lower_bound_by_layer_s=tuple((float(compute), float(links)) for compute, links in bounds),
        programs=found.programs,
        cut_short=found.cut_short and not proved,
    )
