"""Keeps on the host what an agent must not forget: what was found before its first write, and where it stands.

It exists because an agent may be killed at any instant, and the next one must neither take a cap for an original nor
raise what the last one lowered. Files are written whole: a new one, fsync, rename, fsync of the folder; each carries a
sum of its content, so that a torn one is known for one. It sets nothing and decides nothing:
`solver.power.agent_core.original_of` does.

Two files: ``originals.json`` grows and is never written over with other values; ``standing.json`` is the last state.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.agent.node_power import orders_of, spec_of
from solver.domain.errors import InputError
from solver.power.agent_core import GpuStanding, Original, Standing, original_of
from telemetry.sources.nvml.sample import GpuIdentity, GpuSample

ORIGINALS = "originals.json"
STANDING = "standing.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FELL_J = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load of the driver within one boot: limits and locks do not outlive it."""

    boot_id: str
    number: int
    driver_version: str


@dataclass(slots=True)
class _Entry:
    load: Load
    gpus: dict[str, Original] = field(default_factory=dict)


def boot_id(path: Path = BOOT_ID) -> str:
    """Return what changes with every boot."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), right="the kernel's boot id") from None


def _sum_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: Any) -> None:
    """Write a file so that after a crash there is the old one or the new one, whole."""
    unfinished = path.with_name(f".{path.name}.new")
    text = json.dumps({"sum": _sum_of(content), "content": content}, indent=1)
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Any:
    """Read a file; None if there is none, `ValueError` if it is torn."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not isinstance(raw, dict) or raw.get("sum") != _sum_of(raw.get("content")):
        raise ValueError("its sum is wrong")
    return raw["content"]


class Journal:
    """The two files in a folder of the host.

    Parameters
    ----------
    folder
        On the host; nothing is made in it before there is something to keep.
    boot
        The boot id.
    """

    def __init__(self, folder: Path, boot: str) -> None:
        self.folder, self.boot = folder, boot
        self.trouble = ""
        """What was torn, and where it was put."""
        self._entries: list[_Entry] = []
        self._standing: dict[str, Any] = {}
        self._assume = False
        try:
            self._entries = [_entry_of(raw) for raw in self._kept(ORIGINALS) or []]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._put_aside(ORIGINALS, error)
            self._assume = True  # what is found now may be ours
        try:
            self._standing = self._kept(STANDING) or {}
            self._standing_orders()
            self.gpus_standing()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._put_aside(STANDING, error)
            self._standing = {}
        self.load: Load | None = None

    def _kept(self, name: str) -> Any:
        try:
            return _read(self.folder / name)
        except OSError as error:
            raise InputError(
                f"cannot be read: {error.strerror}",
                where=str(self.folder / name),
                right="a folder of the agent's",
            ) from None

    def _put_aside(self, name: str, error: Exception) -> None:
        """Keep a torn file for people; it is not used."""
        path = self.folder / name
        number = 0
        while (aside := path.with_name(f"{name}.broken-{number}")).exists():
            number += 1
        self.trouble = f"{path} is not whole ({error}); kept as {aside.name}"
        try:
            path.rename(aside)
        except OSError:
            return

    # --- which load ----------------------------------------------------------------------------------------------

    def begin(self, driver_version: str, counters_j: Mapping[str, float], *, reloaded: bool = False) -> Load:
        """Find out whether the driver was loaded again since the last words of the agent before.

        An energy counter that fell, another version or another boot show it; nothing else can be relied on. An agent
        that saw it happen says so with ``reloaded``.
        """
        known = [entry.load for entry in self._entries if entry.load.boot_id == self.boot]
        standing = self._standing if self._standing.get("boot_id") == self.boot else {}
        number = max([load.number for load in known] + [int(standing.get("load", 0))])
        version = known[-1].driver_version if known else driver_version
        before = standing.get("counters_j", {})
        fell = any(uuid in before and now_j < before[uuid] - _FELL_J for uuid, now_j in counters_j.items())
        if fell or reloaded or version != driver_version:
            number += 1
        self.load = Load(boot_id=self.boot, number=number, driver_version=driver_version)
        return self.load

    def _of_load(self) -> _Entry | None:
        return next((entry for entry in reversed(self._entries) if entry.load == self.load), None)

    # --- originals -----------------------------------------------------------------------------------------------

    def originals(self) -> dict[str, Original]:
        """Return by UUID what was found before the first write of this load."""
        entry = self._of_load()
        return {} if entry is None else dict(entry.gpus)

    def keep_originals(
        self, samples: Mapping[str, GpuSample], identities: Mapping[str, GpuIdentity]
    ) -> dict[str, Original]:
        """Write down what is found on GPUs that are not known yet; what is known stays as it is.

        Returns
        -------
        dict
            All originals of this load. They are on disk when this returns.

        Raises
        ------
        OSError
            They are not: nothing may be set then.
        """
        if self.load is None:
            raise RuntimeError("begin() comes first")
        entry = self._of_load()
        known = {} if entry is None else entry.gpus
        added: dict[str, Original] = {}
        for uuid, sample in samples.items():
            if uuid in known or sample.limit_w is None:
                continue
            earlier = next((old.gpus[uuid] for old in reversed(self._entries) if uuid in old.gpus), None)
            wrote_w = self._wrote_w(uuid)
            added[uuid] = original_of(
                known=None,
                found=Original(limit_w=sample.limit_w, enforced_w=sample.enforced_w, sm_mhz=sample.sm_mhz),
                earlier=earlier,
                wrote_w=(*wrote_w, sample.limit_w) if self._assume and earlier is None else wrote_w,
                default_w=identities[uuid].span.default_w,
            )
        if added:
            new = _Entry(self.load, {**known, **added})
            entries = [old for old in self._entries if old is not entry] + [new]
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / ORIGINALS, [_entry_fields(each) for each in entries])
            self._entries = entries
        return self.originals()

    def _wrote_w(self, uuid: str) -> tuple[float, ...]:
        if self._standing.get("boot_id") != self.boot:
            return ()  # nothing of ours outlives a boot
        return tuple(self._standing.get("gpus", {}).get(uuid, {}).get("wrote_w", ()))

    # --- standing ------------------------------------------------------------------------------------------------

    def _standing_orders(self) -> Any:
        raw = self._standing.get("orders")
        return None if raw is None else orders_of(raw, str(self.folder / STANDING))

    def gpus_standing(self) -> dict[str, GpuStanding]:
        """Return by UUID where the agent before stood; nothing after another boot."""
        if self._standing.get("boot_id") != self.boot:
            return {}
        return {
            uuid: GpuStanding(
                max_mhz=raw.get("max_mhz"),
                limit_w=raw.get("limit_w"),
                ceiling_w=raw.get("ceiling_w"),
                wrote_w=tuple(raw.get("wrote_w", ())),
            )
            for uuid, raw in self._standing.get("gpus", {}).items()
        }

    def standing(self) -> Standing | None:
        """Return where the agent before stood; None if there was none. Its orders are known after a boot, too."""
        if not self._standing:
            return None
        return Standing(orders=self._standing_orders(), gpus=self.gpus_standing())

    def keep_standing(self, standing: Standing, counters_j: Mapping[str, float]) -> None:
        """Write down where the agent stands; on disk when this returns.

        Raises
        ------
        OSError
            It is not: nothing may be set then.
        """
        orders = standing.orders
        content = {
            "boot_id": self.boot,
            "load": 0 if self.load is None else self.load.number,
            "counters_j": dict(counters_j),
            "orders": None
            if orders is None
            else {"metadata": {"uid": orders.source}, "spec": spec_of(orders)},
            "gpus": {
                uuid: {
                    "max_mhz": gpu.max_mhz,
                    "limit_w": gpu.limit_w,
                    "ceiling_w": gpu.ceiling_w,
                    "wrote_w": list(gpu.wrote_w),
                }
                for uuid, gpu in standing.gpus.items()
            },
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / STANDING, content)
        self._standing = content


def _entry_of(raw: Any) -> _Entry:
    return _Entry(
        Load(boot_id=str(raw["boot_id"]), number=int(raw["load"]), driver_version=str(raw["driver_version"])),
        {
            uuid: Original(
                limit_w=None if gpu["limit_w"] is None else float(gpu["limit_w"]),
                enforced_w=gpu["enforced_w"],
                sm_mhz=gpu["sm_mhz"],
                assumed=bool(gpu["assumed"]),
            )
            for uuid, gpu in raw["gpus"].items()
        },
    )


def _entry_fields(entry: _Entry) -> dict[str, Any]:
    return {
        "boot_id": entry.load.boot_id,
        "load": entry.load.number,
        "driver_version": entry.load.driver_version,
        "gpus": {
            uuid: {
                "limit_w": original.limit_w,
                "enforced_w": original.enforced_w,
                "sm_mhz": original.sm_mhz,
                "assumed": original.assumed,
            }
            for uuid, original in entry.gpus.items()
        },
    }
