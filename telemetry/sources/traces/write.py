"""Writes requests as the plain CSV that `telemetry.sources.traces.plain` reads, never half a file.

It exists so that every command that makes a trace writes the same bytes for the same requests: times are written so
that reading them back gives the same number, and packed files carry no time of day. A file appears under its name only
when it is complete.
"""

import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from solver.domain.errors import InputError
from solver.domain.trace import Requests

Write = Callable[[str], object]
_OPTIONAL = (("session", "session"), ("model", "model"), ("class", "request_class"))


def write_trace(chunks: Iterable[Requests], path: str | Path) -> int:
    """Write chunks in their order to a file (``.gz`` is packed; ``-`` is standard output); return the requests written.

    Text columns are written if the first chunk has them. Prefix blocks have no place in this format.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    if str(path) == "-":
        return write_rows(chunks, sys.stdout.write)
    with whole_file(Path(path)) as write:
        return write_rows(chunks, write)


def write_rows(chunks: Iterable[Requests], write: Write) -> int:
    """Write the header and the rows through ``write``; return the number of requests."""
    number = 0
    extra: list[tuple[str, str]] | None = None
    for chunk in chunks:
        if extra is None:
            extra = [(name, column) for name, column in _OPTIONAL if getattr(chunk, column) is not None]
            write(
                ",".join(("arrival_s", "prompt_tokens", "output_tokens", *(name for name, _ in extra))) + "\n"
            )
        write(_rows(chunk, [column for _, column in extra]))
        number += len(chunk)
    if extra is None:
        write("arrival_s,prompt_tokens,output_tokens\n")
    return number


def _rows(chunk: Requests, extra: list[str]) -> str:
    columns: list[list[Any]] = [
        chunk.arrival_s.tolist(),
        chunk.prompt_tokens.tolist(),
        chunk.output_tokens.tolist(),
    ]
    for column in extra:
        labels = getattr(chunk, column)
        shown = [_field(name) for name in labels.names] if labels is not None else [""]
        columns.append(
            [shown[code] for code in labels.codes.tolist()] if labels is not None else shown * len(chunk)
        )
    line = "%r,%d,%d" + ",%s" * len(extra) + "\n"
    return "".join(map(line.__mod__, zip(*columns, strict=True)))


def _field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if '"' in text or "," in text else text


@contextmanager
def whole_file(path: Path) -> Iterator[Write]:
    """Open a text file that appears under its name when the block ends without an error, and else not at all."""
    with whole_files() as begin, begin(path) as write:
        yield write


@contextmanager
def whole_files() -> Iterator["Begin"]:
    """Write several files that appear together when the block ends without an error, and else not at all.

    Yields a function that begins a file; what it returns is a context whose value is its ``write``.
    """
    finished: list[tuple[Path, Path]] = []

    def begin(path: Path) -> _OpenFile:
        opened = _OpenFile(path)
        if opened.temporary is not None:
            finished.append((opened.temporary, path.resolve()))  # a link stays a link
        return opened

    try:
        yield begin
        for temporary, path in finished:
            try:
                temporary.replace(path)
            except OSError as error:
                raise _unwritable(path, error) from None
    finally:
        for temporary, _ in finished:
            temporary.unlink(missing_ok=True)


class _OpenFile:
    """One file under a temporary name in its final folder; a device or pipe is written as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            raise InputError("is a directory", where=str(path), right="the name of a file to write")
        self.temporary: Path | None = None
        try:
            special = path.exists() and not path.is_file()
            raw: BinaryIO = path.open("wb") if special else self._begin_temporary()
        except (OSError, ValueError) as error:
            raise _unwritable(path, error) from None
        self._stack = ExitStack()
        self._raw = self._stack.enter_context(raw)
        self._packed = (
            self._stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=self._raw, mtime=0))
            if path.suffix == ".gz"
            else None
        )

    def __enter__(self) -> Write:
        return self._write

    def __exit__(self, *error: object) -> None:
        try:
            self._stack.close()
        except OSError as failure:
            raise _unwritable(self._path, failure) from None

    def _begin_temporary(self) -> BinaryIO:
        handle, name = tempfile.mkstemp(
            prefix=f".{self._path.name[:80]}.", suffix=".part", dir=self._path.resolve().parent
        )
        self.temporary = Path(name)
        mask = os.umask(0)
        os.umask(mask)
        self.temporary.chmod(0o666 & ~mask)  # mkstemp makes private files; this is an ordinary one
        return os.fdopen(handle, "wb")

    def _write(self, text: str) -> None:
        try:
            (self._packed or self._raw).write(text.encode("utf-8"))
        except OSError as error:
            raise _unwritable(self._path, error) from None


Begin = Callable[[Path], _OpenFile]


def _unwritable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"cannot be written: {reason}", where=str(path), right="a file in a writable folder")
