"""An API server that forgets, falls silent or refuses: nothing is missed, nothing is stolen.

R5 and R6 of the platform reference, on a real control plane behind a proxy.
"""

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import (
    CONTROLLER,
    DEPLOYMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    PLANS,
    STATUS,
    Api,
)
from controller.operator.runtime import Audit
from controller.operator.views import ADOPTED_BY, PREVIOUS_MANAGER, TAKE_OVER
from controller.operator.world import World
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.proxy import Proxy, Request, Watches, every_second_conflicts
from tests.cluster.scene import histogram, variant

SPACE = "faults-api"
PATIENT = ("--lease-duration=60", "--renew-deadline=50", "--retry-period=1")
"""Nobody takes over in these tests: a busy machine is no reason to end."""


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Api:
    """Return the API of a cluster with nodes and a profile."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {"ApiA": 3}, prefix="api")
    scene.put(api, GPU_PROFILES, scene.profile("api-a", "ApiA", max_rps=1.0, price=1.0))
    return api


@pytest.fixture(scope="module")
def proxy(api: Api, plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Return the proxy before the operator."""
    assert api.get(GPU_PROFILES, None, "api-a")
    with Proxy.before(plane.kubeconfig, tmp_path_factory.mktemp("proxy")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(
    plane: ControlPlane, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[scene.OperatorProcess]:
    """Return an operator that audits often."""
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("operators"), namespace=SPACE)
    yield operators.start(
        f"--watch-namespaces={SPACE}",
        *PATIENT,
        "--audit-interval=1",
        "--watch-inactivity=4",
        kubeconfig=proxy.kubeconfig,
    )
    operators.end()


@pytest.fixture(autouse=True)
def healed(proxy: Proxy, operator: scene.OperatorProcess) -> Iterator[None]:
    """Take every fault back after a test; the process has lived through it."""
    yield
    proxy.watches, proxy.on_write = Watches.PASS, None
    assert operator.process.poll() is None


def put_service(api: Api, name: str, rate: float) -> None:
    """Put a service with one Deployment."""
    if api.get(DEPLOYMENTS, SPACE, name) is None:
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, name, "ApiA"))
    one = [variant("a", name, "api-a")]
    body = scene.service(SPACE, name, one, traffic=histogram(rate), headroomRatio=0.0)
    scene.put(api, MODEL_SERVICES, body)


def remove(api: Api, *names: str) -> None:
    remove_from(api, SPACE, *names)


def remove_from(api: Api, space: str, *names: str) -> None:
    for name in names:
        scene.drop(api, MODEL_SERVICES, space, name)
        scene.drop(api, DEPLOYMENTS, space, name)


def runs(api: Api, name: str, count: int) -> bool:
    """Whether the plan of a service is applied and asks for so many replicas."""
    return scene.phase(api, SPACE, name) == "Applied" and scene.replicas(api, SPACE, name) == count


def metadata(api: Api, name: str) -> dict[str, Any]:
    return dict((api.get(DEPLOYMENTS, SPACE, name) or {})["metadata"])


def released(api: Api, name: str) -> bool:
    return ADOPTED_BY not in (metadata(api, name).get("annotations") or {})


def replicas_managers(api: Api, name: str) -> set[str]:
    """Return who owns ``spec.replicas`` of a Deployment."""
    return {
        entry["manager"]
        for entry in metadata(api, name)["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def healthz(operator: scene.OperatorProcess) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/healthz", timeout=5) as answer:
            return str(answer.read().decode().strip())
    except urllib.error.HTTPError as error:
        return str(error.read().decode().strip())


# -- R5: watches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Watches.GONE_EVENT, Watches.GONE, Watches.CUT, Watches.SILENT])
def test_what_happens_while_watches_fail_is_seen(
    api: Api, proxy: Proxy, operator: scene.OperatorProcess, fault: Watches
) -> None:
    put_service(api, "changed", 2.0)
    put_service(api, "deleted", 1.0)
    assert eventually(lambda: runs(api, "changed", 2) and runs(api, "deleted", 1))
    at = len(operator.text())
    proxy.watches = fault
    put_service(api, "made", 3.0)
    put_service(api, "changed", 4.0)
    scene.drop(api, MODEL_SERVICES, SPACE, "deleted")
    assert eventually(lambda: released(api, "deleted"))
    assert eventually(lambda: runs(api, "made", 3))
    assert eventually(lambda: runs(api, "changed", 4))
    assert scene.replicas(api, SPACE, "deleted") == 1
    if fault is Watches.SILENT:
        assert eventually(lambda: "a watch is silent" in operator.text()[at:])
    proxy.watches = Watches.PASS
    put_service(api, "made", 1.0)
    scene.drop(api, MODEL_SERVICES, SPACE, "changed")
    assert eventually(lambda: runs(api, "made", 1))
    assert eventually(lambda: released(api, "changed"))
    assert healthz(operator) == "ok"
    remove(api, "made", "changed", "deleted")


def test_a_watch_that_misses_changes_counts_as_silent_until_it_speaks(api: Api) -> None:
    """Nobody feeds this world, as if its watch were dead."""
    heard: dict[str, float] = {}
    world = World()
    audit = Audit(
        world=world, api=api, resources=[DEPLOYMENTS, MODEL_SERVICES], namespaces=[SPACE], heard=heard
    )
    audit.once()
    assert audit.silent_since_s() is None
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "unseen", "ApiA"))
    for _ in range(2):  # once may be an event that is on its way
        assert audit.silent_since_s() is None
        audit.once()
    since_s = audit.silent_since_s()
    assert set(audit.behind) == {"Deployment"}
    assert world.get("Deployment", (SPACE, "unseen")) is not None
    for count in (1, 2, 3):  # also while it catches up every time
        api.patch(DEPLOYMENTS, SPACE, "unseen", {"spec": {"replicas": count}}, subresource="scale")
        audit.once()
        audit.once()
        assert audit.silent_since_s() == since_s
        seen = world.get("Deployment", (SPACE, "unseen"))
        assert seen is not None
        assert seen.replicas == count
    heard["Deployment"] = time.monotonic()
    audit.once()
    assert audit.silent_since_s() is None
    remove(api, "unseen")
    audit.once()
    assert world.get("Deployment", (SPACE, "unseen")) is None


@pytest.mark.chaos
def test_at_the_default_times_a_dead_watch_is_seen_within_90_seconds(
    api: Api, plane: ControlPlane, tmp_path: Path
) -> None:
    space = "faults-api-slow"
    scene.ensure_namespace(api, space)
    scene.put(api, DEPLOYMENTS, scene.deployment(space, "d", "ApiA"))
    operators = scene.Operators(plane.kubeconfig, tmp_path, namespace=space)
    with Proxy.before(plane.kubeconfig, tmp_path) as proxy:
        one = operators.start(
            f"--watch-namespaces={space}",
            *PATIENT,
            "--audit-interval=30",
            "--watch-inactivity=70",
            kubeconfig=proxy.kubeconfig,
        )
        try:
            assert eventually(lambda: '"leading"' in one.text())
            proxy.watches = Watches.SILENT
            began_s = time.monotonic()
            rate = 0
            while "a watch is silent" not in one.text():
                rate = 1 + rate % 3
                service = scene.service(space, "d", [variant("a", "d", "api-a")], traffic=histogram(rate))
                scene.put(api, MODEL_SERVICES, service)
                scene.wait_s(3)
                assert time.monotonic() - began_s < 90
                assert one.process.poll() is None
            assert eventually(lambda: "is silent" in healthz(one), within_s=60)
        finally:
            operators.end()
    remove_from(api, space, "d")


# -- R6: conflicts ---------------------------------------------------------------------------------------------------


def test_with_a_conflict_on_every_second_write_everything_is_applied_once(
    api: Api, proxy: Proxy, operator: scene.OperatorProcess
) -> None:
    proxy.on_write = every_second_conflicts
    before = len(proxy.writes)
    for name in ("one", "two", "three"):
        put_service(api, name, 2.0)
    for rate in (2, 5, 1):
        for name in ("one", "two", "three"):
            put_service(api, name, float(rate))
        for name in ("one", "two", "three"):
            assert eventually(partial(runs, api, name, rate))
    writes = proxy.writes[before:]
    assert [w.status for w in writes].count(409) >= len(writes) // 3
    scaled = [w.content["spec"]["replicas"] for w in writes if w.accepted and changes_replicas(w)]
    assert sorted(scaled) == [1, 1, 1, 2, 2, 2, 5, 5, 5]
    for name in ("one", "two", "three"):
        assert replicas_managers(api, name) == {CONTROLLER}
        managers = {
            entry["manager"] for entry in (api.get(PLANS, SPACE, name) or {})["metadata"]["managedFields"]
        }
        assert managers == {CONTROLLER, STATUS}
    assert "internal error" not in operator.text()
    proxy.on_write = None
    remove(api, "one", "two", "three")


def changes_replicas(write: Request) -> bool:
    """Whether a write says how many replicas a Deployment has."""
    return "/deployments/" in write.path and "replicas" in (write.content.get("spec") or {})


def test_another_manager_of_replicas_is_named_left_alone_and_followed_when_told_so(
    api: Api, proxy: Proxy, operator: scene.OperatorProcess
) -> None:
    put_service(api, "theirs", 2.0)
    assert eventually(lambda: runs(api, "theirs", 2))
    assert metadata(api, "theirs")["annotations"][PREVIOUS_MANAGER] == "kubectl"
    scale = {"spec": {"replicas": 6}}
    api.patch(DEPLOYMENTS, SPACE, "theirs", scale, subresource="scale", manager="somebody")
    conflict = partial(scene.condition, api, SPACE, "theirs", "ActuationConflict")
    assert eventually(lambda: conflict().get("status") == "True")
    assert conflict()["reason"] == "FieldOwned"
    assert "somebody" in conflict()["message"]
    assert f"{TAKE_OVER}=true" in conflict()["message"]
    at = len(proxy.writes)
    put_service(api, "theirs", 3.0)
    put_service(api, "beside", 1.0)
    assert eventually(lambda: runs(api, "beside", 1))
    scene.wait_s(2.5)
    assert scene.replicas(api, SPACE, "theirs") == 6
    assert replicas_managers(api, "theirs") == {"somebody"}
    assert not [w.path for w in proxy.writes[at:] if changes_replicas(w) and w.path.endswith("theirs")]
    notes = {"metadata": {"annotations": {TAKE_OVER: "true"}}}
    api.patch(DEPLOYMENTS, SPACE, "theirs", notes, manager="kubectl-annotate")
    assert eventually(lambda: runs(api, "theirs", 3))
    assert replicas_managers(api, "theirs") == {CONTROLLER}
    assert metadata(api, "theirs")["annotations"][PREVIOUS_MANAGER] == "somebody"
    assert eventually(lambda: conflict()["status"] == "False")
    assert operator.process.poll() is None
    remove(api, "theirs", "beside")
