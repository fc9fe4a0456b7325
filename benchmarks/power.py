"""How many servers a budget holds, how it is shared out, and how policies keep it.

It exists so that the targets of power management are measured in one run. Every part is a function of its own in
`PARTS`. Nothing here was measured on a GPU: the recordings are a simulated row's.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.power_faults import faults
from benchmarks.power_policies import policies
from benchmarks.results import Result, Setting, at_most, say
from simulator.row.generate import generate_requests
from simulator.row.model import REFERENCE_PLANT
from simulator.row.plant import Plant
from simulator.row.request_file import read_row_requests
from simulator.row.run import reference_row, run_row
from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER, START_THETA
from solver.domain.power_trace import Floats, ServerPowerTrace
from solver.domain.power_tree import PowerDomain, PowerLevel, PowerTree
from solver.power.admission import Admission, AdmissionQuestion, admit_servers
from solver.power.budgets import Consumer, Method, share_budgets
from solver.power.split import Pool, phase_levels, single_budget, split_budget, split_with_one_clock
from solver.power.tails import MINUTES_PER_YEAR
from telemetry.sources.power_trace import read_power_trace

BUDGET_W = 260_000.0
DAY, WEEK = "server_power_day_10s.csv.gz", "row40_week_2s.csv.gz"
SEEDS = tuple(range(11, 17))
WEEK_SEEDS = tuple(range(101, 107))
WEEK_SERVERS = 60
OUT_OF_BAND_S = 46.0
BUDGETS_LIMIT_S = 0.05
SPLITS = ((0.95, 0.9743), (0.90, 0.9483), (0.85, 0.9130), (0.80, 0.8710))


def bench_power(setting: Setting) -> Iterator[Result]:
    """Judge recordings, share budgets out, split one between pools."""
    for part in PARTS:
        yield from part(setting)


def _admission(setting: Setting) -> Iterator[Result]:
    folder = setting.data / "power"
    if not folder.is_dir():
        say(f"{folder} is not there: admission is left out (--data DIR)")
        return
    day = read_power_trace(folder / DAY)
    week = read_power_trace(folder / WEEK, servers_in_trace=40)
    asked = AdmissionQuestion(budget_w=BUDGET_W)
    began_s = time.perf_counter()
    answer = admit_servers(day, asked)
    took_s = time.perf_counter() - began_s
    slow = replace(asked, curve=BREAKER_CURVES["fast_thermal_135pct_60s"], recourse_s=OUT_OF_BAND_S)
    ups = replace(asked, curve=BREAKER_CURVES["ups_failover_133pct_10s"])
    scaled = admit_servers(week, replace(asked, warm_up_s=3600.0))
    assert isinstance(day, ServerPowerTrace)  # noqa: S101 - by its columns
    independent = _independent_servers(day)
    rows: tuple[tuple[str, int | None, int, int | None], ...] = (
        (f"without capping, {DAY} (peer: independent sums)", answer.without.servers, 49, independent),
        (f"with capping, {DAY}", answer.servers_with_capping, 54, None),
        ("with capping, fast thermal out of band", admit_servers(day, slow).servers_with_capping, 48, None),
        ("with capping, UPS failover in band", admit_servers(day, ups).servers_with_capping, 48, None),
        (f"without capping, {WEEK}", scaled.without.servers, 48, None),
    )
    for name, servers, right, peer in rows:
        yield Result(
            name=f"power: servers {name}",
            value=math.nan if servers is None else servers,
            unit="servers",
            peer_value=peer,
            target=f"= {right}",
            met=servers == right,
        )
    for name, admission in (("day", answer), ("week", scaled)):
        interval = admission.without.interval_90
        say(
            f"power: {name}: risk {admission.without.risk_minutes_per_year:.3g},"
            f" one more {admission.without.next_risk_minutes_per_year:.3g} min/year, 90 % {interval}"
        )
    yield Result(name="power: admission of a day of 60 servers", value=took_s, unit="s")
    if not setting.quick:
        yield from _on_other_seeds(setting, answer)


def _independent_servers(day: ServerPowerTrace) -> int:
    """Return what sums of independent normal servers would allow: it misses what the row's servers share."""
    quantile = statistics.NormalDist().inv_cdf(1.0 - 1.0 / MINUTES_PER_YEAR)
    mean, variance = day.server_w.mean(axis=0).cumsum(), day.server_w.var(axis=0).cumsum()
    return int(np.count_nonzero(mean + quantile * np.sqrt(variance) <= BUDGET_W))


def _on_other_seeds(setting: Setting, answer: Admission) -> Iterator[Result]:
    """Serve the busiest hours of six other days with the admitted servers and nobody who caps."""
    over = {}
    for servers in (answer.without.servers, answer.without.servers + 1):
        seconds = 0
        for seed in SEEDS:
            requests = read_row_requests(
                setting.data / "power" / f"requests_row60_4h_seed{seed}.csv.gz", duration_s=14_400
            )
            seconds += run_row(requests, reference_row(servers)).seconds_over_budget
        over[servers] = seconds
        say(f"power: {servers} servers uncapped on {len(SEEDS)} other seeds: {seconds} s over budget")
    here = over[answer.without.servers]
    yield at_most(
        f"power: over budget uncapped at {answer.without.servers}, 6 x 4 h (peer: one server more)",
        here,
        "s",
        0,
        peer_value=over[answer.without.servers + 1],
    )


def _own_weeks(setting: Setting) -> Iterator[Result]:
    """Judge each of several generated weeks, beside counting minutes over budget in all of them together."""
    if setting.quick:
        return
    over, minutes, admitted, by_pareto = np.zeros(WEEK_SERVERS, dtype=np.int64), 0, [], []
    for seed in WEEK_SEEDS:
        server_w = _generated_week(seed)
        draw = server_w.cumsum(axis=1)
        maxima = draw.reshape(-1, 30, WEEK_SERVERS).max(axis=1)
        over += (maxima > BUDGET_W).sum(axis=0)
        minutes += len(maxima)
        trace = ServerPowerTrace(
            name=f"week {seed}",
            t_s=2.0 * np.arange(len(server_w), dtype=np.float64),
            period_s=2.0,
            server_w=server_w,
            servers=tuple(f"s{k:02}" for k in range(WEEK_SERVERS)),
        )
        answer = admit_servers(trace, AdmissionQuestion(budget_w=BUDGET_W))
        admitted.append(answer.without.servers)
        by_pareto.append(answer.without.pareto.servers)
        say(f"power: generated week {seed}: {admitted[-1]} servers, generalised Pareto {by_pareto[-1]}")
    # Six weeks tell 8.7 minutes a year and more from none.
    true = int(np.count_nonzero(over * MINUTES_PER_YEAR / minutes <= 1.0))
    say(f"power: generated weeks: {over[true]} of {minutes} minutes over budget with {true + 1} servers")
    yield at_most(
        f"power: largest number admitted by one of {len(WEEK_SEEDS)} weeks (peer: Pareto), limit: counted in all",
        max(admitted),
        "servers",
        true,
        peer_value=max(by_pareto),
    )
    yield Result(
        name="power: smallest number admitted by one of them (peer: Pareto)",
        value=min(admitted),
        unit="servers",
        peer_value=min(by_pareto),
    )


def _generated_week(seed: int) -> Floats:
    """Serve a week of requests uncapped; returns 2 s means by server after the first hour, [samples, servers]."""
    seconds = 7 * 24 * 3600
    plant = Plant(
        row=reference_row(WEEK_SERVERS),
        model=REFERENCE_PLANT,
        requests=generate_requests(servers=WEEK_SERVERS, seconds=seconds, seed=seed),
        seconds=seconds,
        start_theta=START_THETA,
    )
    server_w = np.empty((seconds // 2, WEEK_SERVERS))
    for sample in range(seconds // 2):
        plant.advance_to(2 * sample + 2)
        server_w[sample] = plant.server_mean_w(2)
    return server_w[1800:]


def _budgets(setting: Setting) -> Iterator[Result]:
    """Share a site's budget out to 2,000 GPUs below rows, racks and nodes."""
    tree, consumers = _site()
    runs = 5 if setting.quick else 21
    seconds = {method: _wall_s(tree, consumers, method, runs) for method in ("fill", "highs")}
    shares = share_budgets(tree, consumers)
    solved = share_budgets(tree, consumers, method="highs")
    yield at_most(
        f"power: budgets of 2,000 GPUs, 4 levels, 2 priorities, median of {runs} (peer: HiGHS)",
        seconds["fill"],
        "s",
        BUDGETS_LIMIT_S,
        peer_value=seconds["highs"],
        ratio=seconds["highs"] / seconds["fill"],
    )
    over_w = max(0.0, float((shares.domain_w - shares.limit_w).max()))
    yield at_most("power: budgets, most watts above a limit after rounding", over_w, "W", 0)
    worse = max(solved.fractional_utility[rank] / utility - 1.0 for rank, utility in shares.utility.items())
    yield at_most(
        "power: budgets, utility below the linear program's, rounding included", worse, "ratio", 1e-3
    )


def _site() -> tuple[PowerTree, list[Consumer]]:
    domains = [PowerDomain(name="site", level=PowerLevel.SITE, budget_w=800_000.0)]
    consumers = []
    draw = np.random.default_rng(7)
    for row in (f"row{k}" for k in range(5)):
        domains.append(PowerDomain(name=row, level=PowerLevel.ROW, parent="site", budget_w=168_000.0))
        for rack in (f"{row}-rack{k}" for k in range(10)):
            domains.append(
                PowerDomain(name=rack, level=PowerLevel.RACK, parent=row, budget_w=17_600.0, static_w=99.5)
            )
            for node in (f"{rack}-node{k}" for k in range(5)):
                domains.append(PowerDomain(name=node, level=PowerLevel.NODE, parent=rack, budget_w=3680.0))
                priority = int(draw.integers(0, 2))
                weight = float(draw.uniform(0.5, 2.0))
                consumers += [
                    Consumer(
                        name=f"{node}-gpu{gpu}",
                        place=node,
                        min_w=62.5,
                        max_w=500.0,
                        priority=priority,
                        weight=weight,
                        points=((62.5, 0.0), (250.0, 0.65), (400.0, 0.92), (500.0, 1.0)),
                    )
                    for gpu in range(8)
                ]
    return PowerTree(domains=tuple(domains)), consumers


def _wall_s(tree: PowerTree, consumers: list[Consumer], method: Method, runs: int) -> float:
    """Median seconds of a call, building included."""
    share_budgets(tree, consumers, method=method)
    seconds = []
    for _ in range(runs):
        began_s = time.perf_counter()
        share_budgets(tree, consumers, method=method)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds)


def _split(_setting: Setting) -> Iterator[Result]:
    """Split a budget between 16 prefill and 36 decode servers."""
    pools = [
        Pool(
            name="prefill",
            place="budget",
            servers=16,
            levels=phase_levels(REFERENCE_SERVER, tdp_ratio=1.02, clock_share=0.8),
        ),
        Pool(
            name="decode",
            place="budget",
            servers=36,
            levels=phase_levels(REFERENCE_SERVER, tdp_ratio=0.68, clock_share=0.2),
        ),
    ]
    full_w = sum(pool.servers * pool.levels[-1].server_w for pool in pools)
    for share, best in SPLITS:
        tree = single_budget(share * full_w)
        ours, peer = split_budget(pools, tree), split_with_one_clock(pools, tree)
        say(f"power: split at {share:.0%}: {ours.mhz} MHz, one clock {peer.mhz[0]} MHz")
        yield Result(
            name=f"power: speed at {share:.0%} of full draw (peer: one clock)",
            value=ours.speed_ratio,
            unit="ratio",
            peer_value=peer.speed_ratio,
            ratio=ours.speed_ratio / peer.speed_ratio,
            target=f"= {best:g}",
            met=abs(ours.speed_ratio - best) <= 5e-5,
        )


PARTS: tuple[Callable[[Setting], Iterator[Result]], ...] = (
    _admission,
    _own_weeks,
    _budgets,
    _split,
    policies,
    faults,
)
