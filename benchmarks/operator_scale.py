"""The operator on a big cluster: 1,000 nodes of 8 GPUs, 5,000 ModelServices, a real control plane.

It exists because what an operator costs at rest and how fast it answers can only be measured at size. It is not a
test: it takes minutes and says what was met. Run it by ``python -m benchmarks.operator_scale``, or from the table of
all benchmarks by ``--only operator-scale``.

What is measured, with the operator's default times (2 s debounce):

- start → synced: from the start of the process until every ModelService has a status of its generation and a Plan
  that is applied; first with no Plan in the cluster (every Plan is written), then again with all of them there.
- change → status: the rate of one ModelService is changed; until its status names what is then wanted.
- memory at rest, of the operator and of its solver's process.
- writes at rest, counted by the API server's audit log; renewals of the Lease apart.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import Result, at_most, say
from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, MODEL_SERVICES, PLANS, Api
from tests.cluster.binaries import control_plane_binaries
from tests.cluster.control_plane import ControlPlane, control_plane, eventually, free_port
from tests.cluster.scene import (
    LABEL,
    NAMESPACES,
    ROOT,
    api_of,
    deployment,
    histogram,
    install_crds,
    profile,
    service,
    variant,
)

PRODUCTS = ("A10G", "L40S", "A100-80GB", "H100")
SPACES = 50
GPUS_PER_NODE = 8
MAX_RPS = 1.0
RATES = {1: 0.5, 2: 1.5}
"""Rate by the replicas that carry it."""
LIMIT_S = 1200.0
AUDIT = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata, users: [admin], verbs: [create, update, patch, delete, deletecollection]}
  - {level: None}
"""
# The defaults of these clients (20 to 50 requests per second) would make setting up the cluster take an hour.
FAST = ("--kube-api-qps=2000", "--kube-api-burst=4000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How big, how often, how long."""

    nodes: int = 1000
    services: int = 5000
    changes: int = 50
    idle_s: float = 120.0


def bench(size: Size) -> Iterator[Result]:
    """Measure start, change, memory and rest."""
    with tempfile.TemporaryDirectory(prefix="ballast-scale-") as name:
        folder = Path(name)
        policy = folder / "audit.yaml"
        policy.write_text(AUDIT, encoding="utf-8")
        more = {
            "kube-apiserver": (
                f"--audit-policy-file={policy}",
                f"--audit-log-path={folder / 'audit.log'}",
                "--audit-log-mode=blocking",
                "--max-requests-inflight=2000",
                "--max-mutating-requests-inflight=1000",
            ),
            "kube-controller-manager": (
                *FAST,
                "--concurrent-deployment-syncs=20",
                "--concurrent-replicaset-syncs=20",
                "--node-monitor-grace-period=1200s",
            ),
            "kube-scheduler": FAST,
            "kwok": ("--node-lease-duration-seconds=600",),  # the fake kubelets are not what is measured
        }
        with control_plane(control_plane_binaries(), folder, more=more) as plane:
            yield from _measured(plane, folder, size)


def _measured(plane: ControlPlane, folder: Path, size: Size) -> Iterator[Result]:
    api = api_of(plane)
    what = f"{size.nodes} nodes, {size.services} services"
    _set_up(plane, api, size)
    for manner in ("no Plans yet", "Plans there"):
        process, log, port = _start(plane, folder, manner.replace(" ", "-"))
        try:
            seconds = _synced(api, size, process, log, port)
            yield Result(name=f"operator: start to synced, {manner}, {what}", value=seconds, unit="s")
            cpu_s = _cpu_s(process.pid)
            yield Result(name=f"operator: CPU until synced, {manner}", value=cpu_s, unit="s")
            if manner == "no Plans yet":
                continue
            time.sleep(5)
            yield from _changes(api, size)
            yield from _rest(process.pid, folder / "audit.log", size)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# -- the cluster ----------------------------------------------------------------------------------------------------


def _place(index: int) -> tuple[str, str, str]:
    """Namespace, name and product of a service."""
    return f"team-{index % SPACES}", f"chat-{index}", PRODUCTS[index % len(PRODUCTS)]


def _set_up(plane: ControlPlane, api: Api, size: Size) -> None:
    """Make the cluster as it is when an operator comes: everything runs with one replica."""
    began_s = time.monotonic()
    install_crds(api)
    for index in range(SPACES):
        api.create(NAMESPACES, None, {"metadata": {"name": f"team-{index}"}})
    for index, product in enumerate(PRODUCTS):
        api.create(GPU_PROFILES, None, profile(product.lower(), product, max_rps=MAX_RPS, price=1.0 + index))

    def node(index: int) -> None:
        name = f"node-{index}"
        room = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(GPUS_PER_NODE)}
        api.request(
            "POST",
            "/api/v1/nodes",
            body={
                "metadata": {
                    "name": name,
                    "labels": {
                        "kubernetes.io/hostname": name,
                        LABEL: PRODUCTS[index % len(PRODUCTS)],
                    },
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                },
                "status": {"allocatable": room, "capacity": room},
            },
        )

    def served(index: int) -> None:
        space, name, product = _place(index)
        api.create(DEPLOYMENTS, space, deployment(space, name, product, replicas=1))
        body = service(
            space,
            name,
            [variant("only", name, product.lower())],
            traffic=histogram(RATES[1]),
            headroomRatio=0.0,
        )
        api.create(MODEL_SERVICES, space, body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(node, range(size.nodes)))
        list(pool.map(served, range(size.services)))
    say(f"operator-scale: objects made after {time.monotonic() - began_s:.0f} s")

    def ready() -> int:
        rows = api.request("GET", "/apis/apps/v1/deployments", query={"resourceVersion": "0"})["items"]
        count = sum((row.get("status") or {}).get("readyReplicas", 0) > 0 for row in rows)
        say(f"operator-scale: {count} of {size.services} run")
        return int(count)

    if not eventually(lambda: ready() == size.services, within_s=LIMIT_S, every_s=10):
        raise RuntimeError(f"the cluster did not come up; logs in {plane.folder}")
    time.sleep(10)
    say(f"operator-scale: the cluster stands after {time.monotonic() - began_s:.0f} s")


# -- the operator ---------------------------------------------------------------------------------------------------


def _start(plane: ControlPlane, folder: Path, name: str) -> tuple[subprocess.Popen[bytes], Path, int]:
    port = free_port()
    log = folder / f"operator-{name}.log"
    command = [
        sys.executable,
        *("-c", "from controller.cli.root import main; main()"),
        *("controller", "run"),
        f"--kubeconfig={plane.kubeconfig}",
        "--namespace=team-0",
        f"--identity={name}",
        f"--port={port}",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return process, log, port


def _synced(api: Api, size: Size, process: subprocess.Popen[bytes], log: Path, port: int) -> float:
    """Wait until everything has its status; returns the seconds since the start."""
    began_s = time.monotonic()
    since = time.time()
    while time.monotonic() - began_s < LIMIT_S:
        if process.poll() is not None:
            raise RuntimeError(f"the operator ended: {log.read_text(encoding='utf-8')[-2000:]}")
        services = _listed(api, MODEL_SERVICES.path())
        good = sum(_is_synced(body) for body in services)
        plans = _listed(api, PLANS.path()) if good == size.services else []
        done = sum((body.get("status") or {}).get("phase") == "Applied" for body in plans)
        say(f"operator-scale: {good} statuses, {done} plans applied, {_memory_mib(process.pid):.0f} MiB")
        if done == size.services and _decided(port):
            return time.monotonic() - began_s
        time.sleep(1 if time.time() - since < 60 else 3)
    raise RuntimeError(f"not synced: {log.read_text(encoding='utf-8')[-2000:]}")


def _listed(api: Api, path: str) -> list[dict[str, Any]]:
    return list(api.request("GET", path, query={"resourceVersion": "0"})["items"])


def _decided(port: int) -> bool:
    """Whether this operator decided itself; statuses of an earlier one prove nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except OSError:
        return False  # it does not listen yet
    counts = re.findall(r"^ballast_(?:solver|reconcile)_duration_seconds_count.* (\S+)$", text, re.MULTILINE)
    return len(counts) > 1 and all(float(count) >= 1 for count in counts)


def _is_synced(body: dict[str, Any]) -> bool:
    status = body.get("status") or {}
    applied = [c for c in status.get("conditions") or [] if c["type"] == "Applied" and c["status"] == "True"]
    return bool(status.get("observedGeneration") == body["metadata"]["generation"] and applied)


def _changes(api: Api, size: Size) -> Iterator[Result]:
    """Change one rate after another."""
    rng = random.Random(5)  # noqa: S311 - which services change is no secret
    wanted = dict.fromkeys(range(size.services), 1)
    seconds = []
    for _ in range(size.changes):
        index = rng.randrange(size.services)
        wanted[index] = 3 - wanted[index]
        space, name, _ = _place(index)
        patch = {"spec": {"traffic": histogram(RATES[wanted[index]])}}
        began_s = time.monotonic()
        generation = api.patch(MODEL_SERVICES, space, name, patch, manager="kubectl")["metadata"][
            "generation"
        ]

        def said(
            space: str = space, name: str = name, generation: int = generation, count: int = wanted[index]
        ) -> bool:
            status = (api.get(MODEL_SERVICES, space, name) or {}).get("status") or {}
            desired = [entry["replicas"] for entry in status.get("desired") or []]
            return bool(status.get("observedGeneration") == generation and desired == [count])

        if not eventually(said, within_s=120, every_s=0.05):
            raise RuntimeError(f"{space}/{name} has no status of generation {generation}")
        seconds.append(time.monotonic() - began_s)
        say(f"operator-scale: change {len(seconds)} of {size.changes}: {seconds[-1]:.2f} s")
        time.sleep(rng.uniform(0.5, 3.0))
    seconds.sort()
    yield Result(name="operator: change to status, median", value=seconds[len(seconds) // 2], unit="s")
    p99_s = seconds[max(0, math.ceil(0.99 * len(seconds)) - 1)]
    yield at_most(f"operator: change to status, p99 of {len(seconds)}, 2 s debounce", p99_s, "s", 5.0)


def _rest(pid: int, audit: Path, size: Size) -> Iterator[Result]:
    """Count what is written while nothing happens, and what is held in memory then."""
    time.sleep(30)
    begin = audit.stat().st_size
    cpu_s = _cpu_s(pid)
    time.sleep(size.idle_s)
    cpu_s = _cpu_s(pid) - cpu_s
    with audit.open(encoding="utf-8") as file:
        file.seek(begin)
        written = [event for event in map(json.loads, file) if _is_ours(event)]
    renewals = [event for event in written if event["objectRef"].get("resource") == "leases"]
    others = [event for event in written if event["objectRef"].get("resource") != "leases"]
    for event in others[:10]:
        say(f"operator-scale: written at rest: {event['verb']} {event['requestURI']}")
    per_min = 60.0 / size.idle_s
    yield at_most("operator: writes at rest, Lease renewals apart", len(others) * per_min, "1/min", 0.0)
    yield Result(name="operator: Lease renewals at rest", value=len(renewals) * per_min, unit="1/min")
    yield Result(name="operator: CPU at rest", value=100 * cpu_s / size.idle_s, unit="% of a core")
    yield at_most("operator: resident memory at rest", _memory_mib(pid), "MiB", 400.0)
    children = [_memory_mib(child) for child in _children(pid)]
    yield Result(
        name="operator: resident memory of the solver's process", value=max(children, default=0), unit="MiB"
    )


def _is_ours(event: dict[str, Any]) -> bool:
    """Whether a Python program wrote it: the control plane's programs are written in Go."""
    return re.search(r"python|kopf|aiohttp", event.get("userAgent", ""), re.IGNORECASE) is not None


def _memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return 0.0 if found is None else int(found[1]) / 1024


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text(encoding="utf-8").split()]


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0
    for one in (pid, *_children(pid)):
        fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print what was measured, and keep it in ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operator_scale", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--services", type=int, default=5000)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--idle", type=float, default=120.0, help="seconds")
    parser.add_argument("--out", type=Path, default=None, help="file for the results, JSON")
    options = parser.parse_args(arguments)
    size = Size(nodes=options.nodes, services=options.services, changes=options.changes, idle_s=options.idle)
    results: list[Result] = []
    for result in bench(size):
        results.append(result)
        met = "" if result.met is None else f"   {result.target}: {'met' if result.met else 'MISSED'}"
        print(f"{result.name}: {result.value:.4g} {result.unit}{met}", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
