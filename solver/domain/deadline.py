"""A time limit as a value, so that the solver can keep it without reading a clock of its own.

It exists because solver/ may not know the time: the shell passes a clock, the solver asks how much is left.
"""

from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds on any monotonic scale."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The instant, on the scale of ``clock``, after which the best answer so far is wanted."""

    clock: Clock
    at_s: float

    @classmethod
    def after(cls, limit_s: float, clock: Clock) -> "Deadline":
        """Start a limit now."""
        return cls(clock, clock() + limit_s)

    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at_s - self.clock())

    def passed(self) -> bool:
        """Whether the time is up."""
        return self.clock() >= self.at_s

    def sooner(self, limit_s: float) -> "Deadline":
        """Return the earlier of this deadline and ``limit_s`` seconds from now."""
        return Deadline(self.clock, min(self.at_s, self.clock() + limit_s))
