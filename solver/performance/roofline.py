"""Step times and watts by formula, for any GPU and model of the catalogues: `Roofline`.

It exists because nobody has measured most pairs of model and GPU. Five fitted coefficients say how much of
the peaks a serving engine reaches and what it loses per layer, per sequence and per hop between GPUs; three
more say how busy units turn into watts. It is not a measurement: docs/accuracy.md says how far off it is, and
where a `ProfileTable` exists that one wins.

One step (a prefill or a decode iteration) of T new tokens, n sequences, g GPUs takes

    t = (C³ + W³ + F³)^(1/3) + A + X + R + S                                                       [seconds]

    C = (2·P·T + 2·P_head·n) / (g·peak·e_c)        arithmetic of the active weights P
    W = weight bytes read / (g·BW·e_b)             with experts E·(1 − (1 − k/E)^T) per layer
    F = L·(floor + 2·(g − 1)·hop)·c                launch floor c0 and latency of two all-reduces per layer
    A = max(KV bytes/(BW·e_b), pair FLOPs/(peak·e_c))   attention, per GPU; pairs T·(context + T/2) in prefill
    X = 2·L·2·(g − 1)/g·T·d·2 B / (link·e_b)       data of two ring all-reduces per layer
    R = 14·L·T·d·2 B / (BW·e_b)                    activations every rank reads and writes (norms, residuals)
    S = n·sequence·c                               scheduling, sampling and bookkeeping per sequence

with L layers, d hidden size, BW memory bandwidth, e_c and e_b efficiencies, c = 1.98 GHz / highest SM clock
(small kernels run at the speed of the clock). The cubes make a roofline with a soft corner: never below the
largest of the three, at most 44 % above it. Forms compared: BLIS (inference-sim), arXiv 2504.11750
(floor). For given n, t is affine in the cached tokens as long as one side of A wins, so segments of decode
have closed forms.

Watts per GPU = idle + (TDP − idle)·(w_0 + w_c·u_c^(1/3) + w_m·u_m^(1/3)) with u the share of peak arithmetic
and peak bandwidth in use over the step. Nothing is clamped: a result above TDP is a result (cards do pass it
briefly).
"""

import math
from dataclasses import dataclass

from solver.domain.errors import InputError
from solver.domain.hardware import GpuType, Precision, parse_precision
from solver.domain.llm import ModelShape
from solver.performance.protocol import ReplicaKind, require_amount

GIB = 2.0**30
REFERENCE_CLOCK_HZ = 1.98e9
"""The SM clock at which the floors of the coefficients hold (H100-SXM)."""
ACTIVATION_PASSES = 14.0
"""Vectors of the hidden size that an unfused layer moves per token: two norms (4), two residual sums (6), two
all-reduces in and out (4). Counted, not fitted."""
CORNER = 3.0
"""Sharpness of the roofline's corner; chosen once from 1.5, 2, 3, 4 on the tables of docs/accuracy.md."""
POWER_EXPONENT = 1.0 / 3.0
"""Chosen once from 0.3, 0.5, 0.7 and 1 on the ML.ENERGY table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineCoefficients:
    """Everything that was fitted: five numbers for time, three for watts, and where they come from."""

    compute_efficiency_ratio: float
    """e_c: share of the peak matrix rate."""
    bandwidth_efficiency_ratio: float
    """e_b: share of the peak bandwidth of memory and links."""
    layer_floor_s: float
    """Least time of one layer at `REFERENCE_CLOCK_HZ`."""
    sequence_s: float
    """Time of one sequence in one iteration, at `REFERENCE_CLOCK_HZ`."""
    hop_s: float
    """Latency of one all-reduce per further GPU, at `REFERENCE_CLOCK_HZ`."""
    active_power_ratio: float
    """w_0: share of TDP − idle that any running step draws."""
    compute_power_ratio: float
    """w_c: per cube root of the share of peak arithmetic."""
    memory_power_ratio: float
    """w_m: per cube root of the share of peak bandwidth."""
    provenance: str


DEFAULT_COEFFICIENTS = RooflineCoefficients(
    compute_efficiency_ratio=0.6658,
    bandwidth_efficiency_ratio=0.6623,
    layer_floor_s=1.347e-4,
    sequence_s=6.909e-5,
    hop_s=3.477e-6,
    active_power_ratio=0.1569,
    compute_power_ratio=0.9541,
    memory_power_ratio=0.3198,
    provenance="fitted on ML.ENERGY of 2026-02-16 and Vidur operators",
)
"""Engines of 2024 to 2026: H100 and B200 under vLLM (ML.ENERGY), operators on A40, A100 and H100 (Vidur). Made by
``python -m benchmarks.accuracy``, which prints the same numbers into docs/accuracy.md."""

SPLITWISE_COEFFICIENTS = RooflineCoefficients(
    compute_efficiency_ratio=0.4993,
    bandwidth_efficiency_ratio=0.5763,
    layer_floor_s=2.842e-4,
    sequence_s=2.383e-4,
    hop_s=7.886e-6,
    active_power_ratio=0.1569,
    compute_power_ratio=0.9541,
    memory_power_ratio=0.3198,
    provenance="fitted on Splitwise of 2023; watts on ML.ENERGY",
)
"""The engine behind Splitwise's measurements (2023, A100 and H100), for comparison with that paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """One step at the peaks, before any coefficient: what `step_s` weighs (symbols: module docstring)."""

    compute_s: float
    weights_s: float
    kv_s: float
    pairs_s: float
    """Arithmetic of attention at the 16-bit peak."""
    link_s: float
    activations_s: float
    floors: float
    """L·c"""
    hops: float
    """2·L·(g − 1)·c"""
    sequences: float
    """n·c"""


def step_terms(
    gpu: GpuType,
    model: ModelShape,
    precision: Precision,
    gpus: int,
    *,
    new_tokens: float,
    sequences: float,
    kv_tokens: float,
    pairs: float,
    kv_element_bytes: float = 2.0,
) -> StepTerms:
    """Lay out one step of ``gpus`` tensor-parallel GPUs.

    Parameters
    ----------
    new_tokens
        Tokens that pass the layers in this step.
    sequences
        Sequences whose next token is sampled (output head, bookkeeping).
    kv_tokens
        Cached tokens read, summed over sequences, windows already applied.
    pairs
        Pairs of (query, key) that attention computes, summed over sequences.

    Raises
    ------
    InputError
        If several GPUs are to talk and no link of the type is known.
    """
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    clock = 1.0 if gpu.max_sm_hz is None else REFERENCE_CLOCK_HZ / gpu.max_sm_hz
    body = model.active_parameters_from_shapes - model.head_parameters
    flops = 2.0 * body * new_tokens + 2.0 * model.head_parameters * sequences
    v_head_dim = model.head_dim if model.v_head_dim is None else model.v_head_dim
    pair_flops = 2.0 * model.layers * model.heads * (model.head_dim + v_head_dim) * pairs
    kv_bytes = kv_tokens * model.kv_bytes_per_token(kv_element_bytes) * model.kv_copies(gpus)
    vector_bytes = 2.0 * model.hidden_size * model.layers * new_tokens
    link_s = 0.0
    if gpus > 1:
        link = gpu.link_bytes_per_s(gpus)
        if link is None:
            raise InputError(
                f"no link between GPUs of {gpu.name} is known",
                right="interconnect_gb_per_s or pcie_gb_per_s in the GPU catalogue",
            )
        link_s = 2.0 * 2.0 * (gpus - 1) / gpus * vector_bytes / link
    return StepTerms(
        compute_s=flops / (gpus * gpu.flops(precision)),
        weights_s=model.read_bytes(new_tokens, precision) / (gpus * bandwidth),
        kv_s=kv_bytes / (gpus * bandwidth),
        pairs_s=pair_flops / (gpus * gpu.fp16_flops),
        link_s=link_s,
        activations_s=ACTIVATION_PASSES * vector_bytes / bandwidth,
        floors=model.layers * clock,
        hops=2.0 * model.layers * (gpus - 1) * clock,
        sequences=sequences * clock,
    )


def step_s(terms: StepTerms, coefficients: RooflineCoefficients) -> float:
    """Seconds of a step; the equation of the module's docstring."""
    compute, bandwidth = coefficients.compute_efficiency_ratio, coefficients.bandwidth_efficiency_ratio
    floor_s = coefficients.layer_floor_s * terms.floors + coefficients.hop_s * terms.hops
    corner_s = math.pow(
        math.pow(terms.compute_s / compute, CORNER)
        + math.pow(terms.weights_s / bandwidth, CORNER)
        + math.pow(floor_s, CORNER),
        1.0 / CORNER,
    )
    return (
        corner_s
        + max(terms.kv_s / bandwidth, terms.pairs_s / compute)
        + (terms.link_s + terms.activations_s) / bandwidth
        + coefficients.sequence_s * terms.sequences
    )


def power_ratio(terms: StepTerms, coefficients: RooflineCoefficients, seconds: float) -> float:
    """Share of TDP − idle that a step of ``seconds`` draws; may pass 1."""
    compute = (terms.compute_s + terms.pairs_s) / seconds
    memory = (terms.weights_s + terms.kv_s) / seconds
    return (
        coefficients.active_power_ratio
        + coefficients.compute_power_ratio * math.pow(compute, POWER_EXPONENT)
        + coefficients.memory_power_ratio * math.pow(memory, POWER_EXPONENT)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """`PerformanceModel` by formula for ``gpus`` tensor-parallel GPUs. Valid for any positive size.

    A formula has no measured range, so it never raises `OutsideRangeError`; ``coefficients.provenance`` and
    docs/accuracy.md say what it was fitted on.
    """

    gpu: GpuType
    model: ModelShape
    precision: Precision
    gpus: int = 1
    coefficients: RooflineCoefficients = DEFAULT_COEFFICIENTS
    memory_utilisation_ratio: float = 0.9
    """Share of the GPUs' memory that the engine may use."""
    activation_reserve_bytes: float = 1.0 * GIB
    """Per GPU, for activations and workspaces."""
    kv_element_bytes: float = 2.0
    """Bytes per element of the KV cache."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}; a replica has at least one")
        self.gpu.flops(self.precision)  # refuses a precision that the card cannot run

    @classmethod
    def of(
        cls,
        kind: ReplicaKind,
        gpu: GpuType,
        model: ModelShape,
        coefficients: RooflineCoefficients = DEFAULT_COEFFICIENTS,
    ) -> "Roofline":
        """Build the model of a replica from its key and the catalogue entries."""
        return cls(
            gpu=gpu,
            model=model,
            precision=parse_precision(kind.precision),
            gpus=kind.gpus_per_replica,
            coefficients=coefficients,
        )

    @property
    def kind(self) -> ReplicaKind:
        """The replica this model speaks of."""
        return ReplicaKind(
            model=self.model.name,
            gpu_type=self.gpu.name,
            gpus_per_replica=self.gpus,
            precision=self.precision.value,
        )

    def _terms(self, new_tokens: float, sequences: float, kv_tokens: float, pairs: float) -> StepTerms:
        return step_terms(
            self.gpu,
            self.model,
            self.precision,
            self.gpus,
            new_tokens=new_tokens,
            sequences=sequences,
            kv_tokens=kv_tokens,
            pairs=pairs,
            kv_element_bytes=self.kv_element_bytes,
        )

    def _prefill(self, new_tokens: float, context_tokens: float) -> StepTerms:
        end = context_tokens + new_tokens
        seen_ratio = self.model.seen_ratio(end)
        pairs = new_tokens * (context_tokens + new_tokens / 2.0)
        return self._terms(new_tokens, 1.0, end * seen_ratio, pairs * seen_ratio)

    def _decode(self, sequences: float, kv_tokens: float) -> StepTerms:
        seen = kv_tokens * self.model.seen_ratio(kv_tokens / sequences)
        return self._terms(sequences, sequences, seen, seen)

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Seconds of one step with ``new_tokens`` prompt tokens after ``context_tokens`` cached ones."""
        require_amount("new_tokens", new_tokens)
        require_amount("context_tokens", context_tokens)
        if new_tokens == 0.0:
            return 0.0
        return step_s(self._prefill(new_tokens, context_tokens), self.coefficients)

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Seconds of one decode iteration; sliding windows are applied to the mean context."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        if sequences == 0.0:
            return 0.0
        return step_s(self._decode(sequences, kv_tokens), self.coefficients)

    def _watts(self, terms: StepTerms) -> float:
        idle_w = self._idle_w()
        ratio = power_ratio(terms, self.coefficients, step_s(terms, self.coefficients))
        return self.gpus * (idle_w + (self.gpu.tdp_w - idle_w) * ratio)

    def _idle_w(self) -> float:
        if self.gpu.idle_w is None:
            raise InputError(
                f"idle power of {self.gpu.name} is not known",
                right="idle_w in a GPU catalogue file of your own",
            )
        return self.gpu.idle_w

    def prefill_w(self, new_tokens: float) -> float:
        """Watts of all GPUs while prompts are processed; `InputError` where the idle power is not known."""
        require_amount("new_tokens", new_tokens)
        return self.idle_w() if new_tokens == 0.0 else self._watts(self._prefill(new_tokens, 0.0))

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts of all GPUs during a decode iteration; `InputError` where the idle power is not known."""
        require_amount("sequences", sequences)
        require_amount("kv_tokens", kv_tokens)
        return self.idle_w() if sequences == 0.0 else self._watts(self._decode(sequences, kv_tokens))

    def idle_w(self) -> float:
        """Watts of all GPUs with nothing to do; `InputError` where not known (missing is never zero)."""
        return self.gpus * self._idle_w()

    def kv_capacity_tokens(self) -> int:
        """Tokens of cache beside the weights: ((memory·utilisation − reserve)·g − weights) / bytes per token.

        Latent (MLA) caches stand on every rank, others too once there are more ranks than KV heads. Sliding
        windows are not credited (an engine may save more). 0 if the weights do not fit.
        """
        room = self.gpu.memory_bytes * self.memory_utilisation_ratio - self.activation_reserve_bytes
        free = self.gpus * room - self.model.weight_bytes(self.precision)
        per_token = self.model.kv_bytes_per_token(self.kv_element_bytes) * self.model.kv_copies(self.gpus)
        return max(0, int(free / per_token))
