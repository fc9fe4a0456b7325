"""Simulated rows for programs and people: the stable JSON answer ``row-simulation/1`` and tables."""

from typing import Any

import click

from controller.cli.answers import ballast_version, rounded
from controller.cli.output import TABLE_WIDTH, print_table
from controller.row_simulation import SimulatedRow
from solver.power.policies.polca import Polca
from solver.power.policies.protocol import Policy

SCHEMA = "row-simulation/1"


def row_answer(simulated: SimulatedRow, *, timings: bool = True) -> dict[str, Any]:
    """Write ``row-simulation/1``; without timings equal runs give equal bytes."""
    run, row = simulated.run, simulated.row
    increase = run.increase(simulated.uncapped)
    return {
        "schema": SCHEMA,
        "version": ballast_version(),
        "policy": run.policy,
        **_thresholds(simulated.policy),
        "servers": row.servers,
        "budget_w": rounded(row.budget_w),
        "actuator_latency_s": rounded(row.clock_latency_s),
        "duration_s": simulated.requests.duration_s,
        "seed": simulated.question.seed,
        "requests": {"offered": run.offered, "completed": run.completed},
        "breaker": {
            "curve": row.curve.name,
            "theta0": rounded(simulated.start_theta),
            "trips": run.trips,
            "theta_max": rounded(run.theta_max),
            "guarantee_held": run.guarantee_held,
            "guarantee_lost_s": rounded(run.guarantee_lost_s),
        },
        "brakes": run.brakes,
        "seconds_over_budget": run.seconds_over_budget,
        "power_w": {"mean": rounded(float(run.row_w.mean())), "max": rounded(float(run.row_w.max()))},
        "latency": {
            name: {
                "p50_s": rounded(values.p50_s),
                "p99_s": rounded(values.p99_s),
                "p50_increase_ratio": rounded(increase[name][0]),
                "p99_increase_ratio": rounded(increase[name][1]),
            }
            for name, values in run.latency.items()
        },
        "caps_seconds": {name: rounded(seconds) for name, seconds in run.caps_s.items()},
        "conditions": [
            {"t_s": rounded(c.t_s), "type": c.kind, "status": str(c.status), "reason": c.reason}
            for c in run.conditions
        ],
        "events": [{"t_s": rounded(t_s), "what": what} for t_s, what in run.events],
        **({"wall_s": round(simulated.wall_s, 6)} if timings else {}),
    }


def _thresholds(policy: Policy) -> dict[str, Any]:
    """Write the thresholds down where a policy has such."""
    if not isinstance(policy, Polca):
        return {}
    return {
        "thresholds": {
            "t1_ratio": policy.t1_ratio,
            "t2_ratio": policy.t2_ratio,
            "uncap_margin_ratio": policy.uncap_margin_ratio,
        }
    }


def print_row(simulated: SimulatedRow, *, timings: bool) -> None:
    """Print a run on stdout."""
    run, row = simulated.run, simulated.row
    took = f" in {simulated.wall_s:.2f} s" if timings else ""
    extra = row.servers / simulated.base_servers - 1.0
    click.echo(
        f"{row.servers} servers ({extra:+.0%} of {simulated.base_servers}) under {row.budget_w / 1000:g} kW, policy"
        f" {run.policy}: {simulated.requests.duration_s:,} s simulated{took}"
    )
    increase = run.increase(simulated.uncapped)
    rows = [
        (
            name,
            f"{values.p50_s:.2f}",
            f"{values.p99_s:.2f}",
            f"{100 * increase[name][0]:+.2f} %",
            f"{100 * increase[name][1]:+.2f} %",
        )
        for name, values in run.latency.items()
    ]
    print_table(
        f"Arrival to last token ({run.completed:,} of {run.offered:,} requests completed)",
        ("", "p50 s", "p99 s", "p50 uncapped", "p99 uncapped"),
        rows,
        right=range(1, 5),
    )
    held = "held" if run.guarantee_held else f"LOST for {run.guarantee_lost_s:,.0f} s"
    _say("Power", f"mean {run.row_w.mean() / 1000:.1f} kW, max {run.row_w.max() / 1000:.1f} kW")
    _say("Over budget", f"{run.seconds_over_budget:,} s; brakes {run.brakes:,}")
    _say(
        "Breaker",
        f"{row.curve.name}: trips {run.trips}, warmest {run.theta_max:.3f} of {row.curve.trip_theta:.4f},"
        f" guarantee {held}",
    )
    _say("Capped", f"low priority {run.caps_s['low']:,.0f} s, high priority {run.caps_s['high']:,.0f} s")
    told: dict[str, list[float]] = {}
    for condition in run.conditions:
        good = condition.kind != "GpuLost"
        if condition.status != good and condition.kind != "WithinBudget":
            told.setdefault(f"{condition.kind}={condition.status} ({condition.reason})", []).append(
                condition.t_s
            )
    for words, times in told.items():
        more = f", {len(times)} times" if len(times) > 1 else ""
        _say("Condition", f"{words} at {times[0]:,.0f} s{more}")
    if simulated.question.train_file is not None and isinstance(simulated.policy, Polca):
        _say(
            "Thresholds",
            f"T1 {simulated.policy.t1_ratio:g}, T2 {simulated.policy.t2_ratio:g} of the budget, trained",
        )
    elif run.policy.startswith(("polca", "one-threshold")):
        _say("Note", "thresholds are recalled from the paper, not confirmed")


def _say(name: str, text: str) -> None:
    click.echo(click.wrap_text(f"{name}: {text}", TABLE_WIDTH, subsequent_indent="  "))
