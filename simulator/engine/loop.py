"""The event loop: what happens next, until nothing does.

Events are ordered by (time, priority, sequence): outside events, then timers, then arrivals, then ends of transfers,
then ends of segments; the sequence is the order in which events were made (timers: the order of the instances). It
ends with the last request; outside events after that do not happen. The loop can pause (for more slots, or after so
many arrivals) and go on where it was, because all state lies in the `World`.
"""

import math

from simulator.engine.accounting import end_idle, end_up, touch
from simulator.engine.batching import NO_INSTANCE, end_segment, enqueue, reject, wake
from simulator.engine.changes import bring_up, change_kind, drain, end_drains, fail, timer
from simulator.engine.layout import (
    CAP_EVENT,
    DECODE_AT,
    DECODE_STAGE,
    DOWN,
    DOWN_EVENT,
    DRAIN_EVENT,
    DRAINING,
    ENERGY_MARK_J,
    EVENTS_HELD,
    FREE,
    FREE_SLOT,
    GENERATED,
    IDLE,
    IN_SYSTEM,
    LEVEL,
    MOVING,
    MOVING_STAGE,
    NEXT_ARRIVAL,
    NEXT_EVENT,
    NEXT_TIMER,
    NEXT_TIMER_S,
    NONE,
    NOW_S,
    PREEMPTED,
    PREFILL_AT,
    PROGRESS,
    PROMPT,
    REQUEST,
    REQUEST_J,
    SAMPLES,
    SEGMENT_END_S,
    SEGMENT_KIND,
    SEQUENCE_J,
    STAGE,
    STATE,
    STOP_OVERLOADED,
    TAKEN_J,
    UP_EVENT,
    VERSION,
    WAITING_EVERYWHERE,
    World,
)
from simulator.engine.placement import model_of, place
from simulator.engine.queues import drop_first_move, take_slot
from simulator.engine.transfers import make_ready, release_source
from solver.compiled import compiled

FINISHED, NEEDS_SLOTS, PAUSED, OVERLOADED = range(4)
TOO_LONG = 1


@compiled
def _anybody_up(w: World, model: int) -> bool:
    """Whether any instance that processes prompts of a model is up or starting."""
    for at in range(w.prefill_offsets[model], w.prefill_offsets[model + 1]):
        state = w.inst_counts[STATE, w.prefill_of[at]]
        if state != DOWN and state != DRAINING:
            return True
    return False


@compiled
def _sample(w: World, request: int) -> bool:
    """Note the backlog now and then; True if the run should stop as overloaded.

    Overloaded: more than a quarter of all that arrived so far (and more than 64 requests) is not in any batch, and half
    as much again as when half as many had arrived.
    """
    samples = len(w.backlog)
    total = len(w.arrival_s)
    if (request + 1) * samples // total == request * samples // total:
        return False
    at = w.counts[SAMPLES]
    w.backlog[at] = float(w.counts[IN_SYSTEM])
    w.waiting[at] = float(w.counts[WAITING_EVERYWHERE])
    w.counts[SAMPLES] = at + 1
    if w.counts[STOP_OVERLOADED] == 0 or at < samples // 8:
        return False
    waiting = w.waiting[at]
    return bool(waiting > 64.0 and waiting > 0.25 * (request + 1) and waiting > 1.5 * w.waiting[at // 2])


@compiled
def _arrive(w: World, request: int, now_s: float) -> None:
    """Take a request in and send it to an instance."""
    slot = take_slot(w)
    slots = w.slot_counts
    slots[REQUEST, slot] = request
    slots[PROMPT, slot] = w.prompt_tokens[request]
    slots[PROGRESS, slot] = 0
    slots[GENERATED, slot] = 0
    slots[PREEMPTED, slot] = 0
    slots[VERSION, slot] += 1
    slots[LEVEL, slot] = w.level[request if len(w.level) > 1 else 0]
    slots[PREFILL_AT, slot] = NONE
    slots[DECODE_AT, slot] = NONE
    w.slot_reals[TAKEN_J, slot] = 0.0
    w.counts[IN_SYSTEM] += 1
    if place(w, slot):
        i = slots[PREFILL_AT, slot]
        touch(w, i, now_s)
        enqueue(w, i, slot)
        wake(w, i, now_s)
    else:
        reject(w, slot, TOO_LONG if _anybody_up(w, model_of(w, request)) else NO_INSTANCE)


@compiled
def _end_move(w: World, now_s: float) -> None:
    """The KV of a request is at its destination."""
    slot = w.move_marks[1, 0]
    version = w.move_marks[2, 0]
    drop_first_move(w)
    slots = w.slot_counts
    if slots[STAGE, slot] != MOVING_STAGE or slots[VERSION, slot] != version:
        return  # an instance failed meanwhile
    source, target = slots[PREFILL_AT, slot], slots[DECODE_AT, slot]
    touch(w, source, now_s)
    touch(w, target, now_s)
    release_source(w, slot)
    make_ready(w, target, slot)
    wake(w, target, now_s)
    wake(w, source, now_s)
    end_drains(w, now_s)


@compiled
def _outside(w: World, now_s: float) -> None:
    """Let the next outside event happen."""
    at = w.counts[NEXT_EVENT]
    w.counts[NEXT_EVENT] = at + 1
    kind, i = w.event_marks[0, at], w.event_marks[1, at]
    if kind == DOWN_EVENT:
        fail(w, i, now_s)
    elif kind == DRAIN_EVENT:
        drain(w, i, now_s)
    elif kind == UP_EVENT:
        bring_up(w, i, now_s)
    elif kind == CAP_EVENT:
        change_kind(w, i, w.event_marks[2, at], now_s)


@compiled
def advance(w: World, until_arrival: int) -> int:
    """Run until nothing happens any more, more slots are needed, or request ``until_arrival`` is next."""
    total = len(w.arrival_s)
    events = len(w.event_time_s)
    slots = w.slot_counts.shape[1]
    while True:
        arrival = w.counts[NEXT_ARRIVAL]
        arrival_s = w.arrival_s[arrival] if arrival < total else math.inf
        outside = w.counts[NEXT_EVENT]
        next_s = w.event_time_s[outside] if outside < events else math.inf
        which = 0
        if w.reals[NEXT_TIMER_S] < next_s:
            which = 1
            next_s = w.reals[NEXT_TIMER_S]
        if arrival_s < next_s:
            which = 2
            next_s = arrival_s
        if w.counts[MOVING] > 0 and w.move_time_s[0] < next_s:
            which = 3
            next_s = w.move_time_s[0]
        if w.counts[EVENTS_HELD] > 0:
            first = w.instance_heap[0]
            if w.inst_reals[SEGMENT_END_S, first] < next_s:
                which = 4
                next_s = w.inst_reals[SEGMENT_END_S, first]
        if next_s == math.inf or (arrival >= total and w.counts[IN_SYSTEM] == 0):
            return FINISHED
        if which != 4 and (w.counts[FREE_SLOT] == NONE or w.counts[MOVING] >= slots):
            return NEEDS_SLOTS
        if which == 2 and arrival >= until_arrival:
            return PAUSED
        w.reals[NOW_S] = next_s
        if which == 4:
            i = w.instance_heap[0]
            end_segment(w, i, next_s)
            end_drains(w, next_s)
        elif which == 2:
            w.counts[NEXT_ARRIVAL] = arrival + 1
            _arrive(w, arrival, next_s)
            if _sample(w, arrival):
                return OVERLOADED
        elif which == 3:
            _end_move(w, next_s)
        elif which == 0:
            _outside(w, next_s)
        else:
            timer(w, w.counts[NEXT_TIMER], next_s)


@compiled
def close_books(w: World) -> None:
    """Bring every instance's accounts up to now; what a run that was stopped early had under way is not booked."""
    now_s = w.reals[NOW_S]
    for i in range(w.inst_counts.shape[1]):
        touch(w, i, now_s)
        if w.inst_counts[STATE, i] != DOWN:
            if w.inst_counts[SEGMENT_KIND, i] == IDLE:
                end_idle(w, i, now_s)
            end_up(w, i, now_s)
    for slot in range(w.slot_counts.shape[1]):  # those that did not finish took part too
        stage = w.slot_counts[STAGE, slot]
        if stage != FREE:
            joules = w.slot_reals[TAKEN_J, slot]
            if stage == DECODE_STAGE:
                i = w.slot_counts[DECODE_AT, slot]
                joules += w.inst_reals[SEQUENCE_J, i] - w.slot_reals[ENERGY_MARK_J, slot]
            w.outcome[REQUEST_J, w.slot_counts[REQUEST, slot]] = joules
