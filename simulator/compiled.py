"""The one door to numba: how kernels of the simulator are compiled, cached and, for tests, left uncompiled.

It exists so that every kernel is compiled by the same strict rules (no fast-math, so that compiled and uncompiled runs
agree to the bit) and so that nothing outside the kernels imports numba. Setting NUMBA_DISABLE_JIT=1 before the process
starts runs the same source as plain Python. It contains no kernel.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(kernel: Kernel) -> Kernel:
    """Compile a function when it is first called, and keep the result in a cache on disk."""
    return cast("Kernel", numba.njit(cache=True, fastmath=False, nogil=True)(kernel))
