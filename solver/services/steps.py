"""The way from what runs to what is wanted, one write at a time, without ever losing capacity.

It exists because a plan says where to be, not how to get there: capacity goes up before it goes down, at every
instant ready capacity >= demand (in both phases, where they are split) and GPUs <= limits. It writes nothing;
`next_move` says what may be done now, given what is observed, and the operator and the simulated cluster do it.

Source: the rollout order of platform reference 3.4; Dynamo's issue 12428 shows what happens without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from solver.domain.cluster import ServiceState
from solver.domain.fleet import Role
from solver.services.plan import serves


class StepKind(StrEnum):
    """What a step does to its variant."""

    SCALE_UP = "ScaleUp"
    SCALE_DOWN = "ScaleDown"
    DRAIN = "Drain"
    """Scale to zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """Bring one variant (by index) from so many replicas to so many."""

    variant: int
    from_replicas: int
    to_replicas: int

    @property
    def kind(self) -> StepKind:
        """What it does."""
        if self.to_replicas > self.from_replicas:
            return StepKind.SCALE_UP
        return StepKind.SCALE_DOWN if self.to_replicas else StepKind.DRAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Steps in order, or why there is no way (then ``steps`` is empty)."""

    steps: tuple[RolloutStep, ...] = ()
    refused: str = ""
    swaps: bool = False
    """Some capacity goes down before other comes up, within what the traffic leaves to spare."""


def plan_steps(service: ServiceState, wanted: Sequence[int], free_gpus: Mapping[str, int]) -> Rollout:
    """Order the changes: all that fits goes up first; only where GPUs are short is something taken down before.

    Decode comes up before prefill and goes down after it, so that no prompt is processed for which nobody decodes.

    Parameters
    ----------
    service
        What runs, and the traffic that must be carried all the time.
    wanted
        Replicas by variant.
    free_gpus
        GPUs by pool that nobody holds.
    """
    now = list(service.replicas)
    free = dict(free_gpus)
    steps: list[RolloutStep] = []
    swaps = False

    def take(variant: int, to: int) -> None:
        state = service.variants[variant]
        free[state.pool] = free.get(state.pool, 0) + (now[variant] - to) * state.gpus_per_replica
        steps.append(RolloutStep(variant=variant, from_replicas=now[variant], to_replicas=to))
        now[variant] = to

    decode_last = sorted(range(len(now)), key=lambda index: service.variants[index].role is Role.DECODE)
    decode_first = sorted(range(len(now)), key=lambda index: service.variants[index].role is not Role.DECODE)
    while any(have < want for have, want in zip(now, wanted, strict=True)):
        for index in decode_first:
            state = service.variants[index]
            fits = max(0, free.get(state.pool, 0)) // state.gpus_per_replica
            more = min(wanted[index] - now[index], fits)
            if more > 0:
                take(index, now[index] + more)
        short = [index for index, want in enumerate(wanted) if now[index] < want]
        if not short:
            break
        given = _give_way(service, now, wanted, free, short)
        if given is None:
            needs = ", ".join(
                f"{service.variants[i].gpus_per_replica} in {service.variants[i].pool}"
                f" ({max(0, free.get(service.variants[i].pool, 0))} free)"
                for i in short
            )
            return Rollout(
                refused=f"no free GPUs to add capacity before taking any away: needed at least {needs}"
            )
        swaps = True
        take(*given)
    for index in decode_last:
        if now[index] > wanted[index]:
            take(index, wanted[index])
    return Rollout(steps=_joined(steps), swaps=swaps)


def _give_way(
    service: ServiceState,
    now: Sequence[int],
    wanted: Sequence[int],
    free: Mapping[str, int],
    short: Sequence[int],
) -> tuple[int, int] | None:
    """Fewest replicas of one variant that make room for one more replica of a short one; the rest must carry all."""
    for index in short:
        state = service.variants[index]
        missing = state.gpus_per_replica - max(0, free.get(state.pool, 0))
        for other, giver in enumerate(service.variants):
            if giver.pool != state.pool or now[other] <= wanted[other]:
                continue
            to = now[other] - -(-missing // giver.gpus_per_replica)
            if to < wanted[other]:
                continue
            left = [*now[:other], to, *now[other + 1 :]]
            if serves(service, left):
                return other, to
    return None


def _joined(steps: Sequence[RolloutStep]) -> tuple[RolloutStep, ...]:
    """Join steps of one variant that follow each other."""
    joined: list[RolloutStep] = []
    for step in steps:
        if joined and joined[-1].variant == step.variant:
            joined[-1] = replace(joined[-1], to_replicas=step.to_replicas)
        else:
            joined.append(step)
    return tuple(joined)


class Move(StrEnum):
    """What may be done about a step now."""

    WRITE = "write"
    WAIT = "wait"
    ADVANCE = "advance"
    """It is observed: go on with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextMove:
    """The move and, while waiting, for what."""

    move: Move
    why: str = ""


def next_move(
    service: ServiceState,
    step: RolloutStep,
    *,
    free_gpus: Mapping[str, int],
    fresh: bool,
) -> NextMove:
    """Say what may be done about a step, given the cluster as it is observed now.

    ``fresh`` says whether the traffic is known; capacity is never taken away while it is not. A step whose replicas
    somebody already wrote is not written again.
    """
    state = service.variants[step.variant]
    if step.kind is StepKind.SCALE_UP:
        if state.replicas < step.to_replicas:
            needed = (step.to_replicas - max(state.held, state.replicas)) * state.gpus_per_replica
            free = free_gpus.get(state.pool, 0)
            if needed > free:
                return NextMove(
                    move=Move.WAIT, why=f"{needed} GPUs are needed in {state.pool}, {max(0, free)} are free"
                )
            return NextMove(move=Move.WRITE)
        if state.ready < step.to_replicas:
            return NextMove(
                move=Move.WAIT, why=f"{state.ready} of {step.to_replicas} replicas of {state.name} are ready"
            )
        return NextMove(move=Move.ADVANCE)
    if state.replicas > step.to_replicas:
        if not fresh:
            return NextMove(move=Move.WAIT, why="the traffic is not known, so no capacity is taken away")
        left = [
            min(variant.ready, step.to_replicas if index == step.variant else variant.replicas)
            for index, variant in enumerate(service.variants)
        ]
        if not serves(service, left):
            return NextMove(
                move=Move.WAIT,
                why=f"without {state.replicas - step.to_replicas} replicas of {state.name}"
                " the ready capacity would not carry the traffic",
            )
        ending = _prefill_ending(service)
        if state.role is Role.DECODE and ending and not _decoding(service, left):
            return NextMove(
                move=Move.WAIT,
                why=f"{ending} prefill replicas are ending, and their requests are decoded here",
            )
        return NextMove(move=Move.WRITE)
    if state.held > step.to_replicas:
        return NextMove(
            move=Move.WAIT, why=f"{state.held - step.to_replicas} replicas of {state.name} are ending"
        )
    return NextMove(move=Move.ADVANCE)


def _prefill_ending(service: ServiceState) -> int:
    """Count the prefill replicas that hold GPUs though nobody asks for them."""
    return sum(
        max(0, state.held - state.replicas) for state in service.variants if state.role is Role.PREFILL
    )


def _decoding(service: ServiceState, replicas: Sequence[int]) -> int:
    return sum(
        count for state, count in zip(service.variants, replicas, strict=True) if state.role is Role.DECODE
    )
