"""What NVML says of a GPU: who it is, and one look at it.

It exists so that the agent, its page and the store speak of the same values without knowing NVML. It reads nothing.
What could not be read is None and named in ``missing``; it is never zero.
"""

from dataclasses import dataclass

from solver.domain.node_power import Failure, GpuRange, GpuSeen

REASONS = {
    0x1: "Idle",
    0x2: "ApplicationClocks",
    0x4: "SwPowerCap",
    0x8: "HwSlowdown",
    0x10: "SyncBoost",
    0x20: "SwThermal",
    0x40: "HwThermal",
    0x80: "HwPowerBrake",
    0x100: "DisplayClocks",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons."""
POWER_BRAKE = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """What does not change while a driver is loaded. GPUs are known by UUID, never by index: indices move."""

    uuid: str
    name: str
    span: GpuRange
    mig: bool
    """Partitioned. Power and clock still belong to the whole GPU; utilisation is not told."""
    instances: tuple[str, ...] = ()
    """UUIDs of its MIG instances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look at one GPU."""

    uuid: str
    t_s: float
    """On the clock that the caller passed."""
    instant_w: float | None = None
    """Spikes show here and nowhere else (power.md §7, sampling truth)."""
    average_w: float | None = None
    """Over a second, on most GPUs."""
    mean_w: float | None = None
    """Over the last half second or more, by the energy counter: nothing is missed between two looks."""
    energy_j: float | None = None
    """Since the reader started; never falls, whatever the driver's counter does."""
    energy_resets: int = 0
    """How often the driver's counter began anew: the driver was loaded again."""
    counter_j: float | None = None
    """The driver's counter itself, since it was loaded."""
    limit_w: float | None = None
    """As requested of the driver."""
    enforced_w: float | None = None
    """The lowest of all limits, a BMC's among them."""
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    reasons: int | None = None
    """Why the clock is not higher: bits of `REASONS`."""
    celsius: float | None = None
    memory_celsius: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    sm_ratio: float | None = None
    """Share of the time in which something ran."""
    memory_ratio: float | None = None
    failure: Failure = Failure.NONE
    missing: tuple[str, ...] = ()
    """Names of fields that could not be read, with the reason: ``energy_j: Not Supported``."""

    @property
    def power_w(self) -> float | None:
        """The most current power that is known."""
        return self.instant_w if self.instant_w is not None else self.average_w

    @property
    def reason_names(self) -> tuple[str, ...]:
        """The bits by name."""
        bits = self.reasons or 0
        return tuple(name for bit, name in REASONS.items() if bits & bit)

    @property
    def seen(self) -> GpuSeen:
        """What the agent's rules look at."""
        return GpuSeen(
            limit_w=self.limit_w,
            enforced_w=self.enforced_w,
            sm_mhz=self.sm_mhz,
            power_w=self.power_w,
            power_brake=bool((self.reasons or 0) & POWER_BRAKE),
            failure=self.failure,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class XidEvent:
    """A fault that the driver reports; 79 is a GPU that fell off the bus."""

    uuid: str
    xid: int
