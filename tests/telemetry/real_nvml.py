"""Prints as JSON what the reader sees through a real driver: ``python -m tests.telemetry.real_nvml``.

It only looks: every call that changes a GPU is taken away first. Without a driver it ends with 1 and one line.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import pynvml

from solver.domain.errors import InputError

SWEEPS = 20


def take_away_what_changes() -> None:
    """Let no call that changes a GPU reach the library."""
    for name in dir(pynvml):
        if name.startswith(("nvmlDeviceSet", "nvmlDeviceReset", "nvmlDeviceClear")):
            setattr(pynvml, name, None)


def looked() -> dict[str, Any]:
    """Look at all GPUs for a while; tell who they are, the last look and what a look costs."""
    from telemetry.sources.nvml.reader import NvmlReader

    reader = NvmlReader()
    spent_s, samples = [], reader.sweep(time.monotonic())
    for _ in range(SWEEPS):
        time.sleep(0.1)
        began_s = time.thread_time()
        samples = reader.sweep(time.monotonic())
        reader.events()
        spent_s.append(time.thread_time() - began_s)
    told = {
        "driver": reader.driver_version,
        "sweep_cpu_ms": {"median": 1e3 * sorted(spent_s)[SWEEPS // 2], "max": 1e3 * max(spent_s)},
        "gpus": [
            {"identity": dataclasses.asdict(reader.identities[one.uuid]), "sample": dataclasses.asdict(one)}
            for one in samples
        ],
    }
    reader.close()
    return told


if __name__ == "__main__":
    take_away_what_changes()
    try:
        print(json.dumps(looked(), indent=1))  # noqa: T201 - what it is for
    except InputError as error:
        sys.exit(str(error))
