"""Maps without the same expert twice on a GPU, where its slots allow that.

It exists because published rules put replicas of an expert on one GPU, and because filling nodes first can leave a GPU
with fewer different experts than it has slots. It mends such slots and nothing else.
"""

from itertools import pairwise

import numpy as np

from solver.domain.moe import ExpertInstance, Slots
from solver.experts.score import duplicates_in


def without_duplicates(instance: ExpertInstance, p2l: Slots) -> Slots:
    """Return a copy of a map [L, S] whose GPUs hold no expert more often than they must.

    A slot too many gets the expert with most load per replica among those that its GPU lacks.
    """
    fixed = p2l.copy()
    topology = instance.topology
    if not duplicates_in(p2l, topology.slot_gpu, instance.experts):
        return fixed
    starts = np.concatenate(([0], np.cumsum(topology.slots_per_gpu)))
    for layer, row in enumerate(fixed):
        copies = np.bincount(row, minlength=instance.experts)
        for first, last in pairwise(starts.tolist()):
            most = -(-(last - first) // instance.experts)
            held = np.bincount(row[first:last], minlength=instance.experts)
            for s in range(first, last):
                e = int(row[s])
                if held[e] <= most:
                    continue
                share = np.where(held < most, instance.load[layer] / copies, -1.0)
                other = int(np.argmax(share))
                row[s] = other
                held[e] -= 1
                held[other] += 1
                copies[e] -= 1
                copies[other] += 1
    return fixed
