"""Sets limits and clock locks of GPUs through NVML; the only module that does.

It exists so that every set call stands in one place: with the setter that checks its answer (the other one of
nvidia-ml-py, ``_v2``, never raises: power.md §1.4), and without a word on whether it took: reading back tells that.
"""

from typing import Any

import pynvml

from solver.domain.node_power import Failure, Knob, Step
from telemetry.sources.nvml.failures import failure_of
from telemetry.sources.nvml.reader import NvmlReader

_nvml: Any = pynvml


def set_step(reader: NvmlReader, step: Step) -> Failure:
    """Set one value and return what the call said."""
    handle = reader.handle(step.uuid)
    try:
        if step.knob is Knob.LIMIT:
            if step.value is None:
                raise ValueError("a limit has a value")
            _nvml.nvmlDeviceSetPowerManagementLimit(handle, round(step.value * 1000.0))
        elif step.value is None:
            _nvml.nvmlDeviceResetGpuLockedClocks(handle)
        else:
            _nvml.nvmlDeviceSetGpuLockedClocks(handle, step.least or 0, int(step.value))
    except _nvml.NVMLError as error:
        return failure_of(error.value)
    return Failure.NONE
