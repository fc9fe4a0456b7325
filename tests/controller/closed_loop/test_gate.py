"""A change is rehearsed on the last window: refused where the SLO would be kept less than now, and less than asked."""

import numpy as np

from controller.closed_loop.gate import FEWEST_REQUESTS, Rehearsed, rehearse_change, window_before
from solver.domain.trace import Requests
from tests.controller.closed_loop.days import catalogues, history, planned, requests, scenario

CARRIED = {"h100": 3.5, "a100": 1.4}


def rehearsed(window: Requests, running: dict[str, int], wanted: dict[str, int]) -> Rehearsed:
    """Rehearse with the scenario of the tests."""
    return rehearse_change(
        scenario(),
        catalogues(),
        window,
        np.zeros(len(window), dtype=np.int64),
        running=running,
        planned=wanted,
        carried_rps=CARRIED,
    )


def test_too_few_instances_are_refused_and_enough_are_not() -> None:
    window = requests((9.0,))
    bad = rehearsed(window, {"h100": 4, "a100": 0}, {"h100": 1, "a100": 0})
    assert not bad.allowed
    assert bad.running_ratio is not None
    assert bad.planned_ratio is not None
    assert bad.planned_ratio < 0.9 < bad.running_ratio
    assert rehearsed(window, {"h100": 5}, {"h100": 4, "a100": 1}).allowed
    assert rehearsed(window, {"h100": 1}, {"h100": 2}).allowed  # better than what runs, whatever it comes to
    assert rehearsed(window, {"h100": 4}, {}).planned_ratio == 0.0


def test_without_enough_requests_nothing_is_refused() -> None:
    few = requests((0.05,))
    assert len(few) < FEWEST_REQUESTS
    found = rehearsed(few, {"h100": 4}, {"a100": 1})
    assert (found.allowed, found.running_ratio) == (True, None)


def test_the_window_is_the_last_seconds_on_its_own_clock() -> None:
    whole = requests((2.0, 2.0))
    window, rows = window_before(whole, 900.0, 600.0)
    assert np.array_equal(window.arrival_s, whole.arrival_s[rows] - 300.0)
    assert 0.0 <= window.arrival_s[0] < window.arrival_s[-1] < 600.0
    early, _ = window_before(whole, 100.0, 600.0)
    assert early.arrival_s[0] == whole.arrival_s[0]


def test_a_planner_that_rehearses_counts_what_it_refused() -> None:
    course = (9.0, 9.0, 2.0, 2.0, 2.0, 2.0)
    before = [8.0] * 200
    plain = planned(requests(course), history(before), forecast=False)
    assert (plain.rehearsed, plain.refused) == (0, 0)
    careful = planned(requests(course), history(before), forecast=False, rehearse=True)
    assert careful.rehearsed > 0
    assert 0 <= careful.refused <= careful.rehearsed
    last = careful.capacity_rps[-1]
    assert last < careful.capacity_rps[0]  # a saving that keeps the SLO is made
