"""Keeps replicas of the operator running as a kubelet would: each behind a proxy, restarted under its own name.

It exists so that a test can kill replicas as often as it likes, and so that "restarted" means the same in all tests.
The names of replicas are those of pods, so a restarted one has the identity that it had before.
"""

import signal
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from controller.operator.api import LEASES, Api
from controller.operator.leader import LEASE_NAME
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.proxy import Proxy
from tests.cluster.scene import OperatorProcess, Operators, api_of

AT_ONCE = (0.0,)
CRASH_LOOP = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Seconds that a real kubelet waits before the n-th restart; the last for all that follow."""


@dataclass(slots=True, kw_only=True)
class Pod:
    """One replica: its proxy, its present process, how its processes ended."""

    identity: str
    proxy: Proxy
    process: OperatorProcess
    ended: list[int] = field(default_factory=list)
    """Exit codes so far; those of signals are negative."""

    def kill(self) -> None:
        """End the present process at once; returns when it is gone."""
        self.process.kill()

    def freeze(self) -> None:
        """Stop its clockwork: no thread of it runs until `thaw`."""
        self.process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send(signal.SIGCONT)


@dataclass(slots=True, kw_only=True)
class Kubelet:
    """Pods of one Lease."""

    api: Api
    namespace: str
    operators: Operators
    words: Sequence[str]
    delays_s: Sequence[float]
    pods: list[Pod] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _due_s: dict[str, float] = field(default_factory=dict)

    @property
    def leader(self) -> Pod | None:
        """The pod that holds the Lease, if it runs."""
        lease = self.api.get(LEASES, self.namespace, LEASE_NAME) or {"spec": {}}
        holder = lease["spec"].get("holderIdentity")
        return next((p for p in self.pods if p.identity == holder and p.process.process.poll() is None), None)

    @property
    def term(self) -> int:
        """How often the Lease was won."""
        lease = self.api.get(LEASES, self.namespace, LEASE_NAME) or {"spec": {}}
        return int(lease["spec"].get("leaseTransitions") or 0)

    def other(self, pod: Pod) -> Pod:
        """Return another pod."""
        return next(one for one in self.pods if one is not pod)

    def start(self, identity: str, proxy: Proxy) -> OperatorProcess:
        """Start a process of a pod."""
        return self.operators.start(*self.words, kubeconfig=proxy.kubeconfig, identity=identity)

    def run(self) -> None:
        """Restart what ended, until stopped."""
        while not self.stopping.wait(0.05):
            for pod in self.pods:
                code = pod.process.process.poll()
                if code is None:
                    continue
                if pod.identity not in self._due_s:
                    wait_s = self.delays_s[min(len(pod.ended), len(self.delays_s) - 1)]
                    self._due_s[pod.identity] = time.monotonic() + wait_s
                    pod.ended.append(code)
                if time.monotonic() >= self._due_s[pod.identity]:
                    pod.process = self.start(pod.identity, pod.proxy)
                    del self._due_s[pod.identity]

    def end(self, thread: threading.Thread) -> None:
        """Restart nothing any more."""
        self.stopping.set()
        thread.join(10)

    def ready(self, pod: Pod) -> bool:
        """Whether the present process of a pod says that it could take over."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{pod.process.port}/readyz", timeout=5) as page:
                return int(page.status) == 200
        except OSError:
            return False

    def log(self) -> str:
        """Return what all processes logged, for a failed assertion."""
        texts = [f"--- {one.log.name}\n{one.text()}" for one in self.operators.started]
        return "\n".join(texts)[-20_000:]


@contextmanager
def pods_running(
    plane: ControlPlane,
    folder: Path,
    namespace: str,
    *words: str,
    replicas: int = 2,
    delays_s: Sequence[float] = AT_ONCE,
) -> Iterator[Kubelet]:
    """Run replicas of the operator for one namespace while the context lasts, the first of them as leader."""
    operators = Operators(plane.kubeconfig, folder, namespace=namespace)
    kubelet = Kubelet(
        api=api_of(plane),
        namespace=namespace,
        operators=operators,
        words=(f"--watch-namespaces={namespace}", *words),
        delays_s=delays_s,
    )
    thread = threading.Thread(target=kubelet.run, name="kubelet", daemon=True)
    with ExitStack() as stack:
        stack.callback(operators.end)
        stack.callback(kubelet.end, thread)
        thread.start()
        for number in range(replicas):
            identity = f"{namespace}-{number}"
            proxy = stack.enter_context(Proxy.before(plane.kubeconfig, folder, identity))
            process = kubelet.start(identity, proxy)
            kubelet.pods.append(Pod(identity=identity, proxy=proxy, process=process))
            if number == 0:
                assert eventually(lambda: kubelet.leader is not None, within_s=60), kubelet.log()
        yield kubelet
        kubelet.end(thread)
