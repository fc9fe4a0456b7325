"""POLCA (arXiv 2308.12908): two thresholds with hysteresis, low priority first, a brake at the budget.

It exists as the published way to compare with and to run where clocks go through a slow BMC. The published thresholds
(80 % and 89 %, uncapped 5 % below) are recalled from the paper, not confirmed; `solver.power.policies.training` takes
them from a row's first week instead, as the paper does.
"""

from dataclasses import dataclass
from typing import ClassVar

from solver.domain.errors import InputError
from solver.domain.power import PowerRow
from solver.power.policies.braking import BrakeAtPower, BrakeLever, BrakeRule
from solver.power.policies.protocol import Orders, PolicyRun, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Polca:
    """Settings of POLCA's machine; ratios are of the budget."""

    caps: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    t1_ratio: float = 0.80
    """Low priority to ``base_mhz``. Recalled from the paper."""
    t2_ratio: float = 0.89
    """Low priority to its floor and, if that is not enough, high priority to its own. Recalled from the paper."""
    uncap_margin_ratio: float = 0.05
    """A state is left so far below its threshold. Recalled from the paper."""
    base_mhz: int = 1275
    brake: BrakeRule | None = None
    """None brakes at the budget and releases at T1 less the margin, as published."""
    without_brake: bool = False
    label: str = "polca"

    def __post_init__(self) -> None:
        """Refuse thresholds out of order."""
        if not 0.0 <= self.uncap_margin_ratio < self.t1_ratio <= self.t2_ratio:
            raise InputError(
                f"T1 {self.t1_ratio:g}, T2 {self.t2_ratio:g}, margin {self.uncap_margin_ratio:g}",
                where="thresholds",
                right="0 <= margin < T1 <= T2",
            )

    @property
    def name(self) -> str:
        """As in the answers."""
        return self.label

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        return not self.without_brake

    def begin(self, row: PowerRow) -> PolicyRun:
        """Start without memory, uncapped."""
        return _Run(self, row)


class _Run:
    """States: 0 free, 1 low priority at the base clock, 2 at its floor, 3 high priority at its floor too."""

    def __init__(self, policy: Polca, row: PowerRow) -> None:
        self._policy = policy
        published = BrakeAtPower(release_ratio=policy.t1_ratio - policy.uncap_margin_ratio)
        self._brake = BrakeLever(None if policy.without_brake else policy.brake or published)
        top = row.server.max_mhz
        self._clocks = (
            (top, top),
            (policy.base_mhz, top),
            (row.low_floor_mhz, top),
            (row.low_floor_mhz, row.high_floor_mhz),
        )
        self._state = 0
        self._step_s = float("-inf")  # the last step into state 2 or 3, or from 3 to 2

    def decide(self, seen: Seen) -> Orders:
        self._move(seen.draw_ratio, seen.t_s, seen.clock_latency_s)
        low_mhz, high_mhz = self._clocks[self._state]
        return Orders(low_mhz=low_mhz, high_mhz=high_mhz, brake=self._brake.pulled(seen))

    def _move(self, draw: float, t_s: float, latency_s: float) -> None:
        policy = self._policy
        t1, t2, margin = policy.t1_ratio, policy.t2_ratio, policy.uncap_margin_ratio
        if self._state == 0 and draw >= t1:
            self._state = 1
        if self._state == 1 and draw >= t2:
            self._state, self._step_s = 2, t_s
        if self._state == 2 and draw >= t2 and t_s - self._step_s >= latency_s + 2.0:
            self._state, self._step_s = 3, t_s
        elif self._state == 3 and draw < t2 - margin:
            self._state, self._step_s = 2, t_s
        elif self._state == 2 and draw < t2 - margin and t_s - self._step_s >= latency_s:
            self._state = 1
        elif self._state == 1 and draw < t1 - margin:
            self._state = 0
