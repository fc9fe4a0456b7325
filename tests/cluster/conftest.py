"""One control plane per process for all tests of this folder; a module runs in one (``--dist loadfile``)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.cluster.binaries import UnavailableError, control_plane_binaries, others_crds, program, required
from tests.cluster.control_plane import ControlPlane, control_plane

Found = TypeVar("Found")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Return a running control plane."""
    binaries = found(control_plane_binaries)
    with control_plane(binaries, tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture(scope="session")
def helm() -> Path:
    """Return Helm of the pinned version."""
    return found(lambda: program("helm"))


@pytest.fixture(scope="session")
def kubectl() -> Path:
    """Return kubectl of the server's version."""
    return found(lambda: program("kubectl"))


@pytest.fixture(scope="session")
def definitions_of_others() -> list[Path]:
    """Return the files that define LeaderWorkerSet, HTTPRoute, ServiceMonitor and PrometheusRule."""
    return found(others_crds)


def found(find: Callable[[], Found]) -> Found:
    """Find programs; without them a test is skipped, or fails where they are required."""
    try:
        return find()
    except UnavailableError as error:
        if required():
            raise
        pytest.skip(str(error))
