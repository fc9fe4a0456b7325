"""Expert loads in the history, as the operator reads and keeps them: sums, named troubles, no wait without end."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.operator.api import CONFIG_MAPS
from controller.operator.experts.history import HistoryError, LoadHistory
from controller.operator.experts.recorded import Look, look
from controller.resources.expert_placement import ExpertPlacementSpec
from solver.domain.moe import Floats
from telemetry.experts.recording import ExpertRecording
from telemetry.store.expert_windows import ExpertWindow, windows_of
from telemetry.store.store import RecordedLoad, Store, open_store
from tests.controller.experts_stage import (
    HOT_FIRST,
    HOT_LAST,
    KEY,
    SPACE,
    Stage,
    source,
    staged,
    wish,
)
from tests.telemetry.loopback import say, serving
from tests.telemetry.postgres import NoServerError, running_server

NAME = f"{SPACE}/moe"
API: Any = None


@dataclass
class Kept:
    """A history whose writer writes at once."""

    store: Store
    windows: list[ExpertWindow] = field(default_factory=list)

    def put(self, window: ExpertWindow) -> None:
        self.windows.append(window)
        self.store.write([window])

    @property
    def history(self) -> LoadHistory:
        return LoadHistory(store=self.store, put=self.put)

    def record(self, rows: Any, end_s: float, *, window_s: float = 60.0, **more: Any) -> None:
        """Write a window as somebody else would."""
        found = ExpertRecording(
            source="s", load=np.array(rows, dtype=np.float64), transitions=more.get("steps")
        )
        name, model = more.get("name", NAME), more.get("model", "moe")
        self.store.record(windows_of(found, recording=name, model=model, end_s=end_s, window_s=window_s))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    store.migrate()
    yield Kept(store=store)
    store.close()


@pytest.fixture
def stage(kept: Kept) -> Iterator[Stage]:
    """Return a loop with a history, at the present time."""
    with staged() as one:
        one.now_s = time.time()
        one.loop.history = kept.history
        yield one


def stored(**more: Any) -> dict[str, Any]:
    return {"sqlStore": {"recording": "moe"}, "windowSeconds": 60, "ewmaAlpha": 1.0, **more}


def spec_of(load_source: dict[str, Any]) -> ExpertPlacementSpec:
    return ExpertPlacementSpec.model_validate(wish(loadSource=load_source)["spec"])


def read(kept: Kept, **more: Any) -> Look:
    return look(API, KEY, spec_of(stored(**more)), folder="", history=kept.history)


def test_a_map_follows_what_is_recorded(stage: Stage, kept: Kept) -> None:
    stage.put(wish(loadSource=stored()))
    kept.record(HOT_FIRST, stage.now_s - 100)
    assert stage.go(2)["phase"] == "Applied"
    first = stage.maps()
    assert len(stage.placer.tasks) == 1
    kept.record(HOT_LAST, stage.now_s - 10)
    stage.go()
    assert stage.maps() == first  # it is asked once per window
    stage.loop._books[KEY].next_look_s = 0.0
    stage.go(2)
    assert stage.maps() != first
    assert len(stage.placer.tasks) == 2
    stage.loop._books[KEY].next_look_s = 0.0
    stage.go(2)
    assert stage.loop._books[KEY].smoothed.windows == 2  # the same window is no new one
    assert kept.windows == []  # and what is read from the history is not recorded again


def test_windows_that_are_too_old_hold_the_map(stage: Stage, kept: Kept) -> None:
    stage.put(wish(loadSource=stored()))
    kept.record(HOT_FIRST, stage.now_s - 1)
    assert stage.go()["phase"] == "Applied"
    assert stage.go(later_s=181.0)["phase"] == "Held"
    assert stage.condition("Stale")["reason"] == "LoadOld"
    stage.put(wish(loadSource=stored(maxAgeSeconds=1000)), 2)
    assert stage.go()["phase"] == "Applied"


def test_without_a_database_it_is_said() -> None:
    with staged() as stage:
        stage.put(wish(loadSource=stored()))
        assert stage.go()["phase"] == "Waiting"
        stale = stage.condition("Stale")
        assert (stale["status"], stale["reason"]) == ("True", "NoDatabase")
        assert "--database-url" in stale["message"]


def test_counts_are_those_of_one_window(kept: Kept) -> None:
    now_s = time.time()
    rows = np.array(HOT_FIRST)
    for back in range(6):
        kept.record(rows, now_s - 60 * back)
    for window_s, factor in ((60, 1), (120, 2), (300, 5), (600, 10)):  # of 600 s, 360 s are recorded
        found = read(kept, windowSeconds=window_s)
        assert found.recording is not None
        assert np.allclose(found.recording.load, factor * rows, rtol=1e-12)
        assert found.at_s == pytest.approx(now_s, abs=1e-3)
    exact = read(kept, windowSeconds=300)
    assert exact.recording is not None
    assert np.array_equal(exact.recording.load, 5 * rows)
    few = read(kept, windowSeconds=721)
    assert (few.recording, few.reason) == (None, "LoadIncomplete")
    assert few.message == f"recording {NAME}: 360 s of the last 721 s are recorded, half is needed"


def test_a_window_longer_than_asked_for_is_brought_down(kept: Kept) -> None:
    kept.record(HOT_FIRST, time.time() - 5, window_s=600)
    found = read(kept)
    assert found.recording is not None
    assert np.allclose(found.recording.load, 0.1 * np.array(HOT_FIRST), rtol=1e-12)


def test_transitions_are_known_where_they_were_recorded(kept: Kept) -> None:
    steps = np.arange(64.0).reshape(1, 8, 8)
    now_s = time.time()
    kept.record(HOT_FIRST, now_s - 60, steps=steps)
    kept.record(HOT_FIRST, now_s - 1, steps=steps)
    found = read(kept, windowSeconds=120)
    assert found.recording is not None
    assert found.recording.transitions is not None
    assert np.allclose(found.recording.transitions, 2 * steps, rtol=1e-9)
    kept.record(HOT_FIRST, now_s - 120)
    found = read(kept, windowSeconds=180)
    assert found.recording is not None
    assert found.recording.transitions is None


def nothing(_: Kept) -> None:
    pass


def of_tomorrow(kept: Kept) -> None:
    kept.record(HOT_FIRST, time.time() + 86_400)


def of_another_namespace(kept: Kept) -> None:
    kept.record(HOT_FIRST, time.time() - 1, name="other/moe")


def of_another_model(kept: Kept) -> None:
    kept.record(HOT_FIRST, time.time() - 1, model="another")


def of_another_shape(kept: Kept) -> None:
    kept.record([[1.0, 2.0]] * 2, time.time() - 1)


def of_more_layers(kept: Kept) -> None:
    kept.record([*HOT_FIRST, HOT_FIRST[0]], time.time() - 1)


def damaged(kept: Kept) -> None:
    kept.record(HOT_FIRST, time.time() - 1)
    with kept.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE expert_window SET load = x'75313132'")


def dropped(kept: Kept) -> None:
    with kept.store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE expert_window")


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (nothing, "LoadMissing", f"recording {NAME} has no windows in the history"),
        (of_tomorrow, "LoadMissing", "has no windows"),
        (of_another_namespace, "LoadMissing", "has no windows"),
        (of_another_model, "LoadInvalid", f"recording {NAME}: loads of another; those of moe"),
        (of_another_shape, "LoadInvalid", "shape [2, 2]; 2 MoE layers of 8 experts"),
        (of_more_layers, "LoadInvalid", "shape [3, 8]; 2 MoE layers of 8 experts"),
        (damaged, "LoadInvalid", f"recording {NAME}: packed counts"),
        (dropped, "LoadUnreadable", f"recording {NAME}: the database: no such table"),
    ],
)
def test_what_is_wrong_is_said_and_never_taken_as_zero(
    stage: Stage, kept: Kept, spoil: Callable[[Kept], None], reason: str, words: str
) -> None:
    spoil(kept)
    found = read(kept)
    assert (found.recording, found.reason) == (None, reason)
    assert words in found.message
    assert "\n" not in found.message
    stage.put(wish(loadSource=stored()))
    assert stage.go()["phase"] == "Waiting"
    assert stage.condition("Stale")["reason"] == reason


def test_idle_windows_hold_the_map(stage: Stage, kept: Kept) -> None:
    kept.record(np.zeros((2, 8)), stage.now_s - 1)
    stage.put(wish(loadSource=stored()))
    stage.go()
    assert stage.condition("Stale")["reason"] == "NoTokens"


class Frozen(Store):
    """A database that does not answer."""

    def expert_load(self, recording: str, *, window_s: float, until_s: float = 0.0) -> RecordedLoad | None:
        del recording, window_s, until_s
        THAW.wait(60)
        raise OSError("gone at last")


THAW = threading.Event()


def test_a_database_that_does_not_answer_holds_nobody_up_for_long(kept: Kept) -> None:
    frozen = Frozen(engine=kept.store.engine)
    history = LoadHistory(store=frozen, put=kept.put, limit_s=0.05)
    THAW.clear()
    try:
        for _ in range(12):  # more than there are threads to wait
            with pytest.raises(HistoryError, match=r"the database has not answered for 0\.05 s"):
                history.read(NAME, window_s=60)
        found = look(API, KEY, spec_of(stored()), folder="", history=history)
        assert found.reason == "LoadUnreadable"
    finally:
        THAW.set()
    patient = LoadHistory(store=frozen, put=kept.put)
    with pytest.raises(HistoryError, match="the database: gone at last"):
        patient.read(NAME, window_s=60)


def test_a_real_server_that_is_killed_is_said_and_comes_back() -> None:
    try:
        with running_server() as server:
            store = open_store(server.url)
            store.migrate()
            on_server = Kept(store=store)
            now_s = time.time()
            on_server.record(HOT_FIRST, now_s - 1)
            assert read(on_server).recording is not None
            server.stop("immediate")
            found = read(on_server)
            assert (found.recording, found.reason) == (None, "LoadUnreadable")
            assert "\n" not in found.message
            server.start()
            found = read(on_server)
            assert found.recording is not None
            assert found.at_s == now_s - 1
            store.close()
    except NoServerError as error:
        pytest.skip(str(error))


def loads_kept(kept: Kept, **more: Any) -> RecordedLoad:
    found = kept.store.expert_load(NAME, **{"window_s": 1e9, **more})
    assert found is not None
    return found


def test_loads_of_a_config_map_are_kept_once(stage: Stage, kept: Kept) -> None:
    stage.put(wish(loadSource=source(windowSeconds=60)))
    stage.load(HOT_FIRST)
    at = {"creationTimestamp": "2027-01-15T08:00:00Z"}
    stage.cluster.objects["ConfigMap", "moe"]["metadata"].update(at)
    stage.go(3)
    assert len(kept.windows) == 1
    window = loads_kept(kept)
    assert np.array_equal(window.load, np.array(HOT_FIRST))
    assert (window.model, window.covered_s, window.end_s) == ("moe", 60.0, 1_800_000_000.0)
    stage.loop._books.clear()  # whoever leads next reads it again
    stage.go(2)
    assert len(kept.windows) == 2
    assert loads_kept(kept).windows == 1
    stage.load(HOT_LAST)
    at = {"creationTimestamp": "2027-01-15T08:01:00Z"}
    stage.cluster.objects["ConfigMap", "moe"]["metadata"].update(at)
    stage.go(2)
    assert loads_kept(kept).windows == 2
    assert np.array_equal(loads_kept(kept).load, np.array(HOT_FIRST) + np.array(HOT_LAST))


def test_a_recording_of_several_windows_is_kept_as_such(stage: Stage, kept: Kept) -> None:
    stage.put(wish(loadSource=source(windowSeconds=60)))
    rows = [HOT_FIRST, HOT_LAST, HOT_FIRST]
    stage.cluster.put(
        CONFIG_MAPS,
        "moe",
        data={"load.json": json.dumps({"load_windows": rows})},
        metadata={"creationTimestamp": "2027-01-15T08:00:00Z"},
    )
    stage.go()
    assert [w.end_s - 1_800_000_000 for w in kept.windows] == [-120.0, -60.0, 0.0]
    assert np.array_equal(loads_kept(kept, window_s=120).load, np.array(HOT_FIRST) + np.array(HOT_LAST))


def test_loads_on_a_volume_are_kept(tmp_path: Path, kept: Kept) -> None:
    path = tmp_path / "loads" / SPACE / "now.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"load": HOT_FIRST}), encoding="utf-8")
    spec = spec_of({"pvc": {"claim": "loads", "path": "now.json"}})
    found = look(API, KEY, spec, folder=str(tmp_path), history=kept.history)
    look(API, KEY, spec, folder=str(tmp_path), known=found, history=kept.history)
    assert len(kept.windows) == 1
    assert loads_kept(kept).end_s == pytest.approx(path.stat().st_mtime)
    assert loads_kept(kept).covered_s == pytest.approx(300.0)


def prometheus(rows: Floats) -> Callable[..., None]:
    result = [
        {"metric": {"layer": str(layer), "expert": str(expert)}, "value": [0, str(count)]}
        for layer, row in enumerate(rows)
        for expert, count in enumerate(row)
    ]
    return say(json.dumps({"data": {"resultType": "vector", "result": result}}))


def test_what_a_prometheus_says_is_kept_and_read_by_another_placement(stage: Stage, kept: Kept) -> None:
    with serving({"/api/v1/query": prometheus(np.array(HOT_FIRST))}) as address:
        source_of = {"prometheus": {"url": address, "metric": "tokens_total"}, "windowSeconds": 60}
        stage.put(wish(loadSource=source_of))
        assert stage.go(3)["phase"] == "Applied"
    (window,) = kept.windows
    assert window.end_s - window.start_s == 60.0
    assert abs(window.end_s - time.time()) < 60
    found = look(API, (SPACE, "second"), spec_of(stored()), folder="", history=kept.history)
    assert found.recording is not None
    assert np.array_equal(found.recording.load, np.array(HOT_FIRST))


def test_a_dump_that_does_not_change_is_kept_once(kept: Kept) -> None:
    dump = json.dumps({"logical_count": [[[0] * 8, *HOT_FIRST]]})
    with serving({"/dump": say(dump)}) as address:
        spec = spec_of({"httpDump": {"url": f"{address}/dump"}})
        first = look(API, KEY, spec, folder="", history=kept.history)
        look(API, KEY, spec, folder="", known=first, history=kept.history)
    assert len(kept.windows) == 1


def test_loads_that_cannot_be_kept_are_used_all_the_same(
    stage: Stage, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.store.expert_windows.MOST_PACKED_BYTES", 10)
    stage.put(wish(loadSource=source()))
    stage.load(HOT_FIRST)
    stage.cluster.objects["ConfigMap", "moe"]["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z"
    assert stage.go()["phase"] == "Applied"
    assert kept.windows == []
