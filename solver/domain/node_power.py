"""The vocabulary of one node's power: caps of a GPU, the orders for a node, what is seen and what is to be set.

It exists so that the node agent's core, the reader of NVML and whoever writes orders speak of the same values. It
decides nothing and knows neither NVML nor Kubernetes. Fields follow NodePower (power.md §11); None means not told,
never zero.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from solver.domain.errors import InputError


class Mode(StrEnum):
    """Whether orders are carried out or only shown."""

    RECOMMEND = "Recommend"
    AUTO = "Auto"


class Knob(StrEnum):
    """What of a GPU can be set."""

    CLOCK = "clock"
    LIMIT = "limit"


class Failure(StrEnum):
    """What the answer of a set call, or of a look at a GPU, asks for (power.md §7, errors and reactions)."""

    NONE = "none"
    NOT_SUPPORTED = "NotSupported"
    """The GPU cannot do it: the other knob is used."""
    NO_PERMISSION = "NoPermission"
    """Nothing can be set: telemetry only."""
    LOST = "GpuLost"
    DRIVER_GONE = "DriverGone"
    """Not loaded, or changed underneath: only another process helps."""
    FAILED = "Failed"
    """It may or may not have been set: what is read back decides."""


_Number = TypeVar("_Number", int, float)


def _lower(left: _Number | None, right: _Number | None) -> _Number | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """What one GPU may do. None: not capped in this way."""

    max_mhz: int | None = None
    min_mhz: int | None = None
    """Lower end of the clock lock; the lowest clock where it is not told."""
    limit_w: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no GPU can be set to."""
        for name, value in (
            ("max_mhz", self.max_mhz),
            ("min_mhz", self.min_mhz),
            ("limit_w", self.limit_w),
        ):
            if value is not None and not 0.0 < value < math.inf:
                raise InputError(f"{value!r}", where=name, right="a number above 0")
        if self.max_mhz is not None and self.min_mhz is not None and self.min_mhz > self.max_mhz:
            raise InputError(
                f"{self.min_mhz} MHz is above {self.max_mhz} MHz", where="min_mhz", right="at most"
            )

    def stricter(self, other: "Cap") -> "Cap":
        """Return the lower of both, way by way."""
        top = _lower(self.max_mhz, other.max_mhz)
        bottom = _lower(self.min_mhz, other.min_mhz)
        return Cap(
            max_mhz=top,
            min_mhz=bottom if bottom is None or top is None else min(bottom, top),
            limit_w=_lower(self.limit_w, other.limit_w),
        )


NO_CAP = Cap()


def strictest(caps: Iterable[Cap]) -> Cap:
    """Return the lowest of all: power and clock belong to a whole GPU, whatever its MIG instances are told."""
    lowest = NO_CAP
    for cap in caps:
        lowest = lowest.stricter(cap)
    return lowest


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrders:
    """What one node is told; a NodePower's spec."""

    source: str = ""
    """Identity of the object: generations count within it."""
    generation: int
    """Grows with every change of the orders."""
    renewal: int = 0
    """Grows with every renewal of the lease."""
    lease_s: float = 15.0
    mode: Mode = Mode.RECOMMEND
    gpus: Mapping[str, Cap] = field(default_factory=lambda: MappingProxyType({}))
    """By UUID of a GPU, or of a MIG instance."""
    safe: Cap = NO_CAP
    """Of each GPU. If all of a domain stand at theirs, it cannot exceed its budget."""
    oversubscribed: bool = True
    """Whether the domain could exceed its budget with all GPUs uncapped."""
    release: bool = False
    """Back to the values found before the first write, by an operator's will."""
    floor_mhz: int | None = None
    """Orders below are taken for errors; never above the safe clock."""
    budget_w: float | None = None
    """Of this node's GPUs together; above it the node goes to its safe caps by itself."""
    lease: str = ""
    """NAMESPACE/NAME of a Lease whose renewals renew this one, too; whoever reads the orders counts them."""

    def __post_init__(self) -> None:
        """Refuse leases without an end, and numbers that no order has."""
        if not 0.0 < self.lease_s <= 3600.0:
            raise InputError(
                f"{self.lease_s:g} s", where="leaseDurationSeconds", right="above 0, at most 3600"
            )
        if self.generation < 1 or self.renewal < 0:
            where = "generation" if self.generation < 1 else "renewSequence"
            raise InputError("a number too low", where=where, right="generations begin at 1, renewals at 0")
        if self.budget_w is not None and not 0.0 < self.budget_w < math.inf:
            raise InputError(f"{self.budget_w:g} W", where="budgetWatts", right="above 0")

    def says_the_same(self, other: "NodeOrders") -> bool:
        """Whether both ask for the same, whatever they are numbered."""
        return (self.mode, self.gpus, self.safe, self.oversubscribed, self.release, self.floor_mhz) == (
            other.mode,
            other.gpus,
            other.safe,
            other.oversubscribed,
            other.release,
            other.floor_mhz,
        ) and (self.lease_s, self.budget_w, self.lease) == (other.lease_s, other.budget_w, other.lease)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRange:
    """What a GPU can be set to."""

    clocks_mhz: tuple[int, ...] = ()
    """Supported, rising; none: clocks cannot be locked."""
    least_w: float | None = None
    most_w: float | None = None
    default_w: float | None = None

    def clamped(self, cap: Cap, *, floor_mhz: int | None = None) -> Cap:
        """Return the highest cap that can be set and is not above ``cap``; what cannot be so low is set lowest.

        Clocks go down to a supported one (A100: steps of 15 MHz), limits to whole milliwatts.
        """
        return Cap(
            max_mhz=self._clock(cap.max_mhz, floor_mhz),
            min_mhz=self._clock(cap.min_mhz, None) if cap.max_mhz is not None else None,
            limit_w=self._limit(cap.limit_w),
        )

    def _clock(self, mhz: int | None, floor_mhz: int | None) -> int | None:
        if mhz is None or not self.clocks_mhz:
            return None
        wanted = mhz if floor_mhz is None else max(mhz, floor_mhz)
        return self.clocks_mhz[max(bisect_right(self.clocks_mhz, wanted) - 1, 0)]

    def _limit(self, limit_w: float | None) -> float | None:
        if limit_w is None or self.least_w is None or self.most_w is None:
            return None
        return math.floor(min(max(limit_w, self.least_w), self.most_w) * 1000.0 + 1e-6) / 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """One look at a GPU. None: could not be read."""

    limit_w: float | None = None
    """As requested of the driver."""
    enforced_w: float | None = None
    """With what a BMC or others hold; the lower of all."""
    sm_mhz: int | None = None
    power_w: float | None = None
    power_brake: bool = False
    """The hardware brakes."""
    failure: Failure = Failure.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One value to be set."""

    uuid: str
    knob: Knob
    value: float | None
    """MHz or watts; None lets go of a clock lock."""
    least: int | None = None
    """Lower end of a clock lock."""
    lowers: bool
