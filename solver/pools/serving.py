"""Serving traffic with pools of replicas: the constraints that tie requests to replicas, for one model.

It exists because every sizing problem states them alike: a GPU mix is a fleet in which every pool serves both phases.
Each constraint is one function. It knows nothing of prices, stock, losses or links. Symbols: n_c replicas, x_bc routing
shares, l_bc load of the bucket's whole rate on one replica, h headroom, lambda rate factor (1 unless it is a variable).
Source: Mélange (C1, C2) with continuous shares; README of fleet-instance/1 for the phases.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from solver.backends.program import Expression, Program

Shares = dict[tuple[int, int], int]
"""Variable of x_bc by (bucket, pool); only where the pool can serve its part of the bucket."""


class Pools(Protocol):
    """A model as arrays over its B buckets with traffic and its C pools (variants, configs)."""

    @property
    def buckets(self) -> int:
        """Number of buckets with traffic."""
        ...

    @property
    def load(self) -> NDArray[np.float64]:
        """[B, C] share of one replica that the whole rate of a bucket takes; infinite where it cannot be served."""
        ...

    @property
    def served_by(self) -> NDArray[np.bool_]:
        """[B, C] whether a pool can serve its part of a bucket."""
        ...

    @property
    def capacity_ratio(self) -> float:
        """Usable share of a replica, 1 - headroom."""
        ...

    @property
    def prefills(self) -> NDArray[np.bool_]:
        """[C] pools that serve the first part of requests only."""
        ...

    @property
    def decodes(self) -> NDArray[np.bool_]:
        """[C] pools that serve the second part of requests only."""
        ...


def add_shares(program: Program, pools: Pools, chosen: Sequence[int], *, factor: int | None = None) -> Shares:
    """Add x_bc for the chosen pools and serve every bucket: over both and prefill sum_c x_bc = lambda.

    With ``factor``, the variable of lambda, the x_bc are flows without an upper bound; else lambda is 1. Where pools
    of one phase are among the chosen: over decode sum_c x_bc = over prefill sum_c x_bc.
    """
    served, prefills, decodes = pools.served_by, pools.prefills, pools.decodes
    shares: Shares = {}
    for b in range(pools.buckets):
        serving = [c for c in chosen if served[b, c]]
        columns = program.add_shares(len(serving), upper=1.0 if factor is None else np.inf)
        shares.update({(b, c): j for c, j in zip(serving, columns, strict=True)})
        first = [j for c, j in zip(serving, columns, strict=True) if not decodes[c]]
        if factor is None:
            program.add_row(first, [1.0] * len(first), lower=1.0, upper=1.0)
        else:
            program.add_row([*first, factor], [1.0] * len(first) + [-1.0], lower=0.0, upper=0.0)
        phases = [
            (j, -1.0 if decodes[c] else 1.0)
            for c, j in zip(serving, columns, strict=True)
            if decodes[c] or prefills[c]
        ]
        if phases:
            program.add_row([j for j, _ in phases], [sign for _, sign in phases], lower=0.0, upper=0.0)
    return shares


def share_expressions(shares: Shares, amounts: NDArray[np.float64]) -> dict[int, Expression]:
    """Sum over b of amounts[b, c] x_bc for each pool with shares."""
    sums: dict[int, Expression] = {}
    for (b, c), column in shares.items():
        sums.setdefault(c, Expression()).add(column, float(amounts[b, c]))
    return sums


def load_expressions(pools: Pools, shares: Shares) -> dict[int, Expression]:
    """Load of each pool in replicas: sum_b l_bc x_bc."""
    return share_expressions(shares, pools.load)


def load_within_replicas(program: Program, pools: Pools, shares: Shares, replicas: Mapping[int, int]) -> None:
    """Replicas carry the load and keep headroom: sum_b l_bc x_bc <= (1 - h) n_c."""
    for c, load in load_expressions(pools, shares).items():
        row = Expression([replicas[c]], [pools.capacity_ratio])
        row.add_scaled(load, -1.0)
        program.add_expression_row(row, lower=0.0)


def least_replicas(program: Program, least: int, replicas: Mapping[int, int]) -> None:
    """Enough replicas in total: sum_c n_c >= least."""
    if least > 0:
        program.add_row(list(replicas.values()), [1.0] * len(replicas), lower=float(least))


def someone_serves(program: Program, pools: Pools, replicas: Mapping[int, int], *, least: float) -> None:
    """Tightening, implied for whole replicas: each bucket b has its replicas in every phase.

    Over pools of both phases and of prefill that can serve b: sum n_c >= least; likewise both and decode.
    """
    served = pools.served_by
    for other in (pools.decodes, pools.prefills) if pools.decodes.any() else (pools.decodes,):
        seen = set()
        for b in range(pools.buckets):
            serving = tuple(c for c in replicas if served[b, c] and not other[c])
            if serving in seen:
                continue
            seen.add(serving)
            columns = [replicas[c] for c in serving]
            program.add_row(columns, [1.0] * len(columns), lower=least)
