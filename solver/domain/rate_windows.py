"""Recorded request rates in windows of equal length: what is known of services whose single requests are not.

It exists because the largest public records of LLM traffic (ServeGen) are rates over days, which is what a workload can
follow and a forecast learn from. It counts no requests (that is `solver.domain.trace.windows`) and reads no file.
"""

from dataclasses import dataclass, replace

import numpy as np

from solver.domain.errors import InputError
from solver.domain.trace import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RateWindows:
    """Rates of one service; window i is [start_s + i window_s, start_s + (i+1) window_s)."""

    name: str
    start_s: float
    window_s: float
    rate_rps: Floats
    """Mean of each window; NaN where nothing was recorded, which is not the same as no requests."""

    def __post_init__(self) -> None:
        rates = np.asarray(self.rate_rps, dtype=np.float64).view()
        rates.flags.writeable = False
        object.__setattr__(self, "rate_rps", rates)

    def __len__(self) -> int:
        return len(self.rate_rps)

    @property
    def duration_s(self) -> float:
        """Seconds from the start of the first to the end of the last window."""
        return len(self) * self.window_s

    @property
    def gaps(self) -> int:
        """Windows that were not recorded."""
        return int(np.isnan(self.rate_rps).sum())

    def filled(self) -> "RateWindows":
        """Return the same windows with gaps bridged by straight lines (at the ends: by the nearest rate).

        Raises
        ------
        InputError
            If no window was recorded.
        """
        known = np.flatnonzero(~np.isnan(self.rate_rps))
        if not len(known):
            raise InputError(f"no window of {self.name!r} was recorded", right="windows with rates")
        return replace(self, rate_rps=np.interp(np.arange(len(self)), known, self.rate_rps[known]))

    def coarsened(self, window_s: float) -> "RateWindows":
        """Return means over longer windows, which begin at whole multiples of their length.

        A window is known if at least half of it was recorded; what does not fill a whole window at the ends is left
        out (where no whole one would be left, they begin with the record).

        Raises
        ------
        InputError
            If the length is no whole multiple of the present one, or longer than the record.
        """
        factor = round(window_s / self.window_s)
        if factor < 1 or abs(window_s - factor * self.window_s) > 1e-6 * self.window_s:
            raise InputError(
                f"windows of {window_s:g} s of {self.name!r}, which has windows of {self.window_s:g} s",
                right="a whole multiple",
            )
        if factor == 1:
            return self
        if factor > len(self):
            raise InputError(
                f"windows of {window_s:g} s of {self.name!r}, of which {self.duration_s:g} s are recorded",
                right="shorter windows",
            )
        lead = round(-self.start_s / self.window_s) % factor
        rates = self.rate_rps[min(lead, max(0, len(self) - factor)) :]
        start_s = self.start_s + (len(self) - len(rates)) * self.window_s
        rates = rates[: len(rates) // factor * factor].reshape(-1, factor)
        known = ~np.isnan(rates)
        count = known.sum(axis=1)
        mean = np.where(known, rates, 0.0).sum(axis=1) / np.maximum(count, 1)
        return RateWindows(
            name=self.name,
            start_s=start_s,
            window_s=window_s,
            rate_rps=np.where(2 * count >= factor, mean, np.nan),
        )
