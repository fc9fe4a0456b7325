"""Decisions for services that share GPUs, and the way to them: against brute force, and by their laws."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.cluster import ClusterState, GpuPool, ServiceState, Stance
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.services.decide import DecideOptions, decide
from solver.services.steps import Move, RolloutStep, StepKind, next_move, plan_steps
from tests.solver.made_services import variant
from tests.solver.split_services import carries, survives

POOLS = ("A", "H")


@st.composite
def services(draw: st.DrawFn, name: str, *, split: bool | None = None) -> ServiceState:
    """Draw a service; ``split``: some of its variants may serve one phase only (None: perhaps)."""
    buckets = draw(st.lists(st.sampled_from((0.0, 0.7, 1.9)), min_size=1, max_size=2))
    split = draw(st.booleans()) if split is None else split
    states = []
    for index in range(draw(st.integers(2, 3) if split else st.integers(1, 2))):
        replicas = draw(st.integers(0, 2))
        role = draw(st.sampled_from(tuple(Role))) if split else Role.BOTH
        states.append(
            variant(
                f"v{index}",
                draw(st.sampled_from(POOLS)),
                [draw(st.sampled_from((0.0, 1.0, 2.3))) for _ in buckets],
                gpus_per_replica=draw(st.sampled_from((1, 2))),
                price_usd_per_h=draw(st.sampled_from((1.0, 1.7, 4.1))),
                replicas=replicas,
                ready=draw(st.integers(0, replicas)),
                held=replicas,
                min_replicas=draw(st.sampled_from((0, 0, 1))),
                max_replicas=draw(st.sampled_from((None, None, 2))),
                locked=draw(st.sampled_from((False, False, False, True))),
                role=role,
                kv_link_bytes_per_s=None
                if role is Role.BOTH
                else draw(st.sampled_from((None, None, 0.0, 150.0))),
            )
        )
    return ServiceState(
        name=name,
        stance=draw(st.sampled_from(tuple(Stance))),
        buckets=tuple(
            RequestBucket(rate_rps=rate, input_tokens=50.0, output_tokens=20.0) for rate in buckets
        ),
        variants=tuple(states),
        headroom_ratio=draw(st.sampled_from((0.0, 0.1))),
        survive=draw(st.sampled_from((0, 0, 0, 1))) if split else 0,
        kv_bytes_per_prompt_token=draw(st.sampled_from((0.0, 2.0))) if split else 0.0,
        start_cost_usd=draw(st.sampled_from((0.0, 0.5))),
        stop_cost_usd=0.1,
    )


def objective(service: ServiceState, replicas: Sequence[int]) -> float:
    cost = 0.0
    for state, count in zip(service.variants, replicas, strict=True):
        more = count - state.replicas
        rate = service.start_cost_usd if more > 0 else service.stop_cost_usd
        cost += state.price_usd_per_h * count + abs(more) * state.gpus_per_replica * rate
    return cost


def choices(service: ServiceState) -> list[tuple[int, ...]]:
    ranges = []
    for state in service.variants:
        if state.locked:
            ranges.append(range(state.replicas, state.replicas + 1))
        else:
            most = 5 + service.survive if service.splits else 8
            most = most if state.max_replicas is None else state.max_replicas
            ranges.append(range(state.min_replicas, max(most, state.min_replicas) + 1))
    return [
        counts
        for counts in itertools.product(*ranges)
        if carries(service, counts, headroom_ratio=service.headroom_ratio) and survives(service, counts)
    ]


def use(service: ServiceState, counts: Sequence[int], pool: str) -> int:
    return sum(
        s.gpus_per_replica * n for s, n in zip(service.variants, counts, strict=True) if s.pool == pool
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_services_whose_plans_are_applied_cost_least_within_what_the_others_leave(
    data: st.DataObject,
) -> None:
    chosen = [data.draw(services(f"s{index}")) for index in range(data.draw(st.integers(1, 2)))]
    prices: dict[str, float] = {}
    for service in chosen:  # one price per GPU and pool, so that brute force and solver mean the same problem
        for state in service.variants:
            prices.setdefault(state.pool, state.price_usd_per_h / state.gpus_per_replica)
    chosen = [
        replace(
            service,
            start_cost_usd=chosen[0].start_cost_usd,
            variants=tuple(
                replace(v, price_usd_per_h=prices[v.pool] * v.gpus_per_replica) for v in service.variants
            ),
        )
        for service in chosen
    ]
    gpus = {pool: data.draw(st.integers(0, 8)) for pool in POOLS}
    cluster = ClusterState(
        pools=tuple(GpuPool(name=pool, gpus=count) for pool, count in gpus.items()), services=tuple(chosen)
    )
    decided = {
        d.service: d for d in decide(cluster, options=DecideOptions(gap_ratio=0.0), clock=time.monotonic)
    }
    applied = [s for s in chosen if s.stance is Stance.APPLIED]
    assert set(decided) == {s.name for s in chosen if s.stance is not Stance.FIXED}
    able = [s for s in applied if choices(s)]
    for service in applied:
        if service not in able:
            assert decided[service.name].replicas is None
            assert decided[service.name].message
    fixed = [s for s in chosen if s not in able]
    free = {
        pool: count - sum(use(s, [v.held for v in s.variants], pool) for s in fixed)
        for pool, count in gpus.items()
    }
    best = math.inf
    for combination in itertools.product(*(choices(s) for s in able)):
        totals = {p: sum(use(s, c, p) for s, c in zip(able, combination, strict=True)) for p in POOLS}
        if all(totals[pool] <= max(0, free[pool]) for pool in POOLS):
            best = min(best, sum(objective(s, c) for s, c in zip(able, combination, strict=True)))
    plans = [decided[s.name].replicas for s in able]
    if not able:
        return
    if math.isinf(best):
        assert None in plans
    elif None not in plans:
        found = sum(objective(s, p) for s, p in zip(able, plans, strict=True) if p is not None)
        assert found == pytest.approx(best, rel=1e-5)
    else:
        pytest.fail(f"a plan of {best} exists, none was found")


def cluster_of(service: ServiceState, gpus: dict[str, int]) -> dict[str, int]:
    return {p: n - use(service, [v.held for v in service.variants], p) for p, n in gpus.items()}


@settings(max_examples=200, deadline=None)
@given(services("s"), st.data())
def test_a_rollout_never_takes_what_the_traffic_needs_and_never_more_gpus_than_there_are(
    service: ServiceState, data: st.DataObject
) -> None:
    options = choices(service)
    if not options:
        return
    wanted = data.draw(st.sampled_from(options))
    service = replace(
        service, variants=tuple(replace(v, ready=v.replicas, held=v.replicas) for v in service.variants)
    )
    gpus = {p: data.draw(st.integers(use(service, service.replicas, p), 14)) for p in POOLS}
    if any(use(service, wanted, p) > gpus[p] for p in POOLS):
        return
    carried = carries(service, service.replicas)
    rollout = plan_steps(service, wanted, cluster_of(service, gpus))
    if rollout.refused:
        assert not rollout.steps
        return
    for step in rollout.steps:
        move = next_move(service, step, free_gpus=cluster_of(service, gpus), fresh=True)
        if not carried and step.kind is not StepKind.SCALE_UP and move.move is Move.WAIT:
            return  # it waits until capacity carries the traffic, which it does not do without more
        assert move.move is Move.WRITE
        for ready in (False, True):  # first only asked for, then observed
            service = replace(
                service,
                variants=tuple(
                    replace(
                        v,
                        replicas=step.to_replicas,
                        held=max(v.held, step.to_replicas) if not ready else step.to_replicas,
                        ready=step.to_replicas if ready else min(v.ready, step.to_replicas),
                    )
                    if index == step.variant
                    else v
                    for index, v in enumerate(service.variants)
                ),
            )
            assert all(left >= 0 for left in cluster_of(service, gpus).values())
            now = carries(service, [v.ready for v in service.variants])
            assert now or not carried
            carried = carried or now
            expected = Move.ADVANCE if ready else (Move.WAIT, Move.ADVANCE)
            assert next_move(service, step, free_gpus=cluster_of(service, gpus), fresh=True).move in expected
    assert service.replicas == tuple(wanted)


def test_a_full_cluster_swaps_one_replica_at_a_time_if_the_traffic_leaves_one_to_spare() -> None:
    service = ServiceState(
        name="s",
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=2.0),),
        variants=(
            variant("old", "H", [1.0], replicas=3, ready=3, held=3),
            variant("new", "H", [3.0]),
        ),
    )
    rollout = plan_steps(service, (0, 1), {"H": 0})
    assert rollout.swaps
    assert rollout.steps == (
        RolloutStep(variant=0, from_replicas=3, to_replicas=2),
        RolloutStep(variant=1, from_replicas=0, to_replicas=1),
        RolloutStep(variant=0, from_replicas=2, to_replicas=0),
    )
    busy = replace(service, buckets=(RequestBucket(rate_rps=2.5),))
    refused = plan_steps(busy, (0, 1), {"H": 0})
    assert not refused.steps
    assert "no free GPUs" in refused.refused


def test_nothing_goes_down_while_the_traffic_is_not_known() -> None:
    service = ServiceState(
        name="s",
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=1.0),),
        variants=(variant("a", "A", [1.0], replicas=3, ready=3, held=3),),
    )
    down = RolloutStep(variant=0, from_replicas=3, to_replicas=1)
    assert next_move(service, down, free_gpus={}, fresh=True).move is Move.WRITE
    assert next_move(service, down, free_gpus={}, fresh=False).move is Move.WAIT
