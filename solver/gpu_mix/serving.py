"""The constraints that say that a model's replicas carry its traffic, each one function with its equation.

It exists so that the direct program and the pricing problems of column generation state the same rules. It knows
nothing of prices, stock or other models. Symbols: n_c replicas, x_bc routing shares, l_bc load of the bucket's whole
rate on one replica, r_b rate, h headroom, k replicas that may be lost, s largest spot share.
Source: Mélange (C1, C2) with continuous shares; README of gputype-instance/2 for the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, pairwise

import numpy as np

from solver.backends.program import Expression, Program
from solver.gpu_mix.prepare import ServedModel

Shares = dict[tuple[int, int], int]
"""Variable of x_bc by (bucket, variant); only where the variant can serve the bucket."""

LossCase = tuple[int, ...]
"""Replicas lost per variant."""


def add_shares(program: Program, model: ServedModel, variants: Sequence[int]) -> Shares:
    """Add routing shares x_bc in [0, 1] for the given variants, and serve every bucket: sum_c x_bc = 1."""
    served = model.served_by
    shares: Shares = {}
    for b in range(model.buckets):
        serving = [c for c in variants if served[b, c]]
        columns = program.add_shares(len(serving))
        shares.update({(b, c): j for c, j in zip(serving, columns, strict=True)})
        program.add_row(list(columns), [1.0] * len(columns), lower=1.0, upper=1.0)
    return shares


def load_expressions(model: ServedModel, shares: Shares) -> dict[int, Expression]:
    """Load of each variant in replicas: sum_b l_bc x_bc."""
    loads: dict[int, Expression] = {}
    for (b, c), column in shares.items():
        loads.setdefault(c, Expression()).add(column, float(model.load[b, c]))
    return loads


def load_within_replicas(
    program: Program, model: ServedModel, shares: Shares, replicas: Mapping[int, int]
) -> None:
    """Replicas carry the load and keep headroom: sum_b l_bc x_bc <= (1 - h) n_c."""
    for c, load in load_expressions(model, shares).items():
        row = Expression([replicas[c]], [model.capacity_ratio])
        row.add_scaled(load, -1.0)
        program.add_expression_row(row, lower=0.0)


def spot_share(program: Program, model: ServedModel, shares: Shares) -> None:
    """Spot variants serve at most a share of the requests: sum over b and spot c of r_b x_bc <= s sum_b r_b."""
    if not model.limits_spot:
        return
    row = Expression()
    for (b, c), column in shares.items():
        if model.spot[c]:
            row.add(column, float(model.rate_rps[b]))
    if row.columns:
        limit = model.demand.max_spot_load_ratio * float(model.rate_rps.sum())
        program.add_expression_row(row, upper=limit)


def least_replicas(program: Program, model: ServedModel, replicas: Mapping[int, int]) -> None:
    """Enough replicas in total: sum_c n_c >= max(stated minimum, k + 1)."""
    if model.least_replicas > 0:
        program.add_row(list(replicas.values()), [1.0] * len(replicas), lower=float(model.least_replicas))


def someone_serves(program: Program, model: ServedModel, replicas: Mapping[int, int]) -> None:
    """Tightening, implied for whole replicas: sum over c that can serve b of n_c >= k + 1 for each bucket b."""
    seen = set()
    for b in range(model.buckets):
        serving = tuple(c for c in replicas if model.served_by[b, c])
        if serving in seen:
            continue
        seen.add(serving)
        columns = [replicas[c] for c in serving]
        program.add_row(columns, [1.0] * len(columns), lower=1.0 + model.must_survive)


def lost_replicas(
    program: Program, model: ServedModel, replicas: Mapping[int, int]
) -> dict[int, tuple[int, ...]]:
    """Binaries u_cj with u_cj = 1 whenever n_c >= j, so that min(d, n_c) = sum over j <= d of u_cj for d <= k.

    u_c1 >= u_c2 >= ... >= u_ck and n_c <= sum_j u_cj + (U_c - k) u_ck, U_c the bound on n_c.
    """
    k = model.must_survive
    present: dict[int, tuple[int, ...]] = {}
    for c, n in replicas.items():
        flags = tuple(program.add_variable(upper=1.0, integer=True) for _ in range(k))
        for first, second in pairwise(flags):
            program.add_row([first, second], [1.0, -1.0], lower=0.0)
        spare = float(max(0, int(model.upper[c]) - k))
        coefficients = [1.0] * (k - 1) + [1.0 + spare]
        program.add_row([*flags, n], [*coefficients, -1.0], lower=0.0)
        present[c] = flags
    return present


def loss_cases(model: ServedModel, variants: Sequence[int]) -> Iterator[LossCase]:
    """All ways to lose k replicas: multisets of k variants."""
    count = len(model.variants)
    for chosen in combinations_with_replacement(variants, model.must_survive):
        yield tuple(np.bincount(chosen, minlength=count).tolist()) if chosen else (0,) * count


def survive_case(
    program: Program,
    model: ServedModel,
    replicas: Mapping[int, int],
    present: Mapping[int, tuple[int, ...]],
    case: LossCase,
) -> None:
    """After losing d the others carry everything, with shares chosen anew, without headroom or spot share.

    sum_b l_bc x'_bc <= n_c - min(d_c, n_c), sum_c x'_bc = 1. A case that loses more replicas of a variant than there
    are loses fewer in total and is implied by another case, so all multisets may be required.
    """
    shares = add_shares(program, model, list(replicas))
    for c, load in load_expressions(model, shares).items():
        row = Expression([replicas[c]], [1.0])
        for flag in present[c][: case[c]]:
            row.add(flag, -1.0)
        row.add_scaled(load, -1.0)
        program.add_expression_row(row, lower=0.0)
