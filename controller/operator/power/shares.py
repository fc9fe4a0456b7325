"""What each domain of a tree may draw: `solver.power.budgets` with the servers that the domains have.

It exists so that what a parent has goes first where it is worth most: every server without work, then high priority to
its floor, low priority to its floor, high priority to its top, low priority to its top, then whatever is left. Within
a stage servers come to like clocks, since what a watt more is worth falls with the clock. It needs nobody's draw: a
share changes with specs and classes only. `Grants` sees to it that nobody rises before others have fallen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from solver.domain.errors import InputError
from solver.domain.power import ServerPowerModel
from solver.domain.power_tree import PowerDomain, PowerLevel, PowerTree
from solver.power.budgets import Consumer, share_budgets

PIECES = 8
"""A stage's utility is bent so often; shares of like servers differ by less than one piece."""
SETTLE_S = 10.0
"""Those that are told less are below it by then."""
HIGH_FLOOR, LOW_FLOOR, HIGH_TOP, LOW_TOP, REST = range(5)
Watts = tuple[float, float]
"""At other times, and now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """Servers of one class in a domain."""

    servers: int
    floor_mhz: int
    top_mhz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A domain as far as budgets go."""

    name: str
    parent: str | None
    budget_w: float
    factor: float = 1.0
    """Of its budget now: fail-over, schedule, events."""
    static_w: float = 0.0
    server: ServerPowerModel
    low: ClassShare
    high: ClassShare


@lru_cache(maxsize=64)
def shared(parts: tuple[Part, ...]) -> Mapping[str, Watts]:
    """Return what each domain of one tree may draw at other times and now; parents come before their children.

    Raises
    ------
    InputError
        A budget is below what its servers draw without work, or the tree is deeper than site, UPS, row, rack, node.
    """
    tree = PowerTree(
        domains=tuple(
            PowerDomain(
                name=part.name,
                level=_level(part, parts),
                budget_w=part.budget_w,
                parent=part.parent,
                static_w=part.static_w,
            )
            for part in parts
        )
    )
    above = {part.parent for part in parts}
    consumers = [each for part in parts if part.name not in above for each in _consumers(part)]
    factors = {part.name: part.factor for part in parts}
    usual_w = share_budgets(tree, consumers).domain_w.tolist()
    now_w = usual_w
    if any(factor != 1.0 for factor in factors.values()):
        try:
            now_w = share_budgets(tree, consumers, factors=factors).domain_w.tolist()
        except InputError:  # for a while there is less than servers draw without work: everybody less alike
            now_w = [watts * _least_factor(part, parts) for watts, part in zip(usual_w, parts, strict=True)]
    found: dict[str, Watts] = {}
    for part, usual, now in zip(parts, usual_w, now_w, strict=True):
        most = (usual, now)
        if part.name in above:  # its children are told less, its breaker stays what it is
            most = (math.inf, math.inf) if part.parent is None else found[part.parent]
        found[part.name] = (min(part.budget_w, most[0]), min(part.budget_w * part.factor, most[1]))
    return found


def _path(part: Part, parts: Sequence[Part]) -> list[Part]:
    """Return a domain and those above it."""
    by_name = {each.name: each for each in parts}
    found = [part]
    while (above := found[-1].parent) is not None:
        found.append(by_name[above])
    return found


def _least_factor(part: Part, parts: Sequence[Part]) -> float:
    return min(each.factor for each in _path(part, parts))


def _level(part: Part, parts: Sequence[Part]) -> PowerLevel:
    depth = len(_path(part, parts)) - 1
    if depth >= len(PowerLevel):
        raise InputError(f"{depth + 1} levels", where=part.name, right="site, ups, row, rack, node at most")
    return PowerLevel(depth)


def _consumers(part: Part) -> Iterator[Consumer]:
    server, most_w = part.server, part.static_w
    for each, to_floor, to_top in ((part.high, HIGH_FLOOR, HIGH_TOP), (part.low, LOW_FLOOR, LOW_TOP)):
        if not each.servers:
            continue
        idle_w, floor_w, top_w = server.idle_w, server.worst_w(each.floor_mhz), server.worst_w(each.top_mhz)
        most_w += each.servers * top_w
        yield _stage(part, to_floor, each.servers, idle_w, floor_w, least_w=idle_w)
        yield _stage(part, to_top, each.servers, floor_w, top_w, least_w=0.0)
    yield Consumer(
        name=f"{part.name}/rest",
        place=part.name,
        min_w=0.0,
        max_w=max(part.budget_w - most_w, 0.0),
        priority=REST,
    )


def _stage(
    part: Part, priority: int, servers: int, from_w: float, to_w: float, *, least_w: float
) -> Consumer:
    """Return so many servers on their way from one worst case to another; worth is the clock: u = (w - idle)^(1/e)."""
    server = part.server
    points: tuple[tuple[float, float], ...] = ()
    if server.exponent > 1.0 and to_w > from_w:
        steps = [from_w + (to_w - from_w) * k / PIECES for k in range(PIECES + 1)]
        span_w = server.worst_w(server.max_mhz) - server.idle_w
        worth = [(max(w - server.idle_w, 0.0) / span_w) ** (1.0 / server.exponent) for w in steps]
        points = tuple(
            (servers * (w - from_w + least_w), servers * (u - worth[0]))
            for w, u in zip(steps, worth, strict=True)
        )
    min_w, max_w = servers * least_w, servers * (to_w - from_w + least_w)
    if points:
        min_w, max_w = points[0][0], points[-1][0]
    return Consumer(
        name=f"{part.name}/{priority}",
        place=part.name,
        min_w=min_w,
        max_w=max_w,
        priority=priority,
        weight=1.0 if points else float(servers),
        points=points,
    )


@dataclass(slots=True, kw_only=True)
class Grants:
    """What domains were told that they may draw; one tree's sum is never above its parent's while shares move."""

    _given: dict[str, Watts] = field(default_factory=dict)
    _fell_s: dict[str, float] = field(default_factory=dict)
    """By parent: when one of its children was told less."""

    def settled(
        self, wanted: Mapping[str, Watts], parents: Mapping[str, str | None], now_s: float
    ) -> dict[str, Watts]:
        """Return what holds now: who gets less does at once, who gets more waits until the others have fallen."""
        for gone in self._given.keys() - wanted.keys():
            del self._given[gone]
        for settled in [parent for parent, at_s in self._fell_s.items() if now_s - at_s >= SETTLE_S]:
            del self._fell_s[settled]
        for name, watts in wanted.items():
            before = self._given.get(name)
            if before is not None and watts[1] < before[1] - 0.5:
                for parent in _above(name, parents):
                    self._fell_s[parent] = now_s
        for name, watts in wanted.items():
            before = self._given.get(name)
            waits = any(now_s - self._fell_s.get(p, -SETTLE_S) < SETTLE_S for p in _above(name, parents))
            if before is None or watts[1] <= before[1] or not waits:
                self._given[name] = watts
        return {name: self._given[name] for name in wanted}


def _above(name: str, parents: Mapping[str, str | None]) -> list[str]:
    found: list[str] = []
    at = parents.get(name)
    while at is not None and at not in found:
        found.append(at)
        at = parents.get(at)
    return found
