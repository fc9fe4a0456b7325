"""The tables come from migrations: from nothing, from every earlier revision, by several at once, out of the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from telemetry.store.connections import writing
from telemetry.store.migrations.upgrade import configuration, upgrade
from telemetry.store.schema import Base
from telemetry.store.store import Store
from tests.telemetry.history_entries import decision, sample, step

ROOT = Path(__file__).parents[2]
REVISIONS = [script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()][
    ::-1
]
SOME_ROWS = """
INSERT INTO traffic (level_s, service, start_s, samples, rate_mean_rps, rate_max_rps, desired, ready, last_s)
VALUES (10, 'a/b', 0, 1, 2.0, 2.0, 3, 2, 3.0);
INSERT INTO decision
(t_s, service, digest, solve_id, cost_usd_per_h, lower_bound_usd_per_h, gap_ratio, desired, reasons)
VALUES (5.0, 'a/b', 'd1', 's', 1.25, 1.0, 0.2, '{"a10g": 3}', '["first plan"]');
INSERT INTO step (t_s, service, digest, step, outcome, target, from_replicas, to_replicas, epoch)
VALUES (6.0, 'a/b', 'd1', 0, 'written', 'Deployment chat', 0, 3, 1)
"""
"""What the first revision can hold: later ones may only add to it."""


def differences(store: Store) -> list[object]:
    with store.engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))


def test_revisions_are_numbered_upwards() -> None:
    assert REVISIONS == sorted(REVISIONS) == [f"{k + 1:04}" for k in range(len(REVISIONS))]


def test_the_tables_are_those_of_the_models(empty: Store) -> None:
    empty.migrate()
    assert differences(empty) == []
    empty.migrate()  # a second time changes nothing
    assert differences(empty) == []


@pytest.mark.parametrize("start", REVISIONS)
def test_rows_of_every_revision_are_still_there_afterwards(empty: Store, start: str) -> None:
    upgrade(empty.engine, to=start)
    with empty.engine.begin() as connection:
        for row in SOME_ROWS.split(";"):
            connection.exec_driver_sql(row)
    assert (differences(empty) == []) == (start == REVISIONS[-1])
    empty.migrate()
    assert differences(empty) == []
    empty.write([sample(3.0), sample(4.0, 4.0), decision(), step()])  # all but one are repetitions
    (window,) = empty.traffic_windows(window_s=10)
    assert (window.samples, window.rate_rps) == (2, 3.0)
    assert [(d.digest, d.status, d.desired) for d in empty.decisions("a/b")] == [("d1", None, {"a10g": 3})]
    assert len(empty.steps("a/b")) == 1


def test_the_way_down_leads_up_again(store: Store) -> None:
    for target in [*reversed(REVISIONS[:-1]), "base"]:
        config = configuration()
        with writing(store.engine) as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, target)
    with store.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_heads() == ()
    store.migrate()
    assert differences(store) == []


def test_a_version_that_was_rolled_back_still_writes(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE traffic ADD COLUMN of_the_future FLOAT"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.migrate()
    store.write([sample(1.0), decision(), step()])
    with store.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"
    assert len(store.decisions("a/b")) == len(store.steps("a/b")) == 1


def test_processes_may_migrate_and_write_at_once(empty: Store) -> None:
    url = empty.engine.url.render_as_string(hide_password=False)
    code = (
        "import os, time, traceback\n"
        "from telemetry.store.store import open_store\n"
        "from tests.telemetry.history_entries import sample\n"
        "def migrate_and_write(number):\n"
        f"    store = open_store({url!r})\n"
        "    time.sleep(max(0.0, start_s - time.time()))\n"
        "    store.migrate()\n"
        "    store.write([sample(10.0 * (10 * number + k)) for k in range(10)])\n"
        "start_s = time.time() + 0.5\n"  # so that they really meet
        "for number in range(6):\n"
        "    if not os.fork():\n"
        "        try:\n"
        "            migrate_and_write(number)\n"
        "        except BaseException:\n"
        "            traceback.print_exc()\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(6)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.stderr, done.stdout) == ("", "[0, 0, 0, 0, 0, 0]\n")
    assert differences(empty) == []
    (hour,) = empty.traffic_windows(window_s=3600)
    assert hour.samples == 60


def test_the_wheel_can_migrate(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "lib")
    code = (
        "import telemetry.store.store as store\n"
        f"opened = store.open_store('sqlite:///{tmp_path}/history.db')\n"
        "opened.migrate()\n"
        "print(store.__file__, opened.decisions('a/b'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(tmp_path / "lib" / "telemetry" / "store" / "store.py"), "()"]
