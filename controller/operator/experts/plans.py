"""Writes a change of experts as a Plan: files, steps, digest, and the reasons in words.

It exists so that what people approve is exactly what is applied: the digest covers the placement, every file and every
step, and the files stand in the Plan itself. It writes to no cluster.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

from controller.operator.api import EXPERT_PLACEMENTS, Object
from controller.operator.experts.case import Case
from controller.operator.experts.outputs import FILES, OWN_KEY, Written, digest_of, name_of
from controller.operator.experts.restart import Rollout
from controller.operator.views import PlanView, plan_view
from controller.operator.world import Key
from controller.resources.expert_placement import ApplyMode, ExpertPlacementSpec
from controller.resources.plan import (
    ExpertAction,
    ExpertChange,
    ExpertStep,
    MapFile,
    PlacementRef,
    PlanSpec,
)
from solver.domain.moe import ExpertPlan

NEARLY = 0.95
"""Whoever uses so much of a limit is said to be bound by it."""


def plan_key(key: Key) -> Key:
    """Return where the Plan of a placement stands; a ModelService may have the placement's own name."""
    return key[0], name_of(key)


def plan_of(body: Mapping[str, object] | None, uid: str) -> tuple[PlanView | None, bool]:
    """Read a Plan of our name; with whether it is somebody else's."""
    if body is None:
        return None, False
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or [] if isinstance(metadata, Mapping) else []
    if not any(owner.get("uid") == uid and owner.get("controller") for owner in owners):
        return None, True
    view = plan_view(body)
    return (None if view is None or view.spec.experts is None else view), False


def steps_of(
    spec: ExpertPlacementSpec, written: Written, data: Mapping[str, str], rollout: Rollout | None
) -> tuple[ExpertStep, ...]:
    """Return what is left to do for what should stand in the ConfigMap."""
    steps = []
    if dict(data) != dict(written.data):
        steps.append(ExpertStep(index=0, action=ExpertAction.WRITE_MAP))
    restarts = spec.apply is ApplyMode.ROLLOUT_RESTART and rollout is not None
    if restarts and rollout is not None and rollout.digest != digest_of(data):
        step = ExpertStep(index=len(steps), action=ExpertAction.RESTART, target_ref=spec.target_ref)
        steps.append(step)
    return tuple(steps)


def same_change(plan: PlanView, data: Mapping[str, str], steps: Sequence[ExpertStep]) -> bool:
    """Whether a Plan says this already."""
    change = plan.spec.experts
    return change is not None and data_in(change) == dict(data) and change.steps == tuple(steps)


def data_in(change: ExpertChange) -> dict[str, str]:
    """Return the ConfigMap's data as a Plan has it."""
    return {file.key: file.text for file in change.files}


def needs_approval(plan: PlanSpec) -> bool:
    """Whether it stops what runs: our own ConfigMap harms nobody, a restart does."""
    return plan.experts is not None and any(
        step.action is ExpertAction.RESTART for step in plan.experts.steps
    )


def write_plan(
    case: Case,
    answer: ExpertPlan,
    data: Mapping[str, str],
    steps: Sequence[ExpertStep],
    *,
    solve_id: str,
    made_at: str,
) -> PlanSpec:
    """Return the spec of a Plan."""
    move = None if answer.refused else answer.move
    before_s = None
    if case.written.p2l is not None:
        gain_s = 0.0 if move is None or move.gain_s is None else move.gain_s
        before_s = answer.objective_s + gain_s / case.spec.migration.windows_until_next
    form, _ = FILES[case.spec.engine]
    change = ExpertChange(
        placement_ref=PlacementRef(
            name=case.key[1], uid=case.book.uid, generation=max(0, case.book.generation)
        ),
        config_map=name_of(case.key),
        map_digest=digest_of(data),
        files=tuple(
            MapFile(key=key, format="native" if key == OWN_KEY else form, sha256=sha256_of(text), text=text)
            for key, text in sorted(data.items())
        ),
        objective_us=_short(answer.objective_s * 1e6),
        objective_before_us=None if before_s is None else _short(before_s * 1e6),
        lower_bound_us=_short(answer.lower_bound_s * 1e6),
        moved_ratio=None if move is None else _short(move.moved_ratio),
        predicted_move_seconds=None if move is None or move.move_s is None else _short(move.move_s),
        net_gain_seconds=None if move is None or move.net_gain_s is None else _short(move.net_gain_s),
        steps=tuple(steps),
    )
    return PlanSpec(
        solve_id=solve_id,
        digest=approval_digest(change, solve_id),
        gap_ratio=round(answer.gap_ratio, 6),
        made_at=made_at,
        reasons=tuple(_reasons(case, answer, change)),
        experts=change,
    )


def approval_digest(change: ExpertChange, solve_id: str) -> str:
    """Return what an approval names: 16 hexadecimal digits over placement, solve, ConfigMap, files and steps."""
    content = {
        "placement": change.placement_ref.uid,
        "solve": solve_id,
        "configMap": change.config_map,
        "map": change.map_digest,
        "files": [[file.key, file.sha256] for file in change.files],
        "steps": [step.written() for step in change.steps],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def whole(plan: PlanSpec) -> bool:
    """Whether files, digests and steps belong together as they did when the Plan was made."""
    change = plan.experts
    return (
        change is not None
        and all(file.sha256 == sha256_of(file.text) for file in change.files)
        and change.map_digest == digest_of(data_in(change))
        and plan.digest == approval_digest(change, plan.solve_id)
    )


def sha256_of(text: str) -> str:
    """Return the whole digest of a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def body_of_plan(key: Key, uid: str, spec: PlanSpec, *, version: str) -> Object:
    """Return the Plan to apply."""
    namespace, name = plan_key(key)
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "resourceVersion": version,
            "labels": {"app.kubernetes.io/managed-by": "ballast"},
            "ownerReferences": [
                {
                    "apiVersion": EXPERT_PLACEMENTS.api_version,
                    "kind": EXPERT_PLACEMENTS.kind,
                    "name": key[1],
                    "uid": uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec.written(),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _reasons(case: Case, answer: ExpertPlan, change: ExpertChange) -> Iterator[str]:
    """Say why, best first."""
    if case.another_wish and case.there:
        yield "the ExpertPlacement changed"
    elif not case.there:
        yield "there is no map yet"
    elif case.written.p2l is None:
        yield "the map that is written does not fit the ExpertPlacement"
    elif change.moved_ratio:
        yield "another map serves the present loads better, and the move pays"
    else:
        yield "the map stays; what is asked for in files or on the target does not"
    score, before = answer.score, change.objective_before_us
    against = "" if before is None else f", the map in force {before:.6g}"
    yield (
        f"takes {change.objective_us:.6g} µs per window{against}; no map takes less than"
        f" {change.lower_bound_us:.6g} (gap {answer.gap_ratio:.2%})"
    )
    move = answer.move
    if change.moved_ratio and move is not None and move.net_gain_s is not None:
        yield (
            f"moves {move.moved_ratio:.1%} of the holdings in {move.move_s:.3g} s, saves {move.gain_s:.3g} s over"
            f" {case.spec.migration.windows_until_next} windows: net {move.net_gain_s:+.3g} s"
        )
    share = score.compute_s / answer.objective_s if answer.objective_s > 0.0 else 1.0
    yield (
        f"binds: {share:.0%} of it is computing on the fullest GPU of each layer ({score.balance_max_over_mean:.4g}"
        f" of the mean, worst layer {score.balance_worst:.4g}), {1.0 - share:.0%} traffic between GPUs"
    )
    most = case.spec.migration.max_moved_ratio
    if most is not None and change.moved_ratio and change.moved_ratio >= NEARLY * most:
        yield f"binds: maxMovedRatio {most:.3g} is used up"
    if answer.cut_short:
        yield f"binds: the search ended after timeLimitSeconds {case.spec.solver.time_limit_seconds}"
