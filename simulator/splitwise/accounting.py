"""Who was where and what was drawn, over time: occupancy, busy time, joules, series.

It exists so that every joule and every second of presence is booked once, from the state of the machines and not
from the requests' own logs. What is charged: a machine draws its idle watts while no iteration runs, its prompt watts
in every iteration with a prompt in it (decodes that ride along included), its token watts in iterations of decodes
only. Joules of an iteration are split evenly over its tokens.
"""

from simulator.splitwise.layout import (
    BATCH,
    BATCH_PROMPTS,
    BATCH_TOKENS,
    BIN_S,
    BUSY_BIN,
    BUSY_J,
    BUSY_S,
    DECODE_W,
    ENERGY_BIN,
    IDLE_J,
    IDLE_SINCE_S,
    IDLE_W,
    KIND,
    OCCUPANCY_S,
    POOL,
    PRESENT,
    PRESENT_BIN,
    PROMPT,
    PROMPT_W,
    RUNNING_BIN,
    SEQUENCE_J,
    START_S,
    TAKEN_J,
    TOUCHED_S,
    World,
)
from solver.compiled import compiled


@compiled
def _fold(w: World) -> None:
    """Make the bins twice as wide."""
    pools, rows, bins = w.series.shape
    for pool in range(pools):
        for row in range(rows):
            for at in range(bins // 2):
                w.series[pool, row, at] = w.series[pool, row, 2 * at] + w.series[pool, row, 2 * at + 1]
            for at in range(bins // 2, bins):
                w.series[pool, row, at] = 0.0
    w.reals[BIN_S] *= 2.0


@compiled
def _book(w: World, pool: int, row: int, from_s: float, to_s: float, rate: float) -> None:
    """Add ``rate`` times the seconds from ``from_s`` to ``to_s`` to the bins of one row."""
    bins = w.series.shape[2]
    while to_s > w.reals[BIN_S] * bins:
        _fold(w)
    width = w.reals[BIN_S]
    first = min(int(from_s / width), bins - 1)
    last = min(int(to_s / width), bins - 1)
    if first == last:
        w.series[pool, row, first] += rate * (to_s - from_s)
        return
    w.series[pool, row, first] += rate * ((first + 1) * width - from_s)
    for at in range(first + 1, last):
        w.series[pool, row, at] += rate * width
    w.series[pool, row, last] += rate * (to_s - last * width)


@compiled
def touch(w: World, machine: int, now_s: float) -> None:
    """Bring the occupancy of a machine up to date; called before a request comes or leaves."""
    since_s = w.machine_reals[machine, TOUCHED_S]
    if now_s > since_s:
        present = w.machine_counts[machine, PRESENT]
        if present > 0:
            w.machine_reals[machine, OCCUPANCY_S] += present * (now_s - since_s)
            _book(w, w.machine_counts[machine, POOL], PRESENT_BIN, since_s, now_s, float(present))
        w.machine_reals[machine, TOUCHED_S] = now_s


@compiled
def book_idle(w: World, machine: int, now_s: float) -> None:
    """Book an idle stretch that ends now."""
    since_s = w.machine_reals[machine, IDLE_SINCE_S]
    if now_s > since_s:
        watts = w.watts[w.machine_counts[machine, KIND], IDLE_W]
        w.machine_reals[machine, IDLE_J] += watts * (now_s - since_s)
        _book(w, w.machine_counts[machine, POOL], ENERGY_BIN, since_s, now_s, watts)
        w.machine_reals[machine, IDLE_SINCE_S] = now_s


@compiled
def book_busy(w: World, machine: int, now_s: float) -> None:
    """Book the iterations that ran until now, and share their joules out."""
    since_s = w.machine_reals[machine, START_S]
    w.machine_reals[machine, IDLE_SINCE_S] = now_s
    if now_s <= since_s:
        return
    prompts = w.machine_counts[machine, BATCH_PROMPTS]
    watts = w.watts[w.machine_counts[machine, KIND], PROMPT_W if prompts > 0 else DECODE_W]
    joules = watts * (now_s - since_s)
    w.machine_reals[machine, BUSY_S] += now_s - since_s
    w.machine_reals[machine, BUSY_J] += joules
    share_j = joules / w.machine_counts[machine, BATCH_TOKENS]
    w.machine_reals[machine, SEQUENCE_J] += share_j
    size = w.machine_counts[machine, BATCH]
    if prompts > 0:
        for at in range(size):
            task = w.batch[machine, at]
            if task & 1 == 0:
                w.slot_reals[task >> 1, TAKEN_J] += share_j * w.slot_counts[task >> 1, PROMPT]
    pool = w.machine_counts[machine, POOL]
    _book(w, pool, ENERGY_BIN, since_s, now_s, watts)
    _book(w, pool, RUNNING_BIN, since_s, now_s, float(size))
    _book(w, pool, BUSY_BIN, since_s, now_s, 1.0)
