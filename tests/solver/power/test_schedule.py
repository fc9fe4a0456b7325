"""Budgets by the clock and by events, beside a plain minute-by-minute reading; ramps that are never broken."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.power.schedule import (
    BudgetSchedule,
    DemandResponse,
    RampLimit,
    TimedFactor,
    band_ratio,
    largest_swing_w,
    ramp_set_points,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "power"
MONDAY = datetime(2026, 6, 1, tzinfo=UTC)


def at(hour: int, minute: int = 0, day: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


def test_times_of_day() -> None:
    night = TimedFactor(cron="0 22 * * *", factor=1.0)
    day = TimedFactor(cron="30 6 * * 1-5", factor=0.8)
    schedule = BudgetSchedule(lines=(night, day))
    assert schedule.at(at(6, 29)) == (1.0, "0 22 * * *")
    assert schedule.at(at(6, 30)) == (0.8, "30 6 * * 1-5")
    assert schedule.at(at(21, 59, day=4))[0] == 0.8
    assert schedule.at(at(12, day=5))[0] == 1.0  # Saturday
    demand = schedule.demand(at(6, 29))
    assert (demand.factor, demand.changes_at, demand.next_factor) == (1.0, at(6, 30), 0.8)


def test_a_lower_budget_is_kept_ahead_and_a_higher_one_not() -> None:
    schedule = BudgetSchedule(
        lines=(TimedFactor(cron="0 8 * * *", factor=0.7), TimedFactor(cron="0 20 * * *", factor=1.0))
    )
    assert schedule.demand(at(7, 59), lead_s=59).factor == 1.0
    assert schedule.demand(at(7, 59), lead_s=60).factor == 0.7
    assert schedule.demand(at(19, 59), lead_s=300).factor == 0.7
    assert schedule.demand(at(20), lead_s=300).factor == 1.0


def test_events_only_lower() -> None:
    event = DemandResponse(name="grid", factor=0.6, deadline=at(9), until=at(10))
    mild = DemandResponse(name="mild", factor=0.9, deadline=at(8), until=at(12))
    schedule = BudgetSchedule(lines=(TimedFactor(cron="0 0 * * *", factor=0.8),), events=(event, mild))
    assert schedule.at(at(8, 59)) == (0.8, "0 0 * * *")
    assert schedule.at(at(9)) == (0.6, "grid")
    assert schedule.at(at(10))[0] == 0.8
    demand = schedule.demand(at(8, 59), lead_s=120)
    assert (demand.factor, demand.reason) == (0.6, "grid")
    assert BudgetSchedule(events=(event,)).demand(at(11)).changes_at is None
    assert BudgetSchedule().demand(at(11)).factor == 1.0


def test_a_short_event_inside_the_lead_counts() -> None:
    events = tuple(
        DemandResponse(name=f"e{k}", factor=factor, deadline=at(9, k), until=at(9, k + 1))
        for k, factor in enumerate((0.9, 0.5, 0.7))
    )
    assert BudgetSchedule(events=events).demand(at(8, 59), lead_s=600).factor == 0.5
    assert BudgetSchedule(events=events).demand(at(8, 59), lead_s=60).factor == 0.9


def plain_matches(cron: str, when: datetime) -> bool:
    """Match one minute by cron's rule, with lists and ranges spelt out by a second parser."""

    def allowed(text: str, low: int, high: int) -> list[int]:
        found = []
        for part in text.split(","):
            body, _, step = part.partition("/")
            start, end = (
                (low, high)
                if body == "*"
                else (int(body.split("-")[0]), int(body.split("-")[-1]) if "-" in body or not step else high)
            )
            found += [value for value in range(start, end + 1) if (value - start) % int(step or 1) == 0]
        return found

    minute, hour, day, month, week = cron.split()
    weekday = (when.weekday() + 1) % 7
    in_month = when.day in allowed(day, 1, 31)
    in_week = weekday in [d % 7 for d in allowed(week, 0, 7)]
    right_day = in_month if week.startswith("*") else in_week if day.startswith("*") else in_month or in_week
    return (
        when.minute in allowed(minute, 0, 59)
        and when.hour in allowed(hour, 0, 23)
        and when.month in allowed(month, 1, 12)
        and right_day
    )


@given(
    minute=st.sampled_from(["0", "*/15", "5,50", "10-12", "*"]),
    hour=st.sampled_from(["*", "0", "7-9", "*/6", "23"]),
    day=st.sampled_from(["*", "1", "15,31"]),
    week=st.sampled_from(["*", "0", "7", "1-5", "6"]),
    now=st.integers(0, 60 * 24 * 60),
)
@settings(max_examples=30)
def test_last_and_next_agree_with_trying_every_minute(
    minute: str, hour: str, day: str, week: str, now: int
) -> None:
    cron = f"{minute} {hour} {day} * {week}"
    line = TimedFactor(cron=cron, factor=1.0)
    start = MONDAY + timedelta(minutes=now)
    before = start
    while not plain_matches(cron, before):
        before -= timedelta(minutes=1)
    assert line.last(start + timedelta(seconds=31)) == before
    after = start + timedelta(minutes=1)
    while not plain_matches(cron, after):
        after += timedelta(minutes=1)
    assert line.next(start) == after


def test_a_leap_day_and_a_zone() -> None:
    line = TimedFactor(cron="0 0 29 2 *", factor=0.5)
    assert line.next(datetime(2096, 3, 1, tzinfo=UTC)).year == 2104
    assert line.last(datetime(2103, 3, 1, tzinfo=UTC)).year == 2096
    zone = ZoneInfo("Europe/Berlin")
    summer = TimedFactor(cron="0 6 * * *", factor=0.5)
    assert summer.next(datetime(2026, 7, 1, 3, 0, tzinfo=UTC).astimezone(zone)).utctimetuple().tm_hour == 4


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "a * * * *",
        "5-1 * * * *",
        "*/0 * * * *",
        "1,,2 * * * *",
        "-1 * * * *",
        "0 0 31 2 *",
        "0 0 30 2 *",
    ],
)
def test_lines_that_are_none(cron: str) -> None:
    with pytest.raises(InputError, match="schedule"):
        TimedFactor(cron=cron, factor=0.5)


def test_factors_and_events_that_are_none() -> None:
    for factor in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="a factor of"):
            TimedFactor(cron="* * * * *", factor=factor)
    with pytest.raises(InputError, match="end after its deadline"):
        DemandResponse(name="e", factor=0.5, deadline=at(9), until=at(9))
    with pytest.raises(InputError, match="lead_s"):
        BudgetSchedule().demand(at(1), lead_s=-1.0)


@given(
    wanted=st.lists(st.floats(0, 300_000), min_size=1, max_size=60),
    rise=st.floats(10, 1e6),
    fall=st.floats(10, 1e6),
    floor=st.floats(0, 50_000),
    room=st.floats(0, 250_000),
)
def test_ramps_are_never_broken(
    wanted: list[float], rise: float, fall: float, floor: float, room: float
) -> None:
    limit = RampLimit(rise_w_per_s=rise, fall_w_per_s=fall, floor_w=floor, ceiling_w=floor + room)
    ramped = ramp_set_points(np.array(wanted), 0.1, limit)
    steps = np.diff(ramped.drawn_w)
    assert (steps <= 0.1 * rise + 1e-6).all()
    assert (steps >= -0.1 * fall - 1e-6).all()
    assert ramped.drawn_w.min() >= floor
    assert ramped.drawn_w.max() <= floor + room + 1e-9
    assert (ramped.secondary_w >= 0.0).all()
    work = np.minimum(wanted, ramped.cap_w)
    assert np.allclose(work + ramped.secondary_w, ramped.drawn_w)


def test_a_ramp_wide_enough_changes_nothing() -> None:
    wanted = np.array([100.0, 200.0, 150.0])
    ramped = ramp_set_points(wanted, 1.0, RampLimit(rise_w_per_s=100.0, fall_w_per_s=50.0))
    assert np.array_equal(ramped.drawn_w, wanted)
    assert ramped.secondary_j == 0.0
    slow = ramp_set_points(wanted, 1.0, RampLimit(rise_w_per_s=50.0, fall_w_per_s=10.0), before_w=100.0)
    assert slow.drawn_w.tolist() == [100.0, 150.0, 150.0]
    dip = ramp_set_points(np.array([100.0, 0.0, 100.0]), 2.0, RampLimit(rise_w_per_s=9.0, fall_w_per_s=10.0))
    assert dip.drawn_w.tolist() == [100.0, 80.0, 98.0]
    assert dip.secondary_j == 160.0


def test_swings_and_bands() -> None:
    series = np.array([0.0, 10.0, 0.0, 30.0])
    assert largest_swing_w(series, 1.0, 1.0) == 30.0
    assert largest_swing_w(np.array([0.0, 10.0, 20.0, 30.0]), 1.0, 2.0) == 20.0
    assert largest_swing_w(series[:1], 1.0, 2.0) == 0.0
    t_s = np.arange(0, 100, 0.1)
    wave = 5.0 + np.sin(2 * np.pi * 0.5 * t_s) + 0.5 * np.sin(2 * np.pi * 2.0 * t_s)
    assert band_ratio(wave, 0.1, 0.4, 0.6) == pytest.approx(0.8, abs=1e-6)
    assert band_ratio(np.full(50, 3.0), 0.1, 0.1, 1.0) == 0.0


def test_ramps_that_are_none() -> None:
    good = RampLimit(rise_w_per_s=1.0, fall_w_per_s=1.0)
    for wrong in ({"rise_w_per_s": 0.0}, {"fall_w_per_s": -1.0}, {"floor_w": -1.0}, {"ceiling_w": -1.0}):
        with pytest.raises(InputError):
            RampLimit(**{"rise_w_per_s": 1.0, "fall_w_per_s": 1.0, **wrong})
    for series in ([], [1.0, float("nan")], [-1.0]):
        with pytest.raises(InputError, match="no series of powers"):
            ramp_set_points(np.array(series), 1.0, good)
    with pytest.raises(InputError, match="period_s"):
        ramp_set_points(np.array([1.0]), 0.0, good)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared recordings are not beside this checkout")
def test_the_recorded_training_row_is_smoothed() -> None:
    table = np.loadtxt(DATA / "training_row40_100ms.csv.gz", delimiter=",", skiprows=1)
    wanted = table[:, 1]
    ramped = ramp_set_points(wanted, 0.1, RampLimit(rise_w_per_s=5000.0, fall_w_per_s=5000.0))
    assert largest_swing_w(ramped.drawn_w, 0.1, 2.0) <= 10_000.1 < largest_swing_w(wanted, 0.1, 2.0)
    assert ramped.secondary_j < 0.2 * wanted.sum() * 0.1
