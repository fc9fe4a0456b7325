"""What a performance model must say about one replica, so that planner and simulator share one truth.

It exists because every decision of Ballast (which GPU, how to split, how many watts) needs the same five
numbers. It is not a model itself: `ProfileTable` (measured points) and `Roofline` (formula) implement it.
"""

import math
from dataclasses import dataclass
from typing import Protocol


class OutsideRangeError(ValueError):
    """A question outside what was measured; the answer would be an extrapolation nobody asked for.

    Parameters
    ----------
    quantity
        What was asked about, with its unit (``new_tokens``, ``sequences``, ``kv_tokens``).
    value
        What was asked.
    low, high
        The range that was measured, both ends inside.
    """

    def __init__(self, quantity: str, value: float, low: float, high: float) -> None:
        self.quantity = quantity
        self.value = value
        self.low = low
        self.high = high
        super().__init__(
            f"{quantity} {value:g} is outside the measured range {low:g} to {high:g}; "
            "ask for extrapolation explicitly, or measure there"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """What a performance model is keyed by: a model on so many GPUs of a type at a precision."""

    model: str
    gpu_type: str
    gpus_per_replica: int
    """Tensor-parallel size."""
    precision: str
    """Of the weights: bf16, fp16, fp8, int8, fp4, ..."""

    def __str__(self) -> str:
        return f"{self.model} on {self.gpus_per_replica} x {self.gpu_type} at {self.precision}"


class PerformanceModel(Protocol):
    """How long one replica takes and what it draws. Watts are of all its GPUs together.

    Estimates outside the measured or fitted range raise `OutsideRangeError` unless the implementation was
    asked to extrapolate; they are never extrapolated silently.
    """

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        ...

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds to process ``new_tokens`` prompt tokens (of one request, or of a batch in total).

        ``context_tokens`` are tokens already cached that the new ones attend to (chunked prefill, prefix
        cache). A batch is charged as one long request, which overstates its attention a little. 0 tokens take
        0 s.
        """
        ...

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of one decode iteration of ``sequences`` requests.

        ``kv_tokens`` are their cached tokens in total. 0 sequences take 0 s.
        """
        ...

    def prefill_w(self, new_tokens: float) -> float:
        """Watts while ``new_tokens`` prompt tokens are processed; may pass the sum of TDPs."""
        ...

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts during a decode iteration."""
        ...

    def idle_w(self) -> float:
        """Watts with the weights loaded and nothing to do."""
        ...

    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache that fit beside the weights; 0 if the weights alone do not fit."""
        ...


def require_amount(quantity: str, value: float) -> None:
    """Refuse an amount that is negative or no finite number (a bug of the caller, hence ValueError)."""
    if not math.isfinite(value) or value < 0.0:
        raise ValueError(f"{quantity} is {value!r}; it must be a finite number of at least 0")
