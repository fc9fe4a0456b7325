"""Recordings of expert loads in the history: read within a time, and kept as they are read from elsewhere.

It exists so that a database that does not answer holds up one placement for seconds and no more, and so that loads are
there for whoever asks later. Writing goes through the buffered store and waits for nobody. It decides nothing.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass, field

import structlog

from controller.operator.world import Key
from solver.domain.errors import InputError
from telemetry.experts.recording import ExpertRecording
from telemetry.store.expert_windows import ExpertWindow, windows_of
from telemetry.store.store import RecordedLoad, Store

log = structlog.get_logger(__name__)
READERS = 8
READ_LIMIT_S = 20.0


class HistoryError(Exception):
    """The database did not give what was asked for; the message says why."""


def recording_of(key: Key) -> str:
    """Return the recording that holds the loads of a placement: a namespace has its own names."""
    return f"{key[0]}/{key[1]}"


@dataclass(slots=True, kw_only=True)
class LoadHistory:
    """The history of expert loads in one database."""

    store: Store
    """For reading; whoever writes has its own."""
    put: Callable[[ExpertWindow], None]
    """Takes a window to write; never waits."""
    limit_s: float = READ_LIMIT_S
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "history"))

    def read(self, recording: str, *, window_s: float) -> RecordedLoad | None:
        """Return the last ``window_s`` seconds of a recording; None if it has no windows.

        Raises
        ------
        HistoryError
            If the database fails, or does not answer in time.
        InputError
            If a window is damaged.
        """
        asked = self._pool.submit(
            self.store.expert_load, recording, window_s=window_s, until_s=time.time()
        )  # a window from the future would never get old
        try:
            return asked.result(self.limit_s)
        except TooLateError:
            asked.cancel()
            raise HistoryError(f"the database has not answered for {self.limit_s:g} s") from None
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
            raise HistoryError(f"the database: {self.store.said(error)}") from None

    def keep(self, key: Key, found: ExpertRecording, *, model: str, end_s: float, window_s: float) -> None:
        """Write what was read for a placement."""
        recording = recording_of(key)
        try:
            windows = windows_of(found, recording=recording, model=model, end_s=end_s, window_s=window_s)
        except InputError as error:
            log.warning("loads are not kept", recording=recording, error=str(error))
            return
        for window in windows:
            self.put(window)
