"""Sweeps as users run them: tables, resuming, shards, the Job."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.sweep_job import JobPlace, job_manifest
from controller.sweeps import merge, run_sweep
from simulator.sweep_file import read_sweep
from solver.domain.errors import InputError
from tests.commands import BALLAST, ballast

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sweep.yaml"
SCENARIO = """
schema: scenario/1
name: small
models: [{name: m, model: meta-llama/Llama-3.1-8B}]
pools: [{name: p, gpu_type: A100-80-SXM, gpus_per_instance: 1, count: 2, role: both, model: m}]
step_model: {kind: physics}
scheduler: {max_batch: 64, max_batch_tokens: 1024}
router: {kind: random}
slo: ttft_p90=1.0,tbt_p90=0.06
trace: {file: t.csv}
"""
SWEEP = """
schema: sweep/1
base: s.yaml
axes: {pools.p.count: [1, 2, 3], trace.scale: [1.0, 3.0]}
repeat_seeds: [1, 2]
out: out
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    randomness = np.random.default_rng(11)
    arrival_s = np.cumsum(randomness.exponential(0.2, 300))
    prompt, output = randomness.integers(20, 1500, 300), randomness.integers(2, 200, 300)
    rows = [f"{a:.6f},{p},{g}" for a, p, g in zip(arrival_s, prompt, output, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    (tmp_path / "s.yaml").write_text(SCENARIO)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "table.csv").read_bytes(), (folder / "pareto.json").read_bytes()


def to(folder: Path, out: str, **changes: Any) -> Path:
    file = yaml.safe_load((folder / "sweep.yaml").read_text()) | {"out": out} | changes
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def test_the_table_is_the_grid_in_order_for_any_number_of_processes(folder: Path) -> None:
    one = run_sweep(read_sweep(to(folder, "one")), workers=1)
    run_sweep(read_sweep(to(folder, "two")), workers=2)
    assert tables(folder / "one") == tables(folder / "two")
    assert (one.ran, one.failed, len(one.rows)) == (12, 0, 12)
    points = [
        (row["changes"]["pools.p.count"], row["changes"]["trace.scale"], row["seed"]) for row in one.rows
    ]
    assert points == [(n, s, seed) for n in (1, 2, 3) for s in (1.0, 3.0) for seed in (1, 2)]
    by_seed = [one.rows[k]["ttft_p99_s"] for k in (4, 5)]
    assert by_seed[0] != by_seed[1]  # the random router follows the seed
    assert all(one.rows[k]["slo_met"] for k in one.front)


def test_a_killed_sweep_resumes_to_the_same_bytes(folder: Path) -> None:
    run_sweep(read_sweep(to(folder, "whole")), workers=1)
    path = to(folder, "killed")
    log = folder / "killed" / "runs.jsonl"
    with subprocess.Popen(
        [*BALLAST, "sweep", path.name, "--workers", "1"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline_s = time.monotonic() + 120
        while (not log.exists() or log.read_bytes().count(b"\n") < 4) and process.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    kept = log.read_bytes()
    log.write_bytes(kept + b'{"key": "torn')
    assert kept.count(b"\n") - 1 < 12 or (folder / "killed" / "table.csv").exists()
    again = ballast("sweep", path.name, "--workers", "1", "--resume", "-o", "json", at=folder)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["ran"] == 12 - (kept.count(b"\n") - 1)
    assert tables(folder / "killed") == tables(folder / "whole")


def test_a_sweep_that_runs_out_of_time_resumes_to_the_same_bytes(folder: Path) -> None:
    run_sweep(read_sweep(to(folder, "whole")), workers=1)
    to(folder, "late")
    words = ("sweep", "late.yaml", "--workers", "1")
    ran = ballast(*words, "--time-limit", "0.01", at=folder)
    assert (ran.returncode, ran.stdout) == (4, "")
    assert ran.stderr == "ballast: the time limit of 0.01 s is reached after 0 of 12 runs; --resume goes on\n"
    again = ballast(*words, "--resume", "--time-limit", "500", at=folder)
    assert again.returncode == 0, again.stderr
    assert tables(folder / "late") == tables(folder / "whole")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_killed_sweep(folder: Path, how: signal.Signals) -> None:
    path = to(folder, "killed", axes={"trace.scale": list(range(1, 2000))})
    log = folder / "killed" / "runs.jsonl"
    with subprocess.Popen(
        [*BALLAST, "sweep", path.name, "--workers", "2"], cwd=folder, stdout=subprocess.PIPE
    ) as process:
        deadline_s = time.monotonic() + 120
        while (not log.exists() or log.read_bytes().count(b"\n") < 2) and process.poll() is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        process.send_signal(how)
        try:
            process.communicate(timeout=60)  # to the end of a pipe that the workers hold, too
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            pytest.fail("a worker outlives its parent")


def test_shards_merge_to_the_same_bytes(folder: Path) -> None:
    run_sweep(read_sweep(to(folder, "whole")), workers=1)
    spec = read_sweep(to(folder, "parts"))
    for k in range(3):
        with pytest.raises(InputError, match="runs are missing"):
            merge(spec)
        assert len(run_sweep(spec, workers=1, shard=(k, 3)).rows) == 4
    merge(spec)
    assert tables(folder / "parts") == tables(folder / "whole")


def test_a_wrong_point_becomes_a_row_and_the_rest_runs(folder: Path) -> None:
    to(folder, "wrong", axes={"pools.p.gpu_type": ["A100-80-SXM", "H1000"]})
    ran = ballast("sweep", "wrong.yaml", "--workers", "1", "-o", "json", at=folder)
    assert ran.returncode == 1
    answer = json.loads(ran.stdout)
    assert answer["failed"] == 2
    assert "output tokens - 1" in answer["definitions"]["tbt_s"]
    assert [answer["rows"][0][name] for name in ("step_model", "warm_up_s")] == ["physics", 0.0]
    assert ran.stderr.startswith(
        "ballast: 2 of 4 runs are wrong; the first: s.yaml:5: pools[0].gpu_type: unknown"
    )
    assert ran.stderr.count("\n") == 1
    assert [row["error"] is None for row in answer["rows"]] == [True, True, False, False]
    assert "unknown gpu 'H1000'" in answer["rows"][2]["error"]
    assert "unknown gpu" in (folder / "wrong" / "table.csv").read_text()
    assert "unknown gpu" in (folder / "wrong" / "sweep.html").read_text()


def test_results_are_never_lost_by_accident(folder: Path) -> None:
    run_sweep(read_sweep(folder / "sweep.yaml"), workers=1)
    with pytest.raises(
        InputError, match=r"runs\.jsonl: holds the results of a sweep; --resume, or another 'out'"
    ):
        run_sweep(read_sweep(folder / "sweep.yaml"), workers=1)
    (folder / "s.yaml").write_text(SCENARIO.replace("count: 2", "count: 5"))
    with pytest.raises(InputError, match="holds the results of another scenario"):
        run_sweep(read_sweep(folder / "sweep.yaml"), workers=1, resume=True)


def test_a_larger_grid_uses_what_is_there(folder: Path) -> None:
    run_sweep(read_sweep(to(folder, "grows")), workers=1)
    larger = to(folder, "grows", axes={"trace.scale": [1.0, 3.0, 5.0], "pools.p.count": [1, 2, 3, 4]})
    assert run_sweep(read_sweep(larger), workers=1, resume=True).ran == 4 * 3 * 2 - 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: sweep/2\nbase: s.yaml\naxes: {}\nout: o", "schema: got 'sweep/2'; schema: sweep/1"),
        ("schema: sweep/1\nbase: s.yaml\naxes: {}", "out: missing; the path of a folder for the results"),
        (
            "schema: sweep/1\nbase: s.yaml\naxis: {}\nout: o",
            "axis: unknown field 'axis'; one of schema, base",
        ),
        ("schema: sweep/1\nbase: s.yaml\naxes: {a: 3}\nout: o", "axes.a: got 3; a table like"),
        ("schema: sweep/1\nbase: s.yaml\naxes: {a: []}\nout: o", "axes: axis a has no values"),
        (
            "schema: sweep/1\nbase: s.yaml\naxes: {q.x: [1]}\nrepeat_seeds: [-1]\nout: o",
            "repeat_seeds: a seed below 0",
        ),
        (
            "schema: sweep/1\nbase: s.yaml\naxes: {pools.q.count: [1]}\nout: o",
            "axes: axis pools.q.count: no pools member called 'q'; one of p",
        ),
        ("- 1", "not a sweep; a table that begins with schema: sweep/1"),
        ("a: [", "not YAML"),
        ("[" * 5000, "nested too deep"),
        ("schema: sweep/1\nbase: s.yaml\nbase: s.yaml", "base: given twice; one of them"),
        (
            "schema: sweep/1\nbase: s.yaml\naxes: {trace.file: [2020-01-01]}\nout: o",
            "axes.trace.file: a value that no JSON can hold; texts, finite numbers",
        ),
        (
            "schema: sweep/1\nbase: s.yaml\naxes: {trace.scale: [.nan]}\nout: o",
            "axes.trace.scale: a value that no JSON can hold",
        ),
        (
            "schema: sweep/1\nbase: s.yaml\naxes: {}\nrepeat_seeds: []\nout: o",
            "repeat_seeds: must name at least one seed",
        ),
    ],
)
def test_bad_sweeps_get_one_line(folder: Path, text: str, message: str) -> None:
    (folder / "bad.yaml").write_text(text)
    ran = ballast("sweep", "bad.yaml", at=folder)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


def test_numbers_of_an_axis_may_be_written_with_an_exponent(folder: Path) -> None:
    sweep = read_sweep(to(folder, "exponent")).sweep
    (folder / "e.yaml").write_text(SWEEP.replace("[1.0, 3.0]", "[1e0, 3e0]"))
    assert read_sweep(folder / "e.yaml").sweep.axes == sweep.axes


@pytest.mark.parametrize("lines", ["[]\n", "{}\n", '{"schema": "sweep-runs/1"}\n[]\n', "\x00\n"])
def test_a_log_that_is_none_is_told_or_cut(folder: Path, lines: str) -> None:
    spec = read_sweep(folder / "sweep.yaml")
    run_sweep(spec, workers=1)
    table = tables(folder / "out")
    log = folder / "out" / "runs.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text(whole[0] + "".join(whole[1:4]) + lines + "".join(whole[4:]))
    assert run_sweep(spec, workers=1, resume=True).ran == 12 - 3
    assert tables(folder / "out") == table
    log.write_text(lines)
    with pytest.raises(InputError, match=r"runs\.jsonl: holds the results of another scenario"):
        run_sweep(spec, workers=1, resume=True)


def test_wrong_usage_is_said_so(folder: Path) -> None:
    for words, message in (
        (("--shard", "3/3"), "write it as K/N"),
        (("--shard", "0/2", "--merge"), "exclude each other"),
        (("--kubernetes",), "--kubernetes needs --image"),
    ):
        ran = ballast("sweep", "sweep.yaml", *words, at=folder)
        assert ran.returncode == 2
        assert message in ran.stderr


def test_the_job_runs_a_shard_per_index_without_rights(folder: Path) -> None:
    words = ("--kubernetes", "--image", "ballast:1", "--claim", "data", "--shards", "4", "--only-write")
    ran = ballast("sweep", "sweep.yaml", *words, at=folder)
    assert ran.returncode == 0, ran.stderr
    job = yaml.safe_load((folder / "out" / "job.yaml").read_text())
    place = JobPlace(namespace="default", image="ballast:1", claim="data", shards=4, parallelism=4)
    assert job == job_manifest(Path("sweep.yaml"), place)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["template"]["spec"]["restartPolicy"]) == (
        "Indexed",
        4,
        "Never",
    )
    pod = spec["template"]["spec"]
    assert "$(JOB_COMPLETION_INDEX)/4" in pod["containers"][0]["args"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_example_runs(tmp_path: Path) -> None:
    spec = yaml.safe_load(EXAMPLE.read_text())
    spec |= {"base": str(EXAMPLE.parent / spec["base"]), "out": str(tmp_path / "out")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec))
    ran = ballast("sweep", "sweep.yaml", at=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 100 + len(str(tmp_path))
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
