"""The event loop by the phase-splitting peer's rules: arrivals and their routing, transfers, ends of iterations.

It exists to state the peer's events, routing and transfers (docs/splitwise-rules.md); what happens on one machine is in
`simulator.splitwise.batching`. Events at equal times: arrivals, then transfers, then ends of iterations, then in the
order in which they were made. The loop can pause for more room and go on where it was, because all state lies in the
`World`.
"""

import math

from simulator.splitwise.accounting import book_busy, book_idle, touch
from simulator.splitwise.batching import arrive, cut, pass_iterations, start_iteration
from simulator.splitwise.layout import (
    ARRIVAL_S,
    BATCH,
    BATCH_PROMPTS,
    BATCH_TOKENS,
    BLOCKS_LEFT,
    CAPACITY,
    COUNTER,
    CUT,
    DECODE_AT,
    DECODE_BYTES,
    E2E_S,
    END_COUNT,
    END_S,
    FREE_SLOT,
    HELD_BYTES,
    HOME,
    IN_SYSTEM,
    KV_BYTES,
    LARGEST_REQUEST_BYTES,
    LAST_COMPLETION_S,
    LINK_BYTES_PER_S,
    LIST,
    MARK_J,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MEMORY,
    MIXED_LIST,
    MOVE_EVENT,
    MOVE_S,
    MOVE_UNDER_WAY,
    MOVE_WAITS,
    MOVES,
    MOVES_BACK,
    MOVES_TO_MIXED,
    MOVING,
    NEXT_ARRIVAL,
    NEXT_END,
    NONE,
    NOW_S,
    OUTPUT,
    PASSED,
    PENDING,
    PENDING_FIRST,
    PRESENT,
    PROMPT,
    PROMPT_AT,
    PROMPT_BYTES,
    PROMPT_DONE,
    PROMPT_LIMIT,
    PROMPT_LIST,
    PROMPT_LISTED,
    QUEUED,
    REQUEST,
    REQUEST_J,
    REQUEST_NEXT,
    REQUESTS,
    RUNNING,
    SAMPLES,
    SCHEDULED_BYTES,
    SCHEDULED_TOKENS,
    SEQUENCE,
    SEQUENCE_J,
    SOURCE_WAKEUPS,
    STARTS,
    STATE,
    STOP_OVERLOADED,
    TAKEN_J,
    TOKEN_JSQ,
    TOKEN_LIST,
    TRANSFER_BYTES,
    TRANSFER_RETRIES,
    TRANSFERS,
    TTFT_S,
    UNDER_WAY,
    World,
)
from simulator.splitwise.pending import (
    join_requests,
    leave_requests,
    pop_move,
    push_move,
    replay_tournament,
)
from solver.compiled import compiled

FINISHED, NEEDS_SLOTS, NEEDS_BLOCKS, OVERLOADED = range(4)
COMPLETED, REJECTED = 1, 2
TOO_LONG = 1
_RETRY_S = 1.0
_LATE_SHARE = 0.1
_FAR = 1 << 60


# -- routing -----------------------------------------------------------------------------------------------------------


@compiled
def _least(w: World, which: int, row: int) -> int:
    """Return the machine of a list with the least scheduled, the first of equal ones; NONE if the list is empty."""
    best = NONE
    least = 0
    for at in range(w.counts[PROMPT_LISTED + which]):
        machine = w.lists[which, at]
        if best == NONE or w.scheduled[row, machine] < least:
            best = machine
            least = w.scheduled[row, machine]
    return best


@compiled
def _move_to(w: World, machine: int, which: int) -> None:
    """Move a machine to the end of another list."""
    old = w.machine_counts[machine, LIST]
    last = w.counts[PROMPT_LISTED + old] - 1
    at = 0
    while w.lists[old, at] != machine:
        at += 1
    for place in range(at, last):
        w.lists[old, place] = w.lists[old, place + 1]
    w.counts[PROMPT_LISTED + old] = last
    w.lists[which, w.counts[PROMPT_LISTED + which]] = machine
    w.counts[PROMPT_LISTED + which] += 1
    w.machine_counts[machine, LIST] = which


@compiled
def _mixed_pool(w: World, slot: int) -> tuple[int, int]:
    """Find the machines of a request's prompt and decode."""
    prompt_at = NONE
    for which in (PROMPT_LIST, MIXED_LIST):
        best = _least(w, which, SCHEDULED_TOKENS)
        if best != NONE and (
            w.machine_counts[best, PENDING] == 0
            or w.scheduled[SCHEDULED_TOKENS, best] + w.slot_counts[slot, PROMPT] <= w.counts[PROMPT_LIMIT]
        ):
            prompt_at = best
            break
    decode_at = NONE
    needed = w.slot_counts[slot, PROMPT_BYTES] + w.slot_counts[slot, DECODE_BYTES]
    for which in (TOKEN_LIST, MIXED_LIST):
        best = _least(w, which, SCHEDULED_BYTES)
        if best != NONE and w.scheduled[SCHEDULED_BYTES, best] + needed < w.machine_counts[best, CAPACITY]:
            decode_at = best
            break
    if prompt_at == NONE:
        prompt_at = _least(w, TOKEN_LIST, SCHEDULED_TOKENS)
        if prompt_at != NONE:
            _move_to(w, prompt_at, MIXED_LIST)
            w.counts[MOVES_TO_MIXED] += 1
    if decode_at == NONE:
        decode_at = _least(w, PROMPT_LIST, SCHEDULED_BYTES)
        if decode_at != NONE:
            _move_to(w, decode_at, MIXED_LIST)
            w.counts[MOVES_TO_MIXED] += 1
    if prompt_at == NONE or decode_at == NONE:
        prompt_at = NONE
        for which in (PROMPT_LIST, MIXED_LIST, TOKEN_LIST):
            best = _least(w, which, SCHEDULED_TOKENS)
            if best != NONE and (
                prompt_at == NONE
                or w.scheduled[SCHEDULED_TOKENS, best] < w.scheduled[SCHEDULED_TOKENS, prompt_at]
            ):
                prompt_at = best
        decode_at = prompt_at
    return prompt_at, decode_at


@compiled
def _route(w: World, slot: int) -> None:
    """Choose the machines of a request and note what they are in for."""
    prompt = w.slot_counts[slot, PROMPT]
    prompt_bytes = w.slot_counts[slot, PROMPT_BYTES]
    both_bytes = prompt_bytes + w.slot_counts[slot, DECODE_BYTES]
    if w.counts[TOKEN_JSQ] == 1:
        prompt_at = _least(w, MIXED_LIST, SCHEDULED_TOKENS)
        decode_at = prompt_at
    else:
        prompt_at, decode_at = _mixed_pool(w, slot)
    w.slot_counts[slot, PROMPT_AT] = prompt_at
    w.slot_counts[slot, DECODE_AT] = decode_at
    w.scheduled[SCHEDULED_BYTES, decode_at] += both_bytes
    if prompt_at != decode_at:
        w.scheduled[SCHEDULED_BYTES, prompt_at] += prompt_bytes
    w.scheduled[SCHEDULED_TOKENS, prompt_at] += prompt
    w.scheduled[SCHEDULED_TOKENS, decode_at] += 1
    request = w.slot_counts[slot, REQUEST]
    w.served_by[0, request] = prompt_at
    w.served_by[1, request] = decode_at


# -- requests come and go ---------------------------------------------------------------------------------------------


@compiled
def _enter(w: World, request: int, now_s: float) -> None:
    """Take a request in, or refuse it if no machine could ever hold it."""
    prompt, output = w.prompt_tokens[request], w.output_tokens[request]
    kv_bytes = w.counts[KV_BYTES]
    if kv_bytes * (prompt + output) > w.counts[LARGEST_REQUEST_BYTES]:
        w.marks[0, request] = REJECTED
        w.marks[1, request] = TOO_LONG
        return
    slot = w.counts[FREE_SLOT]
    w.counts[FREE_SLOT] = w.slot_counts[slot, REQUEST_NEXT]
    w.slot_reals[slot, ARRIVAL_S] = now_s
    w.slot_reals[slot, TAKEN_J] = 0.0
    w.slot_counts[slot, REQUEST] = request
    w.slot_counts[slot, PROMPT] = prompt
    w.slot_counts[slot, OUTPUT] = output
    w.slot_counts[slot, PROMPT_BYTES] = kv_bytes * (prompt + 1)
    w.slot_counts[slot, DECODE_BYTES] = kv_bytes * (output - 1)
    w.slot_counts[slot, HELD_BYTES] = 0
    w.slot_counts[slot, PROMPT_DONE] = 0
    w.slot_counts[slot, STATE] = QUEUED
    w.slot_counts[slot, END_COUNT] = output - 1
    w.counts[IN_SYSTEM] += 1
    _route(w, slot)
    machine = w.slot_counts[slot, PROMPT_AT]
    touch(w, machine, now_s)
    w.machine_counts[machine, PRESENT] += 1
    join_requests(w, machine, slot)
    if arrive(w, machine, 2 * slot, now_s):
        _start(w, machine, now_s)
    if w.slot_counts[slot, DECODE_AT] == machine and output > 1 and arrive(w, machine, 2 * slot + 1, now_s):
        _start(w, machine, now_s)


@compiled
def _finish(w: World, machine: int, slot: int, now_s: float) -> None:
    """Let a request, whose last token is out, leave."""
    held = w.slot_counts[slot, HELD_BYTES]
    w.machine_counts[machine, MEMORY] -= held
    w.scheduled[SCHEDULED_BYTES, machine] -= held
    touch(w, machine, now_s)
    w.machine_counts[machine, PRESENT] -= 1
    leave_requests(w, machine, slot)
    request = w.slot_counts[slot, REQUEST]
    w.outcome[E2E_S, request] = now_s - w.slot_reals[slot, ARRIVAL_S]
    w.outcome[REQUEST_J, request] = w.slot_reals[slot, TAKEN_J]
    w.marks[0, request] = COMPLETED
    w.reals[LAST_COMPLETION_S] = now_s
    w.slot_counts[slot, REQUEST] = NONE
    w.slot_counts[slot, REQUEST_NEXT] = w.counts[FREE_SLOT]
    w.counts[FREE_SLOT] = slot
    w.counts[IN_SYSTEM] -= 1


@compiled
def _sample(w: World, request: int) -> bool:
    """Note the backlog now and then; True if the run should stop as overloaded."""
    at = w.counts[SAMPLES]
    if at >= len(w.sample_at) or w.sample_at[at] != request:
        return False
    w.counts[SAMPLES] = at + 1
    w.backlog[at] = float(w.counts[IN_SYSTEM])
    return bool(
        w.counts[STOP_OVERLOADED] == 1 and w.backlog[at] - w.timely[at] > _LATE_SHARE * len(w.arrival_s)
    )


# -- iterations --------------------------------------------------------------------------------------------------------


@compiled
def _start(w: World, machine: int, now_s: float) -> None:
    """Start an iteration; a machine of the mixed list that has nothing left to do goes home."""
    if start_iteration(w, machine, now_s):
        return
    home = w.machine_counts[machine, HOME]
    if (
        w.machine_counts[machine, REQUESTS] == 0
        and home != MIXED_LIST
        and w.machine_counts[machine, LIST] == MIXED_LIST
    ):
        _move_to(w, machine, home)
        w.counts[MOVES_BACK] += 1


@compiled
def _end_prompt(w: World, machine: int, slot: int, now_s: float) -> None:
    w.scheduled[SCHEDULED_TOKENS, machine] -= w.slot_counts[slot, PROMPT]
    w.slot_counts[slot, PROMPT_DONE] = 1
    w.slot_counts[slot, STATE] = QUEUED
    w.slot_counts[slot, PASSED] = w.machine_counts[machine, STARTS]
    w.outcome[TTFT_S, w.slot_counts[slot, REQUEST]] = now_s - w.slot_reals[slot, ARRIVAL_S]
    decode_at = w.slot_counts[slot, DECODE_AT]
    if w.slot_counts[slot, OUTPUT] == 1:
        w.scheduled[SCHEDULED_TOKENS, decode_at] -= 1
        if decode_at != machine:
            w.scheduled[SCHEDULED_BYTES, decode_at] -= w.slot_counts[slot, HELD_BYTES]
        _finish(w, machine, slot, now_s)
    elif decode_at != machine:
        leave_requests(w, machine, slot)
        _start_move(w, slot, now_s)


@compiled
def _end_iterations(w: World, machine: int, now_s: float) -> None:
    pass_iterations(w, machine, now_s)
    prompts = w.machine_counts[machine, BATCH_PROMPTS]
    counter = w.machine_counts[machine, COUNTER]
    if prompts > 0 or w.machine_counts[machine, NEXT_END] == counter:
        size = w.machine_counts[machine, BATCH]
        w.machine_counts[machine, BATCH_PROMPTS] = 0
        kept = 0
        earliest = _FAR
        for at in range(size):
            task = w.batch[machine, at]
            slot = task >> 1
            if task & 1 == 0:
                _end_prompt(w, machine, slot, now_s)
                continue
            end_count = w.slot_counts[slot, END_COUNT]
            if end_count > counter:
                w.batch[machine, kept] = task
                kept += 1
                earliest = min(earliest, end_count)
            else:
                w.scheduled[SCHEDULED_TOKENS, machine] -= 1
                w.slot_reals[slot, TAKEN_J] += (
                    w.machine_reals[machine, SEQUENCE_J] - w.slot_reals[slot, MARK_J]
                )
                _finish(w, machine, slot, now_s)
        w.machine_counts[machine, BATCH] = kept
        w.machine_counts[machine, NEXT_END] = earliest
    w.machine_counts[machine, CUT] = 0
    _start(w, machine, now_s)
    if w.machine_counts[machine, BATCH] == 0:
        w.machine_reals[machine, END_S] = math.inf
        replay_tournament(w, machine)


# -- transfers ---------------------------------------------------------------------------------------------------------


@compiled
def _start_move(w: World, slot: int, now_s: float) -> None:
    """Start moving a request's KV if its destination has room; else look again after a second."""
    machine = w.slot_counts[slot, DECODE_AT]
    held = w.slot_counts[slot, HELD_BYTES]
    if w.machine_counts[machine, MEMORY] + held <= w.machine_counts[machine, CAPACITY]:
        w.machine_counts[machine, MEMORY] += held
        moved = w.counts[KV_BYTES] * w.slot_counts[slot, PROMPT]
        w.counts[TRANSFERS] += 1
        w.counts[UNDER_WAY] += 1
        w.reals[TRANSFER_BYTES] += moved
        w.slot_counts[slot, MOVING] = MOVE_UNDER_WAY
        w.slot_reals[slot, MOVE_S] = now_s + moved / w.reals[LINK_BYTES_PER_S]
    else:
        w.counts[TRANSFER_RETRIES] += 1
        w.slot_counts[slot, MOVING] = MOVE_WAITS
        w.slot_reals[slot, MOVE_S] = now_s + _RETRY_S
    w.slot_counts[slot, MOVE_EVENT] = w.counts[SEQUENCE]
    w.counts[SEQUENCE] += 1
    push_move(w, slot)


@compiled
def _end_move(w: World, slot: int, now_s: float) -> None:
    """Hand a request over to its decode machine, then let the machine it came from go on."""
    source, machine = w.slot_counts[slot, PROMPT_AT], w.slot_counts[slot, DECODE_AT]
    w.counts[UNDER_WAY] -= 1
    held = w.slot_counts[slot, HELD_BYTES]
    w.machine_counts[source, MEMORY] -= held
    w.scheduled[SCHEDULED_BYTES, source] -= held
    touch(w, source, now_s)
    touch(w, machine, now_s)
    w.machine_counts[source, PRESENT] -= 1
    w.machine_counts[machine, PRESENT] += 1
    join_requests(w, machine, slot)
    if arrive(w, machine, 2 * slot + 1, now_s):
        _start(w, machine, now_s)
    if w.machine_counts[source, PENDING] == 0:
        return
    size = w.machine_counts[source, BATCH]
    if size == 0:
        first = w.items[w.machine_counts[source, PENDING_FIRST], 0]
        needed = w.slot_counts[first >> 1, DECODE_BYTES if first & 1 else PROMPT_BYTES]
        if w.machine_counts[source, MEMORY] + needed <= w.machine_counts[source, CAPACITY]:
            _start(w, source, now_s)
            w.counts[SOURCE_WAKEUPS] += 1
    elif (
        size < w.counts[MAX_BATCH]
        and w.machine_counts[source, BATCH_TOKENS] < w.counts[MAX_BATCH_TOKENS]
        and cut(w, source, now_s)
    ):
        w.counts[SOURCE_WAKEUPS] += 1


# -- the loop ---------------------------------------------------------------------------------------------------------


@compiled
def advance(w: World) -> int:
    """Run until nothing happens any more, more room is needed, or the run stops as overloaded."""
    total = len(w.arrival_s)
    blocks_needed = 2 * w.counts[MAX_BATCH] + 8  # one event starts at most two iterations
    while True:
        request = w.counts[NEXT_ARRIVAL]
        arrival_s = w.arrival_s[request] if request < total else math.inf
        move_s = w.slot_reals[w.moves[0], MOVE_S] if w.counts[MOVES] > 0 else math.inf
        machine = w.winners[1]
        end_s = w.machine_reals[machine, END_S]
        if w.counts[BLOCKS_LEFT] < blocks_needed:
            return NEEDS_BLOCKS
        if request < total and w.counts[FREE_SLOT] == NONE:
            return NEEDS_SLOTS
        if arrival_s <= move_s and arrival_s <= end_s:
            if arrival_s == math.inf:
                return FINISHED
            w.reals[NOW_S] = arrival_s
            w.counts[NEXT_ARRIVAL] = request + 1
            _enter(w, request, arrival_s)
            if _sample(w, request):
                return OVERLOADED
        elif move_s <= end_s:
            if arrival_s == math.inf and end_s == math.inf and w.counts[UNDER_WAY] == 0:
                return FINISHED  # nothing runs or comes that could make room for what waits to be moved
            w.reals[NOW_S] = move_s
            slot = pop_move(w)
            if w.slot_counts[slot, MOVING] == MOVE_WAITS:
                _start_move(w, slot, move_s)
            else:
                _end_move(w, slot, move_s)
        else:
            w.reals[NOW_S] = end_s
            _end_iterations(w, machine, end_s)


@compiled
def close_books(w: World) -> None:
    """Bring all accounts up to now, and those of the requests that are left."""
    now_s = w.reals[NOW_S]
    for machine in range(len(w.machine_counts)):
        touch(w, machine, now_s)
        if w.machine_counts[machine, BATCH] > 0:
            book_busy(w, machine, now_s)
        else:
            book_idle(w, machine, now_s)
    for slot in range(len(w.slot_counts)):
        request = w.slot_counts[slot, REQUEST]
        if request != NONE:
            if w.slot_counts[slot, STATE] == RUNNING and w.slot_counts[slot, PROMPT_DONE] == 1:
                machine = w.slot_counts[slot, DECODE_AT]
                w.slot_reals[slot, TAKEN_J] += (
                    w.machine_reals[machine, SEQUENCE_J] - w.slot_reals[slot, MARK_J]
                )
            w.outcome[REQUEST_J, request] = w.slot_reals[slot, TAKEN_J]
