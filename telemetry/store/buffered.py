"""A store that never holds anybody up: entries wait in memory and are written by a thread of its own.

It exists because losing the database must not stop control. When there is no room, the oldest power makes room, then
traffic, then expert loads, then decisions, the oldest first; that is counted. It comes back by itself when the database
does, and writes each entry once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from telemetry.store.store import Entry, ExpertWindow, PowerWindows, Store, TrafficSample, is_fault_of_entry

BATCH = 500
BATCH_BYTES = 8 * 2**20
"""Of windows of expert loads in one transaction, unless a single one is larger."""
BATCH_POWER_BYTES = 2 * 2**20
"""Of windows of power in one transaction: some 5,000 windows, each of which adds to longer ones."""
PRUNE_EVERY_S = 60.0
PRUNED_BATCHES = 20
"""At most, each time: entries should not wait for it."""


@dataclass(slots=True)
class BufferedStore:
    """Takes entries from any thread."""

    store: Store
    most: int = 10_000
    most_window_bytes: int = 64 * 2**20
    """Of windows of expert loads that wait: beyond it, the oldest of them makes room."""
    most_power_bytes: int = 64 * 2**20
    """Of windows of power that wait, in the same way: 8 hours of 40 servers and more."""
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
    _windows: deque[Entry] = field(default_factory=deque)
    _power: deque[Entry] = field(default_factory=deque)
    _window_bytes: int = 0
    _power_bytes: int = 0
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
        return len(self._acts) + len(self._traffic) + len(self._windows) + len(self._power)

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; never waits, never fails."""
        with self._wake:
            size = _window_bytes(entry)
            while size and self._windows and self._window_bytes + size > self.most_window_bytes:
                self._make_room(self._windows)
            drawn = _power_bytes(entry)
            while drawn and self._power and self._power_bytes + drawn > self.most_power_bytes:
                self._make_room(self._power)
            if self.waiting >= self.most:
                self._make_room(self._power or self._traffic or self._windows or self._acts)
            self._queue(entry).append(entry)
            self._window_bytes += size
            self._power_bytes += drawn
            self._wake.notify()

    def _queue(self, entry: Entry) -> deque[Entry]:
        if isinstance(entry, TrafficSample):
            return self._traffic
        if isinstance(entry, PowerWindows):
            return self._power
        return self._windows if isinstance(entry, ExpertWindow) else self._acts

    def _make_room(self, queue: deque[Entry]) -> None:
        self._let_go(queue)
        self.dropped += 1

    def _let_go(self, queue: deque[Entry]) -> None:
        entry = queue.popleft()
        self._window_bytes -= _window_bytes(entry)
        self._power_bytes -= _power_bytes(entry)

    def _batch(self) -> list[Entry]:
        """Return what is written next: acts before windows, windows before traffic, power last."""
        windows: list[Entry] = []
        left = min(BATCH_BYTES, self.store.most_at_once_bytes)
        for window in islice(self._windows, BATCH):
            left -= _window_bytes(window)
            if windows and left < 0:
                break
            windows.append(window)
        power: list[Entry] = []
        left = BATCH_POWER_BYTES
        for entry in islice(self._power, BATCH):
            left -= _power_bytes(entry)
            if power and left < 0:
                break
            power.append(entry)
        return [*islice(self._acts, BATCH), *windows, *islice(self._traffic, BATCH), *power][:BATCH]

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
                batch = self._batch()
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
                queue = self._queue(entry)
                if queue and queue[0] is entry:  # else it made room meanwhile
                    self._let_go(queue)


def _window_bytes(entry: Entry) -> int:
    return entry.packed_bytes if isinstance(entry, ExpertWindow) else 0


def _power_bytes(entry: Entry) -> int:
    return entry.packed_bytes if isinstance(entry, PowerWindows) else 0
