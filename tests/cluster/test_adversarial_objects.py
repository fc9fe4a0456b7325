"""R9: objects nobody would write, broken and valid, while an operator runs: it lives, judges each, serves others."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from controller.operator.api import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    GPU_PROFILES,
    MODEL_SERVICES,
    Api,
    ApiError,
    Resource,
)
from controller.resources.kinds import GPU_PROFILE, MODEL_SERVICE
from tests.cluster import objects, scene
from tests.cluster.control_plane import ControlPlane, eventually
from tests.cluster.objects import Mutation, Names
from tests.cluster.results import record
from tests.cluster.scene import LABEL, Object, histogram, variant
from tests.telemetry.loopback import say, serving

SPACE = "adverse"
PRODUCT = "AdverseA"
SOUND = 6
"""So many of the profiles stay as they are; the others change under the services that name them."""
PROFILES = tuple(f"adverse-{number}" for number in range(12))
TARGETS = tuple(f"target-{number}" for number in range(300))
SHARED = 60
"""So many of the targets are for third and further variants, which may meet those of other services."""
TRACES = ("no-trace", "empty", "junk", "numbers")
JUNK_PAGES = {
    "/metrics": say("vllm:num_requests_running NaN\nvllm:request_success_total -1\n" * 1000),
    "/api/v1/query": say('{"status":"success","data":{"resultType":"vector","result":[{}]}}'),
    "/long/api/v1/query": say("x" * 2_000_000),
    "/array/api/v1/query": say("[" * 10_000),
    "/empty/api/v1/query": say(""),
}


@pytest.fixture(scope="module")
def api(plane: ControlPlane) -> Iterator[Api]:
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {PRODUCT: 4, "AdverseB": 2}, prefix="adverse")
    for number, name in enumerate(PROFILES[:SOUND]):
        body = scene.profile(
            name, PRODUCT, max_rps=1.0 + number, price=1.0 + 0.9 * number, gpus=1 + number % 2
        )
        scene.put(api, GPU_PROFILES, body)
    scene.put(api, GPU_PROFILES, scene.profile("innocent", "AdverseB", max_rps=1.0, price=1.0))
    for name in (*TARGETS, "innocent"):
        product = "AdverseB" if name == "innocent" else PRODUCT
        scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, name, product))
    for name, text in {
        "empty": "",
        "junk": "\u202e{{ }}\x01,,,\n" * 100,
        "numbers": "arrival_s,prompt_tokens,output_tokens\nnan,1e400,-1\n0,0,0\n1e300,9,9\n",
    }.items():
        body = {"metadata": {"name": name, "namespace": SPACE}, "data": {"trace.csv": text}}
        scene.put(api, CONFIG_MAPS, body)
    yield api
    for body in api.list(MODEL_SERVICES, SPACE):
        scene.drop(api, MODEL_SERVICES, SPACE, body["metadata"]["name"])
    for body in api.list(GPU_PROFILES):
        if body["metadata"]["name"] in {*PROFILES, "innocent"}:
            scene.drop(api, GPU_PROFILES, None, body["metadata"]["name"])
    for name in (*TARGETS, "innocent"):
        scene.drop(api, DEPLOYMENTS, SPACE, name)


def names_of(address: str) -> Names:
    """Let objects meet the targets, profiles and traces there are, and nothing beyond this machine."""
    return Names(
        often={
            "traceConfigMap.name": TRACES,
            "spec.gpuType": [PRODUCT],
            # many are sensible enough to be planned for, together, on GPUs that are short
            "spec.mode": ["Auto"],
            "spec.headroomRatio": [0.1],
            "spec.survive": [0, 1],
            "slo.ttftSeconds": [1.0],
            "slo.tbtSeconds": [0.05],
            "buckets.rateRps": [0.01, 0.7, 3.3, 11.0],
            "buckets.inputTokens": [128, 1000, 4000],
            "buckets.outputTokens": [16, 300, 1000],
            "variants.minReplicas": [0],
            "variants.maxReplicas": [8, 100],
            "throughput.ttftSeconds": [0.5],
            "throughput.tbtSeconds": [0.02],
            "throughput.maxRps": [0.5, 4.0, 9.0],
        },
        only={
            "targetRef.name": [*TARGETS, "missing", "x" * 253],
            "variants.gpuProfile": [*PROFILES, "missing", "x" * 253],
            "traffic.source": ["histogram"] * 3 + ["scrape", "prometheus", "traceConfigMap"],
            "targetRef.kind": ["Deployment"] * 4 + ["StatefulSet", "LeaderWorkerSet"],
            "prometheus.url": [
                address,
                *(f"{address}/{part}" for part in ("long", "array", "empty", "none")),
                "http://127.0.0.1:1",
                "https://localhost:1/deep/path/",
                "http://[::1]:1",
                "http://[::::]:1",
            ],
            "nodeSelector.key": [LABEL, "kubernetes.io/hostname"],
            "nodeSelector.value": [PRODUCT, "nobody"],
        },
    )


ANNOTATIONS = st.dictionaries(
    st.sampled_from(["ballast.dev/paused", "ballast.dev/approved", "ballast.dev/managed", "note"]),
    st.one_of(
        st.sampled_from(["true", "TRUE", "", "\U0001f600" * 100]), st.text(objects.UNICODE, max_size=50)
    ),
    max_size=2,
)


class Storm:
    """Creates, changes and deletes objects, one after the other, and keeps who was taken and who was not."""

    def __init__(self, api: Api, names: Names, count: int) -> None:
        self.api = api
        self.names = names
        self.count = count
        self.taken: dict[str, int] = {"valid": 0, "broken": 0}
        self.refused = 0
        self.unexpected: list[str] = []
        self._number = 0

    def run(self) -> None:
        """Make ``count`` valid objects, and a broken one of each."""

        @settings(
            max_examples=self.count,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            spec=objects.valid_specs(MODEL_SERVICE, self.names),
            profile=objects.valid_specs(GPU_PROFILE, self.names),
            mutation=objects.mutations(),
            annotations=ANNOTATIONS,
            lot=st.integers(0, 9),
        )
        def one(spec: Object, profile: Object, mutation: Mutation, annotations: Object, lot: int) -> None:
            self._number += 1
            if self._number % 3:
                self._settle(spec)
            metadata = {"name": self._name(lot), "namespace": SPACE, "annotations": annotations}
            self._offer(MODEL_SERVICES, {"metadata": metadata, "spec": spec}, "valid")
            broken = {**metadata, "name": f"broken-{self._number}"}
            self._offer(MODEL_SERVICES, {"metadata": broken, "spec": mutation.applied(spec)}, "broken")
            if lot < 2:  # profiles change under the services that name them
                self._put_profile(profile, mutation if lot else None)
            if lot == 2 and self._number > 5:
                scene.drop(self.api, MODEL_SERVICES, SPACE, f"odd-{self._number - 5}")

        one()

    def _settle(self, spec: Object) -> None:
        """Give the first variants targets of their own and sound profiles, so that the service is planned for."""
        own = len(TARGETS) - SHARED
        for index, one in enumerate(spec["variants"]):
            name = TARGETS[(2 * self._number + index) % own] if index < 2 else TARGETS[own + index % SHARED]
            one["targetRef"] = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
            if index < 2:
                one["gpuProfile"] = PROFILES[(self._number + index) % SOUND]

    def _name(self, lot: int) -> str:
        return f"odd-{self._number}" + (f".{'x' * 240}"[: 253 - 10] if lot == 9 else "")

    def _offer(self, resource: Resource, body: Object, kind: str) -> None:
        try:
            self.api.create(resource, body["metadata"].get("namespace"), body)
            self.taken[kind] += 1
        except ApiError as error:
            if error.code in {400, 422} and str(error) and kind == "broken":
                self.refused += 1
            else:
                self.unexpected.append(f"{kind}: {error.code} {error}")

    def _put_profile(self, spec: Object, mutation: Mutation | None) -> None:
        name = PROFILES[SOUND + self._number % (len(PROFILES) - SOUND)]
        known = self.api.get(GPU_PROFILES, None, name)
        body = {
            "apiVersion": GPU_PROFILES.api_version,
            "kind": GPU_PROFILES.kind,
            "metadata": {"name": name} if known is None else known["metadata"],
            "spec": spec if mutation is None else mutation.applied(spec),
        }
        try:
            if known is None:
                self.api.create(GPU_PROFILES, None, body)
            else:
                self.api.replace(GPU_PROFILES, None, body)
        except ApiError as error:
            if mutation is None or error.code not in {400, 422}:
                self.unexpected.append(f"profile: {error.code} {error}")


class Innocent:
    """A service that has nothing to do with the others; its changes are timed."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.rate = 0.0

    def change_s(self) -> float:
        """Change its rate; return the seconds until its status names what is then wanted."""
        self.rate = 1.5 if self.rate > 2 else 3.5
        wanted = int(self.rate + 0.5)
        one = [variant("only", "innocent", "innocent")]
        body = scene.service(
            SPACE, "innocent", one, traffic=histogram(self.rate), mode="Recommend", headroomRatio=0.0
        )
        began_s = time.monotonic()
        generation = scene.put(self.api, MODEL_SERVICES, body)["metadata"]["generation"]

        def said() -> bool:
            status = (self.api.get(MODEL_SERVICES, SPACE, "innocent") or {}).get("status") or {}
            desired = [entry["replicas"] for entry in status.get("desired") or []]
            return bool(status.get("observedGeneration") == generation and desired == [wanted])

        assert eventually(said, within_s=120, every_s=0.02), "the innocent service is not served"
        return time.monotonic() - began_s


def unjudged(api: Api) -> list[str]:
    """Name the services whose present generation the operator has said nothing of."""
    return [
        body["metadata"]["name"]
        for body in api.list(MODEL_SERVICES, SPACE)
        if (body.get("status") or {}).get("observedGeneration") != body["metadata"]["generation"]
        or len((body["status"].get("conditions")) or []) < 6
    ]


def figure(port: int, name: str) -> float:
    """Return the sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def weather(plane: ControlPlane, api: Api, folder: Path, *, count: int, changes: int) -> dict[str, Any]:
    """Let a storm pass over a running operator; say what came of it."""
    operators = scene.Operators(plane.kubeconfig, folder, namespace=SPACE)
    one = operators.start(f"--watch-namespaces={SPACE}", "--solve-limit=10")
    innocent = Innocent(api)
    try:
        innocent.change_s()
        before = [innocent.change_s() for _ in range(changes)]
        with serving(JUNK_PAGES) as address:
            storm = Storm(api, names_of(address), count)
            thread = threading.Thread(target=storm.run, daemon=True)
            thread.start()
            during: list[float] = []
            while thread.is_alive() or len(during) < changes:
                during.append(innocent.change_s())
            thread.join()
            assert one.process.poll() is None, one.text()[-4000:]
            assert eventually(lambda: not unjudged(api), within_s=180, every_s=1.0), unjudged(api)[:5]
            errors = figure(one.port, "ballast_reconcile_errors_total")
        assert one.process.poll() is None, one.text()[-4000:]
        with urllib.request.urlopen(f"http://127.0.0.1:{one.port}/healthz", timeout=30) as answer:
            assert answer.status == 200
        reasons = [
            next((c["reason"] for c in body["status"]["conditions"] if c["type"] == "SolverReady"), "")
            for body in api.list(MODEL_SERVICES, SPACE)
        ]
        text = one.text()
        assert one.stop() == 0, text[-4000:]
    finally:
        operators.end()
    assert storm.unexpected == [], storm.unexpected[:20]
    return {
        "taken": storm.taken,
        "refused": storm.refused,
        "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "round_errors": errors,
        "tracebacks": [line for line in text.splitlines() if "Traceback" in line],
        "before_p99_s": float(np.percentile(before, 99)),
        "during_p99_s": float(np.percentile(during, 99)),
        "before_p50_s": float(np.median(before)),
        "during_p50_s": float(np.median(during)),
    }


def test_odd_objects_are_judged_and_disturb_nobody(plane: ControlPlane, api: Api, tmp_path: Path) -> None:
    came = weather(plane, api, tmp_path, count=150, changes=10)
    print(json.dumps(came))  # noqa: T201 - for whoever runs it with -s
    assert came["taken"]["valid"] == 150
    assert came["refused"] >= 75
    assert (came["round_errors"], came["tracebacks"]) == (0, [])
    assert came["during_p99_s"] < 10 * came["before_p99_s"] + 10


@pytest.mark.chaos
def test_a_thousand_odd_objects(plane: ControlPlane, api: Api, tmp_path: Path) -> None:
    came = weather(plane, api, tmp_path, count=1000, changes=50)
    ratio = came["during_p99_s"] / came["before_p99_s"]
    objects_made = came["taken"]["valid"] + came["taken"]["broken"] + came["refused"]
    record(
        "R9 malformed and adversarial objects",
        objects_made,
        "objects",
        limit="≥ 2000",
        met=objects_made >= 2000,
    )
    record(
        "R9 rounds that failed, and tracebacks", came["round_errors"] + len(came["tracebacks"]), "", limit="0"
    )
    record("R9 p99 from change to status of another service, before", came["before_p99_s"], "s")
    record("R9 p99 during, by that before", ratio, "×", limit="≤ 2", met=ratio <= 2)
    assert (came["round_errors"], came["tracebacks"]) == (0, [])
    assert came["refused"] >= 500
