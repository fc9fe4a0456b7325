"""``ballast simulate golden``: recorded runs are met, and every kind of difference or bad file is found."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from controller.cli.golden import golden
from controller.golden import check_golden
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseRole,
    SplitwiseScheduler,
)
from simulator.splitwise.run import run_splitwise
from solver.domain.errors import InputError
from solver.domain.trace import Requests
from telemetry.sources.golden import BlisSetup, read_golden_runs

RECORDED = Path(__file__).resolve().parents[3] / "shared/data/sim"
HERE = "recorded runs are not at hand"


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(golden, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


# -- the peer's own runs ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (RECORDED / "golden").is_dir(), reason=HERE)
def test_every_recorded_run_is_met() -> None:
    answer = json.loads(call(RECORDED / "golden", "-o", "json"))
    assert answer["schema"] == "golden-check/1"
    assert answer["met"] is True
    assert len(answer["runs"]) == 10
    for run in answer["runs"]:
        assert run["max_abs_ttft_difference_s"] <= 1e-9, run
        assert run["max_abs_e2e_difference_s"] <= 1e-9, run
        assert run["max_percentile_error_ratio"] <= 1e-12, run
        assert run["counters_differ"] == [], (
            run
        )  # preemptions, end_time_s, and rules_exercised where recorded
        assert run["wall_s"] > 0


@pytest.mark.skipif(not (RECORDED / "golden").is_dir(), reason=HERE)
def test_the_counters_of_the_overloaded_runs_are_compared() -> None:
    counted = [run for run in read_golden_runs(RECORDED / "golden") if len(run.setup.counters) > 1]  # type: ignore[union-attr]
    assert len(counted) == 4
    assert all(len(run.setup.counters) == 7 and run.end_time_s is not None for run in counted)  # type: ignore[union-attr]


@pytest.mark.skipif(not (RECORDED / "golden_blis").is_dir(), reason=HERE)
def test_runs_of_blis_are_read() -> None:
    (run,) = read_golden_runs(RECORDED / "golden_blis")
    assert isinstance(run.setup, BlisSetup)
    assert (run.setup.instances, run.setup.routing, len(run.requests)) == (8, "round-robin", 2000)
    assert run.itl_mean_s is not None
    assert run.itl_mean_s.mean() == pytest.approx(run.metrics["itl_mean_s"]["mean"])


@pytest.mark.skipif(not (RECORDED / "golden_blis").is_dir(), reason=HERE)
def test_every_request_of_the_recorded_blis_run_agrees() -> None:
    (result,) = check_golden(RECORDED / "golden_blis")
    assert result.agreement.met
    assert result.agreement.requests == 2000
    assert result.agreement.max_percentile_error_ratio is not None
    assert result.agreement.max_percentile_error_ratio < 1e-6


# -- a folder of our own ----------------------------------------------------------------------------------------------


def packed(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two machines, forty requests, recorded with the rounding of the real ones."""
    model = MODELS["llama2-70b"]
    roles = (SplitwiseRole.PROMPT, SplitwiseRole.TOKEN)
    fleet = SplitwiseFleet(
        model=model,
        groups=tuple(SplitwiseGroup(machine=MACHINES["dgx-a100"], count=1, role=role) for role in roles),
        scheduler=SplitwiseScheduler.MIXED_POOL,
    )
    randomness = np.random.default_rng(3)
    requests = Requests(
        arrival_s=np.asarray(np.cumsum(randomness.exponential(0.1, 40)).round(6), dtype=np.float64),
        prompt_tokens=randomness.integers(100, 3000, 40),
        output_tokens=randomness.integers(2, 200, 40),
    )
    ours = run_splitwise(fleet, requests)
    (tmp_path / "per_request").mkdir()
    times = zip(ours.record.ttft_s.round(9), ours.record.e2e_s.round(9), strict=True)
    rows = [{"request_id": i, "ttft_s": ttft, "e2e_s": e2e} for i, (ttft, e2e) in enumerate(times)]
    (tmp_path / "per_request" / "small.csv.gz").write_bytes(packed(rows))
    columns = zip(requests.arrival_s.tolist(), requests.prompt_tokens, requests.output_tokens, strict=True)
    lines = [
        f"{index},{arrival},{prompt},{output}" for index, (arrival, prompt, output) in enumerate(columns)
    ]
    header = "request_id,arrival_s,prompt_tokens,output_tokens"
    (tmp_path / "trace.csv").write_text("\n".join([header, *lines, ""]), "utf-8")
    document = {
        "id": "small",
        "peer": "a test",
        "trace": "trace.csv",
        "model": model.name,
        "tensor_parallel": 8,
        "machine_order": [{"machine": "dgx-a100", "role": role.value, "count": 1} for role in roles],
        "scheduler": "mixed_pool",
        "instance": {"max_batch_size": 512, "max_batch_tokens": 2048, "max_preemptions": 4},
        "prompt_max_pending_batch_tokens": 8192,
        "kv_transfer_gib_per_s": 200,
        "weights_bytes": float(model.weights_bytes),
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "machine_memory_bytes": 687194767360,
        "metrics": {"ttft_s": {"mean": float(ours.record.ttft_s.mean()), "max": 99.0}},
        "end_time_s": ours.record.end_time_s,
        "preemptions": ours.rules.preemptions,
    }
    (tmp_path / "small.json").write_text(json.dumps(document), "utf-8")
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "small.json"
    document = json.loads(path.read_text("utf-8"))
    for name, value in changes.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    path.write_text(json.dumps(document), "utf-8")


def edit_rows(folder: Path, row: int, column: str, value: object) -> None:
    path = folder / "per_request" / "small.csv.gz"
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    rows[row][column] = str(value)
    path.write_bytes(packed(rows))


def test_an_equal_run_is_met_and_says_so(folder: Path) -> None:
    (run,) = json.loads(call(folder, "-o", "json"))["runs"]
    assert (run["id"], run["requests"], run["met"]) == ("small", 40, True)
    assert run["max_percentile_error_ratio"] == 0.0
    table = call(folder)
    assert "small" in table
    assert "yes" in table


def test_without_timings_the_bytes_are_equal(folder: Path) -> None:
    answers = [call(folder, "-o", "json", "--no-timings") for _ in range(2)]
    assert answers[0] == answers[1]
    assert "wall_s" not in answers[0]
    assert "wall" not in call(folder, "--no-timings")


def test_one_request_off_by_two_nanoseconds_is_a_mismatch(folder: Path) -> None:
    (result,) = check_golden(folder)
    before = result.agreement.max_abs_e2e_difference_s
    assert before is not None
    assert before <= 5.1e-10
    rows = list(
        csv.DictReader(
            io.StringIO(gzip.decompress((folder / "per_request/small.csv.gz").read_bytes()).decode())
        )
    )
    edit_rows(folder, 17, "e2e_s", float(rows[17]["e2e_s"]) + 2e-9)
    (run,) = json.loads(call(folder, "-o", "json", code=3))["runs"]
    assert run["max_abs_e2e_difference_s"] == pytest.approx(2e-9, rel=0.3)
    assert run["max_abs_ttft_difference_s"] <= 1e-9
    assert run["met"] is False
    assert "NO" in call(folder, code=3)


def test_a_counter_or_an_end_that_differs_is_a_mismatch(folder: Path) -> None:
    edit(folder, preemptions=10**6, end_time_s=1.0)
    (run,) = json.loads(call(folder, "-o", "json", code=3))["runs"]
    assert run["counters_differ"] == ["preemptions", "end_time_s"]


def test_a_request_that_finished_only_here_is_a_mismatch_and_no_number(folder: Path) -> None:
    edit_rows(folder, 3, "e2e_s", "")
    (run,) = json.loads(call(folder, "-o", "json", code=3))["runs"]
    assert run["max_abs_e2e_difference_s"] is None


def test_statistics_show_where_they_differ(folder: Path) -> None:
    edit(folder, metrics={"ttft_s": {"p50": 1e-3}})
    (run,) = json.loads(call(folder, "-o", "json"))["runs"]
    assert run["max_percentile_error_ratio"] > 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "gpt-9"}, "unknown model 'gpt-9'"),
        ({"machine_order": [{"machine": "dgx-1", "role": "token", "count": 1}]}, "unknown machine 'dgx-1'"),
        ({"machine_order": [{"machine": "dgx-a100", "role": "chef", "count": 1}]}, "unknown role"),
        ({"machine_order": [{"machine": "dgx-a100", "role": "token"}]}, r"machine_order\[0\].count: missing"),
        ({"machine_order": 7}, "machine_order: 7; a list"),
        ({"machine_order": None}, "neither a run of splitwise-sim"),
        ({"machine_order": []}, "0 machines"),
        ({"scheduler": "magic"}, "unknown scheduler"),
        ({"trace": "nowhere.csv"}, "nowhere.csv"),
        ({"trace": "first 41 rows of trace.csv"}, "41 rows of a trace of 40"),
        ({"trace": "first 39 rows of trace.csv"}, "requests 0 to 38"),
        ({"weights_bytes": 1.5}, "weights_bytes: 1.5; a whole number"),
        ({"tensor_parallel": 4}, "tensor_parallel"),
        ({"metrics": {"ttft_s": {"mean": "x"}}}, "metrics.ttft_s.mean"),
        ({"instance": None}, "instance: missing"),
    ],
)
def test_a_bad_description_is_one_line(folder: Path, changes: dict[str, Any], word: str) -> None:
    edit(folder, **changes)
    with pytest.raises(InputError, match=word) as caught:
        call(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "column", "value", "word"),
    [(3, "ttft_s", "soon", r":5: ttft_s: 'soon'"), (3, "request_id", "7", r":5: request 7")],
)
def test_a_bad_row_is_named(folder: Path, row: int, column: str, value: str, word: str) -> None:
    edit_rows(folder, row, column, value)
    with pytest.raises(InputError, match=word):
        call(folder)


def test_files_that_are_missing_or_damaged(folder: Path, tmp_path: Path) -> None:
    times = folder / "per_request" / "small.csv.gz"
    times.write_bytes(times.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        call(folder)
    times.unlink()
    with pytest.raises(InputError, match="not there"):
        call(folder)
    (folder / "small.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match="not JSON"):
        call(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no JSON file"):
        call(empty)
    with pytest.raises(InputError, match="not a folder"):
        read_golden_runs(empty / "further")
    assert CliRunner().invoke(golden, [str(empty / "further")]).exit_code == 2
