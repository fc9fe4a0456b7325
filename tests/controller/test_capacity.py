"""Searches over simulated scenarios, as values and as commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.capacity import Question, ask, capacity_of, families_of, provision, resampled, with_pools
from controller.time_limit import TimeLimitError
from simulator.fleet import Role
from simulator.scenario_file import read_scenario
from solver.domain.errors import InputError
from solver.domain.slo import parse_slo
from tests.commands import ballast

SCENARIO = """
schema: scenario/1
name: small
models: [{name: m, model: meta-llama/Llama-3.1-8B}]
pools: [{name: p, gpu_type: A100-80-SXM, gpus_per_instance: 1, count: 2, role: both, model: m}]
step_model: {kind: physics}
scheduler: {max_batch: 64, max_batch_tokens: 1024}
router: {kind: jsq}
slo: ttft_p90=1.0,tbt_p90=0.06
trace: {file: t.csv}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    randomness = np.random.default_rng(11)
    arrival_s = np.cumsum(randomness.exponential(0.2, 500))
    prompt, output = randomness.integers(20, 1500, 500), randomness.integers(2, 200, 500)
    rows = [f"{a:.6f},{p},{g}" for a, p, g in zip(arrival_s, prompt, output, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    (tmp_path / "s.yaml").write_text(SCENARIO)
    return tmp_path


@pytest.fixture
def question(folder: Path) -> Question:
    return ask(read_scenario(folder / "s.yaml"))


def test_the_rate_found_is_met_and_a_little_more_is_not(question: Question) -> None:
    found = capacity_of(question, replicates=0, workers=1)
    assert found.first_missed_rps is not None
    assert found.rate_rps < found.first_missed_rps <= 1.0101 * found.rate_rps
    at = {
        rate: question.trace.faster(rate / question.rate_rps)
        for rate in (found.rate_rps, found.first_missed_rps)
    }
    assert question.verdict(at[found.rate_rps]).met
    assert not question.verdict(at[found.first_missed_rps]).met
    assert found.limiting_target in {"ttft_p90", "tbt_p90"}
    assert found.interval_90 is None


def test_the_interval_is_the_same_for_any_number_of_processes(question: Question) -> None:
    one, two = (capacity_of(question, replicates=3, workers=workers) for workers in (1, 2))
    assert one.replicates == two.replicates
    assert one.interval_90 is not None
    assert one.interval_90[0] <= one.rate_rps <= one.interval_90[1]
    assert len(set(one.replicates)) > 1


def test_twice_the_fleet_sustains_more(question: Question) -> None:
    pool = question.scenario.pools[0]
    larger = replace(question.scenario, pools=(replace(pool, count=4),))
    single = capacity_of(question, replicates=0).rate_rps
    double = capacity_of(replace(question, scenario=larger), replicates=0).rate_rps
    assert double > 1.5 * single


def test_a_resampled_trace_keeps_requests_whole_and_in_order(question: Question) -> None:
    trace = resampled(question.trace, seed=3, number=1)
    known = set(
        zip(
            question.trace.requests.prompt_tokens.tolist(),
            question.trace.requests.output_tokens.tolist(),
            strict=True,
        )
    )
    pairs = zip(trace.requests.prompt_tokens.tolist(), trace.requests.output_tokens.tolist(), strict=True)
    assert set(pairs) <= known
    assert np.all(np.diff(trace.requests.arrival_s) >= 0)
    assert len(trace.model_of_request) == len(trace.requests)
    assert len(trace.requests) == pytest.approx(500, rel=0.3)


def test_an_slo_that_nothing_can_meet_is_said_so(question: Question) -> None:
    strict = replace(question.scenario, slo=parse_slo("tbt_p50=0.0001"))
    found = capacity_of(replace(question, scenario=strict), replicates=2)
    assert (found.rate_rps, found.limiting_target, found.replicates) == (0.0, "tbt_p50", ())


def test_provisioning_finds_what_trying_all_counts_finds(question: Question) -> None:
    rate_rps = 14.0
    families = families_of(
        question.scenario, question.catalogues, gpu_types=["A100-80-SXM", "H100-SXM"], caps=[1.0]
    )
    assert len(families) == 2 + 4
    found = provision(question, families, rate_rps=rate_rps, objective="cost", largest_count=4, workers=2)
    trace = question.trace.faster(rate_rps / question.rate_rps)
    for family in families:
        counts = (
            [(n,) for n in range(1, 5)]
            if len(family.pools) == 1
            else [(p, d) for p in range(1, 5) for d in range(1, 5)]
        )
        met = [
            count
            for count in counts
            if replace(question, scenario=with_pools(question.scenario, family, count)).verdict(trace).met
        ]
        smallest = {
            count
            for count in met
            if not any(
                other != count and all(a <= b for a, b in zip(other, count, strict=True)) for other in met
            )
        }
        told = {
            tuple(pool.count for pool in design.pools)
            for design in found.designs
            if design.family == family.name
        }
        assert told == smallest, family.name
    assert found.best is not None
    best = found.designs[found.best]
    assert best.cost_usd_per_h == min(design.cost_usd_per_h or np.inf for design in found.designs)
    assert found.best in found.front
    assert found.runs < 2 * 4 + 4 * 8


def test_caps_make_families_of_their_own(question: Question) -> None:
    families = families_of(question.scenario, question.catalogues, gpu_types=["H100-SXM"], caps=[0.7, 1.0])
    caps = [family.pools[-1].power_cap_w_per_gpu for family in families]
    assert caps == [None, pytest.approx(490.0), None]
    assert [pool.role for pool in families[1].pools] == [Role.PREFILL, Role.DECODE]


def test_capacity_as_a_command(folder: Path) -> None:
    words = ("simulate", "capacity", "s.yaml", "--replicates", "2", "--no-timings", "-o", "json")
    first, again = ballast(*words, at=folder), ballast(*words, "--workers", "1", at=folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    answer = json.loads(first.stdout)
    assert answer["schema"] == "cluster-capacity/1"
    assert answer["interval_90"][0] <= answer["rate_rps"] <= answer["interval_90"][1]
    assert answer["limiting_target"] in {"ttft_p90", "tbt_p90"}
    assert answer["step_model"]["kind"] == "physics"
    assert answer["warm_up_s"] == 0.0
    assert len(answer["trace_sha256"]) == 64
    missed = ballast("simulate", "capacity", "s.yaml", "--slo", "tbt_p50=0.0001", at=folder)
    assert missed.returncode == 3
    assert "No rate meets the SLO" in missed.stdout


@pytest.mark.parametrize(
    "command", [("capacity",), ("provision", "--rate", "10")], ids=lambda words: words[0]
)
def test_a_search_that_runs_out_of_time_says_so(folder: Path, command: tuple[str, ...]) -> None:
    words = ("simulate", *command, "s.yaml", "-o", "json", "--workers", "2", "--time-limit")
    ran = ballast(*words, "0.01", at=folder)
    assert ran.returncode == 4, ran.stderr
    assert json.loads(ran.stdout)["status"] == "timed-out"
    assert json.loads(ballast(*words, "500", at=folder).stdout)["status"] == "optimal"


def test_a_search_keeps_what_it_had_found(question: Question) -> None:
    steps: list[str] = []

    def out_of_time_at_the_fourth(note: str) -> None:
        steps.append(note)
        if len(steps) == 4:
            raise TimeLimitError

    found = capacity_of(question, on_step=out_of_time_at_the_fourth)
    whole = capacity_of(question, replicates=0, workers=1)
    assert (found.complete, found.runs, found.interval_90) == (False, 3, None)
    assert whole.complete
    assert found.rate_rps <= whole.rate_rps < (found.first_missed_rps or np.inf)


def test_provision_as_a_command(folder: Path) -> None:
    words = ("simulate", "provision", "s.yaml", "--rate", "10", "--max-instances", "3", "--no-timings")
    ran = ballast(*words, "-o", "json", at=folder)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    assert answer["schema"] == "cluster-provision/1"
    assert answer["best"]["cost_usd_per_h"] > 0
    assert all(check["met"] for check in answer["best"]["checks"])
    assert answer["best"] in answer["pareto"]
    assert answer["runs"] > 0
    assert answer["best"]["step_model"]["kind"] == "physics"
    assert (answer["warm_up_s"], len(answer["trace_sha256"])) == (0.0, 64)
    assert {"ttft_s", "tbt_s"} <= answer["definitions"].keys()
    table = ballast(*words, at=folder).stdout
    assert max(map(len, table.splitlines())) <= 100
    nothing = ballast(*words, "--rate", "5000", at=folder)
    assert nothing.returncode == 3
    assert "Nothing with at most 3 instances" in nothing.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("provision", "s.yaml", "--rate", "5", "--caps", "0.7,x"), "--caps: cap 'x' is no number"),
        (("provision", "s.yaml", "--rate", "5", "--caps", "1.5"), "--caps: cap 1.5; shares of the TDP"),
        (("provision", "s.yaml", "--rate", "5", "--gpu-types", "H1000"), "unknown gpu 'H1000'"),
        (("capacity", "s.yaml", "--slo", "ttft=1"), "--slo: cannot read SLO target 'ttft=1'"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, words: tuple[str, ...], message: str) -> None:
    ran = ballast("simulate", *words, at=folder)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


def test_a_scenario_without_slo_cannot_be_searched(folder: Path) -> None:
    scenario = replace(read_scenario(folder / "s.yaml"), slo=parse_slo("ttft_p90=1"))
    with pytest.raises(InputError, match="no SLO; slo in the scenario"):
        ask(replace(scenario, slo=type(scenario.slo)()))
