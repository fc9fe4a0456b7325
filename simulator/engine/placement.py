"""Where a request goes: the routers.

It exists so that each router is one function of the instances' state. Ties go to the instance that was created first.
It moves no request. An instance can be chosen only while it is up and only if the request fits its KV cache: prompt and
answer but for the last token; where prompts are only processed, the prompt, if some decode pool can hold the request.
When there is none, one that is starting is. Prompts go to pools that prefill (mixed-pool: to all), decodes stay or go
to pools that only decode.

- round-robin: the next of those that can be chosen; one turn per model for prompts, one for decodes.
- random: any of those that can be chosen, by one number of the request for its prompt and one for its decode.
- jsq: fewest outstanding tokens, that is prompt tokens not yet processed plus one per unfinished decode sent there.
- least-kv: smallest (reserved KV tokens + outstanding tokens) / capacity.
- prefix-aware: jsq, for prompts less the tokens that are cached there now.
- mixed-pool: see `_mixed_pool`; without pools that only decode, and for decodes whose instance failed: jsq.
"""

from simulator.engine.layout import (
    ASSIGNED_KV,
    BLOCK_TOKENS,
    BOTH,
    CACHE_BLOCKS,
    DECODE,
    DECODE_AT,
    GENERATED,
    JSQ,
    KV_CAPACITY,
    LEAST_KV,
    LIST,
    LOAD,
    MIXED_LIST,
    MIXED_POOL,
    NONE,
    NOW_S,
    PREFILL,
    PREFILL_AT,
    PREFIX_AWARE,
    PROMPT,
    PROMPT_LIMIT,
    PROMPT_LIST,
    RANDOM,
    RANK,
    RANKS,
    REQUEST,
    ROLE,
    ROUND_ROBIN,
    ROUTER,
    STARTING,
    STATE,
    TOKEN_LIST,
    UP,
    Counts,
    World,
)
from simulator.engine.prefix_cache import cached_blocks
from simulator.engine.segments import kv_now
from solver.compiled import compiled


@compiled
def model_of(w: World, request: int) -> int:
    """Return the model a request asks for."""
    return int(w.model[request if len(w.model) > 1 else 0])


@compiled
def blocks_of(w: World, request: int) -> Counts:
    """Return the prefix blocks of a request; none where the trace has none."""
    if len(w.block_offsets) < 2:
        return w.block_ids[0:0]
    return w.block_ids[w.block_offsets[request] : w.block_offsets[request + 1]]


@compiled
def cached_tokens(w: World, i: int, slot: int) -> int:
    """Count the prompt tokens of a request that an instance has cached; one at least is left to process."""
    request = w.slot_counts[REQUEST, slot]
    tokens = cached_blocks(w, i, blocks_of(w, request)) * w.counts[BLOCK_TOKENS]
    return int(min(tokens, w.prompt_tokens[request], w.slot_counts[PROMPT, slot] - 1))


@compiled
def _fits(w: World, slot: int, i: int, leaves: bool) -> bool:
    """Whether an instance can hold a request: to its end, or its prompt where it only prefills and can leave."""
    if w.inst_counts[ROLE, i] == PREFILL:
        return leaves and bool(w.slot_counts[PROMPT, slot] <= w.inst_counts[KV_CAPACITY, i])
    request = w.slot_counts[REQUEST, slot]
    return bool(w.prompt_tokens[request] + w.output_tokens[request] - 1 <= w.inst_counts[KV_CAPACITY, i])


@compiled
def _score(w: World, slot: int, i: int) -> float:
    """What the router wants to be small."""
    router = w.counts[ROUTER]
    counts = w.inst_counts
    if router == LEAST_KV:
        return float((kv_now(w, i, w.reals[NOW_S]) + counts[LOAD, i]) / counts[KV_CAPACITY, i])
    load = float(counts[LOAD, i])
    if router == PREFIX_AWARE and w.counts[CACHE_BLOCKS] > 0 and counts[ROLE, i] != DECODE:
        load -= cached_tokens(w, i, slot)
    return load


@compiled
def _pick(w: World, slot: int, candidates: Counts, phase: int, state: int, leaves: bool) -> int:
    """Choose among candidates in one state; phase 0: for the prompt, 1: for the decode."""
    router = w.counts[ROUTER]
    counts = w.inst_counts
    usable = 0
    best = NONE
    if router == ROUND_ROBIN or router == RANDOM:
        for at in range(len(candidates)):
            i = candidates[at]
            usable += counts[STATE, i] == state and _fits(w, slot, i, leaves)
        if usable == 0:
            return NONE
        request = w.slot_counts[REQUEST, slot]
        model = model_of(w, request)
        if router == RANDOM:
            skip = min(int(w.draws[phase, request] * usable), usable - 1)
        else:
            skip = w.turn[phase, model] % usable
            w.turn[phase, model] += 1
        for at in range(len(candidates)):
            i = candidates[at]
            if counts[STATE, i] == state and _fits(w, slot, i, leaves):
                if skip == 0:
                    return int(i)
                skip -= 1
        return NONE
    least = 0.0
    if router == JSQ or router == MIXED_POOL:
        for at in range(len(candidates)):
            i = candidates[at]
            if counts[STATE, i] == state and (best == NONE or counts[LOAD, i] < least):
                if _fits(w, slot, i, leaves):
                    best = i
                    least = float(counts[LOAD, i])
        return int(best)
    for at in range(len(candidates)):
        i = candidates[at]
        if counts[STATE, i] == state and _fits(w, slot, i, leaves):
            score = _score(w, slot, i)
            if best == NONE or score < least:
                best = i
                least = score
    return int(best)


@compiled
def decode_place(w: World, slot: int) -> int:
    """Choose an instance of the decode pools, or -1."""
    model = model_of(w, w.slot_counts[REQUEST, slot])
    candidates = w.decode_of[w.decode_offsets[model] : w.decode_offsets[model + 1]]
    best = _pick(w, slot, candidates, 1, UP, True)
    return best if best != NONE else _pick(w, slot, candidates, 1, STARTING, True)


@compiled
def _decode_possible(w: World, slot: int) -> bool:
    """Whether any decode pool could ever hold the request."""
    model = model_of(w, w.slot_counts[REQUEST, slot])
    for at in range(w.decode_offsets[model], w.decode_offsets[model + 1]):
        if _fits(w, slot, w.decode_of[at], True):
            return True
    return False


@compiled
def _least(w: World, candidates: Counts, which: int, row: int) -> int:
    """mixed-pool: argmin of a row over the instances of one list (-1: of all), in the list's order."""
    counts = w.inst_counts
    best = NONE
    for wanted in range(3):
        if which != NONE and which != wanted:
            continue
        in_list = NONE
        for at in range(len(candidates)):
            i = candidates[at]
            if counts[STATE, i] != UP or counts[LIST, i] != wanted:
                continue
            if (
                in_list == NONE
                or counts[row, i] < counts[row, in_list]
                or (counts[row, i] == counts[row, in_list] and counts[RANK, i] < counts[RANK, in_list])
            ):
                in_list = i
        if in_list != NONE and (best == NONE or counts[row, in_list] < counts[row, best]):
            best = in_list
    return int(best)


@compiled
def to_list(w: World, i: int, which: int) -> None:
    """mixed-pool: move an instance to the end of a list."""
    w.counts[RANKS] += 1
    w.inst_counts[LIST, i] = which
    w.inst_counts[RANK, i] = w.counts[RANKS]


@compiled
def _least_loaded(w: World, candidates: Counts, tokens: int, state: int) -> int:
    """mixed-pool: argmin of LOAD over all instances in a state that can hold so many tokens."""
    counts = w.inst_counts
    best = NONE
    for at in range(len(candidates)):
        i = candidates[at]
        if counts[STATE, i] == state and tokens <= counts[KV_CAPACITY, i]:
            if best == NONE or counts[LOAD, i] < counts[LOAD, best]:
                best = i
    return int(best)


@compiled
def _mixed_pool(w: World, slot: int, candidates: Counts) -> bool:
    """Splitwise's two-level router (docs/splitwise-rules.md, Routing); sets both places, False if none is up.

    Pending tokens are LOAD, memory is ASSIGNED_KV, both kept as the paper's simulator does. A pool with both roles
    belongs to the mixed list. Where the paper's rules test nothing, the request must still fit the KV cache, and an
    instance that only starts is better than none. As there, two machines that both prefill and decode can hold KV for
    each other without room for it: such requests stay incomplete.
    """
    counts = w.inst_counts
    request = w.slot_counts[REQUEST, slot]
    prompt = w.slot_counts[PROMPT, slot]
    whole = prompt + w.output_tokens[request] - w.slot_counts[GENERATED, slot]
    prefill = NONE
    for which in (PROMPT_LIST, MIXED_LIST):
        i = _least(w, candidates, which, LOAD)
        if i != NONE and prompt <= counts[KV_CAPACITY, i]:
            busy = w.inst_counts[LOAD, i] > 0
            if not (busy and counts[LOAD, i] + prompt > w.counts[PROMPT_LIMIT]):
                prefill = i
                break
    decode = NONE
    for which in (TOKEN_LIST, MIXED_LIST):
        i = _least(w, candidates, which, ASSIGNED_KV)
        if i != NONE and counts[ASSIGNED_KV, i] + whole < counts[KV_CAPACITY, i]:
            decode = i
            break
    if prefill == NONE:
        i = _least(w, candidates, TOKEN_LIST, LOAD)
        if i != NONE and prompt <= counts[KV_CAPACITY, i]:
            to_list(w, i, MIXED_LIST)
            prefill = i
    if decode == NONE:
        i = _least(w, candidates, PROMPT_LIST, ASSIGNED_KV)
        if i != NONE and whole <= counts[KV_CAPACITY, i]:
            to_list(w, i, MIXED_LIST)
            decode = i
    if prefill == NONE or decode == NONE:
        prefill = _least_loaded(w, candidates, whole, UP)
        if prefill == NONE:
            prefill = _least_loaded(w, candidates, whole, STARTING)
        decode = prefill
    w.slot_counts[PREFILL_AT, slot] = prefill
    w.slot_counts[DECODE_AT, slot] = decode
    return bool(prefill != NONE)


@compiled
def place(w: World, slot: int) -> bool:
    """Choose where the prompt goes (and, if it stays there, the decode); False if nothing can take it."""
    model = model_of(w, w.slot_counts[REQUEST, slot])
    low, high = w.prefill_offsets[model], w.prefill_offsets[model + 1]
    candidates = w.prefill_of[low:high]
    if w.counts[ROUTER] == MIXED_POOL and w.decode_offsets[model + 1] > w.decode_offsets[model]:
        return _mixed_pool(w, slot, candidates)
    left = w.output_tokens[w.slot_counts[REQUEST, slot]] - w.slot_counts[GENERATED, slot]
    leaves = left <= 1 or _decode_possible(w, slot)
    best = _pick(w, slot, candidates, 0, UP, leaves)
    if best == NONE:
        best = _pick(w, slot, candidates, 0, STARTING, leaves)
    if best == NONE:
        return False
    w.slot_counts[PREFILL_AT, slot] = best
    w.slot_counts[DECODE_AT, slot] = best if w.inst_counts[ROLE, best] == BOTH else NONE
    return True
