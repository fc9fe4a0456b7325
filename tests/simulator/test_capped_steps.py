"""Step tables of capped replicas say what the capped models say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.step_models import instance_kind, table_of
from simulator.step_table import PrefillForm
from solver.performance.capped import Capped, capped
from tests.simulator.test_step_models import CASES, GPUS, LONGEST, MODELS, decode_at, prefill_at

CAPPED: dict[str, Capped] = {
    name: capped(model, 0.6 * GPUS[model.kind.gpu_type].tdp_w, GPUS[model.kind.gpu_type])
    for name, model in CASES.items()
}
TABLES = {
    name: table_of(
        model, max_batch=128, longest_step_tokens=LONGEST, kv_capacity_tokens=model.kv_capacity_tokens()
    )
    for name, model in CAPPED.items()
}


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=100, deadline=None)
@given(tokens=st.integers(1, LONGEST))
def test_a_prompt_in_one_piece_is_exact(name: str, tokens: int) -> None:
    told = CAPPED[name].prefill_s(float(tokens))
    assert prefill_at(TABLES[name], tokens, 0) == pytest.approx(told, rel=1e-11)
    assert TABLES[name].prefill_w[tokens] <= CAPPED[name].cap_w * (1 + 1e-12)


@pytest.mark.parametrize("name", ["roofline", "physics"])
@settings(max_examples=100, deadline=None)
@given(context=st.integers(0, 20_000))
def test_a_full_chunk_is_exact_after_any_context(name: str, context: int) -> None:
    told = CAPPED[name].prefill_s(float(LONGEST), context_tokens=float(context))
    assert prefill_at(TABLES[name], LONGEST, context) == pytest.approx(told, rel=1e-11)


@pytest.mark.parametrize(("name", "error_ratio"), [("table", 0.05), ("roofline", 0.02), ("physics", 0.06)])
@settings(max_examples=200, deadline=None)
@given(tokens=st.integers(64, LONGEST), context=st.integers(0, 20_000))
def test_smaller_chunks_after_context_stay_close(
    name: str, error_ratio: float, tokens: int, context: int
) -> None:
    told = CAPPED[name].prefill_s(float(tokens), context_tokens=float(context))
    assert prefill_at(TABLES[name], tokens, context) == pytest.approx(told, rel=error_ratio)


@pytest.mark.parametrize("name", list(CASES))
@settings(max_examples=100, deadline=None)
@given(sequences=st.integers(1, 128), share=st.floats(0.0, 1.0), knot=st.integers(0, 4))
def test_decodes_are_exact_at_the_knots_and_close_between(
    name: str, sequences: int, share: float, knot: int
) -> None:
    model, table = CAPPED[name], TABLES[name]
    at = float(table.kv_knots_tokens[knot])
    told = model.decode_iteration_s(float(sequences), at)
    assert decode_at(table, sequences, at) == pytest.approx(told, rel=1e-11)
    kv_tokens = sequences + share * model.kv_capacity_tokens()
    between = model.decode_iteration_s(float(sequences), kv_tokens)
    assert decode_at(table, sequences, kv_tokens) == pytest.approx(between, rel=0.01)


def test_form_and_what_is_outside_the_iterations_are_the_uncapped_models() -> None:
    assert TABLES["table"].prefill_form is PrefillForm.DIFFERENCES
    assert TABLES["physics"].whole_prompt_pairs
    shape = MODELS[CASES["physics"].kind.model]
    plain, slow = (
        instance_kind("i", model, shape, max_batch=8, longest_step_tokens=512)
        for model in (CASES["physics"], CAPPED["physics"])
    )
    assert (slow.accept_s, slow.per_token_s, slow.finish_s) == (
        plain.accept_s,
        plain.per_token_s,
        plain.finish_s,
    )
    assert slow.table.shared_s == plain.table.shared_s
