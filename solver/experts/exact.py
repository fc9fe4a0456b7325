"""The best map of small problems, proved: dynamic programming over all placements of a layer.

It exists for models of few experts (Mixtral: 8) and as the yardstick of every other method. It is not for more
placements per layer than `MOST_PLACEMENTS`; it then says so instead of trying.

Under transition a chain of placements pays its layers and the steps between them, so that the cheapest chain up to each
placement of a layer is all that must be known (Viterbi). GPUs may be interchangeable, but only in all layers at once,
so no placement is left out for symmetry; placements are left out where the bounds prove that they cannot be part of a
better chain than one already known. Under dispatch layers are independent.
"""

import itertools
from collections.abc import Iterator
from math import comb

import numpy as np
import numpy.typing as npt

from solver.domain.deadline import Deadline
from solver.domain.moe import Communication, ExpertInstance, ExpertTopology, Floats, Slots
from solver.experts.bounds import lower_bounds_s
from solver.experts.kernels.chains import cheapest_placements
from solver.experts.kernels.traffic import loads_of
from solver.experts.score import by_layer_s, score_map

MOST_PLACEMENTS = 4000
"""Placements of a layer that are tried; memory and time grow with their square."""
MOST_EXPERTS = 64
FIRST_BEAM = 48
"""Placements of each layer, by their own cost, among which a first chain is sought."""
ROUNDING = 1e-9
"""Sums of seconds may differ by so much, relatively, between this and the scorer: nothing is ruled out by less."""


def place_exactly(instance: ExpertInstance, communication: Communication, deadline: Deadline) -> Slots | None:
    """Return a map of least J among all that may be written for an engine, or None.

    Those are the maps that hold no expert twice on a GPU unless it has more slots than there are experts. None: there
    are too many placements, or the time was up.

    Raises
    ------
    InputError
        If transitions are asked for and not known.
    """
    bounds = lower_bounds_s(instance, communication)
    if count_placements(instance.topology, instance.experts) > MOST_PLACEMENTS:
        return None
    rows = all_placements(instance.topology, instance.experts)
    own_s = np.empty((instance.layers, rows.shape[0]))
    for layer in range(instance.layers):
        if deadline.passed():
            return None
        loads = loads_of(
            rows,
            instance.topology.slot_gpu,
            np.broadcast_to(instance.load[layer], (rows.shape[0], instance.experts)).copy(),
            instance.topology.gpus,
        )
        compute_s, dispatch_s = by_layer_s(instance, loads)
        own_s[layer] = compute_s + dispatch_s if communication == "dispatch" else compute_s
    if communication == "dispatch":
        return np.ascontiguousarray(rows[own_s.argmin(axis=1)])
    return _cheapest_chain(instance, rows, own_s, bounds[:, 1], deadline)


def _cheapest_chain(
    instance: ExpertInstance, rows: Slots, own_s: Floats, step_least_s: Floats, deadline: Deadline
) -> Slots | None:
    """Chain the placements twice: first a few of each layer, then all that the first answer does not rule out."""
    own_order = np.argsort(own_s, axis=1, kind="stable")
    beam = np.zeros(own_s.shape, dtype=bool)
    np.put_along_axis(beam, own_order[:, :FIRST_BEAM], values=True, axis=1)
    first = _chain(instance, rows, own_s, step_least_s, kept=beam, reached_s=np.inf, deadline=deadline)
    if first is None:
        return None
    reached_s = score_map(instance, first).objective_s("transition")
    # a placement is of use if what it costs above the layer's least leaves room below the chain in hand
    excess_s = own_s - own_s.min(axis=1, keepdims=True)
    room_s = reached_s * (1 + ROUNDING) - own_s.min(axis=1).sum() - step_least_s.sum()
    return _chain(
        instance,
        rows,
        own_s,
        step_least_s,
        kept=excess_s <= room_s,
        reached_s=reached_s * (1 + ROUNDING),
        deadline=deadline,
    )


def _chain(
    instance: ExpertInstance,
    rows: Slots,
    own_s: Floats,
    step_least_s: Floats,
    *,
    kept: npt.NDArray[np.bool_],
    reached_s: float,
    deadline: Deadline,
) -> Slots | None:
    """Return the cheapest chain of the placements kept, [L, N], if it costs at most ``reached_s``."""
    topology, costs, transitions = instance.topology, instance.costs, instance.transitions
    assert transitions is not None  # noqa: S101 - lower_bounds_s refused this
    replicas = np.array([np.bincount(row, minlength=instance.experts) for row in rows], dtype=float)
    shares = 1.0 / np.take_along_axis(replicas, rows.astype(np.int64), axis=1)
    least = own_s.min(axis=1) + step_least_s
    after_s = np.concatenate([np.cumsum(least[::-1])[::-1][1:], [0.0]]) + step_least_s
    costs_s = np.where(kept[0], own_s[0], np.inf)
    came = np.zeros((instance.layers, rows.shape[0]), dtype=np.int64)
    for layer in range(1, instance.layers):
        if deadline.passed():
            return None
        useful = kept[layer - 1] & (costs_s + after_s[layer - 1] <= reached_s)
        costs_s, came[layer] = cheapest_placements(
            rows,
            shares,
            own_s[layer],
            kept[layer],
            topology.slot_gpu,
            topology.node_index,
            transitions[layer - 1] / instance.top_k,
            costs_s,
            float(step_least_s[layer - 1]) * (1 - ROUNDING),
            costs.intra_copy_s,
            costs.inter_copy_s,
            topology.nodes > 1,
            useful,
        )
    state = int(costs_s.argmin())
    chain = [state]
    for layer in range(instance.layers - 1, 0, -1):
        state = int(came[layer, state])
        chain.append(state)
    return np.ascontiguousarray(rows[chain[::-1]])


def most_held(topology: ExpertTopology, experts: int) -> list[int]:
    """Return how often each GPU may hold one expert: once, unless it has more slots than there are experts."""
    return [max(1, -(-slots // experts)) for slots in topology.slots_per_gpu]


def count_placements(topology: ExpertTopology, experts: int) -> int:
    """Count the placements of a layer, GPUs told apart, order inside a GPU free; all experts placed."""
    if experts > MOST_EXPERTS:
        return MOST_PLACEMENTS + 1
    held = list(zip(topology.slots_per_gpu, most_held(topology, experts), strict=True))
    total = 0
    for absent in range(experts):  # inclusion and exclusion over experts without a slot
        ways = comb(experts, absent) * (-1) ** absent
        for slots, most in held:
            ways *= _multisets(experts - absent, slots, most)
        total += ways
    return total


def _multisets(kinds: int, size: int, most: int) -> int:
    """Count multisets of a size with each of some kinds at most so often."""
    return sum(
        (-1) ** over * comb(kinds, over) * comb(kinds + size - over * (most + 1) - 1, kinds - 1)
        for over in range(kinds + 1)
        if size >= over * (most + 1)
    )


def all_placements(topology: ExpertTopology, experts: int) -> Slots:
    """Return every placement of a layer, [N, S], experts in ascending order inside a GPU."""
    mosts = most_held(topology, experts)
    after = [sum(topology.slots_per_gpu[gpu + 1 :]) for gpu in range(topology.gpus)]

    def fill(gpu: int, row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if gpu == topology.gpus:
            yield row
            return
        several = itertools.chain.from_iterable([expert] * mosts[gpu] for expert in range(experts))
        slots = topology.slots_per_gpu[gpu]
        choices = itertools.combinations(several, slots)
        for choice in dict.fromkeys(choices) if mosts[gpu] > 1 else choices:
            longer = row + choice
            if experts - len(set(longer)) <= after[gpu]:
                yield from fill(gpu + 1, longer)

    return np.array(list(fill(0, ())), dtype=np.int32)
