"""Values that PyTorch's ``torch.save`` wrote, read without PyTorch and without running what the file says.

It exists because engines dump their expert counts as ``.pt``, and a ``.pt`` is a pickle: a program for a small stack
machine which may call anything. The machine below knows numbers, text, containers and tensors; every other
instruction, and every name but those of tensors, is refused. The layout (a zip of ``data.pkl``, ``byteorder`` and
``data/<key>``) is that of PyTorch 1.6 and later.
"""

import math
import pickletools
from pathlib import Path
from typing import Any, Literal

import numpy as np

from telemetry.experts.archives import Archive
from telemetry.experts.arrays import Numbers
from telemetry.experts.documents import fail

_RIGHT = "a file that torch.save wrote, of numbers, lists, dictionaries and tensors"
_MOST_NUMBERS = 10**7
"""A view may repeat its storage (``expand``), but not beyond this many numbers."""
_STORAGES = {
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "BoolStorage": "?",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # widened below: numpy has no such type
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}
_CONSTANTS = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"]
)
_CALLED = (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"))


class _Mark:
    """Where a list of arguments begins on the stack."""


class _Name:
    """A name that the pickle mentions: a tensor's maker or a storage's type. It is never imported."""

    def __init__(self, module: str, name: str) -> None:
        self.path = (module, name)


class _Storage:
    """A tensor's numbers."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers


class _RefusedError(Exception):
    """The pickle does what the machine does not know; told by its text."""


def read_torch(path: str | Path) -> Any:
    """Read a ``.pt`` file; tensors come back as arrays (read-only).

    Raises
    ------
    InputError
        In one line: no such archive, cut off, or anything in it but plain values and tensors.
    """
    archive = Archive(path, right=_RIGHT)
    programs = [name for name in archive.names() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(programs) != 1:
        fail(archive.source, "no data.pkl in the archive", right=_RIGHT)
    folder = programs[0].removesuffix("data.pkl")
    order: Literal["<", ">"] = "<"
    if f"{folder}byteorder" in archive.names():
        order = ">" if archive.read(f"{folder}byteorder").strip() == b"big" else "<"
    machine = _Machine(archive, folder, order)
    try:
        return machine.run(archive.read(programs[0]))
    except _RefusedError as refused:
        fail(archive.source, str(refused), field="data.pkl", right=_RIGHT)


class _Machine:
    """Runs a pickle's instructions on plain values."""

    def __init__(self, archive: Archive, folder: str, order: Literal["<", ">"]) -> None:
        self.archive = archive
        self.folder = folder
        self.order = order
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[tuple[str, str], _Storage] = {}

    def run(self, program: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    if len(self.stack) != 1 or isinstance(self.stack[0], (_Mark, _Name, _Storage)):
                        raise _RefusedError("the pickle ends without a value")
                    return self.stack[0]
                self.step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError):
            raise _RefusedError("the pickle is damaged") from None
        raise _RefusedError("the pickle is cut off")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            parts = tuple(self.pop() for _ in range(size))
            stack.append(parts[::-1])
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name == "APPEND":
            value = self.pop()
            self.top(list).append(value)
        elif name == "APPENDS":
            values = self.since_mark()
            self.top(list).extend(values)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.put(key, value)
        elif name == "SETITEMS":
            values = self.since_mark()
            for key, value in zip(values[::2], values[1::2], strict=True):
                self.put(key, value)
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self.named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(self.named(module, attribute))
        elif name == "BINPERSID":
            stack.append(self.storage(self.pop()))
        elif name == "REDUCE":
            arguments, called = self.pop(), self.pop()
            stack.append(self.call(called, arguments))
        else:
            raise _RefusedError(f"the pickle's instruction {name} is not one of plain data")

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise _RefusedError("the pickle is damaged")
        return value

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def put(self, key: Any, value: Any) -> None:
        if type(key) not in (str, int):
            raise ValueError
        self.top(dict)[key] = value

    def named(self, module: Any, name: Any) -> _Name:
        found = _Name(str(module), str(name))
        if found.path in _CALLED or (module == "torch" and name in _STORAGES):
            return found
        text = f"{module}.{name}"[:80]
        raise _RefusedError(f"the pickle names {text!r}, which is neither a number nor a tensor")

    def storage(self, identity: Any) -> _Storage:
        """Return the numbers that ("storage", type, key, device, count) stands for."""
        word, kind, key, _, count = identity
        if word != "storage" or not isinstance(kind, _Name) or kind.path[1] not in _STORAGES:
            raise ValueError
        if type(key) is not str or type(count) is not int:
            raise ValueError
        known = self.storages.get((key, kind.path[1]))
        if known is None:
            member = f"{self.folder}data/{key}"
            if member not in self.archive.names():
                raise _RefusedError(f"the tensor {key[:40]!r} is missing")
            raw = self.archive.read(member)
            dtype = np.dtype(_STORAGES[kind.path[1]]).newbyteorder(self.order)
            if len(raw) % dtype.itemsize:
                raise _RefusedError(f"the tensor {key[:40]!r} is cut off")
            numbers: Numbers = np.frombuffer(raw, dtype=dtype)
            if kind.path[1] == "BFloat16Storage":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            known = self.storages[key, kind.path[1]] = _Storage(numbers)
        if known.numbers.size != count:
            raise _RefusedError(f"the tensor {key[:40]!r} is cut off")
        return known

    def call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, _Name) or type(arguments) is not tuple or called.path not in _CALLED:
            raise _RefusedError("the pickle calls what is no tensor")
        if called.path == ("collections", "OrderedDict"):
            if arguments:  # torch writes it empty, as a tensor's hooks
                raise ValueError
            return {}
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 8:
            raise ValueError
        sizes = (offset, *shape, *strides)
        if any(type(size) is not int or not 0 <= size <= 2**40 for size in sizes):
            raise ValueError
        numbers = storage.numbers
        count = math.prod(shape)
        if count == 0:
            return np.zeros(shape, dtype=numbers.dtype)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= numbers.size or count > max(numbers.size, _MOST_NUMBERS):
            raise _RefusedError("a tensor reaches beyond its numbers")
        return np.lib.stride_tricks.as_strided(
            numbers[offset:],
            shape=shape,
            strides=[stride * numbers.itemsize for stride in strides],
            writeable=False,
        )
