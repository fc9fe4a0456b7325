"""KV on its way from the instance that processed the prompt to the one that decodes.

It exists because prefill and decode on separate machines pay for a copy of the cache. The prompt's KV is held at its
source until it has arrived; room (the prompt and a token for every decode, at least one) is reserved at the
destination, first come first served, when an iteration ends there (at once if it idles), and then the transfer starts.
The destination is chosen when the prompt is done, unless the router did so before.
Layer-wise overlap: a layer's KV may leave once the layer has processed the prompt, so a transfer of b bytes over a link
of B bytes/s for a model of L layers, whose prompt was admitted at s and which got room at e, ends at

    max(max(s + (e - s) / L, links free) + b / B,  e + b / (L B))

and with no overlap at max(e, links free) + b / B. With contention a link out of or into an instance carries one
transfer at a time (the same throughput as fair sharing, in order); without, it carries any number. If the destination
fails, the KV is sent whole to another, from the moment of the failure on (s is then that moment), and the link out of
the source stays taken until the void transfer would have ended. If the other is the source itself, nothing moves.
"""

from simulator.engine.layout import (
    ASSIGNED_KV,
    CONTENTION,
    DECODE_AT,
    DECODES,
    DOWN,
    EGRESS_FREE_S,
    HELD,
    HELD_STAGE,
    INCOMING_HEAD,
    INGRESS_FREE_S,
    KIND,
    KV_BYTES,
    KV_CAPACITY,
    KV_USED,
    LAYERS,
    LAYERWISE,
    LINK_BYTES_PER_S,
    LOAD,
    MOVING_STAGE,
    NONE,
    PREFILL_AT,
    PROMPT,
    READY_STAGE,
    REQUEST,
    SCHEDULED_S,
    STAGE,
    STATE,
    TRANSFER_BYTES,
    TRANSFERS,
    VERSION,
    WAITING_EVERYWHERE,
    World,
)
from simulator.engine.placement import decode_place
from simulator.engine.queues import add_move, append, append_ready, remove_first
from solver.compiled import compiled


@compiled
def _start(w: World, slot: int, now_s: float) -> None:
    """Reserve room at the destination and let the KV go."""
    counts = w.inst_counts
    source = w.slot_counts[PREFILL_AT, slot]
    target = w.slot_counts[DECODE_AT, slot]
    tokens = w.slot_counts[PROMPT, slot]
    counts[KV_USED, target] += tokens
    kind = counts[KIND, source]
    size_bytes = tokens * w.constants[KV_BYTES, kind]
    takes_s = size_bytes / w.reals[LINK_BYTES_PER_S]
    ready_s = now_s
    last_s = takes_s
    if w.counts[LAYERWISE]:
        layers = w.constants[LAYERS, kind]
        began_s = w.slot_reals[SCHEDULED_S, slot]
        ready_s = began_s + (now_s - began_s) / layers
        last_s = takes_s / layers
    if w.counts[CONTENTION]:
        ready_s = max(ready_s, w.inst_reals[EGRESS_FREE_S, source], w.inst_reals[INGRESS_FREE_S, target])
    end_s = max(ready_s + takes_s, now_s + last_s)
    if w.counts[CONTENTION]:
        w.inst_reals[EGRESS_FREE_S, source] = end_s
        w.inst_reals[INGRESS_FREE_S, target] = end_s
    w.slot_counts[STAGE, slot] = MOVING_STAGE
    w.counts[TRANSFERS] += 1
    w.reals[TRANSFER_BYTES] += size_bytes
    add_move(w, end_s, slot, w.slot_counts[VERSION, slot])


@compiled
def _room(w: World, slot: int, i: int) -> bool:
    """Whether a prompt's KV fits beside what an instance holds, with a token for every decode of the next iteration."""
    counts = w.inst_counts
    need = counts[KV_USED, i] + w.slot_counts[PROMPT, slot] + max(1, counts[DECODES, i])
    return bool(need <= counts[KV_CAPACITY, i])


@compiled
def expect_decode(w: World, i: int, slot: int) -> None:
    """Count a request for the instance that will decode it."""
    request = w.slot_counts[REQUEST, slot]
    w.inst_counts[LOAD, i] += 1
    w.inst_counts[ASSIGNED_KV, i] += w.prompt_tokens[request] + w.output_tokens[request]


@compiled
def forget_decode(w: World, i: int, slot: int) -> None:
    """Undo `expect_decode`."""
    request = w.slot_counts[REQUEST, slot]
    w.inst_counts[LOAD, i] -= 1
    w.inst_counts[ASSIGNED_KV, i] -= w.prompt_tokens[request] + w.output_tokens[request]


@compiled
def release_source(w: World, slot: int) -> None:
    """The KV has arrived, or is void: its source need not hold it any longer."""
    source = w.slot_counts[PREFILL_AT, slot]
    w.inst_counts[HELD, source] -= 1
    w.inst_counts[KV_USED, source] -= w.slot_counts[PROMPT, slot]
    w.inst_counts[ASSIGNED_KV, source] -= w.slot_counts[PROMPT, slot]


@compiled
def make_ready(w: World, i: int, slot: int) -> None:
    """The KV of a request is where it decodes: it joins the next iteration that has a place."""
    w.slot_counts[STAGE, slot] = READY_STAGE
    w.served_by[1, w.slot_counts[REQUEST, slot]] = i
    w.counts[WAITING_EVERYWHERE] -= 1
    append_ready(w, i, slot)


@compiled
def hand_over(w: World, slot: int) -> bool:
    """A prompt is done and decodes elsewhere: choose where, if need be, and move it; False if nobody can take it.

    The caller counts it as held at its source, and wakes the destination.
    """
    target = w.slot_counts[DECODE_AT, slot]
    if target == NONE or w.inst_counts[STATE, target] == DOWN:
        target = decode_place(w, slot)
        if target == NONE:
            return False
        w.slot_counts[DECODE_AT, slot] = target
        expect_decode(w, target, slot)
    source = w.slot_counts[PREFILL_AT, slot]
    if target == source:
        release_source(w, slot)
        w.inst_counts[KV_USED, source] += w.slot_counts[PROMPT, slot]
        make_ready(w, source, slot)
        return True
    w.slot_counts[STAGE, slot] = HELD_STAGE
    append(w, target, INCOMING_HEAD, slot)
    return True


@compiled
def incoming_fits(w: World, i: int) -> bool:
    """Whether the first transfer that waits for room at an instance could start when its iteration ends."""
    head = w.inst_counts[INCOMING_HEAD, i]
    return bool(head != NONE and _room(w, head, i))


@compiled
def admit_incoming(w: World, i: int, now_s: float) -> None:
    """Start the transfers that have room at an instance now."""
    head = w.inst_counts[INCOMING_HEAD, i]
    while head != NONE and _room(w, head, i):
        remove_first(w, i, INCOMING_HEAD)
        _start(w, head, now_s)
        head = w.inst_counts[INCOMING_HEAD, i]
