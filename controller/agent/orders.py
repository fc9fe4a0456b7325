"""Where orders come from: a seam, and the source that reads them from a file or a folder.

It exists so that the loop never waits for a disk or a server: a source reads in a thread of its own and the loop takes
what is there. The file serves tests, and sites where no API server is to be reached. A file that vanishes or cannot be
read is no order: what was said before stands until its lease is over.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from controller.agent.node_power import orders_of
from controller.agent.state import AgentState
from solver.domain.errors import InputError
from solver.domain.node_power import NodeOrders

READ_EVERY_S = 0.5
MOST_BYTES = 2**20
SUFFIXES = (".json", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a source has at the moment."""

    orders: NodeOrders | None = None
    """The last that could be read."""
    received_s: float = 0.0
    """When they came, on the monotonic clock: a lease counts from here."""
    trouble: str = ""
    """Why there is nothing newer, in one line."""


class OrderSource(Protocol):
    """Brings orders, and takes the status where there is a place for it."""

    wake: threading.Event
    """Set whenever there are other orders: the loop need not wait for its next round."""

    def start(self) -> None:
        """Begin to read, in a thread."""

    def latest(self) -> Heard:
        """Return what was read last; at once."""

    def publish(self, state: AgentState) -> None:
        """Take the status of a round; at once."""

    def stop(self, final: AgentState | None) -> None:
        """Stop reading; say the last status where that is quickly done."""


def kept(before: Heard, orders: NodeOrders, now_s: float) -> Heard:
    """Return what is heard after a reading: the same orders were received when they came first."""
    if before.orders == orders:
        return Heard(orders=orders, received_s=before.received_s)
    return Heard(orders=orders, received_s=now_s)


class FileOrders:
    """Orders in a file, or in ``NODE.json`` or ``NODE.yaml`` of a folder; JSON, or YAML by its name."""

    def __init__(self, path: Path, node: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.node, self._clock = path, node, clock
        self._heard = Heard(trouble="not read yet")
        self.wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read once, then in a thread."""
        self.read()
        self._thread = threading.Thread(target=self._run, name="orders", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(READ_EVERY_S):
            self.read()

    def read(self) -> None:
        """Read the file as it is now."""
        before = self._heard
        try:
            orders = orders_of(*self._document())
        except (InputError, OSError) as error:
            self._heard = Heard(orders=before.orders, received_s=before.received_s, trouble=str(error))
        else:
            self._heard = kept(before, orders, self._clock())
            if self._heard.orders != before.orders:
                self.wake.set()

    def _document(self) -> tuple[Any, str]:
        path = self._file()
        if path.stat().st_size > MOST_BYTES:
            raise InputError("more than 1 MiB", where=str(path), right="the orders of one node")
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".json":
                return json.loads(text), str(path)
            import yaml  # noqa: PLC0415 - not needed where orders come as JSON

            return yaml.safe_load(text), str(path)
        except (ValueError, RecursionError) as error:
            what = f"not readable: {error}".replace("\n", " ")
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - yaml's own errors, without loading it to name them
            what = f"not YAML: {error}".replace("\n", " ")
        raise InputError(what, where=str(path), right="a NodePower as JSON or YAML")

    def _file(self) -> Path:
        if not self.path.is_dir():
            return self.path
        for suffix in SUFFIXES:
            file = self.path / f"{self.node}{suffix}"
            if file.exists():
                return file
        raise InputError(f"no file for node {self.node}", where=str(self.path), right=f"{self.node}.json")

    def latest(self) -> Heard:
        """Return what was read last."""
        return self._heard

    def publish(self, state: AgentState) -> None:
        """Say nothing: the page does."""

    def stop(self, final: AgentState | None) -> None:  # noqa: ARG002 - nobody to tell
        """Stop reading."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0)
