"""Plans as tables for people: what runs, what it costs, how good that is and why."""

import click

from controller.cli.output import print_table
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus, Variant

MOST_ROUTING_ROWS = 40
STATUS_WORDS = {
    PlanStatus.OPTIMAL: "optimal (proved)",
    PlanStatus.FEASIBLE: "feasible, stopped before the optimum was proved",
    PlanStatus.INFEASIBLE: "infeasible: no plan can exist",
    PlanStatus.TIMED_OUT: "time limit reached before any plan was found; raise --time-limit",
}


def variant_name(variant: Variant) -> str:
    """Name a variant as people do: '4 x H100-SXM bf16 spot'."""
    name = f"{variant.gpus_per_replica} x {variant.gpu_type}"
    if variant.precision:
        name += f" {variant.precision}"
    return f"{name} spot" if variant.spot else name


def print_gpu_mix(instance: GpuMixInstance, plan: GpuMixPlan, *, solve_s: float | None) -> None:
    """Print a GPU mix on stdout."""
    timing = "" if solve_s is None else f" in {solve_s:.2f} s"
    click.echo(f"{instance.name}: {STATUS_WORDS[plan.status]} ({plan.method}{timing})")
    if plan.infeasible is not None:
        click.echo(f"  {plan.infeasible.kind}: {plan.infeasible.message}")
    if plan.objective is None:
        return
    _print_cost(instance, plan)
    _print_replicas(instance, plan)
    _print_routing(instance, plan)
    _print_reasons(plan)


def _print_cost(instance: GpuMixInstance, plan: GpuMixPlan) -> None:
    click.echo(
        f"  cost {plan.objective:.3f} US$/h, proved bound {plan.lower_bound_usd_per_h:.3f},"
        f" gap {100 * (plan.gap_ratio or 0):.3f} %"
    )
    if plan.change_cost_usd:
        click.echo(
            f"  of it running {plan.running_cost_usd_per_h:.3f} US$/h; changing over costs"
            f" {plan.change_cost_usd:.2f} US$ once, spread over {instance.horizon_h:g} h"
        )
    if plan.power_w:
        click.echo(f"  GPUs may draw {plan.power_w:,.0f} W")


def _print_replicas(instance: GpuMixInstance, plan: GpuMixPlan) -> None:
    rows = []
    for model, counts, loads in zip(instance.models, plan.replicas, plan.load_ratio, strict=True):
        served = dict.fromkeys(range(len(model.variants)), 0.0)
        for share in plan.routing:
            if share.model == model.name:
                served[share.config] += share.share * model.buckets[share.bucket].rate_rps
        for c, (variant, n) in enumerate(zip(model.variants, counts, strict=True)):
            if n == 0 and not variant.current_replicas:
                continue
            offer = instance.offer(variant.gpu_type)
            price = (offer.spot_price_usd_per_h or 0.0) if variant.spot else offer.price_usd_per_h
            change = "" if variant.current_replicas is None else f"{n - variant.current_replicas:+d}"
            part = served[c] / model.rate_rps if model.rate_rps else 0.0
            rows.append(
                (
                    model.name,
                    variant_name(variant),
                    n,
                    change,
                    n * variant.gpus_per_replica,
                    f"{n * variant.gpus_per_replica * price:.3f}",
                    f"{100 * part:.1f} %",
                    f"{100 * loads[c]:.1f} %",
                )
            )
    columns = ("model", "variant", "replicas", "change", "GPUs", "list US$/h", "requests", "load")
    print_table("What runs", columns, rows, right=(2, 3, 4, 5, 6, 7))


def _print_routing(instance: GpuMixInstance, plan: GpuMixPlan) -> None:
    models = {model.name: model for model in instance.models}
    rows = []
    for share in plan.routing:
        model = models[share.model]
        bucket = model.buckets[share.bucket]
        size = (
            f"#{share.bucket}"
            if bucket.input_tokens is None or bucket.output_tokens is None
            else f"{bucket.input_tokens:.0f} / {bucket.output_tokens:.0f}"
        )
        rows.append(
            (
                share.model,
                size,
                f"{bucket.rate_rps:.3f}",
                variant_name(model.variants[share.config]),
                f"{100 * share.share:.1f} %",
            )
        )
    hidden = len(rows) - MOST_ROUTING_ROWS
    print_table(
        "Who serves which request sizes (input / output tokens)",
        ("model", "tokens", "req/s", "variant", "share"),
        rows[:MOST_ROUTING_ROWS],
        right=(1, 2, 4),
    )
    if hidden > 0:
        click.echo(f"  and {hidden} more rows; -o json has all of them")


def _print_reasons(plan: GpuMixPlan) -> None:
    cost = plan.objective or 0.0
    single, rival = plan.best_single_type, plan.second_best
    if single is not None:
        more = f" (+{100 * (single.cost_usd_per_h / cost - 1):.1f} %)" if cost > 0 else ""
        click.echo(f"Best single GPU type: {single.gpu_type} at {single.cost_usd_per_h:.3f} US$/h{more}")
    else:
        click.echo("Best single GPU type: none can serve everything alone")
    if rival is not None:
        more = f" (+{100 * (rival.cost_usd_per_h / cost - 1):.1f} %)" if cost > 0 else ""
        sure = "" if rival.proved else ", not proved to be the next best"
        click.echo(
            f"Second best set of types: {', '.join(rival.gpu_types)} at {rival.cost_usd_per_h:.3f} US$/h{more}{sure}"
        )
    if not plan.binding:
        click.echo("No limit binds.")
    for limit in plan.binding:
        if limit.step_units:
            worth = f"{limit.price_usd_per_unit:.4f} US$/h per unit, over {limit.step_units:g} more"
        else:
            worth = f"about {limit.price_usd_per_unit:.4f} US$/h per unit (relaxation)"
        click.echo(f"Binding: {limit.kind} {limit.name}, worth {worth}")
