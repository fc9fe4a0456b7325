"""Certificates that sign themselves, made by openssl, for servers on loopback. Not a test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Pair:
    """A certificate that signs itself, and its key."""

    certificate: Path
    key: Path


def made(folder: Path, name: str, *, served: str = "IP:127.0.0.1") -> Pair:
    """Make a certificate for names such as ``DNS:a,IP:127.0.0.1``; skips the test where that cannot be done."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    done = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName={served}", "-days", "1"),
            *("-keyout", str(pair.key), "-out", str(pair.certificate)),
        ],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("openssl makes no certificate here")
    return pair
