"""Linked lists of slots and heaps of decodes, instances and transfers, on the arrays of `layout`.

It exists so that the rules of batching read as rules. Lists are first in, first out; heaps break ties by the order in
which entries were made, so that every run is reproducible. Nothing here knows what a request is.
"""

from simulator.engine.layout import (
    DECODES,
    END,
    EVENT_PLACE,
    EVENT_SEQUENCE,
    EVENTS_HELD,
    FREE,
    FREE_SLOT,
    LEVEL,
    LEVELS,
    MOVING,
    NEXT,
    NONE,
    READY,
    READY_HEAD,
    SEGMENT_END_S,
    SEQUENCE,
    STAGE,
    WAITING,
    World,
)
from solver.compiled import compiled

# -- slots ------------------------------------------------------------------------------------------------------------


@compiled
def take_slot(w: World) -> int:
    """Return a free slot, or -1."""
    slot = int(w.counts[FREE_SLOT])
    if slot >= 0:
        w.counts[FREE_SLOT] = w.slot_counts[NEXT, slot]
    return slot


@compiled
def give_slot(w: World, slot: int) -> None:
    """Return a slot to the free ones."""
    w.slot_counts[STAGE, slot] = FREE
    w.slot_counts[NEXT, slot] = w.counts[FREE_SLOT]
    w.counts[FREE_SLOT] = slot


# -- waiting prompts of an instance, by level -------------------------------------------------------------------------


@compiled
def wait_at_end(w: World, i: int, slot: int) -> None:
    """Append to the queue of the slot's level."""
    level = w.slot_counts[LEVEL, slot]
    tail = w.wait_tail[level, i]
    w.slot_counts[NEXT, slot] = NONE
    if tail == NONE:
        w.wait_head[level, i] = slot
    else:
        w.slot_counts[NEXT, tail] = slot
    w.wait_tail[level, i] = slot
    w.inst_counts[WAITING, i] += 1


@compiled
def wait_in_front(w: World, i: int, slot: int) -> None:
    """Put in front of the queue of the slot's level."""
    level = w.slot_counts[LEVEL, slot]
    head = w.wait_head[level, i]
    w.slot_counts[NEXT, slot] = head
    if head == NONE:
        w.wait_tail[level, i] = slot
    w.wait_head[level, i] = slot
    w.inst_counts[WAITING, i] += 1


@compiled
def first_waiting(w: World, i: int) -> int:
    """Return the slot that is served next, or -1."""
    for level in range(w.counts[LEVELS]):
        if w.wait_head[level, i] != NONE:
            return int(w.wait_head[level, i])
    return NONE


@compiled
def stop_waiting(w: World, i: int, slot: int) -> None:
    """Take the first slot of its level out."""
    level = w.slot_counts[LEVEL, slot]
    after = w.slot_counts[NEXT, slot]
    w.wait_head[level, i] = after
    if after == NONE:
        w.wait_tail[level, i] = NONE
    w.inst_counts[WAITING, i] -= 1


# -- lists with head and tail among the instance's counts -------------------------------------------------------------


@compiled
def append(w: World, i: int, head: int, slot: int) -> None:
    """Append to the list whose head is row ``head`` and whose tail is the row after it."""
    tail = w.inst_counts[head + 1, i]
    w.slot_counts[NEXT, slot] = NONE
    if tail == NONE:
        w.inst_counts[head, i] = slot
    else:
        w.slot_counts[NEXT, tail] = slot
    w.inst_counts[head + 1, i] = slot


@compiled
def remove_first(w: World, i: int, head: int) -> int:
    """Take the first slot out; the list must not be empty."""
    slot = int(w.inst_counts[head, i])
    after = w.slot_counts[NEXT, slot]
    w.inst_counts[head, i] = after
    if after == NONE:
        w.inst_counts[head + 1, i] = NONE
    return slot


@compiled
def remove_ready(w: World, i: int) -> int:
    """Take the first request out whose KV is there."""
    w.inst_counts[READY, i] -= 1
    return remove_first(w, i, READY_HEAD)


@compiled
def append_ready(w: World, i: int, slot: int) -> None:
    """Append a request whose KV is there."""
    w.inst_counts[READY, i] += 1
    append(w, i, READY_HEAD, slot)


# -- decodes of an instance, the next to end first --------------------------------------------------------------------


@compiled
def _sooner(w: World, a: int, b: int) -> bool:
    if w.slot_counts[END, a] != w.slot_counts[END, b]:
        return bool(w.slot_counts[END, a] < w.slot_counts[END, b])
    return a < b


@compiled
def _decode_up(w: World, i: int, place: int) -> None:
    heap = w.decode_heap[i]
    slot = heap[place]
    while place > 0:
        above = (place - 1) >> 1
        if not _sooner(w, slot, heap[above]):
            break
        heap[place] = heap[above]
        place = above
    heap[place] = slot


@compiled
def _decode_down(w: World, i: int, place: int, size: int) -> None:
    heap = w.decode_heap[i]
    slot = heap[place]
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and _sooner(w, heap[below + 1], heap[below]):
            below += 1
        if not _sooner(w, heap[below], slot):
            break
        heap[place] = heap[below]
        place = below
    heap[place] = slot


@compiled
def add_decode(w: World, i: int, slot: int) -> None:
    """Add a decode; its END is set."""
    size = w.inst_counts[DECODES, i]
    w.decode_heap[i, size] = slot
    w.inst_counts[DECODES, i] = size + 1
    _decode_up(w, i, size)


@compiled
def remove_decode(w: World, i: int, place: int) -> int:
    """Take the decode at a place of the heap out."""
    heap = w.decode_heap[i]
    slot = heap[place]
    size = w.inst_counts[DECODES, i] - 1
    w.inst_counts[DECODES, i] = size
    if place < size:
        heap[place] = heap[size]
        _decode_down(w, i, place, size)
        _decode_up(w, i, place)
    return int(slot)


# -- instances by the end of their segment ----------------------------------------------------------------------------


@compiled
def _instance_sooner(w: World, a: int, b: int) -> bool:
    if w.inst_reals[SEGMENT_END_S, a] != w.inst_reals[SEGMENT_END_S, b]:
        return bool(w.inst_reals[SEGMENT_END_S, a] < w.inst_reals[SEGMENT_END_S, b])
    return bool(w.inst_counts[EVENT_SEQUENCE, a] < w.inst_counts[EVENT_SEQUENCE, b])


@compiled
def _instance_up(w: World, place: int) -> None:
    heap = w.instance_heap
    i = heap[place]
    while place > 0:
        above = (place - 1) >> 1
        if not _instance_sooner(w, i, heap[above]):
            break
        heap[place] = heap[above]
        w.inst_counts[EVENT_PLACE, heap[place]] = place
        place = above
    heap[place] = i
    w.inst_counts[EVENT_PLACE, i] = place


@compiled
def _instance_down(w: World, place: int, size: int) -> None:
    heap = w.instance_heap
    i = heap[place]
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and _instance_sooner(w, heap[below + 1], heap[below]):
            below += 1
        if not _instance_sooner(w, heap[below], i):
            break
        heap[place] = heap[below]
        w.inst_counts[EVENT_PLACE, heap[place]] = place
        place = below
    heap[place] = i
    w.inst_counts[EVENT_PLACE, i] = place


@compiled
def schedule(w: World, i: int, at_s: float) -> None:
    """Let the segment of an instance end at a time, whether it had one or not."""
    place = w.inst_counts[EVENT_PLACE, i]
    w.inst_reals[SEGMENT_END_S, i] = at_s
    w.counts[SEQUENCE] += 1
    w.inst_counts[EVENT_SEQUENCE, i] = w.counts[SEQUENCE]
    if place == NONE:
        place = w.counts[EVENTS_HELD]
        w.instance_heap[place] = i
        w.counts[EVENTS_HELD] = place + 1
        _instance_up(w, place)
    else:
        _instance_down(w, place, w.counts[EVENTS_HELD])
        _instance_up(w, w.inst_counts[EVENT_PLACE, i])


@compiled
def unschedule(w: World, i: int) -> None:
    """Let an instance have no segment."""
    place = w.inst_counts[EVENT_PLACE, i]
    if place == NONE:
        return
    size = w.counts[EVENTS_HELD] - 1
    w.counts[EVENTS_HELD] = size
    w.inst_counts[EVENT_PLACE, i] = NONE
    if place < size:
        moved = w.instance_heap[size]
        w.instance_heap[place] = moved
        w.inst_counts[EVENT_PLACE, moved] = place
        _instance_down(w, place, size)
        _instance_up(w, w.inst_counts[EVENT_PLACE, moved])


# -- transfers by their end -------------------------------------------------------------------------------------------


@compiled
def _move_sooner(w: World, a: int, b: int) -> bool:
    if w.move_time_s[a] != w.move_time_s[b]:
        return bool(w.move_time_s[a] < w.move_time_s[b])
    return bool(w.move_marks[0, a] < w.move_marks[0, b])


@compiled
def _swap_moves(w: World, a: int, b: int) -> None:
    time_s = w.move_time_s[a]
    w.move_time_s[a] = w.move_time_s[b]
    w.move_time_s[b] = time_s
    for row in range(3):
        mark = w.move_marks[row, a]
        w.move_marks[row, a] = w.move_marks[row, b]
        w.move_marks[row, b] = mark


@compiled
def add_move(w: World, at_s: float, slot: int, version: int) -> None:
    """Add a transfer that ends at a time."""
    place = w.counts[MOVING]
    w.counts[MOVING] = place + 1
    w.counts[SEQUENCE] += 1
    w.move_time_s[place] = at_s
    w.move_marks[0, place] = w.counts[SEQUENCE]
    w.move_marks[1, place] = slot
    w.move_marks[2, place] = version
    while place > 0:
        above = (place - 1) >> 1
        if not _move_sooner(w, place, above):
            break
        _swap_moves(w, place, above)
        place = above


@compiled
def drop_first_move(w: World) -> None:
    """Take the transfer out that ends first; it was read before."""
    size = w.counts[MOVING] - 1
    w.counts[MOVING] = size
    if size > 0:
        _swap_moves(w, 0, size)
    place = 0
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and _move_sooner(w, below + 1, below):
            below += 1
        if not _move_sooner(w, below, place):
            break
        _swap_moves(w, below, place)
        place = below
