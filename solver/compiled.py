"""The one door to numba: how kernels are compiled, cached and, for tests, left uncompiled.

It exists so that every kernel is compiled by the same strict rules (no fast-math, so that compiled and uncompiled runs
agree to the bit) and so that nothing else imports numba. It is the one place in `solver` that touches a disk: compiled
kernels are kept there, and the one that draws numbers from the system: those in the names of compiled functions.
Nothing that is decided depends on either. Setting NUMBA_DISABLE_JIT=1 before the process starts runs the same source as
plain Python. It contains no kernel.

The state of a run travels between kernels as one reference: passing a tuple of fifty arrays instead costs 110 ns per
call and a minute of compilation, a reference 6 ns. `StateType` and `StateProxy` are what such a state derives from, for
the compiler and for Python; `define_state` joins the two.
"""

import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config, types
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache
from numba.experimental import structref

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

COMPILING = not config.DISABLE_JIT  # type: ignore[attr-defined]


def _count_apart() -> None:
    """Give compiled functions numbers that no other process gives.

    Numba counts from 1 in every process and puts the number into the names of functions. Two that differ only in what
    they enclose (those of np.sort and of np.argsort) then get one name in two processes, and a third that loads the
    kernels of both calls one for the other: a wrong answer or a crash. Numba#10128 is of the kind.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(62))  # noqa: SLF001


if COMPILING:
    _count_apart()
    os.register_at_fork(after_in_child=_count_apart)


@cache
def _folder_of_kernels(package: Path) -> str:
    """Return where the compiled kernels of a package are kept: a folder named after the state of its sources.

    Numba notices a change of the file a kernel stands in, but not of the kernels it calls in other files. A new state
    of the sources therefore gets a new folder, and the old ones go.
    """
    state = hashlib.sha256(numba.__version__.encode())
    for source in (*sorted(package.glob("*.py")), Path(__file__)):
        facts = source.stat()
        state.update(f"{source} {facts.st_mtime_ns} {facts.st_size}\n".encode())
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(given) if given else package / "__pycache__"
    if not os.access(home if home.is_dir() else package, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ballast"
    folder = home / f"kernels-{package.name}-{state.hexdigest()[:16]}"
    if not folder.is_dir() and home.is_dir():
        for old in home.glob(f"kernels-{package.name}-*"):
            if old != folder:  # another process may just have made it
                shutil.rmtree(old, ignore_errors=True)
    return str(folder)


def kernels_are_kept(package: str) -> bool:
    """Whether kernels of a package (``simulator.engine``) were compiled before."""
    folder = Path(__file__).parent.parent.joinpath(*package.split("."))
    return not COMPILING or any(Path(_folder_of_kernels(folder)).glob("*/*.nbc"))


def before_compiling(tell: Callable[[], None]) -> None:
    """Have ``tell`` called once, before this process compiles the first kernel of a package."""
    _told.clear()
    _told.append(tell)


_told: list[Callable[[], None]] = []


class _SharedCache(FunctionCache):
    """A kernel's files, of which one process at a time adds one: numba numbers them by what it last read."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None and _told and not any(Path(self.cache_path).glob("*.nbc")):
            _told.pop()()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        Path(self.cache_path).mkdir(parents=True, exist_ok=True)
        with Path(self.cache_path, "lock").open("w") as lock:
            with suppress(OSError):  # some network disks know no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(sig, data)


def compiled(kernel: Kernel) -> Kernel:
    """Compile a function when it is first called, and keep the result in a cache on disk."""
    made: Any = numba.njit(fastmath=False, nogil=True)(kernel)
    if COMPILING:
        folder = _folder_of_kernels(Path(kernel.__code__.co_filename).parent)
        config.CACHE_DIR = folder  # type: ignore[attr-defined]
        made._cache = _SharedCache(kernel)  # noqa: SLF001  as cache=True does
    return cast("Kernel", made)


class StateType(types.StructRef):
    """What the compiler knows of a state: the types of its fields."""

    def preprocess_fields(self, fields: Any) -> Any:
        """Forget what the compiler knows of the fields' values."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class StateProxy(structref.StructRefProxy if COMPILING else object):  # type: ignore[misc]
    """What Python holds of a state. Made by a kernel from the fields in their order."""

    if not COMPILING:
        FIELDS: Sequence[str] = ()

        def __init__(self, *values: Any) -> None:
            for field, value in zip(self.FIELDS, values, strict=True):
                setattr(self, field, value)


def define_state(proxy: type[StateProxy], kind: type[StateType], fields: Sequence[str]) -> None:
    """Let kernels take and make states of a class. Both classes must stand at the top of a module (for the cache)."""
    if COMPILING:
        structref.register(kind)
        structref.define_proxy(proxy, kind, list(fields))
    else:
        proxy.FIELDS = fields
