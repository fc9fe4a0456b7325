"""Splits a power budget between pools that work for one another: one clock per pool, max min speed (power.md §6).

It exists because prefill and decode pay differently for clocks: decode gives up little speed for many watts, so that
clocks taken from it first leave the slower pool faster than one clock for all. The same form serves any number of pools
or servers anywhere in a power tree. It knows no requests: pools are taken to be always busy.

Exact: for a wanted speed each pool takes its least draw among the levels that reach it; if those do not fit, nothing
that reaches it fits. The optimum is one of the pools' own speeds, so that halving over them finds it. The integer
program of the same form is there as a second opinion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import BackendError, Program, SolveLimits, SolveStatus
from solver.domain.errors import InputError, Place
from solver.domain.power import ServerPowerModel
from solver.domain.power_tree import PowerDomain, PowerLevel, PowerTree

Floats = npt.NDArray[np.float64]

_TOLERANCE_W = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockLevel:
    """What a pool's servers do at a clock."""

    mhz: int
    server_w: float
    speed_ratio: float
    """Of the largest clock's, or any other value of which the smallest counts: the slack of an SLO, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Servers that get one clock."""

    name: str
    place: str
    """A domain of the tree."""
    servers: int
    levels: tuple[ClockLevel, ...]

    def __post_init__(self) -> None:
        """Refuse a pool that has no servers or no clocks, and what is no draw."""
        if self.servers < 1 or not self.levels:
            raise InputError(
                f"{self.servers} servers with {len(self.levels)} clocks",
                where=self.name,
                right="give at least one of each",
            )
        for level in self.levels:
            if not (0.0 <= level.server_w < np.inf and np.isfinite(level.speed_ratio)):
                raise InputError(
                    f"{level.server_w:g} W, speed {level.speed_ratio:g} at {level.mhz} MHz",
                    where=Place(self.name, field="levels"),
                    right="finite, and no watts below 0",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Clocks with the largest smallest speed and, among those, the least draw of every pool."""

    speed_ratio: float
    mhz: tuple[int, ...]
    """By pool."""
    pool_w: tuple[float, ...]
    """By pool, all its servers."""
    next_speed_ratio: float | None
    """The next better speed that any pool has, which does not fit; None at the top."""
    exceeded: tuple[tuple[str, float], ...]
    """Domains that the next better speed would exceed, and by how many watts: the proof."""


def phase_levels(server: ServerPowerModel, *, tdp_ratio: float, clock_share: float) -> tuple[ClockLevel, ...]:
    """Return all clocks of a server that is always busy with one phase, rising.

    Parameters
    ----------
    tdp_ratio
        Draw of its GPUs at the largest clock F, of the TDP.
    clock_share
        Share of the time that goes with F/f; the rest (memory) does not: speed = 1 / (1 - share + share F/f).
    """
    return tuple(
        ClockLevel(
            mhz=mhz,
            server_w=server.server_w(server.gpu_w(tdp_ratio, mhz)),
            speed_ratio=1.0 / (1.0 - clock_share + clock_share * server.max_mhz / mhz),
        )
        for mhz in server.clocks_mhz
    )


def single_budget(budget_w: float, name: str = "budget") -> PowerTree:
    """Return a tree of one domain."""
    return PowerTree(domains=(PowerDomain(name=name, level=PowerLevel.ROW, budget_w=budget_w),))


def split_budget(pools: Sequence[Pool], tree: PowerTree) -> Split:
    """Return the clocks that make the slowest pool as fast as the tree allows.

    Raises
    ------
    InputError
        If pools hang nowhere, or draw too much at their lowest.
    """
    problem = _Problem(pools, tree)
    speeds = sorted({level.speed_ratio for pool in pools for level in pool.levels})
    # No speed above the slowest pool's best can be reached by all.
    top = min(max(level.speed_ratio for level in pool.levels) for pool in pools)
    speeds = [speed for speed in speeds if speed <= top]
    if not problem.fits(problem.cheapest(speeds[0])):
        raise problem.too_little(problem.cheapest(speeds[0]))
    low, high = 0, len(speeds)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if problem.fits(problem.cheapest(speeds[middle])) else (low, middle)
    chosen = problem.cheapest(speeds[low])
    beyond = speeds[high] if high < len(speeds) else None
    return problem.split(
        chosen,
        beyond=beyond,
        exceeded=() if beyond is None else problem.exceeded(problem.cheapest(beyond)),
    )


def split_with_one_clock(pools: Sequence[Pool], tree: PowerTree) -> Split:
    """Return the best clock that all pools share: what a split is compared with.

    Raises
    ------
    InputError
        If pools hang nowhere, share no clock, or draw too much at all they share.
    """
    problem = _Problem(pools, tree)
    shared = set.intersection(*({level.mhz for level in pool.levels} for pool in pools))
    choices = [
        [next(k for k, level in enumerate(pool.levels) if level.mhz == mhz) for pool in pools]
        for mhz in sorted(shared)
    ]
    if not choices:
        raise InputError("pools share no clock", where="levels", right="give them one in common")
    fitting = [choice for choice in choices if problem.fits(choice)]
    if not fitting:
        raise problem.too_little(choices[0])
    return problem.split(max(fitting, key=problem.speed))


def split_by_program(
    pools: Sequence[Pool],
    tree: PowerTree,
    *,
    backend: BackendName = "highs",
    time_limit_s: float = 60.0,
) -> Split:
    """Solve the same as an integer program: one level per pool, max t ≤ every pool's speed, limits as rows.

    Raises
    ------
    InputError
        As `split_budget`.
    BackendError
        If the backend proves nothing in time.
    """
    problem = _Problem(pools, tree)
    program = Program()
    speeds = [level.speed_ratio for pool in pools for level in pool.levels]
    slowest = program.add_variable(lower=min(speeds), upper=max(speeds), cost=-1.0)
    columns: list[range] = []
    for pool in pools:
        first = program.variables
        for _ in pool.levels:
            program.add_variable(upper=1.0, integer=True)
        mine = range(first, program.variables)
        columns.append(mine)
        program.add_row(mine, [1.0] * len(mine), lower=1.0, upper=1.0)
        program.add_row([slowest, *mine], [-1.0, *(level.speed_ratio for level in pool.levels)], lower=0.0)
    for domain, limit_w in enumerate(problem.room_w.tolist()):
        inside = [k for k in range(len(pools)) if domain in problem.above[k]]
        if inside:
            # In shares of the limit: solvers keep rows to absolute tolerances.
            program.add_row(
                [column for k in inside for column in columns[k]],
                [watts / max(limit_w, 1.0) for k in inside for watts in problem.watts[k]],
                upper=limit_w / max(limit_w, 1.0),
            )
    solution = solve_program(program, SolveLimits(time_limit_s=time_limit_s), backend=backend)
    if solution.status is SolveStatus.INFEASIBLE:
        raise problem.too_little(problem.cheapest(min(speeds)))
    if solution.status is not SolveStatus.OPTIMAL:
        raise BackendError(f"no split: {solution.status}")
    chosen = [int(np.argmax(solution.values[list(mine)])) for mine in columns]
    return problem.split(chosen)


class _Problem:
    """Pools with their draws, and what each domain has room for."""

    def __init__(self, pools: Sequence[Pool], tree: PowerTree) -> None:
        if not pools:
            raise InputError("no pools", where="pools", right="give at least one")
        self.pools, self.tree = pools, tree
        self.watts = [[pool.servers * level.server_w for level in pool.levels] for pool in pools]
        fixed_w = tree.totals(np.array([domain.static_w for domain in tree.domains]))
        self.limit_w = np.array([domain.limit_w for domain in tree.domains])
        self.room_w = self.limit_w - fixed_w
        self.above: list[list[int]] = []
        for pool in pools:
            path = [tree.index(pool.place)]
            while tree.parents[path[-1]] >= 0:
                path.append(int(tree.parents[path[-1]]))
            self.above.append(path)

    def cheapest(self, speed: float) -> list[int]:
        """Return by pool the level of least draw that reaches a speed; its fastest where none does."""
        chosen = []
        for pool in self.pools:
            reaching = [k for k, level in enumerate(pool.levels) if level.speed_ratio >= speed]
            chosen.append(
                min(reaching, key=lambda k, pool=pool: (pool.levels[k].server_w, -pool.levels[k].speed_ratio))  # type: ignore[misc]
                if reaching
                else max(range(len(pool.levels)), key=lambda k, pool=pool: pool.levels[k].speed_ratio)  # type: ignore[misc]
            )
        return chosen

    def drawn_w(self, chosen: Sequence[int]) -> Floats:
        """Return what pools draw below each domain, [domains]."""
        sums = np.zeros(len(self.tree.domains))
        for k, level in enumerate(chosen):
            sums[self.above[k]] += self.watts[k][level]
        return sums

    def fits(self, chosen: Sequence[int]) -> bool:
        """Tell whether every domain has room for it."""
        return bool((self.drawn_w(chosen) <= self.room_w + _TOLERANCE_W).all())

    def speed(self, chosen: Sequence[int]) -> float:
        """Return the slowest pool's speed."""
        return min(pool.levels[k].speed_ratio for pool, k in zip(self.pools, chosen, strict=True))

    def exceeded(self, chosen: Sequence[int]) -> tuple[tuple[str, float], ...]:
        """Return the domains that have no room for it, and what is missing."""
        over = self.drawn_w(chosen) - self.room_w
        return tuple(
            (domain.name, float(watts))
            for domain, watts in zip(self.tree.domains, over, strict=True)
            if watts > _TOLERANCE_W
        )

    def too_little(self, chosen: Sequence[int]) -> InputError:
        """Say where not even the lowest fits."""
        name, over_w = self.exceeded(chosen)[0]
        limit_w = self.limit_w[self.tree.index(name)]
        return InputError(
            f"{limit_w:.6g} W is {over_w:.6g} W below what its pools draw at their lowest",
            where=Place(name, field="budget_w"),
            right="give it a larger budget or fewer servers",
        )

    def split(
        self,
        chosen: Sequence[int],
        *,
        beyond: float | None = None,
        exceeded: tuple[tuple[str, float], ...] = (),
    ) -> Split:
        """Write an answer down."""
        return Split(
            speed_ratio=self.speed(chosen),
            mhz=tuple(pool.levels[k].mhz for pool, k in zip(self.pools, chosen, strict=True)),
            pool_w=tuple(self.watts[k][level] for k, level in enumerate(chosen)),
            next_speed_ratio=beyond,
            exceeded=exceeded,
        )
