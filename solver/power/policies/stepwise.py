"""Stepwise: clocks step down above one target draw and up below it, low priority first, with a brake on θ.

It exists as the plainest loop that a fast actuator beside a model of the breaker allows (the prototype "guard-s" of
power.md §9), and is what `solver.power.policies.guard` is measured against. Clocks go down in a fixed order (high
priority a little, low priority to its floor, high priority to its own) and up in the reverse one, always in whole
steps: down at once, up only when a whole step is free.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from solver.domain.errors import InputError
from solver.domain.power import PowerRow
from solver.power.policies.braking import BrakeAtTheta, BrakeLever, BrakeRule
from solver.power.policies.protocol import Orders, PolicyRun, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepwise:
    """Settings of the controller; ratios are of the budget."""

    caps: ClassVar[bool] = True
    guarded: ClassVar[bool] = True

    target_ratio: float = 0.975
    lower_mhz: float = 1200.0
    """Clocks are lowered by so much per unit of draw above the target, at every decision."""
    raise_mhz: float = 300.0
    """And raised by so much per unit of draw below it, beyond ``dead_ratio``, ..."""
    raise_least_mhz: float = 2.0
    """... and so much."""
    dead_ratio: float = 0.005
    first_high_mhz: int = 1380
    """High priority goes down to this first, then low priority to its floor, then high priority to its own."""
    brake: BrakeRule | None = field(default_factory=BrakeAtTheta)
    label: str = "stepwise"

    def __post_init__(self) -> None:
        """Refuse a loop that runs the wrong way."""
        if not self.target_ratio > 0.0 or min(self.lower_mhz, self.raise_mhz, self.dead_ratio) < 0.0:
            raise InputError(
                f"target {self.target_ratio:g}, gains {self.lower_mhz:g} and {self.raise_mhz:g} MHz",
                where="stepwise",
                right="a target above 0, gains of 0 or more",
            )

    @property
    def name(self) -> str:
        """As in the answers."""
        return self.label

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        return self.brake is not None

    def begin(self, row: PowerRow) -> PolicyRun:
        """Start without memory, uncapped."""
        return _Run(self, row)


class _Run:
    """It remembers no clock: it goes on from the last orders, whoever changed them."""

    def __init__(self, policy: Stepwise, row: PowerRow) -> None:
        self._policy = policy
        self._server = row.server
        self._high_first = max(policy.first_high_mhz, row.high_floor_mhz)
        self._brake = BrakeLever(policy.brake)

    def decide(self, seen: Seen) -> Orders:
        policy = self._policy
        over = seen.draw_ratio - policy.target_ratio
        low, high = seen.low_mhz, seen.high_mhz
        if over > 0.0:
            low, high = self._lowered(low, high, policy.lower_mhz * over, seen)
        elif over < -policy.dead_ratio:
            low, high = self._raised(
                low, high, policy.raise_mhz * (-over - policy.dead_ratio) + policy.raise_least_mhz
            )
        return Orders(low_mhz=low, high_mhz=high, brake=self._brake.pulled(seen))

    def _lowered(self, low: int, high: int, by_mhz: float, seen: Seen) -> tuple[int, int]:
        """Lower one class, the first of the order that can be; a rest is not carried to the next."""
        step_down = self._server.step_down
        if high > self._high_first:
            return low, max(step_down(high - by_mhz), self._high_first)
        if low > seen.low_floor_mhz:
            return max(step_down(low - by_mhz), seen.low_floor_mhz), high
        return low, min(max(step_down(high - by_mhz), seen.high_floor_mhz), high)

    def _raised(self, low: int, high: int, by_mhz: float) -> tuple[int, int]:
        """Raise one class in the reverse order. Less than a step is not saved up: it raises nothing."""
        step_down = self._server.step_down
        top = self._server.max_mhz
        if high < self._high_first:
            return low, min(step_down(high + by_mhz), self._high_first)
        if low < top:
            return min(step_down(low + by_mhz), top), high
        return low, min(step_down(high + by_mhz), top)
