"""Answers for the pods of serving engines: vLLM's metrics page at every pod's address, with traffic as told.

It exists because KWOK's pods run nothing, while the operator scrapes real endpoints. Pods have addresses on loopback;
for each a server listens there. What the pages say follows from the rate of arrivals alone.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from controller.operator.api import PODS, Api, ApiError

EDGES = (128, 256, 512, 1024, 2048)
PROMPT_TOKENS, OUTPUT_TOKENS = 500, 120


@dataclass(slots=True)
class Engines:
    """All engines of a namespace. Change ``rate_rps`` and ``mute`` at any time."""

    api: Api
    namespace: str
    port: int
    rate_rps: float = 0.0
    mute: bool = False
    """Answer 503 to everything."""
    decoding: frozenset[str] = frozenset()
    """Apps whose pods decode what all the others prefill: both see every request, and only these its output."""
    scrapes: int = 0
    _served: dict[str, float] = field(default_factory=dict)
    _apps: dict[str, str] = field(default_factory=dict)
    _servers: dict[str, ThreadingHTTPServer] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Let requests arrive at the pods that are ready, and listen for those that are there."""
        last_s = time.monotonic()
        while not self._stopping.wait(0.1):
            now_s = time.monotonic()
            try:
                pods = self.api.list(PODS, self.namespace)
            except ApiError:
                continue
            ips = []
            for pod in pods:
                ip = (pod.get("status") or {}).get("podIP")
                if ip and _ready(pod) and _serves(pod):
                    self._apps[ip] = pod["metadata"]["labels"]["app"]
                    ips.append(ip)
            for ip in ips:
                if ip not in self._servers:
                    self._listen(ip)
                    self._served.setdefault(ip, 0.0)
            for group in self._groups(ips):
                for ip in group:
                    self._served[ip] += self.rate_rps * (now_s - last_s) / len(group)
            last_s = now_s

    def _groups(self, ips: Sequence[str]) -> tuple[list[str], list[str]]:
        """Pods that take requests in, and those that decode them."""
        decoding = [ip for ip in ips if self._apps[ip] in self.decoding]
        return [ip for ip in ips if ip not in decoding], decoding

    def _listen(self, ip: str) -> None:
        engines = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                engines.scrapes += 1
                body = engines.page(ip).encode()
                self.send_response(503 if engines.mute else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer((ip, self.port), Handler)
        server.daemon_threads = True
        self._servers[ip] = server
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def page(self, ip: str) -> str:
        """Return the metrics page of one engine."""
        count = int(self._served.get(ip, 0.0))
        outputs = OUTPUT_TOKENS if not self.decoding or self._apps.get(ip) in self.decoding else 1
        label = '{model_name="m",engine="0"'
        lines = [
            f"vllm:num_requests_running{label}}} 0",
            f"vllm:num_requests_waiting{label}}} 0",
            f'vllm:request_success_total{label},finished_reason="stop"}} {count}',
        ]
        for name, size in (
            ("vllm:request_prompt_tokens", PROMPT_TOKENS),
            ("vllm:request_generation_tokens", outputs),
        ):
            lines += [f'{name}_bucket{label},le="{edge}"}} {count if size <= edge else 0}' for edge in EDGES]
            lines += [
                f'{name}_bucket{label},le="+Inf"}} {count}',
                f"{name}_sum{label}}} {count * size}",
                f"{name}_count{label}}} {count}",
            ]
        types = {
            "vllm:num_requests_running": "gauge",
            "vllm:num_requests_waiting": "gauge",
            "vllm:request_success": "counter",
            "vllm:request_prompt_tokens": "histogram",
            "vllm:request_generation_tokens": "histogram",
        }
        written = []
        for name, kind in types.items():
            suffix = "_total" if kind == "counter" else ""
            written.append(f"# TYPE {name}{suffix} {kind}")
            written += [line for line in lines if line.startswith(f"{name}{suffix}")]
        return "\n".join(written) + "\n"

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


def _serves(pod: dict[str, Any]) -> bool:
    return (pod["metadata"].get("labels") or {}).get("app") is not None


def _ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@contextmanager
def engines(api: Api, namespace: str, port: int) -> Iterator[Engines]:
    """Answer for the pods of a namespace while the context lasts."""
    running = Engines(api, namespace, port)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(5)
