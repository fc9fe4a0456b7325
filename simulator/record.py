"""What a run leaves behind: one row per request, sums per instance, series per pool over time.

It exists so that every engine answers in the same shape and metrics, reports and comparisons are written once. It
judges nothing (`simulator.metrics` does). Columns follow the order of the requests that were handed in.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solver.domain.trace import Floats, Ints


class RequestStatus(IntEnum):
    """How a request ended."""

    INCOMPLETE = 0
    COMPLETED = 1
    REJECTED = 2


class RejectReason(IntEnum):
    """Why a request was rejected."""

    NONE = 0
    TOO_LONG = 1
    """Prompt and answer fit the KV cache of no instance that could serve them."""
    NO_INSTANCE = 2
    """No instance of its model was up."""


REJECT_WORDS = {
    RejectReason.TOO_LONG: "prompt and answer fit the KV cache of no instance of the model",
    RejectReason.NO_INSTANCE: "no instance of the model was up",
}


class Saturation(StrEnum):
    """Whether the fleet kept up; decided in `simulator.metrics`."""

    STABLE = "stable"
    BACKLOGGED = "backlogged"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """Means over bins of equal width from time 0, one row per pool: [pools, bins]."""

    bin_s: float
    power_w: Floats
    """Of all instances of the pool, idle ones included, while they are up."""
    running: Floats
    """Requests in batches (prefilling or decoding)."""
    waiting: Floats
    """Requests queued at instances, those whose KV is being moved included (counted where it comes from)."""
    busy: Floats
    """Instances that run an iteration."""
    up: Floats
    """Instances that are up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunRecord:
    """One finished run. R requests, I instances in creation order. NaN: did not happen.

    Together with arrival and tokens a request keeps 64 bytes, which is why numbers of instances are 16-bit.
    """

    # per request [R]
    prefill_instance: NDArray[np.int16]
    """-1: none."""
    decode_instance: NDArray[np.int16]
    queue_s: Floats
    """From arrival to the start of the iteration that first took the request."""
    ttft_s: Floats
    e2e_s: Floats
    energy_j: Floats
    """Its share of the iterations it was part of: an iteration's joules are split evenly over the tokens in it."""
    preemptions: NDArray[np.int16]
    status: NDArray[np.int8]
    """`RequestStatus`."""
    reject_reason: NDArray[np.int8]
    """`RejectReason`."""
    # per instance [I]
    pool_of_instance: Ints
    busy_s: Floats
    up_s: Floats
    energy_j_of_instance: Floats
    """All of it, idle time included."""
    idle_j: Floats
    """The part drawn while no iteration ran."""
    occupancy_request_s: Floats
    """Integral over time of the requests present (queued, running, KV arriving), from the instance's own state."""
    prompt_tokens_done: Floats
    """Prompt tokens processed, repeats after preemption included."""
    output_tokens_done: Floats
    # whole run
    series: Series
    transfers: int
    transfer_bytes: float
    cached_tokens: float = 0.0
    """Prompt tokens that were found in prefix caches and not processed."""
    iterations: int
    """Iterations of engines that were covered."""
    segments: int
    """Steps that the simulator took for them."""
    end_time_s: float
    """Last completion."""
    horizon_s: float
    """End of the accounting of time and energy: the last event."""
    backlog_at_arrivals: Floats
    """Requests in the system, seen at up to 256 evenly spaced arrivals; last entry at the last arrival."""
    stopped_early: bool
    """The run was broken off because the backlog grew without end."""

    def __len__(self) -> int:
        return len(self.ttft_s)

    def completed(self) -> NDArray[Any]:
        """Mask of the completed requests."""
        mask: NDArray[Any] = self.status == RequestStatus.COMPLETED
        return mask
