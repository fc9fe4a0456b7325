"""The rate to have capacity for: which windows it is for, how rarely it is exceeded, what little history gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.rate_windows import RateWindows
from solver.forecast.capacity import capacity_rate, carried_windows
from solver.forecast.follow import DEGRADED, Settings
from solver.forecast.newsvendor import violations_from_cost


def history(rate_rps: np.ndarray, window_s: float = 600.0, start_s: float = 0.0) -> RateWindows:
    return RateWindows(name="m", start_s=start_s, window_s=window_s, rate_rps=rate_rps)


def wandering(windows: int, seed: int = 1, day: int = 144) -> np.ndarray:
    """Return a daily pattern with noise that remembers."""
    draw = np.random.default_rng(seed)
    noise = np.zeros(windows)
    for i in range(1, windows):
        noise[i] = 0.8 * noise[i - 1] + 0.05 * draw.standard_normal()
    rates: np.ndarray = 100 * np.exp(0.5 * np.sin(2 * np.pi * np.arange(windows) / day) + noise)
    return rates


@pytest.mark.parametrize(
    ("lead_s", "hold_s", "expected"),
    [
        (600, None, [1]),
        (1800, None, [3]),
        (60, None, [1]),
        (720, 600, [1, 2]),
        (1800, 1800, [1, 2, 3]),
        (1200, 9000, [1, 2]),
        (601, 1, [2]),
        (1900, 600, [3, 4]),
    ],
)
def test_carried_windows_end_at_the_lead(lead_s: float, hold_s: float | None, expected: list[int]) -> None:
    assert list(carried_windows(600.0, lead_s=lead_s, hold_s=hold_s)) == expected


@pytest.mark.parametrize(
    ("lead_s", "hold_s"), [(0, None), (-1, None), (np.nan, None), (600, 0), (600, np.inf)]
)
def test_lead_and_hold_must_be_positive(lead_s: float, hold_s: float | None) -> None:
    with pytest.raises(InputError, match="positive number of seconds"):
        carried_windows(600.0, lead_s=lead_s, hold_s=hold_s)


def test_a_lead_beyond_all_records_is_refused_before_it_is_walked_through() -> None:
    with pytest.raises(InputError, match=r"a lead of 1e\+09 s in windows of 600 s"):
        capacity_rate(history(np.ones(300)), lead_s=1e9, hold_s=1e9)


def test_short_history_falls_back_and_says_so() -> None:
    answer = capacity_rate(history(np.array([3.0, np.nan, 2.0])), lead_s=600)
    assert answer.rule == "max of last 3"
    assert answer.fallback == "short history: 2 recorded windows, 100 teach a quantile of 0.99"
    assert answer.rate_rps >= 3.0


def test_a_day_and_a_half_is_enough_for_a_rule() -> None:
    assert capacity_rate(history(wandering(216)), lead_s=600).fallback is None


def test_nothing_recorded_is_an_error() -> None:
    with pytest.raises(InputError, match="no window of 'm' was recorded"):
        capacity_rate(history(np.full(5, np.nan)), lead_s=600)


@pytest.mark.parametrize("violations", [0, 1, np.nan, -0.1])
def test_violations_are_a_probability(violations: float) -> None:
    with pytest.raises(InputError, match="a probability from"):
        capacity_rate(history(np.ones(5)), lead_s=600, violations=violations)


@pytest.mark.parametrize("rate", [-1.0, np.inf])
def test_an_impossible_rate_is_named(rate: float) -> None:
    with pytest.raises(InputError, match="in window 1 of 'm'"):
        capacity_rate(history(np.array([1.0, rate, 1.0])), lead_s=600)


@pytest.mark.parametrize("rate", [7.0, 0.0])
def test_constant_traffic_needs_no_margin(rate: float) -> None:
    answer = capacity_rate(history(np.full(300, rate)), lead_s=1800)
    assert answer.rate_rps == pytest.approx(rate, abs=0.01)
    assert answer.fallback is None


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    windows=st.integers(1, 400),
    gaps=st.floats(0, 0.5),
    scale=st.floats(1e-3, 1e4),
    lead_s=st.sampled_from([60.0, 600.0, 1800.0, 7000.0]),
)
def test_the_answer_is_bounded_whatever_was_recorded(
    seed: int, windows: int, gaps: float, scale: float, lead_s: float
) -> None:
    draw = np.random.default_rng(seed)
    rates = scale * draw.lognormal(0, 1, windows)
    rates[draw.random(windows) < gaps] = np.nan
    rates[draw.integers(windows)] = scale
    answer = capacity_rate(history(rates), lead_s=lead_s)
    assert 0 <= answer.rate_rps <= 1.5 * np.nanmax(rates) + 0.01


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 320), max_size=4), dropped=st.integers(0, 40)
)
def test_going_on_gives_what_starting_anew_gives(seed: int, cuts: list[int], dropped: int) -> None:
    rates = wandering(320, seed)
    rates[100:110] = np.nan
    learnt = None
    for cut in sorted(cuts):
        learnt = capacity_rate(history(rates[:cut]), lead_s=1200, earlier=learnt).learnt
    anew = capacity_rate(history(rates), lead_s=1200)
    went_on = capacity_rate(history(rates), lead_s=1200, earlier=learnt)
    assert went_on.rate_rps == pytest.approx(anew.rate_rps)
    assert went_on.rule == anew.rule
    # Windows that fell out at the front do no harm; a record that is another one is learnt anew.
    moved = history(rates[dropped:], start_s=600.0 * dropped)
    assert np.isfinite(capacity_rate(moved, lead_s=1200, earlier=anew.learnt).rate_rps)
    other = capacity_rate(history(rates * 2), lead_s=1200, earlier=anew.learnt)
    assert other.rate_rps == pytest.approx(capacity_rate(history(rates * 2), lead_s=1200).rate_rps)


def test_decisions_do_not_look_ahead() -> None:
    rates = wandering(400)
    changed = rates.copy()
    changed[300:] *= 5
    one, two = (capacity_rate(history(r), lead_s=1800).learnt.capacity_rps for r in (rates, changed))
    np.testing.assert_allclose(one[:300], two[:300])


def test_a_recording_gap_does_no_harm() -> None:
    """A half-recorded window after a gap would ask for a margin of hundreds."""
    rates = wandering(500) * 20
    with_gap = rates.copy()
    with_gap[400:420] = 0
    with_gap[420] = 14.0
    clean, gapped = (capacity_rate(history(r), lead_s=600).rate_rps for r in (rates, with_gap))
    assert gapped == pytest.approx(clean, rel=0.15)


def test_violations_are_about_as_many_as_asked_for() -> None:
    rates = wandering(3000)
    caps = capacity_rate(history(rates), lead_s=600, violations=0.05).learnt.capacity_rps
    assert 0.03 < np.mean(rates[1001:] > caps[1000:-1]) < 0.07


def test_a_pattern_that_repeats_is_played_by_the_rule_that_knows_it() -> None:
    """Bursts at the same time of every day: the tournament leaves the blend for the day before."""
    draw = np.random.default_rng(3)
    day = np.where(draw.random(144) < 0.2, 400.0, 100.0)
    rates = np.tile(day, 9) * draw.uniform(0.98, 1.02, 9 * 144)
    answer = capacity_rate(history(rates), lead_s=1800)
    assert answer.rule in {"same time yesterday", "same time last week"}


def test_capacity_falls_only_when_the_lower_plan_holds() -> None:
    rates = wandering(400)
    caps = capacity_rate(history(rates), lead_s=600).learnt.capacity_rps
    slow = capacity_rate(history(rates), lead_s=600, settings=Settings(scale_down_windows=3))
    expected = np.max([caps[2:], caps[1:-1], caps[:-2]], axis=0)
    np.testing.assert_allclose(slow.learnt.capacity_rps[2:], expected)


def test_the_reactive_rule_takes_over_from_one_that_fails() -> None:
    """The day before is the rule, until bursts come at other times than the day before."""
    draw = np.random.default_rng(3)
    day = np.where(draw.random(144) < 0.2, 400.0, 100.0)
    rates = np.concatenate((np.tile(day, 9), np.where(draw.random(72) < 0.2, 400.0, 100.0)))
    answer = capacity_rate(history(rates * draw.uniform(0.98, 1.02, len(rates))), lead_s=1800)
    assert answer.learnt.standing_in[-1] == DEGRADED
    assert answer.rule == "max of last 3"
    assert answer.fallback is not None
    assert "failed too often" in answer.fallback


def test_newsvendor_level() -> None:
    # 2 USD/h against 1 request/s of 0.01 USD: 36 USD/h lost without it.
    assert violations_from_cost(
        cost_usd_per_replica_h=2, penalty_usd_per_request=0.01, replica_rps=1
    ) == pytest.approx(2 / 36)
    with pytest.raises(InputError, match="saves at most"):
        violations_from_cost(cost_usd_per_replica_h=40, penalty_usd_per_request=0.01, replica_rps=1)
    with pytest.raises(InputError, match="penalty"):
        violations_from_cost(cost_usd_per_replica_h=2, penalty_usd_per_request=0, replica_rps=1)
