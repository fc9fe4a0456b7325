"""Continuous batching on one instance: what joins an iteration, how long a constant batch runs, what ends with it.

It exists as the one place with the rules of batching (docs/simulation.md states them for users):

- chunked prefill: every iteration runs all decodes and fills the rest of ``max_batch_tokens`` with prompt chunks, the
  prompt under way first, then first come first served; at most one prompt is under way at a time.
- whole prompts: an iteration either takes prompts (up to ``max_batch_tokens``, the first always; a later one counts
  with its cached part) or runs all decodes.
- KV is reserved for a prompt when it is admitted and grows by one token per decode and iteration. If it runs out, the
  prompt under way, else the decode of the lowest priority admitted last, loses its KV and waits in front of the queue;
  what it had generated stays and is processed again with its prompt. Decodes that lost their KV ``max_preemptions``
  times are spared while there are others.
- An iteration begins in this order: a new speed takes effect; requests whose KV has arrived join; while there is not a
  token of KV for every decode, one loses its KV, and then no waiting prompt is admitted this time; transfers get room;
  the prompt under way goes on; prompts are admitted from the head of the queue (lowest class first) while the batch has
  a place and tokens are left and the prompt, with a token for every decode, fits the KV cache: all of it if the batch
  is empty, else all but ``watermark_ratio``. A head that does not fit holds up those behind it.
- The prefix cache is looked up when a prompt is admitted: leading blocks that are there, at most the prompt and all but
  one of the tokens to process, are skipped. Its blocks are kept once it is processed.

A decode-only batch runs as one segment of k iterations until the first of: a sequence ends, KV runs out, the table's
next knot, or something arrives that can join (`wake` cuts the segment then). With ``SINGLE_STEPS`` every segment has
one iteration: the plain simulation that tests compare with.
"""

import math

from simulator.engine.accounting import book_segment, end_idle, touch
from simulator.engine.layout import (
    ASSIGNED_KV,
    AT_KNOT_J,
    AT_KNOT_S,
    BASE,
    BOTH,
    BUSY_S,
    CACHE_BLOCKS,
    CACHED_TOKENS,
    CHUNKED,
    CHUNKS,
    CONTEXT_S,
    COUNTER,
    DECODE_AT,
    DECODE_STAGE,
    DECODES,
    DECODING_SEGMENT,
    DRAINING,
    E2E_S,
    END,
    ENERGY_J,
    ENERGY_MARK_J,
    GENERATED,
    HELD,
    IDLE,
    IDLE_SINCE_S,
    IN_SYSTEM,
    ITERATIONS,
    KIND,
    KNOTS,
    KV_CAPACITY,
    KV_SUM,
    KV_USED,
    LAST_COMPLETION_S,
    LAST_PROMPT,
    LEVEL,
    LIST,
    LOAD,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MAX_PREEMPTIONS,
    MIXED_LIST,
    MIXED_POOL,
    NEXT_KIND,
    NONE,
    OUTPUT_DONE,
    PAIR_S,
    PARTIAL,
    POOL,
    PREEMPTED,
    PREFILL,
    PREFILL_AT,
    PREFILL_SEGMENT,
    PROGRESS,
    PROMPT,
    PROMPT_DONE,
    PROMPT_LIST,
    PROMPT_S,
    PROMPT_STAGE,
    QUEUE_S,
    READY_HEAD,
    REQUEST,
    REQUEST_J,
    ROLE,
    ROUTER,
    SCHEDULED_S,
    SEGMENT_DECODES,
    SEGMENT_FIRST_J,
    SEGMENT_FIRST_S,
    SEGMENT_ITERATIONS,
    SEGMENT_KIND,
    SEGMENT_SLOPE_J,
    SEGMENT_SLOPE_S,
    SEGMENT_START_S,
    SEGMENT_TOKENS,
    SEGMENTS,
    SEQUENCE_J,
    SHARED_S,
    SINGLE_STEPS,
    SLOPE_J,
    SLOPE_S,
    STAGE,
    STATE,
    TABLE_FORM,
    TAKEN_J,
    TOKEN_LIST,
    TRUNCATED,
    TTFT_S,
    UP,
    WAITING_EVERYWHERE,
    WAITING_STAGE,
    WATERMARK_RATIO,
    WHOLE_PAIRS,
    World,
)
from simulator.engine.placement import blocks_of, cached_tokens, to_list
from simulator.engine.prefix_cache import keep
from simulator.engine.queues import (
    add_decode,
    first_waiting,
    give_slot,
    remove_decode,
    remove_ready,
    schedule,
    stop_waiting,
    unschedule,
    wait_at_end,
    wait_in_front,
)
from simulator.engine.segments import iterations_until, many_s
from simulator.engine.transfers import (
    admit_incoming,
    expect_decode,
    forget_decode,
    hand_over,
    incoming_fits,
    release_source,
)
from solver.compiled import compiled

COMPLETED, REJECTED = 1, 2
NO_INSTANCE = 2

# -- how long ----------------------------------------------------------------------------------------------------------


@compiled
def _at_tokens(w: World, kind: int, row: int, tokens: float) -> float:
    """Seconds (row 0) or watts (row 1) for so many new prompt tokens, linear between whole numbers."""
    last = int(w.constants[LAST_PROMPT, kind])
    at = int(tokens)
    if at >= last:
        if row == 1:
            return float(w.prefill[kind, 1, last])
        at = last - 1
    low = w.prefill[kind, row, at]
    rest = tokens - at
    if rest == 0.0:
        return float(low)
    return float(low + (w.prefill[kind, row, at + 1] - low) * rest)


@compiled
def _prefill_s(w: World, kind: int, tokens: int, reads: float, pairs: float, prompts: int) -> float:
    """Seconds of the prompt chunks of an iteration; equations in `simulator.step_table`."""
    constants = w.constants
    alone_s = _at_tokens(w, kind, 0, float(tokens))
    if constants[TABLE_FORM, kind] == 0.0:
        attention_s = max(constants[CONTEXT_S, kind] * reads, constants[PAIR_S, kind] * pairs)
        return float(alone_s + constants[PROMPT_S, kind] * prompts + attention_s)
    context = max(0.0, pairs / tokens - tokens / 2.0)
    if context == 0.0:
        return alone_s
    grown_s = _at_tokens(w, kind, 0, context + tokens) - _at_tokens(w, kind, 0, context)
    return max(alone_s, grown_s)


@compiled
def _knot(w: World, kind: int, kv_sum: float) -> int:
    """Return the knot at or below a number of cached tokens."""
    j = int(w.constants[KNOTS, kind]) - 1
    while j > 0 and w.knots[kind, j] > kv_sum:
        j -= 1
    return j


@compiled
def _decode_value(w: World, kind: int, row: int, decodes: int, kv_sum: float, j: int) -> float:
    """Seconds or joules of one decode iteration."""
    return float(
        w.decode[kind, row, decodes, j] + w.decode[kind, row + 1, decodes, j] * (kv_sum - w.knots[kind, j])
    )


# -- joining and leaving ----------------------------------------------------------------------------------------------


@compiled
def join(w: World, i: int, slot: int) -> None:
    """Let a request whose KV is here decode from the next iteration on."""
    counts, slots = w.inst_counts, w.slot_counts
    request = slots[REQUEST, slot]
    slots[STAGE, slot] = DECODE_STAGE
    slots[BASE, slot] = slots[PROMPT, slot] - counts[COUNTER, i]
    slots[END, slot] = counts[COUNTER, i] + w.output_tokens[request] - slots[GENERATED, slot]
    w.slot_reals[ENERGY_MARK_J, slot] = w.inst_reals[SEQUENCE_J, i]
    counts[KV_SUM, i] += slots[PROMPT, slot]
    add_decode(w, i, slot)


@compiled
def _join_ready(w: World, i: int) -> None:
    """Let the requests decode whose KV has arrived, as far as the batch has places."""
    counts = w.inst_counts
    under_way = 0 if counts[PARTIAL, i] == NONE else 1
    while counts[READY_HEAD, i] != NONE and counts[DECODES, i] + under_way < w.counts[MAX_BATCH]:
        join(w, i, remove_ready(w, i))


@compiled
def _complete(w: World, slot: int, now_s: float) -> None:
    """Write down a request that has its last token and forget its slot."""
    request = w.slot_counts[REQUEST, slot]
    w.outcome[E2E_S, request] = now_s - w.arrival_s[request]
    w.outcome[REQUEST_J, request] = w.slot_reals[TAKEN_J, slot]
    w.marks[0, request] = COMPLETED
    w.reals[LAST_COMPLETION_S] = now_s
    w.counts[IN_SYSTEM] -= 1
    give_slot(w, slot)


@compiled
def reject(w: World, slot: int, reason: int) -> None:
    """Give a request up; the caller has taken it out of every list."""
    request = w.slot_counts[REQUEST, slot]
    w.outcome[REQUEST_J, request] = w.slot_reals[TAKEN_J, slot]
    w.marks[0, request] = REJECTED
    w.marks[1, request] = reason
    w.counts[IN_SYSTEM] -= 1
    give_slot(w, slot)


@compiled
def enqueue(w: World, i: int, slot: int) -> None:
    """Put a request into the queue of the instance that processes its prompt; the caller wakes the instance."""
    slots = w.slot_counts
    target = slots[DECODE_AT, slot]
    request = slots[REQUEST, slot]
    w.inst_counts[LOAD, i] += slots[PROMPT, slot]
    if target != i:
        w.inst_counts[ASSIGNED_KV, i] += slots[PROMPT, slot]
    if target != NONE:
        expect_decode(w, target, slot)
    slots[STAGE, slot] = WAITING_STAGE
    slots[PROGRESS, slot] = 0
    w.counts[WAITING_EVERYWHERE] += 1
    w.served_by[0, request] = i
    wait_at_end(w, i, slot)


@compiled
def _preempt(w: World, i: int) -> None:
    """Take the KV from the prompt under way, else from the decode that was admitted last at the lowest priority."""
    counts, slots = w.inst_counts, w.slot_counts
    slot = counts[PARTIAL, i]
    if slot != NONE:
        counts[PARTIAL, i] = NONE
        counts[KV_USED, i] -= slots[PROMPT, slot]
        counts[LOAD, i] += slots[PROGRESS, slot]
    else:
        worst = 0
        for at in range(1, counts[DECODES, i]):
            a, b = w.decode_heap[i, at], w.decode_heap[i, worst]
            spent_a = slots[PREEMPTED, a] >= w.counts[MAX_PREEMPTIONS]
            spent_b = slots[PREEMPTED, b] >= w.counts[MAX_PREEMPTIONS]
            if spent_a != spent_b:
                worse = spent_b
            elif slots[LEVEL, a] != slots[LEVEL, b]:
                worse = slots[LEVEL, a] > slots[LEVEL, b]
            elif w.slot_reals[SCHEDULED_S, a] != w.slot_reals[SCHEDULED_S, b]:
                worse = w.slot_reals[SCHEDULED_S, a] > w.slot_reals[SCHEDULED_S, b]
            else:
                worse = slots[REQUEST, a] > slots[REQUEST, b]
            if worse:
                worst = at
        slot = remove_decode(w, i, worst)
        cached = slots[BASE, slot] + counts[COUNTER, i]
        counts[KV_SUM, i] -= cached
        counts[KV_USED, i] -= cached
        w.slot_reals[TAKEN_J, slot] += w.inst_reals[SEQUENCE_J, i] - w.slot_reals[ENERGY_MARK_J, slot]
        request = slots[REQUEST, slot]
        slots[GENERATED, slot] = w.output_tokens[request] - (slots[END, slot] - counts[COUNTER, i])
        slots[PROMPT, slot] = w.prompt_tokens[request] + slots[GENERATED, slot]
        slots[PREFILL_AT, slot] = i
        counts[LOAD, i] += slots[PROMPT, slot]
    slots[PREEMPTED, slot] += 1
    w.preemptions[slots[REQUEST, slot]] += 1
    slots[PROGRESS, slot] = 0
    slots[STAGE, slot] = WAITING_STAGE
    w.counts[WAITING_EVERYWHERE] += 1
    wait_in_front(w, i, slot)


# -- one iteration after the other ------------------------------------------------------------------------------------


@compiled
def _admissible(w: World, i: int, slot: int, prompts: int) -> bool:
    """Whether a waiting request's prompt fits beside what runs, with a token for every decode of the iteration."""
    counts = w.inst_counts
    decodes = counts[DECODES, i]
    need = counts[KV_USED, i] + w.slot_counts[PROMPT, slot] + decodes
    if decodes + prompts > 0:
        return bool(need <= counts[KV_CAPACITY, i] * (1.0 - w.reals[WATERMARK_RATIO]))
    return bool(need <= counts[KV_CAPACITY, i])


@compiled
def _admit(w: World, i: int, slot: int, now_s: float) -> None:
    """Reserve KV for a waiting request and look its prefix up."""
    counts, slots = w.inst_counts, w.slot_counts
    request = slots[REQUEST, slot]
    stop_waiting(w, i, slot)
    w.counts[WAITING_EVERYWHERE] -= 1
    counts[KV_USED, i] += slots[PROMPT, slot]
    slots[STAGE, slot] = PROMPT_STAGE
    w.slot_reals[SCHEDULED_S, slot] = now_s
    if math.isnan(w.outcome[QUEUE_S, request]):
        w.outcome[QUEUE_S, request] = now_s - w.arrival_s[request]
    if w.counts[CACHE_BLOCKS] > 0:
        cached = cached_tokens(w, i, slot)
        slots[PROGRESS, slot] = cached
        counts[LOAD, i] -= cached
        w.reals[CACHED_TOKENS] += cached


@compiled
def start(w: World, i: int, now_s: float) -> None:
    """Begin the next segment of an instance, or let it idle. Its last segment has ended."""
    counts, reals, slots = w.inst_counts, w.inst_reals, w.slot_counts
    end_idle(w, i, now_s)
    if counts[NEXT_KIND, i] != NONE:
        counts[KIND, i] = counts[NEXT_KIND, i]
        counts[NEXT_KIND, i] = NONE
    kind = counts[KIND, i]
    max_batch = w.counts[MAX_BATCH]
    _join_ready(w, i)
    preempted = False
    while counts[DECODES, i] > 0 and counts[KV_CAPACITY, i] - counts[KV_USED, i] < counts[DECODES, i]:
        _preempt(w, i)
        preempted = True
        if counts[DECODES, i] == 0:  # those whose KV is here and found no place: nobody else would wake them
            _join_ready(w, i)
    admit_incoming(w, i, now_s)
    decodes = counts[DECODES, i]
    chunked = w.counts[CHUNKED] == 1
    budget = w.counts[MAX_BATCH_TOKENS]
    if chunked:
        budget -= decodes
    prompts = 0
    tokens = 0
    reads = 0.0
    pairs = 0.0
    slot = counts[PARTIAL, i]
    counts[PARTIAL, i] = NONE
    while True:
        if slot == NONE:
            if preempted or budget <= 0 or decodes + prompts >= max_batch:
                break
            slot = first_waiting(w, i)
            if slot == NONE or not _admissible(w, i, slot, prompts):
                break
            if not chunked and prompts > 0 and slots[PROMPT, slot] > budget:
                break
            _admit(w, i, slot, now_s)
        done = slots[PROGRESS, slot]
        take = slots[PROMPT, slot] - done
        if chunked:
            take = min(take, budget)
        w.chunk_slots[i, prompts] = slot
        w.chunk_tokens[i, prompts] = take
        prompts += 1
        tokens += take
        budget -= take
        reads += float(done + take)
        if w.constants[WHOLE_PAIRS, kind] != 0.0:
            pairs += take * (slots[PROMPT, slot] + take / 2.0)
        else:
            pairs += take * (done + take / 2.0)
        slot = NONE
    counts[CHUNKS, i] = prompts
    if prompts == 0 and decodes == 0:
        counts[SEGMENT_KIND, i] = IDLE
        reals[IDLE_SINCE_S, i] = now_s
        unschedule(w, i)
        return
    kv_sum = float(counts[KV_SUM, i])
    j = _knot(w, kind, kv_sum)
    reals[SEGMENT_START_S, i] = now_s
    if prompts > 0:
        if not chunked:
            decodes = 0
        took_s = _prefill_s(w, kind, tokens, reads, pairs, prompts)
        if decodes > 0:
            prefill_s = took_s
            decode_s = max(_decode_value(w, kind, AT_KNOT_S, decodes, kv_sum, j), 0.0)
            took_s = max(prefill_s + decode_s - w.constants[SHARED_S, kind], max(prefill_s, decode_s))
        if w.constants[TRUNCATED, kind] != 0.0:
            took_s = max(1.0, math.floor(took_s))
        counts[SEGMENT_KIND, i] = PREFILL_SEGMENT
        counts[SEGMENT_ITERATIONS, i] = 1
        reals[SEGMENT_FIRST_S, i] = took_s
        reals[SEGMENT_SLOPE_S, i] = 0.0
        reals[SEGMENT_FIRST_J, i] = took_s * _at_tokens(w, kind, 1, float(tokens))
        reals[SEGMENT_SLOPE_J, i] = 0.0
    else:
        k = slots[END, w.decode_heap[i, 0]] - counts[COUNTER, i]
        k = min(k, (counts[KV_CAPACITY, i] - counts[KV_USED, i]) // decodes)
        if j + 1 < int(w.constants[KNOTS, kind]):
            to_knot = w.knots[kind, j + 1] - kv_sum
            k = min(k, int(math.ceil(to_knot / decodes)))
        first_s = max(_decode_value(w, kind, AT_KNOT_S, decodes, kv_sum, j), 0.0)
        if w.counts[SINGLE_STEPS] == 1 or preempted:  # what a preemption set free is offered again soon
            k = 1
        if w.constants[TRUNCATED, kind] != 0.0:
            first_s = max(1.0, math.floor(first_s))
            k = 1
        counts[SEGMENT_KIND, i] = DECODING_SEGMENT
        counts[SEGMENT_ITERATIONS, i] = k
        reals[SEGMENT_FIRST_S, i] = first_s
        reals[SEGMENT_SLOPE_S, i] = w.decode[kind, SLOPE_S, decodes, j] * decodes
        reals[SEGMENT_FIRST_J, i] = _decode_value(w, kind, AT_KNOT_J, decodes, kv_sum, j)
        reals[SEGMENT_SLOPE_J, i] = w.decode[kind, SLOPE_J, decodes, j] * decodes
        took_s = many_s(first_s, reals[SEGMENT_SLOPE_S, i], k)
    reals[SEGMENT_TOKENS, i] = float(tokens)
    counts[SEGMENT_DECODES, i] = decodes
    schedule(w, i, now_s + took_s)


@compiled
def _end_prompt(w: World, i: int, slot: int, now_s: float) -> None:
    """A prompt is processed: its next token is there."""
    counts, slots = w.inst_counts, w.slot_counts
    request = slots[REQUEST, slot]
    if math.isnan(w.outcome[TTFT_S, request]):
        w.outcome[TTFT_S, request] = now_s - w.arrival_s[request]
    slots[GENERATED, slot] += 1
    w.inst_reals[OUTPUT_DONE, i] += 1.0
    if w.counts[CACHE_BLOCKS] > 0:
        keep(w, i, blocks_of(w, request))
    target = slots[DECODE_AT, slot]
    if slots[GENERATED, slot] >= w.output_tokens[request]:
        counts[KV_USED, i] -= slots[PROMPT, slot]
        if target != i:
            counts[ASSIGNED_KV, i] -= slots[PROMPT, slot]
        if target != NONE:
            forget_decode(w, target, slot)
        _complete(w, slot, now_s)
    elif target == i:
        w.served_by[1, request] = i
        join(w, i, slot)
    else:
        counts[HELD, i] += 1
        w.counts[WAITING_EVERYWHERE] += 1
        if not hand_over(w, slot):
            release_source(w, slot)
            w.counts[WAITING_EVERYWHERE] -= 1
            reject(w, slot, NO_INSTANCE)
        elif slots[DECODE_AT, slot] != i:
            wake(w, slots[DECODE_AT, slot], now_s)


@compiled
def pass_iterations(w: World, i: int, iterations: int, now_s: float) -> None:
    """Book iterations of the running segment that end now, and what they produced; nobody leaves yet."""
    counts, reals = w.inst_counts, w.inst_reals
    k = iterations
    decodes = counts[SEGMENT_DECODES, i]
    joules = many_s(reals[SEGMENT_FIRST_J, i], reals[SEGMENT_SLOPE_J, i], k)
    since_s = reals[SEGMENT_START_S, i]
    running = counts[DECODES, i] + counts[CHUNKS, i]
    book_segment(w, counts[POOL, i], since_s, now_s, joules, running)
    reals[BUSY_S, i] += now_s - since_s
    reals[IDLE_SINCE_S, i] = now_s
    reals[ENERGY_J, i] += joules
    w.counts[ITERATIONS] += k
    w.counts[SEGMENTS] += 1
    if decodes > 0:
        counts[COUNTER, i] += k
        counts[KV_SUM, i] += decodes * k
        counts[KV_USED, i] += decodes * k
        reals[OUTPUT_DONE, i] += float(decodes * k)
    if counts[SEGMENT_KIND, i] == PREFILL_SEGMENT:
        per_token_j = joules / (reals[SEGMENT_TOKENS, i] + decodes)
        if decodes > 0:
            reals[SEQUENCE_J, i] += per_token_j
        reals[PROMPT_DONE, i] += reals[SEGMENT_TOKENS, i]
        for at in range(counts[CHUNKS, i]):
            slot = w.chunk_slots[i, at]
            w.slot_reals[TAKEN_J, slot] += per_token_j * w.chunk_tokens[i, at]
    else:
        reals[SEQUENCE_J, i] += joules / decodes


@compiled
def end_segment(w: World, i: int, now_s: float) -> None:
    """End the running segment: book it, let go what is done, begin the next."""
    counts, slots = w.inst_counts, w.slot_counts
    touch(w, i, now_s)
    pass_iterations(w, i, counts[SEGMENT_ITERATIONS, i], now_s)
    was_prefill = counts[SEGMENT_KIND, i] == PREFILL_SEGMENT
    counts[SEGMENT_KIND, i] = IDLE
    while counts[DECODES, i] > 0 and slots[END, w.decode_heap[i, 0]] <= counts[COUNTER, i]:
        slot = remove_decode(w, i, 0)
        cached = slots[BASE, slot] + counts[COUNTER, i]
        counts[KV_SUM, i] -= cached
        counts[KV_USED, i] -= cached
        w.slot_reals[TAKEN_J, slot] += w.inst_reals[SEQUENCE_J, i] - w.slot_reals[ENERGY_MARK_J, slot]
        forget_decode(w, i, slot)
        _complete(w, slot, now_s)
    if was_prefill:
        prompts = counts[CHUNKS, i]
        counts[CHUNKS, i] = 0
        for at in range(prompts):
            slot = w.chunk_slots[i, at]
            take = w.chunk_tokens[i, at]
            slots[PROGRESS, slot] += take
            counts[LOAD, i] -= take
            if slots[PROGRESS, slot] < slots[PROMPT, slot]:
                counts[PARTIAL, i] = slot
            else:
                _end_prompt(w, i, slot, now_s)
    start(w, i, now_s)
    if w.counts[ROUTER] == MIXED_POOL and counts[SEGMENT_KIND, i] == IDLE and counts[LIST, i] == MIXED_LIST:
        if counts[HELD, i] == 0 and first_waiting(w, i) == NONE and counts[ROLE, i] != BOTH:
            to_list(w, i, PROMPT_LIST if counts[ROLE, i] == PREFILL else TOKEN_LIST)


@compiled
def wake(w: World, i: int, now_s: float) -> None:
    """Something arrived at an instance, or memory became free there: let it join at the next end of an iteration."""
    counts, reals = w.inst_counts, w.inst_reals
    if counts[STATE, i] != UP and counts[STATE, i] != DRAINING:
        return
    if counts[SEGMENT_KIND, i] == IDLE:
        start(w, i, now_s)
        return
    if counts[SEGMENT_KIND, i] != DECODING_SEGMENT or counts[SEGMENT_ITERATIONS, i] == 1:
        return
    slot = first_waiting(w, i)
    joins = slot != NONE and _admissible(w, i, slot, 0)
    joins = (joins or counts[READY_HEAD, i] != NONE) and counts[DECODES, i] < w.counts[MAX_BATCH]
    if not joins and not incoming_fits(w, i):
        return
    span_s = now_s - reals[SEGMENT_START_S, i]
    k = iterations_until(reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i], span_s)
    if k < counts[SEGMENT_ITERATIONS, i]:
        counts[SEGMENT_ITERATIONS, i] = k
        end_s = reals[SEGMENT_START_S, i] + many_s(reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i], k)
        schedule(w, i, max(end_s, now_s))
