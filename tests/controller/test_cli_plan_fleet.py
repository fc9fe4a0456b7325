"""``ballast plan fleet``: its answers, its exit codes, one line when it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from controller import fleet_planning
from controller.cli.fleet_answers import fleet_answer
from controller.cli.root import ballast
from controller.fleet_planning import plan_fleet, verify
from solver.domain.fleet import FleetGoal
from solver.phases.solve import FleetOptions
from telemetry.sources.fleet_file import fleet_instance_to_json
from tests.solver.phases.small_fleets import PLAIN, problem

EXAMPLE = Path("examples/fleet.json")


def run(*args: str) -> Result:
    return CliRunner().invoke(ballast, ["plan", "fleet", *args])


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(fleet_instance_to_json(PLAIN)), encoding="utf-8")
    return str(path)


def answer_of(*args: str, code: int = 0) -> dict[str, Any]:
    done = run(*args, "-o", "json")
    assert done.exit_code == code, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_json_answer_has_every_field_of_the_contract(plain: str) -> None:
    answer = answer_of(plain)
    assert answer["schema"] == "fleet-plan/1"
    for field in (
        *("version", "status", "objective", "lower_bound", "gap_ratio", "solve_s", "replicas", "flows"),
        *("cost_usd_per_h", "power_w", "machines", "rate_factor", "both_only_objective", "worth_splitting"),
        *("binding", "infeasible"),
    ):
        assert field in answer
    assert answer["status"] == "optimal"
    assert answer["objective"] == answer["lower_bound"] == pytest.approx(24.0)
    assert answer["replicas"] == {"m": [0, 3, 1]}
    assert answer["worth_splitting"] is True
    assert answer["infeasible"] is None
    assert {row["phase"] for row in answer["flows"]} == {"prefill", "decode"}
    assert sum(row["share"] for row in answer["flows"] if row["phase"] == "prefill") == pytest.approx(2.0)


def test_yaml_says_the_same_as_json_and_equal_runs_give_equal_bytes(plain: str) -> None:
    one = run(plain, "-o", "json", "--no-timings")
    assert run(plain, "-o", "json", "--no-timings").stdout == one.stdout
    assert yaml.safe_load(run(plain, "-o", "yaml", "--no-timings").stdout) == json.loads(one.stdout)


def test_objective_and_budgets_of_the_command_win(plain: str) -> None:
    answer = answer_of(plain, "--objective", "rate", "--budget", "cost=36")
    assert answer["objective"] == answer["rate_factor"] == pytest.approx(49 / 36)
    assert answer["bound_is"] == "upper"
    assert answer["binding"][0]["kind"] == "budget"


def test_infeasible_exits_with_3_and_names_the_reason(plain: str) -> None:
    answer = answer_of(plain, "--budget", "machines=2", code=3)
    assert answer["status"] == "infeasible"
    assert answer["infeasible"]["kind"] == "machine-limit"
    assert answer["infeasible"]["feasible_when_dropped"] == ["machine-limit"]
    table = run(plain, "--budget", "machines=2")
    assert table.exit_code == 3
    assert "machine-limit" in table.stdout


def test_a_time_limit_exits_with_4_or_is_met() -> None:
    answer = plan_fleet(PLAIN, options=FleetOptions(time_limit_s=1e-9))
    assert answer.plan.status in ("optimal", "feasible", "timed-out")


def test_a_front_that_time_cut_short_is_said(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answer_of(plain, "--pareto", "cost,power", "--points", "3")
    assert answer["pareto_cut_short"] is False
    monkeypatch.setattr(fleet_planning, "LEAST_LIMIT_S", 1e6)  # no time is ever enough for one more point
    late = answer_of(plain, "--pareto", "cost,power", "--points", "3", code=4)
    assert late["status"] == "optimal"
    assert (late["pareto"], late["pareto_cut_short"]) == ([], True)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--budget", "price=3"), "is no budget such as"),
        (("--budget", "cost="), "is no budget such as"),
        (("--budget", "cost=-1"), "is not in the range"),
        (("--pareto", "cost"), "is not two or three of"),
        (("--pareto", "cost,rate"), "is not two or three of"),
        (("--pareto", "cost,cost"), "is not two or three of"),
    ],
)
def test_wrong_usage_exits_with_2(plain: str, args: tuple[str, ...], told: str) -> None:
    done = run(plain, *args)
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_rate_that_nothing_limits_is_bad_input(plain: str) -> None:
    done = run(plain, "--objective", "rate")
    assert done.exit_code != 0
    assert "nothing limits the rate" in (done.stderr or str(done.exception))


def test_the_example_is_planned_with_its_front() -> None:
    answer = answer_of(str(EXAMPLE), "--pareto", "cost,power", "--points", "4")
    assert answer["status"] == "optimal"
    assert answer["worth_splitting"] is True
    front = answer["pareto"]
    assert len(front) >= 3
    costs = [point["cost_usd_per_h"] for point in front]
    watts = [point["power_w"] for point in front]
    assert costs == sorted(costs)
    assert watts == sorted(watts, reverse=True)
    assert costs[0] == pytest.approx(answer["objective"])


def test_the_table_fits_and_says_whether_splitting_pays() -> None:
    done = run(str(EXAMPLE), "--pareto", "cost,power", "--points", "3")
    assert done.exit_code == 0
    assert "splitting is 1." in done.stdout
    assert "Fleets of which none is better in everything" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_a_plan_that_fails_its_check_is_never_shown() -> None:
    from dataclasses import replace

    timed = plan_fleet(PLAIN, options=FleetOptions())
    with pytest.raises(RuntimeError, match="fails its check"):
        verify(PLAIN, replace(timed.plan, cost_usd_per_h=1.0))


def test_the_answer_of_a_rate_problem_can_be_written() -> None:
    instance = problem(FleetGoal.RATE, machines=4)
    timed = plan_fleet(instance, options=FleetOptions())
    answer = fleet_answer(instance, timed.plan, front=timed.front)
    assert answer["goal"] == "rate"
    assert answer["pareto"] == []
    assert "solve_s" not in answer
