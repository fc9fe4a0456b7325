"""Fleet planning on problems that can be checked by hand: goals, limits, reasons, what binds, the front."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from solver.check.fleet import check_fleet
from solver.domain.errors import InputError
from solver.domain.fleet import FleetBudgets, FleetGoal, FleetInstance, FleetPlan, Phase, Role
from solver.domain.gpu_mix import PlanStatus, RequestBucket
from solver.phases.front import pareto_front
from solver.phases.prepare import MOST_REPLICAS
from solver.phases.solve import FleetOptions, solve_fleet
from tests.solver.phases.small_fleets import PLAIN, problem, with_configs


def solved(instance: FleetInstance, **options: object) -> FleetPlan:
    plan = solve_fleet(instance, FleetOptions(**options), time.monotonic)  # type: ignore[arg-type]
    assert check_fleet(instance, plan) == ()
    return plan


def test_splitting_halves_the_cost() -> None:
    plan = solved(PLAIN)
    assert plan.status is PlanStatus.OPTIMAL
    assert plan.replicas == ((0, 3, 1),)
    assert plan.objective == plan.cost_usd_per_h == pytest.approx(24.0)
    assert plan.machines == pytest.approx(4.0)
    assert plan.power_w == pytest.approx(3 * 400.0 + 1000.0)
    assert plan.load_ratio[0] == pytest.approx((0.0, 2.5 / 3, 1.0))
    assert plan.link_ratio[0] == pytest.approx((0.0, 2800 / (3 * 2000), 2800 / 4000))
    assert plan.both_only_objective == pytest.approx(48.0)
    assert plan.worth_splitting
    assert {flow.phase for flow in plan.flows} == {Phase.PREFILL, Phase.DECODE}
    assert plan.rate_factor == 1.0


@pytest.mark.parametrize(
    ("goal", "expected"), [(FleetGoal.POWER, 2200.0), (FleetGoal.MACHINES, 4.0), (FleetGoal.COST, 24.0)]
)
def test_each_goal_is_minimised(goal: FleetGoal, expected: float) -> None:
    assert solved(problem(goal)).objective == pytest.approx(expected)


def test_the_rate_fills_the_budget() -> None:
    # 36 US$/h: one prefill node (12), three of decode (12) and three of both (12); nine of both alone carry 0.75.
    # s of the short and l of the long requests are split: s/2 + l/2 <= 1 prefill, 2 s + l/2 <= 3 decode, the others
    # fill 8 (f - s) + 4 (f - l) = 3 of both. Best: s = 4/3, l = 2/3, f = (3 + 8 s + 4 l) / 12 = 49/36.
    plan = solved(problem(FleetGoal.RATE, cost_usd_per_h=36.0))
    assert plan.replicas == ((3, 3, 1),)
    assert plan.objective == plan.rate_factor == pytest.approx(49 / 36)
    assert plan.both_only_objective == pytest.approx(0.75)
    (limit,) = plan.binding
    assert (limit.kind, limit.name) == ("budget", "cost")
    assert limit.gain_per_unit > 0


@pytest.mark.parametrize("factor", [1e-7, 1e-3, 1e4])
def test_factors_far_from_one_are_as_exact(factor: float) -> None:
    (model,) = PLAIN.models
    buckets = tuple(replace(bucket, rate_rps=bucket.rate_rps / factor) for bucket in model.buckets)
    instance = replace(
        problem(FleetGoal.RATE, cost_usd_per_h=36.0), models=(replace(model, buckets=buckets),)
    )
    assert solved(instance).objective == pytest.approx(49 / 36 * factor, rel=1e-6)


def test_slow_links_make_splitting_not_worth_it() -> None:
    slow = with_configs(PLAIN, Role.PREFILL, kv_link_bytes_per_s=300.0)
    plan = solved(slow)
    assert plan.worth_splitting is False
    assert plan.objective == plan.both_only_objective == pytest.approx(48.0)


def test_a_cap_may_fill_idle_gpus_of_a_node() -> None:
    # 2.5 decodes on replicas of one GPU: one node holds three, and its idle GPU draws less as a capped replica.
    (model,) = PLAIN.models
    configs = (replace(model.configs[0], gpus_per_replica=1, power_w=40.0),)
    narrow = replace(
        model,
        configs=configs,
        buckets=(RequestBucket(rate_rps=2.5, input_tokens=1.0, output_tokens=1.0),),
        throughput_rps=((1.0,),),
    )
    instance = replace(problem(FleetGoal.POWER), models=(narrow,))
    plan = solved(instance)
    assert plan.replicas == ((4,),)
    assert plan.power_w == pytest.approx(160.0)


def without_role(role: Role) -> FleetInstance:
    (model,) = PLAIN.models
    kept = [c for c, config in enumerate(model.configs) if config.role is not role]
    return replace(PLAIN, models=(model.keeping(kept),))


def test_prefill_only_is_unservable_and_says_what_is_missing() -> None:
    (model,) = PLAIN.models
    only = replace(PLAIN, models=(model.keeping([2]),))
    plan = solved(only)
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    assert plan.infeasible.kind == "bucket-unservable"
    assert plan.infeasible.buckets == (0, 1)
    assert "no decode config" in plan.infeasible.message


def test_an_slo_no_machine_can_meet_is_named() -> None:
    (model,) = PLAIN.models
    hopeless = replace(model, throughput_rps=(model.throughput_rps[0], (0.0, 4.0, 0.0)), tbt_slo_s=0.05)
    plan = solved(replace(PLAIN, models=(hopeless,)))
    assert plan.infeasible is not None
    assert plan.infeasible.kind == "bucket-unservable"
    assert plan.infeasible.buckets == (1,)
    assert "300 input, 10 output tokens" in plan.infeasible.message


def infeasible_problems() -> Iterator[tuple[str, FleetInstance]]:
    yield "budget", problem(cost_usd_per_h=20.0)
    yield "power-limit", problem(power_w=2000.0)
    yield "machine-limit", problem(machines=3)
    scarce = tuple(replace(offer, available=4) for offer in PLAIN.gpu_types)
    yield "gpu-limit", replace(PLAIN, gpu_types=scarce)
    yield "combination", replace(problem(cost_usd_per_h=1.0), gpu_types=scarce)
    unlinked = with_configs(without_role(Role.BOTH), Role.DECODE, kv_link_bytes_per_s=0.0)
    yield "kv-transfer", unlinked


@pytest.mark.parametrize(("kind", "instance"), list(infeasible_problems()), ids=lambda value: str(value)[:14])
def test_the_limit_that_is_too_tight_is_named(kind: str, instance: FleetInstance) -> None:
    plan = solved(instance)
    assert plan.status is PlanStatus.INFEASIBLE
    assert plan.infeasible is not None
    assert plan.infeasible.kind == kind
    assert plan.infeasible.models == ("m",)


def test_too_many_replicas_asked_for_are_named_with_the_figures_in_the_way() -> None:
    (model,) = problem(cost_usd_per_h=30_000.0).models
    asked = replace(
        problem(cost_usd_per_h=30_000.0), models=(replace(model, min_total_replicas=10_000, buckets=()),)
    )
    asked = replace(asked, models=(replace(asked.models[0], throughput_rps=()),))
    reason = solved(asked).infeasible
    assert reason is not None
    assert (reason.kind, reason.feasible_when_dropped) == ("budget", ("budget", "min-replicas"))
    assert "the budget of 30,000 US$/h; enough to drop one of: budget, min-replicas" in reason.message
    scarce = tuple(replace(offer, available=4) for offer in PLAIN.gpu_types)
    reason = solved(replace(asked, gpu_types=scarce)).infeasible
    assert reason is not None
    assert (reason.kind, reason.feasible_when_dropped) == ("combination", ("min-replicas",))
    assert "the GPUs available (A 4, B 4) and the replicas asked for at least; enough to" in reason.message


def test_zero_links_of_a_rate_problem_carry_nothing() -> None:
    unlinked = with_configs(without_role(Role.BOTH), Role.DECODE, kv_link_bytes_per_s=0.0)
    plan = solved(replace(unlinked, goal=FleetGoal.RATE, budgets=FleetBudgets(machines=5)))
    assert plan.objective == 0.0
    assert str(plan.bound) == "0.0"  # not -0.0
    assert plan.flows == ()


def test_a_rate_that_nothing_limits_is_refused() -> None:
    with pytest.raises(InputError, match="nothing limits the rate"):
        solve_fleet(problem(FleetGoal.RATE), FleetOptions(), time.monotonic)
    (model,) = PLAIN.models
    idle = replace(model, buckets=tuple(replace(bucket, rate_rps=0.0) for bucket in model.buckets))
    with pytest.raises(InputError, match="no bucket has traffic"):
        solve_fleet(
            replace(problem(FleetGoal.RATE, machines=4), models=(idle,)), FleetOptions(), time.monotonic
        )


def test_more_replicas_than_solvers_tell_apart_are_refused() -> None:
    (model,) = PLAIN.models
    huge = replace(model, buckets=(replace(model.buckets[0], rate_rps=10 * MOST_REPLICAS), model.buckets[1]))
    with pytest.raises(InputError, match="replicas of one config"):
        solve_fleet(replace(PLAIN, models=(huge,)), FleetOptions(), time.monotonic)
    asked = replace(model, min_total_replicas=int(10 * MOST_REPLICAS))
    with pytest.raises(InputError, match="asks for at least 1e\\+09 replicas"):
        solve_fleet(replace(PLAIN, models=(asked,)), FleetOptions(), time.monotonic)


def test_no_traffic_needs_nothing_but_the_replicas_asked_for() -> None:
    (model,) = PLAIN.models
    idle = replace(model, buckets=(), throughput_rps=(), min_total_replicas=2)
    plan = solved(replace(PLAIN, models=(idle,)))
    assert plan.objective == pytest.approx(8.0)
    assert plan.worth_splitting is False


def test_what_binds_is_named_with_its_worth() -> None:
    scarce = (replace(PLAIN.gpu_types[0], available=8), PLAIN.gpu_types[1])
    (model,) = PLAIN.models
    wider = replace(
        model,
        configs=(*model.configs, replace(model.configs[1], gpu_type="B")),
        throughput_rps=((1.0, 4.0, 16.0, 4.0), (0.5, 4.0, 4.0, 4.0)),
    )
    plan = solved(replace(PLAIN, gpu_types=scarce, models=(wider,)))
    assert plan.objective == pytest.approx(32.0)
    assert [(limit.kind, limit.name) for limit in plan.binding] == [("gpu-limit", "A")]
    assert plan.binding[0].gain_per_unit == pytest.approx(2.0)
    assert plan.binding[0].step_units == 4.0
    assert plan.binding_settled


def test_what_binds_is_not_claimed_where_it_was_not_looked_at() -> None:
    plan = solved(problem(cost_usd_per_h=24.0), explain=False)
    assert plan.binding == ()
    assert not plan.binding_settled
    now = 0.0

    def clock() -> float:  # jumps on: the fleet is found, but there is no time left for more
        nonlocal now
        now += 1.0
        return now

    limited = solve_fleet(problem(cost_usd_per_h=24.0), FleetOptions(time_limit_s=9.0), clock)
    assert check_fleet(problem(cost_usd_per_h=24.0), limited) == ()
    assert not limited.binding_settled


def test_without_time_the_status_says_so() -> None:
    ticks = iter(range(10**6))
    plan = solve_fleet(PLAIN, FleetOptions(time_limit_s=1e-3, method="direct"), lambda: float(next(ticks)))
    assert plan.status in (PlanStatus.TIMED_OUT, PlanStatus.FEASIBLE, PlanStatus.OPTIMAL)
    assert check_fleet(PLAIN, plan) == ()


def front_problem() -> FleetInstance:
    """Add decodes under a cap: half the watts, at twice the nodes' price."""
    (model,) = PLAIN.models
    capped = replace(model.configs[2], role=Role.DECODE, power_w=30.0)
    wider = replace(
        model,
        configs=(*model.configs, capped),
        throughput_rps=((1.0, 4.0, 16.0, 4.0), (0.5, 4.0, 4.0, 4.0)),
    )
    return replace(PLAIN, models=(wider,))


def test_the_front_holds_every_trade() -> None:
    instance = front_problem()
    front = pareto_front(
        instance,
        (FleetGoal.COST, FleetGoal.POWER),
        solve=lambda varied: solved(varied, compare=False, explain=False),
    ).points
    # One prefill node B (12 US$/h, 1000 W) and three decode nodes, each A (4, 400) or B capped (12, 120).
    assert [plan.cost_usd_per_h for plan in front] == pytest.approx(
        [24.0 + 8 * capped for capped in range(4)]
    )
    assert [plan.power_w for plan in front] == pytest.approx([2200.0 - 280 * capped for capped in range(4)])


def test_a_front_of_three_goals_has_none_that_is_worse_in_all() -> None:
    front = pareto_front(
        front_problem(),
        (FleetGoal.COST, FleetGoal.POWER, FleetGoal.MACHINES),
        solve=lambda varied: solved(varied, compare=False, explain=False),
    ).points
    figures = [(plan.cost_usd_per_h, plan.power_w, plan.machines) for plan in front]
    assert len(set(figures)) == len(figures) >= 4
    assert all(machines == pytest.approx(4.0) for *_, machines in figures)


def test_a_front_ends_with_its_time_and_says_so() -> None:
    goals = (FleetGoal.COST, FleetGoal.POWER)
    solves: list[FleetInstance] = []

    def solve(varied: FleetInstance) -> FleetPlan:
        solves.append(varied)
        return solved(varied, compare=False, explain=False)

    whole = pareto_front(front_problem(), goals, solve=solve)
    assert not whole.cut_short
    for most in range(0, len(solves), 3):
        solves.clear()

        def enough(most: int = most) -> bool:
            return len(solves) >= most

        part = pareto_front(front_problem(), goals, solve=solve, enough=enough)
        assert part.cut_short
        assert len(solves) == most
        assert len(part.points) <= len(whole.points)

    def late(varied: FleetInstance) -> FleetPlan:
        return FleetPlan(instance_name=varied.name, goal=varied.goal, status=PlanStatus.TIMED_OUT)

    assert pareto_front(front_problem(), goals, solve=late).cut_short


def test_a_front_needs_two_different_goals() -> None:
    with pytest.raises(ValueError, match="two or three"):
        pareto_front(PLAIN, (FleetGoal.COST,), solve=solved)
    with pytest.raises(ValueError, match="two or three"):
        pareto_front(PLAIN, (FleetGoal.COST, FleetGoal.COST), solve=solved)
