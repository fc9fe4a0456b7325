"""How one iteration of a continuous-batching engine is made up, so that capacity and simulation charge the same time.

It exists because a performance model speaks of prefill and decode apart, while a real engine mixes a prompt chunk with
the running decodes in one iteration. It holds the engine's settings and that one rule; no queue and no clock.
"""

from dataclasses import dataclass

from solver.performance.protocol import PerformanceModel


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The scheduler settings of a serving engine that decide its latency (names after vLLM)."""

    max_batch: int = 256
    """Sequences in service at once, prefilling ones included."""
    max_batch_tokens: int = 2048
    """Tokens of one iteration: decodes first, the rest for prompt chunks."""
    chunked_prefill: bool = True
    """False: prompts run whole, in iterations of their own that stop all decodes."""

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_batch_tokens < 1:
            raise ValueError("max_batch and max_batch_tokens must be at least 1")
        if self.chunked_prefill and self.max_batch_tokens <= self.max_batch:
            raise ValueError(
                "max_batch_tokens must exceed max_batch, or a full batch leaves no room for prompts"
            )


def shared_s(model: PerformanceModel) -> float:
    """Seconds that a prompt chunk and the decodes of one iteration share: one read of the weights, one launch.

    Taken as a decode iteration of one sequence with one cached token.
    """
    return model.decode_iteration_s(1.0, 1.0)


def mixed_iteration_s(
    model: PerformanceModel,
    *,
    new_tokens: float,
    context_tokens: float,
    sequences: float,
    kv_tokens: float,
    shared: float,
) -> float:
    """Seconds of an iteration with ``new_tokens`` prompt tokens and ``sequences`` decodes (either may be 0).

    prefill(T, context) + decode(n, K) - shared, never less than either alone. Exact for every model that is a sum
    of terms in T, n and K over one common floor (BLIS's trained-physics form); Splitwise's table charged by
    context adds them up in the same way.
    """
    if new_tokens <= 0.0:
        return model.decode_iteration_s(sequences, kv_tokens)
    prefill = model.prefill_s(new_tokens, context_tokens=context_tokens)
    if sequences <= 0.0:
        return prefill
    decode = model.decode_iteration_s(sequences, kv_tokens)
    return max(prefill + decode - shared, prefill, decode)
