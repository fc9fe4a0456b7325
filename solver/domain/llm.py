"""What is known of a language model's shape: `ModelShape`, and what follows from it by arithmetic.

It exists because weights, KV cache and FLOPs per token are all products of a few numbers of the
configuration, and every part of Ballast must use the same ones. It holds no timing (`solver.performance`) and
no weights. A fact nobody knows is None, never zero.

Symbols in the docstrings: L layers, d hidden size, h heads, h_kv KV heads, d_h head size (query and key), d_v
value head size, E routed experts, k of them per token, r_q and r_kv the ranks of latent attention (MLA).
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from solver.domain.hardware import Precision, Provenance

WEIGHT_BYTES = {
    Precision.BF16: 2.0,
    Precision.FP16: 2.0,
    Precision.FP8: 1.0,
    Precision.INT8: 1.0,
    Precision.FP4: 0.5625,
    Precision.MXFP4: 0.53125,
    Precision.INT4: 0.53125,
}
"""Bytes per weight: fp8 and int8 without their few scales, fp4 with an 8-bit scale per 16 weights, mxfp4 per 32,
int4 with a 16-bit scale per 64."""


class Attention(StrEnum):
    """What the cache keeps of a token: keys and values of all heads, of fewer heads, or one latent vector."""

    MHA = "mha"
    GQA = "gqa"
    MLA = "mla"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of one model; sizes are counts of numbers, not bytes."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other ids with the same shape."""
    family: str | None = None
    parameters: float
    """Published total (rounded where the publisher rounds)."""
    active_parameters: float
    """Published count per token; equal to the total for a dense model."""
    layers: int
    hidden_size: int
    attention: Attention
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int | None = None
    """None: as ``head_dim``."""
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    sliding_window_tokens: int | None = None
    full_attention_layers: int | None = None
    """Layers that see the whole context; None: all."""
    intermediate_size: int
    gated_mlp: bool = True
    """Three matrices in the feed-forward part, else two."""
    dense_layers_before_moe: int = 0
    moe_intermediate_size: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    shared_experts: int = 0
    vocab_size: int
    tied_embeddings: bool = False
    max_context_tokens: int | None = None
    default_precision: Precision
    default_precision_bytes: float | None = None
    """Bytes per weight of the published checkpoint, averaged."""
    provenance: Provenance = field(default_factory=Provenance)

    # -- parameters
    # -----------------------------------------------------------------------------------------------

    @property
    def moe_layers(self) -> int:
        """Layers whose feed-forward part is a mixture of experts."""
        return 0 if self.experts is None else self.layers - self.dense_layers_before_moe

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention: query, key, value, output projections, or MLA's down and up ones.

        MLA: d·r_q + r_q·h·d_h (or d·h·d_h without query compression) + d·(r_kv + d_rope)
        + r_kv·h·(d_nope + d_v) + h·d_v·d; source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
        """
        d, h = self.hidden_size, self.heads
        v_dim = self.head_dim if self.v_head_dim is None else self.v_head_dim
        if self.attention is Attention.MLA:
            rank, nope, rope = (
                _known(self.kv_lora_rank),
                _known(self.qk_nope_head_dim),
                _known(self.qk_rope_head_dim),
            )
            query = (
                d * h * self.head_dim
                if self.q_lora_rank is None
                else d * self.q_lora_rank + self.q_lora_rank * h * self.head_dim
            )
            return query + d * (rank + rope) + rank * h * (nope + v_dim) + h * v_dim * d
        return d * h * self.head_dim + d * self.kv_heads * (self.head_dim + v_dim) + h * v_dim * d

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert; 0 for a dense model."""
        if self.moe_intermediate_size is None:
            return 0
        return self._mlp_matrices * self.hidden_size * self.moe_intermediate_size

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.gated_mlp else 2

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        return self.moe_layers * (self.experts or 0) * self.expert_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of the output head (read for every token even where it is the embedding)."""
        return self.vocab_size * self.hidden_size

    @property
    def body_parameters(self) -> int:
        """Weights every token passes in the layers: attention, dense feed-forward, shared experts, router."""
        per_moe = self.shared_experts * self.expert_parameters + (self.experts or 0) * self.hidden_size
        dense = (
            (self.layers - self.moe_layers) * self._mlp_matrices * self.hidden_size * self.intermediate_size
        )
        return self.layers * self.attention_parameters + dense + self.moe_layers * per_moe

    @property
    def parameters_from_shapes(self) -> int:
        """All weights, counted from the shape (norms and biases, below 0.1 %, are left out)."""
        embedding = self.head_parameters * (1 if self.tied_embeddings else 2)
        return self.body_parameters + self.routed_parameters + embedding

    @property
    def active_parameters_from_shapes(self) -> int:
        """Weights one token multiplies with: the body, its k routed experts and the output head."""
        chosen = self.moe_layers * (self.experts_per_token or 0) * self.expert_parameters
        return self.body_parameters + chosen + self.head_parameters

    def experts_touched(self, tokens: float) -> float:
        """Return the expected number of distinct routed experts that ``tokens`` tokens of a batch read in one layer.

        E·(1 − (1 − k/E)^tokens) with independent, even routing; real routing is uneven, which touches fewer.
        """
        if self.experts is None or self.experts_per_token is None:
            return 0.0
        missed_ratio = 1.0 - self.experts_per_token / self.experts
        return self.experts * (1.0 - math.pow(missed_ratio, max(tokens, 0.0)))

    # -- bytes
    # ----------------------------------------------------------------------------------------------------

    def weight_bytes(self, precision: Precision) -> float:
        """Bytes of all weights; at the published precision by the checkpoint's own average bytes per weight."""
        if precision is self.default_precision and self.default_precision_bytes is not None:
            return self.parameters * self.default_precision_bytes
        routed = self.routed_parameters
        return routed * WEIGHT_BYTES[precision] + (self.parameters - routed) * self._rest_bytes(precision)

    def _rest_bytes(self, precision: Precision) -> float:
        """Bytes per weight outside the routed experts: mxfp4 leaves these at 16 bit."""
        return 2.0 if precision is Precision.MXFP4 and self.experts is not None else WEIGHT_BYTES[precision]

    def read_bytes(self, tokens: float, precision: Precision) -> float:
        """Bytes of weights that a step with ``tokens`` tokens reads: body, output head, experts touched."""
        routed = self.moe_layers * self.experts_touched(tokens) * self.expert_parameters
        rest = self.body_parameters + self.head_parameters
        return routed * WEIGHT_BYTES[precision] + rest * self._rest_bytes(precision)

    @property
    def kv_elements_per_token(self) -> int:
        """Cache elements of all layers for one token that every layer still sees.

        MHA and GQA: L·h_kv·(d_h + d_v); MLA: L·(r_kv + d_rope), the latent vector and the shared rotary key.
        """
        if self.attention is Attention.MLA:
            return self.layers * (_known(self.kv_lora_rank) + _known(self.qk_rope_head_dim))
        v_dim = self.head_dim if self.v_head_dim is None else self.v_head_dim
        return self.layers * self.kv_heads * (self.head_dim + v_dim)

    def kv_bytes_per_token(self, element_bytes: float = 2.0) -> float:
        """Bytes of KV cache per token, every layer seeing the whole context (an upper bound with windows)."""
        return self.kv_elements_per_token * element_bytes

    def kv_copies(self, gpus: int) -> float:
        """How many copies of the cache the ranks hold together: MLA one each, GQA several once h_kv < ranks."""
        if self.attention is Attention.MLA:
            return float(gpus)
        return max(1.0, gpus / self.kv_heads)

    def seen_ratio(self, context_tokens: float) -> float:
        """Share of a context that the average layer sees: 1 unless a sliding window cuts it."""
        if self.sliding_window_tokens is None or self.full_attention_layers is None or context_tokens <= 0.0:
            return 1.0
        full = self.full_attention_layers / self.layers
        return full + (1.0 - full) * min(1.0, self.sliding_window_tokens / context_tokens)


def _known(value: int | None) -> int:
    if value is None:  # the reader asks for these fields of every mla entry
        raise ValueError("latent attention needs kv_lora_rank, qk_nope_head_dim and qk_rope_head_dim")
    return value
