"""Fleet plans for programs (``fleet-plan/1``) and as tables for people."""

from collections.abc import Sequence
from typing import Any, Protocol

import click

from controller.cli.answers import ballast_version, rounded
from controller.cli.output import print_table
from solver.domain.fleet import FleetConfig, FleetGoal, FleetInstance, FleetPlan, Role
from solver.domain.gpu_mix import PlanStatus

MOST_FLOW_ROWS = 40
STATUS_WORDS = {
    PlanStatus.OPTIMAL: "optimal (proved)",
    PlanStatus.FEASIBLE: "feasible, stopped before the optimum was proved",
    PlanStatus.INFEASIBLE: "infeasible: no fleet can exist",
    PlanStatus.TIMED_OUT: "time limit reached before any fleet was found; raise --time-limit",
}
UNITS = {
    FleetGoal.COST: ("cost", "US$/h", ",.2f"),
    FleetGoal.POWER: ("power", "W", ",.0f"),
    FleetGoal.MACHINES: ("machines", "machines", ",.6g"),
    FleetGoal.RATE: ("rate factor", "times the rates", ".6g"),
}


class AnyFront(Protocol):
    """Fleets between goals, simulated (`TriedFront`) or not (`Front`)."""

    @property
    def points(self) -> tuple[FleetPlan, ...]:
        """Fleets of which none is better in every goal."""
        ...

    @property
    def cut_short(self) -> bool:
        """Whether time ran out before all were found."""
        ...


def fleet_answer(
    instance: FleetInstance,
    plan: FleetPlan,
    *,
    front: AnyFront | None = None,
    solve_s: float | None = None,
) -> dict[str, Any]:
    """Write ``fleet-plan/1``; ``solve_s`` is left out when None, so that equal runs give equal bytes."""
    names = [model.name for model in instance.models]
    reason = plan.infeasible
    answer: dict[str, Any] = {
        "schema": "fleet-plan/1",
        "version": ballast_version(),
        "instance": instance.name,
        "goal": plan.goal.value,
        "status": str(plan.status),
        "objective": rounded(plan.objective),
        "lower_bound": rounded(plan.bound),
        "bound_is": "upper" if plan.goal.maximised else "lower",
        "gap_ratio": rounded(plan.gap_ratio),
        **({} if solve_s is None else {"solve_s": round(solve_s, 6)}),
        "method": plan.method,
        "replicas": dict(zip(names, map(list, plan.replicas), strict=False)),
        "flows": [
            {
                "model": flow.model,
                "bucket": flow.bucket,
                "config": flow.config,
                "phase": flow.phase.value,
                "share": round(flow.share, 12),
            }
            for flow in plan.flows
        ],
        "load_ratio": _rows(names, plan.load_ratio),
        "link_ratio": _rows(names, plan.link_ratio),
        "gpus": {
            offer.name: bought for offer, bought in zip(instance.gpu_types, plan.bought_gpus, strict=False)
        },
        "cost_usd_per_h": rounded(plan.cost_usd_per_h),
        "power_w": rounded(plan.power_w),
        "machines": rounded(plan.machines),
        "rate_factor": rounded(plan.rate_factor),
        "both_only_objective": rounded(plan.both_only_objective),
        "both_only_status": None if plan.both_only_status is None else str(plan.both_only_status),
        "both_only_bound": rounded(plan.both_only_bound),
        "worth_splitting": plan.worth_splitting,
        "binding": [
            {
                "kind": limit.kind,
                "name": limit.name,
                "gain_per_unit": rounded(limit.gain_per_unit),
                "step_units": limit.step_units,
            }
            for limit in plan.binding
        ],
        "binding_settled": plan.binding_settled,
        "infeasible": None
        if reason is None
        else {
            "kind": reason.kind,
            "models": list(reason.models),
            "buckets": list(reason.buckets),
            "gpu_types": list(reason.gpu_types),
            "message": reason.message,
            "feasible_when_dropped": list(reason.feasible_when_dropped),
        },
    }
    if front is not None:
        answer["pareto"] = [
            {
                "cost_usd_per_h": rounded(point.cost_usd_per_h),
                "power_w": rounded(point.power_w),
                "machines": rounded(point.machines),
                "status": str(point.status),
                "gap_ratio": rounded(point.gap_ratio),
                "replicas": dict(zip(names, map(list, point.replicas), strict=False)),
            }
            for point in front.points
        ]
        answer["pareto_cut_short"] = front.cut_short
    return answer


def _rows(names: Sequence[str], table: Sequence[Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [rounded(value) for value in row] for name, row in zip(names, table, strict=False)}


def config_name(config: FleetConfig) -> str:
    """Name a config as people do: '8 x H100-SXM, 490 W cap'."""
    cap = "" if config.power_cap_w is None else f", {config.power_cap_w:g} W cap"
    return f"{config.gpus_per_replica} x {config.gpu_type}{cap}"


def print_fleet(
    instance: FleetInstance,
    plan: FleetPlan,
    *,
    front: AnyFront | None = None,
    solve_s: float | None,
) -> None:
    """Print a fleet on stdout."""
    timing = "" if solve_s is None else f" in {solve_s:.2f} s"
    click.echo(f"{instance.name}: {STATUS_WORDS[plan.status]}{timing}")
    if plan.infeasible is not None:
        click.echo(f"  {plan.infeasible.kind}: {plan.infeasible.message}")
    if plan.objective is None:
        return
    print_what_runs(instance, plan)
    _print_comparison(plan)
    _print_binding(plan)
    if front is not None:
        _print_front(instance, front.points)
        if front.cut_short:
            click.echo("Time ran out before all fleets between the goals were found; raise --time-limit.")


def print_what_runs(instance: FleetInstance, plan: FleetPlan) -> None:
    """Print figures, replicas and routing of a fleet."""
    _print_figures(plan)
    _print_replicas(instance, plan)
    _print_flows(instance, plan)


def _told(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)


def _print_figures(plan: FleetPlan) -> None:
    name, unit, form = UNITS[plan.goal]
    click.echo(
        f"  {name} {_told(plan.objective, form)} {unit}, proved bound {_told(plan.bound, form)},"
        f" gap {'not known' if plan.gap_ratio is None else f'{100 * plan.gap_ratio:.3f} %'}"
    )
    figures = [
        f"{value:{form}} {unit}"
        for value, form, unit in (
            (plan.machines, ",.6g", "machines"),
            (plan.cost_usd_per_h, ",.2f", "US$/h"),
            (plan.power_w, ",.0f", "W"),
        )
        if value is not None
    ]
    click.echo(f"  {', '.join(figures)}; serves {_told(plan.rate_factor, '.6g')} times the rates")


def _print_replicas(instance: FleetInstance, plan: FleetPlan) -> None:
    rows = []
    for m, (model, counts) in enumerate(zip(instance.models, plan.replicas, strict=True)):
        for role in Role:
            for c, (config, n) in enumerate(zip(model.configs, counts, strict=True)):
                if n == 0 or config.role is not role:
                    continue
                link = plan.link_ratio[m][c]
                limited = config.role is not Role.BOTH and config.kv_link_bytes_per_s is not None
                rows.append(
                    (
                        model.name,
                        config.role.value,
                        config_name(config),
                        n,
                        n * config.gpus_per_replica,
                        f"{100 * plan.load_ratio[m][c]:.1f} %",
                        f"{100 * link:.1f} %" if limited else None,
                    )
                )
    columns = ("model", "role", "replica", "replicas", "GPUs", "load", "KV link")
    print_table("What runs", columns, rows, right=(3, 4, 5, 6))


def _print_flows(instance: FleetInstance, plan: FleetPlan) -> None:
    models = {model.name: model for model in instance.models}
    rows = []
    for flow in plan.flows:
        model = models[flow.model]
        bucket = model.buckets[flow.bucket]
        size = (
            f"#{flow.bucket}"
            if bucket.input_tokens is None or bucket.output_tokens is None
            else f"{bucket.input_tokens:.0f} / {bucket.output_tokens:.0f}"
        )
        rows.append(
            (
                flow.model,
                size,
                f"{bucket.rate_rps * (plan.rate_factor or 0.0):.3f}",
                flow.phase.value,
                config_name(model.configs[flow.config]),
                f"{100 * flow.share:.1f} %",
            )
        )
    hidden = len(rows) - MOST_FLOW_ROWS
    print_table(
        "Who serves which request sizes (input / output tokens)",
        ("model", "tokens", "req/s", "phase", "replica", "share"),
        rows[:MOST_FLOW_ROWS],
        right=(1, 2, 5),
    )
    if hidden > 0:
        click.echo(f"  and {hidden} more rows; -o json has all of them")


def _print_comparison(plan: FleetPlan) -> None:
    _, unit, form = UNITS[plan.goal]
    alone, ours = plan.both_only_objective, plan.objective
    if plan.both_only_status is None:
        return
    if plan.both_only_status is PlanStatus.INFEASIBLE:
        click.echo("Without splitting prefill and decode no fleet would do.")
        return
    if alone is None or ours is None:
        click.echo("Whether splitting is worth it was not settled in time; raise --time-limit.")
        return
    proved = "" if plan.both_only_status is PlanStatus.OPTIMAL else " (best found, not proved)"
    if not plan.worth_splitting:
        click.echo(
            f"Splitting prefill and decode is not worth it here: {alone:{form}} {unit} without it{proved}."
        )
        return
    ratio = ours / alone if plan.goal.maximised else alone / ours if ours else float("inf")
    click.echo(f"Without splitting: {alone:{form}} {unit}{proved}; splitting is {ratio:.3f} times as good.")


def _print_binding(plan: FleetPlan) -> None:
    if plan.status is not PlanStatus.OPTIMAL:
        return
    if not plan.binding_settled:
        click.echo("Not every limit was looked at (--explain and a longer --time-limit do).")
    elif not plan.binding:
        click.echo("No limit binds.")
    unit = UNITS[plan.goal][1]
    for limit in plan.binding:
        worth = "no small widening gains anything"
        if limit.step_units:
            worth = f"worth {limit.gain_per_unit:.6g} {unit} per unit, over {limit.step_units:g} more"
        click.echo(f"Binding: {limit.kind} {limit.name}, {worth}")


def _print_front(instance: FleetInstance, front: Sequence[FleetPlan]) -> None:
    rows = []
    for point in front:
        roles = dict.fromkeys(Role, 0)
        for model, counts in zip(instance.models, point.replicas, strict=True):
            for config, n in zip(model.configs, counts, strict=True):
                roles[config.role] += n
        rows.append(
            (
                _told(point.cost_usd_per_h, ",.2f"),
                _told(point.power_w, ",.0f"),
                _told(point.machines, ",.6g"),
                *(roles[role] for role in Role),
                "yes" if point.status is PlanStatus.OPTIMAL else f"gap {100 * (point.gap_ratio or 0):.3f} %",
            )
        )
    columns = ("US$/h", "W", "machines", "both", "prefill", "decode", "proved")
    print_table(
        "Fleets of which none is better in everything (replicas by role)", columns, rows, right=range(6)
    )
