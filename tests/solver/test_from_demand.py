"""Demand to instance: the right variants, nothing dropped silently, plans judged on the routed mixture."""

from dataclasses import replace

import pytest

from benchmarks.azure_mixtures import CONVERSATION
from benchmarks.one_instance import LinearReplica
from solver.domain.errors import InputError
from solver.domain.gpu_mix import (
    GpuMixInstance,
    GpuMixPlan,
    GpuOffer,
    PlanStatus,
    RequestBucket,
    RoutingShare,
    Variant,
)
from solver.domain.hardware import GpuType
from solver.domain.slo import parse_slo
from solver.gpu_mix.from_demand import (
    BuiltInstance,
    KnownCapacities,
    RoutedLoad,
    build_gpu_mix_instance,
    candidate_variants,
    offer_of,
    routed_loads,
)
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.gpu_mix.sound import plan_within_slo
from solver.performance.capacity import MatrixRule, max_mixed_rate_rps, max_rate_rps
from solver.performance.protocol import OutsideRangeError, PerformanceModel, ReplicaKind

SLO = parse_slo("ttft_p99=2,tbt_p99=0.1")
BIG = GpuOffer(name="big", price_usd_per_h=4.0, gpus_per_node=8)
LITTLE = GpuOffer(name="little", price_usd_per_h=1.0, gpus_per_node=2, spot_price_usd_per_h=0.3)
OFFERS = (BIG, LITTLE)
BUCKETS = (
    RequestBucket(rate_rps=4.0, input_tokens=300, output_tokens=100),
    RequestBucket(rate_rps=1.0, input_tokens=3000, output_tokens=200),
)


def performance(kind: ReplicaKind) -> PerformanceModel:
    """Two makes of GPU; the little one has no fp8 units and too little memory alone."""
    speed = kind.gpus_per_replica * (4.0 if kind.gpu_type == "big" else 1.0)
    if kind.gpu_type == "little" and kind.precision == "fp8":
        raise InputError("little has no fp8 units", right="precision bf16")
    if kind.precision == "int4":
        raise OutsideRangeError("new_tokens", 1.0, 128.0, 4096.0)
    memory = kind.gpus_per_replica * (200_000 if kind.gpu_type == "big" else 20_000) - 25_000
    return LinearReplica(
        floor_s=0.06 / speed + 0.004,
        per_prompt_token_s=3e-4 / speed,
        per_kv_token_s=3e-7 / speed,
        kv_tokens=max(memory, 0),
    )


def test_candidates_are_types_times_sizes_times_precisions_within_a_node() -> None:
    variants = candidate_variants(OFFERS, precisions=("bf16", "fp8"), quality_ratio={"fp8": 0.98})
    sizes = {(v.gpu_type, v.gpus_per_replica, v.precision, v.spot) for v in variants}
    assert len(sizes) == len(variants) == 4 * 2 + 2 * 2 * 2
    assert ("little", 4, "bf16", False) not in sizes
    assert ("little", 2, "bf16", True) in sizes
    assert not any(v.spot for v in variants if v.gpu_type == "big")
    assert {v.quality_ratio for v in variants if v.precision == "fp8"} == {0.98}


def test_throughput_is_the_capacity_and_left_out_variants_say_why() -> None:
    variants = candidate_variants(OFFERS, precisions=("bf16", "fp8", "int4"))
    built = build_gpu_mix_instance(
        name="two",
        demands={"m": BUCKETS},
        offers=OFFERS,
        variants={"m": (*variants, Variant(gpu_type="absent", gpus_per_replica=1, precision="bf16"))},
        performance=performance,
        slo=SLO,
        headroom_ratio=0.1,
        rule=MatrixRule.STANDALONE,
    )
    model = built.instance.models[0]
    assert built.instance.gpu_types == OFFERS
    assert model.headroom_ratio == 0.1
    assert set(model.variants) | {
        item.variant for item in built.left_out if item.variant.gpu_type != "absent"
    } == set(variants)
    reasons = {
        (i.variant.gpu_type, i.variant.gpus_per_replica, i.variant.precision): i.reason
        for i in built.left_out
    }
    assert reasons["absent", 1, "bf16"] == "its GPU type is not on offer"
    assert reasons["little", 1, "bf16"] == "the weights do not fit its memory"
    assert "no fp8 units" in reasons["little", 2, "fp8"]
    assert "not measured there" in reasons["big", 4, "int4"]
    for config, variant in enumerate(model.variants):
        kind = ReplicaKind(
            model="m",
            gpu_type=variant.gpu_type,
            gpus_per_replica=variant.gpus_per_replica,
            precision=str(variant.precision),
        )
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True):
            assert bucket.input_tokens is not None
            assert bucket.output_tokens is not None
            alone = max_rate_rps(performance(kind), bucket.input_tokens, bucket.output_tokens, SLO)
            assert row[config] == pytest.approx(alone.rate_rps, rel=1e-3)


def test_spot_copies_sustain_the_same() -> None:
    built = build_gpu_mix_instance(
        name="spot",
        demands={"m": BUCKETS},
        offers=OFFERS,
        variants={"m": candidate_variants(OFFERS, precisions=("bf16",))},
        performance=performance,
        slo={"m": SLO},
    )
    model = built.instance.models[0]
    spot = next(index for index, variant in enumerate(model.variants) if variant.spot)
    on_demand = model.variants.index(replace(model.variants[spot], spot=False))
    assert [row[spot] for row in model.throughput_rps] == [row[on_demand] for row in model.throughput_rps]


def hopeless() -> BuiltInstance:
    """Return a problem whose SLO nobody can keep."""
    return build_gpu_mix_instance(
        name="hopeless",
        demands={"m": BUCKETS},
        offers=OFFERS,
        variants={"m": candidate_variants(OFFERS, precisions=("bf16",))},
        performance=performance,
        slo=parse_slo("tbt_p99=0.001"),
    )


def test_a_hopeless_model_keeps_its_variants_with_zero_throughput() -> None:
    built = hopeless()
    model = built.instance.models[0]
    assert len(model.variants) == len(built.left_out) == 8
    assert all(rate == 0.0 for row in model.throughput_rps for rate in row)
    assert any("inside the SLO" in item.reason for item in built.left_out)


def test_mixed_rule_makes_the_routed_load_equal_the_linear_one() -> None:
    variant = Variant(gpu_type="big", gpus_per_replica=2, precision="bf16")
    built = build_gpu_mix_instance(
        name="one",
        demands={"m": CONVERSATION},
        offers=OFFERS,
        variants={"m": (variant,)},
        performance=performance,
        slo=SLO,
        rule=MatrixRule.MIXED,
    )
    plan = GpuMixPlan(
        instance_name="one",
        status=PlanStatus.OPTIMAL,
        replicas=((2,),),
        routing=tuple(
            RoutingShare(model="m", bucket=b, config=0, share=1.0) for b in range(len(CONVERSATION))
        ),
    )
    (load,) = routed_loads(built.instance, plan, performance=performance, slo=SLO)
    kind = ReplicaKind(model="m", gpu_type="big", gpus_per_replica=2, precision="bf16")
    capacity = max_mixed_rate_rps(performance(kind), CONVERSATION, SLO)
    total = sum(bucket.rate_rps for bucket in CONVERSATION)
    assert load.rate_rps == pytest.approx(total)
    assert load.load_ratio == pytest.approx(total / (2 * capacity.rate_rps))
    assert load.linear_load_ratio == pytest.approx(load.load_ratio, rel=1e-3)


def test_a_plan_is_corrected_until_its_replicas_hold_their_own_mixture() -> None:
    demand = [replace(bucket, rate_rps=40.0 * bucket.rate_rps) for bucket in CONVERSATION]

    def build(rule: MatrixRule) -> GpuMixInstance:
        return build_gpu_mix_instance(
            name=rule,
            demands={"m": demand},
            offers=OFFERS,
            variants={"m": candidate_variants(OFFERS, precisions=("bf16",))},
            performance=performance,
            slo=SLO,
            headroom_ratio=0.1,
            rule=rule,
        ).instance

    def solve(instance: GpuMixInstance) -> GpuMixPlan:
        options = SolveOptions(gap_ratio=1e-3)
        return solve_gpu_mix(instance, options=options, clock=lambda: 0.0)

    def judge(instance: GpuMixInstance, plan: GpuMixPlan) -> tuple[RoutedLoad, ...]:
        return routed_loads(instance, plan, performance=performance, slo=SLO)

    instances = [build(rule) for rule in MatrixRule]
    found = plan_within_slo(instances, solve=solve, judge=judge)
    assert found.within_slo
    assert max(load.load_ratio for load in found.loads) <= 0.9 * 1.011
    firsts = [solve(instance) for instance in instances]
    sound = [
        plan.objective
        for instance, plan in zip(instances, firsts, strict=True)
        if plan.objective is not None and max(load.load_ratio for load in judge(instance, plan)) <= 0.9
    ]
    assert found.plan.objective is not None
    assert all(found.plan.objective <= cost * 1.001 for cost in sound)
    assert judge(found.instance, found.plan) == found.loads


def test_a_demand_nobody_can_serve_stays_infeasible() -> None:
    built = hopeless()
    found = plan_within_slo(
        [built.instance],
        solve=lambda instance: solve_gpu_mix(instance, options=SolveOptions(), clock=lambda: 0.0),
        judge=lambda instance, plan: routed_loads(instance, plan, performance=performance, slo=SLO),
    )
    assert found.plan.status is PlanStatus.INFEASIBLE
    assert not found.within_slo


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"demands": {"m": ()}}, "no buckets"),
        ({"variants": {}}, "no variants"),
        ({"slo": {}}, "no SLO"),
        ({"demands": {"m": (RequestBucket(rate_rps=1.0),)}}, "no size"),
        ({"variants": {"m": (Variant(gpu_type="big", gpus_per_replica=1),)}}, "no precision"),
    ],
)
def test_bad_demand_is_one_line(change: dict[str, object], says: str) -> None:
    arguments: dict[str, object] = {
        "name": "bad",
        "demands": {"m": BUCKETS},
        "offers": OFFERS,
        "variants": {"m": candidate_variants(OFFERS, precisions=("bf16",))},
        "performance": performance,
        "slo": SLO,
    }
    with pytest.raises(InputError, match=says):
        build_gpu_mix_instance(**(arguments | change))  # type: ignore[arg-type]


def test_an_offer_needs_a_price() -> None:
    gpu = GpuType(
        name="g",
        vendor="v",
        memory_bytes=8e10,
        memory_bandwidth_bytes_per_s=2e12,
        fp16_flops=3e14,
        tdp_w=400.0,
        price_usd_per_h=2.0,
        gpus_per_node=8,
    )
    offer = offer_of(gpu, available=16)
    assert (offer.price_usd_per_h, offer.available, offer.power_w, offer.gpus_per_node) == (2.0, 16, 400.0, 8)
    with pytest.raises(InputError, match="no price"):
        offer_of(replace(gpu, price_usd_per_h=None))


def test_capacities_are_remembered_and_change_nothing() -> None:
    built = build_gpu_mix_instance(
        name="again",
        demands={"m": CONVERSATION},
        offers=OFFERS,
        variants={"m": candidate_variants(OFFERS, precisions=("bf16",))},
        performance=performance,
        slo=SLO,
    ).instance
    plan = solve_gpu_mix(built, options=SolveOptions(), clock=lambda: 0.0)
    known: KnownCapacities = {}
    first = routed_loads(built, plan, performance=performance, slo=SLO, known=known)
    assert len(known) == len(first)

    def never(kind: ReplicaKind) -> PerformanceModel:
        raise AssertionError(kind)

    assert routed_loads(built, plan, performance=never, slo=SLO, known=known) == first
    assert routed_loads(built, plan, performance=performance, slo=SLO) == first
