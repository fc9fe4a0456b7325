"""``ballast simulate row`` as its users call it: answer, table, files beside it, everything wrong in one line."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli.power_names import CURVES, POLICY_NAMES
from tests import commands

HEADER = "t_ms,server,priority,class,prompt_tokens,output_tokens"
FIELDS = {
    "schema", "version", "policy", "servers", "budget_w", "actuator_latency_s", "duration_s", "seed", "requests",
    "breaker", "brakes", "seconds_over_budget", "power_w", "latency", "caps_seconds", "conditions", "events",
}  # fmt: skip


def ballast(*words: str) -> subprocess.CompletedProcess[str]:
    return commands.ballast("simulate", "row", *words)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("row") / "requests.csv"
    rows = [
        f"{t},{t // 100 % 6},{'high' if t // 100 % 2 else 'low'},chat,3000,60" for t in range(0, 600_000, 100)
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("row") / "faults.json"
    document = {
        "schema": "row-faults/1",
        "budget_w": 30_000,
        "breaker": {"curve": "custom", "tau_s": 90, "trip_K": 1.06, "theta0": 0.5},
        "events": [
            {"t": 100, "dur": 60, "kind": "controller_down"},
            {"t": 300, "dur": 60, "kind": "actuator_drop", "probability": 0.5},
        ],
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_answer(requests: str, policy: str) -> None:
    words = ("--requests", requests, "--servers", "6", "--budget-w", "30000", "--policy", policy)
    done = ballast(*words, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    thresholds = {"thresholds"} if policy.startswith("polca") else set()
    assert set(answer) == FIELDS | {"wall_s"} | thresholds
    assert (answer["schema"], answer["policy"], answer["servers"]) == ("row-simulation/1", policy, 6)
    assert answer["requests"] == {"offered": 6000, "completed": 6000}
    assert set(answer["breaker"]) == {
        "curve", "theta0", "trips", "theta_max", "guarantee_held", "guarantee_lost_s"
    }  # fmt: skip
    assert answer["duration_s"] == 600
    assert set(answer["latency"]) == {"low", "high", "chat"}
    for values in answer["latency"].values():
        assert set(values) == {"p50_s", "p99_s", "p50_increase_ratio", "p99_increase_ratio"}
        if policy == "none":
            assert values["p50_increase_ratio"] == values["p99_increase_ratio"] == 0.0
    for condition in answer["conditions"]:
        assert set(condition) == {"t_s", "type", "status", "reason"}
        assert condition["status"] in {"True", "False"}
    assert answer["power_w"]["mean"] <= answer["power_w"]["max"]


def test_faults_come_from_a_file_and_flags_win(requests: str, faults: str) -> None:
    words = (
        "--requests",
        requests,
        "--servers",
        "6",
        "--faults",
        faults,
        "-o",
        "json",
        "--no-timings",
        "--seed",
        "3",
    )
    one, two = ballast(*words), ballast(*words)
    assert one.returncode == 0
    assert one.stdout == two.stdout, "equal bytes"
    answer: dict[str, Any] = json.loads(one.stdout)
    assert set(answer) == FIELDS
    assert (answer["budget_w"], answer["breaker"]["curve"], answer["breaker"]["theta0"]) == (
        30_000,
        "custom",
        0.5,
    )
    told = {(c["type"], c["status"], c["reason"]) for c in answer["conditions"]}
    assert ("LeaseValid", "False", "LeaseExpired") in told
    assert any("controller down" in event["what"] for event in answer["events"])
    other = json.loads(ballast(*words, "--budget-w", "40000", "--breaker", CURVES[3]).stdout)
    assert (other["budget_w"], other["breaker"]["curve"]) == (40_000, CURVES[3])


def test_table_trace_and_report(requests: str, faults: str, tmp_path: Path) -> None:
    trace, report = tmp_path / "trace.csv", tmp_path / "new" / "row.html"
    done = ballast(
        *("--requests", requests, "--servers", "6", "--faults", faults),
        *("--policy", "polca", "--trace-out", str(trace), "--report", str(report)),
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "recalled from the paper, not confirmed" in done.stdout
    with trace.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 600
    assert list(rows[0]) == ["t_s", "row_w", "budget_w", "theta", "low_mhz", "high_mhz", "brake"]
    assert float(rows[-1]["budget_w"]) == 30_000
    text = report.read_text(encoding="utf-8")
    assert text.count("<svg") == 3 or text.count("<svg") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "--policy polca" in text


def test_thresholds_from_a_recorded_week(requests: str, tmp_path: Path) -> None:
    week = tmp_path / "week.csv"
    rows = [f"{t},{170_000 + t * 7919 % 9000}" for t in range(0, 7200, 2)]
    week.write_text("\n".join(["t_s,row_w", *rows]) + "\n", encoding="utf-8")
    words = ("--requests", requests, "--servers", "6", "--budget-w", "30000", "--policy", "polca-trained")
    usual = json.loads(ballast(*words, "-o", "json").stdout)["thresholds"]
    assert (usual["t1_ratio"], usual["t2_ratio"]) == (0.90, 0.95)
    trained = json.loads(ballast(*words, "--train", str(week), "-o", "json").stdout)["thresholds"]
    assert trained["t1_ratio"] < trained["t2_ratio"] < 1.0
    assert trained != usual
    assert "trained" in ballast(*words, "--train", str(week)).stdout


def test_generated_requests() -> None:
    words = ("--generate", "0.2", "--start-hour", "15", "--servers", "8", "--budget-w", "38000")
    done = ballast(*words, "-o", "yaml", "--no-timings")
    assert done.returncode == 0, done.stderr
    answer = yaml.safe_load(done.stdout)
    assert answer["duration_s"] == 720
    assert answer["requests"]["offered"] > 500
    assert ballast(*words, "-o", "yaml", "--no-timings", "--seed", "1").stdout != done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "--servers"),
        (("--servers", "4"), 2, "either --requests or --generate"),
        (("--servers", "4", "--requests", "none.csv"), 1, "none.csv: cannot be read"),
        (("--servers", "0", "--requests", "R"), 2, "--servers"),
        (("--servers", "4", "--requests", "R", "--policy", "fast"), 2, "--policy"),
        (("--servers", "4", "--requests", "R", "--breaker", "fuse"), 2, "--breaker"),
        (("--servers", "4", "--requests", "R", "--budget-w", "8000"), 1, "--budget-w: 8000 W is below what"),
        (("--servers", "4", "--requests", "R", "--budget-w", "nan"), 2, "--budget-w"),
        (("--servers", "4", "--requests", "R", "--actuator-latency", "-1"), 2, "--actuator-latency"),
        (("--servers", "4", "--requests", "R", "--faults", "R"), 1, "not JSON"),
        (("--servers", "4", "--requests", "R", "--plant", "R"), 1, "not JSON"),
        (("--servers", "4", "--requests", "R", "--train", "R"), 2, "--train"),
        (
            ("--servers", "4", "--requests", "R", "--policy", "polca-trained", "--train", "R"),
            1,
            "requests.csv",
        ),
        (("--servers", "4", "--requests", "R", "--trace-out", "/none/t.csv"), 1, "/none/t.csv"),
    ],
)
def test_everything_wrong_in_one_line(requests: str, words: tuple[str, ...], code: int, says: str) -> None:
    done = ballast(*(requests if word == "R" else word for word in words))
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_time_limit(requests: str) -> None:
    done = ballast("--requests", requests, "--servers", "6", "--budget-w", "30000", "--time-limit", "0.001")
    assert done.returncode == 4
