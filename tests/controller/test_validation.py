"""``ballast simulate validate`` from end to end: no error against itself, a fit that repairs another step model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from controller.cli.root import ballast as command
from controller.validation import METRICS, STATISTICS, validate_scenario
from simulator.scenario import Scenario
from simulator.scenario_file import read_scenario
from solver.domain.errors import InputError

BASE: dict[str, Any] = {
    "schema": "scenario/1",
    "name": "bloom",
    "models": [{"name": "bloom", "model": "bigscience/bloom", "precision": "bf16"}],
    "pools": [{"name": "all", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 8, "model": "bloom"}],
    "step_model": {"kind": "table-kv"},
    "scheduler": {"max_batch": 256},
    "slo": "ttft_p99=2x",
    "reference_instance": {"gpu_type": "A100-80-SXM", "gpus": 8},
    "trace": {"file": "shipped", "warm_up_s": 30, "duration_s": 300},
}
HEADER = "arrival_s,prompt_tokens,output_tokens,queue_s,ttft_s,e2e_s,prefill_instance,decode_instance"


def ballast(*args: str | Path) -> Result:
    return CliRunner().invoke(command, ["simulate", *map(str, args)])


def written(folder: Path, name: str = "s.yaml", **changes: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def read(folder: Path, **changes: Any) -> Scenario:
    return read_scenario(written(folder, "r.yaml", **changes))


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("observed")
    path = folder / "served.csv"
    done = ballast("cluster", written(folder), "--requests-out", path, "-o", "json")
    assert done.exit_code in {0, 3}, done.output
    return path


def test_a_scenario_agrees_with_its_own_requests(observed: Path, tmp_path: Path) -> None:
    validation = validate_scenario(read(tmp_path), observed)
    assert validation.calibrated is None
    assert validation.plain.only_observed == 0
    assert 1000 < validation.plain.judged < validation.requests
    for metric in METRICS:
        statistics = validation.plain.agreement[metric]
        assert statistics is not None
        for name in STATISTICS:
            assert statistics[name].error_ratio == pytest.approx(0.0, abs=1e-12)


def test_another_step_model_is_told_to_be_off_and_a_calibration_repairs_it(
    observed: Path, tmp_path: Path
) -> None:
    fit = tmp_path / "fit.json"
    scenario = written(tmp_path, step_model={"kind": "physics"})
    done = ballast(
        "validate", scenario, "--observed", observed, "--calibrate", "--write-fit", fit, "-o", "json"
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["schema"] == "simulation-validation/1"
    assert answer["errors"]["e2e_s"]["mean"]["error_ratio"] < -0.2
    assert answer["errors"]["ttft_s"]["p50"]["error_ratio"] < -0.4
    calibration = answer["calibration"]
    assert calibration["fitted_on"] == int(0.6 * answer["requests"])
    assert calibration["judged"] == answer["judged"] == answer["requests"] - calibration["fitted_on"]
    for metric in METRICS:
        for name, limit in (("mean", 0.03), ("p50", 0.05), ("p90", 0.06)):
            assert calibration["errors"][metric][name]["error_ratio"] == pytest.approx(0.0, abs=limit)
    assert "prefills within" in calibration["step_model"]["known_error"]

    # The written fit is a step model like any other, and gives the same run.
    fitted = written(tmp_path, "fitted.yaml", step_model={"kind": "fitted", "fit": "fit.json"})
    no_reference = yaml.safe_load(fitted.read_text())
    del no_reference["reference_instance"], no_reference["slo"]
    fitted.write_text(yaml.safe_dump(no_reference))
    again = json.loads(ballast("validate", fitted, "--observed", observed, "-o", "json").stdout)
    assert again["step_model"]["kind"] == "fitted"
    assert again["errors"]["e2e_s"]["mean"]["error_ratio"] == pytest.approx(
        calibration["errors"]["e2e_s"]["mean"]["error_ratio"], abs=0.02
    )
    run = json.loads(ballast("cluster", fitted, "-o", "json").stdout)
    assert run["step_model"]["kind"] == "fitted"
    assert "fitted to" in run["step_model"]["pools"]["all"]["provenance"]


def test_prefill_and_decode_pools_are_calibrated_too(tmp_path: Path) -> None:
    pool = {"gpu_type": "H100-SXM", "gpus_per_instance": 8, "model": "bloom"}
    pools = [
        {"name": "prompt", "role": "prefill", "count": 5, **pool},
        {"name": "token", "role": "decode", "count": 4, **pool},
    ]
    served = tmp_path / "served.csv"
    scenario = written(tmp_path, pools=pools, router={"kind": "mixed-pool"})
    assert ballast("cluster", scenario, "--requests-out", served).exit_code in {0, 3}
    validation = validate_scenario(read_scenario(scenario), served, calibrate=True)
    assert validation.calibrated is not None
    assert len(validation.fits) == 1
    for metric in METRICS:
        statistics = validation.calibrated.agreement[metric]
        assert statistics is not None
        assert statistics["mean"].error_ratio == pytest.approx(0.0, abs=0.06)


def test_a_pool_without_a_fit_is_named(observed: Path, tmp_path: Path) -> None:
    fit = tmp_path / "fit.json"
    ballast("validate", written(tmp_path), "--observed", observed, "--calibrate", "--write-fit", fit)
    other = written(tmp_path, "o.yaml", step_model={"kind": "fitted", "fit": "fit.json"})
    done = ballast("cluster", other)  # the reference instance is an A100, of which there is no fit
    assert done.exit_code == 1
    assert "step_model.fit: no fit of bigscience/bloom on 8 x A100-80-SXM at bf16" in str(done.exception)


def test_the_table_shows_both_step_models(observed: Path, tmp_path: Path) -> None:
    scenario = written(tmp_path, step_model={"kind": "physics"})
    done = ballast("validate", scenario, "--observed", observed, "--calibrate")
    assert done.exit_code == 0
    assert "physics: " in done.stdout
    assert "fitted: " in done.stdout
    assert "Known error: 90 %" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def rows(count: int, *, instance: int = 0, end: str = "9.5") -> str:
    lines = [f"{k},500,10,0.01,0.2,{end},{instance},{instance}" for k in range(count)]
    return "\n".join([HEADER, *lines]) + "\n"


@pytest.mark.parametrize(
    ("text", "calibrate", "told"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n0,1,1\n", False, "ttft_s: no such column"),
        (rows(19), False, "19 finished requests to judge; at least 20"),
        (rows(40, end=""), False, "0 finished requests to judge"),
        (rows(40), True, "16 finished requests to judge; at least 20"),
        (rows(60, instance=8), True, "names instance 8, and the scenario has 8"),
        (rows(60).replace(",0,0\n", ",,\n"), True, "does not say when and where requests began"),
    ],
)
def test_what_cannot_be_judged_is_one_line(text: str, calibrate: bool, told: str, tmp_path: Path) -> None:  # noqa: FBT001 - pytest passes by name
    served = tmp_path / "served.csv"
    served.write_text(text)
    scenario = read(tmp_path, trace={})
    with pytest.raises(InputError, match=told) as raised:
        validate_scenario(scenario, served, calibrate=calibrate)
    assert str(served) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"pools": [{**BASE["pools"][0], "power_cap_w_per_gpu": 400}]},
            r"pools\[0\].power_cap_w_per_gpu: a capped pool",
        ),
        ({"events": [{"t_s": 5, "kind": "cap", "pool": "all", "value": 400}]}, "speeds that change"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    served = tmp_path / "served.csv"
    served.write_text(rows(60))
    with pytest.raises(InputError, match=told):
        validate_scenario(read(tmp_path, trace={}, **changes), served, calibrate=True)


def test_a_fit_is_written_only_of_a_calibration(observed: Path, tmp_path: Path) -> None:
    done = ballast("validate", written(tmp_path), "--observed", observed, "--write-fit", tmp_path / "f.json")
    assert done.exit_code == 2
    assert "--write-fit needs --calibrate" in done.output
    done = ballast("validate", written(tmp_path), "--observed", "-")
    assert done.exit_code == 2
    assert "read twice" in done.output
