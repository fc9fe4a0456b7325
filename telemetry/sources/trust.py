"""Whom to trust over TLS, and who one is: certificates and secrets in files that are exchanged while the program runs.

It exists because mounted Secrets rotate: what was renewed must count without a restart, and a certificate that is half
written must not. It opens no connection, and says no secret.
"""

import hashlib
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from solver.domain.errors import InputError

MOST_SECRET_BYTES = 64 * 2**10


def secret_in(path: Path) -> str:
    """Return the one line of printable ASCII in a file as it is now, such as a token.

    Raises
    ------
    InputError
        One line that names the file and never quotes it: it is not there, empty, or more than one line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_SECRET_BYTES + 1)
    except OSError as error:
        raise InputError(error.strerror or "it cannot be read", where=str(path)) from None
    if not raw.strip():
        raise InputError("it is empty", where=str(path), right="one line, the secret")
    text = raw.strip().decode("ascii", errors="replace")
    if len(raw) > MOST_SECRET_BYTES or not (text.isascii() and text.isprintable()):
        raise InputError("it holds no secret", where=str(path), right="one line of printable ASCII")
    return text


@dataclass(slots=True, kw_only=True)
class Trust:
    """Certificates in files; may be asked from any thread.

    Parameters
    ----------
    authority
        Certificates (PEM) that sign those of the other side, and nobody else's do; None: the public authorities.
    certificate, key
        Who one is (PEM), where the other side wants to know; both or none.
    """

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    _context: ssl.SSLContext | None = None
    _read: bytes = b""
    """Of the files' content."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def context(self) -> ssl.SSLContext:
        """Return what the files say now; where they are gone or half exchanged, what they said before.

        It is the same object as long as the files are the same.

        Raises
        ------
        InputError
            One line: there are no certificates, and there were none before.
        """
        with self._lock:
            try:
                now = self._digest()
                if self._context is None or now != self._read:
                    self._context, self._read = self._built(), now
            except (OSError, InputError) as error:
                if self._context is None:
                    raise error if isinstance(error, InputError) else InputError(str(error)) from None
            return self._context

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for path in (self.authority, self.certificate, self.key):
            part = b"" if path is None else path.read_bytes()
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()

    def _built(self) -> ssl.SSLContext:
        if self.authority is None:
            context = httpx.create_ssl_context(trust_env=False)
        else:
            try:
                context = ssl.create_default_context(cafile=str(self.authority))
            except ssl.SSLError:
                raise InputError(
                    "it holds no certificates", where=str(self.authority), right="certificates in PEM"
                ) from None
        if self.certificate is not None:
            try:
                # never asks for a passphrase on a terminal: a key that needs one is of no use here
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except (ssl.SSLError, ValueError):
                raise InputError(
                    "no certificate with its key",
                    where=f"{self.certificate}, {self.key}",
                    right="a certificate in PEM and the key that belongs to it, without a passphrase",
                ) from None
        return context
