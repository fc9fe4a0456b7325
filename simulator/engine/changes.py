"""What happens to instances from outside: failure, drain, return, another speed.

It exists so that capacity that comes and goes loses nothing silently: requests of a failed instance start again
elsewhere in the order of their arrival (what was already generated stays and is processed with the prompt), KV under
way is sent again if its source still holds it, and joules of a broken-off iteration are booked as idle. A draining
instance is off once no prompt, no decode and no KV to be moved is left on it or on its way to it. A new speed counts
from the next iteration on, at once where none runs; memory stays. It decides nothing: events are inputs.
"""

import math

import numpy as np

from simulator.engine.accounting import book, end_idle, end_up, touch
from simulator.engine.batching import (
    NO_INSTANCE,
    enqueue,
    pass_iterations,
    reject,
    wake,
)
from simulator.engine.layout import (
    ASSIGNED_KV,
    BOTH,
    CACHE_BLOCKS,
    CHUNKS,
    COUNTER,
    DECODE_AT,
    DECODE_STAGE,
    DECODES,
    DECODING_SEGMENT,
    DOWN,
    DRAINING,
    DRAINS,
    EGRESS_FREE_S,
    END,
    ENERGY_BIN,
    ENERGY_J,
    ENERGY_MARK_J,
    FREE,
    GENERATED,
    HELD,
    HELD_STAGE,
    IDLE,
    IDLE_J,
    IDLE_SINCE_S,
    INCOMING_HEAD,
    INCOMING_TAIL,
    INGRESS_FREE_S,
    KIND,
    KV_SUM,
    KV_USED,
    LEVELS,
    LOAD,
    LOST_STAGE,
    MIXED_LIST,
    NEXT,
    NEXT_KIND,
    NEXT_TIMER,
    NEXT_TIMER_S,
    NONE,
    PARTIAL,
    POOL,
    PREFILL,
    PREFILL_AT,
    PROMPT,
    PROMPT_LIST,
    PROMPT_STAGE,
    READY,
    READY_HEAD,
    READY_STAGE,
    READY_TAIL,
    REQUEST,
    ROLE,
    SCHEDULED_S,
    SEGMENT_FIRST_J,
    SEGMENT_FIRST_S,
    SEGMENT_ITERATIONS,
    SEGMENT_KIND,
    SEGMENT_SLOPE_J,
    SEGMENT_SLOPE_S,
    SEGMENT_START_S,
    SEQUENCE_J,
    STAGE,
    STARTING,
    STATE,
    TAKEN_J,
    TIMER_S,
    TOKEN_LIST,
    TOUCHED_S,
    UP,
    UP_SINCE_S,
    VERSION,
    WAITING,
    WAITING_EVERYWHERE,
    WAITING_STAGE,
    World,
)
from simulator.engine.placement import place, to_list
from simulator.engine.prefix_cache import forget_all
from simulator.engine.queues import append, schedule, unschedule
from simulator.engine.segments import iterations_until, many_s
from simulator.engine.transfers import forget_decode, hand_over, release_source
from solver.compiled import compiled


@compiled
def set_timer(w: World, i: int, at_s: float) -> None:
    """Let something happen to an instance at a time (infinity: nothing)."""
    w.inst_reals[TIMER_S, i] = at_s
    w.reals[NEXT_TIMER_S] = math.inf
    for other in range(w.inst_reals.shape[1]):
        if w.inst_reals[TIMER_S, other] < w.reals[NEXT_TIMER_S]:
            w.reals[NEXT_TIMER_S] = w.inst_reals[TIMER_S, other]
            w.counts[NEXT_TIMER] = other


@compiled
def home_list(role: int) -> int:
    """mixed-pool: the list an instance belongs to."""
    if role == PREFILL:
        return PROMPT_LIST
    return MIXED_LIST if role == BOTH else TOKEN_LIST


@compiled
def _go_down(w: World, i: int, now_s: float) -> None:
    """Switch an empty instance off."""
    touch(w, i, now_s)
    end_idle(w, i, now_s)
    end_up(w, i, now_s)
    counts = w.inst_counts
    w.counts[DRAINS] -= counts[STATE, i] == DRAINING
    counts[STATE, i] = DOWN
    counts[SEGMENT_KIND, i] = IDLE
    if counts[NEXT_KIND, i] != NONE:
        counts[KIND, i] = counts[NEXT_KIND, i]
        counts[NEXT_KIND, i] = NONE
    unschedule(w, i)
    set_timer(w, i, math.inf)
    if w.counts[CACHE_BLOCKS] > 0:
        forget_all(w, i)


@compiled
def end_drains(w: World, now_s: float) -> None:
    """Switch the draining instances off that have nothing left on them or on its way to them."""
    counts = w.inst_counts
    if w.counts[DRAINS] == 0:
        return
    for i in range(counts.shape[1]):
        if counts[STATE, i] == DRAINING and counts[LOAD, i] == 0 and counts[HELD, i] == 0:
            _go_down(w, i, now_s)


@compiled
def _break_off(w: World, i: int, now_s: float) -> None:
    """End the running segment in the middle: whole iterations count, the rest is lost."""
    counts, reals = w.inst_counts, w.inst_reals
    if counts[SEGMENT_KIND, i] == IDLE:
        return
    began_s = reals[SEGMENT_START_S, i]
    span_s = now_s - began_s
    k = 0
    if counts[SEGMENT_KIND, i] == DECODING_SEGMENT and span_s > 0.0:
        k = iterations_until(reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i], span_s)
        if many_s(reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i], k) > span_s:
            k -= 1
        k = min(k, counts[SEGMENT_ITERATIONS, i] - 1)
    done_s = began_s + many_s(reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i], k)
    if k > 0:
        pass_iterations(w, i, k, done_s)
    if now_s > done_s and reals[SEGMENT_FIRST_S, i] > 0.0:
        joules = reals[SEGMENT_FIRST_J, i] + k * reals[SEGMENT_SLOPE_J, i]
        watts = joules / (reals[SEGMENT_FIRST_S, i] + k * reals[SEGMENT_SLOPE_S, i])
        joules = watts * (now_s - done_s)
        reals[ENERGY_J, i] += joules
        reals[IDLE_J, i] += joules
        book(w, counts[POOL, i], ENERGY_BIN, done_s, now_s, watts)
    reals[IDLE_SINCE_S, i] = now_s
    counts[SEGMENT_KIND, i] = IDLE


@compiled
def _withdraw_incoming(w: World, i: int, slot: int) -> None:
    """Take one slot out of the list of those that wait for room at an instance."""
    counts, slots = w.inst_counts, w.slot_counts
    head = counts[INCOMING_HEAD, i]
    counts[INCOMING_HEAD, i] = NONE
    counts[INCOMING_TAIL, i] = NONE
    while head != NONE:
        after = slots[NEXT, head]
        if head != slot:
            append(w, i, INCOMING_HEAD, head)
        head = after


@compiled
def fail(w: World, i: int, now_s: float) -> None:
    """Take an instance down at once and start its requests again elsewhere."""
    counts, slots = w.inst_counts, w.slot_counts
    if counts[STATE, i] == DOWN:
        return
    touch(w, i, now_s)
    _break_off(w, i, now_s)
    for slot in range(slots.shape[1]):
        stage = slots[STAGE, slot]
        if stage == FREE:
            continue
        source, target = slots[PREFILL_AT, slot], slots[DECODE_AT, slot]
        if stage == WAITING_STAGE or stage == PROMPT_STAGE:
            if source == i:
                if stage == WAITING_STAGE:
                    w.counts[WAITING_EVERYWHERE] -= 1
                if target != NONE and target != i:
                    forget_decode(w, target, slot)
                slots[STAGE, slot] = LOST_STAGE
            elif target == i:
                slots[DECODE_AT, slot] = NONE
        elif stage == DECODE_STAGE or stage == READY_STAGE:
            if target == i:
                if stage == DECODE_STAGE:
                    request = slots[REQUEST, slot]
                    left = slots[END, slot] - counts[COUNTER, i]
                    slots[GENERATED, slot] = w.output_tokens[request] - left
                    w.slot_reals[TAKEN_J, slot] += (
                        w.inst_reals[SEQUENCE_J, i] - w.slot_reals[ENERGY_MARK_J, slot]
                    )
                slots[STAGE, slot] = LOST_STAGE
        elif source == i:
            slots[VERSION, slot] += 1
            w.counts[WAITING_EVERYWHERE] -= 1
            touch(w, target, now_s)
            if stage == HELD_STAGE:
                _withdraw_incoming(w, target, slot)
            else:
                w.inst_counts[KV_USED, target] -= slots[PROMPT, slot]
            forget_decode(w, target, slot)
            slots[STAGE, slot] = LOST_STAGE
        elif target == i:
            slots[VERSION, slot] += 1
            slots[DECODE_AT, slot] = NONE
            slots[STAGE, slot] = HELD_STAGE
            w.slot_reals[SCHEDULED_S, slot] = now_s  # a second copy does not overlap with the prompt
    for row in (DECODES, KV_SUM, KV_USED, CHUNKS, HELD, READY, WAITING, LOAD, ASSIGNED_KV):
        counts[row, i] = 0
    for row in (PARTIAL, READY_HEAD, READY_TAIL, INCOMING_HEAD, INCOMING_TAIL):
        counts[row, i] = NONE
    for level in range(w.counts[LEVELS]):
        w.wait_head[level, i] = NONE
        w.wait_tail[level, i] = NONE
    w.inst_reals[EGRESS_FREE_S, i] = now_s
    w.inst_reals[INGRESS_FREE_S, i] = now_s
    _go_down(w, i, now_s)
    for slot in np.argsort(slots[REQUEST]):
        if slots[STAGE, slot] == HELD_STAGE and slots[DECODE_AT, slot] == NONE:
            if hand_over(w, slot):
                wake(w, slots[DECODE_AT, slot], now_s)
            else:
                source = slots[PREFILL_AT, slot]
                touch(w, source, now_s)
                release_source(w, slot)
                w.counts[WAITING_EVERYWHERE] -= 1
                reject(w, slot, NO_INSTANCE)
                wake(w, source, now_s)
        elif slots[STAGE, slot] == LOST_STAGE:
            slots[PROMPT, slot] = w.prompt_tokens[slots[REQUEST, slot]] + slots[GENERATED, slot]
            if place(w, slot):
                to = slots[PREFILL_AT, slot]
                touch(w, to, now_s)
                enqueue(w, to, slot)
                wake(w, to, now_s)
            else:
                reject(w, slot, NO_INSTANCE)
    for other in range(counts.shape[1]):  # what this set free elsewhere
        wake(w, other, now_s)
    end_drains(w, now_s)


@compiled
def drain(w: World, i: int, now_s: float) -> None:
    """Send no more requests to an instance; switch it off when it is empty, or at the end of its patience."""
    if w.inst_counts[STATE, i] == STARTING:
        fail(w, i, now_s)
    elif w.inst_counts[STATE, i] == UP:
        w.inst_counts[STATE, i] = DRAINING
        w.counts[DRAINS] += 1
        if w.drain_s[i] > 0.0:
            set_timer(w, i, now_s + w.drain_s[i])
        end_drains(w, now_s)


@compiled
def _serve(w: World, i: int, now_s: float) -> None:
    """An instance has started."""
    w.inst_counts[STATE, i] = UP
    set_timer(w, i, math.inf)
    to_list(w, i, home_list(w.inst_counts[ROLE, i]))
    wake(w, i, now_s)


@compiled
def bring_up(w: World, i: int, now_s: float) -> None:
    """Start an instance that is down, or take a draining one back."""
    counts, reals = w.inst_counts, w.inst_reals
    if counts[STATE, i] == DRAINING:
        w.counts[DRAINS] -= 1
        counts[STATE, i] = UP
        set_timer(w, i, math.inf)
    elif counts[STATE, i] == DOWN:
        reals[UP_SINCE_S, i] = now_s
        reals[IDLE_SINCE_S, i] = now_s
        reals[TOUCHED_S, i] = now_s
        if w.start_s[i] > 0.0:
            counts[STATE, i] = STARTING
            set_timer(w, i, now_s + w.start_s[i])
        else:
            _serve(w, i, now_s)


@compiled
def timer(w: World, i: int, now_s: float) -> None:
    """A start-up or a drain is over."""
    if w.inst_counts[STATE, i] == STARTING:
        _serve(w, i, now_s)
    else:
        fail(w, i, now_s)


@compiled
def change_kind(w: World, i: int, kind: int, now_s: float) -> None:
    """Run at another speed from the next iteration on."""
    counts, reals = w.inst_counts, w.inst_reals
    if counts[SEGMENT_KIND, i] == IDLE:
        end_idle(w, i, now_s)
        counts[KIND, i] = kind
        return
    counts[NEXT_KIND, i] = kind
    if counts[SEGMENT_KIND, i] == DECODING_SEGMENT:
        first_s, slope_s = reals[SEGMENT_FIRST_S, i], reals[SEGMENT_SLOPE_S, i]
        k = iterations_until(first_s, slope_s, now_s - reals[SEGMENT_START_S, i])
        if k < counts[SEGMENT_ITERATIONS, i]:
            counts[SEGMENT_ITERATIONS, i] = k
            end_s = reals[SEGMENT_START_S, i] + many_s(first_s, slope_s, k)
            schedule(w, i, max(end_s, now_s))
