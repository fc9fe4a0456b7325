"""``ballast demo`` as users run it: what it prints, its answer for programs, its exit codes, one line when it fails."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

BALLAST = [sys.executable, "-c", "from controller.cli.root import main; main()"]
SMALL = ("--model", "meta-llama/Llama-3.1-8B", "--gpu-types", "L4,A100-80-SXM", "--hours", "0")
REPORT = "report.html"


def demo(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run in ``folder``."""
    return subprocess.run(
        [*BALLAST, "demo", "--out", REPORT, *args],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=300,
    )


def small_trace(path: Path, requests: int = 240) -> Path:
    """Write requests of four sizes, one a second in the mean."""
    draw = random.Random(7)  # noqa: S311 - a seeded toy trace
    sizes = ((200, 60), (900, 250), (90, 20), (2500, 120))
    at_s = 0.0
    lines = ["arrival_s,prompt_tokens,output_tokens"]
    for number in range(requests):
        at_s += draw.expovariate(1.0)
        prompt, output = sizes[number % len(sizes)]
        lines.append(f"{at_s:.3f},{prompt + draw.randrange(20)},{output + draw.randrange(10)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    """Return the error line; there must be one, without a stack trace."""
    lines = ran.stderr.strip().splitlines()
    assert len(lines) == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return lines[0]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run once for programs."""
    folder = tmp_path_factory.mktemp("demo")
    small_trace(folder / "t.csv")
    return folder, demo(folder, "--trace", "t.csv", *SMALL, "--no-timings", "-o", "json")


def test_answer_for_programs(answered: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, ran = answered
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["schema"] == "demo/1"
    assert answer["version"]
    assert answer["trace"]["kind"] == "given"
    assert answer["trace"]["requests"] == 240
    assert answer["plan"]["schema"] == "gpu-mix-plan/1"
    assert answer["plan"]["status"] == "optimal"
    assert "wall_s" not in answer
    assert "solve_s" not in answer["plan"]
    assert answer["report"] == REPORT
    assert (folder / REPORT).stat().st_size > 50_000


def test_equal_runs_give_equal_bytes(
    answered: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, ran = answered
    small_trace(tmp_path / "t.csv")
    again = demo(tmp_path, "--trace", "t.csv", *SMALL, "--no-timings", "-o", "json")
    assert again.stdout == ran.stdout
    assert (tmp_path / REPORT).read_bytes() == (folder / REPORT).read_bytes()


def test_the_plan_is_simulated_and_stands_beside_its_prediction(
    answered: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ran = answered
    answer, page = json.loads(ran.stdout), (folder / REPORT).read_text(encoding="utf-8")
    assert {model["model"] for model in answer["rehearsal"]} == set(answer["plan"]["replicas"])
    for model in answer["rehearsal"]:
        assert [row["target"].split("=")[0] for row in model["targets"]] == ["ttft_p99", "tbt_p99"]
        for row in model["targets"]:
            assert row["predicted_s"] > 0
            assert row["simulated_planned_s"] > 0
            assert f"{row['simulated_recorded_s']:.3f}" in page


def test_best_single_type_is_the_cheapest_that_serves_all(
    answered: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    answer = json.loads(answered[1].stdout)
    costs = {
        single["gpu_type"]: single["cost_usd_per_h"]
        for single in answer["single_types"]
        if not single["cannot_serve"]
    }
    assert set(costs) <= {"L4", "A100-80-SXM"}
    assert answer["best_single_type"]["cost_usd_per_h"] == min(costs.values())
    assert costs[answer["best_single_type"]["gpu_type"]] == min(costs.values())
    assert answer["plan"]["cost_usd_per_h"] <= min(costs.values()) + 1e-9


def test_sweeps_hold_the_base_and_more_rate_never_costs_less(
    answered: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    answer = json.loads(answered[1].stdout)
    base_usd = answer["plan"]["cost_usd_per_h"]
    for sweep in ("rates", "slos"):
        (at_one,) = [point for point in answer[sweep] if point["factor"] == 1.0]
        assert at_one["cost_usd_per_h"] == base_usd
    rates = answer["rates"]
    assert [point["factor"] for point in rates] == [0.25, 0.5, 1, 2, 4, 8, 16]
    assert rates[-1]["cost_usd_per_h"] > rates[0]["cost_usd_per_h"]
    for point in rates:
        assert point["rate_rps"] == pytest.approx(answer["planned_rps"] * point["factor"])
    strict, loose = answer["slos"][0], answer["slos"][-1]
    assert strict["slo"] == "ttft_p99=0.5,tbt_p99=0.025"
    assert loose["cost_usd_per_h"] <= base_usd


def test_says_which_trace_and_where_the_report_is(tmp_path: Path) -> None:
    small_trace(tmp_path / "t.csv", requests=40)
    ran = demo(tmp_path, "--trace", "t.csv", *SMALL)
    assert ran.returncode == 0, ran.stderr
    first, *_ = ran.stdout.splitlines()
    assert first == "Trace: t.csv, given with --trace"
    assert f"Report: {REPORT}" in ran.stdout
    assert "What to run" in ran.stdout
    assert "proved bound" in ran.stdout
    assert ran.stderr == ""


def test_nobody_can_serve_it_is_infeasible_and_still_reported(tmp_path: Path) -> None:
    small_trace(tmp_path / "t.csv", requests=40)
    ran = demo(tmp_path, "--trace", "t.csv", *SMALL, "--slo", "ttft_p99=0.000001")
    assert ran.returncode == 3, ran.stderr
    assert "infeasible" in ran.stdout
    assert "cannot be served" in (tmp_path / REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--trace", "missing.csv"), "missing.csv"),
        (("--trace", "empty.csv"), "empty.csv"),
        (("--trace", "t.csv", "--gpu-types", "X9000"), "X9000"),
        (("--trace", "t.csv", "--model", "no/such-model"), "no/such-model"),
        (("--trace", "t.csv", "--slo", "ttft=1"), "--slo"),
        (("--trace", "t.csv", "--out", "."), "directory"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    small_trace(tmp_path / "t.csv", requests=8)
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    ran = demo(tmp_path, *args)
    assert ran.returncode in (1, 2)
    assert words in one_line(ran)
    assert sorted(tmp_path.iterdir()) == before


def test_other_commands_never_load_matplotlib() -> None:
    code = (
        "import sys; from controller.cli.root import ballast; import controller.cli.demo, controller.cli.plan_gpus;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
