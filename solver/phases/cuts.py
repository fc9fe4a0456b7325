"""What replicas must be worth: serving projected away into inequalities over replica counts alone.

It exists because most of a fleet program is routing shares, which cost nothing: all they say is whether replicas
suffice. For any prices pi_b >= tau_b >= 0 of serving a bucket and of its decode part, every fleet that serves lambda
times the rates satisfies

    sum over c of w_c n_c >= lambda sum over b of pi_b,

    w_c = max sum_b v_bc x_b  subject to  sum_b l_bc x_b <= 1 - h,  sum_b k_bc x_b <= 1,  0 <= x_b <= lambda_max,

v_bc = pi_b for role both, max(0, pi_b - tau_b) for prefill, tau_b for decode: what one replica of c can earn at these
prices. Whole replicas earn at most n_c w_c, since what n replicas earn is concave in n. The bound x_b <= lambda_max (a
replica serves no more than the whole bucket) makes the inequality stronger than its linear-programming dual, which
matters where few replicas serve much. Prices that cut off replicas that do not suffice are the duals of `carried`.
Source: Benders (1962); the bound on x_b is the strong formulation of facility location.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Program, SolveLimits
from solver.phases.prepare import ServedPhases

Floats = NDArray[np.float64]

SURROGATES = (0.0, 0.1, 0.5, 1.0)
"""Weights of the link in one constraint that stands for load and link; each gives a valid w_c, the least is taken."""
NO_LINK = (0.0,)
RUNNING = 1e-9


@dataclass(frozen=True, slots=True)
class Cut:
    """sum over c of ``weights`` [C] n_c >= lambda, for the model at ``position``; scaled so that prices sum to 1."""

    position: int
    weights: Floats


@dataclass(frozen=True, slots=True)
class Carried:
    """The largest factor that given replicas carry, and the prices [B] (pi, tau) that prove it, summing to 1.

    ``link_share`` [C] is the link's part of each config's dual: the surrogate weight at which w_c is exact.
    """

    factor: float
    serving: Floats
    decoding: Floats
    link_share: Floats


def cut_from(model: ServedPhases, position: int, prices: Carried, *, most: float = 1.0) -> Cut:
    """Return the inequality of the given prices; ``most`` bounds lambda from above (1 unless the goal is the rate)."""
    serving, decoding = prices.serving, prices.decoding
    value = np.where(
        model.prefills[None, :],
        np.maximum(serving - decoding, 0.0)[:, None],
        np.where(model.decodes[None, :], decoding[:, None], serving[:, None]),
    )
    usable = np.asarray(model.usable, dtype=np.int64)
    served = model.served_by[:, usable]
    value = np.where(served, value[:, usable], 0.0)
    load = np.where(served, model.load[:, usable], 0.0) / model.capacity_ratio
    link = model.link[:, usable]
    least = np.full(len(usable), np.inf)
    surrogates: list[float | Floats] = list(SURROGATES if link.any() else NO_LINK)
    if link.any():
        surrogates.append(prices.link_share[usable])
    for share in surrogates:
        least = np.minimum(least, _knapsack(value, (1.0 - share) * load + share * link, most))
    weights = np.zeros(model.configs)
    weights[usable] = least
    return Cut(position, weights)


def _knapsack(value: Floats, size: Floats, most: float) -> Floats:
    """[C] largest sum_b value x with sum_b size x <= 1 and 0 <= x <= most: dearest per size first."""
    density = np.divide(value, size, out=np.where(value > 0, np.inf, 0.0), where=size > 0)
    order = np.argsort(-density, axis=0, kind="stable")
    value = np.take_along_axis(value, order, axis=0) * most
    size = np.take_along_axis(size, order, axis=0) * most
    before = np.cumsum(size, axis=0) - size
    part = np.divide(1.0 - before, size, out=np.where(before < 1.0, 1.0, 0.0), where=size > 0)
    earned: Floats = (value * np.clip(part, 0.0, 1.0)).sum(axis=0)
    return earned


def price_start(model: ServedPhases, price: Floats) -> Carried:
    """Prices of serving each bucket in its cheapest way, at ``price`` [C] per replica, fractions of them allowed."""
    usable = np.zeros(model.configs, dtype=bool)
    usable[model.usable] = True
    load = np.where(model.served_by, model.load, 0.0)
    least = np.where(model.served_by & usable, load * price / model.capacity_ratio, np.inf)

    def cheapest(chosen: NDArray[np.bool_]) -> Floats:
        best: Floats = least[:, chosen].min(axis=1, initial=np.inf)
        return best

    both = cheapest(~(model.prefills | model.decodes))
    decode = cheapest(model.decodes)
    split = cheapest(model.prefills) + decode
    serving = np.minimum(both, split)
    decoding = np.where(split <= both, decode, np.minimum(decode, serving))
    total = float(serving.sum())
    if not 0.0 < total < np.inf:  # nothing costs anything: every bucket counts alike
        count = model.buckets
        return Carried(
            np.inf, np.full(count, 1.0 / count), np.full(count, 0.5 / count), np.zeros(model.configs)
        )
    return Carried(np.inf, serving / total, decoding / total, np.zeros(model.configs))


def carried(model: ServedPhases, counts: Sequence[float] | Floats, backend: BackendName) -> Carried:
    """Find the largest factor that replicas (whole or not) carry: 1 / min t with flows of all rates.

    min t s.t. over both and prefill sum x >= 1 (dual pi), over decode sum x >= over prefill sum x (dual tau), sum_b l x
    <= t (1 - h) n, sum_b k x <= t n. Where nobody serves some bucket the factor is 0 and the prices are on those.
    """
    count = np.asarray(counts, dtype=float)
    usable = np.zeros(model.configs, dtype=bool)
    usable[model.usable] = True
    running = np.flatnonzero(usable & (count > RUNNING))
    covered = model.covered_by(running.tolist())
    if not covered.all():
        return _uncovered(model, running, covered)
    program, rows = _routing_program(model, running, count[running])
    solution = solve_program(program, SolveLimits(), backend=backend, relaxed=True)
    duals = np.maximum(solution.row_duals, 0.0)
    serving, decoding = duals[rows.serving], duals[rows.decoding]
    load, link = duals[rows.load] / count[running], duals[rows.link] / count[running]
    share = np.zeros(model.configs)
    share[running] = np.divide(link, load + link, out=np.zeros_like(link), where=load + link > 0)
    total = float(serving.sum())
    if total <= 0:
        total = 1.0
    return Carried(1.0 / max(solution.objective, 1e-300), serving / total, decoding / total, share)


def _uncovered(model: ServedPhases, running: NDArray[np.int64], covered: NDArray[np.bool_]) -> Carried:
    """Price the buckets that nobody serves, or their decode part where only that is missing."""
    prefilled = model.served_by[:, running[model.prefills[running]]].any(axis=1)
    serving = np.where(covered, 0.0, 1.0)
    decoding = np.where(~covered & prefilled, 1.0, 0.0)
    total = float(serving.sum())
    return Carried(0.0, serving / total, decoding / total, np.zeros(model.configs))


@dataclass(frozen=True, slots=True)
class _Rows:
    serving: slice
    decoding: slice
    load: slice
    link: slice


def _routing_program(model: ServedPhases, running: NDArray[np.int64], count: Floats) -> tuple[Program, _Rows]:
    """Write the program of `carried` straight as arrays, since it is solved many times."""
    buckets, pools = np.nonzero(model.served_by[:, running])
    configs = running[pools]
    load = model.load[buckets, configs] / (model.capacity_ratio * count[pools])
    link = model.link[buckets, configs] / count[pools]
    prefills, decodes = model.prefills[configs], model.decodes[configs]
    flows = np.arange(1, len(buckets) + 1)
    first, split, moved = ~decodes, prefills | decodes, link > 0
    b, r = model.buckets, len(running)
    every = np.arange(r)
    full = np.zeros(r, dtype=np.int64)
    program = Program()
    program.lower = [0.0] * (len(flows) + 1)
    program.upper = [np.inf] * (len(flows) + 1)
    program.cost = [1.0] + [0.0] * len(flows)
    program.integer = [False] * (len(flows) + 1)
    program.row_lower = [1.0] * b + [0.0] * (b + 2 * r)
    program.row_upper = [np.inf] * (2 * b + 2 * r)
    rows = (
        buckets[first],
        b + buckets[split],
        2 * b + pools,
        2 * b + every,
        2 * b + r + pools[moved],
        2 * b + r + every,
    )
    columns = (flows[first], flows[split], flows, full, flows[moved], full)
    values = (
        np.ones(int(first.sum())),
        np.where(decodes[split], 1.0, -1.0),
        -load,
        np.ones(r),
        -link[moved],
        np.ones(r),
    )
    program.entry_rows = np.concatenate(rows).tolist()
    program.entry_columns = np.concatenate(columns).tolist()
    program.entry_values = np.concatenate(values).tolist()
    places = _Rows(slice(0, b), slice(b, 2 * b), slice(2 * b, 2 * b + r), slice(2 * b + r, 2 * b + 2 * r))
    return program, places
