"""What an agent knows after one round: the value that its page, its status and its log are written from.

It exists so that the loop hands over one frozen value and nobody reads the loop's insides from another thread.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from solver.power.agent_core import GpuVerdict
from telemetry.sources.nvml.sample import GpuIdentity, GpuSample

LEASE_VALID = "Valid"
LEASE_EXPIRED = "Expired"
LEASE_NEVER = "Never"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU."""

    identity: GpuIdentity
    sample: GpuSample
    verdict: GpuVerdict
    original_w: float | None = None
    """The limit before the first write; None until there was one."""
    xids: tuple[int, ...] = ()
    """The last of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """One round."""

    t_s: float
    """When the GPUs were looked at, on the monotonic clock."""
    sequence: int
    """Number of the round."""
    gpus: tuple[GpuState, ...]
    unnamed: int = 0
    """GPUs of which not even the UUID is known."""
    observed_generation: int | None = None
    acknowledged_generation: int | None = None
    """Of the last orders that were carried out and read back."""
    lease_state: str = LEASE_NEVER
    lease_until_s: float = -math.inf
    writes: bool = False
    """Whether orders are carried out, not only shown."""
    refused: str | None = None
    """Why the last orders are not followed."""
    reflex: str = ""
    order_trouble: str = ""
    """Why no orders can be read."""
    journal_trouble: str = ""
    cpu_s: float = 0.0
    """Processor time of the sweep."""

    def conditions(self) -> Iterator[tuple[str, bool, str]]:
        """Give type, status and reason of each condition."""
        unread = [gpu for gpu in self.gpus if gpu.sample.power_w is None]
        yield "TelemetryFresh", not unread, "GpuUnread" if unread else "Fresh"
        valid = self.lease_state == LEASE_VALID
        yield "LeaseValid", valid, "Renewed" if valid else f"Lease{self.lease_state}"
        errors = sorted(
            {gpu.verdict.error for gpu in self.gpus if gpu.verdict.error not in {None, "GpuLost"}} - {None}
        )
        well = not errors and not self.journal_trouble
        yield "ActuatorsHealthy", well, "AsOrdered" if well else str(errors[0] if errors else "JournalFailed")
        lost = any(gpu.verdict.error == "GpuLost" for gpu in self.gpus) or self.unnamed > 0
        yield "GpuLost", lost, "GpuLost" if lost else "AllGpusPresent"
        refused = self.refused or self.order_trouble
        yield (
            "OrdersAccepted",
            not refused,
            (refused.partition(":")[0] if self.refused else "Unreadable") if refused else "Accepted",
        )
        if self.reflex:
            yield "Reflex", True, self.reflex
