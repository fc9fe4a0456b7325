"""Balanced packing of one layer: replicas, longest processing time first, then exchanges with the slowest GPU.

No expert is put twice on a GPU while slots allow. GPUs may differ in slots and speed; loads may be zero.
"""

import numpy as np

from solver.compiled import compiled
from solver.domain.moe import Floats, Slots

GIVERS = 4


@compiled
def replica_counts(load: Floats, slots: int, most: int) -> Slots:
    """Return slots per expert, [E]: every extra slot goes to the expert with the largest share (optimal for its max).

    ``most`` bounds copies of an expert, unless slots cannot be filled otherwise.
    """
    experts = load.shape[0]
    copies = np.ones(experts, dtype=np.int32)
    for _ in range(slots - experts):
        best = -1
        largest = -1.0
        for e in range(experts):
            value = load[e] / copies[e]
            if copies[e] < most and (value > largest or (value == largest and copies[e] < copies[best])):
                largest = value
                best = e
        if best < 0:  # more slots than experts × GPUs
            best = 0
            for e in range(experts):
                if copies[e] < copies[best]:
                    best = e
        copies[best] += 1
    return copies


@compiled
def _fold_after(
    shares: Floats, old_a: float, old_b: float, new_a: float, new_b: float, n_a: int, n_b: int
) -> float:
    """Return the largest sum of two in one GPU if the largest share is put with the smallest, and so on inwards.

    ``shares`` are sorted, largest first; ``n_a`` of ``old_a`` become one more of ``new_a``, ``n_b`` one less.
    """
    slots = shares.shape[0]
    row = np.zeros(slots)
    skip_a = n_a
    skip_b = n_b
    left_a = n_a + 1
    left_b = n_b - 1
    at = 0
    for s in range(slots):
        while at < slots and ((skip_a > 0 and shares[at] == old_a) or (skip_b > 0 and shares[at] == old_b)):
            if skip_a > 0 and shares[at] == old_a:
                skip_a -= 1
            else:
                skip_b -= 1
            at += 1
        value = shares[at] if at < slots else -1.0
        if left_a > 0 and new_a >= value and (left_b == 0 or new_a >= new_b):
            row[s] = new_a
            left_a -= 1
        elif left_b > 0 and new_b >= value:
            row[s] = new_b
            left_b -= 1
        else:
            row[s] = value
            at += 1
    worst = 0.0
    for s in range(slots // 2):
        worst = max(worst, row[s] + row[slots - 1 - s])
    return worst


@compiled
def trade_copies(load: Floats, copies: Slots, most: int) -> None:
    """Improve replica counts in place for two slots per GPU, where a large share needs a small one beside it.

    Greedy counts make the largest share as small as can be; here an expert gives a copy to another as long as that
    lowers the dearest pair. Takers are all experts, givers the few that grow least by it.
    """
    experts = load.shape[0]
    slots = int(copies.sum())
    while True:
        shares = np.zeros(slots)
        at = 0
        for e in range(experts):
            for _ in range(copies[e]):
                shares[at] = load[e] / copies[e]
                at += 1
        shares = np.sort(shares)[::-1].copy()
        best = 0.0
        for s in range(slots // 2):
            best = max(best, shares[s] + shares[slots - 1 - s])
        best *= 1.0 - 1e-9
        grown = np.full(experts, np.inf)
        for e in range(experts):
            if copies[e] > 1:
                grown[e] = load[e] / (copies[e] - 1)
        givers = np.argsort(grown, kind="mergesort")[:GIVERS]
        giver = -1
        taker = -1
        for b in givers:
            if grown[b] >= best:
                break
            for a in range(experts):
                if a == b or copies[a] >= most:
                    continue
                worst = _fold_after(
                    shares,
                    load[a] / copies[a],
                    load[b] / copies[b],
                    load[a] / (copies[a] + 1),
                    grown[b],
                    copies[a],
                    copies[b],
                )
                if worst < best:
                    best = worst
                    giver = b
                    taker = a
        if giver < 0:
            return
        copies[giver] -= 1
        copies[taker] += 1


@compiled
def pack(load: Floats, copies: Slots, slots_per_gpu: Slots, most_held: Slots, seconds: Floats) -> Slots:
    """Put copies onto GPUs, largest share first, each on the GPU that is done first with it; returns slots [S]."""
    experts = load.shape[0]
    gpus = slots_per_gpu.shape[0]
    first_slot = np.zeros(gpus + 1, dtype=np.int64)
    for g in range(gpus):
        first_slot[g + 1] = first_slot[g] + slots_per_gpu[g]
    row = np.full(first_slot[gpus], -1, dtype=np.int32)
    used = np.zeros(gpus, dtype=np.int64)
    loads = np.zeros(gpus)
    held = np.zeros((experts, gpus), dtype=np.int32)
    share = load / copies
    order = np.argsort(-share, kind="mergesort")
    for position in range(experts):
        e = order[position]
        for _ in range(copies[e]):
            best = -1
            soonest = np.inf
            fallback = -1
            for g in range(gpus):
                if used[g] == slots_per_gpu[g]:
                    continue
                if held[e, g] >= most_held[g]:
                    fallback = g
                    continue
                done = (loads[g] + share[e]) * seconds[g]
                if done < soonest or (done == soonest and used[g] < used[best]):
                    soonest = done
                    best = g
            if best < 0:
                # only GPUs that hold it have room: one of them takes another's expert instead
                g = fallback
                for s in range(row.shape[0]):
                    f = row[s]
                    if f < 0 or f == e:
                        continue
                    h = 0
                    while s >= first_slot[h + 1]:
                        h += 1
                    if held[e, h] < most_held[h] and held[f, g] < most_held[g]:
                        row[s] = e
                        held[e, h] += 1
                        held[f, h] -= 1
                        loads[h] += share[e] - share[f]
                        row[first_slot[g] + used[g]] = f
                        held[f, g] += 1
                        loads[g] += share[f]
                        used[g] += 1
                        break
                else:
                    row[first_slot[g] + used[g]] = e
                    held[e, g] += 1
                    loads[g] += share[e]
                    used[g] += 1
                continue
            row[first_slot[best] + used[best]] = e
            used[best] += 1
            loads[best] += share[e]
            held[e, best] += 1
    return row


@compiled
def exchange(
    row: Slots, load: Floats, slots_per_gpu: Slots, most_held: Slots, seconds: Floats, target_s: float
) -> float:
    """Improve a layer in place until its slowest GPU needs ``target_s`` or nothing helps; returns what it needs.

    Moves of the slowest GPU, best first: a slot against one of another GPU, or one of its experts gets a replica
    in place of another expert's that can spare one.
    """
    experts = load.shape[0]
    gpus = slots_per_gpu.shape[0]
    slots = row.shape[0]
    slot_gpu = np.zeros(slots, dtype=np.int64)
    first_slot = np.zeros(gpus + 1, dtype=np.int64)
    for g in range(gpus):
        first_slot[g + 1] = first_slot[g] + slots_per_gpu[g]
        slot_gpu[first_slot[g] : first_slot[g + 1]] = g
    copies = np.zeros(experts)
    held = np.zeros((experts, gpus), dtype=np.int32)
    for s in range(slots):
        copies[row[s]] += 1.0
        held[row[s], slot_gpu[s]] += 1
    loads = np.zeros(gpus)
    for s in range(slots):
        loads[slot_gpu[s]] += load[row[s]] / copies[row[s]]
    while True:
        g = 0
        for q in range(1, gpus):
            if loads[q] * seconds[q] > loads[g] * seconds[g]:
                g = q
        now = loads[g] * seconds[g]
        if now <= target_s:
            return float(now)
        best = now * (1.0 - 1e-9)
        best_s = -1
        best_t = -1
        for s in range(first_slot[g], first_slot[g + 1]):
            a = row[s]
            share_a = load[a] / copies[a]
            for t in range(slots):
                h = slot_gpu[t]
                b = row[t]
                if h == g:
                    continue
                less = share_a - load[b] / copies[b]
                if less <= 0.0:
                    continue
                worst = max((loads[g] - less) * seconds[g], (loads[h] + less) * seconds[h])
                if worst < best and held[a, h] < most_held[h] and held[b, g] < most_held[g]:
                    best = worst
                    best_s = s
                    best_t = t
        if best_s >= 0:
            a = row[best_s]
            b = row[best_t]
            h = slot_gpu[best_t]
            less = load[a] / copies[a] - load[b] / copies[b]
            loads[g] -= less
            loads[h] += less
            held[a, g] -= 1
            held[a, h] += 1
            held[b, h] -= 1
            held[b, g] += 1
            row[best_s] = b
            row[best_t] = a
            continue
        # a replica more of an expert of g, in a slot of an expert with another one: g gets lighter, others change
        best = now * (1.0 - 1e-9)
        for s in range(first_slot[g], first_slot[g + 1]):
            a = row[s]
            for t in range(slots):
                b = row[t]
                h = slot_gpu[t]
                if a == b or copies[b] < 1.5 or held[a, h] >= most_held[h]:
                    continue
                less_a = load[a] / copies[a] - load[a] / (copies[a] + 1.0)
                more_b = load[b] / (copies[b] - 1.0) - load[b] / copies[b]
                worst = 0.0
                for q in range(gpus):
                    value = loads[q]
                    if held[a, q] or held[b, q] or q == h:
                        value += held[b, q] * more_b - held[a, q] * less_a
                        if q == h:
                            value += load[a] / (copies[a] + 1.0) - load[b] / (copies[b] - 1.0)
                    worst = max(worst, value * seconds[q])
                    if worst >= best:
                        break
                if worst < best:
                    best = worst
                    best_s = a
                    best_t = t
        if best_t < 0:
            return float(now)
        a = best_s
        b = row[best_t]
        h = slot_gpu[best_t]
        row[best_t] = a
        held[b, h] -= 1
        held[a, h] += 1
        copies[a] += 1.0
        copies[b] -= 1.0
        loads[:] = 0.0
        for s in range(slots):
            loads[slot_gpu[s]] += load[row[s]] / copies[row[s]]


@compiled
def balance_layers(
    load: Floats,
    slots_per_gpu: Slots,
    most_held: Slots,
    seconds: Floats,
    bounds_s: Floats,
    slack_ratio: float,
) -> Slots:
    """Pack every layer, [L, S]; a layer is good once it is within ``slack_ratio`` of its bound."""
    layers = load.shape[0]
    slots = int(slots_per_gpu.sum())
    most = 0
    for g in range(slots_per_gpu.shape[0]):
        most += min(most_held[g], slots_per_gpu[g])
    pairs = slots > load.shape[1]
    for g in range(slots_per_gpu.shape[0]):
        pairs = pairs and slots_per_gpu[g] == 2 and seconds[g] == seconds[0]
    p2l = np.zeros((layers, slots), dtype=np.int32)
    for layer in range(layers):
        copies = replica_counts(load[layer], slots, most)
        if pairs:
            trade_copies(load[layer], copies, most)
        row = pack(load[layer], copies, slots_per_gpu, most_held, seconds)
        exchange(row, load[layer], slots_per_gpu, most_held, seconds, bounds_s[layer] * (1.0 + slack_ratio))
        p2l[layer] = row
    return p2l


@compiled
def pack_in_nodes(
    node_row: Slots,
    node_first: Slots,
    node_gpus: Slots,
    node_first_gpu: Slots,
    load: Floats,
    slots_per_gpu: Slots,
    most_held: Slots,
    seconds: Floats,
) -> Slots:
    """Spread each node's experts over its GPUs; returns slots by GPU, [S].

    Parameters
    ----------
    node_row, node_first
        Experts by node, [S], and where each node's begin, [N + 1].
    node_gpus, node_first_gpu
        GPUs by node, [G], and where each node's begin, [N + 1].
    """
    experts = load.shape[0]
    gpus = slots_per_gpu.shape[0]
    copies = np.zeros(experts)
    for s in range(node_row.shape[0]):
        copies[node_row[s]] += 1.0
    first_slot = np.zeros(gpus + 1, dtype=np.int64)
    for g in range(gpus):
        first_slot[g + 1] = first_slot[g] + slots_per_gpu[g]
    row = np.zeros(node_row.shape[0], dtype=np.int32)
    inside = np.zeros(experts, dtype=np.int32)
    for n in range(node_first.shape[0] - 1):
        inside[:] = 0
        for s in range(node_first[n], node_first[n + 1]):
            inside[node_row[s]] += 1
        names = np.flatnonzero(inside > 0)
        if names.shape[0] == 0:
            continue
        own = node_gpus[node_first_gpu[n] : node_first_gpu[n + 1]]
        shares = np.zeros(names.shape[0])
        for position in range(names.shape[0]):
            e = names[position]
            shares[position] = load[e] / copies[e] * inside[e]
        packed = pack(shares, inside[names], slots_per_gpu[own], most_held[own], seconds[own])
        taken = 0
        for g in own:
            for s in range(first_slot[g], first_slot[g + 1]):
                row[s] = names[packed[taken]]
                taken += 1
    return row
