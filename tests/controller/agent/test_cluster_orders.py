"""Orders from an API server that answers, changes its mind, falls silent and goes away."""

import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.agent import cluster_orders
from controller.agent.cluster_orders import ClusterOrders
from controller.agent.state import AgentState
from tests.controller.agent.running import Host, wait_for


class Server:
    """One NodePower behind HTTP; events are sent to whoever watches."""

    def __init__(self) -> None:
        self.version, self.silent, self.by_lease = 1, False, False
        self.closed = False
        self.more: dict[str, Any] = {}
        self.lease_version = 5
        self.lease_watchers: list[queue.Queue[dict[str, Any] | None]] = []
        self.item = self._item(1, 0)
        self.statuses: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.watchers: list[queue.Queue[dict[str, Any] | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.paths.append(self.path)
                if "watch=1" in self.path:
                    server.watch(self, server.lease_watchers if "/leases" in self.path else server.watchers)
                elif "/leases/" in self.path:
                    self.answer(200, server._lease())
                elif server.item is None:
                    self.answer(404, {"message": "not found"})
                else:
                    self.answer(200, server.item)

            def do_PATCH(self) -> None:
                server.paths.append(self.path)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.statuses.append(body)
                self.answer(200, body)

            def answer(self, status: int, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def renew(self, holder: str = "leader") -> None:
        """Renew the domain's Lease."""
        self.lease_version += 1
        for events in self.lease_watchers:
            events.put({"type": "MODIFIED", "object": self._lease(holder)})

    def _lease(self, holder: str = "leader") -> dict[str, Any]:
        spec = {"holderIdentity": holder, "renewTime": f"t{self.lease_version}", "leaseTransitions": 1}
        return {"metadata": {"name": "row", "resourceVersion": "1"}, "spec": spec}

    def _item(self, generation: int, renewal: int) -> dict[str, Any] | None:
        return {
            "metadata": {"name": "n", "uid": "u", "resourceVersion": str(self.version)},
            "spec": {
                "generation": generation,
                "renewSequence": renewal,
                "mode": "Auto",
                **({"lease": {"namespace": "b", "name": "row"}} if self.by_lease else {}),
                **self.more,
            },
        }

    def watch(self, handler: Any, watchers: "list[queue.Queue[dict[str, Any] | None]]") -> None:
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        watchers.append(events)
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while (event := events.get()) is not None:
            try:
                text = json.dumps(event).encode() + b"\n"
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                handler.wfile.flush()
            except OSError:
                return

    def change(self, generation: int, renewal: int) -> None:
        self.version += 1
        self.item = self._item(generation, renewal)
        if not self.silent:
            for events in self.watchers:
                events.put({"type": "MODIFIED", "object": self.item})

    def close(self) -> None:
        """Go away; a second time does nothing."""
        if self.closed:
            return
        self.closed = True
        for events in [*self.watchers, *self.lease_watchers]:
            events.put(None)
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> Path:
    host, port = server.http.server_address[:2]
    path = tmp_path / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://{host!s}:{port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )
    return path


@pytest.fixture
def orders(kubeconfig: Path) -> Iterator[ClusterOrders]:
    source = ClusterOrders("n", str(kubeconfig))
    source.start()
    yield source
    source.stop(None)


def test_orders_are_read_and_followed_by_a_watch(server: Server, orders: ClusterOrders) -> None:
    first = wait_for(lambda: orders.latest().orders, "the object")
    assert (first.source, first.generation, first.renewal) == ("u", 1, 0)
    wait_for(lambda: server.watchers, "a watch")
    server.change(2, 1)
    wait_for(lambda: orders.latest().orders.generation == 2, "the change")  # type: ignore[union-attr]
    received_s = orders.latest().received_s
    server.version += 1
    server.change(2, 1)  # somebody else's field: no new orders
    server.change(2, 2)
    wait_for(lambda: orders.latest().received_s > received_s, "the renewal")
    gets = [path for path in server.paths if "watch" not in path]
    assert len(gets) == 1
    assert "fieldSelector=metadata.name%3Dn" in next(path for path in server.paths if "watch" in path)


def test_a_silent_watch_is_asked_again(
    server: Server, orders: ClusterOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_orders, "SILENT_S", 0.3)
    wait_for(lambda: server.watchers, "a watch")
    server.watchers[0].put(
        {"type": "BOOKMARK", "object": {}}
    )  # ends a watch that began with the longer patience
    server.silent = True
    server.change(3, 2)
    wait_for(lambda: orders.latest().orders.generation == 3, "read again")  # type: ignore[union-attr]


def test_an_object_that_is_not_there_or_makes_no_sense_is_told_and_orders_stay(
    server: Server, orders: ClusterOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_orders, "SILENT_S", 0.3)
    wait_for(lambda: orders.latest().orders, "the object")
    wait_for(lambda: server.watchers, "a watch")
    server.change(2, 1)
    broken = {"metadata": {"uid": "u", "resourceVersion": "9"}, "spec": {"generation": "x"}}
    server.watchers[-1].put({"type": "MODIFIED", "object": broken})
    wait_for(lambda: "spec.generation" in orders.latest().trouble, "told")
    server.item = None
    for events in server.watchers:
        events.put({"type": "BOOKMARK", "object": {}})  # the watch ends and the object is read again
    wait_for(lambda: "there is none" in orders.latest().trouble, "told")
    assert orders.latest().orders is not None
    assert orders.latest().orders.generation == 2  # type: ignore[union-attr]


def test_renewals_of_the_domain_s_lease_count_from_the_second_that_is_seen(
    server: Server, orders: ClusterOrders
) -> None:
    server.by_lease = True
    wait_for(lambda: server.watchers, "a watch")
    server.change(2, 7)
    wait_for(lambda: server.lease_watchers, "a watch of the Lease")
    assert orders.latest().orders.renewal == 7  # type: ignore[union-attr]
    before_s = orders.latest().received_s
    server.renew()
    wait_for(lambda: orders.latest().orders.renewal == 8, "a renewal")  # type: ignore[union-attr]
    assert orders.latest().received_s > before_s
    server.renew(holder="")  # handed over: nobody renews
    server.renew()
    wait_for(lambda: orders.latest().orders.renewal == 9, "the next one")  # type: ignore[union-attr]


def test_the_status_is_applied_when_it_changes(
    server: Server, orders: ClusterOrders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_orders, "STATUS_SOONEST_S", 0.1)
    wait_for(lambda: orders.latest().orders, "the object")
    for sequence in range(50):
        orders.publish(AgentState(t_s=0.0, sequence=sequence, gpus=(), observed_generation=1))
    wait_for(lambda: server.statuses, "a status")
    orders.publish(AgentState(t_s=0.0, sequence=60, gpus=(), observed_generation=2))
    wait_for(lambda: len(server.statuses) > 1, "another")
    assert [body["status"]["observedGeneration"] for body in server.statuses] == [1, 2]
    path = next(path for path in server.paths if "fieldManager" in path)
    assert path.startswith("/apis/ballast.dev/v1alpha1/nodepowers/n/status?")
    assert "fieldManager=ballast-agent" in path
    orders.stop(AgentState(t_s=0.0, sequence=61, gpus=(), observed_generation=2))
    assert len(server.statuses) == 3


def test_a_process_follows_its_object_and_is_safe_when_the_server_is_gone(
    server: Server, kubeconfig: Path, tmp_path: Path
) -> None:
    host = Host(tmp_path)
    server.more = {
        "gpus": [{"uuid": uuid, "lockMaxMHz": 1200} for uuid in host.node.uuids],
        "safe": {"lockMaxMHz": 1050},
        "leaseDurationSeconds": 3,
    }
    server.change(2, 1)
    with host.agent(kubeconfig=kubeconfig) as agent:
        wait_for(lambda: host.locks() == [1050, 1050], "safe clocks before the first renewal")
        wait_for(lambda: server.watchers, "a watch")
        for renewal in range(2, 200):
            server.change(2, renewal)
            if host.locks() == [1200, 1200]:
                break
            time.sleep(0.2)
        assert host.locks() == [1200, 1200]
        wait_for(lambda: server.statuses, "a status")
        server.close()
        wait_for(lambda: host.locks() == [1050, 1050], "safe clocks without the server")
        wait_for(lambda: agent.conditions()["LeaseValid"] == "False LeaseExpired", "told")
        assert agent.stop() == 0
    assert [gpu["uuid"] for gpu in server.statuses[0]["status"]["gpus"]] == host.node.uuids


def test_nobody_there_is_told_and_tried_again(tmp_path: Path) -> None:
    source = ClusterOrders("n", str(tmp_path / "no-such-file"))
    source.start()
    wait_for(lambda: source.latest().trouble not in {"", "not read yet"}, "told")
    assert source.latest().orders is None
    source.stop(None)
