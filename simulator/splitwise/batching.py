"""What happens on one machine: tasks arrive, iterations start, are cut short and end.

It exists to state the phase-splitting peer's rules in the order in which they act (docs/splitwise-rules.md, from "A
task arrives" on; the letters of the steps of a start are those of that page). Where nothing waits the steps cannot
change the batch and are passed over; the running tasks that stay are always the first ones of the batch, because each
needs one token. Nothing here depends on the router.
"""

from simulator.splitwise.accounting import book_busy, book_idle
from simulator.splitwise.layout import (
    ARRIVAL_S,
    BATCH,
    BATCH_PROMPTS,
    BATCH_TOKENS,
    BLOCK_NEXT,
    BLOCK_SIZE,
    BLOCKED_FIRST,
    CAPACITY,
    CHOSEN_PREEMPTED,
    CHOSEN_QUEUED,
    COUNTER,
    CUT,
    DECODE_BYTES,
    DECODE_S,
    END_COUNT,
    END_S,
    EVENT,
    HELD_BYTES,
    ITERATIONS,
    KIND,
    KNOT_TOKENS,
    LINE_NEXT,
    MARK_J,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MAX_PREEMPTIONS,
    MEMORY,
    MEMORY_STOPS,
    NEXT_END,
    NONE,
    OUTPUT_TOKENS_DONE,
    PASSED,
    PENDING,
    PENDING_FIRST,
    PREEMPTED,
    PREEMPTED_OFTEN,
    PREEMPTIONS,
    PROMPT,
    PROMPT_BYTES,
    PROMPT_DONE,
    PROMPT_S,
    PROMPT_TOKENS_DONE,
    QUEUE_FIRST,
    QUEUE_S,
    QUEUED,
    REQUEST,
    REQUEST_FIRST,
    REQUEST_NEXT,
    REQUESTS,
    RUNNING,
    SEGMENTS,
    SEQUENCE,
    SEQUENCE_J,
    START_S,
    STARTS,
    STATE,
    STEP_S,
    STEPS,
    TAKEN_J,
    World,
)
from simulator.splitwise.pending import (
    insert_pending,
    join_line,
    leave_line,
    passed_over,
    remove_pending,
    replay_tournament,
)
from solver.compiled import compiled

_MIXED_PENALTY = 1.1
_FAR = 1 << 60
_MOST_PREEMPTIONS_KEPT = 32767


@compiled
def _step_s(w: World, kind: int, row: int, tokens: int) -> float:
    """Read a step time, linear between the knots and beyond both ends."""
    at = 0
    knots = w.steps_s.shape[2]
    while at < knots and w.steps_s[kind, KNOT_TOKENS, at] < tokens:
        at += 1
    at = min(max(at, 1), knots - 1)
    slope = w.steps_s[kind, row + 1, at]
    return float(slope * (tokens - w.steps_s[kind, KNOT_TOKENS, at - 1]) + w.steps_s[kind, row, at - 1])


@compiled
def _schedule(w: World, machine: int, end_s: float) -> None:
    w.machine_reals[machine, END_S] = end_s
    w.machine_counts[machine, EVENT] = w.counts[SEQUENCE]
    w.counts[SEQUENCE] += 1
    replay_tournament(w, machine)


@compiled
def arrive(w: World, machine: int, task: int, now_s: float) -> bool:
    """Let a task, whose request is entered, join a machine; True if the machine is to start an iteration."""
    slot = task >> 1
    is_prompt = task & 1 == 0
    if is_prompt or w.slot_counts[slot, PROMPT_DONE] == 1:
        w.slot_counts[slot, PASSED] = w.machine_counts[machine, STARTS]
    insert_pending(w, machine, task)
    if is_prompt:
        join_line(w, machine, slot, QUEUE_FIRST)
    size = w.machine_counts[machine, BATCH]
    if size == 0:
        needed = w.slot_counts[slot, PROMPT_BYTES] if is_prompt else w.slot_counts[slot, DECODE_BYTES]
        return bool(w.machine_counts[machine, MEMORY] + needed <= w.machine_counts[machine, CAPACITY])
    tokens = w.slot_counts[slot, PROMPT] if is_prompt else 1
    batch_tokens = w.machine_counts[machine, BATCH_TOKENS]
    most = w.counts[MAX_BATCH_TOKENS]
    decodes = size - w.machine_counts[machine, BATCH_PROMPTS]
    if (size < w.counts[MAX_BATCH] and batch_tokens + tokens <= most) or (
        is_prompt and decodes > 0 and batch_tokens - decodes + tokens <= most
    ):
        cut(w, machine, now_s)
    return False


@compiled
def cut(w: World, machine: int, now_s: float) -> bool:
    """End the decode iterations under way at the next boundary; True if that was possible (Cut).

    At an instant at which they end anyway, the count would come out one too high: they then end as they would have.
    """
    if w.machine_counts[machine, CUT] == 1 or w.machine_counts[machine, BATCH_PROMPTS] > 0:
        return False
    w.machine_counts[machine, CUT] = 1
    step_s = w.machine_reals[machine, STEP_S]
    steps = w.machine_counts[machine, STEPS]
    start_s = w.machine_reals[machine, END_S] - step_s * steps
    passed_s = now_s - start_s
    steps = min(steps, int(passed_s // step_s + 1))
    w.machine_counts[machine, STEPS] = steps
    _schedule(w, machine, now_s + (step_s * steps - passed_s))
    return True


@compiled
def _choose(w: World, number: int, slot: int) -> None:
    task = 2 * slot + w.slot_counts[slot, PROMPT_DONE]
    w.chosen[number] = task
    queued = w.slot_counts[slot, STATE] == QUEUED
    w.slot_counts[slot, STATE] = CHOSEN_QUEUED if queued else CHOSEN_PREEMPTED


@compiled
def _select(w: World, machine: int) -> tuple[int, int, int]:
    """Choose what the next iteration takes in (a to e): number of new tasks, of old ones that stay, tokens."""
    most, most_tokens = w.counts[MAX_BATCH], w.counts[MAX_BATCH_TOKENS]
    capacity = w.machine_counts[machine, CAPACITY]
    memory = w.machine_counts[machine, MEMORY]
    number = 0
    tokens = 0
    # a. passed over too often
    block = w.machine_counts[machine, PENDING_FIRST]
    at = 0
    while block != NONE:
        task = w.items[block, at]
        slot = task >> 1
        if passed_over(w, machine, task) < w.counts[MAX_PREEMPTIONS]:
            break
        needed_tokens = 1 if task & 1 else w.slot_counts[slot, PROMPT]
        if number == most or (number > 0 and tokens + needed_tokens > most_tokens):
            break
        takes = True
        if w.slot_counts[slot, STATE] == QUEUED:
            needed = w.slot_counts[slot, DECODE_BYTES if task & 1 else PROMPT_BYTES]
            takes = memory + needed <= capacity
            if takes:
                memory += needed
        if takes:
            _choose(w, number, slot)
            number += 1
            tokens += needed_tokens
        at += 1
        if at == w.blocks[block, BLOCK_SIZE]:
            block = w.blocks[block, BLOCK_NEXT]
            at = 0
    w.counts[PREEMPTED_OFTEN] += number
    # b. prompts as they came
    slot = w.machine_counts[machine, QUEUE_FIRST]
    while slot != NONE:
        needed_tokens = w.slot_counts[slot, PROMPT]
        if number == most or (number > 0 and tokens + needed_tokens > most_tokens):
            break
        if w.slot_counts[slot, STATE] == QUEUED:
            if memory + w.slot_counts[slot, PROMPT_BYTES] > capacity:
                w.counts[MEMORY_STOPS] += 1
                break
            memory += w.slot_counts[slot, PROMPT_BYTES]
            _choose(w, number, slot)
            number += 1
            tokens += needed_tokens
        slot = w.slot_counts[slot, LINE_NEXT]
    # c. preempted decodes
    slot = w.machine_counts[machine, BLOCKED_FIRST]
    while slot != NONE:
        if number == most or (number > 0 and tokens + 1 > most_tokens):
            break
        if w.slot_counts[slot, STATE] == PREEMPTED:
            _choose(w, number, slot)
            number += 1
            tokens += 1
        slot = w.slot_counts[slot, LINE_NEXT]
    # d. the old batch
    size = w.machine_counts[machine, BATCH]
    kept = max(0, min(size, most - number, most_tokens - tokens))
    tokens += kept
    # e. the rest by arrival; once the old batch did not fit as a whole, nothing does
    if kept == size:
        slot = w.machine_counts[machine, REQUEST_FIRST]
        left = w.machine_counts[machine, REQUESTS] - kept - number
        while left > 0 and number + kept < most and (tokens < most_tokens or number + kept == 0):
            state = w.slot_counts[slot, STATE]
            if state in (QUEUED, PREEMPTED):
                is_decode = w.slot_counts[slot, PROMPT_DONE] == 1
                needed_tokens = 1 if is_decode else w.slot_counts[slot, PROMPT]
                if number + kept > 0 and tokens + needed_tokens > most_tokens:
                    break
                if state == QUEUED:
                    needed = w.slot_counts[slot, DECODE_BYTES if is_decode else PROMPT_BYTES]
                    if memory + needed > capacity:
                        w.counts[MEMORY_STOPS] += 1
                        break
                    memory += needed
                _choose(w, number, slot)
                number += 1
                tokens += needed_tokens
                left -= 1
            slot = w.slot_counts[slot, REQUEST_NEXT]
    return number, kept, tokens


@compiled
def _preempt(w: World, machine: int, kept: int) -> None:
    """Send the running tasks from ``kept`` on back to wait."""
    size = w.machine_counts[machine, BATCH]
    counter = w.machine_counts[machine, COUNTER]
    for at in range(kept, size):
        task = w.batch[machine, at]
        slot = task >> 1
        w.slot_counts[slot, STATE] = PREEMPTED
        w.slot_counts[slot, PASSED] = w.machine_counts[machine, STARTS] - w.slot_counts[slot, PASSED]
        w.slot_counts[slot, END_COUNT] -= counter
        w.slot_reals[slot, TAKEN_J] += w.machine_reals[machine, SEQUENCE_J] - w.slot_reals[slot, MARK_J]
        request = w.slot_counts[slot, REQUEST]
        w.preemptions[request] = min(w.preemptions[request] + 1, _MOST_PREEMPTIONS_KEPT)
        insert_pending(w, machine, task)
        join_line(w, machine, slot, BLOCKED_FIRST)
    w.counts[PREEMPTIONS] += size - kept
    earliest = _FAR
    for at in range(kept):
        earliest = min(earliest, w.slot_counts[w.batch[machine, at] >> 1, END_COUNT])
    w.machine_counts[machine, NEXT_END] = earliest
    w.machine_counts[machine, BATCH] = kept


@compiled
def _take_in(w: World, machine: int, task: int, now_s: float) -> None:
    """Move a chosen task from the waiting ones into the batch."""
    slot = task >> 1
    remove_pending(w, machine, task)
    w.slot_counts[slot, PASSED] = w.machine_counts[machine, STARTS] - w.slot_counts[slot, PASSED]
    was_queued = w.slot_counts[slot, STATE] == CHOSEN_QUEUED
    w.slot_counts[slot, STATE] = RUNNING
    if task & 1:
        if not was_queued:
            leave_line(w, machine, slot, BLOCKED_FIRST)
        end_count = w.machine_counts[machine, COUNTER] + w.slot_counts[slot, END_COUNT]
        w.slot_counts[slot, END_COUNT] = end_count
        w.machine_counts[machine, NEXT_END] = min(w.machine_counts[machine, NEXT_END], end_count)
        w.slot_reals[slot, MARK_J] = w.machine_reals[machine, SEQUENCE_J]
        needed = w.slot_counts[slot, DECODE_BYTES]
    else:
        leave_line(w, machine, slot, QUEUE_FIRST)
        w.machine_counts[machine, BATCH_PROMPTS] += 1
        w.outcome[QUEUE_S, w.slot_counts[slot, REQUEST]] = now_s - w.slot_reals[slot, ARRIVAL_S]
        needed = w.slot_counts[slot, PROMPT_BYTES]
    if was_queued:
        w.machine_counts[machine, MEMORY] += needed
        w.slot_counts[slot, HELD_BYTES] += needed
    size = w.machine_counts[machine, BATCH]
    w.batch[machine, size] = task
    w.machine_counts[machine, BATCH] = size + 1


@compiled
def start_iteration(w: World, machine: int, now_s: float) -> bool:
    """Start an iteration with what can run now; False if nothing can."""
    if w.machine_counts[machine, PENDING] > 0:
        number, kept, tokens = _select(w, machine)
        if kept < w.machine_counts[machine, BATCH]:
            _preempt(w, machine, kept)
        for at in range(number):
            _take_in(w, machine, w.chosen[at], now_s)
    else:
        tokens = w.machine_counts[machine, BATCH]
    w.machine_counts[machine, BATCH_TOKENS] = tokens
    w.machine_counts[machine, STARTS] += 1
    size = w.machine_counts[machine, BATCH]
    if size == 0:
        return False
    book_idle(w, machine, now_s)
    kind = w.machine_counts[machine, KIND]
    prompts = w.machine_counts[machine, BATCH_PROMPTS]
    steps = 1
    if prompts == 0:
        step_s = _step_s(w, kind, DECODE_S, tokens)
        steps = w.machine_counts[machine, NEXT_END] - w.machine_counts[machine, COUNTER]
    else:
        step_s = _step_s(w, kind, PROMPT_S, tokens)
        if prompts < size:
            step_s = _MIXED_PENALTY * step_s
    w.machine_reals[machine, START_S] = now_s
    w.machine_reals[machine, STEP_S] = step_s
    w.machine_counts[machine, STEPS] = steps
    _schedule(w, machine, now_s + step_s * steps)
    return True


@compiled
def pass_iterations(w: World, machine: int, now_s: float) -> None:
    """Book the iterations that end now; their finished tasks are still in the batch."""
    book_busy(w, machine, now_s)
    steps = w.machine_counts[machine, STEPS]
    size, prompts = w.machine_counts[machine, BATCH], w.machine_counts[machine, BATCH_PROMPTS]
    w.machine_counts[machine, COUNTER] += steps
    prompt_tokens = w.machine_counts[machine, BATCH_TOKENS] - (size - prompts) if prompts > 0 else 0
    w.machine_reals[machine, PROMPT_TOKENS_DONE] += prompt_tokens
    w.machine_reals[machine, OUTPUT_TOKENS_DONE] += prompts + steps * (size - prompts)
    w.counts[ITERATIONS] += steps
    w.counts[SEGMENTS] += 1
