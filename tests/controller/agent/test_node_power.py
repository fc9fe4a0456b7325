"""Orders as they are read: every field, every mistake in one line, and nothing lost between writing and reading."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.node_power import orders_of, spec_of
from solver.domain.errors import InputError
from solver.domain.node_power import Cap, Mode, NodeOrders

SPEC: dict[str, Any] = {
    "generation": 7,
    "renewSequence": 3,
    "leaseDurationSeconds": 15,
    "mode": "Auto",
    "gpus": [{"uuid": "GPU-a", "lockMinMHz": 210, "lockMaxMHz": 1110, "limitWatts": 350}],
    "safe": {"limitWatts": 300, "lockMaxMHz": 1050},
}


def test_a_node_power_is_read_whole() -> None:
    orders = orders_of({"metadata": {"uid": "u-1"}, "spec": SPEC, "status": {"leaseState": "Valid"}}, "x")
    assert orders == NodeOrders(
        source="u-1",
        generation=7,
        renewal=3,
        lease_s=15.0,
        mode=Mode.AUTO,
        gpus={"GPU-a": Cap(max_mhz=1110, min_mhz=210, limit_w=350.0)},
        safe=Cap(max_mhz=1050, limit_w=300.0),
    )


def test_what_is_not_said_is_careful() -> None:
    orders = orders_of({"generation": 1}, "x")
    assert orders.mode is Mode.RECOMMEND
    assert orders.oversubscribed
    assert not orders.release
    assert orders.lease_s == 15.0


def test_several_orders_for_one_gpu_are_their_strictest() -> None:
    gpus = [{"uuid": "GPU-a", "lockMaxMHz": 1305}, {"uuid": "GPU-a", "lockMaxMHz": 1110, "limitWatts": 300}]
    assert orders_of({"generation": 1, "gpus": gpus}, "x").gpus == {"GPU-a": Cap(max_mhz=1110, limit_w=300.0)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generation": None}, "x: spec.generation: missing; a whole number"),
        ({"generation": True}, "x: spec.generation: True; a whole number"),
        ({"generation": 0}, "x: spec.generation: a number too low"),
        ({"leaseDurationSeconds": 0}, "x: spec.leaseDurationSeconds: 0 s; above 0, at most 3600"),
        ({"leaseDurationSeconds": 1e9}, "x: spec.leaseDurationSeconds: 1e+09 s"),
        ({"mode": "auto"}, "x: spec.mode: 'auto'; Recommend or Auto"),
        ({"modus": "Auto"}, "x: spec.modus: unknown field; one of "),
        ({"release": "yes"}, "x: spec.release: 'yes'; true or false"),
        ({"gpus": {}}, "x: spec.gpus: not a list"),
        ({"gpus": [{"lockMaxMHz": 900}]}, "x: spec.gpus[0].uuid: missing"),
        ({"gpus": [{"uuid": "a", "lockMaxMHz": -1}]}, "x: spec.gpus[0].lockMaxMHz: -1; a number above 0"),
        (
            {"gpus": [{"uuid": "a", "limitWatts": float("nan")}]},
            "x: spec.gpus[0].limitWatts: nan; a finite number",
        ),
        ({"gpus": [{"uuid": "a", "mhz": 900}]}, "x: spec.gpus[0].mhz: unknown field"),
        ({"gpus": ["GPU-a"]}, "x: spec.gpus[0]: not a table"),
        ({"safe": {"uuid": "a"}}, "x: spec.safe.uuid: unknown field"),
        ({"lease": "row"}, "x: spec.lease: 'row'; namespace and name of a Lease"),
        ({"lease": {"name": "row"}}, "x: spec.lease: {'name': 'row'}; namespace"),
        ({"budgetWatts": -5}, "x: spec.budgetWatts: -5 W; above 0"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        orders_of({"spec": {**SPEC, **change}}, "x")
    assert str(error.value).startswith(told)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "metadata", "uid", "uuid", *SPEC, "limitWatts", "lockMaxMHz"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_read_is_orders_or_one_line(document: Any) -> None:
    told = ""
    try:
        orders_of(document, "x")
    except InputError as error:
        told = str(error)
    assert "\n" not in told


CAPS = st.builds(
    Cap,
    max_mhz=st.none() | st.integers(1000, 2000),
    min_mhz=st.none() | st.integers(1, 1000),
    limit_w=st.none() | st.floats(1.0, 2000.0),
)
ORDERS = st.builds(
    NodeOrders,
    source=st.just("u"),
    generation=st.integers(1, 2**40),
    renewal=st.integers(0, 2**40),
    lease_s=st.floats(0.1, 3600.0),
    mode=st.sampled_from(Mode),
    gpus=st.dictionaries(st.text(min_size=1, max_size=4), CAPS, max_size=3),
    safe=st.builds(Cap, max_mhz=st.none() | st.integers(1, 2000), limit_w=st.none() | st.floats(1.0, 2000.0)),
    oversubscribed=st.booleans(),
    release=st.booleans(),
    floor_mhz=st.none() | st.integers(1, 2000),
    budget_w=st.none() | st.floats(1.0, 1e5),
    lease=st.sampled_from(["", "ns/row"]),
)


@given(ORDERS)
def test_orders_that_are_written_down_are_read_as_they_were(orders: NodeOrders) -> None:
    written = json.dumps({"metadata": {"uid": "u"}, "spec": spec_of(orders)})
    assert orders_of(json.loads(written), "x") == orders
