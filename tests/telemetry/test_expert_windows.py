"""Windows of expert loads in SQLite and in a real PostgreSQL: packed without loss, once each, read back, let go of."""

import math
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sqlalchemy import text

from solver.domain.errors import InputError
from solver.domain.moe import Floats
from telemetry.experts.recording import ExpertRecording
from telemetry.store.buffered import BufferedStore
from telemetry.store.expert_windows import MOST_PACKED_BYTES, ExpertWindow, packed, unpacked, windows_of
from telemetry.store.store import Store, open_store
from tests.telemetry.history_entries import decision, emptied, eventually, sample
from tests.telemetry.postgres import Postgres

LAYERS, EXPERTS = 3, 4
NAME, MODEL = "team/moe", "moe"
ROWS = np.arange(12.0).reshape(LAYERS, EXPERTS)


def found(load: Floats = ROWS, **more: Floats | None) -> ExpertRecording:
    return ExpertRecording(source="s", load=load, **more)  # type: ignore[arg-type]


def windows(
    recording: ExpertRecording, end_s: float, window_s: float = 60.0, name: str = NAME, model: str = MODEL
) -> tuple[ExpertWindow, ...]:
    return windows_of(recording, recording=name, model=model, end_s=end_s, window_s=window_s)


def one(end_s: float, factor: float = 1.0, window_s: float = 60.0) -> ExpertWindow:
    (window,) = windows(found(ROWS * factor), end_s, window_s)
    return window


COUNTS = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6),
    elements=st.one_of(
        st.integers(0, 2**53).map(float),
        st.integers(0, 300).map(float),
        st.floats(0, 1e300),
        st.sampled_from([255.0, 256.0, 65_535.0, 65_536.0, 2.0**32, 2.0**63, 2.0**64, 5e-324]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(counts=COUNTS)
def test_counts_are_packed_without_loss(counts: Floats) -> None:
    again = unpacked(packed(counts), counts.shape)
    assert again.shape == counts.shape
    assert np.array_equal(again, counts)


@pytest.mark.parametrize(
    ("largest", "kind"),
    [(255, "u1"), (256, "u2"), (65_536, "u4"), (2**32, "u8"), (0.5, "f8"), (2.0**63, "f8")],
)
def test_whole_numbers_take_as_few_bytes_as_they_need(largest: float, kind: str) -> None:
    assert packed(np.array([0.0, largest])).startswith(kind.encode())


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_is_no_count_is_not_packed(bad: float) -> None:
    with pytest.raises(InputError, match="finite and not negative"):
        packed(np.array([1.0, bad]))
    raw = b"f8" + zlib.compress(np.frombuffer(np.array([bad]).tobytes(), np.uint8).tobytes())
    with pytest.raises(InputError, match="finite and not negative"):
        unpacked(raw, (1,))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"xx",
        b"u1",
        b"u1not packed",
        packed(ROWS)[:-3],
        packed(ROWS[:2]),
        packed(np.zeros((LAYERS, EXPERTS + 1))),
        b"u1" + zlib.compress(bytes(10**7)),
    ],
)
def test_damaged_windows_are_refused(raw: bytes) -> None:
    with pytest.raises(InputError, match="windows that Ballast wrote"):
        unpacked(raw, (LAYERS, EXPERTS))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_never_an_array_of_another_shape(data: st.DataObject) -> None:
    raw = bytearray(packed(ROWS))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = unpacked(bytes(raw), (LAYERS, EXPERTS))
    except InputError:
        return
    assert again.shape == (LAYERS, EXPERTS)


def test_a_recording_becomes_its_windows() -> None:
    rows = np.stack([ROWS, 2 * ROWS, 3 * ROWS])
    several = windows(found(rows.sum(axis=0), windows=rows), 600.0)
    assert [(w.start_s, w.end_s) for w in several] == [(420.0, 480.0), (480.0, 540.0), (540.0, 600.0)]
    assert [unpacked(w.load, ROWS.shape)[2, 3] for w in several] == [11.0, 22.0, 33.0]
    # transitions are of all windows together, so it stays one
    steps = np.ones((LAYERS - 1, EXPERTS, EXPERTS))
    (whole,) = windows(found(rows.sum(axis=0), windows=rows, transitions=steps), 600.0)
    assert (whole.start_s, whole.end_s) == (420.0, 600.0)
    assert unpacked(whole.load, ROWS.shape)[2, 3] == 66.0
    assert whole.transitions is not None


@pytest.mark.parametrize(
    ("given_badly", "said"),
    [
        ({"recording": ""}, "printable"),
        ({"recording": "x" * 513}, "printable"),
        ({"model": "a\nb"}, "printable"),
        ({"end_s": math.nan}, "finite times"),
        ({"window_s": 0.0}, "above 0"),
    ],
)
def test_windows_without_name_or_time_are_refused(given_badly: dict[str, object], said: str) -> None:
    sound = {"recording": NAME, "model": MODEL, "end_s": 60.0, "window_s": 60.0}
    with pytest.raises(InputError, match=said):
        windows_of(found(), **{**sound, **given_badly})  # type: ignore[arg-type]


def test_a_window_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_PACKED_BYTES > 10**6
    monkeypatch.setattr("telemetry.store.expert_windows.MOST_PACKED_BYTES", 10)
    with pytest.raises(InputError, match="leave transitions out"):
        windows(found(), 60.0)


def test_what_is_written_twice_is_there_once(store: Store) -> None:
    several = [one(60.0), one(120.0, 2.0), one(180.0, 3.0)]
    for again in (several, several, several[1:], [*several, *several]):
        store.write(again)
    load = store.expert_load(NAME, window_s=180)
    assert load is not None
    assert (load.windows, load.covered_s, load.end_s) == (3, 180.0, 180.0)
    assert np.array_equal(load.load, 6 * ROWS)
    assert (load.model, load.recording, load.transitions) == (MODEL, NAME, None)


def test_a_window_measured_again_after_a_restart_is_a_repetition(store: Store) -> None:
    assert store.record([one(600.0)]) == 1
    assert store.record([one(629.0, 5.0), one(571.0, 5.0)]) == 0
    assert store.record([one(630.0, 2.0)]) == 1  # half a window later
    assert store.record(windows(found(), 629.0, name="team/other")) == 1
    assert store.record(windows(found(), 601.0, model="another")) == 1  # nothing of this model is known
    assert store.record(windows(found(), 600.0, model="third")) == 0


def test_the_last_seconds_are_read(store: Store) -> None:
    store.write([one(60.0 * k, float(k)) for k in range(1, 11)])
    for window_s, ends in ((60, [10]), (90, [10]), (91, [10, 9]), (300, [10, 9, 8, 7, 6]), (1, [10])):
        load = store.expert_load(NAME, window_s=window_s)
        assert load is not None
        assert np.array_equal(load.load, sum(ends) * ROWS)
        assert load.covered_s == 60.0 * len(ends)
    early = store.expert_load(NAME, window_s=120, until_s=299.0)
    assert early is not None
    assert (early.end_s, early.windows) == (240.0, 2)
    assert store.expert_load(NAME, window_s=120, until_s=59.0) is None
    assert store.expert_load("team/none", window_s=120) is None


def test_a_gap_is_not_covered(store: Store) -> None:
    store.write([one(60.0), one(120.0), one(600.0)])
    load = store.expert_load(NAME, window_s=600)
    assert load is not None
    assert (load.windows, load.covered_s) == (3, 180.0)


def test_windows_of_another_model_or_shape_are_not_mixed_in(store: Store) -> None:
    store.write([one(60.0), *windows(found(np.ones((2, 2))), 120.0), *windows(found(), 180.0, model="new")])
    load = store.expert_load(NAME, window_s=600)
    assert load is not None
    assert (load.model, load.load.shape, load.windows) == ("new", ROWS.shape, 1)
    load = store.expert_load(NAME, window_s=600, until_s=150.0)
    assert load is not None
    assert (load.model, load.load.shape, load.windows) == (MODEL, (2, 2), 1)


def test_transitions_count_only_where_all_windows_have_them(store: Store) -> None:
    steps = np.arange(32.0).reshape(LAYERS - 1, EXPERTS, EXPERTS)
    store.write([w for end_s in (60.0, 120.0) for w in windows(found(transitions=steps), end_s)])
    load = store.expert_load(NAME, window_s=120)
    assert load is not None
    assert load.transitions is not None
    assert np.array_equal(load.transitions, 2 * steps)
    store.write([one(180.0)])
    load = store.expert_load(NAME, window_s=180)
    assert load is not None
    assert load.transitions is None


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sums_are_those_of_plain_arithmetic(store: Store, data: st.DataObject) -> None:
    name = f"team/{time.monotonic_ns()}"
    length_s = data.draw(st.integers(1, 100))
    ends = sorted(data.draw(st.sets(st.integers(0, 20), min_size=1)))
    loads = [
        data.draw(arrays.arrays(np.float64, (2, 3), elements=st.integers(0, 2**40).map(float))) for _ in ends
    ]
    order = data.draw(st.permutations(range(len(ends))))
    for k in order:  # parts may come late and in any order
        store.write(windows(found(loads[k]), float(ends[k] * length_s), length_s, name))
    window_s = data.draw(st.integers(1, 2500))
    load = store.expert_load(name, window_s=window_s)
    assert load is not None
    last = ends[-1] * length_s
    mine = [
        k
        for k in range(len(ends))
        if k == len(ends) - 1 or ends[k] * length_s - length_s / 2 > last - window_s
    ]
    assert load.windows == len(mine)
    assert np.array_equal(load.load, np.sum([loads[k] for k in mine], axis=0))


def test_a_damaged_window_is_said(store: Store) -> None:
    store.write([one(60.0)])
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE expert_window SET load = :raw"), {"raw": b"u1x"})
    with pytest.raises(InputError, match="recording team/moe: packed counts do not fill"):
        store.expert_load(NAME, window_s=60)


def test_old_windows_go_and_those_with_transitions_sooner(store: Store) -> None:
    day_s, steps = 86_400.0, np.ones((LAYERS - 1, EXPERTS, EXPERTS))
    store.write([one(day_s * k) for k in range(10)])
    store.write([w for k in range(10) for w in windows(found(transitions=steps), day_s * k, name="t/s")])
    assert store.prune(9 * day_s) == 2 + 7
    plain, heavy = (store.expert_load(name, window_s=90 * day_s) for name in (NAME, "t/s"))
    assert plain is not None
    assert heavy is not None
    assert (plain.windows, heavy.windows) == (8, 3)
    assert store.prune(9 * day_s) == 0


def test_a_full_file_gives_up_expert_loads_first(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/history.db?most_mib=1")
    store.migrate()
    noise = np.random.default_rng(1)
    now_s = 230 * 1800.0
    for k in range(230):
        store.write(windows(found(noise.random((6, 64))), (k + 1) * 1800.0, 1800.0))
    store.write([sample(now_s - 10 * k) for k in range(100)])
    store.write([decision()])
    assert store.prune(now_s) > 0
    load = store.expert_load(NAME, window_s=7 * 86_400)
    assert load is not None
    assert 150 < load.windows < 230
    assert load.end_s == now_s
    assert sum(w.samples for w in store.traffic_windows(window_s=3600)) == 100
    assert len(store.decisions("a/b")) == 1
    assert store.prune(now_s) == 0


def test_pruning_goes_in_small_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write([one(60.0 * k) for k in range(30)])
    size = one(0.0).packed_bytes
    monkeypatch.setattr("telemetry.store.store.PRUNED_BYTES", 4 * size)
    late_s = 8 * 86_400.0
    assert [store.prune(late_s, most_batches=3) for _ in range(4)] == [12, 12, 6, 0]
    assert store.expert_load(NAME, window_s=1e6) is None


def test_a_small_file_takes_windows_for_ever_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.store.buffered.PRUNE_EVERY_S", 0.05)
    file, noise, now_s = tmp_path / "history.db", np.random.default_rng(1), [0.0]
    store = open_store(f"sqlite:///{file}?most_mib=1")
    store.migrate()
    buffered = BufferedStore(store, clock=lambda: now_s[0], first_wait_s=0.05, most_wait_s=0.1)
    buffered.start()
    buffered.put(decision())
    for _ in range(20):  # about 6 MiB
        for experts in (30, 300):
            for _ in range(10):
                now_s[0] += 1800
                for window in windows(found(noise.random((10, experts))), now_s[0], 1800.0, f"t/{experts}"):
                    buffered.put(window)
        buffered.put(sample(now_s[0]))
        assert eventually(lambda: not buffered.waiting)
        assert file.stat().st_size <= 1 << 20
    large = noise.random((10, 2000))
    buffered.put(windows(found(large), now_s[0], 1800.0, "t/large")[0])  # would never fit
    assert eventually(lambda: buffered.refused == 1 and not buffered.waiting)
    assert "a larger file" in buffered.refusal
    with pytest.raises(InputError, match="a larger file"):
        store.record(windows(found(large), now_s[0]))
    assert buffered.close(60)
    assert buffered.dropped == 0
    newest = store.expert_load("t/300", window_s=1800)
    assert newest is not None
    assert newest.end_s == now_s[0]
    assert len(store.decisions("a/b")) == 1
    assert sum(w.samples for w in store.traffic_windows(window_s=3600)) == 20


def test_an_hour_without_the_database_loses_no_window(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    buffered = BufferedStore(store, clock=lambda: 0.0, first_wait_s=0.05, most_wait_s=0.2)
    buffered.start()
    buffered.put(one(60.0))
    assert eventually(lambda: not buffered.waiting and buffered.healthy)
    postgres.stop("immediate")
    try:
        for k in range(2, 61):
            buffered.put(one(60.0 * k, float(k)))
            buffered.put(decision(f"d{k}", float(k)))
            buffered.put(sample(60.0 * k))
        assert eventually(lambda: not buffered.healthy)
        assert buffered.waiting == 3 * 59
    finally:
        postgres.start()
    assert eventually(lambda: not buffered.waiting and buffered.healthy)
    assert (buffered.dropped, buffered.refused, buffered._window_bytes) == (0, 0, 0)
    load = store.expert_load(NAME, window_s=3600)
    assert load is not None
    assert load.windows == 60
    assert len(store.decisions("a/b", most=100)) == 59
    assert buffered.close(30)
    store.close()


def test_windows_that_wait_take_no_more_memory_than_they_may(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    size = one(0.0).packed_bytes
    buffered = BufferedStore(store, clock=lambda: 0.0, most_window_bytes=10 * size + size // 2)
    buffered.put(decision())
    for k in range(15):
        buffered.put(one(60.0 * k))
    assert (buffered.waiting, buffered.dropped, buffered._window_bytes) == (11, 5, 10 * size)
    few = replace(buffered, most=12, _acts=buffered._acts.copy(), _windows=buffered._windows.copy())
    for k in range(3):
        few.put(decision(f"d{k}"))  # decisions stay longest
    assert (len(few._acts), len(few._windows), few._window_bytes) == (4, 8, 8 * size)
    buffered.start()
    assert buffered.close(30)
    load = store.expert_load(NAME, window_s=3600)
    assert load is not None
    assert (load.windows, load.end_s) == (10, 840.0)


def test_one_transaction_holds_no_more_bytes_than_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    size = one(0.0).packed_bytes
    buffered = BufferedStore(store, clock=lambda: 0.0)
    for k in range(7):
        buffered.put(one(60.0 * k))
        buffered.put(sample(float(k)))
    for most, expected in ((3 * size, 3), (size // 2, 1), (100 * size, 7)):
        monkeypatch.setattr("telemetry.store.buffered.BATCH_BYTES", most)
        batch = buffered._batch()
        assert (sum(isinstance(entry, ExpertWindow) for entry in batch), len(batch)) == (
            expected,
            expected + 7,
        )
    monkeypatch.setattr("telemetry.store.buffered.BATCH_BYTES", 1)
    buffered.start()
    assert buffered.close(30)
    load = store.expert_load(NAME, window_s=3600)
    assert load is not None
    assert load.windows == 7


def test_a_window_that_no_database_takes_holds_up_no_other(store: Store) -> None:
    buffered = BufferedStore(store, clock=lambda: 0.0)
    for window in (one(60.0), replace(one(120.0), model=None), one(180.0)):  # type: ignore[arg-type]
        buffered.put(window)
    buffered.start()
    assert eventually(lambda: buffered.refused == 1 and not buffered.waiting)
    load = store.expert_load(NAME, window_s=180)
    assert load is not None
    assert load.windows == 2
    assert buffered.close(30)
