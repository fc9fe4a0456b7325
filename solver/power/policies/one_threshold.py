"""One threshold with hysteresis: POLCA's two baselines, low priority only and all servers.

It exists to compare with. Where all servers are capped and released together, the release itself drives the row over
its budget again (power.md §1).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from solver.domain.errors import InputError
from solver.domain.power import PowerRow
from solver.power.policies.braking import BrakeAtPower, BrakeLever, BrakeRule
from solver.power.policies.protocol import Orders, PolicyRun, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class OneThreshold:
    """Settings; ratios are of the budget. The threshold is POLCA's upper one, recalled from the paper."""

    caps: ClassVar[bool] = True
    guarded: ClassVar[bool] = False

    everybody: bool
    """All servers to ``base_mhz``; else low priority alone, to its floor."""
    threshold_ratio: float = 0.89
    uncap_margin_ratio: float = 0.05
    base_mhz: int = 1275
    brake: BrakeRule | None = field(default_factory=BrakeAtPower)

    def __post_init__(self) -> None:
        """Refuse a margin beyond the threshold."""
        if not 0.0 <= self.uncap_margin_ratio < self.threshold_ratio:
            raise InputError(
                f"threshold {self.threshold_ratio:g}, margin {self.uncap_margin_ratio:g}",
                where="thresholds",
                right="0 <= margin < threshold",
            )

    @property
    def name(self) -> str:
        """As in the answers."""
        return "one-threshold-all" if self.everybody else "one-threshold-low"

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        return self.brake is not None

    def begin(self, row: PowerRow) -> PolicyRun:
        """Start without memory, uncapped."""
        return _Run(self, row)


class _Run:
    def __init__(self, policy: OneThreshold, row: PowerRow) -> None:
        self._policy = policy
        top = row.server.max_mhz
        self._free = (top, top)
        self._capped = (policy.base_mhz, policy.base_mhz) if policy.everybody else (row.low_floor_mhz, top)
        self._on = False
        self._brake = BrakeLever(policy.brake)

    def decide(self, seen: Seen) -> Orders:
        policy = self._policy
        if seen.draw_ratio >= policy.threshold_ratio:
            self._on = True
        elif seen.draw_ratio < policy.threshold_ratio - policy.uncap_margin_ratio:
            self._on = False
        low, high = self._capped if self._on else self._free
        return Orders(low_mhz=low, high_mhz=high, brake=self._brake.pulled(seen))
