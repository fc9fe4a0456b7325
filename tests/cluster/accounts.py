"""ServiceAccounts with exactly the rights that a test gives them, and kubeconfigs that act as them.

It exists so that rights are real in tests that install no chart. It asserts nothing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from controller.operator.api import Api, Resource
from controller.operator.permissions import Permission, Scope
from tests.cluster.control_plane import ControlPlane

RBAC = "rbac.authorization.k8s.io/v1"
CLUSTER_ROLES = Resource(api_version=RBAC, kind="ClusterRole", plural="clusterroles", namespaced=False)
CLUSTER_BINDINGS = Resource(
    api_version=RBAC, kind="ClusterRoleBinding", plural="clusterrolebindings", namespaced=False
)
ROLES = Resource(api_version=RBAC, kind="Role", plural="roles")
BINDINGS = Resource(api_version=RBAC, kind="RoleBinding", plural="rolebindings")
ACCOUNTS = Resource(api_version="v1", kind="ServiceAccount", plural="serviceaccounts")
Rule = dict[str, Any]


def rule(permission: Permission) -> Rule:
    """Write a permission as RBAC does."""
    resource = f"{permission.resource}/{permission.subresource}".removesuffix("/")
    written: Rule = {
        "apiGroups": [permission.group],
        "resources": [resource],
        "verbs": list(permission.verbs),
    }
    return written | ({"resourceNames": [permission.name]} if permission.name else {})


def allow(api: Api, namespace: str, account: str, permissions: Iterable[Permission]) -> None:
    """Make an account with these rights: in its own namespace those of `Scope.OWN`, the others everywhere."""
    wanted = tuple(permissions)
    api.apply(ACCOUNTS, {"metadata": {"name": account, "namespace": namespace}}, manager="tests", force=True)
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    name = f"{namespace}-{account}"
    for role, binding, place, rules in (
        (
            CLUSTER_ROLES,
            CLUSTER_BINDINGS,
            {},
            [rule(p) for p in wanted if p.scope is not Scope.OWN],
        ),
        (ROLES, BINDINGS, {"namespace": namespace}, [rule(p) for p in wanted if p.scope is Scope.OWN]),
    ):
        metadata = {"name": name, **place}
        api.apply(role, {"metadata": metadata, "rules": rules}, manager="tests", force=True)
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": role.kind, "name": name}
        api.apply(
            binding,
            {"metadata": metadata, "roleRef": reference, "subjects": subjects},
            manager="tests",
            force=True,
        )


def kubeconfig_of(plane: ControlPlane, namespace: str, account: str) -> Path:
    """Write a kubeconfig with a token of an account."""
    token = plane.api("CoreV1Api").create_namespaced_service_account_token(
        account, namespace, {"spec": {"expirationSeconds": 7200}}
    )
    content = yaml.safe_load(plane.kubeconfig.read_text(encoding="utf-8"))
    (user,) = content["users"]
    user["user"] = {"token": token.status.token}
    content["contexts"][0]["context"]["namespace"] = namespace
    path = plane.folder / f"kubeconfig-{namespace}-{account}"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
