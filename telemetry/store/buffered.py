"""A store that never holds anybody up: entries wait in memory and are written by a thread of its own.

It exists because losing the database must not stop control. Entries that find no room push out the oldest; that is
counted and said. It comes back by itself when the database does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from telemetry.store.store import Entry, Store

BATCH = 500
FIRST_WAIT_S = 0.5
MOST_WAIT_S = 30.0
PRUNE_EVERY_S = 3600.0


@dataclass(slots=True)
class BufferedStore:
    """Takes entries from any thread."""

    store: Store
    most: int = 10_000
    clock: Callable[[], float] = time.time
    """Seconds since 1970, for pruning."""
    dropped: int = 0
    reason: str = ""
    """Why nothing can be written now; empty while all is well."""
    _waiting: deque[Entry] = field(default_factory=deque)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _writing: bool = False
    _thread: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded."""
        return not self.reason

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; never waits, never fails."""
        with self._wake:
            if len(self._waiting) >= self.most:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(entry)
            self._wake.notify()

    def close(self, within_s: float = 2.0) -> bool:
        """Write what waits, for so many seconds; returns whether all was written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(within_s)
        self.store.close()
        return not self._waiting

    def _run(self) -> None:
        migrated = False
        pruned_s = float("-inf")
        wait_s = FIRST_WAIT_S
        while True:
            with self._wake:
                if migrated and not self._waiting and not self._closing:
                    self._wake.wait(60.0)
                if self._closing and (not self._waiting or self.reason):
                    return
                batch = [self._waiting[k] for k in range(min(BATCH, len(self._waiting)))]
            try:
                if not migrated:
                    self.store.migrate()
                    migrated = True
                if batch:
                    self.store.write(batch)
                if time.monotonic() - pruned_s > PRUNE_EVERY_S:
                    self.store.prune(self.clock())
                    pruned_s = time.monotonic()
            except (SQLAlchemyError, OSError) as error:
                self.reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=wait_s)
                wait_s = min(MOST_WAIT_S, 2 * wait_s)
                continue
            wait_s = FIRST_WAIT_S
            self.reason = ""
            with self._wake:
                for entry in batch:
                    if self._waiting and self._waiting[0] is entry:  # else it was pushed out meanwhile
                        self._waiting.popleft()
