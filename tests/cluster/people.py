"""``make cluster``: a real control plane for people to try Ballast on, with fake GPU nodes and everything installed.

It exists because reading about an operator is not trying it. It runs what the tests run: the chart by real Helm, the
controller from the checkout with the chart's ServiceAccount, KWOK's nodes. It lasts until Ctrl-C and leaves nothing.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from controller.operator.api import MODEL_SERVICES, NODES, Api
from tests.cluster import scene
from tests.cluster.binaries import UnavailableError, control_plane_binaries, program
from tests.cluster.control_plane import ControlPlane, add_node, control_plane, eventually
from tests.cluster.release import HelmError, Release
from tests.cluster.scene import ROOT, OperatorProcess, Operators

EXAMPLES = ROOT / "examples" / "operator"
SPACE, SERVICE = "team-a", "chat"
RELEASE_SPACE = "ballast-system"
FLEET = {  # product label: nodes, GPUs of each
    "NVIDIA-A10G": (8, 4),
    "NVIDIA-A100-SXM4-80GB": (8, 8),
    "NVIDIA-H100-80GB-HBM3": (4, 8),
}
LABEL = "nvidia.com/gpu.product"
TOKEN_LASTS_S = 7 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything that runs."""

    plane: ControlPlane
    api: Api
    operator: OperatorProcess
    kubectl: Path
    account: str


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Set everything up; it lasts while the context does."""
    say("Looking for the programs of a control plane (built once if they are nowhere: about ten minutes) ...")
    binaries, helm, kubectl = control_plane_binaries(), program("helm"), program("kubectl")
    say("Starting etcd, API server, controller manager, scheduler and KWOK ...")
    with control_plane(binaries, folder) as plane:
        api = scene.api_of(plane)
        for product, (count, gpus) in FLEET.items():
            kind = product.split("-")[1].lower()
            for index in range(count):
                add_node(plane, f"{kind}-{index}", labels={LABEL: product}, gpus=gpus)
        if not eventually(lambda: all(map(is_ready, api.list(NODES)))):
            raise RuntimeError("KWOK does not make the nodes Ready")
        say("Installing the chart with Helm ...")
        release = Release(helm=helm, plane=plane, namespace=RELEASE_SPACE)
        release.install()
        say("Starting the controller with the chart's ServiceAccount, and applying examples/operator ...")
        pod = release.pods()[0]
        token = release.kubeconfig(pod, lasts_s=TOKEN_LASTS_S)
        operators = Operators(token, folder, namespace=RELEASE_SPACE)
        try:
            operator = operators.start("--debounce=1", identity=pod)
            subprocess.run(
                [kubectl, f"--kubeconfig={plane.kubeconfig}", "apply", "-f", EXAMPLES],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            if not eventually(lambda: scene.phase(api, SPACE, SERVICE), within_s=120):
                told = api.get(MODEL_SERVICES, SPACE, SERVICE) or {}
                raise RuntimeError(f"no Plan appeared: {told.get('status')}; log: {operator.log}")
            yield Stage(
                plane=plane,
                api=api,
                operator=operator,
                kubectl=kubectl,
                account=f"{RELEASE_SPACE}/{release.fullname}",
            )
        finally:
            for one in operators.started:
                one.stop()


def is_ready(node: dict[str, Any]) -> bool:
    """Whether KWOK has made a node Ready."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def lines(on: Stage) -> str:
    """Return what to try."""
    nodes = sum(count for count, _ in FLEET.values())
    gpus = sum(count * each for count, each in FLEET.values())
    scripts = Path(sys.executable).parent
    annotate = "ballast.dev/approved=$(kubectl get -n team-a plan/chat -o jsonpath='{.spec.digest}')"
    more = '{"spec":{"mode":"Auto","traffic":{"histogram":{"buckets":['
    more += '{"inputTokens":1024,"outputTokens":256,"rateRps":60}]}}}}'
    return textwrap.dedent(f"""
        A cluster is running: {nodes} fake nodes with {gpus} GPUs, the chart, a controller, examples/operator.
        In another terminal:

          export KUBECONFIG={on.plane.kubeconfig}
          export PATH={on.kubectl.parent}:{scripts}:$PATH

        Look around:
          kubectl get nodes -L {LABEL}
          kubectl get modelservices,plans,gpuprofiles -A -o wide
          kubectl ballast doctor --as-service-account {on.account}
          kubectl ballast explain modelservice/{SERVICE} -n {SPACE}

        Approve the plan, and see it applied:
          kubectl annotate -n {SPACE} plan/{SERVICE} {annotate}
          kubectl get -n {SPACE} deployments -w
          kubectl get -n {SPACE} events --sort-by=.metadata.creationTimestamp

        More traffic, and no more waiting for approval:
          kubectl patch -n {SPACE} modelservice/{SERVICE} --type=merge -p '{more}'

        Take GPUs away; hold everything; give everything back:
          kubectl cordon h100-0 h100-1 h100-2 h100-3
          kubectl annotate -n {SPACE} modelservice/{SERVICE} ballast.dev/paused=true
          kubectl delete -n {SPACE} modelservice/{SERVICE}

        The controller's log: {on.operator.log}
        Ctrl-C stops everything and removes it.
        """)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Stop at the first Ctrl-C; the next ones must not disturb the tidying up."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)
    raise KeyboardInterrupt


def attend(on: Stage) -> None:
    """Wait for Ctrl-C, or for something to end that should not."""
    while True:
        time.sleep(1.0)
        dead = [name for name, process in on.plane.processes.items() if process.poll() is not None]
        if on.operator.process.poll() is not None:
            dead.append("the controller")
        if dead:
            raise RuntimeError(f"{', '.join(dead)} ended")


def main() -> int:
    """Run until interrupted."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="ballast-cluster-"))
    try:
        with stage(folder) as on:
            say(lines(on))
            attend(on)
    except KeyboardInterrupt:
        say("Stopped.")
    except (UnavailableError, RuntimeError, HelmError, subprocess.CalledProcessError) as error:
        say(f"make cluster: {error}; logs in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of client libraries need not be waited for
