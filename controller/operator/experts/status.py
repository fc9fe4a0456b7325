"""What people see on an ExpertPlacement: phase, figures, conditions, where the map is, one line on what happens.

It exists so that every state, also a refused move, says why, with its figures. It is computed from what the loop knows;
it writes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.operator.conditions import Finding, written
from controller.operator.experts.outputs import name_of
from controller.resources.expert_placement import ApplyMode, ExpertPhase, ExpertPlacementSpec
from solver.domain.moe import ExpertPlan, Move

SOLVED = "Solved"
APPLIED = "Applied"
STALE = "Stale"
INFEASIBLE = "Infeasible"
_MOST_MESSAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where one placement stands."""

    trouble: str = ""
    """Why its spec cannot be read."""
    paused: str = ""
    infeasible: tuple[str, str] = ("", "")
    """Reason and message: the group cannot be placed as it is stated, or nobody knows its GPUs."""
    load: tuple[str, str] = ("", "")
    """Reason and message of stale or missing loads."""
    solver: tuple[str, str] = ("", "")
    """Reason and message of a solve that failed."""
    solved: str = ""
    """Status of the last answer; empty: none yet."""
    refused: str = ""
    """Why the map in force stays, with figures."""
    blocked: tuple[str, str] = ("", "")
    """Reason and message: why a map is not applied."""
    applied: bool = False
    waits: str = ""
    """Why nothing is decided now, though loads are fresh."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Mapping[str, Any], ...] = ()
    digest: str = ""
    made_at: str = ""
    plan: str = ""
    """Digest of the Plan that stands."""


def figures_of(plan: ExpertPlan) -> dict[str, Any]:
    """Return the figures of an answer, as the status names them."""
    score = plan.score
    move = plan.proposed if plan.refused else plan.move
    figures: dict[str, Any] = {
        "objectiveUs": plan.objective_s * 1e6,
        "lowerBoundUs": plan.lower_bound_s * 1e6,
        "gap": plan.gap_ratio,
        "balance": {"mean": _short(score.balance_max_over_mean), "max": _short(score.balance_worst)},
        "crossGpu": score.cross_gpu_ratio,
        "crossNode": score.cross_node_ratio,
        "movedRatio": None if move is None else move.moved_ratio,
        "predictedMoveSeconds": None if move is None else move.move_s,
        "netGainSeconds": None if move is None else move.net_gain_s,
    }
    return {
        name: _short(value) if isinstance(value, float) else value
        for name, value in figures.items()
        if value is not None
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def refusal_of(plan: ExpertPlan) -> str:
    """Say in words what was refused; empty if nothing was."""
    move: Move | None = plan.proposed
    if not plan.refused or move is None or not move.moved_ratio:
        return ""
    takes = "" if move.move_s is None else f" takes {move.move_s:.3g} s"
    brings = "" if move.gain_s is None else f" and saves {move.gain_s:.3g} s"
    net = "" if move.net_gain_s is None else f" (net {move.net_gain_s:+.3g} s)"
    return f"moving {move.moved_ratio:.1%} of the experts{takes}{brings}{net}: the map in force stays"


def status_of(
    body: Mapping[str, Any], spec: ExpertPlacementSpec | None, progress: Progress, *, now: str
) -> dict[str, Any]:
    """Return the status; times of unchanged conditions are kept."""
    before = body.get("status") or {}
    generation = int(body["metadata"].get("generation") or 0)
    findings = [
        _solved(progress),
        _applied(spec, progress),
        _stale(progress),
        _infeasible(progress),
    ]
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": _phase(spec, progress).value,
        "conditions": written(findings, before.get("conditions") or [], generation=generation, now=now),
        "message": _message(findings, progress)[:_MOST_MESSAGE],
        **progress.figures,
    }
    if progress.outputs:
        status["outputs"] = [dict(output) for output in progress.outputs]
    if progress.digest:
        status["digest"] = progress.digest
    if progress.made_at:
        status["madeAt"] = progress.made_at
    if progress.plan:
        name = name_of((body["metadata"].get("namespace") or "", body["metadata"]["name"]))
        status["planRef"] = {"name": name, "digest": progress.plan}
    return status


def _solved(progress: Progress) -> Finding:
    if progress.trouble:
        return Finding(type=SOLVED, status=False, reason="InvalidSpec", message=progress.trouble)
    if progress.solver[0]:
        return Finding(type=SOLVED, status=False, reason=progress.solver[0], message=progress.solver[1])
    if progress.refused:
        return Finding(type=SOLVED, status=True, reason="MoveRefused", message=progress.refused)
    if progress.solved:
        reason = "".join(part.capitalize() for part in progress.solved.split("-"))
        return Finding(type=SOLVED, status=True, reason=reason, message=progress.waits)
    return Finding(type=SOLVED, status=False, reason="NotYet", message="no map was sought yet")


def _applied(spec: ExpertPlacementSpec | None, progress: Progress) -> Finding:
    if progress.paused:
        return Finding(type=APPLIED, status=False, reason="Paused", message=progress.paused)
    if spec is not None and spec.apply is ApplyMode.NONE:
        return Finding(type=APPLIED, status=False, reason="NotAsked", message="apply: none writes no map")
    if progress.blocked[0]:
        return Finding(type=APPLIED, status=False, reason=progress.blocked[0], message=progress.blocked[1])
    if progress.applied:
        return Finding(type=APPLIED, status=True, reason="Applied")
    return Finding(type=APPLIED, status=False, reason="NoMap", message="there is no map to apply yet")


def _stale(progress: Progress) -> Finding:
    reason, message = progress.load
    if reason:
        return Finding(type=STALE, status=True, reason=reason, message=message)
    return Finding(type=STALE, status=False, reason="Fresh")


def _infeasible(progress: Progress) -> Finding:
    reason, message = progress.infeasible
    if progress.trouble:
        return Finding(type=INFEASIBLE, status=None, reason="InvalidSpec", message=progress.trouble)
    if reason:
        return Finding(type=INFEASIBLE, status=True, reason=reason, message=message)
    return Finding(type=INFEASIBLE, status=False, reason="Feasible")


def _phase(spec: ExpertPlacementSpec | None, progress: Progress) -> ExpertPhase:
    if progress.trouble or progress.infeasible[0]:
        return ExpertPhase.INFEASIBLE
    if progress.paused:
        return ExpertPhase.PAUSED
    if progress.blocked[0] == "WaitingForApproval":
        return ExpertPhase.PROPOSED
    if progress.blocked[0] == "Restarting":
        return ExpertPhase.APPLYING
    if progress.blocked[0] in {"TargetNotReady", "PlanFailed"}:
        return ExpertPhase.HELD
    if progress.load[0]:
        return ExpertPhase.HELD if progress.applied or progress.outputs else ExpertPhase.WAITING
    if progress.applied:
        return ExpertPhase.APPLIED
    if spec is not None and spec.apply is ApplyMode.NONE and progress.solved:
        return ExpertPhase.SOLVED
    return ExpertPhase.WAITING


def _message(findings: list[Finding], progress: Progress) -> str:
    """Say what is to be known first: what is broken, else what is awaited, else that all is well."""
    solved, applied, stale, infeasible = findings
    if progress.trouble:
        return progress.trouble
    for finding in (infeasible, stale):
        if finding.status:
            held = "; the map in force stays" if progress.outputs else ""
            return f"{finding.message}{held}"
    if progress.paused:
        return progress.paused
    if progress.blocked[0]:
        return applied.message
    if not solved.status:
        return solved.message
    return progress.refused or progress.waits or ("as planned" if applied.status else applied.message)
