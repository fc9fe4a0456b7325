"""Faults of a row with guard: each kind alone at +30 %, drawn combinations on rows that trip when they are left alone.

It exists so that "no trip under any fault" is counted and counted again with every change of the policy. What
each kind does is written in docs/power.md. A generated week is timed here, too: the plant and the loop are the same.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.results import Result, Setting, at_most, say
from simulator.row.faults import KINDS, RowFaults, row_faults_of
from simulator.row.generate import RowLoad, generate_requests
from simulator.row.request_file import read_row_requests
from simulator.row.run import reference_row, run_row, run_uncapped
from solver.power.policies.guard import Guard

SERVERS = 52
AT_S, FOR_S = 6000, 900
"""The busiest quarter of an hour of the recorded file."""
FILE = "requests_row60_4h_seed15.csv.gz"
EVERY_SECOND, EVERY_TENTH = list(range(0, SERVERS, 2)), list(range(0, SERVERS, 10))
ALONE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *(
        (kind, {})
        for kind in (
            "row_telemetry_missing",
            "row_telemetry_nan",
            "row_telemetry_negative",
            "row_telemetry_stuck",
            "telemetry_out_of_order",
            "telemetry_duplicates",
            "controller_down",
            "apiserver_unreachable",
        )
    ),
    *(("row_telemetry_scale", {"factor": factor}) for factor in (0.5, 0.8, 0.95, 1.05, 1.3, 3.0)),
    ("telemetry_clock_skew", {"rack_offsets_s": [0, 3, -3]}),
    *(("clock_step", {"seconds": seconds}) for seconds in (3600, -3600)),
    *(("actuator_ignored", {"servers": who}) for who in (list(range(SERVERS)), EVERY_SECOND, EVERY_TENTH)),
    *(("actuator_latency", {"seconds": seconds}) for seconds in (10, 40, 120)),
    *(("actuator_drop", {"probability": probability}) for probability in (0.1, 0.5, 1.0)),
    ("set_returns_ok_but_readback_old", {"servers": [0, 2, 4, 6]}),
    *(("budget_factor", {"factor": factor}) for factor in (0.75, 0.9)),
    ("agent_killed_sigkill", {"servers": EVERY_SECOND}),
    ("driver_reload", {"servers": EVERY_SECOND}),
    ("gpu_lost", {"server": 3, "gpu": 2}),
)
FEW, FEW_S = 12, 1500
OVERLOADED = RowLoad(low_rps=0.28, high_rps=0.24)
CURVES = ("rack_rpp_110pct_17min", "fast_thermal_135pct_60s", "ups_failover_133pct_10s")
WEEK_SEED = 7
WEEK_LIMIT_S = 60.0


@dataclass(slots=True)
class _Counted:
    """What came of some runs."""

    runs: int = 0
    trips: int = 0
    brakes: int = 0
    lost: int = 0
    """Runs in which the guarantee was lost for a while."""
    untold: int = 0
    """Runs that tripped without GuaranteeHolds turning false before."""


def faults(setting: Setting) -> Iterator[Result]:
    """Count trips under faults; time a week."""
    path = setting.data / "power" / FILE
    if path.is_file():
        yield from _alone(setting)
    else:
        say(f"{path} is not there: faults alone are left out (--data DIR)")
    yield from _drawn(20 if setting.quick else 200)
    if not setting.quick:
        yield from _week()


def _of(events: list[dict[str, Any]], servers: int) -> RowFaults:
    return row_faults_of({"schema": "row-faults/1", "events": events}, servers=servers)


def _alone(setting: Setting) -> Iterator[Result]:
    requests = read_row_requests(setting.data / "power" / FILE)
    counted, hottest = _Counted(), 0.0
    for kind, fields in ALONE[:: 8 if setting.quick else 1]:
        given = _of([{"t": AT_S, "dur": FOR_S, "kind": kind, **fields}], SERVERS)
        run = run_row(requests, reference_row(SERVERS), Guard(), faults=given)
        counted.runs += 1
        counted.trips += run.trips
        counted.brakes += run.brakes
        counted.lost += run.guarantee_lost_s > 0.0
        hottest = max(hottest, run.theta_max)
    say(f"power: {counted.runs} faults alone, 52 servers: {counted}, hottest {hottest:.3f}")
    yield at_most(f"power: +30 %, each of {counted.runs} faults alone: trips", counted.trips, "", 0)
    yield at_most("power: … brakes", counted.brakes, "", 0)
    yield at_most("power: … runs in which the guarantee was lost", counted.lost, "", 0)


def _drawn(number: int) -> Iterator[Result]:
    """Draw one to five faults for each run; rows could draw 1.2 to 1.4 times their budget."""
    requests = generate_requests(servers=FEW, seconds=FEW_S, seed=1, start_s=12 * 3600.0, load=OVERLOADED)
    counted, alone_trips = _Counted(), 0
    for seed in range(number):
        random = np.random.default_rng([8, seed])
        events = [_event(random) for _ in range(random.integers(1, 6))]
        curve = str(random.choice(CURVES))
        row = replace(
            reference_row(FEW, curve=curve), budget_w=FEW * 6146 / float(random.choice([1.2, 1.3, 1.4]))
        )
        run = run_row(requests, row, Guard(), faults=_of(events, FEW), seed=seed)
        alone_trips += run_uncapped(requests, row).trips > 0
        counted.runs += 1
        counted.lost += run.guarantee_lost_s > 0.0
        if run.trips:
            counted.trips += 1
            tripped_s = int(np.argmax(run.theta >= row.curve.trip_theta))
            counted.untold += not any(
                c.kind == "GuaranteeHolds" and not c.status and c.t_s <= tripped_s for c in run.conditions
            )
    say(f"power: {number} combinations: {counted}; left alone {alone_trips} of these rows trip")
    yield at_most(
        f"power: {number} drawn combinations of faults: trips (peer: left alone)",
        counted.trips,
        "",
        0,
        peer_value=alone_trips,
    )


def _event(random: np.random.Generator) -> dict[str, Any]:
    """Draw one fault with all its fields."""

    def one(*values: Any) -> Any:
        return values[int(random.integers(len(values)))]

    kind = one(*KINDS)
    needs = KINDS[kind][0]
    event: dict[str, Any] = {
        "kind": kind,
        "t": int(random.integers(0, FEW_S - 100)),
        "dur": one(1, 5, 17, 60, 300, 900),
    }
    if "factor" in needs:
        event["factor"] = (
            one(0.7, 0.8, 0.9) if kind == "budget_factor" else one(0.1, 0.5, 0.9, 1.05, 1.5, 10.0)
        )
    if "seconds" in needs:
        event["seconds"] = one(3, 10, 40, 200) if kind == "actuator_latency" else one(-500, 500)
    if "probability" in needs:
        event["probability"] = one(0.2, 0.6, 1.0)
    if "rack_offsets_s" in needs:
        event["rack_offsets_s"] = [0, one(-5, 2)]
    if "servers" in needs:
        count = int(random.integers(1, FEW + 1))
        event["servers"] = random.permutation(FEW)[:count].tolist()
    if "server" in needs:
        event.update(server=int(random.integers(FEW)), gpu=1)
    return event


def _week() -> Iterator[Result]:
    """Time what ``ballast simulate row --generate 168 --servers 52`` does, on one core."""
    began_s = time.process_time()
    requests = generate_requests(servers=SERVERS, seconds=168 * 3600, seed=WEEK_SEED)
    run = run_row(requests, reference_row(SERVERS), Guard())
    run_uncapped(requests, reference_row(SERVERS))
    took_s = time.process_time() - began_s
    say(f"power: a week of {run.offered:,} requests with guard and without policy in {took_s:.1f} s")
    yield at_most("power: a generated week of 52 servers, with guard and without", took_s, "s", WEEK_LIMIT_S)
