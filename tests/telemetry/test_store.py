"""The history in SQLite and in a real PostgreSQL: rollups, entries once, migrations, and a database that goes away."""

import math
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from solver.domain.errors import InputError
from telemetry.store.buffered import BufferedStore
from telemetry.store.schema import Base
from telemetry.store.store import Decision, Entry, Level, StepDone, Store, TrafficSample, open_store
from tests.telemetry.postgres import NoServerError, Postgres, running_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Return a running server."""
    try:
        with running_server() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store."""
    if request.param == "sqlite":
        opened = open_store(f"sqlite:///{tmp_path}/history.db")
    else:
        server = request.getfixturevalue("postgres")
        opened = open_store(server.url)
        with opened.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    opened.migrate()
    yield opened
    opened.close()


def sample(t_s: float, rate: float = 1.0, service: str = "a/b") -> TrafficSample:
    return TrafficSample(service=service, t_s=t_s, rate_rps=rate, desired=3, ready=2)


def decision(digest: str = "d1", t_s: float = 5.0) -> Decision:
    return Decision(
        service="a/b",
        t_s=t_s,
        digest=digest,
        solve_id="s",
        desired={"a10g": 3},
        reasons=("first plan",),
        cost_usd_per_h=1.25,
        lower_bound_usd_per_h=1.0,
        gap_ratio=0.2,
    )


def step(number: int = 0, outcome: str = "written") -> StepDone:
    return StepDone(
        service="a/b",
        t_s=6.0,
        digest="d1",
        step=number,
        outcome=outcome,
        target="Deployment chat",
        from_replicas=0,
        to_replicas=3,
        epoch=1,
    )


def test_the_tables_are_those_of_the_models(store: Store) -> None:
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    store.migrate()  # a second time changes nothing


def test_processes_may_migrate_at_once(store: Store) -> None:
    with store.engine.begin() as connection:
        for name in ("traffic", "decision", "step", "alembic_version"):
            connection.execute(text(f"DROP TABLE {name}"))
    url = store.engine.url.render_as_string(hide_password=False)
    code = f"from telemetry.store.store import open_store; open_store({url!r}).migrate()"
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)
    ]
    assert [(one.wait(60), one.communicate()[1]) for one in running] == [(0, b"")] * 3
    store.write([sample(1.0)])


def test_what_is_written_twice_is_there_once(store: Store) -> None:
    entries: list[Entry] = [
        sample(3.0, 2.0),
        sample(4.0, 4.0),
        decision(),
        step(),
        step(0, "observed"),
        step(1),
    ]
    store.write(entries)
    store.write(entries)
    (window,) = store.traffic_windows(window_s=10)
    assert (window.t_s, window.rate_rps, window.rate_max_rps, window.samples) == (0.0, 3.0, 4.0, 2)
    assert store.decisions("a/b") == (decision(),)
    assert len(store.steps("a/b")) == 3


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rates=st.lists(st.floats(0, 1000), min_size=1, max_size=60),
    gaps=st.lists(st.floats(0.5, 40), min_size=60, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_a_rollup_does_not_depend_on_how_samples_are_split(
    store: Store, rates: list[float], gaps: list[float], cuts: list[int]
) -> None:
    service = f"s/{time.monotonic_ns()}"
    t_s, samples = 1000.0, []
    for rate, gap in zip(rates, gaps, strict=False):
        t_s += gap
        samples.append(sample(t_s, rate, service))
    bounds = sorted({0, len(samples), *(cut for cut in cuts if cut < len(samples))})
    for first, last in pairwise(bounds):
        store.write(samples[first:last])
    for level in store.levels:
        windows = store.traffic_windows(window_s=level.window_s, service=service)
        assert sum(window.samples for window in windows) == len(samples)
        for window in windows:
            own = [s.rate_rps for s in samples if window.t_s <= s.t_s < window.t_s + level.window_s]
            assert window.samples == len(own)
            assert math.isclose(window.rate_rps, sum(own) / len(own), rel_tol=1e-9, abs_tol=1e-9)
            assert window.rate_max_rps == max(own)


def test_old_rows_go_and_young_ones_stay(store: Store) -> None:
    short = Store(
        engine=store.engine, levels=(Level(window_s=10, kept_s=100), Level(window_s=60, kept_s=1000))
    )
    short.write([sample(float(t)) for t in range(0, 2000, 5)])
    assert short.prune(2000.0) > 0
    assert min(w.t_s for w in short.traffic_windows(window_s=10)) == 1900.0
    assert min(w.t_s for w in short.traffic_windows(window_s=60)) == 1020.0
    assert short.prune(2000.0) == 0


def test_a_store_that_cannot_be_written_holds_nobody_up(tmp_path: Path) -> None:
    buffered = BufferedStore(
        open_store(f"sqlite:///{tmp_path}/no/such/folder/history.db"), most=10, clock=lambda: 0.0
    )
    buffered.start()
    for second in range(25):
        buffered.put(sample(float(second)))
    assert buffered.waiting == 10
    assert buffered.dropped == 15
    deadline = time.monotonic() + 10
    while buffered.healthy and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "unable to open" in buffered.reason
    (tmp_path / "no" / "such" / "folder").mkdir(parents=True)
    while not buffered.healthy and time.monotonic() < deadline + 10:
        time.sleep(0.05)
    assert buffered.close(10)
    again = open_store(f"sqlite:///{tmp_path}/no/such/folder/history.db")
    assert sum(w.samples for w in again.traffic_windows(window_s=10)) == 10
    again.close()


def test_a_server_that_dies_gets_everything_once_when_it_is_back(postgres: Postgres, tmp_path: Path) -> None:
    del tmp_path
    service = f"killed/{time.monotonic_ns()}"
    buffered = BufferedStore(open_store(postgres.url), clock=lambda: 0.0)
    buffered.start()
    for second in range(50):
        buffered.put(sample(float(second), 2.0, service))
    postgres.stop("immediate")
    for second in range(50, 100):
        buffered.put(sample(float(second), 2.0, service))
    deadline = time.monotonic() + 20
    while buffered.healthy and time.monotonic() < deadline:
        time.sleep(0.02)
        buffered.put(sample(float(200), 2.0, service + "/poke"))
    assert not buffered.healthy
    postgres.start()
    assert eventually_written(buffered)
    again = open_store(postgres.url)
    windows = again.traffic_windows(window_s=10, service=service)
    assert sum(window.samples for window in windows) == 100
    assert all(window.rate_rps == pytest.approx(2.0) for window in windows)
    again.close()
    buffered.close()


def eventually_written(buffered: BufferedStore) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if buffered.healthy and not buffered.waiting:
            return True
        time.sleep(0.05)
    return False


def test_a_database_url_is_refused_in_one_line_without_its_password() -> None:
    for url in ("nonsense", "mysql://u:secret@h/d", "postgresql+nope://u:secret@h/d"):
        with pytest.raises(InputError) as refused:
            open_store(url)
        assert "secret" not in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "sqlite:///" in str(refused.value)


def test_sqlite_keeps_its_file_whole_for_readers(tmp_path: Path) -> None:
    opened = open_store(f"sqlite:///{tmp_path}/history.db")
    opened.migrate()
    opened.write([sample(1.0)])
    with sqlite3.connect(tmp_path / "history.db") as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert reader.execute("SELECT count(*) FROM traffic").fetchone() == (3,)
    reader.close()
    opened.close()
