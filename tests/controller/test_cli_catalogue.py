"""``ballast catalogue``: tables that fit, JSON with schema, users' files, one line for bad input."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from controller.cli.root import ballast
from solver.domain.errors import InputError
from telemetry.catalogue.read import read_gpus, read_models


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ballast, ["catalogue", *arguments])


@pytest.mark.parametrize("kind", ["gpus", "models"])
def test_table_fits_and_names_everything(kind: str) -> None:
    result = run(kind)
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100
    for name in read_gpus() if kind == "gpus" else read_models():
        assert name in result.stdout


def test_recalled_facts_are_marked() -> None:
    line = next(line for line in run("gpus", "A10G").stdout.splitlines() if "A10G" in line)
    assert "22.5*" in line
    assert "600*" in line
    assert "1.006 " in line
    assert "listed" in line


def test_json_has_schema_version_and_si_units() -> None:
    answer = json.loads(run("gpus", "h100-sxm", "-o", "json").stdout)
    assert (answer["schema"], answer["version"]) == ("gpu-catalogue/1", 1)
    (gpu,) = answer["gpus"]
    assert gpu["name"] == "H100-SXM"
    assert gpu["memory_bandwidth_bytes_per_s"] == 3.35e12
    assert gpu["fp4_flops"] is None
    assert gpu["recalled"] == ["memory_bytes"]


def test_every_fact_of_the_values_is_in_the_json() -> None:
    gpu = json.loads(run("gpus", "L4", "-o", "json").stdout)["gpus"][0]
    model = json.loads(run("models", "phi-2", "-o", "json").stdout)["models"][0]
    assert set(type(read_gpus()["L4"]).__slots__) - {"provenance"} <= set(gpu)
    assert set(type(read_models()["microsoft/phi-2"]).__slots__) - {"provenance"} <= set(model)


def test_yaml_and_model_filter_by_alias() -> None:
    answer = yaml.safe_load(run("models", "deepseek-r1", "-o", "yaml").stdout)
    assert answer["schema"] == "model-catalogue/1"
    assert [model["name"] for model in answer["models"]] == ["deepseek-ai/DeepSeek-V3"]
    assert answer["models"][0]["kv_bytes_per_token"] == 70_272


def test_a_user_file_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = "gpu-catalogue/1"\n[gpu.L4]\nprice_usd_per_h = 0.3\n', encoding="utf-8")
    result = run("gpus", "L4", "--file", str(path))
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith("L4 "))
    assert "0.300 " in line
    assert "own" in line


def test_a_bad_user_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = "gpu-catalogue/1"\n[gpu.L4]\ntdp_w = -3\n', encoding="utf-8")
    result = run("gpus", "--file", str(path))
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == (
        f"{path}:3: gpu.L4.tdp_w: got -3; a number above 0 (leave the field out if it is not known)"
    )


def test_a_filter_without_matches_says_so_on_stderr() -> None:
    result = run("gpus", "nothing-like-it")
    assert result.exit_code == 0
    assert "no GPU type matches 'nothing-like-it'" in result.stderr
    assert json.loads(run("gpus", "nothing-like-it", "-o", "json").stdout)["gpus"] == []


@pytest.mark.parametrize("command", [[], ["gpus"], ["models"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example: ballast catalogue" in result.stdout
