"""Orders from the cluster: watches this node's own NodePower and applies its status.

It exists so that the agent reads one object (and the Lease it names) and writes nothing but that object's status. The
API server is never needed to be safe: while it is away, nothing is heard and the lease runs out. Loading the client
takes longer than the first rounds of the loop, so it happens in the thread.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from controller.agent.node_power import orders_of, status_of
from controller.agent.orders import Heard, kept
from controller.agent.state import AgentState
from solver.domain.errors import InputError

if TYPE_CHECKING:
    from controller.operator.api import Api, Resource

MANAGER = "ballast-agent"
SILENT_S = 12.0
"""A watch that says nothing for so long is asked again from the start: leases are renewed every ten seconds."""
STATUS_EVERY_S = 60.0
STATUS_SOONEST_S = 10.0
"""Between two writings of the status; the controller reads the agent's page, the status is for people."""
_DEAD_BAND_RATIO = 0.05
_RETRY_S = (0.5, 1.0, 2.0, 4.0)
log = structlog.get_logger(__name__)


class ClusterOrders:
    """The NodePower of one node."""

    def __init__(
        self, node: str, kubeconfig: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.node, self.kubeconfig, self._clock = node, kubeconfig, clock
        self._heard = Heard(trouble="not read yet")
        self.wake = threading.Event()
        self._stopping = threading.Event()
        self._state: AgentState | None = None
        self._told: dict[str, Any] = {}
        self._told_s = float("-inf")
        self._new = threading.Event()
        self._api: Api | None = None
        self._threads: list[threading.Thread] = []
        self._renewals = 0
        self._renewed_s = float("-inf")

    def start(self) -> None:
        """Begin to watch and to tell, each in a thread."""
        for target in (self._listen, self._follow_lease, self._tell):
            thread = threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _connected(self) -> "Api":
        if self._api is None:
            from controller.operator.api import Api, connect  # noqa: PLC0415 - a second of loading

            self._api = Api(client=connect(self.kubeconfig), limit_s=5.0)
        return self._api

    # --- orders --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                version = self._read()
                failures = 0
                for item in self._events(version):
                    self._take(item)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
                failures += 1
                text = str(error).replace("\n", " ") or type(error).__name__
                self._heard = Heard(
                    orders=self._heard.orders, received_s=self._heard.received_s, trouble=text
                )
                self._stopping.wait(_RETRY_S[min(failures, len(_RETRY_S)) - 1])

    def _read(self) -> str:
        """Read the object once; returns its version, where a watch begins."""
        item = self._found(_node_powers(), None, self.node)
        self._take(item)
        return str(item["metadata"]["resourceVersion"])

    def _found(self, resource: "Resource", namespace: str | None, name: str) -> dict[str, Any]:
        item = self._connected().get(resource, namespace, name)
        if item is None:
            raise InputError(
                "there is none", where=f"{resource.kind} {name}", right="the controller makes it"
            )
        return item

    def _take(self, item: dict[str, Any]) -> None:
        try:
            orders = orders_of(item, f"NodePower {self.node}")
        except InputError as error:
            self._heard = Heard(
                orders=self._heard.orders, received_s=self._heard.received_s, trouble=str(error)
            )
        else:
            before, self._heard = self._heard, kept(self._heard, orders, self._clock())
            if self._heard.orders != before.orders:
                self.wake.set()

    def _events(self, version: str) -> Iterator[dict[str, Any]]:
        return self._watched("/apis/ballast.dev/v1alpha1/nodepowers", self.node, version)

    def _watched(self, path: str, name: str, version: str) -> Iterator[dict[str, Any]]:
        """Give an object whenever it changes, until the watch ends or is silent."""
        import urllib3.exceptions  # noqa: PLC0415 - loaded with the client

        connection = self._connected().client
        query = [("watch", "1"), ("fieldSelector", f"metadata.name={name}"), ("resourceVersion", version)]
        prepared = connection.param_serialize(
            "GET",
            path,
            query_params=query,
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = connection.call_api(*prepared, _request_timeout=(5.0, SILENT_S))
        response: Any = answer.response
        try:
            if answer.status != 200:
                self._stopping.wait(_RETRY_S[0])
                return
            rest = b""
            for piece in response.stream(2**14):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event.get("type") not in {"ADDED", "MODIFIED"}:
                        return
                    yield event["object"]
                if self._stopping.is_set():
                    return
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            return  # silent or broken: begin anew
        finally:
            response.close()

    # --- the lease of the domain ---------------------------------------------------------------------------------

    def _follow_lease(self) -> None:
        """Count the renewals of the Lease that the orders name."""
        seen: dict[str, Any] | None = None
        followed = told = ""
        while not self._stopping.is_set():
            orders = self._heard.orders
            if orders is None or not orders.lease:
                self._stopping.wait(_RETRY_S[0])
                continue
            if orders.lease != followed:
                followed, seen = orders.lease, None
            namespace, _, name = followed.partition("/")
            try:
                item = self._found(_leases(), namespace, name)
                seen = self._renewed(seen, item)
                path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
                for changed in self._watched(path, name, str(item["metadata"]["resourceVersion"])):
                    seen = self._renewed(seen, changed)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
                text = str(error).replace("\n", " ") or type(error).__name__
                if text != told:
                    log.warning("lease", error=text)
                told = text
                self._stopping.wait(_RETRY_S[1])

    def _renewed(self, seen: dict[str, Any] | None, item: dict[str, Any]) -> dict[str, Any]:
        """Note a renewal: another time of it, by somebody. What is first seen may be old and is none."""
        spec: dict[str, Any] = item.get("spec") or {}
        now = {name: spec.get(name) for name in ("renewTime", "leaseTransitions", "holderIdentity")}
        if seen is not None and now != seen and now["holderIdentity"]:
            self._renewals += 1
            self._renewed_s = self._clock()
            self.wake.set()
        return now

    def latest(self) -> Heard:
        """Return what was heard last."""
        heard = self._heard
        if heard.orders is None or not heard.orders.lease:
            return heard
        return Heard(
            orders=replace(heard.orders, renewal=heard.orders.renewal + self._renewals),
            received_s=max(heard.received_s, self._renewed_s),
            trouble=heard.trouble,
        )

    # --- status --------------------------------------------------------------------------------------------------

    def publish(self, state: AgentState) -> None:
        """Tell what changed soon, and everything now and then."""
        self._state = state
        self._new.set()

    def _tell(self) -> None:
        while not self._stopping.is_set():
            self._new.wait()
            self._new.clear()
            before_s = self._told_s
            self._tell_once()
            self._stopping.wait(STATUS_SOONEST_S if self._told_s != before_s else 1.0)

    def _tell_once(self) -> None:
        state = self._state
        if state is None or self._api is None:
            return
        status = status_of(state)
        now_s = self._clock()
        if now_s - self._told_s < STATUS_EVERY_S and _alike(status, self._told):
            return
        from controller.operator.api import ApiError  # noqa: PLC0415 - loaded with the client

        try:
            self._api.apply(
                _node_powers(),
                {"metadata": {"name": self.node}, "status": status},
                manager=MANAGER,
                subresource="status",
                force=True,
            )
        except ApiError as error:
            log.warning("status", error=str(error))
            return
        self._told, self._told_s = status, now_s

    def stop(self, final: AgentState | None) -> None:
        """Stop, and say how things were left."""
        self._stopping.set()
        self._new.set()
        if final is not None:
            self._state, self._told = final, {}
            self._tell_once()


def _node_powers() -> "Resource":
    from controller.operator.api import Resource  # noqa: PLC0415 - loaded with the client

    return Resource(
        api_version="ballast.dev/v1alpha1", kind="NodePower", plural="nodepowers", namespaced=False
    )


def _leases() -> "Resource":
    from controller.operator.api import LEASES  # noqa: PLC0415 - loaded with the client

    return LEASES


def _alike(status: dict[str, Any], told: dict[str, Any]) -> bool:
    """Whether two statuses say the same, but for what changes with every look and power within its dead band."""
    if _lasting(status) != _lasting(told):
        return False
    for now, then in zip(status["gpus"], told["gpus"], strict=True):
        watts, before = now.get("powerWatts"), then.get("powerWatts")
        if (watts is None) != (before is None):
            return False
        if watts is not None and abs(watts - before) > _DEAD_BAND_RATIO * before:
            return False
    return True


def _lasting(status: dict[str, Any]) -> dict[str, Any]:
    """Leave out what changes with every look."""
    passing = {"powerWatts", "energyJ", "reasons"}
    return {
        **status,
        "gpus": [
            {name: value for name, value in gpu.items() if name not in passing}
            for gpu in status.get("gpus", ())
        ],
    }
