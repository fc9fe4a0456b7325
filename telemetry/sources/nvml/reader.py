"""Reads the GPUs of a node through NVML, each field with its own return code.

It exists because a loop at one second needs the driver's own numbers: exporters are asked twice a minute
(power.md §1.9). It sets nothing: only `controller.agent` does.

Traps that are dealt with here (power.md §7):

- GPUs are found one by one and known by UUID: after one is lost, asking for its index raises, and indices move.
- nvmlDeviceGetFieldValues succeeds as a whole while single fields fail: each has a return code of its own.
- The energy counter begins anew when the driver is loaded.
- A driver that was exchanged (18) or unloaded (9) cannot be reached from this process again: `DriverGoneError`.
"""

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import pynvml

from solver.domain.node_power import Failure, GpuRange
from telemetry.sources.nvml.energy import EnergyCounter
from telemetry.sources.nvml.failures import driver_gone, failure_of, told
from telemetry.sources.nvml.sample import GpuIdentity, GpuSample, XidEvent

nvml: Any = pynvml

_ENERGY = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
_AVERAGE = pynvml.NVML_FI_DEV_POWER_AVERAGE
_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT
_ENFORCED = pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT
_REQUESTED = pynvml.NVML_FI_DEV_POWER_REQUESTED_LIMIT
_FIELDS = [_INSTANT, _AVERAGE, _ENERGY, _REQUESTED, _ENFORCED]
_NAMES = ("instant_w", "average_w", "energy_j", "limit_w", "enforced_w")
_SELDOM = 10
"""What changes slowly, or is looked at by people only, is read on every so many sweeps, each time of other GPUs.

Power, limits, the SM clock and the reasons for it are what rules look at: those are read on every sweep.
"""
_FIND_AGAIN = 30
"""Sweeps after which lost GPUs, and new ones, are looked for again."""
_MOST_EVENTS = 64
_VALUE_OF = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


class _Device:
    """One GPU and what is remembered of it between looks."""

    __slots__ = ("energy", "handle", "heard", "identity", "missing", "seldom", "silent")

    def __init__(self, handle: Any, identity: GpuIdentity) -> None:
        self.handle, self.identity = handle, identity
        self.energy = EnergyCounter()
        self.seldom: dict[str, Any] = {}
        """What changes slowly, as read last."""
        self.missing: dict[str, str] = {}
        """What of it could not be read, and why: what this GPU may have is tried again on the next sweep."""
        self.silent: dict[str, str] = {}
        """Fields that this GPU does not have, and why: they are not asked for again."""
        self.heard = False
        """Its events are asked for."""


class NvmlReader:
    """The GPUs of this node.

    Raises
    ------
    DriverGoneError
        There is no library or no driver, or it was exchanged underneath.
    """

    def __init__(self) -> None:
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise driver_gone(error.value, "it does not start") from None
        self._devices: dict[str, _Device] = {}
        self._sweeps = 0
        self._events: Any = None
        self.unnamed = 0
        """GPUs that answer so little that not even their UUID is known."""
        self.driver_version = self._asked(nvml.nvmlSystemGetDriverVersion) or ""
        self._find()

    def close(self) -> None:
        """Let go of the library."""
        try:
            if self._events is not None:
                nvml.nvmlEventSetFree(self._events)
            nvml.nvmlShutdown()
        except nvml.NVMLError:
            return  # it is gone already

    # --- who is there --------------------------------------------------------------------------------------------

    def _asked(self, call: Any, *arguments: Any) -> Any:
        """Call; None where that fails, unless the driver itself is gone."""
        try:
            return call(*arguments)
        except nvml.NVMLError as error:
            if failure_of(error.value) is Failure.DRIVER_GONE:
                raise driver_gone(error.value, "it stopped") from None
            return None

    def _find(self) -> None:
        """Find GPUs, one by one; those that were known and are not found stay known, as lost."""
        try:
            number = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise driver_gone(error.value, "GPUs cannot be counted") from None
        unnamed = 0
        for index in range(number):
            handle = self._asked(nvml.nvmlDeviceGetHandleByIndex, index)
            uuid = None if handle is None else self._asked(nvml.nvmlDeviceGetUUID, handle)
            if uuid is None:
                unnamed += 1
            elif (known := self._devices.get(uuid)) is None:
                self._devices[uuid] = _Device(handle, self._identity(handle, uuid))
            else:
                same = _address(known.handle) == _address(handle)
                known.heard = known.heard and same
                known.handle = handle
                if not same or self._mig(handle) or known.identity.mig:
                    known.identity = self._identity(handle, uuid)
        self.unnamed = unnamed
        self._listen()

    def _identity(self, handle: Any, uuid: str) -> GpuIdentity:
        clocks: tuple[int, ...] = ()
        memory = self._asked(nvml.nvmlDeviceGetSupportedMemoryClocks, handle)
        if memory:
            clocks = tuple(
                sorted(self._asked(nvml.nvmlDeviceGetSupportedGraphicsClocks, handle, max(memory)) or ())
            )
        bounds = self._asked(nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
        default = self._asked(nvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)
        mig = self._mig(handle)
        return GpuIdentity(
            uuid=uuid,
            name=self._asked(nvml.nvmlDeviceGetName, handle) or "",
            span=GpuRange(
                clocks_mhz=clocks,
                least_w=None if bounds is None else bounds[0] / 1000.0,
                most_w=None if bounds is None else bounds[1] / 1000.0,
                default_w=None if default is None else default / 1000.0,
            ),
            mig=mig,
            instances=self._instances(handle) if mig else (),
        )

    def _mig(self, handle: Any) -> bool:
        mode = self._asked(nvml.nvmlDeviceGetMigMode, handle)
        return bool(mode and mode[0])

    def _instances(self, handle: Any) -> tuple[str, ...]:
        found = []
        for index in range(self._asked(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._asked(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            uuid = None if instance is None else self._asked(nvml.nvmlDeviceGetUUID, instance)
            if uuid is not None:
                found.append(uuid)
        return tuple(found)

    @property
    def identities(self) -> dict[str, GpuIdentity]:
        """All GPUs that were ever found, by UUID."""
        return {uuid: device.identity for uuid, device in self._devices.items()}

    def handle(self, uuid: str) -> Any:
        """Return NVML's handle of a GPU."""
        return self._devices[uuid].handle

    # --- what they do --------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> tuple[GpuSample, ...]:
        """Look at all GPUs; ``now_s`` of any clock that does not jump."""
        self._sweeps += 1
        if self._sweeps % _FIND_AGAIN == 0:
            self._find()
        return tuple(
            [
                self._look(device, now_s, seldom=(self._sweeps + place) % _SELDOM == 0)
                for place, device in enumerate(self._devices.values())
            ]
        )

    def look(self, uuids: Iterable[str], now_s: float) -> tuple[GpuSample, ...]:
        """Look at some GPUs, to read back what was set."""
        return tuple([self._look(self._devices[uuid], now_s, seldom=False) for uuid in uuids])

    def _look(self, device: _Device, now_s: float, *, seldom: bool) -> GpuSample:
        uuid = device.identity.uuid
        values: dict[str, Any] = {}
        missing = dict(device.silent)
        try:
            self._fields(device, values, missing)
            energy, counter_j = device.energy, values.pop("energy_j", None)
            mean_w = None if counter_j is None else energy.take(counter_j, now_s)
            silent = device.silent
            for single in _SINGLE:
                if single[0] not in silent:
                    self._single(device, single, values, missing)
            if seldom or not device.seldom or (device.missing and device.missing.keys() - silent.keys()):
                self._seldom(device)
        except _LostError as lost:
            return GpuSample(uuid=uuid, t_s=now_s, failure=lost.failure, energy_resets=device.energy.resets)
        if device.missing:
            missing.update(device.missing)
        return GpuSample(
            uuid=uuid,
            t_s=now_s,
            mean_w=mean_w,
            energy_j=None if counter_j is None else energy.total_j,
            energy_resets=energy.resets,
            counter_j=counter_j,
            missing=tuple([f"{name}: {why}" for name, why in missing.items()]) if missing else (),
            **values,
            **device.seldom,
        )

    def _fields(self, device: _Device, values: dict[str, Any], missing: dict[str, str]) -> None:
        """Read what has a field number, in one call."""
        try:
            fields = nvml.nvmlDeviceGetFieldValues(device.handle, _FIELDS)
        except nvml.NVMLError as error:
            self._failed(error.value)
            fields = ()
        for name, field in zip(_NAMES, fields, strict=False):
            code = field.nvmlReturn
            if code == 0:
                number = getattr(field.value, _VALUE_OF.get(field.valueType, "uiVal"))
                if number >= 0 and math.isfinite(number):
                    values[name] = number / 1000.0  # mW, mJ
                    continue
                missing[name] = f"{number}"
            else:
                self._failed(code)
                missing[name] = told(code)
        for name, call in _INSTEAD:
            if name not in values:
                self._instead(device, name, call, values, missing)

    def _instead(
        self, device: _Device, name: str, call: str, values: dict[str, Any], missing: dict[str, str]
    ) -> None:
        """Read a field by a call of its own where it has no number."""
        try:
            values[name] = getattr(nvml, call)(device.handle) / 1000.0
        except nvml.NVMLError as error:
            self._failed(error.value)
            missing[name] = told(error.value)
        else:
            missing.pop(name, None)

    def _single(
        self, device: _Device, single: "_Single", values: dict[str, Any], missing: dict[str, str]
    ) -> None:
        """Read what has a call of its own."""
        name, call, argument = single
        try:
            values[name] = call(device.handle) if argument is None else call(device.handle, argument)
        except nvml.NVMLError as error:
            self._failed(error.value)
            missing[name] = told(error.value)
            if failure_of(error.value) is Failure.NOT_SUPPORTED:
                device.silent[name] = missing[name]

    def _seldom(self, device: _Device) -> None:
        """Read what changes slowly."""
        handle = device.handle
        values: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for single in _SLOW:
            if single[0] not in device.silent and (single is not _RATES or not device.identity.mig):
                self._single(device, single, values, missing)
        rates = values.pop("rates", None)
        if rates is not None:
            values["sm_ratio"], values["memory_ratio"] = rates.gpu / 100.0, rates.memory / 100.0
        device.seldom, device.missing = values, missing
        for name, kind in (("ecc_corrected", 0), ("ecc_uncorrected", 1)):
            device.seldom[name] = self._asked(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, 1)
        fields = self._asked(nvml.nvmlDeviceGetFieldValues, handle, [nvml.NVML_FI_DEV_MEMORY_TEMP])
        good = fields is not None and fields[0].nvmlReturn == 0
        device.seldom["memory_celsius"] = float(fields[0].value.uiVal) if good else None

    @staticmethod
    def _failed(code: int) -> None:
        """Stop looking where a GPU, or all of NVML, is gone."""
        failure = failure_of(code)
        if failure is Failure.DRIVER_GONE:
            raise driver_gone(code, "it stopped") from None
        if failure is Failure.LOST:
            raise _LostError(failure) from None

    # --- what happens --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Ask for XID events of all GPUs; a driver without them does without."""
        if self._events is None:
            self._events = self._asked(nvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for device in self._devices.values():
            if not device.heard:
                device.heard = True
                self._asked(
                    nvml.nvmlDeviceRegisterEvents,
                    device.handle,
                    nvml.nvmlEventTypeXidCriticalError,
                    self._events,
                )

    def events(self) -> tuple[XidEvent, ...]:
        """Return the XID events since the last call, without waiting."""
        found: list[XidEvent] = []
        while self._events is not None and len(found) < _MOST_EVENTS:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:
                if failure_of(error.value) is Failure.DRIVER_GONE:
                    raise driver_gone(error.value, "it stopped") from None
                break  # nothing has happened, or nothing can be told
            if event.eventType & nvml.nvmlEventTypeXidCriticalError:
                found.append(XidEvent(uuid=self._uuid_of(event.device), xid=int(event.eventData)))
        return tuple(found)

    def _uuid_of(self, handle: Any) -> str:
        """Name the GPU of an event; one that is lost is known by its handle."""
        uuid = self._asked(nvml.nvmlDeviceGetUUID, handle)
        if uuid is not None:
            return str(uuid)
        address = _address(handle)
        for name, device in self._devices.items():
            if _address(device.handle) == address:
                return name
        return ""


class _LostError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _celsius(handle: Any) -> float:
    """Read the temperature by the call that stays, or by the one that drivers before 565 have."""
    try:
        return float(nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU))
    except nvml.NVMLError as error:
        if failure_of(error.value) is not Failure.NOT_SUPPORTED:
            raise
        return float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))


_Single = tuple[str, Any, int | None]
"""Field, call, and the argument after the handle."""
_RATES: _Single = ("rates", nvml.nvmlDeviceGetUtilizationRates, None)
_SINGLE: tuple[_Single, ...] = (
    ("sm_mhz", nvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
    ("reasons", nvml.nvmlDeviceGetCurrentClocksEventReasons, None),
)
_SLOW: tuple[_Single, ...] = (
    ("memory_mhz", nvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
    ("celsius", _celsius, None),
    _RATES,
)
_INSTEAD = (
    ("average_w", "nvmlDeviceGetPowerUsage"),
    ("energy_j", "nvmlDeviceGetTotalEnergyConsumption"),
    ("limit_w", "nvmlDeviceGetPowerManagementLimit"),
    ("enforced_w", "nvmlDeviceGetEnforcedPowerLimit"),
)
