"""Tensors in ``safetensors`` files: eight bytes of header length, a JSON header, the numbers.

It exists because TensorRT-LLM dumps its statistics so, and the format is too small to need a library. Every offset is
checked against the file before it is used.
"""

import math
import struct
from pathlib import Path

import numpy as np

from telemetry.experts.archives import LARGEST_MEMBER_BYTES
from telemetry.experts.arrays import Numbers
from telemetry.experts.documents import fail, json_of, read_bytes, source_of

_RIGHT = "a safetensors file"
_LARGEST_HEADER_BYTES = 100_000_000
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


def read_safetensors(path: str | Path) -> dict[str, Numbers]:
    """Read every tensor of a file (read-only arrays).

    Raises
    ------
    InputError
        With the tensor: cut off, offsets outside the file or not matching the shape, a type that is no plain number.
    """
    source = source_of(path)
    raw = read_bytes(path, largest=LARGEST_MEMBER_BYTES)
    if len(raw) < 8:
        fail(source, "the file is cut off", right=_RIGHT)
    (length,) = struct.unpack("<Q", raw[:8])
    if length > min(_LARGEST_HEADER_BYTES, len(raw) - 8):
        fail(source, "the header is cut off", right=_RIGHT)
    header = json_of(raw[8 : 8 + length], source)
    if not isinstance(header, dict):
        fail(source, "the header is not an object", right=_RIGHT)
    body = memoryview(raw)[8 + length :]
    arrays: dict[str, Numbers] = {}
    used = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            shape, (begin, end) = list(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            fail(source, "the tensor's header cannot be read", field=name[:60], right="plain numbers")
        sizes = (*shape, begin, end)
        if len(shape) > 8 or any(type(size) is not int or not 0 <= size <= 2**40 for size in sizes):
            fail(source, "the tensor's shape cannot be read", field=name[:60], right="plain numbers")
        if not 0 <= begin <= end <= len(body) or end - begin != math.prod(shape) * dtype.itemsize:
            fail(source, "the tensor is cut off", field=name[:60], right=_RIGHT)
        arrays[name] = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
        used += end - begin
    if used != len(body):
        fail(source, f"{len(body)} bytes of numbers, the header says {used}", right=_RIGHT)
    return arrays
