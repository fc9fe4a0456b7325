"""Fits: least squares against every subset of columns, exact on exact data, refusals."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.trace import Floats
from solver.performance.fitted import Fitted, StepFit, fit_iterations, nonnegative_least_squares
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from telemetry.catalogue.read import read_gpus, read_models

KIND = ReplicaKind(
    model="meta-llama/Llama-3.1-70B", gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16"
)
ROOFLINE = Roofline.of(KIND, read_gpus()["H100-SXM"], read_models()[KIND.model])
TRUTH = StepFit(
    kind=KIND,
    prefill_s=0.02,
    prefill_token_s=6e-5,
    prefill_pair_s=2e-9,
    decode_s=0.015,
    sequence_s=5e-5,
    kv_token_s=1e-7,
    shared_s=0.015,
    prefills=100,
    decodes=100,
)
MODEL = Fitted(fit=TRUTH, roofline=ROOFLINE)


def residual(matrix: Floats, wanted: Floats, x: Floats) -> float:
    return float(np.sum((matrix @ x - wanted) ** 2))


def best_of_all_subsets(matrix: Floats, wanted: Floats) -> float:
    columns = matrix.shape[1]
    best = residual(matrix, wanted, np.zeros(columns))
    for size in range(1, columns + 1):
        for subset in combinations(range(columns), size):
            x = np.zeros(columns)
            x[list(subset)] = np.linalg.lstsq(matrix[:, list(subset)], wanted, rcond=None)[0]
            if np.all(x >= 0.0):
                best = min(best, residual(matrix, wanted, x))
    return best


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 10**6), rows=st.integers(3, 20), columns=st.integers(1, 6), zero=st.booleans())
def test_nonnegative_least_squares_is_as_good_as_any_subset_of_columns(
    seed: int, rows: int, columns: int, *, zero: bool
) -> None:
    randomness = np.random.default_rng(seed)
    matrix = randomness.normal(size=(rows, columns)) * 10.0 ** randomness.integers(-6, 6, columns)
    if zero:
        matrix[:, 0] = 0.0
    wanted = randomness.normal(size=rows)
    found = nonnegative_least_squares(matrix, wanted)
    assert np.all(found >= 0.0)
    assert residual(matrix, wanted, found) <= best_of_all_subsets(matrix, wanted) * (1 + 1e-9) + 1e-12


def test_alike_columns_and_exact_data_do_not_run_forever() -> None:
    matrix = np.ones((5, 4))
    found = nonnegative_least_squares(matrix, np.full(5, 3.0))
    assert found.sum() == pytest.approx(3.0)
    assert nonnegative_least_squares(matrix, np.full(5, -3.0)).tolist() == [0.0] * 4


def iterations(model: Fitted, noise: float = 0.0) -> tuple[Floats, Floats]:
    randomness = np.random.default_rng(3)
    prefills, decodes = [], []
    for _ in range(200):
        new, context = float(randomness.integers(1, 2048)), float(randomness.integers(0, 8000))
        prefills.append((new, context, model.prefill_s(new, context_tokens=context)))
        n, kv = float(randomness.integers(1, 200)), float(randomness.integers(1, 200_000))
        decodes.append((n, kv, model.decode_iteration_s(n, kv)))
    rows = np.array(prefills), np.array(decodes)
    for part in rows:
        part[:, 2] *= randomness.uniform(1.0 - noise, 1.0 + noise, len(part))
    return rows


def test_iterations_without_noise_give_the_coefficients_back() -> None:
    fit = fit_iterations(KIND, *iterations(MODEL))
    for name in ("prefill_s", "prefill_token_s", "prefill_pair_s", "decode_s", "sequence_s", "kv_token_s"):
        assert getattr(fit, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6)
    assert fit.shared_s == min(fit.prefill_s, fit.decode_s)
    assert fit.prefill_ratio_90 == pytest.approx((1.0, 1.0))


def test_the_interval_is_the_noise() -> None:
    fit = fit_iterations(KIND, *iterations(MODEL, noise=0.1))
    assert fit.prefill_ratio_90 == pytest.approx((0.91, 1.09), abs=0.02)
    assert fit.decode_ratio_90 == pytest.approx((0.91, 1.09), abs=0.02)
    assert "90 % of 200 prefills within" in fit.known_error


def test_too_few_iterations_are_refused() -> None:
    prefills, decodes = iterations(MODEL)
    with pytest.raises(InputError, match="19 prompt iterations; at least 20"):
        fit_iterations(KIND, prefills[:19], decodes)


def test_watts_memory_and_kind_are_the_rooflines() -> None:
    assert MODEL.prefill_w(500.0) == ROOFLINE.prefill_w(500.0)
    assert MODEL.decode_w(5.0, 500.0) == ROOFLINE.decode_w(5.0, 500.0)
    assert (MODEL.idle_w(), MODEL.kv_capacity_tokens()) == (ROOFLINE.idle_w(), ROOFLINE.kv_capacity_tokens())
    assert MODEL.kind == ROOFLINE.kind
    assert MODEL.prefill_s(0.0) == MODEL.decode_iteration_s(0.0, 0.0) == 0.0
