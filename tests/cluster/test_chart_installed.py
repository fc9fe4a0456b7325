"""The chart on a real control plane: installed, tested, upgraded, rolled back and removed by real Helm.

A control plane of its own, because definitions and admission policies hold for the whole cluster.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from controller.operator.api import (
    DEPLOYMENTS,
    GPU_PROFILES,
    LEADER_WORKER_SETS,
    LEADERSHIPS,
    LEASES,
    MODEL_SERVICES,
)
from controller.operator.permissions import PERMISSIONS, Scope
from tests.cluster import scene
from tests.cluster.binaries import control_plane_binaries
from tests.cluster.conftest import found
from tests.cluster.control_plane import ControlPlane, add_node, control_plane, eventually, free_port
from tests.cluster.release import CHART, LEASE, HelmError, Release, api, rendered
from tests.cluster.scene import OperatorProcess
from tests.cluster.test_chart_rendered import SETTINGS

GROUP, VERSION = "ballast.dev", "v1alpha1"
MODEL_SERVICE: dict[str, Any] = {
    "apiVersion": f"{GROUP}/{VERSION}",
    "kind": "ModelService",
    "metadata": {"name": "chat"},
    "spec": {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05, "percentile": 99},
        "traffic": {"histogram": {"buckets": [{"inputTokens": 512, "outputTokens": 128, "rateRps": 1.0}]}},
        "variants": [
            {
                "name": "a10g",
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat-a10g"},
                "gpuProfile": "llama8b-a10g",
            }
        ],
    },
}
APPLY: dict[str, Any] = {
    "field_manager": "ballast-controller",
    "force": True,
    "_content_type": "application/apply-patch+yaml",
}
EVERYBODY: dict[tuple[str, str], tuple[str, ...]] = {  # what the API server grants every user
    ("authorization.k8s.io", "selfsubjectaccessreviews"): ("create",),
    ("authorization.k8s.io", "selfsubjectrulesreviews"): ("create",),
    ("authentication.k8s.io", "selfsubjectreviews"): ("create",),
}
Rights = dict[tuple[str, str], set[str]]


@pytest.fixture(scope="module")
def cluster(
    definitions_of_others: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Return a control plane of this module with a node, and the kinds of others."""
    with control_plane(found(control_plane_binaries), tmp_path_factory.mktemp("chart")) as running:
        add_node(running, "chart-0", labels={})
        for path in definitions_of_others:
            running.api("ApiextensionsV1Api").create_custom_resource_definition(
                yaml.safe_load(path.read_text(encoding="utf-8"))
            )
        for namespace in ("chat", "code"):
            running.api("CoreV1Api").create_namespace({"metadata": {"name": namespace}})
        apis = running.api("ApisApi")  # Helm asks what the API server serves
        assert eventually(lambda: "monitoring.coreos.com" in {g.name for g in apis.get_api_versions().groups})
        yield running


@pytest.fixture
def release(helm: Path, cluster: ControlPlane) -> Iterator[Release]:
    """Return the installed release; removes it."""
    wanted = Release(helm=helm, plane=cluster)
    wanted.install()
    yield wanted
    remove(wanted)


def remove(release: Release) -> None:
    """Remove a release, and what its controllers left for their successors."""
    release.uninstall()
    administrator = scene.api_of(release.plane)
    scene.drop(administrator, LEASES, release.namespace, LEASE)
    scene.drop(administrator, LEADERSHIPS, release.namespace, LEASE)


def refusal(write: Callable[[], Any]) -> str:
    """Return why the API server refused a write; empty if it did not."""
    try:
        write()
    except client.ApiException as error:
        if error.status not in {403, 422} or error.body is None:
            raise
        return str(json.loads(error.body)["message"])
    return ""


def lead(release: Release, pod: str) -> None:
    """Let a pod win the Lease and name itself the leader, with its own token."""
    token = release.kubeconfig(pod)
    leases = api("CoordinationV1Api", token)
    spec = {"holderIdentity": pod, "leaseDurationSeconds": 15, "renewTime": datetime.now(UTC)}
    body = {"metadata": {"name": LEASE}, "spec": spec}
    try:
        present = leases.read_namespaced_lease(LEASE, release.namespace)
    except client.ApiException:
        leases.create_namespaced_lease(release.namespace, body)
    else:
        present.spec.holder_identity, present.spec.renew_time = pod, spec["renewTime"]
        leases.replace_namespaced_lease(LEASE, release.namespace, present)
    leadership = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Leadership",
        "metadata": {"name": LEASE},
        "spec": {"holderIdentity": pod, "epoch": 1},
    }
    api("CustomObjectsApi", token).patch_namespaced_custom_object(
        GROUP, VERSION, release.namespace, "leaderships", LEASE, leadership, **APPLY
    )


def plan(digest: str = "d1") -> dict[str, Any]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Plan",
        "metadata": {"name": "chat"},
        "spec": {
            "solveId": "s1",
            "digest": digest,
            "modelServiceRef": {"name": "chat"},
            "madeAt": "2026-01-01T00:00:00Z",
        },
    }


def write_plan(kubeconfig: Path, body: dict[str, Any], *, status: bool = False, dry_run: bool = False) -> Any:
    """Apply a Plan, or its status."""
    custom = api("CustomObjectsApi", kubeconfig)
    patch = custom.patch_namespaced_custom_object_status if status else custom.patch_namespaced_custom_object
    return patch(GROUP, VERSION, "chat", "plans", "chat", body, dry_run="All" if dry_run else None, **APPLY)


def user_deployment(cluster: ControlPlane, name: str, replicas: int) -> Callable[[], Any]:
    """Create a workload of a user; returns what reads it."""
    labels = {"app": name}
    apps = cluster.api("AppsV1Api")
    apps.create_namespaced_deployment(
        "chat",
        {
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "engine", "image": "engine:1"}]},
                },
            },
        },
    )
    return lambda: apps.read_namespaced_deployment(name, "chat")


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_api_server_takes_every_object(
    helm: Path, kubectl: Path, cluster: ControlPlane, setting: str, tmp_path: Path
) -> None:
    name = f"dry-{setting}"
    objects = [
        o for o in rendered(helm, SETTINGS[setting], name=name, namespace="default") if o["kind"] != "Pod"
    ]
    for kept in objects:  # a dry run of a Pod's bound account would need it to exist
        kept["metadata"].setdefault("namespace", "default")
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    options = ("--dry-run=server", "--validate=strict", f"--kubeconfig={cluster.kubeconfig}")
    done = subprocess.run(
        [kubectl, "apply", *options, "-f", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(objects)
    assert not done.stderr, "the API server warns"


def test_install_reports_what_to_do_next(helm: Path, cluster: ControlPlane) -> None:
    release = Release(helm=helm, plane=cluster)
    try:
        notes = release.install().partition("NOTES:\n")[2]
        assert "helm -n ballast test ballast" in notes
        assert "ballast.dev/approved=$(kubectl get plan/NAME -o jsonpath='{.spec.digest}')" in notes
        assert "WARNING" not in notes
        notes = release.install({"admissionPolicies": {"enabled": False}, "paused": True})
        assert "WARNING: admissionPolicies.enabled is false" in notes
        assert "It is paused" in notes
    finally:
        release.uninstall()


def test_two_controllers_become_ready_with_their_monitoring(release: Release) -> None:
    cluster = release.plane
    status = cluster.api("AppsV1Api").read_namespaced_deployment_status(release.fullname, release.namespace)
    assert status.status.ready_replicas == 2
    custom = cluster.api("CustomObjectsApi")
    for plural in ("servicemonitors", "prometheusrules"):
        found_one = custom.get_namespaced_custom_object(
            "monitoring.coreos.com", "v1", release.namespace, plural, release.fullname
        )
        assert found_one["metadata"]["name"] == release.fullname
    policies = cluster.api("PolicyV1Api")

    def disruptions() -> Any:
        status = policies.read_namespaced_pod_disruption_budget_status(release.fullname, release.namespace)
        return (status.status.current_healthy, status.status.disruptions_allowed)

    eventually(lambda: disruptions() == (2, 1))
    assert disruptions() == (2, 1)


def rights(kubeconfig: Path, namespace: str) -> Rights:
    """Return all that an account may do in a namespace, the cluster's kinds included, as the API server lists it."""
    reviews = api("AuthorizationV1Api", kubeconfig)
    review = reviews.create_self_subject_rules_review({"spec": {"namespace": namespace}})
    may: Rights = {}
    for rule in review.status.resource_rules:
        for group in rule.api_groups:
            for resource in rule.resources:
                for name in rule.resource_names or [""]:
                    may.setdefault((group, f"{resource}/{name}" if name else resource), set()).update(
                        rule.verbs
                    )
    return may


def needed(*scopes: Scope) -> Rights:
    """Return what the controller's code says that it needs."""
    joined: Rights = {key: set(verbs) for key, verbs in EVERYBODY.items()}
    for right in PERMISSIONS:
        if right.scope in scopes:
            parts = (right.resource, right.subresource, right.name)
            joined.setdefault((right.group, "/".join(filter(None, parts))), set()).update(right.verbs)
    return joined


def may(kubeconfig: Path, verb: str, resource: str, group: str = "", namespace: str | None = None) -> bool:
    asked = {"verb": verb, "resource": resource, "group": group, "namespace": namespace}
    reviews = api("AuthorizationV1Api", kubeconfig)
    review = reviews.create_self_subject_access_review({"spec": {"resourceAttributes": asked}})
    return bool(review.status.allowed)


def test_the_controller_may_do_exactly_what_it_needs(release: Release) -> None:
    token = release.kubeconfig(release.pods()[0])
    assert rights(token, "chat") == needed(Scope.WATCHED, Scope.CLUSTER)
    assert rights(token, release.namespace) == needed(Scope.WATCHED, Scope.CLUSTER, Scope.OWN)
    assert may(token, "patch", "deployments", "apps")
    assert may(token, "list", "nodes")
    for verb, resource, group in (
        ("list", "secrets", ""),
        ("get", "secrets", ""),
        ("patch", "nodes", ""),
        ("delete", "pods", ""),
        ("delete", "deployments", "apps"),
        ("create", "deployments", "apps"),
        ("list", "leases", "coordination.k8s.io"),
        ("patch", "gpuprofiles", "ballast.dev"),
        ("patch", "customresourcedefinitions", "apiextensions.k8s.io"),
    ):
        assert not may(token, verb, resource, group), f"{verb} {resource}"


def test_in_namespace_mode_it_may_do_nothing_elsewhere(release: Release) -> None:
    small = Release(helm=release.helm, plane=release.plane, name="small", namespace="small")
    small.install({"watchNamespaces": ["chat"], "crds": {"install": False}})
    try:
        token = small.kubeconfig(small.pods()[0])
        assert rights(token, "chat") == needed(Scope.WATCHED, Scope.CLUSTER)
        assert rights(token, "code") == needed(Scope.CLUSTER)
        own = rights(token, "small")
        assert own.pop(("events.k8s.io", "events")) == {"create"}  # about its own pods
        assert own == needed(Scope.CLUSTER, Scope.OWN)
        assert not may(token, "list", "pods")
    finally:
        small.uninstall()


def test_roles_for_people_cover_our_kinds(release: Release) -> None:
    cluster = release.plane
    roles, reviews = cluster.api("RbacAuthorizationV1Api"), cluster.api("AuthorizationV1Api")
    for role in ("view", "edit"):
        roles.create_namespaced_role_binding(
            "chat",
            {
                "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"{role}er"}],
            },
        )

    def allowed(user: str, verb: str, resource: str) -> bool:
        place = {"group": GROUP, "resource": resource, "verb": verb, "namespace": "chat"}
        body = {"spec": {"user": user, "resourceAttributes": place}}
        return bool(reviews.create_subject_access_review(body).status.allowed)

    assert eventually(lambda: allowed("viewer", "list", "plans"))
    assert eventually(lambda: allowed("editer", "patch", "plans"))
    assert allowed("viewer", "watch", "modelservices")
    assert not allowed("viewer", "patch", "plans")
    assert allowed("editer", "create", "modelservices")
    assert not allowed("editer", "create", "plans")
    assert not allowed("editer", "patch", "plans/status")
    for role in ("view", "edit"):
        roles.delete_namespaced_role_binding(role, "chat")


def test_only_ballast_writes_plans(release: Release) -> None:
    cluster = release.plane
    custom = cluster.api("CustomObjectsApi")
    administrator, leader = cluster.kubeconfig, release.pods()[0]
    lead(release, leader)
    token = release.kubeconfig(leader)
    only = eventually(lambda: refusal(lambda: write_plan(administrator, plan(), dry_run=True)))
    assert "only Ballast creates Plans" in only
    assert eventually(lambda: not refusal(lambda: write_plan(token, plan())))
    status = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Plan", "status": {"phase": "Approved"}}
    assert not refusal(lambda: write_plan(token, status, status=True))
    said = refusal(lambda: write_plan(administrator, plan("d2")))
    assert "only Ballast writes a Plan's spec; to approve one, annotate it with ballast.dev/approved=" in said
    status["status"] = {"phase": "Applied"}
    said = refusal(lambda: write_plan(administrator, status, status=True))
    assert "only Ballast writes a Plan's status" in said
    approval = {"metadata": {"annotations": {"ballast.dev/approved": "d1"}}}
    kept = custom.patch_namespaced_custom_object(GROUP, VERSION, "chat", "plans", "chat", approval)
    assert kept["metadata"]["annotations"]["ballast.dev/approved"] == "d1"
    assert (kept["spec"]["digest"], kept["status"]["phase"]) == ("d1", "Approved")
    custom.delete_namespaced_custom_object(GROUP, VERSION, "chat", "plans", "chat")


def test_the_garbage_collector_removes_plans_of_a_deleted_service(release: Release) -> None:
    custom = release.plane.api("CustomObjectsApi")
    service = custom.create_namespaced_custom_object(GROUP, VERSION, "chat", "modelservices", MODEL_SERVICE)
    leader = release.pods()[0]
    lead(release, leader)
    body = plan()
    owner = {key: MODEL_SERVICE[key] for key in ("apiVersion", "kind")}
    owner |= {"name": "chat", "uid": service["metadata"]["uid"]}
    body["metadata"]["ownerReferences"] = [owner]
    token = release.kubeconfig(leader)
    assert eventually(lambda: not refusal(lambda: write_plan(token, body)))
    custom.delete_namespaced_custom_object(GROUP, VERSION, "chat", "modelservices", "chat")

    def plans() -> list[Any]:
        listed = custom.list_namespaced_custom_object(GROUP, VERSION, "chat", "plans")
        return list(listed["items"])

    assert eventually(lambda: not plans()), "the Plan outlives its ModelService"


def test_of_the_controllers_only_the_leader_may_write(release: Release) -> None:
    cluster = release.plane
    user_deployment(cluster, "fenced", 1)
    apps = cluster.api("AppsV1Api")
    first, second = release.pods()
    tokens = {pod: release.kubeconfig(pod) for pod in (first, second)}
    unbound = release.kubeconfig(None)

    def scale(kubeconfig: Path, replicas: int, *, dry_run: bool = False) -> str:
        body = {"spec": {"replicas": replicas}}
        patch = api("AppsV1Api", kubeconfig).patch_namespaced_deployment
        return refusal(partial(patch, "fenced", "chat", body, dry_run="All" if dry_run else None))

    def refused_soon(kubeconfig: Path) -> str:
        return eventually(lambda: scale(kubeconfig, 9, dry_run=True))

    try:
        # no leader yet: whoever else writes Deployments must not be held up by our policy
        people = {"spec": {"replicas": 1}}
        assert not refusal(lambda: apps.patch_namespaced_deployment("fenced", "chat", people)), "held up"
        lead(release, first)
        assert refused_soon(tokens[second])
        assert eventually(lambda: not scale(tokens[first], 2))
        assert not refusal(lambda: write_plan(tokens[first], plan()))
        said = scale(tokens[second], 3)
        assert f'only the leader may write: that is "{first}", this is "{second}"' in said
        for other in (tokens[second], unbound):
            status = {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "Plan",
                "status": {"phase": "Applied"},
            }
            assert "only the leader" in refusal(partial(write_plan, other, plan("d2")))
            assert "only the leader" in refusal(partial(write_plan, other, status, status=True))
            assert "only the leader" in scale(other, 3)
        # handed over: the old leader's next write comes too late
        lead(release, second)
        assert eventually(lambda: not scale(tokens[second], 4))
        assert f'that is "{second}"' in scale(tokens[first], 5)
        assert apps.read_namespaced_deployment("fenced", "chat").spec.replicas == 4
        assert not refusal(lambda: apps.patch_namespaced_deployment("fenced", "chat", people)), "held up"
    finally:
        apps.delete_namespaced_deployment("fenced", "chat")


def test_helm_test_runs_a_check_that_passes(release: Release, tmp_path: Path) -> None:
    """KWOK runs no container, so the test plays the kubelet: it runs the Pod's command with the Pod's token."""
    lead(release, release.pods()[0])
    core = release.plane.api("CoreV1Api")
    name = f"{release.fullname}-test"
    words = ["--kubeconfig", str(release.plane.kubeconfig), "--namespace", release.namespace]
    with subprocess.Popen(
        [release.helm, "test", release.name, "--timeout=60s", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:

        def pod() -> Any:
            found_pods = core.list_namespaced_pod(release.namespace, field_selector=f"metadata.name={name}")
            return next(iter(found_pods.items), None)

        (container,) = eventually(pod).spec.containers
        ran = run_container(release, container, release.kubeconfig(name, account=name), tmp_path)
        done = {"status": {"phase": "Succeeded" if ran.returncode == 0 else "Failed"}}
        eventually(lambda: pod().status.phase == "Running")
        core.patch_namespaced_pod_status(name, release.namespace, done)
        said = running.communicate(timeout=60)[0]
    assert ran.stdout.splitlines() == [
        "a ModelService is accepted: yes",
        "a wrong one is refused: yes",
        "a controller leads: yes",
    ], ran.stdout + ran.stderr
    assert running.returncode == 0, said
    assert "Phase:          Succeeded" in said
    services = release.plane.api("CustomObjectsApi").list_cluster_custom_object(
        GROUP, VERSION, "modelservices"
    )
    assert services["items"] == []


def run_container(
    release: Release, container: Any, kubeconfig: Path, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run what a container of the Ballast image would run, from the checkout."""
    values = {entry.name: entry.value for entry in container.env if entry.value is not None}
    values |= {"HOME": str(folder), "KUBECONFIG": str(kubeconfig), "PATH": os.environ["PATH"], **environment}
    assert container.command[0] == "python"
    assert values["NAMESPACE"] == release.namespace
    return subprocess.run(
        [sys.executable, *container.command[1:], *container.args],
        env=values,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_helm_test_says_what_is_missing(release: Release, tmp_path: Path) -> None:
    pods = [o for o in rendered(release.helm) if o["kind"] == "Pod"]
    (container,) = pods[0]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    environment |= {"KUBECONFIG": str(release.plane.kubeconfig), "PATH": os.environ["PATH"], "WAIT_S": "1"}
    ran = subprocess.run(
        [sys.executable, *container["command"][1:], *container["args"]],
        env=environment | {"LEASE": "nobodys"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "a controller leads: NO, Lease ballast/nobodys: 404" in ran.stdout


def as_deployed(release: Release, pod: str, folder: Path, *words: str) -> OperatorProcess:
    """Start what a pod of the Deployment would run, with its token, its arguments and its environment."""
    body = release.plane.api("CoreV1Api").read_namespaced_pod(pod, release.namespace)
    (container,) = body.spec.containers
    own = {"POD_NAME": pod, "POD_NAMESPACE": release.namespace}
    values = {entry.name: entry.value for entry in container.env if entry.value is not None} | own
    assert {entry.name for entry in container.env} == set(values)
    url = f"sqlite:///{folder / pod}.sqlite"
    values |= {"BALLAST_CONTROLLER_RUN_DATABASE_URL": url, "HOME": str(folder), "PATH": os.environ["PATH"]}
    values |= {"KUBECONFIG": str(release.kubeconfig(pod))}
    arguments = [word.replace("$(POD_NAME)", pod) for word in container.args]
    arguments = [word.replace("$(POD_NAMESPACE)", release.namespace) for word in arguments]
    port = free_port()
    log = folder / f"{pod}.log"
    main = (sys.executable, "-c", "from controller.cli.root import main; main()")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*main, *arguments, "--host=127.0.0.1", f"--port={port}", *words],
            cwd=CHART.parents[1],
            env=values,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return OperatorProcess(process=process, log=log, port=port, identity=pod)


@pytest.mark.parametrize("watched", [[], ["chat"]], ids=["everywhere", "one-namespace"])
def test_the_controllers_work_as_deployed(
    helm: Path, cluster: ControlPlane, tmp_path: Path, watched: list[str]
) -> None:
    """The Deployment's own arguments, RBAC and admission policies: a verb too few would show here."""
    api = scene.api_of(cluster)
    release = Release(helm=helm, plane=cluster)
    release.install({"controller": {"planIntervalSeconds": 2}, "watchNamespaces": watched})
    product = f"Chart{len(watched)}"
    scene.add_nodes(cluster, {product: 2}, prefix="chart")
    scene.put(api, GPU_PROFILES, scene.profile("chart-a", product, max_rps=1.0, price=1.0))
    for name in ("plain", "annotated"):
        scene.put(api, DEPLOYMENTS, scene.deployment("chat", name, product, replicas=1))
    group = scene.deployment("chat", "group", product)["spec"]["template"]
    body = {
        "metadata": {"name": "group", "namespace": "chat"},
        "spec": {"replicas": 0, "leaderWorkerTemplate": {"size": 2, "workerTemplate": group}},
    }
    scene.put(api, LEADER_WORKER_SETS, body)
    trace = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{k / 3},512,128\n" for k in range(900))
    core = cluster.api("CoreV1Api")
    core.create_namespaced_config_map("chat", {"metadata": {"name": "t"}, "data": {"trace.csv": trace}})
    started = [as_deployed(release, pod, tmp_path, "--audit-interval=2") for pod in release.pods()]
    try:
        traffic = {"traceConfigMap": {"name": "t", "key": "trace.csv"}}
        variants = [
            scene.variant("plain", "plain", "chart-a", maxReplicas=3),
            scene.variant("group", "group", "chart-a", kind="LeaderWorkerSet"),
        ]
        scene.put(api, MODEL_SERVICES, scene.service("chat", "chat", variants, traffic=traffic))
        notes = {
            "ballast.dev/managed": "true",
            "ballast.dev/model": "m",
            "ballast.dev/gpu-profile": "chart-a",
            "ballast.dev/slo": "ttft_p99=1.0,tbt_p99=0.05",
        }
        api.patch(DEPLOYMENTS, "chat", "annotated", {"metadata": {"annotations": notes}})

        def bought() -> (
            bool
        ):  # three requests/s at one per replica, with headroom: more than the three plain ones
            groups = scene.replicas(api, "chat", "group", LEADER_WORKER_SETS) or 0
            status = {"replicas": groups, "readyReplicas": groups}  # the test plays the controller of groups
            api.patch(LEADER_WORKER_SETS, "chat", "group", {"status": status}, subresource="status")
            return scene.replicas(api, "chat", "plain") == 3 and groups >= 1

        assert eventually(bought, within_s=90), "\n".join(one.text()[-3000:] for one in started)
        assert eventually(lambda: scene.phase(api, "chat", "chat") == "Applied")
        made = eventually(lambda: api.get(MODEL_SERVICES, "chat", "annotated"))
        assert made
        assert made["spec"]["mode"] == "Observe"
        assert eventually(lambda: scene.condition(api, "chat", "chat", "Applied").get("status") == "True")
        leadership = api.get(LEADERSHIPS, release.namespace, LEASE) or {}
        assert leadership["spec"]["holderIdentity"] in release.pods()
        for one in started:
            assert one.stop() == 0, one.text()[-2000:]
            said = one.text()
            assert "forbidden" not in said.lower(), said
            assert "only the leader may write" not in said, said
    finally:
        for one in started:
            one.kill()
        for name in ("chat", "annotated"):
            scene.drop(api, MODEL_SERVICES, "chat", name)
        for name in ("plain", "annotated"):
            scene.drop(api, DEPLOYMENTS, "chat", name)
        scene.drop(api, LEADER_WORKER_SETS, "chat", "group")
        core.delete_namespaced_config_map("t", "chat")
        scene.drop(api, GPU_PROFILES, None, "chart-a")
        remove(release)


def chart_of_version(folder: Path, version: str) -> Path:
    """Return a copy of the chart with another version."""
    copy = folder / f"ballast-{version}"
    subprocess.run(["cp", "-r", CHART, copy], check=True)
    text = (copy / "Chart.yaml").read_text(encoding="utf-8")
    chart = yaml.safe_load(text)
    chart |= {"version": version, "appVersion": version}
    (copy / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
    return copy


def test_upgrade_rollback_and_uninstall_leave_users_alone(
    helm: Path, cluster: ControlPlane, tmp_path: Path
) -> None:
    release = Release(helm=helm, plane=cluster)
    custom = cluster.api("CustomObjectsApi")
    release.install(chart=chart_of_version(tmp_path, "0.0.9"))
    read = user_deployment(cluster, "chat-a10g", 3)
    service = custom.create_namespaced_custom_object(GROUP, VERSION, "chat", "modelservices", MODEL_SERVICE)
    assert eventually(lambda: read().status.ready_replicas == 3)
    before = read()

    def untouched() -> bool:
        now = read()
        same = custom.get_namespaced_custom_object(GROUP, VERSION, "chat", "modelservices", "chat")
        return bool(
            now.metadata.resource_version == before.metadata.resource_version
            and same["metadata"]["resourceVersion"] == service["metadata"]["resourceVersion"]
        )

    def image() -> str:
        apps = cluster.api("AppsV1Api")
        ours = apps.read_namespaced_deployment(release.fullname, release.namespace)
        return str(ours.spec.template.spec.containers[0].image)

    assert image().endswith(":0.0.9")
    release.install()
    assert image().endswith(f":{yaml.safe_load((CHART / 'Chart.yaml').read_text())['appVersion']}")
    assert untouched()
    release.run("rollback", release.name, "1", "--wait", "--timeout=120s")
    assert image().endswith(":0.0.9")
    assert untouched()
    release.install()
    release.uninstall()
    assert untouched(), "definitions and services survive an uninstall"
    assert left_behind(cluster, release) == {
        ("CustomResourceDefinition", f"{plural}.ballast.dev")
        for plural in (
            "expertplacements",
            "gpuprofiles",
            "leaderships",
            "modelservices",
            "nodepowers",
            "plans",
            "powerdomains",
        )
    }
    release.install()  # and the definitions are taken on again
    assert untouched()
    release.uninstall()
    moved = Release(helm=helm, plane=cluster, name="moved", namespace="moved")
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        moved.install()
    moved.install(more=("--take-ownership",))
    assert untouched()
    moved.uninstall()
    release.install(more=("--take-ownership",))
    release.uninstall()
    custom.delete_namespaced_custom_object(GROUP, VERSION, "chat", "modelservices", "chat")
    cluster.api("AppsV1Api").delete_namespaced_deployment("chat-a10g", "chat")


def left_behind(cluster: ControlPlane, release: Release) -> set[tuple[str, str]]:
    """Return what still carries the release's label, of every kind the chart creates."""
    selector = {"label_selector": f"app.kubernetes.io/instance={release.name}"}
    rbac, core = cluster.api("RbacAuthorizationV1Api"), cluster.api("CoreV1Api")
    admission = cluster.api("AdmissionregistrationV1Api")
    custom = cluster.api("CustomObjectsApi")
    lists = {
        "CustomResourceDefinition": cluster.api("ApiextensionsV1Api").list_custom_resource_definition,
        "ClusterRole": rbac.list_cluster_role,
        "ClusterRoleBinding": rbac.list_cluster_role_binding,
        "Role": rbac.list_role_for_all_namespaces,
        "RoleBinding": rbac.list_role_binding_for_all_namespaces,
        "ServiceAccount": core.list_service_account_for_all_namespaces,
        "ConfigMap": core.list_config_map_for_all_namespaces,
        "Service": core.list_service_for_all_namespaces,
        "Deployment": cluster.api("AppsV1Api").list_deployment_for_all_namespaces,
        "PodDisruptionBudget": cluster.api("PolicyV1Api").list_pod_disruption_budget_for_all_namespaces,
        "ValidatingAdmissionPolicy": admission.list_validating_admission_policy,
        "ValidatingAdmissionPolicyBinding": admission.list_validating_admission_policy_binding,
    }
    left = {(kind, item.metadata.name) for kind, ask in lists.items() for item in ask(**selector).items}
    for plural in ("servicemonitors", "prometheusrules"):
        group = ("monitoring.coreos.com", "v1")
        for item in custom.list_cluster_custom_object(*group, plural, **selector)["items"]:
            left.add((item["kind"], item["metadata"]["name"]))
    return left


def test_a_second_release_for_the_same_cluster_is_refused(release: Release) -> None:
    other = Release(helm=release.helm, plane=release.plane, namespace="other")
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        other.install()
