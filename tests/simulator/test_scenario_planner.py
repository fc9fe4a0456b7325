"""The planner of a scenario file: what is read, and what is told of settings that make no sense."""

from pathlib import Path

import pytest

from simulator.scenario import PlannerPolicy
from simulator.scenario_file import read_scenario
from solver.domain.errors import InputError

TEXT = """\
schema: scenario/1
models: [{name: m, model: meta-llama/Llama-2-70b-hf}]
pools: [{name: h, gpu_type: H100-SXM, gpus_per_instance: 8, count: 0}]
slo: ttft_p99=2.0
power: {budget_w: 50000, policy: caps}
planner:
  policy: oracle
  interval_s: 30
  limits: {H100-SXM: 64}
  history: {file: rates.csv, service: a, until_s: 6000, scale: 0.5}
  sizes: shipped
"""


def read(folder: Path, text: str) -> str:
    """Return the error that reading gives, or an empty text."""
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        read_scenario(path)
    except InputError as error:
        return str(error).replace(str(path), "s.yaml")
    return ""


def test_a_planner_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    found = read_scenario(path)
    rules = found.planner
    assert rules is not None
    assert (rules.policy, rules.interval_s, rules.start_s, rules.ahead_s) == (
        PlannerPolicy.ORACLE,
        30.0,
        120.0,
        150.0,
    )
    assert rules.history is not None
    assert rules.history.file == str(tmp_path / "rates.csv")
    assert (rules.limits, rules.sizes, found.power.caps) == ({"H100-SXM": 64}, "shipped", True)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "policy: oracle",
            "policy: best",
            "s.yaml:7: planner.policy: got 'best'; one of ballast, static, hpa",
        ),
        ("interval_s: 30", "interval_s: 0", "planner.interval_s: got 0; a number from 1 to 1e6"),
        ("interval_s: 30", "interval_s: .nan", "planner.interval_s: got nan"),
        ("interval_s: 30", "start_s: -1", "planner.start_s: got -1"),
        (
            "interval_s: 30",
            "horizon_s: 100",
            "planner.horizon_s: 100 s, and an instance takes 120 s to start",
        ),
        ("interval_s: 30", "mode: recommend", "planner.mode: got 'recommend'; auto"),
        ("interval_s: 30", "violations: 0", "planner.violations: got 0; a probability from 0.0001 to 0.25"),
        ("interval_s: 30", "headroom_ratio: 1", "planner.headroom_ratio: got 1; a number from 0 to below 1"),
        ("interval_s: 30", "interval: 30", "unknown field 'interval'; did you mean interval_s?"),
        ("H100-SXM: 64}", "H200-SXM: 64}", "planner.limits.H200-SXM: unknown GPU type 'H200-SXM'"),
        ("H100-SXM: 64}", "H100-SXM: -1}", "planner.limits.H100-SXM: got -1; a number of GPUs"),
        ("file: rates.csv, ", "", "planner.history.file: missing; a file with windows of rates"),
        ("slo: ttft_p99=2.0\n", "", "slo: missing, and the planner needs an SLO"),
        ("policy: caps", "policy: cap", "power.policy: got 'cap'; none, or caps with a budget and a planner"),
        ("budget_w: 50000, ", "", "power.policy: caps without budget and planner"),
        ("slo:", "step_model: {kind: blis-compat}\nslo:", "step_model.kind: a planner with blis-compat"),
        ("slo:", "events: [{t_s: 1, kind: cap, pool: h}]\nslo:", "events[0]: events beside a planner"),
    ],
)
def test_settings_that_make_no_sense_are_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in TEXT
    error = read(tmp_path, TEXT.replace(old, new, 1))
    assert told in error
    assert "\n" not in error


def test_without_a_planner_a_pool_needs_an_instance(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("power:")]
    assert "pools[0].count: got 0; a whole number from 1 to 32767" in read(tmp_path, text)
