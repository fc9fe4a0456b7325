"""Guard, one sample at a time: what it predicts, whom it slows, jumps, brakes, rows without meters of servers."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER, PowerRow, reference_priorities
from solver.power.policies.guard import Guard
from solver.power.policies.protocol import PolicyRun, Seen

SERVERS = 12
Floats = npt.NDArray[np.float64]
Clocks = npt.NDArray[np.int64]
ROW = PowerRow(
    server=REFERENCE_SERVER,
    priorities=reference_priorities(SERVERS),
    budget_w=SERVERS * 5000.0,
    curve=BREAKER_CURVES["rack_rpp_110pct_17min"],
)
LOW = ROW.is_low


def draw_w(activity: Floats, mhz: Clocks) -> Floats:
    """Return what servers draw that would draw ``activity`` above idle at the largest clock."""
    return REFERENCE_SERVER.idle_w + activity * (mhz / 1410) ** REFERENCE_SERVER.exponent


CALM = Guard(error_s=30.0)
"""Learns quickly that there is no noise."""


class Loop:
    """The row around a policy: orders act one decision later, samples are one window old."""

    def __init__(self, policy: Guard, *, row: PowerRow = ROW, metered: bool = True) -> None:
        self.row, self.metered = row, metered
        self.run: PolicyRun = policy.begin(row)
        self.t_s = 0.0
        top = np.full(row.servers, 1410)
        self.clocks = [top, top, top]  # in force in the window before, in the last one, and now
        self.brake: bool | None = None

    def step(self, activity: Floats, **more: object) -> Clocks:
        self.t_s += 2.0
        watts = draw_w(activity, self.clocks[0])
        low = self.row.is_low
        given: dict[str, object] = {
            "t_s": self.t_s,
            "sample_s": self.t_s - 2.0,
            "row_w": float(watts.sum()),
            "low_w": float(watts[low].sum()),
            "high_w": float(watts[~low].sum()),
            "server_w": watts if self.metered else None,
            "theta": 0.8,
            "budget_w": self.row.budget_w,
            "curve": self.row.curve,
            "clock_latency_s": 2.0,
            "low_mhz": int(self.clocks[2][low].max(initial=0)),
            "high_mhz": int(self.clocks[2][~low].max(initial=0)),
            "low_floor_mhz": self.row.low_floor_mhz,
            "high_floor_mhz": self.row.high_floor_mhz,
            "in_force_mhz": self.clocks[2],
            "braked": False,
        }
        orders = self.run.decide(Seen(**{**given, **more}))  # type: ignore[arg-type]
        assert orders.server_mhz is not None
        self.brake = orders.brake
        self.clocks = [*self.clocks[1:], orders.server_mhz]
        return orders.server_mhz


def settled(loop: Loop, activity: Floats, steps: int = 600) -> Clocks:
    for _ in range(steps):
        clocks = loop.step(activity)
    return clocks


@pytest.mark.parametrize("metered", [True, False])
@pytest.mark.parametrize("over", [1.02, 1.06, 1.1])
def test_a_steady_row_ends_just_below_its_budget(over: float, metered: bool) -> None:  # noqa: FBT001 - a parameter of a test
    activity = np.full(SERVERS, ROW.budget_w * over / SERVERS - REFERENCE_SERVER.idle_w)
    policy = CALM
    clocks = settled(Loop(policy, metered=metered), activity)
    after = draw_w(activity, clocks).sum() / ROW.budget_w
    step = 15 / 1410 * 1.13 * activity.sum() / ROW.budget_w
    assert 1.0 - policy.least_margin_ratio - step <= after <= 1.0 - policy.least_margin_ratio + step


def test_a_row_with_room_is_left_alone() -> None:
    assert (settled(Loop(Guard()), np.full(SERVERS, 2000.0), 50) == 1410).all()


def test_stages_high_a_little_low_far_high_more_low_to_its_floor_high_to_its_own() -> None:
    reached = []
    for over in np.arange(1.0, 1.3, 0.005):
        activity = np.full(SERVERS, ROW.budget_w * over / SERVERS - REFERENCE_SERVER.idle_w)
        clocks = settled(Loop(replace(CALM, spread_ratio=0.0)), activity, 300)
        reached.append((int(clocks[LOW].min()), int(clocks[~LOW].min())))
    assert reached[0] == (1410, 1395) or reached[0] == (1410, 1380)
    turns = [(1410, 1380), (1140, 1380), (1140, 1365), (1110, 1365), (1110, 1305)]
    at = [
        min(k for k, pair in enumerate(reached) if pair[0] <= low and pair[1] <= high) for low, high in turns
    ]
    assert at == sorted(at)
    assert all(low == 1410 for low, high in reached if high > 1380)
    assert all(high >= 1380 for low, high in reached if low > 1140)
    assert all(high >= 1365 for low, high in reached if low > 1110)
    assert reached[-1] == (1110, 1305)


def test_the_least_active_slow_first() -> None:
    activity = np.linspace(2200.0, 3600.0, SERVERS)
    activity *= (1.03 * ROW.budget_w - SERVERS * REFERENCE_SERVER.idle_w) / activity.sum()
    clocks = settled(Loop(Guard()), activity)
    low = clocks[LOW]
    assert low[0] < low[-1]
    assert (np.diff(low) >= 0).all()


def test_a_jump_is_believed_within_seconds() -> None:
    def steps_to(loop: Loop) -> int:
        calm = np.full(SERVERS, 0.9 * ROW.budget_w / SERVERS - REFERENCE_SERVER.idle_w)
        settled(loop, calm, 2500)
        for k in range(200):
            if draw_w(calm * 1.3, loop.step(calm * 1.3)).sum() <= ROW.budget_w:
                return k
        return 200

    assert steps_to(Loop(Guard())) < 20
    assert steps_to(Loop(Guard(jump_deviations=1e9))) > 30


def test_a_noisy_row_keeps_more_room_than_a_calm_one() -> None:
    random = np.random.default_rng(3)
    mean = np.full(SERVERS, 1.05 * ROW.budget_w / SERVERS - REFERENCE_SERVER.idle_w)
    drawn = []
    for noise in (20.0, 300.0):
        loop = Loop(Guard())
        for _ in range(1500):
            clocks = loop.step(np.maximum(mean + noise * random.standard_normal(SERVERS), 0.0))
        drawn.append(draw_w(mean, clocks).sum() / ROW.budget_w)
    assert drawn[0] > drawn[1] + 0.01


def test_seconds_of_a_brake_teach_nothing() -> None:
    activity = np.full(SERVERS, 1.05 * ROW.budget_w / SERVERS - REFERENCE_SERVER.idle_w)
    loop = Loop(Guard())
    before = settled(loop, activity)
    for _ in range(10):
        clocks = loop.step(activity * 0.1, braked=True)
    assert np.abs(clocks - before).max() <= 15
    assert loop.brake is not None


def test_a_cut_budget_is_met_at_the_next_decision() -> None:
    activity = np.full(SERVERS, 0.97 * ROW.budget_w / SERVERS - REFERENCE_SERVER.idle_w)
    loop = Loop(Guard())
    settled(loop, activity)
    clocks = loop.step(activity, budget_w=0.9 * ROW.budget_w, low_floor_mhz=900, high_floor_mhz=900)
    assert draw_w(activity, clocks).sum() <= 0.9 * ROW.budget_w


@given(
    st.lists(st.lists(st.floats(0.0, 4140.0), min_size=SERVERS, max_size=SERVERS), min_size=1, max_size=30),
    st.booleans(),
    st.floats(0.0, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_clocks_are_steps_between_floor_and_top(
    draws: list[list[float]],
    metered: bool,  # noqa: FBT001 - drawn
    spread: float,
) -> None:
    loop = Loop(replace(Guard(), spread_ratio=spread), metered=metered)
    for activity in draws:
        clocks = loop.step(np.array(activity))
        assert np.isin(clocks, REFERENCE_SERVER.clocks_mhz).all()
        assert (clocks[LOW] >= ROW.low_floor_mhz).all()
        assert (clocks[~LOW] >= ROW.high_floor_mhz).all()


@pytest.mark.parametrize("priorities", [reference_priorities(1), reference_priorities(2)[1:]])
def test_a_row_of_one_server(priorities: tuple[object, ...]) -> None:
    row = replace(ROW, priorities=priorities, budget_w=5000.0)  # type: ignore[arg-type]
    loop = Loop(Guard(), row=row)
    for _ in range(100):
        clocks = loop.step(np.array([3500.0]))
    assert draw_w(np.array([3500.0]), clocks)[0] <= 5000.0 or clocks[0] in (1110, 1305)
