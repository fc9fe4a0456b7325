"""``ballast plan gpus`` as users run it: a process, its answer on stdout, its exit code, one line when it fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import commands

TOY: dict[str, Any] = {
    "schema": "gputype-instance/1",
    "name": "toy",
    "gpu_types": [
        {"name": "A10G", "price_per_hour": 1.01, "available": None},
        {"name": "A100", "price_per_hour": 3.67, "available": None},
    ],
    "models": [
        {
            "name": "m",
            "configs": [
                {"gpu_type": "A10G", "gpus_per_replica": 1},
                {"gpu_type": "A100", "gpus_per_replica": 1},
            ],
            "buckets": [
                {"input_tokens": 500, "output_tokens": 500, "rate_rps": 6.0},
                {"input_tokens": 2000, "output_tokens": 500, "rate_rps": 15.0},
            ],
            "throughput_rps": [[2, 20], [5, 40]],
        }
    ],
}


def ballast(*args: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.ballast(*args, stdin=stdin, environment=environment)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(TOY))
    return path


def test_json_answer_has_every_field_of_the_contract(toy: Path) -> None:
    done = ballast("plan", "gpus", str(toy), "-o", "json")
    assert done.returncode == 0
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["schema"] == "gpu-mix-plan/1"
    for field in (
        *("version", "status", "objective", "cost_usd_per_h", "running_cost_usd_per_h", "change_cost_usd"),
        *("lower_bound_usd_per_h", "gap_ratio", "solve_s", "replicas", "routing", "load_ratio"),
        *("best_single_type", "second_best", "binding", "infeasible"),
    ):
        assert field in answer
    # 6/2 + 15/5 = 6 A10G for 6.06, or one A100 at 67.5 % load for 3.67.
    assert answer["status"] == "optimal"
    assert answer["cost_usd_per_h"] == pytest.approx(3.67)
    assert answer["replicas"] == {"m": [0, 1]}
    assert answer["load_ratio"]["m"] == pytest.approx([0.0, 0.675])
    assert {(row["bucket"], row["config"], row["share"]) for row in answer["routing"]} == {
        (0, 1, 1.0),
        (1, 1, 1.0),
    }
    assert answer["best_single_type"] == {"gpu_type": "A100", "cost_usd_per_h": 3.67}
    assert answer["second_best"]["gpu_types"] == ["A10G", "A100"]
    assert answer["second_best"]["cost_usd_per_h"] == pytest.approx(4.68)


def test_yaml_says_the_same_as_json(toy: Path) -> None:
    one = ballast("plan", "gpus", str(toy), "-o", "json", "--no-timings")
    other = ballast("plan", "gpus", str(toy), "-o", "yaml", "--no-timings")
    assert yaml.safe_load(other.stdout) == json.loads(one.stdout)


def test_equal_runs_give_equal_bytes_without_timings(toy: Path) -> None:
    first = ballast("plan", "gpus", str(toy), "-o", "json", "--no-timings")
    second = ballast("plan", "gpus", "-", "-o", "json", "--no-timings", stdin=toy.read_text())
    assert first.stdout == second.stdout
    assert "solve_s" not in json.loads(first.stdout)


def test_both_backends_answer_alike(toy: Path) -> None:
    costs = {
        json.loads(ballast("plan", "gpus", str(toy), "-o", "json", "--backend", backend).stdout)[
            "cost_usd_per_h"
        ]
        for backend in ("highs", "cbc")
    }
    assert costs == {3.67}


def test_the_table_fits_and_names_what_matters(toy: Path) -> None:
    done = ballast("plan", "gpus", str(toy))
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    for words in ("optimal", "3.670", "1 x A100", "Best single GPU type", "Second best", "No limit binds"):
        assert words in done.stdout


def test_infeasible_is_exit_3_with_a_reason(tmp_path: Path) -> None:
    short = json.loads(json.dumps(TOY))
    for gpu in short["gpu_types"]:
        gpu["available"] = 0
    path = tmp_path / "short.json"
    path.write_text(json.dumps(short))
    done = ballast("plan", "gpus", str(path), "-o", "json")
    answer = json.loads(done.stdout)
    assert done.returncode == 3
    assert answer["status"] == "infeasible"
    assert answer["objective"] is None
    assert answer["infeasible"]["kind"] == "gpu-limit"
    assert answer["infeasible"]["models"] == ["m"]
    assert ballast("plan", "gpus", str(path)).returncode == 3


def test_a_bucket_nobody_serves_is_infeasible_not_bad_input(tmp_path: Path) -> None:
    changed = json.loads(json.dumps(TOY))
    changed["models"][0]["throughput_rps"][1] = [0, 0]
    path = tmp_path / "unservable.json"
    path.write_text(json.dumps(changed))
    done = ballast("plan", "gpus", str(path), "-o", "json")
    assert done.returncode == 3
    reason = json.loads(done.stdout)["infeasible"]
    assert (reason["kind"], reason["buckets"]) == ("bucket-unservable", [1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["models"][0]["configs"][0].update(gpu_type="H999"), "H999"),
        (lambda d: d["models"][0]["buckets"][0].update(rate_rps=-1), "rate_rps"),
        (lambda d: d["gpu_types"][0].update(available=-1), "available"),
        (lambda d: d["gpu_types"][0].update(price_per_hour="dear"), "price_per_hour"),
        (lambda d: d.update(schema="gputype-instance/9"), "schema"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(tmp_path: Path, change: Any, words: str) -> None:
    changed = json.loads(json.dumps(TOY))
    change(changed)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(changed))
    done = ballast("plan", "gpus", str(path), "-o", "json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "bad.json" in done.stderr
    assert words in done.stderr


def test_missing_file_is_one_line_and_exit_1(tmp_path: Path) -> None:
    done = ballast("plan", "gpus", str(tmp_path / "none.json"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize(
    "args",
    [
        ("plan", "gpus"),
        ("plan", "gpus", "a", "--trace", "b"),
        ("plan", "gpus", "a", "-o", "xml"),
        ("plan", "gpus", "a", "--time-limit", "-1"),
        ("plan", "gpus", "a", "--time-limit", "nan"),
        ("plan", "gpus", "a", "--gap", "inf"),
        ("plan", "gpus", "a", "--model", "m"),
        ("plan", "gpus", "--trace", "a", "--model", "m", "--headroom", "nan"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(args: tuple[str, ...]) -> None:
    done = ballast(*args)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_flag_wins_over_environment_over_file(toy: Path, tmp_path: Path) -> None:
    config = tmp_path / "ballast.yaml"
    config.write_text("output: yaml\n")

    def first_line(*args: str, **environment: str) -> str:
        return ballast("plan", "gpus", str(toy), *args, **environment).stdout.splitlines()[0]

    assert first_line("--config", str(config)) == "schema: gpu-mix-plan/1"
    assert first_line("--config", str(config), BALLAST_OUTPUT="json") == "{"
    assert first_line("--config", str(config), "-o", "table", BALLAST_OUTPUT="json").startswith(
        "toy: optimal"
    )


def test_an_unknown_option_in_the_config_file_is_bad_input(toy: Path, tmp_path: Path) -> None:
    config = tmp_path / "ballast.yaml"
    config.write_text("time-limits: 3\n")
    done = ballast("plan", "gpus", str(toy), "--config", str(config))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "time-limits" in done.stderr


def test_a_trace_is_planned_and_the_problem_kept(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{i * 0.5},{200 + 50 * (i % 7)},{40 + 10 * (i % 3)}" for i in range(400)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    kept = tmp_path / "instance.json"
    done = ballast(
        *("plan", "gpus", "--trace", str(trace), "--model", "meta-llama/Llama-3.1-8B", "--buckets", "4"),
        *("--gpu-types", "L4,A100-80-SXM", "--write-instance", str(kept), "-o", "json", "--no-timings"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "optimal"
    assert sum(answer["replicas"]["meta-llama/Llama-3.1-8B"]) >= 1
    again = ballast("plan", "gpus", str(kept), "-o", "json", "--no-timings")
    assert json.loads(again.stdout)["cost_usd_per_h"] == answer["cost_usd_per_h"]


def test_start_up_loads_neither_matplotlib_nor_pandas_nor_pulp(toy: Path) -> None:
    code = (
        "import sys\nfrom controller.cli.root import main\n"
        f"try:\n    main(['plan', 'gpus', {str(toy)!r}, '-o', 'json'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'matplotlib', 'pandas', 'pulp', 'jinja2', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_has_an_example_everywhere() -> None:
    for args in ((), ("plan",), ("plan", "gpus")):
        done = ballast(*args, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout


def test_a_full_disk_is_one_line_and_exit_1(toy: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*commands.BALLAST, "plan", "gpus", str(toy), "-o", "json"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "space" in done.stderr


def test_own_prices_and_models_are_told_apart_by_their_schema(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},500,50\n" for i in range(60)))
    prices = tmp_path / "prices.toml"
    prices.write_text('schema = "gpu-catalogue/1"\n\n[gpu.L4]\nprice_usd_per_h = 0.01\n')
    models = tmp_path / "models.toml"
    models.write_text(
        'schema = "model-catalogue/1"\n\n[model."meta-llama/Llama-3.1-8B"]\nmax_context = 4096\n'
    )
    done = ballast(
        *("plan", "gpus", "--trace", str(trace), "--model", "meta-llama/Llama-3.1-8B", "-o", "json"),
        *("--gpu-types", "L4,H100-SXM", "--catalogue", str(prices), "--catalogue", str(models)),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gpus"]["H100-SXM"] == {"on_demand": 0, "spot": 0}
    missing = ballast(
        *("plan", "gpus", "--trace", str(trace), "--model", "meta-llama/Llama-3.1-8B"),
        *("--catalogue", str(tmp_path / "none.toml")),
    )
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert "none.toml" in missing.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--slo", "ttft_p99=3x"), "relative"),
        (("--slo", "tpot_p99=1"), "tpot"),
        (("--gpu-types", "H1000"), "H1000"),
        (("--model", "nobody/knows"), "nobody/knows"),
        (("--precision", "fp3"), "fp3"),
    ],
)
def test_bad_questions_about_a_trace_are_one_line(tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n1,20,20\n")
    done = ballast("plan", "gpus", "--trace", str(trace), "--model", "meta-llama/Llama-3.1-8B", *more)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert words in done.stderr
    assert "internal error" not in done.stderr


def test_a_null_in_the_config_and_closed_streams_are_one_line(toy: Path, tmp_path: Path) -> None:
    config = tmp_path / "ballast.yaml"
    config.write_text("time-limit: null\n")
    done = ballast("plan", "gpus", str(toy), "--config", str(config))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    for redirect in ("<&-", ">&-"):
        file = "-" if redirect == "<&-" else str(toy)
        shell = subprocess.run(
            ["bash", "-c", f'exec "$@" {redirect}', "bash", *commands.BALLAST, "plan", "gpus", file],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert shell.returncode == 1
        assert len(shell.stderr.splitlines()) == 1, shell.stderr
