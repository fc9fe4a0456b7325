"""The loop over PowerDomains with a fake API server: who is run, what is written, what is said, how a domain ends."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import generate_latest

from controller.operator.api import LEASES, NODE_POWERS, POWER_DOMAINS, ApiError, Object, Resource
from controller.operator.metrics import Metrics
from controller.operator.power.gauges import follow_power
from controller.operator.power.loop import FAILOVER, FINALIZER, RELEASE, PowerLoop, PowerSettings
from controller.operator.power.orders import OrderDesk
from controller.operator.world import World
from tests.controller.test_operator_power import FakeAgents, node_body

NAMES = ("a", "b", "c")


@dataclass
class FakeApi:
    """Holds objects; counts versions as a server does."""

    world: World
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    writes: list[tuple[str, str, str]] = field(default_factory=list)
    version: int = 100
    down: bool = False

    def put(self, resource: Resource, name: str, **parts: Any) -> Object:
        self.version += 1
        known = self.objects.get((resource.kind, name), {"metadata": {"name": name, "uid": name}})
        metadata = {**known["metadata"], **parts.pop("metadata", {}), "resourceVersion": str(self.version)}
        if "spec" in parts and parts["spec"] != known.get("spec"):
            metadata["generation"] = int(metadata.get("generation") or 0) + 1
        body = {**known, **parts, "metadata": metadata}
        self.objects[resource.kind, name] = body
        if resource is POWER_DOMAINS:
            self.world.put(resource.kind, body)
        return body

    def each(self, resource: Resource, *_: Any, **__: Any) -> Iterator[Object]:
        self._check()
        yield from [body for (kind, _), body in self.objects.items() if kind == resource.kind]

    def apply(
        self, resource: Resource, body: Object, *, manager: str, subresource: str | None = None, **_: Any
    ) -> Object:
        self._check()
        name = body["metadata"]["name"]
        self.writes.append((resource.kind, name, subresource or manager))
        if subresource:
            if (resource.kind, name) not in self.objects:
                raise ApiError(404, "gone")
            return self.put(resource, name, status=body["status"])
        return self.put(resource, name, spec=body["spec"])

    def patch(self, resource: Resource, _namespace: str | None, name: str, body: Object) -> Object:
        self._check()
        self.writes.append((resource.kind, name, "patch"))
        written = self.put(resource, name, metadata=body["metadata"])
        metadata = written["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            del self.objects[resource.kind, name]
        return written

    def delete(self, resource: Resource, _namespace: str | None, name: str) -> None:
        self._check()
        self.writes.append((resource.kind, name, "delete"))
        if self.objects.pop((resource.kind, name), None) is None:
            raise ApiError(404, "gone")

    def _check(self) -> None:
        if self.down:
            raise ApiError(0, "the API server cannot be reached")


class AtOnce(OrderDesk):
    """Does at once what the real one does in threads."""

    def submit(self, action: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        try:
            done.set_result(action())
        except ApiError as error:
            done.set_exception(error)
        return done

    def send(self, book: Any, domain: str, now_s: float) -> None:
        super().send(book, domain, now_s)
        if book.pending is not None:
            for _ in range(2000):
                if book.pending.done():
                    break
                time.sleep(0.001)


@dataclass
class Stage:
    now_s: float = 1000.0
    wall_s: float = 1_763_726_400.0
    paused: bool = False

    def __post_init__(self) -> None:
        self.world = World()
        self.api = FakeApi(self.world)
        for name in NAMES:
            self.world.put("Node", node_body(name))
        self.agents = FakeAgents()
        self.loop = self.begun()

    def begun(self) -> PowerLoop:
        api: Any = self.api
        agents: Any = self.agents
        return PowerLoop(
            world=self.world,
            api=api,
            reading=api,
            settings=PowerSettings(namespace="ours", identity="me", paused=self.paused),
            agents=agents,
            desk=AtOnce(api=api),
            clock=lambda: self.now_s,
            wall=lambda: self.wall_s,
        )

    def domain(self, name: str, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        metadata: Object = {"creationTimestamp": f"2026-11-21T10:00:0{len(self.api.objects) % 10}Z"}
        known = self.api.objects.get((POWER_DOMAINS.kind, name))
        if known is not None:
            metadata = {}
        if annotations is not None:
            metadata["annotations"] = annotations
        self.api.put(POWER_DOMAINS, name, spec={"budgetWatts": 16_000, **spec}, metadata=metadata)

    def go(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.loop.once(self.now_s)
            self.now_s += 1.0
            self.wall_s += 1.0

    def status(self, name: str) -> Object:
        return dict(self.api.objects[POWER_DOMAINS.kind, name].get("status") or {})

    def condition(self, name: str, kind: str) -> Object:
        return next(c for c in self.status(name)["conditions"] if c["type"] == kind)


def test_a_domain_in_auto_is_ordered_leased_finalized_and_said() -> None:
    stage = Stage()
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)})
    stage.go(20)
    orders = stage.api.objects[NODE_POWERS.kind, "a"]["spec"]
    assert orders["mode"] == "Auto"
    assert orders["lease"] == {"namespace": "ours", "name": "ballast-power-row"}
    lease = stage.api.objects[LEASES.kind, "ballast-power-row"]["spec"]
    assert (lease["holderIdentity"], lease["leaseDurationSeconds"]) == ("me", 15)
    renewals = [write for write in stage.api.writes if write[0] == LEASES.kind]
    assert 3 <= len(renewals) <= 5  # every five seconds
    assert stage.api.objects[POWER_DOMAINS.kind, "row"]["metadata"]["finalizers"] == [FINALIZER]
    said = [write for write in stage.api.writes if write[2] == "status"]
    assert 1 <= len(said) <= 8
    status = stage.status("row")
    assert status["nodes"] == 3
    assert stage.condition("row", "TelemetryFresh")["reason"] == "AgentsSilent"
    assert "no pod of an agent runs on a" in status["message"]


def test_no_orders_and_no_lease_before_it_is_known_what_was_told_before() -> None:
    stage = Stage()
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)})
    stage.api.down = True
    stage.go(5)
    assert stage.loop.present() == {}
    stage.api.down = False
    stage.go(5)
    assert stage.loop.present()


@pytest.mark.parametrize(
    ("specs", "name", "reason"),
    [
        ({"x": {"members": {"nodes": ["a"]}}, "y": {"members": {"nodes": ["a"]}}}, "y", "NodeTaken"),
        (
            {
                "x": {"parentRef": "y", "members": {"nodes": ["a"]}},
                "y": {"parentRef": "x", "members": {"nodes": ["b"]}},
            },
            "x",
            "TreeCycle",
        ),
        ({"x": {"members": {"nodeSelector": {"row": "none"}}}}, "x", "NoNodes"),
        (
            {"x": {"budgetWatts": 2_000, "members": {"nodeSelector": {"row": "r"}}}},
            "x",
            "BudgetBelowIdle",
        ),
        (
            {"x": {"members": {"nodes": ["a"]}, "schedule": [{"cron": "99 * * * *", "budgetFactor": 1}]}},
            "x",
            "InvalidSpec",
        ),
        ({"x": {"members": {"nodes": ["a"]}, "breaker": {"curve": "custom"}}}, "x", "InvalidSpec"),
        ({"x": {"members": {"nodes": ["a"]}, "mode": "Sometimes"}}, "x", "InvalidSpec"),
        (
            {"x": {"members": {"nodes": ["a"]}}, "y": {"parentRef": "x", "members": {"nodes": ["b"]}}},
            "x",
            "ParentHasMembers",
        ),
    ],
)
def test_a_domain_that_cannot_be_run_says_why_and_orders_nothing(
    specs: dict[str, Any], name: str, reason: str
) -> None:
    stage = Stage()
    for each, spec in specs.items():
        stage.domain(each, **{"mode": "Auto", **spec})
    stage.go(6)
    told = stage.condition(name, "Accepted")
    assert (told["status"], told["reason"]) == ("False", reason)
    assert stage.condition(name, "GuaranteeHolds")["status"] == "False"
    assert stage.status(name)["message"] == told["message"]
    mine = stage.loop._domains[name].spec
    nodes = () if mine is None or mine.members is None else mine.members.nodes or ()
    others = [other for other in stage.loop.present() if other != name]
    if not others:
        assert not [kind for kind, _ in stage.api.objects if kind == NODE_POWERS.kind], nodes


def test_unknown_nodes_are_run_at_their_worst() -> None:
    stage = Stage()
    stage.domain("row", mode="Auto", members={"nodes": ["a", "ghost"]})
    stage.go(6)
    assert stage.condition("row", "Accepted")["reason"] == "UnknownNodes"
    assert stage.status("row")["nodes"] == 2


def test_a_parent_adds_its_children_up_and_shares_its_budget() -> None:
    stage = Stage()
    stage.domain("top", budgetWatts=20_000)
    stage.domain("one", parentRef="top", members={"nodes": ["a"]}, budgetWatts=15_000)
    stage.domain("two", parentRef="top", members={"nodes": ["b"]}, budgetWatts=15_000)
    stage.agents.show("a", 2000.0)
    stage.agents.show("b", 3000.0)
    for _ in range(10):
        stage.agents.show("a", 2000.0, looked_s=stage.now_s)
        stage.agents.show("b", 3000.0, looked_s=stage.now_s)
        stage.go(2)
    assert stage.status("one")["budgetWatts"] == 10_000
    top = stage.status("top")
    assert top["powerWatts"] == stage.status("one")["powerWatts"] + stage.status("two")["powerWatts"]
    assert top["nodes"] == 2
    assert 0 < top["theta"] < 1
    assert stage.condition("top", "WithinBudget")["status"] == "True"
    assert stage.condition("top", "Accepted")["status"] == "True"
    stage.api.put(POWER_DOMAINS, "top", status={**top, "theta": 0.3})
    stage.loop = stage.begun()
    for _ in range(6):
        stage.agents.show("a", 2000.0, looked_s=stage.now_s)
        stage.agents.show("b", 3000.0, looked_s=stage.now_s)
        stage.go(2)
    assert stage.status("top")["theta"] < 0.5  # the next leader goes on from what was written


def test_a_parent_gives_high_priority_its_part_first_and_nobody_rises_before_others_fell() -> None:
    stage = Stage()
    high = [
        {"name": "low", "priority": -5, "minMHz": 1110},
        {"name": "high", "priority": 1, "minMHz": 1305, "nodeSelector": {"row": "r"}},
    ]
    stage.domain("top", budgetWatts=11_200)
    stage.domain("one", parentRef="top", members={"nodes": ["a"]}, budgetWatts=7_000)
    stage.domain("two", parentRef="top", members={"nodes": ["b"]}, budgetWatts=7_000)
    stage.go(4)
    assert stage.status("one")["budgetWatts"] == stage.status("two")["budgetWatts"] == 5_600
    stage.domain("two", parentRef="top", members={"nodes": ["b"]}, budgetWatts=7_000, classes=high)
    stage.go(8)
    assert stage.status("one")["budgetWatts"] < 5_400
    assert stage.status("two")["budgetWatts"] == 5_600
    stage.go(8)
    assert stage.status("two")["budgetWatts"] > 5_800
    shares = stage.status("one")["budgetWatts"] + stage.status("two")["budgetWatts"]
    assert 11_198 <= shares <= 11_200
    assert stage.condition("top", "Accepted")["status"] == "True"
    stage.domain("top", budgetWatts=3_000)
    stage.go(4)
    odd = stage.condition("top", "Accepted")
    assert (odd["status"], odd["reason"]) == ("False", "SharesImpossible")
    assert "split in proportion" in odd["message"]


def test_failover_and_schedule_scale_the_budget_now() -> None:
    stage = Stage()
    stage.domain(
        "row",
        members={"nodes": list(NAMES)},
        failover={"budgetFactor": 0.75},
        annotations={FAILOVER: "true"},
    )
    stage.go(4)
    assert stage.status("row")["budgetWatts"] == 12_000
    stage.domain("row", members={"nodes": list(NAMES)}, failover={"budgetFactor": 0.75}, annotations={})
    stage.go(4)
    assert stage.status("row")["budgetWatts"] == 16_000


def test_paused_writes_statuses_only() -> None:
    stage = Stage(paused=True)
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)})
    stage.go(10)
    assert {(kind, how) for kind, _, how in stage.api.writes} == {(POWER_DOMAINS.kind, "status")}
    assert stage.condition("row", "LeaseValid")["reason"] == "NotEnforced"


@pytest.mark.parametrize("released", [False, True])
def test_a_deleted_domain_takes_its_orders_with_it(released: bool) -> None:  # noqa: FBT001 - a case
    stage = Stage()
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)})
    stage.go(6)
    stage.domain(
        "row",
        mode="Auto",
        members={"nodes": list(NAMES)},
        annotations={RELEASE: "true"} if released else {},
    )
    metadata = {"deletionTimestamp": "2026-11-21T11:00:00Z"}
    stage.api.put(POWER_DOMAINS, "row", metadata=metadata)
    stage.go(12)
    assert (POWER_DOMAINS.kind, "row") not in stage.api.objects
    assert not [kind for kind, _ in stage.api.objects if kind == NODE_POWERS.kind]


def test_a_status_that_was_refused_is_said_again() -> None:
    stage = Stage()
    stage.domain("row", members={"nodes": list(NAMES)})
    stage.loop.once(stage.now_s)
    stage.api.objects[POWER_DOMAINS.kind, "row"].pop("status", None)
    stage.go(30)
    assert stage.status("row")["nodes"] == 3


def test_gauges_tell_what_stands_and_go_with_the_domain() -> None:
    stage = Stage()
    metrics = Metrics()
    follow_power(metrics, stage.loop)
    assert b"ballast_power_budget_watts{" not in generate_latest(metrics.registry)
    stage.domain("row", members={"nodes": list(NAMES)})
    stage.go(4)
    page = generate_latest(metrics.registry).decode()
    assert 'ballast_power_budget_watts{domain="row"} 16000.0' in page
    assert 'ballast_power_cap_mhz{class="low",domain="row"} 1410.0' in page
    assert 'ballast_power_condition{condition="GuaranteeHolds",domain="row"} 0.0' in page
    assert "ballast_power_round_seconds" in page
    del stage.api.objects[POWER_DOMAINS.kind, "row"]
    stage.world.remove(POWER_DOMAINS.kind, ("", "row"))
    stage.go(2)
    assert b"ballast_power_budget_watts{" not in generate_latest(metrics.registry)
