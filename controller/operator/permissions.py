"""What the controller asks of the API server: one list of verbs by resource, and nothing beside it.

It exists so that the chart's RBAC, `ballast doctor` and the code cannot drift apart: doctor asks the API server about
every entry, and a test compares the list with the chart. It asks nobody itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from controller.operator.api import (
    AUTOSCALERS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    EXPERT_PLACEMENTS,
    GPU_PROFILES,
    HTTP_ROUTES,
    LEADER_WORKER_SETS,
    LEADERSHIPS,
    LEASES,
    MODEL_SERVICES,
    NODE_POWERS,
    NODES,
    PLANS,
    PODS,
    POWER_DOMAINS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    SCALED_OBJECTS,
    STATEFUL_SETS,
    Resource,
)
from controller.operator.leader import LEASE_NAME


class Scope(StrEnum):
    """Where a right is needed."""

    CLUSTER = "cluster"
    WATCHED = "watched"
    """In every namespace that is watched: all, or those of ``--watch-namespaces``."""
    OWN = "own"
    """In the namespace of the release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Verbs on one resource, and what they are for."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    why: str
    subresource: str = ""
    name: str = ""
    """The only object that is meant, if it is one."""
    optional: bool = False
    """Without it something is missing that many clusters do not have."""

    @property
    def written(self) -> str:
        """The resource as RBAC names it, with its group: ``modelservices/status.ballast.dev``."""
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{resource}.{self.group}" if self.group else resource


def _on(
    resource: Resource,
    *verbs: str,
    why: str,
    scope: Scope = Scope.WATCHED,
    subresource: str = "",
    name: str = "",
    optional: bool = False,
) -> Permission:
    return Permission(
        group=resource.api_version.rpartition("/")[0],
        resource=resource.plural,
        verbs=verbs,
        scope=scope,
        why=why,
        subresource=subresource,
        name=name,
        optional=optional,
    )


READ = ("get", "list", "watch")
CRDS = Resource(
    api_version="apiextensions.k8s.io/v1",
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
    namespaced=False,
)
PERMISSIONS: tuple[Permission, ...] = (
    _on(NODES, *READ, why="count GPUs", scope=Scope.CLUSTER),
    _on(GPU_PROFILES, *READ, why="know what replicas sustain and cost", scope=Scope.CLUSTER),
    _on(GPU_PROFILES, "patch", subresource="status", why="say what is made of them", scope=Scope.CLUSTER),
    _on(
        POWER_DOMAINS,
        *READ,
        "patch",
        why="keep breakers; wait for a release",
        scope=Scope.CLUSTER,
        optional=True,
    ),
    _on(
        POWER_DOMAINS,
        "patch",
        subresource="status",
        why="say how things stand",
        scope=Scope.CLUSTER,
        optional=True,
    ),
    _on(
        NODE_POWERS,
        "list",
        "create",
        "patch",
        "delete",
        why="tell nodes what they may draw",
        scope=Scope.CLUSTER,
        optional=True,
    ),
    _on(RESOURCE_SLICES, *READ, why="count GPUs that DRA publishes", scope=Scope.CLUSTER, optional=True),
    _on(CRDS, *READ, why="see kinds that are installed later", scope=Scope.CLUSTER, optional=True),
    _on(MODEL_SERVICES, *READ, "create", why="plan; make one for annotated targets"),
    _on(MODEL_SERVICES, "patch", subresource="status", why="say how things stand"),
    _on(PLANS, *READ, "create", "patch", why="write plans"),
    _on(PLANS, "patch", subresource="status", why="say how far a plan has come"),
    _on(DEPLOYMENTS, *READ, "patch", why="set replicas"),
    _on(STATEFUL_SETS, *READ, "patch", why="set replicas"),
    _on(LEADER_WORKER_SETS, *READ, "patch", why="take groups over and give them back", optional=True),
    _on(LEADER_WORKER_SETS, "patch", subresource="scale", why="set the number of groups", optional=True),
    _on(PODS, *READ, why="know which GPUs are in use, and whom to scrape"),
    _on(EXPERT_PLACEMENTS, *READ, why="place experts", optional=True),
    _on(EXPERT_PLACEMENTS, "patch", subresource="status", why="say how things stand", optional=True),
    _on(CONFIG_MAPS, "get", "create", "patch", why="read recorded traces and loads; write experts' maps"),
    _on(AUTOSCALERS, *READ, why="leave targets of autoscalers alone"),
    _on(SCALED_OBJECTS, *READ, why="leave targets of KEDA alone", optional=True),
    _on(RESOURCE_CLAIMS, *READ, why="see GPUs that DRA has given away", optional=True),
    _on(HTTP_ROUTES, "get", "patch", why="weigh traffic between variants", optional=True),
    _on(EVENTS, "create", why="tell what was done"),
    _on(LEASES, "create", "patch", scope=Scope.OWN, why="elect a leader; show that PowerDomains are kept"),
    _on(LEASES, "get", "update", scope=Scope.OWN, name=LEASE_NAME, why="stay the leader, hand over"),
    _on(PODS, "list", scope=Scope.OWN, why="find the agents of nodes", optional=True),
    _on(LEADERSHIPS, "create", scope=Scope.OWN, why="fence other replicas off"),
    _on(LEADERSHIPS, "get", "patch", scope=Scope.OWN, name=LEASE_NAME, why="fence other replicas off"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One verb in one place, as an access review asks it."""

    permission: Permission
    verb: str
    namespace: str = ""

    def attributes(self) -> dict[str, str]:
        """Return the ``resourceAttributes`` of an access review."""
        permission = self.permission
        written = {
            "group": permission.group,
            "resource": permission.resource,
            "subresource": permission.subresource,
            "verb": self.verb,
            "namespace": self.namespace,
            "name": permission.name,
        }
        return {key: value for key, value in written.items() if value}


def questions(own: str, watched: Iterable[str] = ()) -> Iterator[Question]:
    """Ask for everything: ``own`` is the namespace of the release, ``watched`` those watched (none: all)."""
    spaces = tuple(watched) or ("",)
    for permission in PERMISSIONS:
        places = {Scope.CLUSTER: ("",), Scope.OWN: (own,), Scope.WATCHED: spaces}[permission.scope]
        for namespace in places:
            for verb in permission.verbs:
                yield Question(permission=permission, verb=verb, namespace=namespace)
