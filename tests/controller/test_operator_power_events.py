"""Events of PowerDomains: what lasted, once, not what a leader before has told, not every two seconds."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.operator.api import POWER_DOMAINS
from controller.operator.conditions import Finding
from controller.operator.notices import QUIET_S, Notices
from controller.operator.power.events import RULES, PowerEvents
from controller.operator.power.figures import Figures
from controller.operator.power.loop import RELEASE
from controller.resources.power_domain import PowerState
from tests.controller.test_operator_power_loop import NAMES, FakeApi, Stage

BODY: dict[str, Any] = {"metadata": {"name": "row", "uid": "u"}}
WELL = {kind: (kind != "GpuLost", "Well") for kind in RULES}


def figures(state: PowerState | None = PowerState.FREE, **conditions: tuple[bool | None, str]) -> Figures:
    return Figures(
        budget_w=1.0,
        state=state,
        findings={
            kind: Finding(type=kind, status=status, reason=reason, message=f"about {reason}")
            for kind, (status, reason) in {**WELL, **conditions}.items()
        },
    )


@dataclass
class Told:
    now_s: float = 0.0
    said: list[tuple[str, str]] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=lambda: BODY)

    def __post_init__(self) -> None:
        self.events = PowerEvents(tell=self.tell, clock=lambda: self.now_s)

    def tell(self, name: str, uid: str, kind: str, reason: str, message: str) -> None:
        assert (name, uid) == ("row", "u")
        assert message
        self.said.append((kind, reason))

    def see(self, now: Figures, seconds: float = 2.0, *, released: bool = False) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.events.take(self.body, now, released=released)
            self.now_s += 2.0

    def all(self) -> list[tuple[str, str]]:
        said, self.said = self.said, []
        return said


def test_a_change_is_told_when_it_lasted_and_once() -> None:
    told = Told()
    told.see(figures(), 60)
    assert told.all() == []
    told.see(figures(GuaranteeHolds=(False, "WorstCaseTrips")), 4)
    told.see(figures(), 10)
    assert told.all() == []  # two decisions were not enough
    told.see(figures(GuaranteeHolds=(False, "WorstCaseTrips")), 60)
    told.see(figures(), 10)
    assert told.all() == [("Warning", "GuaranteeLost"), ("Normal", "GuaranteeHolds")]
    told.see(figures(GuaranteeHolds=(False, "NotEnforced")), 60)
    assert told.all() == []
    told.see(figures(ActuatorsHealthy=(False, "ActuatorMismatch")), 10)
    told.see(figures(GpuLost=(True, "Server3")), 10)
    told.see(figures(Accepted=(False, "NodeTaken")), 10)
    assert told.all() == [
        ("Warning", "ActuatorMismatch"),
        ("Normal", "ActuatorsHealthy"),
        ("Warning", "GpuLost"),
        ("Warning", "NodeTaken"),
        ("Normal", "AllGpusPresent"),
    ]


def test_states_are_told_where_they_are_real() -> None:
    told = Told()
    told.see(figures(), 40)
    told.see(figures(PowerState.BRAKE))
    assert told.all() == [("Warning", "Brake")]
    told.see(figures(PowerState.LP_BASE), 10)
    told.see(figures(PowerState.LP_DEEP), 40)
    told.see(figures(PowerState.HP_CAPPED), 40)
    told.see(figures(PowerState.FREE), 40)
    assert [reason for _, reason in told.all()] == ["Slowed", "HighPrioritySlowed", "Uncapped"]
    told.see(figures(PowerState.SAFE, LeaseValid=(None, "NotEnforced")), 60)
    assert told.all() == []
    told.see(figures(), released=True)
    told.see(figures(), released=True)
    assert told.all() == [("Normal", "Released")]


def test_what_a_leader_before_told_is_not_told_again() -> None:
    status = {
        "state": "HpCapped",
        "conditions": [{"type": "GuaranteeHolds", "status": "False", "reason": "WorstCaseTrips"}],
    }
    told = Told(body={**BODY, "status": status})
    told.see(figures(PowerState.HP_CAPPED, GuaranteeHolds=(False, "WorstCaseTrips")), 60)
    assert told.all() == []
    told.see(figures(PowerState.HP_CAPPED), 10)
    assert told.all() == [("Normal", "GuaranteeHolds")]
    told.events.forget("row")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PowerState),
            st.sampled_from(sorted(RULES)),
            st.booleans() | st.none(),
            st.sampled_from([2.0, 6.0, 40.0]),
        ),
        max_size=60,
    )
)
def test_no_reason_comes_twice_in_ten_minutes(
    steps: list[tuple[PowerState, str, bool | None, float]],
) -> None:
    told = Told()
    came: dict[str, float] = {}
    for state, kind, status, seconds in steps:
        told.see(figures(state, **{kind: (status, "WorstCaseTrips")}), seconds)
        for _, reason in told.all():
            assert told.now_s - came.get(reason, -1e9) > QUIET_S - seconds
            came[reason] = told.now_s


def test_the_loop_tells_and_events_of_what_has_no_namespace_are_in_default() -> None:
    stage = Stage()
    written: list[tuple[str, dict[str, Any]]] = []

    class Api(FakeApi):
        def create(self, _resource: Any, namespace: str, body: dict[str, Any]) -> None:
            written.append((namespace, body))
            notices.stopping.set()

    api: Any = Api(stage.world)
    notices = Notices(api=api, instance="me")
    stage.loop.events = PowerEvents(
        tell=lambda name, uid, *rest: notices.event_for(POWER_DOMAINS, ("", name, uid), *rest),
        clock=lambda: stage.now_s,
    )
    stage.domain("row", mode="Auto", members={"nodes": list(NAMES)}, annotations={RELEASE: "true"})
    stage.go(4)
    notices.run()
    ((namespace, body),) = written
    assert namespace == body["metadata"]["namespace"] == "default"
    assert body["regarding"] == {
        "apiVersion": "ballast.dev/v1alpha1",
        "kind": "PowerDomain",
        "name": "row",
        "uid": "row",
    }
    assert (body["reason"], body["type"]) == ("Released", "Normal")
