"""The history in SQLite and in a real PostgreSQL: rollups, entries once, what is asked of it, URLs."""

import io
import math
import sqlite3
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from telemetry.store.store import Entry, Level, Store, TrafficSample, open_store, write_rates
from tests.telemetry.history_entries import decision, sample, step

NOT_A_FIXTURE_OF_EACH_EXAMPLE = [HealthCheck.function_scoped_fixture]


def test_what_is_written_twice_is_there_once(store: Store) -> None:
    entries: list[Entry] = [
        sample(3.0, 2.0),
        sample(4.0, 4.0),
        decision(),
        step(),
        step(0, "observed"),
        step(1),
    ]
    for again in (entries, entries, entries[1:], [*entries, *entries]):
        store.write(again)
    for level in store.levels:
        (window,) = store.traffic_windows(window_s=level.window_s)
        assert (window.t_s, window.rate_rps, window.rate_max_rps, window.samples) == (0.0, 3.0, 4.0, 2)
    assert store.decisions("a/b") == (decision(),)
    assert sorted(store.steps("a/b"), key=lambda s: (s.step, s.outcome)) == [
        step(0, "observed"),
        step(),
        step(1),
    ]


def test_the_same_plan_solved_again_is_another_decision(store: Store) -> None:
    store.write([decision("d1", 5.0), replace(decision("d1", 7.0), solve_id="later"), decision("d2", 6.0)])
    store.write([decision("d9", 9.0, "other/one")])
    assert [(d.digest, d.solve_id, d.t_s) for d in store.decisions("a/b")] == [
        ("d1", "later", 7.0),
        ("d2", "s", 6.0),
        ("d1", "s", 5.0),
    ]
    assert [d.t_s for d in store.decisions("a/b", most=1)] == [7.0]
    assert store.decisions("a/c") == ()


@settings(max_examples=15, deadline=None, suppress_health_check=NOT_A_FIXTURE_OF_EACH_EXAMPLE)
@given(data=st.data())
def test_a_rollup_does_not_depend_on_how_samples_are_split(store: Store, data: st.DataObject) -> None:
    service = f"s/{time.monotonic_ns()}"
    t_s, samples = 1000.0, []
    maybe = st.none() | st.floats(0, 1e6)
    for _ in range(data.draw(st.integers(1, 60))):
        t_s += data.draw(st.floats(0.5, 400))
        samples.append(
            TrafficSample(
                service=service,
                t_s=t_s,
                rate_rps=data.draw(st.floats(0, 1e6)),
                desired=data.draw(st.integers(0, 99)),
                ready=0,
                running=data.draw(maybe),
                waiting=data.draw(maybe),
                ttft_p99_s=data.draw(maybe),
            )
        )
    cuts = data.draw(st.lists(st.integers(1, len(samples)), max_size=6))
    parts = [samples[a:b] for a, b in pairwise(sorted({0, len(samples), *cuts}))]
    for part in parts:
        store.write(part)
    for part in data.draw(st.lists(st.sampled_from(parts), max_size=2)):  # tried again
        store.write(part)
    for window_s in (10, 60, 120, 600, 3600, 7200):
        assert_rolled_up(store, service, window_s, samples)


@settings(max_examples=8, deadline=None, suppress_health_check=NOT_A_FIXTURE_OF_EACH_EXAMPLE)
@given(order=st.permutations(range(12)), per_part=st.integers(1, 5))
def test_parts_that_come_late_are_counted_too(store: Store, order: list[int], per_part: int) -> None:
    service = f"s/{time.monotonic_ns()}"
    samples = [
        replace(sample(1000.0 + 10 * k, float(k * k), service), desired=k, ready=k // 2)
        for k in range(12 * per_part)
    ]
    parts = [samples[k * per_part : (k + 1) * per_part] for k in range(12)]
    for k in order:
        store.write(parts[k])
    for window_s in (10, 60, 3600):
        assert_rolled_up(store, service, window_s, samples)


def assert_rolled_up(store: Store, service: str, window_s: int, samples: list[TrafficSample]) -> None:
    """Compare windows with what plain arithmetic makes of all samples."""
    windows = store.traffic_windows(window_s=window_s, service=service)
    assert [w.t_s for w in windows] == sorted({s.t_s // window_s * window_s for s in samples})
    for window in windows:
        own = [s for s in samples if window.t_s <= s.t_s < window.t_s + window_s]
        assert window.samples == len(own)
        rates = [s.rate_rps for s in own]
        assert math.isclose(window.rate_rps, math.fsum(rates) / len(own), rel_tol=1e-9, abs_tol=1e-9)
        assert window.rate_max_rps == max(rates)
        assert (window.desired, window.ready) == (own[-1].desired, own[-1].ready)
        assert window.running_max == max((s.running for s in own if s.running is not None), default=None)
        assert window.waiting_max == max((s.waiting for s in own if s.waiting is not None), default=None)
        ttfts = [s.ttft_p99_s for s in own if s.ttft_p99_s is not None]
        assert window.ttft_p99_max_s == max(ttfts, default=None)


def test_two_writers_lose_nothing_of_each_other(store: Store) -> None:
    failed: list[Exception] = []

    def write(offset: int) -> None:
        own = open_store(store.engine.url.render_as_string(hide_password=False))
        try:
            for k in range(40):
                own.write([sample(10.0 * (2 * k + offset), 1.0 + offset), decision(f"d{k}")])
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)
        own.close()

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    (hour,) = store.traffic_windows(window_s=3600)
    assert hour.samples == 80
    assert math.isclose(hour.rate_rps, 1.5)
    assert len(store.decisions("a/b", most=100)) == 40


def test_old_rows_go_and_young_ones_stay(store: Store) -> None:
    short = replace(
        store,
        levels=(Level(window_s=10, kept_s=100), Level(window_s=60, kept_s=1000)),
        decisions_kept_s=500,
    )
    short.write([sample(float(t)) for t in range(0, 2000, 5)])
    short.write([decision(f"d{t}", float(t)) for t in range(0, 2000, 100)])
    short.write([replace(step(t), t_s=float(t)) for t in range(0, 2000, 100)])
    assert short.prune(2000.0) == 190 + 17 + 15 + 15
    assert min(w.t_s for w in short.traffic_windows(window_s=10)) == 1900.0
    assert min(w.t_s for w in short.traffic_windows(window_s=60)) == 1020.0
    assert min(d.t_s for d in short.decisions("a/b", most=100)) == 1500.0
    assert min(s.t_s for s in short.steps("a/b")) == 1500.0
    assert short.prune(2000.0) == 0


def test_pruning_goes_in_small_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.store.store.PRUNED_AT_ONCE", 7)
    store.write([sample(10.0 * k) for k in range(30)])
    late_s = 2 * 86_400.0
    assert [store.prune(late_s, most_batches=2) for _ in range(4)] == [14, 14, 2, 0]
    assert store.traffic_windows(window_s=10) == ()
    assert len(store.traffic_windows(window_s=60)) == 5


def test_windows_are_those_asked_for(store: Store) -> None:
    store.write([sample(float(t), float(t)) for t in range(0, 7200, 60)])
    store.write([sample(30.0, 5.0, "other/one")])
    own = store.traffic_windows(window_s=600, since_s=600.0, until_s=1800.0, service="a/b")
    assert [(w.t_s, w.rate_rps, w.samples) for w in own] == [(600.0, 870.0, 10), (1200.0, 1470.0, 10)]
    assert {w.service for w in store.traffic_windows(window_s=3600)} == {"a/b", "other/one"}
    with pytest.raises(InputError, match="a multiple of one of 10, 60, 3600"):
        store.traffic_windows(window_s=15)


def test_windows_are_written_as_the_file_that_forecasts_read(store: Store) -> None:
    store.write([sample(1_700_000_100.0, 0.1), sample(1_700_000_700.0, 1 / 3)])
    out = io.StringIO()
    write_rates(store.traffic_windows(window_s=600), out)
    assert out.getvalue().splitlines() == [
        "model,t_s,rate_rps",
        "a/b,1699999800,0.1",
        "a/b,1700000400,0.333333333",
    ]


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
def test_a_rate_that_is_none_spoils_no_window(store: Store, rate: float) -> None:
    with pytest.raises(InputError, match=r"a/b at 4\.0 s"):
        store.write([decision(), sample(3.0), sample(4.0, rate)])
    assert store.traffic_windows(window_s=10) == ()
    assert store.decisions("a/b") == ()


def test_extra_figures_that_are_none_are_left_out(store: Store) -> None:
    store.write([replace(sample(3.0), running=math.nan, ttft_p99_s=math.inf, waiting=1.0)])
    store.write([replace(decision(), cost_usd_per_h=math.nan, gap_ratio=math.inf)])
    (window,) = store.traffic_windows(window_s=10)
    assert (window.running_max, window.waiting_max, window.ttft_p99_max_s) == (None, 1.0, None)
    (kept,) = store.decisions("a/b")
    assert (kept.cost_usd_per_h, kept.gap_ratio, kept.lower_bound_usd_per_h) == (None, None, 1.0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "not a URL"),
        ("mysql://u:secret@h/d", "mysql is not supported"),
        ("postgresql+nope://u:secret@h/d", "postgresql+nope is not supported"),
        ("postgresql+asyncpg://u:secret@h/d", "postgresql+asyncpg is not supported"),
        ("postgresql://u:a/secret@h/d:x", None),
        ("postgresql://h:secret/d", "the port is not a number"),
        ("oracle://h/d?password=secret", "oracle is not supported"),
    ],
)
def test_a_database_url_is_refused_in_one_line_without_its_password(url: str, said: str | None) -> None:
    try:
        shown = str(open_store(url).engine.url)
    except InputError as error:
        shown = str(error)
        assert said in shown if said else True
        assert "host" in shown
    else:
        assert said is None
    assert "secret" not in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:secret@h/d",
        "postgresql://u:secret@h/d",
        "postgresql+psycopg://u:secret@h/d",
        "postgresql://u@h/d?password=secret",
    ],
)
def test_short_names_of_postgresql_are_understood(url: str) -> None:
    opened = open_store(url)
    assert opened.engine.url.render_as_string(hide_password=False) == "postgresql+psycopg://u:secret@h/d"
    assert "secret" not in str(opened.engine.url)


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "x", "²", "9999999999", "1&most_mib=2"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(InputError, match="whole MiB"):
        open_store(f"sqlite:////data/history.db?most_mib={size}")


def test_levels_must_fit_into_each_other() -> None:
    for bad in ((60, 90), (60, 10), (60, 60), (), (0,)):
        levels = [Level(window_s=window_s, kept_s=100) for window_s in bad]
        with pytest.raises(InputError, match=r"at least one|whole multiple"):
            open_store("sqlite://", levels=levels)


def test_sqlite_keeps_its_file_whole_for_readers(tmp_path: Path) -> None:
    opened = open_store(f"sqlite:///{tmp_path}/history.db")
    opened.migrate()
    with sqlite3.connect(tmp_path / "history.db") as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM traffic").fetchone() == (0,)
        opened.write([sample(1.0)])  # does not wait for who reads
        assert reader.execute("SELECT count(*) FROM traffic").fetchone() == (0,)
        reader.rollback()
        assert reader.execute("SELECT count(*) FROM traffic").fetchone() == (3,)
    reader.close()
    opened.close()
