"""The reader of fleet problems: what it accepts, and its one line for everything else."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from solver.domain.errors import InputError
from solver.domain.fleet import FleetBudgets, FleetGoal, FleetInstance, Role
from telemetry.sources.fleet_file import SCHEMA, fleet_instance_to_json, read_fleet_instance, require_figures
from tests.solver.phases.drawn import fleet_instances

INSTANCES = Path("../shared/data/fleet/instances")
FULL: dict[str, Any] = {
    "schema": SCHEMA,
    "name": "full",
    "description": "every field once",
    "expected": {"status": "unknown"},
    "objective": {
        "maximise": "rate",
        "budgets": {"cost_usd_per_hour": 100, "power_watts": 9000, "machines": 4},
    },
    "gpu_types": [
        {
            "name": "A",
            "price_per_hour": 2.0,
            "available": 16,
            "power_watts": 700,
            "gpus_per_node": 8,
            "whole_nodes": True,
            "reserved": 8,
        },
        {"name": "B", "price_per_hour": 0, "available": None, "power_watts": 72, "gpus_per_node": 4},
    ],
    "models": [
        {
            "name": "chat",
            "ttft_slo_s": 2,
            "tbt_slo_ms": 50,
            "headroom": 0.1,
            "min_total_replicas": 1,
            "kv_bytes_per_prompt_token": 1000,
            "kv_utilisation_max": 0.5,
            "configs": [
                {"gpu_type": "A", "gpus_per_replica": 8, "role": "both"},
                {"gpu_type": "A", "gpus_per_replica": 4, "role": "prefill", "kv_link_gbytes_per_s": 25},
                {
                    "gpu_type": "B",
                    "gpus_per_replica": 1,
                    "role": "decode",
                    "power_watts": 60,
                    "power_cap_watts_per_gpu": 50,
                    "kv_link_gbytes_per_s": 0,
                    "note": "a remark",
                },
            ],
            "buckets": [{"input_tokens": 100, "output_tokens": 20, "rate_rps": 3}],
            "throughput_rps": [[1, 2.5, 8]],
        }
    ],
}


def written(folder: Path, document: Any) -> Path:
    path = folder / "fleet.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_every_field_is_read(tmp_path: Path) -> None:
    instance = read_fleet_instance(written(tmp_path, FULL))
    assert instance.goal is FleetGoal.RATE
    assert instance.budgets == FleetBudgets(cost_usd_per_h=100.0, power_w=9000.0, machines=4.0)
    assert [offer.reserved for offer in instance.gpu_types] == [8, 0]
    (model,) = instance.models
    assert [config.role for config in model.configs] == list(Role)
    assert model.configs[1].kv_link_bytes_per_s == 25e9
    assert model.configs[2].kv_link_bytes_per_s == 0.0
    assert (model.configs[2].power_w, model.configs[2].power_cap_w) == (60.0, 50.0)
    assert (model.ttft_slo_s, model.tbt_slo_s) == (2.0, 0.05)
    assert model.kv_bytes(0) == 100_000.0
    assert instance.config_power_w(model.configs[1]) == 700.0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    instance = read_fleet_instance(written(tmp_path, FULL))
    assert read_fleet_instance(written(tmp_path, fleet_instance_to_json(instance))) == instance


@given(instance=fleet_instances())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_instance_is_read_back(tmp_path: Path, instance: FleetInstance) -> None:
    assert read_fleet_instance(written(tmp_path, fleet_instance_to_json(instance))) == instance


@pytest.mark.skipif(not INSTANCES.is_dir(), reason="../shared/data is not present")
def test_the_public_instances_are_read_and_written(tmp_path: Path) -> None:
    for path in sorted(INSTANCES.glob("*.json")):
        instance = read_fleet_instance(path)
        assert read_fleet_instance(written(tmp_path, fleet_instance_to_json(instance))) == instance


def at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set a field of the document."""

    def change(document: dict[str, Any]) -> None:
        part: Any = document
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = value

    return change


def gone(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """Leave a field out."""

    def change(document: dict[str, Any]) -> None:
        part: Any = document
        for step in path[:-1]:
            part = part[step]
        del part[path[-1]]

    return change


MODEL = ("models", 0)
CONFIG = ("models", 0, "configs", 1)
OFFER = ("gpu_types", 0)
NAN = math.nan


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (at("schema", value="fleet-instance/2"), "schema: 'fleet-instance/2' is not a schema known here"),
        (gone("schema"), "schema: missing"),
        (gone("objective"), "objective: missing"),
        (at("objective", value={}), "objective: neither minimise nor maximise"),
        (at("objective", value={"minimise": "cost", "maximise": "rate"}), "both minimise and maximise"),
        (at("objective", value={"minimise": "rate"}), "objective.minimise: 'rate' cannot be minimised"),
        (at("objective", value={"maximise": "cost"}), "objective.maximise: 'cost' cannot be maximised"),
        (at("objective", "budget", value={}), "objective.budget: unknown field"),
        (at("objective", "budgets", "watts", value=1), "objective.budgets.watts: unknown field"),
        (at("objective", "budgets", "power_watts", value=-1), "budgets.power_watts: -1 is out of range"),
        (at("objective", "budgets", "machines", value=NAN), "budgets.machines: NaN is not a finite number"),
        (at("budget_usd_per_hour", value=5), "budget_usd_per_hour: not a field of fleets; objective.budgets"),
        (at("horizon_hours", value=5), "horizon_hours: not a field of fleets"),
        (at("gpu_types", value=[]), "gpu_types: the list is empty"),
        (at(*OFFER, "spot_price_per_hour", value=1), "gpu_types[0].spot_price_per_hour: unknown field"),
        (at(*OFFER, "price_per_hour", value=-2), "gpu_types[0].price_per_hour: -2 is out of range"),
        (gone(*OFFER, "power_watts"), "gpu_types[0].power_watts: missing, but the question is about power"),
        (gone("gpu_types", 1, "gpus_per_node"), "gpu_types[1].gpus_per_node: missing, but the question is"),
        (at("gpu_types", 1, "name", value="A"), "gpu_types[1].name: 'A' is already the name"),
        (at(*MODEL, "survive", value=1), "models[0].survive: unknown field"),
        (at(*MODEL, "headroom", value=1), "models[0].headroom: 1 is out of range"),
        (at(*MODEL, "kv_utilisation_max", value=1.5), "models[0].kv_utilisation_max: 1.5 is out of range"),
        (gone(*MODEL, "kv_bytes_per_prompt_token"), "models[0].kv_bytes_per_prompt_token: missing"),
        (gone(*MODEL, "buckets", 0, "input_tokens"), "models[0].buckets[0].input_tokens: missing"),
        (at(*MODEL, "buckets", 0, "rate_rps", value=-3), "models[0].buckets[0].rate_rps: -3 is out of range"),
        (at(*MODEL, "buckets", 0, "rate", value=3), "models[0].buckets[0].rate: unknown field"),
        (at(*MODEL, "throughput_rps", 0, 1, value=NAN), "throughput_rps[0][1]: NaN is not a finite number"),
        (at(*MODEL, "throughput_rps", 0, 1, value=-1.0), "throughput_rps[0][1]: -1.0 is out of range"),
        (at(*MODEL, "throughput_rps", value=[]), "throughput_rps: has 0 rows for 1 buckets"),
        (at(*MODEL, "throughput_rps", 0, value=[1, 2]), "throughput_rps[0]: has 2 numbers for 3 config"),
        (
            at(*CONFIG, "role", value="mixed"),
            "models[0].configs[1].role: 'mixed' is not a role; one of both,",
        ),
        (gone(*CONFIG, "role"), "models[0].configs[1].role: missing"),
        (at(*CONFIG, "gpu_type", value="C"), "models[0].configs[1].gpu_type: 'C' is not declared"),
        (
            at(*CONFIG, "gpus_per_replica", value=0),
            "models[0].configs[1].gpus_per_replica: 0 is out of range",
        ),
        (gone(*CONFIG, "gpus_per_replica"), "models[0].configs[1].gpus_per_replica: missing"),
        (at(*CONFIG, "spot", value=True), "models[0].configs[1].spot: unknown field"),
        (at(*CONFIG, "kv_link_gbytes_per_s", value=-1), "kv_link_gbytes_per_s: -1 is out of range"),
        (
            at(*CONFIG, "power_watts", value="much"),
            "models[0].configs[1].power_watts: 'much' is not a number",
        ),
        (at("expected", "bound", value=NAN), "NaN is not JSON"),
    ],
)
def test_bad_input_is_one_line_with_its_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], line: str
) -> None:
    document = copy.deepcopy(FULL)
    change(document)
    with pytest.raises(InputError) as error:
        read_fleet_instance(written(tmp_path, document))
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_not_an_object(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a list is not an object"):
        read_fleet_instance(written(tmp_path, []))


def test_a_front_asks_for_figures_too(tmp_path: Path) -> None:
    document = copy.deepcopy(FULL)
    document["objective"] = {"minimise": "cost"}
    del document["gpu_types"][0]["power_watts"]
    path = written(tmp_path, document)
    instance = read_fleet_instance(path)
    with pytest.raises(InputError, match=r"gpu_types\[0\].power_watts: missing"):
        require_figures(instance, str(path), also=(FleetGoal.POWER,))
