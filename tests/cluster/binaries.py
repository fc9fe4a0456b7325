"""Finds or builds the programs of a real control plane: API server, controller manager, scheduler, etcd, KWOK.

It exists because tests against a mock of Kubernetes prove little, and container images are not to be had everywhere.
Modules under ``tools`` pin what is built (no Go code of ours); the result is cached by their content, so it is built
once per user. It starts nothing.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
VERSION = "v1.36.3"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
PACKAGES = {
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}") for name in KUBERNETES},
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kwok": ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
}
"""Binary: module under ``tools``, package."""
STAGES = "stages.yaml"
STAGE_FOLDERS = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
REQUIRED = "BALLAST_REQUIRE_CLUSTER"
"""If this is set in the environment, tests fail instead of being skipped where the programs cannot be had."""
BUILD_LIMIT_S = 1200


class UnavailableError(Exception):
    """The programs are not there and cannot be built; the message says what is missing."""


def control_plane_binaries() -> Path:
    """Return the folder with all programs and KWOK's stages; builds what is missing.

    Raises
    ------
    UnavailableError
        If Go is missing or the build fails.
    """
    folder = _cache()
    if not _complete(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if not _complete(folder):
                _build(folder)
    return folder


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = hashlib.sha256(VERSION.encode())
    for file in sorted(TOOLS.rglob("go.*")):
        state.update(file.name.encode() + file.read_bytes())
    return home / "ballast" / "testbed" / state.hexdigest()[:16]


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (*PACKAGES, STAGES))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process build; the others wait and find the result."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(folder: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise UnavailableError("no Go on PATH to build a control plane with; Go 1.26 or newer is needed")
    for name, (module, package) in PACKAGES.items():
        if (folder / name).is_file():
            continue
        sys.stderr.write(f"building {name} once (minutes)\n")
        flags = "-s -w"
        if module == "kubernetes":
            major, minor = VERSION[1:].split(".")[:2]
            base = "k8s.io/component-base/version"
            flags += f" -X {base}.gitVersion={VERSION} -X {base}.gitMajor={major} -X {base}.gitMinor={minor}"
        unfinished = folder / f".{name}"
        _go(go, module, "build", "-trimpath", "-ldflags", flags, "-o", str(unfinished), package)
        unfinished.rename(folder / name)
    where = Path(_go(go, "kwok", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok").strip())
    stages = [
        file.read_text(encoding="utf-8")
        for part in STAGE_FOLDERS
        for file in sorted((where / "kustomize" / "stage" / part).glob("*.yaml"))
        if file.name != "kustomization.yaml"
    ]
    unfinished = folder / f".{STAGES}"
    unfinished.write_text("".join(f"---\n{text}\n" for text in stages), encoding="utf-8")
    unfinished.rename(folder / STAGES)


def _go(go: str, module: str, *words: str) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    try:
        done = subprocess.run(
            [go, *words],
            cwd=TOOLS / module,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"go {words[0]} of {module} took more than {BUILD_LIMIT_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"go {words[0]} of {module} failed: {reason}")
    return done.stdout
