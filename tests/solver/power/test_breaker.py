"""The breaker's equations against stepping them, against each other, and against the published curves."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power import (
    BREAKER_CURVES,
    REFERENCE_SERVER,
    BreakerCurve,
    PowerRow,
    Priority,
    breaker_curve,
    reference_priorities,
)
from solver.power.breaker import largest_ratio, theta_after, trip_s, worst_theta

CURVES = Path(__file__).parents[3] / "../shared/data/power/breaker_curves.csv"
RACK = BREAKER_CURVES["rack_rpp_110pct_17min"]
curves = st.sampled_from(sorted(BREAKER_CURVES)).map(BREAKER_CURVES.__getitem__)


@pytest.mark.skipif(not CURVES.is_file(), reason="../shared/data/power is not present")
def test_published_trip_times() -> None:
    with CURVES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curve = BREAKER_CURVES[row["curve"]]
            assert (curve.tau_s, curve.trip_ratio) == (float(row["tau_s"]), float(row["trip_K"]))
            found = trip_s(float(row["initial_load"]) ** 2, float(row["overload"]), curve)
            assert found == pytest.approx(float(row["trip_s"]), rel=1e-3, abs=0.01)


@pytest.mark.parametrize(("load", "seconds"), [(0.8, 463), (1.0, 137)])
def test_seconds_to_trip_of_52_servers_that_jump(load: float, seconds: int) -> None:
    worst = 52 * REFERENCE_SERVER.worst_w(1410) / 260_000
    assert worst == pytest.approx(1.229, abs=5e-4)
    assert trip_s(load**2, worst, RACK) == pytest.approx(seconds, abs=1.0)


@given(curve=curves, theta=st.floats(0.0, 1.1), draw=st.floats(0.0, 3.0), seconds=st.floats(0.0, 1e4))
def test_theta_is_the_same_in_one_step_or_two(
    curve: BreakerCurve, theta: float, draw: float, seconds: float
) -> None:
    half = theta_after(theta, draw, seconds / 2, curve.tau_s)
    twice = theta_after(half, draw, seconds / 2, curve.tau_s)
    assert theta_after(theta, draw, seconds, curve.tau_s) == pytest.approx(twice, abs=1e-9)
    assert min(theta, draw * draw) - 1e-9 <= twice <= max(theta, draw * draw) + 1e-9


@given(curve=curves, theta=st.floats(0.0, 1.1), draw=st.floats(1.06, 3.0))
def test_it_trips_when_theta_gets_there(curve: BreakerCurve, theta: float, draw: float) -> None:
    seconds = trip_s(theta, draw, curve)
    assert theta_after(theta, draw, seconds, curve.tau_s) == pytest.approx(curve.trip_theta, abs=1e-9)
    assert trip_s(theta, 1.04, curve) == math.inf
    assert trip_s(curve.trip_theta, draw, curve) == 0.0


@given(curve=curves, theta=st.floats(0.0, 1.1), recourse_s=st.floats(0.1, 1e4))
def test_the_largest_ratio_just_holds(curve: BreakerCurve, theta: float, recourse_s: float) -> None:
    most = largest_ratio(theta, recourse_s, curve)
    assert worst_theta(theta, most, recourse_s, curve) == pytest.approx(curve.trip_theta, rel=1e-6)
    assert worst_theta(theta, most * 1.01, recourse_s, curve) > curve.trip_theta * (1 - 1e-9)


@pytest.mark.parametrize(
    ("curve", "recourse_s", "ratio"),
    [
        ("rack_rpp_110pct_17min", 8, 2.98),
        ("rack_rpp_110pct_17min", 11, 2.60),
        ("rack_rpp_110pct_17min", 46, 1.55),
        ("fast_thermal_135pct_60s", 8, 1.61),
        ("ups_failover_133pct_10s", 8, 1.139),
        ("ups_failover_133pct_10s", 46, 1.055),
    ],
)
def test_largest_ratios_from_full_load(curve: str, recourse_s: float, ratio: float) -> None:
    assert largest_ratio(1.0, recourse_s, BREAKER_CURVES[curve]) == pytest.approx(ratio, abs=0.006)


def test_without_recourse_the_worst_case_stays() -> None:
    assert worst_theta(0.5, 1.2, math.inf, RACK) == pytest.approx(1.44)
    assert worst_theta(1.05, 0.9, 8.0, RACK) == 1.05


@pytest.mark.parametrize(("servers", "safe"), [(40, 1410), (52, 1050), (54, 990), (56, 945), (1000, None)])
def test_safe_clocks(servers: int, safe: int | None) -> None:
    assert REFERENCE_SERVER.safe_mhz(servers, 260_000.0) == safe


def test_safe_clocks_of_nobody_depend_on_what_is_left() -> None:
    assert REFERENCE_SERVER.safe_mhz(0, 0.0) == 1410
    assert REFERENCE_SERVER.safe_mhz(0, -1.0) is None


@given(mhz=st.floats(-100, 3000))
def test_steps(mhz: float) -> None:
    found = REFERENCE_SERVER.step_down(mhz)
    assert found in REFERENCE_SERVER.clocks_mhz
    assert found <= max(mhz + 1e-6, 210)
    assert found == 1410 or found + 15 > mhz


def test_the_reference_server() -> None:
    assert REFERENCE_SERVER.worst_w(1410) == pytest.approx(6146)
    assert REFERENCE_SERVER.idle_w == pytest.approx(2006)
    assert (REFERENCE_SERVER.clocks_mhz[0], len(REFERENCE_SERVER.clocks_mhz)) == (210, 81)
    worst = REFERENCE_SERVER.worst_by_mhz
    assert worst[1110] == REFERENCE_SERVER.worst_w(1110)
    assert (worst[1:] > worst[:-1]).all()


def test_recourse_times() -> None:
    row = PowerRow(
        server=REFERENCE_SERVER,
        priorities=reference_priorities(3),
        budget_w=1.0,
        curve=RACK,
        clock_latency_s=40.0,
    )
    assert [row.recourse_s(s) for s in (2.0, row.clock_latency_s, row.brake_latency_s)] == [8.0, 46.0, 11.0]
    assert row.priorities == (Priority.LOW, Priority.HIGH, Priority.LOW)
    assert row.top_mhz.tolist() == [1410] * 3
    assert replace(row, low_top_mhz=1200).top_mhz.tolist() == [1200, 1410, 1200]
    with pytest.raises(InputError, match="low_top_mhz"):
        replace(row, low_top_mhz=1095)  # below the floor


@pytest.mark.parametrize(
    ("name", "constants", "where"),
    [
        ("fuse", {}, "curve"),
        ("custom", {}, "tau_s"),
        ("custom", {"tau_s": 3.0}, "trip_K"),
        ("custom", {"tau_s": -3.0, "trip_ratio": 1.05}, "tau_s"),
        ("custom", {"tau_s": 3.0, "trip_ratio": 0.9}, "trip_ratio"),
        ("custom", {"tau_s": math.nan, "trip_ratio": 1.05}, "tau_s"),
        ("rack_rpp_110pct_17min", {"tau_s": 5.0}, "tau_s"),
    ],
)
def test_refused_curves(name: str, constants: dict[str, float], where: str) -> None:
    with pytest.raises(InputError) as caught:
        breaker_curve(name, **constants)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget_w", 0.0),
        ("budget_w", math.nan),
        ("low_floor_mhz", 0),
        ("clock_latency_s", -1.0),
        ("priorities", ()),
    ],
)
def test_refused_rows(field: str, value: object) -> None:
    given: dict[str, object] = {
        "server": REFERENCE_SERVER,
        "priorities": reference_priorities(2),
        "budget_w": 1e4,
        "curve": RACK,
    }
    with pytest.raises(InputError):
        PowerRow(**{**given, field: value})  # type: ignore[arg-type]
