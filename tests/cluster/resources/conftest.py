"""The definitions on a real API server, for the tests of this folder."""

import pytest

from controller.operator.api import Api
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane
from tests.cluster.resources.offers import SPACE


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Api:
    """Return the API of a server that serves all kinds, with a namespace for objects."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    return api
