"""Rehearsing fleets: lanes, what each phase sustains, and which loads are tried."""

from functools import cache

import numpy as np
import pytest

from controller.fleet_rehearsal import FleetStage, planned_load, recorded_load
from simulator.fleet import InstanceKind
from simulator.step_models import instance_kind
from solver.domain.busiest import BusiestStretch
from solver.domain.fleet import (
    FleetConfig,
    FleetFlow,
    FleetGoal,
    FleetInstance,
    FleetModel,
    FleetPlan,
    Phase,
    Role,
)
from solver.domain.gpu_mix import GpuOffer, PlanStatus, RequestBucket
from solver.domain.slo import parse_slo
from solver.domain.trace import Requests
from solver.performance.book import PerformanceBook
from solver.performance.protocol import ReplicaKind
from solver.phases.settle import Verdict
from telemetry.catalogue.read import read_gpus, read_models

MODEL = "meta-llama/Llama-3.1-8B"
BUCKETS = (
    RequestBucket(rate_rps=12.0, input_tokens=300.0, output_tokens=100.0),
    RequestBucket(rate_rps=8.0, input_tokens=3000.0, output_tokens=30.0),
)
CONFIGS = tuple(
    FleetConfig(gpu_type="H100-SXM", gpus_per_replica=1, role=role)
    for role in (Role.BOTH, Role.PREFILL, Role.DECODE)
)
INSTANCE = FleetInstance(
    name="t",
    gpu_types=(GpuOffer(name="H100-SXM", price_usd_per_h=3.0, power_w=700.0, gpus_per_node=8),),
    models=(
        FleetModel(name=MODEL, configs=CONFIGS, buckets=BUCKETS, throughput_rps=((10.0,) * 3, (10.0,) * 3)),
    ),
)


@cache
def kind(_: str, config: FleetConfig) -> InstanceKind:
    models = read_models()
    book = PerformanceBook(gpus=read_gpus(), models=models)
    steps = book.performance(
        ReplicaKind(
            model=MODEL,
            gpu_type=config.gpu_type,
            gpus_per_replica=config.gpus_per_replica,
            precision="bf16",
        )
    )
    return instance_kind("i", steps, models[MODEL], max_batch=256, longest_step_tokens=2048)


def plan(both: int, prefill: int, decode: int) -> FleetPlan:
    """Short prompts to replicas for both where there are any, everything else split."""
    flows = []
    for b in (0, 1):
        whole = both > 0 and (b == 0 or prefill == 0)
        for c, phase in ((0, Phase.BOTH),) if whole else ((1, Phase.PREFILL), (2, Phase.DECODE)):
            flows.append(FleetFlow(model=MODEL, bucket=b, config=c, phase=phase, share=1.0))
    return FleetPlan(
        instance_name="t",
        goal=FleetGoal.COST,
        status=PlanStatus.FEASIBLE,
        objective=1.0,
        replicas=((both, prefill, decode),),
        flows=tuple(flows),
        load_ratio=((0.5, 0.5, 0.5),),
        rate_factor=1.0,
    )


def stage(**more: object) -> FleetStage:
    load = planned_load(BUCKETS, spare_ratio=0.0, seed=3, requests=2500)
    return FleetStage(
        loads={MODEL: (load,)},
        kinds=kind,
        slo=parse_slo("ttft_p90=1.0,tbt_p90=0.05"),
        **more,  # type: ignore[arg-type]
    )


def said(tried: FleetStage, fleet: FleetPlan) -> Verdict:
    verdict = tried.verdict(INSTANCE, fleet)
    assert verdict is not None
    return verdict


def test_more_replicas_sustain_more_and_runs_are_remembered() -> None:
    tried = stage()
    few, many = (said(tried, plan(0, n, n)) for n in (1, 2))
    assert few.sustained_ratio < many.sustained_ratio
    assert few.runs + many.runs == tried.runs > 0
    again = said(tried, plan(0, 2, 2))
    assert again.runs == 0
    assert again.sustained_ratio == many.sustained_ratio
    assert tried.holds(INSTANCE, plan(0, 2, 2)) is (many.sustained_ratio >= 1.0)


def test_the_phase_that_is_short_is_told_apart() -> None:
    short_of_prefill = said(stage(), plan(0, 1, 3))
    assert short_of_prefill.factors[MODEL, 1] < short_of_prefill.factors[MODEL, 2]


def test_lanes_share_nothing_and_together_serve_every_request() -> None:
    tried = stage()
    mixed = said(tried, plan(2, 2, 1))
    assert set(mixed.factors) == {(MODEL, 0), (MODEL, 1), (MODEL, 2)}
    (ttft, tbt) = tried.targets(INSTANCE, plan(2, 2, 1))[MODEL]
    assert ttft.planned is not None
    assert tbt.planned is not None
    assert ttft.recorded is None


@pytest.mark.parametrize("most", [0, 3])
def test_no_simulation_begins_once_time_is_up(most: int) -> None:
    tried = stage()
    tried.enough = lambda: tried.runs >= most
    assert tried.verdict(INSTANCE, plan(0, 2, 2)) is None
    assert tried.runs == most
    assert tried.holds(INSTANCE, plan(0, 3, 2)) is None
    assert tried.targets(INSTANCE, plan(0, 2, 2), enough=lambda: True) == {}
    assert tried.runs == most
    assert set(tried.targets(INSTANCE, plan(0, 2, 2))) == {MODEL}  # it has a limit of its own


def test_a_long_trace_is_represented_by_its_busiest_stretch() -> None:
    gaps = np.concatenate((np.full(100, 1.0), np.full(60, 0.1), np.full(100, 1.0)))
    trace = Requests(
        arrival_s=np.cumsum(gaps),
        prompt_tokens=np.full(260, 2500),
        output_tokens=np.full(260, 40),
    )
    stretch = BusiestStretch(number=50)
    assert list(stretch.watching([trace])) == [trace]
    load = recorded_load(BUCKETS, stretch.requests, speed=2.0)
    assert len(load.requests) == 50
    assert load.requests.arrival_s[-1] == pytest.approx(49 * 0.05)
    assert load.requests.arrival_s[0] == 0.0
    assert set(load.bucket_of.tolist()) == {1}
