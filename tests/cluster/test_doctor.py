"""``ballast doctor`` on a real control plane: every thing that may be missing is found, named, and told how to get."""

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.operator.api import (
    DEPLOYMENTS,
    GPU_PROFILES,
    LEASES,
    MODEL_SERVICES,
    NODES,
    Api,
    connect,
)
from controller.operator.doctor.examination import Doctor, Wishes
from controller.operator.doctor.findings import Finding, Mark, Report
from controller.operator.leader import LEASE_NAME
from controller.operator.permissions import PERMISSIONS, Permission
from controller.resources.kinds import KINDS
from tests.cluster import scene
from tests.cluster.accounts import allow, kubeconfig_of
from tests.cluster.control_plane import ControlPlane, add_node, eventually, free_port
from tests.cluster.scene import variant
from tests.commands import BALLAST

SPACE = "doctor"
GOOD, UNUSED = "DoctorGood", "DoctorUnused"


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[Api]:
    """Return the API of a cluster with nodes that are right, and nodes that are not."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {GOOD: 2, UNUSED: 1}, prefix="doctor")
    add_node(plane, "doctor-bare", labels={}, gpus=4)
    add_node(plane, "doctor-empty", labels={scene.LABEL: GOOD})
    yield api
    for node in ("doctor-bare", "doctor-empty"):
        scene.drop(api, NODES, None, node)


@pytest.fixture(scope="module")
def served(api: Api, plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let an operator look after a service whose traffic is stated and one whose pods say nothing."""
    scene.put(api, GPU_PROFILES, scene.profile("doctor-good", GOOD, max_rps=2.0, price=1.0))
    for name in ("chat", "mute"):
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, name, GOOD, replicas=1))
    variants = [variant("one", "chat", "doctor-good")]
    chat = scene.service(SPACE, "chat", variants, traffic=scene.histogram(1.0))
    traffic = {"scrape": {"engine": "vllm", "port": free_port(), "path": "/metrics"}}
    mute = scene.service(SPACE, "mute", [variant("one", "mute", "doctor-good")], traffic=traffic)
    scene.put(api, MODEL_SERVICES, chat)
    scene.put(api, MODEL_SERVICES, mute)
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("doctor"), namespace=SPACE)
    one = operators.start(f"--watch-namespaces={SPACE}", "--sample-interval=0.5", "--traffic-window=2")
    try:
        assert eventually(
            lambda: (
                scene.condition(api, SPACE, "mute", "TelemetryReady").get("status") == "False"
                and scene.condition(api, SPACE, "chat", "TelemetryReady").get("status") == "True"
            )
        ), one.text()
        yield
    finally:
        operators.end()


def examine(api: Api, **wishes: Any) -> Report:
    settings = Wishes(namespace=SPACE, watched=(SPACE,), **wishes)
    return Doctor(api=api, wishes=settings, pause=lambda _: None).examine()


def found(report: Report, area: str, mark: Mark) -> list[Finding]:
    return [finding for finding in report.findings if (finding.area, finding.mark) == (area, mark)]


@pytest.mark.usefixtures("served")
def test_what_is_right_is_said_to_be_right(api: Api) -> None:
    report = Doctor(api=api, wishes=Wishes(namespace=SPACE, watched=(SPACE,))).examine()
    assert report.server_version.startswith("v1.")
    assert report.leader == "replica-0"
    assert not [f for f in report.findings if f.area == "definitions" and f.mark is not Mark.OK]
    assert len(found(report, "definitions", Mark.OK)) == len(KINDS)
    assert found(report, "leader", Mark.OK)
    assert found(report, "permissions", Mark.OK)[0].what.startswith("your account has all")
    (good,) = [product for product in report.products if product.label == GOOD]
    assert (good.nodes, good.gpus, good.profiles) == (2, 16, ("doctor-good",))
    assert [f.what for f in found(report, "services", Mark.OK)] == [
        "the traffic of 1 of 2 ModelServices is known"
    ]


@pytest.mark.usefixtures("served")
def test_missing_traffic_is_named_with_its_reason(api: Api) -> None:
    (mute,) = found(examine(api), "services", Mark.MISSING)
    reason = scene.condition(api, SPACE, "mute", "TelemetryReady")["reason"]
    assert f"ModelService {SPACE}/mute: no traffic is known ({reason})" in mute.what
    assert "serve /metrics on port" in mute.do


def test_nodes_and_profiles_that_do_not_meet(api: Api) -> None:
    scene.put(api, GPU_PROFILES, scene.profile("doctor-lost", "DoctorNowhere", max_rps=1.0, price=1.0))
    try:
        report = examine(api)
    finally:
        scene.drop(api, GPU_PROFILES, None, "doctor-lost")
    warnings = {finding.what: finding.do for finding in found(report, "gpus", Mark.WARNING)}
    assert warnings[f"no GpuProfile uses node doctor-{UNUSED.lower()}-0 with {UNUSED}"].endswith(
        f"gpuType: {UNUSED}"
    )
    assert f"{scene.LABEL} without nvidia.com/gpu on node doctor-empty" in warnings
    missing = [finding.what for finding in found(report, "gpus", Mark.MISSING)]
    assert missing == [f"GPUs without label {scene.LABEL} on node doctor-bare"]
    lost = [f.what for f in found(report, "profiles", Mark.WARNING) if "doctor-lost" in f.what]
    assert lost == [
        "GpuProfile doctor-lost has no node with GPUs (looked for nvidia.com/gpu.product in DoctorNowhere)"
    ]


def test_another_label_and_resource(api: Api) -> None:
    report = examine(api, gpu_resource="example.com/none")
    assert "offers example.com/none" in found(report, "gpus", Mark.MISSING)[0].what
    hosts = examine(api, gpu_label="kubernetes.io/hostname")
    assert "doctor-bare" in {product.label for product in hosts.products}


def test_an_older_schema_is_found_by_its_fields(api: Api) -> None:
    file = scene.CRDS / "modelservices.yaml"
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    spec = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["headroomRatio"]
    spec["novelty"] = {"type": "string"}
    try:
        other = {"metadata": body["metadata"], "spec": body["spec"]}
        api.apply(scene.CRD, other, manager="tests", force=True)
        (finding,) = found(examine(api), "definitions", Mark.MISSING)
    finally:
        scene.install_crds(api)
    assert finding.what == (
        "modelservices.ballast.dev has another schema: spec.headroomRatio is missing, spec.novelty is not ours"
    )
    assert not found(examine(api), "definitions", Mark.MISSING)


def without(verb: str, resource: str) -> list[Permission]:
    """Return the list less one verb of one resource."""
    return [
        dataclasses.replace(p, verbs=tuple(v for v in p.verbs if v != verb))
        if p.resource == resource and not p.subresource
        else p
        for p in PERMISSIONS
    ]


def test_exactly_the_missing_right_is_named(api: Api) -> None:
    allow(api, SPACE, "nearly", without("patch", "deployments"))
    (finding,) = found(examine(api, account=(SPACE, "nearly")), "permissions", Mark.MISSING)
    assert finding.what == (
        f"ServiceAccount {SPACE}/nearly may not patch deployments.apps in {SPACE} (to set replicas)"
    )
    assert finding.do == ('let its role allow apiGroups: ["apps"], resources: [deployments], verbs: [patch]')


def test_an_account_without_rights(api: Api) -> None:
    (finding,) = found(examine(api, account=(SPACE, "nobody")), "permissions", Mark.MISSING)
    assert "has none of the" in finding.what


def test_the_list_is_all_the_operator_needs(api: Api, plane: ControlPlane, tmp_path: Path) -> None:
    """With these rights and no others it plans, applies, and writes statuses; doctor finds nothing to add."""
    space = "doctor-rights"
    scene.ensure_namespace(api, space)
    allow(api, space, "exact", PERMISSIONS)
    scene.put(api, GPU_PROFILES, scene.profile("doctor-rights", GOOD, max_rps=2.0, price=1.0))
    scene.put(api, DEPLOYMENTS, scene.deployment(space, "chat", GOOD))
    variants = [variant("one", "chat", "doctor-rights")]
    scene.put(api, MODEL_SERVICES, scene.service(space, "chat", variants, traffic=scene.histogram(3.0)))
    config = kubeconfig_of(plane, space, "exact")
    operators = scene.Operators(config, tmp_path, namespace=space)
    one = operators.start(f"--watch-namespaces={space}")
    try:
        assert eventually(lambda: scene.phase(api, space, "chat") == "Applied"), one.text()
        assert scene.replicas(api, space, "chat") == 2
    finally:
        operators.end()
    assert "forbidden" not in one.text().lower(), one.text()
    own = Api(client=connect(str(config)))
    report = Doctor(api=own, wishes=Wishes(namespace=space, watched=(space,))).examine()
    assert not found(report, "permissions", Mark.MISSING)


def lease(api: Api, space: str, **spec: Any) -> None:
    scene.ensure_namespace(api, space)
    body = {"metadata": {"name": LEASE_NAME, "namespace": space}, "spec": spec}
    scene.put(api, LEASES, body)


def leader(api: Api, space: str | None) -> Finding:
    report = Doctor(api=api, wishes=Wishes(namespace=space), pause=lambda _: None).examine()
    (finding,) = [finding for finding in report.findings if finding.area == "leader"]
    return finding


def test_a_lease_that_nobody_renews(api: Api) -> None:
    space = "doctor-lease"
    scene.ensure_namespace(api, space)
    assert "there is no Lease ballast-controller in doctor-lease" in leader(api, space).what
    lease(api, space, holderIdentity="gone", leaseDurationSeconds=2, renewTime="2026-01-01T00:00:00.000000Z")
    stale = leader(api, space)
    assert stale.mark is Mark.MISSING
    assert "of gone was last renewed" in stale.what
    lease(api, space, holderIdentity="", renewTime="2026-01-01T00:00:00.000000Z")
    assert "held by nobody" in leader(api, space).what


def test_a_leader_whose_clock_is_wrong_leads_all_the_same(api: Api) -> None:
    space = "doctor-clock"
    stamps = iter(range(10, 60))

    def renew(_: float = 0.0) -> None:
        stamp = f"2026-01-01T00:00:{next(stamps)}.000000Z"
        lease(api, space, holderIdentity="slow", leaseDurationSeconds=4, renewTime=stamp)

    renew()
    report = Doctor(api=api, wishes=Wishes(namespace=space), pause=renew).examine()
    (finding,) = found(report, "leader", Mark.WARNING)
    assert finding.what.startswith("slow leads, but its clock is")
    assert "behind this machine's" in finding.what


def test_the_database_is_tried(api: Api, tmp_path: Path) -> None:
    lost = f"sqlite:///{tmp_path}/no/history.db"
    (finding,) = found(examine(api, database_url=lost), "database", Mark.MISSING)
    assert f"folder {tmp_path}/no does not exist" in finding.what
    assert found(examine(api, database_url=f"sqlite:///{tmp_path}/history.db"), "database", Mark.OK)
    assert not (tmp_path / "history.db").exists(), "looking makes nothing"
    refused = f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/history"
    (finding,) = found(examine(api, database_url=refused), "database", Mark.MISSING)
    assert "secret" not in finding.what


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BALLAST, "doctor", *words], check=False, capture_output=True, text=True, cwd=scene.ROOT, timeout=120
    )


@pytest.mark.usefixtures("api")
def test_the_command_for_programs_and_for_people(plane: ControlPlane) -> None:
    where = ("--kubeconfig", str(plane.kubeconfig), "-n", "doctor-nowhere")
    done = run(*where, "-o", "json")
    assert done.returncode == 3, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["complete"], answer["leader"]) == ("doctor/1", False, None)
    assert {"area", "mark", "what", "do"} == set(answer["findings"][0])
    assert GOOD in {row["product"] for row in answer["gpu_nodes"]}
    table = run(*where)
    assert table.returncode == 3
    assert max(map(len, table.stdout.splitlines())) <= 100
    assert "MISSING" in table.stdout


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, plane: ControlPlane) -> None:
    content = yaml.safe_load(plane.kubeconfig.read_text(encoding="utf-8"))
    content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = run("--kubeconfig", str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot be reached" in line
    assert "Connection refused" in line
    content["users"][0]["user"]["token"] = "wrong"  # noqa: S105 - it is meant to be
    content["clusters"][0]["cluster"]["server"] = plane.server
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = run("--kubeconfig", str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "401" in line
