"""Seconds and joules of one iteration of one kind of instance, as arrays that the compiled engine can read.

It exists because the engine asks for an iteration's time millions of times: a `PerformanceModel` is asked once, while
the table is built (`simulator.step_models`), and a batch that stays the same then advances in closed form. It holds no
rule of batching and fits nothing.

One iteration with prompt chunks i of t_i new tokens after c_i cached ones and n decodes over K cached tokens takes

    T = sum t_i,  R = sum (c_i + t_i),  A = sum t_i (c_i + t_i / 2)  (or t_i (p_i + t_i / 2): whole_prompt_pairs)
    prefill  = f(T) + w m + max(u R, v A)                             PrefillForm.ADDITIVE, m chunks
             = max(f(T), f(C + T) - f(C)),  C = max(0, A / T - T / 2) PrefillForm.DIFFERENCES
    decode   = d[n, j] + s[n, j] (K - k_j)                            k_j <= K < k_(j+1)
    both     = max(prefill + decode - shared, prefill, decode)

so that k decode iterations in a row, between two knots, take k (d + s (K - k_j)) + s n k (k - 1) / 2.
Joules of a decode iteration have the same form; an iteration with prompt chunks draws the watts of its prompts.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from solver.domain.trace import Floats


class PrefillForm(IntEnum):
    """How the time of prompt chunks follows from the table; equations in the module's docstring."""

    ADDITIVE = 0
    DIFFERENCES = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTable:
    """The iteration times of one kind of instance. N is the largest batch, M the number of knots over cached tokens.

    Units are seconds and joules, except where a table says that it counts in microseconds (`blis-compat`).
    """

    prefill_form: PrefillForm = PrefillForm.ADDITIVE
    prefill_s: Floats
    """[T] for T = 0 .. T_max new tokens (f above); beyond T_max the last slope goes on."""
    prefill_w: Floats
    """[T] watts of all GPUs while T new prompt tokens are processed (decodes may ride along); held beyond T_max."""
    context_s: float = 0.0
    """u: seconds per cached or new prompt token that attention reads."""
    pair_s: float = 0.0
    """v: seconds per pair of query and key."""
    prompt_s: float = 0.0
    """w: seconds per prompt in the iteration."""
    whole_prompt_pairs: bool = False
    """Count pairs against the whole prompt, as BLIS does, instead of against what is cached."""
    kv_knots_tokens: Floats
    """[M], rising from 0."""
    decode_s: Floats
    """[N + 1, M] at the knots."""
    decode_slope_s: Floats
    """[N + 1, M] seconds per further cached token of the batch, right of each knot."""
    decode_j: Floats
    """[N + 1, M] joules of the iteration at the knots."""
    decode_slope_j: Floats
    """[N + 1, M]."""
    shared_s: float
    """What a prompt chunk and the decodes of one iteration share (one read of the weights, one launch)."""
    idle_w: float
    """Watts of the instance with nothing to do."""
    watts_known: bool = True
    """False: the GPU's watts are not known; joules and watts are 0 here and must not be shown."""
    truncated: bool = False
    """Cut every iteration to a whole number of units, at least 1 (`blis-compat`); rules out closed forms."""

    def __post_init__(self) -> None:
        knots = len(self.kv_knots_tokens)
        if knots < 1 or self.kv_knots_tokens[0] != 0.0 or np.any(np.diff(self.kv_knots_tokens) <= 0):
            raise ValueError("kv_knots_tokens must rise from 0")
        shape = self.decode_s.shape
        if self.decode_s.ndim != 2 or shape[1] != knots:
            raise ValueError("decode_s needs one column per knot")
        for name in ("decode_slope_s", "decode_j", "decode_slope_j"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have the shape of decode_s")
        if len(self.prefill_s) < 2 or len(self.prefill_s) != len(self.prefill_w):
            raise ValueError("prefill_s and prefill_w need one entry per number of new tokens, from 0")
        for name in ("prefill_s", "prefill_w", "decode_s", "decode_slope_s", "decode_j", "decode_slope_j"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} holds a number that is not finite")

    @property
    def max_batch(self) -> int:
        """Largest number of decodes that the table knows."""
        return int(self.decode_s.shape[0]) - 1

    def paced(self, factor: float) -> "StepTable":
        """Return the table of an instance that takes ``factor`` times as long for everything, at the same watts."""
        return replace(
            self,
            **{
                name: getattr(self, name) * factor
                for name in (
                    "prefill_s",
                    "context_s",
                    "pair_s",
                    "prompt_s",
                    "decode_s",
                    "decode_slope_s",
                    "decode_j",
                    "decode_slope_j",
                    "shared_s",
                )
            },
        )
