"""An hour under each policy, simulated: who pays what, what the report and the answers say."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from controller.cli.demo import day_answer
from controller.cli.simulate_answers import cluster_answer
from controller.cli.simulate_tables import print_cluster
from controller.closed_loop.day import Day, day_of, generated_windows
from controller.closed_loop.judge import attained_of
from controller.day_study import ComparedDay, compare_day, day_scenario
from controller.reports.closed_loop import day_context, day_rows
from controller.reports.cluster import render_cluster_report
from controller.simulation import SimulatedCluster, TraceInUse, simulate_scenario, simulate_trace
from simulator.record import RequestStatus
from simulator.scenario import PlannerPolicy
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.errors import InputError
from solver.domain.slo import parse_slo
from telemetry.sources.traces.shipped import shipped_trace_path
from tests.controller.closed_loop.days import catalogues, scenario

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def day() -> Day:
    """Make three hours after a day of history."""
    return day_of(
        generated_windows(2, seed=1), shipped_trace_path(), day=1, mean_rps=6.0, duration_s=10_800.0
    )


@pytest.fixture(scope="module")
def compared(day: Day) -> ComparedDay:
    """Run all policies."""
    return compare_day(day_scenario(), day)


def test_the_day_has_its_rates_and_history(day: Day) -> None:
    assert len(day.requests) / 10_800.0 == pytest.approx(6.0, rel=0.05)
    assert (day.history.start_s, day.history.duration_s) == (-86_400.0, 86_400.0)
    assert sum(size.rate_rps for size in day.known_sizes) == pytest.approx(1.0)
    again = day_of(
        generated_windows(2, seed=1), shipped_trace_path(), day=1, mean_rps=6.0, duration_s=10_800.0
    )
    assert np.array_equal(again.requests.arrival_s, day.requests.arrival_s)
    with pytest.raises(InputError, match="day 0 of 288 windows"):
        day_of(generated_windows(2, seed=1), shipped_trace_path(), day=0)


def test_whoever_knows_pays_least_and_everybody_serves_all(compared: ComparedDay) -> None:
    cost = {run.policy: run.cost_usd or 0.0 for run in compared.runs}
    assert cost[PlannerPolicy.ORACLE] <= min(cost.values()) * 1.05
    assert cost[PlannerPolicy.BALLAST] < max(cost.values())
    for run in compared.runs:
        assert run.rejected == 0
        assert run.request_ratio > 0.97
        assert run.energy_j is not None
    assert compared.of(PlannerPolicy.STATIC).started == 0
    rows = day_rows(compared)
    assert rows[0]["against_static"] == 0.0
    assert rows[-1]["times_oracle"] == 1.0
    answer = day_answer(compared)
    assert set(answer["policies"]) == {"static", "hpa", "ballast", "oracle"}
    context = day_context(compared)
    for plot in ("mix", "missed", "watts"):
        assert context[plot].startswith("<svg")


def hour(policy: str, day: Day) -> SimulatedCluster:
    """Run one policy for an hour of the day, as the command does."""
    chosen = scenario(policy=policy)
    first = day.requests.arrival_s < 3600.0
    from dataclasses import replace

    requests = replace(
        day.requests,
        arrival_s=day.requests.arrival_s[first],
        prompt_tokens=day.requests.prompt_tokens[first],
        output_tokens=day.requests.output_tokens[first],
    )
    trace = TraceInUse(
        name="t.csv",
        sha256="0" * 64,
        dropped_rows={},
        requests=requests,
        model_of_request=np.zeros(len(requests), dtype=np.int64),
        priority_of_request=None,
        warm_up_s=0.0,
    )
    return simulate_trace(chosen, catalogues(), trace, history=day.history, known_sizes=day.known_sizes)


def test_answer_table_and_report_say_what_the_planner_did(
    day: Day, capsys: pytest.CaptureFixture[str]
) -> None:
    run = hour("ballast", day)
    answer = cluster_answer(run, timings=False)["planner"]
    assert answer["policy"] == "ballast"
    assert answer["started"] == sum(event.kind == "instance-up" for event in run.scenario.events)
    assert answer["mix"][0]["t_s"] == 0.0
    assert set(answer["mix"][0]["serving"]) == {"h100", "a100"}
    assert sum(answer["rules"].values()) == 121 - (run.requests.arrival_s[-1] < 3600.0)
    print_cluster(run, timings=False)
    printed = capsys.readouterr().out
    assert "Planner ballast: the mix over time" in printed
    assert max(map(len, printed.splitlines())) <= 100
    page = render_cluster_report(run, timings=False)
    assert "What the planner did" in page
    assert page == render_cluster_report(hour("ballast", day), timings=False)


def test_an_instance_is_paid_from_start_up_to_the_end_of_its_drain(day: Day) -> None:
    run = hour("hpa", day)
    planned = run.planned
    assert planned is not None
    widths = np.diff(np.append(planned.times_s, run.figures.horizon_s))
    asked_s = float((planned.asked.sum(axis=1) * widths).sum())
    up_s = float(run.record.up_s.sum())
    assert up_s >= asked_s - 1e-6  # start-ups counted
    assert up_s <= asked_s + 300.0 * planned.stopped + 1e-6  # and drains, of 300 s at most


def test_rejected_requests_are_outside_and_windows_are_judged_by_themselves(day: Day) -> None:
    run = hour("ballast", day)
    slo = parse_slo("ttft_p99=2.0,tbt_p99=0.1")
    whole = attained_of(run.record, run.requests, slo, window_s=600.0)
    assert len(whole.of_window) == 6
    assert 0.9 < whole.request_ratio <= 1.0
    from dataclasses import replace

    status = run.record.status.copy()
    status[run.requests.arrival_s < 600.0] = RequestStatus.REJECTED
    worse = attained_of(replace(run.record, status=status), run.requests, slo, window_s=600.0)
    assert worse.of_window[0] == 0.0
    assert worse.window_ratio <= whole.window_ratio - 1 / 6 + 1e-9
    later = attained_of(
        replace(run.record, status=status), run.requests, slo, window_s=600.0, warm_up_s=600.0
    )
    assert np.isnan(later.of_window[0])


def test_the_example_reads() -> None:
    from simulator.scenario_file import read_scenario

    example = read_scenario(EXAMPLES / "closed-loop.yaml")
    assert example.planner is not None


def test_the_example_of_split_phases_runs() -> None:
    values = yaml.safe_load((EXAMPLES / "closed-loop-split.yaml").read_text())
    values["trace"]["duration_s"] = 1500.0
    example = scenario_of(ScenarioDocument(values=values, source="split", folder=EXAMPLES))
    run = simulate_scenario(example)
    assert run.planned is not None
    assert run.attained is not None
    names = [pool.name for pool in example.pools]
    serving = dict(zip(names, run.planned.ready.T, strict=True))
    both = (serving["prompts"] > 0) & (serving["tokens"] + serving["tokens-a100"] > 0)
    assert both.any()
    assert run.record.transfers > 0
    assert run.attained.request_ratio > 0.95
    pool = run.record.pool_of_instance
    prompts, tokens = pool[run.record.prefill_instance], pool[run.record.decode_instance]
    whole = prompts == names.index("whole")
    assert (tokens[whole] == prompts[whole]).all()
    assert set(prompts[~whole].tolist()) == {names.index("prompts")}
    assert set(tokens[~whole].tolist()) <= {names.index("tokens"), names.index("tokens-a100")}
