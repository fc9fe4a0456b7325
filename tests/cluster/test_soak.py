"""An hour of changing traffic: memory and open files must not grow (R12). Part of ``make chaos`` only."""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, MODEL_SERVICES
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.results import record
from tests.cluster.scene import histogram, variant

SPACE = "soak"
SERVICES = 20
SOAK_S = float(os.environ.get("BALLAST_SOAK_S", "3600"))
LOOK_S = 15.0
MOST_GROWTH_MIB_PER_H = 4.0
"""Of the first hour; what remembers every change grows by more."""
PATIENT = ("--lease-duration=60", "--renew-deadline=45", "--retry-period=2")
"""A machine that stands still for seconds ends no soak."""


def resident_mib(pid: int) -> float:
    """Return the memory of a process without its children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children_mib(pid: int) -> float:
    """Return the memory of a process's children: here the solver, and Python's that cleans up after it."""
    found = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # threads and children come and go
            found += sum(resident_mib(int(child)) for child in (task / "children").read_text().split())
    return found


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.chaos
def test_an_hour_of_changes_leaves_memory_and_files_as_they_were(plane: ControlPlane, tmp_path: Path) -> None:
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {"SoakA": 20, "SoakH": 10}, prefix="soak")
    scene.put(api, GPU_PROFILES, scene.profile("soak-a", "SoakA", max_rps=1.0, price=1.0))
    scene.put(api, GPU_PROFILES, scene.profile("soak-h", "SoakH", max_rps=6.0, price=5.0))
    for number in range(SERVICES):
        for letter, product in (("a", "SoakA"), ("h", "SoakH")):
            scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, f"s{number}-{letter}", product))
    draw = random.Random(12)  # noqa: S311 - a repeatable load, no secret

    def put(number: int) -> None:
        both = [variant("a", f"s{number}-a", "soak-a"), variant("h", f"s{number}-h", "soak-h")]
        body = scene.service(SPACE, f"s{number}", both, traffic=histogram(round(draw.uniform(0, 12), 2)))
        scene.put(api, MODEL_SERVICES, body)

    operators = scene.Operators(plane.kubeconfig, tmp_path, namespace=SPACE)
    one = operators.start(
        f"--watch-namespaces={SPACE}", f"--database-url=sqlite:///{tmp_path}/history.db", *PATIENT
    )
    looks: list[tuple[float, float, float, int]] = []
    began_s = time.monotonic()
    try:
        while time.monotonic() - began_s < SOAK_S:
            put(draw.randrange(SERVICES))
            time.sleep(draw.uniform(0.5, 1.5))
            now_s = time.monotonic() - began_s
            if not looks or now_s - looks[-1][0] >= LOOK_S:
                assert one.process.poll() is None, one.text()[-2000:]
                looks.append((now_s, resident_mib(one.pid), children_mib(one.pid), open_files(one.pid)))
        assert eventually(
            lambda: all(scene.phase(api, SPACE, f"s{n}") == "Applied" for n in range(SERVICES)), within_s=120
        )
    finally:
        operators.end()
    times, memory, children, files = (np.array(column) for column in zip(*looks, strict=True))
    late, last = times >= SOAK_S / 3, times >= SOAK_S * 2 / 3

    def slope(of: np.ndarray, when: np.ndarray) -> float:
        """Return MiB per hour."""
        return float(np.polyfit(times[when] / 3600, of[when], 1)[0])

    record("R12 soak, length", SOAK_S / 3600, "h", limit="≥ 1", met=SOAK_S >= 3600)
    for part in (1, 2, 3):
        at = int(np.argmin(np.abs(times - SOAK_S * part / 3)))
        record(f"R12 memory after {part}/3 of it", float(memory[at]), "MiB")
    record("R12 memory of its children at the end", float(children[-1]), "MiB")
    grown = slope(memory, late)
    limit = "< 1 after 1 h (24 h run)"
    record("R12 growth of memory in the last two thirds", grown, "MiB/h", limit=limit, met=grown < 1)
    record("R12 growth of memory in the last third", slope(memory, last), "MiB/h")
    record("R12 growth of its children in the last third", slope(children, last), "MiB/h")
    record("R12 open files, most less least in the last two thirds", float(np.ptp(files[late])), "files")
    assert np.ptp(files[late]) <= 20
    if SOAK_S >= 3600:  # before, the process still warms up
        assert grown < MOST_GROWTH_MIB_PER_H
