"""Explanations of services against brute force: the best plan, the second best, and what each limit costs."""

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.cluster import ServiceState, Stance
from solver.domain.gpu_mix import RequestBucket
from solver.services.explain import Explanation, ServiceLimits, explain_service
from solver.services.plan import serves
from tests.solver.made_services import variant

MOST = 6
"""Replicas of a variant that brute force tries; rates are so small that no more are ever needed."""


def unlimited(service: ServiceState, **gpus: int) -> ServiceLimits:
    nothing = (None,) * len(service.variants)
    free = {v.pool: gpus.get(v.pool, 100) for v in service.variants}
    return ServiceLimits(own_max=nothing, fit=nothing, free_gpus=free)


def explain(service: ServiceState, limits: ServiceLimits) -> Explanation:
    return explain_service(service, limits, time_limit_s=60.0, clock=time.monotonic)


def plans(service: ServiceState, limits: ServiceLimits) -> Iterable[tuple[float, tuple[int, ...]]]:
    """Enumerate all plans that hold, with their costs."""
    assert limits.free_gpus is not None
    ranges = []
    for v, own, fit in zip(service.variants, limits.own_max, limits.fit, strict=True):
        most = min(x for x in (own, fit, MOST) if x is not None)
        low, high = (v.replicas, v.replicas) if v.locked else (min(v.min_replicas, most), most)
        ranges.append(range(low, high + 1))
    for counts in itertools.product(*ranges):
        used: dict[str, int] = {}
        cost = 0.0
        for v, count in zip(service.variants, counts, strict=True):
            used[v.pool] = used.get(v.pool, 0) + count * v.gpus_per_replica
            more = count - v.replicas
            per_gpu = service.start_cost_usd if more > 0 else service.stop_cost_usd
            cost += v.price_usd_per_h * count + abs(more) * v.gpus_per_replica * per_gpu
        fits = all(gpus <= limits.free_gpus[pool] for pool, gpus in used.items())
        if fits and serves(service, counts, headroom_ratio=service.headroom_ratio):
            yield cost, counts


def cheapest(service: ServiceState, limits: ServiceLimits) -> float:
    return min((cost for cost, _ in plans(service, limits)), default=math.inf)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ServiceState, ServiceLimits]:
    states = []
    for index in range(draw(st.integers(1, 3))):
        pool = "ABC"[index]
        replicas = draw(st.integers(0, 2))
        states.append(
            variant(
                f"v{index}",
                pool,
                [draw(st.sampled_from((1.0, 2.3)))],
                gpus_per_replica=draw(st.sampled_from((1, 2))),
                price_usd_per_h=draw(st.sampled_from((1.0, 1.7, 4.1))),
                replicas=replicas,
                ready=replicas,
                held=replicas,
                min_replicas=draw(st.sampled_from((0, 0, 1))),
                locked=draw(st.sampled_from((False, False, False, True))),
            )
        )
    service = ServiceState(
        name="team/chat",
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=draw(st.sampled_from((0.7, 1.9, 3.1)))),),
        variants=tuple(states),
        headroom_ratio=draw(st.sampled_from((0.0, 0.2))),
        start_cost_usd=draw(st.sampled_from((0.0, 0.3))),
    )
    limits = ServiceLimits(
        own_max=tuple(draw(st.sampled_from((None, None, 1, 3))) for _ in states),
        fit=tuple(draw(st.sampled_from((None, 2, 5))) for _ in states),
        free_gpus={v.pool: draw(st.sampled_from((2, 4, 100))) for v in states},
    )
    return service, limits


@settings(max_examples=40, deadline=None)
@given(problems())
def test_best_second_best_and_limits_are_those_of_brute_force(
    problem: tuple[ServiceState, ServiceLimits],
) -> None:
    service, limits = problem
    found = explain(service, limits)
    assert found.whole
    best = cheapest(service, limits)
    if math.isinf(best):
        assert found.status == "infeasible"
        assert found.cost_usd_per_h is None
    else:
        assert found.cost_usd_per_h == pytest.approx(best, abs=1e-6)
        assert found.replicas is not None
        used = {v.pool for v, n in zip(service.variants, found.replicas, strict=True) if n}
        others = [
            cost
            for cost, counts in plans(service, limits)
            if {v.pool for v, n in zip(service.variants, counts, strict=True) if n} != used
        ]
        if found.second_best is None:
            assert not others
        else:
            assert found.second_best.cost_usd_per_h == pytest.approx(min(others), abs=1e-6)
    told = {(one.kind, one.name): one.saving_usd_per_h for one in found.binding}
    for kind, name, varied, varied_limits in without_each(service, limits):
        other = cheapest(varied, varied_limits)
        saving = told.get((kind, name), 0.0)
        if math.isinf(best):
            assert ((kind, name) in told) == (not math.isinf(other)), (kind, name)
        else:
            # unlocking can cost: a locked variant runs what it runs, an unlocked one at least its minReplicas
            assert saving == pytest.approx(max(0.0, best - other), abs=1e-5), (kind, name)


def without_each(
    service: ServiceState, limits: ServiceLimits
) -> Iterable[tuple[str, str, ServiceState, ServiceLimits]]:
    """Take each limit away, in this test's own words."""
    for index, v in enumerate(service.variants):
        states = list(service.variants)
        if v.locked:
            states[index] = replace(v, locked=False)
            yield "locked", v.name, replace(service, variants=tuple(states)), limits
        else:
            states[index] = replace(v, min_replicas=0)
            yield "min-replicas", v.name, replace(service, variants=tuple(states)), limits
            own = tuple(None if i == index else most for i, most in enumerate(limits.own_max))
            yield "max-replicas", v.name, service, replace(limits, own_max=own)
        fit = tuple(None if i == index else most for i, most in enumerate(limits.fit))
        gpus = {**(limits.free_gpus or {}), v.pool: 1000}
        yield "gpus", v.pool, service, replace(limits, fit=fit, free_gpus=gpus)
    yield "headroom", "", replace(service, headroom_ratio=0.0), limits


def test_survival_has_its_price() -> None:
    states = (variant("a", "A", [1.0], price_usd_per_h=2.0),)
    service = ServiceState(
        name="s", stance=Stance.APPLIED, buckets=(RequestBucket(rate_rps=0.5),), variants=states, survive=1
    )
    found = explain(service, unlimited(service))
    assert found.replicas == (2,)
    (one,) = found.binding
    assert one.kind == "survive"
    assert one.saving_usd_per_h == pytest.approx(2.0)


def test_unequal_prices_in_a_pool_are_kept_apart() -> None:
    cheap = variant("cheap", "A[gpu.example/kind=x]", [1.0], price_usd_per_h=1.0)
    dear = variant("dear", "A[gpu.example/kind=x]", [1.0], price_usd_per_h=3.0)
    service = ServiceState(
        name="s", stance=Stance.APPLIED, buckets=(RequestBucket(rate_rps=1.9),), variants=(dear, cheap)
    )
    found = explain(service, unlimited(service))
    assert found.replicas == (0, 2)
    assert found.cost_usd_per_h == pytest.approx(2.0)
    assert found.second_best is not None
    assert found.second_best.pools == ("A[gpu.example/kind=x]",)


def test_out_of_time_says_so() -> None:
    service = ServiceState(
        name="s",
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=1.0),),
        variants=(variant("a", "A", [1.0]),),
        headroom_ratio=0.1,
    )
    ticks = itertools.count(0.0, 30.0)
    found = explain_service(service, unlimited(service), time_limit_s=1.0, clock=lambda: next(ticks))
    assert not found.whole
