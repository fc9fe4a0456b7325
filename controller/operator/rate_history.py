"""Rates of services in the history, read in threads of their own: a database that does not answer holds up nobody.

It exists so that a forecast knows what was before the leader began to sample. It writes nothing; what a forecast makes
of the rates is `controller.operator.outlook`'s.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from telemetry.store.store import Store

READERS = 2


class HistoryUnreadError(Exception):
    """The database failed; the message says why, without its password."""


@dataclass(slots=True, kw_only=True)
class RateHistory:
    """The rates in one database."""

    store: Store
    """For reading; whoever writes has its own."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "rates"))

    def read(
        self, service: str, window_s: int, since_s: float, until_s: float
    ) -> "Future[Sequence[tuple[float, float]]]":
        """Ask for the windows of a service: start in seconds since 1970, mean rate in requests/s."""
        return self._pool.submit(self._read, service, window_s, since_s, until_s)

    def _read(
        self, service: str, window_s: int, since_s: float, until_s: float
    ) -> Sequence[tuple[float, float]]:
        try:
            windows = self.store.traffic_windows(
                window_s=window_s, since_s=since_s, until_s=until_s, service=service
            )
        except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
            raise HistoryUnreadError(f"the database: {self.store.said(error)}") from None
        return tuple((window.t_s, window.rate_rps) for window in windows)
