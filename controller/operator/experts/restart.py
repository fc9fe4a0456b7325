"""Restarts what runs an engine, so that it loads its map anew: an annotation of ours on the pod template.

It exists so that a restart is one idempotent write that names the map: who sees the annotation knows which map was
rolled out. It has a field manager of its own, for the one that sets replicas must never apply a body without them. It
decides nothing.
"""

from dataclasses import dataclass

from controller.operator.api import LEADER_WORKER_SETS, TARGETS, Api, ApiError, Object
from controller.operator.world import Key
from controller.resources.schema import TargetRef

MANAGER = "ballast-experts"
EXPERT_MAP = "ballast.dev/expert-map"
"""On a pod template: digest of the map that its pods have loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What a target says of itself."""

    body: Object
    digest: str
    """Of the map that its pods load, or have loaded."""
    done: bool
    """All pods are of the present template, and ready."""


def observed(api: Api, key: Key, target: TargetRef) -> Rollout:
    """Look at a target.

    Raises
    ------
    ApiError
        404 if it is not there.
    """
    body = api.get(TARGETS[target.kind], key[0], target.name)
    if body is None:
        raise ApiError(404, f"{target.kind} {target.name} does not exist in {key[0]}")
    spec, status = body.get("spec") or {}, body.get("status") or {}
    annotations = (_template(target, spec).get("metadata") or {}).get("annotations") or {}
    wanted = spec.get("replicas")
    wanted = 1 if wanted is None else int(wanted)
    counts = [int(status.get(name) or 0) for name in ("readyReplicas", "updatedReplicas", "replicas")]
    seen = int(status.get("observedGeneration") or 0) >= int(body["metadata"].get("generation") or 0)
    if target.kind == LEADER_WORKER_SETS.kind:
        seen = True  # it states no observed generation
    return Rollout(
        body=body,
        digest=str(annotations.get(EXPERT_MAP) or ""),
        done=seen and all(count == wanted for count in counts),
    )


def restart(api: Api, key: Key, target: TargetRef, rollout: Rollout, digest: str) -> None:
    """Write the annotation, on the version that was looked at."""
    marked: Object = {"metadata": {"annotations": {EXPERT_MAP: digest}}}
    spec: Object = {"template": marked}
    if target.kind == LEADER_WORKER_SETS.kind:
        group = rollout.body["spec"].get("leaderWorkerTemplate") or {}
        names = [name for name in ("leaderTemplate", "workerTemplate") if name in group]
        spec = {"leaderWorkerTemplate": dict.fromkeys(names or ["workerTemplate"], marked)}
    metadata = {
        "name": target.name,
        "namespace": key[0],
        "resourceVersion": rollout.body["metadata"]["resourceVersion"],
    }
    api.apply(TARGETS[target.kind], {"metadata": metadata, "spec": spec}, manager=MANAGER)


def _template(target: TargetRef, spec: Object) -> Object:
    if target.kind == LEADER_WORKER_SETS.kind:
        return (spec.get("leaderWorkerTemplate") or {}).get("workerTemplate") or {}
    return spec.get("template") or {}
