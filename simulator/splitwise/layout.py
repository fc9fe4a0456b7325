"""Where the state of a run by the phase-splitting peer's rules lies: arrays, and the names of their columns.

It exists so that the kernels share state without objects. A machine and a slot are rows, their quantities the columns
named here, so that what an event touches lies together. A slot is the state of one request while it is in the system;
its two tasks are numbered 2 slot (prompt) and 2 slot + 1 (decode). It holds no rule.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solver.compiled import StateProxy, StateType, compiled, define_state

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]

NONE = -1
BLOCK_ITEMS = 512
"""Tasks in one block of a list of pending tasks."""

# -- machines: reals --------------------------------------------------------------------------------------------------
(
    END_S,  # of the iterations under way; infinite: none
    STEP_S,  # seconds of each of them
    START_S,
    TOUCHED_S,  # when the occupancy was last brought up to date
    IDLE_SINCE_S,
    BUSY_S,
    IDLE_J,
    BUSY_J,
    OCCUPANCY_S,
    SEQUENCE_J,  # joules that one decoding sequence would have taken since time 0
    PROMPT_TOKENS_DONE,
    OUTPUT_TOKENS_DONE,
) = range(12)
MACHINE_REALS = 12

# -- machines: counts -------------------------------------------------------------------------------------------------
(
    KIND,
    POOL,
    CAPACITY,  # bytes
    MEMORY,  # bytes in use
    EVENT,  # sequence number of the event at END_S
    STEPS,  # iterations that the event ends
    CUT,
    BATCH,  # tasks in the batch
    BATCH_TOKENS,
    BATCH_PROMPTS,
    COUNTER,  # decode iterations so far: a running decode stores the value at which it ends
    NEXT_END,  # least of these values in the batch
    STARTS,  # of iterations so far: a waiting task stores the value at which its count of passed-over starts was 0
    PENDING,  # tasks in the list of pending ones
    PENDING_FIRST,  # blocks of that list
    PENDING_LAST,
    REQUEST_FIRST,  # unfinished requests with a task here, by arrival
    REQUEST_LAST,
    REQUESTS,
    QUEUE_FIRST,  # pending prompts, first in first out
    QUEUE_LAST,
    BLOCKED_FIRST,  # preempted decodes, first in first out
    BLOCKED_LAST,
    PRESENT,  # requests here: queued, running, their KV not yet moved away
    HOME,  # the list it belongs to
    LIST,  # the list it stands in
) = range(26)
MACHINE_COUNTS = 26

SCHEDULED_TOKENS, SCHEDULED_BYTES = range(2)
PROMPT_LIST, MIXED_LIST, TOKEN_LIST = range(3)

# -- slots ------------------------------------------------------------------------------------------------------------
(ARRIVAL_S, MARK_J, TAKEN_J, MOVE_S) = range(4)
SLOT_REALS = 4
(
    REQUEST,  # NONE: free
    PROMPT,
    OUTPUT,
    PROMPT_BYTES,  # of the prompt task
    DECODE_BYTES,
    HELD_BYTES,
    PROMPT_AT,
    DECODE_AT,
    PROMPT_DONE,
    STATE,  # of the head task: the prompt until it is done, then the decode
    PASSED,  # running: how often it was passed over; waiting: the machine's STARTS less that number
    END_COUNT,  # running decode: the machine's COUNTER at its last token; waiting: tokens still to come
    PROMPT_BLOCK,  # where the tasks stand in the list of pending ones
    DECODE_BLOCK,
    REQUEST_NEXT,  # in the machine's requests; of a free slot: the next free one
    REQUEST_PREVIOUS,
    LINE_NEXT,  # in the prompt queue or among the blocked decodes
    LINE_PREVIOUS,
    MOVE_EVENT,
    MOVING,
) = range(20)
SLOT_COUNTS = 20

QUEUED, RUNNING, PREEMPTED, CHOSEN_QUEUED, CHOSEN_PREEMPTED = range(5)
MOVE_WAITS, MOVE_UNDER_WAY = range(2)

# -- blocks of pending tasks ------------------------------------------------------------------------------------------
(BLOCK_NEXT, BLOCK_PREVIOUS, BLOCK_SIZE) = range(3)

# -- step times, watts ------------------------------------------------------------------------------------------------
(KNOT_TOKENS, PROMPT_S, PROMPT_SLOPE_S, DECODE_S, DECODE_SLOPE_S) = range(5)
(IDLE_W, PROMPT_W, DECODE_W) = range(3)

# -- series -----------------------------------------------------------------------------------------------------------
(ENERGY_BIN, RUNNING_BIN, PRESENT_BIN, BUSY_BIN) = range(4)
SERIES_ROWS = 4

# -- what is kept of every request ------------------------------------------------------------------------------------
(QUEUE_S, TTFT_S, E2E_S, REQUEST_J) = range(4)
OUTCOME_REALS = 4

# -- whole run --------------------------------------------------------------------------------------------------------
(NOW_S, BIN_S, LINK_BYTES_PER_S, TRANSFER_BYTES, LAST_COMPLETION_S) = range(5)
RUN_REALS = 5
(
    NEXT_ARRIVAL,
    SEQUENCE,
    FREE_SLOT,
    FREE_BLOCK,
    BLOCKS_LEFT,
    IN_SYSTEM,
    MOVES,  # entries of the heap of transfers
    UNDER_WAY,  # transfers among them that have started
    SAMPLES,
    PROMPT_LISTED,  # machines in the three lists
    MIXED_LISTED,
    TOKEN_LISTED,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    MAX_PREEMPTIONS,
    PROMPT_LIMIT,
    TOKEN_JSQ,
    KV_BYTES,
    LARGEST_REQUEST_BYTES,
    STOP_OVERLOADED,
    TRANSFERS,
    ITERATIONS,
    SEGMENTS,
    PREEMPTIONS,
    MOVES_TO_MIXED,
    MOVES_BACK,
    PREEMPTED_OFTEN,
    MEMORY_STOPS,
    TRANSFER_RETRIES,
    SOURCE_WAKEUPS,
) = range(30)
RUN_COUNTS = 30


class Parts(NamedTuple):
    """Everything of one run."""

    reals: Reals
    counts: Counts
    arrival_s: Reals
    prompt_tokens: Counts
    output_tokens: Counts
    machine_reals: Reals
    """[machines, quantities]"""
    machine_counts: Counts
    scheduled: Counts
    """[2, machines] prompt and decode tokens, and bytes, that the router has sent and that are not done."""
    batch: NDArray[np.int32]
    """[machines, largest batch] tasks."""
    chosen: NDArray[np.int32]
    """[largest batch] tasks that the iteration being started takes in."""
    lists: Counts
    """[3, machines] the router's lists."""
    winners: Counts
    """Tournament over the machines' next events: node 1 is the root, machine i the leaf at half the length plus i."""
    slot_reals: Reals
    """[slots, quantities]"""
    slot_counts: Counts
    moves: Counts
    """Heap of slots whose transfer starts again or ends."""
    items: NDArray[np.int32]
    """[blocks, items] pending tasks."""
    blocks: Counts
    """[blocks, 3]"""
    search: Counts
    """[2, blocks] the blocks of one list and the rank of their first tasks, while a place is looked for."""
    steps_s: Reals
    """[kinds, 5, knots]"""
    watts: Reals
    """[kinds, 3] of the whole machine."""
    outcome: Reals
    """[4, requests]"""
    served_by: NDArray[np.int16]
    """[2, requests]"""
    preemptions: NDArray[np.int16]
    marks: NDArray[np.int8]
    """[2, requests] status and reject reason."""
    sample_at: Counts
    """Arrivals at which the backlog is noted."""
    backlog: Reals
    timely: Reals
    """Requests that may be in the system at these arrivals without being late."""
    series: Reals
    """[pools, 4, bins]"""


if TYPE_CHECKING:
    World = Parts
else:

    class WorldType(StateType):
        """What the compiler knows of a world."""

    class World(StateProxy):
        """A run's arrays, by reference."""

    define_state(World, WorldType, Parts._fields)


@compiled
def world_of(parts: Parts) -> World:
    """Hand the arrays to the kernels."""
    return World(*parts)
