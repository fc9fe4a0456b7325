"""The row's meter and the servers' own, and how their samples reach the controller: late, twice, wrong or not at all.

It exists so that all faults of telemetry stand in one place. It measures; what a sample is worth is decided by the
controller.
"""

import heapq
import math
from dataclasses import replace

import numpy as np

from simulator.row.faults import RowFaults
from solver.domain.power import PowerRow
from solver.power.vetting import Sample

SERVERS_PER_RACK = 10


class Meter:
    """Samples under way."""

    def __init__(self, row: PowerRow, faults: RowFaults) -> None:
        self._faults = faults
        self._delivery_s = row.delivery_s
        self._period_s = row.sample_s
        self._rack = np.arange(row.servers) // SERVERS_PER_RACK
        self._under_way: list[tuple[float, int, Sample]] = []
        self._count = 0
        self._held = False
        self._stuck_at: dict[float, Sample] = {}
        self._last: Sample | None = None
        self._clean = not self._faults.events

    def measure(self, sample: Sample) -> None:
        """Take a window's true means; what is delivered of it, and when, depends on the faults at its delivery."""
        due_s = sample.stamp_s + self._delivery_s
        faults = self._faults
        if self._clean:
            self._send(due_s, sample)
            return
        if faults.any("row_telemetry_missing", due_s):
            self._held = False
            return
        sample = self._spoilt(sample, due_s)
        self._last = sample
        if faults.any("telemetry_out_of_order", due_s) or self._held:
            if not self._held:
                self._held = True
                due_s += 2.0 * self._period_s
            else:
                self._held = False
        self._send(due_s, sample)
        if faults.any("telemetry_duplicates", due_s):
            self._send(due_s + self._period_s, sample)

    def _spoilt(self, sample: Sample, due_s: float) -> Sample:
        faults = self._faults
        row_w, low_w, high_w = sample.row_w, sample.low_w, sample.high_w
        for event in faults.active("row_telemetry_stuck", due_s):
            last = self._stuck_at.setdefault(event.start_s, self._last or sample)
            row_w, low_w, high_w = last.row_w, last.low_w, last.high_w
        for event in faults.active("row_telemetry_scale", due_s):
            row_w, low_w, high_w = row_w * event.factor, low_w * event.factor, high_w * event.factor
        if faults.any("row_telemetry_negative", due_s):
            row_w, low_w, high_w = -row_w, -low_w, -high_w
        if faults.any("row_telemetry_nan", due_s):
            row_w = low_w = high_w = math.nan
        sample = replace(sample, row_w=row_w, low_w=low_w, high_w=high_w)
        for event in faults.active("telemetry_clock_skew", due_s):
            offsets = np.array(event.rack_offsets_s)[self._rack % len(event.rack_offsets_s)]
            stamps = sample.stamp_s if sample.server_stamp_s is None else sample.server_stamp_s
            sample = replace(sample, server_stamp_s=stamps + offsets)
        return sample

    def _send(self, due_s: float, sample: Sample) -> None:
        heapq.heappush(self._under_way, (due_s, self._count, sample))
        self._count += 1

    def delivered(self, now_s: float) -> list[Sample]:
        """Return what arrives now, in order."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now_s:
            arrived.append(heapq.heappop(self._under_way)[2])
        return arrived
