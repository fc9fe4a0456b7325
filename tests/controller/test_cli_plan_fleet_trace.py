"""``ballast plan fleet --trace``: a fleet that was simulated before it is shown."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.fleet_simulated import simulated_answer
from controller.cli.plan_fleet import exit_code_of
from controller.fleet_trace_planning import FleetQuestion, plan_fleet_trace, read_until
from controller.time_limit import TimeLimitError
from solver.check.fleet import check_fleet
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal
from solver.domain.gpu_mix import PlanStatus
from solver.domain.slo import parse_slo
from solver.domain.trace import Requests
from solver.phases.solve import FleetOptions
from tests import commands

MODEL = "meta-llama/Llama-3.1-8B"
AMPLE_TIME = ("--time-limit", "280")  # on a busy machine too


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1500 requests at 20 a second: prompts of 200 to 6000 tokens, short answers."""
    randomness = np.random.default_rng(4)
    path = tmp_path_factory.mktemp("fleet") / "small.csv"
    arrival_s = np.cumsum(randomness.exponential(0.05, 1500))
    rows = [
        f"{i},{at:.6f},{int(p)},{int(g)}"
        for i, (at, p, g) in enumerate(
            zip(
                arrival_s,
                randomness.integers(200, 6000, 1500),
                randomness.integers(5, 120, 1500),
                strict=True,
            )
        )
    ]
    path.write_text("request_id,arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return path


def plan(trace: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    done = commands.ballast(
        *("plan", "fleet", "--trace", str(trace), "--model", MODEL, "--buckets", "6", "--rate", "mean"),
        *("-o", "json", "--no-timings", *AMPLE_TIME, *more),
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_the_fleet_is_simulated_and_the_answer_says_so(trace: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    code, answer, _ = plan(
        trace, "--gpu-types", "L4,H100-SXM", "--slo", "ttft_p90=2,tbt_p90=0.06", "--write-instance", str(kept)
    )
    assert code == 0
    assert answer["schema"] == "fleet-plan/1"
    told = answer["simulated"]
    assert told["holds"]
    assert told["met"]
    assert told["runs"] > 0
    assert told["recorded_requests"] == 1500
    rows = {row["target"]: row for row in told["targets"][MODEL]}
    for name, limit in (("ttft_p90=2", 2.0), ("tbt_p90=0.06", 0.06)):
        assert rows[name]["predicted"] > 0.0
        assert 0.0 < rows[name]["planned"] <= limit
        assert 0.0 < rows[name]["recorded"] <= limit
    assert answer["both_only_objective"] >= answer["objective"] - 1e-9
    assert answer["worth_splitting"] is (answer["both_only_objective"] > answer["objective"] + 1e-6)
    assert answer["binding_settled"]
    assert all(row["met"] for row in rows.values())
    assert {left["role"] for left in told["left_out"]} <= {"both", "prefill", "decode"}
    again = commands.ballast("plan", "fleet", str(kept), "-o", "json")
    assert json.loads(again.stdout)["objective"] <= answer["objective"] + 1e-6
    assert json.loads(again.stdout)["objective"] >= answer["lower_bound"] - 1e-6


def test_relative_targets_and_the_two_level_router(trace: Path) -> None:
    code, answer, _ = plan(
        trace,
        *("--gpu-types", "H100-SXM", "--slo", "ttft_p90=6x,tbt_p90=3x", "--reference", "H100-SXM:1"),
        *("--router", "mixed-pool", "--objective", "rate", "--budget", "cost=40"),
    )
    assert code == 0
    assert answer["rate_factor"] == answer["objective"] > 0.0
    assert answer["cost_usd_per_h"] <= 40.0
    assert all(row["planned"] is not None for row in answer["simulated"]["targets"][MODEL])


def test_a_search_that_ran_out_of_time_is_said(trace: Path) -> None:
    code, answer, _ = plan(
        trace, "--gpu-types", "H100-SXM", "--slo", "ttft_p90=2,tbt_p90=0.06", "--time-limit", "0.001"
    )
    assert code == 4
    assert answer["status"] == "timed-out"
    assert answer["objective"] is None
    told = answer["simulated"]
    assert told["cut_short"]
    assert told["not_done"]
    assert told["runs"] == 0
    assert told["nearest"] is None


@pytest.mark.parametrize(
    ("front_of", "limits_s"), [((), (5.0, 60.0, 1e6)), ((FleetGoal.COST, FleetGoal.POWER), (5.0, 25.0))]
)
def test_no_simulation_begins_after_the_time_limit(
    trace: Path, front_of: tuple[FleetGoal, ...], limits_s: tuple[float, ...]
) -> None:
    """A simulation takes a second here, all else no time."""
    now = [0.0]

    def simulated() -> None:
        now[0] += 1.0

    question = FleetQuestion(
        models=(MODEL,),
        slo=parse_slo("ttft_p90=2,tbt_p90=0.06"),
        gpu_types=("H100-SXM",),
        largest_bucket_count=6,
        rate="mean",
    )
    codes = []
    for limit_s in limits_s:
        now[0] = 0.0
        traced = plan_fleet_trace(
            trace,
            question,
            options=FleetOptions(time_limit_s=limit_s),
            front_of=front_of,
            points=3,
            on_run=simulated,
            clock=lambda: now[0],
        )
        assert traced.runs == now[0] <= limit_s
        code = exit_code_of(traced)
        codes.append(code)
        assert code == (4 if traced.cut_short else 0)
        assert traced.plan.status is not PlanStatus.OPTIMAL or not traced.settled.cut_short
        assert (traced.plan.objective is None) is not traced.settled.holds
        assert traced.settled.holds is (traced.nearest is None and traced.settled.verdict is not None)
        assert check_fleet(traced.settled.instance, traced.plan) == ()
        answer = simulated_answer(traced)
        assert answer["cut_short"] is bool(answer["not_done"]) is traced.settled.cut_short
        assert (answer["nearest"] is None) is (traced.nearest is None)
    assert codes[0] == 4
    assert front_of or codes[-1] == 0


def test_a_long_trace_is_not_read_on_after_the_time_limit() -> None:
    chunk = Requests(
        arrival_s=np.arange(30_000.0), prompt_tokens=np.ones(30_000, int), output_tokens=np.ones(30_000, int)
    )
    late, early = Deadline(lambda: 1.0, 1.0), Deadline(lambda: 0.0, 1.0)
    assert len(list(read_until(late, [chunk] * 2, "short.csv"))) == 2
    assert len(list(read_until(early, [chunk] * 4, "long.csv"))) == 4
    with pytest.raises(TimeLimitError, match=r"long.csv: the time limit .* raise --time-limit"):
        list(read_until(late, [chunk] * 4, "long.csv"))


def test_a_budget_too_small_is_said_and_told_by_the_exit_code(trace: Path) -> None:
    code, answer, _ = plan(
        trace, "--gpu-types", "L4", "--slo", "ttft_p90=2,tbt_p90=0.2", "--budget", "cost=1.5"
    )
    assert code == 3
    assert answer["status"] == "infeasible" or not answer["simulated"]["holds"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--slo", "ttft_p90=3x"), "--reference"),
        (("--slo", "ttft_p90=0.00001", "--gpu-types", "L4"), ""),
        (("--gpu-types", "nothing"), "nothing"),
        (("--precision", "bf17"), "bf17"),
        (("--reference", "H100"), "H100-SXM:8"),
        (("--caps", "1.5"), "caps"),
        (("--pareto", "cost,rate"), "--pareto"),
        (("--objective", "rate", "--gpu-types", "L4"), "budget"),
    ],
)
def test_bad_questions_are_refused_in_one_line(trace: Path, more: tuple[str, ...], words: str) -> None:
    code, answer, stderr = plan(trace, *more)
    assert code in (1, 2, 3)
    if not words:  # an SLO no machine can meet: a plan that says which sizes nobody serves
        assert answer["infeasible"]["kind"] == "bucket-unservable"
        return
    assert words in stderr
    assert "Traceback" not in stderr
    assert not answer


def test_options_of_a_trace_go_with_a_trace(tmp_path: Path) -> None:
    for more in (("--slo", "ttft_p99=1"), ("--kv-link", "3"), ("--rate", "mean")):
        done = commands.ballast("plan", "fleet", str(tmp_path / "x.json"), *more)
        assert done.returncode == 2
        assert f"{more[0]} goes with --trace" in done.stderr
    done = commands.ballast("plan", "fleet")
    assert done.returncode == 2
    assert "FILE or --trace" in done.stderr


def test_requests_of_one_token_have_no_gaps_to_miss(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,500,1\n0,700,1\n1,900,1\n")
    code, answer, _ = plan(path, "--gpu-types", "H100-SXM", "--slo", "ttft_p99=2,tbt_p99=0.1")
    assert code == 0
    assert answer["worth_splitting"] is False
    (_, tbt) = answer["simulated"]["targets"][MODEL]
    assert tbt["planned"] is None
    assert tbt["met"]


def test_a_fleet_for_the_rate_that_is_foretold(trace: Path, tmp_path: Path) -> None:
    rates, kept = tmp_path / "rates.csv", tmp_path / "kept.json"
    levels = 8.0 + np.sin(np.arange(400) / 10.0)
    rows = [f"chat,{600 * window},{level:.3f}" for window, level in enumerate(levels)]
    rates.write_text("model,t_s,rate_rps\n" + "\n".join(rows) + "\n")
    words = (
        "plan",
        "fleet",
        "--trace",
        str(trace),
        "--model",
        MODEL,
        "--buckets",
        "4",
        "--gpu-types",
        "H100-SXM",
    )
    done = commands.ballast(
        *words, *AMPLE_TIME, "--forecast", str(rates), "--write-instance", str(kept), "-o", "json"
    )
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(kept.read_text())["models"]
    planned_rps = sum(bucket["rate_rps"] for bucket in model["buckets"])
    assert levels[-1] <= planned_rps <= 1.1 * levels.max() + 1e-3
    assert f"planning for {planned_rps:.3f} req/s per model (forecast of the next 30 min: " in done.stderr
    refused = commands.ballast(*words, "--forecast", str(rates), "--rate", "mean")
    assert (refused.returncode, refused.stderr) == (
        2,
        "ballast: give either --rate or --forecast (see 'ballast plan fleet --help')\n",
    )


def test_a_fleet_for_what_the_trace_itself_foretells(trace: Path) -> None:
    done = commands.ballast(
        *(
            "plan",
            "fleet",
            "--trace",
            str(trace),
            "--model",
            MODEL,
            "--buckets",
            "4",
            "--gpu-types",
            "H100-SXM",
        ),
        *("--forecast-own", "sizes", "--window-s", "1", "--lead-s", "2", "--violations", "0.1", "-o", "json"),
        *AMPLE_TIME,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    planned_rps = answer["simulated"]["planned_rps"]
    assert 20.0 < planned_rps < 45.0
    assert f"{MODEL}: planning for {planned_rps:.3f} req/s, the forecast of the next 0.03" in done.stderr
    assert answer["simulated"]["met"]


def test_a_front_of_fleets_that_were_simulated(trace: Path) -> None:
    more = ("--gpu-types", "L4,H100-SXM", "--slo", "ttft_p90=2,tbt_p90=0.06", "--no-explain")
    code, answer, _ = plan(trace, *more, "--pareto", "cost,power", "--points", "4")
    assert code == 0
    points, told = answer["pareto"], answer["simulated"]
    assert len(points) == len(told["pareto_simulated"]) >= 1
    assert told["pareto_simulated"][0]
    assert told["pareto_missed"] >= 0
    figures = [(point["cost_usd_per_h"], point["power_w"]) for point in points]
    assert figures == sorted(figures)
    assert all(a[1] > b[1] for a, b in pairwise(figures))
    assert figures[0][0] <= answer["objective"] + 1e-9
