"""Who was where and what was drawn, over time: occupancy, busy time, joules, w.series.

It exists so that every joule and every second of presence is booked once, from the state of the instances and not from
the requests' own logs: Little's law can then be tested. It decides nothing.
"""

from simulator.engine.layout import (
    BIN_S,
    BUSY_BIN,
    CHUNKS,
    DECODES,
    DOWN,
    ENERGY_BIN,
    ENERGY_J,
    HELD,
    IDLE_J,
    IDLE_SINCE_S,
    IDLE_W,
    KIND,
    OCCUPANCY_S,
    POOL,
    PRESENT_BIN,
    READY,
    RUNNING_BIN,
    STATE,
    TOUCHED_S,
    UP_BIN,
    UP_S,
    UP_SINCE_S,
    WAITING,
    World,
)
from solver.compiled import compiled


@compiled
def _fold(w: World) -> None:
    """Make the bins twice as wide."""
    pools, rows, bins = w.series.shape
    for p in range(pools):
        for q in range(rows):
            for b in range(bins // 2):
                w.series[p, q, b] = w.series[p, q, 2 * b] + w.series[p, q, 2 * b + 1]
            for b in range(bins // 2, bins):
                w.series[p, q, b] = 0.0
    w.reals[BIN_S] *= 2.0


@compiled
def book(w: World, pool: int, row: int, from_s: float, to_s: float, rate: float) -> None:
    """Add ``rate`` times the seconds from ``from_s`` to ``to_s`` to the bins of one row."""
    if to_s <= from_s or rate == 0.0:
        return
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
    for b in range(first + 1, last):
        w.series[pool, row, b] += rate * width
    w.series[pool, row, last] += rate * (to_s - last * width)


@compiled
def touch(w: World, i: int, now_s: float) -> None:
    """Bring the occupancy of an instance up to date; called before anything joins or leaves it."""
    counts = w.inst_counts
    since_s = w.inst_reals[TOUCHED_S, i]
    if now_s > since_s:
        present = (
            counts[WAITING, i] + counts[CHUNKS, i] + counts[DECODES, i] + counts[READY, i] + counts[HELD, i]
        )
        if present > 0:
            w.inst_reals[OCCUPANCY_S, i] += present * (now_s - since_s)
            book(w, counts[POOL, i], PRESENT_BIN, since_s, now_s, float(present))
        w.inst_reals[TOUCHED_S, i] = now_s


@compiled
def book_segment(w: World, pool: int, from_s: float, to_s: float, joules: float, running: int) -> None:
    """Book a stretch in which an instance ran iterations."""
    if to_s > from_s:
        book(w, pool, ENERGY_BIN, from_s, to_s, joules / (to_s - from_s))
        book(w, pool, RUNNING_BIN, from_s, to_s, float(running))
        book(w, pool, BUSY_BIN, from_s, to_s, 1.0)


@compiled
def end_idle(w: World, i: int, now_s: float) -> None:
    """Book the joules of an idle stretch that ends now; the next one, if any, begins now."""
    if w.inst_counts[STATE, i] == DOWN:
        return
    since_s = w.inst_reals[IDLE_SINCE_S, i]
    if now_s > since_s:
        watts = w.constants[IDLE_W, w.inst_counts[KIND, i]]
        joules = watts * (now_s - since_s)
        w.inst_reals[IDLE_J, i] += joules
        w.inst_reals[ENERGY_J, i] += joules
        book(w, w.inst_counts[POOL, i], ENERGY_BIN, since_s, now_s, watts)
        w.inst_reals[IDLE_SINCE_S, i] = now_s


@compiled
def end_up(w: World, i: int, now_s: float) -> None:
    """Book the time an instance was up until now."""
    since_s = w.inst_reals[UP_SINCE_S, i]
    if now_s > since_s:
        w.inst_reals[UP_S, i] += now_s - since_s
        book(w, w.inst_counts[POOL, i], UP_BIN, since_s, now_s, 1.0)
        w.inst_reals[UP_SINCE_S, i] = now_s
