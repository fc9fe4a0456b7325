"""Drives the chart with real Helm: renders, installs, upgrades and removes it, and acts as one of its pods.

It exists so that RBAC and admission policies are real in tests: what runs from the checkout holds the token of a Pod of
the release. It is no fixture and asserts nothing.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from tests.cluster.control_plane import ControlPlane

CHART = Path(__file__).resolve().parents[2] / "helm" / "ballast"
LEASE = "ballast-controller"
LIMIT_S = 180


class HelmError(Exception):
    """Helm refused; the message is what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of the chart on a control plane."""

    helm: Path
    plane: ControlPlane
    name: str = "ballast"
    namespace: str = "ballast"

    @property
    def fullname(self) -> str:
        """Name of the Deployment and of the ServiceAccount."""
        return f"{self.name}-controller" if "ballast" in self.name else f"{self.name}-ballast-controller"

    def run(self, *words: str, values: Mapping[str, Any] | None = None) -> str:
        """Run a Helm command in the release's namespace.

        Raises
        ------
        HelmError
            If Helm fails.
        """
        options = ["--kubeconfig", str(self.plane.kubeconfig), "--namespace", self.namespace]
        return run_helm(self.helm, *words, *options, values=values)

    def install(
        self, values: Mapping[str, Any] | None = None, *, chart: Path = CHART, more: Sequence[str] = ()
    ) -> str:
        """Install, or upgrade to, a chart and wait until its pods are ready."""
        words = ("--install", self.name, str(chart), "--create-namespace", "--wait", "--timeout=120s")
        return self.run("upgrade", *words, *more, values=values)

    def uninstall(self) -> str:
        """Remove the release."""
        return self.run("uninstall", self.name, "--wait", "--timeout=120s", "--ignore-not-found")

    def pods(self) -> list[str]:
        """Return the names of the controllers' pods that are not ending."""
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=controller"
        pods = self.plane.api("CoreV1Api").list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(pod.metadata.name for pod in pods if pod.metadata.deletion_timestamp is None)

    def kubeconfig(self, pod: str | None, *, account: str | None = None, lasts_s: int = 7200) -> Path:
        """Write a kubeconfig with the token of a ServiceAccount, bound to a pod as a kubelet would bind it."""
        account = account or self.fullname
        api = self.plane.api("CoreV1Api")
        wanted: dict[str, Any] = {"expirationSeconds": lasts_s}
        if pod is not None:
            uid = api.read_namespaced_pod(pod, self.namespace).metadata.uid
            wanted["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
        token = api.create_namespaced_service_account_token(account, self.namespace, {"spec": wanted})
        content = yaml.safe_load(self.plane.kubeconfig.read_text(encoding="utf-8"))
        (user,) = content["users"]
        user["user"] = {"token": token.status.token}
        content["contexts"][0]["context"]["namespace"] = self.namespace
        path = self.plane.folder / f"kubeconfig-{self.namespace}-{account}-{pod or 'unbound'}"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


def run_helm(helm: Path, *words: str, values: Mapping[str, Any] | None = None) -> str:
    """Run Helm with values.

    Raises
    ------
    HelmError
        If Helm fails.
    """
    given = [] if values is None else ["--values", "-"]
    done = subprocess.run(
        [helm, *words, *given],
        input=yaml.safe_dump(dict(values or {})),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def rendered(
    helm: Path,
    values: Mapping[str, Any] | None = None,
    *,
    name: str = "ballast",
    namespace: str = "ballast",
    apis: Sequence[str] = ("monitoring.coreos.com/v1",),
) -> list[dict[str, Any]]:
    """Return the objects of the chart."""
    known = [word for api in apis for word in ("--api-versions", api)]
    words = ("template", name, str(CHART), "--namespace", namespace, *known)
    objects = yaml.safe_load_all(run_helm(helm, *words, values=values or {}))
    return [found for found in objects if found]


def api(name: str, kubeconfig: Path) -> Any:
    """Return an API of the client library that uses a kubeconfig."""
    return getattr(client, name)(config.new_client_from_config(str(kubeconfig)))  # type: ignore[no-untyped-call]
