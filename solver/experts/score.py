"""What a map costs: the one scorer for every method, under both ways of communication.

It exists so that all methods are judged alike. It improves nothing. Formulas: ``docs/experts.md``; the port model sees
the NVLink port and the NIC of each GPU, in both directions.
"""

import numpy as np
import numpy.typing as npt

from solver.domain.moe import ExpertInstance, ExpertScore, Floats, Move, Slots
from solver.experts.kernels.traffic import all_to_all_of, loads_of


def score_map(instance: ExpertInstance, p2l: Slots) -> ExpertScore:
    """Score a map [L, S] that fits the instance (`solver.domain.moe.check_map`)."""
    topology = instance.topology
    speed = np.array(topology.gpu_speed)
    loads = loads_of(p2l, topology.slot_gpu, instance.load, topology.gpus)
    compute_s, dispatch_s = by_layer_s(instance, loads)
    mean = instance.load.sum(axis=1) / speed.sum()
    worst = (loads / speed).max(axis=1)
    balance = np.divide(worst, mean, out=np.ones_like(worst), where=mean > 0)
    transition_s = cross_gpu = cross_node = None
    if instance.transitions is not None:
        seconds, copies = transition_steps(instance, p2l)
        transition_s = float(seconds.sum())
        total = float(copies[:, 0].sum())
        cross_gpu = 1.0 - float(copies[:, 1].sum()) / total if total else 0.0
        cross_node = 1.0 - float(copies[:, 2].sum()) / total if total else 0.0
    nodes_per_token, gpus_per_token = (
        (None, None)
        if instance.token_sample is None
        else spread_of_tokens(instance, p2l, instance.token_sample)
    )
    return ExpertScore(
        compute_s=float(compute_s.sum()),
        transition_all_to_all_s=transition_s,
        dispatch_all_to_all_s=float(dispatch_s.sum()),
        balance_max_over_mean=float(balance.mean()),
        balance_worst=float(balance.max()),
        cross_gpu_ratio=cross_gpu,
        cross_node_ratio=cross_node,
        nodes_per_token=nodes_per_token,
        gpus_per_token=gpus_per_token,
        duplicates=duplicates_in(p2l, topology.slot_gpu, instance.experts),
    )


def by_layer_s(instance: ExpertInstance, loads: Floats) -> tuple[Floats, Floats]:
    """Return compute and dispatch seconds by layer, from the loads [L, G] of the GPUs.

    compute[l] = max over g of c[g]·A[l,g]; dispatch[l] = max over g of u_in·A[l,g]·(n_g - 1)/G and
    u_out·A[l,g]·(G - n_g)/G, with n_g GPUs in the node of g.
    """
    topology, costs = instance.topology, instance.costs
    seconds = costs.token_expert_s / np.array(topology.gpu_speed)
    return (loads * seconds).max(axis=1), (loads * dispatch_copy_s(instance)).max(axis=1)


def dispatch_copy_s(instance: ExpertInstance) -> Floats:
    """Return by GPU the seconds that its busier port needs per routed token under dispatch, [G]."""
    topology, costs = instance.topology, instance.costs
    node = topology.node_index
    mates = np.bincount(node)[node]
    inside = costs.intra_copy_s * (mates - 1) / topology.gpus
    outside = costs.inter_copy_s * (topology.gpus - mates) / topology.gpus
    return np.asarray(np.maximum(inside, outside))


def transition_steps(instance: ExpertInstance, p2l: Slots) -> tuple[Floats, Floats]:
    """Return seconds of the busiest port by layer step, and copies (all, on their GPU, in their node), [L - 1, 3]."""
    transitions = instance.transitions
    if transitions is None or instance.layers < 2:
        return np.zeros(0), np.zeros((0, 3))
    costs, topology = instance.costs, instance.topology
    return all_to_all_of(
        p2l,
        topology.slot_gpu,
        topology.node_index,
        transitions,
        1.0 / instance.top_k,
        costs.intra_copy_s,
        costs.inter_copy_s,
    )


def spread_of_tokens(
    instance: ExpertInstance, p2l: Slots, sample: npt.NDArray[np.int32]
) -> tuple[float, float]:
    """Return distinct nodes and GPUs that a sampled token needs per layer, at the first replica of each expert."""
    topology = instance.topology
    gpus = nodes = 0
    for layer, row in enumerate(p2l):
        first = np.zeros(instance.experts, dtype=np.int32)
        first[row[::-1]] = topology.slot_gpu[::-1]  # the first slot is written last
        where = first[sample[:, layer, :]]
        gpus += _distinct(where)
        nodes += _distinct(topology.node_index[where])
    count = max(1, sample.shape[0] * instance.layers)
    return nodes / count, gpus / count


def _distinct(rows: Slots) -> int:
    ordered = np.sort(rows, axis=1)
    return int(rows.shape[0] + (ordered[:, 1:] != ordered[:, :-1]).sum())


def duplicates_in(p2l: Slots, slot_gpu: Slots, experts: int) -> int:
    """Count slots whose GPU holds the same expert in an earlier slot."""
    keys = slot_gpu.astype(np.int64) * experts + p2l
    return int(sum(keys.shape[1] - np.unique(row).size for row in keys))


def move_between(instance: ExpertInstance, old: Slots, new: Slots, *, saved_s: float) -> Move:
    """Say what going from one map to another takes; ``saved_s`` is what the new one saves per window.

    Holdings are sets: order inside a GPU is free. net gain = saved · windows - move · (1 + margin).
    """
    topology = instance.topology
    fetched = np.zeros(topology.gpus)
    for before, after in zip(old, new, strict=True):
        held_before = set(zip(topology.slot_gpu.tolist(), before.tolist(), strict=True))
        for gpu, _ in set(zip(topology.slot_gpu.tolist(), after.tolist(), strict=True)) - held_before:
            fetched[gpu] += 1
    moved_ratio = float(fetched.sum()) / (instance.layers * instance.slots)
    migration = instance.migration
    if migration is None:
        return Move(moved_ratio=moved_ratio, bytes_in=None, move_s=None, gain_s=None, net_gain_s=None)
    bytes_in = fetched * migration.expert_bytes
    move_s = float(bytes_in.max()) / migration.bytes_per_s
    gain_s = saved_s * migration.windows
    return Move(
        moved_ratio=moved_ratio,
        bytes_in=tuple(float(value) for value in bytes_in),
        move_s=move_s,
        gain_s=gain_s,
        net_gain_s=gain_s - move_s * (1.0 + migration.margin_ratio),
    )
