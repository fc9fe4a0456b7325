"""Loads of GPUs and traffic between them for a given map: the sums behind the score.

Replicas share their expert's tokens evenly. Sums run over pairs of slots, which is less work than dense products with
a matrix of experts by GPUs, and needs no BLAS (whose threads made the same sums 100 times slower on busy machines).
"""

import numpy as np

from solver.compiled import compiled
from solver.domain.moe import Floats, Slots


@compiled
def loads_of(p2l: Slots, slot_gpu: Slots, load: Floats, gpus: int) -> Floats:
    """Return A[l,g] = sum over e of load[l,e] x[l,e,g]."""
    layers, slots = p2l.shape
    experts = load.shape[1]
    sums = np.zeros((layers, gpus))
    copies = np.zeros(experts)
    for layer in range(layers):
        copies[:] = 0.0
        for s in range(slots):
            copies[p2l[layer, s]] += 1.0
        for s in range(slots):
            e = p2l[layer, s]
            sums[layer, slot_gpu[s]] += load[layer, e] / copies[e]
    return sums


@compiled
def flow_between(
    here: Slots, there: Slots, slot_gpu: Slots, pairs: Floats, per_copy: float, gpus: int
) -> Floats:
    """Return V[g,h] = sum over e, f of x[e,g] · pairs[e,f] · per_copy · x'[f,h] between two layers."""
    slots = here.shape[0]
    experts = pairs.shape[0]
    copies_here = np.zeros(experts)
    copies_there = np.zeros(experts)
    for s in range(slots):
        copies_here[here[s]] += 1.0
        copies_there[there[s]] += 1.0
    # to[e,h] = sum over f of pairs[e,f] x'[f,h]: slots of e differ in their GPU only
    flow = np.zeros((gpus, gpus))
    to = np.zeros((experts, gpus))
    for e in range(experts):
        for s in range(slots):
            f = there[s]
            to[e, slot_gpu[s]] += pairs[e, f] / copies_there[f]
    for s in range(slots):
        e = here[s]
        g = slot_gpu[s]
        share = per_copy / copies_here[e]
        for h in range(gpus):
            flow[g, h] += share * to[e, h]
    return flow


@compiled
def busiest_port_s(flow: Floats, gpu_node: Slots, intra_copy_s: float, inter_copy_s: float) -> float:
    """Return a2a: the longest time of any GPU's port, NVLink or NIC, in or out."""
    gpus = flow.shape[0]
    worst = 0.0
    for g in range(gpus):
        out_same = 0.0
        in_same = 0.0
        out_other = 0.0
        in_other = 0.0
        for h in range(gpus):
            if h == g:
                continue
            if gpu_node[h] == gpu_node[g]:
                out_same += flow[g, h]
                in_same += flow[h, g]
            else:
                out_other += flow[g, h]
                in_other += flow[h, g]
        worst = max(
            worst,
            intra_copy_s * out_same,
            intra_copy_s * in_same,
            inter_copy_s * out_other,
            inter_copy_s * in_other,
        )
    return worst


@compiled
def all_to_all_of(
    p2l: Slots,
    slot_gpu: Slots,
    gpu_node: Slots,
    transitions: Floats,
    per_copy: float,
    intra_copy_s: float,
    inter_copy_s: float,
) -> tuple[Floats, Floats]:
    """Return by layer step: seconds of the busiest port; token copies in all, that stay on their GPU, in their node.

    The last come as [L - 1, 3].
    """
    steps = p2l.shape[0] - 1
    gpus = gpu_node.shape[0]
    seconds = np.zeros(steps)
    copies = np.zeros((steps, 3))
    for step in range(steps):
        flow = flow_between(p2l[step], p2l[step + 1], slot_gpu, transitions[step], per_copy, gpus)
        seconds[step] = busiest_port_s(flow, gpu_node, intra_copy_s, inter_copy_s)
        for g in range(gpus):
            for h in range(gpus):
                copies[step, 0] += flow[g, h]
                if g == h:
                    copies[step, 1] += flow[g, h]
                if gpu_node[g] == gpu_node[h]:
                    copies[step, 2] += flow[g, h]
    return seconds, copies
