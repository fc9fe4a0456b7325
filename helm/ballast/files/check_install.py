# ruff: noqa: INP001 - a script, no part of a package
"""Checks an installation from inside the cluster, as ``helm test`` runs it; one line per check.

It exists because a Deployment that is ready does not prove that the API server knows our resources, nor that a
controller leads. It changes nothing: what it writes is a dry run.
"""

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client, config

GROUP = "ballast.dev"
VERSION = "v1alpha1"


def main() -> None:
    """Run the checks; the exit status is 1 when one fails."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    else:
        config.load_config()  # type: ignore[no-untyped-call]
    failed = False
    for name, check in (
        ("a ModelService is accepted", accepted),
        ("a wrong one is refused", refused),
        ("a controller leads", led),
    ):
        wrong = check()
        failed |= wrong is not None
        sys.stdout.write(f"{name}: {'yes' if wrong is None else f'NO, {wrong}'}\n")
    sys.exit(failed)


def accepted() -> str | None:
    """Apply a ModelService as a dry run; what is wrong, if anything."""
    try:
        apply("Recommend")
    except client.ApiException as error:
        return reason(error)
    return None


def refused() -> str | None:
    """Apply one whose mode does not exist."""
    try:
        apply("Sometimes")
    except client.ApiException as error:
        return None if error.status == 422 else reason(error)
    return "the API server accepts a mode that does not exist"


def led() -> str | None:
    """Look at the Lease until somebody holds and renews it."""
    name, namespace = os.environ["LEASE"], os.environ["NAMESPACE"]
    wrong = "nobody looked"
    for _ in range(int(os.environ.get("WAIT_S", "60"))):
        try:
            lease: Any = client.CoordinationV1Api().read_namespaced_lease(name, namespace)
        except client.ApiException as error:
            wrong = f"Lease {namespace}/{name}: {reason(error)}"
        else:
            spec = lease.spec
            age = datetime.now(UTC) - (spec.renew_time or datetime.fromtimestamp(0, UTC))
            if spec.holder_identity and age < timedelta(seconds=2 * (spec.lease_duration_seconds or 15)):
                return None
            wrong = (
                f"Lease {namespace}/{name} is held by {spec.holder_identity or 'nobody'}, renewed {age} ago"
            )
        time.sleep(1)
    return wrong


def apply(mode: str) -> None:
    """Apply a ModelService without keeping it."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "helm-test"}
    client.CustomObjectsApi().patch_namespaced_custom_object(
        GROUP,
        VERSION,
        os.environ["WATCHED"],
        "modelservices",
        "ballast-helm-test",
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "ModelService",
            "metadata": {"name": "ballast-helm-test"},
            "spec": {
                "model": "helm/test",
                "mode": mode,
                "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05, "percentile": 99},
                "traffic": {
                    "histogram": {"buckets": [{"inputTokens": 512, "outputTokens": 128, "rateRps": 1.0}]}
                },
                "variants": [{"name": "one", "targetRef": target, "gpuProfile": "helm-test"}],
            },
        },
        field_manager="ballast-helm-test",
        dry_run="All",
        _content_type="application/apply-patch+yaml",
    )


def reason(error: client.ApiException) -> str:
    """Return what the API server said, in one line."""
    return f"{error.status} {' '.join(str(error.body or error.reason).split())[:300]}"


if __name__ == "__main__":
    main()
