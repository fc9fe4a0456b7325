"""Writes the replicas of scale targets: takes the field once, never by force after that, and gives it back.

It exists so that the write rules of each kind stand in one place (platform reference, section 3): server-side apply of
``spec.replicas`` for Deployments and StatefulSets, a merge patch of ``/scale`` for custom resources, always on the
resource version that was decided on. It decides nothing.
"""

from dataclasses import dataclass

from controller.operator.api import CONTROLLER, LEADER_WORKER_SETS, TARGETS, Api, ApiError, Object
from controller.operator.views import ADOPTED_BY, PREVIOUS_MANAGER, TAKE_OVER
from controller.operator.world import Key, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """What a write left behind."""

    body: Object
    adopted_from: str | None = None
    """Who owned the field before, if it was taken just now."""


def scale(api: Api, target: Target, replicas: int, owner: Key) -> Scaled:
    """Set the replicas of a target, taking the field first if it is not ours yet.

    Raises
    ------
    ApiError
        409 with ``field_owner`` if somebody else owns the field; 409 without if the target changed meanwhile.
    """
    name = f"{owner[0]}/{owner[1]}"
    adopted = target.annotations.get(ADOPTED_BY) == name
    take = not adopted or target.annotations.get(TAKE_OVER) == "true"
    before = ", ".join(m for m in target.replicas_managers if m != CONTROLLER)
    previous = target.annotations.get(PREVIOUS_MANAGER, "") if adopted and not before else before
    resource = TARGETS[target.kind]
    metadata: Object = {
        "name": target.key[1],
        "namespace": target.key[0],
        "resourceVersion": target.version,
        "annotations": {ADOPTED_BY: name, PREVIOUS_MANAGER: previous or "nobody"},
    }
    adopted_from = (previous or "nobody") if take else None
    if resource is not LEADER_WORKER_SETS:
        body = {"metadata": metadata, "spec": {"replicas": replicas}}
        return Scaled(
            body=api.apply(resource, body, manager=CONTROLLER, force=take), adopted_from=adopted_from
        )
    version = target.version
    if take:
        version = api.apply(resource, {"metadata": metadata}, manager=CONTROLLER, force=True)["metadata"][
            "resourceVersion"
        ]
    api.patch(
        resource,
        target.key[0],
        target.key[1],
        {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}},
        subresource="scale",
    )
    written = api.get(resource, *target.key)
    if written is None:
        raise ApiError(404, f"{target.kind} {target.key[1]} is gone")
    return Scaled(body=written, adopted_from=adopted_from)


def release(api: Api, target: Target) -> Object | None:
    """Give the field up and leave the number as it is; None if the target is gone.

    Removing the field by an apply would reset it to its default; so our entry is taken out of ``managedFields``.
    """
    resource = TARGETS[target.kind]
    body = api.get(resource, *target.key)
    if body is None:
        return None
    metadata = body["metadata"]
    kept = [entry for entry in metadata.get("managedFields") or [] if entry.get("manager") != CONTROLLER]
    changes = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        {"op": "replace", "path": "/metadata/managedFields", "value": kept or [{}]},
    ]
    changes += [
        {"op": "remove", "path": f"/metadata/annotations/{name.replace('/', '~1')}"}
        for name in (ADOPTED_BY, PREVIOUS_MANAGER, TAKE_OVER)
        if name in (metadata.get("annotations") or {})
    ]
    return api.patch(
        resource,
        target.key[0],
        target.key[1],
        changes,
        content_type="application/json-patch+json",
        manager="ballast-release",
    )
