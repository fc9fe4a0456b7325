"""A cluster is decided in parts that share nothing: who is in which, and that nothing is lost by it."""

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.cluster import ClusterState, GpuPool, ServiceState, Stance, VariantState
from solver.domain.deadline import Clock, Deadline
from solver.domain.gpu_mix import RequestBucket
from solver.services import decide as module
from solver.services.decide import DecideOptions, decide, parts_of
from solver.services.plan import Known

OPTIONS = DecideOptions(gap_ratio=0.0)


def service(
    name: str,
    *pools: str,
    rate: float = 2.0,
    rps: float = 1.0,
    stance: Stance = Stance.APPLIED,
    held: int = 0,
) -> ServiceState:
    return ServiceState(
        name=name,
        stance=stance,
        buckets=(RequestBucket(rate_rps=rate),),
        variants=tuple(
            VariantState(
                name=f"v{index}",
                pool=pool,
                gpus_per_replica=1,
                price_usd_per_h=1.0 + index,
                throughput_rps=(rps + index,),
                replicas=held,
                ready=held,
                held=held,
            )
            for index, pool in enumerate(pools)
        ),
    )


def cluster(*services: ServiceState, gpus: int = 100) -> ClusterState:
    names = sorted({v.pool for s in services for v in s.variants})
    return ClusterState(pools=tuple(GpuPool(name=name, gpus=gpus) for name in names), services=services)


def names_of(state: ClusterState) -> list[list[str]]:
    return [[service.name for service in part.services] for part in parts_of(state)]


def test_services_that_may_use_a_common_pool_in_turn_stay_together() -> None:
    state = cluster(service("a", "A", "B"), service("b", "B", "C"), service("c", "C"), service("d", "D"))
    assert names_of(state) == [["d"], ["a", "b", "c"]]
    (small, large) = parts_of(state)
    assert [pool.name for pool in small.pools] == ["D"]
    assert [pool.name for pool in large.pools] == ["A", "B", "C"]


def test_a_fixed_service_ties_nothing_together_and_counts_where_it_is() -> None:
    fixed = service("f", "A", "B", stance=Stance.FIXED, held=3)
    state = cluster(service("a", "A"), service("b", "B"), fixed, gpus=4)
    assert names_of(state) == [["a", "f"], ["b", "f"]]
    decided = {d.service: d.replicas for d in decide(state, options=OPTIONS, clock=time.monotonic)}
    assert decided == {"a": None, "b": None}  # 4 less 3 leave one GPU, and two are needed


def test_nothing_moves_nothing_is_decided() -> None:
    assert parts_of(cluster(service("f", "A", stance=Stance.FIXED))) == ()


@st.composite
def clusters(draw: st.DrawFn) -> ClusterState:
    names = ["A", "B", "C", "D"]
    services = [
        service(
            f"s{index}",
            *draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)),
            rate=draw(st.sampled_from((0.0, 0.7, 2.0, 3.9))),
            rps=draw(st.sampled_from((1.0, 1.5))),
            stance=draw(st.sampled_from((Stance.APPLIED, Stance.APPLIED, Stance.PROPOSED, Stance.FIXED))),
            held=draw(st.integers(0, 2)),
        )
        for index in range(draw(st.integers(1, 5)))
    ]
    return replace(
        cluster(*services),
        pools=tuple(GpuPool(name=name, gpus=draw(st.integers(0, 12))) for name in names),
    )


def whole(state: ClusterState) -> dict[str, tuple[str, float | None]]:
    """Decide without taking the cluster apart."""
    decided = module._decide_part(
        state,
        options=OPTIONS,
        deadline=Deadline.after(60.0, time.monotonic),
        clock=time.monotonic,
        known={},
        at=lambda _: None,
    )
    return {name: (d.status, d.cost_usd_per_h) for name, d in decided.items()}


@settings(max_examples=80, deadline=None)
@given(clusters())
def test_the_parts_cost_what_the_whole_costs(state: ClusterState) -> None:
    moving = [s.name for s in state.services if s.stance is not Stance.FIXED]
    seen = [s.name for part in parts_of(state) for s in part.services if s.stance is not Stance.FIXED]
    assert sorted(seen) == sorted(moving)
    decisions = decide(state, options=OPTIONS, clock=time.monotonic)
    assert [d.service for d in decisions] == moving
    together = whole(state)
    for decision in decisions:
        status, cost = together[decision.service]
        # a part that fits needs no other part to fail with it
        if cost is not None:
            assert decision.status == status
    ours = sum(d.cost_usd_per_h or 0.0 for d in decisions)
    theirs = sum(cost or 0.0 for _, cost in together.values())
    if all(cost is not None for _, cost in together.values()):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_when_time_is_up_the_rest_is_told_so_and_not_begun() -> None:
    now_s = 0.0
    begun: list[str] = []

    def clock() -> float:
        return now_s

    def at(name: str) -> None:
        nonlocal now_s
        begun.append(name)
        now_s += 10.0

    state = cluster(*(service(f"s{index}", f"P{index}") for index in range(6)))
    as_clock: Clock = clock
    decisions = decide(state, options=DecideOptions(time_limit_s=25.0), clock=as_clock, at=at)
    assert begun == ["s0", "s1", "s2"]
    assert [d.reason for d in decisions[3:]] == ["timed-out"] * 3
    assert decisions[0].replicas == (2,)


def test_a_demand_beyond_all_numbers_is_refused_alone() -> None:
    state = cluster(service("huge", "A", rate=1e6, rps=1e-6), service("sane", "A"))
    decisions = {d.service: d for d in decide(state, options=OPTIONS, clock=time.monotonic)}
    assert decisions["huge"].replicas is None
    assert decisions["huge"].reason == "out-of-range"
    assert "replicas of one variant" in decisions["huge"].message
    assert decisions["sane"].replicas == (2,)


def test_what_is_known_is_not_solved_again_and_what_is_old_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Known = {}
    begun: list[str] = []
    first = cluster(service("a", "A"), service("b", "B"))
    decide(first, options=OPTIONS, clock=time.monotonic, known=known, at=begun.append)
    decide(first, options=OPTIONS, clock=time.monotonic, known=known, at=begun.append)
    assert sorted(begun) == ["a", "b"]
    decide(cluster(service("c", "C")), options=OPTIONS, clock=time.monotonic, known=known)
    assert len(known) == 3  # those that were not asked for stay
    monkeypatch.setattr(module, "LEAST_KNOWN", 2)
    monkeypatch.setattr(module, "KNOWN_PER_SERVICE", 1)
    decide(cluster(service("a", "A")), options=OPTIONS, clock=time.monotonic, known=known)
    assert {problem.name for problem in known} == {"c", "a"}


def test_what_is_known_grows_with_the_services_and_not_with_their_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LEAST_KNOWN", 0)
    monkeypatch.setattr(module, "KNOWN_PER_SERVICE", 3)
    known: Known = {}
    for change in range(30):
        rates = {"a": 1.0 + change, "b": 2.0 + change}
        state = cluster(*(service(name, "A", rate=rate) for name, rate in rates.items()))
        decide(state, options=OPTIONS, clock=time.monotonic, known=known)
        assert len(known) <= 6
    begun: list[str] = []
    decide(state, options=OPTIONS, clock=time.monotonic, known=known, at=begun.append)
    assert begun == []  # of what is there now, all is known


def test_a_thousand_services_that_share_a_short_pool_are_one_crowd_quickly() -> None:
    many = tuple(service(f"s{index}", "A", rate=1.0) for index in range(1000))
    state = cluster(*many, gpus=10)
    decisions = decide(state, options=DecideOptions(time_limit_s=1.0), clock=time.monotonic)
    assert len(decisions) == 1000
    assert not any(math.isnan(d.cost_usd_per_h or 0.0) for d in decisions)
