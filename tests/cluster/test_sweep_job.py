"""``ballast sweep --kubernetes`` against a real control plane: the Job is accepted, followed, and its shards are."""

import os
import subprocess
from pathlib import Path

from tests.cluster.control_plane import ControlPlane, add_node, eventually
from tests.commands import BALLAST

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def claim(plane: ControlPlane, name: str) -> None:
    """Make a claim that is bound at once."""
    api = plane.api("CoreV1Api")
    storage = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    api.create_persistent_volume(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {**storage, "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/data"}},
        }
    )
    api.create_namespaced_persistent_volume_claim(
        "default",
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {**storage, "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
        },
    )


def test_a_sweep_runs_as_an_indexed_job(plane: ControlPlane, tmp_path: Path) -> None:
    add_node(plane, "cpu-0", labels={})
    claim(plane, "data")
    accounts = plane.api("CoreV1Api")
    assert eventually(lambda: accounts.list_namespaced_service_account("default").items)
    (tmp_path / "grid.yaml").write_text(
        f"schema: sweep/1\nbase: {EXAMPLES / 'one-pool.yaml'}\naxes: {{trace.scale: [1.0, 2.0, 3.0]}}\nout: out\n"
    )
    words = ["sweep", "grid.yaml", "--kubernetes", "--image", "ballast:1", "--claim", "data", "--shards", "3"]
    environment = {**os.environ, "KUBECONFIG": str(plane.kubeconfig)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*BALLAST, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    ran = run()
    assert ran.returncode == 0, ran.stderr
    assert "all 3 shards are done" in ran.stdout
    job = plane.api("BatchV1Api").read_namespaced_job("ballast-sweep-grid", "default")
    assert job.status.completed_indexes == "0-2"
    pods = accounts.list_namespaced_pod("default", label_selector="app.kubernetes.io/component=sweep").items
    assert {pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in pods} == set(
        "012"
    )
    again = run()
    assert again.returncode == 1
    assert "delete the Job of that name first" in again.stderr
