"""No map goes below the bounds, and the bounds are as high as is known to be possible."""

import numpy as np
import pytest
from hypothesis import given, settings

from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance
from solver.experts.bounds import least_of_dearest, lower_bounds_s
from solver.experts.score import score_map
from tests.solver.experts.tiny import (
    REFERENCE_NAMES,
    all_rows,
    compute_s,
    dispatch_s,
    expert_instance,
    reference_instance,
    step_s,
    tiny_instances,
)

ROUNDING = 1.0 + 1e-9


@settings(max_examples=150, deadline=None)
@given(instance=tiny_instances())
def test_no_map_goes_below_the_bounds(instance: ExpertInstance) -> None:
    rows = all_rows(instance)
    bounds = lower_bounds_s(instance, "transition")
    together = lower_bounds_s(instance, "dispatch").sum(axis=1)
    assert (bounds >= 0).all()
    assert bounds[-1, 1] == 0.0
    for layer in range(instance.layers):
        computes = [compute_s(instance, layer, row) for row in rows]
        assert bounds[layer, 0] <= min(computes) * ROUNDING
        least = min(
            compute + dispatch_s(instance, layer, row) for compute, row in zip(computes, rows, strict=True)
        )
        assert together[layer] <= least * ROUNDING
    for step in range(instance.layers - 1):
        least = min(step_s(instance, step, here, there) for here in rows for there in rows)
        assert bounds[step, 1] <= least * ROUNDING


@settings(max_examples=100, deadline=None)
@given(instance=tiny_instances(most_slots=7, most_gpus=3, most_layers=1))
def test_no_layer_goes_below_the_bounds(instance: ExpertInstance) -> None:
    rows = all_rows(instance)
    bound = lower_bounds_s(instance, "dispatch")[0]
    computes = [compute_s(instance, 0, row) for row in rows]
    assert bound[0] <= min(computes) * ROUNDING
    least = min(compute + dispatch_s(instance, 0, row) for compute, row in zip(computes, rows, strict=True))
    assert bound.sum() <= least * ROUNDING


@pytest.mark.parametrize(
    ("load", "slots", "speed", "right"),
    [
        ([6, 6, 6, 6], (2, 2), None, 12.0),  # ideal spread
        ([9, 1, 1, 1], (2, 2), None, 10.0),  # the heaviest and what fills its GPU
        ([5, 5, 5, 1, 1, 1], (3, 3), None, 10.0),  # two of three heavy ones meet
        ([9, 1], (2, 2), None, 5.0),  # replicas: the ideal spread again
        ([9, 2], (2, 1), None, 5.5),  # two replicas: 4.5 + 4.5 + 2 over two GPUs
        ([8, 8, 0, 0], (3, 1), (1.0, 0.5), 16.0 / 1.5),  # the ideal spread over unequal speeds
    ],
)
def test_known_bounds(
    load: list[float], slots: tuple[int, ...], speed: tuple[float, ...] | None, right: float
) -> None:
    instance = expert_instance(load=np.array([load]), gpu_node=(0,) * len(slots), slots=slots, speed=speed)
    assert lower_bounds_s(instance, "dispatch")[0, 0] == pytest.approx(right)


def test_replicas_of_the_second_heaviest_count_in_pigeonholes() -> None:
    # 2 GPUs, 4 slots for 3 experts: any three heaviest slots put two on one GPU, each of 4 or more
    instance = expert_instance(load=np.array([[8.0, 4.0, 4.0]]), gpu_node=(0, 0), slots=(2, 2))
    assert lower_bounds_s(instance, "dispatch")[0, 0] == pytest.approx(8.0)


def test_free_gpus_and_empty_layers_cost_nothing() -> None:
    instance = expert_instance(load=np.zeros((1, 2)), gpu_node=(0, 0), slots=(1, 2))
    assert (lower_bounds_s(instance, "dispatch") == 0.0).all()
    assert (least_of_dearest(np.ones((1, 2)), instance.topology, np.zeros(2)) == 0.0).all()


def test_transitions_must_be_known_to_bound_them() -> None:
    instance = expert_instance(load=np.ones((2, 2)), gpu_node=(0, 0), slots=(1, 1))
    with pytest.raises(InputError, match="transitions between layers are not known"):
        lower_bounds_s(instance, "transition")


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_bounds_are_reached(name: str) -> None:
    instance, text, arrays = reference_instance(name)
    bounds = lower_bounds_s(instance, "transition").sum(axis=0) * 1e6
    stored = text["lower_bound"]
    assert bounds[0] >= stored["compute_us"] - 0.006
    assert bounds[1] >= stored["a2a_us"] - 0.006
    best = score_map(instance, arrays["best_known_p2l"].astype(np.int32))
    assert bounds.sum() <= best.objective_s("transition") * 1e6
    assert lower_bounds_s(instance, "dispatch").sum() <= best.dispatch_s
