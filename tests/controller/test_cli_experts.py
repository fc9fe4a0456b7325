"""``ballast experts record`` as its users call it: written once, read back, everything wrong in one line."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.store.store import Store, open_store
from tests import commands
from tests.telemetry.postgres import NoServerError, running_server

ROWS = [[4.0, 3, 2, 1], [1.0, 2, 3, 4], [0.0, 5, 5, 0]]
NAME = "team-a/moe"
ENDED_S = 1_795_273_200.0


def ballast(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.ballast("experts", "record", *words, stdin=stdin, environment=environment)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/history.db"


def wish(url: str, **more: str) -> list[str]:
    options = {"recording": NAME, "model": "moe", "database-url": url, "ended-at": f"{ENDED_S:.0f}", **more}
    return [f"--{name}={value}" for name, value in options.items() if value]


def file(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "load.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


def loads(url: str, window_s: float = 300.0) -> Any:
    store: Store = open_store(url)
    found = store.expert_load(NAME, window_s=window_s)
    store.close()
    return found


def test_a_window_is_written_once(tmp_path: Path, url: str) -> None:
    path = file(tmp_path, {"load": ROWS, "model": "moe"})
    done = ballast(path, *wish(url))
    assert (done.returncode, done.stderr) == (0, "")
    said = f"{NAME}: 1 of 1 windows written; 3 layers of 4 experts, up to 2026-11-21T15:00:00Z\n"
    assert done.stdout == said
    again = ballast(path, *wish(url), "-o", "json")
    answer = json.loads(again.stdout)
    assert answer["schema"] == "expert-recording/1"
    assert (answer["windows"], answer["new"], answer["start"]) == (1, 0, "2026-11-21T14:55:00Z")
    found = loads(url)
    assert np.array_equal(found.load, np.array(ROWS))
    assert (found.windows, found.model, found.end_s) == (1, "moe", ENDED_S)


def test_several_windows_and_transitions_from_standard_input(url: str) -> None:
    text = json.dumps({"load_windows": [ROWS, ROWS]})
    done = ballast("-", *wish(url, **{"window-s": "60"}), "-o", "yaml", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "new: 2" in done.stdout
    assert loads(url, 120).windows == 2
    steps = np.ones((2, 4, 4)).tolist()
    text = json.dumps({"load": ROWS, "transitions": steps})
    later = {"ended-at": "2026-11-21T15:05:00+00:00", "window-s": "60"}
    done = ballast("-", *wish("", **later), stdin=text, BALLAST_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    found = loads(url, 60)
    assert found.end_s == ENDED_S + 300
    assert np.array_equal(found.transitions, np.ones((2, 4, 4)))


def test_a_dump_of_an_engine_counts_as_one_window(tmp_path: Path, url: str) -> None:
    dump = {"logical_count": [[[0.0] * 4, *ROWS]] * 5}  # five steps, a dense layer in front
    done = ballast(file(tmp_path, dump), *wish(url, **{"moe-layers": "3", "experts": "4"}))
    assert done.returncode == 0, done.stderr
    found = loads(url)
    assert found.windows == 1
    assert np.array_equal(found.load, 5 * np.array(ROWS))


def test_the_time_is_that_of_the_file(tmp_path: Path, url: str) -> None:
    path = file(tmp_path, {"load": ROWS})
    os.utime(path, (ENDED_S - 1000, ENDED_S - 1000))
    done = ballast(path, *wish(url, **{"ended-at": ""}))
    assert done.returncode == 0, done.stderr
    assert loads(url).end_s == ENDED_S - 1000
    done = ballast("-", *wish(url, **{"ended-at": ""}), stdin=json.dumps({"load": ROWS}))
    assert done.returncode == 0, done.stderr
    assert loads(url).end_s == pytest.approx(time.time(), abs=600)


@pytest.mark.parametrize(
    ("document", "more", "answer"),
    [
        ({"load": ROWS, "model": "x"}, {}, (1, "loads of 'x'; those of moe")),
        ({"load": ROWS}, {"experts": "8"}, (1, "shape [3, 4]; 3 MoE layers of 8 experts")),
        ({"load": ROWS}, {"moe-layers": "2"}, (1, "shape [3, 4]; 2 MoE layers of 4 experts")),
        ('{"load": [[NaN]]}', {}, (1, "NaN is not JSON")),
        ({"load": [[-1.0]]}, {}, (1, "counts are finite and not negative")),
        ({"load": ROWS, "transitions": [[[1.0]]]}, {}, (1, "transitions: shape [1, 1, 1]")),
        ({"load": ROWS}, {"recording": "moe"}, (2, "not NAMESPACE/NAME")),
        ({"load": ROWS}, {"recording": "A/b"}, (2, "not NAMESPACE/NAME")),
        ({"load": ROWS}, {"recording": ""}, (2, "--recording")),
        ({"load": ROWS}, {"model": ""}, (2, "--model")),
        ({"load": ROWS}, {"ended-at": "yesterday"}, (2, "is no time")),
        ({"load": ROWS}, {"ended-at": "2026-11-21T15:00:00"}, (2, "is no time")),
        ({"load": ROWS}, {"ended-at": "2999-01-01T00:00:00Z"}, (1, "ends in the future")),
        ({"load": ROWS}, {"window-s": "0"}, (2, "--window-s")),
        ({"load": ROWS}, {"database-url": "mysql://u:secret@h/d"}, (1, "mysql is not supported")),
        (
            {"load": ROWS},
            {"database-url": "sqlite:////no/such/folder/h.db"},
            (1, "the database: unable to open"),
        ),
        (
            {"load": ROWS},
            {"database-url": "postgresql://u:secret@127.0.0.1:1/d"},
            (1, "the database: connection failed"),
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, url: str, document: Any, more: dict[str, str], answer: tuple[int, str]
) -> None:
    done = ballast(file(tmp_path, document), *wish(url, **more))
    assert (done.returncode, done.stdout) == (answer[0], "")
    assert answer[1] in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_it_writes_into_postgresql(tmp_path: Path) -> None:
    try:
        with running_server() as server:
            done = ballast(file(tmp_path, {"load": ROWS}), *wish(server.url))
            assert done.returncode == 0, done.stderr
            assert np.array_equal(loads(server.url).load, np.array(ROWS))
    except NoServerError as error:
        pytest.skip(str(error))
