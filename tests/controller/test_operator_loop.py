"""One service's trouble is nobody else's: rounds of the leader's loop over a fake API."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

import controller.operator.loop
from controller.operator.api import Resource
from controller.operator.brain import CRASHED, Brain, Setback
from controller.operator.loop import MOST_BACKOFF_S, Backoff, Loop, LoopSettings
from controller.operator.profiles import ProfileBook
from controller.operator.rehearsal.hold import Rehearsals
from controller.operator.rollout import Actuation
from controller.operator.status import Progress, status_of
from controller.operator.traffic import Traffic, stated
from controller.operator.views import ServiceView, Views
from controller.operator.world import Key
from solver.domain.cluster import ClusterState, ServiceDecision
from solver.domain.gpu_mix import RequestBucket
from solver.services.decide import DecideOptions, decide
from tests.controller.rehearsal.stand import LABEL, NOW, Stand

OTHER = ("team", "other")
Object = dict[str, Any]


@dataclass(slots=True)
class Server:
    """Takes every write, as the API server would without anybody else."""

    stand: Stand
    written: list[tuple[str, str, Object]] = field(default_factory=list)

    def apply(self, resource: Resource, body: Object, **_said: Any) -> Object:
        metadata = body["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        self.written.append((resource.kind, metadata["name"], body))
        known = self.stand.world.get(resource.kind, key)
        before: Object = dict(known) if isinstance(known, Mapping) else {}
        after: Object = json.loads(json.dumps(body))
        after["metadata"] = (
            before.get("metadata", {}) | metadata | {"resourceVersion": str(100 + len(self.written))}
        )
        return before | after


class Thinks(Brain):
    """Decides in this process."""

    def decide(self, state: ClusterState) -> tuple[ServiceDecision, ...] | None:
        return decide(state, options=DecideOptions(), clock=lambda: 0.0)


@dataclass(slots=True)
class Told:
    """Remembers events."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def event(self, view: ServiceView, _type: str, reason: str, _message: str) -> None:
        self.events.append((view.key[1], reason))


@dataclass(slots=True, kw_only=True)
class Poisoned(Rehearsals):
    """Breaks at one service."""

    def hold(self, view: ServiceView, act: Actuation) -> str:
        if view.key == OTHER:
            raise ZeroDivisionError("a fault of ours")
        return super(Poisoned, self).hold(view, act)


def two_services() -> tuple[Loop, Server, Told]:
    """Return the loop over team/chat, whose plan scales down, and team/other, which has the same."""
    stand = Stand(running={"a": 4}, wanted={"a": 2}, rehearsal=None)
    Stand(running={"a": 4}, wanted={"a": 2}, rehearsal=None, name="other", world=stand.world)
    server, told = Server(stand), Told()
    traffic = stated([RequestBucket(rate_rps=2.0, input_tokens=512.0, output_tokens=128.0)], at=NOW)

    def traffic_of(specs: Mapping[Key, Any]) -> Mapping[Key, Traffic]:
        return dict.fromkeys(specs, traffic)

    loop = Loop(
        world=stand.world,
        api=server,  # type: ignore[arg-type]
        views=Views(world=stand.world, book=ProfileBook(), gpu_label=LABEL),
        brain=Thinks(),
        notices=told,  # type: ignore[arg-type]
        traffic_of=traffic_of,
        settings=LoopSettings(debounce_s=0.0, whole_cluster=False),
        epoch=lambda: 1,
    )
    return loop, server, told


def statuses(server: Server) -> dict[str, Object]:
    """Return the last status written on each service."""
    return {name: body["status"] for kind, name, body in server.written if kind == "ModelService"}


def scaled(server: Server) -> set[str]:
    return {name for kind, name, _ in server.written if kind == "Deployment"}


def test_an_error_of_ours_in_one_service_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    loop, server, told = two_services()
    loop.rehearsals = Poisoned()
    loop.once()
    assert ("other", "InternalError") in told.events
    assert ("chat", "InternalError") not in told.events
    assert set(statuses(server)) == {"chat", "other"}
    said = next(c for c in statuses(server)["other"]["conditions"] if c["type"] == "Applied")
    assert "internal error (ZeroDivisionError)" in said["message"]
    assert scaled(server) == {"chat-a"}
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_status_that_cannot_be_computed_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, server, _ = two_services()

    def breaks(view: ServiceView, progress: Progress, *, now: str) -> Object:
        if view.key == OTHER:
            raise KeyError("a fault of ours")
        return status_of(view, progress, now=now)

    monkeypatch.setattr(controller.operator.loop, "status_of", breaks)
    loop.once()
    assert set(statuses(server)) == {"chat"}
    loop._under_way = False
    loop._backoffs["status ('team', 'other')"].until_s = time.monotonic() + 30.0
    assert loop._nap_s() <= 30.0 < loop.settings.plan_interval_s
    monkeypatch.undo()
    loop._backoffs["status ('team', 'other')"].until_s = 0.0  # its time is up
    loop.once()
    assert set(statuses(server)) == {"chat", "other"}
    loop._under_way = False
    assert not loop._backoffs
    assert loop._nap_s() == loop.settings.plan_interval_s


def test_who_is_well_again_or_paused_keeps_nobody_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, server, _ = two_services()
    for _ in range(3):
        loop.once()  # until nothing is left to say
    written = len(server.written)
    loop._written.clear()

    def breaks(_view: ServiceView, _progress: Progress, *, now: str) -> Object:
        raise KeyError(now)

    monkeypatch.setattr(controller.operator.loop, "status_of", breaks)
    loop.once()
    assert len(loop._backoffs) == 2
    monkeypatch.undo()
    for backoff in loop._backoffs.values():
        backoff.until_s = 0.0
    loop.once()
    assert len(server.written) == written  # it says what it said before
    assert not loop._backoffs
    loop._backoffs["team/chat"] = Backoff(times=3)  # its turn does not come: it is paused
    loop._under_way = False
    assert loop._nap_s() == loop.settings.plan_interval_s


def test_waits_double_and_end_at_a_minute_however_often_it_fails() -> None:
    backoff = Backoff()
    waits = [backoff.failed(first_s=0.5) for _ in range(3000)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert waits[-1] == MOST_BACKOFF_S
    assert math.isfinite(backoff.until_s)


def test_nothing_is_remembered_of_what_is_gone() -> None:
    loop, server, _ = two_services()
    world = loop.world
    loop.rehearsals = Poisoned()
    loop.once()
    assert "team/other" in loop._backoffs
    loop.brain.setbacks["team/other"] = Setback(reason=CRASHED, message="broken", times=1, until_s=math.inf)
    loop._failures["team/other"] = (CRASHED, "broken")
    loop._backoffs["release Deployment ('team', 'other-a')"] = Backoff()  # it could not be given back
    world.remove("ModelService", OTHER)
    world.remove("Plan", OTHER)
    world.remove("Deployment", ("team", "other-a"))
    loop.once()
    assert not loop._backoffs
    assert not loop.brain.setbacks
    held = (loop._failures, loop._decided, loop._written)
    assert not any(OTHER in kept or "team/other" in kept for kept in held)
    views = loop.views
    assert set(views._plans) == set(views._views) == {("team", "chat")}
    assert "chat" in statuses(server)


def test_a_service_that_waits_is_not_forgotten() -> None:
    loop, _, _ = two_services()
    loop.rehearsals = Poisoned()
    loop.once()
    kept = loop._backoffs["team/other"]
    setback = Setback(reason=CRASHED, message="broken", times=1, until_s=math.inf)
    loop.brain.setbacks["team/other"] = setback
    loop.once()
    assert loop._backoffs == {"team/other": kept}
    assert loop.brain.setbacks == {"team/other": setback}


def test_profiles_that_are_gone_are_not_kept_and_said_to_be_missing() -> None:
    loop, server, _ = two_services()
    loop.once()
    assert set(loop.views._profiles) == {("", "fast")}
    loop.world.remove("GpuProfile", ("", "fast"))
    loop.once()
    loop.once()
    assert all(spec is None for _, spec, _ in loop.views._profiles.values())
    said = json.dumps(statuses(server)["chat"])
    assert "GpuProfile fast does not exist" in said
    for kind in ("ModelService", "Deployment"):
        for key in loop.world.all(kind):
            loop.world.remove(kind, key)
    loop.once()
    assert not loop.views._profiles
