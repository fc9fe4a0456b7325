"""What PowerDomains drew, as the leader hands it to the history: every second once, nothing made up, no failure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.operator.power.figures import Figures
from controller.operator.power.history import PowerHistory
from controller.operator.power.studies import TOO_LITTLE, StudyQuestion, study
from solver.domain.power import reference_priorities
from solver.power.admission import AdmissionQuestion
from telemetry.store.power_windows import DOMAIN, PowerWindow, PowerWindows, check_windows
from telemetry.store.store import Store, open_store
from tests.controller.test_operator_power import Stage as DomainStage
from tests.controller.test_operator_power_loop import NAMES
from tests.controller.test_operator_power_loop import Stage as LoopStage
from tests.telemetry.postgres import NoServerError, running_server


def figures(node_w: Mapping[str, float], measured_w: float | None = None, **more: Any) -> Figures:
    return Figures(budget_w=1e4, node_w=node_w, measured_w=measured_w, **more)


@dataclass
class Kept:
    entries: list[PowerWindows] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = PowerHistory(put=self.entries.append)

    def of(self, node: str, domain: str = "row") -> list[PowerWindow]:
        return [w for e in self.entries for w in e.windows if (w.node, w.domain) == (node, domain)]

    def shown(self, node: str = "a") -> list[tuple[int, float, float, int]]:
        return [(w.start_s, round(w.mean_w, 6), round(w.covered_s, 6), w.samples) for w in self.of(node)]


def test_windows_are_handed_on_when_they_end() -> None:
    kept = Kept()
    for k in range(1, 6):
        told = figures({"a": 100.0 * k}, 100.0 * k + 50.0, theta=0.1 * k, capped=k > 3)
        kept.history.take("row", told, end_s=1000.0 + 2 * k, covered_s=2.0)
    assert kept.entries == []
    kept.history.take("row", figures({"a": 7.0}, 7.0), end_s=1012.0, covered_s=2.0)
    (a,), (whole,) = kept.of("a"), kept.of(DOMAIN)
    assert (a.start_s, a.window_s, a.mean_w, a.covered_s, a.max_w) == (1000, 10, 300.0, 10.0, 500.0)
    assert (a.samples, a.first_s, a.last_s, a.theta_max, a.capped_s) == (5, 1000.0, 1010.0, None, None)
    assert (whole.mean_w, whole.theta_max, whole.capped_s) == (350.0, 0.5, 4.0)
    kept.history.close()
    assert kept.shown()[1:] == [(1010, 7.0, 2.0, 1)]


def test_a_sample_over_two_windows_is_in_both_by_its_time() -> None:
    kept = Kept()
    kept.history.take("row", figures({"a": 50.0}), end_s=1011.5, covered_s=2.0)
    kept.history.close()
    assert kept.shown() == [(1000, 50.0, 0.5, 1), (1010, 50.0, 1.5, 0)]


def test_who_was_not_heard_is_missing() -> None:
    kept = Kept()
    for k in range(5):
        told = figures({"a": 10.0} if k else {"a": 10.0, "b": 30.0}, None if k else 40.0)
        kept.history.take("row", told, end_s=1002.0 + 2 * k, covered_s=2.0)
    kept.history.take("row", figures({}), end_s=1012.0, covered_s=2.0)
    kept.history.close()
    assert kept.shown("a") == [(1000, 10.0, 10.0, 5)]
    assert kept.shown("b") == [(1000, 30.0, 2.0, 1)]
    assert kept.shown(DOMAIN) == [(1000, 40.0, 2.0, 1)]


def test_no_second_counts_twice_when_the_clock_is_put_back() -> None:
    kept = Kept()
    for end_s in (1002.0, 1004.0, 1003.0, 1005.0):
        kept.history.take("row", figures({"a": 10.0}), end_s=end_s, covered_s=2.0)
    kept.history.take("row", figures({"a": 10.0}), end_s=500.0, covered_s=2.0)  # by far: time counts anew
    kept.history.close()
    assert kept.shown() == [(1000, 10.0, 5.0, 3), (490, 10.0, 2.0, 1)]


def test_a_domain_that_is_gone_is_handed_on() -> None:
    kept = Kept()
    kept.history.take("gone", figures({"a": 10.0}), end_s=1002.0, covered_s=2.0)
    kept.history.take("row", figures({"b": 10.0}), end_s=1040.0, covered_s=2.0)
    assert [w.domain for w in kept.of("a", "gone")] == ["gone"]


def test_a_writer_that_fails_costs_nothing() -> None:
    def fails(_entry: PowerWindows) -> None:
        raise RuntimeError("no room")

    history = PowerHistory(put=fails)
    for k in range(12):  # two windows are handed on
        history.take("row", figures({"a": 1.0}), end_s=1002.0 + 2 * k, covered_s=2.0)


@given(steps=st.lists(st.tuples(st.floats(-1.0, 8.0), st.floats(0.5, 3.0), st.floats(0, 1e4)), max_size=40))
def test_whatever_the_clock_does_windows_are_sound(steps: list[tuple[float, float, float]]) -> None:
    kept, end_s = Kept(), 1000.0
    for step_s, covered_s, watts in steps:
        end_s += step_s
        kept.history.take("row", figures({"a": watts}, watts), end_s=end_s, covered_s=covered_s)
    kept.history.close()
    seen: dict[int, float] = {}
    for entry in kept.entries:
        check_windows(entry)
        for window in entry.windows:
            if window.node == "a":
                seen[window.start_s] = seen.get(window.start_s, 0.0) + window.covered_s
    assert all(covered_s <= 10.0 + 1e-6 for covered_s in seen.values())


def test_a_run_says_what_was_drawn_and_not_what_is_feared() -> None:
    stage = DomainStage()
    told = stage.go(10)
    assert told.node_w == pytest.approx({name: 1250.0 + 1.5 * stage.gpu_w(name) for name in NAMES})
    assert told.measured_w == pytest.approx(stage.power_w)
    assert not told.capped
    stage.silent = {"b"}
    told = stage.go(10)
    assert told.node_w.keys() == {"a", "c"}
    assert told.measured_w is None
    stage.silent = set(NAMES)
    told = stage.go(10)
    assert (dict(told.node_w), told.measured_w) == ({}, None)
    stage.silent, stage.load = set(), 1.0
    assert stage.go(40).capped


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return a history with its tables, in each kind of database."""
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/history.db")
        opened.migrate()
        yield opened
        opened.close()
        return
    try:
        with running_server() as server:
            opened = open_store(server.url)
            opened.migrate()
            yield opened
            opened.close()
    except NoServerError as error:
        pytest.skip(str(error))


def test_the_loop_keeps_what_its_domains_draw(store: Store) -> None:
    stage = LoopStage()
    stage.wall_s += 600.0
    stage.loop.history = PowerHistory(put=lambda entry: store.write([entry]))
    stage.domain("row", parentRef="site", members={"nodes": list(NAMES)})
    stage.domain("site", budgetWatts=20_000, members=None)
    for _ in range(41):
        for name in NAMES:
            stage.agents.show(name, 1000.0, looked_s=stage.now_s)
        stage.go(1)
    stage.loop.history.close()
    assert store.power_domains() == ("row", "site")
    assert store.power_nodes("row") == NAMES
    (hour,) = store.power_windows("row", window_s=3600, node="a")
    assert hour.mean_w == pytest.approx(1250.0 + 1.5 * 1000.0)
    assert 30.0 <= hour.covered_s <= 44.0
    (site,) = store.power_windows("site", window_s=3600, node=DOMAIN)
    assert site.mean_w == pytest.approx(3 * 2750.0)
    assert store.power_nodes("site") == ()
    finest = [w for w in store.power_windows("row", window_s=10, node="a") if w.covered_s > 9.9]
    assert len(finest) >= 3
    assert all(w.mean_w == pytest.approx(2750.0) and w.samples == 5 for w in finest)
    # and what is judged reads what was kept
    question = StudyQuestion(
        domain="row",
        nodes=NAMES,
        priorities=reference_priorities(3),
        admission=AdmissionQuestion(budget_w=20_000.0),
        horizon_s=86_400.0,
    )
    found = study(store, question, until_s=stage.wall_s + 20.0).admission
    assert found.reason == TOO_LITTLE
    assert "h with all servers are recorded of 24 h" in found.message
