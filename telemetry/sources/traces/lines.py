"""A file as blocks of whole lines: unpacked, digested, in bounded memory.

It exists so that every trace reader gets the same treatment of gzip, byte order marks, missing files and endless lines,
and so that none holds a file in memory. It knows nothing of columns.
"""

import hashlib
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from solver.domain.errors import InputError, Place

BLOCK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 4 << 20
_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def quoted(text: str | bytes) -> str:
    """Show a piece of bad input in an error: short, quoted, without control characters."""
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return ascii(shown if len(shown) <= 60 else shown[:57] + "...")


class LineSource:
    """A text file that is read once, from front to back.

    Parameters
    ----------
    path
        The file, packed with gzip or not (its first bytes say so); ``-`` is standard input.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = "standard input" if str(path) == "-" else str(path)
        self.bytes_read = 0
        """Bytes of the file as it lies on the disk that were read so far."""
        self._path = path
        self._digest = hashlib.sha256()
        self._line = 1
        self._blocks: Generator[tuple[int, bytes], None, None] = self._whole_lines()
        self._first: tuple[int, bytes] | None = None

    @property
    def sha256(self) -> str:
        """Digest of the bytes read so far: of the file once all blocks were read."""
        return self._digest.hexdigest()

    def place(self, line: int | None = None, field: str | None = None) -> Place:
        """Say where in this file something is."""
        return Place(self.name, line, field)

    def first_line(self) -> bytes:
        """Return the first line without its end, not consuming it.

        Raises
        ------
        InputError
            If the file cannot be read, is empty, is not text, or its lines end in lone carriage returns.
        """
        if self._first is None:
            self._first = next(self._blocks, None)
        if self._first is None:
            raise InputError(
                "the file is empty", where=self.name, right="a header line and one line per request"
            )
        line = self._first[1].partition(b"\n")[0].removesuffix(b"\r")
        if b"\r" in line:
            raise self._carriage_returns()
        return line

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number of the first line, whole lines ending in a line feed)."""
        if self._first is not None:
            yield self._first
        yield from self._blocks

    def close(self) -> None:
        """Close the file before its end."""
        self._blocks.close()

    def _carriage_returns(self) -> InputError:
        return InputError(
            "the lines end in lone carriage returns",
            where=self.place(self._line),
            right="line feeds (tr '\\r' '\\n' <FILE makes them)",
        )

    def _whole_lines(self) -> Generator[tuple[int, bytes], None, None]:
        pending = b""
        for piece in self._unpacked():
            data = pending + piece
            end = data.rfind(b"\n") + 1
            if end:
                yield self._line, data[:end]
                self._line += data.count(b"\n", 0, end)
            pending = data[end:]
            if len(pending) > LONGEST_LINE_BYTES:
                if b"\r" in pending:
                    raise self._carriage_returns()
                raise InputError(
                    f"a line of more than {LONGEST_LINE_BYTES >> 20} MiB",
                    where=self.place(self._line),
                    right="one request per line",
                )
        if pending:
            yield self._line, pending + b"\n"

    def _unpacked(self) -> Iterator[bytes]:
        pieces = self._raw()
        head = b""
        for piece in pieces:
            head += piece
            if len(head) >= 2:
                break
        if head[:2] == _GZIP:
            pieces = self._gunzipped(head, pieces)
            head = b""
        for piece in pieces:
            head += piece
            if len(head) >= 3:
                break
        if head[:2] in _UTF16_MARKS:
            raise InputError(
                "not UTF-8: it begins with the mark of UTF-16", where=self.place(1), right="UTF-8 text"
            )
        yield head.removeprefix(_UTF8_MARK)
        yield from pieces

    def _gunzipped(self, head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(wbits=31)
        data = head
        try:
            while True:
                while data:
                    yield unpacker.decompress(data, BLOCK_BYTES)
                    if unpacker.eof:  # another packed file may follow, then perhaps padding
                        data = unpacker.unused_data.lstrip(b"\0")
                        if data:
                            unpacker = zlib.decompressobj(wbits=31)
                    else:
                        data = unpacker.unconsumed_tail
                more = next(pieces, None)
                if more is None:
                    break
                if unpacker.eof:
                    more = more.lstrip(b"\0")
                    if more:
                        unpacker = zlib.decompressobj(wbits=31)
                data = more
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        if not unpacker.eof:
            raise self._damaged("it ends in the middle")

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"damaged gzip data: {reason}",
            where=self.place(self._line),
            right="copy or compress the file again",
        )

    def _raw(self) -> Iterator[bytes]:
        try:
            with self._opened() as file:
                while piece := file.read(BLOCK_BYTES):
                    self.bytes_read += len(piece)
                    self._digest.update(piece)
                    yield piece
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            if isinstance(error, InputError):
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InputError(
                f"cannot be read: {reason}", where=self.name, right="a readable file, or - for standard input"
            ) from None

    def _opened(self) -> "nullcontext[BinaryIO] | BinaryIO":
        return nullcontext(sys.stdin.buffer) if str(self._path) == "-" else Path(self._path).open("rb")
