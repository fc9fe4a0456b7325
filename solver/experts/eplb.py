"""EPLB's rule: replicate the most loaded experts, then pack them greedily, in nodes or over all GPUs at once.

It exists as the rule that engines run today, to be chosen as a method and to be judged as a peer: written anew from
its description (DeepSeek's EPLB) in numpy, packing all layers at once (vLLM's port in numpy packs layer by layer).
Ties go as the published code sends them where that is determined: the first of equal packs and the first of equally
loaded experts; equal weights are packed in the order of their numbers. It knows neither traffic nor the map in force
nor speeds, and it may put replicas of one expert on one GPU.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError
from solver.domain.moe import Communication, ExpertInstance, Floats, Slots
from solver.experts.score import score_map

Numbers = npt.NDArray[np.int64]
Item = TypeVar("Item", np.float64, np.int64)


def place_by_eplb(
    instance: ExpertInstance,
    *,
    groups: int | None = None,
    hierarchical: bool | None = None,
    communication: Communication = "transition",
) -> Slots:
    """Return the map of EPLB's rule, [L, S].

    Parameters
    ----------
    groups
        Expert groups of the model (DeepSeek-V3: 8). None: every expert is a group of its own.
    hierarchical
        Groups to nodes first, then replicas and packing within each node; False: all GPUs as one node. None: the better
        of those that the rule allows for these shapes.
    communication
        How the better is judged; dispatch where transitions are not known.

    Raises
    ------
    InputError
        Where EPLB's assertions fail: GPUs with unequal slots; and, for the hierarchical rule, nodes with unequally many
        GPUs, experts that do not divide into groups, groups that do not divide into nodes.
    """
    refuse_unequal_slots(instance)
    if hierarchical is None:
        maps = [_place(instance, groups=1, nodes=1)]
        if instance.topology.nodes > 1 and _why_not_hierarchical(instance, groups) is None:
            maps.append(place_by_eplb(instance, groups=groups, hierarchical=True))
        judged: Communication = "dispatch" if instance.transitions is None else communication
        return min(maps, key=lambda p2l: score_map(instance, p2l).objective_s(judged))
    if not hierarchical:
        return _place(instance, groups=1, nodes=1)
    refusal = _why_not_hierarchical(instance, groups)
    if refusal is not None:
        raise refusal
    return _place(instance, groups=groups or instance.experts, nodes=instance.topology.nodes)


def refuse_unequal_slots(instance: ExpertInstance) -> None:
    """Refuse GPUs with different numbers of slots, which EPLB cannot express."""
    counts = instance.topology.slots_per_gpu
    if len(set(counts)) > 1:
        raise InputError(
            f"EPLB needs equally many slots on every GPU, found {min(counts)} to {max(counts)}",
            where="slots_per_gpu",
            right="make them equal, or use --method ballast",
        )


def _why_not_hierarchical(instance: ExpertInstance, groups: int | None) -> InputError | None:
    groups = instance.experts if groups is None else groups
    topology = instance.topology
    sizes = np.bincount(topology.node_index)
    if groups < 1 or instance.experts % groups:
        return InputError(
            f"{instance.experts} experts do not divide into {groups} groups",
            where="groups",
            right="give a divisor of the experts",
        )
    if sizes.min() < sizes.max():
        return InputError(
            f"hierarchical EPLB needs equally many GPUs on every node, found {sizes.min()} to {sizes.max()}",
            where="gpu_node",
            right="use its global rule, or --method ballast",
        )
    if groups % topology.nodes:
        return InputError(
            f"{groups} groups do not divide among {topology.nodes} nodes",
            where="groups",
            right="use EPLB's global rule, or --method ballast",
        )
    return None


def _place(instance: ExpertInstance, *, groups: int, nodes: int) -> Slots:
    topology = instance.topology
    held = rebalance(instance.load, instance.slots, groups=groups, nodes=nodes, gpus=topology.gpus)
    # the rule numbers GPUs node by node
    order = np.argsort(topology.node_index, kind="stable") if nodes > 1 else np.arange(topology.gpus)
    by_gpu = held.reshape(instance.layers, topology.gpus, -1)
    p2l = np.empty_like(by_gpu)
    p2l[:, order] = by_gpu
    return np.ascontiguousarray(p2l.reshape(instance.layers, -1), dtype=np.int32)


def rebalance(load: Floats, slots: int, *, groups: int, nodes: int, gpus: int) -> Numbers:
    """Return the expert of every slot, [L, S], for shapes that divide (`place_by_eplb` checks them).

    One group on one node is the global rule.
    """
    layers, experts = load.shape
    per_group, per_node = experts // groups, experts // nodes
    # 1. groups to nodes
    group_load = load.reshape(layers, groups, per_group).sum(axis=2)
    packed = pack(group_load, nodes)  # [L, groups], node by node
    expert_at = (packed[:, :, None] * per_group + np.arange(per_group)).reshape(layers * nodes, per_node)
    # 2. replicas within each node
    node_load = _take(np.repeat(load, nodes, axis=0), expert_at)
    copy_of, copies = replicate(node_load, slots // nodes)
    # 3. replicas to the node's GPUs
    slot_load = _take(node_load / copies, copy_of)
    packed = pack(slot_load, gpus // nodes)
    return _take(expert_at, _take(copy_of, packed)).reshape(layers, slots)


def _take(values: npt.NDArray[Item], at: Numbers) -> npt.NDArray[Item]:
    """Return values[row, at[row, i]]."""
    return np.asarray(np.take_along_axis(values, at, axis=1))


def pack(weights: Floats, packs: int) -> Numbers:
    """Return items pack by pack, [rows, items]: heaviest first, each to the lightest pack that has room."""
    rows, items = weights.shape
    size = items // packs
    if size == 1:  # as published: one item per pack stays where it is
        return np.tile(np.arange(items), (rows, 1))
    order = np.argsort(-weights, axis=1, kind="stable")
    ordered = _take(weights, order)
    every = np.arange(rows)
    open_totals = np.zeros((rows, packs))  # infinite where a pack is full
    counts = np.zeros((rows, packs), dtype=np.int64)
    held = np.empty((rows, packs, size), dtype=np.int64)
    for item in range(items):
        lightest = open_totals.argmin(axis=1)
        rank = counts[every, lightest]
        held[every, lightest, rank] = order[:, item]
        open_totals[every, lightest] += ordered[:, item]
        counts[every, lightest] = rank + 1
        full = rank + 1 == size
        open_totals[every[full], lightest[full]] = np.inf
    return held.reshape(rows, items)


def replicate(weights: Floats, slots: int) -> tuple[Numbers, Numbers]:
    """Return the item of every slot, [rows, slots], and copies by item: one more at a time where a copy weighs most."""
    rows, items = weights.shape
    every = np.arange(rows)
    copy_of = np.tile(np.arange(slots), (rows, 1))
    copies = np.ones((rows, items), dtype=np.int64)
    per_copy = weights.copy()
    for slot in range(items, slots):
        heaviest = per_copy.argmax(axis=1)
        copy_of[:, slot] = heaviest
        copies[every, heaviest] += 1
        per_copy[every, heaviest] = weights[every, heaviest] / copies[every, heaviest]
    return copy_of, copies
