"""Counts the GPUs of the cluster by pool, and who holds them.

It exists so that plans are made within what can really be scheduled: nodes that are open, taints that the targets
tolerate, GPUs of pods that are not ours taken off. It decides nothing.

A pool is a GPU type with a node selector. A node belongs to the most specific pool that selects it, so no GPU is
counted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.operator.world import Key, Node, Pod, Target
from controller.resources.gpu_profile import GpuProfileSpec

OwnerKey = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKey:
    """What makes a pool: GPU type and node selector; an empty selector means the product label."""

    gpu_type: str
    selector: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name for people and programs."""
        inner = ",".join(f"{key}={value}" for key, value in self.selector)
        return f"{self.gpu_type}[{inner}]" if inner else self.gpu_type


@dataclass(slots=True, kw_only=True)
class Inventory:
    """GPUs by pool and node, and pods by target."""

    gpus: dict[str, int] = field(default_factory=dict)
    """Pool: schedulable GPUs less those of others."""
    by_node: dict[str, dict[str, int]] = field(default_factory=dict)
    """Pool: node: the same."""
    pods: dict[OwnerKey, list[Pod]] = field(default_factory=dict)
    """Live pods by scale target."""
    closed: dict[str, list[str]] = field(default_factory=dict)
    """Pool: nodes with GPUs that take no pods now."""
    _fit: dict[tuple[str, int], int] = field(default_factory=dict, compare=False)

    def replicas_that_fit(self, pool: str, gpus_per_pod: int) -> int:
        """How many pods of so many GPUs fit the nodes of a pool, ours not counted; the counts must stand by then."""
        asked = (pool, gpus_per_pod)
        if asked not in self._fit:
            self._fit[asked] = sum(
                max(0, gpus) // gpus_per_pod for gpus in self.by_node.get(pool, {}).values()
            )
        return self._fit[asked]


def pool_key(profile: GpuProfileSpec, gpu_label: str, labels_of: Callable[[str], Sequence[str]]) -> PoolKey:
    """Return the pool of a profile; a selector that only repeats the product label is none."""
    selector = dict(profile.node_selector)
    if set(selector) == {gpu_label} and selector[gpu_label] in labels_of(profile.gpu_type):
        selector = {}
    return PoolKey(gpu_type=profile.gpu_type, selector=tuple(sorted(selector.items())))


def _selects(pool: PoolKey, node: Node, gpu_label: str, labels: Sequence[str]) -> bool:
    if not pool.selector:
        return node.labels.get(gpu_label) in labels
    return all(node.labels.get(key) == value for key, value in pool.selector)


def tolerated(taint: tuple[str, str, str], tolerations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a pod with these tolerations may go to a node with this taint (as the scheduler decides)."""
    key, value, effect = taint
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", effect):
            continue
        if toleration.get("operator") == "Exists":
            if toleration.get("key") in (None, "", key):
                return True
        elif toleration.get("key") == key and (toleration.get("value") or "") == value:
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryRules:
    """Labels and taints that matter."""

    gpu_label: str
    labels_of: Callable[[str], Sequence[str]]
    ignored_taints: frozenset[str] = frozenset({"nvidia.com/gpu", "amd.com/gpu"})
    """Taints that GPU nodes carry and admission tolerates for pods that ask for GPUs."""


def take_inventory(
    nodes: Mapping[Key, Node],
    pods: Mapping[Key, Pod],
    pools: Mapping[PoolKey, Sequence[Target]],
    *,
    ours: frozenset[OwnerKey] | set[OwnerKey],
    rules: InventoryRules,
    devices: Mapping[str, int] | None = None,
) -> Inventory:
    """Count.

    ``pools`` names the targets whose pods go to each pool (their tolerations count), ``ours`` all targets that Ballast
    plans for, ``devices`` GPUs by node that are published as ResourceSlices where no device plugin counts them.
    """
    inventory = Inventory(
        gpus={pool.name: 0 for pool in pools},
        by_node={pool.name: {} for pool in pools},
        closed={pool.name: [] for pool in pools},
    )
    taken: dict[str, int] = {}
    for pod in pods.values():
        owner = (pod.owner[0], pod.key[0], pod.owner[1])
        if owner in ours:
            inventory.pods.setdefault(owner, []).append(pod)
        elif pod.node:
            taken[pod.node] = taken.get(pod.node, 0) + pod.gpus
    ordered = sorted(pools, key=lambda pool: (-len(pool.selector), pool.name))
    labels = {pool: tuple(rules.labels_of(pool.gpu_type)) for pool in ordered}
    for node in nodes.values():
        gpus = node.gpus or (devices or {}).get(node.name, 0)
        if not gpus:
            continue
        pool = next((p for p in ordered if _selects(p, node, rules.gpu_label, labels[p])), None)
        if pool is None:
            continue
        taints = [taint for taint in node.taints if taint[0] not in rules.ignored_taints]
        targets = pools[pool]
        allowed = all(tolerated(taint, target.tolerations) for taint in taints for target in targets)
        if not node.open or (taints and not (targets and allowed)):
            inventory.closed[pool.name].append(node.name)
            continue
        left = max(0, gpus - taken.get(node.name, 0))
        inventory.gpus[pool.name] += left
        inventory.by_node[pool.name][node.name] = left
    return inventory


def published_devices(slices: Mapping[Key, Any], driver: str) -> dict[str, int]:
    """Count GPUs by node in ResourceSlices of a driver; only the newest generation of each pool counts.

    Drivers name their pools apart from each other, so generations of other drivers say nothing.
    """
    newest: dict[tuple[str, str], int] = {}
    for body in slices.values():
        spec = body["spec"]
        if spec.get("driver") != driver:
            continue
        pool = spec.get("pool") or {}
        key = (str(spec.get("nodeName") or ""), str(pool.get("name") or ""))
        newest[key] = max(newest.get(key, 0), int(pool.get("generation") or 0))
    counted: dict[str, int] = {}
    for body in slices.values():
        spec = body["spec"]
        pool = spec.get("pool") or {}
        node = str(spec.get("nodeName") or "")
        if spec.get("driver") != driver or not node:
            continue
        if int(pool.get("generation") or 0) < newest[node, str(pool.get("name") or "")]:
            continue
        counted[node] = counted.get(node, 0) + sum(
            1 for device in spec.get("devices") or [] if _is_gpu(device)
        )
    return counted


def _is_gpu(device: Mapping[str, Any]) -> bool:
    attributes = device.get("attributes") or (device.get("basic") or {}).get("attributes") or {}
    kind = attributes.get("type") or {}
    return bool(kind.get("string", "gpu") == "gpu")
