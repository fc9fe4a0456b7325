"""Leader election by a Lease: who may write, since when, and until when that is certain.

It exists beside the client library's elector because that one counts on the wall clock, keeps no term number, dies of
a refused connection and cannot hand over. Like it, it uses only the official client's Lease. It runs no loop of the
operator: it calls back when the lease is won, and ends the process when it may be lost.

Terms: ``leaseTransitions`` is the term (epoch) of the leader. A follower counts the lease duration on its own
monotonic clock from the moment it saw the last renewal, so clocks of machines are never compared.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from controller.operator.api import LEASES, Api, ApiError, Object

LEASE_NAME = "ballast-controller"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds: how long a lease lasts, within what time a leader must renew it, how often everybody tries."""

    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration_s > self.renew_deadline_s > self.retry_s > 0:
            raise ValueError("lease duration > renew deadline > retry period > 0 is needed")


@dataclass(slots=True, kw_only=True)
class Election:
    """One candidate. ``on_won`` is called once, in the election's thread; ``on_lost`` must end the process."""

    api: Api
    namespace: str
    identity: str
    times: LeaseTimes
    on_won: Callable[[int], None]
    on_lost: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    _renewed_s: float = float("-inf")
    _term: int | None = None
    _seen: tuple[str, str] = ("", "")
    _seen_s: float = float("-inf")

    @property
    def term(self) -> int | None:
        """Number of our term; None while we do not lead."""
        return self._term

    def leads(self) -> bool:
        """Whether it is certain that nobody else may lead now."""
        return (
            self._term is not None
            and not self.stopping.is_set()
            and time.monotonic() < self._renewed_s + self.times.renew_deadline_s
        )

    def run(self) -> None:
        """Try to win, then renew until stopped or lost."""
        self.api.limit_s = min(self.api.limit_s, max(1.0, self.times.renew_deadline_s / 2))
        while not self.stopping.is_set():
            began_s = time.monotonic()
            try:
                held = self._try()
            except ApiError as error:
                log.warning("lease", error=str(error))
                held = False
            if held:
                self._renewed_s = began_s
            elif self._term is not None and (
                time.monotonic() >= self._renewed_s + self.times.renew_deadline_s
                or self._seen[0] != self.identity
            ):
                self.on_lost("the lease could not be renewed in time")
                return
            # who waits looks twice as often: a lease that is handed over is taken soon
            self.stopping.wait(self.times.retry_s / (1 if held else 2))
        self._release()

    def _try(self) -> bool:
        """Take or renew the lease; returns whether it is ours."""
        lease = self.api.get(LEASES, self.namespace, LEASE_NAME)
        now = stamp()
        if lease is None:
            first = {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": round(self.times.duration_s) or 1,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 1,
            }
            body = {"metadata": {"name": LEASE_NAME, "namespace": self.namespace}, "spec": first}
            path = LEASES.path(self.namespace)
            self.api.request("POST", path, body={"apiVersion": LEASES.api_version, "kind": "Lease", **body})
            self._won(1)
            return True
        spec: Object = lease["spec"]
        holder = str(spec.get("holderIdentity") or "")
        record = (holder, str(spec.get("renewTime")))
        if record != self._seen:
            self._seen, self._seen_s = record, time.monotonic()
        if holder == self.identity and self._term is not None:
            lease["spec"] = {**spec, "renewTime": now}
            self._replace(lease, now)
            return True
        if self._term is not None:
            return False  # somebody took it
        lasts_s = max(float(spec.get("leaseDurationSeconds") or 0), self.times.duration_s)
        ours = holder == self.identity  # of this container before it restarted: it cannot still run
        if holder and not ours and time.monotonic() < self._seen_s + lasts_s:
            return False
        term = int(spec.get("leaseTransitions") or 0) + 1
        lease["spec"] = {
            **spec,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self.times.duration_s) or 1,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": term,
        }
        began_s = time.monotonic()
        self._replace(lease, now)
        self._renewed_s = began_s
        self._won(term)
        return True

    def _replace(self, lease: Object, now: str) -> None:
        self.api.replace(LEASES, self.namespace, lease)
        self._seen, self._seen_s = (self.identity, now), time.monotonic()

    def _won(self, term: int) -> None:
        if not self._renewed_s > float("-inf"):
            self._renewed_s = time.monotonic()
        self._term = term
        self._seen = (self.identity, self._seen[1])
        log.info("leading", term=term)
        self.on_won(term)

    def _release(self) -> None:
        """Hand over: an empty holder may be followed at once."""
        if self._term is None:
            return
        self._term = None
        try:
            lease = self.api.get(LEASES, self.namespace, LEASE_NAME)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "renewTime": stamp()}
                self.api.replace(LEASES, self.namespace, lease)
                log.info("handed over")
        except ApiError as error:
            log.warning("handing over failed; the others wait for the lease to end", error=str(error))


def stamp() -> str:
    """Return now as Leases write it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
