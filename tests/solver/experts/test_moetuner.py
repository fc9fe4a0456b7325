"""MoETuner's programs against brute force, against a backend, and against published and reference figures."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.domain.moe import Floats
from solver.experts import moetuner as module
from solver.experts.kernels.chains import cheapest_assignment
from solver.experts.moetuner import (
    Numbers,
    cluster_evenly,
    dearest_pairs_s,
    flows_between,
    order_clusters,
    pair_copy_s,
    place_by_moetuner,
)
from solver.experts.score import score_map
from tests.solver.experts.test_check_experts import plan_of
from tests.solver.experts.tiny import expert_instance, reference_instance

NO_LIMIT = Deadline(lambda: 0.0, 1000.0)


def least_off_mean(load: Floats, sizes: Numbers) -> float:
    mean = load.sum() / sizes.size
    best = np.inf
    for choice in itertools.product(range(sizes.size), repeat=load.size):
        counts = np.bincount(choice, minlength=sizes.size)
        if (counts == sizes).all() or (not sizes.any() and counts.all()):
            sums = np.bincount(choice, weights=load, minlength=sizes.size)
            best = min(best, float(np.abs(sums - mean).sum()))
    return best


@settings(max_examples=60, deadline=None)
@given(
    load=st.lists(st.integers(0, 30), min_size=3, max_size=6),
    clusters=st.integers(1, 3),
    free=st.booleans(),
    unlike=st.booleans(),
)
def test_clusters_are_as_even_as_can_be(load: list[int], clusters: int, *, free: bool, unlike: bool) -> None:
    loads = np.array(load, dtype=float)
    if free:
        sizes = np.zeros(clusters, dtype=np.int64)
    else:
        sizes = np.full(clusters, loads.size // clusters)
        sizes[0] += loads.size % clusters
        if unlike and clusters > 1 and sizes[-1] > 1:
            sizes[0], sizes[-1] = sizes[0] + 1, sizes[-1] - 1
    found, objective, bound = cluster_evenly(loads, sizes, deadline=NO_LIMIT)
    best = least_off_mean(loads, sizes)
    assert objective == pytest.approx(best, abs=1e-9)
    assert bound == objective
    counts = np.bincount(found, minlength=clusters)
    assert counts.all() if free else (counts == sizes).all()


@pytest.mark.parametrize("free", [False, True])
def test_the_program_says_the_same(*, free: bool) -> None:
    rng = np.random.default_rng(11)
    for _ in range(4):
        load = rng.integers(0, 50, 6).astype(float)
        sizes = np.zeros(3, dtype=np.int64) if free else np.full(3, 2)
        _, exact, _ = cluster_evenly(load, sizes, deadline=NO_LIMIT)
        found, objective, bound = cluster_evenly(load, sizes, deadline=NO_LIMIT, backend="highs")
        assert objective == pytest.approx(exact, abs=1e-6)
        assert bound == pytest.approx(exact, abs=1e-6)
        assert np.bincount(found, minlength=3).all()


@settings(max_examples=40, deadline=None)
@given(load=st.lists(st.integers(0, 30), min_size=6, max_size=6), free=st.booleans())
def test_large_layers_are_bounded(load: list[int], *, free: bool) -> None:
    loads = np.array(load, dtype=float)
    sizes = np.zeros(3, dtype=np.int64) if free else np.full(3, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_EXACT", 0)
        found, objective, bound = cluster_evenly(loads, sizes, deadline=NO_LIMIT)
    best = least_off_mean(loads, sizes)
    assert bound - 1e-9 <= best <= objective + 1e-9
    assert (np.bincount(found, minlength=3) == 2).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gpu_node=st.sampled_from(((0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1))),
    unlike=st.booleans(),
)
def test_orders_are_the_best_of_all(seed: int, gpu_node: tuple[int, ...], *, unlike: bool) -> None:
    rng = np.random.default_rng(seed)
    slots = tuple(2 if unlike and g == 0 else 1 for g in range(len(gpu_node)))
    experts = sum(slots)
    instance = expert_instance(
        load=rng.integers(1, 9, (3, experts)).astype(float),
        transitions=rng.integers(0, 9, (2, experts, experts)).astype(float),
        gpu_node=gpu_node,
        slots=slots,
    )
    clusters = np.tile(instance.topology.slot_gpu.astype(np.int64), (3, 1))
    flows, copy_s = flows_between(instance, clusters), pair_copy_s(instance)
    orders = [
        order
        for order in itertools.permutations(range(len(slots)))
        if all(slots[cluster] == slots[g] for g, cluster in enumerate(order))
    ]
    best = min(
        dearest_pairs_s(flows, np.array(chain), copy_s) for chain in itertools.product(orders, repeat=3)
    )
    found, total, bound = order_clusters(instance, clusters, deadline=NO_LIMIT)
    assert total == pytest.approx(best)
    assert bound == total
    assert dearest_pairs_s(flows, found, copy_s) == pytest.approx(total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_ORDERS", 0)
        patch.setattr(module, "_orders", lambda _: None)
        found, total, bound = order_clusters(instance, clusters, deadline=NO_LIMIT)
    assert bound - 1e-9 <= best <= total + 1e-9
    assert dearest_pairs_s(flows, found, copy_s) == pytest.approx(total)
    assert all(tuple(row) in orders for row in found.tolist())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5))
def test_assignments_are_the_cheapest(seed: int, size: int) -> None:
    cost = np.random.default_rng(seed).integers(-5, 9, (size, size)).astype(float)
    found = cheapest_assignment(cost)
    assert sorted(found.tolist()) == list(range(size))
    every = (cost[np.arange(size), list(order)].sum() for order in itertools.permutations(range(size)))
    assert cost[np.arange(size), found].sum() == min(every)


def test_maps_are_whole_and_say_what_was_solved() -> None:
    rng = np.random.default_rng(2)
    instance = expert_instance(
        load=rng.integers(1, 90, (3, 20)).astype(float),
        transitions=rng.integers(0, 9, (2, 20, 20)).astype(float),
        gpu_node=(0,) * 4 + (1,) * 4,
        slots=(2, 3) * 3 + (0, 5),
    )
    answer = place_by_moetuner(instance, deadline=NO_LIMIT)
    assert check_experts(instance, plan_of(instance, answer.physical_to_logical)) == ()
    assert [program.gap_ratio >= 0 for program in answer.programs] == [True, True]
    assert np.array_equal(
        answer.physical_to_logical, place_by_moetuner(instance, deadline=NO_LIMIT).physical_to_logical
    )


def test_what_the_programs_cannot_express_is_told() -> None:
    instance = expert_instance(load=np.ones((1, 2)), gpu_node=(0, 0), slots=(2, 1))
    with pytest.raises(InputError, match="makes no replicas, and 3 slots are more than 2 experts"):
        place_by_moetuner(instance, deadline=NO_LIMIT)
    instance = expert_instance(load=np.ones((1, 3)), gpu_node=(0, 0), slots=(2, 1))
    with pytest.raises(InputError, match="needs the transitions"):
        place_by_moetuner(instance, deadline=NO_LIMIT)
    alone = replace(instance, transitions=np.zeros((0, 3, 3)))
    assert place_by_moetuner(alone, deadline=NO_LIMIT).programs[1].objective == 0.0


def test_mixtral_is_solved_exactly() -> None:
    instance, text, _ = reference_instance("mixtral-8x7b-g4")
    answer = place_by_moetuner(instance, deadline=NO_LIMIT)
    assert [program.gap_ratio for program in answer.programs] == [0.0, 0.0]
    score = score_map(instance, answer.physical_to_logical)
    best, linear = text["best_known"]["J_us"], text["baselines"]["linear"]["J_us"]
    assert best <= score.objective_s("transition") * 1e6 < 1.005 * best < linear
    # free cluster sizes, as printed, even out further than any engine can load
    free = sum(
        cluster_evenly(load, np.zeros(4, dtype=np.int64), deadline=NO_LIMIT)[1] for load in instance.load
    )
    assert free < 0.75 * answer.programs[0].objective


@pytest.mark.parametrize("name", ["mixtral-8x7b-g8-n2", "olmoe-g8-n1", "olmoe-g8-n2"])
def test_reference_figures_are_met(name: str) -> None:
    instance, text, _ = reference_instance(name)
    answer = place_by_moetuner(instance, deadline=NO_LIMIT)
    score = score_map(instance, answer.physical_to_logical)
    published = text["baselines"]["moetuner_like_no_replicas"]["J_us"]
    assert score.objective_s("transition") * 1e6 <= 1.01 * published
