"""Faults of a row: reading them, each alone, and drawn together."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.row.faults import KINDS, read_row_faults, row_faults_of
from simulator.row.generate import RowLoad, generate_requests
from simulator.row.requests import RowRequests
from simulator.row.run import RowRun, reference_row, run_row, run_uncapped
from solver.domain.errors import InputError
from solver.power.policies.guard import Guard
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import Policy
from solver.power.policies.uncapped import Uncapped

SERVERS = 52
BUSY = RowLoad(low_rps=0.25, high_rps=0.19, day_swing_ratio=0.0, common_ratio=0.02)
TELEMETRY = (*(kind for kind in KINDS if "telemetry" in kind), "clock_step")
LOW = list(range(0, SERVERS, 2))

# kind, its fields, the conditions that must be told: (type, status, one of these reasons)
ALONE: list[tuple[str, dict[str, Any], tuple[str, bool, set[str]]]] = [
    ("row_telemetry_missing", {}, ("TelemetryFresh", False, {"NoSamples"})),
    ("row_telemetry_nan", {}, ("TelemetryFresh", False, {"NotANumber"})),
    ("row_telemetry_negative", {}, ("TelemetryFresh", False, {"Negative"})),
    ("row_telemetry_stuck", {}, ("TelemetryFresh", False, {"MeterStuck"})),
    ("row_telemetry_scale", {"factor": 0.5}, ("TelemetryFresh", False, {"MeterDisagrees"})),
    ("row_telemetry_scale", {"factor": 0.94}, ("TelemetryFresh", False, {"MeterDisagrees"})),
    ("row_telemetry_scale", {"factor": 5.0}, ("TelemetryFresh", False, {"Implausible"})),
    ("telemetry_clock_skew", {"rack_offsets_s": [0, 4, -4]}, ("TelemetryFresh", False, {"ClockSkew"})),
    ("telemetry_out_of_order", {}, ("TelemetryFresh", False, {"OutOfOrder"})),
    ("telemetry_duplicates", {}, ("TelemetryFresh", False, {"DuplicateSample"})),
    ("clock_step", {"seconds": 3600}, ("TelemetryFresh", False, {"ClockStep"})),
    ("clock_step", {"seconds": -3600}, ("TelemetryFresh", False, {"ClockStep"})),
    ("actuator_ignored", {"servers": LOW}, ("ActuatorsHealthy", False, {"ActuatorMismatch"})),
    ("actuator_latency", {"seconds": 30}, ("ActuatorsHealthy", False, {"ActuatorLate"})),
    ("actuator_drop", {"probability": 0.5}, ("ActuatorsHealthy", False, {"ActuatorLate"})),
    ("set_returns_ok_but_readback_old", {"servers": LOW}, ("ActuatorsHealthy", False, {"ActuatorMismatch"})),
    ("budget_factor", {"factor": 0.75}, ("WithinBudget", False, {"OverBudget"})),
    ("controller_down", {}, ("LeaseValid", False, {"LeaseExpired"})),
    ("apiserver_unreachable", {}, ("LeaseValid", False, {"RenewalFailed"})),
    ("agent_killed_sigkill", {"servers": LOW}, ("LeaseValid", False, {"LeaseExpired"})),
    ("driver_reload", {"servers": LOW}, ("ActuatorsHealthy", False, {"ActuatorMismatch"})),
    ("gpu_lost", {"server": 3, "gpu": 2}, ("GpuLost", True, {"Server3"})),
]


@pytest.fixture(scope="module")
def requests() -> RowRequests:
    return generate_requests(servers=SERVERS, seconds=2700, seed=5, start_s=14 * 3600.0, load=BUSY)


def run_with(
    requests: RowRequests, *events: dict[str, Any], policy: Policy | None = None, **more: Any
) -> RowRun:
    faults = row_faults_of({"schema": "row-faults/1", "events": list(events)}, servers=SERVERS)
    return run_row(requests, reference_row(SERVERS, **more), policy or Guard(), faults=faults)


def test_the_row_is_worth_trying(requests: RowRequests) -> None:
    assert run_uncapped(requests, reference_row(SERVERS)).seconds_over_budget > 100


def test_all_kinds_are_tried() -> None:
    assert {kind for kind, _, _ in ALONE} == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "fields", "told"), ALONE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_fault_alone(
    requests: RowRequests, kind: str, fields: dict[str, Any], told: tuple[str, bool, set[str]]
) -> None:
    run = run_with(requests, {"t": 1200, "dur": 600, "kind": kind, **fields})
    assert run.trips == 0
    assert run.brakes == 0
    name, status, reasons = told
    found = [c for c in run.conditions if c.kind == name and c.status is status and c.reason in reasons]
    assert found, [(c.t_s, c.kind, c.status, c.reason) for c in run.conditions]
    assert 1200 <= found[0].t_s <= 1240
    last = [c for c in run.conditions if c.kind == name][-1]
    if name != "WithinBudget":
        assert last.status is not status, "well again at the end"
        assert last.t_s >= 1200 + (600 if KINDS[kind][1] is False else 0)


def test_a_budget_cut_is_met_within_ten_seconds(requests: RowRequests) -> None:
    run = run_with(requests, {"t": 1200, "dur": 600, "kind": "budget_factor", "factor": 0.75})
    assert (run.row_w[1200:1202] > 195_000).all()
    assert (run.row_w[1210:1800] <= 195_000).all()
    assert run.budget_w[1199:1201].tolist() == [260_000, 195_000]


@pytest.mark.parametrize("kind", ["controller_down", "apiserver_unreachable"])
def test_leases_end_in_safe_clocks(requests: RowRequests, kind: str) -> None:
    run = run_with(requests, {"t": 1200, "dur": 300, "kind": kind})
    assert run.low_mhz[1198 + 15 + 1 : 1500].max() <= 1050.0
    assert run.high_mhz[1198 + 15 + 1 : 1500].max() <= 1050.0
    after = run.high_mhz[1500:1520]
    assert after[-1] > after[0]
    assert np.diff(run.high_mhz[1500:1600]).max() <= 45.0, "clocks are released gradually"


def test_without_samples_no_policy_stays_uncapped(requests: RowRequests) -> None:
    run = run_with(requests, {"t": 1200, "dur": 600, "kind": "row_telemetry_missing"}, policy=Polca())
    assert run.low_mhz[1210:1800].max() <= 1050.0
    free = run_with(requests, {"t": 1200, "dur": 600, "kind": "row_telemetry_missing"}, policy=Uncapped())
    assert free.low_mhz.min() == 1410.0
    assert not free.guarantee_held


def test_an_event_that_is_no_fault_changes_nothing(requests: RowRequests) -> None:
    plain = run_row(requests, reference_row(SERVERS), Guard())
    late = run_with(requests, {"t": 100_000, "dur": 60, "kind": "controller_down"})
    np.testing.assert_array_equal(plain.row_w, late.row_w)
    assert plain.latency == late.latency
    assert plain.conditions == late.conditions


def test_same_seed_same_run(requests: RowRequests) -> None:
    event = {"t": 600, "dur": 900, "kind": "actuator_drop", "probability": 0.4}
    one, two = run_with(requests, event), run_with(requests, event)
    np.testing.assert_array_equal(one.row_w, two.row_w)
    assert one.conditions == two.conditions


FEW = 12
SECONDS = 1200
OVERLOADED = RowLoad(low_rps=0.28, high_rps=0.24)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    event: dict[str, Any] = {
        "kind": kind,
        "t": draw(st.integers(0, SECONDS - 100)),
        "dur": draw(st.sampled_from([1, 5, 17, 60, 300, 900])),
    }
    needs = KINDS[kind][0]
    if "factor" in needs:
        values = [0.7, 0.8, 0.9] if kind == "budget_factor" else [0.1, 0.5, 0.9, 1.05, 1.5, 10.0]
        event["factor"] = draw(st.sampled_from(values))
    if "seconds" in needs:
        event["seconds"] = draw(
            st.sampled_from([3, 10, 40, 200] if kind == "actuator_latency" else [-500, 500])
        )
    if "probability" in needs:
        event["probability"] = draw(st.sampled_from([0.2, 0.6, 1.0]))
    if "rack_offsets_s" in needs:
        event["rack_offsets_s"] = draw(st.lists(st.sampled_from([-5, 0, 2]), min_size=1, max_size=3))
    if "servers" in needs:
        event["servers"] = draw(st.lists(st.integers(0, FEW - 1), min_size=1, max_size=FEW, unique=True))
    if "server" in needs:
        event.update(server=draw(st.integers(0, FEW - 1)), gpu=1)
    return event


@given(
    drawn=st.lists(events(), min_size=1, max_size=5),
    curve=st.sampled_from(
        [
            "rack_rpp_110pct_17min",
            "fast_thermal_135pct_60s",
            "ups_failover_133pct_10s",
            "molded_case_135pct_2h",
        ]
    ),
    over=st.sampled_from([1.2, 1.3, 1.4]),
    seed=st.integers(0, 3),
)
@settings(max_examples=25)
def test_drawn_faults_trip_only_where_nobody_could_help(
    drawn: list[dict[str, Any]], curve: str, over: float, seed: int
) -> None:
    requests = generate_requests(
        servers=FEW, seconds=SECONDS, seed=seed, start_s=12 * 3600.0, load=OVERLOADED
    )
    row = replace(reference_row(FEW, curve=curve), budget_w=FEW * 6146 / over)

    def run(chosen: list[dict[str, Any]]) -> RowRun:
        faults = row_faults_of({"schema": "row-faults/1", "events": chosen}, servers=FEW)
        return run_row(requests, row, Guard(), faults=faults, seed=seed)

    found = run(drawn)
    assert found.completed <= found.offered
    if found.trips:
        tripped_s = int(np.argmax(found.theta >= row.curve.trip_theta))
        told = [
            c.t_s
            for c in found.conditions
            if c.kind == "GuaranteeHolds" and not c.status and c.t_s <= tripped_s
        ]
        assert told, "GuaranteeHolds turns false before"
        perfect = run([event for event in drawn if event["kind"] not in TELEMETRY])
        assert perfect.trips, "perfect telemetry would have avoided it"


GOOD = {
    "schema": "row-faults/1",
    "budget_w": 200_000,
    "breaker": {"curve": "custom", "tau_s": 100, "trip_K": 1.1, "theta0": 0.5},
    "events": [{"t": 5, "dur": 10, "kind": "actuator_ignored", "servers": [0, 2]}],
}


def test_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    faults = read_row_faults(path, servers=4)
    assert faults.budget_w == 200_000
    assert faults.curve is not None
    assert (faults.curve.tau_s, faults.curve.trip_ratio, faults.start_theta) == (100, 1.1, 0.5)
    assert faults.events[0].servers == (0, 2)
    assert [faults.any("actuator_ignored", t) for t in (4.9, 5, 14.9, 15)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("where", "value", "field"),
    [
        (("schema",), "row-faults/2", "schema"),
        (("budget_w",), 0, "budget_w"),
        (("budget_w",), True, "budget_w"),
        (("breaker", "curve"), "fast", "breaker.curve"),
        (("breaker", "tau_s"), -1, "breaker.tau_s"),
        (("breaker", "trip_K"), 0.5, "breaker.trip_K"),
        (("breaker", "theta0"), 5, "breaker.theta0"),
        (("breaker", "colour"), 5, "breaker.colour"),
        (("events",), {}, "events"),
        (("events", 0), 7, "events[0]"),
        (("events", 0, "kind"), "fire", "events[0].kind"),
        (("events", 0, "t"), -1, "events[0].t"),
        (("events", 0, "dur"), float("nan"), "events[0].dur"),
        (("events", 0, "servers"), [4], "events[0].servers[0]"),
        (("events", 0, "servers"), [0.5], "events[0].servers[0]"),
        (("events", 0, "servers"), "all", "events[0].servers"),
        (("events", 0, "factor"), 1, "events[0].factor"),
        (("event",), [], "event"),
    ],
)
def test_refuses_in_one_line(where: tuple[Any, ...], value: Any, field: str) -> None:
    document: Any = copy.deepcopy(GOOD)
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(InputError) as caught:
        row_faults_of(document, servers=4, source="f.json")
    assert str(caught.value).startswith(f"f.json: {field}: ")
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats()
        | st.integers()
        | st.text(max_size=5)
        | st.sampled_from(sorted(KINDS)),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["t", "dur", "kind", "servers", "server", "gpu", "factor", "seconds", "curve", "x"]
                ),
                inner,
                max_size=6,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_comes_in_only_one_line_comes_out(found: Any) -> None:
    for document in (
        found,
        {"schema": "row-faults/1", "events": [found]},
        {"schema": "row-faults/1", "breaker": found},
    ):
        try:
            row_faults_of(document, servers=4)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("text", ["", "[", "\xff", "{}", "[]", "[" * 100_000])
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"faults\.json"):
        read_row_faults(path, servers=4)
    with pytest.raises(InputError, match="cannot be read"):
        read_row_faults(tmp_path / "none.json", servers=4)
