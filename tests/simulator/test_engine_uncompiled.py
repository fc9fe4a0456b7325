"""The same source compiled and as plain Python: the same bits in every field of the record."""

import os
import subprocess
import sys
from pathlib import Path

from solver.compiled import COMPILING
from tests.simulator.record_digests import SCENARIOS, digests

PRINT_DIGESTS = """
from solver.compiled import COMPILING
from tests.simulator.record_digests import digests
assert not COMPILING
print(*digests())
"""


def test_compiled_and_uncompiled_records_have_the_same_bytes() -> None:
    assert COMPILING, "these tests run compiled"
    uncompiled = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PRINT_DIGESTS,
        ],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert uncompiled.returncode == 0, uncompiled.stderr
    compiled = digests()
    assert len(set(compiled)) > SCENARIOS // 2
    assert uncompiled.stdout.split() == compiled
