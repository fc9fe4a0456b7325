"""What a performance model must be able to say about one replica, so that planner and simulator share one truth.

It exists because every decision of Ballast (which GPU, how to split, how many watts) needs the same five numbers. It
is not a model itself: `ProfileTable` (measured points) and `Roofline` (formula) implement it.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """What a performance model is keyed by: one replica of a model on so many GPUs of a type at a precision."""

    model: str
    gpu_type: str
    gpus_per_replica: int
    """Tensor-parallel size."""
    precision: str
    """Of the weights: bf16, fp16, fp8, int8, fp4, ..."""


class PerformanceModel(Protocol):
    """How long one replica takes and what it draws. Watts are of all its GPUs together.

    Estimates outside the measured or fitted range raise `OutsideRangeError` unless the implementation was asked to
    extrapolate; they are never extrapolated silently.
    """

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        ...

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds to process ``new_tokens`` prompt tokens (of one request, or of a batch in total).

        ``context_tokens`` are tokens already cached that the new ones attend to (chunked prefill, prefix cache).
        """
        ...

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of one decode iteration of ``sequences`` requests that hold ``kv_tokens`` cached tokens in total."""
        ...

    def prefill_w(self, new_tokens: float) -> float:
        """Watts while ``new_tokens`` prompt tokens are processed."""
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
