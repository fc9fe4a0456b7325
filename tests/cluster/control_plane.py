"""Starts a real Kubernetes control plane on loopback, with KWOK playing the kubelets; stops it by process id.

It exists so that what talks to a cluster is tested against one. No containers run: KWOK makes nodes Ready and pods
Running or Succeeded. Logs lie in the folder it was given.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client, config

TOKEN = "loopback-only"  # noqa: S105 - of a server that lives for one test session on 127.0.0.1
READY_S = 120.0
NETWORK_PORT = 64_321
Answer = TypeVar("Answer")


@dataclass(slots=True)
class ControlPlane:
    """A running control plane."""

    folder: Path
    server: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: dict[str, tuple[str | Path, ...]] = field(default_factory=dict)
    """How each process was started."""
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Options of some programs beside the usual ones."""

    @property
    def kubeconfig(self) -> Path:
        """File for kubectl and for the client."""
        return self.folder / "kubeconfig"

    def api(self, name: str) -> Any:
        """Return an API (``CoreV1Api``) of the client library as the cluster's administrator."""
        administrator = config.new_client_from_config(str(self.kubeconfig))  # type: ignore[no-untyped-call]
        return getattr(client, name)(administrator)

    def kill(self, name: str) -> None:
        """End one process at once, as a crash would."""
        self.processes[name].kill()
        self.processes[name].wait()

    def start(self, name: str) -> None:
        """Start one process, again if it ended; its log goes on."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.commands[name],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def eventually(ask: Callable[[], Answer], *, within_s: float = 60.0, every_s: float = 0.1) -> Answer:
    """Ask until the answer is true; the last answer if it never is."""
    deadline_s = time.monotonic() + within_s
    answer = ask()
    while not answer and time.monotonic() < deadline_s:
        time.sleep(every_s)
        answer = ask()
    return answer


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def pod_network() -> Iterator[str]:
    """Hold a /16 of loopback (its first two numbers) that no other control plane of this machine uses.

    Pods get addresses on loopback, so that tests can answer for them. A socket held at its end keeps others away.
    """
    for second in range(64, 128):
        with socket.socket() as held:
            try:
                held.bind((f"127.{second}.255.254", NETWORK_PORT))
            except OSError:
                continue
            yield f"127.{second}"
            return
    raise RuntimeError("every network of 127.64.0.0/10 is held by another control plane")


@contextmanager
def control_plane(
    binaries: Mapping[str, Path], folder: Path, *, more: Mapping[str, Sequence[str]] | None = None
) -> Iterator[ControlPlane]:
    """Run a control plane while the context lasts; ``more`` are options for some programs, by name."""
    etcd, peers, api = free_port(), free_port(), free_port()
    plane = ControlPlane(folder=folder, server=f"https://127.0.0.1:{api}", more=dict(more or {}))
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    public = folder / "accounts.pub"
    subprocess.run(["openssl", "rsa", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n", encoding="utf-8")
    with pod_network() as network, _ended(plane):
        _start(
            plane,
            binaries["etcd"],
            "--unsafe-no-fsync",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}",
        )
        _start(
            plane,
            binaries["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--cert-dir={folder / 'certificates'}",
            f"--secure-port={api}",
            "--bind-address=127.0.0.1",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={key}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
        )
        authority = folder / "certificates" / "apiserver.crt"
        if not eventually(authority.is_file, within_s=READY_S):
            raise RuntimeError(f"the API server made no certificate; logs in {folder}")
        plane.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(plane.server, authority)), encoding="utf-8")
        if not eventually(lambda: _ready(plane), within_s=READY_S, every_s=0.2):
            raise RuntimeError(f"the API server did not become ready; logs in {folder}")
        common = (f"--kubeconfig={plane.kubeconfig}", "--bind-address=127.0.0.1", "--leader-elect=false")
        manager = (*common, f"--secure-port={free_port()}", f"--service-account-private-key-file={key}")
        _start(plane, binaries["kube-controller-manager"], *manager)
        _start(plane, binaries["kube-scheduler"], *common, f"--secure-port={free_port()}")
        _start(
            plane,
            binaries["kwok"],
            f"--kubeconfig={plane.kubeconfig}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            f"--cidr={network}.0.1/16",
            f"--config={binaries['stages.yaml']}",
            f"--server-address=127.0.0.1:{free_port()}",
        )
        yield plane


@contextmanager
def _ended(plane: ControlPlane) -> Iterator[None]:
    """End its processes in the end, last first."""
    try:
        yield
    finally:
        for process in reversed(plane.processes.values()):
            _stop(process)


def _start(plane: ControlPlane, program: Path, *words: str) -> None:
    plane.commands[program.name] = (program, *words, *plane.more.get(program.name, ()))
    plane.start(program.name)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kubeconfig(server: str, authority: Path) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "testbed",
                "cluster": {"server": server, "certificate-authority": str(authority)},
            }
        ],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "admin"}}],
        "current-context": "testbed",
    }


def _ready(plane: ControlPlane) -> bool:
    dead = [name for name, process in plane.processes.items() if process.poll() is not None]
    if dead:
        raise RuntimeError(f"{dead[0]} ended; see {plane.folder / dead[0]}.log")
    try:
        plane.api("VersionApi").get_code()
        plane.api("CoreV1Api").list_namespace()
    except Exception:  # noqa: BLE001 - whatever it is, it is not ready yet
        return False
    return True


def add_node(plane: ControlPlane, name: str, *, labels: Mapping[str, str], gpus: int = 0) -> None:
    """Add a fake node that KWOK makes Ready."""
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    plane.api("CoreV1Api").create_node(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, **labels},
                "annotations": {"kwok.x-k8s.io/node": "fake"},
            },
            "status": {"allocatable": room, "capacity": room},
        }
    )
