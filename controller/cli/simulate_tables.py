"""Simulated runs as tables for people: latencies, pools, what limits."""

import click
import numpy as np

from controller.cli.output import TABLE_WIDTH, print_table
from controller.simulation import SimulatedCluster
from simulator.limits import limits_of
from simulator.metrics import Distribution, SloCheck

MOST_MIX_ROWS = 24


def print_cluster(run: SimulatedCluster, *, timings: bool) -> None:
    """Print a run on stdout."""
    figures = run.figures
    counts = figures.requests
    took = f" in {run.wall_s:.2f} s" if timings else ""
    click.echo(
        f"{run.scenario.name}: {counts.offered:,} requests of {run.trace_name} over {figures.end_time_s:,.1f} s"
        f" simulated{took}"
    )
    click.echo(
        f"  completed {counts.completed:,}, rejected {counts.rejected:,}, incomplete {counts.incomplete:,};"
        f" after the warm-up of {figures.warm_up_s:g} s: {counts.counted:,}"
    )
    _print_latencies(run)
    _print_checks(run)
    _print_pools(run)
    _print_planner(run)
    _say("What limits", "; ".join(limits_of(figures)))
    _print_totals(run)
    _say("Step model", f"{run.step_model}; known error: {run.known_error}")
    _say("TTFT", run.definitions["ttft_s"])
    _say("TBT", run.definitions["tbt_s"])
    _say("Trace", f"sha256 {run.trace_sha256[:16]}..., seed {run.seed}; -o json has all figures")


def _say(name: str, text: str) -> None:
    """Print a line of prose, wrapped to the width of the tables."""
    click.echo(click.wrap_text(f"{name}: {text}", TABLE_WIDTH, subsequent_indent="  "))


def _print_latencies(run: SimulatedCluster) -> None:
    figures = run.figures
    rows = [
        _latency(name, values)
        for name, values in (
            ("TTFT", figures.ttft_s),
            ("TBT", figures.tbt_s),
            ("E2E", figures.e2e_s),
            ("queue", figures.queue_s),
        )
    ]
    columns = ("seconds", "mean", "p50", "p90", "p95", "p99", "max")
    print_table("Latency of completed requests", columns, rows, right=range(1, 7))


def _latency(name: str, values: Distribution | None) -> tuple[str | None, ...]:
    if values is None:
        return (name, *[None] * 6)
    shown = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
    return (name, *(f"{value:.4g}" for value in shown))


def _print_checks(run: SimulatedCluster) -> None:
    slo = run.figures.slo
    if slo.met is None:
        return
    rows = [(str(check.target), _value(check), "yes" if check.met else "NO") for check in slo.checks]
    attained = (
        ""
        if slo.attainment_ratio is None
        else f", {100.0 * slo.attainment_ratio:.1f} % of requests inside all"
    )
    title = f"SLO {'met' if slo.met else 'MISSED'}{attained}"
    print_table(title, ("target", "reached", "met"), rows, right=(1,))


def _value(check: SloCheck) -> str | None:
    if check.value is None:
        return None
    return f"{check.value:.4g}{'x' if check.target.limit_ratio is not None else ' s'}"


def _print_pools(run: SimulatedCluster) -> None:
    rows = []
    for pool, used in zip(run.figures.pools, run.pools, strict=True):
        cap = "" if used.power_cap_w_per_gpu is None else f" at {used.power_cap_w_per_gpu:g} W"
        rows.append(
            (
                pool.name,
                used.role,
                f"{used.count} x {used.gpus_per_instance} {used.gpu_type}{cap}",
                used.step_model,
                None if pool.utilisation_ratio is None else f"{100.0 * pool.utilisation_ratio:.1f} %",
                f"{pool.mean_running:.1f}",
                f"{pool.mean_waiting:.1f}",
                None if pool.energy_j is None else f"{pool.energy_j / 3.6e6:.3f}",
                None if pool.cost_usd is None else f"{pool.cost_usd:.2f}",
            )
        )
    columns = ("pool", "role", "instances", "step model", "busy", "running", "waiting", "kWh", "US$")
    print_table("Pools (running and waiting: requests per instance)", columns, rows, right=range(4, 9))


def _print_planner(run: SimulatedCluster) -> None:
    """Say what the planner did, the mix at most so many times, and what came of it."""
    planned, attained, rules = run.planned, run.attained, run.scenario.planner
    if planned is None or attained is None or rules is None:
        return
    changed = np.flatnonzero(np.any(np.diff(planned.ready, axis=0, prepend=-1) != 0, axis=1)).tolist()
    shown = [changed[k] for k in _spread(len(changed), MOST_MIX_ROWS)]
    rows = [
        (
            f"{planned.times_s[t] / 3600.0:.2f}",
            f"{planned.rate_rps[t]:.2f}",
            f"{planned.capacity_rps[t]:.2f}",
            ", ".join(
                f"{count} {pool.name}"
                for pool, count in zip(run.pools, planned.ready[t].tolist(), strict=True)
                if count
            ),
            f"{100.0 * planned.cap_ratio[t]:.0f} %",
        )
        for t in shown
    ]
    columns = ("hour", "asked rps", "carried rps", "instances that serve", "cap of TDP")
    of = "" if len(shown) == len(changed) else f" ({len(shown)} of {len(changed)} changes)"
    print_table(f"Planner {rules.policy}: the mix over time{of}", columns, rows, right=(0, 1, 2, 4))
    cost = "" if run.figures.cost_usd is None else f"{run.figures.cost_usd:,.2f} US$; "
    energy = "" if run.figures.energy_j is None else f"{run.figures.energy_j / 3.6e6:,.1f} kWh; "
    _say(
        "Planner",
        f"{cost}{energy}{100.0 * attained.request_ratio:.2f} % of all requests inside the SLO's limits,"
        f" {100.0 * attained.window_ratio:.1f} % of the windows of {attained.window_s:g} s kept"
        f" p{attained.percentile:g};"
        f" {len(planned.decisions)} changes, {planned.started} instances started, {planned.stopped} stopped",
    )
    used = ", ".join(f"{rule} {times:,} times" for rule, times in planned.rules.items())
    _say("Rate from", used or "nothing was known of the traffic")
    for why, times in planned.no_plan.items():
        _say("No plan", f"{why} ({times:,} times); what ran stayed")


def _spread(number: int, most: int) -> list[int]:
    """Choose at most so many of the first whole numbers, evenly, first and last among them."""
    if number <= most:
        return list(range(number))
    return [round(k * (number - 1) / (most - 1)) for k in range(most)]


def _print_totals(run: SimulatedCluster) -> None:
    figures = run.figures
    parts = []
    if figures.requests_per_s is not None and figures.output_tokens_per_s is not None:
        parts.append(
            f"{figures.requests_per_s:.2f} requests/s, {figures.output_tokens_per_s:,.0f} output tokens/s"
        )
    if figures.power is not None:
        parts.append(f"{figures.power.mean_w:,.0f} W mean, {figures.power.max_w:,.0f} W max")
    if figures.energy_j_per_output_token is not None:
        parts.append(f"{figures.energy_j_per_output_token:.2f} J per output token")
    if figures.cost_usd_per_million_tokens is not None:
        parts.append(f"{figures.cost_usd_per_million_tokens:.2f} US$ per million output tokens")
    if figures.transfers:
        parts.append(f"{figures.transfers:,} transfers of {figures.transfer_bytes / 2.0**30:,.0f} GiB")
    if figures.cached_tokens:
        parts.append(f"{figures.cached_tokens:,.0f} prompt tokens found in prefix caches")
    _say("Totals", "; ".join(parts))
