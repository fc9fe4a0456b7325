"""What tests put on the control plane: nodes, targets, profiles, services, and the operator's process.

It exists so that every test of the operator speaks of the same small cluster. Nothing here judges.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from controller.operator.api import (
    DEPLOYMENTS,
    MODEL_SERVICES,
    PLANS,
    STATEFUL_SETS,
    Api,
    ApiError,
    Resource,
    connect,
)
from tests.cluster.control_plane import ControlPlane, add_node, eventually, free_port

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "helm" / "ballast" / "crd-files"
CRD = Resource(
    api_version="apiextensions.k8s.io/v1",
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
    namespaced=False,
)
NAMESPACES = Resource(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)
LABEL = "nvidia.com/gpu.product"
Object = dict[str, Any]


def api_of(plane: ControlPlane) -> Api:
    """Return the administrator's API."""
    return Api(client=connect(str(plane.kubeconfig)))


def install_crds(api: Api) -> None:
    """Install our definitions, if they are not there."""
    for file in sorted(CRDS.glob("*.yaml")):
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
        name = body["metadata"]["name"]
        api.apply(CRD, {"metadata": body["metadata"], "spec": body["spec"]}, manager="tests", force=True)

        def established(name: str = name, plural: str = body["spec"]["names"]["plural"]) -> bool:
            found = api.get(CRD, None, name)
            conditions = ((found or {}).get("status") or {}).get("conditions") or []
            if not any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                return False
            try:
                return "items" in api.request("GET", f"/apis/{MODEL_SERVICES.api_version}/{plural}")
            except ApiError:
                return False  # its storage is being set up

        assert eventually(established)


def ensure_namespace(api: Api, name: str) -> None:
    """Create a namespace, if it is not there."""
    if api.get(NAMESPACES, None, name) is None:
        api.create(NAMESPACES, None, {"metadata": {"name": name}})


def add_nodes(plane: ControlPlane, counts: Mapping[str, int], *, prefix: str, gpus: int = 8) -> list[str]:
    """Add fake nodes by product label; every test uses labels of its own, so that tests do not meet."""
    names = []
    for product, count in counts.items():
        for index in range(count):
            name = f"{prefix}-{product.lower()}-{index}"
            add_node(plane, name, labels={LABEL: product}, gpus=gpus)
            names.append(name)
    return names


def pod_template(name: str, product: str, gpus: int) -> Object:
    """Return a pod template that asks for GPUs of a product."""
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "nodeSelector": {LABEL: product},
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "engine",
                    "image": "engine:1",
                    "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
                }
            ],
        },
    }


def deployment(
    namespace: str, name: str, product: str, *, replicas: int = 0, gpus: int = 1, kind: Resource = DEPLOYMENTS
) -> Object:
    """Return a Deployment or StatefulSet of engines on a product."""
    spec: Object = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": pod_template(name, product, gpus),
    }
    if kind is STATEFUL_SETS:
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def profile(
    name: str,
    product: str,
    *,
    max_rps: float,
    price: float,
    gpus: int = 1,
    model: str = "m",
    selector: Mapping[str, str] | None = None,
) -> Object:
    """Return a GpuProfile with one row that is within any sensible SLO."""
    return {
        "metadata": {"name": name},
        "spec": {
            "model": model,
            "precision": "bf16",
            "gpuType": product,
            "gpusPerReplica": gpus,
            "nodeSelector": {LABEL: product} if selector is None else dict(selector),
            "priceUsdPerHour": price,
            "provenance": {"kind": "measured", "source": "tests", "date": "2026-11-01"},
            "throughput": [
                {
                    "inputTokens": 4096,
                    "outputTokens": 1024,
                    "ttftSeconds": 0.5,
                    "tbtSeconds": 0.02,
                    "maxRps": max_rps,
                }
            ],
        },
    }


def variant(name: str, target: str, gpu_profile: str, *, kind: str = "Deployment", **more: Any) -> Object:
    """Return a variant of a ModelService."""
    version = "leaderworkerset.x-k8s.io/v1" if kind == "LeaderWorkerSet" else "apps/v1"
    reference = {"apiVersion": version, "kind": kind, "name": target}
    return {"name": name, "targetRef": reference, "gpuProfile": gpu_profile, **more}


def histogram(rate_rps: float) -> Object:
    """Return traffic that is stated."""
    return {"histogram": {"buckets": [{"inputTokens": 512, "outputTokens": 128, "rateRps": rate_rps}]}}


def service(
    namespace: str,
    name: str,
    variants: Sequence[Object],
    *,
    traffic: Object,
    mode: str = "Auto",
    interval_s: int = 0,
    **more: Any,
) -> Object:
    """Return a ModelService."""
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": "m",
            "mode": mode,
            "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05, "percentile": 99},
            "traffic": traffic,
            "variants": list(variants),
            "change": {"startCostUsd": 0.0, "stopCostUsd": 0.0, "minIntervalSeconds": interval_s},
            **more,
        },
    }


def expert_placement(
    namespace: str,
    name: str,
    *,
    nodes: int,
    gpus: int,
    experts: int,
    layers: int,
    redundant: int = 0,
    engine: str = "sglang",
    **more: Any,
) -> Object:
    """Return an ExpertPlacement whose loads stand in the ConfigMap of its name."""
    ranks = [{"name": f"node-{i}", "gpus": [{"id": g} for g in range(gpus)]} for i in range(nodes)]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "modelRef": {
                "name": "moe",
                "moeLayers": layers,
                "firstMoeLayer": 1,
                "experts": experts,
                "topK": 2,
                "expertBytes": 1_000_000,
            },
            "engine": engine,
            "epSize": nodes * gpus,
            "redundantExperts": redundant,
            "topology": {"nodes": ranks, "bwIntraGBps": 450, "bwInterGBps": 50},
            "loadSource": {"configMap": {"name": name}},
            "objective": {"usPerTokenExpert": 0.2, "bytesPerTokenCopy": 14_336},
            **more,
        },
    }


@dataclass(slots=True)
class OperatorProcess:
    """One replica of the operator as a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    identity: str

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def text(self) -> str:
        """Return what it logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, sign: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.process.poll() is None:
            os.kill(self.process.pid, sign)

    def stop(self, within_s: float = 10.0) -> int | None:
        """Ask it to stop; returns the exit code."""
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it at once."""
        self.send(signal.SIGKILL)
        self.process.wait()


@dataclass(slots=True)
class Operators:
    """Starts replicas, and ends all of them."""

    kubeconfig: Path
    folder: Path
    namespace: str = "ballast-system"
    started: list[OperatorProcess] = field(default_factory=list)

    def start(
        self, *words: str, kubeconfig: Path | None = None, identity: str | None = None
    ) -> OperatorProcess:
        """Start a replica with short times; ``words`` come last, so they win."""
        identity = identity or f"replica-{len(self.started)}"
        port = free_port()
        log = self.folder / f"{identity}-{len(self.started)}.log"
        command = [
            sys.executable,
            "-c",
            "from controller.cli.root import main; main()",
            "controller",
            "run",
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            f"--namespace={self.namespace}",
            f"--identity={identity}",
            f"--port={port}",
            "--debounce=0.2",
            "--plan-interval=2",
            "--sample-interval=0.5",
            "--audit-interval=2",
            "--lease-duration=4",
            "--renew-deadline=3",
            "--retry-period=0.5",
            *words,
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        one = OperatorProcess(process=process, log=log, port=port, identity=identity)
        self.started.append(one)
        return one

    def end(self) -> None:
        """End what still runs."""
        for one in self.started:
            if one.process.poll() is None:
                one.kill()


def replicas(api: Api, namespace: str, name: str, kind: Resource = DEPLOYMENTS) -> int | None:
    """Return what is asked for."""
    body = api.get(kind, namespace, name)
    return None if body is None else int(body["spec"]["replicas"])


def ready(api: Api, namespace: str, name: str, kind: Resource = DEPLOYMENTS) -> int:
    """Return what is ready."""
    body = api.get(kind, namespace, name)
    return 0 if body is None else int((body.get("status") or {}).get("readyReplicas") or 0)


def plan_of(api: Api, namespace: str, name: str) -> Object:
    """Return a Plan, or an empty object."""
    return api.get(PLANS, namespace, name) or {}


def phase(api: Api, namespace: str, name: str) -> str:
    """Return the phase of a Plan."""
    return str((plan_of(api, namespace, name).get("status") or {}).get("phase") or "")


def condition(api: Api, namespace: str, name: str, kind: str) -> Object:
    """Return a condition of a ModelService."""
    body = api.get(MODEL_SERVICES, namespace, name) or {}
    found = ((body.get("status") or {}).get("conditions")) or []
    return next((dict(c) for c in found if c["type"] == kind), {})


def put(api: Api, resource: Resource, body: Object) -> Object:
    """Create an object, or replace its spec as a user would with kubectl apply."""
    return api.apply(resource, body, manager="kubectl", force=True)


def drop(api: Api, resource: Resource, namespace: str | None, name: str) -> None:
    """Delete an object, if it is there."""
    try:
        api.request("DELETE", resource.path(namespace, name))
    except ApiError as error:
        if error.code != 404:
            raise


def wait_s(seconds: float) -> None:
    """Let time pass while nothing is expected to happen."""
    time.sleep(seconds)
