"""Step times by the trained-physics form of BLIS: `TrainedPhysics`.

It exists because that form was fitted by its authors to many engines and GPUs at once (vLLM, chunked prefill) and
because for a dense model a decode iteration is exactly a + b n + c K, which a simulator can sum in closed form. Watts
are not part of it: they come from the `Roofline` of the same replica. Where a measured table exists, that one wins.

Source: inference-sim (BLIS) f90a1e3a, Apache-2.0, trained_physics_model.go and its published coefficients; only the
equations and numbers were taken. One step of t prompt tokens and n decodes over K cached tokens, L layers of hidden
size d, h heads of d_h, h_kv KV heads (d_kv = h_kv d_h), g GPUs, dense feed-forward d_ff, 16-bit activations and cache,
takes

    beta_1a C_prefill + beta_1b M_prefill + beta_2a C_decode + beta_2b M_decode + beta_3 W + beta_4 X
        + beta_5 L + beta_6 (prompts + n) + beta_7 + beta_8 L_moe (only if layers without experts alternate)

    C_prefill = [2 L t d (2 d + 2 d_kv) / g + L sum_i 4 (h / g) t_i (s_i + t_i / 2) d_h + 6 L_dense t d d_ff / g
                 + 6 L_moe t k d d_moe / g] / peak                    s_i: the whole prompt of request i
    M_decode  = 2 L (d_kv / g) 2 B (K + n) / BW,   M_prefill likewise with t tokens written
    W = [L d (2 d + 2 d_kv) + 3 L_dense d d_ff + 3 L_moe E d d_moe] bytes / (g BW)
    X = (2 L_dense + L_moe (1 + [g > 1])) (t + n) d 2 B 2 ((g - 1) / g) / BW
"""

from dataclasses import dataclass

from solver.domain.llm import WEIGHT_BYTES
from solver.performance.protocol import require_amount
from solver.performance.roofline_watts import RooflineWatts

BETA_1A, BETA_2A, BETA_3, BETA_4 = 0.152128, 0.0, 1.36252915, 0.752037
BETA_5_US, BETA_6_US, BETA_7_US, BETA_8_US = 32.09546717, 4.41684444, 126.024825, 481.8613888
BETA_1B, BETA_2B = 0.0, 1.94710771
ACCEPT_S, FINISH_S, PER_TOKEN_S = 15563.199579e-6, 777.3455e-6, 45.907545e-6
"""The alphas: before a request can be scheduled, after its last token, and for every token."""
KNOWN_ERROR = (
    "its authors' median errors on 36 unseen runs: E2E mean 6.7 %, p90 7.5 %, p99 9.2 %; TTFT 17.6 to 29 %; ITL 7.1 %;"
    " waits too short above half load"
)
_ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPhysics(RooflineWatts):
    """`PerformanceModel` by BLIS's equation for the replica of a `Roofline`, which gives watts and KV capacity.

    BLIS itself counts tp times too many tokens of cache.
    """

    # -- the terms of the equation ------------------------------------------------------------------------------------

    @property
    def _peak(self) -> float:
        return self.roofline.gpu.flops(self.roofline.precision)

    @property
    def _bandwidth(self) -> float:
        return self.roofline.gpu.memory_bandwidth_bytes_per_s

    @property
    def _dense_layers(self) -> int:
        return self.roofline.model.layers - self.roofline.model.moe_layers

    @property
    def _kv_width(self) -> float:
        model = self.roofline.model
        return model.kv_elements_per_token / (2.0 * model.layers)

    @property
    def base_s(self) -> float:
        """What every step pays: one read of the weights, the layers, the launch."""
        model, gpus = self.roofline.model, self.roofline.gpus
        d = model.hidden_size
        weights = model.layers * d * (2.0 * d + 2.0 * self._kv_width)
        weights += self._dense_layers * 3.0 * d * model.intermediate_size
        if model.moe_intermediate_size is not None and model.experts is not None:
            weights += model.moe_layers * 3.0 * model.experts * d * model.moe_intermediate_size
        weight_bytes = WEIGHT_BYTES[self.roofline.precision]
        mixed = 1.0 if model.moe_layers and self._dense_layers else 0.0
        overhead_us = BETA_5_US * model.layers + BETA_7_US + BETA_8_US * model.moe_layers * mixed
        return BETA_3 * weights * weight_bytes / (gpus * self._bandwidth) + overhead_us * 1e-6

    @property
    def _link_s(self) -> float:
        """beta_4 times X for one token."""
        model, gpus = self.roofline.model, self.roofline.gpus
        units = 2.0 * self._dense_layers + model.moe_layers * (2.0 if gpus > 1 else 1.0)
        data = units * model.hidden_size * _ACTIVATION_BYTES * 2.0 * (gpus - 1) / gpus
        return BETA_4 * data / self._bandwidth

    @property
    def _kv_s(self) -> float:
        """M for one token, without its beta."""
        model, gpus = self.roofline.model, self.roofline.gpus
        return 2.0 * model.layers * (self._kv_width / gpus) * _ACTIVATION_BYTES / self._bandwidth

    @property
    def prompt_token_s(self) -> float:
        """Seconds per new prompt token, attention apart."""
        model, gpus = self.roofline.model, self.roofline.gpus
        d = model.hidden_size
        flops = 2.0 * model.layers * d * (2.0 * d + 2.0 * self._kv_width)
        flops += self._dense_layers * 6.0 * d * model.intermediate_size
        if model.moe_intermediate_size is not None and model.experts_per_token is not None:
            flops += model.moe_layers * 6.0 * model.experts_per_token * d * model.moe_intermediate_size
        return BETA_1A * flops / (gpus * self._peak) + BETA_1B * self._kv_s + self._link_s

    @property
    def pair_s(self) -> float:
        """Seconds per pair t (s + t / 2) of a prompt chunk."""
        model, gpus = self.roofline.model, self.roofline.gpus
        return BETA_1A * model.layers * 4.0 * (model.heads / gpus) * model.head_dim / self._peak

    @property
    def sequence_s(self) -> float:
        """b: seconds per decode of an iteration."""
        return BETA_6_US * 1e-6 + self._link_s + BETA_2B * self._kv_s

    @property
    def prompt_s(self) -> float:
        """Seconds per prompt of an iteration."""
        return BETA_6_US * 1e-6

    @property
    def kv_token_s(self) -> float:
        """c: seconds per cached token that decodes read."""
        return BETA_2B * self._kv_s

    # -- PerformanceModel ---------------------------------------------------------------------------------------------

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds of a step of prompt tokens; the whole prompt is taken to end with them."""
        require_amount("new_tokens", new_tokens)
        require_amount("context_tokens", context_tokens)
        if new_tokens == 0.0:
            return 0.0
        pairs = new_tokens * (context_tokens + new_tokens + new_tokens / 2.0)
        return self.base_s + self.prompt_s + self.prompt_token_s * new_tokens + self.pair_s * pairs

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of a decode iteration: a + b n + c K (beta_2a is 0)."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        if sequences == 0.0:
            return 0.0
        return self.base_s + self.sequence_s * sequences + self.kv_token_s * kv_tokens
