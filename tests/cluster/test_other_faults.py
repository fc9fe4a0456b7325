"""Faults beside the API server: a solver that hangs or has no answer, two owners of a target, writes that are refused.

R10, R15, R16 and the poison object of the platform reference, on a real control plane.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.operator.api import (
    DEPLOYMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    Api,
    ApiError,
    Resource,
)
from controller.operator.views import ADOPTED_BY
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.proxy import Proxy
from tests.cluster.scene import histogram, variant

SOLVER, MEMORY, OWNERS, FIRST, SECOND, SHARED = (
    "faults-solver",
    "faults-memory",
    "faults-owners",
    "faults-install-1",
    "faults-install-2",
    "faults-install-both",
)
PATIENT = ("--lease-duration=60", "--renew-deadline=50", "--retry-period=1")
"""Nobody takes over in these tests: a busy machine is no reason to end."""
POLICIES = Resource(
    api_version="admissionregistration.k8s.io/v1",
    kind="ValidatingAdmissionPolicy",
    plural="validatingadmissionpolicies",
    namespaced=False,
)
BINDINGS = Resource(
    api_version="admissionregistration.k8s.io/v1",
    kind="ValidatingAdmissionPolicyBinding",
    plural="validatingadmissionpolicybindings",
    namespaced=False,
)


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Api:
    """Return the API of a cluster with nodes and profiles."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.add_nodes(plane, {"FaultA": 3, "FaultH": 2}, prefix="faults")
    scene.put(api, GPU_PROFILES, scene.profile("fault-a", "FaultA", max_rps=1.0, price=1.0))
    scene.put(api, GPU_PROFILES, scene.profile("fault-h", "FaultH", max_rps=6.0, price=5.0))
    for space in (SOLVER, MEMORY, OWNERS, FIRST, SECOND, SHARED):
        scene.ensure_namespace(api, space)
    return api


@pytest.fixture(scope="module")
def start(
    plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., scene.OperatorProcess]]:
    """Start an operator for a namespace; all of them end with the module."""
    assert api.get(GPU_PROFILES, None, "fault-a")
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("operators"))

    def started(space: str, *words: str) -> scene.OperatorProcess:
        operators.namespace = space
        return operators.start(f"--watch-namespaces={space}", *PATIENT, *words)

    yield started
    operators.end()


@pytest.fixture(scope="module")
def solver(start: Callable[..., scene.OperatorProcess]) -> Iterator[scene.OperatorProcess]:
    """Return an operator whose solver has one second."""
    one = start(SOLVER, "--solve-limit=1")
    yield one
    one.kill()


@pytest.fixture(scope="module")
def owners(start: Callable[..., scene.OperatorProcess]) -> Iterator[scene.OperatorProcess]:
    """Return the operator of the namespace in which owners quarrel."""
    one = start(OWNERS)
    yield one
    one.kill()


def put_service(api: Api, space: str, name: str, rate: float, **more: object) -> None:
    """Put a service with one Deployment of FaultA."""
    if api.get(DEPLOYMENTS, space, name) is None:
        scene.put(api, DEPLOYMENTS, scene.deployment(space, name, "FaultA"))
    change: dict[str, object] = {"traffic": histogram(rate), "headroomRatio": 0.0, **more}
    scene.put(api, MODEL_SERVICES, scene.service(space, name, [variant("a", name, "fault-a")], **change))  # type: ignore[arg-type]


def remove(api: Api, space: str, *names: str) -> None:
    for name in names:
        scene.drop(api, MODEL_SERVICES, space, name)
        scene.drop(api, DEPLOYMENTS, space, name)


def runs(api: Api, space: str, name: str, count: int) -> bool:
    """Whether the plan of a service is applied and asks for so many replicas."""
    return scene.phase(api, space, name) == "Applied" and scene.replicas(api, space, name) == count


def digest(api: Api, space: str, name: str) -> str:
    return str((scene.plan_of(api, space, name).get("spec") or {}).get("digest"))


def solver_of(operator: scene.OperatorProcess) -> int | None:
    """Return the process id of an operator's solver."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue  # it ended while we looked
        if parent == operator.pid and b"spawn_main" in words:
            return int(entry.name)
    return None


def reason(api: Api, space: str, name: str, kind: str) -> str:
    return str(scene.condition(api, space, name, kind).get("reason") or "")


# -- R10: the solver -------------------------------------------------------------------------------------------------


def test_a_solver_that_hangs_is_killed_and_the_last_plan_stays(
    api: Api, solver: scene.OperatorProcess
) -> None:
    put_service(api, SOLVER, "hang", 2.0)
    assert eventually(lambda: runs(api, SOLVER, "hang", 2))
    before = digest(api, SOLVER, "hang")
    child = eventually(lambda: solver_of(solver))
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    put_service(api, SOLVER, "hang", 5.0)
    assert eventually(lambda: reason(api, SOLVER, "hang", "SolverReady") == "SolverOverran", every_s=0.05)
    assert not Path(f"/proc/{child}").exists()
    found = scene.condition(api, SOLVER, "hang", "SolverReady")
    assert found["status"] == "False"
    assert "within 1 s" in found["message"]
    assert digest(api, SOLVER, "hang") == before
    assert scene.replicas(api, SOLVER, "hang") == 2
    assert eventually(lambda: runs(api, SOLVER, "hang", 5))
    assert eventually(lambda: scene.condition(api, SOLVER, "hang", "SolverReady")["status"] == "True")
    assert solver_of(solver) not in {None, child}
    remove(api, SOLVER, "hang")


def test_a_solver_that_is_killed_is_started_again(api: Api, solver: scene.OperatorProcess) -> None:
    put_service(api, SOLVER, "killed", 2.0)
    assert eventually(lambda: runs(api, SOLVER, "killed", 2))
    child = solver_of(solver)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    put_service(api, SOLVER, "killed", 3.0)
    assert eventually(lambda: runs(api, SOLVER, "killed", 3))
    remove(api, SOLVER, "killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tight:
    """A wish that cannot be met: how, and what is said of it."""

    rate: float
    reason: str
    named: str
    most: int | None = None
    survive: int = 0
    input_tokens: int = 512


@pytest.mark.parametrize(
    "wish",
    [
        Tight(rate=5.0, most=3, reason="ReplicaLimit", named="maxReplicas of variant a is 3"),
        Tight(rate=50.0, reason="ReplicaLimit", named="24 of variant a fit the GPUs of FaultA"),
        Tight(rate=24.0, survive=1, reason="Survive", named="surviving the loss of 1 replica"),
        Tight(rate=3.0, input_tokens=9999, reason="BucketUnservable", named="9999 input"),
    ],
    ids=["maxReplicas", "GPUs", "survive", "sizes"],
)
def test_what_has_no_plan_keeps_the_last_and_names_what_is_violated(
    api: Api, solver: scene.OperatorProcess, wish: Tight
) -> None:
    assert solver.process.poll() is None
    put_service(api, SOLVER, "tight", 2.0)
    put_service(api, SOLVER, "beside", 1.0)
    assert eventually(lambda: runs(api, SOLVER, "tight", 2))
    assert eventually(lambda: runs(api, SOLVER, "beside", 1))
    before = digest(api, SOLVER, "tight")
    one = variant("a", "tight", "fault-a")
    if wish.most is not None:
        one["maxReplicas"] = wish.most
    traffic = histogram(wish.rate)
    traffic["histogram"]["buckets"][0]["inputTokens"] = wish.input_tokens
    more: dict[str, Any] = {"headroomRatio": 0.0, "survive": wish.survive}
    scene.put(api, MODEL_SERVICES, scene.service(SOLVER, "tight", [one], traffic=traffic, **more))
    assert eventually(lambda: reason(api, SOLVER, "tight", "SolverReady") == wish.reason)
    found = scene.condition(api, SOLVER, "tight", "SolverReady")
    assert found["status"] == "False"
    assert wish.named in found["message"]
    put_service(api, SOLVER, "beside", 2.0)
    assert eventually(lambda: runs(api, SOLVER, "beside", 2))
    assert digest(api, SOLVER, "tight") == before
    assert scene.replicas(api, SOLVER, "tight") == 2
    remove(api, SOLVER, "tight", "beside")


def test_a_solver_without_memory_stops_nothing_but_itself(
    api: Api, start: Callable[..., scene.OperatorProcess]
) -> None:
    one = start(MEMORY, "--solver-memory-mib=64")
    put_service(api, MEMORY, "large", 2.0)
    put_service(api, MEMORY, "watched", 2.0, mode="Observe")
    assert eventually(lambda: reason(api, MEMORY, "large", "SolverReady") == "SolverOutOfMemory")
    found = scene.condition(api, MEMORY, "large", "SolverReady")
    assert "64 MiB" in found["message"]
    assert eventually(lambda: reason(api, MEMORY, "watched", "PlanReady") == "Observing")
    put_service(api, MEMORY, "large", 3.0, paused=True)
    assert eventually(lambda: reason(api, MEMORY, "large", "Applied") == "Paused")
    assert one.process.poll() is None
    one.kill()
    remove(api, MEMORY, "large", "watched")


# -- R15: two owners -------------------------------------------------------------------------------------------------


def test_the_second_service_on_a_target_is_refused(api: Api, owners: scene.OperatorProcess) -> None:
    assert owners.process.poll() is None
    put_service(api, OWNERS, "first", 2.0)
    assert eventually(lambda: runs(api, OWNERS, "first", 2))
    time.sleep(1.1)  # creation times are whole seconds
    body = scene.service(OWNERS, "again", [variant("a", "first", "fault-a")], traffic=histogram(9.0))
    scene.put(api, MODEL_SERVICES, body)
    assert eventually(lambda: reason(api, OWNERS, "again", "ActuationConflict") == "TargetTaken")
    found = scene.condition(api, OWNERS, "again", "ActuationConflict")
    assert found["status"] == "True"
    assert "Deployment first belongs to ModelService first" in found["message"]
    assert scene.plan_of(api, OWNERS, "again") == {}
    assert runs(api, OWNERS, "first", 2)
    assert scene.condition(api, OWNERS, "first", "ActuationConflict")["status"] == "False"
    scene.drop(api, MODEL_SERVICES, OWNERS, "first")
    assert eventually(lambda: scene.replicas(api, OWNERS, "first") == 10)  # 9 requests/s and a tenth
    metadata = (api.get(DEPLOYMENTS, OWNERS, "first") or {})["metadata"]
    assert metadata["annotations"][ADOPTED_BY] == f"{OWNERS}/again"
    remove(api, OWNERS, "first", "again")


def test_a_service_keeps_the_variants_that_nobody_else_has(api: Api, owners: scene.OperatorProcess) -> None:
    assert owners.process.poll() is None
    put_service(api, OWNERS, "mine", 1.0)
    assert eventually(lambda: runs(api, OWNERS, "mine", 1))
    time.sleep(1.1)
    scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, "free", "FaultH"))
    both = [variant("a", "mine", "fault-a"), variant("h", "free", "fault-h")]
    scene.put(api, MODEL_SERVICES, scene.service(OWNERS, "partly", both, traffic=histogram(3.0)))
    assert eventually(lambda: scene.phase(api, OWNERS, "partly") == "Applied")
    assert scene.replicas(api, OWNERS, "free") == 1
    assert scene.replicas(api, OWNERS, "mine") == 1
    assert reason(api, OWNERS, "partly", "ActuationConflict") == "TargetTaken"
    remove(api, OWNERS, "mine", "partly", "free")


def test_two_installations_leave_each_other_alone_and_double_nothing_where_they_meet(
    api: Api, plane: ControlPlane, tmp_path: Path
) -> None:
    """Each has a namespace of its own; both were told to watch a third."""
    operators = scene.Operators(plane.kubeconfig, tmp_path)
    with (
        Proxy.before(plane.kubeconfig, tmp_path, "first") as first,
        Proxy.before(plane.kubeconfig, tmp_path, "second") as second,
    ):
        for space, proxy in ((FIRST, first), (SECOND, second)):
            operators.namespace = space
            operators.start(f"--watch-namespaces={space},{SHARED}", *PATIENT, kubeconfig=proxy.kubeconfig)
            put_service(api, space, "own", 2.0)
        for rate in (2, 4, 3):
            put_service(api, SHARED, "both", float(rate))
            assert eventually(partial(runs, api, SHARED, "both", rate))
        assert eventually(lambda: runs(api, FIRST, "own", 2) and runs(api, SECOND, "own", 2))
        counts = []
        for _ in range(2):
            scene.wait_s(1.5)
            counts.append((len(first.writes), len(second.writes)))
        assert counts[0] == counts[1]  # they do not answer each other's writes without end
        written = [w.path.split("/")[-3:] for proxy in (first, second) for w in proxy.accepted]
        assert written.count([SHARED, "deployments", "both"]) == 3
        assert not [w.path for w in first.writes if f"/{SECOND}/" in w.path]
        assert not [w.path for w in second.writes if f"/{FIRST}/" in w.path]
        operators.end()
    remove(api, SHARED, "both")
    for space in (FIRST, SECOND):
        remove(api, space, "own")


# -- R16: nothing moves without need ---------------------------------------------------------------------------------


def versions(api: Api, *names: str) -> list[str]:
    """Return the generations of Deployments and the digests of their Plans."""
    found = []
    for name in names:
        body = api.get(DEPLOYMENTS, OWNERS, name) or {}
        found.append(f"{name} {body['metadata']['generation']} {digest(api, OWNERS, name)}")
    return found


def test_zero_load_and_like_for_like_change_nothing(api: Api, owners: scene.OperatorProcess) -> None:
    assert owners.process.poll() is None
    scene.put(api, GPU_PROFILES, scene.profile("fault-twin", "FaultH", max_rps=1.0, price=1.5))
    scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, "idle", "FaultA"))
    scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, "busy", "FaultA"))
    scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, "twin", "FaultH"))
    kept = [variant("a", "idle", "fault-a", minReplicas=1)]
    scene.put(api, MODEL_SERVICES, scene.service(OWNERS, "idle", kept, traffic=histogram(0.0)))
    twins = [variant("a", "busy", "fault-a"), variant("t", "twin", "fault-twin")]
    scene.put(
        api, MODEL_SERVICES, scene.service(OWNERS, "busy", twins, traffic=histogram(3.0), headroomRatio=0.0)
    )
    assert eventually(lambda: runs(api, OWNERS, "idle", 1))
    assert eventually(lambda: runs(api, OWNERS, "busy", 3))
    before = versions(api, "idle", "busy", "twin")
    for price in (1.0, 1.5, 1.0):  # as cheap as the other: no reason to go there
        scene.put(api, GPU_PROFILES, scene.profile("fault-twin", "FaultH", max_rps=1.0, price=price))
        time.sleep(2.5)
        assert versions(api, "idle", "busy", "twin") == before
    remove(api, OWNERS, "idle", "busy", "twin")
    scene.drop(api, GPU_PROFILES, None, "fault-twin")


# -- a poison object -------------------------------------------------------------------------------------------------


@pytest.fixture
def refusing(api: Api) -> Iterator[str]:
    """Refuse every change of the Deployment ``poison``, as an admission policy of somebody's may; yield its name."""
    scene.put(
        api,
        POLICIES,
        {
            "metadata": {"name": "refuse-poison"},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": ["apps"],
                            "apiVersions": ["v1"],
                            "operations": ["UPDATE"],
                            "resources": ["deployments"],
                        }
                    ]
                },
                "matchConditions": [
                    {
                        "name": "poison",
                        "expression": f"object.metadata.namespace == '{OWNERS}' && object.metadata.name == 'poison'",
                    }
                ],
                "validations": [{"expression": "false", "message": "not on my watch"}],
            },
        },
    )
    binding = {
        "metadata": {"name": "refuse-poison"},
        "spec": {"policyName": "refuse-poison", "validationActions": ["Deny"]},
    }
    scene.put(api, BINDINGS, binding)
    yield "poison"
    scene.drop(api, BINDINGS, None, "refuse-poison")
    scene.drop(api, POLICIES, None, "refuse-poison")


def test_a_target_that_refuses_every_write_delays_nobody_else(
    api: Api, owners: scene.OperatorProcess, refusing: str
) -> None:
    scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, refusing, "FaultA"))

    def refused() -> bool:
        try:
            api.patch(DEPLOYMENTS, OWNERS, refusing, {"metadata": {"labels": {"try": str(time.time())}}})
        except ApiError as error:
            return error.code == 422
        return False

    assert eventually(refused)
    put_service(api, OWNERS, refusing, 2.0)
    assert eventually(lambda: "not on my watch" in owners.text())
    for rate in (1, 2, 3, 4):
        put_service(api, OWNERS, "healthy", float(rate))
        assert eventually(partial(runs, api, OWNERS, "healthy", rate))
    assert scene.replicas(api, OWNERS, refusing) == 0
    assert scene.phase(api, OWNERS, refusing) == "Applying"
    assert "not on my watch" in scene.condition(api, OWNERS, refusing, "Applied")["message"]
    tries = [line for line in owners.text().splitlines() if '"service": "faults-owners/poison"' in line]
    assert 1 < len(tries) < 12  # it waits longer each time
    remove(api, OWNERS, refusing, "healthy")


def test_a_target_that_comes_and_goes_delays_nobody_else(api: Api, owners: scene.OperatorProcess) -> None:
    put_service(api, OWNERS, "steady", 1.0)
    put_service(api, OWNERS, "flighty", 2.0)
    assert eventually(lambda: runs(api, OWNERS, "steady", 1))
    for rate in (2, 3, 4):
        scene.drop(api, DEPLOYMENTS, OWNERS, "flighty")
        put_service(api, OWNERS, "steady", float(rate))
        time.sleep(0.3)
        scene.put(api, DEPLOYMENTS, scene.deployment(OWNERS, "flighty", "FaultA"))
        assert eventually(partial(runs, api, OWNERS, "steady", rate))
    assert eventually(lambda: runs(api, OWNERS, "flighty", 2))
    scene.drop(api, DEPLOYMENTS, OWNERS, "flighty")
    assert eventually(lambda: reason(api, OWNERS, "flighty", "Degraded") == "VariantUnusable")
    assert (
        "Deployment flighty does not exist" in scene.condition(api, OWNERS, "flighty", "Degraded")["message"]
    )
    assert owners.process.poll() is None
    remove(api, OWNERS, "steady", "flighty")
