"""Watches the cluster: the only module that knows kopf.

It exists so that the framework can be exchanged, and so that it is used for one thing only: level-triggered events
into the `World`. No handler decides or writes, no finalizer, no annotation of kopf is ever put on an object.

What kopf does not tell is found by `Audit`: objects that vanished while a watch was down, and watches that went
silent. It compares resource versions with the server's every interval.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf
import structlog
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes import client

from controller.operator.api import Api, ApiError, Resource
from controller.operator.world import OPTIONAL, World

log = structlog.get_logger(__name__)
MOST_FAILURES = 5
LASTED_S = 60.0
"""A watch that lasted so long did not fail at once."""
END_S = 2.0
"""For the others to end after one watch failed."""


LISTED_AT_ONCE = 100
"""Objects of one kind that are asked for together: a whole list would be held in memory several times over."""
LINGER_S = 0.02
"""How long kopf's task for an object stays, and with it the object, when nothing more comes."""


class NothingKept(kopf.DiffBaseStorage):
    """Keeps kopf from copying every object twice to look for differences that nobody asks for."""

    def build(self, **_: Any) -> Any:
        """Take nothing of an object."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Know nothing of what was there before."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""


class Forgetful(ResourceMemories):
    """Keeps kopf from remembering every object for handlers of a kind that we do not have."""

    async def recall(
        self,
        raw_body: Any,
        *,
        memobase: Any = None,
        noticed_by_listing: bool = False,
        ephemeral: bool = False,  # noqa: ARG002 - it is always
    ) -> ResourceMemory:
        """Return a memory that is not kept."""
        return await super().recall(
            raw_body, memobase=memobase, noticed_by_listing=noticed_by_listing, ephemeral=True
        )


def login_of(settings: client.Configuration) -> kopf.ConnectionInfo:
    """Return kopf's connection for the client's configuration."""
    token = (settings.api_key or {}).get("authorization") or (settings.api_key or {}).get("BearerToken") or ""
    scheme, _, rest = token.rpartition(" ")
    return kopf.ConnectionInfo(
        server=settings.host,
        ca_path=settings.ssl_ca_cert,
        insecure=not settings.verify_ssl,
        certificate_path=settings.cert_file,
        private_key_path=settings.key_file,
        scheme=scheme or ("Bearer" if rest else None),
        token=rest or None,
    )


@dataclass(slots=True, kw_only=True)
class Watch:
    """Feeds a world with the events of the given resources, in a thread of its own."""

    world: World
    resources: Sequence[Resource]
    settings: Callable[[], client.Configuration]
    namespaces: Sequence[str] = ()
    """Namespaces to watch; none: all."""
    inactivity_s: float = 70.0
    failed: str = ""
    heard: dict[str, float] = field(default_factory=dict)
    """Kind: when (monotonic seconds) its watch said something last."""

    def run(self) -> None:
        """Watch; one failure ends all of kopf's watches, so they begin anew with a list; too many in a row end it."""
        failures = 0
        while not self.failed:
            began_s = time.monotonic()
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._watch())
                why = "watching ended"
            except Exception as error:  # noqa: BLE001 - whatever it is, watching begins anew
                why = f"watching failed: {error}"
            loop.close()  # what did not end in time is left behind: kopf's streams may outlive their cancellation
            failures = 1 if time.monotonic() - began_s > LASTED_S else failures + 1
            log.warning("watching begins anew", reason=why, failures=failures)
            if failures < MOST_FAILURES:
                time.sleep(0.5 * 2**failures)
            else:
                self.failed = why  # the process must not go on blind: it ends

    async def _watch(self) -> None:
        registry = kopf.OperatorRegistry()
        self._register(registry)
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.watching.inactivity_timeout = self.inactivity_s
        settings.watching.client_timeout = 600
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = LISTED_AT_ONCE
        settings.queueing.idle_timeout = LINGER_S
        settings.persistence.diffbase_storage = NothingKept()
        settings.networking.request_timeout = 30
        # kopf's own grow to 21 s: longer than an API server that is back should wait for us
        settings.networking.error_backoffs = (0.5, 1, 2, 3, 5, 5, 5, 5)
        settings.scanning.disabled = (
            True  # kinds are looked for once, at the start: no rights on namespaces needed
        )
        # not kopf.operator: it would wait without end for streams that do not stop after a failure
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            memories=Forgetful(),
            standalone=True,
            clusterwide=not self.namespaces,
            namespaces=tuple(self.namespaces),
        )
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=END_S)
        for ended in done:
            ended.result()

    def _register(self, registry: kopf.OperatorRegistry) -> None:
        @kopf.on.login(registry=registry)
        def login(**_: Any) -> kopf.ConnectionInfo:
            return login_of(self.settings())

        for resource in self.resources:
            group, _, version = resource.api_version.rpartition("/")
            kopf.on.event(group, version, resource.plural, registry=registry, id=resource.kind)(
                self._handler(resource.kind)
            )

    def _handler(self, kind: str) -> Callable[..., Any]:
        async def seen(event: Any, **_: Any) -> None:
            self.heard[kind] = time.monotonic()
            body = event["object"]
            if event["type"] == "DELETED":
                metadata = body["metadata"]
                self.world.remove(kind, (metadata.get("namespace") or "", metadata["name"]))
            else:
                self.world.put(kind, dict(body))

        return seen


@dataclass(slots=True, kw_only=True)
class Audit:
    """Compares what is known with what there is, every ``interval_s``."""

    world: World
    api: Api
    resources: Sequence[Resource]
    namespaces: Sequence[str] = ()
    interval_s: float = 30.0
    stopping: threading.Event = field(default_factory=threading.Event)
    heard: Mapping[str, float] = field(default_factory=dict)
    """Of the `Watch`."""
    behind: dict[str, float] = field(default_factory=dict)
    """Kind: since when (monotonic seconds) its watch is known to have missed something, and has said nothing since."""
    done_s: float = float("-inf")
    _missed: dict[tuple[str, tuple[str, str]], str] = field(default_factory=dict)

    def run(self) -> None:
        """Audit until stopped."""
        while not self.stopping.wait(self.interval_s):
            try:
                self.once()
            except ApiError as error:
                log.warning("audit", error=str(error))
            except Exception:
                log.exception("audit failed")

    def once(self) -> None:
        """Compare all kinds once; what was missed twice in a row is fetched, and its watch counts as silent."""
        for resource in self.resources:
            listed = self._listed(resource)
            if listed is None:
                if resource.kind not in OPTIONAL:
                    log.warning("the cluster does not have it", kind=resource.kind)
                continue
            self._compare(resource, listed)
        self.done_s = time.monotonic()

    def _listed(self, resource: Resource) -> dict[tuple[str, str], str] | None:
        if not self.namespaces or not resource.namespaced:
            return self.api.names(resource)
        listed: dict[tuple[str, str], str] = {}
        for namespace in self.namespaces:
            part = self.api.names(resource, namespace)
            if part is None:
                return None
            listed.update(part)
        return listed

    def _compare(self, resource: Resource, listed: dict[tuple[str, str], str]) -> None:
        kind = resource.kind
        known = self.world.known(kind)
        silent = False
        for key in known.keys() - listed.keys():
            if self.api.get(resource, key[0] or None, key[1]) is None:
                self.world.remove(kind, key)
        for key, version in listed.items():
            seen = known.get(key)
            if seen is None or _before(seen, version):
                missed = self._missed.get((kind, key))
                if missed is not None and (seen is None or _before(seen, missed)):
                    silent = True
                    body = self.api.get(resource, key[0] or None, key[1])
                    if body is not None:
                        self.world.put(kind, body)
                self._missed[kind, key] = version
            else:
                self._missed.pop((kind, key), None)
        for gone in [one for one in self._missed if one[0] == kind and one[1] not in listed]:
            del self._missed[gone]
        if self.heard.get(kind, float("-inf")) > self.behind.get(kind, float("inf")):
            del self.behind[kind]
        if silent:
            self.behind.setdefault(kind, time.monotonic())
            log.warning("a watch is silent", kind=kind)

    def silent_since_s(self) -> float | None:
        """Since when a watch is known to be silent; None if none is."""
        return min(self.behind.values(), default=None)


def _before(first: str, second: str) -> bool:
    """Whether a resource version is older than another (etcd's are numbers that grow)."""
    return first.isdigit() and second.isdigit() and int(first) < int(second)
