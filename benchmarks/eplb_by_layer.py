"""EPLB's rule as serving engines run it in numpy: layer by layer, a loop over slots; written from its description.

It exists as the peer for CPU time. `solver.experts.eplb` is the same rule over all layers at once.
"""

import numpy as np

from solver.domain.moe import Floats, Slots


def eplb_by_layer(load: Floats, slots: int, gpus: int) -> Slots:
    """Return slots [L, S]: an extra replica to the largest share, then largest first onto the emptiest GPU."""
    layers, experts = load.shape
    p2l = np.zeros((layers, slots), dtype=np.int32)
    for layer in range(layers):
        weight = load[layer]
        copies = np.ones(experts)
        expert = np.concatenate((np.arange(experts), np.zeros(slots - experts, dtype=np.int64)))
        for s in range(experts, slots):
            e = int(np.argmax(weight / copies))
            expert[s] = e
            copies[e] += 1
        share = (weight / copies)[expert]
        loads = np.zeros(gpus)
        used = np.zeros(gpus, dtype=np.int64)
        room = slots // gpus
        for s in np.argsort(-share, kind="stable"):
            g = int(np.argmin(np.where(used < room, loads, np.inf)))
            p2l[layer, g * room + used[g]] = expert[s]
            loads[g] += share[s]
            used[g] += 1
    return p2l
