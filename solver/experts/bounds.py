"""What no map can beat, layer by layer: proved lower bounds on compute and on the all-to-all.

It exists so that every plan can say how far from the optimum it is at most. It looks for no map. Every bound holds for
every map that fits the instance, also for those that hold an expert twice on a GPU.

One argument serves all of them. Let weights u[e] be spread over slots, u[e] / r[e] per slot, and let GPU g pay
cost[g] per unit; then the dearest GPU pays at least (`least_of_dearest`)

- the weights spread ideally: sum of u over sum of 1 / cost;
- the largest slot: min over r of max u[e] / r[e], at the cheapest GPU;
- pigeonholes: of the n = (sum over g of min(k, slots of g)) + 1 largest slots, k + 1 share a GPU;
- without replicas: the heaviest expert and the lightest others that fill its GPU.

Compute is this with u = load. Under transition so are the four ports: an expert keeps at most its m largest
transitions on a GPU of m slots (a replica's share is at most 1, and the shares on a GPU sum to at most m), and the rest
of its tokens must come in, or go out, wherever it is.
"""

import numpy as np

from solver.domain.errors import InputError
from solver.domain.moe import Communication, ExpertInstance, ExpertTopology, Floats
from solver.experts.score import dispatch_copy_s

MOST_SHARING = 3
"""Replicas make a bound on the j-th largest slot dear; pigeonholes with more slots than this are then left out."""
HALVINGS = 44
"""Of the interval that holds the largest slot's weight; its lower end is the bound."""


def lower_bounds_s(instance: ExpertInstance, communication: Communication) -> Floats:
    """Return seconds that no map can go below, [L, 2]: compute and all-to-all by layer.

    Their sum over all layers bounds J. Under transition the all-to-all of layer l is the step l to l + 1, so that the
    last is 0. Under dispatch compute and all-to-all hang together (both grow with a GPU's load): the second column is
    what their sum costs at least beyond the first.

    Raises
    ------
    InputError
        If transitions are asked for and not known.
    """
    topology = instance.topology
    token_s = instance.costs.token_expert_s / np.array(topology.gpu_speed)
    bounds = np.zeros((instance.layers, 2))
    bounds[:, 0] = least_of_dearest(instance.load, topology, token_s)
    if communication == "dispatch":
        port_s = dispatch_copy_s(instance)
        together = np.maximum(
            bounds[:, 0] + least_of_dearest(instance.load, topology, port_s),
            least_of_dearest(instance.load, topology, token_s + port_s),
        )
        together = np.maximum(together, _least_of_sum(instance.load, topology, token_s, port_s))
        bounds[:, 1] = together - bounds[:, 0]
    else:
        bounds[:-1, 1] = _transition_bounds(instance)
    return bounds


def least_of_dearest(weights: Floats, topology: ExpertTopology, cost: Floats) -> Floats:
    """Return by layer what the dearest GPU pays at least, [L].

    Parameters
    ----------
    weights
        By layer and expert, spread evenly over the expert's slots, [L, E].
    cost
        By GPU, per unit of weight, [G]; 0 or more.
    """
    slots = np.array(topology.slots_per_gpu)
    used = slots > 0  # a GPU without slots pays nothing
    slots, cost = slots[used], cost[used]
    layers, experts = weights.shape
    if not cost.any():
        return np.zeros(layers)
    ordered = -np.sort(-weights, axis=1)
    bound = np.zeros(layers)
    if cost.min() > 0:
        bound = ordered.sum(axis=1) / (1.0 / cost).sum()
    replicas = int(slots.sum()) - experts
    slot_at: dict[int, Floats] = {}

    def largest_slot(rank: int) -> Floats:
        """At least so much weighs the slot of this rank (from 0), whatever experts are replicated."""
        if rank not in slot_at:
            # otherwise at most `rank` experts hold all slots so heavy, at best the heaviest, and the others' replicas
            # would do better than they can
            slot_at[rank] = (
                ordered[:, rank]
                if rank < experts and replicas == 0
                else _least_largest(ordered[:, rank:], replicas)
            )
        return slot_at[rank]

    bound = np.maximum(bound, largest_slot(0) * cost.min())
    most = int(slots.max()) if replicas == 0 else min(int(slots.max()), MOST_SHARING)
    for sharing in range(2, most + 1):
        first = int(np.minimum(sharing - 1, slots).sum()) + 1 - sharing
        if first + sharing > experts + replicas:
            break
        shared = np.sum([largest_slot(rank) for rank in range(first, first + sharing)], axis=0)
        bound = np.maximum(bound, shared * cost[slots >= sharing].min())
    if replicas == 0:
        lightest = np.concatenate([np.zeros((layers, 1)), np.cumsum(ordered[:, :0:-1], axis=1)], axis=1)
        filled = (ordered[:, :1] + lightest[:, slots - 1]) * cost
        bound = np.maximum(bound, filled.min(axis=1))
    return np.asarray(bound)


def _least_largest(weights: Floats, replicas: int) -> Floats:
    """Return by layer min of max of weights / r over r with sum experts + replicas: a hair less, never more."""
    layers, experts = weights.shape
    if not experts:
        return np.zeros(layers)
    slots = experts + replicas
    high = weights.max(axis=1)
    low = np.minimum(weights.sum(axis=1) / slots, high)
    tiny = np.finfo(float).tiny
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        fits = np.ceil(weights / np.maximum(middle, tiny)[:, None]).sum(axis=1) <= slots
        high = np.where(fits, middle, high)
        low = np.where(fits, low, middle)
    return np.asarray(low)


def _least_of_sum(weights: Floats, topology: ExpertTopology, token_s: Floats, port_s: Floats) -> Floats:
    """Return by layer min over spreads A of max token_s A + max port_s A, the weights divisible at will, [L].

    With the second maximum t times the first, GPU g takes at most min(1 / token_s, t / port_s) of the first; between
    two breakpoints t = port_s / token_s the sum is a ratio of linear functions, so a breakpoint is best.
    """
    used = np.array(topology.slots_per_gpu) > 0
    token_s, port_s = token_s[used], port_s[used]
    total = weights.sum(axis=1)
    if token_s.min() <= 0 or port_s.min() <= 0:
        return np.zeros_like(total)
    best = min(
        float((1.0 + ratio) / np.minimum(1.0 / token_s, ratio / port_s).sum()) for ratio in port_s / token_s
    )
    return np.asarray(total * best)


def _transition_bounds(instance: ExpertInstance) -> Floats:
    """Return by layer step what the busiest port takes at least, [L - 1]."""
    transitions = instance.transitions
    if transitions is None:
        raise InputError(
            "transitions between layers are not known",
            where="trans",
            right="record them, or use --comm dispatch",
        )
    topology, costs = instance.topology, instance.costs
    slots = np.array(topology.slots_per_gpu)
    node = topology.node_index
    on_gpu = min(int(slots.max()), instance.experts)
    on_node = min(int(np.bincount(node, weights=slots).max()), instance.experts)
    to_gpu, to_node = np.empty((2, 2, instance.layers - 1, instance.experts))
    for step, pairs in enumerate(transitions):
        for side, rows in enumerate((pairs, pairs.T)):
            ascending = np.sort(rows, axis=1)
            to_node[side, step] = ascending[:, : instance.experts - on_node].sum(axis=1)
            between = slice(instance.experts - on_node, instance.experts - on_gpu)
            to_gpu[side, step] = to_node[side, step] + ascending[:, between].sum(axis=1)
    # a GPU reaches others through its NVLink port, its NIC, or both at once
    holding = (slots > 0).astype(float)
    mates = np.bincount(node, weights=holding)[node] - holding
    others = holding.sum() - mates - holding
    with np.errstate(divide="ignore"):
        nic_copies_per_s = np.where(others > 0, np.divide(1.0, costs.inter_copy_s), 0.0)
        copies_per_s = np.where(mates > 0, np.divide(1.0, costs.intra_copy_s), 0.0) + nic_copies_per_s
        nic_s = np.where(others > 0, costs.inter_copy_s, 0.0)
        any_s = np.where(copies_per_s > 0, 1.0 / copies_per_s, 0.0)
    bound = np.zeros(instance.layers - 1)
    for side in range(2):
        bound = np.maximum(bound, least_of_dearest(to_gpu[side] / instance.top_k, topology, any_s))
        bound = np.maximum(bound, least_of_dearest(to_node[side] / instance.top_k, topology, nic_s))
    return bound
