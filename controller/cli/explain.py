"""``ballast explain``: why a plan is as it is, what binds, what it waits for, and what to do next.

How the story of an ExpertPlacement is told stands in `controller.cli.explain_experts`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from controller.cli.cluster import context_option, kubeconfig_option, namespace_option, talking_to
from controller.cli.options import FiniteRange, common_options, output_option
from controller.cli.told import (
    APPROVAL,
    advice_answer,
    conditions_answer,
    print_advice,
    print_conditions,
    say,
    step_state,
)

if TYPE_CHECKING:
    from controller.operator.experts.explain import ExpertStory
    from controller.operator.explain import Story
    from solver.services.explain import BindingOne

KINDS = {
    "modelservice": "ModelService",
    "modelservices": "ModelService",
    "msvc": "ModelService",
    "expertplacement": "ExpertPlacement",
    "expertplacements": "ExpertPlacement",
    "eplace": "ExpertPlacement",
    "plan": "Plan",
    "plans": "Plan",
}
MOST_ROUTES = 40
ACTIONS = {
    "ScaleUp": "scale up",
    "ScaleDown": "scale down",
    "Drain": "drain",
    "Shift": "shift traffic",
}


def _resource(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, str]:
    kind, slash, name = value.partition("/")
    kind = kind.lower().removesuffix(".ballast.dev")
    if not slash or not name or "/" in name or kind not in KINDS:
        raise click.BadParameter(f"{value!r} is not modelservice/NAME, expertplacement/NAME or plan/NAME")
    return KINDS[kind], name


def _complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the kind; names would cost a second's wait for a cluster that may not be there."""
    kinds = ("modelservice", "expertplacement", "plan")
    return [f"{kind}/" for kind in kinds if f"{kind}/".startswith(incomplete)]


@click.command()
@click.argument("resource", callback=_resource, shell_complete=_complete)
@namespace_option("Namespace of the resource.  [default: the context's]")
@kubeconfig_option
@context_option
@click.option(
    "--gpu-label", default="nvidia.com/gpu.product", show_default=True, help="Node label of the GPU."
)
@click.option("--gpu-resource", default="nvidia.com/gpu", show_default=True, help="What counts GPUs.")
@common_options(
    output_option,
    click.option(
        "--time-limit",
        "time_limit_s",
        type=FiniteRange(min=0, min_open=True),
        default=20.0,
        show_default=True,
        help="Seconds for finding the second best plan and what binds.",
    ),
)
def explain(
    *,
    resource: tuple[str, str],
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    gpu_label: str,
    gpu_resource: str,
    time_limit_s: float,
    output: str,
) -> None:
    """Say why a plan is as it is: cost, bound, what binds, steps, what it waits for, and what to do next.

    RESOURCE is modelservice/NAME, expertplacement/NAME or plan/NAME. Nothing is changed.

    \b
    Examples:
      ballast explain modelservice/chat -n team-a
      ballast explain expertplacement/moe -n team-a
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    with talking_to(kubeconfig, context) as cluster:
        from controller.cli.output import print_structured
        from controller.operator.experts.explain import find_placement, read_story
        from controller.operator.explain import Explainer, find_service
        from controller.operator.snapshot import read_world

        space = namespace or cluster.namespace
        if resource[0] != "ModelService":
            placement = find_placement(cluster.api, space, *resource)
            if placement is not None:
                _tell_experts(read_story(cluster.api, space, placement), output)
                return
        snapshot = read_world(cluster.api, space, gpu_resource=gpu_resource)
        key = find_service(snapshot, space, *resource)
        story = Explainer(snapshot=snapshot, gpu_label=gpu_label, time_limit_s=time_limit_s).explain(key)
    if output == "table":
        print_story(story)
    else:
        print_structured(explain_answer(story), output)


def _tell_experts(story: "ExpertStory", output: str) -> None:
    from controller.cli.explain_experts import expert_answer, print_expert_story
    from controller.cli.output import print_structured

    if output == "table":
        print_expert_story(story)
    else:
        print_structured(expert_answer(story), output)


def explain_answer(story: "Story") -> dict[str, Any]:
    """Write ``explain/1``."""
    from controller.cli.answers import ballast_version

    view, plan, found = story.view, story.plan, story.explanation
    spec = view.spec
    return {
        "schema": "explain/1",
        "version": ballast_version(),
        "namespace": view.key[0],
        "name": view.key[1],
        "model": None if spec is None else spec.model,
        "mode": None if spec is None else str(spec.mode),
        "paused": view.paused,
        "message": story.message,
        "demand_rps": story.demand_rps,
        "forecast": None
        if story.forecast is None
        else {
            "rate_rps": story.forecast.get("requestsPerSecond"),
            "rule": story.forecast.get("rule"),
            "quantile": story.forecast.get("quantile"),
            "fallback": story.forecast.get("fallback"),
        },
        "current_cost_usd_per_h": story.current_cost_usd_per_h,
        "variants": _variants(story),
        "plan": None if plan is None or view.plan is None else _plan(story),
        "best": None
        if found is None
        else {
            "status": found.status,
            "traffic_from": story.traffic_from,
            "cost_with_changes_usd_per_h": found.cost_usd_per_h,
            "replicas": None
            if found.replicas is None or view.state is None
            else {v.name: n for v, n in zip(view.state.variants, found.replicas, strict=True)},
            "differs": story.best_now or None,
            "infeasible": found.message or None,
        },
        "second_best": None
        if found is None or found.second_best is None
        else {
            "gpu_pools": list(found.second_best.pools),
            "cost_with_changes_usd_per_h": found.second_best.cost_usd_per_h,
            "proved": found.second_best.proved,
        },
        "best_single_pool": None
        if found is None or found.best_single_pool is None
        else {
            "gpu_pool": found.best_single_pool.pools[0],
            "cost_with_changes_usd_per_h": found.best_single_pool.cost_usd_per_h,
        },
        "without_splitting": None
        if found is None or found.without_splitting is None
        else {
            "gpu_pools": list(found.without_splitting.pools),
            "cost_with_changes_usd_per_h": found.without_splitting.cost_usd_per_h,
        },
        "binding": [
            {"kind": one.kind, "name": one.name or None, "saving_usd_per_h": one.saving_usd_per_h}
            for one in (found.binding if found is not None else ())
        ],
        "conditions": conditions_answer(story.conditions),
        "next": advice_answer(story.advice),
        "notes": list(story.notes),
    }


def _variants(story: "Story") -> list[dict[str, Any]]:
    plan = story.plan
    wanted = {} if plan is None else {w.variant: w.replicas for w in plan.desired}
    return [
        {
            "name": v.spec.name,
            "role": str(v.spec.role),
            "target": f"{v.spec.target_ref.kind}/{v.spec.target_ref.name}",
            "gpu_profile": v.spec.gpu_profile,
            "gpu_pool": v.pool or None,
            "gpus_per_replica": None if v.profile is None else v.profile.gpus_per_replica,
            "price_usd_per_h": None if v.profile is None else v.profile.price_usd_per_hour,
            "replicas": None if v.target is None else v.target.replicas,
            "ready": None if v.target is None else v.target.ready,
            "planned": wanted.get(v.spec.name),
            "min_replicas": v.spec.min_replicas,
            "max_replicas": v.spec.max_replicas,
            "trouble": v.trouble or (v.conflict[1] if v.conflict else None),
        }
        for v in story.view.variants
    ]


def _plan(story: "Story") -> dict[str, Any]:
    plan, known = story.plan, story.view.plan
    if plan is None or known is None:
        raise ValueError("there is no plan to write")
    status = known.current
    return {
        "digest": plan.digest,
        "phase": str(status.phase),
        "made_at": plan.made_at,
        "approved": bool(known.approved) and known.approved == plan.digest,
        "cost_usd_per_h": plan.cost_usd_per_hour,
        "lower_bound_usd_per_h": plan.lower_bound_usd_per_hour,
        "gap_ratio": plan.gap_ratio,
        "cost_before_usd_per_h": plan.current_cost_usd_per_hour,
        "planned_rps": plan.planned_requests_per_second,
        "reasons": list(plan.reasons),
        "routing": [
            {
                "input_tokens": r.input_tokens,
                "output_tokens": r.output_tokens,
                "variant": r.variant,
                "role": str(r.role or "both"),
                "share": r.share,
                "requests_per_s": r.requests_per_second,
            }
            for r in plan.routing
        ],
        "steps": [
            {
                "index": s.index,
                "action": str(s.action),
                "variant": s.variant,
                "role": str(s.role or "both"),
                "target": f"{s.target_ref.kind}/{s.target_ref.name}",
                "from_replicas": s.from_replicas,
                "to_replicas": s.to_replicas,
                "state": _step_state(story, s.index),
            }
            for s in plan.steps
        ],
        "waits_for": story.waits_for or None,
        "message": status.message or None,
    }


def _step_state(story: "Story", index: int) -> str:
    status = story.view.plan.current if story.view.plan is not None else None
    return "proposed" if status is None else step_state(status.phase, status.step, index)


def print_story(story: "Story") -> None:
    """Print the story for people, at most 100 columns wide."""
    view = story.view
    spec = view.spec
    mode = f", mode {spec.mode}" if spec is not None else ""
    say(f"ModelService {view.name}{': ' + spec.model if spec is not None else ''}{mode}")
    say(f"  {_message(story)}")
    say(_demand(story))
    say(_cost(story))
    _print_variants(story)
    _print_why(story)
    _print_routing(story)
    _print_steps(story)
    print_conditions(story.conditions)
    print_advice(story.advice)
    for note in story.notes:
        say(f"({note})")


def _message(story: "Story") -> str:
    if any(c.reason == APPROVAL for c in story.conditions):
        return "a plan waits for approval"
    return story.message or "no controller has said anything about it yet"


def _demand(story: "Story") -> str:
    spec, plan = story.view.spec, story.plan
    if spec is None:
        return ""
    parts = []
    if story.demand_rps is not None:
        parts.append(f"{story.demand_rps:.4g} requests/s")
    if story.forecast is not None and not story.forecast.get("fallback"):
        parts.append(
            f"forecast {float(story.forecast['requestsPerSecond']):.4g}"
            f" ({story.forecast['rule']}, quantile {story.forecast['quantile']:g})"
        )
    if plan is not None and plan.planned_requests_per_second is not None:
        parts.append(f"planned for {plan.planned_requests_per_second:.4g}")
    slo = spec.slo
    parts.append(
        f"SLO ttft_p{slo.percentile} {slo.ttft_seconds:g} s, tbt_p{slo.percentile} {slo.tbt_seconds:g} s"
    )
    parts.append(f"{spec.headroom_ratio:.0%} to spare")
    if spec.survive:
        parts.append(f"survives the loss of {spec.survive}")
    return f"  {', '.join(parts)}"


def _cost(story: "Story") -> str:
    plan, now = story.plan, story.current_cost_usd_per_h
    parts = [] if now is None else [f"now {now:.2f} US$/h"]
    if plan is not None and plan.cost_usd_per_hour is not None:
        cost = plan.cost_usd_per_hour
        change = f" ({100 * (cost / now - 1):+.1f} %)" if now and abs(cost - now) > 5e-3 else ""
        parts.append(f"planned {cost:.2f}{change}")
        if plan.lower_bound_usd_per_hour is not None and plan.gap_ratio is not None:
            parts.append(
                f"no plan below {plan.lower_bound_usd_per_hour:.2f} (proved; gap {100 * plan.gap_ratio:.2f} %)"
            )
    return f"  cost: {', '.join(parts)}" if parts else ""


def _print_variants(story: "Story") -> None:
    from controller.cli.output import print_table

    rows = []
    for v in _variants(story):
        bounds = f"{v['min_replicas']}–{'∞' if v['max_replicas'] is None else v['max_replicas']}"
        price = None if v["price_usd_per_h"] is None else f"{v['price_usd_per_h']:.2f}"
        gpus = "?" if v["gpus_per_replica"] is None else f"{v['gpus_per_replica']} x {v['gpu_pool']}"
        row = (
            _named(v["role"], v["name"]),
            v["target"],
            gpus,
            price,
            v["replicas"],
            v["ready"],
            v["planned"],
            bounds,
        )
        rows.append(row)
    click.echo("\nVariants")
    print_table(
        "",
        ("variant", "target", "GPUs", "US$/h", "asked", "ready", "planned", "min–max"),
        rows,
        right=(3, 4, 5, 6, 7),
    )
    for v in _variants(story):
        if v["trouble"]:
            say(f"  {_named(v['role'], v['name'])}: {v['trouble']}\n", indent="    ")


def _named(role: str | None, name: str) -> str:
    """Name a variant, after its role where it serves only one phase."""
    return name if role in {None, "both"} else f"{role} {name}"


def _print_why(story: "Story") -> None:
    plan, found = story.plan, story.explanation
    lines: list[str] = [] if plan is None else list(plan.reasons)
    if found is not None:
        lines += _found(story)
    if not lines:
        return
    click.echo("Why this plan" if plan is not None else "Why there is no plan")
    for line in lines:
        say(f"  - {line}", indent="    ")
    click.echo()


def _found(story: "Story") -> Iterator[str]:
    """Tell what solving the problem again brought to light."""
    found = story.explanation
    if found is None:
        return
    if found.message:
        yield found.message
    if story.best_now:
        yield story.best_now
    for one in found.binding:
        yield _binding(one)
    if not found.binding and found.whole and found.cost_usd_per_h is not None:
        yield "nothing but the traffic and the SLO binds: no limit of yours makes it dearer"
    cost = found.cost_usd_per_h
    if found.second_best is not None and cost is not None:
        rival = found.second_best
        sure = "" if rival.proved else " (not proved to be the next)"
        yield (
            f"second best on other GPUs: {' + '.join(rival.pools)} for {rival.cost_usd_per_h:.2f} US$/h, changes"
            f" counted, {rival.cost_usd_per_h - cost:+.2f}{sure}"
        )
    elif cost is not None and found.whole:
        yield "no plan uses another set of GPU types"
    whole = found.without_splitting
    if whole is not None and cost is not None:
        more = whole.cost_usd_per_h - cost
        yield (
            f"without prefill and decode variants: {' + '.join(whole.pools)} for {whole.cost_usd_per_h:.2f} US$/h,"
            f" changes counted, {more:+.2f}" + ("" if more > 5e-3 else ": splitting is not worth it")
        )
    single = found.best_single_pool
    if single is not None and cost is not None and single.cost_usd_per_h > cost + 5e-3:
        yield (
            f"best on one GPU type alone: {single.pools[0]} for {single.cost_usd_per_h:.2f} US$/h,"
            f" {single.cost_usd_per_h - cost:+.2f}"
        )


def _binding(one: "BindingOne") -> str:
    what = {
        "gpus": f"the GPUs of {one.name} that others leave",
        "min-replicas": f"minReplicas of variant {one.name}",
        "max-replicas": f"maxReplicas of variant {one.name}",
        "locked": f"who else scales variant {one.name}",
        "headroom": "headroomRatio",
        "survive": "survive",
        "kv-links": "kvLinkGbytesPerSecond of the GpuProfiles",
    }[one.kind]
    if one.saving_usd_per_h is None:
        return f"without this there would be a plan: {what}"
    return f"binds: {what}; without it {one.saving_usd_per_h:.2f} US$/h less"


def _print_routing(story: "Story") -> None:
    from controller.cli.output import print_table

    plan = story.plan
    if plan is None or not plan.routing:
        return
    rows = [
        (
            f"{r.input_tokens:.0f} / {r.output_tokens:.0f}",
            None if r.requests_per_second is None else f"{r.requests_per_second:.3f}",
            _named(r.role, r.variant),
            f"{100 * r.share:.1f} %",
        )
        for r in plan.routing
    ]
    click.echo("Who is to serve which request sizes (input / output tokens)")
    print_table(
        "",
        ("tokens", "req/s", "variant", "share"),
        rows[:MOST_ROUTES],
        right=(0, 1, 3),
    )
    if len(rows) > MOST_ROUTES:
        click.echo(f"  and {len(rows) - MOST_ROUTES} more rows; -o json has all of them\n")


def _print_steps(story: "Story") -> None:
    from controller.cli.output import print_table

    plan, known = story.plan, story.view.plan
    if plan is None or known is None:
        return
    phase = known.current.phase
    if not plan.steps:
        click.echo(f"Steps (plan {plan.digest}, {phase}): none, what is asked for is what is planned\n")
        return
    rows: list[Sequence[object]] = []
    for s in plan.steps:
        change = "" if s.action == "Shift" else f"{s.from_replicas} → {s.to_replicas}"
        target = "" if s.action == "Shift" else f"{s.target_ref.kind} {s.target_ref.name}"
        if target and s.role is not None:
            target = f"{target} ({s.role})"
        rows.append((s.index + 1, ACTIONS[s.action], target, change, _step_state(story, s.index)))
    click.echo(f"Steps (plan {plan.digest}, {phase})")
    print_table(
        "",
        ("", "action", "target", "replicas", "state"),
        rows,
        right=(0,),
    )
    if story.waits_for:
        say(f"  it waits: {story.waits_for}")
        click.echo()
