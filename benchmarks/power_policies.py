"""How policies keep a row under its budget, and what that costs: none, POLCA, the plain loop and guard side by side.

It exists so that the goals of power.md §9 are measured in one run, on its files and on generated days with confidence
intervals. The plant is the reference row's: nothing here was measured on a GPU. Guard's settings were chosen with the
same six files in view; the generated days were not looked at while choosing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from benchmarks.results import Result, Setting, at_most, say
from simulator.row.generate import generate_requests
from simulator.row.request_file import read_row_requests
from simulator.row.requests import RowRequests
from simulator.row.run import Latency, RowRun, reference_row, run_row, run_uncapped
from solver.power.policies.guard import Guard
from solver.power.policies.named import policy_of
from solver.power.policies.protocol import Policy

SEEDS = tuple(range(11, 17))
OWN_SEEDS = tuple(range(1001, 1011))
OWN_START_S = 2 * 86_400.0 + 12 * 3600.0
MEASURED_S = 14_400
RACK, OTHER_CURVES = "rack_rpp_110pct_17min", ("molded_case_135pct_2h", "fast_thermal_135pct_60s")
UPS = "ups_failover_133pct_10s"
STUDENT_9 = 2.262
"""97.5 % point of Student's t for ten runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a row of so many servers must reach."""

    servers: int
    name: str
    low: tuple[float, float]
    high: tuple[float, float]
    """Increase of p50 and p99 in %."""


GOALS = (
    Goal(servers=52, name="+30 %", low=(2.0, 3.5), high=(0.5, 1.8)),
    Goal(servers=54, name="+35 %", low=(30.0, 32.0), high=(1.0, 2.3)),
    Goal(servers=56, name="+40 %", low=(80.0, 74.0), high=(2.0, 6.0)),
)
OVER_S, OVER_WORST_S = 60.0, 80.0
PEERS: tuple[tuple[str, float], ...] = (("none", 2.0), ("polca", 40.0), ("stepwise", 2.0))
FIGURES = ("over_s", "low_p50", "low_p99", "high_p50", "high_p99")


def policies(setting: Setting) -> Iterator[Result]:
    """Serve the files under every policy; then generated days, other breakers, a slow actuator."""
    folder = setting.data / "power"
    if folder.is_dir():
        files = [f"4h_seed{seed}" for seed in (SEEDS[:2] if setting.quick else SEEDS)]
        read = cache(lambda name: read_row_requests(folder / f"requests_row60_{name}.csv.gz"))
        recorded = {name: read(name) for name in files}
        for goal in GOALS:
            yield from _goal(goal, recorded)
        if not setting.quick:
            yield from _eight_hours(read("8h"))
            yield from _guarantees({**recorded, "8h": read("8h")})
            yield from _slow_actuator(recorded)
    else:
        say(f"{folder} is not there: recorded rows are left out (--data DIR)")
    if not setting.quick:
        yield from _own_days()


def _figures(run: RowRun, plain: Mapping[str, Latency], seconds: int) -> dict[str, float]:
    """Seconds over budget per 8 h, increases in %, and what may not happen."""

    def increase(name: str) -> tuple[float, float]:
        now, before = run.latency[name], plain[name]
        return 100.0 * (now.p50_s / before.p50_s - 1.0), 100.0 * (now.p99_s / before.p99_s - 1.0)

    low, high = increase("low"), increase("high")
    return {
        "over_s": run.seconds_over_budget * 28_800 / seconds,
        "low_p50": low[0],
        "low_p99": low[1],
        "high_p50": high[0],
        "high_p99": high[1],
        "brakes": float(run.brakes),
        "trips": float(run.trips),
        "lost_s": run.guarantee_lost_s,
    }


def _judged(
    requests: Mapping[str, RowRequests], servers: int, policy: Policy, latency_s: float, curve: str = RACK
) -> list[dict[str, float]]:
    """Return the figures by file."""
    found = []
    for name, each in requests.items():
        run = run_row(each, reference_row(servers, curve=curve, clock_latency_s=latency_s), policy)
        found.append(_figures(run, _plain(name, each, servers), each.duration_s))
    return found


_PLAIN: dict[tuple[str, int], Mapping[str, Latency]] = {}


def _plain(name: str, requests: RowRequests, servers: int) -> Mapping[str, Latency]:
    """Return the latencies of the same requests without a policy."""
    key = name, servers
    if key not in _PLAIN:
        _PLAIN[key] = run_uncapped(requests, reference_row(servers)).latency
    return _PLAIN[key]


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def _line(name: str, found: Sequence[Mapping[str, float]]) -> str:
    mean = _mean(found)
    worst = max(each["over_s"] for each in found)
    return (
        f"power: {name:22s} {mean['over_s']:7.0f} s over (worst {worst:.0f}),"
        f" low {mean['low_p50']:.2f}/{mean['low_p99']:.2f} %, high {mean['high_p50']:.2f}/{mean['high_p99']:.2f} %,"
        f" brakes {sum(each['brakes'] for each in found):.0f}, trips {sum(each['trips'] for each in found):.0f}"
    )


def _goal(goal: Goal, recorded: Mapping[str, RowRequests]) -> Iterator[Result]:
    for name, latency_s in PEERS:
        found = _judged(recorded, goal.servers, policy_of(name), latency_s)
        say(_line(f"{goal.name} {name}", found))
    peer = _mean(found)  # the plain loop, the last
    found = _judged(recorded, goal.servers, Guard(), 2.0)
    say(_line(f"{goal.name} guard", found))
    mean = _mean(found)
    limits = dict(zip(FIGURES, (OVER_S, *goal.low, *goal.high), strict=True))
    for figure, limit in limits.items():
        yield at_most(
            f"power: {goal.name}, {figure}, {len(found)} files (peer: stepwise)",
            mean[figure],
            "s" if figure == "over_s" else "%",
            limit,
            peer_value=peer[figure],
        )
    yield at_most(
        f"power: {goal.name}, over_s of the worst file",
        max(each["over_s"] for each in found),
        "s",
        OVER_WORST_S,
    )
    for figure in ("brakes", "trips", "lost_s"):
        unit = "s" if figure == "lost_s" else ""
        yield at_most(f"power: {goal.name}, {figure}", sum(each[figure] for each in found), unit, 0)


def _eight_hours(requests: RowRequests) -> Iterator[Result]:
    for goal in GOALS:
        figures = _figures(
            run_row(requests, reference_row(goal.servers), Guard()),
            _plain("8h", requests, goal.servers),
            requests.duration_s,
        )
        say(_line(f"{goal.name} guard, 8 h file", [figures]))
        yield at_most(f"power: {goal.name}, over_s, 8 h file", figures["over_s"], "s", OVER_WORST_S)


def _guarantees(requests: Mapping[str, RowRequests]) -> Iterator[Result]:
    for curve in OTHER_CURVES:
        lost = trips = 0.0
        for goal in GOALS:
            found = _judged(requests, goal.servers, Guard(), 2.0, curve)
            lost += sum(each["lost_s"] for each in found)
            trips += sum(each["trips"] + each["brakes"] for each in found)
        yield at_most(f"power: {curve}: guarantee lost, all files", lost, "s", 0)
        yield at_most(f"power: {curve}: trips and brakes, all files", trips, "", 0)
    few = dict(list(requests.items())[:3])
    for goal in GOALS:
        found = _judged(few, goal.servers, Guard(), 2.0, UPS)
        say(_line(f"{goal.name} guard, UPS", found))
        yield at_most(
            f"power: {goal.name}, {UPS}: guarantee lost", sum(each["lost_s"] for each in found), "s", 0
        )


def _slow_actuator(recorded: Mapping[str, RowRequests]) -> Iterator[Result]:
    found = _judged(recorded, 52, Guard(), 40.0)
    peer = _mean(_judged(recorded, 52, policy_of("polca-trained"), 40.0))
    say(_line("+30 % guard, 40 s", found))
    mean = _mean(found)
    yield at_most(
        "power: +30 %, orders take 40 s, over_s (peer: polca-trained)",
        mean["over_s"],
        "s",
        OVER_S,
        peer_value=peer["over_s"],
    )
    yield Result(
        name="power: +30 %, orders take 40 s, low_p50 (peer: polca-trained)",
        value=mean["low_p50"],
        unit="%",
        peer_value=peer["low_p50"],
    )


def _own_days() -> Iterator[Result]:
    """Serve the busiest hours of ten generated days: means with 95 % intervals."""
    days = {
        f"own {seed}": generate_requests(servers=60, seconds=MEASURED_S, seed=seed, start_s=OWN_START_S)
        for seed in OWN_SEEDS
    }
    for goal in GOALS:
        plain = _judged(days, goal.servers, policy_of("stepwise"), 2.0)
        found = _judged(days, goal.servers, Guard(), 2.0)
        say(_line(f"{goal.name} stepwise, own days", plain))
        say(_line(f"{goal.name} guard, own days", found))
        for figure in FIGURES:
            values = np.array([each[figure] for each in found])
            half = STUDENT_9 * float(values.std(ddof=1)) / math.sqrt(len(values))
            yield Result(
                name=f"power: {goal.name}, {figure}, ten generated days, ± {half:.2f} (peer: stepwise)",
                value=float(values.mean()),
                unit="s" if figure == "over_s" else "%",
                peer_value=_mean(plain)[figure],
            )
