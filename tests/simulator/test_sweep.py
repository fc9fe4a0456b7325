"""Sweeps as values: points, keys, changed scenarios, fronts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.sweep import Sweep, changed, front
from solver.domain.errors import InputError

SCENARIO: dict[str, Any] = {
    "pools": [{"name": "prompt", "count": 2}, {"name": "token", "count": 3}],
    "trace": {"file": "t.csv"},
    "power": None,
}


def test_points_are_the_product_with_the_last_axis_fastest() -> None:
    sweep = Sweep(axes=(("a", (1, 2)), ("b", ("x", "y"))), seeds=(7, 8))
    points = list(sweep.points())
    assert len(points) == len(sweep) == 8
    assert [point.index for point in points] == list(range(8))
    assert [(dict(p.changes)["a"], dict(p.changes)["b"], p.seed) for p in points[:5]] == [
        (1, "x", 7),
        (1, "x", 8),
        (1, "y", 7),
        (1, "y", 8),
        (2, "x", 7),
    ]


def test_keys_depend_on_the_question_and_not_on_the_grid() -> None:
    small = Sweep(axes=(("a", (1,)), ("b", (5,))))
    large = Sweep(axes=(("b", (4, 5)), ("a", (0, 1))))
    keys = {point.key for point in large.points()}
    assert len(keys) == 4
    assert next(iter(small.points())).key in keys


def test_changes_reach_pools_by_name_and_new_fields() -> None:
    done = changed(
        SCENARIO, [("pools.token.count", 9), ("trace.scale", 2.0), ("power.budget_w", 5.0), ("name", "n")]
    )
    assert done["pools"] == [{"name": "prompt", "count": 2}, {"name": "token", "count": 9}]
    assert done["trace"] == {"file": "t.csv", "scale": 2.0}
    assert done["power"] == {"budget_w": 5.0}
    assert done["name"] == "n"
    assert SCENARIO["pools"][1]["count"] == 3
    assert SCENARIO["trace"] == {"file": "t.csv"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "pools.tokens.count",
            "axis pools.tokens.count: no pools member called 'tokens'; one of prompt, token",
        ),
        (
            "pools.token.count.x",
            "axis pools.token.count.x leads through 'count', which has no fields; e.g. trace.scale",
        ),
        ("pools.count", "axis pools.count leads to no field; e.g. trace.scale or pools.NAME.count"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        changed(SCENARIO, [(path, 1)])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("axes", "seeds", "message"),
    [
        ((("a", ()),), (0,), "axis a has no values; a list of at least one value"),
        ((("a", (1, 1)),), (0,), "axis a has a value twice; each value once"),
        ((), (), "repeat_seeds must name at least one seed, each once; e.g. [1, 2, 3]"),
        ((("a", tuple(range(1001))), ("b", tuple(range(1000)))), (0,), "1001000 runs; at most 1000000"),
    ],
)
def test_bad_sweeps_are_refused(axes: Any, seeds: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Sweep(axes=axes, seeds=seeds)
    assert str(caught.value) == message


def _row(change: int, *, met: bool, cost: float, power: float, instances: int) -> dict[str, Any]:
    return {
        "changes": {"a": change},
        "slo_met": met,
        "cost_usd_per_h": cost,
        "power_mean_w": power,
        "instances": instances,
    }


def test_front_needs_every_repetition_to_meet_the_slo() -> None:
    rows = [
        _row(1, met=True, cost=1.0, power=1.0, instances=1),
        _row(1, met=False, cost=1.0, power=1.0, instances=1),
        _row(2, met=True, cost=3.0, power=2.0, instances=2),
        _row(2, met=True, cost=3.0, power=2.5, instances=2),
        _row(3, met=True, cost=3.0, power=2.6, instances=2),
        _row(4, met=True, cost=2.0, power=9.0, instances=4),
    ]
    assert front(rows) == [5, 2]


def test_points_under_another_load_do_not_compete() -> None:
    rows = [
        _row(1, met=True, cost=1.0, power=1.0, instances=1) | {"changes": {"a": 1, "trace.scale": 1.0}},
        _row(1, met=True, cost=9.0, power=9.0, instances=9) | {"changes": {"a": 2, "trace.scale": 2.0}},
        _row(1, met=True, cost=2.0, power=1.0, instances=1) | {"changes": {"a": 2, "trace.scale": 1.0}},
    ]
    assert front(rows) == [0, 1]


@given(
    figures=st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)), max_size=12
    )
)
def test_front_holds_nobody_that_is_beaten(figures: list[tuple[bool, int, int, int]]) -> None:
    rows = [_row(k, met=m, cost=c, power=p, instances=i) for k, (m, c, p, i) in enumerate(figures)]
    kept = front(rows)
    assert all(rows[k]["slo_met"] for k in kept)
    met = [f for f in figures if f[0]]
    for _, cost, power, instances in met:
        assert any(
            figures[k][1] <= cost and figures[k][2] <= power and figures[k][3] <= instances for k in kept
        )
