"""Policies, one sample at a time: POLCA's machine step by step, thresholds, brakes, guard's order of clocks."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER, PowerRow, reference_priorities
from solver.power.policies.braking import BrakeAtPower, BrakeAtTheta
from solver.power.policies.guard import Guard
from solver.power.policies.named import POLICIES, policy_of
from solver.power.policies.one_threshold import OneThreshold
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import NOTHING, Orders, PolicyRun, Seen
from solver.power.policies.stepwise import Stepwise
from solver.power.policies.training import train_polca
from solver.power.policies.uncapped import Uncapped

ROW = PowerRow(
    server=REFERENCE_SERVER,
    priorities=reference_priorities(4),
    budget_w=10_000.0,
    curve=BREAKER_CURVES["rack_rpp_110pct_17min"],
    clock_latency_s=40.0,
)
TOP = np.full(4, 1410)
PROTOTYPE = Stepwise(
    target_ratio=0.975, lower_mhz=1200.0, raise_mhz=300.0, raise_least_mhz=2.0, dead_ratio=0.005
)


def seen(draw: float, t_s: float = 0.0, **more: object) -> Seen:
    usual: dict[str, object] = {
        "t_s": t_s,
        "sample_s": t_s - 2.0,
        "row_w": draw * ROW.budget_w,
        "low_w": draw * ROW.budget_w / 2,
        "high_w": draw * ROW.budget_w / 2,
        "server_w": None,
        "theta": 0.6,
        "budget_w": ROW.budget_w,
        "curve": ROW.curve,
        "clock_latency_s": ROW.clock_latency_s,
        "low_mhz": 1410,
        "high_mhz": 1410,
        "low_floor_mhz": ROW.low_floor_mhz,
        "high_floor_mhz": ROW.high_floor_mhz,
        "in_force_mhz": TOP,
        "braked": False,
    }
    return Seen(**{**usual, **more})  # type: ignore[arg-type]


def clocks(orders: Orders) -> tuple[int | None, int | None]:
    return orders.low_mhz, orders.high_mhz


def polca_states(draws: list[float], policy: Polca) -> list[int]:
    """Follow the machine as the reference describes it, written once more."""
    t1, t2, h, latency = policy.t1_ratio, policy.t2_ratio, policy.uncap_margin_ratio, ROW.clock_latency_s
    state, since, found = 0, -1e9, []
    for k, m in enumerate(draws):
        t = 2.0 * k
        if state == 0 and m >= t1:
            state = 1
        if state == 1 and m >= t2:
            state, since = 2, t
        if state == 2 and m >= t2 and t - since >= latency + 2:
            state, since = 3, t
        elif state == 3 and m < t2 - h:
            state, since = 2, t
        elif state == 2 and m < t2 - h and t - since >= latency:
            state = 1
        elif state == 1 and m < t1 - h:
            state = 0
        found.append(state)
    return found


@given(st.lists(st.floats(0.6, 1.05), max_size=200))
def test_polca_walks_its_states(draws: list[float]) -> None:
    policy = Polca()
    run = policy.begin(ROW)
    shown = [clocks(run.decide(seen(m, 2.0 * k))) for k, m in enumerate(draws)]
    meaning = [(1410, 1410), (1275, 1410), (1110, 1410), (1110, 1305)]
    assert shown == [meaning[state] for state in polca_states(draws, policy)]


def test_polca_brakes_at_the_budget_and_releases_late() -> None:
    run = Polca().begin(ROW)
    assert run.decide(seen(0.999, 0.0)).brake is False
    assert run.decide(seen(1.0, 2.0)).brake is True
    assert run.decide(seen(0.5, 60.0, braked=True)).brake is True, "60 s are not over"
    assert run.decide(seen(0.75, 64.0, braked=True)).brake is True, "not below 0.75"
    assert run.decide(seen(0.74, 64.0, braked=True)).brake is False
    assert Polca(without_brake=True).begin(ROW).decide(seen(1.5)).brake is None


def test_brake_at_theta() -> None:
    rule = BrakeAtTheta()
    assert not rule.decide(seen(1.2, theta=1.0), 0.0)
    assert rule.decide(seen(0.9, theta=1.001), 0.0)
    assert rule.decide(seen(0.9, 30.0, theta=0.96, braked=True), 0.0)
    assert rule.decide(seen(0.96, 30.0, theta=0.9, braked=True), 0.0)
    assert rule.decide(seen(0.9, 10.0, theta=0.9, braked=True), 0.0)
    assert not rule.decide(seen(0.9, 10.1, theta=0.9, braked=True), 0.0)


def test_one_threshold() -> None:
    low = OneThreshold(everybody=False).begin(ROW)
    everybody = OneThreshold(everybody=True).begin(ROW)
    found = [
        (clocks(low.decide(seen(m))), clocks(everybody.decide(seen(m)))) for m in (0.88, 0.89, 0.85, 0.83)
    ]
    free, low_capped, capped = (1410, 1410), (1110, 1410), (1275, 1275)
    assert found == [(free, free), (low_capped, capped), (low_capped, capped), (free, free)]


def test_none_does_nothing_but_brake_if_told() -> None:
    assert Uncapped().begin(ROW).decide(seen(1.3)) is NOTHING
    assert Uncapped(brake=BrakeAtPower()).begin(ROW).decide(seen(1.3)) == Orders(brake=True)
    assert not Uncapped().caps


def follow(run: PolicyRun, draws: list[float]) -> list[tuple[int, int]]:
    found, low, high = [], 1410, 1410
    in_force = TOP
    for k, m in enumerate(draws):
        orders = run.decide(seen(m, 2.0 * k, low_mhz=low, high_mhz=high, in_force_mhz=in_force))
        low, high = orders.low_mhz or low, orders.high_mhz or high
        if orders.server_mhz is not None:
            in_force = orders.server_mhz
            low, high = int(in_force[ROW.is_low].max()), int(in_force[~ROW.is_low].max())
        found.append((low, high))
    return found


def test_the_prototypes_order_of_clocks() -> None:
    down = follow(PROTOTYPE.begin(ROW), [1.1] * 6)
    assert down == [(1410, 1380), (1260, 1380), (1110, 1380), (1110, 1305), (1110, 1305), (1110, 1305)]
    back = follow(PROTOTYPE.begin(ROW), [1.1] * 4 + [0.8] * 12)[4:]
    highs, lows = [high for _, high in back], [low for low, _ in back]
    assert highs[:2] == [1350, 1380]
    assert lows[:2] == [1110, 1110], "high priority first"
    assert lows[-1] == 1410
    assert highs[-1] == 1410
    assert follow(PROTOTYPE.begin(ROW), [0.971, 0.974])[-1] == (1410, 1410)


def test_the_prototype_raises_whole_steps_only() -> None:
    assert follow(PROTOTYPE.begin(ROW), [1.1, 1.1, 0.96])[-1] == (1260, 1380)
    assert follow(PROTOTYPE.begin(ROW), [1.1, 1.1, 0.92])[-1] == (1275, 1380)


@given(
    st.lists(st.floats(0.5, 1.4), max_size=80),
    st.sampled_from(["guard", "stepwise", "polca", "one-threshold-all"]),
)
def test_clocks_stay_on_steps_and_above_floors(draws: list[float], name: str) -> None:
    for low, high in follow(policy_of(name).begin(ROW), draws):
        assert low in REFERENCE_SERVER.clocks_mhz
        assert high in REFERENCE_SERVER.clocks_mhz
        assert low >= ROW.low_floor_mhz
        assert high >= (1275 if name == "one-threshold-all" else ROW.high_floor_mhz)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_starts_without_memory(name: str) -> None:
    policy = policy_of(name)
    draws = [0.7, 0.85, 0.95, 1.05, 0.99, 0.7]
    assert follow(policy.begin(ROW), draws) == follow(policy.begin(ROW), draws)
    assert policy.name == name
    assert policy.guarded is (name in ("guard", "stepwise"))


def test_unknown_policy() -> None:
    with pytest.raises(InputError, match="unknown policy 'fast'"):
        policy_of("fast")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Polca(t1_ratio=0.9, t2_ratio=0.8),
        lambda: Polca(uncap_margin_ratio=-0.1),
        lambda: OneThreshold(everybody=True, uncap_margin_ratio=0.9),
        lambda: replace(PROTOTYPE, target_ratio=0.0),
        lambda: replace(PROTOTYPE, lower_mhz=-1.0),
        lambda: Guard(margin_deviations=-1.0),
        lambda: Guard(level_s=0.0),
        lambda: Guard(second_high_ratio=float("nan")),
    ],
)
def test_refused_settings(wrong: object) -> None:
    with pytest.raises(InputError):
        wrong()  # type: ignore[operator]


def test_training_leaves_room_for_what_the_row_rises() -> None:
    t = np.arange(0, 86_400 * 7, 2.0)
    random = np.random.default_rng(1)
    week = 260_000 * (0.69 + 0.04 * np.sin(t / 86_400 * 2 * np.pi) + 0.01 * random.standard_normal(t.size))
    given: dict[str, Any] = {"period_s": 2.0, "budget_w": 260_000.0, "servers_in_trace": 40, "servers": 52}
    slow = train_polca(week, clock_latency_s=40.0, **given)
    quick = train_polca(week, clock_latency_s=2.0, **given)
    assert slow.policy.t1_ratio < slow.policy.t2_ratio < quick.policy.t2_ratio < 1.0
    assert slow.policy.t2_ratio == pytest.approx(1.0 - slow.rise_ratio, abs=0.006)
    assert slow.policy.name == "polca-trained"
    wild = train_polca(week + 26_000 * (random.random(t.size) < 0.01), clock_latency_s=40.0, **given)
    assert wild.policy.t2_ratio < slow.policy.t2_ratio


@pytest.mark.parametrize("row_w", [np.full(10, 1e5), np.full(10_000, np.nan), np.full(10_000, -1.0)])
def test_training_refuses(row_w: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> None:
    with pytest.raises(InputError):
        train_polca(row_w, period_s=2.0, budget_w=1e5, servers_in_trace=40, servers=52, clock_latency_s=2.0)


def test_names_are_told_apart() -> None:
    assert len(set(itertools.chain(POLICIES))) == len(POLICIES) == 7
