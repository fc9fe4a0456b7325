"""Plans rehearsed in the simulator: prediction beside simulation."""

import numpy as np
import pytest

from controller.rehearsal import RehearsedModel, rehearse
from controller.trace_planning import Catalogues, TraceQuestion, plan_demand, read_catalogues
from simulator.workload import PRESETS
from solver.domain.demand import demand_of
from solver.domain.gpu_mix import GpuMixInstance, RequestBucket
from solver.domain.slo import SloMetric, parse_slo
from solver.domain.trace import Requests
from solver.domain.trace_summary import summarise
from solver.gpu_mix.solve import SolveOptions
from solver.performance.capacity import max_mixed_rate_rps
from solver.performance.prediction import predicted_s
from solver.performance.protocol import ReplicaKind

CATALOGUES: Catalogues = read_catalogues()
MODEL = "meta-llama/Llama-3.1-8B"


def requests(rate_rps: float, number: int = 4000) -> Requests:
    randomness = np.random.default_rng(5)
    prompt, output = PRESETS["conversation"].sizes.draw(randomness, number)
    return Requests(
        arrival_s=np.cumsum(randomness.exponential(1 / rate_rps, number)),
        prompt_tokens=prompt,
        output_tokens=output,
    )


def test_the_predicted_percentile_is_the_limit_at_which_the_rate_is_largest() -> None:
    model = CATALOGUES.book.performance(
        ReplicaKind(model=MODEL, gpu_type="H100-SXM", gpus_per_replica=1, precision="bf16")
    )
    sizes = ((300.0, 100.0), (2000.0, 300.0))
    buckets = [RequestBucket(rate_rps=4.0, input_tokens=p, output_tokens=g) for p, g in sizes]
    for metric in SloMetric:
        value = predicted_s(model, buckets, metric, 99.0)
        assert value is not None
        for factor, carries in ((1.001, True), (0.999, False)):
            slo = parse_slo(f"{metric}_p99={value * factor!r}")
            assert (max_mixed_rate_rps(model, buckets, slo).rate_rps >= 8.0) is carries
    flood = [RequestBucket(rate_rps=4000.0, input_tokens=2000.0, output_tokens=300.0)]
    assert predicted_s(model, flood, SloMetric.TTFT, 99.0) is None


@pytest.fixture(scope="module")
def planned() -> tuple[GpuMixInstance, tuple[RehearsedModel, ...]]:
    slo = parse_slo("ttft_p99=2.0,tbt_p99=0.1")
    question = TraceQuestion(models=(MODEL,), slo=slo, gpu_types=("L4", "A100-80-SXM"))
    recorded = requests(12.0)
    demand = demand_of(
        summarise([recorded], windows_s=(300.0,)), largest_bucket_count=12, rate="mean", window_s=300.0
    )
    settled = plan_demand(demand, question, CATALOGUES, name="t", options=SolveOptions()).settled
    models = rehearse(settled.instance, settled.plan, book=CATALOGUES.book, slo=slo, recorded=recorded)
    again = rehearse(settled.instance, settled.plan, book=CATALOGUES.book, slo=slo, recorded=recorded)
    assert models == again
    return settled.instance, models


def test_prediction_and_simulation_agree_at_the_planned_load(
    planned: tuple[GpuMixInstance, tuple[RehearsedModel, ...]],
) -> None:
    instance, models = planned
    (model,) = models
    assert model.planned_rps == pytest.approx(instance.models[0].rate_rps)
    assert model.planned.requests.incomplete == 0
    assert model.recorded.requests.completed == 4000
    for row in model.targets:
        assert row.planned_s == pytest.approx(row.predicted_s, rel=0.3)
        assert row.planned_s is not None
        assert row.target.limit_s is not None
        assert row.planned_s <= row.target.limit_s
    assert model.met
