"""Trees of power: what is a tree, and one line for what is none."""

from typing import Any

import numpy as np
import pytest

from solver.domain.errors import InputError
from solver.domain.power_tree import FailoverTransfer, PowerDomain, PowerLevel, PowerTree


def domain(name: str, level: PowerLevel, parent: str | None = None, **more: Any) -> PowerDomain:
    return PowerDomain(name=name, level=level, parent=parent, **{"budget_w": 1000.0, **more})


def site_with_two_rows() -> tuple[PowerDomain, ...]:
    return (
        domain("rack", PowerLevel.RACK, "row-a", nodes=("n1", "n2"), static_w=5.0),
        domain("row-a", PowerLevel.ROW, "site"),
        domain("row-b", PowerLevel.ROW, "site", nodes=("n3",)),
        domain("site", PowerLevel.SITE),
    )


def test_sums_and_paths() -> None:
    tree = PowerTree(domains=site_with_two_rows(), idle_w={"n1": 1.0, "n2": 2.0, "n3": 3.0})
    assert tree.parents.tolist() == [1, 3, 3, -1]
    assert tree.paths().tolist() == [[0, 1, 3], [1, 3, -1], [2, 3, -1], [3, -1, -1]]
    assert tree.totals(np.array([1.0, 10.0, 100.0, 1000.0])).tolist() == [1.0, 11.0, 100.0, 1111.0]
    assert tree.domain_of("n2") == tree.index("rack") == 0
    with pytest.raises(InputError, match="fed by no domain"):
        tree.domain_of("n9")
    with pytest.raises(InputError, match="unknown domain"):
        tree.index("n1")


def test_the_limit_is_the_smallest() -> None:
    ups = domain("u", PowerLevel.UPS, breaker_w=1200.0, failover_ratio=0.75, cooling_w=950.0)
    assert ups.limit_w == 900.0
    assert domain("u", PowerLevel.UPS).limit_w == 1000.0


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        ((), "a tree without domains"),
        ((domain("a", PowerLevel.ROW), domain("a", PowerLevel.ROW)), "'a' is given twice"),
        ((domain("a", PowerLevel.ROW, "b"),), "a: parent: unknown parent 'b'"),
        (
            (domain("a", PowerLevel.ROW, "b"), domain("b", PowerLevel.ROW, "a")),
            "a cycle: a -> b -> a",
        ),
        ((domain("a", PowerLevel.ROW, "a"),), "a cycle: a -> a"),
        (
            (domain("a", PowerLevel.ROW), domain("b", PowerLevel.SITE, "a")),
            "a site below 'a', which is a row",
        ),
        (
            (
                domain("a", PowerLevel.ROW, nodes=("n1",)),
                domain("b", PowerLevel.ROW, nodes=("n2", "n1")),
            ),
            "b: nodes: node 'n1' is claimed by 'a' too",
        ),
        ((domain("a", PowerLevel.ROW, nodes=("n1", "n1")),), "named twice by 'a'"),
        ((domain("a", PowerLevel.ROW, nodes=("nobody",)),), "unknown node 'nobody'"),
        (
            (domain("a", PowerLevel.ROW, nodes=("n1", "n2"), budget_w=500.0, static_w=101.0),),
            "a: budget_w: 500 W is below what it draws without work \\(501 W\\)",
        ),
        (
            (
                domain("s", PowerLevel.SITE, budget_w=450.0),
                domain("a", PowerLevel.ROW, "s", nodes=("n1",)),
                domain("b", PowerLevel.ROW, "s", nodes=("n2",), static_w=51.0),
            ),
            "s: budget_w: 450 W is below",
        ),
    ],
)
def test_trees_that_are_none(domains: tuple[PowerDomain, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        PowerTree(domains=domains, idle_w={"n1": 200.0, "n2": 200.0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_w": 0.0},
        {"budget_w": float("nan")},
        {"budget_w": float("inf")},
        {"breaker_w": -1.0},
        {"cooling_w": 0.0},
        {"failover_ratio": 0.0},
        {"failover_ratio": 1.1},
        {"static_w": -1.0},
        {"static_w": float("inf")},
    ],
)
def test_limits_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        domain("a", PowerLevel.ROW, **wrong)


def test_idle_that_is_none() -> None:
    with pytest.raises(InputError, match="n1: -1 W idle"):
        PowerTree(domains=(domain("a", PowerLevel.ROW),), idle_w={"n1": -1.0})


@pytest.mark.parametrize(("to", "ratio"), [("a", 0.5), ("b", 0.0), ("b", 1.5), ("c", 0.5), ("d", 0.5)])
def test_transfers_that_are_none(to: str, ratio: float) -> None:
    ups = (
        domain("a", PowerLevel.UPS, breaker_w=2000.0),
        domain("b", PowerLevel.UPS, breaker_w=2000.0),
        domain("c", PowerLevel.UPS),
    )
    assert PowerTree(domains=ups, transfers=(FailoverTransfer(of="a", to="b", ratio=1.0),)).transfers
    with pytest.raises(InputError, match=r"transfers|unknown domain"):
        PowerTree(domains=ups, transfers=(FailoverTransfer(of="a", to=to, ratio=ratio),))
