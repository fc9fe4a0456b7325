"""From demand to a fleet problem, and back to what its pools really carry."""

import time

import pytest

from solver.domain.errors import InputError
from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetPlan, Role
from solver.domain.gpu_mix import GpuOffer, RequestBucket
from solver.domain.slo import parse_slo
from solver.performance.book import PerformanceBook
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.phases.from_demand import (
    BuiltFleet,
    PerformanceOfConfig,
    build_fleet_instance,
    candidate_configs,
    predicted_verdict,
    routed_buckets,
)
from solver.phases.settle import Verdict, settle_fleet
from solver.phases.solve import FleetOptions, solve_fleet
from telemetry.catalogue.read import read_gpus, read_models

MODEL = "meta-llama/Llama-3.1-8B"
SLO = parse_slo("ttft_p99=1.0,tbt_p99=0.05")
BUCKETS = (
    RequestBucket(rate_rps=30.0, input_tokens=200.0, output_tokens=150.0),
    RequestBucket(rate_rps=20.0, input_tokens=2000.0, output_tokens=60.0),
)


@pytest.fixture(scope="module")
def book() -> PerformanceBook:
    return PerformanceBook(gpus=read_gpus(), models=read_models())


def offer(name: str, price: float, **more: object) -> GpuOffer:
    return GpuOffer(name=name, price_usd_per_h=price, power_w=700.0, gpus_per_node=8, **more)  # type: ignore[arg-type]


def asked(book: PerformanceBook, **more: object) -> tuple[BuiltFleet, PerformanceOfConfig]:
    offers = (offer("H100-SXM", 3.0), offer("L4", 0.7))

    def performance(model: str, config: FleetConfig) -> PerformanceModel:
        return book.performance(
            ReplicaKind(
                model=model,
                gpu_type=config.gpu_type,
                gpus_per_replica=config.gpus_per_replica,
                precision="bf16",
            )
        )

    built = build_fleet_instance(
        name="t",
        demands={MODEL: BUCKETS},
        offers=offers,
        configs={MODEL: candidate_configs(offers, replica_sizes=(1,))},
        performance=performance,
        slo=SLO,
        kv_bytes_per_token={MODEL: 131072.0},
        **more,  # type: ignore[arg-type]
    )
    return built, performance


def test_candidates_are_types_by_sizes_by_roles_by_caps() -> None:
    offers = (offer("a", 1.0), GpuOffer(name="b", price_usd_per_h=1.0, gpus_per_node=2))
    configs = candidate_configs(offers, caps_w={"a": (400.0,)}, kv_link_bytes_per_s=5e9)
    assert len(configs) == len(set(configs)) == 3 * (4 * 2 + 2)
    capped = [config for config in configs if config.power_cap_w is not None]
    assert {config.power_w for config in capped} == {400.0}
    assert all((config.kv_link_bytes_per_s is None) == (config.role is Role.BOTH) for config in configs)


def test_what_cannot_hold_the_slo_is_left_out_with_its_reason(book: PerformanceBook) -> None:
    built, _ = asked(book)
    model = built.instance.models[0]
    assert {config.gpu_type for config in model.configs} >= {"H100-SXM"}
    assert all("SLO" in left.reason or "fit" in left.reason for left in built.left_out)
    assert model.ttft_slo_s == 1.0
    assert model.kv_bytes(1) == 2000 * 131072.0
    assert len(model.throughput_rps) == len(BUCKETS)


def test_the_program_and_the_pools_agree_when_settled(book: PerformanceBook) -> None:
    built, performance = asked(book, headroom_ratio=0.1)

    def solve(instance: FleetInstance) -> FleetPlan:
        return solve_fleet(instance, FleetOptions(compare=False, explain=False), time.monotonic)

    def judge(instance: FleetInstance, plan: FleetPlan) -> Verdict:
        return predicted_verdict(instance, plan, performance=performance, slo=SLO)

    found = settle_fleet(built.instance, solve=solve, judge=judge)
    assert found.holds
    sent = routed_buckets(found.instance, found.plan)
    whole = sum(
        b.rate_rps
        for (m, c), buckets in sent.items()
        for b in buckets
        if found.instance.models[m].configs[c].role is not Role.DECODE
    )
    assert whole == pytest.approx(50.0)


def test_the_largest_rate_within_a_budget(book: PerformanceBook) -> None:
    built, _ = asked(book, goal=FleetGoal.RATE, budgets=FleetBudgets(cost_usd_per_h=30.0))
    plan = solve_fleet(built.instance, FleetOptions(explain=False), time.monotonic)
    assert plan.cost_usd_per_h is not None
    assert plan.cost_usd_per_h <= 30.0
    assert plan.objective is not None
    sent = routed_buckets(built.instance, plan)
    assert sum(b.rate_rps for buckets in sent.values() for b in buckets) >= 50.0 * plan.objective * (1 - 1e-9)


def test_bad_demand_is_refused() -> None:
    common = {
        "name": "t",
        "offers": (),
        "performance": lambda *_: None,
        "slo": SLO,
    }
    config = {MODEL: (FleetConfig(gpu_type="L4", gpus_per_replica=1),)}
    sized = RequestBucket(rate_rps=1.0, input_tokens=1.0, output_tokens=1.0)
    for demands, configs, words in (
        ({MODEL: ()}, config, "no traffic"),
        ({MODEL: (sized,)}, {}, "no configs"),
        ({MODEL: (RequestBucket(rate_rps=1.0),)}, config, "no size"),
    ):
        with pytest.raises(InputError, match=words):
            build_fleet_instance(demands=demands, configs=configs, **common)  # type: ignore[arg-type]
