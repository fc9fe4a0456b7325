"""Step tables say what the performance models say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.step_models import instance_kind, table_of
from simulator.step_table import PrefillForm, StepTable
from solver.performance.book import PerformanceBook
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles

GPUS, MODELS = read_gpus(), read_models()
BOOK = PerformanceBook(gpus=GPUS, models=MODELS, tables=read_profiles(GPUS, MODELS), extrapolate_tables=True)
LONGEST = 2048


def roofline(model: str, gpu: str, gpus: int) -> Roofline:
    kind = ReplicaKind(
        model=model, gpu_type=gpu, gpus_per_replica=gpus, precision=MODELS[model].default_precision.value
    )
    return Roofline.of(kind, GPUS[gpu], MODELS[model])


CASES: dict[str, PerformanceModel] = {
    "table": BOOK.performance(
        ReplicaKind(model="bigscience/bloom", gpu_type="A100-80-SXM", gpus_per_replica=8, precision="bf16")
    ),
    "roofline": roofline("meta-llama/Llama-3.1-70B", "H100-SXM", 4),
    "physics": TrainedPhysics(roofline=roofline("meta-llama/Llama-3.1-70B", "H100-SXM", 4)),
}
TABLES = {
    name: table_of(
        model,
        max_batch=256,
        longest_step_tokens=LONGEST,
        kv_capacity_tokens=model.kv_capacity_tokens(),
    )
    for name, model in CASES.items()
}


def decode_at(table: StepTable, sequences: int, kv_tokens: float) -> float:
    j = int(np.searchsorted(table.kv_knots_tokens, kv_tokens, side="right")) - 1
    slope = table.decode_slope_s[sequences, j]
    return float(table.decode_s[sequences, j] + slope * (kv_tokens - table.kv_knots_tokens[j]))


def prefill_at(table: StepTable, tokens: int, context: int) -> float:
    """One chunk at the end of its prompt."""
    alone = float(table.prefill_s[tokens])
    if table.prefill_form is PrefillForm.ADDITIVE:
        seen = context + tokens if table.whole_prompt_pairs else context
        pairs = tokens * (seen + tokens / 2.0)
        return alone + table.prompt_s + max(table.context_s * (context + tokens), table.pair_s * pairs)
    if context == 0:
        return alone
    grid = np.arange(len(table.prefill_s))
    low, high = np.interp([context, context + tokens], grid, table.prefill_s)
    return max(alone, float(high - low))


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=150, deadline=None)
@given(sequences=st.integers(1, 256), share=st.floats(0.0, 1.0))
def test_decode_seconds_are_the_models(name: str, sequences: int, share: float) -> None:
    kv_tokens = sequences + share * CASES[name].kv_capacity_tokens()
    told = CASES[name].decode_iteration_s(float(sequences), kv_tokens)
    assert decode_at(TABLES[name], sequences, kv_tokens) == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=150, deadline=None)
@given(tokens=st.integers(1, LONGEST), context=st.integers(0, 20_000))
def test_prefill_seconds_are_the_models(name: str, tokens: int, context: int) -> None:
    told = CASES[name].prefill_s(float(tokens), context_tokens=float(context))
    assert prefill_at(TABLES[name], tokens, context) == pytest.approx(told, rel=1e-11)


@pytest.mark.parametrize("name", list(CASES))
def test_watts_are_the_models_within_one_percent(name: str) -> None:
    model, table = CASES[name], TABLES[name]
    assert table.idle_w == model.idle_w()
    for tokens in (1, 17, 300, 1999):
        assert table.prefill_w[tokens] == pytest.approx(model.prefill_w(float(tokens)), rel=0.01)
    for sequences in (1, 5, 77, 256):
        for j, kv_tokens in enumerate(table.kv_knots_tokens.tolist()):
            seconds = model.decode_iteration_s(float(sequences), kv_tokens)
            joules = model.decode_w(float(sequences), kv_tokens) * seconds
            assert table.decode_j[sequences, j] == pytest.approx(joules, rel=0.01)


def test_a_sliding_window_is_followed_within_two_percent() -> None:
    windowed = next(m for m in MODELS.values() if m.sliding_window_tokens is not None)
    gpus = 1 if windowed.parameters < 60e9 else 4
    model = roofline(windowed.name, "H100-SXM", gpus)
    capacity = model.kv_capacity_tokens()
    table = table_of(model, max_batch=128, longest_step_tokens=LONGEST, kv_capacity_tokens=capacity)
    randomness = np.random.default_rng(1)
    for _ in range(300):
        sequences = int(randomness.integers(1, 129))
        kv_tokens = float(randomness.uniform(sequences, capacity))
        told = model.decode_iteration_s(float(sequences), kv_tokens)
        assert decode_at(table, sequences, kv_tokens) == pytest.approx(told, rel=0.02)


def test_trained_physics_has_the_published_coefficients() -> None:
    """BLIS's own coefficients for Llama-3.1-70B on four H100."""
    model = CASES["physics"]
    assert isinstance(model, TrainedPhysics)
    assert model.base_s == pytest.approx(16614.04e-6, abs=5e-9)
    assert model.sequence_s == pytest.approx(5.347e-6, abs=5e-10)
    assert model.kv_token_s == pytest.approx(0.04761e-6, abs=5e-12)


def test_kv_bytes_follow_the_models_own_heads() -> None:
    name = "meta-llama/Llama-3.1-70B"
    kind = instance_kind("i", CASES["roofline"], MODELS[name], max_batch=8, longest_step_tokens=512)
    assert kind.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert (kind.gpus, kind.layers, kind.gpu_type) == (4, 80, "H100-SXM")
