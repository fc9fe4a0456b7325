"""Kernels that several processes compile and keep in one place: none gets another's machine code."""

import subprocess
import sys
from pathlib import Path

KERNELS = """
import sys
import time
from pathlib import Path

import numba
import numpy as np
from numba.core.caching import IndexDataCacheFile

from solver.compiled import compiled

@compiled
def least(values):
    return np.sort(values)[0]

@compiled
def place_of_least(values):
    return np.argsort(values)[0]

@compiled
def total(values):
    return values.sum()

VALUES = np.array([3.0, 1.0, 2.0])
"""


def runs(folder: Path, *programs: str) -> list[str]:
    """Run programs side by side, each after the kernels' module, in processes of their own; return what they print."""
    if not (module := folder / "kernels_of_test.py").exists():  # a newer file would be compiled anew
        module.write_text(KERNELS)
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", f"from kernels_of_test import *\n{program}"],
            env={"PYTHONPATH": f"{Path.cwd()}:{folder}", "PATH": ""},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        for program in programs
    ]
    said = [process.communicate()[0].strip() for process in begun]
    assert [process.returncode for process in begun] == [0] * len(begun)
    return said


def test_functions_that_numba_gives_one_name_in_two_processes_are_not_mixed(tmp_path: Path) -> None:
    assert runs(tmp_path, "print(least(VALUES))") == ["1.0"]
    # As many functions compiled before, and both sorts have the same number.
    before = "for number in range(3): numba.njit(lambda value: value)(number)\n"
    assert runs(tmp_path, before + "print(place_of_least(VALUES))") == ["1"]
    assert runs(tmp_path, "print(least(VALUES), place_of_least(VALUES))") == ["1.0 1"]


def test_processes_that_fork_do_not_count_alike(tmp_path: Path) -> None:
    program = """
import os
from numba.core.bytecode import FunctionIdentity
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, str(next(FunctionIdentity._unique_ids)).encode())
    os._exit(0)
os.wait()
print(abs(int(os.read(reading, 99)) - next(FunctionIdentity._unique_ids)) > 1000)
"""
    assert runs(tmp_path, program) == ["True"]


def test_two_processes_may_keep_two_kinds_of_one_kernel_at_once(tmp_path: Path) -> None:
    # Both look at the index, and only then choose the number of their file.
    slow = """
choose = IndexDataCacheFile._data_name
def choose_late(self, number):
    Path(f"{kind}.looked").touch()
    end = time.monotonic() + 3.0
    while len(list(Path().glob("*.looked"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return choose(self, number)
IndexDataCacheFile._data_name = choose_late
print(total(VALUES.astype(kind)))
"""
    assert runs(tmp_path, f"kind = 'int64'\n{slow}", f"kind = 'float64'\n{slow}") == ["6", "6.0"]
    both = "print(total(VALUES.astype(np.int64)), total(VALUES), total.stats.cache_hits.total())"
    assert runs(tmp_path, both) == ["6 6.0 2"]
