"""A real ``ballast agent run`` over the fake library, and the orders it reads from a file."""

import contextlib
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.commands import BALLAST
from tests.fake_nvml.node import Node

PATIENCE_S = 30.0


def wait_for(what: Callable[[], Any], why: str) -> Any:
    """Return what is true in the end."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"in {PATIENCE_S:g} s never: {why}")


class Host:
    """A node, its folder for the journal, its boot id and its orders."""

    def __init__(self, folder: Path, gpus: int = 2) -> None:
        self.node = Node(folder / "n.bin", gpus=gpus)
        self.journal = folder / "journal"
        self.orders_file = folder / "orders.json"
        self.boot = folder / "boot_id"
        self.boot.write_text("boot-1\n")
        self.generation, self.renewal = 1, 0
        self.spec: dict[str, Any] = {}

    def order(
        self, *, mhz: int | None = None, watts: float | None = None, lease_s: float = 60.0, **more: Any
    ) -> None:
        """Write new orders for all GPUs."""
        gpus = [
            {"uuid": uuid, **({"lockMaxMHz": mhz} if mhz else {}), **({"limitWatts": watts} if watts else {})}
            for uuid in self.node.uuids
        ]
        self.spec = {
            "leaseDurationSeconds": lease_s,
            "mode": "Auto",
            "gpus": gpus,
            "safe": {"lockMaxMHz": 1050, "limitWatts": 300.0},
            **more,
        }
        self.generation += 1
        self.renew()

    def renew(self) -> None:
        """Renew the lease of the orders."""
        self.renewal += 1
        document = {**self.spec, "generation": self.generation, "renewSequence": self.renewal}
        unfinished = self.orders_file.with_suffix(".new")
        unfinished.write_text(json.dumps({"metadata": {"uid": "n"}, "spec": document}))
        unfinished.rename(self.orders_file)

    def locks(self) -> list[int]:
        """Return the locks in force; 0: none."""
        return [gpu.lock_most for gpu in self.node]

    def limits(self) -> list[float]:
        """Return the limits in force, W."""
        return [gpu.limit_mw / 1000.0 for gpu in self.node]

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on this host."""
        return subprocess.run(
            [*BALLAST, "agent", *words],
            env=self.node.environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def restore(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run ``ballast agent restore``."""
        files = ("--journal", str(self.journal), "--boot-id-file", str(self.boot))
        return self.command("restore", *files, *words)

    @contextlib.contextmanager
    def agent(self, *words: str, mode: str = "auto", kubeconfig: Path | None = None) -> Iterator["Running"]:
        """Run an agent; whatever happens, it is not left behind. Orders come from the file, or from a cluster."""
        orders = ("--kubeconfig", str(kubeconfig)) if kubeconfig else ("--orders", str(self.orders_file))
        process = subprocess.Popen(
            [
                *BALLAST,
                *("agent", "run", "--node", "n", "--mode", mode, *orders),
                *("--journal", str(self.journal), "--boot-id-file", str(self.boot), "--port", "0"),
                *("--period", "0.1", "--release-jitter", "0", *words),
            ],
            env=self.node.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()

    @contextlib.contextmanager
    def leading(self, *, mhz: int = 1200, **more: Any) -> Iterator["Running"]:
        """Run an agent that has carried out its orders under a lease."""
        self.order(mhz=mhz, **more)
        with self.agent() as running:
            running.listening()
            self.renew()
            wait_for(lambda: self.locks() == [mhz] * len(self.locks()), f"locks at {mhz}: {self.locks()}")
            yield running


class Running:
    """A running agent."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._port = 0

    def listening(self) -> int:
        """Return its port, once it listens."""
        assert self.process.stderr is not None
        while not self._port:
            line = self.process.stderr.readline()
            assert line, f"the agent ended with {self.process.wait()}"
            said = json.loads(line)
            if said.get("event") == "agent":
                self._port = int(said["port"])
        return self._port

    def get(self, page: str) -> str:
        """Return a page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.listening()}{page}", timeout=10) as answer:
            return str(answer.read().decode())

    def telemetry(self) -> dict[str, Any]:
        """Return the telemetry."""
        found: dict[str, Any] = json.loads(self.get("/telemetry"))
        return found

    def errors(self) -> list[str | None]:
        """Return what is wrong with each GPU."""
        return [gpu.get("error") for gpu in self.telemetry()["gpus"]]

    def conditions(self) -> dict[str, str]:
        """Return conditions by type as ``status reason``."""
        told = self.telemetry()["conditions"]
        return {one["type"]: f"{one['status']} {one['reason']}" for one in told}

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)
