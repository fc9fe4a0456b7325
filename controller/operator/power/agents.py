"""Asks the agents of nodes what they see, once a second, all at once, and keeps the last answers.

It exists because control needs watts every second or two, more often than an API server should be written to. It runs
in a thread of its own, so that an agent that does not answer delays no decision; what is not answered is not known,
never zero. GPUs are told apart by UUID. It decides nothing.
"""

import asyncio
import json
import math
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from controller.operator.api import PODS, Api, ApiError
from solver.domain.errors import InputError
from telemetry.sources.bounded_http import fetched, http_client
from telemetry.sources.prometheus_access import PrometheusServers
from telemetry.sources.trust import Trust, secret_in

SCHEMA = "node-power/1"
PERIOD_S = 1.0
ANSWER_S = 0.9
MOST_BYTES = 2**20
LOOK_FOR_PODS_S = 10.0
SELECTOR = "app.kubernetes.io/component=agent"
KEPT_READINGS = 4
ACCESS = "access to agents"
LISTING = "pods"
"""Of whom troubles are told beside nodes and meters."""
_OK = 200
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What an agent says of one GPU; None: not known."""

    uuid: str
    applied_mhz: int | None = None
    """The lock that was read back; None where there is none."""
    applied_w: float | None = None
    max_mhz: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One answer of one agent."""

    node: str
    sequence: int
    looked_s: float
    """When its GPUs were looked at, on our monotonic clock."""
    gpu_w: float | None
    """Of all GPUs; None as soon as one is not known."""
    gpus: tuple[GpuReading, ...] = ()
    acknowledged: int = 0
    observed: int = 0
    leased: bool = False
    writes: bool = False
    refused: str = ""
    reflex: str = ""


def reading_of(document: Any, node: str, now_s: float) -> Reading:
    """Read an answer.

    Raises
    ------
    InputError
        It is none, or another node's.
    """
    where = f"agent of {node}"
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError("no answer of an agent", where=where, right=f"schema {SCHEMA}")
    if document.get("node") != node:
        raise InputError(f"node {document.get('node')!r}", where=where, right="its own name")
    age_s = _number(document.get("age_s"))
    sequence = document.get("sequence")
    if age_s is None or age_s < 0.0 or not isinstance(sequence, int):
        raise InputError("no age", where=where, right="age_s and sequence")
    gpus = document.get("gpus")
    readings = [_gpu(entry) for entry in gpus] if isinstance(gpus, list) else []
    known = {gpu.uuid: gpu for gpu in readings if gpu is not None}
    watts = _number(document.get("gpuPowerWatts"))
    acknowledged = document.get("acknowledgedGeneration")
    observed = document.get("observedGeneration")
    return Reading(
        node=node,
        sequence=sequence,
        looked_s=now_s - age_s,
        gpu_w=None if watts is None or watts < 0.0 or len(known) < len(readings) else watts,
        gpus=tuple(known.values()),
        acknowledged=acknowledged if isinstance(acknowledged, int) else 0,
        observed=observed if isinstance(observed, int) else 0,
        leased=document.get("leaseState") == "Valid",
        writes=document.get("writes") is True,
        refused=str(document.get("refused") or "")[:256],
        reflex=str(document.get("reflex") or "")[:64],
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _gpu(entry: Any) -> GpuReading | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("uuid"), str):
        return None
    mhz, limits = _number(entry.get("appliedMHz")), entry.get("constraints")
    most = _number(limits.get("maxMHz")) if isinstance(limits, dict) else None
    return GpuReading(
        uuid=entry["uuid"],
        applied_mhz=None if mhz is None else int(mhz),
        applied_w=_number(entry.get("appliedWatts")),
        max_mhz=None if most is None else int(most),
        error=str(entry.get("error") or "")[:64],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAccess:
    """How agents are asked: files that may be exchanged meanwhile."""

    authority: Path | None = None
    """Certificates (PEM) that agents' certificates are signed by; None: plain HTTP."""
    server_name: str = "ballast-agent"
    """What their certificates are for: agents are asked by address."""
    token: Path | None = None
    """What they want to be brought."""


@dataclass(slots=True, kw_only=True)
class Agents:
    """The agents of all nodes; `latest` may be asked from any thread."""

    api: Api
    namespace: str
    """Of the agents' pods."""
    port: int = 9409
    access: AgentAccess = field(default_factory=AgentAccess)
    servers: PrometheusServers = field(default_factory=PrometheusServers)
    """What the meters' servers are brought."""
    active: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.monotonic
    stopping: threading.Event = field(default_factory=threading.Event)
    meters: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By domain: url and query of its meter."""
    addresses: dict[str, str] = field(default_factory=dict)
    """By node."""
    _readings: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    _metered: dict[str, tuple[float, float]] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)
    _listed_s: float = float("-inf")
    _listing: threading.Thread | None = None
    _secured: Any = None
    """A client that trusts the agents' authority."""
    _trusted: ssl.SSLContext | None = None
    """What it trusts."""
    _trust: Trust | None = None

    def latest(self, node: str) -> tuple[Reading, ...]:
        """Return the last answers of a node, the newest last."""
        return self._readings.get(node, ())

    def metered(self, domain: str) -> tuple[float, float] | None:
        """Return what the meter of a domain said last, in watts, and when."""
        return self._metered.get(domain)

    def run(self) -> None:
        """Ask until stopped."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with http_client() as client:
            next_s = self.clock()
            while not self.stopping.is_set():
                if self.active() and (self.meters or self._wanted):
                    self._look_for_pods()
                    await asyncio.gather(
                        self._ask_all(client),
                        *(self._meter(client, *each) for each in [*self.meters.items()]),
                    )
                next_s = max(next_s + PERIOD_S, self.clock())
                await asyncio.sleep(max(next_s - self.clock(), 0.0))
        if self._secured is not None:
            await self._secured.aclose()

    async def _ask_all(self, plain: Any) -> None:
        """Ask every agent that is wanted, with what they ask for."""
        client, headers = plain, {}
        try:
            if self.access.authority is not None:
                client = await self._trusting(self.access.authority)
            if self.access.token is not None:
                headers = {"Authorization": f"Bearer {secret_in(self.access.token)}"}
        except InputError as error:
            self._say(ACCESS, str(error))
            return
        self._say(ACCESS, "")
        asked = [self._ask(client, node, headers) for node in self._wanted if node in self.addresses]
        await asyncio.gather(*asked)

    async def _trusting(self, authority: Path) -> Any:
        """Return a client that trusts these certificates alone, as they are now."""
        if self._trust is None:
            self._trust = Trust(authority=authority)
        context = self._trust.context()
        if self._secured is None or context is not self._trusted:
            if self._secured is not None:
                await self._secured.aclose()
            self._secured, self._trusted = http_client(verify=context), context
        return self._secured

    _wanted: tuple[str, ...] = ()

    def want(self, nodes: tuple[str, ...]) -> None:
        """Say whose agents are to be asked; the others are forgotten."""
        self._wanted = nodes
        for gone in self._readings.keys() - set(nodes):
            self._readings.pop(gone, None)
        for gone in self._metered.keys() - self.meters.keys():
            self._metered.pop(gone, None)
        for gone in self._said.keys() - {*nodes, *map(_meter_of, self.meters), ACCESS, LISTING}:
            self._said.pop(gone, None)

    async def _ask(self, client: Any, node: str, headers: Mapping[str, str]) -> None:
        address, secure = self.addresses[node], self.access.authority is not None
        try:
            _, body = await fetched(
                client,
                f"{'https' if secure else 'http'}://{address}:{self.port}/telemetry",
                source=f"agent of {node}",
                timeout_s=ANSWER_S,
                most_bytes=MOST_BYTES,
                headers=headers,
                server_name=self.access.server_name if secure else "",
            )
            reading = reading_of(json.loads(body), node, self.clock())
        except (InputError, ValueError) as error:
            self._say(node, str(error).replace("\n", " "))
            return
        self._say(node, "")
        before = self._readings.get(node, ())
        if not before or before[-1].sequence != reading.sequence:
            self._readings[node] = (*before, reading)[-KEPT_READINGS:]

    async def _meter(self, client: Any, domain: str, meter: tuple[str, str]) -> None:
        url, query = meter
        asked_s = self.clock()
        whom = _meter_of(domain)
        try:
            status, body = await self.servers.query(
                client,
                url,
                {"query": query},
                namespace=None,
                source=whom,
                timeout_s=ANSWER_S,
                most_bytes=MOST_BYTES,
            )
            self._metered[domain] = (_only_value(status, body, whom), asked_s)
        except (InputError, ValueError, KeyError, TypeError, IndexError) as error:
            self._say(whom, str(error).replace("\n", " "))
        else:
            self._say(whom, "")

    def _look_for_pods(self) -> None:
        """List the agents' pods in a thread of its own, now and then; what was known stays while nobody answers."""
        if self.clock() - self._listed_s < LOOK_FOR_PODS_S and self._wanted_are_known():
            return
        if self.clock() - self._listed_s < PERIOD_S or (
            self._listing is not None and self._listing.is_alive()
        ):
            return
        self._listed_s = self.clock()
        self._listing = threading.Thread(target=self._list, name="agents' pods", daemon=True)
        self._listing.start()

    def _wanted_are_known(self) -> bool:
        return all(node in self.addresses for node in self._wanted)

    def _list(self) -> None:
        query = {"labelSelector": SELECTOR, "resourceVersion": "0"}
        try:
            found = {}
            for pod in self.api.each(PODS, self.namespace, query=query):
                node, ip = (pod.get("spec") or {}).get("nodeName"), (pod.get("status") or {}).get("podIP")
                if node and ip and not pod["metadata"].get("deletionTimestamp"):
                    found[str(node)] = f"[{ip}]" if ":" in ip else str(ip)
        except ApiError as error:
            self._say(LISTING, str(error))
            return
        self._say(LISTING, "")
        self.addresses = found

    def _say(self, whom: str, text: str) -> None:
        """Log what is new, once."""
        if self._said.get(whom, "") != text:
            self._said[whom] = text
            log.warning("agents", whom=whom, told=text or "answers again")

    def trouble(self, node: str) -> str:
        """Say why a node's agent is not heard."""
        if node not in self.addresses:
            return f"no pod of an agent runs on {node}"
        return self._said.get(node, "")

    def meter_trouble(self, domain: str) -> str:
        """Say why a domain's meter is not read."""
        return self._said.get(_meter_of(domain), "")


def _meter_of(domain: str) -> str:
    return f"meter of {domain}"


def _only_value(status: int, body: bytes, source: str) -> float:
    if status != _OK:
        raise InputError(f"HTTP {status}", where=source)
    answer = json.loads(body)
    rows = answer["data"]["result"]
    if answer["data"]["resultType"] == "scalar":
        return float(rows[1])
    if len(rows) != 1:
        raise InputError(f"{len(rows)} series", where="query", right="one value, in watts")
    return float(rows[0]["value"][1])
