"""When policies pull the brake: on power, as POLCA does, or on the state of the breaker.

It exists so that every policy can be tried with either rule. The brake sets all servers to a very low clock within
seconds, whatever agents do; releasing it early invites the next one (power.md §1: brake storms).
"""

import math
from dataclasses import dataclass

from solver.power.policies.protocol import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeAtPower:
    """Brake at a draw, release below another one after a while."""

    at_ratio: float = 1.0
    release_ratio: float = 0.75
    hold_s: float = 60.0

    def decide(self, seen: Seen, ordered_s: float) -> bool:
        """Whether to brake now; ``ordered_s`` is when the brake in force was ordered."""
        if not seen.braked:
            return seen.draw_ratio >= self.at_ratio
        return not (seen.draw_ratio < self.release_ratio and seen.t_s - ordered_s > self.hold_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeAtTheta:
    """Brake at a state of the breaker, release when it has cooled and the draw leaves room."""

    at_theta: float = 1.0
    release_theta: float = 0.95
    release_ratio: float = 0.95
    hold_s: float = 10.0

    def decide(self, seen: Seen, ordered_s: float) -> bool:
        """Whether to brake now; ``ordered_s`` is when the brake in force was ordered."""
        if not seen.braked:
            return seen.theta > self.at_theta
        cool = seen.theta < self.release_theta and seen.draw_ratio < self.release_ratio
        return not (cool and seen.t_s - ordered_s > self.hold_s)


BrakeRule = BrakeAtPower | BrakeAtTheta


@dataclass(slots=True)
class BrakeLever:
    """A rule at work on one row: it remembers when the brake was ordered."""

    rule: BrakeRule | None
    """None: nobody pulls it."""
    ordered_s: float = -math.inf

    def pulled(self, seen: Seen) -> bool | None:
        """Whether the brake should be on; None where there is no rule."""
        if self.rule is None:
            return None
        pulled = self.rule.decide(seen, self.ordered_s)
        if pulled and not seen.braked:
            self.ordered_s = seen.t_s
        return pulled
