"""The checker of plans: a sound plan passes, and each rule fails when just that rule is broken."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ortools.linear_solver import pywraplp  # type: ignore[import-untyped]

from solver.check.game import Floats
from solver.check.gpu_mix import certify_routing, check_gpu_mix
from solver.domain.gpu_mix import (
    BindingLimit,
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    Infeasibility,
    ModelDemand,
    PlanStatus,
    RequestBucket,
    RivalPlan,
    RoutingShare,
    SingleTypePlan,
    Variant,
)

INSTANCE = GpuMixInstance(
    name="hand-made",
    gpu_types=(
        GpuOffer(
            name="L4",
            price_usd_per_h=0.7,
            available=10,
            power_w=70.0,
            spot_price_usd_per_h=0.3,
            spot_available=4,
        ),
        GpuOffer(
            name="H100",
            price_usd_per_h=4.0,
            available=8,
            power_w=700.0,
            gpus_per_node=4,
            whole_nodes=True,
            reserved=4,
        ),
    ),
    models=(
        ModelDemand(
            name="chat",
            variants=(
                Variant(gpu_type="L4", gpus_per_replica=1, current_replicas=2),
                Variant(gpu_type="L4", gpus_per_replica=1, spot=True, quality_ratio=0.99),
                Variant(gpu_type="H100", gpus_per_replica=2),
                Variant(gpu_type="L4", gpus_per_replica=1, quality_ratio=0.8, current_replicas=1),
            ),
            buckets=(RequestBucket(rate_rps=4.0), RequestBucket(rate_rps=2.0), RequestBucket(rate_rps=0.0)),
            throughput_rps=((2.0, 2.0, 16.0, 4.0), (0.0, 0.0, 8.0, 0.0), (1.0, 1.0, 1.0, 1.0)),
            headroom_ratio=0.1,
            min_total_replicas=3,
            min_quality_ratio=0.9,
            max_spot_load_ratio=0.25,
            survive=1,
        ),
        ModelDemand(
            name="idle",
            variants=(
                Variant(gpu_type="L4", gpus_per_replica=1),
                Variant(gpu_type="H100", gpus_per_replica=4),
            ),
            buckets=(),
            throughput_rps=(),
            min_total_replicas=1,
        ),
    ),
    start_cost_usd=1.0,
    stop_cost_usd=0.5,
    horizon_h=2.0,
    power_limit_w=4000.0,
    budget_usd_per_h=3.0,
)
PLAN = GpuMixPlan(
    instance_name="hand-made",
    status=PlanStatus.OPTIMAL,
    # 2 + 1 L4 at 0.7, 1 spot L4 at 0.3, one reserved node; one replica of low quality stopped, over 2 h
    objective=2.65,
    running_cost_usd_per_h=2.4,
    change_cost_usd=0.5,
    lower_bound_usd_per_h=2.65,
    gap_ratio=0.0,
    replicas=((2, 1, 2, 0), (1, 0)),
    routing=(
        RoutingShare(model="chat", bucket=0, config=0, share=0.5),
        RoutingShare(model="chat", bucket=0, config=1, share=0.25),
        RoutingShare(model="chat", bucket=0, config=2, share=0.25),
        RoutingShare(model="chat", bucket=1, config=2, share=1.0),
    ),
    load_ratio=((0.5, 0.5, 0.15625, 0.0), (0.0, 0.0)),
    bought_gpus=(3, 4),
    spot_gpus=(1, 0),
    power_w=3080.0,
    method="by hand",
    best_single_type=SingleTypePlan(gpu_type="H100", cost_usd_per_h=17.0),
    second_best=RivalPlan(gpu_types=("H100",), cost_usd_per_h=17.0, proved=True),
    binding=(BindingLimit(kind="gpu-limit", name="L4", price_usd_per_unit=0.1, step_units=1.0),),
)
NO_PLAN = GpuMixPlan(instance_name="hand-made", status=PlanStatus.TIMED_OUT, method="by hand")
BUDGET = Infeasibility(
    kind="budget", models=("chat",), buckets=(), gpu_types=("L4",), message="the budget is too small"
)
INFEASIBLE = replace(NO_PLAN, status=PlanStatus.INFEASIBLE, infeasible=BUDGET)


def with_model(**fields: object) -> GpuMixInstance:
    return replace(INSTANCE, models=(replace(INSTANCE.models[0], **fields), INSTANCE.models[1]))  # type: ignore[arg-type]


def with_offer(index: int, **fields: object) -> GpuMixInstance:
    offers = list(INSTANCE.gpu_types)
    offers[index] = replace(offers[index], **fields)  # type: ignore[arg-type]
    return replace(INSTANCE, gpu_types=tuple(offers))


def with_share(index: int, **fields: object) -> GpuMixPlan:
    routing = list(PLAN.routing)
    routing[index] = replace(routing[index], **fields)  # type: ignore[arg-type]
    return replace(PLAN, routing=tuple(routing))


def with_replicas(*counts: int, loads: tuple[float, ...]) -> GpuMixPlan:
    """Change the replicas of the first model (and with them GPUs, power and costs, which others tell)."""
    ratios = tuple(load / count if count else 0.0 for load, count in zip(loads, counts, strict=True))
    return replace(PLAN, replicas=(counts, (1, 0)), load_ratio=(ratios, (0.0, 0.0)))


LOADS = (1.0, 0.5, 0.3125, 0.0)


def test_the_sound_plan_passes() -> None:
    assert check_gpu_mix(INSTANCE, PLAN) == ()


def test_a_plan_stopped_at_the_time_limit_passes_with_its_gap() -> None:
    plan = replace(PLAN, status=PlanStatus.FEASIBLE, lower_bound_usd_per_h=2.0, gap_ratio=0.65 / 2.65)
    assert check_gpu_mix(INSTANCE, plan) == ()


def test_answers_without_a_plan_pass() -> None:
    assert check_gpu_mix(INSTANCE, NO_PLAN) == ()
    assert check_gpu_mix(INSTANCE, INFEASIBLE) == ()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (replace(PLAN, instance_name="x"), "the plan answers 'x', the instance is 'hand-made'"),
        (replace(PLAN, infeasible=BUDGET), "a reason for infeasibility is given"),
        (replace(PLAN, objective=None), "the status is optimal, yet objective is None"),
        (replace(PLAN, gap_ratio=math.nan), "the status is optimal, yet gap_ratio is nan"),
        (replace(PLAN, lower_bound_usd_per_h=-math.inf), "yet lower_bound_usd_per_h is -inf"),
        (replace(PLAN, method=""), "the method is not named"),
        (replace(PLAN, replicas=((2, 1, 2), (1, 0))), "replicas does not have one number per model and"),
        (replace(PLAN, replicas=()), "replicas does not have one number per model and"),
        (replace(PLAN, load_ratio=()), "load_ratio does not have one number per model and"),
        (replace(PLAN, bought_gpus=(3,)), "bought_gpus does not have one number per GPU type"),
        (replace(PLAN, spot_gpus=()), "spot_gpus does not have one number per GPU type"),
        (replace(PLAN, replicas=((2, 1, 2, -1), (1, 0))), "-1 is not a whole number of replicas"),
        (
            replace(PLAN, replicas=((2, 1, 2.5, 0), (1, 0))),  # type: ignore[arg-type]
            "2.5 is not a whole number of replicas",
        ),
        (with_share(0, model="ghost"), "routing names the model 'ghost'"),
        (with_share(0, bucket=9), "bucket 9, configuration 0: there is no such bucket or configuration"),
        (with_share(0, bucket=-1), "bucket -1, configuration 0: there is no such bucket or configuration"),
        (with_share(0, config=4), "bucket 0, configuration 4: there is no such bucket or configuration"),
        (with_share(0, config=1), "chat, bucket 0, configuration 1: routed twice"),
        (with_share(0, share=-0.5), "the share -0.5 is outside 0 to 1"),
        (with_share(0, share=1.5), "the share 1.5 is outside 0 to 1"),
        (with_share(0, share=math.nan), "the share nan is outside 0 to 1"),
        (with_share(0, share=0.4), "chat, bucket 0: the shares sum to 0.9, not 1"),
        (with_share(0, share=0.50001), "chat, bucket 0: the shares sum to 1.00001, not 1"),
        (with_share(3, bucket=2), "bucket 2, configuration 2: routed, though the bucket has no traffic"),
        (with_share(3, bucket=2), "chat, bucket 1: the shares sum to 0, not 1"),
        (
            with_share(3, config=0),
            "bucket 1, configuration 0: routed to a configuration that cannot serve it",
        ),
        (
            replace(PLAN, load_ratio=((0.5, 0.5, 0.16, 0.0), (0.0, 0.0))),
            "chat, configuration 2: the load ratio is stated as 0.16, it is 0.15625",
        ),
        (
            replace(PLAN, load_ratio=((0.5, 0.5, 0.15625, math.nan), (0.0, 0.0))),
            "chat, configuration 3: the load ratio is stated as nan, it is 0",
        ),
        (
            with_replicas(1, 1, 2, 0, loads=LOADS),
            "chat, configuration 0: the load 1 exceeds 0.9, the room of 1 replicas with headroom",
        ),
        (with_replicas(2, 0, 2, 0, loads=LOADS), "configuration 1: the load 0.5 exceeds 0,"),
        (
            with_replicas(2, 1, 2, 1, loads=LOADS),
            "chat, configuration 3: 1 replicas of quality 0.8, at least 0.9",
        ),
        (
            replace(PLAN, routing=(replace(PLAN.routing[0], config=3), *PLAN.routing[1:])),
            "chat, bucket 0, configuration 3: routed to a configuration below the quality asked for",
        ),
        (replace(PLAN, replicas=((2, 1, 2, 0), (0, 0))), "idle: 0 replicas, at least 1 are asked for"),
        (
            with_replicas(2, 1, 1, 0, loads=LOADS),
            "chat: after the loss of 1 of configuration 2 the others do not carry the full rate",
        ),
        (replace(PLAN, bought_gpus=(4, 4)), "L4: 4 bought GPUs are stated, the replicas take 3"),
        (replace(PLAN, bought_gpus=(3, 8)), "H100: 8 bought GPUs are stated, the replicas take 4"),
        (with_replicas(2, 1, 3, 0, loads=LOADS), "H100: 4 bought GPUs are stated, the replicas take 8"),
        (replace(PLAN, spot_gpus=(0, 0)), "L4: 0 spot GPUs are stated, the replicas take 1"),
        (replace(PLAN, power_w=3010.0), "power is stated as 3010.0 W, it is 3080 W"),
        (replace(PLAN, power_w=None), "power is stated as None W, it is 3080 W"),
        (replace(PLAN, running_cost_usd_per_h=2.1), "running_cost_usd_per_h is stated as 2.1, it is 2.4"),
        (replace(PLAN, change_cost_usd=0.0), "change_cost_usd is stated as 0.0, it is 0.5"),
        (replace(PLAN, objective=2.9), "objective is stated as 2.9, it is 2.65"),
        (replace(PLAN, objective=2.65001), "objective is stated as 2.65001, it is 2.65"),
        (replace(PLAN, lower_bound_usd_per_h=2.7), "the lower bound 2.7 lies above the objective 2.65"),
        (replace(PLAN, gap_ratio=0.1), "gap_ratio is stated as 0.1, it is 0"),
        (
            replace(PLAN, lower_bound_usd_per_h=2.12, gap_ratio=0.2),
            "the status is optimal, yet gap_ratio is 0.2",
        ),
        (
            replace(PLAN, best_single_type=SingleTypePlan(gpu_type="T4", cost_usd_per_h=9.0)),
            "the best single type 'T4' is not one of the instance's",
        ),
        (
            replace(PLAN, best_single_type=SingleTypePlan(gpu_type="L4", cost_usd_per_h=9.0)),
            "the best single type L4 cannot serve every bucket",
        ),
        (
            replace(PLAN, best_single_type=SingleTypePlan(gpu_type="H100", cost_usd_per_h=2.0)),
            "the best single type costs 2.0, less than the lower bound 2.65",
        ),
        (
            replace(PLAN, second_best=RivalPlan(gpu_types=("H100",), cost_usd_per_h=2.0, proved=True)),
            "the second best plan costs 2.0, less than the lower bound 2.65",
        ),
        (
            replace(PLAN, second_best=RivalPlan(gpu_types=("H100", "L4"), cost_usd_per_h=3.0, proved=True)),
            "the second best plan uses the same GPU types as the plan",
        ),
        (
            replace(PLAN, second_best=RivalPlan(gpu_types=("T4",), cost_usd_per_h=3.0, proved=True)),
            "the second best plan names T4: no set of the instance's types",
        ),
        (
            replace(
                PLAN,
                binding=(BindingLimit(kind="budget", name="", price_usd_per_unit=-1.0, step_units=0.0),),
            ),
            "the price of the limit budget  is -1.0",
        ),
        (replace(NO_PLAN, objective=1.0), "the status is timed-out, yet objective is given"),
        (replace(NO_PLAN, routing=PLAN.routing), "the status is timed-out, yet routing is given"),
        (
            replace(NO_PLAN, infeasible=BUDGET),
            "the status is timed-out, yet a reason for infeasibility is given",
        ),
        (replace(INFEASIBLE, infeasible=None), "the status is infeasible, yet no reason is given"),
        (replace(INFEASIBLE, replicas=PLAN.replicas), "the status is infeasible, yet replicas is given"),
        (
            replace(INFEASIBLE, lower_bound_usd_per_h=1.0),
            "the status is infeasible, yet lower_bound_usd_per_h is given",
        ),
        (
            replace(INFEASIBLE, infeasible=replace(BUDGET, kind="bad luck")),  # type: ignore[arg-type]
            "the reason's kind 'bad luck' is none of",
        ),
        (replace(INFEASIBLE, infeasible=replace(BUDGET, message=" ")), "the reason has no message"),
        (
            replace(INFEASIBLE, infeasible=replace(BUDGET, models=("ghost",))),
            "the reason names the model 'ghost', which the instance does not have",
        ),
        (
            replace(INFEASIBLE, infeasible=replace(BUDGET, gpu_types=("T4",))),
            "the reason names the GPU type 'T4', which the instance does not have",
        ),
        (
            replace(INFEASIBLE, infeasible=replace(BUDGET, kind="bucket-unservable", buckets=(0,))),
            "bucket 0 is named as unservable, but a configuration serves it or it has no traffic",
        ),
        (
            replace(INFEASIBLE, infeasible=replace(BUDGET, kind="bucket-unservable")),
            "the reason is bucket-unservable, yet no bucket is named",
        ),
    ],
)
def test_each_rule_of_the_plan_can_fail(plan: GpuMixPlan, sentence: str) -> None:
    assert any(sentence in told for told in check_gpu_mix(INSTANCE, plan))


@pytest.mark.parametrize(
    ("instance", "sentence"),
    [
        (with_model(max_spot_load_ratio=0.1), "chat: spot configurations serve 1 of 6 requests/s, more than"),
        (with_model(min_total_replicas=6), "chat: 5 replicas, at least 6 are asked for"),
        (with_model(survive=5), "chat: 5 replicas cannot survive the loss of 5"),
        (with_model(survive=2), "chat: after the loss of 2 of configuration 2 the others do not carry"),
        (with_offer(0, available=2), "L4: 3 GPUs are bought, 2 are available"),
        (with_offer(1, available=3), "H100: 4 GPUs are bought, 3 are available"),
        (with_offer(0, spot_available=0), "L4: 1 spot GPUs are taken, 0 are available"),
        (with_offer(0, spot_price_usd_per_h=None), "L4: spot GPUs are taken, but there is no spot price"),
        (with_offer(1, gpus_per_node=8), "H100: 4 bought GPUs are stated, the replicas take 8"),
        (with_offer(1, reserved=0), "running_cost_usd_per_h is stated as 2.4, it is 18.4"),
        (with_offer(1, power_w=None), "though the power of a used GPU type is not known"),
        (replace(INSTANCE, power_limit_w=3000.0), "power is 3080 W, the limit 3000.0 W"),
        (replace(INSTANCE, budget_usd_per_h=2.3), "the running cost is 2.4 US$/h, the budget 2.3 US$/h"),
        (replace(INSTANCE, horizon_h=1.0), "objective is stated as 2.65, it is 2.9"),
    ],
)
def test_each_limit_can_fail(instance: GpuMixInstance, sentence: str) -> None:
    assert any(sentence in told for told in check_gpu_mix(instance, PLAN))


def test_a_reason_must_be_a_limit_that_is_there() -> None:
    for kind, instance in (
        ("budget", replace(INSTANCE, budget_usd_per_h=None)),
        ("power-limit", replace(INSTANCE, power_limit_w=None)),
        ("quality", with_model(min_quality_ratio=0.0)),
        ("survive", with_model(survive=0)),
        (
            "gpu-limit",
            replace(
                with_offer(0, available=None, spot_available=None),
                gpu_types=(GpuOffer(name="L4", price_usd_per_h=1.0),),
            ),
        ),
    ):
        plan = replace(INFEASIBLE, infeasible=replace(BUDGET, kind=kind))  # type: ignore[arg-type]
        assert check_gpu_mix(INSTANCE, plan) == ()
        told = f"the reason is {kind}, yet the instance has no such limit that acts"
        assert check_gpu_mix(instance, plan) == (told,)


def test_an_unservable_bucket_is_the_first_reason() -> None:
    no_service = (0.0, 0.0, 0.0, 0.0)
    instance = with_model(throughput_rps=((2.0, 2.0, 16.0, 4.0), no_service, no_service))
    right = replace(BUDGET, kind="bucket-unservable", buckets=(1,))
    assert check_gpu_mix(instance, replace(INFEASIBLE, infeasible=right)) == ()
    assert check_gpu_mix(instance, INFEASIBLE) == (
        "the reason is budget, yet 1 buckets with traffic have no configuration",
    )
    idle_bucket = replace(INFEASIBLE, infeasible=replace(right, buckets=(2,)))
    assert "bucket 2 is named as unservable" in check_gpu_mix(instance, idle_bucket)[0]


def test_a_plan_of_one_type_is_the_best_single_type() -> None:
    offer = GpuOffer(name="L4", price_usd_per_h=1.0)
    model = ModelDemand(
        name="chat",
        variants=(Variant(gpu_type="L4", gpus_per_replica=1),),
        buckets=(RequestBucket(rate_rps=1.0),),
        throughput_rps=((2.0,),),
    )
    instance = GpuMixInstance(name="one", gpu_types=(offer,), models=(model,))
    plan = GpuMixPlan(
        instance_name="one",
        status=PlanStatus.OPTIMAL,
        objective=1.0,
        running_cost_usd_per_h=1.0,
        change_cost_usd=0.0,
        lower_bound_usd_per_h=1.0,
        gap_ratio=0.0,
        replicas=((1,),),
        routing=(RoutingShare(model="chat", bucket=0, config=0, share=1.0),),
        load_ratio=((0.5,),),
        bought_gpus=(1,),
        spot_gpus=(0,),
        method="by hand",
        best_single_type=SingleTypePlan(gpu_type="L4", cost_usd_per_h=1.0),
    )
    assert check_gpu_mix(instance, plan) == ()
    assert check_gpu_mix(instance, replace(plan, best_single_type=None)) == ()  # not every plan is explained
    dear = replace(plan, best_single_type=SingleTypePlan(gpu_type="L4", cost_usd_per_h=2.0))
    assert check_gpu_mix(instance, dear) == (
        "the plan uses one GPU type only, yet the best single type costs 2.0",
    )
    powered = replace(plan, power_w=0.0)
    assert check_gpu_mix(instance, powered) == (
        "power is stated as 0.0 W, though the power of a used GPU type is not known",
    )


def least_utilisation_by_glop(load: Floats, allowed: Floats, capacity: Floats) -> float:
    """Return the least largest utilisation by a linear program over all shares; infinite if there is none."""
    solver = pywraplp.Solver.CreateSolver("GLOP")
    most = solver.NumVar(0, solver.infinity(), "t")
    shares = [
        [solver.NumVar(0, 1 if ok and room > 0 else 0, "") for ok, room in zip(row, capacity, strict=True)]
        for row in allowed.tolist()
    ]
    for row in shares:
        solver.Add(sum(row) == 1)
    for c, room in enumerate(capacity.tolist()):
        solver.Add(sum(float(load[b, c]) * row[c] for b, row in enumerate(shares)) <= room * most)
    solver.Minimize(most)
    return float(most.solution_value()) if solver.Solve() == solver.OPTIMAL else math.inf


@given(
    seed=st.integers(0, 10**6),
    n_buckets=st.integers(1, 12),
    n_configs=st.integers(1, 6),
    spread=st.floats(0, 4),
)
def test_the_certificate_agrees_with_a_linear_program(
    *, seed: int, n_buckets: int, n_configs: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    load = 10 ** rng.uniform(-spread, spread, (n_buckets, n_configs))
    allowed = rng.random((n_buckets, n_configs)) < 0.8
    capacity = rng.integers(0, 5, n_configs).astype(float)
    exact = certify_routing(load, allowed, capacity, limit=None)
    assert exact.utilisation == pytest.approx(
        least_utilisation_by_glop(load, allowed.astype(float), capacity), rel=1e-6
    )
    assert exact.lower_bound == pytest.approx(exact.utilisation, rel=1e-9)
    if math.isfinite(exact.utilisation):
        assert exact.shares.sum(axis=1) == pytest.approx(1.0)
        assert (exact.loads <= exact.utilisation * capacity * (1 + 1e-9) + 1e-12).all()
        assert (certify_routing(load, allowed, capacity, limit=exact.utilisation * 1.01).utilisation) <= (
            exact.utilisation * 1.01
        )
        assert certify_routing(load, allowed, capacity, limit=exact.utilisation * 0.99).lower_bound > (
            exact.utilisation * 0.99
        )


def test_the_certificate_settles_a_large_routing() -> None:
    rng = np.random.default_rng(7)
    load = 10 ** rng.uniform(-1, 1, (400, 20))
    capacity = rng.integers(1, 9, 20).astype(float)
    exact = certify_routing(load, np.ones(load.shape, dtype=bool), capacity, limit=None)
    assert exact.lower_bound == pytest.approx(exact.utilisation, rel=1e-9)
