"""What simulation says of a planned fleet, for programs and as a table for people."""

import math
from collections.abc import Sequence
from typing import Any

import click

from controller.cli.answers import rounded
from controller.cli.fleet_answers import config_name, print_what_runs
from controller.cli.output import print_table
from controller.fleet_trace_planning import FleetTracePlan, SimulatedTarget
from solver.phases.from_demand import LeftOutConfig
from solver.phases.tried_front import TriedFront

MOST_NAMES = 4


def simulated_answer(traced: FleetTracePlan) -> dict[str, Any]:
    """Write the ``simulated`` part of ``fleet-plan/1``."""
    verdict = traced.settled.verdict
    return {
        "trace": traced.trace_name,
        "trace_sha256": traced.trace_sha256,
        "slo": str(traced.question.slo),
        "planned_rps": rounded(traced.planned_rps),
        "headroom_ratio": rounded(traced.question.headroom_ratio),
        "router": str(traced.question.router),
        "holds": traced.settled.holds,
        "met": traced.met,
        "sustained_ratio": None if verdict is None else rounded(verdict.sustained_ratio),
        "cut_short": traced.settled.cut_short,
        "not_done": list(traced.settled.not_done),
        "nearest": _nearest(traced),
        "rounds": traced.settled.rounds,
        "runs": traced.runs,
        "recorded_requests": traced.recorded_requests,
        **_front(traced),
        "targets": {
            model: [
                {
                    "target": str(row.rehearsed.target),
                    "predicted": rounded(row.predicted),
                    "planned": _number(row.rehearsed.planned),
                    "recorded": _number(row.rehearsed.recorded),
                    "met": row.rehearsed.met,
                }
                for row in rows
            ]
            for model, rows in traced.targets.items()
        },
        "left_out": [
            {
                "model": left.model,
                "gpu_type": left.config.gpu_type,
                "gpus_per_replica": left.config.gpus_per_replica,
                "role": left.config.role.value,
                "power_cap_w": rounded(left.config.power_cap_w),
                "reason": left.reason,
            }
            for left in traced.left_out
        ],
    }


def print_simulated(traced: FleetTracePlan) -> None:
    """Print prediction and simulations side by side, and what could not be offered."""
    question, settled = traced.question, traced.settled
    if traced.nearest is not None:
        click.echo("The nearest fleet that was simulated:")
        print_what_runs(settled.instance, traced.nearest)
    if traced.targets:
        print_table(
            f"Predicted and simulated ({traced.runs} simulations, {settled.rounds} rounds, router {question.router})",
            ("model", "target", "predicted", "planned load", "recorded trace", ""),
            [_row(model, row) for model, rows in traced.targets.items() for row in rows],
            right=(2, 3, 4),
        )
        click.echo(
            f"Planned load: {traced.planned_rps * (traced.plan.rate_factor or 1):.3f}"
            f" req/s Poisson; recorded: {traced.recorded_requests:,} requests."
        )
    if settled.cut_short:
        click.echo(f"Time ran out for {', '.join(settled.not_done)}; a longer --time-limit looks further.")
    if settled.verdict is not None and not settled.holds:
        click.echo(
            f"In simulation this fleet sustains only {settled.verdict.sustained_ratio:.2f} times what it must,"
            " headroom included: it misses the SLO.\nRaise --time-limit, allow more budget, or loosen the SLO."
        )
    if traced.front is not None:
        click.echo(_of_front(traced.front))
    for reason, names in _reasons(traced.left_out).items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        click.echo(f"left out: {reason}: {', '.join(names[:MOST_NAMES])}{more}", err=True)


def _nearest(traced: FleetTracePlan) -> dict[str, Any] | None:
    """Write the fleet that misses the SLO by least, where time ran out before any held."""
    if traced.nearest is None:
        return None
    plan, models = traced.nearest, traced.settled.instance.models
    return {
        "objective": rounded(plan.objective),
        "cost_usd_per_h": rounded(plan.cost_usd_per_h),
        "power_w": rounded(plan.power_w),
        "machines": rounded(plan.machines),
        "rate_factor": rounded(plan.rate_factor),
        "replicas": {model.name: list(row) for model, row in zip(models, plan.replicas, strict=True)},
    }


def _front(traced: FleetTracePlan) -> dict[str, Any]:
    """Say of every fleet of ``pareto`` whether it was simulated, and how many were left out."""
    if traced.front is None:
        return {}
    return {"pareto_simulated": list(traced.front.tried), "pareto_missed": traced.front.missed}


def _of_front(front: TriedFront) -> str:
    tried = sum(front.tried)
    says = f"Of the {len(front.points)} fleets between the goals {tried} were simulated, and hold."
    if tried < len(front.points):
        places = ", ".join(str(place + 1) for place, held in enumerate(front.tried) if not held)
        says += f" Not simulated: {places}; raise --time-limit."
    if front.missed:
        says += f" {front.missed} more miss the SLO and are left out."
    return says


def _row(model: str, row: SimulatedTarget) -> tuple[object, ...]:
    target = row.rehearsed.target
    relative = target.limit_ratio is not None

    def told(value: float | None) -> str | None:
        if value is None or math.isinf(value):
            return None if value is None else "never"
        return f"{value:.2f} x" if relative else f"{value:.3f} s"

    simulated = (row.rehearsed.planned, row.rehearsed.recorded)
    met = "met" if row.rehearsed.met else "missed"
    return (model, str(target), told(row.predicted), *map(told, simulated), met)


def _number(value: float | None) -> float | None:
    """Write what JSON has no number for as null."""
    return None if value is None or math.isinf(value) else rounded(value)


def _reasons(left_out: Sequence[LeftOutConfig]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for left in left_out:
        name = f"{config_name(left.config)} ({left.config.role.value})"
        reasons.setdefault(f"{left.model}: {left.reason}", []).append(name)
    return reasons
