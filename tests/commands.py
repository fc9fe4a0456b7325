"""Runs ``ballast`` as people do, but without loading it anew each time.

It exists because the tests run hundreds of commands. A command is a process of its own (`tests.command_server` forks
it): exit code, standard streams, environment and working directory are real. What start-up itself does (lazy loading,
signals, closed pipes) is tested with `BALLAST`.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BALLAST = (sys.executable, "-c", "from controller.cli.root import main; main()")
"""The command as a process that loads everything itself."""
COMPILING = "compiling for this machine (once, about half a minute)\n"
"""What a command says on stderr where its kernels were not compiled before."""


class _Server:
    """A process with everything loaded, and the line to it."""

    def __init__(self) -> None:
        self.line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_server", str(other.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=(other.fileno(),),
        )
        other.close()

    def end(self) -> None:
        self.line.close()
        self.process.wait(10)


_servers: dict[int, _Server] = {}


def _server() -> _Server:
    pid = os.getpid()
    if pid not in _servers:
        _servers[pid] = _Server()
        atexit.register(_servers[pid].end)
    return _servers[pid]


def ballast(
    *words: str | Path,
    stdin: str | None = None,
    at: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run ``ballast`` with these words; ``environment`` comes on top of this process's.

    Its stderr is given as where all kernels were compiled before: tests may run in any order.

    Raises
    ------
    subprocess.TimeoutExpired
        If it takes longer than ``limit_s``; it is killed then.
    """
    server = _server()
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin or "")
        given.seek(0)
        spoken = [str(word) for word in words]
        asked = {
            "words": spoken,
            "at": str(at or Path.cwd()),
            "environment": {**os.environ, **(environment or {})},
        }
        descriptors = [given.fileno(), out.fileno(), err.fileno()]
        socket.send_fds(server.line, [json.dumps(asked).encode()], descriptors)
        pid = json.loads(server.line.recv(64))
        server.line.settimeout(limit_s)
        try:
            code = json.loads(server.line.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            server.line.settimeout(None)
            server.line.recv(64)
            raise subprocess.TimeoutExpired(spoken, limit_s) from None
        finally:
            server.line.settimeout(None)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode().replace("\r\n", "\n"))
    out_text, err_text = texts
    return subprocess.CompletedProcess(spoken, code, out_text, err_text.replace(COMPILING, ""))
