"""What a power policy sees and answers: the one seam between the row's controller and the ways to decide.

It exists so that every policy runs alike in the simulator and in the cluster. `solver.power.row_control` calls a policy
with samples that it has vetted; what stale, missing or implausible telemetry means is decided there, not in a policy.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from solver.domain.power import BreakerCurve, Clocks, PowerRow, Watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One vetted sample and what is in force. Arrays are not to be written to and not to be kept."""

    t_s: float
    """Now, on the controller's monotonic clock."""
    sample_s: float
    """End of the window that the sample is the mean of."""
    row_w: float
    low_w: float
    high_w: float
    server_w: Watts | None
    """By server; None where only the row is metered."""
    theta: float
    """At the end of the window, from the samples."""
    budget_w: float
    """As scaled by events."""
    curve: BreakerCurve
    clock_latency_s: float
    """What clock orders take now, as far as is known."""
    low_mhz: int
    """The last order to low priority: the highest of its servers."""
    high_mhz: int
    low_floor_mhz: int
    """Where lowering ends; below the row's own floor in an emergency (budget cut, servers that do not answer)."""
    high_floor_mhz: int
    in_force_mhz: Clocks
    """By server, as read back."""
    braked: bool
    """The brake is ordered."""

    @property
    def draw_ratio(self) -> float:
        """Draw over budget, u."""
        return self.row_w / self.budget_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a policy wants; None leaves things as they are ordered."""

    low_mhz: int | None = None
    high_mhz: int | None = None
    server_mhz: Clocks | None = None
    """By server; wins over the two classes."""
    brake: bool | None = None


NOTHING = Orders()


class PolicyRun(Protocol):
    """A policy at work on one row; it may remember."""

    def decide(self, seen: Seen) -> Orders:
        """Answer one sample."""
        ...


class Policy(Protocol):
    """The settings of a policy."""

    caps: ClassVar[bool]
    """Whether it ever orders clocks: without, safe clocks are no recourse of its guarantee."""
    guarded: ClassVar[bool]
    """Whether the controller keeps the invariant for it, by standing caps and the brake, ahead of time; the others run
    as published."""

    @property
    def name(self) -> str:
        """As in the answers."""
        ...

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        ...

    def begin(self, row: PowerRow) -> PolicyRun:
        """Start without memory."""
        ...
