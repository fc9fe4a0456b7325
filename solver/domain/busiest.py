"""The busiest stretch of a trace: so many requests on end that arrived within the shortest time, in bounded memory.

It exists because a simulation needs requests, not counts, while a trace may hold more of them than memory does. It
chooses no number and simulates nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from solver.domain.trace import Requests, concatenate


@dataclass(slots=True, kw_only=True, eq=False)
class BusiestStretch:
    """Watches chunks go by and keeps the busiest ``number`` requests in a row, the earliest of equals."""

    number: int
    _tail: Requests | None = None
    """The last requests seen, fewer than ``number`` once a whole stretch is kept."""
    _best: Requests | None = None
    _span_s: float = field(default=float("inf"))

    def watching(self, chunks: Iterable[Requests]) -> Iterator[Requests]:
        """Yield the chunks (none empty) and look at each."""
        for chunk in chunks:
            self._see(chunk)
            yield chunk

    @property
    def requests(self) -> Requests:
        """The stretch, or all there was (ValueError if nothing was)."""
        found = self._tail if self._best is None else self._best
        if found is None:
            raise ValueError("no request was seen")
        return found

    def _see(self, chunk: Requests) -> None:
        seen = chunk if self._tail is None else concatenate((self._tail, chunk))
        count = len(seen) - self.number + 1
        if count > 0:
            spans = seen.arrival_s[self.number - 1 :] - seen.arrival_s[:count]
            start = int(np.argmin(spans))
            if float(spans[start]) < self._span_s:
                self._span_s = float(spans[start])
                self._best = seen.take(np.arange(start, start + self.number))
            seen = seen.take(np.arange(count, len(seen)))
        self._tail = seen
