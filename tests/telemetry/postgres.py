"""A real PostgreSQL server on loopback for the tests of the history.

It exists because SQLite forgives what PostgreSQL does not. As root it runs under another user, since PostgreSQL refuses
root. It is stopped by its own control program.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

UNPRIVILEGED = ("postgres", "nobody")


class NoServerError(Exception):
    """There is no PostgreSQL to start; the message says why."""


@dataclass(slots=True, kw_only=True)
class Postgres:
    """One server with its data."""

    programs: Path
    folder: Path
    port: int
    user: str | None

    @property
    def url(self) -> str:
        """Where it listens, as SQLAlchemy reads it."""
        return f"postgresql+psycopg://history@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs as somebody who may."""
        command: Sequence[str] = [str(self.programs / program), *words]
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            command = [
                "setpriv",
                f"--reuid={account.pw_uid}",
                f"--regid={account.pw_gid}",
                "--clear-groups",
                *command,
            ]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoServerError(f"{program} failed: {(done.stderr or done.stdout).strip()[-300:]}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -c unix_socket_directories={self.folder} -c fsync=off"
        log = str(self.folder / "server.log")
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        """Stop it: fast, or immediate as in a crash."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", how, "stop")


def make_server(folder: Path) -> Postgres:
    """Prepare a server's data.

    Raises
    ------
    NoServerError
        If PostgreSQL is not installed, or may not run here.
    """
    programs = _programs()
    user = _user()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = Postgres(programs=programs, folder=folder, port=port, user=user)
    if user is not None:
        shutil.chown(folder, user)
    server.run(
        "initdb", "-D", str(folder / "data"), "-U", "history", "-A", "trust", "--no-sync", "-E", "UTF8"
    )
    return server


@contextmanager
def running_server() -> Iterator[Postgres]:
    """Run a server while the context lasts, in a folder that its user may enter (pytest's own may not be)."""
    with tempfile.TemporaryDirectory(prefix="ballast-postgres-") as folder:
        server = make_server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            with suppress(NoServerError):  # it may be down already
                server.stop("immediate")


def _programs() -> Path:
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found is not None:
        candidates.append(Path(found).resolve().parent)
    for candidate in candidates:
        if all((candidate / name).is_file() for name in ("initdb", "pg_ctl", "postgres")):
            return candidate
    raise NoServerError("PostgreSQL's server is not installed (on Debian: apt install postgresql)")


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        raise NoServerError("PostgreSQL refuses to run as root and setpriv is not installed")
    for name in UNPRIVILEGED:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise NoServerError("PostgreSQL refuses to run as root and there is no other user")
