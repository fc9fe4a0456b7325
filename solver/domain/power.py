"""The vocabulary of power: breakers, what a server may draw at a clock, priorities, and a row of servers.

It exists so that policies, admission, the row simulator, the node agent and the commands speak of the same breaker and
the same worst case. It decides nothing, holds no state that changes, and reads no file.

Symbols used in the docstrings of `solver.power`: u = draw / budget, θ the thermal state of a breaker (θ → u² with time
constant τ, trip at K²), f a clock and F the largest, N servers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError

Watts = npt.NDArray[np.float64]
"""By server."""
Clocks = npt.NDArray[np.int64]
"""By server, MHz."""


class Priority(StrEnum):
    """Who slows down first."""

    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerCurve:
    """A first-order thermal breaker: dθ/dt = (u² - θ)/τ, trip at θ ≥ K² (power.md §5)."""

    name: str
    tau_s: float
    trip_ratio: float
    """K: the largest constant overload that never trips."""

    def __post_init__(self) -> None:
        """Refuse what never warms, and what trips at its rating."""
        if not 0.0 < self.tau_s < math.inf:
            raise InputError(f"{self.tau_s:g} s", where="tau_s", right="it must be above 0")
        if not 1.0 <= self.trip_ratio < math.inf:
            raise InputError(f"{self.trip_ratio:g}", where="trip_ratio", right="it must be 1 or more")

    @property
    def trip_theta(self) -> float:
        """K²."""
        return self.trip_ratio * self.trip_ratio


BREAKER_CURVES: Mapping[str, BreakerCurve] = MappingProxyType(
    {
        name: BreakerCurve(name=name, tau_s=tau_s, trip_ratio=1.05)
        for name, tau_s in (
            ("rack_rpp_110pct_17min", 611.46),
            ("molded_case_135pct_2h", 14512.18),
            ("fast_thermal_135pct_60s", 120.93),
            ("ups_failover_133pct_10s", 18.97),
        )
    }
)
"""Named after the overload and the time at which each trips from 80 % load."""
DEFAULT_CURVE = "rack_rpp_110pct_17min"
START_THETA = 0.6


def breaker_curve(name: str, *, tau_s: float | None = None, trip_ratio: float | None = None) -> BreakerCurve:
    """Return a named curve, or a ``custom`` one from its constants.

    Raises
    ------
    InputError
        An unknown name; ``custom`` without both constants; constants with a named curve.
    """
    if name == "custom":
        if tau_s is None or trip_ratio is None:
            missing = "tau_s" if tau_s is None else "trip_K"
            raise InputError("a custom breaker is not told", where=missing, right="give tau_s and trip_K")
        return BreakerCurve(name=name, tau_s=tau_s, trip_ratio=trip_ratio)
    if name not in BREAKER_CURVES:
        raise InputError(
            f"unknown breaker {name!r}",
            where="curve",
            right=f"one of {', '.join(BREAKER_CURVES)}, custom",
        )
    if tau_s is not None or trip_ratio is not None:
        raise InputError(
            f"{name} has its own constants",
            where="tau_s" if tau_s is not None else "trip_K",
            right="give them with curve custom only",
        )
    return BREAKER_CURVES[name]


@dataclass(frozen=True, kw_only=True)
class ServerPowerModel:
    """What one server draws: a fixed part and GPUs whose draw above idle goes with (f/F)^exponent."""

    name: str
    gpus: int
    gpu_idle_w: float
    gpu_tdp_w: float
    prompt_tdp_ratio: float
    """Draw in prompts at F, of the TDP; the largest of all phases."""
    token_tdp_ratio_at_0: float
    """Draw while decoding at F, of the TDP, as the batch goes to 0."""
    token_tdp_ratio_at_full: float
    """The same at ``full_batch`` sequences and more."""
    full_batch: int
    exponent: float
    fixed_w: float
    draw_per_gpu_watt_ratio: float
    """Watts at the plug per GPU watt: supplies and fans."""
    provisioned_w: float
    """What a server is rated at; the budget of a row that is not oversubscribed is N of it."""
    min_mhz: int
    max_mhz: int
    step_mhz: int
    brake_mhz: int

    def __post_init__(self) -> None:
        """Refuse a range of clocks without a step, and a worst case below idle."""
        if not 0 < self.min_mhz <= self.max_mhz or self.step_mhz <= 0:
            raise InputError(
                f"clocks {self.min_mhz} to {self.max_mhz} in steps of {self.step_mhz} MHz",
                where="min_mhz",
                right="0 < min_mhz <= max_mhz, step_mhz > 0",
            )
        if not self.gpu_idle_w <= self.prompt_tdp_ratio * self.gpu_tdp_w < math.inf:
            raise InputError(
                f"{self.gpu_idle_w:g} W idle", where="gpu_idle_w", right="it must be below the largest draw"
            )

    @cached_property
    def idle_w(self) -> float:
        """A server without work, at any clock."""
        return self.fixed_w + self.draw_per_gpu_watt_ratio * self.gpus * self.gpu_idle_w

    def gpu_w(self, tdp_ratio: float, mhz: float) -> float:
        """Watts of one GPU in a phase that draws ``tdp_ratio`` of its TDP at F."""
        scale: float = (mhz / self.max_mhz) ** self.exponent
        return self.gpu_idle_w + (tdp_ratio * self.gpu_tdp_w - self.gpu_idle_w) * scale

    def server_w(self, gpu_w: float) -> float:
        """Watts at the plug when each GPU draws ``gpu_w``."""
        return self.fixed_w + self.draw_per_gpu_watt_ratio * self.gpus * gpu_w

    def worst_w(self, mhz: float) -> float:
        """Pmax(f): the most that a server can draw at a clock."""
        return self.server_w(self.gpu_w(self.prompt_tdp_ratio, mhz))

    @cached_property
    def clocks_mhz(self) -> tuple[int, ...]:
        """All clocks that can be ordered, rising; F is one of them."""
        return tuple(range(self.max_mhz, self.min_mhz - 1, -self.step_mhz))[::-1]

    @cached_property
    def worst_by_mhz(self) -> Watts:
        """Pmax of every whole clock 0..F, so that a worst case is a look-up; [F + 1]."""
        table = np.array([self.worst_w(mhz) for mhz in range(self.max_mhz + 1)])
        table.setflags(write=False)
        return table

    def step_down(self, mhz: float) -> int:
        """Return the largest clock that can be ordered at or below ``mhz`` (the lowest there is otherwise)."""
        steps = math.ceil((self.max_mhz - mhz) / self.step_mhz - 1e-9)
        most = (self.max_mhz - self.min_mhz) // self.step_mhz
        return self.max_mhz - self.step_mhz * min(max(steps, 0), most)

    def safe_mhz(self, servers: int, budget_w: float) -> int | None:
        """Return the largest clock with N Pmax(f) ≤ budget; None if none is low enough."""
        if servers <= 0:
            return self.max_mhz if budget_w >= 0.0 else None
        best = None
        for mhz in self.clocks_mhz:
            if servers * self.worst_w(mhz) > budget_w:
                break
            best = mhz
        return best


REFERENCE_SERVER = ServerPowerModel(
    name="reference 8 x A100",
    gpus=8,
    gpu_idle_w=63.0,
    gpu_tdp_w=400.0,
    prompt_tdp_ratio=1.02,
    token_tdp_ratio_at_0=0.58,
    token_tdp_ratio_at_full=0.68,
    full_batch=16,
    exponent=1.13,
    fixed_w=1250.0,
    draw_per_gpu_watt_ratio=1.5,
    provisioned_w=6500.0,
    min_mhz=210,
    max_mhz=1410,
    step_mhz=15,
    brake_mhz=288,
)
"""The server of the reference row: a DGX-A100 fitted to published statistics (power.md §3), not measured."""


@dataclass(frozen=True, kw_only=True)
class PowerRow:
    """Servers behind one breaker, and what commands to them take."""

    server: ServerPowerModel
    priorities: tuple[Priority, ...]
    """By server."""
    budget_w: float
    """Of the breaker and of the contract; events scale it."""
    curve: BreakerCurve
    low_floor_mhz: int = 1110
    high_floor_mhz: int = 1305
    """Policies go no lower, whatever they save."""
    low_top_mhz: int | None = None
    """A cap that stands always; None: the largest clock."""
    high_top_mhz: int | None = None
    sample_s: float = 2.0
    """Length of a telemetry window, and the time between two decisions."""
    delivery_s: float = 2.0
    """From the end of a window to its decision."""
    clock_latency_s: float = 2.0
    """From a clock order to its effect: 2 s from an agent on the node, 40 s through a BMC."""
    brake_latency_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse an empty row, a budget that is none, and floors outside the clocks."""
        if not self.priorities:
            raise InputError("a row without servers", where="servers", right="it must be 1 or more")
        if not 0.0 < self.budget_w < math.inf:
            raise InputError(f"{self.budget_w:g} W", where="budget_w", right="it must be above 0")
        for name in ("low_floor_mhz", "high_floor_mhz"):
            mhz = getattr(self, name)
            if not self.server.min_mhz <= mhz <= self.server.max_mhz:
                raise InputError(
                    f"{mhz} MHz",
                    where=name,
                    right=f"it must be {self.server.min_mhz} to {self.server.max_mhz}",
                )
        for name, floor_mhz in (("low_top_mhz", self.low_floor_mhz), ("high_top_mhz", self.high_floor_mhz)):
            top_mhz = getattr(self, name)
            if top_mhz is not None and not floor_mhz <= top_mhz <= self.server.max_mhz:
                raise InputError(
                    f"{top_mhz} MHz", where=name, right=f"it must be {floor_mhz} to {self.server.max_mhz}"
                )
        for name in ("sample_s", "delivery_s", "clock_latency_s", "brake_latency_s"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise InputError(f"{value:g} s", where=name, right="it must be 0 or more")

    @property
    def servers(self) -> int:
        """N."""
        return len(self.priorities)

    @cached_property
    def is_low(self) -> npt.NDArray[np.bool_]:
        """By server: low priority."""
        mask = np.array([p is Priority.LOW for p in self.priorities])
        mask.setflags(write=False)
        return mask

    @cached_property
    def top_mhz(self) -> Clocks:
        """The highest clock that is ever ordered, by server; not to be written to."""
        most = self.server.max_mhz
        low, high = (most if top is None else top for top in (self.low_top_mhz, self.high_top_mhz))
        tops = np.where(self.is_low, low, high).astype(np.int64)
        tops.setflags(write=False)
        return tops

    def recourse_s(self, order_s: float) -> float:
        """R: how long a jump of the draw can run before an order that takes ``order_s`` answers it.

        Until the end of the first full window after it, its delivery, one period, the order: 8 s for 2 s of each.
        """
        return 2.0 * self.sample_s + self.delivery_s + order_s


def reference_priorities(servers: int) -> tuple[Priority, ...]:
    """Return the reference row's priorities: even servers low, odd ones high."""
    return tuple(Priority.LOW if server % 2 == 0 else Priority.HIGH for server in range(servers))
