"""Digests of runs on random scenarios, the same list in every process: to compare compiled with uncompiled kernels."""

import dataclasses
import hashlib

import numpy as np
from hypothesis import HealthCheck, given, settings

from simulator.engine.run import simulate
from simulator.record import RunRecord
from tests.simulator.random_fleets import Scenario, scenarios

SCENARIOS = 80


def digest(record: RunRecord) -> str:
    """Hash every field of a record, to the bit."""
    state = hashlib.sha256()
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    series = values.pop("series")
    values |= {f"series.{field.name}": getattr(series, field.name) for field in dataclasses.fields(series)}
    for name, value in values.items():
        array = np.ascontiguousarray(value)
        state.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return state.hexdigest()


def digests() -> list[str]:
    """Run the scenarios and hash what was asked and what came out."""
    found: list[str] = []

    @settings(
        max_examples=SCENARIOS, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(scenarios())
    def run(scenario: Scenario) -> None:
        asked = hashlib.sha256(repr(scenario).encode()).hexdigest()
        record = simulate(
            scenario.fleet,
            scenario.requests,
            model_of_request=scenario.models,
            priority_of_request=scenario.priorities,
            seed=scenario.seed,
        )
        found.append(f"{asked[:8]}-{digest(record)}")

    run()
    return found
