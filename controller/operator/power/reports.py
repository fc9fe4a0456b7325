"""What an agent says of its node, as the row's controller counts it: the clock in force, and what failed.

It exists so that this reading is one place, apart from the run of a domain. It asks no agent and keeps nothing.
"""

import numpy as np

from controller.operator.power.agents import Reading
from solver.domain.power import Clocks, PowerRow
from solver.power.actuation import GPU_LOST, MISMATCH, Reports

_NO_PERMISSION, _FAILED = 4, 999
_CODES = {"GpuLost": GPU_LOST, "ActuatorMismatch": MISMATCH, "NoPermission": _NO_PERMISSION}


def applied_mhz(reading: Reading, row: PowerRow, told: int | None, *, braked: bool) -> int:
    """Return the highest clock that any GPU of a node may run at.

    A lock that is less than a step below its order is the order, rounded by the driver; so is everything below it
    while the brake is on.
    """
    server, highest = row.server, 0
    limit_w = None if told is None else server.gpu_w(server.prompt_tdp_ratio, told)
    for gpu in reading.gpus:
        if gpu.error == "GpuLost":
            continue
        mhz = server.max_mhz if gpu.applied_mhz is None else min(gpu.applied_mhz, server.max_mhz)
        if told is not None and gpu.applied_mhz is None and gpu.applied_w is not None:
            mhz = told if limit_w is not None and gpu.applied_w <= limit_w + 0.5 else server.max_mhz
        if told is not None and (told - server.step_mhz < mhz <= told or (braked and mhz <= told)):
            mhz = told
        highest = max(highest, mhz)
    return highest or server.max_mhz


def failure_of(reading: Reading) -> int:
    """Return NVML's code of what went wrong on a node: 0 if nothing; a lost GPU before all else."""
    errors = {gpu.error for gpu in reading.gpus if gpu.error}
    if "GpuLost" in errors:
        return GPU_LOST
    return max((_CODES.get(error, _FAILED) for error in errors), default=0)


def mirrored(clocks: Clocks, orders: int) -> Reports:
    """Return reports of agents that do all they are told: what is shown where nothing is enforced."""
    return Reports(
        applied_mhz=clocks.copy(),
        acknowledged=np.full(clocks.size, orders, dtype=np.int64),
        failed=np.zeros(clocks.size, dtype=np.int64),
        lease_valid=np.ones(clocks.size, dtype=np.bool_),
    )
