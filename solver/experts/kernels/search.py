"""Local search on the true objective of one layer after another, by exact small changes.

Two moves: two slots of different GPUs swap their experts, or one of several replicas of an expert becomes a replica of
another. With the neighbouring layers fixed, traffic between a GPU and an expert is a constant (`_inflow`, `_outflow`),
so a swap changes two columns of the flow into the layer and two rows of the flow out of it: O(G) per try.
"""

import numpy as np
import numpy.typing as npt

from solver.compiled import compiled
from solver.domain.moe import Floats, Slots

Counts = npt.NDArray[np.int64]
Held = npt.NDArray[np.uint8]

MODULUS = 2147483647
MULTIPLIER = 48271
OUT_SAME, IN_SAME, OUT_OTHER, IN_OTHER = 0, 1, 2, 3
"""Rows of the ports of a step: out and in over NVLink, out and in over the NIC."""


@compiled
def draw(chance: Counts, below: int) -> int:
    """Draw an integer (MINSTD: the same numbers compiled and not)."""
    chance[0] = (chance[0] * MULTIPLIER) % MODULUS
    return int((chance[0] * below) // MODULUS)


@compiled
def _inflow(before: Slots, slot_gpu: Slots, pairs: Floats, per_copy: float, gpus: int) -> Floats:
    """Return traffic from every GPU to every expert, [E, G]."""
    slots = before.shape[0]
    experts = pairs.shape[1]
    copies = np.zeros(pairs.shape[0])
    for s in range(slots):
        copies[before[s]] += 1.0
    by_gpu = np.zeros((gpus, experts))
    for s in range(slots):
        share = per_copy / copies[before[s]]
        source = pairs[before[s]]
        sums = by_gpu[slot_gpu[s]]
        for e in range(experts):
            sums[e] += share * source[e]
    return np.ascontiguousarray(by_gpu.T)


@compiled
def _outflow(after: Slots, slot_gpu: Slots, pairs: Floats, per_copy: float, gpus: int) -> Floats:
    """Return traffic from every expert to every GPU, [E, G]."""
    slots = after.shape[0]
    experts = pairs.shape[0]
    copies = np.zeros(pairs.shape[1])
    for s in range(slots):
        copies[after[s]] += 1.0
    share = np.zeros(slots)
    for s in range(slots):
        share[s] = per_copy / copies[after[s]]
    sums = np.zeros((experts, gpus))
    for e in range(experts):
        source = pairs[e]
        row = sums[e]
        for s in range(slots):
            row[slot_gpu[s]] += share[s] * source[after[s]]
    return sums


@compiled
def _ports(flow: Floats, same: Floats, other: Floats) -> Floats:
    """Return token copies through each GPU's ports, [4, G]."""
    gpus = flow.shape[0]
    ports = np.zeros((4, gpus))
    for g in range(gpus):
        for h in range(gpus):
            ports[OUT_SAME, g] += same[g, h] * flow[g, h]
            ports[IN_SAME, g] += same[g, h] * flow[h, g]
            ports[OUT_OTHER, g] += other[g, h] * flow[g, h]
            ports[IN_OTHER, g] += other[g, h] * flow[h, g]
    return ports


@compiled
def _step_s(
    ports: Floats, intra_s: Floats, inter_s: Floats, mean_weight: float, ports_weight: float
) -> float:
    """Return seconds of the busiest port, and beside it the weighted mean and 4-norm of all of them."""
    gpus = ports.shape[1]
    worst = 0.0
    total = 0.0
    fourths = 0.0
    for g in range(gpus):
        busiest = max(
            intra_s[g] * max(ports[OUT_SAME, g], ports[IN_SAME, g]),
            inter_s[g] * max(ports[OUT_OTHER, g], ports[IN_OTHER, g]),
        )
        worst = max(worst, busiest)
        if ports_weight > 0.0:
            square = busiest * busiest
            fourths += square * square
        total += intra_s[g] * ports[IN_SAME, g] + inter_s[g] * ports[IN_OTHER, g]
    return float(worst + mean_weight * total / gpus + ports_weight * np.sqrt(np.sqrt(fourths / gpus)))


@compiled
def _swapped_ports(
    ports: Floats,
    changed: Floats,
    source_a: Floats,
    share_a: float,
    source_b: Floats,
    share_b: float,
    g: int,
    h: int,
    same: Floats,
    other: Floats,
    near: int,
    far: int,
) -> None:
    """Write the ports of a step after a (on g) and b (on h) swapped.

    ``near`` is the row of the GPUs' own port that sees the layer's side within the node, 0 (out) or 1 (in): the other
    ends' ports are in the row ``far``. Rows + 2 are the NIC's.
    """
    gpus = ports.shape[1]
    near_same_g = 0.0
    near_other_g = 0.0
    near_same_h = 0.0
    near_other_h = 0.0
    for q in range(gpus):
        more = share_b * source_b[q] - share_a * source_a[q]
        near_same_g += more * same[g, q]
        near_other_g += more * other[g, q]
        near_same_h -= more * same[h, q]
        near_other_h -= more * other[h, q]
        changed[far, q] = ports[far, q] + more * (same[g, q] - same[h, q])
        changed[far + 2, q] = ports[far + 2, q] + more * (other[g, q] - other[h, q])
        changed[near, q] = ports[near, q]
        changed[near + 2, q] = ports[near + 2, q]
    changed[near, g] += near_same_g
    changed[near + 2, g] += near_other_g
    changed[near, h] += near_same_h
    changed[near + 2, h] += near_other_h


@compiled
def _compute_s(loads: Floats, token_s: Floats, port_s: Floats, weight: float) -> float:
    """Return max of compute, max of the dispatch port, and the weighted root mean square of compute."""
    worst = 0.0
    worst_port = 0.0
    squares = 0.0
    gpus = loads.shape[0]
    for g in range(gpus):
        seconds = token_s[g] * loads[g]
        worst = max(worst, seconds)
        worst_port = max(worst_port, port_s[g] * loads[g])
        squares += seconds * seconds
    return float(worst + worst_port + weight * np.sqrt(squares / gpus))


@compiled
def _moved_ports(
    ports: Floats,
    changed: Floats,
    first: Floats,
    more_first: Floats,
    second: Floats,
    more_second: Floats,
    same: Floats,
    other: Floats,
    near: int,
    far: int,
) -> None:
    """Write the ports of a step after shares of two experts changed by ``more`` on each GPU."""
    gpus = ports.shape[1]
    changed[:] = ports
    for g in range(gpus):
        if more_first[g] == 0.0 and more_second[g] == 0.0:
            continue
        for q in range(gpus):
            more = more_first[g] * first[q] + more_second[g] * second[q]
            changed[near, g] += more * same[g, q]
            changed[near + 2, g] += more * other[g, q]
            changed[far, q] += more * same[g, q]
            changed[far + 2, q] += more * other[g, q]


@compiled
def search_layer(
    row: Slots,
    before: Slots,
    after: Slots,
    has_before: bool,
    has_after: bool,
    slot_gpu: Slots,
    most_held: Slots,
    load: Floats,
    pairs_in: Floats,
    pairs_out: Floats,
    per_copy: float,
    token_s: Floats,
    port_s: Floats,
    intra_s: Floats,
    inter_s: Floats,
    same: Floats,
    other: Floats,
    mean_weight: float,
    ports_weight: float,
    square_weight: float,
    tries: int,
    replica_ratio: float,
    original: Held,
    fetch_s: float,
    room: Counts,
    chance: Counts,
) -> int:
    """Improve one layer in place; returns how many moves were made.

    Parameters
    ----------
    row, before, after
        The layer's slots [S] and its neighbours'; unused where there is none.
    most_held
        By GPU: how often it may hold one expert.
    pairs_in, pairs_out
        Transitions from the layer before and to the layer after, [E, E].
    token_s, port_s, intra_s, inter_s
        By GPU: seconds per routed token, per routed token under dispatch, per copy over NVLink and over the NIC.
    same, other
        1 where two different GPUs are in one node, and in different nodes, [G, G].
    mean_weight, ports_weight, square_weight
        Weights of mean traffic, of the 4-norm of the ports and of the root mean square of compute beside the true
        objective.
    replica_ratio
        Share of tries that turn a replica of one expert into one of another.
    original, fetch_s, room
        What each GPU holds now, [E, G], or nothing; the price of fetching an expert that a GPU does not hold; how many
        more may be fetched, [1], counted down and up.
    chance
        State of the random numbers, [1].
    """
    slots = row.shape[0]
    experts = load.shape[0]
    gpus = token_s.shape[0]
    held = np.zeros((experts, gpus), dtype=np.int32)
    copies = np.zeros(experts)
    loads = np.zeros(gpus)
    first_slot = np.zeros(gpus + 1, dtype=np.int64)
    for s in range(slots):
        held[row[s], slot_gpu[s]] += 1
        copies[row[s]] += 1.0
        first_slot[slot_gpu[s] + 1] = s + 1
    for g in range(gpus):
        first_slot[g + 1] = max(first_slot[g + 1], first_slot[g])
    share = np.zeros(experts)
    for e in range(experts):
        share[e] = 1.0 / copies[e]
    for s in range(slots):
        loads[slot_gpu[s]] += load[row[s]] * share[row[s]]
    nothing = np.zeros((1, 1))
    coming = _inflow(before, slot_gpu, pairs_in, per_copy, gpus) if has_before else nothing
    going = _outflow(after, slot_gpu, pairs_out, per_copy, gpus) if has_after else nothing
    ports_in = np.zeros((4, gpus))
    ports_out = np.zeros((4, gpus))
    for s in range(slots):
        e = row[s]
        g = slot_gpu[s]
        for q in range(gpus):
            if has_before:
                more = share[e] * coming[e, q]
                ports_in[IN_SAME, g] += more * same[g, q]
                ports_in[IN_OTHER, g] += more * other[g, q]
                ports_in[OUT_SAME, q] += more * same[g, q]
                ports_in[OUT_OTHER, q] += more * other[g, q]
            if has_after:
                more = share[e] * going[e, q]
                ports_out[OUT_SAME, g] += more * same[g, q]
                ports_out[OUT_OTHER, g] += more * other[g, q]
                ports_out[IN_SAME, q] += more * same[g, q]
                ports_out[IN_OTHER, q] += more * other[g, q]
    new_in = np.zeros((4, gpus))
    new_out = np.zeros((4, gpus))
    new_loads = np.zeros(gpus)
    more_a = np.zeros(gpus)
    more_b = np.zeros(gpus)
    best = _compute_s(loads, token_s, port_s, square_weight)
    if has_before:
        best += _step_s(ports_in, intra_s, inter_s, mean_weight, ports_weight)
    if has_after:
        best += _step_s(ports_out, intra_s, inter_s, mean_weight, ports_weight)
    fetching = original.shape[0] > 0
    paid = 0.0
    if fetching:
        for e in range(experts):
            for q in range(gpus):
                if held[e, q] > 0 and original[e, q] == 0:
                    paid += fetch_s
        best += paid
    fetched = 0
    moves = 0
    replica_below = int(replica_ratio * 1000)
    for _ in range(tries):
        focus = draw(chance, 4)
        if focus == 0:
            g = 0
            for q in range(1, gpus):
                if token_s[q] * loads[q] > token_s[g] * loads[g]:
                    g = q
            if first_slot[g + 1] == first_slot[g]:
                continue
            s = first_slot[g] + draw(chance, first_slot[g + 1] - first_slot[g])
        elif focus == 1 and (has_before or has_after):
            ports = ports_in if has_before and (not has_after or draw(chance, 2) == 0) else ports_out
            g = 0
            worst = -1.0
            for q in range(gpus):
                value = max(
                    intra_s[q] * max(ports[OUT_SAME, q], ports[IN_SAME, q]),
                    inter_s[q] * max(ports[OUT_OTHER, q], ports[IN_OTHER, q]),
                )
                if value > worst:
                    worst = value
                    g = q
            if first_slot[g + 1] == first_slot[g]:
                continue
            s = first_slot[g] + draw(chance, first_slot[g + 1] - first_slot[g])
        else:
            s = draw(chance, slots)
        t = draw(chance, slots)
        a = row[s]
        b = row[t]
        g = slot_gpu[s]
        h = slot_gpu[t]
        if a == b:
            continue
        if draw(chance, 1000) < replica_below:
            # slot s becomes a replica of b; a keeps its others
            if copies[a] < 1.5 or held[b, g] >= most_held[g]:
                continue
            share_a = 1.0 / (copies[a] - 1.0)
            share_b = 1.0 / (copies[b] + 1.0)
            for q in range(gpus):
                n_a = held[a, q] - (1 if q == g else 0)
                n_b = held[b, q] + (1 if q == g else 0)
                more_a[q] = n_a * share_a - held[a, q] * share[a]
                more_b[q] = n_b * share_b - held[b, q] * share[b]
                new_loads[q] = loads[q] + load[a] * more_a[q] + load[b] * more_b[q]
            value = _compute_s(new_loads, token_s, port_s, square_weight)
            if fetching:
                fetched = (0 if original[b, g] else 1) - (0 if original[a, g] else 1)
                if fetched > room[0]:
                    continue
                value += paid + fetch_s * fetched
            if has_before and value < best:
                _moved_ports(
                    ports_in, new_in, coming[a], more_a, coming[b], more_b, same, other, IN_SAME, OUT_SAME
                )
                value += _step_s(new_in, intra_s, inter_s, mean_weight, ports_weight)
            if has_after and value < best:
                _moved_ports(
                    ports_out, new_out, going[a], more_a, going[b], more_b, same, other, OUT_SAME, IN_SAME
                )
                value += _step_s(new_out, intra_s, inter_s, mean_weight, ports_weight)
            if value < best * (1.0 - 1e-12):
                best = value
                moves += 1
                if fetching:
                    paid += fetch_s * fetched
                    room[0] -= fetched
                loads[:] = new_loads
                if has_before:
                    ports_in[:] = new_in
                if has_after:
                    ports_out[:] = new_out
                held[a, g] -= 1
                held[b, g] += 1
                copies[a] -= 1.0
                copies[b] += 1.0
                share[a] = share_a
                share[b] = share_b
                row[s] = b
            continue
        if g == h or held[a, h] >= most_held[h] or held[b, g] >= most_held[g]:
            continue
        load_a = load[a] * share[a]
        load_b = load[b] * share[b]
        old_g = loads[g]
        old_h = loads[h]
        loads[g] = old_g + load_b - load_a
        loads[h] = old_h + load_a - load_b
        value = _compute_s(loads, token_s, port_s, square_weight)
        if fetching:
            fetched = (0 if original[a, h] else 1) - (0 if original[a, g] else 1)
            fetched += (0 if original[b, g] else 1) - (0 if original[b, h] else 1)
            value += paid + fetch_s * fetched
            if fetched > room[0]:
                value = np.inf
        if has_before and value < best:
            _swapped_ports(
                ports_in,
                new_in,
                coming[a],
                share[a],
                coming[b],
                share[b],
                g,
                h,
                same,
                other,
                IN_SAME,
                OUT_SAME,
            )
            value += _step_s(new_in, intra_s, inter_s, mean_weight, ports_weight)
        if has_after and value < best:
            _swapped_ports(
                ports_out,
                new_out,
                going[a],
                share[a],
                going[b],
                share[b],
                g,
                h,
                same,
                other,
                OUT_SAME,
                IN_SAME,
            )
            value += _step_s(new_out, intra_s, inter_s, mean_weight, ports_weight)
        if value < best * (1.0 - 1e-12):
            best = value
            moves += 1
            if fetching:
                paid += fetch_s * fetched
                room[0] -= fetched
            if has_before:
                ports_in[:] = new_in
            if has_after:
                ports_out[:] = new_out
            held[a, g] -= 1
            held[a, h] += 1
            held[b, h] -= 1
            held[b, g] += 1
            row[s] = b
            row[t] = a
        else:
            loads[g] = old_g
            loads[h] = old_h
    return moves


@compiled
def search_pass(
    p2l: Slots,
    order: Counts,
    slot_gpu: Slots,
    most_held: Slots,
    load: Floats,
    transitions: Floats,
    per_copy: float,
    token_s: Floats,
    port_s: Floats,
    intra_s: Floats,
    inter_s: Floats,
    same: Floats,
    other: Floats,
    mean_weight: float,
    ports_weight: float,
    square_weight: float,
    tries: int,
    replica_ratio: float,
    original: Held,
    fetch_s: float,
    room: Counts,
    chance: Counts,
) -> int:
    """Improve layers in the given order, in place; returns how many moves were made.

    ``transitions`` without steps means that there is no traffic, ``original`` [L, E, G] without layers that fetching
    costs nothing.
    """
    nothing = np.zeros((0, 0), dtype=np.uint8)
    no_pairs = np.zeros((1, 1))
    layers = p2l.shape[0]
    linked = transitions.shape[0] > 0
    moves = 0
    for position in range(order.shape[0]):
        layer = order[position]
        has_before = linked and layer > 0
        has_after = linked and layer + 1 < layers
        step_in = layer - 1 if has_before else 0
        step_out = layer if has_after else 0
        moves += search_layer(
            p2l[layer],
            p2l[max(layer - 1, 0)],
            p2l[min(layer + 1, layers - 1)],
            has_before,
            has_after,
            slot_gpu,
            most_held,
            load[layer],
            transitions[step_in] if linked else no_pairs,
            transitions[step_out] if linked else no_pairs,
            per_copy,
            token_s,
            port_s,
            intra_s,
            inter_s,
            same,
            other,
            mean_weight,
            ports_weight,
            square_weight,
            tries,
            replica_ratio,
            original[layer] if original.shape[0] else nothing,
            fetch_s,
            room,
            chance,
        )
    return moves


@compiled
def shake(
    p2l: Slots,
    slot_gpu: Slots,
    most_held: Slots,
    experts: int,
    ratio: float,
    replica_ratio: float,
    chance: Counts,
) -> None:
    """Change about ``ratio`` of all slots at random, in place: swaps, and replicas that change their expert."""
    slots = p2l.shape[1]
    replica_below = int(replica_ratio * 1000)
    held = np.zeros((experts, most_held.shape[0]), dtype=np.int32)
    copies = np.zeros(experts, dtype=np.int32)
    for layer in range(p2l.shape[0]):
        row = p2l[layer]
        held[:] = 0
        copies[:] = 0
        for s in range(slots):
            held[row[s], slot_gpu[s]] += 1
            copies[row[s]] += 1
        for _ in range(max(1, int(ratio * slots / 2))):
            s = draw(chance, slots)
            t = draw(chance, slots)
            a = row[s]
            b = row[t]
            g = slot_gpu[s]
            h = slot_gpu[t]
            if a == b:
                continue
            if draw(chance, 1000) < replica_below:
                if copies[a] > 1 and held[b, g] < most_held[g]:
                    held[a, g] -= 1
                    held[b, g] += 1
                    copies[a] -= 1
                    copies[b] += 1
                    row[s] = b
            elif g != h and held[a, h] < most_held[h] and held[b, g] < most_held[g]:
                held[a, g] -= 1
                held[a, h] += 1
                held[b, h] -= 1
                held[b, g] += 1
                row[s] = b
                row[t] = a
