"""What the operator knows of the cluster: objects as they were last seen, trimmed to what decisions need.

It exists so that watching (by whatever library) and deciding meet in one place. It is filled by events and never asks
the API server; a version that is older than the one known is not taken.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.operator.api import (
    AUTOSCALERS,
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    LEADER_WORKER_SETS,
    MODEL_SERVICES,
    NODES,
    PLANS,
    PODS,
    POWER_DOMAINS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    SCALED_OBJECTS,
    TARGETS,
    Object,
    Resource,
)

Key = tuple[str, str]
"""Namespace ("" for cluster-wide kinds) and name."""

WATCHED: tuple[Resource, ...] = (
    MODEL_SERVICES,
    GPU_PROFILES,
    PLANS,
    EXPERT_PLACEMENTS,
    POWER_DOMAINS,
    *TARGETS.values(),
    NODES,
    PODS,
    AUTOSCALERS,
    SCALED_OBJECTS,
    RESOURCE_SLICES,
    RESOURCE_CLAIMS,
)
OPTIONAL = {
    EXPERT_PLACEMENTS.kind,  # its definition may be older than we are
    POWER_DOMAINS.kind,
    LEADER_WORKER_SETS.kind,
    SCALED_OBJECTS.kind,
    RESOURCE_SLICES.kind,
    RESOURCE_CLAIMS.kind,
}
"""Kinds a cluster may not have."""
PACKED = {MODEL_SERVICES.kind, PLANS.kind}
"""Kinds of which there may be thousands, and which are read once for each change."""
PACKED_PARTS = ("spec", "status")
FINISHED_PHASES = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A scale target: numbers as it states them (groups for a LeaderWorkerSet)."""

    kind: str
    key: Key
    uid: str
    version: str
    replicas: int
    ready: int
    running: int
    """``status.replicas``."""
    observed: bool
    """The status speaks of the present spec."""
    replicas_managers: tuple[str, ...]
    annotations: Mapping[str, str]
    tolerations: tuple[Mapping[str, str], ...]
    gpus_per_pod: int
    owner: tuple[str, str]
    """Kind and name of the controlling owner, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node: what it offers and whether pods may go there."""

    name: str
    labels: Mapping[str, str]
    gpus: int
    open: bool
    """Ready and not cordoned."""
    taints: tuple[tuple[str, str, str], ...]
    """Key, value, effect of those that keep pods away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that asks for GPUs or serves."""

    key: Key
    node: str
    gpus: int
    owner: tuple[str, str]
    """Kind and name of the scale target it seems to belong to, or ("", "")."""
    ip: str
    ready: bool
    serves: bool
    """It answers for itself (of a group only the leader does)."""
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of a pod that has GPUs."""


class Body(Mapping[str, Any]):
    """An object with ``metadata``, ``spec`` and ``status``; the last two are packed and unpacked at each reading.

    Of thousands of objects few are read again after they were understood; unpacked each takes four times the memory.
    """

    __slots__ = ("_metadata", "_spec", "_status")

    def __init__(self, metadata: Mapping[str, Any], spec: Any, status: Any) -> None:
        self._metadata = metadata
        self._spec = _packed(spec)
        self._status = _packed(status)

    def __getitem__(self, name: str) -> Any:
        if name == "metadata":
            return self._metadata
        if name not in PACKED_PARTS:
            raise KeyError(name)
        return json.loads(self._spec if name == "spec" else self._status)

    def __iter__(self) -> Iterator[str]:
        return iter(("metadata", *PACKED_PARTS))

    def __len__(self) -> int:
        return 1 + len(PACKED_PARTS)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Body):
            mine, others = (self._spec, self._status), (other._spec, other._status)
            return mine == others and self._metadata == other._metadata
        return super().__eq__(other)

    def __hash__(self) -> int:
        raise TypeError("an object can change")


def _packed(part: Any) -> bytes:
    return json.dumps(part, sort_keys=True, separators=(",", ":")).encode()


@dataclass(slots=True)
class World:
    """Objects by kind and key. All methods are safe to call from any thread."""

    gpu_resource: str = "nvidia.com/gpu"
    objects: dict[str, dict[Key, Any]] = field(default_factory=dict)
    versions: dict[str, dict[Key, str]] = field(default_factory=dict)
    changes: int = 0
    changed_s: float = float("-inf")
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _wake: threading.Condition = field(init=False)

    def __post_init__(self) -> None:
        self._wake = threading.Condition(self._lock)

    def put(self, kind: str, body: Object) -> None:
        """Take an object as it is now."""
        metadata = body.get("metadata") or {}
        key = (sys.intern(metadata.get("namespace") or ""), metadata.get("name") or "")
        version = str(metadata.get("resourceVersion") or "")
        with self._lock:
            known = self.versions.get(kind, {}).get(key)
            if _older(version, known) or (version and version == known):
                return
            self.versions.setdefault(kind, {})[key] = version
            trimmed = self._trimmed(kind, key, body)
            kept = self.objects.setdefault(kind, {})
            if trimmed is None:
                if kept.pop(key, None) is not None:
                    self._note()
                return
            if kept.get(key) != trimmed:
                kept[key] = trimmed
                self._note()

    def remove(self, kind: str, key: Key) -> None:
        """Forget an object that is gone."""
        with self._lock:
            self.versions.get(kind, {}).pop(key, None)
            if self.objects.get(kind, {}).pop(key, None) is not None:
                self._note()

    def note(self) -> None:
        """Say that something changed that is not an object: traffic, a lease won."""
        with self._lock:
            self._note()

    def _note(self) -> None:
        self.changes += 1
        self.changed_s = time.monotonic()
        self._wake.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until something changed after ``seen``, or the time is up; returns the number of changes."""
        with self._lock:
            self._wake.wait_for(lambda: self.changes != seen, timeout=timeout_s)
            return self.changes

    def all(self, kind: str) -> dict[Key, Any]:
        """Return the objects of a kind now."""
        with self._lock:
            return dict(self.objects.get(kind, {}))

    def get(self, kind: str, key: Key) -> Any | None:
        """Return an object, or None."""
        with self._lock:
            return self.objects.get(kind, {}).get(key)

    def known(self, kind: str) -> dict[Key, str]:
        """Return the resource versions of all objects of a kind that were seen."""
        with self._lock:
            return dict(self.versions.get(kind, {}))

    def _trimmed(self, kind: str, key: Key, body: Object) -> Any | None:
        if kind in TARGETS:
            return _target(kind, key, body, self.gpu_resource)
        trim: Callable[[Key, Object, str], Any | None] | None = {
            "Node": _node,
            "Pod": _pod,
        }.get(kind)
        if trim is not None:
            return trim(key, body, self.gpu_resource)
        if kind in {AUTOSCALERS.kind, SCALED_OBJECTS.kind}:
            ref = (body.get("spec") or {}).get("scaleTargetRef") or {}
            return (ref.get("kind") or "Deployment", key[0], ref.get("name") or "")
        metadata = body.get("metadata") or {}
        kept = {
            name: metadata[name]
            for name in (
                "name",
                "namespace",
                "uid",
                "resourceVersion",
                "generation",
                "annotations",
                "creationTimestamp",
                "deletionTimestamp",
                "ownerReferences",
                "finalizers",
            )
            if name in metadata
        }
        spec, status = body.get("spec") or {}, body.get("status") or {}
        if kind in PACKED:
            return Body(kept, spec, status)
        return {"metadata": kept, "spec": spec, "status": status}


def _older(version: str, known: str | None) -> bool:
    """Whether a version is older than a known one; versions of etcd are numbers that grow."""
    if not version or not known or not version.isdigit() or not known.isdigit():
        return False
    return int(version) < int(known)


def _count(value: Any) -> int:
    """Whole GPUs of a quantity; 0 for one that is none (a node without the resource has none)."""
    try:
        return int(str(value))
    except (TypeError, ValueError):
        return 0


def _gpus(spec: Object, resource: str) -> int:
    """GPUs of a pod: of its containers together, or of an init container that needs more (as the scheduler counts)."""

    def wanted(container: Object) -> int:
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        return _count(limits.get(resource, requests.get(resource)))

    first = spec.get("initContainers") or []
    beside = [*(spec.get("containers") or []), *(c for c in first if c.get("restartPolicy") == "Always")]
    return max([sum(map(wanted, beside)), *map(wanted, first)])


def _controller_of(metadata: Object) -> tuple[str, str]:
    for reference in metadata.get("ownerReferences") or []:
        if reference.get("controller"):
            return str(reference.get("kind")), str(reference.get("name"))
    return "", ""


def _node(key: Key, body: Object, resource: str) -> Node:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    ready = any(
        c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or []
    )
    return Node(
        name=key[1],
        labels=dict((body.get("metadata") or {}).get("labels") or {}),
        gpus=_count((status.get("allocatable") or {}).get(resource)),
        open=ready and not spec.get("unschedulable"),
        taints=tuple(
            (str(t.get("key")), str(t.get("value") or ""), str(t.get("effect")))
            for t in spec.get("taints") or []
            if t.get("effect") in ("NoSchedule", "NoExecute")
        ),
    )


def _pod(key: Key, body: Object, resource: str) -> Pod | None:
    metadata, spec, status = body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}
    if status.get("phase") in FINISHED_PHASES:
        return None
    kind, name = _controller_of(metadata)
    labels = metadata.get("labels") or {}
    group = labels.get("leaderworkerset.sigs.k8s.io/name")
    if group:
        owner = (LEADER_WORKER_SETS.kind, group)
    elif kind == "ReplicaSet":
        suffix = labels.get("pod-template-hash", "")
        owner = ("Deployment", name.removesuffix(f"-{suffix}"))
    elif kind == "StatefulSet":
        owner = (kind, name)
    else:
        owner = ("", "")
    gpus = _gpus(spec, resource)
    if not gpus and owner == ("", ""):
        return None
    return Pod(
        key=key,
        node=spec.get("nodeName") or "",
        gpus=gpus,
        owner=owner,
        ip=status.get("podIP") or "",
        serves=labels.get("leaderworkerset.sigs.k8s.io/worker-index", "0") == "0",
        priority=_count(spec.get("priority") or 0),
        labels={sys.intern(str(k)): sys.intern(str(v)) for k, v in labels.items()} if gpus else {},
        ready=any(
            c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or []
        ),
    )


def _target(kind: str, key: Key, body: Object, resource: str) -> Target:
    metadata, spec, status = body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}
    template = spec.get("template") or (spec.get("leaderWorkerTemplate") or {}).get("workerTemplate") or {}
    pod = template.get("spec") or {}
    replicas = spec.get("replicas")
    generation = int(metadata.get("generation") or 0)
    annotations = metadata.get("annotations") or {}
    return Target(
        kind=kind,
        key=key,
        uid=str(metadata.get("uid") or ""),
        version=str(metadata.get("resourceVersion") or ""),
        replicas=1 if replicas is None else int(replicas),
        ready=int(status.get("readyReplicas") or 0),
        running=int(status.get("replicas") or 0),
        observed=int(status.get("observedGeneration") or generation) >= generation,
        replicas_managers=tuple(_managers(metadata.get("managedFields") or [])),
        annotations={k: v for k, v in annotations.items() if k.startswith("ballast.dev/")},
        tolerations=tuple(pod.get("tolerations") or ()),
        gpus_per_pod=_gpus(pod, resource),
        owner=_controller_of(metadata),
    )


def _managers(fields: list[Object]) -> Iterator[str]:
    """Name who owns ``spec.replicas``."""
    for entry in fields:
        owned = entry.get("fieldsV1") or {}
        if "f:replicas" in (owned.get("f:spec") or {}):
            yield str(entry.get("manager") or "")
