"""How many servers a budget holds: the published answers, a plain second reading of the criterion, and its laws."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER, Priority, reference_priorities
from solver.domain.power_trace import RowPowerTrace, ServerPowerTrace
from solver.power.admission import (
    AdmissionQuestion,
    admit_servers,
    breaker_servers,
    peak_allowance_ratio,
    risk_minutes_per_year,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "power"
Floats = npt.NDArray[np.float64]
KW_260 = AdmissionQuestion(budget_w=260_000.0)


def of_servers(server_w: Floats, period_s: float = 10.0) -> ServerPowerTrace:
    return ServerPowerTrace(
        name="made up",
        t_s=period_s * np.arange(len(server_w), dtype=np.float64),
        period_s=period_s,
        server_w=server_w,
        servers=tuple(f"s{k}" for k in range(server_w.shape[1])),
    )


def drawn(seed: int, *, hours: int = 3, servers: int = 12, period_s: float = 10.0) -> ServerPowerTrace:
    draw = np.random.default_rng(seed)
    samples = int(hours * 3600 / period_s)
    common = 300.0 * np.sin(np.arange(samples) / 200.0)[:, None]
    return of_servers(
        np.clip(4500.0 + common + 350.0 * draw.standard_normal((samples, servers)), 0, None), period_s
    )


def plain_risk(maxima: list[float]) -> float:
    """Read the criterion word by word."""
    rising = sorted(maxima)
    h = rising[math.ceil(0.95 * len(rising)) - 1]
    if h >= 1.0:
        return 525_600.0 * sum(m > 1.0 for m in maxima) / len(maxima)
    above = [m - h for m in maxima if m > h]
    if not above:
        return 0.0
    e = sum(above) / len(above)
    return 525_600.0 * len(above) / len(maxima) * math.exp(-(1.0 - h) / e)


def plain_servers(server_w: Floats, budget_w: float, period_s: float, most: float) -> int:
    """Count up by the published rule."""
    per_minute = int(60 / period_s)
    minutes = len(server_w) // per_minute
    for n in range(1, server_w.shape[1] + 1):
        u = (1.0 + peak_allowance_ratio(period_s)) * server_w[:, :n].sum(axis=1) / budget_w
        if plain_risk([float(u[k * per_minute : (k + 1) * per_minute].max()) for k in range(minutes)]) > most:
            return n - 1
    return int(server_w.shape[1])


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared recordings are not beside this checkout")
def test_answers_of_the_reference_recordings() -> None:
    table = np.loadtxt(DATA / "server_power_day_10s.csv.gz", delimiter=",", skiprows=1)
    day = ServerPowerTrace(
        name="day",
        t_s=table[:, 0],
        period_s=10.0,
        server_w=table[:, 1:],
        servers=tuple(map(str, range(60))),
    )
    answer = admit_servers(day, KW_260)
    assert (answer.without.servers, answer.servers_with_capping) == (49, 54)
    assert answer.binding == "risk at the floors"
    assert answer.without.risk_minutes_per_year == pytest.approx(0.56, abs=0.01)
    assert answer.without.next_risk_minutes_per_year == pytest.approx(20, abs=0.5)
    assert answer.at_floors is not None
    assert answer.at_floors.risk_minutes_per_year == pytest.approx(0.47, abs=0.005)
    assert answer.at_floors.next_risk_minutes_per_year == pytest.approx(22, abs=0.5)
    for curve, recourse_s in (("fast_thermal_135pct_60s", 46.0), ("ups_failover_133pct_10s", 8.0)):
        asked = replace(KW_260, curve=BREAKER_CURVES[curve], recourse_s=recourse_s)
        bound = admit_servers(day, asked)
        assert (bound.servers_with_capping, bound.binding, bound.without.servers) == (48, "breaker", 49)
    week = np.loadtxt(DATA / "row40_week_2s.csv.gz", delimiter=",", skiprows=1)
    scaled = RowPowerTrace(name="week", t_s=week[:, 0], period_s=2.0, row_w=week[:, 1], servers=40)
    answer = admit_servers(scaled, replace(KW_260, warm_up_s=3600.0))
    assert answer.without.servers == 48
    assert answer.without.risk_minutes_per_year == pytest.approx(0.64, abs=0.005)
    assert answer.without.next_risk_minutes_per_year == pytest.approx(7.5, abs=0.05)
    assert answer.servers_with_capping is None
    assert answer.binding is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("period_s", [2.0, 10.0, 60.0])
def test_a_plain_reading_of_the_rule_agrees(seed: int, period_s: float) -> None:
    trace = drawn(seed, period_s=period_s)
    for budget_w in (28_000.0, 41_000.0, 50_000.0):
        answer = admit_servers(trace, AdmissionQuestion(budget_w=budget_w))
        assert answer.without.servers == plain_servers(trace.server_w, budget_w, period_s, 1.0)
        assert answer.at_floors is not None
        idle_w = REFERENCE_SERVER.idle_w
        floor = np.where(np.arange(12) % 2 == 0, 1110, 1305)
        capped = idle_w + 1.03 * (trace.server_w - idle_w) * (floor / 1410) ** 1.13
        assert answer.at_floors.servers == plain_servers(capped, budget_w, period_s, 1.0)


@given(
    st.lists(st.floats(0.3, 1.2), min_size=1, max_size=300),
)
def test_risk_is_that_of_the_plain_reading(maxima: list[float]) -> None:
    assert risk_minutes_per_year(np.array(maxima)) == pytest.approx(plain_risk(maxima), rel=1e-6, abs=1e-9)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    budget_w=st.floats(10_000.0, 70_000.0),
    more=st.floats(1.0, 1.4),
    risk=st.floats(0.01, 1e5),
)
def test_more_budget_or_more_risk_never_holds_fewer(
    seed: int, budget_w: float, more: float, risk: float
) -> None:
    trace = drawn(seed, hours=2, servers=8)
    asked = AdmissionQuestion(budget_w=budget_w, risk_minutes_per_year=risk)
    here = admit_servers(trace, asked)
    richer = admit_servers(trace, replace(asked, budget_w=budget_w * more))
    assert richer.without.servers >= here.without.servers
    assert richer.breaker_servers >= here.breaker_servers
    bolder = admit_servers(trace, replace(asked, risk_minutes_per_year=min(risk * 2, 525_600.0)))
    assert bolder.without.servers >= here.without.servers
    assert here.without.risk_minutes_per_year <= risk
    told = here.without.next_risk_minutes_per_year
    assert told is None or told > risk
    assert here.without.interval_90 is not None
    low, high = here.without.interval_90
    assert 0 <= low <= high <= 8


def test_a_scaled_row_counts_like_its_equal_servers() -> None:
    trace = drawn(5, servers=1, hours=4)
    equal = of_servers(np.repeat(trace.server_w, 30, axis=1))
    row = RowPowerTrace(name="row", t_s=trace.t_s, period_s=10.0, row_w=trace.server_w[:, 0], servers=1)
    asked = AdmissionQuestion(budget_w=100_000.0, seed=3)
    one, other = admit_servers(equal, asked).without, admit_servers(row, asked).without
    assert one.servers == other.servers
    assert one.risk_minutes_per_year == pytest.approx(other.risk_minutes_per_year)
    assert one.next_risk_minutes_per_year == pytest.approx(other.next_risk_minutes_per_year)
    assert one.interval_90 == other.interval_90


def test_low_priority_of_a_row_is_capped_deeper() -> None:
    trace = drawn(6, servers=10, hours=4)
    row = RowPowerTrace(
        name="row",
        t_s=trace.t_s,
        period_s=10.0,
        row_w=trace.server_w.sum(axis=1),
        servers=10,
        low_w=trace.server_w[:, ::2].sum(axis=1),
    )
    answer = admit_servers(row, AdmissionQuestion(budget_w=50_000.0))
    assert answer.at_floors is not None
    same = admit_servers(row, AdmissionQuestion(budget_w=50_000.0, high_floor_mhz=1110))
    assert same.at_floors is not None
    assert answer.without.servers < answer.at_floors.servers <= same.at_floors.servers


def test_no_more_than_the_table_has() -> None:
    answer = admit_servers(drawn(1, servers=3), KW_260)
    assert answer.without.servers == 3
    assert answer.without.next_risk_minutes_per_year is None
    assert answer.binding == "servers in the trace"


def test_no_interval_from_less_than_two_hours() -> None:
    answer = admit_servers(drawn(1, hours=1), KW_260)
    assert answer.without.interval_90 is None
    assert answer.interval_with_capping is None


def test_a_part_of_a_minute_is_not_judged() -> None:
    trace = drawn(1, hours=1)
    spike = np.vstack([trace.server_w, np.full((5, 12), 6000.0)])
    assert admit_servers(of_servers(spike), KW_260).without == admit_servers(trace, KW_260).without


def test_warm_up_is_left_out() -> None:
    cold = drawn(1)
    hot = cold.server_w.copy()
    hot[:300] = 6000.0
    asked = AdmissionQuestion(budget_w=50_000.0, warm_up_s=3600.0)
    assert admit_servers(of_servers(hot), asked) == admit_servers(cold, asked)
    with pytest.raises(InputError, match="left out as warm-up"):
        admit_servers(cold, replace(asked, warm_up_s=4 * 3600.0))


def test_the_breaker_alone() -> None:
    assert breaker_servers(KW_260) == 104  # 105 have no safe clock
    slow = replace(KW_260, curve=BREAKER_CURVES["fast_thermal_135pct_60s"], recourse_s=46.0)
    assert breaker_servers(slow) == 48
    assert breaker_servers(replace(KW_260, recourse_s=0.0)) >= 104


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget_w": -1.0}, "budget_w: -1 W"),
        ({"budget_w": float("nan")}, "budget_w"),
        ({"budget_w": 2000.0}, "one idle server draws"),
        ({"risk_minutes_per_year": 0.0}, "risk: 0 minutes"),
        ({"risk_minutes_per_year": 1e6}, "risk"),
        ({"low_floor_mhz": 100}, "low_floor_mhz: 100 MHz"),
        ({"recourse_s": -1.0}, "recourse_s"),
        ({"warm_up_s": math.inf}, "warm_up_s"),
    ],
)
def test_questions_that_are_none(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(KW_260, **wrong)  # type: ignore[arg-type]


def test_long_samples_hide_peaks() -> None:
    assert [peak_allowance_ratio(p) for p in (0.1, 2.0, 10.0, 60.0)] == [0.0, 0.0, 0.035, 0.074]
    with pytest.raises(InputError, match="60 s or less"):
        drawn(1, period_s=120.0)


def test_doubts_are_told() -> None:
    asked = AdmissionQuestion(budget_w=50_000.0)
    assert admit_servers(drawn(1, hours=24, servers=14), asked).doubts == ()
    assert "less than a day" in admit_servers(drawn(1), asked).doubts[0]
    ups = replace(asked, curve=BREAKER_CURVES["ups_failover_133pct_10s"], recourse_s=46.0)
    assert any("only capping guarantees" in doubt for doubt in admit_servers(drawn(1), ups).doubts)
    heavy = drawn(2, hours=24, servers=10)
    minute = np.repeat(np.random.default_rng(0).pareto(3.0, 1440), 6)[:, None]
    spiky = of_servers(heavy.server_w[: minute.size] + 1500.0 * minute)
    assert any("heavier than exponential" in doubt for doubt in admit_servers(spiky, asked).doubts)


def test_priorities_may_be_told() -> None:
    trace = drawn(1, hours=2, servers=24)
    asked = AdmissionQuestion(budget_w=80_000.0)
    usual = admit_servers(trace, asked).at_floors
    spelt_out = replace(asked, priorities=reference_priorities(24))
    assert admit_servers(trace, spelt_out).at_floors == usual
    all_low = admit_servers(trace, replace(asked, priorities=(Priority.LOW,) * 24)).at_floors
    all_high = admit_servers(trace, replace(asked, priorities=(Priority.HIGH,) * 24)).at_floors
    assert usual is not None
    assert all_low is not None
    assert all_high is not None
    assert all_high.servers <= usual.servers <= all_low.servers
    assert all_high.servers < all_low.servers
