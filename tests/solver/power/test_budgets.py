"""Shares of a power tree: beside brute force, both backends and the laws that must hold whatever the tree."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power_tree import FailoverTransfer, PowerDomain, PowerLevel, PowerTree
from solver.power.budgets import Consumer, Method, Shares, share_budgets


@st.composite
def problems(
    draw: st.DrawFn, most_w: int = 40, consumers: int = 6, *, whole: bool = False
) -> tuple[PowerTree, list[Consumer]]:
    """Draw a site with rows and racks whose least draws fit."""
    racks = draw(st.integers(1, 4))
    rows = draw(st.integers(1, 2))
    places = ["site", *(f"row{k}" for k in range(rows)), *(f"rack{k}" for k in range(racks))]
    row_of = [draw(st.integers(0, rows - 1)) for _ in range(racks)]
    watts = st.integers(0, most_w) if whole else st.floats(0, most_w).map(lambda w: round(w, 2))
    found = []
    for index in range(draw(st.integers(1, consumers))):
        low, high = sorted((draw(watts), draw(watts)))
        middle = (low + high) // 2 if whole else (low + high) / 2
        bend = draw(st.sampled_from([0.5, 0.75, 1.0]))
        points: tuple[tuple[float, float], ...] = ()
        if low < middle < high and bend > 0.5:
            # Concave wherever the middle is rounded to.
            middle_u = max(bend, (middle - low) / (high - low))
            points = ((low, 0.0), (middle, middle_u), (high, 1.0))
        found.append(
            Consumer(
                name=f"c{index}",
                place=draw(st.sampled_from(places)),
                min_w=low,
                max_w=high,
                priority=draw(st.integers(0, 1)),
                weight=draw(st.sampled_from([1.0, 1.0, 2.0, 0.3])),
                points=points,
            )
        )

    def limit(below: list[str]) -> float:
        mine = [c for c in found if c.place in below]
        least = sum(math.ceil(c.min_w) for c in mine)
        room = draw(st.integers(0, int(sum(c.max_w - c.min_w for c in mine)) + 1))
        return float(max(least + room, 1))

    domains = [PowerDomain(name="site", level=PowerLevel.SITE, budget_w=limit(places))]
    for k in range(rows):
        inside = [f"row{k}", *(f"rack{j}" for j in range(racks) if row_of[j] == k)]
        domains.append(
            PowerDomain(name=f"row{k}", level=PowerLevel.ROW, parent="site", budget_w=limit(inside))
        )
    domains += [
        PowerDomain(
            name=f"rack{k}",
            level=PowerLevel.RACK,
            parent=f"row{row_of[k]}",
            budget_w=limit([f"rack{k}"]),
        )
        for k in range(racks)
    ]
    return PowerTree(domains=tuple(domains)), found


def check_laws(tree: PowerTree, consumers: list[Consumer], shares: Shares) -> None:
    """Whole watts, within what each may draw, and below every limit."""
    assert shares.watts.dtype == np.int64
    for consumer, watts in zip(consumers, shares.watts.tolist(), strict=True):
        assert math.ceil(consumer.min_w - 1e-6) <= watts
        assert watts <= max(math.floor(consumer.max_w + 1e-6), math.ceil(consumer.min_w - 1e-6))
    for domain in tree.domains:
        inside = {domain.name}
        for _ in tree.domains:
            inside |= {d.name for d in tree.domains if d.parent in inside}
        drawn = sum(int(w) for c, w in zip(consumers, shares.watts, strict=True) if c.place in inside)
        assert drawn <= domain.limit_w


def lexicographic(utility: dict[int, float]) -> tuple[float, ...]:
    return tuple(round(utility[rank], 6) for rank in sorted(utility))


@given(problems())
@settings(max_examples=200)
def test_never_above_any_limit_and_as_good_as_the_linear_program(
    drawn: tuple[PowerTree, list[Consumer]],
) -> None:
    tree, consumers = drawn
    filled = share_budgets(tree, consumers)
    check_laws(tree, consumers, filled)
    solved = share_budgets(tree, consumers, method="highs")
    check_laws(tree, consumers, solved)
    for rank, utility in filled.fractional_utility.items():
        assert utility == pytest.approx(solved.fractional_utility[rank], abs=1e-5)


@given(problems(most_w=4, consumers=4, whole=True))
@settings(max_examples=150)
def test_whole_watts_are_the_best_there_are(drawn: tuple[PowerTree, list[Consumer]]) -> None:
    tree, consumers = drawn
    shares = share_budgets(tree, consumers)
    inside = []
    for domain in tree.domains:
        names = {domain.name}
        for _ in tree.domains:
            names |= {d.name for d in tree.domains if d.parent in names}
        inside.append([c.place in names for c in consumers])
    limits = np.array([domain.limit_w for domain in tree.domains])
    best: tuple[float, ...] = ()
    ranges = [range(int(c.min_w), int(c.max_w) + 1) for c in consumers]
    for watts in itertools.product(*ranges):
        if (np.array(inside) @ np.array(watts) <= limits).all():
            utility = {c.priority: 0.0 for c in consumers}
            for c, w in zip(consumers, watts, strict=True):
                utility[c.priority] += c.weight * (c.utility(w) if c.max_w > c.min_w else 1.0)
            best = max(best, lexicographic(utility))
    ours = {c.priority: 0.0 for c in consumers}
    for c, w in zip(consumers, shares.watts.tolist(), strict=True):
        ours[c.priority] += c.weight * (c.utility(w) if c.max_w > c.min_w else 1.0)
    assert lexicographic(ours) == pytest.approx(best, abs=1e-5)


def two_racks(**more: Any) -> PowerTree:
    return PowerTree(
        domains=(
            PowerDomain(name="row", level=PowerLevel.ROW, budget_w=1000.0, **more),
            PowerDomain(name="a", level=PowerLevel.RACK, parent="row", budget_w=600.0, nodes=("n1",)),
            PowerDomain(name="b", level=PowerLevel.RACK, parent="row", budget_w=600.0, nodes=("n2",)),
        ),
        idle_w={"n1": 100.0, "n2": 100.0},
    )


def on(node: str, name: str = "", **more: Any) -> Consumer:
    return Consumer(name=name or node, place=node, min_w=100.0, max_w=700.0, **more)


def test_equals_share_equally() -> None:
    shares = share_budgets(two_racks(), [on("n1"), on("n2")])
    assert shares.watts.tolist() == [500, 500]
    assert shares.saturated == ("row",)


def test_higher_priority_first_and_never_worse_for_a_lower_one() -> None:
    high, low = on("n1", priority=0), on("n2", priority=1, weight=1000.0)
    assert share_budgets(two_racks(), [high, low]).watts.tolist() == [600, 400]
    alone = share_budgets(two_racks(), [high])
    assert alone.watts.tolist() == [600]
    assert alone.domain_w.tolist() == [700.0, 600.0, 100.0]  # the other node draws without work


def test_what_cannot_be_lowered_is_left_out() -> None:
    shares = share_budgets(two_racks(static_w=250.0), [on("n1"), on("n2")])
    assert shares.watts.tolist() == [375, 375]
    assert shares.domain_w.tolist() == [1000.0, 375.0, 375.0]


def test_budgets_are_scaled_for_events() -> None:
    shares = share_budgets(two_racks(), [on("n1"), on("n2")], factors={"row": 0.75, "a": 0.5})
    assert shares.watts.tolist() == [300, 450]
    assert shares.limit_w.tolist() == [750.0, 300.0, 600.0]
    with pytest.raises(InputError, match="row: budget_w: 150 W is below what must be drawn there"):
        share_budgets(two_racks(), [on("n1"), on("n2")], factors={"row": 0.15})
    with pytest.raises(InputError, match="row: a budget times -1"):
        share_budgets(two_racks(), [on("n1")], factors={"row": -1.0})


@pytest.mark.parametrize("method", ["fill", "highs", "cbc"])
def test_every_method_gives_the_same_utility(method: Method) -> None:
    consumers = [
        Consumer(
            name=f"g{k}",
            place=("n1", "n2")[k % 2],
            min_w=60.0,
            max_w=400.0,
            weight=1.0 + k / 10,
            priority=k % 3 == 0,
            points=((60.0, 0.0), (200.0, 0.7), (400.0, 1.0)),
        )
        for k in range(6)
    ]
    shares = share_budgets(two_racks(), consumers, method=method)
    check = share_budgets(two_racks(), consumers)
    for rank, utility in check.fractional_utility.items():
        assert shares.fractional_utility[rank] == pytest.approx(utility, abs=1e-4)
    assert shares.domain_w[0] <= 1000.0


def test_every_single_failure_is_borne() -> None:
    ups = tuple(
        PowerDomain(name=f"u{k}", level=PowerLevel.UPS, budget_w=1000.0, breaker_w=1000.0) for k in range(3)
    )
    tree = PowerTree(
        domains=ups,
        transfers=tuple(
            FailoverTransfer(of=a.name, to=b.name, ratio=0.5) for a in ups for b in ups if a is not b
        ),
    )
    consumers = [
        Consumer(name=f"c{k}", place=f"u{k}", min_w=0.0, max_w=1000.0, weight=(3.0, 1.0, 1.0)[k])
        for k in range(3)
    ]
    shares = share_budgets(tree, consumers)
    watts = shares.watts
    assert shares.method == "highs"
    for a, b in itertools.permutations(range(3), 2):
        assert watts[b] + 0.5 * watts[a] <= 1000
    # Max 3a + b + c with b + a/2, c + a/2, a + b/2, a + c/2, b + c/2 ... <= 1000: a = 1000 leaves 0 or 500.
    other = share_budgets(tree, consumers, method="cbc")
    assert shares.fractional_utility[0] == pytest.approx(other.fractional_utility[0], abs=1e-4)
    with pytest.raises(InputError, match="transfers need a linear program"):
        share_budgets(tree, consumers, method="fill")
    stuck = [Consumer(name=f"c{k}", place=f"u{k}", min_w=900.0, max_w=1000.0) for k in range(3)]
    with pytest.raises(InputError, match="room for every failure"):
        share_budgets(tree, stuck)


def test_two_thousand_gpus_below_four_levels() -> None:
    domains = [PowerDomain(name="site", level=PowerLevel.SITE, budget_w=800_000.0)]
    consumers = []
    for row in range(5):
        domains.append(PowerDomain(name=f"r{row}", level=PowerLevel.ROW, parent="site", budget_w=168_000.0))
        for rack in range(10):
            at = f"r{row}k{rack}"
            domains.append(
                PowerDomain(
                    name=at, level=PowerLevel.RACK, parent=f"r{row}", budget_w=17_600.0, static_w=99.5
                )
            )
            for node in range(5):
                name = f"{at}n{node}"
                domains.append(PowerDomain(name=name, level=PowerLevel.NODE, parent=at, budget_w=3680.0))
                consumers += [
                    Consumer(name=f"{name}g{g}", place=name, min_w=62.5, max_w=500.0, priority=g % 2)
                    for g in range(8)
                ]
    tree = PowerTree(domains=tuple(domains))
    assert len(consumers) == 2000
    shares = share_budgets(tree, consumers)
    assert (shares.domain_w <= shares.limit_w + 1e-6).all()
    solved = share_budgets(tree, consumers, method="highs")
    for rank, utility in shares.fractional_utility.items():
        assert utility == pytest.approx(solved.fractional_utility[rank], rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_w": -1.0}, "-1 to 500 W"),
        ({"min_w": 600.0}, "600 to 500 W"),
        ({"max_w": math.inf}, "to inf W"),
        ({"weight": 0.0}, "weight"),
        ({"points": ((0.0, 0.0), (400.0, 1.0))}, "utility from 0 to 400 W"),
        ({"points": ((0.0, 0.0), (100.0, 0.1), (500.0, 1.0))}, "concave"),
        ({"points": ((0.0, 1.0), (500.0, 0.0))}, "must not fall"),
        ({"points": ((0.0, 0.0), (0.0, 0.5), (500.0, 1.0))}, "rising watts"),
    ],
)
def test_consumers_that_are_none(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Consumer(**{"name": "c", "place": "row", "min_w": 0.0, "max_w": 500.0, **wrong})  # type: ignore[arg-type]


def test_nobody_asks() -> None:
    shares = share_budgets(two_racks(), [])
    assert shares.watts.size == 0
    assert shares.domain_w.tolist() == [200.0, 100.0, 100.0]


def test_consumers_that_hang_nowhere() -> None:
    with pytest.raises(InputError, match="c: place: 'n9' is neither a node nor a domain"):
        share_budgets(two_racks(), [on("n9", "c")])
    with pytest.raises(InputError, match="consumer 'c' is given twice"):
        share_budgets(two_racks(), [on("n1", "c"), on("n2", "c")])
