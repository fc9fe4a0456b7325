"""The chart grants what the controller's list of permissions says, and what more it grants is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.operator.permissions import PERMISSIONS, Scope
from tests.cluster.release import rendered

Right = tuple[str, str, str, str, str]
"""Scope, group, resource, verb, name."""
ROLES = {"ballast-controller", "ballast-controller-leader"}
AHEAD: set[tuple[str, str]] = {
    ("modelservices.ballast.dev", "patch"),
    ("modelservices/status.ballast.dev", "get"),
    ("plans.ballast.dev", "delete"),
    ("plans/status.ballast.dev", "get"),
    ("gpuprofiles/status.ballast.dev", "get"),
    ("leaderworkersets/scale.leaderworkerset.x-k8s.io", "get"),
    ("leases.coordination.k8s.io", "patch"),
    ("events.events.k8s.io", "create"),  # in the release's own namespace
    ("events.events.k8s.io", "patch"),
    ("httproutes.gateway.networking.k8s.io", "list"),
    ("httproutes.gateway.networking.k8s.io", "watch"),
    ("selfsubjectaccessreviews.authorization.k8s.io", "create"),  # ballast doctor in the pod
}
"""What the chart may grant although the controller does not use it today."""


def granted(objects: list[dict[str, Any]], *, namespaced: bool) -> Iterator[Right]:
    """Read the rights of the controller's roles."""
    for body in objects:
        name = body["metadata"]["name"]
        if body["kind"] not in {"ClusterRole", "Role"} or name not in ROLES:
            continue
        own = body["kind"] == "Role" and name.endswith("-leader")
        for rule in body["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        cluster = body["kind"] == "ClusterRole"
                        scope = "own" if own else "cluster" if cluster else "watched"
                        if cluster and not namespaced and (group, resource) in WATCHED:
                            scope = "watched"
                        for only in rule.get("resourceNames") or ("",):
                            yield scope, group, resource, verb, only


WATCHED = {
    (p.group, f"{p.resource}/{p.subresource}".removesuffix("/"))
    for p in PERMISSIONS
    if p.scope is Scope.WATCHED
}
NEEDED: set[Right] = {
    (p.scope.value, p.group, f"{p.resource}/{p.subresource}".removesuffix("/"), verb, p.name)
    for p in PERMISSIONS
    for verb in p.verbs
}


@pytest.mark.parametrize("namespaces", [[], ["chat", "code"]])
def test_the_chart_grants_the_list_and_little_more(helm: Path, namespaces: list[str]) -> None:
    objects = rendered(helm, {"watchNamespaces": namespaces})
    rights = set(granted(objects, namespaced=bool(namespaces)))
    assert rights >= NEEDED, sorted(NEEDED - rights)
    more = {
        (f"{resource}.{group}" if group else resource, verb)
        for _, group, resource, verb, _ in rights - NEEDED
    }
    assert more <= AHEAD, sorted(more - AHEAD)


def test_nothing_is_asked_for_twice_nor_for_everything() -> None:
    rows = [(p.group, p.resource, p.subresource, p.scope, p.name) for p in PERMISSIONS]
    assert len(rows) == len(set(rows))
    assert not any("*" in (p.group, p.resource, *p.verbs) for p in PERMISSIONS)
    assert not any(p.resource == "secrets" for p in PERMISSIONS)
