"""Recorded power: of each server of a row, or of a row as a whole.

It exists so that the reader of files, the history and the question of how many servers a budget holds agree on what a
recording is. It reads no file and judges nothing but shapes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerPowerTrace:
    """Mean power of every server, sample by sample, uncapped. Arrays are not to be written to."""

    name: str
    t_s: Floats
    """Starts of the samples, rising, evenly spaced; [T]."""
    period_s: float
    server_w: Floats
    """[T, N]."""
    servers: tuple[str, ...]
    """Names, by column."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together, and what is no power."""
        if self.server_w.shape != (self.t_s.size, len(self.servers)) or not self.servers:
            raise InputError(
                f"powers of shape {self.server_w.shape} for {self.t_s.size} samples of {len(self.servers)} servers",
                where=self.name,
            )
        _refuse_wrong(self.name, self.t_s, self.period_s, self.server_w)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowPowerTrace:
    """Mean power of a row of so many servers, uncapped. Arrays are not to be written to."""

    name: str
    t_s: Floats
    """Starts of the samples, rising, evenly spaced; [T]."""
    period_s: float
    row_w: Floats
    """[T]."""
    servers: int
    low_w: Floats | None = None
    """Power of the servers of low priority, [T]; None where the recording does not tell them apart."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together, a row without servers or draw, and what is no power."""
        if self.servers < 1:
            raise InputError(f"{self.servers} servers", where=self.name, right="it must be 1 or more")
        if self.row_w.shape != self.t_s.shape or (
            self.low_w is not None and self.low_w.shape != self.t_s.shape
        ):
            raise InputError("columns of different lengths", where=self.name)
        _refuse_wrong(self.name, self.t_s, self.period_s, self.row_w)
        if self.row_w.max() <= 0.0:
            raise InputError("the row never draws anything", where=self.name)
        if self.low_w is not None and not ((self.low_w >= 0.0) & (self.low_w <= self.row_w * 1.01)).all():
            raise InputError("low priority draws more than the row, or less than 0", where=self.name)


def _refuse_wrong(name: str, t_s: Floats, period_s: float, watts: Floats) -> None:
    if t_s.size == 0:
        raise InputError("no samples", where=name)
    if not 0.0 < period_s <= LONGEST_PERIOD_S:
        raise InputError(
            f"samples of {period_s:g} s",
            where=name,
            right=f"give samples of {LONGEST_PERIOD_S:g} s or less: longer means hide the peaks",
        )
    if not (np.isfinite(watts).all() and (watts >= 0.0).all()):
        raise InputError("a power that is not a number of 0 or more", where=name)
    if not (np.isfinite(t_s).all() and (np.diff(t_s) > 0.0).all()):
        raise InputError("times that do not rise", where=name)


LONGEST_PERIOD_S = 60.0
