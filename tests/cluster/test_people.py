"""``make cluster`` for somebody who sees Ballast for the first time: every line works, Ctrl-C leaves nothing."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.control_plane import eventually
from tests.cluster.scene import ROOT

START_LIMIT_S = 240.0


@dataclass(slots=True)
class Guest:
    """What somebody at a terminal sees, and a shell with the two export lines run."""

    process: subprocess.Popen[bytes]
    screen: Path

    def text(self) -> str:
        return self.screen.read_text(encoding="utf-8")

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        exports = "\n".join(re.findall(r"^ +export .*$", self.text(), re.MULTILINE))
        return subprocess.run(
            ["bash", "-c", f"{exports}\n{line}"], check=False, capture_output=True, text=True, timeout=120
        )

    def line(self, *parts: str) -> str:
        """Return the printed line that contains all parts."""
        (found,) = [line.strip() for line in self.text().splitlines() if all(part in line for part in parts)]
        return found


@pytest.fixture(scope="module")
def guest(helm: Path, kubectl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Return the running stage; ``helm`` and ``kubectl`` only say whether the programs are to be had."""
    assert helm.exists()
    assert kubectl.exists()
    screen = tmp_path_factory.mktemp("people") / "screen"
    with screen.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.people"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(screen.parent)},
        )
    running = Guest(process, screen)
    try:
        eventually(lambda: "Ctrl-C" in running.text() or process.poll() is not None, within_s=START_LIMIT_S)
        assert "Ctrl-C" in running.text(), running.text()
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_every_line_that_is_printed_works(guest: Guest) -> None:
    nodes = guest.shell(guest.line("get nodes"))
    assert nodes.stdout.count("NVIDIA-") == 20, nodes.stderr
    listed = guest.shell(guest.line("get modelservices")).stdout
    assert "WaitingForApproval" in listed
    assert "Proposed" in listed
    doctor = guest.shell(guest.line("doctor"))
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "Nothing is missing (0 warnings)" in doctor.stdout
    explained = guest.shell(guest.line("explain")).stdout
    assert "a plan waits for approval" in explained
    assert max(map(len, (doctor.stdout + explained).splitlines())) <= 100

    done = guest.shell(guest.line("approved="))
    assert done.returncode == 0, done.stderr

    def applied() -> bool:
        return "as planned" in guest.shell(guest.line("explain")).stdout

    assert eventually(applied, every_s=1.0), guest.shell(guest.line("explain")).stdout
    assert "PlanApproved" in guest.shell(guest.line("get", "events")).stdout

    assert guest.shell(guest.line("patch", "Auto")).returncode == 0
    assert eventually(lambda: "planned for 60" in guest.shell(guest.line("explain")).stdout, every_s=1.0)
    assert eventually(applied, every_s=1.0)
    assert guest.shell(guest.line("cordon")).returncode == 0
    assert guest.shell(guest.line("paused=true")).returncode == 0
    assert eventually(lambda: "paused:" in guest.shell(guest.line("explain")).stdout, every_s=1.0)
    assert guest.shell(guest.line("delete")).returncode == 0
    gone = "kubectl get -n team-a plan/chat"  # the experts' plan has another owner, and stays
    assert eventually(lambda: "NotFound" in guest.shell(gone).stderr, every_s=1.0)


def test_ctrl_c_stops_everything_and_leaves_nothing(guest: Guest) -> None:
    (config,) = re.findall(r"export KUBECONFIG=(\S+)", guest.text())
    folder = Path(config).parent
    assert folder.is_dir()
    os.killpg(guest.process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    assert guest.process.wait(60) == 0, guest.text()
    assert guest.text().rstrip().endswith("Stopped.")
    assert not folder.exists()
    assert eventually(lambda: not members(guest.process.pid)), members(guest.process.pid)


def members(group: int) -> list[str]:
    """Name the processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(path.parent.name)
    return found
