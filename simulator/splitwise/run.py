"""Runs requests through a fleet by the phase-splitting peer's exact rules (step model ``splitwise-compat``).

It exists as the door to that engine: it lays out the arrays, lets the kernel run, gives it more room when it asks, and
hands back the record that every engine hands back. It reads no file and judges nothing.

Beside the peer's rules it has four of its own, none of which acts in the peer's recorded runs: a request that no
machine could ever hold is rejected (the peer would block its machine for ever), a request of one output token ends with
its prompt, iterations that end at the instant of an arrival are not made one longer, and a run ends when all that is
left are transfers for which nothing can make room any more (the peer would try for ever).

Joules: a machine draws its idle watts while no iteration runs, its prompt watts in every iteration that holds a prompt,
its token watts in iterations of decodes only (GPUs only: the peer knows no other watts). A request whose KV waits to
be moved or is being moved is present, and waiting, where its prompt ran.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.record import RunRecord, Series
from simulator.splitwise import layout as at
from simulator.splitwise.kernel import NEEDS_BLOCKS, NEEDS_SLOTS, OVERLOADED, advance, close_books
from simulator.splitwise.machines import (
    STEP_KNOTS_TOKENS,
    SplitwiseFleet,
    SplitwiseMachine,
    SplitwiseRole,
    SplitwiseScheduler,
    StepTimes,
)
from solver.domain.errors import InputError
from solver.domain.trace import Floats, Requests

LATE_RATIO = 2.5
"""A request is late after so many times the seconds it would take alone on the fleet's slowest machine."""

_FIRST_SLOTS = 4096
_SPARE_BLOCKS = 16
_SAMPLES = 256
_LARGEST_MACHINES = 32_767
_LARGEST_TOKENS = 10**9
_LISTS = {
    SplitwiseRole.PROMPT: at.PROMPT_LIST,
    SplitwiseRole.MIXED: at.MIXED_LIST,
    SplitwiseRole.TOKEN: at.TOKEN_LIST,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesExercised:
    """How often the rarer rules acted (docs/splitwise-rules.md)."""

    moves_to_mixed: int
    moves_back: int
    preempted_4: int
    """Tasks taken first because they had been passed over too often."""
    memory_stops: int
    transfer_retries: int
    source_wakeups: int
    preemptions: int
    """Decodes put out of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitwiseRun:
    """A record, and which rules made it."""

    record: RunRecord
    rules: RulesExercised


def simulate_splitwise(
    fleet: SplitwiseFleet,
    requests: Requests,
    *,
    stop_when_overloaded: bool = False,
    series_bins: int = 400,
) -> RunRecord:
    """Serve requests by the peer's rules; parameters as in `run_splitwise`."""
    return run_splitwise(
        fleet, requests, stop_when_overloaded=stop_when_overloaded, series_bins=series_bins
    ).record


def run_splitwise(
    fleet: SplitwiseFleet,
    requests: Requests,
    *,
    stop_when_overloaded: bool = False,
    series_bins: int = 400,
) -> SplitwiseRun:
    """Serve requests by the peer's rules and count how often the rarer ones acted.

    Parameters
    ----------
    stop_when_overloaded
        Break the run off once more than a tenth of all requests of the trace are certainly late: still in the system
        after `LATE_RATIO` times what they would take alone on the slowest machine. Whatever follows, at least a
        tenth of the requests then miss that time, so no limit below it on the p90 of the slowdown can be met.
    series_bins
        Upper bound of the number of bins of the series; even.

    Raises
    ------
    InputError
        If the fleet or the requests make no sense together.
    """
    _check(fleet, requests)
    parts = _parts(fleet, requests, stop_when_overloaded=stop_when_overloaded, series_bins=series_bins)
    world = at.world_of(parts)
    code = advance(world)
    while code in (NEEDS_SLOTS, NEEDS_BLOCKS):
        parts = _with_more_slots(parts) if code == NEEDS_SLOTS else _with_more_blocks(parts)
        world = at.world_of(parts)
        code = advance(world)
    close_books(world)
    return SplitwiseRun(
        record=_record(parts, stopped_early=code == OVERLOADED),
        rules=RulesExercised(
            moves_to_mixed=int(parts.counts[at.MOVES_TO_MIXED]),
            moves_back=int(parts.counts[at.MOVES_BACK]),
            preempted_4=int(parts.counts[at.PREEMPTED_OFTEN]),
            memory_stops=int(parts.counts[at.MEMORY_STOPS]),
            transfer_retries=int(parts.counts[at.TRANSFER_RETRIES]),
            source_wakeups=int(parts.counts[at.SOURCE_WAKEUPS]),
            preemptions=int(parts.counts[at.PREEMPTIONS]),
        ),
    )


def alone_s(machine: SplitwiseMachine, model: str, requests: Requests) -> Floats:
    """Seconds from arrival to last token of each request, were it alone on a machine."""
    times = machine.step_times[model]
    first = np.ones(1)
    decode_s = float(_step_s(times.token_s, first)[0])
    seconds: Floats = _step_s(times.prompt_s, requests.prompt_tokens.astype(np.float64)) + decode_s * (
        requests.output_tokens - 1
    )
    return seconds


def _step_s(values: tuple[float, ...], tokens: Floats) -> Floats:
    knots, seconds = np.array(STEP_KNOTS_TOKENS, dtype=np.float64), np.array(values)
    index = np.clip(np.searchsorted(knots, tokens, side="left"), 1, len(knots) - 1)
    slope = (seconds[index] - seconds[index - 1]) / (knots[index] - knots[index - 1])
    result: Floats = slope * (tokens - knots[index - 1]) + seconds[index - 1]
    return result


def _check(fleet: SplitwiseFleet, requests: Requests) -> None:
    for group in fleet.groups:
        if group.count < 0:
            raise InputError(f"{group.count} machines of kind {group.machine.name}", right="0 or more")
        if fleet.model.name not in group.machine.step_times:
            raise InputError(
                f"no step times of {fleet.model.name} on {group.machine.name}",
                right=f"one of {', '.join(sorted(group.machine.step_times))}",
            )
        if group.machine.memory_bytes <= fleet.model.weights_bytes:
            raise InputError(
                f"{fleet.model.name} does not fit {group.machine.name}", right="a machine with more memory"
            )
    if not 1 <= fleet.machines <= _LARGEST_MACHINES:
        raise InputError(f"a fleet of {fleet.machines} machines", right=f"1 to {_LARGEST_MACHINES:,}")
    for name in ("max_batch", "max_batch_tokens", "max_preemptions"):
        if getattr(fleet, name) < 1:
            raise InputError(f"{name} of {getattr(fleet, name)}", right="at least 1")
    if not 0 < fleet.link_bytes_per_s < math.inf:
        raise InputError(f"a link of {fleet.link_bytes_per_s:g} bytes/s", right="a bandwidth above 0")
    if not len(requests):
        raise InputError("no request to simulate", right="a trace with at least one request")
    times = requests.arrival_s
    if not np.all(np.isfinite(times)) or times[0] < 0.0 or np.any(np.diff(times) < 0.0):
        raise InputError(
            "arrivals go back in time, or are not finite", right="arrivals that never fall, from 0"
        )
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(requests, name)
        if tokens.min() < 1 or tokens.max() > _LARGEST_TOKENS:
            raise InputError(
                f"{name} between {tokens.min()} and {tokens.max()}", right=f"1 to {_LARGEST_TOKENS:,}"
            )


def _frozen(array: NDArray[Any], kind: type) -> NDArray[Any]:
    """Return a contiguous read-only array: one type for the compiler, whatever the caller has."""
    view: NDArray[Any] = np.ascontiguousarray(array, dtype=kind).view()
    view.flags.writeable = False
    return view


def _parts(
    fleet: SplitwiseFleet, requests: Requests, *, stop_when_overloaded: bool, series_bins: int
) -> at.Parts:
    total, machines = len(requests), fleet.machines
    reals = np.zeros(at.RUN_REALS)
    reals[at.BIN_S] = max(1.0, float(requests.arrival_s[-1])) / (series_bins // 2)
    reals[at.LINK_BYTES_PER_S] = fleet.link_bytes_per_s
    slots = min(_FIRST_SLOTS, total)
    slot_counts = np.zeros((slots, at.SLOT_COUNTS), dtype=np.int64)
    slot_counts[:, at.REQUEST] = at.NONE
    slot_counts[:, at.REQUEST_NEXT] = np.append(np.arange(1, slots), at.NONE)
    blocks = machines + 2 * fleet.max_batch + _SPARE_BLOCKS
    block_rows = np.zeros((blocks, 3), dtype=np.int64)
    block_rows[:, at.BLOCK_NEXT] = np.append(np.arange(1, blocks), at.NONE)
    machine_counts = _machine_counts(fleet)
    lists = np.full((3, machines), at.NONE, dtype=np.int64)
    counts = np.zeros(at.RUN_COUNTS, dtype=np.int64)
    for which in (at.PROMPT_LIST, at.MIXED_LIST, at.TOKEN_LIST):
        members = np.flatnonzero(machine_counts[:, at.HOME] == which)
        lists[which, : len(members)] = members
        counts[at.PROMPT_LISTED + which] = len(members)
    for column, value in (
        (at.BLOCKS_LEFT, blocks),
        (at.MAX_BATCH, fleet.max_batch),
        (at.MAX_BATCH_TOKENS, fleet.max_batch_tokens),
        (at.MAX_PREEMPTIONS, fleet.max_preemptions),
        (at.PROMPT_LIMIT, fleet.prompt_limit_tokens),
        (at.TOKEN_JSQ, fleet.scheduler is SplitwiseScheduler.TOKEN_JSQ),
        (at.KV_BYTES, fleet.model.kv_bytes_per_token),
        (
            at.LARGEST_REQUEST_BYTES,
            max(g.machine.memory_bytes for g in fleet.groups if g.count) - fleet.model.weights_bytes,
        ),
        (at.STOP_OVERLOADED, stop_when_overloaded),
    ):
        counts[column] = value
    machine_reals = np.zeros((machines, at.MACHINE_REALS))
    machine_reals[:, at.END_S] = math.inf
    scheduled = np.zeros((2, machines), dtype=np.int64)
    scheduled[at.SCHEDULED_BYTES] = fleet.model.weights_bytes
    samples = min(_SAMPLES, total)
    sample_at = -(-np.arange(1, samples + 1) * total // samples) - 1
    outcome = np.full((at.OUTCOME_REALS, total), np.nan)
    outcome[at.REQUEST_J] = 0.0
    return at.Parts(
        reals=reals,
        counts=counts,
        arrival_s=_frozen(requests.arrival_s, np.float64),
        prompt_tokens=_frozen(requests.prompt_tokens, np.int64),
        output_tokens=_frozen(requests.output_tokens, np.int64),
        machine_reals=machine_reals,
        machine_counts=machine_counts,
        scheduled=scheduled,
        batch=np.zeros((machines, fleet.max_batch), dtype=np.int32),
        chosen=np.zeros(fleet.max_batch, dtype=np.int32),
        lists=lists,
        winners=_tournament(machines),
        slot_reals=np.zeros((slots, at.SLOT_REALS)),
        slot_counts=slot_counts,
        moves=np.zeros(slots, dtype=np.int64),
        items=np.empty((blocks, at.BLOCK_ITEMS), dtype=np.int32),
        blocks=block_rows,
        search=np.empty((2, blocks), dtype=np.int64),
        steps_s=np.array([_steps(g.machine.step_times[fleet.model.name]) for g in fleet.groups]),
        watts=np.array(
            [
                [
                    g.machine.gpus * w
                    for w in (g.machine.idle_w_per_gpu, g.machine.prompt_w_per_gpu, g.machine.token_w_per_gpu)
                ]
                for g in fleet.groups
            ]
        ),
        outcome=outcome,
        served_by=np.full((2, total), at.NONE, dtype=np.int16),
        preemptions=np.zeros(total, dtype=np.int16),
        marks=np.zeros((2, total), dtype=np.int8),
        sample_at=sample_at,
        backlog=np.zeros(samples),
        timely=_timely(fleet, requests, sample_at) if stop_when_overloaded else np.zeros(samples),
        series=np.zeros((len(fleet.groups), at.SERIES_ROWS, series_bins)),
    )


def _machine_counts(fleet: SplitwiseFleet) -> at.Counts:
    """Return the machines' first state; a group is a pool and, because groups may differ in anything, a kind."""
    rows = np.zeros((fleet.machines, at.MACHINE_COUNTS), dtype=np.int64)
    first = 0
    for number, group in enumerate(fleet.groups):
        last = first + group.count
        home = at.MIXED_LIST if fleet.scheduler is SplitwiseScheduler.TOKEN_JSQ else _LISTS[group.role]
        rows[first:last, [at.KIND, at.POOL]] = number
        rows[first:last, at.CAPACITY] = group.machine.memory_bytes
        rows[first:last, [at.HOME, at.LIST]] = home
        first = last
    rows[:, at.MEMORY] = fleet.model.weights_bytes
    rows[:, at.NEXT_END] = 1 << 60
    for column in (
        at.PENDING_FIRST,
        at.PENDING_LAST,
        at.REQUEST_FIRST,
        at.REQUEST_LAST,
        at.QUEUE_FIRST,
        at.QUEUE_LAST,
        at.BLOCKED_FIRST,
        at.BLOCKED_LAST,
    ):
        rows[:, column] = at.NONE
    return rows


def _tournament(machines: int) -> at.Counts:
    """Return the order of the machines' events while there is none: the first machine leads everywhere."""
    leaves = 1 << max(0, machines - 1).bit_length()
    winners = np.full(2 * leaves, at.NONE, dtype=np.int64)
    winners[leaves : leaves + machines] = np.arange(machines)
    for node in range(leaves - 1, 0, -1):
        winners[node] = winners[2 * node]
    return winners


def _steps(times: StepTimes) -> Floats:
    """Return knots, values and the slopes that lead up to each knot."""
    knots = np.array(STEP_KNOTS_TOKENS, dtype=np.float64)
    rows = [knots]
    for values in (times.prompt_s, times.token_s):
        seconds = np.array(values)
        rows += [seconds, np.append(0.0, np.diff(seconds) / np.diff(knots))]
    return np.array(rows)


def _timely(fleet: SplitwiseFleet, requests: Requests, sample_at: at.Counts) -> Floats:
    """Count the requests that may be in the system at the sampled arrivals without being late."""
    slowest_s = np.max(
        [alone_s(group.machine, fleet.model.name, requests) for group in fleet.groups if group.count], axis=0
    )
    due_s = np.sort(requests.arrival_s + LATE_RATIO * slowest_s)
    past_due = np.searchsorted(due_s, requests.arrival_s[sample_at], side="right")
    timely: Floats = (sample_at + 1 - past_due).astype(np.float64)
    return timely


def _with_more_slots(parts: at.Parts) -> at.Parts:
    """Double the room for requests in the system; what is under way stays where it is."""
    slots = len(parts.slot_counts)
    slot_counts = np.concatenate((parts.slot_counts, np.zeros_like(parts.slot_counts)))
    slot_counts[slots:, at.REQUEST] = at.NONE
    slot_counts[slots:, at.REQUEST_NEXT] = np.append(
        np.arange(slots + 1, 2 * slots), parts.counts[at.FREE_SLOT]
    )
    parts.counts[at.FREE_SLOT] = slots
    return parts._replace(
        slot_counts=slot_counts,
        slot_reals=np.concatenate((parts.slot_reals, np.zeros_like(parts.slot_reals))),
        moves=np.concatenate((parts.moves, np.zeros_like(parts.moves))),
    )


def _with_more_blocks(parts: at.Parts) -> at.Parts:
    """Double the room for pending tasks; what is under way stays where it is."""
    blocks = len(parts.blocks)
    block_rows = np.concatenate((parts.blocks, np.zeros_like(parts.blocks)))
    block_rows[blocks:, at.BLOCK_NEXT] = np.append(
        np.arange(blocks + 1, 2 * blocks), parts.counts[at.FREE_BLOCK]
    )
    parts.counts[at.FREE_BLOCK] = blocks
    parts.counts[at.BLOCKS_LEFT] += blocks
    items = np.empty((2 * blocks, at.BLOCK_ITEMS), dtype=np.int32)
    items[:blocks] = parts.items
    return parts._replace(blocks=block_rows, items=items, search=np.empty((2, 2 * blocks), dtype=np.int64))


def _record(parts: at.Parts, *, stopped_early: bool) -> RunRecord:
    reals = parts.machine_reals
    horizon_s, bin_s = float(parts.reals[at.NOW_S]), float(parts.reals[at.BIN_S])
    used = max(1, min(parts.series.shape[2], math.ceil(horizon_s / bin_s)))
    bins = parts.series[:, :, :used] / bin_s
    covered = np.clip(horizon_s / bin_s - np.arange(used), 0.0, 1.0)
    pools = parts.machine_counts[:, at.POOL].copy()
    up = np.bincount(pools, minlength=len(parts.series))[:, None] * covered
    running = bins[:, at.RUNNING_BIN]
    return RunRecord(
        prefill_instance=parts.served_by[0],
        decode_instance=parts.served_by[1],
        queue_s=parts.outcome[at.QUEUE_S],
        ttft_s=parts.outcome[at.TTFT_S],
        e2e_s=parts.outcome[at.E2E_S],
        energy_j=parts.outcome[at.REQUEST_J],
        preemptions=parts.preemptions,
        status=parts.marks[0],
        reject_reason=parts.marks[1],
        pool_of_instance=pools,
        busy_s=reals[:, at.BUSY_S].copy(),
        up_s=np.full(len(reals), horizon_s),
        energy_j_of_instance=reals[:, at.IDLE_J] + reals[:, at.BUSY_J],
        idle_j=reals[:, at.IDLE_J].copy(),
        occupancy_request_s=reals[:, at.OCCUPANCY_S].copy(),
        prompt_tokens_done=reals[:, at.PROMPT_TOKENS_DONE].copy(),
        output_tokens_done=reals[:, at.OUTPUT_TOKENS_DONE].copy(),
        series=Series(
            bin_s=bin_s,
            power_w=bins[:, at.ENERGY_BIN],
            running=running,
            waiting=np.maximum(bins[:, at.PRESENT_BIN] - running, 0.0),
            busy=bins[:, at.BUSY_BIN],
            up=up,
        ),
        transfers=int(parts.counts[at.TRANSFERS]),
        transfer_bytes=float(parts.reals[at.TRANSFER_BYTES]),
        iterations=int(parts.counts[at.ITERATIONS]),
        segments=int(parts.counts[at.SEGMENTS]),
        end_time_s=float(parts.reals[at.LAST_COMPLETION_S]),
        horizon_s=horizon_s,
        backlog_at_arrivals=parts.backlog[: int(parts.counts[at.SAMPLES])],
        stopped_early=stopped_early,
    )
