"""Reads the constants of a plant: the JSON layout of the reference plant, all fields required.

It exists so that rows of other servers can be simulated without touching code. Units are in the file's names.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.row.model import RowPlant
from solver.domain.errors import InputError, Place
from solver.domain.power import ServerPowerModel

_LARGEST_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantFile:
    """What a file says."""

    server: ServerPowerModel
    timing: RowPlant
    base_servers: int
    """Servers of a row that is not oversubscribed."""
    budget_w: float


def read_plant(path: str | Path) -> PlantFile:
    """Read a plant.

    Raises
    ------
    InputError
        With file and field.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as raw:
            data = raw.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=source) from None
    if len(data) > _LARGEST_BYTES:
        raise InputError("more than 1 MiB", where=source, right="a plant as docs/power.md shows")
    try:
        document = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {str(error)[:80]}", where=source, right="a plant file") from None
    fields = _Fields(document, source)
    try:
        server = ServerPowerModel(
            name=Path(source).stem,
            gpus=fields.count("gpu", "gpus_per_server"),
            gpu_idle_w=fields.number("gpu", "idle_w"),
            gpu_tdp_w=fields.number("gpu", "tdp_w"),
            prompt_tdp_ratio=fields.number("gpu", "prompt_power_frac"),
            token_tdp_ratio_at_0=fields.number("gpu", "token_power_frac_batch0"),
            token_tdp_ratio_at_full=fields.number("gpu", "token_power_frac_batch16"),
            full_batch=16,
            exponent=fields.number("gpu", "power_exponent"),
            fixed_w=fields.number("server", "fixed_w"),
            draw_per_gpu_watt_ratio=fields.number("server", "per_gpu_watt_factor"),
            provisioned_w=fields.number("server", "provisioned_w"),
            min_mhz=fields.count("gpu", "min_mhz"),
            max_mhz=fields.count("gpu", "max_mhz"),
            step_mhz=15,
            brake_mhz=288,
        )
        timing = RowPlant(
            prompt_tokens=fields.numbers("timing", "prompt_tokens"),
            prompt_s=fields.numbers("timing", "prompt_s"),
            batch=fields.numbers("timing", "batch"),
            token_s=fields.numbers("timing", "token_s"),
            max_batch=fields.count("server", "max_batch"),
            prompt_clock_share=fields.number("timing", "prompt_freq_sensitivity"),
            token_clock_share=fields.number("timing", "token_freq_sensitivity"),
            brake_prompt_share=fields.number("timing", "brake_prompt_sensitivity"),
            brake_token_share=fields.number("timing", "brake_token_sensitivity"),
        )
    except InputError as error:
        if isinstance(error.where, Place):
            raise
        raise InputError(error.what, where=Place(source, field=error.where), right=error.right) from None
    return PlantFile(
        server=server,
        timing=timing,
        base_servers=fields.count("row", "base_servers"),
        budget_w=fields.number("row", "budget_w"),
    )


class _Fields:
    def __init__(self, document: Any, source: str) -> None:
        self._document, self._source = document, source

    def _value(self, part: str, name: str) -> Any:
        table = self._document.get(part) if isinstance(self._document, dict) else None
        if not isinstance(table, dict) or name not in table:
            raise InputError(
                "missing", where=Place(self._source, field=f"{part}.{name}"), right="all fields are needed"
            )
        return table[name]

    def number(self, part: str, name: str) -> float:
        return self._checked(self._value(part, name), f"{part}.{name}")

    def count(self, part: str, name: str) -> int:
        value = self.number(part, name)
        if value != int(value) or not 1 <= value <= 100_000:
            raise InputError(
                f"{value:g}",
                where=Place(self._source, field=f"{part}.{name}"),
                right="a whole number from 1 to 100000",
            )
        return int(value)

    def numbers(self, part: str, name: str) -> tuple[float, ...]:
        values = self._value(part, name)
        if not isinstance(values, list) or len(values) > 10_000:
            raise InputError(
                "not a list", where=Place(self._source, field=f"{part}.{name}"), right="numbers that rise"
            )
        return tuple(self._checked(value, f"{part}.{name}[{i}]") for i, value in enumerate(values))

    def _checked(self, value: Any, name: str) -> float:
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not math.isfinite(value) or not 0.0 <= value <= 1e9:
            raise InputError(
                f"{value!r:.60}", where=Place(self._source, field=name), right="a finite number of 0 or more"
            )
        return float(value)
