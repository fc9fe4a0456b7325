"""The requests that a row serves: columns, each bound to its server.

It exists so that files and the generator hand the plant the same thing. It routes nothing: a request stays on the
server it is recorded for, and a row of N servers takes those of its servers only: added servers bring their own load.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError
from solver.domain.power import Priority, reference_priorities

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowRequests:
    """Columns by request. Arrays are not to be written to."""

    name: str
    arrival_s: Floats
    server: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    """Index into ``kinds``."""
    kinds: tuple[str, ...]
    """Classes of requests: chat, search, ..."""
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    duration_s: int
    """T: the measured time, whole seconds."""
    low_priority: npt.NDArray[np.bool_] | None = None
    """By server that is named; None: even servers are low, odd ones high, as are servers that are not named."""

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and arrivals after the end."""
        sizes = {
            getattr(self, name).size
            for name in ("arrival_s", "server", "kind", "prompt_tokens", "output_tokens")
        }
        if len(sizes) != 1:
            raise InputError("columns of different lengths", where=self.name)
        if self.duration_s < 1:
            raise InputError(f"{self.duration_s} s", where=self.name, right="it must be 1 s or more")

    @property
    def count(self) -> int:
        """Requests, of all servers."""
        return int(self.arrival_s.size)

    def priorities(self, servers: int) -> tuple[Priority, ...]:
        """Return the priorities of the first servers."""
        named = () if self.low_priority is None else self.low_priority[:servers].tolist()
        told = tuple(Priority.LOW if low else Priority.HIGH for low in named)
        return told + reference_priorities(servers)[len(told) :]

    def by_server(self, servers: int) -> Numbers:
        """Return the requests of the first servers, by server and then in order of arrival (ties: of the file)."""
        mine = np.flatnonzero(self.server < servers)
        return mine[np.lexsort((self.arrival_s[mine], self.server[mine]))]
