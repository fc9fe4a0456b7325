"""Services that may split their phases: the plan, its routing, its reasons, and the way to it."""

import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from solver.check.fleet import check_fleet
from solver.domain.cluster import ClusterState, GpuPool, ServiceDecision, ServiceState, Stance
from solver.domain.fleet import FleetConfig, FleetInstance, FleetModel, FleetPlan, Role
from solver.domain.gpu_mix import GpuMixInstance, PlanStatus, RequestBucket
from solver.phases.solve import FleetOptions, solve_fleet
from solver.services.decide import DecideOptions, decide
from solver.services.explain import Explanation, Rival, ServiceLimits, explain_service
from solver.services.plan import routing_of, serves, solve
from solver.services.problem import alone, together
from solver.services.settle import added
from solver.services.steps import Move, RolloutStep, next_move, plan_steps
from tests.solver.made_services import variant
from tests.solver.split_services import carries, survives
from tests.solver.test_services import choices, objective, services, use

EXACT = DecideOptions(gap_ratio=0.0)
SPLIT = ServiceState(
    name="chat",
    stance=Stance.APPLIED,
    buckets=(
        RequestBucket(rate_rps=8.0, input_tokens=100.0, output_tokens=10.0),
        RequestBucket(rate_rps=2.0, input_tokens=300.0, output_tokens=10.0),
    ),
    variants=(
        variant("all", "A", (1.0, 0.5), price_usd_per_h=4.0, gpus_per_replica=4),
        variant("out", "A", (4.0, 4.0), price_usd_per_h=4.0, gpus_per_replica=4, role=Role.DECODE),
        variant("in", "B", (16.0, 4.0), price_usd_per_h=12.0, gpus_per_replica=4, role=Role.PREFILL),
    ),
    kv_bytes_per_prompt_token=2.0,
)
"""Whole requests: 8 + 4 = 12 replicas at 4 US$/h. Split: 8/16 + 2/4 = 1 prefill replica, 10/4 = 2.5 of decode: 24.
KV: 8 x 200 + 2 x 600 = 2800 bytes/s."""


def changed(service: ServiceState, name: str, **changes: object) -> ServiceState:
    return replace(
        service,
        variants=tuple(replace(v, **changes) if v.name == name else v for v in service.variants),  # type: ignore[arg-type]
    )


def only(service: ServiceState, *names: str) -> ServiceState:
    return replace(service, variants=tuple(v for v in service.variants if v.name in names))


def decided(*group: ServiceState, **gpus: int) -> dict[str, ServiceDecision]:
    names = {v.pool for service in group for v in service.variants}
    pools = tuple(GpuPool(name=name, gpus=gpus.get(name, 1000)) for name in sorted(names))
    state = ClusterState(pools=pools, services=group)
    return {d.service: d for d in decide(state, options=EXACT, clock=time.monotonic)}


def plan_of(service: ServiceState, **gpus: int) -> ServiceDecision:
    return decided(service, **gpus)[service.name]


def test_a_service_splits_where_that_is_cheaper_and_stays_whole_where_it_is_not() -> None:
    split = plan_of(SPLIT)
    assert split.replicas == (0, 3, 1)
    assert split.cost_usd_per_h == pytest.approx(24.0)
    dear = plan_of(changed(SPLIT, "in", price_usd_per_h=60.0))
    assert dear.replicas == (12, 0, 0)
    assert dear.lower_bound_usd_per_h == pytest.approx(48.0)


def test_what_runs_stays_where_a_change_costs_more_than_it_saves() -> None:
    running = changed(SPLIT, "all", replicas=12, ready=12, held=12)
    assert plan_of(running).replicas == (0, 3, 1)
    held = plan_of(replace(running, start_cost_usd=1.0, stop_cost_usd=0.25))
    assert held.replicas == (12, 0, 0)  # 16 GPUs started and 48 stopped cost 28 US$, the split saves 24
    part = plan_of(replace(running, start_cost_usd=1.0, stop_cost_usd=0.15))
    assert part.replicas == (2, 2, 1)  # 28 + 6 + 12 = 46; all stays: 48; all goes: 24 + 7.2 + 16


def test_bounds_of_a_variant_are_kept() -> None:
    assert plan_of(changed(SPLIT, "out", min_replicas=5)).replicas == (0, 5, 1)
    assert plan_of(changed(SPLIT, "in", max_replicas=0)).replicas == (12, 0, 0)
    locked = plan_of(changed(SPLIT, "in", locked=True, replicas=2, ready=2, held=2))
    assert locked.replicas is not None
    assert locked.replicas[2] == 2


@pytest.mark.parametrize(
    ("service", "reason", "message"),
    [
        (only(SPLIT, "in"), "bucket-unservable", "prefill configs for it but no decode config"),
        (only(SPLIT, "out"), "bucket-unservable", "decode configs for it but no prefill config"),
        (changed(only(SPLIT, "in", "out"), "out", kv_link_bytes_per_s=0.0), "kv-transfer", "KV links"),
        (changed(only(SPLIT, "in", "out"), "out", max_replicas=2), "replica-limit", "most replicas"),
        (
            changed(only(replace(SPLIT, survive=1), "in", "out"), "in", max_replicas=1),
            "survive",
            "the loss of 1 replicas",
        ),
    ],
)
def test_why_there_is_no_plan(service: ServiceState, reason: str, message: str) -> None:
    found = plan_of(service)
    assert found.replicas is None
    assert (found.status, found.reason) == ("infeasible", reason)
    assert message in found.message


def test_links_call_for_more_replicas() -> None:
    slow = changed(SPLIT, "in", kv_link_bytes_per_s=1500.0)
    assert plan_of(slow).replicas == (0, 3, 2)


def test_too_few_gpus_for_all_are_shared_by_those_who_split_and_those_who_do_not() -> None:
    plain = replace(
        only(SPLIT, "all"),
        name="plain",
        buckets=(RequestBucket(rate_rps=2.0, input_tokens=100.0, output_tokens=10.0),) * 2,
    )
    apart = decided(SPLIT, plain)
    assert apart["plain"].replicas == (6,)
    assert apart["plain"].together_with == apart["chat"].together_with == 0
    short = decided(changed(SPLIT, "in", price_usd_per_h=1.0), plain, A=36, B=8)
    assert short["plain"].replicas == (6,)
    assert short["chat"].replicas == (0, 3, 1)
    assert not short["chat"].together_with
    tight = decided(SPLIT, plain, A=36, B=0)
    assert {d.reason for d in tight.values()} == {"gpu-limit"}
    assert {d.together_with for d in tight.values()} == {2}


def test_losing_any_replica_leaves_both_phases_served() -> None:
    safe = plan_of(replace(SPLIT, survive=1))
    assert safe.replicas == (0, 4, 2)
    instance = alone(replace(SPLIT, survive=1))
    assert isinstance(instance, FleetInstance)
    plan = solve_fleet(instance, FleetOptions(), time.monotonic)
    assert check_fleet(instance, plan) == ()
    for counts, lost in (((0, 4, 1), "config"), ((0, 3, 2), "config")):
        weaker = replace(plan, replicas=(counts,))
        assert any(f"after the loss of 1 of {lost}" in line for line in check_fleet(instance, weaker))


def test_the_checker_finds_broken_bounds_and_wrong_costs_of_changes() -> None:
    service = replace(
        changed(SPLIT, "out", max_replicas=3, replicas=1), start_cost_usd=0.5, stop_cost_usd=0.25
    )
    instance = alone(service)
    assert isinstance(instance, FleetInstance)
    plan = solve_fleet(instance, FleetOptions(), time.monotonic)
    assert check_fleet(instance, plan) == ()
    assert plan.change_cost_usd == pytest.approx(0.5 * (2 + 1) * 4)

    def findings(**changes: object) -> str:
        return " / ".join(check_fleet(instance, replace(plan, **changes)))  # type: ignore[arg-type]

    assert "4 replicas, 0 to 3 are asked for" in findings(replicas=((0, 4, 1),))
    assert "the cost of changes is stated as 0.0" in findings(change_cost_usd=0.0)
    assert "the objective is stated" in findings(objective=24.0)
    assert "change_cost_usd is given" in findings(status=PlanStatus.TIMED_OUT)


def cheapest(service: ServiceState) -> float | None:
    return min((objective(service, counts) for counts in choices(service)), default=None)


@settings(max_examples=40, deadline=None)
@given(services("s", split=True))
def test_both_backends_find_what_trying_everything_finds(service: ServiceState) -> None:
    if not service.splits:
        reject()
    best = cheapest(service)
    instance = alone(service)
    assert isinstance(instance, FleetInstance)
    plans = [
        solve_fleet(instance, FleetOptions(backend=backend, binding=False), time.monotonic)
        for backend in ("highs", "cbc")
    ]
    for plan in plans:
        assert check_fleet(instance, plan) == ()
        assert plan.objective == (None if best is None else pytest.approx(best, rel=1e-6, abs=1e-9))
        assert plan.status is (PlanStatus.INFEASIBLE if best is None else PlanStatus.OPTIMAL)
    assert (plans[0].infeasible is None) == (plans[1].infeasible is None)


def as_fleet(mix: GpuMixInstance) -> FleetInstance:
    """Write a mix of services as a fleet of role both."""
    return FleetInstance(
        name=mix.name,
        gpu_types=mix.gpu_types,
        models=tuple(
            FleetModel(
                name=model.name,
                configs=tuple(
                    FleetConfig(
                        gpu_type=v.gpu_type,
                        gpus_per_replica=v.gpus_per_replica,
                        current_replicas=v.current_replicas,
                        min_replicas=v.min_replicas,
                        max_replicas=v.max_replicas,
                    )
                    for v in model.variants
                ),
                buckets=model.buckets,
                throughput_rps=model.throughput_rps,
                headroom_ratio=model.headroom_ratio,
                survive=model.survive,
            )
            for model in mix.models
        ),
        start_cost_usd=mix.start_cost_usd,
        stop_cost_usd=mix.stop_cost_usd,
        horizon_h=mix.horizon_h,
    )


@settings(max_examples=40, deadline=None)
@given(
    first=services("a", split=False),
    second=services("b", split=False),
    survive=st.integers(0, 1),
    company=st.booleans(),
)
def test_without_roles_both_programs_say_the_same(
    first: ServiceState, second: ServiceState, survive: int, *, company: bool
) -> None:
    first, second = replace(first, survive=survive), replace(second, start_cost_usd=first.start_cost_usd)
    mix = together([first, second], {"A": 6, "H": 4}) if company else alone(first)
    assert isinstance(mix, GpuMixInstance)
    by_mix = solve(mix, time_limit_s=60.0, gap_ratio=0.0, clock=time.monotonic)
    by_phases = solve(as_fleet(mix), time_limit_s=60.0, gap_ratio=0.0, clock=time.monotonic)
    assert by_mix.status == by_phases.status
    if by_mix.objective_usd_per_h is not None:
        assert by_phases.objective_usd_per_h == pytest.approx(by_mix.objective_usd_per_h, rel=1e-6)
        assert by_phases.bound_usd_per_h == pytest.approx(by_mix.bound_usd_per_h, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(services("s", split=True), st.data())
def test_routing_serves_every_phase_of_every_bucket(service: ServiceState, data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, 4)) for _ in service.variants]
    able = carries(service, counts)
    assert serves(service, counts) == able
    if not able:
        return
    shares = routing_of(replace(service, headroom_ratio=0.0), counts)
    phases = [v.role for v in service.variants]
    for b, bucket in enumerate(service.buckets):
        by_role = {role: sum(s for i, v, s in shares if i == b and phases[v] is role) for role in Role}
        served = 1.0 if bucket.rate_rps > 0 else 0.0
        assert by_role[Role.BOTH] + by_role[Role.PREFILL] == pytest.approx(served)
        assert by_role[Role.DECODE] == pytest.approx(by_role[Role.PREFILL])
    for v, state in enumerate(service.variants):
        load = sum(
            share * service.buckets[b].rate_rps / state.throughput_rps[b]
            for b, own, share in shares
            if own == v
        )
        assert load <= counts[v] + 1e-6


@settings(max_examples=60, deadline=None)
@given(services("s", split=True), st.data())
def test_only_what_the_traffic_needs_is_added(service: ServiceState, data: st.DataObject) -> None:
    options = choices(service)
    if not options:
        reject()
    wanted = data.draw(st.sampled_from(options))
    old = service.replicas
    found = added(service, wanted, old)
    assert all(was <= n <= max(was, new) for was, n, new in zip(old, found, wanted, strict=True))
    assert carries(service, found, headroom_ratio=service.headroom_ratio)
    assert survives(service, found)


def test_nobody_goes_before_both_phases_of_the_new_way_serve() -> None:
    running = changed(SPLIT, "all", replicas=12, ready=12, held=12)
    steps = plan_steps(running, (0, 3, 1), {"A": 12, "B": 4}).steps
    assert [(step.variant, step.to_replicas) for step in steps] == [(1, 3), (2, 1), (0, 0)]
    back = replace(
        running,
        variants=tuple(
            replace(v, replicas=n, ready=n, held=n) for v, n in zip(SPLIT.variants, (0, 3, 1), strict=True)
        ),
    )
    steps = plan_steps(back, (12, 0, 0), {"A": 48, "B": 0}).steps
    assert [(step.variant, step.to_replicas) for step in steps] == [(0, 12), (2, 0), (1, 0)]
    whole, ended, last = steps
    ready = changed(back, "all", replicas=12, ready=12, held=12)
    assert next_move(ready, ended, free_gpus={}, fresh=True).move is Move.WRITE
    ending = changed(ready, "in", replicas=0, ready=0, held=1)
    assert next_move(ending, last, free_gpus={}, fresh=True).move is Move.WAIT
    over = changed(ready, "in", replicas=0, ready=0, held=0)
    assert next_move(over, last, free_gpus={}, fresh=True).move is Move.WRITE
    assert next_move(ready, whole, free_gpus={}, fresh=True).move is Move.ADVANCE


def explained(service: ServiceState, **gpus: int) -> Explanation:
    nothing = (None,) * len(service.variants)
    free = {v.pool: gpus.get(v.pool, 100) for v in service.variants}
    limits = ServiceLimits(
        own_max=tuple(v.max_replicas for v in service.variants), fit=nothing, free_gpus=free
    )
    return explain_service(service, limits, time_limit_s=60.0, clock=time.monotonic)


def test_an_explanation_names_the_next_best_pools() -> None:
    found = explained(SPLIT)
    assert found.replicas == (0, 3, 1)
    assert found.second_best == Rival(pools=("A",), cost_usd_per_h=48.0, proved=True)
    assert found.best_single_pool == Rival(pools=("A",), cost_usd_per_h=48.0, proved=True)
    assert found.without_splitting == Rival(pools=("A",), cost_usd_per_h=48.0, proved=True)
    dear = explained(changed(SPLIT, "in", price_usd_per_h=60.0))
    assert dear.without_splitting is not None
    assert dear.without_splitting.cost_usd_per_h == pytest.approx(dear.cost_usd_per_h)
    assert explained(only(SPLIT, "in", "out")).without_splitting is None
    few = explained(SPLIT, A=8, B=0)
    assert few.status == "infeasible"
    assert {(one.kind, one.name) for one in few.binding} == {("gpus", "A")}


@settings(max_examples=40, deadline=None)
@given(services("s", split=True))
def test_the_second_best_is_the_best_of_all_other_sets_of_pools(service: ServiceState) -> None:
    if not service.splits or not service.rate_rps:
        reject()
    prices = {v.pool: 1.3 * (1 + index) for index, v in enumerate(service.variants)}
    service = replace(
        service,
        variants=tuple(
            replace(v, price_usd_per_h=prices[v.pool] * v.gpus_per_replica) for v in service.variants
        ),
    )
    found = explained(service)
    if found.replicas is None:
        return
    plans = {counts: objective(service, counts) for counts in choices(service)}

    def pools(counts: Sequence[int]) -> set[str]:
        return {pool for pool in prices if use(service, counts, pool)}

    assert plans[found.replicas] == pytest.approx(min(plans.values()), rel=1e-6)
    others = [cost for counts, cost in plans.items() if pools(counts) != pools(found.replicas)]
    if found.second_best is not None:
        assert found.second_best.cost_usd_per_h == pytest.approx(min(others), rel=1e-6)
    singles = [cost for counts, cost in plans.items() if len(pools(counts)) == 1]
    if found.best_single_pool is not None:
        assert found.best_single_pool.cost_usd_per_h == pytest.approx(min(singles), rel=1e-6)
    assert found.best_single_pool is not None or not singles


def test_as_many_sizes_as_an_operator_knows_are_planned_in_time() -> None:
    """16 variants and 256 buckets: a plan, and how good it is."""
    roles = (Role.BOTH, Role.PREFILL, Role.DECODE, Role.DECODE)
    sizes = [(32.0 * 1.6**i, 16.0 * 1.5**j) for i in range(16) for j in range(16)]
    service = ServiceState(
        name="wide",
        stance=Stance.APPLIED,
        buckets=tuple(RequestBucket(rate_rps=0.2, input_tokens=p, output_tokens=o) for p, o in sizes),
        variants=tuple(
            variant(
                f"v{k}",
                f"P{k % 4}",
                [
                    (1.0 + 0.13 * k)
                    * 4000.0
                    / ({Role.BOTH: p + 4 * o, Role.PREFILL: p, Role.DECODE: 4 * o}[roles[k // 4]])
                    for p, o in sizes
                ],
                price_usd_per_h=1.0 + 0.17 * k,
                role=roles[k // 4],
                replicas=k % 3,
                ready=k % 3,
                held=k % 3,
            )
            for k in range(16)
        ),
        headroom_ratio=0.1,
        start_cost_usd=0.2,
        stop_cost_usd=0.05,
    )
    found = decide(
        ClusterState(pools=tuple(GpuPool(name=f"P{k}", gpus=10_000) for k in range(4)), services=(service,)),
        options=DecideOptions(time_limit_s=20.0, gap_ratio=1e-3),
        clock=time.monotonic,
    )[0]
    assert found.replicas is not None
    assert found.gap_ratio is not None
    assert found.gap_ratio < 0.02


def test_a_plan_of_a_fleet_says_what_its_changes_cost() -> None:
    instance = alone(replace(SPLIT, start_cost_usd=1.0))
    assert isinstance(instance, FleetInstance)
    plan: FleetPlan = solve_fleet(instance, FleetOptions(), time.monotonic)
    assert plan.cost_usd_per_h == pytest.approx(24.0)
    assert plan.change_cost_usd == pytest.approx(16.0)
    assert plan.objective == pytest.approx(40.0)


@pytest.mark.parametrize("roles", [(Role.BOTH, Role.BOTH), (Role.PREFILL, Role.DECODE)])
def test_what_is_beyond_solvers_is_not_carried_and_stops_nobody(roles: tuple[Role, Role]) -> None:
    """Rates and rows as large and as small as the resources allow: nothing is taken away, no other service waits."""
    state = ServiceState(
        name="n/odd",
        stance=Stance.APPLIED,
        buckets=(RequestBucket(rate_rps=1e6, input_tokens=100.0, output_tokens=10.0),),
        variants=tuple(
            variant(role.value + str(place), "A", [1e-6], replicas=2, ready=2, held=2, role=role)
            for place, role in enumerate(roles)
        ),
    )
    assert not serves(state, (2, 2))
    assert routing_of(state, (2, 2)) == ()
    step = RolloutStep(variant=0, from_replicas=2, to_replicas=1)
    assert next_move(state, step, free_gpus={"A": 0}, fresh=True).move is Move.WAIT
