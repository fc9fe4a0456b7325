"""The reader over a real driver, where there is one; elsewhere it is skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_nvml.node import STATE


def test_what_a_real_driver_says_makes_sense() -> None:
    environment = {name: value for name, value in os.environ.items() if name != STATE}
    done = subprocess.run(
        [sys.executable, "-m", "tests.telemetry.real_nvml"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 1 and done.stderr.startswith("NVML:"):
        pytest.skip(f"no NVIDIA driver here: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    assert told["driver"]
    for entry in told["gpus"]:
        sample, span = entry["sample"], entry["identity"]["span"]
        assert sample["failure"] == "none"
        assert 1.0 < sample["average_w"] < 2000.0
        assert span["clocks_mhz"] == sorted(span["clocks_mhz"])
        if sample["limit_w"] is not None and span["least_w"] is not None:
            assert span["least_w"] <= sample["limit_w"] <= span["most_w"]
