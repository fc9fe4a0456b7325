"""Facts of GPUs and models: known values, counts from shapes, precision rules."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.hardware import Precision, parse_precision
from telemetry.catalogue.read import read_gpus, read_models

GPUS = read_gpus()
MODELS = read_models()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_from_shapes_agree_with_the_published_count(name: str) -> None:
    model = MODELS[name]
    assert model.parameters_from_shapes == pytest.approx(model.parameters, rel=0.007)
    # Publishers differ in whether they count the embedding among the active weights.
    assert model.active_parameters_from_shapes == pytest.approx(model.active_parameters, rel=0.10)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("meta-llama/Llama-3.1-70B", 327_680),
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("meta-llama/Llama-2-70b-hf", 327_680),
        ("bigscience/bloom", 4_014_080),
        ("deepseek-ai/DeepSeek-V3", 70_272),  # 61 x (512 + 64) x 2
    ],
)
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    assert MODELS[name].kv_bytes_per_token() == kv_bytes
    assert MODELS[name].kv_bytes_per_token(1.0) == kv_bytes / 2


def test_weight_bytes_follow_the_precision() -> None:
    llama = MODELS["meta-llama/Llama-3.1-70B"]
    assert llama.weight_bytes(Precision.BF16) == 2 * llama.parameters
    assert llama.weight_bytes(Precision.FP8) == llama.parameters
    assert llama.weight_bytes(Precision.INT4) < 0.3 * llama.weight_bytes(Precision.BF16)


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "openai/gpt-oss-120b"])
def test_mxfp4_rule_gives_the_published_average(name: str) -> None:
    """Experts at 4.25 bits and the rest at 16 is what the checkpoint's average says."""
    model = MODELS[name]
    by_rule = dataclasses.replace(model, default_precision_bytes=None).weight_bytes(Precision.MXFP4)
    assert by_rule == pytest.approx(model.weight_bytes(Precision.MXFP4), rel=0.002)


def test_cache_copies() -> None:
    assert MODELS["deepseek-ai/DeepSeek-V3"].kv_copies(8) == 8
    assert MODELS["meta-llama/Llama-3.1-70B"].kv_copies(8) == 1
    assert MODELS["meta-llama/Llama-3.1-70B"].kv_copies(16) == 2


def test_experts_touched_starts_at_the_chosen_and_ends_at_all() -> None:
    model = MODELS["deepseek-ai/DeepSeek-V3"]
    assert model.experts_touched(1) == pytest.approx(8)
    assert model.experts_touched(10_000) == pytest.approx(256)
    assert MODELS["meta-llama/Llama-3.1-8B"].experts_touched(5) == 0


@given(few=st.floats(0, 1e5), more=st.floats(0, 1e5))
def test_more_tokens_read_no_fewer_weights(few: float, more: float) -> None:
    few, more = sorted((few, more))
    for model in MODELS.values():
        assert model.read_bytes(few, Precision.BF16) <= model.read_bytes(more, Precision.BF16)
        assert model.read_bytes(more, Precision.BF16) <= model.weight_bytes(Precision.BF16) * 1.007


@given(context=st.floats(1, 1e6), further=st.floats(0, 1e6))
def test_windows_see_less_of_more_but_never_less_in_all(context: float, further: float) -> None:
    gemma = MODELS["google/gemma-3-27b-it"]
    near, far = gemma.seen_ratio(context), gemma.seen_ratio(context + further)
    assert 10 / 62 <= far <= near <= 1
    assert far * (context + further) >= near * context * (1 - 1e-12)


def test_arithmetic_rates_by_precision() -> None:
    a100, h100, b300 = GPUS["A100-80-SXM"], GPUS["H100-SXM"], GPUS["B300"]
    assert a100.flops(Precision.FP8) == a100.flops(Precision.BF16) == 312e12
    assert h100.flops(Precision.FP8) == 1979e12
    assert h100.flops(Precision.FP4) == 989.5e12
    assert b300.flops(Precision.INT8) == b300.fp16_flops  # its int8 units are slower than 16 bit
    assert h100.flops(Precision.MXFP4) == h100.flops(Precision.INT4) == h100.fp16_flops


def test_a_card_without_bf16_refuses_it() -> None:
    with pytest.raises(InputError, match="T4 has no bf16 units; precision fp16"):
        GPUS["T4"].flops(Precision.BF16)
    assert GPUS["T4"].flops(Precision.FP16) == 65e12


def test_links_outside_the_fast_domain_are_pcie() -> None:
    assert GPUS["H100-SXM"].link_bytes_per_s(8) == 450e9
    assert GPUS["H100-SXM"].link_bytes_per_s(16) == 64e9
    assert GPUS["A40"].link_bytes_per_s(4) == 32e9
    assert (
        dataclasses.replace(
            GPUS["L4"], pcie_bytes_per_s=None, interconnect_bytes_per_s=None
        ).link_bytes_per_s(2)
        is None
    )


@pytest.mark.parametrize(("text", "precision"), [("bfloat16", "bf16"), ("FP8", "fp8"), ("awq", "int4")])
def test_precision_spellings(text: str, precision: str) -> None:
    assert parse_precision(text).value == precision


def test_unknown_precision_names_the_known() -> None:
    with pytest.raises(InputError, match="unknown precision 'fp7'; one of bf16, fp16"):
        parse_precision("fp7")
