"""ExFlow's program against brute force and a backend, for any number of parts, and against the reference figures."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance
from solver.experts.exflow import crossing_transitions, least_crossing, place_by_exflow
from solver.experts.kernels.affinity import kept_together
from solver.experts.score import score_map
from tests.solver.experts.test_check_experts import plan_of
from tests.solver.experts.tiny import all_rows, expert_instance, reference_instance

NO_LIMIT = Deadline(lambda: 0.0, 1000.0)
PAST = Deadline(lambda: 1.0, 1.0)


def instance_of(
    seed: int, *, slots: tuple[int, ...], gpu_node: tuple[int, ...], layers: int
) -> ExpertInstance:
    rng = np.random.default_rng(seed)
    experts = sum(slots)
    return expert_instance(
        load=rng.integers(1, 9, (layers, experts)).astype(float),
        transitions=rng.integers(0, 9, (layers - 1, experts, experts)).astype(float),
        gpu_node=gpu_node,
        slots=slots,
    )


def parts_of(instance: ExpertInstance, chain: tuple[tuple[int, ...], ...], place: np.ndarray) -> np.ndarray:
    part = np.empty((instance.layers, instance.experts), dtype=np.int64)
    for layer, row in enumerate(chain):
        part[layer, list(row)] = place
    return part


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    slots=st.sampled_from(((1, 1, 1), (2, 1), (2, 2), (2, 1, 1), (1, 0, 2))),
    layers=st.integers(1, 3),
)
def test_no_parts_keep_more_together(seed: int, slots: tuple[int, ...], layers: int) -> None:
    instance = instance_of(seed, slots=slots, gpu_node=(0,) * len(slots), layers=layers)
    transitions = instance.transitions
    assert transitions is not None
    gpu = instance.topology.slot_gpu
    least = min(
        crossing_transitions(transitions, parts_of(instance, chain, gpu))
        for chain in itertools.product(all_rows(instance), repeat=layers)
    )
    total = max(float(transitions.sum()), 1.0)
    assert least_crossing(transitions, np.array(slots)) <= least + 1e-9
    solved = place_by_exflow(instance, deadline=NO_LIMIT, backend="highs")
    (program,) = solved.programs
    assert program.objective == pytest.approx(least / total, abs=1e-9)
    assert program.lower_bound == pytest.approx(least / total, abs=1e-6)
    found = place_by_exflow(instance, deadline=NO_LIMIT)
    assert check_experts(instance, plan_of(instance, found.physical_to_logical)) == ()
    (program,) = found.programs
    assert program.lower_bound - 1e-9 <= least / total <= program.objective + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_nodes_come_before_gpus(seed: int) -> None:
    gpu_node = (0, 1, 0, 2, 1)  # of 3, 3 and 1 slots
    instance = instance_of(seed, slots=(2, 1, 1, 1, 2), gpu_node=gpu_node, layers=3)
    transitions = instance.transitions
    assert transitions is not None
    answer = place_by_exflow(instance, deadline=NO_LIMIT, seed=seed)
    assert check_experts(instance, plan_of(instance, answer.physical_to_logical)) == ()
    nodes, gpus = answer.programs
    score = score_map(instance, answer.physical_to_logical)
    assert score.cross_node_ratio == pytest.approx(nodes.objective)
    assert score.cross_gpu_ratio == pytest.approx(gpus.objective)
    assert nodes.lower_bound <= nodes.objective <= gpus.objective
    again = place_by_exflow(instance, deadline=NO_LIMIT, seed=seed)
    assert np.array_equal(answer.physical_to_logical, again.physical_to_logical)


def test_stages_are_solved_by_a_backend_too() -> None:
    instance = instance_of(4, slots=(1, 1, 1, 1), gpu_node=(0, 0, 1, 1), layers=3)
    solved = place_by_exflow(instance, deadline=NO_LIMIT, backend="highs")
    found = place_by_exflow(instance, deadline=NO_LIMIT)
    assert solved.programs[0].gap_ratio == pytest.approx(0.0, abs=1e-6)
    assert solved.programs[0].objective <= found.programs[0].objective + 1e-9


def test_followers_are_put_together() -> None:
    rng = np.random.default_rng(0)
    follow = [rng.permutation(12) for _ in range(4)]
    transitions = np.zeros((4, 12, 12))
    for step, order in enumerate(follow):
        transitions[step, np.arange(12), order] = 5.0
    instance = expert_instance(
        load=np.full((5, 12), 5.0), transitions=transitions, gpu_node=(0, 0, 0), slots=(4, 4, 4)
    )
    (program,) = place_by_exflow(instance, deadline=NO_LIMIT).programs
    assert program.objective == program.lower_bound == 0.0


def test_two_counts_of_what_is_kept_agree() -> None:
    rng = np.random.default_rng(1)
    transitions = rng.integers(0, 9, (2, 5, 5)).astype(float)
    part = rng.integers(0, 2, (3, 5))
    kept = kept_together(part, transitions)
    assert kept + crossing_transitions(transitions, part) == pytest.approx(transitions.sum())


def test_no_time_still_gives_a_map() -> None:
    instance = instance_of(2, slots=(2, 2), gpu_node=(0, 1), layers=3)
    answer = place_by_exflow(instance, deadline=PAST)
    assert check_experts(instance, plan_of(instance, answer.physical_to_logical)) == ()


def test_what_the_program_cannot_express_is_told() -> None:
    instance = expert_instance(load=np.ones((1, 2)), gpu_node=(0, 0), slots=(2, 1))
    with pytest.raises(InputError, match="makes no replicas, and 3 slots are more than 2 experts"):
        place_by_exflow(instance, deadline=NO_LIMIT)
    instance = expert_instance(load=np.ones((1, 3)), gpu_node=(0, 0), slots=(2, 1))
    with pytest.raises(InputError, match="needs the transitions"):
        place_by_exflow(instance, deadline=NO_LIMIT)


@pytest.mark.parametrize("name", ["mixtral-8x7b-g4", "mixtral-8x7b-g8-n2", "olmoe-g8-n1", "olmoe-g8-n2"])
def test_reference_figures_are_met(name: str) -> None:
    instance, text, _ = reference_instance(name)
    answer = place_by_exflow(instance, deadline=NO_LIMIT)
    score = score_map(instance, answer.physical_to_logical)
    published = text["baselines"]["exflow_like_no_replicas"]
    assert score.cross_gpu_ratio is not None
    assert score.cross_node_ratio is not None
    assert score.cross_gpu_ratio <= published["cross_gpu"] + 0.001
    assert score.cross_node_ratio <= published["cross_node"] + 0.001
