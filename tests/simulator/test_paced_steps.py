"""An instance at another pace: everything takes so many times as long, at the same watts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.trace_planning import read_catalogues
from simulator.engine.run import simulate
from simulator.fleet import Fleet, Pool, Scheduler
from simulator.step_models import instance_kind
from solver.domain.trace import Requests
from solver.performance.protocol import ReplicaKind
from tests.simulator.simple_fleets import kind

CATALOGUES = read_catalogues()
MODEL = "meta-llama/Llama-3.1-8B"
KINDS = (
    kind(100_000),
    instance_kind(
        "a",
        CATALOGUES.book.performance(
            ReplicaKind(model=MODEL, gpu_type="A100-80-SXM", gpus_per_replica=1, precision="bf16")
        ),
        CATALOGUES.models[MODEL],
        max_batch=64,
        longest_step_tokens=2048,
    ),
)


@settings(max_examples=10, deadline=None)
@given(factor=st.floats(0.3, 3.0), which=st.integers(0, 1), seed=st.integers(0, 9))
def test_time_runs_so_many_times_as_slow(factor: float, which: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    requests = Requests(
        arrival_s=np.cumsum(draw.exponential(0.2, 60)),
        prompt_tokens=draw.integers(1, 3000 if which else 300, 60),
        output_tokens=draw.integers(1, 80, 60),
    )

    def run(slower: float) -> tuple[list[float], float]:
        one = KINDS[which]
        table = one.table.paced(slower)
        assert np.array_equal(table.prefill_w, one.table.prefill_w)
        paced = replace(one, table=table)
        fleet = Fleet(
            models=("m",),
            kinds=(paced,),
            pools=(Pool(name="p", kind=0, count=2),),
            scheduler=Scheduler(max_batch=64),
        )
        record = simulate(fleet, requests.at_times(requests.arrival_s * slower))
        return [float(end) for end in record.e2e_s], float(record.energy_j.sum())

    plain, plain_j = run(1.0)
    slow, slow_j = run(factor)
    assert slow == pytest.approx([factor * end for end in plain], rel=1e-6)
    assert slow_j == pytest.approx(factor * plain_j, rel=1e-6)
