"""Tells the C library to give memory back that nobody uses any more.

It exists because glibc gives every thread a part of the heap of its own and keeps more the larger the blocks are that
were freed: a process of twenty threads that lists a cluster now and then grows for days though nothing is kept
(mallopt(3)). It is for this process alone: solvers run in others, in which time matters more. It measures nothing.
"""

import ctypes
import os

SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 128 * 1024),
    "MALLOC_TRIM_THRESHOLD_": (-1, 128 * 1024),
}
"""Environment variable of glibc: number of the parameter in malloc.h, and value (heaps; bytes)."""


def give_back() -> bool:
    """Use one heap for all threads, and return what is free at its end, and large blocks at once.

    It holds for threads that begin later. What the environment sets stays. Returns whether the C library took it:
    others than glibc have no such parameters.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    taken = [mallopt(*setting) == 1 for name, setting in SETTINGS.items() if name not in os.environ]
    return all(taken)
