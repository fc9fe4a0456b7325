"""The roofline: monotone, limits at the peaks, refusal of missing facts, KV capacity."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.hardware import GpuType, Precision
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import DEFAULT_COEFFICIENTS, Roofline
from telemetry.catalogue.read import read_gpus, read_models

GPUS = read_gpus()
MODELS = read_models()
LLAMA8 = MODELS["meta-llama/Llama-3.1-8B"]
LLAMA70 = MODELS["meta-llama/Llama-3.1-70B"]

replicas = st.builds(
    Roofline,
    gpu=st.sampled_from(
        [GPUS[name] for name in ("L4", "A40", "A100-80-SXM", "H100-SXM", "B200-SXM", "MI300X")]
    ),
    model=st.sampled_from(list(MODELS.values())),
    precision=st.sampled_from([Precision.BF16, Precision.FP8]),
    gpus=st.sampled_from([1, 2, 4, 8]),
)
amounts = st.floats(1, 20_000)


def on_h100(**changes: object) -> Roofline:
    plain: dict[str, object] = {
        "gpu": GPUS["H100-SXM"],
        "model": LLAMA70,
        "precision": Precision.BF16,
        "gpus": 4,
    }
    return Roofline(**{**plain, **changes})  # type: ignore[arg-type]


@given(replica=replicas, tokens=amounts, more=st.floats(0, 20_000), context=st.floats(0, 20_000))
def test_more_prompt_tokens_or_context_are_never_faster(
    replica: Roofline, tokens: float, more: float, context: float
) -> None:
    base = replica.prefill_s(tokens)
    assert base > 0
    assert replica.prefill_s(tokens + more) >= base * (1 - 1e-12)
    assert replica.prefill_s(tokens, context_tokens=context) >= base * (1 - 1e-12)


@given(replica=replicas, sequences=st.floats(1, 2000), more=st.floats(0, 2000), kv=amounts, further=amounts)
def test_more_sequences_or_cache_are_never_faster(
    replica: Roofline, sequences: float, more: float, kv: float, further: float
) -> None:
    base = replica.decode_iteration_s(sequences, kv)
    assert replica.decode_iteration_s(sequences + more, kv) >= base * (1 - 1e-12)
    assert replica.decode_iteration_s(sequences, kv + further) >= base * (1 - 1e-12)


@given(replica=replicas, sequences=st.floats(1, 500), kv=st.floats(1000, 50_000))
def test_decode_is_affine_in_cached_tokens_without_windows(
    replica: Roofline, sequences: float, kv: float
) -> None:
    """Segments of decode have closed forms because of this."""
    if replica.model.sliding_window_tokens is None:
        low, middle, high = (replica.decode_iteration_s(sequences, kv * factor) for factor in (1, 2, 3))
        assert middle - low == pytest.approx(high - middle, rel=1e-6, abs=1e-12)


@given(tokens=st.floats(2048, 50_000), fewer=st.sampled_from([1, 2, 4]))
def test_more_gpus_are_never_slower_in_the_compute_bound_regime(tokens: float, fewer: int) -> None:
    assert on_h100(gpus=2 * fewer).prefill_s(tokens) <= on_h100(gpus=fewer).prefill_s(tokens)


@given(replica=replicas, tokens=amounts)
def test_a_step_is_never_below_the_peaks(replica: Roofline, tokens: float) -> None:
    flops = 2 * (replica.model.active_parameters_from_shapes - replica.model.head_parameters) * tokens
    assert replica.prefill_s(tokens) >= flops / (replica.gpus * replica.gpu.flops(replica.precision))
    read = replica.model.read_bytes(1, replica.precision)
    assert replica.decode_iteration_s(1, 1) >= read / (
        replica.gpus * replica.gpu.memory_bandwidth_bytes_per_s
    )


def test_prefill_is_compute_bound_and_decode_bandwidth_bound() -> None:
    """Twice the arithmetic halves a long prefill; twice the bandwidth does not, and the other way round."""
    slow_floor = dataclasses.replace(DEFAULT_COEFFICIENTS, layer_floor_s=0.0, hop_s=0.0, sequence_s=0.0)
    base = on_h100(gpus=1, coefficients=slow_floor)
    fast = on_h100(
        gpus=1,
        coefficients=slow_floor,
        gpu=dataclasses.replace(base.gpu, fp16_flops=2 * base.gpu.fp16_flops),
    )
    wide = on_h100(
        gpus=1,
        coefficients=slow_floor,
        gpu=dataclasses.replace(
            base.gpu, memory_bandwidth_bytes_per_s=2 * base.gpu.memory_bandwidth_bytes_per_s
        ),
    )
    assert fast.prefill_s(16_384) < 0.6 * base.prefill_s(16_384)
    assert wide.prefill_s(16_384) > 0.9 * base.prefill_s(16_384)
    assert wide.decode_iteration_s(8, 8192) < 0.55 * base.decode_iteration_s(8, 8192)
    assert fast.decode_iteration_s(8, 8192) > 0.95 * base.decode_iteration_s(8, 8192)


def test_attention_is_quadratic_in_the_prompt() -> None:
    replica = on_h100()
    second = replica.prefill_s(96_000) - 2 * replica.prefill_s(64_000) + replica.prefill_s(32_000)
    pairs = 32_000**2
    flops = 4 * LLAMA70.layers * LLAMA70.heads * LLAMA70.head_dim * pairs
    peak = 4 * GPUS["H100-SXM"].fp16_flops * DEFAULT_COEFFICIENTS.compute_efficiency_ratio
    assert second == pytest.approx(flops / peak, rel=0.01)


def test_chunks_sum_to_at_least_the_whole_prefill() -> None:
    replica = on_h100()
    chunks = sum(replica.prefill_s(2048, context_tokens=done) for done in range(0, 16_384, 2048))
    assert replica.prefill_s(16_384) < chunks < 1.3 * replica.prefill_s(16_384)


def test_a_mixture_of_experts_reads_more_as_the_batch_grows() -> None:
    mixture = on_h100(model=MODELS["Qwen/Qwen3-235B-A22B"], precision=Precision.FP8)
    dense = on_h100(model=MODELS["Qwen/Qwen3-32B"], precision=Precision.FP8)

    def growth(replica: Roofline) -> float:
        return replica.decode_iteration_s(32, 32 * 500) / replica.decode_iteration_s(1, 500)

    assert growth(mixture) > 1.3 * growth(dense)


def test_fp8_weights_help_decode_on_a_card_without_fp8_units_but_not_prefill() -> None:
    bf16 = on_h100(gpu=GPUS["A100-80-SXM"])
    fp8 = on_h100(gpu=GPUS["A100-80-SXM"], precision=Precision.FP8)
    assert fp8.decode_iteration_s(1, 500) < 0.8 * bf16.decode_iteration_s(1, 500)
    assert fp8.prefill_s(20_000) == pytest.approx(bf16.prefill_s(20_000), rel=0.01)


def test_kv_capacity_by_hand() -> None:
    gib = 2.0**30
    replica = on_h100()
    free = 4 * (79.6 * gib * 0.9 - gib) - 2 * 70_553_706_496
    assert replica.kv_capacity_tokens() == int(free / 327_680)
    assert on_h100(gpus=1).kv_capacity_tokens() == 0


def test_latent_cache_does_not_grow_with_ranks() -> None:
    """Every rank holds the whole latent cache, so it is the room of one GPU that counts."""
    gpu = GPUS["H200-SXM"]
    deepseek = Roofline(gpu=gpu, model=MODELS["deepseek-ai/DeepSeek-V3"], precision=Precision.FP8, gpus=8)
    free = 8 * (gpu.memory_bytes * 0.9 - 2.0**30) - 671e9
    assert deepseek.kv_capacity_tokens() == int(free / 8 / 70_272)


@given(replica=replicas, tokens=amounts, sequences=st.floats(1, 500))
def test_watts_lie_above_idle_and_are_not_clamped(replica: Roofline, tokens: float, sequences: float) -> None:
    idle = replica.idle_w()
    assert replica.gpus * (replica.gpu.idle_w or 0) == idle
    assert replica.prefill_w(tokens) > idle
    assert replica.decode_w(sequences, sequences * 500) > idle
    hot = dataclasses.replace(
        replica, coefficients=dataclasses.replace(replica.coefficients, active_power_ratio=2.0)
    )
    assert hot.prefill_w(tokens) > replica.gpus * replica.gpu.tdp_w


def test_long_prefill_draws_more_than_decode() -> None:
    replica = on_h100()
    assert replica.prefill_w(8192) > 1.2 * replica.decode_w(8, 8 * 500)


def test_nothing_to_do_takes_no_time_and_idle_watts() -> None:
    replica = on_h100()
    assert replica.prefill_s(0) == replica.decode_iteration_s(0, 0) == 0
    assert replica.prefill_w(0) == replica.decode_w(0, 0) == replica.idle_w() == 4 * 72


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_senseless_amounts_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite number of at least 0"):
        on_h100().prefill_s(bad)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        on_h100().decode_iteration_s(1, bad)


def test_missing_facts_are_named_and_never_zero() -> None:
    b300 = on_h100(gpu=GPUS["B300"])
    assert b300.decode_iteration_s(8, 4000) > 0  # no clock known: floors as on an H100
    with pytest.raises(InputError, match="idle power of B300 is not known; idle_w"):
        b300.decode_w(8, 4000)
    alone: GpuType = dataclasses.replace(GPUS["L4"], pcie_bytes_per_s=None, interconnect_bytes_per_s=None)
    with pytest.raises(InputError, match="no link between GPUs of L4"):
        on_h100(gpu=alone, gpus=2).prefill_s(10)
    assert on_h100(gpu=alone, gpus=1, model=LLAMA8).prefill_s(10) > 0


def test_built_from_its_key() -> None:
    kind = ReplicaKind(model=LLAMA8.name, gpu_type="L4", gpus_per_replica=2, precision="bfloat16")
    built: PerformanceModel = Roofline.of(kind, GPUS["L4"], LLAMA8)
    assert built.kind == dataclasses.replace(kind, precision="bf16")
    with pytest.raises(InputError, match="no bf16 units"):
        Roofline.of(kind, GPUS["T4"], LLAMA8)
    with pytest.raises(ValueError, match="at least one"):
        on_h100(gpus=0)
