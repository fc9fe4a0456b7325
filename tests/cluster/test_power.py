"""Power on a real control plane: a real controller, real agents over a fake NVML with a small plant, three nodes.

Two nodes run pods of low priority, one of high. The plant draws what its clocks allow; a recorder follows watts, the
breaker's θ and every lock all the time, so that what is promised is compared with what was so.
"""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import (
    CONTROLLER,
    EVENTS,
    LEASES,
    NODE_POWERS,
    PODS,
    POWER_DOMAINS,
    Api,
    ApiError,
    Resource,
    connect,
)
from controller.operator.power.loop import FAILOVER, FINALIZER, RELEASE
from solver.domain.power import BREAKER_CURVES, REFERENCE_SERVER
from telemetry.store.power_windows import DOMAIN as WHOLE
from telemetry.store.store import open_store
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, add_node, eventually
from tests.cluster.release import Release
from tests.cluster.scene import Object
from tests.fake_nvml.node import Node

SPACE = "ballast-power"
DOMAIN = "power-row"
LABEL = "tests.ballast.dev/power"
BUDGET_W = 16_000.0
SLOWED_MHZ = 1350
"""Below this a node is slowed; the first steps of high priority are above it."""
CURVE = BREAKER_CURVES["rack_rpp_110pct_17min"]
SAFE_MHZ = REFERENCE_SERVER.safe_mhz(3, BUDGET_W) or 0
LEASE_S = 6
CUT_WITHIN_S = 20.0
"""Ten are wanted, and kept on a quiet machine; these processes share two cores with everything else."""
CLASSES = Resource(
    api_version="scheduling.k8s.io/v1", kind="PriorityClass", plural="priorityclasses", namespaced=False
)
NAMES = ("power-low-0", "power-low-1", "power-high-0")


def drawn_w(node: Node) -> float:
    """Return what a server draws now: nvml.c's plant, and the parts that NVML does not see."""
    gpus_w = 0.0
    for gpu in node:
        mhz = gpu.lock_most or node.state.clock_most
        limit_w = gpu.limit_mw / 1000.0
        gpus_w += min(63.0 + gpu.load * 345.0 * math.pow(mhz / node.state.clock_most, 1.13), limit_w)
    return 1250.0 + 1.5 * gpus_w


@dataclass
class Recorder:
    """Follows the row every tenth of a second."""

    nodes: list[Node]
    theta: float = 0.6
    most_theta: float = 0.0
    power_w: float = 0.0
    raised: list[tuple[int, int]] = field(default_factory=list)
    """Clock before and after, of every raise since it was last emptied."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def locks(self) -> list[int]:
        """Return the clock that each GPU may run at."""
        return [int(gpu.lock_most or node.state.clock_most) for node in self.nodes for gpu in node]

    def run(self) -> None:
        before_s, before = time.monotonic(), self.locks()
        while not self.stopping.wait(0.1):
            now_s, now = time.monotonic(), self.locks()
            self.power_w = sum(map(drawn_w, self.nodes))
            steady = (self.power_w / BUDGET_W) ** 2
            self.theta = steady + (self.theta - steady) * math.exp(-(now_s - before_s) / CURVE.tau_s)
            self.most_theta = max(self.most_theta, self.theta)
            self.raised += [(old, new) for old, new in zip(before, now, strict=True) if new > old]
            before_s, before = now_s, now


@dataclass
class AgentProcess:
    """One node's agent, as its DaemonSet's pod would run it."""

    node: Node
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.node.environment(),
                cwd=scene.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@dataclass
class Row:
    """Everything that the tests touch."""

    api: Api
    plane: ControlPlane
    nodes: list[Node]
    agents: list[AgentProcess]
    recorder: Recorder
    journals: list[Path]
    start: Callable[[], scene.OperatorProcess]
    operator: scene.OperatorProcess
    tokens: list[Path]
    history: str

    def load(self, ratio: float) -> None:
        for node in self.nodes:
            for gpu in node:
                gpu.load = ratio

    def status(self) -> Object:
        return dict((self.api.get(POWER_DOMAINS, None, DOMAIN) or {}).get("status") or {})

    def condition(self, kind: str) -> Object:
        return next((dict(c) for c in self.status().get("conditions", ()) if c["type"] == kind), {})

    def highest(self, *which: int) -> int:
        """Return the highest clock that any GPU of some nodes may run at."""
        locks = self.recorder.locks()
        return max(locks[8 * index + gpu] for index in which for gpu in range(8))

    def free(self) -> bool:
        """Whether every GPU may run at its highest clock."""
        return min(self.recorder.locks()) == 1410

    def annotate(self, name: str, value: str | None) -> None:
        self.api.patch(POWER_DOMAINS, None, DOMAIN, {"metadata": {"annotations": {name: value}}})


def domain(**more: Any) -> Object:
    spec = {
        "budgetWatts": BUDGET_W,
        "members": {"nodeSelector": {LABEL: "row"}},
        "mode": "Auto",
        "actuator": "both",
        "leaseDurationSeconds": LEASE_S,
        "failover": {"budgetFactor": 0.75},
        "admission": {},
        **more,
    }
    return {"metadata": {"name": DOMAIN}, "spec": spec}


def pod_of(name: str, node: str, priority: str | None) -> Object:
    spec: Object = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {"name": "engine", "image": "engine:1", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
        ],
    }
    if priority:
        spec["priorityClassName"] = priority
    return {"metadata": {"name": name, "namespace": SPACE}, "spec": spec}


@pytest.fixture(scope="module")
def row(plane: ControlPlane, helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    folder = tmp_path_factory.mktemp("power")
    nodes = [Node(folder / f"{name}.nvml") for name in NAMES]
    for name in NAMES:
        add_node(plane, name, labels={LABEL: "row"}, gpus=8)
    priority = {"metadata": {"name": "power-high"}, "value": 1000, "description": "tests"}
    api.apply(CLASSES, priority, manager="tests", force=True)
    for index, name in enumerate(NAMES):
        api.create(PODS, SPACE, pod_of(f"engine-{index}", name, "power-high" if index == 2 else None))
    release = Release(helm=helm, plane=plane, name="ballast-power", namespace=SPACE)
    agent = {"enabled": True, "mode": "auto", "gpuNodeLabel": LABEL, "runtimeClassName": ""}
    release.install({"crds": {"install": False}, "agent": agent})
    agents, journals, tokens = [], [], []
    pods = {
        pod["spec"]["nodeName"]: pod
        for pod in api.list(PODS, SPACE)
        if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "agent"
    }
    assert sorted(pods) == sorted(NAMES)
    for name, node in zip(NAMES, nodes, strict=True):
        token = release.kubeconfig(pods[name]["metadata"]["name"], account="ballast-power-agent")
        tokens.append(token)
        journals.append(folder / f"journal-{name}")
        command = [
            sys.executable,
            "-c",
            "from controller.cli.root import main; main()",
            "agent",
            "run",
            f"--node={name}",
            "--mode=auto",
            f"--kubeconfig={token}",
            f"--journal={journals[-1]}",
            f"--host={pods[name]['status']['podIP']}",
            "--release-jitter=0.5",
        ]
        agents.append(AgentProcess(node=node, command=command, log=folder / f"agent-{name}.log"))
    recorder = Recorder(nodes)
    pod = release.pods()[0]
    operators = scene.Operators(release.kubeconfig(pod), folder, namespace=SPACE)

    history = f"sqlite:///{folder}/history.db"

    def start() -> scene.OperatorProcess:
        return operators.start(f"--database-url={history}", identity=pod)

    for node in nodes:
        for gpu in node:
            gpu.load = 0.4
    for one in agents:
        one.start()
    thread = threading.Thread(target=recorder.run, daemon=True)
    thread.start()
    scene.put(api, POWER_DOMAINS, domain())
    built = Row(
        api=api,
        plane=plane,
        nodes=nodes,
        agents=agents,
        recorder=recorder,
        journals=journals,
        start=start,
        operator=start(),
        tokens=tokens,
        history=history,
    )
    yield built
    recorder.stopping.set()
    operators.end()
    for one in agents:
        one.kill()
    body = api.get(POWER_DOMAINS, None, DOMAIN)
    if body is not None:
        api.patch(POWER_DOMAINS, None, DOMAIN, {"metadata": {"finalizers": None}})
        scene.drop(api, POWER_DOMAINS, None, DOMAIN)
    for name in NAMES:
        scene.drop(api, NODE_POWERS, None, name)
        scene.drop(api, scene_nodes(), None, name)
    scene.drop(api, CLASSES, None, "power-high")
    release.uninstall()
    assert "forbidden" not in "".join(one.text() for one in operators.started)


def scene_nodes() -> Resource:
    return Resource(api_version="v1", kind="Node", plural="nodes", namespaced=False)


def test_leases_are_given_and_every_node_is_heard(row: Row) -> None:
    assert eventually(lambda: row.status().get("nodes") == 3 and row.status().get("powerWatts"))
    assert eventually(row.free)  # safe caps are let go one by one
    assert eventually(lambda: row.status().get("state") == "Free")
    status = row.status()
    assert [(c["name"], c["servers"]) for c in status["capsByClass"]] == [("low", 2), ("high", 1)]
    assert status["oversubscriptionRatio"] == pytest.approx(3 * 6146 / BUDGET_W, abs=0.001)
    assert status["safeMHz"] == SAFE_MHZ
    lease = row.api.get(LEASES, SPACE, f"ballast-power-{DOMAIN}") or {}
    assert lease["spec"]["leaseDurationSeconds"] == LEASE_S
    node = row.api.get(NODE_POWERS, None, NAMES[0]) or {}
    assert node["spec"]["lease"] == {"namespace": SPACE, "name": f"ballast-power-{DOMAIN}"}
    assert node["spec"]["safe"]["lockMaxMHz"] == SAFE_MHZ
    assert len(node["status"]["gpus"]) == 8
    # a child of the operator has read the history: seconds are not a day
    assert eventually(lambda: row.condition("ServersFit").get("reason") == "NotEnoughRecorded")


def test_an_overload_slows_low_priority_then_high_and_the_breaker_stays_cool(row: Row) -> None:
    assert eventually(row.free)
    slowed: dict[str, float] = {}
    ratio, began_s = 0.7, time.monotonic()  # 14.7 kW
    while len(slowed) < 2 and time.monotonic() - began_s < 120:
        ratio = min(ratio + 0.03, 1.0)
        row.load(ratio)
        for _ in range(10):
            for name, which in (("low", (0, 1)), ("high", (2,))):
                if row.highest(*which) < SLOWED_MHZ:
                    slowed.setdefault(name, time.monotonic() - began_s)
            scene.wait_s(0.1)
    assert slowed["low"] <= slowed["high"], slowed
    row.load(0.97)  # 18 kW without caps
    assert eventually(lambda: row.recorder.power_w <= BUDGET_W)
    assert row.highest(2) > row.highest(0, 1)
    assert eventually(lambda: row.status().get("state") == "HpCapped")
    assert row.recorder.most_theta < CURVE.trip_theta
    assert eventually(lambda: row.condition("LeaseValid")["status"] == "True")
    assert row.condition("ActuatorsHealthy")["status"] == "True"
    assert row.condition("GuaranteeHolds")["status"] == "True"
    assert row.status()["theta"] < CURVE.trip_theta


def test_a_cut_budget_is_kept_soon(row: Row) -> None:
    row.annotate(FAILOVER, "true")
    assert eventually(lambda: row.recorder.power_w <= 0.75 * BUDGET_W, within_s=CUT_WITHIN_S, every_s=0.05)
    assert eventually(lambda: row.status().get("budgetWatts") == 0.75 * BUDGET_W)
    row.annotate(FAILOVER, None)
    assert eventually(lambda: row.status().get("budgetWatts") == BUDGET_W)
    scene.put(row.api, POWER_DOMAINS, domain(budgetWatts=0.8 * BUDGET_W))  # and so does another spec
    assert eventually(lambda: row.recorder.power_w <= 0.8 * BUDGET_W, within_s=CUT_WITHIN_S, every_s=0.05)
    scene.put(row.api, POWER_DOMAINS, domain())
    row.load(0.4)


def goes_safe_and_stays(row: Row, *, within_s: float = 30.0) -> None:
    scene.wait_s(LEASE_S / 2)  # agents still carry out what was ordered before
    row.recorder.raised.clear()
    began_s = time.monotonic()
    assert eventually(lambda: row.highest(0, 1, 2) <= SAFE_MHZ, within_s=within_s)
    assert time.monotonic() - began_s <= within_s
    scene.wait_s(1.0)
    assert not row.recorder.raised
    assert row.highest(0, 1, 2) <= SAFE_MHZ


def test_a_killed_controller_leaves_safe_caps_and_the_next_goes_on_from_theta(row: Row) -> None:
    assert eventually(lambda: row.highest(0, 1, 2) > SAFE_MHZ + 100, within_s=60)
    theta = row.status()["theta"]
    row.operator.kill()
    goes_safe_and_stays(row)
    generations = [body["spec"]["generation"] for body in row.api.list(NODE_POWERS)]
    row.operator = row.start()
    assert eventually(lambda: row.recorder.raised)
    assert row.status()["theta"] == pytest.approx(theta, abs=0.15)  # not 1: it was not begun anew
    after = [body["spec"]["generation"] for body in row.api.list(NODE_POWERS)]
    assert all(new > old for old, new in zip(generations, after, strict=True))


def test_an_api_server_that_is_gone_leaves_safe_caps(row: Row) -> None:
    assert eventually(lambda: row.highest(0, 1, 2) > SAFE_MHZ + 100)
    row.plane.kill("kube-apiserver")
    try:
        goes_safe_and_stays(row)
    finally:
        row.plane.start("kube-apiserver")
    assert eventually(lambda: alive(row.api), within_s=60)
    assert row.operator.process.wait(20) == 1  # its lease was lost: a kubelet starts it again
    row.operator = row.start()


def alive(api: Api) -> bool:
    try:
        return api.get(POWER_DOMAINS, None, DOMAIN) is not None
    except ApiError:
        return False


def test_originals_survive_the_death_of_an_agent_and_are_given_back_on_release(row: Row) -> None:
    victim, journal = row.agents[0], row.journals[0] / "originals.json"
    assert eventually(journal.exists)
    assert eventually(lambda: all(gpu.lock_most for gpu in row.nodes[0]))
    before = json.loads(journal.read_text())["content"]
    victim.kill()
    assert [gpu.lock_most for gpu in row.nodes[0]] != [0] * 8  # caps outlive the process
    victim.start()
    (gpu, *_) = row.nodes[0]
    sets = gpu.sets
    assert eventually(lambda: gpu.sets > sets)  # it found its journal and acts again
    assert json.loads(journal.read_text())["content"] == before
    assert {gpu["limit_w"] for entry in before for gpu in entry["gpus"].values()} == {400.0}
    row.annotate(RELEASE, "true")

    def free() -> bool:
        gpus = [gpu for node in row.nodes for gpu in node]
        return all(gpu.lock_most == 0 and gpu.limit_mw == 400_000 for gpu in gpus)

    assert eventually(free)
    body = row.api.get(POWER_DOMAINS, None, DOMAIN) or {}
    assert FINALIZER in body["metadata"]["finalizers"]
    assert eventually(lambda: "Released" in reasons(row))
    assert len(reasons(row)) <= 12  # of some thirty decisions
    scene.drop(row.api, POWER_DOMAINS, None, DOMAIN)
    assert eventually(lambda: row.api.get(POWER_DOMAINS, None, DOMAIN) is None)
    assert not [each for each in row.api.list(NODE_POWERS) if each["metadata"]["name"] in NAMES]


def reasons(row: Row) -> list[str]:
    """Return the reasons of the domain's events."""
    return [
        str(event["reason"])
        for event in row.api.list(EVENTS, "default")
        if event.get("regarding", {}).get("kind") == POWER_DOMAINS.kind
    ]


def test_what_was_drawn_is_in_the_history(row: Row) -> None:
    store = open_store(row.history)
    try:
        assert eventually(lambda: store.power_nodes(DOMAIN) == tuple(sorted(NAMES)))
        # On a busy machine a window may miss samples; those that came say no less.
        whole = [w for w in store.power_windows(DOMAIN, window_s=10, node=WHOLE) if w.covered_s >= 2.0]
        assert whole
        assert all(3 * 2006 - 1 <= window.mean_w <= 3 * 6146 for window in whole)
        assert all(
            window.theta_max is not None and 0.0 < window.theta_max < CURVE.trip_theta for window in whole
        )
        assert any(window.capped_s for window in whole)
    finally:
        store.close()


def test_agents_write_their_own_status_only_and_nobody_else_writes_orders(row: Row) -> None:
    spec = {"generation": 1, "gpus": [], "safe": {"lockMaxMHz": 1000}}
    with pytest.raises(ApiError, match="only Ballast's controller creates NodePowers"):
        row.api.apply(NODE_POWERS, {"metadata": {"name": "any"}, "spec": spec}, manager=CONTROLLER)
    agent = Api(client=connect(str(row.tokens[0])))
    with pytest.raises(ApiError, match="forbidden"):
        agent.apply(NODE_POWERS, {"metadata": {"name": NAMES[0]}, "spec": spec}, manager=CONTROLLER)
