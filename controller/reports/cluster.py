"""The report of a simulated cluster: one HTML file that needs no network, with the figures of a run and what limits it.

It exists so that people can judge a run without running anything. It draws and decides nothing: figures come from
`simulator.metrics` and `simulator.limits`; here are only sums, differences and ratios of what the run recorded. The
file appears whole or not at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from controller.cluster_fleet import PoolInUse
from controller.reports import closed_loop_plots as loop_plots
from controller.reports import cluster_plots as plots
from controller.reports.page import page_environment, write_page
from controller.simulation import SimulatedCluster
from simulator.fleet import EventKind, Role
from simulator.limits import limits_of
from simulator.metrics import Distribution, SloCheck, distribution, tbt_of
from simulator.record import RequestStatus, Saturation
from simulator.scenario import ScenarioEvent
from solver.domain.slo import SloMetric, SloTarget
from solver.domain.trace import Floats

MISSING = "-"
SMALLEST = 1e-4
"""Figures below it are not told apart."""
MOST_MARKS = 30
"""More events than that are listed and not drawn."""
MOST_POOLS = 8
"""Pools that the headline names."""
MOST_ACTIONS = 200
"""Changes of a planner that are listed."""
MOST_MODELS = 6
"""Models that get a curve of their own."""
HEADLINES = {True: "The SLO is met", False: "The SLO is missed", None: "No SLO was asked for"}
KEPT_UP = {
    Saturation.STABLE: "the fleet kept up with its requests",
    Saturation.BACKLOGGED: "for a time the fleet fell behind",
    Saturation.OVERLOADED: "the fleet fell behind for good",
}
METRICS = {SloMetric.TTFT: "TTFT", SloMetric.TBT: "TBT", SloMetric.E2E: "End to end"}
NAMES_OF_DEFINITIONS = {
    "ttft_s": "TTFT",
    "tbt_s": "TBT",
    "e2e_s": "End to end",
    "percentiles": "Percentiles",
    "slo": "SLO",
    "attainment_ratio": "Inside all limits",
    "throughput": "Throughput",
    "utilisation": "At work",
    "power_w": "Power",
    "cost_usd_per_million_tokens": "Cost per million tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Latencies:
    """Seconds of every request, and which of them count, in the order of the requests."""

    by_metric: dict[SloMetric, Floats]
    queue_s: Floats
    used: Any
    """Mask: completed, after the warm-up."""
    rejected: Any
    """Mask: rejected, after the warm-up."""


def write_cluster_report(
    path: Path, simulated: SimulatedCluster, *, version: str = "", timings: bool = True
) -> None:
    """Write the report; its folder is made if it is missing. Without timings equal runs give equal bytes.

    Parameters
    ----------
    version
        Of Ballast; empty: not told.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = render_cluster_report(simulated, version=version, timings=timings)
    write_page(path, text)


def render_cluster_report(simulated: SimulatedCluster, *, version: str = "", timings: bool = True) -> str:
    """Return the report as HTML text."""
    run, figures, record = simulated, simulated.figures, simulated.record
    environment = page_environment()
    environment.filters["figure"] = figure
    environment.filters["usd"] = usd
    environment.filters["percent"] = percent
    environment.filters["share_of_limit"] = share_of_limit
    environment.filters["requests"] = requests_words
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    latencies = _latencies(run)
    names = [pool.name for pool in run.pools]
    # What a planner starts and stops is drawn as the mix; its single events would fill pages.
    marks_s, events = _events(run.scenario.events) if run.planned is None else ((), [])
    line = plots.timeline(
        record.series,
        names,
        horizon_s=figures.horizon_s,
        arrivals_s=run.requests.arrival_s,
        ends_s=_ends(run),
        warm_up_s=figures.warm_up_s,
        marks_s=marks_s if len(marks_s) <= MOST_MARKS else (),
    )
    drawn = {"latencies": plots.distributions(_panels(run, latencies))}
    stages = _stages(run, latencies)
    if stages:
        drawn["stages"] = plots.stages(stages)
    if figures.slo.checks:
        drawn["targets"] = plots.targets([_bar(check) for check in figures.slo.checks])
    if line is not None:
        drawn["load"] = plots.load(line)
        if figures.power is not None:
            drawn["power"] = plots.power(line, budget_w=figures.power.budget_w)
    drawn |= _planned_plots(run)
    return environment.get_template("cluster.html.j2").render(
        run=run,
        figures=figures,
        scenario=run.scenario,
        version=version,
        timings=timings,
        missing=MISSING,
        headline=HEADLINES[figures.slo.met],
        kept_up=KEPT_UP[figures.saturation],
        fleet=[(pool, _role_words(pool), _instances(pool)) for pool in run.pools],
        most_pools=MOST_POOLS,
        actions=_actions(run),
        most_actions=MOST_ACTIONS,
        duration=duration(figures.end_time_s),
        tightest=figures.slo.limiting,
        tightest_words=None if figures.slo.limiting is None else target_words(figures.slo.limiting.target),
        incomplete_counted=_incomplete_counted(run, latencies),
        busiest=_busiest(run),
        limits=limits_of(figures),
        links=_links(run),
        checks=[_check_row(check) for check in figures.slo.checks],
        relative=run.scenario.slo.relative,
        latency_rows=_latency_rows(run, latencies),
        lost=int(latencies.rejected.sum()),
        pool_rows=_pool_rows(run),
        usd_per_h=_per_hour(figures.cost_usd, figures.horizon_s),
        prompt_tokens=int(run.requests.prompt_tokens.sum()),
        dropped={reason.replace("_", " "): rows for reason, rows in run.dropped_rows.items() if rows},
        step_models=_step_models(run.pools),
        definitions=[
            (NAMES_OF_DEFINITIONS.get(name, name), words) for name, words in run.definitions.items()
        ],
        events=events,
        marks_drawn=len(marks_s) <= MOST_MARKS,
        plots={name: Markup(text) for name, text in drawn.items()},  # noqa: S704 - our own SVG; every text in it is escaped
    )


def _planned_plots(run: SimulatedCluster) -> dict[str, str]:
    """Draw what a planner did: the mix beside the traffic, and the windows that missed."""
    planned, attained = run.planned, run.attained
    if planned is None or attained is None:
        return {}
    end_s = float(run.requests.arrival_s[-1])
    window_s = min(attained.window_s, max(60.0, end_s / 24.0))
    arrived = np.bincount((run.requests.arrival_s // window_s).astype(np.int64)) / window_s
    panel = loop_plots.MixPanel(
        label="What the instances that serve carry inside the SLO",
        times_s=planned.times_s,
        carried_rps=planned.carried_rps,
        cap_ratio=planned.cap_ratio,
    )
    outside = loop_plots.Rows(
        labels=("this run",), step_s=attained.window_s, values=(1.0 - attained.of_window,)
    )
    return {
        "mix": loop_plots.mix_over_time(
            [panel], [pool.name for pool in run.pools], rate_rps=arrived, window_s=window_s, end_s=end_s
        ),
        "missed": loop_plots.missed_windows(outside, allowed_ratio=1.0 - attained.percentile / 100.0),
    }


def _actions(run: SimulatedCluster) -> list[tuple[str, str, str, str]]:
    """Return (time, model, what is to run, why) of a planner's changes."""
    if run.planned is None:
        return []
    rows = []
    for decision in run.planned.decisions:
        names = [pool.name for pool in run.pools if pool.model == decision.model]
        mix = ", ".join(
            f"{count} × {name}" for name, count in zip(names, decision.replicas, strict=True) if count
        )
        why = f"{decision.why}; {decision.rate_rps:.3g} requests/s asked for ({decision.rule})"
        rows.append((duration(decision.time_s), decision.model, mix or "nothing", why))
    return rows


def figure(value: float | None, unit: str = "") -> str:
    """Write a figure in four digits, thousands in full; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if 0.0 < abs(value) < SMALLEST:
        text = f"<{SMALLEST:g}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} {unit}" if unit else text


def usd(value: float | None) -> str:
    """Write dollars: cents, and more digits below a dollar; a dash where there is no price."""
    if value is None:
        return MISSING
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.3g}"


def percent(ratio: float | None, digits: int = 1) -> str:
    """Write a ratio in per cent; a dash where there is none."""
    return MISSING if ratio is None else f"{100 * ratio:,.{digits}f} %"


def share_of_limit(check: SloCheck, digits: int = 1) -> str:
    """Write a target's value over its limit: per cent, or times where that is easier to read."""
    if check.value is None:
        return MISSING
    return percent(check.margin_ratio, digits) if check.margin_ratio < 10 else f"{check.margin_ratio:,.0f} ×"


def requests_words(requests: int) -> str:
    """Write a number of requests with its noun."""
    return "1 request" if requests == 1 else f"{requests:,} requests"


def duration(seconds: float) -> str:
    """Write a length of time in the two largest units that it has."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if seconds < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def target_words(target: SloTarget) -> str:
    """Write a target for people: 'TTFT p99 ≤ 1 s'."""
    limit = f"{target.limit_s:g} s" if target.limit_s is not None else f"{target.limit_ratio:g} × alone"
    return f"{METRICS[target.metric]} p{target.percentile:g} ≤ {limit}"


def _met_words(check: SloCheck) -> str:
    if check.value is None and check.met:
        return MISSING  # nobody to judge it by
    return "yes" if check.met else "no"


def _value_words(check: SloCheck) -> str:
    if check.value is None:
        return "never: too many rejected" if check.margin_ratio > 0 else "no request has it"
    return figure(check.value, "s" if check.target.limit_ratio is None else "×")


def _bar(check: SloCheck) -> plots.TargetBars:
    words = _value_words(check)
    if check.value is not None:
        words += f"  ({share_of_limit(check, 0)})"
    return plots.TargetBars(
        label=target_words(check.target),
        shares=(None if check.value is None and check.margin_ratio <= 0 else check.margin_ratio,),
        words=(words,),
    )


def _check_row(check: SloCheck) -> dict[str, Any]:
    target = check.target
    return {
        "metric": METRICS[target.metric],
        "percentile": f"p{target.percentile:g}",
        "limit": figure(target.limit_s, "s")
        if target.limit_s is not None
        else figure(target.limit_ratio, "× alone"),
        "value": _value_words(check),
        "share": share_of_limit(check),
        "met": _met_words(check),
    }


def _latencies(run: SimulatedCluster) -> _Latencies:
    record, counted = run.record, run.requests.arrival_s >= run.figures.warm_up_s
    return _Latencies(
        by_metric={
            SloMetric.TTFT: record.ttft_s,
            SloMetric.TBT: tbt_of(record, run.requests, per_output_token=run.tbt_per_output_token),
            SloMetric.E2E: record.e2e_s,
        },
        queue_s=record.queue_s,
        used=counted & record.completed(),
        rejected=counted & (record.status == RequestStatus.REJECTED),
    )


def _panels(run: SimulatedCluster, latencies: _Latencies) -> list[plots.Panel]:
    groups = [("all requests", np.ones(len(run.record), dtype=bool))]
    if 1 < len(run.models) <= MOST_MODELS:
        groups += [(name, run.model_of_request == m) for m, name in enumerate(run.models)]
    panels = []
    for metric, values in latencies.by_metric.items():
        has = run.requests.output_tokens > 1 if metric is SloMetric.TBT else np.ones(len(values), dtype=bool)
        curves = []
        for label, mine in groups:
            known = values[latencies.used & mine]
            curves.append(
                plots.Curve(
                    label=label,
                    values_s=known[np.isfinite(known)],
                    lost=int((latencies.rejected & mine & has).sum()),
                )
            )
        limits = tuple(
            plots.Limit(percentile=check.target.percentile, limit_s=check.target.limit_s, met=check.met)
            for check in run.figures.slo.checks
            if check.target.metric is metric and check.target.limit_s is not None
        )
        panels.append(
            plots.Panel(
                title=METRICS[metric],
                curves=tuple(curves),
                limits=limits,
                milliseconds=metric is SloMetric.TBT,
            )
        )
    return panels


def _stages(run: SimulatedCluster, latencies: _Latencies) -> list[plots.Stages]:
    """Split the mean stay of completed requests: all, the slowest tenth, and each model where there are several."""
    record, used = run.record, latencies.used
    if not used.any():
        return []
    slow = used & (record.e2e_s >= np.percentile(record.e2e_s[used], 90.0))
    groups = [("all requests", used), ("slowest tenth to end", slow)]
    if 1 < len(run.models) <= MOST_MODELS:
        groups += [(name, used & (run.model_of_request == m)) for m, name in enumerate(run.models)]
    rows = []
    for label, mine in groups:
        if mine.any():
            queue_s, ttft_s, e2e_s = (
                float(values[mine].mean()) for values in (record.queue_s, record.ttft_s, record.e2e_s)
            )
            rows.append(plots.Stages(label=label, seconds=(queue_s, ttft_s - queue_s, e2e_s - ttft_s)))
    return rows


def _ends(run: SimulatedCluster) -> Floats:
    done = run.record.completed()
    ends_s: Floats = run.requests.arrival_s[done] + run.record.e2e_s[done]
    return ends_s


def _incomplete_counted(run: SimulatedCluster, latencies: _Latencies) -> int:
    return run.figures.requests.counted - int(latencies.used.sum()) - int(latencies.rejected.sum())


def _latency_rows(run: SimulatedCluster, latencies: _Latencies) -> list[tuple[str, Distribution | None]]:
    """Return one row per latency, and per model below it where there are several."""
    figures = run.figures
    whole = {
        "TTFT": figures.ttft_s,
        "TBT": figures.tbt_s,
        "End to end": figures.e2e_s,
        "Queue": figures.queue_s,
    }
    values = (*latencies.by_metric.values(), latencies.queue_s)
    rows = []
    for (name, all_of_them), of_each in zip(whole.items(), values, strict=True):
        rows.append((name, all_of_them))
        if len(run.models) > 1:
            rows += [
                (f"\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}{model}", distribution(of_each[mine]))
                for m, model in enumerate(run.models)
                if (mine := latencies.used & (run.model_of_request == m)).any()
            ]
    return rows


def _busiest(run: SimulatedCluster) -> tuple[str, float] | None:
    known = [
        (pool.name, pool.utilisation_ratio)
        for pool in run.figures.pools
        if pool.utilisation_ratio is not None
    ]
    return max(known, key=lambda pair: pair[1], default=None)


def _pool_rows(run: SimulatedCluster) -> list[dict[str, Any]]:
    record = run.record
    colours = plots.pool_colours([pool.name for pool in run.pools], record.series.up.sum(axis=1))
    rows = []
    for p, (pool, used) in enumerate(zip(run.figures.pools, run.pools, strict=True)):
        mine = (record.pool_of_instance == p) & (record.up_s > 0)
        each = record.busy_s[mine] / record.up_s[mine]
        hours = float(record.up_s[record.pool_of_instance == p].sum()) / 3600.0
        mean_w = None if pool.energy_j is None or not hours else pool.energy_j / hours / 3600.0
        rows.append(
            {
                "figures": pool,
                "colour": colours[pool.name],
                "role": used.role,
                "instances": _instances(used),
                "model": used.model,
                "least": float(each.min()) if len(each) else None,
                "most": float(each.max()) if len(each) else None,
                "kwh": None if pool.energy_j is None else pool.energy_j / 3.6e6,
                "idle_ratio": None
                if not pool.energy_j or pool.idle_j is None
                else pool.idle_j / pool.energy_j,
                "mean_w": mean_w,
                "kv_tokens": used.kv_capacity_tokens,
                "price": used.price_usd_per_h,
            }
        )
    return rows


def _links(run: SimulatedCluster) -> str | None:
    """Say how full the links are that carry KV from prefill to decode pools."""
    record, bytes_per_s = run.record, run.scenario.links.bytes_per_s
    if not record.transfers or run.figures.horizon_s <= 0.0:
        return None
    ends = [
        sum(pool.count for pool in run.pools if pool.role in {role, Role.BOTH})
        for role in (Role.PREFILL, Role.DECODE)
    ]
    share = record.transfer_bytes / (bytes_per_s * run.figures.horizon_s * max(1, min(ends)))
    each_s = record.transfer_bytes / record.transfers / bytes_per_s
    return (
        f"KV links: {record.transfers:,} transfers of {record.transfer_bytes / record.transfers / 2**20:,.0f} MiB in"
        f" the mean ({1000 * each_s:.3g} ms on a free link) fill {100 * share:.2g} % of the links"
    )


def _events(events: Sequence[ScenarioEvent]) -> tuple[tuple[float, ...], list[tuple[int, str]]]:
    """Return the distinct times, and each event with the number of its time."""
    times = sorted({event.time_s for event in events})
    words = []
    for event in sorted(events, key=lambda event: event.time_s):
        which = (
            f"instance {event.index} of {event.pool}" if event.index is not None else f"all of {event.pool}"
        )
        cap = ""
        if event.kind is EventKind.CAP:
            cap = " lifted" if event.value_w is None else f" at {event.value_w:g} W per GPU"
        words.append((times.index(event.time_s) + 1, f"{event.time_s:g} s: {event.kind}{cap}, {which}"))
    return tuple(times), words


def _role_words(pool: PoolInUse) -> str:
    return pool.name if pool.role is Role.BOTH else f"{pool.name} ({pool.role})"


def _instances(pool: PoolInUse) -> str:
    """Say how many instances of what: '25 × (8×H100-SXM)', '4 × L40S'."""
    each = pool.gpu_type if pool.gpus_per_instance == 1 else f"({pool.gpus_per_instance}×{pool.gpu_type})"
    cap = "" if pool.power_cap_w_per_gpu is None else f" at {pool.power_cap_w_per_gpu:g} W"
    return f"{pool.count} × {each}{cap}"


def _step_models(pools: Sequence[PoolInUse]) -> list[tuple[str, str, str, str]]:
    """Return (pools, kind, provenance, known error), like ones together."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for pool in pools:
        grouped.setdefault((pool.step_model, pool.provenance, pool.known_error), []).append(pool.name)
    return [(", ".join(names), *key) for key, names in grouped.items()]


def _per_hour(cost_usd: float | None, seconds: float) -> float | None:
    return None if cost_usd is None or seconds <= 0 else cost_usd * 3600.0 / seconds
