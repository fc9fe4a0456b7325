"""Where the state of a run lies: arrays by topic, and the names of their rows.

It exists so that the kernels can share state without objects: rows are quantities, columns are instances, slots or
requests (struct of arrays), and a row is named by a constant here. A slot is the state of one request while it is in
the system; what is kept of every request lies in `Outcome`. It holds no rule.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solver.compiled import StateProxy, StateType, compiled, define_state

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]

NONE = -1

# -- instances: reals -------------------------------------------------------------------------------------------------
(
    TOUCHED_S,  # when the occupancy was last brought up to date
    SEGMENT_START_S,
    SEGMENT_END_S,
    SEGMENT_FIRST_S,  # seconds of the segment's first iteration
    SEGMENT_SLOPE_S,  # by which each further iteration is longer
    SEGMENT_FIRST_J,
    SEGMENT_SLOPE_J,
    SEGMENT_TOKENS,  # prompt tokens of the iteration
    SEQUENCE_J,  # joules that one decoding sequence would have taken since time 0
    BUSY_S,
    UP_SINCE_S,
    UP_S,
    IDLE_SINCE_S,
    IDLE_J,
    ENERGY_J,
    OCCUPANCY_S,
    PROMPT_DONE,
    OUTPUT_DONE,
    EGRESS_FREE_S,
    INGRESS_FREE_S,
    TIMER_S,
) = range(21)
INSTANCE_REALS = 21

# -- instances: counts ------------------------------------------------------------------------------------------------
(
    STATE,
    KIND,
    NEXT_KIND,  # after a cap event: the kind from the next iteration on
    POOL,
    MODEL,
    ROLE,
    DECODES,
    KV_SUM,  # cached tokens that the decodes read
    COUNTER,  # decode iterations so far: a sequence stores the value at which it ends
    KV_USED,  # tokens reserved: running, arriving, held for a transfer
    KV_CAPACITY,
    SEGMENT_KIND,
    SEGMENT_ITERATIONS,
    SEGMENT_DECODES,
    CHUNKS,
    PARTIAL,  # the slot whose prompt is under way, between two iterations
    HELD,  # requests whose KV waits here to be moved
    READY_HEAD,
    READY_TAIL,
    READY,
    INCOMING_HEAD,
    INCOMING_TAIL,
    WAITING,
    LOAD,  # prompt tokens not yet processed plus one per unfinished decode
    ASSIGNED_KV,  # tokens that the requests sent here will hold at their end (mixed-pool)
    LIST,  # mixed-pool: the list it stands in
    RANK,  # mixed-pool: its place in that list
    EVENT_PLACE,  # in the event heap
    EVENT_SEQUENCE,
    CACHE_NODES,
    CACHE_NEWEST,
    CACHE_OLDEST,
) = range(32)
INSTANCE_COUNTS = 32

DOWN, UP, STARTING, DRAINING = range(4)
BOTH, PREFILL, DECODE = range(3)
IDLE, DECODING_SEGMENT, PREFILL_SEGMENT = range(3)

# -- slots ------------------------------------------------------------------------------------------------------------
(SCHEDULED_S, ENERGY_MARK_J, TAKEN_J) = range(3)
SLOT_REALS = 3
(
    REQUEST,
    STAGE,
    PREFILL_AT,
    DECODE_AT,
    PROMPT,  # tokens to process before the next token: the prompt, after a preemption also what was generated
    PROGRESS,
    GENERATED,
    BASE,  # cached tokens minus the instance's counter, while decoding
    END,  # the counter's value at the last token
    NEXT,
    VERSION,  # grows when a transfer under way becomes void
    LEVEL,
    PREEMPTED,
) = range(13)
SLOT_COUNTS = 13

FREE, WAITING_STAGE, PROMPT_STAGE, DECODE_STAGE, HELD_STAGE, MOVING_STAGE, READY_STAGE, LOST_STAGE = range(8)

# -- what is kept of every request ------------------------------------------------------------------------------------
(QUEUE_S, TTFT_S, E2E_S, REQUEST_J) = range(4)
OUTCOME_REALS = 4

# -- tables -----------------------------------------------------------------------------------------------------------
(AT_KNOT_S, SLOPE_S, AT_KNOT_J, SLOPE_J) = range(4)
(
    TABLE_FORM,
    CONTEXT_S,
    PAIR_S,
    PROMPT_S,
    SHARED_S,
    IDLE_W,
    WHOLE_PAIRS,
    TRUNCATED,
    LAST_PROMPT,
    KNOTS,
    KV_BYTES,
    LAYERS,
) = range(12)
KIND_CONSTANTS = 12

# -- series -----------------------------------------------------------------------------------------------------------
(ENERGY_BIN, RUNNING_BIN, PRESENT_BIN, BUSY_BIN, UP_BIN) = range(5)
SERIES_ROWS = 5

# -- whole run --------------------------------------------------------------------------------------------------------
(
    NOW_S,
    BIN_S,
    LINK_BYTES_PER_S,
    WATERMARK_RATIO,
    TRANSFER_BYTES,
    LAST_COMPLETION_S,
    CACHED_TOKENS,
    NEXT_TIMER_S,
) = range(8)
RUN_REALS = 8
(
    NEXT_ARRIVAL,
    NEXT_EVENT,
    SEQUENCE,
    FREE_SLOT,
    IN_SYSTEM,
    EVENTS_HELD,  # entries of the instance heap
    MOVING,  # entries of the transfer heap
    TRANSFERS,
    ITERATIONS,
    SEGMENTS,
    MAX_BATCH,
    MAX_BATCH_TOKENS,
    CHUNKED,
    MAX_PREEMPTIONS,
    LEVELS,
    ROUTER,
    PROMPT_LIMIT,
    CONTENTION,
    LAYERWISE,
    CACHE_BLOCKS,
    BLOCK_TOKENS,
    SINGLE_STEPS,
    STOP_OVERLOADED,
    NEXT_TIMER,
    SAMPLES,
    RANKS,
    WAITING_EVERYWHERE,
    DRAINS,  # instances that are draining
) = range(28)
RUN_COUNTS = 28

ROUND_ROBIN, RANDOM, JSQ, MIXED_POOL, LEAST_KV, PREFIX_AWARE = range(6)
PROMPT_LIST, MIXED_LIST, TOKEN_LIST = range(3)
DOWN_EVENT, DRAIN_EVENT, UP_EVENT, CAP_EVENT = range(4)


class Parts(NamedTuple):
    """The arrays of one run, by name. R requests, I instances, S slots, K kinds, E outside events.

    Python keeps these; kernels get a `World`, which has the same fields and shares the same memory.
    """

    reals: Reals
    """Of the whole run."""
    counts: Counts
    # the requests as they came: read only
    arrival_s: Reals
    prompt_tokens: Counts
    output_tokens: Counts
    model: NDArray[np.int16]
    """Length 1 if there is one model."""
    level: NDArray[np.int8]
    """Priority, 0 first; length 1 without priorities."""
    draws: Reals
    """[2, R] random numbers for the random router, else [2, 1]."""
    block_ids: Counts
    block_offsets: Counts
    """Length 1 without prefix blocks."""
    # what is kept of every request
    outcome: Reals
    """[4, R]"""
    served_by: NDArray[np.int16]
    """[2, R] prefill and decode instance."""
    preemptions: NDArray[np.int16]
    marks: NDArray[np.int8]
    """[2, R] status and reject reason."""
    backlog: Reals
    """Requests in the system at evenly spaced arrivals."""
    waiting: Reals
    """Requests not in a batch, at the same arrivals."""
    # instances
    inst_reals: Reals
    """[21, I]"""
    inst_counts: Counts
    """[32, I]"""
    wait_head: Counts
    """[levels, I]"""
    wait_tail: Counts
    decode_heap: NDArray[np.int32]
    """[I, max_batch] slots of the decodes, the next to end first."""
    chunk_slots: NDArray[np.int32]
    """[I, max_batch] prompts of the iteration."""
    chunk_tokens: NDArray[np.int32]
    # requests in the system
    slot_reals: Reals
    """[3, S]"""
    slot_counts: Counts
    """[13, S]"""
    # step tables of all kinds, padded to one shape
    constants: Reals
    """[12, K]"""
    prefill: Reals
    """[K, 2, T] seconds and watts."""
    knots: Reals
    """[K, M]"""
    decode: Reals
    """[K, 4, N + 1, M]"""
    # what happens when
    instance_heap: NDArray[np.int32]
    """[I] by the end of the segment."""
    move_time_s: Reals
    """[2 S] heap of the transfers under way."""
    move_marks: Counts
    """[3, 2 S] sequence, slot, version."""
    event_time_s: Reals
    event_marks: Counts
    """[3, E] kind of event, instance, instance kind."""
    start_s: Reals
    """[I] start-up time."""
    drain_s: Reals
    """[I]"""
    # who may serve what
    prefill_of: Counts
    """Instances that may process prompts, model by model, in creation order."""
    prefill_offsets: Counts
    decode_of: Counts
    """Instances of pools that only decode."""
    decode_offsets: Counts
    turn: Counts
    """[2, models] round robin."""
    # prefix caches, one row per instance
    cache_table: NDArray[np.int32]
    """[I, H] open addressing: node or -1."""
    cache_block: Counts
    """[I, B] block of each node."""
    cache_newer: NDArray[np.int32]
    cache_older: NDArray[np.int32]
    # over time
    series: Reals
    """[pools, 5, bins]"""


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
