"""Arrays of numbers in numpy's files: npy, and npz (a zip of npy).

It exists because `numpy.load` allocates what a header claims, and raises a dozen kinds of errors on damaged files.
This reader takes plain numbers only; arrays of objects, which are pickles and could run code, are refused.
"""

import ast
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.experts.archives import LARGEST_MEMBER_BYTES, Archive
from telemetry.experts.documents import fail, read_bytes, source_of

Numbers = npt.NDArray[Any]
_MAGIC = b"\x93NUMPY"
_PLAIN = re.compile(r"[<>|=]?[iuf][1248]|[|]?b1")
_RIGHT = "an array of numbers as numpy.save writes it"


class ArrayFile:
    """An npz file; arrays are read as they are asked for."""

    def __init__(self, path: str | Path) -> None:
        self.source = source_of(path)
        self._archive = Archive(path, right="an npz file as numpy.savez writes it")
        self.names = frozenset(name.removesuffix(".npy") for name in self._archive.names())

    def read(self, name: str) -> Numbers:
        """Return an array that is there.

        Raises
        ------
        InputError
            If it holds anything but numbers, or not as many as its shape says.
        """
        member = f"{name}.npy"
        if member not in self._archive.names():
            fail(self.source, "missing", field=name, right=_RIGHT)
        return npy_of(self._archive.read(member), self.source, name)


def read_npy(path: str | Path) -> Numbers:
    """Read an npy file."""
    return npy_of(read_bytes(path, largest=LARGEST_MEMBER_BYTES), source_of(path), None)


def npy_of(raw: bytes, source: str, field: str | None) -> Numbers:
    """Return the array in the bytes of an npy file (read-only).

    Raises
    ------
    InputError
        If it is not one, is cut off, or holds objects.
    """
    wide = raw[6:7] != b"\x01"
    start = 12 if wide else 10
    if raw[:6] != _MAGIC or raw[6:7] not in (b"\x01", b"\x02", b"\x03") or len(raw) < start:
        fail(source, "not an npy array", field=field, right=_RIGHT)
    (length,) = struct.unpack("<I" if wide else "<H", raw[8:start])
    if length > 10_000 or len(raw) < start + length:
        fail(source, "the array is cut off", field=field, right=_RIGHT)
    try:
        header = ast.literal_eval(raw[start : start + length].decode("latin-1").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        fail(source, "the array's header cannot be read", field=field, right=_RIGHT)
    if not isinstance(descr, str) or not _PLAIN.fullmatch(descr):
        pickled = isinstance(descr, str) and descr.endswith("O")
        what = "holds pickled objects" if pickled else f"holds values of type {str(descr)[:40]!r}"
        fail(source, what, field=field, right="an array of numbers")
    if (
        not isinstance(shape, tuple)
        or len(shape) > 8
        or any(type(size) is not int or not 0 <= size <= 2**40 for size in shape)
    ):
        fail(source, "the array's header cannot be read", field=field, right=_RIGHT)
    dtype = np.dtype(descr)
    if len(raw) - start - length != math.prod(shape) * dtype.itemsize:
        fail(
            source, f"the array is cut off: shape {list(shape)} needs other bytes", field=field, right=_RIGHT
        )
    flat = np.frombuffer(raw, dtype=dtype, offset=start + length)
    return flat.reshape(shape, order="F" if fortran else "C")
