"""One control plane for all tests of this folder; they run in one process (``--dist loadgroup``)."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster.binaries import REQUIRED, UnavailableError, control_plane_binaries
from tests.cluster.control_plane import ControlPlane, control_plane


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of this folder together."""
    for item in items:
        if "cluster" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Return a running control plane."""
    try:
        binaries = control_plane_binaries()
    except UnavailableError as error:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(str(error))
    with control_plane(binaries, tmp_path_factory.mktemp("plane")) as running:
        yield running
