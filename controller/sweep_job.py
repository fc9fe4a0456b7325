"""A sweep as an Indexed Job: the manifest, and following it until it ends.

It exists because a cluster that serves models has idle cores at night, and an Indexed Job needs no daemon of ours. Pod
k of n runs ``ballast sweep SWEEP --shard k/n`` on a shared volume; the table is made with ``--merge`` where the volume
is mounted. It runs no simulation itself.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from solver.domain.errors import InputError

MOUNT = "/sweep"
POLL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlace:
    """Where and how the pods run."""

    namespace: str
    image: str
    claim: str
    """PersistentVolumeClaim that holds the sweep file, its scenario and traces, and takes the results."""
    shards: int
    parallelism: int


def job_manifest(sweep_file: Path, place: JobPlace) -> dict[str, Any]:
    """Write the Job; the sweep file must lie at the top of the claim."""
    name = (
        "ballast-sweep-" + "".join(c if c.isalnum() else "-" for c in sweep_file.stem.lower()).strip("-")[:40]
    )
    container = {
        "name": "sweep",
        "image": place.image,
        "command": ["ballast", "sweep", f"{MOUNT}/{sweep_file.name}"],
        "args": ["--shard", f"$(JOB_COMPLETION_INDEX)/{place.shards}", "--resume", "--workers", "1"],
        "workingDir": MOUNT,
        "env": [{"name": "NUMBA_CACHE_DIR", "value": "/tmp/numba"}],  # noqa: S108 - inside the pod
        "resources": {
            "requests": {"cpu": "1", "memory": "1Gi"},
            "limits": {"memory": "2Gi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "sweep", "mountPath": MOUNT}, {"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108 - as above
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": place.namespace,
            "labels": {"app.kubernetes.io/name": "ballast", "app.kubernetes.io/component": "sweep"},
        },
        "spec": {
            "completions": place.shards,
            "parallelism": place.parallelism,
            "completionMode": "Indexed",
            "backoffLimitPerIndex": 2,
            "maxFailedIndexes": max(1, place.shards // 10),
            "ttlSecondsAfterFinished": 86400,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailIndex",
                        "onExitCodes": {"containerName": "sweep", "operator": "In", "values": [1, 2]},
                    },
                ]
            },
            "template": {
                "metadata": {
                    "labels": {"app.kubernetes.io/name": "ballast", "app.kubernetes.io/component": "sweep"}
                },
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "fsGroup": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": [
                        {"name": "sweep", "persistentVolumeClaim": {"claimName": place.claim}},
                        {"name": "scratch", "emptyDir": {}},
                    ],
                },
            },
        },
    }


def submit_and_follow(
    manifest: Mapping[str, Any], *, on_progress: Callable[[str], None], poll_s: float = POLL_S
) -> bool:
    """Create the Job with the user's kubeconfig and wait for its end; True if every shard was completed.

    Raises
    ------
    InputError
        If there is no cluster to talk to, or it refuses the Job.
    """
    from kubernetes import client, config  # noqa: PLC0415 - takes two seconds
    from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - as above

    try:
        config.load_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise InputError(f"no cluster: {error}", right="a kubeconfig, or a pod's service account") from None
    batch = client.BatchV1Api()
    name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    try:
        batch.create_namespaced_job(
            namespace, cast("client.V1Job", dict(manifest))
        )  # plain dicts are taken too
    except ApiException as error:
        right = "delete the Job of that name first" if error.status == 409 else "see the message"
        raise InputError(f"the cluster refuses Job {namespace}/{name}: {error.reason}", right=right) from None
    while True:
        status = batch.read_namespaced_job_status(name, namespace).status or client.V1JobStatus()
        done = status.completed_indexes or "none"
        on_progress(f"{status.active or 0} pods active, shards done: {done}")
        for condition in status.conditions or []:
            if condition.status == "True" and condition.type in {"Complete", "Failed"}:
                return bool(condition.type == "Complete")
        time.sleep(poll_s)
