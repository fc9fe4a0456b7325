"""The tree of power: site, UPS, row, rack, node, each with what it may draw.

It exists so that budgets are shared over what really feeds what, and so that a tree that cannot be is refused in one
line wherever it comes from (resource, file, test). It shares nothing out: that is `solver.power.budgets`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError, Place

Numbers = npt.NDArray[np.int64]


class PowerLevel(IntEnum):
    """From the grid to the machine; a domain hangs below one of a smaller level."""

    SITE = 0
    UPS = 1
    ROW = 2
    RACK = 3
    NODE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerDomain:
    """A place in the tree with a limit of its own."""

    name: str
    level: PowerLevel
    budget_w: float
    """Contract or choice."""
    parent: str | None = None
    breaker_w: float = math.inf
    """Rating of its breaker."""
    failover_ratio: float = 1.0
    """Share of the rating that may be used so that it can take over from another one (N + 1 of 4: 0.75)."""
    cooling_w: float = math.inf
    static_w: float = 0.0
    """What draws here and cannot be told to draw less: fans, switches, servers that are not managed."""
    nodes: tuple[str, ...] = ()
    """Machines fed directly from here."""

    def __post_init__(self) -> None:
        """Refuse numbers that are no limits."""
        for name in ("budget_w", "breaker_w", "cooling_w"):
            value = getattr(self, name)
            if not value > 0.0 or (name == "budget_w" and math.isinf(value)):
                raise InputError(
                    f"{value:g} W", where=Place(self.name, field=name), right="it must be above 0 and finite"
                )
        if not 0.0 < self.failover_ratio <= 1.0:
            raise InputError(
                f"{self.failover_ratio:g}",
                where=Place(self.name, field="failover_ratio"),
                right="it must be above 0 and at most 1",
            )
        if not 0.0 <= self.static_w < math.inf:
            raise InputError(
                f"{self.static_w:g} W", where=Place(self.name, field="static_w"), right="it must be 0 or more"
            )

    @property
    def limit_w(self) -> float:
        """B: the smallest of budget, breaker's failover share and cooling."""
        return min(self.budget_w, self.breaker_w * self.failover_ratio, self.cooling_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverTransfer:
    """Load that moves when a domain fails: P(to) + ratio P(of) ≤ rating of ``to``'s breaker."""

    of: str
    to: str
    ratio: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerTree:
    """Domains, and what their nodes draw at least.

    Several roots are allowed: each is a tree of its own.
    """

    domains: tuple[PowerDomain, ...]
    transfers: tuple[FailoverTransfer, ...] = ()
    """Failures that the rest must bear, one at a time, where a fixed failover share is too blunt."""
    idle_w: Mapping[str, float] = field(default_factory=dict)
    """By node that exists: draw without work, which no order can lower."""

    _index: Mapping[str, int] = field(init=False, repr=False)
    _domain_of: Mapping[str, int] = field(init=False, repr=False)
    parents: Numbers = field(init=False, repr=False)
    """Index of the parent by domain, -1 for roots."""
    deepest_first: tuple[int, ...] = field(init=False, repr=False)
    """Domains so that children come before parents."""

    def __post_init__(self) -> None:
        """Refuse trees that are none, nodes that are claimed twice or unknown, and budgets below idle."""
        names = [domain.name for domain in self.domains]
        if not names:
            raise InputError("a tree without domains", where="domains", right="give at least one")
        _refuse_twice(names, "the domain", "give every domain its own name")
        index = {name: k for k, name in enumerate(names)}
        parents = np.full(len(names), -1, dtype=np.int64)
        for k, domain in enumerate(self.domains):
            if domain.parent is None:
                continue
            if domain.parent not in index:
                raise InputError(
                    f"unknown parent {domain.parent!r}",
                    where=Place(domain.name, field="parent"),
                    right="name a domain that exists",
                )
            parents[k] = index[domain.parent]
        order = self._deepest_first(parents)
        for domain in self.domains:
            above = None if domain.parent is None else self.domains[index[domain.parent]]
            if above is not None and above.level >= domain.level:
                raise InputError(
                    f"a {domain.level.name.lower()} below {above.name!r}, which is a {above.level.name.lower()}",
                    where=Place(domain.name, field="parent"),
                    right="from above: site, ups, row, rack, node",
                )
        domain_of: dict[str, int] = {}
        for k, domain in enumerate(self.domains):
            for node in domain.nodes:
                if node in domain_of:
                    other = names[domain_of[node]]
                    both = (
                        f"named twice by {other!r}" if other == domain.name else f"claimed by {other!r} too"
                    )
                    raise InputError(
                        f"node {node!r} is {both}",
                        where=Place(domain.name, field="nodes"),
                        right="a node is fed by one domain",
                    )
                if node not in self.idle_w:
                    raise InputError(
                        f"unknown node {node!r}",
                        where=Place(domain.name, field="nodes"),
                        right="name nodes that exist",
                    )
                domain_of[node] = k
        for node, watts in self.idle_w.items():
            if not 0.0 <= watts < math.inf:
                raise InputError(f"{watts:g} W idle", where=node, right="it must be 0 or more")
        parents.setflags(write=False)
        object.__setattr__(self, "_index", MappingProxyType(index))
        object.__setattr__(self, "_domain_of", MappingProxyType(domain_of))
        object.__setattr__(self, "parents", parents)
        object.__setattr__(self, "deepest_first", order)
        self._refuse_below_idle()
        for transfer in self.transfers:
            of, to = self.index(transfer.of), self.index(transfer.to)
            if of == to or not 0.0 < transfer.ratio <= 1.0 or math.isinf(self.domains[to].breaker_w):
                raise InputError(
                    f"{transfer.ratio:g} of {transfer.of!r} moves to {transfer.to!r}",
                    where="transfers",
                    right="a share above 0 and at most 1, to another domain whose breaker_w is given",
                )

    def _deepest_first(self, parents: Numbers) -> tuple[int, ...]:
        """Order the domains; refuses a cycle by naming it."""
        depth = [-1] * len(self.domains)
        above = parents.tolist()
        for start in range(len(above)):
            path: list[int] = []
            k = start
            while k >= 0 and depth[k] < 0:
                if k in path:
                    cycle = " -> ".join(self.domains[j].name for j in (*path[path.index(k) :], k))
                    raise InputError(
                        f"a cycle: {cycle}",
                        where=Place(self.domains[k].name, field="parent"),
                        right="a domain cannot feed itself",
                    )
                path.append(k)
                k = above[k]
            base = depth[k] if k >= 0 else -1
            for step, j in enumerate(reversed(path), start=1):
                depth[j] = base + step
        return tuple(sorted(range(len(depth)), key=lambda j: (-depth[j], j)))

    def _refuse_below_idle(self) -> None:
        least = np.array([domain.static_w for domain in self.domains])
        for node, k in self._domain_of.items():
            least[k] += self.idle_w[node]
        for k in self.deepest_first:
            domain = self.domains[k]
            if least[k] > domain.limit_w:
                raise InputError(
                    f"{domain.limit_w:g} W is below what it draws without work ({least[k]:.6g} W)",
                    where=Place(domain.name, field="budget_w"),
                    right="give it a larger budget or fewer nodes",
                )
            if self.parents[k] >= 0:
                least[self.parents[k]] += least[k]

    def index(self, name: str) -> int:
        """Return the index of a domain.

        Raises
        ------
        InputError
            For a name that no domain has.
        """
        if name not in self._index:
            raise InputError(f"unknown domain {name!r}", where="domain", right="name a domain that exists")
        return self._index[name]

    @property
    def fed_nodes(self) -> AbstractSet[str]:
        """Nodes that a domain feeds."""
        return self._domain_of.keys()

    def domain_of(self, node: str) -> int:
        """Return the index of the domain that feeds a node.

        Raises
        ------
        InputError
            For a node that no domain feeds.
        """
        if node not in self._domain_of:
            raise InputError(f"node {node!r} is fed by no domain", where="nodes", right="add it to one")
        return self._domain_of[node]

    def totals(self, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Add up what hangs below each domain, its own share included, [domains]."""
        sums = own.astype(np.float64)
        for k in self.deepest_first:
            if self.parents[k] >= 0:
                sums[self.parents[k]] += sums[k]
        return sums

    def paths(self) -> Numbers:
        """Return each domain and all above it, [domains, depth], filled up with -1."""
        rows = []
        for k in range(len(self.domains)):
            path = [k]
            while self.parents[path[-1]] >= 0:
                path.append(int(self.parents[path[-1]]))
            rows.append(path)
        depth = max(map(len, rows))
        return np.array([path + [-1] * (depth - len(path)) for path in rows], dtype=np.int64)


def _refuse_twice(names: Iterable[str], what: str, right: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{what} {twice[0]!r} is given twice", where="domains", right=right)
