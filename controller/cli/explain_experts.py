"""What ``ballast explain expertplacement/NAME`` prints: why this map, why nothing moves, what binds, what to do."""

from typing import TYPE_CHECKING, Any

import click

from controller.cli.told import (
    advice_answer,
    conditions_answer,
    print_advice,
    print_conditions,
    print_list,
    say,
    step_state,
)

if TYPE_CHECKING:
    from controller.operator.experts.explain import ExpertStory
    from controller.resources.plan import ExpertStep

ACTIONS = {"WriteMap": "write the map", "Restart": "restart"}


def expert_answer(story: "ExpertStory") -> dict[str, Any]:
    """Write ``explain-experts/1``."""
    from controller.cli.answers import ballast_version

    spec, status = story.spec, story.status
    return {
        "schema": "explain-experts/1",
        "version": ballast_version(),
        "namespace": story.key[0],
        "name": story.key[1],
        "model": None if spec is None else spec.model_ref.name,
        "engine": None if spec is None else str(spec.engine),
        "ep_size": None if spec is None else spec.ep_size,
        "apply": None if spec is None else str(spec.apply),
        "mode": None if spec is None else str(spec.mode),
        "phase": str(status.phase),
        "message": status.message,
        "objective_us": status.objective_us,
        "lower_bound_us": status.lower_bound_us,
        "gap_ratio": status.gap,
        "balance_mean": None if status.balance is None else status.balance.mean,
        "balance_max": None if status.balance is None else status.balance.max,
        "cross_gpu_ratio": status.cross_gpu,
        "cross_node_ratio": status.cross_node,
        "moved_ratio": status.moved_ratio,
        "move_s": status.predicted_move_seconds,
        "net_gain_s": status.net_gain_seconds,
        "map_digest": status.digest or None,
        "made_at": status.made_at,
        "plan": _plan(story),
        "why": list(story.why),
        "why_not": list(story.why_not),
        "binds": list(story.binds),
        "conditions": conditions_answer(story.conditions),
        "next": advice_answer(story.advice),
    }


def _plan(story: "ExpertStory") -> dict[str, Any] | None:
    plan, known = story.plan, story.known
    if plan is None or known is None or plan.experts is None:
        return None
    change, status = plan.experts, known.current
    return {
        "digest": plan.digest,
        "phase": str(status.phase),
        "made_at": plan.made_at,
        "approved": bool(known.approved) and known.approved == plan.digest,
        "config_map": change.config_map,
        "map_digest": change.map_digest,
        "files": [
            {"key": file.key, "format": file.format, "sha256": file.sha256, "bytes": len(file.text)}
            for file in change.files
        ],
        "objective_us": change.objective_us,
        "objective_before_us": change.objective_before_us,
        "lower_bound_us": change.lower_bound_us,
        "gap_ratio": plan.gap_ratio,
        "moved_ratio": change.moved_ratio,
        "move_s": change.predicted_move_seconds,
        "net_gain_s": change.net_gain_seconds,
        "steps": [
            {
                "index": step.index,
                "action": str(step.action),
                "target": _target(change.config_map, step),
                "state": step_state(status.phase, status.step, step.index),
            }
            for step in change.steps
        ],
        "message": status.message or None,
    }


def _target(config_map: str, step: "ExpertStep") -> str:
    ref = step.target_ref
    return f"ConfigMap/{config_map}" if ref is None else f"{ref.kind}/{ref.name}"


def print_expert_story(story: "ExpertStory") -> None:
    """Print the story for people, at most 100 columns wide."""
    spec, status = story.spec, story.status
    say(f"ExpertPlacement {'/'.join(story.key)}{'' if spec is None else f': {spec.model_ref.name}'}")
    if spec is not None:
        say(f"  for {spec.engine} on {spec.ep_size} GPUs, apply {spec.apply}, mode {spec.mode}")
    waits = any(c.reason == "WaitingForApproval" for c in story.conditions)
    said = status.message or "no controller has said anything about it yet"
    say(f"  {'a plan waits for approval' if waits else said}")
    for line in (_figures(story), _spread(story)):
        say(line)
    click.echo()
    print_list("Why this map", story.why)
    print_list("Why nothing else is done now", story.why_not)
    print_list("What binds", story.binds)
    _print_plan(story)
    print_conditions(story.conditions)
    print_advice(story.advice)


def _figures(story: "ExpertStory") -> str:
    status = story.status
    if status.objective_us is None:
        return ""
    parts = [f"{status.objective_us:.6g} µs per window"]
    if status.lower_bound_us is not None and status.gap is not None:
        parts.append(f"no map below {status.lower_bound_us:.6g} (proved; gap {100 * status.gap:.2f} %)")
    if status.moved_ratio is not None and status.net_gain_seconds is not None:
        parts.append(
            f"last move {100 * status.moved_ratio:.1f} % of the holdings, net {status.net_gain_seconds:+.3g} s"
        )
    return f"  {', '.join(parts)}"


def _spread(story: "ExpertStory") -> str:
    status, parts = story.status, []
    if status.balance is not None:
        parts.append(
            f"fullest GPU over the mean {status.balance.mean:.4g}, worst layer {status.balance.max:.4g}"
        )
    if status.cross_gpu is not None:
        parts.append(f"{100 * status.cross_gpu:.1f} % of the copies change GPU")
    if status.cross_node is not None:
        parts.append(f"{100 * status.cross_node:.1f} % change node")
    return f"  {', '.join(parts)}" if parts else ""


def _print_plan(story: "ExpertStory") -> None:
    from controller.cli.output import print_table

    plan = _plan(story)
    if plan is None:
        return
    say(f"Files of ConfigMap {plan['config_map']}")
    rows = [(f["key"], f["format"], f"{f['bytes']:,}", f["sha256"][:16]) for f in plan["files"]]
    print_table("", ("key", "format", "bytes", "sha256"), rows, right=(2,))
    click.echo(f"Steps (plan {plan['digest']}, {plan['phase']})")
    steps = [(s["index"] + 1, ACTIONS[s["action"]], s["target"], s["state"]) for s in plan["steps"]]
    print_table("", ("", "action", "target", "state"), steps, right=(0,))
