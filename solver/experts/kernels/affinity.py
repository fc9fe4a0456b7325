"""Experts that follow each other in one place: swaps within layers that keep more transitions inside their parts."""

import numpy as np
import numpy.typing as npt

from solver.compiled import compiled
from solver.domain.moe import Floats

Numbers = npt.NDArray[np.int64]


@compiled
def kept_together(part: Numbers, transitions: Floats) -> float:
    """Return the transitions between experts of equal parts; ``part`` is [L, E]."""
    steps, experts = transitions.shape[0], transitions.shape[1]
    kept = 0.0
    for step in range(steps):
        for e in range(experts):
            for f in range(experts):
                if part[step, e] == part[step + 1, f]:
                    kept += transitions[step, e, f]
    return kept


@compiled
def swap_in_layer(
    part: Numbers,
    among: Numbers,
    transitions: Floats,
    parts: int,
    layer: int,
    with_before: bool,
    with_after: bool,
) -> bool:
    """Swap experts of one layer while that keeps more, in place; returns whether any was swapped.

    With the layers before and after fixed, what an expert keeps in each part is a constant. Only experts of the same
    number in ``among`` [L, E] are swapped.
    """
    experts = part.shape[1]
    worth = np.zeros((experts, parts))
    if with_before:
        for e in range(experts):
            p = part[layer - 1, e]
            for f in range(experts):
                worth[f, p] += transitions[layer - 1, e, f]
    if with_after:
        for e in range(experts):
            for f in range(experts):
                worth[e, part[layer + 1, f]] += transitions[layer, e, f]
    own = part[layer]
    group = among[layer]
    least = 1e-9 * (1.0 + worth.max())  # sums of counts may round
    swapped = False
    again = True
    while again:
        again = False
        for e in range(experts):
            best = least
            other = -1
            for f in range(experts):
                if group[f] != group[e] or own[f] == own[e]:
                    continue
                gain = worth[e, own[f]] - worth[e, own[e]] + worth[f, own[e]] - worth[f, own[f]]
                if gain > best:
                    best = gain
                    other = f
            if other >= 0:
                p = own[e]
                own[e] = own[other]
                own[other] = p
                again = True
                swapped = True
    return swapped


@compiled
def keep_together(part: Numbers, among: Numbers, transitions: Floats, parts: int, sweeps: int) -> float:
    """Improve parts [L, E] in place, forwards and backwards, until nothing helps; returns the transitions kept.

    The first sweep looks back only, so that the first layer's parts spread along the layers.
    """
    layers = part.shape[0]
    for layer in range(1, layers):
        swap_in_layer(part, among, transitions, parts, layer, True, False)
    for sweep in range(sweeps):
        swapped = False
        for position in range(layers):
            layer = layers - 1 - position if sweep % 2 == 0 else position
            if swap_in_layer(part, among, transitions, parts, layer, layer > 0, layer + 1 < layers):
                swapped = True
        if not swapped:
            break
    return kept_together(part, transitions)
