"""Runs a fleet on requests: lays the values out as arrays, lets the compiled loop work, reads the record off.

It exists so that callers see values only. A run is a function of its arguments; two runs in one process never meet. It
opens no file and asks no clock; `on_progress` is told how many requests have arrived.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.engine import layout as at
from simulator.engine.changes import home_list
from simulator.engine.loop import NEEDS_SLOTS, OVERLOADED, PAUSED, advance, close_books
from simulator.fleet import EventKind, Fleet, Overlap, QueueOrder, Role, RouterKind
from simulator.record import RunRecord, Series
from simulator.step_table import PrefillForm, StepTable
from solver.domain.errors import InputError
from solver.domain.trace import Ints, Requests

FIRST_SLOTS = 4096
SAMPLES = 256
LARGEST_INSTANCES = 32_767
LARGEST_TOKENS = 1 << 30
_PROGRESS_STEPS = 50
_PART = 1 << 18
"""Requests that are looked at together where columns are worked on in numpy."""

_ROUTERS = {
    RouterKind.ROUND_ROBIN: at.ROUND_ROBIN,
    RouterKind.RANDOM: at.RANDOM,
    RouterKind.JSQ: at.JSQ,
    RouterKind.MIXED_POOL: at.MIXED_POOL,
    RouterKind.LEAST_KV: at.LEAST_KV,
    RouterKind.PREFIX_AWARE: at.PREFIX_AWARE,
}
_ROLES = {Role.BOTH: at.BOTH, Role.PREFILL: at.PREFILL, Role.DECODE: at.DECODE}
_EVENTS = {
    EventKind.DOWN: at.DOWN_EVENT,
    EventKind.DRAIN: at.DRAIN_EVENT,
    EventKind.UP: at.UP_EVENT,
    EventKind.CAP: at.CAP_EVENT,
}


def simulate(
    fleet: Fleet,
    requests: Requests,
    *,
    model_of_request: Ints | None = None,
    priority_of_request: Ints | None = None,
    seed: int = 0,
    single_steps: bool = False,
    stop_when_overloaded: bool = False,
    series_bins: int = 400,
    on_progress: Callable[[int], None] | None = None,
) -> RunRecord:
    """Serve requests with a fleet.

    Parameters
    ----------
    model_of_request
        Index into ``fleet.models`` of every request; None: all ask for the first model.
    priority_of_request
        Class of every request, 0 served first; used with ``QueueOrder.PRIORITY``.
    seed
        Of the random router.
    single_steps
        Simulate every iteration by itself instead of whole segments: slow, the same results up to rounding.
    stop_when_overloaded
        Break the run off once the backlog grows without end; ``stopped_early`` says so.
    series_bins
        Upper bound of the number of bins of the series; even.

    Raises
    ------
    InputError
        If the fleet or the requests make no sense together.
    """
    _check(fleet, requests)
    _check_columns(fleet, requests, model_of_request, priority_of_request)
    parts = _parts(
        fleet,
        requests,
        model_of_request=model_of_request,
        priority_of_request=priority_of_request,
        seed=seed,
        single_steps=single_steps,
        stop_when_overloaded=stop_when_overloaded,
        series_bins=series_bins,
    )
    world = at.world_of(parts)
    total = len(requests)
    stride = total if on_progress is None else max(1, total // _PROGRESS_STEPS)
    until = stride
    while True:
        code = advance(world, until)
        if code == NEEDS_SLOTS:
            parts = _with_more_slots(parts)
            world = at.world_of(parts)
        elif code == PAUSED and on_progress is not None:
            on_progress(int(parts.counts[at.NEXT_ARRIVAL]))
            until += stride
        else:
            break
    close_books(world)
    return _record(fleet, parts, stopped_early=code == OVERLOADED)


def _check(fleet: Fleet, requests: Requests) -> None:
    if fleet.instances < 1:
        raise InputError("the fleet has no instance", right="at least one pool with a count above 0")
    if fleet.instances > LARGEST_INSTANCES:
        raise InputError(
            f"{fleet.instances} instances are more than {LARGEST_INSTANCES}", right="a smaller fleet"
        )
    if not len(requests):
        raise InputError("no request to simulate", right="a trace with at least one request")
    times = requests.arrival_s
    if times[0] < 0.0 or not all(_rises(times[at : at + _PART + 1]) for at in range(0, len(times), _PART)):
        raise InputError(
            "arrivals go back in time, or are not finite", right="arrivals that never fall, from 0"
        )
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(requests, name)
        if tokens.min() < 1 or tokens.max() > LARGEST_TOKENS:
            raise InputError(
                f"{name} between {tokens.min()} and {tokens.max()}", right=f"1 to {LARGEST_TOKENS}"
            )
    scheduler = fleet.scheduler
    if scheduler.max_batch < 1 or scheduler.max_batch_tokens < 1:
        raise InputError("max_batch and max_batch_tokens must be at least 1", right="e.g. 256 and 2048")
    if scheduler.chunked_prefill and scheduler.max_batch_tokens <= scheduler.max_batch:
        raise InputError(
            f"max_batch_tokens {scheduler.max_batch_tokens} leaves a full batch of {scheduler.max_batch} no room"
            " for prompts",
            right="max_batch_tokens above max_batch",
        )
    if not 0.0 <= scheduler.watermark_ratio < 1.0 or scheduler.max_preemptions < 0:
        raise InputError(
            f"watermark_ratio {scheduler.watermark_ratio:g} and max_preemptions {scheduler.max_preemptions}",
            right="a watermark from 0 to below 1, and 0 preemptions or more",
        )
    links = fleet.links
    if not links.bytes_per_s > 0.0:
        raise InputError(f"a link of {links.bytes_per_s:g} bytes/s", right="a bandwidth above 0")
    if links.prefix_cache_blocks < 0 or links.block_tokens < 1:
        raise InputError(
            f"a prefix cache of {links.prefix_cache_blocks} blocks of {links.block_tokens} tokens",
            right="0 blocks or more of at least 1 token",
        )
    _check_pools(fleet)
    most_tokens = max(kind.kv_capacity_tokens for kind in fleet.kinds)
    for kind in fleet.kinds:
        if kind.table.max_batch < scheduler.max_batch:
            raise InputError(
                f"the step table of {kind.name} ends at {kind.table.max_batch} sequences",
                right=f"a table up to max_batch {scheduler.max_batch}",
            )
        if kind.kv_capacity_tokens < 1:
            raise InputError(
                f"{kind.name} has no room for KV cache", right="more or larger GPUs per instance"
            )
        if not 0.0 <= kind.kv_bytes_per_token < math.inf:
            raise InputError(
                f"{kind.kv_bytes_per_token:g} bytes of KV cache per token for {kind.name}", right="0 or more"
            )
        if not _times_are_positive(kind.table, most_tokens):
            raise InputError(
                f"the step table of {kind.name} has iterations that take less than no time",
                right="seconds that stay above 0 up to the KV capacity and for long prompts",
            )


def _times_are_positive(table: StepTable, most_tokens: int) -> bool:
    """Whether no decode iteration up to a number of cached tokens ends before it began; long prompts take longer."""
    knots = table.kv_knots_tokens
    widths = np.diff(np.append(knots, max(float(most_tokens), float(knots[-1]))))
    ends_s = table.decode_s + table.decode_slope_s * widths
    lowest_s = min(float(table.decode_s[1:].min()), float(ends_s[1:].min()))
    return bool(lowest_s > -1e-12 and table.prefill_s[-1] >= table.prefill_s[-2])


def _check_pools(fleet: Fleet) -> None:
    """Every index is one, every duration is one: kernels look nothing up twice."""
    for pool in fleet.pools:
        if pool.count < 0 or not 0 <= pool.kind < len(fleet.kinds) or not 0 <= pool.model < len(fleet.models):
            raise InputError(
                f"pool {pool.name}: {pool.count} instances of kind {pool.kind} for model {pool.model}",
                right=f"a kind below {len(fleet.kinds)} and a model below {len(fleet.models)}, from 0",
            )
        for name, value_s in (("start_s", pool.start_s), ("drain_s", pool.drain_s)):
            if not 0.0 <= value_s < math.inf:
                raise InputError(f"pool {pool.name}: {name} {value_s:g}", right="0 or more seconds")
    for event in fleet.events:
        if not 0.0 <= event.time_s < math.inf:
            raise InputError(f"an event at {event.time_s:g} s", right="0 or more seconds")
        if not 0 <= event.pool < len(fleet.pools) or not 0 <= event.index < fleet.pools[event.pool].count:
            raise InputError(
                f"an event at {event.time_s:g} s for instance {event.index} of pool {event.pool}",
                right="an instance that the fleet has, from 0",
            )
        if event.kind is EventKind.CAP and not 0 <= event.instance_kind < len(fleet.kinds):
            raise InputError(
                f"a cap at {event.time_s:g} s to kind {event.instance_kind}",
                right=f"a kind below {len(fleet.kinds)}, from 0",
            )


def _check_columns(fleet: Fleet, requests: Requests, models: Ints | None, priorities: Ints | None) -> None:
    """Columns beside the requests fit them."""
    for name, column in (("model_of_request", models), ("priority_of_request", priorities)):
        if column is not None and len(column) != len(requests):
            raise InputError(
                f"{name} has {len(column)} entries for {len(requests)} requests", right="one per request"
            )
    if models is not None and (models.min() < 0 or models.max() >= len(fleet.models)):
        raise InputError(
            f"model_of_request from {models.min()} to {models.max()}", right=f"0 to {len(fleet.models) - 1}"
        )
    blocks = requests.blocks
    if blocks is not None and (
        len(blocks.offsets) != len(requests) + 1
        or blocks.offsets[0] < 0
        or blocks.offsets[-1] > len(blocks.ids)
        or np.any(np.diff(blocks.offsets) < 0)
    ):
        raise InputError(
            "prefix blocks that do not match the requests", right="one rising offset per request"
        )


def _rises(times: NDArray[np.float64]) -> bool:
    """Whether times are finite and never fall; asked part by part, so that long traces need no copies."""
    return bool(np.all(np.isfinite(times)) and np.all(times[1:] >= times[:-1]))


def _frozen(array: NDArray[Any], kind: Any) -> NDArray[Any]:
    """Return a contiguous read-only array: one type for the compiler, whatever the caller has."""
    view: NDArray[Any] = np.ascontiguousarray(array, dtype=kind).view()
    view.flags.writeable = False
    return view


def _parts(
    fleet: Fleet,
    requests: Requests,
    *,
    model_of_request: Ints | None,
    priority_of_request: Ints | None,
    seed: int,
    single_steps: bool,
    stop_when_overloaded: bool,
    series_bins: int,
) -> at.Parts:
    total = len(requests)
    pool_of = np.concatenate([np.full(pool.count, p) for p, pool in enumerate(fleet.pools)]).astype(np.int64)
    number = len(pool_of)
    prioritised = fleet.scheduler.order is QueueOrder.PRIORITY and priority_of_request is not None
    levels: NDArray[Any] = np.zeros(1, dtype=np.int8)
    if prioritised and priority_of_request is not None:
        names, levels = np.unique(priority_of_request, return_inverse=True)
        if len(names) > 64:
            raise InputError(f"{len(names)} priority classes", right="at most 64")
    level_count = int(levels.max()) + 1

    reals = np.zeros(at.RUN_REALS)
    counts = np.zeros(at.RUN_COUNTS, dtype=np.int64)
    scheduler, links = fleet.scheduler, fleet.links
    series_bins = max(2, series_bins - series_bins % 2)
    reals[at.BIN_S] = max(float(requests.arrival_s[-1]), 1e-3) / max(1, series_bins // 2)
    reals[at.LINK_BYTES_PER_S] = links.bytes_per_s
    reals[at.WATERMARK_RATIO] = scheduler.watermark_ratio
    reals[at.NEXT_TIMER_S] = math.inf
    for row, value in (
        (at.MAX_BATCH, scheduler.max_batch),
        (at.MAX_BATCH_TOKENS, scheduler.max_batch_tokens),
        (at.CHUNKED, scheduler.chunked_prefill),
        (at.MAX_PREEMPTIONS, scheduler.max_preemptions),
        (at.LEVELS, level_count),
        (at.ROUTER, _ROUTERS[fleet.router.kind]),
        (at.PROMPT_LIMIT, fleet.router.prompt_limit_tokens),
        (at.CONTENTION, links.contention),
        (at.LAYERWISE, links.overlap is Overlap.LAYERWISE),
        (at.CACHE_BLOCKS, links.prefix_cache_blocks if requests.blocks is not None else 0),
        (at.BLOCK_TOKENS, links.block_tokens),
        (at.SINGLE_STEPS, single_steps),
        (at.STOP_OVERLOADED, stop_when_overloaded),
        (at.RANKS, number),
    ):
        counts[row] = int(value)

    slots = min(FIRST_SLOTS, total)
    slot_counts = np.zeros((at.SLOT_COUNTS, slots), dtype=np.int64)
    slot_counts[at.NEXT] = np.append(np.arange(1, slots), at.NONE)
    events = sorted(enumerate(fleet.events), key=lambda pair: (pair[1].time_s, pair[0]))
    first_of_pool = np.concatenate(([0], np.cumsum([pool.count for pool in fleet.pools])))
    outcome = np.full((at.OUTCOME_REALS, total), np.nan)
    outcome[at.REQUEST_J] = 0.0
    model, level, draws, block_ids, block_offsets = _asked(fleet, requests, model_of_request, levels, seed)
    marks = [
        (_EVENTS[event.kind], first_of_pool[event.pool] + event.index, event.instance_kind)
        for _, event in events
    ]
    blocks = int(counts[at.CACHE_BLOCKS])
    nodes = max(1, blocks)
    cache_rows = number if blocks else 1
    return at.Parts(
        reals=reals,
        counts=counts,
        arrival_s=_frozen(requests.arrival_s, np.float64),
        prompt_tokens=_frozen(requests.prompt_tokens, np.int64),
        output_tokens=_frozen(requests.output_tokens, np.int64),
        model=model,
        level=level,
        draws=draws,
        block_ids=block_ids,
        block_offsets=block_offsets,
        outcome=outcome,
        served_by=np.full((2, total), at.NONE, dtype=np.int16),
        preemptions=np.zeros(total, dtype=np.int16),
        marks=np.zeros((2, total), dtype=np.int8),
        backlog=np.zeros(min(SAMPLES, total)),
        waiting=np.zeros(min(SAMPLES, total)),
        **_instances(fleet, pool_of, level_count),
        slot_reals=np.zeros((at.SLOT_REALS, slots)),
        slot_counts=slot_counts,
        **_tables(fleet),
        instance_heap=np.zeros(number, dtype=np.int32),
        move_time_s=np.zeros(2 * slots),
        move_marks=np.zeros((3, 2 * slots), dtype=np.int64),
        event_time_s=np.array([event.time_s for _, event in events], dtype=np.float64),
        event_marks=np.ascontiguousarray(np.array(marks, dtype=np.int64).reshape(len(events), 3).T),
        start_s=np.array([fleet.pools[p].start_s for p in pool_of], dtype=np.float64),
        drain_s=np.array([fleet.pools[p].drain_s for p in pool_of], dtype=np.float64),
        **_routing(fleet, pool_of),
        cache_table=np.full(
            (cache_rows, 1 << (2 * nodes - 1).bit_length() if blocks else 1), at.NONE, dtype=np.int32
        ),
        cache_block=np.zeros((cache_rows, nodes), dtype=np.int64),
        cache_newer=np.full((cache_rows, nodes), at.NONE, dtype=np.int32),
        cache_older=np.full((cache_rows, nodes), at.NONE, dtype=np.int32),
        series=np.zeros((len(fleet.pools), at.SERIES_ROWS, series_bins)),
    )


def _asked(
    fleet: Fleet, requests: Requests, model_of_request: Ints | None, levels: NDArray[Any], seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Models, levels, random numbers and prefix blocks of the requests."""
    total = len(requests)
    several = model_of_request is not None and len(fleet.models) > 1
    draws = (
        np.random.default_rng(seed).random((2, total))
        if fleet.router.kind is RouterKind.RANDOM
        else np.zeros((2, 1))
    )
    ids, offsets = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    if requests.blocks is not None and fleet.links.prefix_cache_blocks > 0:
        _, ids = np.unique(requests.blocks.ids, return_inverse=True)
        offsets = requests.blocks.offsets
    return (
        _frozen(np.asarray(model_of_request) if several else np.zeros(1), np.int16),
        _frozen(levels.reshape(-1), np.int8),
        _frozen(draws, np.float64),
        _frozen(ids.reshape(-1), np.int64),
        _frozen(offsets, np.int64),
    )


def _instances(fleet: Fleet, pool_of: Ints, levels: int) -> dict[str, Any]:
    number = len(pool_of)
    reals = np.zeros((at.INSTANCE_REALS, number))
    reals[at.TIMER_S] = math.inf
    counts = np.zeros((at.INSTANCE_COUNTS, number), dtype=np.int64)
    for row in (
        at.NEXT_KIND,
        at.PARTIAL,
        at.READY_HEAD,
        at.READY_TAIL,
        at.INCOMING_HEAD,
        at.INCOMING_TAIL,
        at.EVENT_PLACE,
        at.CACHE_NEWEST,
        at.CACHE_OLDEST,
    ):
        counts[row] = at.NONE
    counts[at.STATE] = at.UP
    counts[at.RANK] = np.arange(number)
    counts[at.POOL] = pool_of
    for i, p in enumerate(pool_of.tolist()):
        pool = fleet.pools[p]
        counts[at.KIND, i] = pool.kind
        counts[at.MODEL, i] = pool.model
        counts[at.ROLE, i] = _ROLES[pool.role]
        counts[at.LIST, i] = home_list(_ROLES[pool.role])
        counts[at.KV_CAPACITY, i] = fleet.kinds[pool.kind].kv_capacity_tokens
    width = fleet.scheduler.max_batch
    return {
        "inst_reals": reals,
        "inst_counts": counts,
        "wait_head": np.full((levels, number), at.NONE, dtype=np.int64),
        "wait_tail": np.full((levels, number), at.NONE, dtype=np.int64),
        "decode_heap": np.zeros((number, width), dtype=np.int32),
        "chunk_slots": np.zeros((number, width), dtype=np.int32),
        "chunk_tokens": np.zeros((number, width), dtype=np.int32),
    }


def _tables(fleet: Fleet) -> dict[str, Any]:
    tables = [kind.table for kind in fleet.kinds]
    tokens = max(len(table.prefill_s) for table in tables)
    knots = max(len(table.kv_knots_tokens) for table in tables)
    batch = fleet.scheduler.max_batch
    constants = np.zeros((at.KIND_CONSTANTS, len(tables)))
    prefill = np.zeros((len(tables), 2, tokens))
    knot_tokens = np.full((len(tables), knots), math.inf)
    decode = np.zeros((len(tables), 4, batch + 1, knots))
    for k, (kind, table) in enumerate(zip(fleet.kinds, tables, strict=True)):
        constants[:, k] = _constants(table, kind.kv_bytes_per_token, kind.layers)
        prefill[k, 0, : len(table.prefill_s)] = table.prefill_s
        prefill[k, 1, : len(table.prefill_w)] = table.prefill_w
        own = len(table.kv_knots_tokens)
        knot_tokens[k, :own] = table.kv_knots_tokens
        for row, name in enumerate(("decode_s", "decode_slope_s", "decode_j", "decode_slope_j")):
            decode[k, row, :, :own] = getattr(table, name)[: batch + 1]
    return {"constants": constants, "prefill": prefill, "knots": knot_tokens, "decode": decode}


def _constants(table: StepTable, kv_bytes_per_token: float, layers: int) -> NDArray[np.float64]:
    values = np.zeros(at.KIND_CONSTANTS)
    for row, value in (
        (at.TABLE_FORM, table.prefill_form is PrefillForm.DIFFERENCES),
        (at.CONTEXT_S, table.context_s),
        (at.PAIR_S, table.pair_s),
        (at.PROMPT_S, table.prompt_s),
        (at.SHARED_S, table.shared_s),
        (at.IDLE_W, table.idle_w),
        (at.WHOLE_PAIRS, table.whole_prompt_pairs),
        (at.TRUNCATED, table.truncated),
        (at.LAST_PROMPT, len(table.prefill_s) - 1),
        (at.KNOTS, len(table.kv_knots_tokens)),
        (at.KV_BYTES, kv_bytes_per_token),
        (at.LAYERS, max(1, layers)),
    ):
        values[row] = float(value)
    return values


def _routing(fleet: Fleet, pool_of: Ints) -> dict[str, Any]:
    prefill: list[int] = []
    decode: list[int] = []
    prefill_offsets, decode_offsets = [0], [0]
    mixed = fleet.router.kind is RouterKind.MIXED_POOL
    for m in range(len(fleet.models)):
        for i, p in enumerate(pool_of.tolist()):
            pool = fleet.pools[p]
            if pool.model != m:
                continue
            if mixed or pool.role is not Role.DECODE:
                prefill.append(i)
            if pool.role is Role.DECODE:
                decode.append(i)
        prefill_offsets.append(len(prefill))
        decode_offsets.append(len(decode))
    return {
        "prefill_of": np.array(prefill, dtype=np.int64),
        "prefill_offsets": np.array(prefill_offsets, dtype=np.int64),
        "decode_of": np.array(decode, dtype=np.int64),
        "decode_offsets": np.array(decode_offsets, dtype=np.int64),
        "turn": np.zeros((2, len(fleet.models)), dtype=np.int64),
    }


def _with_more_slots(parts: at.Parts) -> at.Parts:
    """Double the room for requests in the system; what is under way stays where it is."""
    old = parts.slot_counts.shape[1]

    def doubled(array: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((array, np.zeros_like(array)), axis=-1)

    slot_counts = doubled(parts.slot_counts)
    slot_counts[at.NEXT, old:] = np.append(np.arange(old + 1, 2 * old), parts.counts[at.FREE_SLOT])
    parts.counts[at.FREE_SLOT] = old
    return parts._replace(
        slot_reals=doubled(parts.slot_reals),
        slot_counts=slot_counts,
        move_time_s=doubled(parts.move_time_s),
        move_marks=doubled(parts.move_marks),
    )


def _add_overheads(fleet: Fleet, parts: at.Parts) -> None:
    """Add what a request spends outside the iterations; the same for all, so it moves no iteration."""
    kinds = [fleet.kinds[fleet.pools[p].kind] for p in parts.inst_counts[at.POOL].tolist()]
    if not any(kind.accept_s or kind.per_token_s or kind.finish_s for kind in kinds):
        return
    accept_s = np.array([kind.accept_s for kind in kinds])
    per_token_s = np.array([kind.per_token_s for kind in kinds])
    finish_s = np.array([kind.finish_s for kind in kinds])
    for begin in range(0, len(parts.arrival_s), _PART):
        part = slice(begin, begin + _PART)
        first, last = parts.served_by[:, part]
        last = np.where(last == at.NONE, first, last)
        parts.outcome[at.QUEUE_S, part] += accept_s[first]
        parts.outcome[at.TTFT_S, part] += accept_s[first] + per_token_s[first]
        parts.outcome[at.E2E_S, part] += (
            accept_s[first]
            + per_token_s[first]
            + per_token_s[last] * (parts.output_tokens[part] - 1)
            + finish_s[last]
        )


def _record(fleet: Fleet, parts: at.Parts, *, stopped_early: bool) -> RunRecord:
    reals, counts = parts.inst_reals, parts.inst_counts
    now_s = float(parts.reals[at.NOW_S])
    bin_s = float(parts.reals[at.BIN_S])
    used = max(1, min(parts.series.shape[2], math.ceil(now_s / bin_s)))
    bins = parts.series[:, :, :used]
    _add_overheads(fleet, parts)
    running = bins[:, at.RUNNING_BIN] / bin_s
    present = bins[:, at.PRESENT_BIN] / bin_s
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
        pool_of_instance=counts[at.POOL],
        busy_s=reals[at.BUSY_S],
        up_s=reals[at.UP_S],
        energy_j_of_instance=reals[at.ENERGY_J],
        idle_j=reals[at.IDLE_J],
        occupancy_request_s=reals[at.OCCUPANCY_S],
        prompt_tokens_done=reals[at.PROMPT_DONE],
        output_tokens_done=reals[at.OUTPUT_DONE],
        series=Series(
            bin_s=bin_s,
            power_w=bins[:, at.ENERGY_BIN] / bin_s,
            running=running,
            waiting=np.maximum(present - running, 0.0),
            busy=bins[:, at.BUSY_BIN] / bin_s,
            up=bins[:, at.UP_BIN] / bin_s,
        ),
        transfers=int(parts.counts[at.TRANSFERS]),
        transfer_bytes=float(parts.reals[at.TRANSFER_BYTES]),
        cached_tokens=float(parts.reals[at.CACHED_TOKENS]),
        iterations=int(parts.counts[at.ITERATIONS]),
        segments=int(parts.counts[at.SEGMENTS]),
        end_time_s=float(parts.reals[at.LAST_COMPLETION_S]),
        horizon_s=now_s,
        backlog_at_arrivals=parts.backlog[: int(parts.counts[at.SAMPLES])],
        stopped_early=stopped_early,
    )
