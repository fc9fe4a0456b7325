"""How many heaps a process of many threads has, as glibc itself tells; in a process of its own."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from controller.operator.heap import give_back

if sys.argv[2] == "told":
    assert give_back()
kept, all_kept = [], threading.Barrier(6)

def work():
    kept.append([bytes(2000) for _ in range(100)])
    all_kept.wait()

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize(
    ("how", "environment", "heaps"),
    [
        ("told", {}, "one"),
        ("not told", {}, "many"),
        ("told", {"MALLOC_ARENA_MAX": "16"}, "many"),
    ],
)
def test_threads_share_a_heap_unless_the_environment_says_otherwise(
    how: str, environment: dict[str, str], heaps: str, tmp_path: Path
) -> None:
    told = tmp_path / "heaps.xml"
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, told, how],
        check=True,
        env=others | environment,
        cwd=Path(__file__).parents[2],
    )
    count = told.read_text(encoding="ascii").count("<heap nr=")
    assert count == 1 if heaps == "one" else count > 1
