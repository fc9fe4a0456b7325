"""Records of runs that never ran, for tests of what judges them."""

from typing import Any

import numpy as np

from simulator.record import RunRecord, Series
from solver.domain.trace import Floats, Requests


def requests_of(arrival_s: Any, *, prompt: Any = 10, output: Any = 5) -> Requests:
    times = np.asarray(arrival_s, dtype=np.float64)
    return Requests(
        arrival_s=times,
        prompt_tokens=np.broadcast_to(np.asarray(prompt, dtype=np.int64), times.shape),
        output_tokens=np.broadcast_to(np.asarray(output, dtype=np.int64), times.shape),
    )


def record_of(
    e2e_s: Any,
    *,
    ttft_s: Any = None,
    queue_s: Any = None,
    status: Any = None,
    reject_reason: Any = None,
    arrival_s: Any = None,
    up_s: Any = (10.0,),
    busy_s: Any = (4.0,),
    energy_j: Any = (100.0,),
    pool_of_instance: Any = (0,),
    power_w: Any = ((10.0, 20.0, 30.0, 1.0),),
    end_time_s: float = 10.0,
    stopped_early: bool = False,
) -> RunRecord:
    """Fill in everything that a test does not speak of."""
    ends = np.asarray(e2e_s, dtype=np.float64)
    total = len(ends)
    times = (
        np.arange(total, dtype=np.float64) if arrival_s is None else np.asarray(arrival_s, dtype=np.float64)
    )
    watts = np.asarray(power_w, dtype=np.float64)
    instances = len(up_s)
    return RunRecord(
        prefill_instance=np.zeros(total, dtype=np.int16),
        decode_instance=np.zeros(total, dtype=np.int16),
        queue_s=np.zeros(total) if queue_s is None else np.asarray(queue_s, dtype=np.float64),
        ttft_s=ends / 2.0 if ttft_s is None else np.asarray(ttft_s, dtype=np.float64),
        e2e_s=ends,
        energy_j=np.zeros(total),
        preemptions=np.zeros(total, dtype=np.int16),
        status=np.where(np.isfinite(ends), 1, 0).astype(np.int8)
        if status is None
        else np.asarray(status, dtype=np.int8),
        reject_reason=np.zeros(total, dtype=np.int8)
        if reject_reason is None
        else np.asarray(reject_reason, dtype=np.int8),
        pool_of_instance=np.asarray(pool_of_instance, dtype=np.int64),
        busy_s=np.asarray(busy_s, dtype=np.float64),
        up_s=np.asarray(up_s, dtype=np.float64),
        energy_j_of_instance=np.asarray(energy_j, dtype=np.float64),
        idle_j=np.zeros(instances),
        occupancy_request_s=np.zeros(instances),
        prompt_tokens_done=np.zeros(instances),
        output_tokens_done=np.zeros(instances),
        series=Series(
            bin_s=2.5,
            power_w=watts,
            running=np.ones_like(watts),
            waiting=np.zeros_like(watts),
            busy=np.ones_like(watts),
            up=np.ones_like(watts),
        ),
        transfers=0,
        transfer_bytes=0.0,
        iterations=0,
        segments=0,
        end_time_s=end_time_s,
        horizon_s=end_time_s,
        backlog_at_arrivals=_backlog(times, ends),
        stopped_early=stopped_early,
    )


def _backlog(arrival_s: Floats, e2e_s: Floats) -> Floats:
    """Count who is in the system at up to 256 evenly spaced arrivals, the last one included."""
    seen = np.unique(np.linspace(0, len(arrival_s) - 1, min(256, len(arrival_s))).astype(np.int64))
    ends = np.sort(np.where(np.isfinite(e2e_s), arrival_s + e2e_s, np.inf))
    counts: Floats = (seen + 1 - np.searchsorted(ends, arrival_s[seen], side="right")).astype(np.float64)
    return counts
