"""Who serves which phase of what with given replicas, and the largest rate factor that these carry.

It exists apart from the search for replicas because many routings are equally good: of these it picks one that could
carry most, so that spare capacity is spread and the answer does not depend on the method that found the replicas. It
also answers whether given replicas suffice at all, and its duals are what a search by cuts learns from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Expression, Program, SolveLimits
from solver.phases.prepare import ServedPhases
from solver.pools.losses import LossCase
from solver.pools.serving import add_shares, load_expressions, share_expressions

SMALLEST_SHARE = 1e-9
FIT_TOLERANCE = 1e-8
"""Replicas are taken to suffice if they carry all rates but so much of them."""


@dataclass(frozen=True, slots=True)
class PhaseRouting:
    """``shares`` [B, C] over buckets with traffic (both and prefill sum to 1, decode to prefill) and the factor.

    ``factor`` times all rates is what the replicas carry; infinite for a model without traffic.
    """

    shares: NDArray[np.float64]
    factor: float


def route(
    model: ServedPhases,
    replicas: Sequence[int],
    *,
    lost: LossCase | None = None,
    backend: BackendName = "highs",
) -> PhaseRouting | None:
    """Maximise the rate factor of given replicas: max lambda with flows inside loads and links.

    With ``lost`` the replicas are those left, and no headroom is required. None: some bucket cannot be served at all.
    The program is scaled by a first guess, so that factors far from 1 cost
    no accuracy; the factor returned is computed from the shares.
    """
    count = np.asarray(replicas, dtype=float)
    if lost is not None:
        count = np.maximum(count - np.asarray(lost, dtype=float), 0.0)
        model = replace(model, demand=replace(model.demand, headroom_ratio=0.0))
    if model.buckets == 0:
        return PhaseRouting(np.zeros((0, len(count))), float("inf"))
    running = [c for c in range(len(count)) if count[c] > 0]
    if not model.covered_by(running).all():
        return None
    program = Program()
    fullest = program.add_variable(cost=1.0)
    shares = add_shares(program, model, running)
    unit = _typical_ratio(model, count, running)
    for amounts, room in (
        (load_expressions(model, shares), model.capacity_ratio),
        (_moved(model, shares), 1.0),
    ):
        for c, amount in amounts.items():
            scale = 1.0 / (room * count[c] * unit)
            row = Expression([fullest], [1.0])
            row.add_scaled(amount, -scale)
            program.add_expression_row(row, lower=0.0)
    solution = solve_program(program, SolveLimits(), backend=backend)
    if not solution.found:
        return None
    table = np.zeros((model.buckets, len(count)))
    for (b, c), column in shares.items():
        table[b, c] = solution.values[column]
    table = _cleaned(model, table)
    return PhaseRouting(table, 1.0 / fullest_ratio(model, count, table))


def _moved(model: ServedPhases, shares: dict[tuple[int, int], int]) -> dict[int, Expression]:
    return {c: moved for c, moved in share_expressions(shares, model.link).items() if model.link[:, c].any()}


def _typical_ratio(model: ServedPhases, count: NDArray[np.float64], running: Sequence[int]) -> float:
    """Guess how full the replicas will be, from every bucket on its least loaded config of each phase."""
    per_replica = np.where(model.served_by, model.load, np.inf)[:, running] / count[running]
    least = np.where(np.isfinite(per_replica), per_replica, 0.0).max(axis=1)
    finite = per_replica.min(axis=1, initial=np.inf, where=np.isfinite(per_replica))
    guess = float(np.minimum(finite, least).sum())
    return guess if guess > 0 else 1.0


def _cleaned(model: ServedPhases, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drop dust and make the sums exact: both + prefill = 1, decode = prefill."""
    table = np.where(table < SMALLEST_SHARE, 0.0, table)
    first = table[:, ~model.decodes].sum(axis=1)
    table[:, ~model.decodes] /= first[:, None]
    split = table[:, model.prefills].sum(axis=1)
    decoded = table[:, model.decodes].sum(axis=1)
    lost = (split > 0) & (decoded <= 0)
    if lost.any():  # dust on one side only: back to those that serve both phases
        table[np.ix_(lost, model.prefills)] = 0.0
        rest = table[lost][:, ~model.decodes].sum(axis=1)
        table[np.ix_(lost, ~model.decodes)] /= rest[:, None]
        split = table[:, model.prefills].sum(axis=1)
    scale = np.divide(split, decoded, out=np.zeros_like(split), where=decoded > 0)
    table[:, model.decodes] *= scale[:, None]
    return table


def loads_of(model: ServedPhases, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C] load of each config in replicas, at rate factor 1."""
    loads: NDArray[np.float64] = (np.where(table > 0, model.load, 0.0) * table).sum(axis=0)
    return loads


def moved_of(model: ServedPhases, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C] use of each config's links in links of one replica, at rate factor 1."""
    moved: NDArray[np.float64] = (model.link * table).sum(axis=0)
    return moved


def fullest_ratio(model: ServedPhases, count: NDArray[np.float64], table: NDArray[np.float64]) -> float:
    """Load or link use over what the replicas may carry, of the fullest config."""
    running = count > 0
    loads = loads_of(model, table)[running] / (model.capacity_ratio * count[running])
    moved = moved_of(model, table)[running] / count[running]
    return float(max(loads.max(initial=0.0), moved.max(initial=0.0)))
