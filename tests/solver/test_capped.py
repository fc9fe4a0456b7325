"""Caps: never above them, monotone, nothing where they do not bind, and the figures that are told."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.performance.book import PerformanceBook
from solver.performance.capped import CLOCK_POWER_EXPONENT, Capped, capped
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles

GPUS, MODELS = read_gpus(), read_models()
H100 = GPUS["H100-SXM"]
BOOK = PerformanceBook(gpus=GPUS, models=MODELS, tables=read_profiles(GPUS, MODELS), extrapolate_tables=True)
LLAMA = ReplicaKind(
    model="meta-llama/Llama-3.1-70B", gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16"
)
ROOFLINE = Roofline.of(LLAMA, H100, MODELS[LLAMA.model])
BLOOM = BOOK.performance(
    ReplicaKind(model="bigscience/bloom", gpu_type="H100-SXM", gpus_per_replica=8, precision="bf16")
)

models = st.sampled_from([ROOFLINE, TrainedPhysics(roofline=ROOFLINE), BLOOM])
caps = st.floats(200.0, 700.0)
tokens = st.floats(1.0, 20_000.0)
sequences = st.floats(1.0, 300.0)
contexts = st.floats(0.0, 50_000.0)


@given(model=models, pair=st.tuples(caps, caps), new=tokens, context=contexts, n=sequences)
def test_a_lower_cap_is_never_faster_and_watts_stay_below_it(
    model: PerformanceModel, pair: tuple[float, float], new: float, context: float, n: float
) -> None:
    low, high = (capped(model, cap, H100) for cap in sorted(pair))
    slack = 1.0 + 1e-12
    for lower, upper in ((low, high), (high, model)):
        assert lower.prefill_s(new, context_tokens=context) * slack >= upper.prefill_s(
            new, context_tokens=context
        )
        assert lower.decode_iteration_s(n, n * 500.0) * slack >= upper.decode_iteration_s(n, n * 500.0)
        assert lower.prefill_w(new) <= upper.prefill_w(new)
        assert lower.decode_w(n, n * 500.0) <= upper.decode_w(n, n * 500.0)
    assert max(low.prefill_w(new), low.decode_w(n, n * 500.0)) <= low.cap_w


@given(model=models, new=tokens, n=sequences)
def test_a_cap_that_a_phase_does_not_reach_changes_nothing_there(
    model: PerformanceModel, new: float, n: float
) -> None:
    gpus = model.kind.gpus_per_replica
    prefill = min(max(model.prefill_w(new) / gpus * (1 + 1e-9), 200.0), 700.0)
    assert capped(model, prefill, H100).prefill_s(new) == model.prefill_s(new)
    decode = min(max(model.decode_w(n, n) / gpus * (1 + 1e-9), 200.0), 700.0)
    assert capped(model, decode, H100).decode_iteration_s(n, n) == model.decode_iteration_s(n, n)
    assert capped(model, 700.0, H100).prefill_s(new) == model.prefill_s(new)


@given(cap=caps, new=tokens)
def test_the_clock_meets_the_cap(cap: float, new: float) -> None:
    model = capped(ROOFLINE, cap, H100)
    ratio = model.prefill_clock_ratio(new)
    drawn_w = min(ROOFLINE.prefill_w(new), 4 * 700.0)
    idle_w = ROOFLINE.idle_w()
    met_w = idle_w + (drawn_w - idle_w) * ratio**CLOCK_POWER_EXPONENT
    assert met_w == pytest.approx(min(drawn_w, 4 * cap))


def test_what_is_not_bound_by_the_clock_stays() -> None:
    """With free arithmetic and no floors a card decodes at the speed of its memory, whatever the cap."""
    coefficients = dataclasses.replace(
        ROOFLINE.coefficients, layer_floor_s=0.0, hop_s=0.0, compute_efficiency_ratio=1e6
    )
    memory_bound = dataclasses.replace(ROOFLINE, coefficients=coefficients)
    slow = capped(memory_bound, 200.0, H100)
    assert slow.decode_clock_ratio(64.0, 64_000.0) < 0.5
    assert slow.decode_iteration_s(64.0, 64_000.0) == pytest.approx(
        memory_bound.decode_iteration_s(64.0, 64_000.0)
    )


def test_the_known_error_is_what_is_told() -> None:
    def ratios(share: float) -> tuple[list[float], list[float]]:
        model = capped(BLOOM, 700.0 * share, H100)
        prompts = [model.prefill_s(t) / BLOOM.prefill_s(t) for t in (128.0, 512.0, 2048.0, 8192.0)]
        decodes = [
            model.decode_iteration_s(n, n * 700) / BLOOM.decode_iteration_s(n, n * 700)
            for n in (1.0, 16.0, 64.0)
        ]
        return prompts, decodes

    prompts, decodes = ratios(0.7)
    assert min(prompts) == pytest.approx(1.31, abs=0.005)
    assert max(prompts) == pytest.approx(1.35, abs=0.005)
    assert min(decodes) == 1.0
    assert max(decodes) == pytest.approx(1.04, abs=0.005)
    prompts, decodes = ratios(0.5)
    assert max(prompts) == pytest.approx(1.85, abs=0.005)
    assert max(decodes) == pytest.approx(1.14, abs=0.005)


@pytest.mark.parametrize("cap", [199.0, 701.0, 0.0, -5.0, float("nan")])
def test_caps_that_the_card_cannot_take_are_refused(cap: float) -> None:
    with pytest.raises(InputError):
        capped(ROOFLINE, cap, H100)


def test_a_cap_below_the_idle_power_is_refused_where_no_limit_is_known() -> None:
    unlimited = dataclasses.replace(H100, min_power_limit_w=None)
    with pytest.raises(InputError, match="72 W that an idle"):
        capped(ROOFLINE, 71.0, unlimited)
    assert isinstance(capped(ROOFLINE, 80.0, unlimited), Capped)


def test_unknown_watts_cannot_be_capped() -> None:
    unknown = dataclasses.replace(ROOFLINE, gpu=dataclasses.replace(H100, idle_w=None))
    with pytest.raises(InputError, match="idle power"):
        capped(unknown, 300.0, H100)
