"""Traffic from Prometheus: one that is gone holds the last plan, one that answers is planned for (R8)."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from controller.operator.api import DEPLOYMENTS, GPU_PROFILES, MODEL_SERVICES, Api
from tests.cluster import scene
from tests.cluster.control_plane import ControlPlane, eventually, free_port
from tests.cluster.scene import variant
from tests.telemetry.certificates import Pair, made

SPACE = "prometheus"
PODS = 3


class Answers:
    """What a Prometheus server would answer to our queries for one pod at a steady rate."""

    def __init__(
        self, port: int, *, namespace: str = SPACE, token: str = "", pair: Pair | None = None
    ) -> None:
        self.rate = 2.0
        self.broken = ""
        self.asked = 0
        self.namespace = namespace
        self.shown: set[str | None] = set()
        """What questions had as Authorization."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self._answer(parse_qs(self.rfile.read(length).decode()))

            def _answer(self, words: dict[str, list[str]]) -> None:
                outer.asked += 1
                outer.shown.add(self.headers.get("Authorization"))
                denied = bool(token) and self.headers.get("Authorization") != f"Bearer {token}"
                body = b"" if denied else outer.body(words["query"][0])
                self.send_response(401 if denied else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.certificate, pair.key)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def body(self, query: str) -> bytes:
        """Write the answer of a query by the parts it asks for."""
        now = time.time()
        values = {"stamp": now, "finished": self.rate / PODS, "first": self.rate / PODS, "requests": 60.0}
        if self.broken == "nan":
            values["finished"] = float("nan")
        elements: list[dict[str, Any]] = []
        for part in [word.split('"')[0] for word in query.split('"part", "')[1:]]:
            if part == "now":
                elements.append({"metric": {"part": part}, "value": [now, str(now)]})
                continue
            for index in range(PODS):
                labels = {
                    "job": "vllm",
                    "namespace": self.namespace,
                    "pod": f"engine-{index}",
                    "instance": str(index),
                }
                labels["part"] = part
                if part in {"prompt", "output"}:
                    elements += [
                        {"metric": labels | {"le": edge}, "value": [now, "60"]} for edge in ("512", "+Inf")
                    ]
                    continue
                size = 30_000.0 if part.startswith(("prompt", "output")) else 0.0
                elements.append({"metric": labels, "value": [now, str(values.get(part, size))]})
        if self.broken == "empty":
            elements = [e for e in elements if e["metric"]["part"] == "now"]
        return json.dumps(
            {"status": "success", "data": {"resultType": "vector", "result": elements}}
        ).encode()

    def stop(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def api(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return the API of a cluster with an operator that samples often."""
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, SPACE)
    scene.add_nodes(plane, {"PromA": 2}, prefix="prom")
    scene.put(api, GPU_PROFILES, scene.profile("prom-a", "PromA", max_rps=1.0, price=1.0))
    operators = scene.Operators(plane.kubeconfig, tmp_path_factory.mktemp("operators"), namespace=SPACE)
    operators.start(f"--watch-namespaces={SPACE}", "--traffic-window=2")
    yield api
    operators.end()


def test_no_server_holds_what_runs_and_one_that_answers_is_planned_for(api: Api) -> None:
    port = free_port()
    scene.put(api, DEPLOYMENTS, scene.deployment(SPACE, "engine", "PromA", replicas=3))
    traffic = {"prometheus": {"url": f"http://127.0.0.1:{port}", "selector": 'model_name="m"'}}
    one = [variant("a", "engine", "prom-a")]
    scene.put(api, MODEL_SERVICES, scene.service(SPACE, "engine", one, traffic=traffic))
    assert eventually(
        lambda: scene.condition(api, SPACE, "engine", "TelemetryReady").get("status") == "False"
    )
    assert eventually(
        lambda: f"127.0.0.1:{port}" in scene.condition(api, SPACE, "engine", "TelemetryReady")["message"]
    )
    time.sleep(3)
    assert scene.replicas(api, SPACE, "engine") == 3
    body = api.get(MODEL_SERVICES, SPACE, "engine") or {}
    assert "demand" not in body["status"]  # what is not known is not zero

    answers = Answers(port)
    try:
        for broken in ("empty", "nan"):
            answers.broken = broken
            asked = answers.asked
            assert eventually(lambda asked=asked: answers.asked > asked + 2)  # type: ignore[misc]
            assert scene.condition(api, SPACE, "engine", "TelemetryReady")["status"] == "False"
            assert scene.replicas(api, SPACE, "engine") == 3
        answers.broken, answers.rate = "", 5.0
        assert eventually(lambda: scene.condition(api, SPACE, "engine", "TelemetryReady")["status"] == "True")
        assert eventually(lambda: scene.replicas(api, SPACE, "engine") == 6)
    finally:
        answers.stop()
    scene.drop(api, MODEL_SERVICES, SPACE, "engine")
    scene.drop(api, DEPLOYMENTS, SPACE, "engine")


def test_what_the_installation_has_for_one_server_is_shown_to_no_other(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """A private authority, a token that is wrong and then changed in its file, and a server that nobody vouched for."""
    space = "prometheus-access"
    pair, token = made(tmp_path, "prometheus"), tmp_path / "token"
    token.write_text("s3cr3t-old")
    api = scene.api_of(plane)
    scene.install_crds(api)
    scene.ensure_namespace(api, space)
    scene.add_nodes(plane, {"PromB": 2}, prefix="prom")
    scene.put(api, GPU_PROFILES, scene.profile("prom-b", "PromB", max_rps=1.0, price=1.0))
    known = Answers(free_port(), namespace=space, token="s3cr3t-new", pair=pair)  # noqa: S106 - made up
    other = Answers(free_port(), namespace=space)
    urls = {
        "engine": f"https://127.0.0.1:{known.server.server_port}",
        "other": f"http://127.0.0.1:{other.server.server_port}",
    }
    operators = scene.Operators(plane.kubeconfig, tmp_path, namespace=space)
    access = f"url={urls['engine']},token-file={token},ca-file={pair.certificate}"
    one = operators.start(
        f"--watch-namespaces={space}",
        "--traffic-window=2",
        "--log-level=debug",
        f"--prometheus-access={access}",
    )

    def heard(name: str) -> scene.Object:
        return scene.condition(api, space, name, "TelemetryReady")

    try:
        for name, url in urls.items():
            scene.put(api, DEPLOYMENTS, scene.deployment(space, name, "PromB", replicas=3))
            traffic = {"prometheus": {"url": url, "selector": 'model_name="m"'}}
            body = scene.service(space, name, [variant("b", name, "prom-b")], traffic=traffic)
            scene.put(api, MODEL_SERVICES, body)
        assert eventually(lambda: heard("engine").get("reason") == "AccessDenied"), heard("engine")
        known.rate = 5.0
        token.write_text("s3cr3t-new")
        assert eventually(lambda: heard("engine").get("status") == "True"), heard("engine")
        assert eventually(lambda: scene.replicas(api, space, "engine") == 6)
        assert known.shown == {"Bearer s3cr3t-old", "Bearer s3cr3t-new"}
        assert eventually(lambda: other.asked > 2)
        assert other.shown == {None}
        assert "s3cr3t" not in one.text()
    finally:
        operators.end()
        known.stop()
        other.stop()
