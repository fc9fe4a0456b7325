"""``ballast simulate cluster`` as users run it: answers, files, exit codes, one line when something is wrong."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import BALLAST, COMPILING, ballast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("chat-split", "one-pool", "prefix-cache", "two-models")
LATENCIES = ("mean", "p50", "p90", "p95", "p99", "max")

TINY: dict[str, Any] = {
    "schema": "scenario/1",
    "name": "tiny",
    "models": [{"name": "llama", "model": "meta-llama/Llama-3.1-8B"}],
    "pools": [{"name": "all", "gpu_type": "L40S", "gpus_per_instance": 1, "count": 2}],
    "slo": "ttft_p99=2.0,tbt_p99=0.1",
    "trace": {"file": "t.csv"},
}
TRACE = "arrival_s,prompt_tokens,output_tokens\n0.0,100,10\n0.5,2000,1\n0.75,300,20\n1.5,50,5\n"


def written(folder: Path, *, rows: str = TRACE, **changes: Any) -> Path:
    (folder / "t.csv").write_text(rows)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def answer_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run_and_hold_their_slo(name: str) -> None:
    done = ballast("simulate", "cluster", EXAMPLES / f"{name}.yaml", "-o", "json")
    assert done.returncode == 0, done.stderr
    answer = answer_of(done)
    assert answer["slo"]["met"] is True
    assert answer["requests"]["incomplete"] == answer["requests"]["rejected"] == 0
    assert answer["saturation"] == "stable"


def test_where_kernels_must_be_compiled_first_it_is_said_before(tmp_path: Path) -> None:
    command = [*BALLAST, "simulate", "cluster", str(written(tmp_path))]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == COMPILING
        assert process.poll() is None
        process.kill()
    (tmp_path / "t.csv").write_text("nothing\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def test_the_answer_has_every_field_of_the_contract(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path), "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = answer_of(done)
    assert answer["schema"] == "cluster-simulation/1"
    assert {"offered": 4, "completed": 4, "rejected": 0, "incomplete": 0}.items() <= answer[
        "requests"
    ].items()
    for metric in ("ttft_s", "tbt_s", "e2e_s"):
        assert set(answer[metric]) == set(LATENCIES)
        assert all(answer[metric][name] > 0 for name in LATENCIES)
    assert answer["slo"]["met"] is True
    assert answer["slo"]["attainment_ratio"] == 1.0
    assert [check["target"] for check in answer["slo"]["checks"]] == ["ttft_p99=2", "tbt_p99=0.1"]
    assert set(answer["throughput"]) == {"requests_per_s", "output_tokens_per_s"}
    assert 0 < answer["utilisation"]["all"] <= 1
    assert {"mean", "p99", "max"} <= set(answer["power_w"])
    assert answer["transfers"] == {"count": 0, "bytes": 0.0}
    assert answer["saturation"] in {"stable", "backlogged", "overloaded"}
    assert set(answer["step_model"]) >= {"kind", "known_error"}
    assert answer["step_model"]["kind"] == "physics"  # no table of this model: the answer says what stood in
    assert len(answer["trace_sha256"]) == 64
    for field in (
        *("version", "energy_j", "cost_usd", "cost_usd_per_million_tokens", "preemptions", "end_time_s"),
        *("seed", "warm_up_s", "wall_s", "simulated_requests_per_wall_s", "definitions"),
    ):
        assert answer[field] is not None, field


def test_equal_runs_give_equal_bytes_without_timings(tmp_path: Path) -> None:
    scenario = written(tmp_path, router={"kind": "random"})
    runs = [
        ballast("simulate", "cluster", scenario, "--seed", "7", "--no-timings", "-o", "json").stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert "wall_s" not in runs[0]
    assert json.loads(runs[0])["seed"] == 7


def test_yaml_says_the_same_as_json(tmp_path: Path) -> None:
    scenario = written(tmp_path)
    as_json, as_yaml = (
        ballast("simulate", "cluster", scenario, "--no-timings", "-o", form).stdout
        for form in ("json", "yaml")
    )
    assert yaml.safe_load(as_yaml) == json.loads(as_json)


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path), "--no-timings")
    assert done.returncode == 0
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    for word in ("TTFT", "TBT", "E2E", "SLO met", "What limits", "Step model", "known error", "sha256"):
        assert word in done.stdout


def test_a_missed_slo_is_exit_code_3_with_an_answer(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path, slo="ttft_p50=0.001"), "-o", "json")
    assert done.returncode == 3
    answer = answer_of(done)
    assert answer["slo"]["met"] is False
    assert answer["slo"]["attainment_ratio"] == 0.0


def test_without_an_slo_nothing_is_missed(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path, slo=None), "-o", "json")
    assert done.returncode == 0
    assert answer_of(done)["slo"] == {"met": None, "attainment_ratio": None, "checks": []}


def test_every_request_is_written_down(tmp_path: Path) -> None:
    out = tmp_path / "requests.csv"
    # The second request fits no instance: a card of 45 GB has no room for so much cache.
    trace = TRACE.replace("0.5,2000,1", "0.5,900000,1")
    done = ballast("simulate", "cluster", written(tmp_path, rows=trace), "--requests-out", out, "-o", "json")
    assert done.returncode == 3
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "arrival_s,prompt_tokens,output_tokens,model,prefill_instance,decode_instance,"
        "queue_s,ttft_s,tbt_s,e2e_s,preemptions,status"
    )
    assert [row["status"] for row in rows] == ["completed", "rejected", "completed", "completed"]
    assert rows[1]["e2e_s"] == rows[1]["ttft_s"] == rows[1]["tbt_s"] == ""
    for row in (rows[0], rows[2], rows[3]):
        gap = (float(row["e2e_s"]) - float(row["ttft_s"])) / (int(row["output_tokens"]) - 1)
        assert float(row["tbt_s"]) == pytest.approx(gap)
        assert row["model"] == "llama"
    reasons = answer_of(done)["requests"]["rejected_because"]
    assert reasons == {"prompt and answer fit the KV cache of no instance of the model": 1}


def test_another_trace_may_be_given_and_scaled(tmp_path: Path) -> None:
    scenario = written(tmp_path, trace={"scale": 2, "warm_up_s": 1})
    (tmp_path / "other.csv").write_text(TRACE)
    done = ballast("simulate", "cluster", scenario, "--trace", tmp_path / "other.csv", "-o", "json")
    answer = answer_of(done)
    assert (answer["trace"], answer["warm_up_s"]) == ("other.csv", 0.5)
    assert answer["requests"]["counted"] == 1


def test_a_scenario_comes_from_standard_input_too() -> None:
    text = yaml.safe_dump({**TINY, "trace": {"file": "shipped", "duration_s": 5}})
    done = ballast("simulate", "cluster", "-", "-o", "json", stdin=text)
    assert done.returncode == 0, done.stderr
    assert answer_of(done)["trace"] == "conversation.csv.gz"


def test_the_peer_s_rules_divide_by_all_tokens(tmp_path: Path) -> None:
    scenario = written(
        tmp_path,
        models=[{"name": "bloom", "model": "bloom-176b"}],
        pools=[
            {
                "name": "a",
                "gpu_type": "H100-SXM",
                "gpus_per_instance": 8,
                "count": 1,
                "power_cap_w_per_gpu": 490,
            }
        ],
        step_model={"kind": "splitwise-compat"},
        slo="ttft_p50=2x,tbt_p50=2x,e2e_p50=2x",
        reference_instance={"gpu_type": "A100-80-SXM", "gpus": 8},
        trace={"file": "t.csv"},
    )
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,2048,11\n")
    answer = answer_of(ballast("simulate", "cluster", scenario, "-o", "json"))
    # The capped H100: 0.3275... s for the prompt, one decode at the end of the table of steps.
    assert answer["ttft_s"]["max"] == pytest.approx(0.32755321232834833)
    assert answer["tbt_s"]["max"] == pytest.approx((answer["e2e_s"]["max"] - answer["ttft_s"]["max"]) / 11)
    assert "(output tokens)" in answer["definitions"]["tbt_s"]
    assert answer["step_model"]["kind"] == "splitwise-compat"
    ttft, _, e2e = (check["value"] for check in answer["slo"]["checks"])
    assert ttft == pytest.approx(0.32755321232834833 / 0.5360554573126137)
    assert e2e == pytest.approx(answer["e2e_s"]["max"] / (0.5360554573126137 + 10 * 0.05018820409116694))


BAD = [
    (
        {"pools": [{**TINY["pools"][0], "gpu_type": "L40X"}]},
        "pools[0].gpu_type: unknown gpu 'L40X'; did you mean ",
    ),
    ({"models": [{"name": "m", "model": "llama"}]}, "models[0].model: unknown model 'llama'; "),
    (
        {"models": [{"name": "m", "model": "bigscience/bloom"}]},
        (
            "pools[0]: bigscience/bloom on 1 x L40S at bf16: the weights leave no room for KV cache; more or larger"
            " GPUs per instance"
        ),
    ),
    (
        {"models": [{**TINY["models"][0], "precision": "fp3"}]},
        "models[0].precision: unknown precision 'fp3'; one of ",
    ),
    (
        {"step_model": {"kind": "table-kv"}},
        "step_model.kind: no table of meta-llama/Llama-3.1-8B on 1 x L40S",
    ),
    (
        {"step_model": {"table": "nowhere.csv"}},
        "step_model.table: no table 'nowhere.csv'; a profile file, or ",
    ),
    (
        {"step_model": {"kind": "splitwise-compat"}},
        "models[0].model: splitwise-compat knows no meta-llama/Llama",
    ),
    (
        {"slo": "ttft_p50=2x", "reference_instance": {"gpu_type": "Z9", "gpus": 1}},
        "reference_instance.gpu_type: unknown gpu 'Z9'; ",
    ),
    ({"trace": {}}, "trace.file: no trace is named; a trace file, 'shipped', or --trace FILE"),
    (
        {"trace": {"file": "t.csv", "warm_up_s": 9}},
        "trace.warm_up_s: the last request of t.csv arrives at 1.5 s",
    ),
    (
        {"kv": {"prefix_cache_blocks": 5}},
        "kv.prefix_cache_blocks: t.csv carries no prefix blocks; 0, or a trace with block hashes (Mooncake)",
    ),
    (
        {"scheduler": {"order": "priority"}},
        "scheduler.order: t.csv carries no classes; a trace with a column 'class'",
    ),
    (
        {
            "models": [TINY["models"][0], {"name": "n", "model": "meta-llama/Llama-3.1-8B"}],
            "pools": [
                {**TINY["pools"][0], "model": "llama"},
                {**TINY["pools"][0], "name": "b", "model": "n"},
            ],
        },
        "models: t.csv does not say which of the 2 models a request is for; a trace with a column 'model', or ",
    ),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_what_no_catalogue_or_trace_knows_is_told_with_its_field(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    done = ballast("simulate", "cluster", written(tmp_path, **changes))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert done.stderr.startswith(f"ballast: {tmp_path / 'tiny.yaml'}:")


BAD_TRACES = [
    ("0.0,100,10\n", "1.0,100,10\n0.5,1,1\n", "time runs backwards"),
    ("0.0,100,10\n", "0.0,-100,10\n", "t.csv:2: prompt_tokens"),
    ("0.0,100,10\n", "nan,100,10\n", "t.csv:2: arrival_s"),
    (TRACE, "", "the file is empty"),
    (TRACE, "arrival_s,prompt_tokens,output_tokens\n0,0,5\n", "no usable request"),
]


@pytest.mark.parametrize(("old", "new", "said"), BAD_TRACES, ids=[said for _, _, said in BAD_TRACES])
def test_a_trace_that_is_not_sound_is_one_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path, rows=TRACE.replace(old, new)))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_rows_without_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", written(tmp_path, rows=TRACE + "2.0,0,4\n"), "-o", "json")
    assert answer_of(done)["dropped_rows"] == {"zero_prompt_tokens": 1}
    assert done.stderr == "left out 1 rows: zero prompt tokens\n"


@pytest.mark.parametrize("scheduler", [{"chunked_prefill": False}, {"chunked_prefill": True}], ids=str)
def test_a_prompt_beyond_all_memory_is_rejected_and_costs_none(
    scheduler: dict[str, Any], tmp_path: Path
) -> None:
    path = written(
        tmp_path,
        rows=TRACE + "2.0,1000000000,10\n2.5,10,1000000000\n",
        scheduler=scheduler,
        slo="ttft_p50=5x,e2e_p50=5x",
        reference_instance={"gpu_type": "L40S", "gpus": 1},
    )
    call = shlex.join([*BALLAST, "simulate", "cluster", str(path), "-o", "json"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 6000000; exec {call}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert answer_of(done)["requests"]["rejected"] == 2


@pytest.mark.parametrize(
    "words",
    [("cluster", "tiny.yaml"), ("validate", "tiny.yaml", "--observed", "rows.csv"), ("golden", "golden")],
    ids=lambda words: words[0],
)
def test_a_time_limit_ends_a_run_with_exit_code_4(words: tuple[str, ...], tmp_path: Path) -> None:
    path = written(tmp_path)
    assert ballast("simulate", "cluster", path, "--requests-out", tmp_path / "rows.csv").returncode == 0
    (tmp_path / "golden").mkdir()
    call = ["simulate", words[0], *(tmp_path / word if word[0] != "-" else word for word in words[1:])]
    done = ballast(*call, "--workers", "2", "--no-timings", "--time-limit", "0.01")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "ballast: the time limit of 0.01 s is reached; no answer\n"


def test_a_run_within_its_time_limit_is_as_without(tmp_path: Path) -> None:
    path = written(tmp_path)
    limited = ballast("simulate", "cluster", path, "-o", "json", "--no-timings", "--time-limit", "200")
    assert limited.returncode == 0
    assert limited.stdout == ballast("simulate", "cluster", path, "-o", "json", "--no-timings").stdout


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = ballast("simulate", "cluster", tmp_path / "no.yaml")
    assert done.returncode == 1
    assert done.stderr == f"ballast: {tmp_path / 'no.yaml'}: No such file or directory\n"
    assert ballast("simulate", "cluster").returncode == 2
    assert ballast("simulate", "nothing").returncode == 2


def test_help_loads_no_compiler() -> None:
    code = (
        "import sys; from controller.cli.root import main\n"
        "try:\n    main(['simulate', 'cluster', '--help'])\nfinally:\n"
        "    assert not {'numba', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
