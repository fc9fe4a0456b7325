"""A request alone, by equation, takes what the engine takes for it."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.alone import alone_on
from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Pool, Scheduler
from simulator.step_models import instance_kind
from solver.domain.trace import Requests
from solver.performance.book import PerformanceBook
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles

GPUS, MODELS = read_gpus(), read_models()
BLOOM = ReplicaKind(model="bigscience/bloom", gpu_type="H100-SXM", gpus_per_replica=8, precision="bf16")
LLAMA = ReplicaKind(
    model="meta-llama/Llama-3.1-70B", gpu_type="H100-SXM", gpus_per_replica=4, precision="bf16"
)


@cache
def kind(name: str) -> InstanceKind:
    roofline = Roofline.of(LLAMA, GPUS[LLAMA.gpu_type], MODELS[LLAMA.model])
    tables = PerformanceBook(
        gpus=GPUS, models=MODELS, tables=read_profiles(GPUS, MODELS), extrapolate_tables=True
    )
    models: dict[str, PerformanceModel] = {
        "table": tables.performance(BLOOM),
        "roofline": roofline,
        "physics": TrainedPhysics(roofline=roofline),
    }
    model = models[name]
    return instance_kind(name, model, MODELS[model.kind.model], max_batch=16, longest_step_tokens=2048)


@pytest.mark.parametrize("name", ["table", "roofline", "physics"])
@pytest.mark.parametrize("chunk_tokens", [512, 2048, None])
@settings(max_examples=25)
@given(prompt=st.integers(1, 20_000), output=st.integers(1, 1000))
def test_the_engine_takes_the_same_time(
    name: str, chunk_tokens: int | None, prompt: int, output: int
) -> None:
    requests = Requests(
        arrival_s=np.zeros(1), prompt_tokens=np.array([prompt]), output_tokens=np.array([output])
    )
    fleet = Fleet(
        models=("m",),
        kinds=(kind(name),),
        pools=(Pool(name="p", kind=0, count=1),),
        scheduler=Scheduler(
            max_batch=16, max_batch_tokens=chunk_tokens or 2048, chunked_prefill=chunk_tokens is not None
        ),
    )
    record = simulate(fleet, requests)
    alone = alone_on(
        [kind(name)],
        np.zeros(1, dtype=np.int64),
        requests.prompt_tokens,
        requests.output_tokens,
        chunk_tokens=chunk_tokens,
    )
    assert alone.ttft_s[0] == pytest.approx(record.ttft_s[0], rel=1e-9)
    assert alone.e2e_s[0] == pytest.approx(record.e2e_s[0], rel=1e-9)
    if output > 1:
        assert alone.tbt_s[0] == pytest.approx((alone.e2e_s[0] - alone.ttft_s[0]) / (output - 1))
    else:
        assert np.isnan(alone.tbt_s[0])


def test_each_request_is_measured_on_its_own_kind() -> None:
    kinds = [kind("table"), kind("physics")]
    prompts, outputs = np.array([700, 700]), np.array([9, 9])
    both = alone_on(kinds, np.array([0, 1]), prompts, outputs, chunk_tokens=2048)
    for k in (0, 1):
        one = alone_on(
            kinds[k : k + 1], np.zeros(1, dtype=np.int64), prompts[:1], outputs[:1], chunk_tokens=2048
        )
        assert both.e2e_s[k] == one.e2e_s[0]
