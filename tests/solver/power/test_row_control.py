"""The row's controller: what it believes, what it counts on, what it orders when something is wrong."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER, PowerRow, reference_priorities
from solver.power.actuation import GPU_LOST, MISMATCH, Actuation, Reports
from solver.power.breaker import theta_after, worst_theta
from solver.power.policies.guard import Guard
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import Policy
from solver.power.policies.uncapped import Uncapped
from solver.power.row_control import RowController, Step
from solver.power.vetting import Sample, Telemetry

N = 52


def row_of(curve: str = "rack_rpp_110pct_17min", servers: int = N, budget_w: float = 260_000.0) -> PowerRow:
    return PowerRow(
        server=REFERENCE_SERVER,
        priorities=reference_priorities(servers),
        budget_w=budget_w,
        curve=BREAKER_CURVES[curve],
    )


ROW = row_of()
FULL_W = ROW.servers * REFERENCE_SERVER.worst_w(1410)


def sample(stamp_s: float, draw: float = 0.9, *, meter: float = 1.0, **more: object) -> Sample:
    """Return a sample of a row that draws ``draw`` of its budget, evenly; its meter is off by a factor."""
    row_w = draw * ROW.budget_w
    usual: dict[str, object] = {
        "stamp_s": stamp_s,
        "row_w": row_w * meter,
        "low_w": row_w * meter / 2,
        "high_w": row_w * meter / 2,
        "server_w": np.full(N, row_w / N),
    }
    return Sample(**{**usual, **more})  # type: ignore[arg-type]


def reports(mhz: int = 1410, generation: int = 0, **by_server: object) -> Reports:
    usual: dict[str, object] = {
        "applied_mhz": np.full(N, mhz),
        "acknowledged": np.full(N, generation),
        "failed": np.zeros(N, dtype=np.int64),
        "lease_valid": np.ones(N, dtype=np.bool_),
    }
    return Reports(**{**usual, **by_server})  # type: ignore[arg-type]


# --- telemetry ---------------------------------------------------------------------------------------------------


def take(telemetry: Telemetry, *samples: Sample) -> list[tuple[Any, Any]]:
    found = []
    for one in samples:
        vetted, wrong = telemetry.take(one, budget_w=ROW.budget_w, worst_w=FULL_W)
        found.append((None if vetted is None else vetted.row_w / ROW.budget_w, wrong))
    return found


@pytest.mark.parametrize(
    ("meter", "believed", "wrong"),
    [
        (1.0, 0.9, None),
        (1.02, 0.918, None),
        (0.98, 0.9, None),
        (1.05, 0.945, "MeterDisagrees"),
        (0.95, 0.9, "MeterDisagrees"),
        (1.3, 0.9, "MeterDisagrees"),
        (0.5, 0.9, "MeterDisagrees"),
        (-1.0, 0.9, "Negative"),
        (math.nan, 0.9, "NotANumber"),
        (math.inf, 0.9, "NotANumber"),
        (0.0, 0.9, "Implausible"),
        (100.0, 0.9, "Implausible"),
    ],
)
def test_what_a_meter_is_worth(meter: float, believed: float, wrong: str | None) -> None:
    ((draw, found),) = take(Telemetry(ROW, theta=0.6), sample(2.0, meter=meter))
    assert draw == pytest.approx(believed)
    assert found == wrong


@pytest.mark.parametrize("meter", [math.nan, -1.0, 100.0])
def test_without_servers_a_wrong_meter_is_no_sample(meter: float) -> None:
    ((draw, wrong),) = take(Telemetry(ROW, theta=0.6), sample(2.0, meter=meter, server_w=None))
    assert draw is None
    assert wrong is not None
    broken = np.full(N, np.nan)
    assert take(Telemetry(ROW, theta=0.6), sample(2.0, meter=meter, server_w=broken))[0][0] is None


def test_a_stuck_meter_is_seen_when_the_servers_move() -> None:
    telemetry = Telemetry(ROW, theta=0.6)
    stuck = {"row_w": 0.9 * ROW.budget_w, "low_w": 0.45 * ROW.budget_w, "high_w": 0.45 * ROW.budget_w}
    found = take(telemetry, sample(2.0, 0.9), sample(4.0, 0.93, **stuck), sample(6.0, 0.93, **stuck))
    assert [wrong for _, wrong in found] == [None, "MeterStuck", "MeterStuck"]
    assert found[1][0] == pytest.approx(0.93)
    assert take(telemetry, sample(8.0, 0.93), sample(10.0, 0.93))[1] == (pytest.approx(0.93), None)


def test_skewed_servers_do_not_contradict_a_meter() -> None:
    skewed = np.full(N, 2.0)
    skewed[10:20] += 3.0
    assert take(Telemetry(ROW, theta=0.6), sample(2.0, server_stamp_s=skewed)) == [
        (pytest.approx(0.9), "ClockSkew")
    ]
    found = take(Telemetry(ROW, theta=0.6), sample(2.0, meter=math.nan, server_stamp_s=skewed))
    assert found == [(None, "NotANumber")]


def test_duplicates_and_order() -> None:
    telemetry = Telemetry(ROW, theta=0.6)
    found = take(telemetry, sample(2.0), sample(2.0), sample(6.0), sample(4.0), sample(4.0), sample(8.0))
    assert [wrong for _, wrong in found] == [
        None,
        "DuplicateSample",
        None,
        "OutOfOrder",
        "DuplicateSample",
        None,
    ]


@given(
    draws=st.lists(st.floats(0.5, 1.15), min_size=3, max_size=20),
    swaps=st.lists(st.integers(1, 17), max_size=6),
    curve=st.sampled_from(sorted(BREAKER_CURVES)),
)
def test_theta_is_right_once_late_windows_are_in(draws: list[float], swaps: list[int], curve: str) -> None:
    row = row_of(curve)
    order = list(range(len(draws)))
    for k in swaps:
        if k + 1 < len(order):
            order[k], order[k + 1] = order[k + 1], order[k]
    telemetry = Telemetry(row, theta=0.6)
    truth, most_before = 0.6, 0.0
    for draw in draws:
        truth = theta_after(truth, draw, 2.0, row.curve.tau_s)
    for k in order:
        telemetry.take(sample(2.0 * (k + 1), draws[k]), budget_w=row.budget_w, worst_w=FULL_W)
        most_before = telemetry.most_theta
    assert telemetry.theta == pytest.approx(truth, abs=1e-9)
    assert most_before == pytest.approx(truth, abs=1e-9)


@given(draws=st.lists(st.floats(0.5, 1.2), min_size=4, max_size=30), lost=st.sets(st.integers(1, 28)))
def test_missing_windows_never_make_theta_too_low(draws: list[float], lost: set[int]) -> None:
    telemetry, truth = Telemetry(ROW, theta=0.6), 0.6
    for k, draw in enumerate(draws):
        truth = theta_after(truth, draw, 2.0, ROW.curve.tau_s)
        if k not in lost:
            telemetry.take(sample(2.0 * (k + 1), draw), budget_w=ROW.budget_w, worst_w=FULL_W)
            assert telemetry.most_theta >= truth - 1e-9
    assert Telemetry(ROW, theta=None).most_theta < ROW.curve.trip_theta


# --- actuators ---------------------------------------------------------------------------------------------------


def test_an_order_counts_when_it_is_read_back() -> None:
    actuation = Actuation(ROW)
    actuation.read(reports(), 0.0)
    order = actuation.order(np.full(N, 1110), 0.0)
    assert order is not None
    assert actuation.worst_mhz(reports()).max() == 1410
    actuation.read(reports(1110, order.generation), 2.0)
    assert actuation.worst_mhz(reports(1110, order.generation)).max() == 1110
    assert actuation.order(np.full(N, 1110), 2.0) is None
    up = actuation.order(np.full(N, 1200), 4.0)
    assert up is not None
    assert actuation.worst_mhz(reports(1110, order.generation)).max() == 1200, "a raise counts at once"


def test_who_does_not_answer_counts_at_its_largest_clock() -> None:
    actuation = Actuation(ROW)
    order = actuation.order(np.full(N, 1110), 0.0)
    assert order is not None
    acknowledged = np.full(N, order.generation)
    applied = np.full(N, 1110)
    acknowledged[:3], applied[:3] = 0, 1200
    late = reports(applied_mhz=applied, acknowledged=acknowledged)
    actuation.read(late, 2.0)
    assert not actuation.silent.any()
    actuation.read(late, 4.0)
    assert actuation.trouble == "ActuatorLate"
    assert np.flatnonzero(actuation.silent).tolist() == [0, 1, 2]
    assert actuation.worst_mhz(late)[:4].tolist() == [1410, 1410, 1410, 1110]
    again = actuation.order(np.full(N, 1110), 4.0)
    assert again is not None
    assert np.flatnonzero(again.to).tolist() == [0, 1, 2]
    t_s = 4.0
    while t_s < 60.0:
        t_s += 2.0
        actuation.read(late, t_s)
        actuation.order(np.full(N, 1110), t_s)
    assert actuation.trouble == "ActuatorMismatch"
    actuation.read(reports(1110, actuation.generation), t_s + 2.0)
    assert not actuation.silent.any()
    assert actuation.worst_mhz(reports(1110, actuation.generation)).max() == 1110


@pytest.mark.parametrize(
    ("code", "trouble"), [(MISMATCH, "ActuatorMismatch"), (GPU_LOST, None), (9, "ActuatorMismatch")]
)
def test_failures(code: int, trouble: str | None) -> None:
    actuation = Actuation(ROW)
    failed = np.zeros(N, dtype=np.int64)
    failed[5] = code
    actuation.read(reports(failed=failed), 2.0)
    assert actuation.trouble == trouble
    assert actuation.worst_mhz(reports(failed=failed))[5] == 1410
    assert actuation.silent[5]


def test_late_orders_teach_the_latency() -> None:
    actuation = Actuation(ROW)
    order = actuation.order(np.full(N, 1110), 0.0)
    assert order is not None
    for t_s in range(2, 30, 2):
        actuation.read(reports(), float(t_s))
    actuation.read(reports(1110, order.generation), 30.0)
    assert actuation.latency_s == 30.0
    actuation.read(reports(1110, order.generation), 200.0)
    assert actuation.latency_s == ROW.clock_latency_s


# --- decisions ---------------------------------------------------------------------------------------------------


class Plain:
    """A controller with agents that do as they are told two seconds later."""

    def __init__(self, policy: Policy, row: PowerRow = ROW, theta: float = 0.6) -> None:
        self.row = row
        self.controller = RowController(row, policy, theta=theta)
        self.applied = np.full(row.servers, 1410)
        self.generation = 0
        self.waiting: list[tuple[float, int, np.ndarray[tuple[int], np.dtype[np.int64]]]] = []
        self.told: list[tuple[str, bool, str]] = []

    def step(self, now_s: float, *samples: Sample) -> Step:
        while self.waiting and self.waiting[0][0] <= now_s:
            _, self.generation, self.applied = self.waiting.pop(0)
        servers = self.row.servers
        found = self.controller.step(
            now_s,
            samples,
            Reports(
                applied_mhz=self.applied,
                acknowledged=np.full(servers, self.generation),
                failed=np.zeros(servers, dtype=np.int64),
                lease_valid=np.ones(servers, dtype=np.bool_),
            ),
        )
        if found.order is not None:
            self.waiting.append((now_s + 2.0, found.order.generation, found.order.mhz))
        self.told += [(c.kind, c.status, c.reason) for c in found.changes]
        return found


def test_no_samples_mean_safe_clocks_and_a_slow_release() -> None:
    plain = Plain(Polca())
    plain.step(4.0, sample(2.0, 0.7))
    plain.step(6.0)
    assert plain.controller.ordered_mhz.max() == 1410, "one sample late: wait"
    plain.step(8.0)
    assert set(plain.controller.ordered_mhz.tolist()) == {1050}
    assert ("TelemetryFresh", False, "NoSamples") in plain.told
    for k in range(20):
        before = plain.controller.ordered_mhz.copy()
        plain.step(10.0 + 2 * k, sample(8.0 + 2 * k, 0.7))
        assert (plain.controller.ordered_mhz - before).max() <= 45
    assert plain.controller.ordered_mhz.min() == 1410
    assert plain.told[-1] == ("TelemetryFresh", True, "Fresh")


def test_a_controller_that_never_hears_anything_goes_safe() -> None:
    plain = Plain(Guard())
    for t_s in (4.0, 6.0, 8.0, 10.0, 12.0):
        plain.step(t_s)
    assert plain.controller.ordered_mhz.max() == 1050


def test_a_budget_cut_is_answered_at_once() -> None:
    plain = Plain(Guard())
    plain.step(4.0, sample(2.0, 0.9))
    plain.controller.set_budget(0.75 * ROW.budget_w)
    step = plain.step(5.0)
    assert step.order is not None, "it does not wait for a sample"
    assert N * REFERENCE_SERVER.worst_w(int(step.order.mhz.max())) <= 0.75 * ROW.budget_w


@pytest.mark.parametrize(
    ("policy", "recourse_s"),
    [(Uncapped(), math.inf), (Guard(), 8.0), (Guard(brake=None), 8.0), (Polca(), 8.0)],
)
def test_the_guarantee_counts_with_the_fastest_recourse(policy: Policy, recourse_s: float) -> None:
    step = Plain(policy).step(4.0, sample(2.0, 0.7))
    assert step.recourse_s == recourse_s
    theta = theta_after(0.6, 0.7, 2.0, ROW.curve.tau_s)
    assert step.worst_theta == pytest.approx(worst_theta(theta, step.worst_ratio, recourse_s, ROW.curve))
    assert step.worst_ratio == pytest.approx(FULL_W / ROW.budget_w)
    assert step.guarantee_holds is not math.isinf(recourse_s)


@given(
    draws=st.lists(st.floats(0.7, 1.2), min_size=5, max_size=60),
    curve=st.sampled_from(sorted(BREAKER_CURVES)),
    servers=st.sampled_from([52, 56, 60]),
    theta=st.floats(0.4, 0.95),
)
@settings(max_examples=60)
def test_whatever_the_row_draws_the_guarantee_holds(
    draws: list[float], curve: str, servers: int, theta: float
) -> None:
    """The invariant: the draw may be anything that the clocks in force allow, the next decision is still in time."""
    row = row_of(curve, servers)
    plain = Plain(Guard(), row, theta)
    table = REFERENCE_SERVER.worst_by_mhz
    # Before the first order nothing stands in the way: begin with clocks at which the row is safe for as long.
    plain.applied = np.full(servers, row.server.safe_mhz(servers, row.budget_w))
    plain.controller = RowController(
        row,
        Guard(),
        theta=theta,
        reports=Reports(
            applied_mhz=plain.applied,
            acknowledged=np.zeros(servers, dtype=np.int64),
            failed=np.zeros(servers, dtype=np.int64),
            lease_valid=np.ones(servers, dtype=np.bool_),
        ),
    )
    windows: list[float] = []
    truth = theta
    for k, draw in enumerate([0.7, *draws]):
        now_s = 2.0 * (k + 1)
        most = float(table[plain.applied].sum()) / row.budget_w
        if plain.waiting:  # what is under way may act within this window
            most = max(most, float(table[plain.waiting[-1][2]].sum()) / row.budget_w)
        windows.append(min(draw, most))
        truth = theta_after(truth, windows[-1], 2.0, row.curve.tau_s)
        assert truth < row.curve.trip_theta
        if k == 0:
            continue
        seen_w = windows[k - 1] * row.budget_w
        step = plain.step(
            now_s,
            Sample(stamp_s=now_s - 2.0, row_w=seen_w, low_w=seen_w / 2, high_w=seen_w / 2, server_w=None),
        )
        assert step.guarantee_holds, (curve, k, step)


@pytest.mark.parametrize("policy", [Guard(), Polca()])
def test_a_standing_cap_is_never_passed_and_leaves_room_to_the_others(policy: Policy) -> None:
    capped = replace(ROW, low_top_mhz=1200)
    core = RowController(capped, policy, theta=0.6)
    free = RowController(ROW, policy, theta=0.6)
    held = reports()
    for k in range(1, 40):
        for each in (core, free):
            each.step(4.0 + 2 * k, [sample(2.0 + 2 * k, 0.97)], held)
    assert (core.ordered_mhz[ROW.is_low] <= 1200).all()
    assert (core.ordered_mhz[~ROW.is_low]).min() >= (free.ordered_mhz[~ROW.is_low]).min()
    assert (core.ordered_mhz <= capped.top_mhz).all()
