"""The exact method against brute force over all chains of tiny problems, and against the proved reference optimum."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.domain.moe import Communication, ExpertInstance, check_map
from solver.experts.exact import MOST_PLACEMENTS, all_placements, count_placements, place_exactly
from solver.experts.score import score_map
from tests.solver.experts.test_check_experts import plan_of
from tests.solver.experts.tiny import (
    all_rows,
    compute_s,
    expert_instance,
    has_avoidable_duplicate,
    objective_s,
    reference_instance,
    step_s,
    tiny_instances,
)

NO_LIMIT = Deadline(lambda: 0.0, 1.0)
PAST = Deadline(lambda: 1.0, 1.0)


def legal_rows(instance: ExpertInstance) -> list[tuple[int, ...]]:
    return [row for row in all_rows(instance) if not has_avoidable_duplicate(instance, row)]


@settings(max_examples=150, deadline=None)
@given(instance=tiny_instances(most_slots=7))
def test_placements_are_counted_and_listed(instance: ExpertInstance) -> None:
    rows = legal_rows(instance)
    assert count_placements(instance.topology, instance.experts) == len(rows)
    assert sorted(map(tuple, all_placements(instance.topology, instance.experts).tolist())) == rows


@settings(max_examples=120, deadline=None)
@given(instance=tiny_instances(most_slots=5, most_layers=3), data=st.data())
def test_no_chain_is_cheaper(instance: ExpertInstance, data: st.DataObject) -> None:
    rows = legal_rows(instance)
    communication: Communication = data.draw(st.sampled_from(("transition", "dispatch")))
    found = place_exactly(instance, communication, NO_LIMIT)
    assert found is not None
    assert check_experts(instance, plan_of(instance, found, communication=communication)) == ()
    objective = score_map(instance, found).objective_s(communication)
    if communication == "dispatch":
        layers = (
            min(
                objective_s(one_layer(instance, layer), np.array([row], dtype=np.int32), "dispatch")
                for row in rows
            )
            for layer in range(instance.layers)
        )
        assert objective == pytest.approx(sum(layers), rel=1e-9, abs=1e-12)
        return
    own = np.array([[compute_s(instance, layer, row) for row in rows] for layer in range(instance.layers)])
    best = own[0]
    for step in range(instance.layers - 1):
        steps = np.array([[step_s(instance, step, here, there) for there in rows] for here in rows])
        best = (best[:, None] + steps).min(axis=0) + own[step + 1]
    assert objective == pytest.approx(best.min(), rel=1e-9, abs=1e-12)


def one_layer(instance: ExpertInstance, layer: int) -> ExpertInstance:
    topology = instance.topology
    return expert_instance(
        load=instance.load[layer : layer + 1],
        gpu_node=topology.gpu_node,
        slots=topology.slots_per_gpu,
        speed=topology.gpu_speed,
        costs=instance.costs,
    )


def test_whole_chains_are_tried_too() -> None:
    rng = np.random.default_rng(3)
    for gpu_node in ((0, 0, 0), (0, 0, 1), (0, 1, 2)):
        instance = expert_instance(
            load=rng.integers(1, 9, (3, 3)).astype(float),
            transitions=rng.integers(0, 30, (2, 3, 3)).astype(float),
            gpu_node=gpu_node,
            slots=(1, 1, 1),
            speed=(1.0, 0.5, 2.0),
        )
        found = place_exactly(instance, "transition", NO_LIMIT)
        assert found is not None
        maps = itertools.product(legal_rows(instance), repeat=3)
        best = min(objective_s(instance, np.array(rows, dtype=np.int32), "transition") for rows in maps)
        assert objective_s(instance, found, "transition") == pytest.approx(best, rel=1e-12)


def test_what_does_not_fit_is_not_tried() -> None:
    large = expert_instance(load=np.ones((1, 16)), gpu_node=(0, 0), slots=(8, 8))
    assert count_placements(large.topology, 16) > MOST_PLACEMENTS
    assert place_exactly(large, "dispatch", NO_LIMIT) is None
    many = expert_instance(load=np.ones((1, 256)), gpu_node=(0, 0), slots=(128, 128))
    assert place_exactly(many, "dispatch", NO_LIMIT) is None


def test_no_time_no_answer() -> None:
    instance = expert_instance(
        load=np.ones((2, 2)), transitions=np.ones((1, 2, 2)), gpu_node=(0, 0), slots=(1, 1)
    )
    assert place_exactly(instance, "transition", PAST) is None


def test_transitions_must_be_known() -> None:
    instance = expert_instance(load=np.ones((2, 2)), gpu_node=(0, 0), slots=(1, 1))
    with pytest.raises(InputError, match="transitions between layers are not known"):
        place_exactly(instance, "transition", NO_LIMIT)


def test_the_reference_optimum_is_found() -> None:
    instance, text, _ = reference_instance("mixtral-8x7b-g4")
    found = place_exactly(instance, "transition", NO_LIMIT)
    assert found is not None
    check_map(instance, found)
    assert text["best_known"]["method"].startswith("exact")
    objective = score_map(instance, found).objective_s("transition") * 1e6
    assert objective == pytest.approx(text["best_known"]["J_us"], abs=0.006)
