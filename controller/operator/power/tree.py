"""Which nodes belong to which PowerDomain, what budget the tree leaves each, and which domains cannot be run.

It exists so that mistakes that no schema can see (two domains that claim one node, a tree that bites its tail, nodes
that do not exist) are found in one place and said by name. It is computed from objects; it writes nothing.

Only leaves of the tree have members. How what a parent may draw is shared out is said in
`controller.operator.power.shares`; where that cannot be, because there is less than servers draw without work, it is
split in proportion to budgets.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from controller.operator.power.row import clock_limits, server_of
from controller.operator.power.shares import ClassShare, Part, Watts, shared
from controller.operator.world import Node
from controller.resources.power_domain import PowerDomainSpec
from solver.domain.errors import InputError

CYCLE, PARENT_MISSING, NODE_TAKEN = "TreeCycle", "ParentMissing", "NodeTaken"
NO_NODES, UNKNOWN_NODES = "NoNodes", "UnknownNodes"
NOT_SHARED = "SharesImpossible"
ClassOf = Callable[["Wish", str], int]
"""The class of a node of a domain, counted from the one that is slowed first."""
BUDGET_BELOW_IDLE, INVALID_SPEC, MEMBERS_OF_PARENT = "BudgetBelowIdle", "InvalidSpec", "ParentHasMembers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A PowerDomain as somebody wants it."""

    name: str
    spec: PowerDomainSpec
    made_at: str
    """Creation time: of two that claim a node, the older one has it."""
    factor: float = 1.0
    """Of its budget, now: fail-over and schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A domain in the tree."""

    nodes: tuple[str, ...] = ()
    """Of a leaf, in order of their names; those that are unknown are among them."""
    unknown: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    contract_w: float = 0.0
    """What it may draw at other times: its own budget, or its share of its parent's."""
    budget_w: float = 0.0
    """What it may draw now."""
    refused: tuple[str, str] = ("", "")
    """Reason and message: it is not run."""
    odd: tuple[str, str] = ("", "")
    """Reason and message of what is wrong though it is run."""


def placed(
    wishes: Mapping[str, Wish], nodes: Mapping[str, Node], class_of: ClassOf = lambda _wish, _node: 0
) -> dict[str, Place]:
    """Return every domain's place."""
    parents = {name: wish.spec.parent_ref for name, wish in wishes.items()}
    children: dict[str, list[str]] = {name: [] for name in wishes}
    for name, parent in sorted(parents.items()):
        if parent in children:
            children[parent].append(name)
    looped = {name: cycle for name in wishes if (cycle := _cycle(name, parents))}
    claims = _claims(wishes, nodes, children)
    shares, unshared = _shares(wishes, children, claims, looped, class_of)
    places = {}
    for name, wish in wishes.items():
        members = claims[name]
        kept = tuple(children[name])
        contract_w, budget_w = shares.get(name, (0.0, 0.0))
        places[name] = Place(
            nodes=() if kept else members,
            unknown=tuple(node for node in members if node not in nodes),
            children=kept,
            contract_w=contract_w,
            budget_w=budget_w,
            refused=_refusal(wish, looped.get(name), members, kept, wishes, claims),
            odd=unshared.get(name) or _oddity(wish, members, nodes, wishes),
        )
    return places


def _shares(
    wishes: Mapping[str, Wish],
    children: Mapping[str, list[str]],
    claims: Mapping[str, tuple[str, ...]],
    looped: Mapping[str, tuple[str, ...]],
    class_of: ClassOf,
) -> tuple[dict[str, Watts], dict[str, tuple[str, str]]]:
    """Return contract and budget of every domain, and what is wrong with trees that cannot be shared."""
    found: dict[str, Watts] = {}
    unshared: dict[str, tuple[str, str]] = {}
    for root in wishes:
        if root in looped or wishes[root].spec.parent_ref in wishes:
            continue
        wish = wishes[root]
        if not children[root]:
            found[root] = (wish.spec.budget_watts, wish.spec.budget_watts * wish.factor)
            continue
        below = [root]
        for name in below:  # grows meanwhile: parents before their children
            below += children[name]
        try:
            parts = tuple(_part(wishes[name], claims[name], root, class_of) for name in below)
            found |= shared(parts)
        except InputError as error:
            unshared[root] = (NOT_SHARED, f"split in proportion: {error}".replace("\n", " "))
            found |= {name: _in_proportion(name, wishes, children) for name in below}
    return found, unshared


def _part(wish: Wish, members: tuple[str, ...], root: str, class_of: ClassOf) -> Part:
    spec = wish.spec
    server = server_of(spec)
    limits = [clock_limits(each, server) for each in sorted(spec.classes, key=lambda each: each.priority)]
    counts = Counter(min(class_of(wish, node), 1) for node in members)
    low, high = (
        ClassShare(servers=counts[index], floor_mhz=floor, top_mhz=top or server.max_mhz)
        for index, (floor, top) in ((0, limits[0]), (1, limits[-1]))
    )
    return Part(
        name=wish.name,
        parent=None if wish.name == root else spec.parent_ref,
        budget_w=spec.budget_watts,
        factor=wish.factor,
        static_w=spec.members.static_watts if spec.members else 0.0,
        server=server,
        low=low,
        high=high,
    )


def _cycle(name: str, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the way from a domain to itself, or into a circle above it; empty if there is none."""
    way = [name]
    while (above := parents.get(way[-1])) is not None:
        if above in way:
            return (*way, above)
        way.append(above)
    return ()


def _claims(
    wishes: Mapping[str, Wish], nodes: Mapping[str, Node], children: Mapping[str, list[str]]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, wish in wishes.items():
        members = wish.spec.members
        if members is None or children[name]:
            found[name] = ()
        elif members.nodes is not None:
            found[name] = tuple(sorted(set(members.nodes)))
        else:
            wanted = (members.node_selector or {}).items()
            found[name] = tuple(sorted(node for node, seen in nodes.items() if wanted <= seen.labels.items()))
    return found


def _in_proportion(name: str, wishes: Mapping[str, Wish], children: Mapping[str, list[str]]) -> Watts:
    """Return the contract of a domain and its budget now, with what its ancestors leave it."""
    wish = wishes[name]
    contract_w, budget_w = wish.spec.budget_watts, wish.spec.budget_watts * wish.factor
    parent = wishes.get(wish.spec.parent_ref or "")
    if parent is None:
        return contract_w, budget_w
    static_w = parent.spec.members.static_watts if parent.spec.members else 0.0
    above = [max(watts - static_w, 0.0) for watts in _in_proportion(parent.name, wishes, children)]
    siblings = [wishes[child] for child in children[parent.name]]
    asked = (
        sum(sibling.spec.budget_watts for sibling in siblings),
        sum(sibling.spec.budget_watts * sibling.factor for sibling in siblings),
    )
    shares = [min(1.0, has / wants) if wants > 0 else 1.0 for has, wants in zip(above, asked, strict=True)]
    return contract_w * shares[0], budget_w * shares[1]


def _refusal(  # noqa: PLR0917 - all of it is needed to say why
    wish: Wish,
    cycle: tuple[str, ...] | None,
    members: tuple[str, ...],
    children: tuple[str, ...],
    wishes: Mapping[str, Wish],
    claims: Mapping[str, tuple[str, ...]],
) -> tuple[str, str]:
    if cycle:
        return CYCLE, f"the tree bites its tail: {' → '.join(cycle)}; take one parentRef away"
    if children:
        given = wish.spec.members
        if given is not None and (given.nodes or given.node_selector):
            return MEMBERS_OF_PARENT, f"{children[0]} names it as its parent: give its nodes to its children"
        return "", ""
    for node, owner in _taken(wish, members, wishes, claims):
        return NODE_TAKEN, f"node {node} belongs to the older PowerDomain {owner}: a node has one breaker"
    if not members:
        return (
            NO_NODES,
            "no node has its labels" if wish.spec.members else "it has neither members nor children",
        )
    return "", ""


def _taken(
    wish: Wish,
    members: tuple[str, ...],
    wishes: Mapping[str, Wish],
    claims: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[str, str]]:
    mine = set(members)
    for other, claimed in claims.items():
        rank = (wishes[other].made_at, other)
        if other != wish.name and rank < (wish.made_at, wish.name):
            for node in sorted(mine.intersection(claimed)):
                yield node, other


def _oddity(
    wish: Wish, members: tuple[str, ...], nodes: Mapping[str, Node], wishes: Mapping[str, Wish]
) -> tuple[str, str]:
    unknown = [node for node in members if node not in nodes]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return UNKNOWN_NODES, f"the cluster has no node {unknown[0]}{more}: each counts at its largest draw"
    parent = wish.spec.parent_ref
    if parent is not None and parent not in wishes:
        return PARENT_MISSING, f"there is no PowerDomain {parent}: only its own budget counts"
    return "", ""
