"""One rehearsal: what breaks the SLO is refused, what does not passes, what is not known is said."""

from dataclasses import replace

import numpy as np
import pytest

from controller.closed_loop.gate import FEWEST_REQUESTS, drawn_window
from controller.operator.rehearsal.question import CANNOT, FALLS, HOLDS, TOO_FEW, RehearsalQuestion
from controller.operator.rehearsal.replay import FEWEST_DRAWN, MOST_REQUESTS, Stage, seed_of
from controller.resources.model_service import TraceSource
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from tests.controller.rehearsal.stand import question

BUCKETS = (
    RequestBucket(rate_rps=3.0, input_tokens=100.4, output_tokens=0.2),
    RequestBucket(rate_rps=0.0, input_tokens=5.0, output_tokens=5.0),
    RequestBucket(rate_rps=1.0, input_tokens=900.0, output_tokens=50.0),
)


@pytest.fixture(scope="module")
def stage() -> Stage:
    """Read the catalogues once."""
    return Stage()


def test_requests_are_drawn_as_measured() -> None:
    drawn, buckets = drawn_window(BUCKETS, 5000.0, fewest=1, most=10**6, seed=3)
    assert np.array_equal(drawn.prompt_tokens, np.array([100, 5, 900])[buckets])
    assert len(drawn) == 20_000
    assert drawn.arrival_s[-1] == pytest.approx(5000.0, rel=0.05)
    gaps = np.diff(drawn.arrival_s)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential
    sizes, counts = np.unique(
        np.stack((drawn.prompt_tokens, drawn.output_tokens)), axis=1, return_counts=True
    )
    assert sizes.T.tolist() == [[100, 1], [900, 50]]
    assert counts[0] / len(drawn) == pytest.approx(0.75, abs=0.02)
    again, _ = drawn_window(BUCKETS, 5000.0, fewest=1, most=10**6, seed=3)
    assert np.array_equal(again.arrival_s, drawn.arrival_s)
    other, _ = drawn_window(BUCKETS, 5000.0, fewest=1, most=10**6, seed=4)
    assert not np.array_equal(other.arrival_s, drawn.arrival_s)


@pytest.mark.parametrize(("rate", "number"), [(1e-4, FEWEST_DRAWN), (1e5, MOST_REQUESTS)])
def test_low_rates_are_drawn_for_longer_and_high_ones_for_less(rate: float, number: int) -> None:
    buckets = [RequestBucket(rate_rps=rate, input_tokens=10.0, output_tokens=10.0)]
    drawn, _ = drawn_window(buckets, 600.0, fewest=FEWEST_DRAWN, most=MOST_REQUESTS, seed=0)
    assert len(drawn) == number
    assert drawn.arrival_s[-1] == pytest.approx(number / rate, rel=0.2)


def test_questions_that_differ_in_a_little_of_the_rates_are_much_alike() -> None:
    one = question()
    assert one.much_like(question(rate=20.9, carried=7.3))
    for other in (
        question(rate=22.0),
        question(carried=8.0),
        question(planned=2),
        question(digest="d2"),
        question(gpu="H100-SXM"),
        replace(one, buckets=(*one.buckets[:1], replace(one.buckets[1], input_tokens=1600.0))),
        replace(one, buckets=one.buckets[:1]),
    ):
        assert not one.much_like(other)


def test_the_draw_belongs_to_the_solve_and_the_service() -> None:
    one = question()
    assert seed_of(one) == seed_of(replace(one, digest="d2", window_s=60.0))
    assert (
        len({seed_of(one), seed_of(replace(one, solve_id="s2")), seed_of(replace(one, service="a/b"))}) == 3
    )


def test_too_few_replicas_are_refused_and_a_harmless_saving_passes(stage: Stage) -> None:
    refused = stage.answer(question(4, 1))
    assert (refused.allowed, refused.reason) == (False, FALLS)
    assert refused.running_ratio is not None
    assert refused.planned_ratio is not None
    assert (refused.planned_ratio < 0.5, refused.running_ratio > 0.99) == (True, True)
    assert f"{int(1e4 * refused.planned_ratio) / 100:.2f} % of {refused.requests} requests" in refused.message
    assert refused.requests == 6000
    passed = stage.answer(question(6, 4))
    assert (passed.allowed, passed.reason) == (True, HOLDS)
    again = stage.answer(question(4, 1))
    assert replace(again, wall_s=0.0) == replace(refused, wall_s=0.0)


def test_rows_of_a_load_test_set_the_pace(stage: Stage) -> None:
    """A replica that was measured to carry less than the model says is too little where the model's is enough."""
    modelled = stage.answer(question(6, 3, rate=12.0))
    assert modelled.allowed is True
    measured = stage.answer(question(6, 3, rate=12.0, measured=True, carried=3.0))
    assert measured.allowed is False
    assert "step times set by the rows of fast ×" in measured.message
    enough = stage.answer(question(9, 5, rate=12.0, measured=True, carried=3.0))
    assert enough.allowed is True


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "nobody/knows"}, "unknown model"),
        ({"gpu": "BasicA"}, "unknown gpu 'BasicA'"),
        ({"gpu": "A100-80-SXM-MIG-1g.10gb"}, "MIG"),
        ({"model": "meta-llama/Llama-2-70b-hf", "gpu": "T4"}, "GpuProfile fast"),
        ({"measured": True, "carried": 500.0}, "500 requests/s per replica"),
        ({"measured": True, "carried": 0.01}, "0.01 requests/s per replica"),
    ],
)
def test_what_the_catalogues_do_not_know_cannot_be_rehearsed(
    stage: Stage, changes: dict[str, object], said: str
) -> None:
    found = stage.answer(question(**changes))  # type: ignore[arg-type]
    assert (found.allowed, found.reason) == (None, CANNOT)
    assert said in found.message
    assert "GpuProfile fast: " in found.message


def test_small_requests_may_go_to_replicas_that_could_not_serve_the_large_ones(stage: Stage) -> None:
    """An L4 that gets everything keeps no SLO; with the sizes that it serves it is worth its money."""
    sizes = ((200.0, 100.0), (6000.0, 50.0))
    base = question(
        buckets=tuple(RequestBucket(rate_rps=2.0, input_tokens=i, output_tokens=o) for i, o in sizes),
        slo="ttft_p99=1.0,tbt_p99=0.1",
    )
    (large,) = base.variants
    small = replace(
        large, name="b", gpu_profile="slow", gpu_type="L4", serves=(0,), carried_rps=2.0, running=2, planned=2
    )
    asked = replace(base, variants=(replace(large, running=4, planned=3), small))
    apart = ((0.0, 1.0), (1.0, 0.0))
    assert stage.answer(replace(asked, by_size=(apart, apart))).allowed is True
    mixed = stage.answer(asked)
    assert mixed.running_ratio is not None
    assert mixed.running_ratio < 0.95


def split(running: tuple[int, int], planned: tuple[int, int], **changes: object) -> RehearsalQuestion:
    """Return a question about replicas for prefill and others for decode."""
    base = question()
    variants = tuple(
        replace(
            base.variants[0],
            name=role.value,
            gpu_profile=role.value,
            role=role,
            running=runs,
            planned=wanted,
            carried_rps=carried,
        )
        for role, runs, wanted, carried in zip(
            (Role.PREFILL, Role.DECODE), running, planned, (12.0, 8.0), strict=True
        )
    )
    return replace(base, variants=variants, **changes)  # type: ignore[arg-type]


def test_prefill_and_decode_are_rehearsed_together(stage: Stage) -> None:
    assert stage.answer(split((4, 4), (3, 3))).allowed is True
    assert stage.answer(split((4, 4), (1, 4))).allowed is False
    assert stage.answer(split((4, 4), (4, 0))).planned_ratio == 0.0
    slow = stage.answer(split((4, 4), (3, 3), link_bytes_per_s=1e9))  # 20 prompts/s of 0.1 GB
    assert slow.running_ratio is not None
    assert slow.running_ratio < 0.5
    small = stage.answer(split((4, 4), (3, 3), link_bytes_per_s=1e9, kv_bytes_per_token=10.0))
    assert small.allowed is True
    one = split((4, 4), (3, 3))
    measured = replace(one, variants=tuple(replace(variant, measured=True) for variant in one.variants))
    assert "set by the rows of prefill × 1.12, decode × " in stage.answer(measured).message


def burst(count: int, *, every_s: float, times: int) -> str:
    """Return a trace in which requests arrive many at once."""
    rows = [f"{k * every_s:.3f},512,64" for k in range(times) for _ in range(count)]
    return "\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n"


def test_a_recorded_trace_is_replayed_with_its_bursts(stage: Stage) -> None:
    """Once a minute many requests at once: a rate that one replica carries, and bursts that it does not."""
    asked = replace(
        question(8, 1),
        trace=TraceSource(name="t"),
        buckets=(RequestBucket(rate_rps=1.0, input_tokens=512.0, output_tokens=64.0),),
    )
    found = stage.answer(asked, burst(60, every_s=60.0, times=20))
    assert found.allowed is False
    assert found.requests == 5 * 60  # of the last 300 s
    even = stage.answer(asked, burst(1, every_s=1.0, times=1200))
    assert (even.allowed, even.requests) == (True, 300)


@pytest.mark.parametrize(
    "text", ["", "\n", "arrival_s,prompt_tokens,output_tokens\n", "a,b\n1,2\n", "\x00\x01"]
)
def test_a_trace_that_is_none_cannot_be_rehearsed(stage: Stage, text: str) -> None:
    found = stage.answer(question(trace=TraceSource(name="t")), text)
    assert found.allowed is None
    assert found.reason in {CANNOT, TOO_FEW}


def test_a_window_with_hardly_a_request_says_nothing(stage: Stage) -> None:
    asked = question(trace=TraceSource(name="t"))
    found = stage.answer(asked, burst(1, every_s=60.0, times=FEWEST_REQUESTS))
    assert (found.allowed, found.reason) == (None, TOO_FEW)
