"""A store that never holds anybody up: entries wait in memory and are written by a thread of its own.

It exists because losing the database must not stop control. When there is no room, the oldest traffic makes room, then
the oldest decisions; that is counted. It comes back by itself when the database does, and writes each entry once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from telemetry.store.store import Entry, Store, TrafficSample, is_fault_of_entry

BATCH = 500
PRUNE_EVERY_S = 60.0
PRUNED_BATCHES = 20
"""At most, each time: entries should not wait for it."""


@dataclass(slots=True)
class BufferedStore:
    """Takes entries from any thread."""

    store: Store
    most: int = 10_000
    clock: Callable[[], float] = time.time
    """Seconds since 1970, for pruning."""
    first_wait_s: float = 0.5
    """Before a database that failed is tried again; doubled each time."""
    most_wait_s: float = 30.0
    answer_within_s: float = 60.0
    """A database that takes longer over one write counts as lost."""
    dropped: int = 0
    """Entries that made room for others."""
    refused: int = 0
    """Entries that no database would take, such as a rate that is not a number."""
    refusal: str = ""
    """Why the last of them was refused."""
    _lost: str = ""
    _asked_s: float = float("inf")
    _acts: deque[Entry] = field(default_factory=deque)
    _traffic: deque[Entry] = field(default_factory=deque)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _thread: threading.Thread | None = None

    @property
    def reason(self) -> str:
        """Why nothing can be written now; empty while all is well."""
        if time.monotonic() - self._asked_s > self.answer_within_s:
            return f"the database has not answered for {self.answer_within_s:g} s"
        return self._lost

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded, and the present one is not overdue."""
        return not self.reason

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._acts) + len(self._traffic)

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; never waits, never fails."""
        with self._wake:
            if self.waiting >= self.most:
                (self._traffic or self._acts).popleft()
                self.dropped += 1
            (self._traffic if isinstance(entry, TrafficSample) else self._acts).append(entry)
            self._wake.notify()

    def close(self, within_s: float = 2.0) -> bool:
        """Write what waits, for so many seconds; returns whether all was written."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            self.store.close()
        else:
            self._thread.join(within_s)
        return not self.waiting

    def _run(self) -> None:
        try:
            self._write_on()
        finally:
            self.store.close()  # by whom it was opened: `close` may not wait as long as a database takes

    def _write_on(self) -> None:
        migrated = False
        prune_s = time.monotonic()
        wait_s = self.first_wait_s
        while True:
            with self._wake:
                if migrated:
                    left_s = prune_s - time.monotonic()
                    self._wake.wait_for(lambda: self.waiting or self._closing, timeout=max(0.0, left_s))
                last_try = self._closing  # an entry that comes later is none of ours
                batch = [*islice(self._acts, BATCH), *islice(self._traffic, BATCH)][:BATCH]
            if last_try and not batch:
                return
            self._asked_s = time.monotonic()
            try:
                if not migrated:
                    self.store.migrate()
                    migrated = True
                self._write(batch)
                if time.monotonic() >= prune_s and not last_try:
                    prune_s = self._prune()
            except Exception as error:  # noqa: BLE001 - whatever a database or a driver thinks of
                self._lost = self.store.said(error)
                if last_try:
                    self._asked_s = float("inf")
                    return
                if time.monotonic() >= prune_s:
                    with suppress(Exception):  # it may only be full
                        prune_s = self._prune()
                self._asked_s = float("inf")
                migrated = False  # it may come back empty, or older
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=wait_s)
                wait_s = min(self.most_wait_s, 2 * wait_s)
                continue
            self._asked_s = float("inf")
            self._lost = ""
            wait_s = self.first_wait_s

    def _prune(self) -> float:
        """Let go of what is old; returns when to do so again."""
        self._asked_s = time.monotonic()
        self.store.prune(self.clock(), most_batches=PRUNED_BATCHES)
        return time.monotonic() + PRUNE_EVERY_S

    def _write(self, batch: Sequence[Entry]) -> None:
        """Write entries and let go of them; one that can never be written does not hold up the others."""
        try:
            self.store.write(batch)
        except Exception as error:
            if not is_fault_of_entry(error):
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                self._write(batch[:middle])
                self._write(batch[middle:])
                return
            self.refusal = self.store.said(error)
            self.refused += len(batch)
        with self._wake:
            for entry in batch:
                queue = self._traffic if isinstance(entry, TrafficSample) else self._acts
                if queue and queue[0] is entry:  # else it made room meanwhile
                    queue.popleft()
