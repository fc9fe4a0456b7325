"""The operator with a real PostgreSQL behind it: what it keeps, and that losing the database stops nothing (R7)."""

from collections.abc import Iterator

import httpx
import pytest

from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, MODEL_SERVICES, Api
from telemetry.store.store import open_store
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.scene import histogram, variant
from tests.telemetry.postgres import NoServerError, Postgres, running_server

SPACE = "history"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """Return a running server."""
    try:
        with running_server() as server:
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


def put(api: Api, rate: float) -> None:
    one = [variant("a", "kept", "history-a")]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "kept", one, traffic=histogram(rate)))


def test_control_goes_on_without_the_database_and_history_is_complete_after(
    plane: ControlPlane, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> None:
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {"HistoryA": 2}, prefix="history")
    scene.put(api, GPU_PROFILES, scene.profile("history-a", "HistoryA", max_rps=1.0, price=1.0))
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "kept", "HistoryA"))
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("operators"), namespace=SPACE)
    one = operators.start(f"--watch-namespaces={SPACE}", f"--database-url={postgres.url}")
    try:
        put(api, 0.9)
        assert eventually(lambda: scene.phase(api, SPACE, "kept") == "Applied")
        store = open_store(postgres.url)
        assert eventually(lambda: len(store.steps(f"{SPACE}/kept")) == 2)
        (first,) = store.decisions(f"{SPACE}/kept")
        assert first.digest == scene.plan_of(api, SPACE, "kept")["spec"]["digest"]
        assert first.desired == {"a": 1}
        assert {step.outcome for step in store.steps(f"{SPACE}/kept")} == {"written", "observed"}

        postgres.stop("immediate")
        for rate, wanted in ((3.0, 4), (6.0, 7), (1.5, 2)):
            put(api, rate)
            assert eventually(lambda wanted=wanted: scene.replicas(api, SPACE, "kept") == wanted)  # type: ignore[misc]
            assert eventually(lambda: scene.phase(api, SPACE, "kept") == "Applied")
        assert one.process.poll() is None

        def store_ready() -> str:
            text = httpx.get(f"http://127.0.0.1:{one.port}/metrics").text
            return next(
                line.split()[-1] for line in text.splitlines() if line.startswith("ballast_store_ready ")
            )

        assert eventually(lambda: store_ready() == "0.0")
        assert httpx.get(f"http://127.0.0.1:{one.port}/healthz").status_code == 200

        postgres.start()
        assert eventually(lambda: store_ready() == "1.0", within_s=90)
        assert eventually(lambda: len(store.decisions(f"{SPACE}/kept")) == 4)
        assert [d.desired["a"] for d in store.decisions(f"{SPACE}/kept")] == [2, 7, 4, 1]
        assert len(store.steps(f"{SPACE}/kept")) == 8
        assert store.traffic_windows(window_s=10, service=f"{SPACE}/kept")
        store.close()
    finally:
        operators.end()
