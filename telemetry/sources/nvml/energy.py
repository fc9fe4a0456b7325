"""Counts energy on from a counter that begins anew when the driver is loaded.

It exists because a difference over such a moment would be negative, or silently too small. It reads nothing.
"""

MEAN_OVER_S = 0.5
"""Shortest time that a mean is taken over: drivers count in steps of up to a tenth of a second."""
_NOISE_J = 0.5
"""Counters are told in millijoules; a fall by less is no new beginning."""


class EnergyCounter:
    """One GPU's energy since the first look."""

    __slots__ = ("_from_j", "_from_s", "_last_j", "_mean_w", "resets", "total_j")

    def __init__(self) -> None:
        self.total_j = 0.0
        self.resets = 0
        self._last_j: float | None = None
        self._from_j, self._from_s = 0.0, 0.0
        self._mean_w: float | None = None

    def take(self, counter_j: float, t_s: float) -> float | None:
        """Take a reading; returns the mean power in W over the last half second or more, None where it is not known."""
        last_j, self._last_j = self._last_j, counter_j
        if last_j is None or counter_j < last_j - _NOISE_J:
            if last_j is not None:
                self.resets += 1
                self.total_j += counter_j  # what was used between the last look and the fall is not known
            self._from_j, self._from_s, self._mean_w = self.total_j, t_s, None
            return None
        self.total_j += max(counter_j - last_j, 0.0)
        passed_s = t_s - self._from_s
        if passed_s >= MEAN_OVER_S:
            self._mean_w = (self.total_j - self._from_j) / passed_s
            self._from_j, self._from_s = self.total_j, t_s
        return self._mean_w
