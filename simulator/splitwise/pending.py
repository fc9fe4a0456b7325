"""Lists kept by the machines: pending tasks by rank, queues and requests as linked rows, the order of coming events.

It exists because the peer looks for a task's place in its list of pending tasks by binary search over keys that have
changed since the tasks came in. The list then need not be sorted, so no sorted container can stand in: the search has
to probe the same ranks. The list is kept in linked blocks, which makes inserting and removing cheap however long it
grows.
"""

from simulator.splitwise.layout import (
    ARRIVAL_S,
    BLOCK_ITEMS,
    BLOCK_NEXT,
    BLOCK_PREVIOUS,
    BLOCK_SIZE,
    BLOCKS_LEFT,
    END_S,
    EVENT,
    FREE_BLOCK,
    LINE_NEXT,
    LINE_PREVIOUS,
    MOVE_EVENT,
    MOVE_S,
    MOVES,
    NONE,
    PASSED,
    PENDING,
    PENDING_FIRST,
    PENDING_LAST,
    PROMPT_BLOCK,
    PROMPT_DONE,
    REQUEST_FIRST,
    REQUEST_LAST,
    REQUEST_NEXT,
    REQUEST_PREVIOUS,
    REQUESTS,
    STARTS,
    World,
)
from solver.compiled import compiled


@compiled
def passed_over(w: World, machine: int, task: int) -> int:
    """Return how many starts of iterations a waiting task has seen as its request's head task."""
    slot = task >> 1
    if task & 1 and w.slot_counts[slot, PROMPT_DONE] == 0:
        return 0
    return int(w.machine_counts[machine, STARTS] - w.slot_counts[slot, PASSED])


@compiled
def _comes_before(w: World, machine: int, passed: int, arrival_s: float, other: int) -> bool:
    other_passed = passed_over(w, machine, other)
    if passed != other_passed:
        return passed < other_passed
    return bool(arrival_s < w.slot_reals[other >> 1, ARRIVAL_S])


@compiled
def _new_block(w: World, machine: int, after: int) -> int:
    block = w.counts[FREE_BLOCK]
    w.counts[FREE_BLOCK] = w.blocks[block, BLOCK_NEXT]
    w.counts[BLOCKS_LEFT] -= 1
    following = NONE
    if after == NONE:
        w.machine_counts[machine, PENDING_FIRST] = block
    else:
        following = w.blocks[after, BLOCK_NEXT]
        w.blocks[after, BLOCK_NEXT] = block
    if following == NONE:
        w.machine_counts[machine, PENDING_LAST] = block
    else:
        w.blocks[following, BLOCK_PREVIOUS] = block
    w.blocks[block, BLOCK_NEXT] = following
    w.blocks[block, BLOCK_PREVIOUS] = after
    w.blocks[block, BLOCK_SIZE] = 0
    return int(block)


@compiled
def _split(w: World, machine: int, block: int) -> int:
    """Move the upper half of a full block to a new one behind it."""
    behind = _new_block(w, machine, block)
    half = BLOCK_ITEMS // 2
    for at in range(half, BLOCK_ITEMS):
        task = w.items[block, at]
        w.items[behind, at - half] = task
        w.slot_counts[task >> 1, PROMPT_BLOCK + (task & 1)] = behind
    w.blocks[block, BLOCK_SIZE] = half
    w.blocks[behind, BLOCK_SIZE] = BLOCK_ITEMS - half
    return behind


@compiled
def insert_pending(w: World, machine: int, task: int) -> None:
    """Put a task into the list of pending ones where the peer's binary search puts it."""
    passed = passed_over(w, machine, task)
    arrival_s = w.slot_reals[task >> 1, ARRIVAL_S]
    low = 0
    high = w.machine_counts[machine, PENDING]
    block = w.machine_counts[machine, PENDING_FIRST]
    if high == 0:
        block = _new_block(w, machine, NONE)
        place = 0
    elif block == w.machine_counts[machine, PENDING_LAST]:
        while low < high:
            middle = (low + high) // 2
            if _comes_before(w, machine, passed, arrival_s, w.items[block, middle]):
                high = middle
            else:
                low = middle + 1
        place = low
    else:
        number = 0
        rank = 0
        while block != NONE:
            w.search[0, number] = block
            w.search[1, number] = rank
            rank += w.blocks[block, BLOCK_SIZE]
            number += 1
            block = w.blocks[block, BLOCK_NEXT]
        while low < high:
            middle = (low + high) // 2
            at = _block_of_rank(w, number, middle)
            other = w.items[w.search[0, at], middle - w.search[1, at]]
            if _comes_before(w, machine, passed, arrival_s, other):
                high = middle
            else:
                low = middle + 1
        at = _block_of_rank(w, number, low)
        block = w.search[0, at]
        place = low - w.search[1, at]
    if w.blocks[block, BLOCK_SIZE] == BLOCK_ITEMS:
        behind = _split(w, machine, block)
        if place > BLOCK_ITEMS // 2:
            block = behind
            place -= BLOCK_ITEMS // 2
    for at in range(w.blocks[block, BLOCK_SIZE], place, -1):
        w.items[block, at] = w.items[block, at - 1]
    w.items[block, place] = task
    w.slot_counts[task >> 1, PROMPT_BLOCK + (task & 1)] = block
    w.blocks[block, BLOCK_SIZE] += 1
    w.machine_counts[machine, PENDING] += 1


@compiled
def _block_of_rank(w: World, number: int, rank: int) -> int:
    """Return the last of so many blocks whose first task has at most this rank."""
    low, high = 0, number
    while high - low > 1:
        middle = (low + high) // 2
        if w.search[1, middle] <= rank:
            low = middle
        else:
            high = middle
    return low


@compiled
def remove_pending(w: World, machine: int, task: int) -> None:
    """Take a task out of the list of pending ones."""
    block = w.slot_counts[task >> 1, PROMPT_BLOCK + (task & 1)]
    size = w.blocks[block, BLOCK_SIZE] - 1
    place = 0
    while w.items[block, place] != task:
        place += 1
    for at in range(place, size):
        w.items[block, at] = w.items[block, at + 1]
    w.blocks[block, BLOCK_SIZE] = size
    w.machine_counts[machine, PENDING] -= 1
    if size == 0:
        before, behind = w.blocks[block, BLOCK_PREVIOUS], w.blocks[block, BLOCK_NEXT]
        if before == NONE:
            w.machine_counts[machine, PENDING_FIRST] = behind
        else:
            w.blocks[before, BLOCK_NEXT] = behind
        if behind == NONE:
            w.machine_counts[machine, PENDING_LAST] = before
        else:
            w.blocks[behind, BLOCK_PREVIOUS] = before
        w.blocks[block, BLOCK_NEXT] = w.counts[FREE_BLOCK]
        w.counts[FREE_BLOCK] = block
        w.counts[BLOCKS_LEFT] += 1


@compiled
def join_line(w: World, machine: int, slot: int, first: int) -> None:
    """Append to the prompt queue or the blocked decodes; ``first`` is the column of the line's first slot."""
    last = w.machine_counts[machine, first + 1]
    w.slot_counts[slot, LINE_NEXT] = NONE
    w.slot_counts[slot, LINE_PREVIOUS] = last
    if last == NONE:
        w.machine_counts[machine, first] = slot
    else:
        w.slot_counts[last, LINE_NEXT] = slot
    w.machine_counts[machine, first + 1] = slot


@compiled
def leave_line(w: World, machine: int, slot: int, first: int) -> None:
    """Leave the prompt queue or the blocked decodes."""
    before, behind = w.slot_counts[slot, LINE_PREVIOUS], w.slot_counts[slot, LINE_NEXT]
    if before == NONE:
        w.machine_counts[machine, first] = behind
    else:
        w.slot_counts[before, LINE_NEXT] = behind
    if behind == NONE:
        w.machine_counts[machine, first + 1] = before
    else:
        w.slot_counts[behind, LINE_PREVIOUS] = before


@compiled
def join_requests(w: World, machine: int, slot: int) -> None:
    """Enter a machine's requests by arrival, behind equal ones; looked for from both ends at once."""
    arrival_s = w.slot_reals[slot, ARRIVAL_S]
    before = w.machine_counts[machine, REQUEST_LAST]
    behind = w.machine_counts[machine, REQUEST_FIRST]
    while True:
        if before == NONE or w.slot_reals[before, ARRIVAL_S] <= arrival_s:
            behind = (
                w.machine_counts[machine, REQUEST_FIRST]
                if before == NONE
                else w.slot_counts[before, REQUEST_NEXT]
            )
            break
        before = w.slot_counts[before, REQUEST_PREVIOUS]
        if w.slot_reals[behind, ARRIVAL_S] > arrival_s:
            before = w.slot_counts[behind, REQUEST_PREVIOUS]
            break
        behind = w.slot_counts[behind, REQUEST_NEXT]
    w.slot_counts[slot, REQUEST_PREVIOUS] = before
    w.slot_counts[slot, REQUEST_NEXT] = behind
    if before == NONE:
        w.machine_counts[machine, REQUEST_FIRST] = slot
    else:
        w.slot_counts[before, REQUEST_NEXT] = slot
    if behind == NONE:
        w.machine_counts[machine, REQUEST_LAST] = slot
    else:
        w.slot_counts[behind, REQUEST_PREVIOUS] = slot
    w.machine_counts[machine, REQUESTS] += 1


@compiled
def leave_requests(w: World, machine: int, slot: int) -> None:
    """Leave a machine's requests."""
    before, behind = w.slot_counts[slot, REQUEST_PREVIOUS], w.slot_counts[slot, REQUEST_NEXT]
    if before == NONE:
        w.machine_counts[machine, REQUEST_FIRST] = behind
    else:
        w.slot_counts[before, REQUEST_NEXT] = behind
    if behind == NONE:
        w.machine_counts[machine, REQUEST_LAST] = before
    else:
        w.slot_counts[behind, REQUEST_PREVIOUS] = before
    w.machine_counts[machine, REQUESTS] -= 1


@compiled
def _earlier(w: World, left: int, right: int) -> int:
    """Return which of two machines has the next event; NONE stands for a place without machine."""
    if right == NONE:
        return left
    if left == NONE:
        return right
    left_s, right_s = w.machine_reals[left, END_S], w.machine_reals[right, END_S]
    if left_s < right_s:
        return left
    if right_s < left_s:
        return right
    return left if w.machine_counts[left, EVENT] < w.machine_counts[right, EVENT] else right


@compiled
def replay_tournament(w: World, machine: int) -> None:
    """Bring the order of the machines' events up to date after that of one machine has changed."""
    node = (len(w.winners) // 2 + machine) // 2
    while node >= 1:
        before = w.winners[node]
        now = _earlier(w, w.winners[2 * node], w.winners[2 * node + 1])
        w.winners[node] = now
        if now == before and now != machine:
            return  # further up nothing depends on the machine
        node //= 2


@compiled
def _moves_earlier(w: World, left: int, right: int) -> bool:
    left_s, right_s = w.slot_reals[left, MOVE_S], w.slot_reals[right, MOVE_S]
    if left_s != right_s:
        return bool(left_s < right_s)
    return bool(w.slot_counts[left, MOVE_EVENT] < w.slot_counts[right, MOVE_EVENT])


@compiled
def push_move(w: World, slot: int) -> None:
    """Enter a slot, whose time and sequence number are set, into the heap of transfers."""
    at = w.counts[MOVES]
    w.counts[MOVES] = at + 1
    while at > 0:
        above = (at - 1) // 2
        if not _moves_earlier(w, slot, w.moves[above]):
            break
        w.moves[at] = w.moves[above]
        at = above
    w.moves[at] = slot


@compiled
def pop_move(w: World) -> int:
    """Take the next slot from the heap of transfers."""
    first = w.moves[0]
    last = w.counts[MOVES] - 1
    w.counts[MOVES] = last
    slot = w.moves[last]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= last:
            break
        if below + 1 < last and _moves_earlier(w, w.moves[below + 1], w.moves[below]):
            below += 1
        if not _moves_earlier(w, w.moves[below], slot):
            break
        w.moves[at] = w.moves[below]
        at = below
    w.moves[at] = slot
    return int(first)
