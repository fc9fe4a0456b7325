"""The operator's half of power without a cluster: the tree, classes, one domain in virtual time, books of orders."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.agent.node_power import orders_of
from controller.operator.power import tree
from controller.operator.power.agents import GpuReading, Reading, reading_of
from controller.operator.power.domain import CLASS_HELD_S, DomainRun, Moment
from controller.operator.power.figures import Figures
from controller.operator.power.orders import NodeBook, book_of
from controller.operator.power.row import (
    class_of,
    clock_limits,
    curve_of,
    factor_of,
    policy_of,
    row_of,
    schedule_of,
    server_of,
)
from controller.operator.power.status import status_of
from controller.operator.power.tree import Place, Wish, placed
from controller.operator.world import Node, Pod
from controller.resources.power_domain import PowerDomainSpec, Thresholds
from solver.domain.errors import InputError
from solver.domain.power import REFERENCE_SERVER, Priority
from solver.power.policies.braking import BrakeAtTheta
from solver.power.policies.polca import Polca

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b", "c")
SAFE_MHZ = REFERENCE_SERVER.safe_mhz(3, 16_000.0)


def spec_of(**more: Any) -> PowerDomainSpec:
    fields = {"budgetWatts": 16_000, "members": {"nodes": list(NAMES)}, "mode": "Auto", **more}
    return PowerDomainSpec.model_validate(fields)


def node(name: str, **labels: str) -> Node:
    return Node(name=name, labels=labels, gpus=8, open=True, taints=())


def node_body(name: str) -> dict[str, Any]:
    """Return a Node as the API server has it."""
    return {
        "metadata": {"name": name, "resourceVersion": "1", "labels": {"row": "r"}},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, *, priority: int = 0, gpus: int = 8, **labels: str) -> Pod:
    return Pod(
        key=("s", f"p-{name}"),
        node=name,
        gpus=gpus,
        owner=("", ""),
        ip="",
        ready=True,
        serves=True,
        priority=priority,
        labels=labels,
    )


# -- the tree ---------------------------------------------------------------------------------------------------------

NODES = {name: node(name, row="r") for name in NAMES}


def wish(name: str, *, made_at: str = "1", factor: float = 1.0, **more: Any) -> Wish:
    return Wish(name=name, spec=spec_of(**more), made_at=made_at, factor=factor)


def places(*wishes: Wish) -> dict[str, Place]:
    return placed({each.name: each for each in wishes}, NODES)


def test_of_two_domains_that_claim_a_node_the_younger_is_refused() -> None:
    found = places(wish("old"), wish("new", made_at="2", members={"nodeSelector": {"row": "r"}}))
    assert found["old"].refused == ("", "")
    assert found["new"].refused[0] == tree.NODE_TAKEN
    assert "node a belongs to the older PowerDomain old" in found["new"].refused[1]


def test_a_tree_that_bites_its_tail_is_refused_as_a_whole() -> None:
    found = places(
        wish("x", parentRef="y", members={"nodes": ["a"]}),
        wish("y", parentRef="z", members={"nodes": ["b"]}),
        wish("z", parentRef="x", members={"nodes": ["c"]}),
        wish("me", parentRef="me"),
    )
    assert {place.refused[0] for place in found.values()} == {tree.CYCLE}
    assert "me → me" in found["me"].refused[1]


def test_unknown_nodes_and_parents_are_told_and_counted() -> None:
    place = places(wish("d", members={"nodes": ["a", "ghost"]}, parentRef="nobody"))["d"]
    assert place.nodes == ("a", "ghost")
    assert place.unknown == ("ghost",)
    assert place.odd[0] == tree.UNKNOWN_NODES
    assert places(wish("d", parentRef="nobody"))["d"].odd[0] == tree.PARENT_MISSING
    assert places(wish("d", members={"nodeSelector": {"row": "elsewhere"}}))["d"].refused[0] == tree.NO_NODES


@given(
    parent_w=st.floats(1_000.0, 1e6),
    shares=st.lists(st.floats(1_000.0, 1e6), min_size=1, max_size=5),
    factor=st.floats(0.1, 1.0),
)
def test_children_never_get_more_than_their_parent_has(
    parent_w: float, shares: list[float], factor: float
) -> None:
    top = Wish(
        name="top",
        spec=PowerDomainSpec.model_validate({"budgetWatts": parent_w}),
        made_at="",
        factor=factor,
    )
    children = [
        Wish(
            name=f"c{index}",
            spec=PowerDomainSpec.model_validate(
                {"budgetWatts": watts, "parentRef": "top", "members": {"nodes": [f"n{index}"]}}
            ),
            made_at="",
        )
        for index, watts in enumerate(shares)
    ]
    found = placed({each.name: each for each in (top, *children)}, {})
    told = [found[child.name] for child in children]
    assert sum(place.budget_w for place in told) <= parent_w * factor * (1 + 1e-9)
    assert sum(place.contract_w for place in told) <= parent_w * (1 + 1e-9)
    for place, child in zip(told, children, strict=True):
        assert place.budget_w <= child.spec.budget_watts
    assert found["top"].children == tuple(sorted(child.name for child in children))


# -- what a spec means ------------------------------------------------------------------------------------------------


def test_the_strictest_pod_decides_the_class_of_a_node() -> None:
    spec = spec_of()
    assert class_of(spec, node("a"), []) == 0
    assert class_of(spec, node("a"), [pod("a"), pod("a", priority=-5)]) == 0
    assert class_of(spec, node("a"), [pod("a"), pod("a", priority=1000)]) == 1
    chosen = spec_of(
        classes=[
            {"name": "low", "priority": -(2**31), "minMHz": 1110},
            {
                "name": "high",
                "priority": 100,
                "minMHz": 1305,
                "podSelector": {"tier": "gold"},
                "nodeSelector": {"hall": "1"},
            },
        ]
    )
    assert class_of(chosen, node("a"), [pod("a", priority=99)]) == 0
    assert class_of(chosen, node("a"), [pod("a", tier="gold")]) == 1
    assert class_of(chosen, node("a", hall="1"), []) == 1
    assert class_of(chosen, None, []) == 0


def test_a_row_counts_what_is_drawn_always_and_the_margin_of_an_old_breaker() -> None:
    spec = spec_of(members={"nodes": list(NAMES), "staticWatts": 300}, breaker={"marginFraction": 0.5})
    row = row_of(spec, [Priority.LOW, Priority.LOW, Priority.HIGH], 16_000.0)
    assert row.servers * row.server.worst_w(1410) == pytest.approx(3 * 6146 + 300)
    assert (row.low_floor_mhz, row.high_floor_mhz) == (1110, 1305)
    assert curve_of(spec).trip_ratio == pytest.approx(1.025)
    custom = spec_of(breaker={"curve": "custom", "tauSeconds": 60, "tripFactor": 1.2})
    assert (curve_of(custom).tau_s, curve_of(custom).trip_ratio) == (60, 1.2)


def limits_of(**more: Any) -> tuple[int, int | None]:
    spec = spec_of(classes=[{"name": "low", "priority": 0, "minMHz": 1110, **more}])
    return clock_limits(spec.classes[0], server_of(spec))


def test_the_floor_of_a_class_is_the_highest_that_anything_asks_for() -> None:
    assert limits_of() == (1110, None)
    assert limits_of(maxMHz=1410) == (1110, None)
    assert limits_of(maxMHz=1300) == (1110, 1290)  # on a step
    floor, _ = limits_of(minWatts=350)
    server = server_of(spec_of())
    assert server.gpu_w(1.02, floor) >= 350 > server.gpu_w(1.02, floor - 15)
    floor, _ = limits_of(slo={"maxIncrease": 0.1})
    assert 1410 / floor <= 1.1 < 1410 / (floor - 15)
    assert limits_of(slo={"maxIncrease": 0.0})[0] == 1410
    for odd in ({"maxMHz": 1200, "slo": {"maxIncrease": 0.1}}, {"minWatts": 500}):
        with pytest.raises(InputError, match=r"spec\.classes\[low\]"):
            limits_of(**odd)


def test_policies_follow_the_spec() -> None:
    assert policy_of(spec_of(), acts=True).name == "guard"
    assert policy_of(spec_of(brake={"enabled": False}), acts=True).brakes is False
    assert policy_of(spec_of(), acts=False).caps is False
    polca = policy_of(spec_of(algorithm="polca", thresholds={"t1": 0.85, "t2": 0.95}), acts=True)
    assert polca.name == "polca"
    trained = Thresholds(t1=0.9, t2=0.95, uncap_margin=0.03)
    assert policy_of(spec_of(algorithm="polca"), acts=True, trained=trained) == Polca(brake=BrakeAtTheta())
    wanted = policy_of(spec_of(algorithm="polca", train={}), acts=True, trained=trained)
    assert wanted == Polca(t1_ratio=0.9, t2_ratio=0.95, uncap_margin_ratio=0.03, brake=BrakeAtTheta())


def test_the_budget_follows_schedule_and_failover() -> None:
    spec = spec_of(
        failover={"budgetFactor": 0.75},
        schedule=[{"cron": "0 17 * * *", "budgetFactor": 0.9}, {"cron": "0 20 * * *", "budgetFactor": 1}],
    )
    schedule = schedule_of(spec)
    noon, evening = 1_763_726_400.0, 1_763_726_400.0 + 6 * 3600
    assert factor_of(spec, schedule, failover=False, now_s=noon) == 1.0
    assert factor_of(spec, schedule, failover=False, now_s=evening) == 0.9
    assert factor_of(spec, schedule, failover=True, now_s=evening) == 0.75
    with pytest.raises(InputError):
        schedule_of(spec_of(schedule=[{"cron": "99 * * * *", "budgetFactor": 1}]))


def test_demand_response_is_met_at_its_deadline() -> None:
    event = {"name": "e", "budgetFactor": 0.8}
    times = {"deadline": "2025-11-21T13:00:00Z", "until": "2025-11-21T15:00:00+01:00"}
    spec = spec_of(demandResponse=[{**event, **times}])
    schedule, one = schedule_of(spec), 1_763_726_400.0 + 3600.0
    told = [factor_of(spec, schedule, failover=False, now_s=one + s) for s in (-60, -5, 0, 3599, 3600)]
    assert told == [1.0, 0.8, 0.8, 0.8, 1.0]
    for wrong in ({**times, "deadline": "soon"}, {**times, "until": times["deadline"]}):
        with pytest.raises(InputError):
            schedule_of(spec_of(demandResponse=[{**event, **wrong}]))


# -- agents' answers --------------------------------------------------------------------------------------------------


def answer(**more: Any) -> dict[str, Any]:
    gpu = {"uuid": "GPU-1", "appliedMHz": 1305, "constraints": {"maxMHz": 1410}}
    whole = {
        "schema": "node-power/1",
        "node": "a",
        "sequence": 3,
        "age_s": 0.5,
        "gpuPowerWatts": 900.0,
        "leaseState": "Valid",
        "writes": True,
        "acknowledgedGeneration": 4,
        "observedGeneration": 5,
        "gpus": [gpu],
    }
    return {**whole, **more}


def test_an_answer_is_read_and_what_is_missing_is_not_zero() -> None:
    reading = reading_of(answer(), "a", 100.0)
    assert (reading.looked_s, reading.gpu_w, reading.leased, reading.acknowledged) == (99.5, 900.0, True, 4)
    assert reading.gpus[0] == GpuReading(uuid="GPU-1", applied_mhz=1305, max_mhz=1410)
    assert reading_of(answer(gpuPowerWatts=None), "a", 100.0).gpu_w is None
    assert reading_of(answer(gpuPowerWatts=-5.0), "a", 100.0).gpu_w is None
    assert reading_of(answer(gpuPowerWatts=float("nan")), "a", 100.0).gpu_w is None
    assert reading_of(answer(gpus=[{"uuid": "GPU-1"}, {}]), "a", 100.0).gpu_w is None
    for odd in ({"schema": "x"}, {"node": "b"}, {"age_s": None}, {"age_s": -1}, {"sequence": "3"}):
        with pytest.raises(InputError):
            reading_of(answer(**odd), "a", 100.0)
    junk: Any
    for junk in (None, [], "x", 7):
        with pytest.raises(InputError):
            reading_of(junk, "a", 100.0)


def test_a_book_counts_on_from_the_leader_before_and_answers_by_generation() -> None:
    body = {"spec": {"generation": 7, "renewSequence": 3}, "status": {"acknowledgedGeneration": 6}}
    book = book_of("a", body)
    book.told({"gpus": [1]}, 1, 10.0)
    assert book.generation == 8
    book.told({"gpus": [1]}, 2, 12.0)  # the same again: no other generation
    assert book.generation == 8
    seen = Reading(node="a", sequence=1, looked_s=11.5, gpu_w=1.0, acknowledged=8)
    assert book.heard(Reading(node="a", sequence=0, looked_s=11.5, gpu_w=1.0, acknowledged=7)) == 0
    assert book.heard(seen) == 2
    book.again(20)
    assert book.generation == 21


# -- a domain in virtual time -----------------------------------------------------------------------------------------


@dataclass
class FakeAgents:
    readings: dict[str, tuple[Reading, ...]] = field(default_factory=lambda: dict.fromkeys(NAMES, ()))
    meters: dict[str, tuple[str, str]] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()

    def latest(self, name: str) -> tuple[Reading, ...]:
        return self.readings.get(name, ())

    def trouble(self, name: str) -> str:
        return f"no pod of an agent runs on {name}"

    def meter_trouble(self, domain: str) -> str:
        return f"meter of {domain}: HTTP 401"

    def metered(self, _domain: str) -> tuple[float, float] | None:
        return None

    def want(self, nodes: tuple[str, ...]) -> None:
        self.wanted = nodes

    def show(self, name: str, gpu_w: float, *, looked_s: float = 0.0) -> None:
        """Let an agent be heard."""
        before = self.latest(name)
        reading = Reading(node=name, sequence=len(before), looked_s=looked_s, gpu_w=gpu_w, writes=True)
        self.readings[name] = (*before, reading)[-4:]


@dataclass
class FakeDesk:
    sent: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    refuses: bool = False

    def take_in(self, book: NodeBook) -> None:
        if book.pending is not None:
            if self.refuses:
                book.trouble = "gone"
            else:
                book.renewed_s, book.written, book.trouble = book.pending, book.pending_generation, ""  # type: ignore[assignment]
            book.pending = None

    def send(self, book: NodeBook, _domain: str, now_s: float) -> None:
        book.renewal += 1
        book.pending, book.pending_generation = now_s, book.generation  # type: ignore[assignment]
        if not self.refuses:
            self.sent.append((book.node, book.generation, dict(book.content)))


@dataclass
class Stage:
    """A row whose agents carry out within a second what they are told."""

    spec: PowerDomainSpec = field(default_factory=spec_of)
    found: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    t: float = 0.0
    load: float = 0.4
    deaf: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    factor: float = 1.0
    release: bool = False
    held: bool = False
    high: tuple[str, ...] = ("c",)

    def __post_init__(self) -> None:
        self.agents, self.desk = FakeAgents(), FakeDesk()
        self.clocks = dict.fromkeys(NAMES, 1410)
        self.generations = dict.fromkeys(NAMES, 0)
        self.taken = 0
        self.run = self.begun()
        self.figures: Figures | None = None

    def begun(self) -> DomainRun:
        return DomainRun(
            name="d",
            lease={"namespace": "n", "name": "l"},
            agents=self.agents,  # type: ignore[arg-type]
            desk=self.desk,  # type: ignore[arg-type]
            found=self.found,
            status=self.status,
        )

    def gpu_w(self, name: str) -> float:
        scale: float = (self.clocks[name] / 1410.0) ** 1.13
        return 8 * (63.0 + self.load * 345.0 * scale)

    @property
    def power_w(self) -> float:
        return sum(1250.0 + 1.5 * self.gpu_w(name) for name in NAMES)

    def look(self) -> None:
        for name, generation, content in self.desk.sent[self.taken :]:
            if name not in self.deaf and content["mode"] == "Auto":
                self.generations[name] = generation
                if content["gpus"]:
                    self.clocks[name] = content["gpus"][0]["lockMaxMHz"]
        self.taken = len(self.desk.sent)
        for name in NAMES:
            if name in self.silent:
                continue
            gpus = tuple(
                GpuReading(uuid=f"{name}-{index}", applied_mhz=self.clocks[name], max_mhz=1410)
                for index in range(8)
            )
            reading = Reading(
                node=name,
                sequence=int(self.t),
                looked_s=self.t - 0.3,
                gpu_w=self.gpu_w(name),
                gpus=gpus,
                acknowledged=self.generations[name],
                leased=True,
                writes=True,
            )
            self.agents.readings[name] = (*self.agents.readings[name], reading)[-4:]

    def tick(self) -> Figures:
        pods = {name: [pod(name, priority=1000)] for name in self.high}
        (place,) = placed(
            {"d": Wish(name="d", spec=self.spec, made_at="", factor=self.factor)}, NODES
        ).values()
        moment = Moment(
            now_s=self.t,
            wall_s=1e9 + self.t,
            nodes=NODES,
            pods=pods,
            held=self.held,
            release=self.release,
        )
        self.figures = self.run.tick(self.spec, place, moment)
        return self.figures

    def go(self, seconds: int) -> Figures:
        for _ in range(seconds):
            self.t += 1.0
            self.look()
            if self.t % 2 == 0:
                self.tick()
        assert self.figures is not None
        return self.figures


def reason(figures: Figures, kind: str) -> str:
    return figures.findings[kind].reason


def test_low_priority_slows_first_then_high_and_the_guarantee_holds() -> None:
    stage = Stage()
    stage.go(20)
    assert stage.clocks == dict.fromkeys(NAMES, 1410)
    slowed: dict[str, float] = {}
    while stage.load < 1.0:
        stage.load = min(stage.load + 0.02, 1.0)
        figures = stage.go(4)
        for name, which in (("low", NAMES[:2]), ("high", NAMES[2:])):
            if all(stage.clocks[each] < 1350 for each in which):
                slowed.setdefault(name, stage.load)
        assert figures.findings["GuaranteeHolds"].status is True
    assert slowed["low"] < slowed["high"]
    assert stage.clocks["c"] >= 1305
    assert figures.theta is not None
    assert figures.theta < 1.1025
    status = status_of({"metadata": {"generation": 2}}, figures, now="2026-11-21T10:00:00Z")
    assert status["state"] == "HpCapped"
    assert [(c["name"], c["servers"]) for c in status["capsByClass"]] == [("low", 2), ("high", 1)]
    assert status["observedGeneration"] == 2


def test_orders_are_written_only_when_they_say_something_new() -> None:
    stage = Stage()
    stage.go(60)
    assert len(stage.desk.sent) <= 3 * 2  # without GPUs known, then with them
    for name, generation, content in stage.desk.sent:
        document = {"spec": {"generation": generation, "renewSequence": 1, **content}}
        orders = orders_of(document, name)
        assert orders.safe.max_mhz == SAFE_MHZ
        assert orders.oversubscribed
        assert orders.lease == "n/l"


def test_a_cut_budget_is_reached_within_ten_seconds() -> None:
    stage = Stage(load=0.9)
    stage.go(60)
    stage.factor = 0.75
    stage.go(8)
    assert stage.power_w <= 0.75 * 16_000
    assert stage.figures is not None
    assert stage.figures.budget_w == 12_000


def test_a_lower_contract_is_no_emergency_for_ever_if_floors_keep_it() -> None:
    stage = Stage(load=0.4)
    stage.go(20)
    for budget_w, after_s, contract_w in ((15_000, 40, 16_000), (15_000, 40, 15_000), (8_000, 120, 15_000)):
        stage.spec = spec_of(budgetWatts=budget_w)
        stage.go(after_s)
        assert stage.run.row is not None
        assert stage.run.row.budget_w == contract_w
    stage.spec = spec_of(budgetWatts=15_500)
    stage.go(2)
    assert stage.run.row is not None
    assert stage.run.row.budget_w == 15_500


def test_a_node_that_is_not_heard_counts_at_its_worst_and_is_named() -> None:
    stage = Stage(load=0.3)
    before = stage.go(30)
    stage.silent = {"a"}
    after = stage.go(20)
    assert before.power_w is not None
    assert after.power_w is not None
    assert after.power_w > before.power_w + 2_000
    assert reason(after, "TelemetryFresh") == "AgentsSilent"
    assert "no pod of an agent runs on a" in after.findings["TelemetryFresh"].message
    stage.silent = set(NAMES)
    blind = stage.go(20)
    assert SAFE_MHZ is not None
    assert max(stage.clocks.values()) <= SAFE_MHZ  # no samples at all: safe clocks
    assert blind.state is not None
    assert blind.state.value == "Safe"
    stage.silent = set()
    stage.go(60)
    assert stage.clocks == dict.fromkeys(NAMES, 1410)


def test_a_deaf_agent_counts_at_its_largest_draw_and_the_others_make_up_for_it() -> None:
    stage = Stage(load=0.9)
    stage.deaf = {"a"}
    figures = stage.go(60)
    assert figures.findings["ActuatorsHealthy"].status is False
    assert figures.worst_w is not None
    assert figures.worst_w >= 6146 + 1
    assert stage.clocks["b"] < 1410


def test_writes_that_fail_are_told_as_a_lease_that_is_not_renewed() -> None:
    stage = Stage(load=0.9)
    stage.go(10)
    stage.desk.refuses = True
    stage.load = 0.5
    figures = stage.go(40)
    if any(book.trouble for book in stage.run.books.values()):
        assert reason(figures, "LeaseValid") == "RenewalFailed"
    stage.desk.refuses = False
    figures = stage.go(40)
    assert reason(figures, "LeaseValid") == "Renewed"


def test_after_the_brake_nodes_are_let_go_one_after_the_other_high_priority_first() -> None:
    spec = spec_of(algorithm="polca", brake={"at": "power", "releaseJitterSeconds": 9})
    stage = Stage(spec=spec, load=1.0)
    figures = stage.go(14)
    assert set(stage.clocks.values()) == {288}
    assert figures.state is not None
    assert (figures.state.value, figures.brakes) == ("Brake", 1)
    stage.load = 0.1
    freed: dict[str, float] = {}
    for _ in range(120):
        stage.go(1)
        for name in NAMES:
            if stage.clocks[name] > 288:
                freed.setdefault(name, stage.t)
    first = freed["c"]
    assert [round(freed[name] - first) for name in NAMES] == [4, 6, 0]


def test_a_standing_cap_holds_and_is_no_capping() -> None:
    low = {"name": "low", "priority": -5, "minMHz": 1110, "maxMHz": 1200}
    stage = Stage(spec=spec_of(classes=[low, {"name": "high", "priority": 1, "minMHz": 1305}]), load=0.3)
    figures = stage.go(30)
    assert stage.clocks == {"a": 1200, "b": 1200, "c": 1410}
    assert figures.state is not None
    assert figures.state.value == "Free"
    assert not figures.capped
    assert [(cap[0], cap[2], cap[3]) for cap in figures.caps] == [("low", 1200, 0.0), ("high", 1410, 0.0)]
    assert figures.caps[0][4] == pytest.approx(1410 / 1200 - 1)


def test_recommend_shows_and_promises_nothing() -> None:
    stage = Stage(spec=spec_of(mode="Recommend"), load=0.97)
    figures = stage.go(60)
    assert stage.clocks == dict.fromkeys(NAMES, 1410)  # the agents only show
    assert {content["mode"] for _, _, content in stage.desk.sent} == {"Recommend"}
    assert min(cap[2] for cap in figures.caps) < 1410  # what would be ordered
    assert reason(figures, "GuaranteeHolds") == "NotEnforced"
    assert figures.findings["LeaseValid"].status is None
    roomy = Stage(spec=spec_of(mode="Recommend", budgetWatts=20_000))
    assert reason(roomy.go(20), "GuaranteeHolds") == "NotOversubscribed"
    looks = Stage(spec=spec_of(mode="Observe"), load=0.97)
    assert looks.go(20).state is not None
    assert looks.desk.sent == []


def test_a_paused_domain_writes_nothing_and_a_release_says_so() -> None:
    stage = Stage(load=0.9)
    stage.go(40)
    written = len(stage.desk.sent)
    stage.held = True
    stage.go(20)
    assert len(stage.desk.sent) == written
    stage.held, stage.release = False, True
    stage.go(10)
    last = {name: content for name, _, content in stage.desk.sent}
    assert all(content["release"] and content["mode"] == "Auto" for content in last.values())
    assert stage.run.released()


def test_the_next_leader_goes_on_from_theta_and_from_higher_generations() -> None:
    stage = Stage(load=0.9)
    figures = stage.go(60)
    stage.found = {
        name: {"spec": {"generation": generation, "renewSequence": 1}}
        for name, generation, _ in stage.desk.sent
    }
    top = {name: body["spec"]["generation"] for name, body in stage.found.items()}
    stage.status = {
        "theta": figures.theta,
        "worstCaseWatts": figures.worst_w,
        "_sampled_s": figures.sampled_s,
    }
    stage.run = stage.begun()
    after = stage.go(10)
    assert figures.theta is not None
    assert after.theta is not None
    assert figures.theta - 0.02 <= after.theta < 1.1025
    for name, generation, _ in stage.desk.sent[-3:]:
        assert generation > top[name]


def test_a_domain_that_nobody_knew_stands_likely_at_its_draw_and_at_most_at_its_rating() -> None:
    stage = Stage(load=0.4)
    figures = stage.go(4)
    assert figures.theta == pytest.approx((stage.power_w / 16_000) ** 2, abs=0.01)
    controller = stage.run._controller
    assert controller is not None
    assert controller.most_theta > 0.99
    hot = Stage(load=1.0)
    hot.go(2)
    assert hot.figures is not None
    assert hot.figures.theta is not None
    assert hot.figures.theta >= 1.0


def test_a_server_unlike_its_model_ends_the_guarantee() -> None:
    stage = Stage(spec=spec_of(server={"gpus": 4, "gpuTdpWatts": 800, "gpuIdleWatts": 126}))
    figures = stage.go(10)
    assert reason(figures, "GuaranteeHolds") == "ServerUnlike"
    assert reason(figures, "Accepted") == "ServerUnlike"


def test_the_sample_is_a_domain_that_is_read() -> None:
    body = yaml.safe_load((ROOT / "examples" / "power" / "power-domain.yaml").read_text(encoding="utf-8"))
    spec = PowerDomainSpec.model_validate(body["spec"])
    assert row_of(spec, [Priority.LOW] * 52, spec.budget_watts).servers == 52
    assert schedule_of(spec).lines


def test_a_leader_that_begins_near_the_rating_does_not_brake_but_counts_what_may_have_been() -> None:
    stage = Stage(load=0.4)
    stage.status = {"theta": 0.998, "worstCaseWatts": 18_438.0, "_sampled_s": 1e9 - 20.0}
    stage.run = stage.begun()
    figures = stage.go(20)
    assert figures.brakes == 0
    assert stage.clocks == dict.fromkeys(NAMES, 1410)
    assert figures.worst_theta is not None
    assert figures.theta is not None
    assert figures.worst_theta > figures.theta + 0.01
    quick = Stage(spec=spec_of(breaker={"curve": "ups_failover_133pct_10s"}), load=0.4)
    quick.status = {**stage.status, "_sampled_s": 1e9 - 20.0}
    quick.run = quick.begun()
    quick.tick()
    assert quick.figures is not None
    assert quick.figures.findings["GuaranteeHolds"].status is False  # it may be at its trip state


def test_nothing_is_remembered_of_nodes_that_left() -> None:
    stage = Stage()
    stage.go(20)
    run = stage.run
    assert set(run._applied) == set(NAMES)
    assert set(run._high_s) == {"c"}
    (place,) = placed({"d": Wish(name="d", spec=stage.spec, made_at="", factor=1.0)}, NODES).values()
    later_s = stage.t + CLASS_HELD_S
    moment = Moment(now_s=later_s, wall_s=1e9 + later_s, nodes=NODES, pods={}, held=False, release=False)
    run.tick(stage.spec, replace(place, nodes=("a", "b")), moment)
    assert set(run.books) == {"a", "b"}
    assert set(run._applied) <= {"a", "b"}
    assert not run._high_s
