"""Makes requests of a row: as many hours as asked for, with the statistics of the reference row's recorded ones.

It exists so that a policy can be tried on weeks, and on seeds it was not chosen on. Arrivals of a server are Poisson
with a rate that all servers share but for their priority: a day's swing, times a slow common noise. It is that common
part that moves the row's power; independent servers would average it away.

Fitted to the recorded requests and the recorded week (docs/power.md): classes and their uniform sizes, rates per server
by priority, the spread of the row's rate from 10 s to 15 min, mean and peak power, and the mean by hour of the day.
"""

import math
from dataclasses import dataclass

import numpy as np

from simulator.row.requests import RowRequests
from solver.domain.errors import InputError
from solver.domain.power import Priority, reference_priorities

KINDS = ("chat", "search", "summarize")
_CELL_S = 10
_DAY_S = 86_400
# By class: prompt and output tokens, uniform between.
_SIZES = (((2048, 4096), (128, 2048)), ((512, 2048), (1024, 2048)), ((2048, 8192), (256, 512)))
_OTHER_KIND = {Priority.LOW: 2, Priority.HIGH: 1}
"""What a server of a priority does for half of its requests; the other half is chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoad:
    """How much a row is asked for."""

    low_rps: float = 0.142
    """Requests per second of a server of low priority, mean of a day."""
    high_rps: float = 0.1065
    day_swing_ratio: float = 0.42
    """Half the way from the quietest to the busiest hour, of the mean."""
    peak_s: float = 15.5 * 3600.0
    """Time of day of the busiest hour."""
    common_ratio: float = 0.11
    """Standard deviation of the noise that all servers share, of the rate."""
    common_s: float = 3000.0
    """How long that noise lasts."""

    def __post_init__(self) -> None:
        """Refuse rates that are none, and a swing below zero."""
        for name in ("low_rps", "high_rps", "common_s"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise InputError(f"{value:g}", where=name, right="it must be above 0")
        for name in ("day_swing_ratio", "common_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{value:g}", where=name, right="it must be 0 to 1")


REFERENCE_LOAD = RowLoad()


def generate_requests(
    *, servers: int, seconds: int, seed: int, start_s: float = 0.0, load: RowLoad = REFERENCE_LOAD
) -> RowRequests:
    """Return the requests of so many seconds from a time of day.

    A server's requests do not depend on how many servers there are: a larger row has the smaller one's requests too.

    Parameters
    ----------
    seconds
        Rounded up to a full 10 s.
    start_s
        Time of day at which the row starts.
    """
    if servers < 1 or seconds < 1:
        raise InputError(f"{servers} servers for {seconds} s", right="1 or more of each")
    cells = -(-seconds // _CELL_S)
    at_s = start_s + _CELL_S * (np.arange(cells) + 0.5)
    day = 1.0 + load.day_swing_ratio * np.cos((at_s - load.peak_s) * (2.0 * np.pi / _DAY_S))
    shape = day * _common(np.random.default_rng((seed, 0)), cells, load)
    columns: list[tuple[np.ndarray[tuple[int], np.dtype[np.generic]], ...]] = []
    for server, priority in enumerate(reference_priorities(servers)):
        random = np.random.default_rng((seed, 1 + server))
        rate = load.low_rps if priority is Priority.LOW else load.high_rps
        arrivals = random.poisson(rate * _CELL_S * shape)
        count = int(arrivals.sum())
        arrival_s = _CELL_S * (np.repeat(np.arange(cells), arrivals) + random.random(count))
        arrival_s.sort()
        kind = np.where(random.random(count) < 0.5, 0, _OTHER_KIND[priority]).astype(np.int8)
        sizes = []
        for which in range(2):
            least = np.array([_SIZES[k][which][0] for k in range(3)])[kind]
            most = np.array([_SIZES[k][which][1] for k in range(3)])[kind]
            sizes.append((least + (most - least + 1) * random.random(count)).astype(np.int32))
        columns.append((arrival_s, np.full(count, server, dtype=np.int32), kind, *sizes))
    arrival_s, server_of, kind, prompt, output = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    inside = arrival_s < seconds
    return RowRequests(
        name=f"generated, seed {seed}",
        arrival_s=arrival_s[inside],
        server=server_of[inside],
        kind=kind[inside],
        kinds=KINDS,
        prompt_tokens=prompt[inside],
        output_tokens=output[inside],
        duration_s=seconds,
    )


def _common(
    random: np.random.Generator, cells: int, load: RowLoad
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the noise that all servers share, mean 1: an Ornstein-Uhlenbeck process, never below a tenth."""
    keep = math.exp(-_CELL_S / load.common_s)
    push = load.common_ratio * math.sqrt(1.0 - keep * keep)
    drawn = random.standard_normal(cells)
    level = load.common_ratio * float(drawn[0])
    noise = np.empty(cells)
    for cell, step in enumerate(drawn.tolist()):
        noise[cell] = level
        level = keep * level + push * step
    return np.maximum(1.0 + noise, 0.1)
