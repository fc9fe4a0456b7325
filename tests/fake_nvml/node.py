"""Builds the fake ``libnvidia-ml.so.1`` and turns the knobs of the node behind it.

It exists so that tests of telemetry and of the agent run the real nvidia-ml-py, in this process or in another, against
GPUs that do what a test asks of them. The structures are those of nvml.c beside this file.

Three ways lead to it: LD_LIBRARY_PATH for a process of its own (`Node.environment`), loading the file by its path
before nvidia-ml-py asks for its name (`loaded`), and no library at all.
"""

import ctypes
import fcntl
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.cluster.binaries import required

SOURCE = Path(__file__).with_name("nvml.c")
STATE = "BALLAST_FAKE_NVML"
MAGIC = 0xBA11A570
FOREVER = 0xFFFFFFFF
COMPILERS = ("cc", "gcc", "clang")


class Error(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_char * 56),
        ("gpu", ctypes.c_int32),
        ("code", ctypes.c_uint32),
        ("left", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class Gpu(ctypes.Structure):
    """One GPU; assign to its fields."""

    _fields_ = (
        ("uuid", ctypes.c_char * 48),
        ("name", ctypes.c_char * 48),
        ("load", ctypes.c_double),
        ("energy_j", ctypes.c_double),
        ("energy_at_s", ctypes.c_double),
        ("lost", ctypes.c_uint32),
        ("mig", ctypes.c_uint32),
        ("mig_count", ctypes.c_uint32),
        ("ignore_limit", ctypes.c_uint32),
        ("ignore_clock", ctypes.c_uint32),
        ("no_energy", ctypes.c_uint32),
        ("limit_mw", ctypes.c_uint32),
        ("default_mw", ctypes.c_uint32),
        ("least_mw", ctypes.c_uint32),
        ("most_mw", ctypes.c_uint32),
        ("bmc_mw", ctypes.c_uint32),
        ("lock_least", ctypes.c_uint32),
        ("lock_most", ctypes.c_uint32),
        ("sets", ctypes.c_uint32),
        ("reasons", ctypes.c_uint32),
        ("temperature_c", ctypes.c_uint32),
        ("xid_count", ctypes.c_uint32),
        ("ecc", ctypes.c_uint64),
        ("xids", ctypes.c_uint64 * 8),
    )


class State(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("gpus", ctypes.c_uint32),
        ("driver", ctypes.c_uint32),
        ("unprivileged", ctypes.c_uint32),
        ("clock_least", ctypes.c_uint32),
        ("clock_most", ctypes.c_uint32),
        ("clock_step", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("version", ctypes.c_char * 32),
        ("errors", Error * 32),
        ("gpu", Gpu * 16),
    )


def library(without: Sequence[str] = ()) -> Path:
    """Return the folder with the library, built if it is not; ``without`` names symbols that are missing in it.

    Without a compiler the test is skipped; where the cluster's programs are required, it fails.
    """
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        reason = f"no C compiler ({', '.join(COMPILERS)}) to build the fake NVML with"
        if required():
            pytest.fail(reason)
        pytest.skip(reason)
    key = hashlib.sha256(SOURCE.read_bytes() + repr(sorted(without)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ballast-fake-nvml-{os.getuid()}" / key
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "libnvidia-ml.so.1"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = folder / ".unfinished"
            hidden = [f"-D{name}=hidden_{name}" for name in without]
            flags = (
                "-O2 -Wall -Wextra -Werror -Wno-unknown-warning-option -Wno-stringop-truncation -shared -fPIC"
            )
            subprocess.run(
                [
                    compiler,
                    *flags.split(),
                    "-Wl,-soname,libnvidia-ml.so.1",
                    *hidden,
                    "-o",
                    str(unfinished),
                    str(SOURCE),
                    "-lm",
                ],
                check=True,
                capture_output=True,
            )
            unfinished.rename(made)
    return folder


class Node:
    """A node with GPUs, in a file that every process with the library sees."""

    def __init__(self, path: Path, gpus: int = 8, *, name: str = "NVIDIA A100-SXM4-80GB") -> None:
        self.path = path
        with path.open("w+b") as file:
            file.truncate(ctypes.sizeof(State))
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(State))
        self.state = State.from_buffer(self._map)
        self.state.gpus, self.state.driver = gpus, 1
        self.state.clock_least, self.state.clock_most, self.state.clock_step = 210, 1410, 15
        self.state.version = b"550.54.15"
        for index in range(gpus):
            gpu = self.state.gpu[index]
            gpu.uuid = f"GPU-{path.stem}-{index}".encode()
            gpu.name = name.encode()
            gpu.limit_mw = gpu.default_mw = gpu.most_mw = 400_000
            gpu.least_mw = 100_000
            gpu.temperature_c = 40
            gpu.load = 0.7
            gpu.energy_j = 1000.0
        self.state.magic = MAGIC

    def __getitem__(self, index: int) -> Gpu:
        """Return a GPU."""
        gpu: Gpu = self.state.gpu[index]
        return gpu

    def __iter__(self) -> Iterator[Gpu]:
        """Go through all GPUs."""
        return iter([self[index] for index in range(self.state.gpus)])

    @property
    def uuids(self) -> list[str]:
        """UUIDs in order."""
        return [gpu.uuid.decode() for gpu in self]

    def environment(self, without: Sequence[str] = ()) -> dict[str, str]:
        """Return the environment of a process that finds this node."""
        return {**os.environ, STATE: str(self.path), "LD_LIBRARY_PATH": str(library(without))}

    def fail(self, call: str, code: int, *, gpu: int = -1, times: int = FOREVER) -> None:
        """Let a call (a symbol, or ``field:NNN``) answer with a code."""
        entry = next(error for error in self.state.errors if not error.call or not error.left)
        entry.gpu, entry.code, entry.left = gpu, code, times
        entry.call = call.encode()

    def heal(self) -> None:
        """Let all calls work again."""
        for error in self.state.errors:
            error.call, error.left = b"", 0

    def reload_driver(self, *, upgrade: bool = False) -> None:
        """Lose locks, limits and counters; after an upgrade, processes that have the old library cannot go on."""
        for gpu in self:
            gpu.limit_mw, gpu.lock_least, gpu.lock_most = gpu.default_mw, 0, 0
            gpu.energy_j = 0.0
        if upgrade:
            self.state.driver += 1
            self.state.version = b"560.35.03"

    def xid(self, index: int, number: int) -> None:
        """Let an XID happen."""
        gpu = self[index]
        gpu.xids[gpu.xid_count] = number
        gpu.xid_count += 1


@contextmanager
def loaded(node: Node, without: Sequence[str] = ()) -> Iterator[Any]:
    """Let nvidia-ml-py in this process speak to a node's library."""
    before = os.environ.get(STATE)
    os.environ[STATE] = str(node.path)
    module: Any = pynvml
    module._nvmlGetFunctionPointer_cache.clear()
    # A handle of its own for each node: the library keeps the driver it was loaded with.
    own = Path(tempfile.mkdtemp(prefix="ballast-nvml-"))
    copy = own / "libnvidia-ml.so.1"
    shutil.copy(library(without) / "libnvidia-ml.so.1", copy)
    module.nvmlLib = ctypes.CDLL(str(copy))
    module._nvmlLib_refcount = 0
    try:
        yield module
    finally:
        module._nvmlGetFunctionPointer_cache.clear()
        module.nvmlLib = None
        shutil.rmtree(own)
        if before is None:
            del os.environ[STATE]
        else:
            os.environ[STATE] = before
