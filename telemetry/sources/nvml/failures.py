"""What NVML's return codes mean for us (power.md §7, errors and reactions).

It exists so that the table stands in one place, for reading and for setting. It reacts to nothing.
"""

from typing import Any

import pynvml

from solver.domain.errors import InputError
from solver.domain.node_power import Failure

_pynvml: Any = pynvml

_FAILURES = {
    pynvml.NVML_ERROR_UNINITIALIZED: Failure.DRIVER_GONE,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Failure.NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION: Failure.NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_FOUND: Failure.LOST,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: Failure.DRIVER_GONE,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: Failure.DRIVER_GONE,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Failure.NOT_SUPPORTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: Failure.LOST,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: Failure.DRIVER_GONE,
}
"""All others may or may not have done what was asked: what is read back decides."""


class DriverGoneError(InputError):
    """NVML cannot be used, and this process cannot change that: another one may."""


def failure_of(code: int) -> Failure:
    """Return what a return code asks for."""
    return Failure.NONE if code == pynvml.NVML_SUCCESS else _FAILURES.get(code, Failure.FAILED)


def told(code: int) -> str:
    """Return a return code in words."""
    return str(_pynvml.NVMLError(code))


def driver_gone(code: int, what: str) -> DriverGoneError:
    """Return the error for a driver or library that is not there, or not any more."""
    right = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 in the container (the NVIDIA runtime mounts it)",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "a loaded NVIDIA driver",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was exchanged: another process has to load its library",
    }
    return DriverGoneError(
        f"{what}: {told(code)}", where="NVML", right=right.get(code, "a working NVIDIA driver")
    )
