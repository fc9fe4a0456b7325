"""Fleets that differ from one by an exchange: a replica out, one or several of another config in.

It exists because fleets of the largest rate that were found by rounding tend to miss the best by one wrong replica.
What the exchanged fleet carries is bounded by the cuts, which costs next to nothing, so only promising ones need be
judged. It judges none itself. (Where the goal is minimised it was tried and found nothing that others did not.)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solver.phases.cuts import Cut
from solver.phases.holdings import Holdings
from solver.phases.prepare import ServedPhases

Floats = NDArray[np.float64]

TIMES = (1, 2, 4)
"""So many replicas come for one, since a small replica is a half or a quarter of a large one."""
MOST_EXCHANGES = 200
BETTER = 1e-9


def promised_factor(cuts: Sequence[Cut], counts: Sequence[Floats], position: int) -> float:
    """Return the least left side of a model's cuts: its replicas carry no larger factor."""
    own = (float(cut.weights @ counts[position]) for cut in cuts if cut.position == position)
    return min(own, default=np.inf)


def exchanges(
    holdings: Holdings,
    models: Sequence[ServedPhases],
    cuts: Sequence[Cut],
    counts: Sequence[Floats],
    factor: float,
) -> list[tuple[list[Floats], int]]:
    """List exchanges that keep stock and budgets and carry more than ``factor`` if the cuts tell all.

    Parameters
    ----------
    counts
        [model][C] replicas.

    Returns
    -------
    list
        Replicas after the exchange and the position of the model it concerns, the most promising first.
    """
    found: list[tuple[float, int, list[Floats], int]] = []
    for position, model in enumerate(models):
        weights = np.array([cut.weights for cut in cuts if cut.position == position])
        if not len(weights):
            continue
        usable = np.asarray(model.usable, dtype=np.int64)
        carried = weights @ counts[position]
        for out in np.flatnonzero(counts[position] > 0).tolist():
            rest = [row.copy() for row in counts]
            rest[position][out] -= 1
            left = carried - weights[:, out]
            for times in TIMES:
                allowed = holdings.allowed_after(rest, position, times)[usable]
                promised = (left[:, None] + times * weights[:, usable]).min(axis=0)
                for k in np.flatnonzero(allowed & (promised > factor * (1 + BETTER))).tolist():
                    trial = [row.copy() for row in rest]
                    trial[position][usable[k]] += times
                    found.append((-float(promised[k]), len(found), trial, position))
    return [entry[2:] for entry in sorted(found, key=lambda entry: entry[:2])[:MOST_EXCHANGES]]
