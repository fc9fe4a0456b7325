"""The least that the fullest resource must be used when traffic is spread as well as can be, with a proof of it.

It exists so that checks can tell whether any routing carries the traffic without a solver or a backend. It knows
neither GPUs nor requests: buckets choose among options, and each choice uses resources.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_PIVOTS = 20_000


def least_largest_use(
    use: Floats, allowed: npt.NDArray[np.bool_], limit: float | None
) -> tuple[Floats, float, float]:
    """Spread buckets over options; return shares [bucket, option], the largest use reached, and a lower bound of it.

    Parameters
    ----------
    use
        [resource, bucket, option]: use of a resource, as a share of it, when a whole bucket takes an option.
    allowed
        [bucket, option]; every bucket has one.
    limit
        The search stops as soon as the answer is known to lie below or above it; None: at the least value.

    Notes
    -----
    The value of a matrix game: min over convex combinations of *assignments* (each bucket wholly to one option) of the
    max over resources. For weights p[i] >= 0 with sum 1, ``sum over b of min over c of sum over i of p[i] use[i,b,c]``
    is a lower bound, and its minimiser is the assignment that enters next: the simplex method on one row per resource
    with columns made as needed (Dantzig and Wolfe 1960), the lexicographic rule against cycling. Both ends are proofs
    by themselves.


    Variables: weights of assignments, slacks s[i], and t. Rows: use_i(mix) - t + s[i] = 0 for each
    resource i, and the weights sum to 1. Objective: t.
    """
    n_resources, n_buckets, n_configs = use.shape
    rows = np.arange(n_buckets)

    def best_assignment(weights: Floats) -> tuple[npt.NDArray[np.intp], Floats, float]:
        price = np.where(allowed, np.tensordot(weights, use, axes=1), np.inf)
        # Among equally cheap configurations the one with less use keeps the numbers small.
        choice = (price + np.where(allowed, use.sum(axis=0), 0.0) * 1e-12).argmin(axis=1)
        return choice, use[:, rows, choice].sum(axis=1), float(price.min(axis=1).sum())

    choice, column, lower_bound = best_assignment(np.full(n_resources, 1 / n_resources))
    tightest = int(column.argmax())
    basis = np.zeros((n_resources + 1, n_resources + 1))
    # Column `tightest` of the basis belongs to t; the last one to the first assignment; the others to
    # slacks.
    basis[:n_resources, :n_resources] = np.eye(n_resources)
    basis[:n_resources, tightest] = -1.0
    basis[:n_resources, -1] = column
    basis[-1, -1] = 1.0
    first = basis.copy()
    assignments: list[npt.NDArray[np.intp] | None] = [None] * n_resources + [choice]
    cost = np.zeros(n_resources + 1)
    cost[tightest] = 1.0
    unit = np.zeros(n_resources + 1)
    unit[-1] = 1.0
    utilisation = math.inf
    shares = np.zeros((n_buckets, n_configs))
    for _ in range(MOST_PIVOTS):
        values = np.linalg.solve(basis, unit)
        mix = [(max(0.0, float(v)), a) for v, a in zip(values, assignments, strict=True) if a is not None]
        total = sum(weight for weight, _ in mix)
        shares = np.zeros((n_buckets, n_configs))
        for weight, assignment in mix:
            shares[rows, assignment] += weight / total
        utilisation = float((use * shares).sum(axis=(1, 2)).max())
        if limit is not None and utilisation <= limit:
            break
        duals = np.linalg.solve(basis.T, cost)
        weights = -duals[:n_resources]
        entering = np.zeros(n_resources + 1)
        if weights.min() < -1e-11:
            slack = int(weights.argmin())
            entering[slack] = 1.0
            choice_in: npt.NDArray[np.intp] | None = None
        else:
            weights = np.clip(weights, 0.0, None)
            choice_in, column, bound = best_assignment(weights / weights.sum())
            lower_bound = max(lower_bound, bound)
            if lower_bound >= utilisation * (1 - 1e-12) or (limit is not None and lower_bound > limit):
                break
            entering[:n_resources], entering[-1] = column, 1.0
        direction = np.linalg.solve(basis, entering)
        leaving = _leaving(values, np.linalg.solve(basis, first), direction)
        if leaving is None or cost[leaving]:
            break  # rounding has the last word; both ends found so far still hold
        basis[:, leaving] = entering
        assignments[leaving] = choice_in
    return shares, utilisation, lower_bound


def _leaving(values: Floats, order: Floats, direction: Floats) -> int | None:
    """Return the row of the lexicographic ratio test."""
    rows = np.flatnonzero(direction > 1e-11)
    if rows.size == 0:
        return None
    for column in (values, *order.T):
        ratios = column[rows] / direction[rows]
        rows = rows[ratios <= ratios.min() + 1e-12 * max(1.0, abs(float(ratios.min())))]
        if rows.size == 1:
            break
    return int(rows[0])
