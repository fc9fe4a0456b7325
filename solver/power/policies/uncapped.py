"""Policy ``none``: no clocks are ordered, at most the brake. The baseline of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from solver.domain.power import PowerRow
from solver.power.policies.braking import BrakeLever, BrakeRule
from solver.power.policies.protocol import NOTHING, Orders, PolicyRun, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncapped:
    """Never order a clock; brake if a rule is given."""

    caps: ClassVar[bool] = False
    guarded: ClassVar[bool] = False

    brake: BrakeRule | None = None

    @property
    def name(self) -> str:
        """As in the answers."""
        return "none"

    @property
    def brakes(self) -> bool:
        """Whether it ever orders the brake."""
        return self.brake is not None

    def begin(self, row: PowerRow) -> PolicyRun:  # noqa: ARG002 - part of the protocol
        """Start without memory."""
        return _Run(self.brake)


class _Run:
    def __init__(self, brake: BrakeRule | None) -> None:
        self._brake = BrakeLever(brake)

    def decide(self, seen: Seen) -> Orders:
        brake = self._brake.pulled(seen)
        return NOTHING if brake is None else Orders(brake=brake)
