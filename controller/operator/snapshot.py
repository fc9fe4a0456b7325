"""Reads a cluster once, for commands: the same `World` that the operator keeps by watching.

It exists so that a command sees what the operator sees, through the same code, and says what it was not allowed to
see. It watches nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controller.operator.api import EXPERT_PLACEMENTS, MODEL_SERVICES, POWER_DOMAINS, Api, ApiError, Resource
from controller.operator.world import OPTIONAL, WATCHED, World
from solver.domain.errors import InputError

ASKED = tuple(resource for resource in WATCHED if resource not in {EXPERT_PLACEMENTS, POWER_DOMAINS})
"""What is read unless said otherwise: replicas do not depend on where experts sit, nor on power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read, and what could not be."""

    world: World
    unseen: frozenset[str]
    """Kinds that we may not read at all."""
    own_namespace_only: frozenset[str]
    """Kinds that we may read in one namespace only."""

    def notes(self) -> list[str]:
        """Say what follows from what could not be read."""
        found = []
        if self.unseen:
            found.append(f"not read, for lack of rights: {', '.join(sorted(self.unseen))}")
        if self.own_namespace_only:
            kinds = ", ".join(sorted(self.own_namespace_only))
            found.append(f"read in this namespace only, for lack of rights: {kinds}")
        return found


def read_world(
    api: Api, namespace: str, *, gpu_resource: str, resources: Iterable[Resource] = ASKED
) -> Snapshot:
    """Read the kinds that the operator plans with; ``namespace`` is where we look if we may not look everywhere.

    Raises
    ------
    ApiError
        If the API server cannot be reached, or ModelServices cannot be read.
    InputError
        If the cluster does not know our resources.
    """
    world = World(gpu_resource=gpu_resource)
    unseen, narrow = set(), set()
    for resource in resources:
        bodies, whole = _listed(api, resource, namespace)
        if bodies is None:
            unseen.add(resource.kind)
            continue
        if not whole:
            narrow.add(resource.kind)
        for body in bodies:
            world.put(resource.kind, body)
    return Snapshot(world=world, unseen=frozenset(unseen), own_namespace_only=frozenset(narrow))


def _listed(api: Api, resource: Resource, namespace: str) -> tuple[list[dict[str, object]] | None, bool]:
    for place in (None, namespace) if resource.namespaced else (None,):
        try:
            return api.list(resource, place), place is None
        except ApiError as error:
            if error.code == 404 and resource is MODEL_SERVICES:
                raise InputError(
                    "the cluster does not know ModelServices", right="install the chart; see: ballast doctor"
                ) from None
            if error.code == 404 and resource.kind in OPTIONAL:
                return [], True
            if error.code != 403 or (resource is MODEL_SERVICES and place is not None):
                raise
    return None, False
