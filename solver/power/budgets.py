"""Shares the budgets of a power tree out to consumers: max Σ w_i u_i(p_i) by priority, below every limit (power.md §6).

It exists so that a site, its rows and its racks are never promised more than they have. Utilities are concave and
piecewise linear, so that it is a linear program; without failover transfers its limits are nested, and raising whoever
gains most per watt solves it exactly (Federgruen and Groenevelt, Operations Research 34(6), 1986). With transfers, and
as a second opinion, the program goes to a backend. It moves no clock and knows no time.

Watts are whole: consumers get at most what the program gives, rounded down, and what that leaves over.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import BackendError, Program, SolveLimits
from solver.domain.errors import InputError, Place
from solver.domain.power_tree import PowerTree

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Method = Literal["fill", "highs", "cbc"]

_EPS_W = 1e-7
"""Sums of many watts in floating point are this good."""
_KEEP_RATIO = 1e-9
"""How much of a higher priority's utility a backend may lose to rounding when a lower one is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """Something whose power can be told: a GPU, a server, a pool."""

    name: str
    place: str
    """A node of the tree, or a domain."""
    min_w: float
    max_w: float
    priority: int = 0
    """0 is served first; what a lower priority gains never costs a higher one."""
    weight: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    """(watts, utility) from ``min_w`` to ``max_w``, concave and not falling; empty: a straight line from 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse ranges that are empty and utilities that fall or are not concave."""
        if not 0.0 <= self.min_w <= self.max_w < math.inf:
            raise InputError(
                f"{self.min_w:g} to {self.max_w:g} W", where=self.name, right="0 <= min_w <= max_w, finite"
            )
        if not 0.0 < self.weight < math.inf:
            raise InputError(
                f"{self.weight:g}", where=Place(self.name, field="weight"), right="it must be above 0"
            )
        if not self.points:
            return
        watts = [w for w, _ in self.points]
        if len(watts) < 2 or (watts[0], watts[-1]) != (self.min_w, self.max_w):
            raise InputError(
                f"utility from {watts[0]:g} to {watts[-1]:g} W",
                where=Place(self.name, field="points"),
                right="give two points or more, from min_w to max_w",
            )
        before = math.inf
        for (w0, u0), (w1, u1) in pairwise(self.points):
            slope = (u1 - u0) / (w1 - w0) if w1 > w0 else math.nan
            if not 0.0 <= slope <= before * (1.0 + 1e-9):
                raise InputError(
                    f"utility {u0:g} to {u1:g} from {w0:g} to {w1:g} W",
                    where=Place(self.name, field="points"),
                    right="it must be concave and must not fall, at rising watts",
                )
            before = slope

    def utility(self, watts: float) -> float:
        """Return u at some watts, held at its ends."""
        points = self.points or ((self.min_w, 0.0), (self.max_w, 1.0))
        return float(np.interp(watts, [w for w, _ in points], [u for _, u in points]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """What everybody may draw."""

    watts: Numbers
    """By consumer, whole; [C]."""
    fractional_w: Floats
    """Before rounding; [C]."""
    domain_w: Floats
    """By domain, what cannot be lowered included; [D]."""
    limit_w: Floats
    """By domain, as scaled; [D]."""
    utility: dict[int, float]
    """By priority: Σ w_i u_i of the whole watts."""
    fractional_utility: dict[int, float]
    """The same before rounding: no whole shares can be better."""
    saturated: tuple[str, ...]
    """Domains in which no whole watt is left."""
    method: Method


def share_budgets(
    tree: PowerTree,
    consumers: Sequence[Consumer],
    *,
    factors: Mapping[str, float] | None = None,
    method: Method | None = None,
    time_limit_s: float = 60.0,
) -> Shares:
    """Share the tree's budgets out.

    Parameters
    ----------
    factors
        By domain: its limit is scaled by this (schedules, demand response, fail-over).
    method
        None: ``fill`` without failover transfers, else ``highs``.
    time_limit_s
        Of a backend, for each priority.

    Raises
    ------
    InputError
        If consumers are named twice or hang nowhere, or the least draws do not fit.
    BackendError
        If a backend gives no proved answer in time.
    """
    problem = _Problem(tree, consumers, factors or {})
    method = method or ("highs" if tree.transfers else "fill")
    if method == "fill":
        if tree.transfers:
            raise InputError("transfers need a linear program", where="method", right="highs or cbc")
        fractional = problem.fill()
    else:
        fractional = problem.program(method, SolveLimits(time_limit_s=time_limit_s))
    watts = problem.rounded(fractional)
    domain_w = problem.fixed_w + tree.totals(problem.by_domain(watts.astype(np.float64)))
    left = np.floor(problem.limit_w - domain_w + _EPS_W)
    return Shares(
        watts=watts,
        fractional_w=fractional,
        domain_w=domain_w,
        limit_w=problem.limit_w,
        utility=problem.utilities(watts.astype(np.float64)),
        fractional_utility=problem.utilities(fractional),
        saturated=tuple(
            domain.name for domain, watts_left in zip(tree.domains, left, strict=True) if watts_left < 1.0
        ),
        method=method,
    )


class _Problem:
    """The tree and its consumers as arrays; watts above the least draw."""

    def __init__(self, tree: PowerTree, consumers: Sequence[Consumer], factors: Mapping[str, float]) -> None:
        self.tree, self.consumers = tree, consumers
        scale = np.ones(len(tree.domains))
        for name, factor in factors.items():
            if not 0.0 < factor < math.inf:
                raise InputError(f"a budget times {factor:g}", where=name, right="it must be above 0")
            scale[tree.index(name)] = factor
        self.limit_w = np.array([domain.limit_w for domain in tree.domains]) * scale
        self.domain_names = {domain.name for domain in tree.domains}
        self.at = self._places()
        # Whole watts between whole limits: a share is never above what was asked for, nor below the least.
        self.least = np.array([math.ceil(c.min_w - _EPS_W) for c in consumers], dtype=np.int64)
        self.most = np.array([math.floor(c.max_w + _EPS_W) for c in consumers], dtype=np.int64)
        self.most = np.maximum(self.most, self.least)
        own = np.array([domain.static_w for domain in tree.domains])
        for node, watts in tree.idle_w.items():
            if node not in self.used_nodes and (k := self._fed_by(node)) is not None:
                own[k] += watts
        self.fixed_w = tree.totals(own)
        least_w = self.fixed_w + tree.totals(self.by_domain(self.least.astype(np.float64)))
        self.room = np.floor(self.limit_w - self.fixed_w + _EPS_W)
        """By domain: whole watts for consumers."""
        for k, domain in enumerate(tree.domains):
            if least_w[k] > self.limit_w[k] + _EPS_W:
                raise InputError(
                    f"{self.limit_w[k]:.6g} W is below what must be drawn there ({least_w[k]:.6g} W)",
                    where=Place(domain.name, field="budget_w"),
                    right="give it a larger budget or fewer consumers",
                )
        self.paths = [[k for k in row if k >= 0] for row in tree.paths().tolist()]

    def _fed_by(self, node: str) -> int | None:
        return self.tree.domain_of(node) if node in self.tree.fed_nodes else None

    def _places(self) -> Numbers:
        """Return the domain of every consumer, and remember which nodes have consumers."""
        names = [consumer.name for consumer in self.consumers]
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(
                f"consumer {twice!r} is given twice", where="consumers", right="give every one its own name"
            )
        self.used_nodes: set[str] = set()
        found: dict[str, int] = {}
        for consumer in self.consumers:
            if consumer.place in found:
                continue
            k = self._fed_by(consumer.place)
            if k is not None:
                self.used_nodes.add(consumer.place)
            elif consumer.place in self.domain_names:
                k = self.tree.index(consumer.place)
            else:
                raise InputError(
                    f"{consumer.place!r} is neither a node nor a domain",
                    where=Place(consumer.name, field="place"),
                    right="name one of the tree",
                )
            found[consumer.place] = k
        return np.array([found[consumer.place] for consumer in self.consumers], dtype=np.int64)

    def by_domain(self, watts: Floats) -> Floats:
        """Add up consumers where they hang, [D]."""
        sums: Floats = np.bincount(self.at, weights=watts, minlength=len(self.tree.domains)).astype(
            np.float64
        )
        return sums

    @cached_property
    def stretches(self) -> tuple[Numbers, Floats, Floats, Floats, Numbers]:
        """Return consumer, start and length in W, slope times weight, and priority of every straight stretch."""
        who: list[int] = []
        points: list[tuple[float, float, float, float]] = []
        for index, c in enumerate(self.consumers):
            told = c.points or ((c.min_w, 0.0), (c.max_w, 1.0))
            who += [index] * (len(told) - 1)
            points += [(*first, *second) for first, second in pairwise(told)]
        of = np.array(who, dtype=np.int64)
        w0, u0, w1, u1 = np.array(points, dtype=np.float64).reshape(-1, 4).T
        weight = np.array([c.weight for c in self.consumers])[of]
        length = w1 - w0
        slope = np.divide(u1 - u0, length, out=np.zeros_like(length), where=length > 0.0) * weight
        return of, w0, length, slope, np.array([c.priority for c in self.consumers], dtype=np.int64)[of]

    @cached_property
    def segments(self) -> tuple[Numbers, Floats, Floats, Numbers]:
        """Return consumer, length, slope and priority of what gains between whole watts, in order of serving."""
        who, start, length, slope, rank = self.stretches
        inside = np.minimum(start + length, self.most[who]) - np.maximum(start, self.least[who])
        order = np.lexsort((np.arange(who.size), -slope, rank))
        order = order[(inside[order] > 0.0) & (slope[order] > 0.0)]
        return who[order], inside[order], slope[order], rank[order]

    def utilities(self, watts: Floats) -> dict[int, float]:
        """Return Σ w_i u_i by priority."""
        who, start, length, slope, rank = self.stretches
        gained = np.clip(watts[who] - start, 0.0, length) * slope
        found = {}
        for priority in sorted({c.priority for c in self.consumers}):
            # A consumer without room has all it wants.
            at_least = sum(
                c.weight * (c.points[0][1] if c.points else float(c.max_w <= c.min_w))
                for c in self.consumers
                if c.priority == priority
            )
            found[priority] = at_least + float(gained[rank == priority].sum())
        return found

    def fill(self) -> Floats:
        """Serve stretches by priority and slope; equal ones rise together until a limit stops them."""
        who, length, slope, rank = self.segments
        watts = self.least.astype(np.float64)
        room = (self.room - self.tree.totals(self.by_domain(watts))).tolist()
        paths, at = self.paths, self.at.tolist()
        ends = np.flatnonzero((np.diff(slope) != 0.0) | (np.diff(rank) != 0)) + 1
        given, wanted, members = watts.tolist(), length.tolist(), who.tolist()
        start = 0
        for end in (*ends.tolist(), len(members)):
            group = range(start, end)
            start = end
            total = sum(wanted[j] for j in group)
            above = {at[members[j]] for j in group}
            if len(group) == 1 or all(room[k] >= total for place in above for k in paths[place]):
                for j in group:
                    path = paths[at[members[j]]]
                    gain = min(wanted[j], *(room[k] for k in path))
                    if gain > 0.0:
                        given[members[j]] += gain
                        for k in path:
                            room[k] -= gain
                continue
            rising = self._rise_together(
                np.array(members[group.start : end]), length[group.start : end], room
            )
            for j, gain in zip(group, rising.tolist(), strict=True):
                given[members[j]] += gain
        return np.array(given)

    def _rise_together(self, members: Numbers, wanted: Floats, room: list[float]) -> Floats:
        """Raise all by the same watts until each has what it wants or stands under a full domain; lowers ``room``."""
        paths = self._padded[self.at[members]]
        spare = len(room)  # paths shorter than others point to a domain that is never full
        left = np.array([*room, math.inf])
        gain = np.zeros(members.size)
        active = (left[paths] > _EPS_W).all(axis=1)
        while active.any():
            count = np.bincount(paths[active].ravel(), minlength=spare + 1)
            used = np.flatnonzero(count[:spare])
            step = min(float((wanted - gain)[active].min()), float((left[used] / count[used]).min()))
            gain[active] += step
            left[used] -= step * count[used]
            full = left <= _EPS_W
            active &= (gain < wanted - _EPS_W) & ~full[paths].any(axis=1)
        room[:] = np.maximum(left[:spare], 0.0).tolist()
        return gain

    @cached_property
    def _padded(self) -> Numbers:
        paths = self.tree.paths()
        return np.where(paths < 0, len(self.tree.domains), paths)

    def program(self, backend: BackendName, limits: SolveLimits) -> Floats:
        """Solve as a linear program, one priority after the other."""
        who, length, slope, ranks = self.segments
        tree = self.tree
        least = tree.totals(self.by_domain(self.least.astype(np.float64)))
        program = Program()
        count, domains = who.size, len(tree.domains)
        program.lower = [0.0] * (count + domains)
        program.upper = [*length.tolist(), *(self.room - least).tolist()]
        program.cost = [0.0] * (count + domains)
        program.integer = [False] * (count + domains)
        # Above the least draw, a domain draws what its children and its consumers do.
        program.row_lower = [0.0] * domains
        program.row_upper = [0.0] * domains
        below = np.flatnonzero(tree.parents >= 0)
        program.entry_rows = [*range(domains), *tree.parents[below].tolist(), *self.at[who].tolist()]
        program.entry_columns = [*range(count, count + domains), *(count + below).tolist(), *range(count)]
        program.entry_values = [*[1.0] * domains, *[-1.0] * (below.size + count)]
        for transfer in tree.transfers:
            of, to = tree.index(transfer.of), tree.index(transfer.to)
            fixed = self.fixed_w + least
            program.add_row(
                [count + to, count + of],
                [1.0, transfer.ratio],
                upper=tree.domains[to].breaker_w - fixed[to] - transfer.ratio * fixed[of],
            )
        values = np.zeros(count + domains)
        for rank in np.unique(ranks).tolist():
            mine = np.flatnonzero(ranks == rank)
            program.cost = [0.0] * (count + domains)
            unit = float(slope[mine].max())
            for j in mine.tolist():
                program.cost[j] = -slope[j] / unit
            solution = solve_program(program, limits, backend=backend)
            if not solution.found or not np.isfinite(solution.objective):
                raise self._without_answer(str(solution.status))
            values = solution.values
            program.add_row(
                mine.tolist(),
                (slope[mine] / unit).tolist(),
                lower=-solution.objective - _KEEP_RATIO * max(1.0, abs(solution.objective)),
            )
        watts = self.least.astype(np.float64)
        np.add.at(watts, who, np.clip(values[:count], 0.0, length))
        return watts

    def _without_answer(self, status: str) -> Exception:
        if status == "infeasible":
            return InputError(
                "least draws do not leave room for every failure",
                where="transfers",
                right="give larger breakers or fewer consumers",
            )
        return BackendError(f"no shares: {status}")

    def rounded(self, fractional: Floats) -> Numbers:
        """Round down to whole watts and hand out what that leaves over, by priority and slope."""
        watts = np.minimum(np.floor(fractional + 1e-6).astype(np.int64), self.most)
        watts = np.maximum(watts, self.least)
        if self.tree.transfers:
            return watts
        room = (
            (self.room - self.tree.totals(self.by_domain(watts.astype(np.float64)))).astype(np.int64).tolist()
        )
        who, length, _, _ = self.segments
        given = watts.tolist()
        reached = self.least.astype(np.float64).tolist()
        # Stretches in the order of serving: a consumer's own come one after the other, since it is concave.
        for index, stretch in zip(who.tolist(), length.tolist(), strict=True):
            reached[index] += stretch
            gain = math.floor(reached[index] + 1e-6) - given[index]
            if gain <= 0:
                continue
            path = self.paths[self.at[index]]
            gain = min(gain, *(room[k] for k in path))
            if gain > 0:
                given[index] += gain
                for k in path:
                    room[k] -= gain
        return np.array(given, dtype=np.int64)
