"""One row of the benchmark table, and what every benchmark is told.

It exists so that benchmarks of different rooms fill one table. It measures nothing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the table; ``ratio`` is the peer's value divided by ours where the peer has one."""

    name: str
    value: float
    unit: str
    peer_value: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How much to run, and where the public problems lie."""

    data: Path
    n_instances: int
    quick: bool

    @property
    def gputype(self) -> Path:
        """Folder of the public problems."""
        return self.data / "gputype" / "instances"


def at_most(name: str, value: float, unit: str, limit: float, **more: Any) -> Result:
    """Return a row whose target is an upper limit."""
    return Result(name=name, value=value, unit=unit, target=f"<= {limit:g}", met=bool(value <= limit), **more)


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)
