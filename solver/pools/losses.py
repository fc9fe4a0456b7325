"""Losing replicas and carrying on: whichever k replicas of a model fail, the others serve its full rate.

It exists because GPU mixes and prefill/decode fleets ask for the same: the constraints, the ways to lose replicas, and
the search for those that an answer does not survive, since few of the many ever matter. It knows nothing of prices,
stock or how a routing is found. Symbols: n_c replicas, x_bc routing shares, d_c replicas lost, k in all, U_c the bound
on n_c. Source: README of gputype-instance/2; for fleets the same rule over both phases and the links.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from solver.backends.program import Expression, Program
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.pools.serving import Pools, add_shares, share_expressions

LossCase = tuple[int, ...]
"""Replicas lost per pool."""
CASES_AT_ONCE = 3
MOST_LOSSES = 50
"""The ways to lose k replicas are too many to look at beyond this."""
LOAD_SLACK_RATIO = 1e-8
"""Replicas left are taken to suffice if the fullest is at most so far above its capacity."""


class LosingPools(Pools, Protocol):
    """A model of which replicas may be lost."""

    @property
    def must_survive(self) -> int:
        """Replicas that may be lost, k."""
        ...

    @property
    def upper(self) -> NDArray[np.generic]:
        """[C] bound on the replicas of each pool."""
        ...


class SurvivalTimeoutError(RuntimeError):
    """The time was up before all ways to lose replicas were looked at."""


def refuse_many_losses(model: str, survive: int) -> None:
    """Raise `InputError` for more losses than can be looked at."""
    if survive > MOST_LOSSES:
        raise InputError(
            f"model {model} is to survive the loss of {survive} replicas",
            right=f"at most {MOST_LOSSES}",
        )


def lost_replicas(
    program: Program, model: LosingPools, replicas: Mapping[int, int]
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


def survive_case(
    program: Program,
    model: LosingPools,
    replicas: Mapping[int, int],
    present: Mapping[int, tuple[int, ...]],
    case: LossCase,
    *,
    amounts: Sequence[NDArray[np.float64]],
) -> None:
    """After losing d the others carry everything, with shares chosen anew, without headroom or spot share.

    sum_b a_bc x'_bc <= n_c - min(d_c, n_c) for each table a of ``amounts`` (loads; links too where KV moves), x' shares
    as in `add_shares`. A case that loses more replicas of a pool than there are loses fewer in total and is implied by
    another case, so all multisets may be required.
    """
    shares = add_shares(program, model, list(replicas))
    for table in amounts:
        for c, used in share_expressions(shares, table).items():
            if not table[:, c].any():
                continue
            row = Expression([replicas[c]], [1.0])
            for flag in present[c][: case[c]]:
                row.add(flag, -1.0)
            row.add_scaled(used, -1.0)
            program.add_expression_row(row, lower=0.0)


def loss_cases(model: LosingPools, running: Sequence[int]) -> Iterator[LossCase]:
    """All ways to lose k replicas: multisets of k pools."""
    count = len(model.upper)
    for chosen in combinations_with_replacement(running, model.must_survive):
        yield tuple(np.bincount(chosen, minlength=count).tolist()) if chosen else (0,) * count


def unsurvived_cases(
    model: LosingPools,
    counts: Sequence[int],
    *,
    fullest_after: Callable[[LossCase], float],
    deadline: Deadline,
    most: int = CASES_AT_ONCE,
) -> list[LossCase]:
    """Find the losses (worst first) that the given replicas do not survive; `SurvivalTimeoutError` if time is up.

    ``fullest_after`` says how full the fullest pool is after a loss, at best; infinite where some bucket is not served.
    """
    if not model.must_survive:
        return []
    failing: list[tuple[float, LossCase]] = []
    for case in loss_cases(model, [c for c, n in enumerate(counts) if n > 0]):
        if any(lost > n for lost, n in zip(case, counts, strict=True)):
            continue
        if deadline.passed():
            raise SurvivalTimeoutError
        excess = fullest_after(case)
        if excess > 1.0 + LOAD_SLACK_RATIO:
            failing.append((excess, case))
    failing.sort(key=lambda entry: (-entry[0], entry[1]))
    return [case for _, case in failing[:most]]
