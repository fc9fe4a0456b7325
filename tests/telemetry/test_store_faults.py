"""A database that is missing, killed, frozen, full, read-only or emptied: control never notices, history comes back."""

import json
import math
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event, text

from telemetry.store.buffered import BufferedStore
from telemetry.store.store import Entry, RateWindow, Store, open_store
from tests.telemetry.history_entries import decision, emptied, eventually, sample, step
from tests.telemetry.postgres import Postgres


@contextmanager
def writer(
    store: Store, *, most: int = 10_000, answer_within_s: float = 60.0, now_s: float = 0.0
) -> Iterator[BufferedStore]:
    """Start a buffered store that is impatient, and end it."""
    buffered = BufferedStore(
        store,
        most=most,
        clock=lambda: now_s,
        first_wait_s=0.05,
        most_wait_s=0.2,
        answer_within_s=answer_within_s,
    )
    buffered.start()
    try:
        yield buffered
    finally:
        buffered.close(30)


def written(buffered: BufferedStore) -> bool:
    return buffered.healthy and not buffered.waiting


def hours(store: Store, service: str = "a/b") -> list[tuple[float, int]]:
    return [(w.t_s, w.samples) for w in store.traffic_windows(window_s=3600, service=service)]


def test_entries_are_written_as_they_come(store: Store) -> None:
    with writer(store) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: hours(store) == [(0.0, 1)])
        for second in range(2, 1300):  # more than one batch
            buffered.put(sample(float(second)))
        buffered.put(decision())
        buffered.put(step())
    assert (buffered.waiting, buffered.dropped, buffered.refused, buffered.reason) == (0, 0, 0, "")
    assert hours(store) == [(0.0, 1299)]
    assert len(store.decisions("a/b")) == len(store.steps("a/b")) == 1


def test_entries_of_many_threads_are_all_written(store: Store) -> None:
    with writer(store) as buffered:

        def put(number: int) -> None:
            for k in range(300):
                buffered.put(sample(float(k), 1.0, f"a/{number}"))

        threads = [threading.Thread(target=put, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [hours(store, f"a/{n}") for n in range(4)] == [[(0.0, 300)]] * 4


def test_a_folder_that_is_missing_holds_nobody_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/no/such/folder/history.db"
    with writer(open_store(url), most=10) as buffered:
        assert eventually(lambda: "unable to open" in buffered.reason)
        for second in range(25):
            buffered.put(sample(float(second)))
        assert (buffered.waiting, buffered.dropped) == (10, 15)
        (tmp_path / "no" / "such" / "folder").mkdir(parents=True)
        assert eventually(lambda: written(buffered))
    assert hours(open_store(url)) == [(0.0, 10)]


def test_an_hour_without_the_database_costs_old_traffic_and_no_decision(
    postgres: Postgres,
) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store, most=1000) as buffered:
        buffered.put(sample(-15.0, 1.0, "a/0"))
        assert eventually(lambda: written(buffered))
        postgres.stop("immediate")
        try:
            for t_s in range(0, 3600, 15):  # 5 services: 1,200 samples, a plan each 6 minutes: 20 entries
                for number in range(5):
                    buffered.put(sample(float(t_s), 2.0, f"a/{number}"))
                if t_s % 360 == 0:
                    buffered.put(decision(f"d{t_s}", float(t_s)))
                    buffered.put(replace(step(), digest=f"d{t_s}", t_s=float(t_s)))
            assert eventually(lambda: not buffered.healthy)
            assert "\n" not in buffered.reason
            assert (buffered.waiting, buffered.dropped) == (1000, 220)
        finally:
            postgres.start()
        assert eventually(lambda: written(buffered))
    assert len(store.decisions("a/b")) == len(store.steps("a/b")) == 10
    windows = store.traffic_windows(window_s=3600, since_s=0.0)
    assert [w.samples for w in windows] == [196] * 5  # the last 49 minutes of each
    assert min(w.t_s for w in store.traffic_windows(window_s=10, since_s=0.0)) == 660.0
    store.close()


@pytest.mark.parametrize("how", ["immediate", "fast"])
def test_a_server_killed_while_it_is_written_to_has_everything_once(postgres: Postgres, how: str) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store) as buffered:
        second = 0
        for _ in range(3):
            lasts_s = time.monotonic() + 0.4
            while time.monotonic() < lasts_s:
                buffered.put(sample(float(second), 2.0))
                buffered.put(decision(f"d{second}", float(second)))
                second += 1
                time.sleep(0.002)
            postgres.stop(how)
            try:
                buffered.put(sample(float(second), 2.0))
                second += 1
                assert eventually(lambda: not buffered.healthy)
            finally:
                postgres.start()
            assert eventually(lambda: written(buffered))
    windows = store.traffic_windows(window_s=3600)
    assert sum(window.samples for window in windows) == second
    assert all(math.isclose(window.rate_rps, 2.0) for window in windows)
    assert len(store.decisions("a/b", most=10_000)) == second - 3
    store.close()


def family(postgres: Postgres) -> list[int]:
    """Return the server's processes."""
    head = int((postgres.folder / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0])
    found = [head]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(stat[1]) == head:
            found.append(int(path.parent.name))
    return found


def test_a_server_that_freezes_is_seen(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store, answer_within_s=0.3) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: written(buffered))
        frozen = family(postgres)
        for process in frozen:
            os.kill(process, signal.SIGSTOP)
        try:
            buffered.put(sample(2.0))
            assert eventually(lambda: not buffered.healthy)
            assert buffered.reason == "the database has not answered for 0.3 s"
            assert buffered.waiting == 1
        finally:
            for process in frozen:
                os.kill(process, signal.SIGCONT)
        assert eventually(lambda: written(buffered))
    assert hours(store) == [(0.0, 2)]
    store.close()


def test_closing_does_not_wait_for_a_frozen_server(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    buffered = BufferedStore(store, clock=lambda: 0.0)
    buffered.start()
    buffered.put(sample(1.0))
    assert eventually(lambda: written(buffered))
    frozen = family(postgres)
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    try:
        buffered.put(sample(2.0))
        assert not buffered.close(0.2)
        assert buffered.waiting == 1
    finally:
        for process in frozen:
            os.kill(process, signal.SIGCONT)
    assert buffered._thread is not None
    buffered._thread.join(60)
    assert hours(store) == [(0.0, 2)]
    store.close()


def test_closing_tries_once_more(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    buffered = BufferedStore(
        open_store(f"sqlite:///{folder}/history.db"), clock=lambda: 0.0, first_wait_s=3600.0
    )
    buffered.start()
    buffered.put(sample(1.0))
    assert eventually(lambda: not buffered.healthy)
    folder.mkdir()
    assert buffered.close(60)
    assert hours(buffered.store) == [(0.0, 1)]


def test_closing_a_lost_database_says_that_entries_are_lost(tmp_path: Path) -> None:
    buffered = BufferedStore(open_store(f"sqlite:///{tmp_path}/never/history.db"), clock=lambda: 0.0)
    buffered.start()
    buffered.put(sample(1.0))
    assert not buffered.close(60)
    assert buffered.waiting == 1


def test_a_server_that_became_read_only_is_waited_for(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: written(buffered))
        set_read_only(store, on=True)
        try:
            buffered.put(sample(2.0))
            buffered.put(decision())
            assert eventually(lambda: "read-only" in buffered.reason)
        finally:
            set_read_only(store, on=False)
        assert eventually(lambda: written(buffered))
        assert buffered.refused == buffered.dropped == 0
    assert hours(store) == [(0.0, 2)]
    store.close()


def set_read_only(store: Store, *, on: bool) -> None:
    with store.engine.connect() as connection:
        own = connection.execution_options(isolation_level="AUTOCOMMIT")
        own.execute(text("SET default_transaction_read_only = off"))
        own.execute(
            text(f"ALTER DATABASE postgres SET default_transaction_read_only = {'on' if on else 'off'}")
        )
    store.engine.dispose()


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    pages = [10_000]
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    event.listen(store.engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={pages[0]}"))
    with writer(store) as buffered:
        buffered.put(decision())
        assert eventually(lambda: written(buffered))
        pages[0] = 1  # SQLite takes what there is already, and no more
        for number in range(400):
            buffered.put(decision(f"later-{number}"))
        assert eventually(lambda: "full" in buffered.reason)
        pages[0] = 10_000
        assert eventually(lambda: written(buffered))
    assert len(store.decisions("a/b", most=1000)) == 401


def test_a_file_stays_within_its_size_and_keeps_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.store.buffered.PRUNE_EVERY_S", 0.05)
    file = tmp_path / "history.db"
    store = open_store(f"sqlite:///{file}?most_mib=1")
    store.migrate()
    now_s = [0.0]
    buffered = BufferedStore(store, clock=lambda: now_s[0], first_wait_s=0.05, most_wait_s=0.1)
    buffered.start()
    for _ in range(20):  # 16,000 samples, about 2 MiB
        buffered.put(decision(f"d{now_s[0]}", now_s[0]))
        for _ in range(80):
            now_s[0] += 15
            for number in range(10):
                buffered.put(sample(now_s[0], 1.0, f"a/{number}"))
        assert eventually(lambda: not buffered.waiting)
        assert file.stat().st_size <= 1 << 20
    assert buffered.close(60)
    assert (buffered.dropped, buffered.refused) == (0, 0)
    assert len(store.decisions("a/b", most=100)) == 20
    kept = store.traffic_windows(window_s=10)
    assert kept[-1].t_s == now_s[0]
    assert kept[0].t_s > 0
    assert sum(w.samples for w in store.traffic_windows(window_s=3600)) == 16_000


def test_a_full_file_gives_up_decisions_last(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/history.db?most_mib=1")
    store.migrate()
    apart_s = 86_400.0 / 10
    for first in range(0, 3900, 300):
        several = (decision(f"d{k}", k * apart_s) for k in range(first, first + 300))
        store.write([replace(one, reasons=("why" * 35,)) for one in several])
    now_s = 3900 * apart_s
    store.write([sample(now_s - k) for k in range(100)])
    assert store.prune(now_s) > 0
    left = store.decisions("a/b", most=10_000)
    assert len(left) == 2000  # half of the time that they are kept
    assert (left[0].digest, left[-1].digest) == ("d3899", "d1900")
    assert store.prune(now_s) == 0


def test_a_file_that_cannot_be_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    store = open_store(f"sqlite:///{file}")
    store.migrate()
    reading = open_store(f"sqlite:///file:{file}?mode=ro&uri=true")
    assert hours(reading) == []
    with writer(reading) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: "readonly" in buffered.reason)
        assert buffered.waiting == 1
    assert hours(store) == []


@pytest.mark.parametrize("what", ["removed", "emptied", "overwritten"])
def test_a_file_that_was_replaced_is_made_anew(tmp_path: Path, what: str) -> None:
    file = tmp_path / "history.db"
    with writer(open_store(f"sqlite:///{file}")) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: written(buffered))
        assert eventually(lambda: not file.with_name("history.db-wal").exists())
        if what == "removed":
            file.unlink()
        elif what == "emptied":
            file.write_bytes(b"")
        else:
            file.write_bytes(b"not a database at all " * 1000)
            buffered.put(sample(5000.0))
            assert eventually(lambda: "not a database" in buffered.reason)
            file.unlink()
        buffered.put(sample(5001.0))
        assert eventually(lambda: written(buffered))
        assert buffered.refused == 0
    assert hours(open_store(f"sqlite:///{file}"))[-1][0] == 3600.0


def test_tables_that_were_taken_away_are_made_anew(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: written(buffered))
        emptied(store)
        buffered.put(sample(2.0))
        assert eventually(lambda: written(buffered) and hours(store) == [(0.0, 1)])
    store.close()


def test_another_process_that_holds_the_file_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.store.connections.BUSY_S", 0.1)
    store = open_store(f"sqlite:///{tmp_path}/history.db")
    with writer(store) as buffered:
        buffered.put(sample(1.0))
        assert eventually(lambda: written(buffered))
        other = sqlite3.connect(tmp_path / "history.db")
        other.execute("BEGIN IMMEDIATE")
        buffered.put(sample(2.0))
        assert eventually(lambda: "locked" in buffered.reason)
        other.rollback()
        other.close()
        assert eventually(lambda: written(buffered))
    assert hours(store) == [(0.0, 2)]


POISON: dict[str, Entry] = {
    "not a number": sample(2.0, math.nan),
    "half a character": sample(2.0, 1.0, "a/\ud800"),
    "no text": replace(decision("bad"), service=None),  # type: ignore[arg-type]
    "a number too large": replace(step(7), to_replicas=2**70),
    "not for JSON": replace(decision("bad"), desired={"a": object()}),  # type: ignore[dict-item]
}


def test_another_process_that_begins_a_new_file_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # where this is held, SQLite refuses another journal without waiting
    free = threading.Timer(0.3, other.close)
    free.start()
    began_s = time.monotonic()
    with open_store(f"sqlite:///{file}").engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert time.monotonic() - began_s > 0.2
    free.join()


@pytest.mark.parametrize("what", POISON)
def test_an_entry_that_can_never_be_written_holds_up_no_other(store: Store, what: str) -> None:
    with writer(store) as buffered:
        for second in range(40):
            buffered.put(sample(float(second)))
            buffered.put(decision(f"d{second}", float(second)))
            if second == 20:
                buffered.put(POISON[what])
        assert eventually(lambda: written(buffered))
        assert (buffered.refused, buffered.dropped) == (1, 0)
        assert buffered.refusal
        assert "\n" not in buffered.refusal
    assert hours(store) == [(0.0, 40)]
    assert len(store.decisions("a/b", most=100)) == 40


def test_what_only_postgresql_refuses_holds_up_no_other(postgres: Postgres) -> None:
    store = emptied(open_store(postgres.url))
    with writer(store) as buffered:
        for digest in ("d1", "x" * 129, "d\x002", "d3"):
            buffered.put(decision(digest))
        assert eventually(lambda: written(buffered))
        assert buffered.refused == 2
    assert {d.digest for d in store.decisions("a/b")} == {"d1", "d3"}
    store.close()


def test_old_rows_are_pruned_by_the_writer(store: Store) -> None:
    store.write([sample(1.0), sample(3 * 86_400.0)])
    with writer(store, now_s=3 * 86_400.0 + 60) as buffered:
        starts: Callable[[], list[float]] = lambda: [w.t_s for w in store.traffic_windows(window_s=10)]  # noqa: E731
        assert eventually(lambda: starts() == [3 * 86_400.0])
        assert buffered.healthy
    kept: list[RateWindow] = list(store.traffic_windows(window_s=60))
    assert [w.t_s for w in kept] == [0.0, 3 * 86_400.0]


def test_no_password_is_told_when_a_server_refuses_it(postgres: Postgres) -> None:
    url = postgres.url.replace("history@", "history:hunter2@").replace("/postgres", "/hunter2")
    with writer(open_store(url)) as buffered:
        assert eventually(lambda: not buffered.healthy)
        said = json.dumps(buffered.reason)
    assert "does not exist" in said
    assert "hunter2" not in said
