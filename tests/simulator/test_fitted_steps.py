"""Fits from requests give back the steps that a simulated fleet ran by."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine.run import simulate
from simulator.fleet import Fleet, Pool, Role, Router, RouterKind, Scheduler
from simulator.metrics import tbt_of
from simulator.record import RunRecord
from simulator.step_models import instance_kind, table_of
from solver.domain.errors import InputError
from solver.domain.trace import Ints, Requests
from solver.performance.capped import capped
from solver.performance.fitted import Fitted, ObservedRequests, StepFit, fit_from_requests
from solver.performance.protocol import PerformanceModel
from solver.performance.trained_physics import ACCEPT_S, TrainedPhysics
from tests.simulator.test_step_models import CASES, GPUS, MODELS, decode_at, prefill_at
from tests.solver.test_fitted import KIND, MODEL, ROOFLINE, TRUTH

NAMES = (
    "prefill_s",
    "prefill_token_s",
    "prefill_pair_s",
    "decode_s",
    "sequence_s",
    "kv_token_s",
    "shared_s",
)


def served(
    model: PerformanceModel, *, rate_rps: float, chunked: bool = True, split: bool = False, total: int = 1500
) -> tuple[Requests, RunRecord]:
    randomness = np.random.default_rng(1)
    requests = Requests(
        arrival_s=np.cumsum(randomness.exponential(1.0 / rate_rps, total)),
        prompt_tokens=np.clip(randomness.lognormal(6.8, 1.0, total).astype(np.int64), 1, 8000),
        output_tokens=np.clip(randomness.lognormal(4.8, 1.0, total).astype(np.int64), 1, 1000),
    )
    kind = instance_kind(
        "i", model, MODELS[KIND.model], max_batch=256, longest_step_tokens=2048 if chunked else 8192
    )
    roles = (Role.PREFILL, Role.DECODE) if split else (Role.BOTH,)
    fleet = Fleet(
        models=("m",),
        kinds=(kind,),
        pools=tuple(Pool(name=str(role), kind=0, count=2, role=role) for role in roles),
        scheduler=Scheduler(max_batch=256, max_batch_tokens=2048, chunked_prefill=chunked),
        router=Router(kind=RouterKind.MIXED_POOL if split else RouterKind.JSQ),
    )
    return requests, simulate(fleet, requests)


def seen(requests: Requests, record: RunRecord) -> ObservedRequests:
    return ObservedRequests(
        arrival_s=requests.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        queue_s=record.queue_s,
        ttft_s=record.ttft_s,
        tbt_s=tbt_of(record, requests, per_output_token=False),
        e2e_s=record.e2e_s,
        prefill_instance=record.prefill_instance.astype(np.int64),
        decode_instance=record.decode_instance.astype(np.int64),
        preemptions=record.preemptions.astype(np.int64),
    )


def fitted_to(observed: ObservedRequests, *, chunked: bool = True, instances: Ints | None = None) -> StepFit:
    return fit_from_requests(
        observed,
        KIND,
        instances=np.arange(4) if instances is None else instances,
        chunk_tokens=2048 if chunked else None,
        otherwise=ROOFLINE,
    )


@pytest.mark.parametrize("rate_rps", [1.0, 8.0])
def test_mixed_instances_give_their_coefficients_back(rate_rps: float) -> None:
    fit = fitted_to(seen(*served(MODEL, rate_rps=rate_rps)))
    for name in NAMES:
        assert getattr(fit, name) == pytest.approx(getattr(TRUTH, name), rel=0.05)
    assert fit.accept_s == 0.0
    assert fit.prefill_ratio_90 == pytest.approx((1.0, 1.0), abs=0.03)
    assert fit.decode_ratio_90 == pytest.approx((1.0, 1.0), abs=0.03)


def test_whole_prompts_give_their_coefficients_back() -> None:
    fit = fitted_to(seen(*served(MODEL, rate_rps=6.0, chunked=False)), chunked=False)
    for name in NAMES[:6]:
        assert getattr(fit, name) == pytest.approx(getattr(TRUTH, name), rel=0.05)


def test_dedicated_instances_give_theirs_and_the_rest_is_modelled() -> None:
    observed = seen(*served(MODEL, rate_rps=6.0, split=True))
    fit = fitted_to(observed)
    for name in NAMES[:3]:
        assert getattr(fit, name) == pytest.approx(getattr(TRUTH, name), rel=0.02)
    assert fit.decode_s == pytest.approx(TRUTH.decode_s, rel=0.1)  # transfers count as decode time
    prompts_only = fitted_to(observed, instances=np.arange(2))
    assert prompts_only.decodes == 0
    assert "decodes not observed" in prompts_only.known_error
    modelled = Fitted(fit=prompts_only, roofline=ROOFLINE).decode_iteration_s(16.0, 16_000.0)
    assert modelled == pytest.approx(ROOFLINE.decode_iteration_s(16.0, 16_000.0), rel=0.1)


def test_what_a_request_costs_before_iterations_is_found() -> None:
    fit = fitted_to(seen(*served(TrainedPhysics(roofline=ROOFLINE), rate_rps=4.0)))
    assert fit.accept_s == pytest.approx(ACCEPT_S, rel=0.01)
    kind = instance_kind(
        "i",
        Fitted(fit=fit, roofline=ROOFLINE),
        MODELS[KIND.model],
        max_batch=8,
        longest_step_tokens=64,
    )
    assert kind.accept_s == fit.accept_s


def test_a_fit_predicts_latencies_of_a_model_of_another_form() -> None:
    """The soft corner of a roofline is no straight line; percentiles of a fit to it stay within a few percent."""
    requests, record = served(CASES["roofline"], rate_rps=4.0)
    fit = fitted_to(seen(requests, record))
    _, again = served(Fitted(fit=fit, roofline=ROOFLINE), rate_rps=4.0)
    for name in ("ttft_s", "e2e_s"):
        for percentile in (50, 90, 99):
            told = np.nanpercentile(getattr(again, name), percentile)
            assert told == pytest.approx(np.nanpercentile(getattr(record, name), percentile), rel=0.08)


@pytest.mark.parametrize("error_s", [0.001, 0.02])
def test_times_taken_badly_do_not_upset_a_fit(error_s: float) -> None:
    """Clocks off by up to a whole iteration; the shortest prompts then seem to take no time at all."""
    requests, record = served(MODEL, rate_rps=4.0)
    observed = seen(requests, record)
    noise = np.random.default_rng(5).normal(0.0, error_s, (3, len(observed)))
    queue_s = np.maximum(observed.queue_s + noise[0], 0.0)
    ttft_s = np.maximum(observed.ttft_s + noise[1], queue_s + 1e-6)
    fit = fitted_to(
        replace(observed, queue_s=queue_s, ttft_s=ttft_s, e2e_s=np.maximum(observed.e2e_s + noise[2], ttft_s))
    )
    _, again = served(Fitted(fit=fit, roofline=ROOFLINE), rate_rps=4.0)
    assert np.mean(again.ttft_s) == pytest.approx(np.mean(record.ttft_s), rel=0.06)
    assert np.mean(again.e2e_s) == pytest.approx(np.mean(record.e2e_s), rel=0.02)


def test_too_few_requests_are_refused() -> None:
    observed = seen(*served(MODEL, rate_rps=1.0, total=15))
    with pytest.raises(InputError, match="at least 20 for a fit"):
        fitted_to(observed)


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.integers(1, 2048),
    context=st.integers(0, 20_000),
    sequences=st.integers(1, 64),
    kv=st.integers(1, 10**6),
)
def test_tables_of_fits_are_exact(tokens: int, context: int, sequences: int, kv: int) -> None:
    told = MODEL.prefill_s(float(tokens), context_tokens=float(context))
    assert prefill_at(TABLE, tokens, context) == pytest.approx(told, rel=1e-11)
    told = MODEL.decode_iteration_s(float(sequences), float(kv))
    assert decode_at(TABLE, sequences, float(kv)) == pytest.approx(told, rel=1e-11)


TABLE = table_of(MODEL, max_batch=64, longest_step_tokens=2048, kv_capacity_tokens=400_000)


def test_a_capped_fit_keeps_its_form() -> None:
    slow = capped(MODEL, 350.0, GPUS["H100-SXM"])
    table = table_of(slow, max_batch=64, longest_step_tokens=2048, kv_capacity_tokens=400_000)
    assert prefill_at(table, 2048, 4096) == pytest.approx(slow.prefill_s(2048.0, context_tokens=4096.0))
    assert prefill_at(table, 300, 0) == pytest.approx(slow.prefill_s(300.0))
    assert table.shared_s == TRUTH.shared_s
