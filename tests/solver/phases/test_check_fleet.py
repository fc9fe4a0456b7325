"""The checker of fleets finds every way in which a right plan can be made wrong."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from solver.check.fleet import check_fleet
from solver.domain.fleet import FleetGoal, FleetInfeasibility, FleetPlan, Phase
from solver.domain.gpu_mix import PlanStatus
from solver.phases.solve import FleetOptions, solve_fleet
from tests.solver.phases.small_fleets import PLAIN, problem

PLAN = solve_fleet(PLAIN, FleetOptions(), time.monotonic)
RATE = problem(FleetGoal.RATE, cost_usd_per_h=36.0)
RATE_PLAN = solve_fleet(RATE, FleetOptions(), time.monotonic)
TIGHT = problem(cost_usd_per_h=20.0)
REASON = solve_fleet(TIGHT, FleetOptions(), time.monotonic)


def flow(index: int, **changes: object) -> Callable[[FleetPlan], FleetPlan]:
    """Change one flow."""

    def change(plan: FleetPlan) -> FleetPlan:
        flows = list(plan.flows)
        flows[index] = replace(flows[index], **changes)  # type: ignore[arg-type]
        return replace(plan, flows=tuple(flows))

    return change


def plan(**changes: object) -> Callable[[FleetPlan], FleetPlan]:
    """Change fields of the plan."""
    return lambda right: replace(right, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mutate", "finding"),
    [
        (plan(instance_name="other"), "the instance is 'plain'"),
        (plan(goal=FleetGoal.POWER), "goal"),
        (plan(objective=None), "objective is None"),
        (plan(objective=23.0), "the objective is stated"),
        (plan(objective=float("nan")), "objective is nan"),
        (plan(bound=25.0, gap_ratio=0.0), "better than the bound"),
        (plan(bound=12.0), "the gap is stated"),
        (plan(bound=12.0, gap_ratio=0.5), "optimal at a gap"),
        (plan(bound=None), "bound"),
        (plan(cost_usd_per_h=20.0), "the cost is stated"),
        (plan(power_w=2000.0), "the power is stated"),
        (plan(power_w=None), "the power is stated as None"),
        (plan(machines=5.0), "the machines is stated"),
        (plan(rate_factor=1.5), "rate factor"),
        (plan(bought_gpus=(12, 8)), "GPUs are stated as bought"),
        (plan(bought_gpus=(12,)), "one number per GPU type"),
        (plan(replicas=((0, 3),)), "one number per model and config"),
        (plan(replicas=((0, 3.0, 1),)), "not a whole number"),
        (plan(replicas=((0, -3, 1),)), "not a whole number"),
        (plan(replicas=((0, 2, 1),)), "exceeds"),
        (plan(replicas=((0, 3, 0),)), "exceeds"),
        (plan(load_ratio=((0.0, 0.5, 1.0),)), "the load ratio is stated"),
        (plan(link_ratio=((0.0, 0.0, 0.0),)), "the link ratio is stated"),
        (plan(flows=()), "sum to 0"),
        (flow(0, model="other"), "names the model 'other'"),
        (flow(0, config=9), "no such bucket or config"),
        (flow(0, bucket=7), "no such bucket or config"),
        (flow(0, share=0.5), "share"),
        (flow(0, share=1.5), "outside 0 to 1"),
        (flow(0, share=float("nan")), "outside 0 to 1"),
        (flow(0, phase=Phase.BOTH), "gets phase both"),
        (lambda right: replace(right, flows=(*right.flows, right.flows[0])), "two flows"),
        (plan(both_only_objective=20.0), "is better than the plan's"),
        (plan(both_only_objective=24.0), "gains nothing"),
        (plan(worth_splitting=False, both_only_objective=None), "no fleet without it"),
        (plan(both_only_status=None), "nothing is known"),
        (plan(infeasible=REASON.infeasible), "yet a reason"),
        (plan(status=PlanStatus.INFEASIBLE), "yet"),
        (plan(status=PlanStatus.TIMED_OUT), "yet"),
    ],
)
def test_a_mutated_plan_is_found(mutate: Callable[[FleetPlan], FleetPlan], finding: str) -> None:
    assert check_fleet(PLAIN, PLAN) == ()
    violations = check_fleet(PLAIN, mutate(PLAN))
    assert any(finding in violation for violation in violations), violations


@pytest.mark.parametrize(
    ("mutate", "finding"),
    [
        (plan(rate_factor=1.5), "exceeds"),
        (plan(rate_factor=1.5, objective=1.5), "better than the bound"),
        (plan(replicas=((0, 4, 2),)), "exceed the budget"),
        (plan(rate_factor=-1.0), "negative"),
    ],
)
def test_a_mutated_rate_plan_is_found(mutate: Callable[[FleetPlan], FleetPlan], finding: str) -> None:
    assert check_fleet(RATE, RATE_PLAN) == ()
    violations = check_fleet(RATE, mutate(RATE_PLAN))
    assert any(finding in violation for violation in violations), violations


def reason(**changes: object) -> Callable[[FleetPlan], FleetPlan]:
    """Change the reason."""

    def change(right: FleetPlan) -> FleetPlan:
        assert right.infeasible is not None
        return replace(right, infeasible=replace(right.infeasible, **changes))  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    ("mutate", "finding"),
    [
        (plan(infeasible=None), "no reason is given"),
        (plan(objective=1.0), "yet objective is given"),
        (plan(replicas=((0, 0, 0),)), "yet replicas is given"),
        (plan(worth_splitting=True), "worth_splitting"),
        (plan(both_only_objective=1.0), "a fleet without splitting"),
        (reason(kind="quality"), "none of"),
        (reason(kind="power-limit"), "no such limit"),
        (reason(kind="bucket-unservable"), "have no machine"),
        (reason(kind="bucket-unservable", buckets=(0,)), "named as unservable"),
        (reason(message=" "), "no message"),
        (reason(models=("x",)), "names the model 'x'"),
        (reason(gpu_types=("X",)), "names the GPU type 'X'"),
    ],
)
def test_a_mutated_reason_is_found(mutate: Callable[[FleetPlan], FleetPlan], finding: str) -> None:
    assert check_fleet(TIGHT, REASON) == ()
    violations = check_fleet(TIGHT, mutate(REASON))
    assert any(finding in violation for violation in violations), violations


def test_the_reason_is_of_its_type() -> None:
    assert isinstance(REASON.infeasible, FleetInfeasibility)
