"""Members of zip archives, read within bounds: what npz files and PyTorch's files are made of.

It exists so that a damaged, encrypted or inflated archive is one line, whichever reader opens it.
"""

import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from telemetry.experts.documents import fail, read_bytes, source_of

LARGEST_MEMBER_BYTES = 2**32
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


class Archive:
    """A zip file in memory.

    Raises
    ------
    InputError
        If it cannot be read or is no zip file.
    """

    def __init__(self, path: str | Path, *, right: str) -> None:
        self.source = source_of(path)
        self._right = right
        raw = read_bytes(path, largest=LARGEST_MEMBER_BYTES)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
            members = self._zip.infolist()
        except _DAMAGE:
            fail(self.source, "not a whole zip archive", right=right)
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            fail(self.source, "a member stands twice in the archive", right=right)

    def names(self) -> tuple[str, ...]:
        """Return the members' names."""
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        """Return a member's content, of at most `LARGEST_MEMBER_BYTES`."""
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fail(self.source, "compressed in a way that is not known here", field=name, right=self._right)
        if member.file_size > LARGEST_MEMBER_BYTES:
            fail(self.source, f"more than {LARGEST_MEMBER_BYTES} bytes", field=name, right=self._right)
        try:
            raw = self._zip.read(member)
        except _DAMAGE:
            fail(self.source, "damaged", field=name, right=self._right)
        if len(raw) != member.file_size:
            fail(self.source, "damaged", field=name, right=self._right)
        return raw
