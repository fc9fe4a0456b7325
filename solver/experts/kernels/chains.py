"""Cheapest chains of states, layer by layer (Viterbi), and small exact and greedy choices within a layer.

States are whole placements of a layer (`cheapest_placements`) or permutations of its clusters (`cheapest_orders`).
Both walk the states of the layer before in the order of their cost and stop where no later one can help.
"""

import numpy as np
import numpy.typing as npt

from solver.compiled import compiled
from solver.domain.moe import Floats, Slots

Numbers = npt.NDArray[np.int64]


@compiled
def cheapest_placements(
    rows: Slots,
    shares: Floats,
    own_s: Floats,
    kept: npt.NDArray[np.bool_],
    slot_gpu: Slots,
    gpu_node: Slots,
    pairs: Floats,
    costs_before_s: Floats,
    step_least_s: float,
    intra_copy_s: float,
    inter_copy_s: float,
    several_nodes: bool,
    before_kept: npt.NDArray[np.bool_],
) -> tuple[Floats, Numbers]:
    """Extend the cheapest chains by one layer; returns their costs [N] and the state before, [N].

    Parameters
    ----------
    rows, shares
        Every placement of a layer: experts of its slots, and 1 / replicas of each, [N, S].
    own_s
        Seconds of each placement in the layer itself, [N].
    kept, before_kept
        Placements that can still be part of the best chain, in this layer and the one before.
    pairs
        Token copies from each expert of the layer before to each of this one, [E, E].
    costs_before_s
        Of the cheapest chain up to each placement of the layer before, [N].
    step_least_s
        No step between the two layers costs less.
    """
    count, slots = rows.shape
    experts = pairs.shape[0]
    gpus = gpu_node.shape[0]
    nodes = int(gpu_node.max()) + 1
    order = np.argsort(costs_before_s)
    firsts = 0
    chosen = np.zeros(count, dtype=np.int64)
    for position in range(count):
        p = order[position]
        if before_kept[p]:
            chosen[firsts] = p
            firsts += 1
    # what each GPU, and each node, sends to each expert, and what each GPU sends in all
    sent = np.zeros((firsts, gpus, experts))
    sent_node = np.zeros((firsts if several_nodes else 1, nodes, experts))
    sent_all = np.zeros((firsts, gpus))
    for position in range(firsts):
        p = chosen[position]
        for s in range(slots):
            e = rows[p, s]
            g = slot_gpu[s]
            for f in range(experts):
                copies = shares[p, s] * pairs[e, f]
                sent[position, g, f] += copies
                sent_all[position, g] += copies
                if several_nodes:
                    sent_node[position, gpu_node[g], f] += copies
    columns = np.zeros(experts)
    for e in range(experts):
        for f in range(experts):
            columns[f] += pairs[e, f]
    costs_s = np.full(count, np.inf)
    came = np.full(count, -1, dtype=np.int64)
    received = np.zeros(gpus)
    stay = np.zeros(gpus)
    stay_out = np.zeros(gpus)
    stay_in = np.zeros(gpus)
    for q in range(count):
        if not kept[q]:
            continue
        received[:] = 0.0
        for s in range(slots):
            received[slot_gpu[s]] += shares[q, s] * columns[rows[q, s]]
        best = np.inf
        for position in range(firsts):
            before_s = costs_before_s[chosen[position]]
            if before_s + step_least_s >= best:
                break
            stay[:] = 0.0
            for s in range(slots):
                stay[slot_gpu[s]] += shares[q, s] * sent[position, slot_gpu[s], rows[q, s]]
            step_s = 0.0
            if several_nodes:
                stay_out[:] = 0.0
                stay_in[:] = 0.0
                for s in range(slots):
                    h = slot_gpu[s]
                    f = rows[q, s]
                    stay_in[h] += shares[q, s] * sent_node[position, gpu_node[h], f]
                    for g in range(gpus):
                        if gpu_node[g] == gpu_node[h]:
                            stay_out[g] += shares[q, s] * sent[position, g, f]
                for g in range(gpus):
                    inside = max(stay_out[g], stay_in[g]) - stay[g]
                    outside = max(sent_all[position, g] - stay_out[g], received[g] - stay_in[g])
                    step_s = max(step_s, intra_copy_s * inside, inter_copy_s * outside)
            else:
                for g in range(gpus):
                    inside = max(sent_all[position, g], received[g]) - stay[g]
                    step_s = max(step_s, intra_copy_s * inside)
            if before_s + step_s < best:
                best = before_s + step_s
                came[q] = chosen[position]
        costs_s[q] = best + own_s[q]
    return costs_s, came


@compiled
def cheapest_orders(orders: Numbers, flows: Floats, copy_s: Floats) -> tuple[Numbers, float]:
    """Return by layer the order of clusters over GPUs, [L, G], with the least sum over steps of the dearest pair.

    Parameters
    ----------
    orders
        Every order that may be taken: the cluster of each GPU, [N, G].
    flows
        Copies between the clusters of two layers, [L - 1, G, G].
    copy_s
        Seconds per copy between two GPUs, 0 on the diagonal, [G, G].
    """
    count, gpus = orders.shape
    steps = flows.shape[0]
    costs_s = np.zeros(count)
    came = np.zeros((steps, count), dtype=np.int64)
    for step in range(steps):
        ascending = np.argsort(costs_s)
        after_s = np.full(count, np.inf)
        for q in range(count):
            best = np.inf
            for position in range(count):
                p = ascending[position]
                room = best - costs_s[p]
                if room <= 0.0:
                    break
                dearest = 0.0
                for g in range(gpus):
                    for h in range(gpus):
                        dearest = max(dearest, copy_s[g, h] * flows[step, orders[p, g], orders[q, h]])
                    if dearest >= room:
                        break
                if dearest < room:
                    best = costs_s[p] + dearest
                    came[step, q] = p
            after_s[q] = best
        costs_s = after_s
    answer = np.zeros((steps + 1, gpus), dtype=np.int64)
    state = int(np.argmin(costs_s))
    total = costs_s[state]
    for layer in range(steps, -1, -1):
        answer[layer] = orders[state]
        if layer > 0:
            state = came[layer - 1, state]
    return answer, total


@compiled
def cheapest_assignment(cost: Floats) -> Numbers:
    """Return the column of every row with the least sum (shortest augmenting paths, O(n³)), for a square matrix."""
    size = cost.shape[0]
    row_price = np.zeros(size + 1)
    column_price = np.zeros(size + 1)
    row_of = np.zeros(size + 1, dtype=np.int64)  # of every column, from 1; 0 is free
    for row in range(1, size + 1):
        row_of[0] = row
        column = 0
        least = np.full(size + 1, np.inf)
        back = np.zeros(size + 1, dtype=np.int64)
        seen = np.zeros(size + 1, dtype=np.bool_)
        while True:
            seen[column] = True
            at = row_of[column]
            step = np.inf
            following = 0
            for j in range(1, size + 1):
                if seen[j]:
                    continue
                reduced = cost[at - 1, j - 1] - row_price[at] - column_price[j]
                if reduced < least[j]:
                    least[j] = reduced
                    back[j] = column
                if least[j] < step:
                    step = least[j]
                    following = j
            for j in range(size + 1):
                if seen[j]:
                    row_price[row_of[j]] += step
                    column_price[j] -= step
                else:
                    least[j] -= step
            column = following
            if row_of[column] == 0:
                break
        while column != 0:
            row_of[column] = row_of[back[column]]
            column = back[column]
    answer = np.zeros(size, dtype=np.int64)
    for j in range(1, size + 1):
        answer[row_of[j] - 1] = j - 1
    return answer


@compiled
def most_even_clusters(load: Floats, sizes: Numbers, mean: float) -> tuple[Numbers, float]:
    """Return the cluster of every expert, and the least sum over clusters of |load - mean|, over all clusterings.

    Dynamic programming over sets of experts already clustered: 3^E steps at most, for E up to 16. ``sizes`` [G] are the
    clusters' numbers of experts; 0 means any number above 0, and then all must be 0.
    """
    experts = load.shape[0]
    clusters = sizes.shape[0]
    masks = 1 << experts
    sums = np.zeros(masks)
    members = np.zeros(masks, dtype=np.int64)
    for mask in range(1, masks):
        low = mask & -mask
        bit = 0
        while (1 << bit) != low:
            bit += 1
        sums[mask] = sums[mask ^ low] + load[bit]
        members[mask] = members[mask ^ low] + 1
    alike = True
    for c in range(clusters):
        alike = alike and sizes[c] == sizes[0]
    best = np.full((clusters + 1, masks), np.inf)
    taken = np.zeros((clusters + 1, masks), dtype=np.int64)
    best[0, 0] = 0.0
    for c in range(clusters):
        for mask in range(masks):
            if best[c, mask] == np.inf:
                continue
            rest = (masks - 1) ^ mask
            if rest == 0:
                continue
            # clusters of the same kind: the next one holds the first expert that is left
            must = rest & -rest if alike else 0
            free = rest ^ must
            part = free
            while True:
                cluster = part | must
                fits = members[cluster] == sizes[c] if sizes[c] > 0 else cluster != 0
                if fits:
                    value = best[c, mask] + abs(sums[cluster] - mean)
                    if value < best[c + 1, mask | cluster]:
                        best[c + 1, mask | cluster] = value
                        taken[c + 1, mask | cluster] = cluster
                if part == 0:
                    break
                part = (part - 1) & free
    answer = np.zeros(experts, dtype=np.int64)
    mask = masks - 1
    for c in range(clusters, 0, -1):
        cluster = taken[c, mask]
        for e in range(experts):
            if (cluster >> e) & 1:
                answer[e] = c - 1
        mask ^= cluster
    return answer, best[clusters, masks - 1]


@compiled
def even_clusters(load: Floats, sizes: Numbers) -> Numbers:
    """Return the cluster of every expert: heaviest first to the lightest with room, then swaps while they even out."""
    experts = load.shape[0]
    clusters = sizes.shape[0]
    sums = np.zeros(clusters)
    left = sizes.copy()
    answer = np.zeros(experts, dtype=np.int64)
    order = np.argsort(-load)
    for position in range(experts):
        e = order[position]
        best = -1
        for c in range(clusters):
            if left[c] > 0 and (best < 0 or sums[c] < sums[best]):
                best = c
        answer[e] = best
        sums[best] += load[e]
        left[best] -= 1
    mean = load.sum() / clusters
    for _ in range(50 * experts):
        worst = 0
        for c in range(clusters):
            if abs(sums[c] - mean) > abs(sums[worst] - mean):
                worst = c
        gain = 1e-9 * mean * mean
        give = -1
        take = -1
        for e in range(experts):
            if answer[e] != worst:
                continue
            for f in range(experts):
                c = answer[f]
                if c == worst:
                    continue
                change = load[f] - load[e]
                # of the sum of squares, halved
                less = change * (sums[c] - sums[worst] - change)
                if less > gain:
                    gain = less
                    give = e
                    take = f
        if give < 0:
            break
        c = answer[take]
        sums[worst] += load[take] - load[give]
        sums[c] += load[give] - load[take]
        answer[give] = c
        answer[take] = worst
    return answer
