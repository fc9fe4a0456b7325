"""A proxy between one operator and the API server: counts its writes, and does to them what a bad day would.

It exists so that faults between two lines of the operator's code can be put exactly there: a kill before or after the
n-th write, a conflict for every second one, a watch that says nothing or that is gone. Plain HTTP comes in on loopback,
HTTPS goes out to the API server with the client's own Authorization; everything else passes unchanged. One proxy stands
before one operator process, so that what it saw is what that process sent. It judges nothing.

    with Proxy.before(plane.kubeconfig, folder) as proxy:
        operator = operators.start(kubeconfig=proxy.kubeconfig)
        proxy.on_write = lambda write: 409 if write.number % 2 == 0 else None
"""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
UNCOUNTED = frozenset({"leases", "events"})
DROP = 0
"""What ``on_write`` and ``on_request`` return to close the connection unanswered: the request never arrives."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade"})
TICK_S = 0.05
LIMIT_S = 60.0
"""Without a word from the API server, but for watches."""


class Watches(Enum):
    """What happens to watches, those that run included."""

    PASS = "pass"  # noqa: S105 - no password
    SILENT = "silent"
    """They stay open and say nothing; new ones are accepted and say nothing."""
    GONE = "gone"
    """Running ones end; new ones are answered with HTTP 410."""
    GONE_EVENT = "gone-event"
    """Running ones end; new ones say ERROR with code 410 in the stream, as for an expired version."""
    CUT = "cut"
    """Running ones are reset; new ones too."""


@dataclass(slots=True, kw_only=True)
class Request:
    """One request, and how it was answered."""

    method: str
    path: str
    """Without the query."""
    query: dict[str, list[str]]
    body: bytes
    number: int = 0
    """Of the counted writes, from 1; 0 for anything else."""
    at_s: float = field(default_factory=time.monotonic)
    answered_s: float | None = None
    status: int | None = None
    """HTTP status the client was given; None: not answered (yet)."""
    forwarded: bool = False
    """The API server got it."""
    answer: bytes = b""
    """What the API server answered a write."""

    @property
    def manager(self) -> str:
        """Field manager it was sent with."""
        return self.query.get("fieldManager", [""])[0]

    @property
    def watch(self) -> bool:
        """Whether it is a watch."""
        return self.method == "GET" and self.query.get("watch", [""])[0] in {"1", "true"}

    @property
    def counted(self) -> bool:
        """Whether it is a write of anything but Leases and Events."""
        return self.method in WRITES and not UNCOUNTED & set(self.path.split("/"))

    @property
    def content(self) -> Any:
        """Its body, read as JSON; None if it has none."""
        return json.loads(self.body) if self.body else None

    @property
    def accepted(self) -> bool:
        """Whether the API server took it."""
        return self.forwarded and self.status is not None and 200 <= self.status < 300


@dataclass(slots=True, kw_only=True)
class Proxy:
    """A running proxy. Its attributes may be changed at any time, from any thread."""

    server: str
    authority: str
    kubeconfig: Path
    """For the operator: the same user, this proxy as server."""
    on_request: Callable[[Request], int | None] | None = None
    """Called before any request is passed on, watches included; may block. See ``on_write`` for what it returns."""
    on_write: Callable[[Request], int | None] | None = None
    """Called before a counted write is passed on; may block or kill.
    None passes it on, `DROP` closes the connection, another number is answered as that HTTP status."""
    on_written: Callable[[Request], None] | None = None
    """Called when the API server has answered a counted write, before the client is told; may block or kill."""
    watches: Watches = Watches.PASS
    requests: list[Request] = field(default_factory=list)
    """All so far, in the order in which they came."""
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: ThreadingHTTPServer | None = None

    @classmethod
    @contextmanager
    def before(cls, kubeconfig: Path, folder: Path, name: str = "proxied") -> Iterator["Proxy"]:
        """Run a proxy before the API server of a kubeconfig; its own kubeconfig lies in the folder."""
        settings = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        cluster = settings["clusters"][0]["cluster"]
        proxy = cls(
            server=cluster["server"],
            authority=cluster["certificate-authority"],
            kubeconfig=folder / f"{name}.kubeconfig",
        )
        server = _Server(("127.0.0.1", 0), _Handler)
        server.proxy = proxy
        proxy._server = server
        settings["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
        proxy.kubeconfig.write_text(yaml.safe_dump(settings), encoding="utf-8")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": TICK_S}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.on_request, proxy.on_write, proxy.on_written = _drop, _drop, None
            proxy.watches = Watches.CUT
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def writes(self) -> list[Request]:
        """Counted writes so far."""
        return [request for request in tuple(self.requests) if request.counted]

    @property
    def accepted(self) -> list[Request]:
        """Counted writes that the API server took."""
        return [request for request in self.writes if request.accepted]

    def note(self, request: Request) -> None:
        """Give a request its number and keep it."""
        with self._lock:
            if request.counted:
                self._count += 1
                request.number = self._count
            self.requests.append(request)


def every_second_conflicts(write: Request) -> int | None:
    """Answer 409 to every second write: for ``on_write``."""
    return 409 if write.number % 2 == 0 else None


def _drop(_request: Request) -> int:
    return DROP


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients are killed here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    """Passes on the requests of one connection of the client over one connection to the API server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    upstream: http.client.HTTPSConnection | None = None
    line: socket.socket | None = None
    """Socket of ``upstream``, which forgets it while a stream runs."""

    def do_GET(self) -> None:
        """Pass on any request."""
        proxy = self.server.proxy
        where = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(method=self.command, path=where.path, query=parse_qs(where.query), body=body)
        proxy.note(request)
        verdict = None if proxy.on_request is None else proxy.on_request(request)
        if verdict is None and request.counted and proxy.on_write is not None:
            verdict = proxy.on_write(request)
        if verdict == DROP:
            self.close_connection = True
            return
        if verdict is not None:
            self._refuse(request, verdict)
            return
        try:
            if request.watch:
                self._watch(request, proxy)
            else:
                self._pass_on(request, proxy)
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # whichever side is gone, the other sees its connection end
            self._hang_up()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def finish(self) -> None:
        """Close both sides."""
        self._hang_up()
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def _pass_on(self, request: Request, proxy: Proxy) -> None:
        answer = self._ask(request)
        content = answer.read()
        if request.method in WRITES:
            request.answer = content
        request.status, request.answered_s = answer.status, time.monotonic()
        if request.counted and proxy.on_written is not None:
            proxy.on_written(request)
        self._head(answer)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _watch(self, request: Request, proxy: Proxy) -> None:
        self.close_connection = True
        if proxy.watches is Watches.CUT:
            return
        if proxy.watches is Watches.GONE:
            self._refuse(request, 410)
            return
        if proxy.watches is Watches.PASS:
            answer = self._ask(request)
            request.status = answer.status
            self._head(answer)
        else:
            answer = None
            request.status = 200
            self.send_response_only(200)
            self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if proxy.watches is Watches.GONE_EVENT:
            said = {"type": "ERROR", "object": _status(410)}
            self._chunk(json.dumps(said).encode() + b"\n")
            self._chunk(b"")
        elif self._stream(answer, proxy):
            self._chunk(b"")
        request.answered_s = time.monotonic()

    def _stream(self, answer: http.client.HTTPResponse | None, proxy: Proxy) -> bool:
        """Pass a stream on while watches pass or are silent; returns whether it ended in order."""
        parts: SimpleQueue[bytes] = SimpleQueue()

        def read() -> None:
            with suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
                while answer is not None and (part := answer.read1(65536)):
                    parts.put(part)
            parts.put(b"")

        threading.Thread(target=read, daemon=True).start()
        while proxy.watches in {Watches.PASS, Watches.SILENT} and not self._client_left():
            if proxy.watches is Watches.SILENT:
                time.sleep(TICK_S)
                continue
            with suppress(Empty):
                part = parts.get(timeout=TICK_S)
                if not part:
                    return True
                self._chunk(part)
        return proxy.watches is not Watches.CUT

    def _client_left(self) -> bool:
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(None)

    def _ask(self, request: Request) -> http.client.HTTPResponse:
        """Send a request to the API server; a kept connection that has died is replaced once, for reads."""
        for attempt in (1, 2):
            kept = self.upstream is not None
            if self.upstream is None:
                where = urlsplit(self.server.proxy.server)
                self.upstream = http.client.HTTPSConnection(
                    where.hostname or "",
                    where.port,
                    timeout=LIMIT_S,
                    context=ssl.create_default_context(cafile=self.server.proxy.authority),
                )
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            try:
                self.upstream.request(request.method, self.path, body=request.body or None, headers=headers)
                request.forwarded = True
                self.line = self.upstream.sock
                self.line.settimeout(None if request.watch else LIMIT_S)
                return self.upstream.getresponse()
            except (OSError, http.client.HTTPException):
                self._hang_up()
                if request.method in WRITES or not kept or attempt == 2:
                    raise
        raise AssertionError

    def _hang_up(self) -> None:
        if self.upstream is not None:
            with suppress(OSError):
                if self.line is not None:
                    self.line.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            self.upstream.close()
            self.upstream = self.line = None

    def _head(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for key, value in answer.getheaders():
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)

    def _refuse(self, request: Request, code: int) -> None:
        request.status, request.answered_s = code, time.monotonic()
        content = json.dumps(_status(code)).encode()
        self.send_response_only(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunk(self, part: bytes) -> None:
        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.flush()


def _status(code: int) -> dict[str, Any]:
    """Return the body with which an API server refuses."""
    reasons = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 503: "ServiceUnavailable"}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"the proxy of the test answers {code}",
        "reason": reasons.get(code, "InternalError"),
        "code": code,
    }
