"""The agent's page: telemetry for the controller, metrics for Prometheus, health for the kubelet.

It exists because the controller has to see every second or two, which is more often than an API server should be
written to. It is read-only; whoever can reach it can read watts, not set them. With a certificate it speaks TLS, with a
token it answers only those who bring it; both are files that may be exchanged while it runs.
"""

import contextlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from controller.agent.node_power import telemetry_of
from controller.agent.state import AgentState

STALE_S = 5.0
"""A loop that finished no round for so long is not healthy."""
REQUEST_S = 5.0
"""What one request may take, so that idle connections do not pile up."""


class NodeMetrics(Collector):
    """``ballast_node_power_*`` of the last round."""

    def __init__(self, state: Callable[[], AgentState | None], clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return all series; what is not known has none."""
        state = self._state()
        if state is None:
            return
        yield _one("age_seconds", "Since the GPUs were looked at.", self._clock() - state.t_s)
        left_s = max(state.lease_until_s - self._clock(), 0.0)
        yield _one("lease_left_seconds", "Until the lease is over.", left_s)
        yield _one("writes", "1 while orders are carried out, 0 while they are shown.", float(state.writes))
        yield _one("sweep_cpu_seconds", "Processor time of the last look at all GPUs.", state.cpu_s)
        for name, value in (
            ("observed_generation", state.observed_generation),
            ("acknowledged_generation", state.acknowledged_generation),
        ):
            if value is not None:
                yield _one(name, "Of the orders.", float(value))
        conditions = GaugeMetricFamily(
            "ballast_node_power_condition", "1 while a condition is true.", labels=["condition", "reason"]
        )
        for kind, status, reason in state.conditions():
            conditions.add_metric([kind, reason], float(status))
        yield conditions
        yield from _of_gpus(state)


def _one(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ballast_node_power_{name}", documentation, value=value)


def _of_gpus(state: AgentState) -> Iterable[Metric]:
    gauges: tuple[tuple[str, str, Callable[[Any], float | None]], ...] = (
        ("gpu_watts", "Power now.", lambda gpu: gpu.sample.power_w),
        ("gpu_mean_watts", "Since the look before, by the energy counter.", lambda gpu: gpu.sample.mean_w),
        ("gpu_limit_watts", "Power limit as requested.", lambda gpu: gpu.sample.limit_w),
        ("gpu_enforced_watts", "The lowest of all limits.", lambda gpu: gpu.sample.enforced_w),
        ("gpu_original_watts", "Limit before the first write.", lambda gpu: gpu.original_w),
        ("gpu_applied_mhz", "Clock lock as read back.", lambda gpu: gpu.verdict.applied_mhz),
        ("gpu_wanted_mhz", "Clock lock on its way.", lambda gpu: gpu.verdict.wanted.max_mhz),
        ("gpu_sm_mhz", "Clock now.", lambda gpu: gpu.sample.sm_mhz),
        ("gpu_celsius", "Temperature.", lambda gpu: gpu.sample.celsius),
        ("gpu_busy_ratio", "Share of time in which something ran.", lambda gpu: gpu.sample.sm_ratio),
        ("gpu_ecc_uncorrected", "Uncorrected ECC errors.", lambda gpu: gpu.sample.ecc_uncorrected),
    )
    for name, documentation, value_of in gauges:
        family = GaugeMetricFamily(f"ballast_node_power_{name}", documentation, labels=["gpu"])
        for gpu in state.gpus:
            value = value_of(gpu)
            if value is not None:
                family.add_metric([gpu.identity.uuid], float(value))
        yield family
    energy = CounterMetricFamily("ballast_node_power_gpu_joules", "Since the agent started.", labels=["gpu"])
    errors = GaugeMetricFamily("ballast_node_power_gpu_error", "1: what is wrong.", labels=["gpu", "error"])
    reasons = GaugeMetricFamily(
        "ballast_node_power_gpu_clock_reason", "1: why the clock is not higher.", labels=["gpu", "reason"]
    )
    for gpu in state.gpus:
        uuid = gpu.identity.uuid
        if gpu.sample.energy_j is not None:
            energy.add_metric([uuid], gpu.sample.energy_j)
        if gpu.verdict.error is not None:
            errors.add_metric([uuid, gpu.verdict.error], 1.0)
        for reason in gpu.sample.reason_names:
            reasons.add_metric([uuid, reason], 1.0)
    yield energy
    yield errors
    yield reasons


class _Server(ThreadingHTTPServer):
    """Shakes hands in the thread of a connection, so that one that does not answer holds up nobody."""

    daemon_threads = True
    _files: tuple[Path, Path] | None = None
    _read: tuple[float, float] = (0.0, 0.0)
    _context: ssl.SSLContext

    def secure(self, certificate: Path, key: Path) -> None:
        """Speak TLS from now on.

        Raises
        ------
        OSError
            A file cannot be read, or is no certificate or key.
        """
        self._files = (certificate, key)
        self._load()

    def _load(self) -> None:
        if self._files is None:
            return
        certificate, key = self._files
        written = (certificate.stat().st_mtime, key.stat().st_mtime)
        if written != self._read:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self._context, self._read = context, written

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; certificates that were exchanged are read again."""
        connection, address = self.socket.accept()
        if self._files is None:
            return connection, address
        with contextlib.suppress(OSError):  # half exchanged: the ones before still serve
            self._load()
        connection.settimeout(REQUEST_S)
        secured = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return secured, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of readers that hang up."""


@dataclass(slots=True, kw_only=True)
class Page:
    """The HTTP server."""

    host: str
    port: int
    node: str
    state: Callable[[], AgentState | None]
    clock: Callable[[], float]
    certificate: Path | None = None
    """PEM; with ``key``."""
    key: Path | None = None
    token: Path | None = None
    """What a reader has to bring as a bearer token."""
    server: ThreadingHTTPServer | None = None

    def start(self) -> int:
        """Listen in a thread; returns the port."""
        page = self
        registry = CollectorRegistry()
        registry.register(NodeMetrics(self.state, self.clock))

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_S

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path in {"/metrics", "/telemetry"} and not page.admits(
                    self.headers.get("Authorization", "")
                ):
                    self._send(401, b"a bearer token is needed\n", "text/plain")
                elif path == "/metrics":
                    self._send(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif path == "/telemetry":
                    state = page.state()
                    if state is None:
                        self._send(503, b"no round yet\n", "text/plain")
                        return
                    body = telemetry_of(state, node=page.node, now_s=page.clock())
                    self._send(200, json.dumps(body).encode(), "application/json")
                elif path in {"/healthz", "/readyz"}:
                    wrong = page.wrong()
                    self._send(503 if wrong else 200, (wrong or "ok").encode() + b"\n", "text/plain")
                else:
                    self._send(404, b"there are /telemetry, /metrics, /healthz and /readyz\n", "text/plain")

            def _send(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Keep probes out of the log."""

        self.server = _Server((self.host, self.port), Handler)
        if self.certificate is not None and self.key is not None:
            self.server.secure(self.certificate, self.key)
        threading.Thread(target=self.server.serve_forever, name="page", daemon=True).start()
        return int(self.server.server_address[1])

    def admits(self, authorization: str) -> bool:
        """Whether a reader brings the token; a token that cannot be read admits nobody."""
        if self.token is None:
            return True
        try:
            token = self.token.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return False
        return bool(token) and hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())

    def wrong(self) -> str:
        """Return why the loop is not healthy; an empty text if it is."""
        state = self.state()
        if state is None:
            return "no round yet"
        age_s = self.clock() - state.t_s
        return f"no round for {age_s:.0f} s" if age_s > STALE_S else ""

    def stop(self) -> None:
        """Stop listening."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
