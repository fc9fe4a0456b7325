"""Where requests go: lanes of pools that serve whole requests together, and what they carry."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.closed_loop.gate import rehearse_change
from controller.closed_loop.lanes import apart, drawn_lanes, lanes_of, whole_requests
from controller.cluster_fleet import resolve
from simulator.scenario import Scenario
from simulator.splitwise.machines import SplitwiseFleet
from tests.controller.closed_loop.days import APART, SPLIT, VALUES, catalogues, requests, scenario

RATES = st.lists(st.sampled_from((0.0, 0.5, 2.0, 7.0)), min_size=4, max_size=4)


def split() -> Scenario:
    """Pools: whole, in (prefill), out and fast (decode)."""
    return scenario(pools=SPLIT)


def test_pools_of_one_phase_are_one_lane() -> None:
    assert [(lane.number, lane.decodes) for lane in lanes_of(split())] == [(0, ()), (1, (2, 3))]
    assert [(lane.number, lane.decodes) for lane in lanes_of(scenario(pools=APART))] == [(0, (1, 2))]
    assert [lane.number for lane in lanes_of(scenario())] == [0, 1]


@given(RATES)
def test_split_pools_carry_the_least_of_both_phases(rates: list[float]) -> None:
    told = whole_requests(split(), np.array([rates]))[0]
    whole, first, *decodes = rates
    assert told[0] == whole
    assert told.sum() == pytest.approx(whole + min(first, sum(decodes)))
    assert told[1] == pytest.approx(told[2:].sum())
    assert (told >= 0.0).all()


def drawn(rates: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Draw the lanes of many requests with one row of weights."""
    number = 20_000
    lanes = drawn_lanes(
        split(),
        np.zeros(number, dtype=np.int64),
        np.array([rates]),
        np.zeros(number, dtype=np.int64),
        seed=1,
    )
    assert lanes is not None
    return lanes


def test_lanes_are_drawn_by_what_they_carry() -> None:
    shares = np.bincount(drawn([3.0, 9.0, 0.0, 1.0]), minlength=4) / 20_000
    assert shares == pytest.approx([0.75, 0.25, 0.0, 0.0], abs=0.01)
    assert set(drawn([3.0, 9.0, 0.0, 0.0]).tolist()) == {0}
    assert set(drawn([0.0, 9.0, 2.0, 0.0]).tolist()) == {1}


def test_a_model_with_one_lane_needs_no_draw() -> None:
    alone = scenario(pools=APART)
    few = np.zeros(5, dtype=np.int64)
    assert drawn_lanes(alone, few, np.ones((1, 3)), few, seed=0) is None


def test_a_lane_is_a_model_of_its_own_to_the_engine() -> None:
    cluster = resolve(split(), catalogues(), longest_prompt_tokens=2000)
    assert not isinstance(cluster.fleet, SplitwiseFleet)
    assert [pool.model for pool in apart(cluster.fleet).pools] == [0, 1, 1, 1]


def test_a_change_from_whole_to_split_is_rehearsed() -> None:
    window = requests((6.0,))
    few = np.zeros(len(window), dtype=np.int64)
    carried = {"whole": 3.5, "in": 10.0, "out": 3.0, "fast": 5.0}

    def ratio(planned: dict[str, int]) -> float:
        found = rehearse_change(
            split(), catalogues(), window, few, running={"whole": 2}, planned=planned, carried_rps=carried
        )
        assert found.planned_ratio is not None
        return found.planned_ratio

    assert ratio({"in": 1, "fast": 2}) > 0.97
    assert ratio({"in": 1, "out": 1}) < 0.9
    assert ratio({"whole": 1, "in": 1, "out": 2}) > 0.9


def test_whole_pools_are_lanes_of_their_own() -> None:
    assert np.array_equal(whole_requests(scenario(), np.array([1.0, 2.0])), [1.0, 2.0])
    assert len(VALUES["pools"]) == len(lanes_of(scenario()))
