"""What a request of each size costs: by the cheapest way to serve it, which is the dual of the linear program."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.fleet import FleetConfig, FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant
from solver.forecast.work import fleet_weights, mix_weights

OFFERS = (
    GpuOffer(name="small", price_usd_per_h=1.0, spot_price_usd_per_h=0.4, power_w=100.0),
    GpuOffer(name="large", price_usd_per_h=4.0, power_w=250.0),
)
BUCKETS = tuple(RequestBucket(rate_rps=1.0, input_tokens=100.0, output_tokens=10.0) for _ in range(3))


def mix(throughput: list[list[float]], *variants: Variant) -> GpuMixInstance:
    demand = ModelDemand(
        name="m", variants=variants, buckets=BUCKETS, throughput_rps=tuple(map(tuple, throughput))
    )
    return GpuMixInstance(name="x", gpu_types=OFFERS, models=(demand,))


def test_the_cheapest_variant_of_each_size_counts() -> None:
    variants = (
        Variant(gpu_type="small", gpus_per_replica=2),
        Variant(gpu_type="large", gpus_per_replica=1),
        Variant(gpu_type="small", gpus_per_replica=1, spot=True),
    )
    found = mix_weights(mix([[4.0, 2.0, 0.0], [1.0, 8.0, 0.1], [0.0, 0.0, 0.8]], *variants), 0)
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert mix_weights(mix([[4.0], [0.0], [2.0]], variants[0]), 0).tolist() == pytest.approx([0.5, 1.0, 1.0])
    assert mix_weights(mix([[0.0], [0.0], [0.0]], variants[0]), 0).tolist() == [1.0, 1.0, 1.0]
    no_spot = Variant(gpu_type="large", gpus_per_replica=1, spot=True)
    assert mix_weights(mix([[1.0], [2.0], [4.0]], no_spot), 0).tolist() == [1.0, 1.0, 1.0]


def fleet(throughput: list[list[float]], *configs: FleetConfig) -> FleetInstance:
    model = FleetModel(
        name="m", configs=configs, buckets=BUCKETS, throughput_rps=tuple(map(tuple, throughput))
    )
    return FleetInstance(name="x", gpu_types=OFFERS, models=(model,))


def test_prefill_and_decode_cost_together() -> None:
    instance = fleet(
        [[2.0, 8.0, 2.0], [8.0, 8.0, 1.0], [1.0, 0.0, 5.0]],
        FleetConfig(gpu_type="large", gpus_per_replica=1),
        FleetConfig(gpu_type="large", gpus_per_replica=1, role=Role.PREFILL),
        FleetConfig(gpu_type="small", gpus_per_replica=1, role=Role.DECODE),
    )
    assert fleet_weights(instance, 0).tolist() == pytest.approx([1.0, 0.5, 4.0])
    watts = fleet_weights(replace(instance, goal=FleetGoal.POWER), 0)
    assert watts.tolist() == pytest.approx([250 / 8 + 50, 250 / 8, 250.0])


@settings(max_examples=30, deadline=None)
@given(
    throughput=st.lists(st.lists(st.floats(0.1, 20.0), min_size=2, max_size=2), min_size=3, max_size=3),
    rates=st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3),
)
def test_without_limits_the_linear_program_costs_exactly_that(
    throughput: list[list[float]], rates: list[float]
) -> None:
    """Any shares cost at least sum w r, and the cheapest variant of each bucket costs just that."""
    prices = np.array([1.0, 4.0])
    variants = tuple(Variant(gpu_type=offer.name, gpus_per_replica=1) for offer in OFFERS)
    weights = mix_weights(mix(throughput, *variants), 0)
    costs = prices / np.array(throughput)
    best = (np.array(rates) * costs.min(axis=1)).sum()
    assert float((weights * rates).sum()) == pytest.approx(best)
    shares = np.random.default_rng(0).dirichlet([1.0, 1.0], 3)
    assert (np.array(rates)[:, None] * shares * costs).sum() >= best - 1e-9
