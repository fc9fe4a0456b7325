"""How expert maps are written: the answer ``expert-placement/1`` for programs, tables for people."""

from typing import Any

from controller.cli.answers import ballast_version, rounded
from controller.cli.output import print_table
from solver.domain.moe import ExpertInstance, ExpertPlan, ExpertScore, Move, Slots

US = 1e6


def expert_answer(
    instance: ExpertInstance, plan: ExpertPlan, *, solve_s: float | None = None
) -> dict[str, Any]:
    """Write ``expert-placement/1``; ``solve_s`` is left out when None, so that equal runs give equal bytes."""
    timing = {} if solve_s is None else {"solve_s": round(solve_s, 6)}
    return {
        "schema": "expert-placement/1",
        "version": ballast_version(),
        "instance": instance.name,
        "status": str(plan.status),
        "method": plan.method,
        "comm": plan.communication,
        "objective_us": rounded(plan.objective_s * US),
        **_score_fields(plan.score),
        "lower_bound_us": rounded(plan.lower_bound_s * US),
        "gap_ratio": rounded(plan.gap_ratio),
        **_move_fields(plan.move),
        "refused": plan.refused,
        "proposed": None if plan.proposed is None else _move_fields(plan.proposed),
        "cut_short": plan.cut_short,
        "programs": [
            {
                "name": program.name,
                "unit": program.unit,
                "objective": rounded(program.objective),
                "lower_bound": rounded(program.lower_bound),
                "gap_ratio": rounded(program.gap_ratio),
            }
            for program in plan.programs
        ],
        **timing,
        "lower_bound_by_layer_us": [
            [rounded(compute_s * US), rounded(links_s * US)]
            for compute_s, links_s in plan.lower_bound_by_layer_s
        ],
        "physical_to_logical_map": plan.physical_to_logical.tolist(),
    }


def score_answer(
    instance: ExpertInstance, score: ExpertScore, move: Move | None, *, communication: str, p2l: Slots
) -> dict[str, Any]:
    """Write the same fields for a map that somebody else made."""
    objective_s = score.dispatch_s if communication == "dispatch" else score.transition_s
    return {
        "schema": "expert-placement/1",
        "version": ballast_version(),
        "instance": instance.name,
        "status": "scored",
        "comm": communication,
        "objective_us": None if objective_s is None else rounded(objective_s * US),
        **_score_fields(score),
        **_move_fields(move),
        "physical_to_logical_map": p2l.tolist(),
    }


def _score_fields(score: ExpertScore) -> dict[str, Any]:
    transition_s, links_s = score.transition_s, score.transition_all_to_all_s
    return {
        "objective_transition_us": None if transition_s is None else rounded(transition_s * US),
        "objective_dispatch_us": rounded(score.dispatch_s * US),
        "compute_us": rounded(score.compute_s * US),
        "all_to_all_transition_us": None if links_s is None else rounded(links_s * US),
        "all_to_all_dispatch_us": rounded(score.dispatch_all_to_all_s * US),
        "balance_max_over_mean": rounded(score.balance_max_over_mean),
        "balance_worst_layer": rounded(score.balance_worst),
        "cross_gpu_ratio": rounded(score.cross_gpu_ratio),
        "cross_node_ratio": rounded(score.cross_node_ratio),
        "nodes_per_token": rounded(score.nodes_per_token),
        "gpus_per_token": rounded(score.gpus_per_token),
        "duplicates": score.duplicates,
    }


def _move_fields(move: Move | None) -> dict[str, Any]:
    return {
        "moved_ratio": None if move is None else rounded(move.moved_ratio),
        "move_s": None if move is None else rounded(move.move_s),
        "net_gain_s": None if move is None else rounded(move.net_gain_s),
        "bytes_in": None
        if move is None or move.bytes_in is None
        else [rounded(value) for value in move.bytes_in],
    }


def print_expert_plan(instance: ExpertInstance, plan: ExpertPlan, *, solve_s: float | None) -> None:
    """Print what a planner looks at; the map itself is in json and in engines' formats."""
    rows: list[tuple[str, object, str]] = [
        ("status", str(plan.status) + (", stopped at the time limit" if plan.cut_short else ""), ""),
        ("objective per window", f"{plan.objective_s * US:,.1f}", "us"),
        ("lower bound", f"{plan.lower_bound_s * US:,.1f}", "us"),
        ("gap to the bound", f"{100 * plan.gap_ratio:.2f}", "%"),
        *_score_rows(plan.score),
    ]
    rows += [
        (f"{program.name}", f"{program.objective:,.4g} (bound {program.lower_bound:,.4g})", program.unit)
        for program in plan.programs
    ]
    if solve_s is not None:
        rows.append(("solved in", f"{solve_s:.2f}", "s"))
    title = f"{instance.name}: {plan.method}, {plan.communication}"
    print_table(title, ("", "value", "unit"), rows, right=(1,))
    if plan.refused and plan.proposed is not None:
        print_table(
            "Refused: the best move found does not pay; the map in force stays",
            ("", "value", "unit"),
            _move_rows(plan.proposed),
            right=(1,),
        )
    elif plan.move is not None:
        print_table("From the map in force", ("", "value", "unit"), _move_rows(plan.move), right=(1,))


def print_score(instance: ExpertInstance, score: ExpertScore, move: Move | None) -> None:
    """Print a given map's score."""
    print_table(f"{instance.name}: a given map", ("", "value", "unit"), _score_rows(score), right=(1,))
    if move is not None:
        print_table("From the map in force", ("", "value", "unit"), _move_rows(move), right=(1,))


def _score_rows(score: ExpertScore) -> list[tuple[str, object, str]]:
    def ratio(value: float | None) -> str | None:
        return None if value is None else f"{100 * value:.1f}"

    transition_s = score.transition_s
    return [
        ("objective, transition", None if transition_s is None else f"{transition_s * US:,.1f}", "us"),
        ("objective, dispatch", f"{score.dispatch_s * US:,.1f}", "us"),
        ("compute", f"{score.compute_s * US:,.1f}", "us"),
        ("balance, max over mean", f"{score.balance_max_over_mean:.4f}", ""),
        ("balance of the worst layer", f"{score.balance_worst:.4f}", ""),
        ("copies that change GPU", ratio(score.cross_gpu_ratio), "%"),
        ("copies that change node", ratio(score.cross_node_ratio), "%"),
        ("nodes per token", None if score.nodes_per_token is None else f"{score.nodes_per_token:.2f}", ""),
        ("experts twice on a GPU", score.duplicates, "slots"),
    ]


def _move_rows(move: Move) -> list[tuple[str, object, str]]:
    return [
        ("experts to fetch", f"{100 * move.moved_ratio:.2f}", "% of slots"),
        (
            "most bytes into one GPU",
            None if move.bytes_in is None else f"{max(move.bytes_in) / 1e9:,.2f}",
            "GB",
        ),
        ("time to move", None if move.move_s is None else f"{move.move_s:.3f}", "s"),
        ("gain over the map's life", None if move.gain_s is None else f"{move.gain_s:.3f}", "s"),
        ("net gain", None if move.net_gain_s is None else f"{move.net_gain_s:.3f}", "s"),
    ]
