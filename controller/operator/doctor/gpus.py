"""The GPUs of a cluster and the GpuProfiles that plan with them: which nodes and profiles do not meet.

It exists so that GPUs nobody plans with, and profiles without nodes, are named. Nodes are counted into pools as the
controller counts them (`controller.operator.inventory`); nothing is planned here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from controller.operator.api import GPU_PROFILES, NODES, RESOURCE_SLICES, Api, ApiError
from controller.operator.doctor.findings import Mark, Notes, Product, end_if_unreachable
from controller.operator.inventory import (
    InventoryRules,
    PoolKey,
    pool_key,
    published_devices,
    take_inventory,
)
from controller.operator.profiles import ProfileBook
from controller.operator.views import first_problem
from controller.operator.world import Node, World
from controller.resources.gpu_profile import GpuProfileSpec
from solver.domain.errors import InputError
from solver.domain.hardware import GpuType
from telemetry.catalogue.read import find_gpu, read_gpus

DRA_DRIVER = "gpu.nvidia.com"


@dataclass(slots=True, kw_only=True)
class Gpus:
    """One look at the nodes with GPUs and the profiles."""

    api: Api
    notes: Notes
    label: str
    """Of a node, that names its GPUs."""
    resource: str
    """That counts GPUs of a node."""
    book: ProfileBook
    products: list[Product] = field(default_factory=list)
    profiles: dict[str, GpuProfileSpec] = field(default_factory=dict)
    """Those that could be read."""
    _catalogue: dict[str, GpuType] = field(default_factory=dict)

    def examine(self, *, has_kinds: bool) -> None:
        """Look at nodes, and at profiles where the cluster has our kinds."""
        try:
            bodies = self.api.list(NODES)
        except ApiError as error:
            self.notes.unseen("gpus", "nodes", error)
            return
        world = World(gpu_resource=self.resource)
        for body in bodies:
            world.put(NODES.kind, body)
        devices = self._devices(world)
        nodes: dict[str, Node] = {node.name: node for node in world.all(NODES.kind).values()}
        with_gpus = {name for name, node in nodes.items() if node.gpus or devices.get(name, 0)}
        bare = sorted(
            name for name, node in nodes.items() if self.label in node.labels and name not in with_gpus
        )
        if bare:
            self.notes.note(
                "gpus",
                Mark.WARNING,
                f"{self.label} without {self.resource} on {_names(bare, 'node')}",
                "look at the device plugin (or DRA driver) there; see also --gpu-resource",
            )
        if not with_gpus:
            self.notes.note(
                "gpus",
                Mark.MISSING,
                f"none of {len(nodes)} nodes offers {self.resource}",
                "install the GPU operator or device plugin, or name the resource by --gpu-resource",
            )
        self.profiles = self._profiles() if has_kinds else {}
        pools = {
            name: pool_key(spec, self.label, self.book.labels_of) for name, spec in self.profiles.items()
        }
        on_pool = self._nodes_by_pool(world, set(pools.values()), devices)
        if with_gpus:
            self._count(nodes, with_gpus, devices, pools, on_pool)
        for name, pool in pools.items():
            if not on_pool[pool.name]:
                wanted = ", ".join(f"{k}={v}" for k, v in pool.selector) or (
                    f"{self.label} in {', '.join(dict.fromkeys(self.book.labels_of(pool.gpu_type)))}"
                )
                self.notes.note(
                    "profiles",
                    Mark.WARNING,
                    f"GpuProfile {name} has no node with GPUs (looked for {wanted})",
                    "add such nodes, or correct its gpuType or nodeSelector",
                )
        if has_kinds and not self.profiles:
            self.notes.note(
                "profiles",
                Mark.WARNING,
                "there is no GpuProfile, so nothing can be planned",
                "kubectl apply one per model and GPU type; modelled: true needs no measurements",
            )
        elif self.profiles:
            self.notes.note("profiles", Mark.OK, f"{len(self.profiles)} GpuProfiles can be read")

    def _devices(self, world: World) -> dict[str, int]:
        """Count GPUs that only DRA publishes."""
        try:
            for body in self.api.list(RESOURCE_SLICES):
                world.put(RESOURCE_SLICES.kind, body)
        except ApiError as error:
            end_if_unreachable(error)
        return published_devices(world.all(RESOURCE_SLICES.kind), DRA_DRIVER)

    def _profiles(self) -> dict[str, GpuProfileSpec]:
        try:
            bodies = self.api.list(GPU_PROFILES)
        except ApiError as error:
            self.notes.unseen("profiles", "GpuProfiles", error)
            return {}
        found = {}
        for body in bodies:
            name = str(body["metadata"]["name"])
            try:
                found[name] = GpuProfileSpec.model_validate(body["spec"])
            except ValidationError as error:
                self.notes.note(
                    "profiles",
                    Mark.MISSING,
                    f"GpuProfile {name} cannot be read: {first_problem(error)}",
                    "correct it, or upgrade the chart",
                )
        return found

    def _nodes_by_pool(
        self, world: World, pools: set[PoolKey], devices: Mapping[str, int]
    ) -> dict[str, list[str]]:
        """Name the nodes of each pool, also those that take no pods now."""
        inventory = take_inventory(
            world.all(NODES.kind),
            {},
            dict.fromkeys(pools, ()),
            ours=set(),
            rules=InventoryRules(gpu_label=self.label, labels_of=self.book.labels_of),
            devices=devices,
        )
        return {pool.name: [*inventory.by_node[pool.name], *inventory.closed[pool.name]] for pool in pools}

    def _count(
        self,
        nodes: Mapping[str, Node],
        with_gpus: set[str],
        devices: Mapping[str, int],
        pools: Mapping[str, PoolKey],
        on_pool: Mapping[str, Sequence[str]],
    ) -> None:
        by_product: dict[str, list[Node]] = {}
        for name in sorted(with_gpus):
            by_product.setdefault(nodes[name].labels.get(self.label, ""), []).append(nodes[name])
        used: dict[str, set[str]] = {}
        for profile, pool in pools.items():
            for name in on_pool[pool.name]:
                used.setdefault(name, set()).add(profile)
        for product, found in sorted(by_product.items()):
            profiles = sorted(set().union(*(used.get(node.name, set()) for node in found)))
            self.products.append(
                Product(
                    label=product,
                    gpu_type=self._gpu_type_of(product),
                    nodes=len(found),
                    gpus=sum(node.gpus or devices.get(node.name, 0) for node in found),
                    closed=sum(not node.open for node in found),
                    profiles=tuple(profiles),
                )
            )
            unused = sorted(node.name for node in found if node.name not in used)
            if not unused:
                continue
            if not product:
                self.notes.note(
                    "gpus",
                    Mark.MISSING,
                    f"GPUs without label {self.label} on {_names(unused, 'node')}",
                    "install GPU feature discovery, label them, or name the label by --gpu-label",
                )
            else:
                gpu_type = self._gpu_type_of(product) or product
                self.notes.note(
                    "gpus",
                    Mark.WARNING,
                    f"no GpuProfile uses {_names(unused, 'node')} with {product}",
                    f"to plan with them, apply a GpuProfile with gpuType: {gpu_type}",
                )
        gpus = sum(product.gpus for product in self.products)
        self.notes.note("gpus", Mark.OK, f"{gpus} GPUs on {len(with_gpus)} nodes")

    def _gpu_type_of(self, label: str) -> str:
        """Name a product label's GPU type in the catalogue; empty for one that is not there."""
        if not self._catalogue:
            self._catalogue.update(read_gpus())
        try:
            return find_gpu(self._catalogue, label).name
        except InputError:
            return ""


def _names(names: Sequence[str], noun: str) -> str:
    """Name at most three."""
    if len(names) <= 3:
        return f"{noun}{'s' if len(names) != 1 else ''} {', '.join(names)}"
    return f"{len(names)} {noun}s ({', '.join(names[:3])}, …)"
