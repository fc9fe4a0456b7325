"""What a GPU mix asks of its replicas that no other sizing problem does: the spot share.

It exists so that the direct program and the pricing problems of column generation state the same rule; those of all
sizing problems are in `solver.pools`. It knows nothing of prices, stock or other models. Symbols: x_bc routing shares,
r_b rate, s largest spot share. Source: README of gputype-instance/2.
"""

from solver.backends.program import Expression, Program
from solver.gpu_mix.prepare import ServedModel
from solver.pools.serving import Shares


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
