"""The real kubectl finds ``kubectl ballast`` on PATH, runs it, and completes it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.control_plane import ControlPlane

SCRIPTS = Path(sys.executable).parent


def ask(kubectl: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [kubectl, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
        timeout=120,
    )


def test_kubectl_runs_the_plugin(kubectl: Path, plane: ControlPlane) -> None:
    assert f"{SCRIPTS}/kubectl-ballast" in ask(kubectl, "plugin", "list").stdout
    done = ask(
        kubectl, "ballast", "doctor", "--kubeconfig", str(plane.kubeconfig), "-n", "plugin", "-o", "yaml"
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("schema: doctor/1")


def test_kubectl_completes_the_plugin(kubectl: Path) -> None:
    done = ask(kubectl, "__complete", "ballast", "explain", "mod")
    assert done.stdout.splitlines()[0] == "modelservice/"
