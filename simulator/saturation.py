"""Whether a fleet kept up with its requests: stable, backlogged or overloaded.

It exists because percentiles of a fleet that falls behind say only how long the trace was. The rule reads two things
that must agree, each of which is misleading alone: the number of requests in the system also grows while a stable fleet
fills up, and the stay of a request also grows when requests get larger.

From one part of the arrivals to a later one (parts of equal numbers of requests; centres t_a and t_b, requests k_a and
k_b), with W the mean stay of the requests that arrived in a part and B the mean number in the system seen by them,

    delay growth   = (W_b - W_a) / (t_b - t_a)       seconds of delay per second
    backlog growth = (B_b - B_a) / (k_b - k_a)       requests left over per request

where the stay is taken both until the first token (which shows soonest that prompts queue) and until the last; either
will do.

Under a constant load of r times the capacity they tend to r - 1 and 1 - 1 / r for r > 1, and to 0 for r < 1. The fleet
*fell behind* between the parts if both are above `GROWTH`, the difference of the stays is larger than chance explains
(three standard errors of its mean, with at least `FEWEST` requests in each part), and it is more than a fleet that only
fills up shows, whose steps get slower with the batch: either the earlier part began at least one mean stay after the
first arrival, or the stay grew to `FILLING_RATIO` times what it was.

- overloaded: the run was broken off, or the fleet fell behind from the second to the last quarter of the arrivals.
- backlogged: not overloaded, but it fell behind between two neighbouring quarters, or in some sixteenth of the
  arrivals requests waited longer for their first iteration than they were served. It caught up, or the trace ended.
- stable: neither; a trace too short to tell counts as stable.
"""

import math

import numpy as np

from simulator.record import RunRecord, Saturation
from solver.domain.trace import Floats, Requests

GROWTH = 0.05
"""Growth above it means that a fleet falls behind: loads more than about 5 % above what it can serve."""
FEWEST = 8
"""Requests that a part needs before its mean says anything."""
STANDARD_ERRORS = 3.0
FILLING_RATIO = 1.5
QUARTERS = 4
SIXTEENTHS = 16


def saturation_of(record: RunRecord, requests: Requests) -> Saturation:
    """Judge a run over all its requests, the warm-up included."""
    if record.stopped_early or _fell_behind(record, requests, 1, QUARTERS - 1):
        return Saturation.OVERLOADED
    behind = any(_fell_behind(record, requests, part, part + 1) for part in range(QUARTERS - 1))
    if behind or _waited_longer(record):
        return Saturation.BACKLOGGED
    return Saturation.STABLE


def _part(total: int, parts: int, number: int) -> slice:
    return slice(total * number // parts, total * (number + 1) // parts)


def _fell_behind(record: RunRecord, requests: Requests, earlier: int, later: int) -> bool:
    return any(_grew(stay_s, record, requests, earlier, later) for stay_s in (record.ttft_s, record.e2e_s))


def _grew(stay_s: Floats, record: RunRecord, requests: Requests, earlier: int, later: int) -> bool:
    total, samples = len(record), len(record.backlog_at_arrivals)
    if samples < QUARTERS:
        return False
    first, last = _part(total, QUARTERS, earlier), _part(total, QUARTERS, later)
    before, after = (_known(stay_s[part]) for part in (first, last))
    if min(len(before), len(after)) < FEWEST:
        return False
    apart_s = float(np.mean(requests.arrival_s[last]) - np.mean(requests.arrival_s[first]))
    if apart_s <= 0.0:
        return False
    longer_s = float(after.mean() - before.mean())
    error_s = math.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    backlog = record.backlog_at_arrivals
    more = backlog[_part(samples, QUARTERS, later)].mean() - backlog[_part(samples, QUARTERS, earlier)].mean()
    settled = float(requests.arrival_s[first.start] - requests.arrival_s[0]) >= before.mean()
    requests_apart = total * (later - earlier) / QUARTERS
    return bool(
        longer_s > GROWTH * apart_s
        and more > GROWTH * requests_apart
        and longer_s > STANDARD_ERRORS * error_s
        and (settled or after.mean() > FILLING_RATIO * before.mean())
    )


def _waited_longer(record: RunRecord) -> bool:
    for number in range(SIXTEENTHS):
        part = _part(len(record), SIXTEENTHS, number)
        done = np.isfinite(record.e2e_s[part])
        waited_s = float(record.queue_s[part][done].sum())
        if done.sum() >= FEWEST and waited_s > float(record.e2e_s[part][done].sum()) - waited_s:
            return True
    return False


def _known(values: Floats) -> Floats:
    known: Floats = values[np.isfinite(values)]
    return known
