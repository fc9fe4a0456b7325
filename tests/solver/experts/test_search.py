"""The search: sound maps for every legal problem, increments that agree with the scorer, the same map every time."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.deadline import Deadline
from solver.domain.moe import Communication, ExpertInstance, ExpertPlanStatus, check_map
from solver.experts.eplb import place_by_eplb
from solver.experts.place import PlaceOptions, place_experts
from solver.experts.score import score_map
from solver.experts.search import Field, Stage, search
from tests.solver.experts.tiny import (
    REFERENCE_NAMES,
    all_rows,
    compute_s,
    dispatch_s,
    expert_instance,
    has_avoidable_duplicate,
    objective_s,
    reference_instance,
    tiny_instances,
)

LARGE = {"deepseek-v3-g144-n18-r32", "deepseek-v3-g32-n4-r32"}


def found(
    instance: ExpertInstance,
    communication: Communication = "transition",
    *,
    full: bool = False,
    seed: int = 0,
) -> np.ndarray:
    deadline = Deadline.after(600.0, time.monotonic)
    return search(instance, communication, full=full, seed=seed, deadline=deadline)


def skewed(
    *, layers: int, experts: int, gpu_node: tuple[int, ...], slots: tuple[int, ...], seed: int = 0
) -> ExpertInstance:
    """Draw routed tokens with a topic each, so that experts have followers and loads differ."""
    draw = np.random.default_rng(seed)
    tokens, topics = 4000, 4
    weight = draw.dirichlet(np.full(experts, 0.3), size=(layers, topics))
    topic = draw.integers(0, topics, tokens)
    routed = np.array(
        [[draw.choice(experts, p=weight[layer, t]) for t in topic[:1000]] for layer in range(layers)]
    ).T
    load = np.array(
        [np.bincount(routed[:, layer], minlength=experts) for layer in range(layers)], dtype=float
    )
    pairs = np.zeros((layers - 1, experts, experts))
    for layer in range(layers - 1):
        np.add.at(pairs[layer], (routed[:, layer], routed[:, layer + 1]), 1.0)
    return expert_instance(load=load, transitions=pairs, gpu_node=gpu_node, slots=slots)


@settings(max_examples=60, deadline=None)
@given(tiny_instances(most_slots=6, most_layers=3), st.sampled_from(("transition", "dispatch")))
def test_any_legal_problem_gets_a_sound_map(instance: ExpertInstance, communication: Communication) -> None:
    p2l = check_map(instance, found(instance, communication))
    assert not any(has_avoidable_duplicate(instance, tuple(int(e) for e in row)) for row in p2l)


@settings(max_examples=40, deadline=None)
@given(tiny_instances(most_slots=4, most_layers=1))
def test_one_layer_is_as_good_as_trying_everything(instance: ExpertInstance) -> None:
    sound = [row for row in all_rows(instance) if not has_avoidable_duplicate(instance, row)]
    best_s = min(compute_s(instance, 0, row) for row in sound)
    assert objective_s(instance, found(instance, full=True), "transition") == pytest.approx(best_s, abs=1e-12)
    least_s = min(compute_s(instance, 0, row) + dispatch_s(instance, 0, row) for row in sound)
    ours_s = objective_s(instance, found(instance, "dispatch", full=True), "dispatch")
    assert ours_s == pytest.approx(least_s, rel=1e-9, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(tiny_instances(most_slots=4, most_layers=2, most_gpus=3))
def test_two_layers_are_as_good_as_trying_everything(instance: ExpertInstance) -> None:
    sound = [row for row in all_rows(instance) if not has_avoidable_duplicate(instance, row)]
    if instance.layers == 1 or len(sound) > 60:
        return
    best_s = min(
        objective_s(instance, np.array([here, there]), "transition") for here in sound for there in sound
    )
    plan = place_experts(instance, options=PlaceOptions(mode="full"), clock=time.monotonic)
    assert check_experts(instance, plan) == ()
    assert plan.status is ExpertPlanStatus.OPTIMAL
    assert plan.objective_s == pytest.approx(best_s, rel=1e-9, abs=1e-12)
    assert objective_s(instance, found(instance, full=True), "transition") <= 1.2 * best_s + 1e-12


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from((((0, 0, 1, 1), (3, 3, 3, 3)), ((0, 1, 1), (5, 2, 5)), ((0, 0, 0), (3, 4, 3)))),
)
def test_each_pass_improves_what_the_scorer_sees(
    seed: int, shape: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """With no weight beside the objective, no pass may make it worse: increments agree with the whole."""
    instance = skewed(layers=4, experts=9, gpu_node=shape[0], slots=shape[1], seed=seed)
    for communication in ("transition", "dispatch"):
        field = Field(instance, communication)
        p2l = field.balanced()
        chance = np.array([seed + 1], dtype=np.int64)
        before_s = score_map(instance, p2l).objective_s(communication)
        for ratio in (0.0, 0.5):
            stage = Stage(mean_weight=0.0, square_weight=0.0, replica_ratio=ratio, tries=200, passes=1)
            field.run(p2l, (stage,), chance, Deadline.after(600.0, time.monotonic))
            after_s = score_map(instance, check_map(instance, p2l)).objective_s(communication)
            assert after_s <= before_s * (1 + 1e-9)
            before_s = after_s


def test_names_of_experts_and_gpus_do_not_matter() -> None:
    instance = skewed(layers=3, experts=8, gpu_node=(0, 0, 1, 1), slots=(3, 3, 3, 3))
    assert instance.transitions is not None
    order = np.random.default_rng(1).permutation(8)
    named = replace(
        instance, load=instance.load[:, order], transitions=instance.transitions[:, order][:, :, order]
    )
    p2l = found(instance)
    back = np.argsort(order)
    ours = score_map(instance, p2l)
    theirs = score_map(named, np.ascontiguousarray(back[p2l], dtype=np.int32))
    assert theirs.transition_s == pytest.approx(ours.transition_s, rel=1e-12)
    assert theirs.dispatch_s == pytest.approx(ours.dispatch_s, rel=1e-12)


def test_the_same_seed_gives_the_same_map() -> None:
    instance = skewed(layers=4, experts=16, gpu_node=(0, 0, 1, 1), slots=(5, 5, 5, 5))
    assert (found(instance, seed=3) == found(instance, seed=3)).all()
    assert (found(instance, full=True) == found(instance, full=True)).all()


def test_no_time_still_gives_a_sound_map() -> None:
    instance = skewed(layers=4, experts=16, gpu_node=(0, 0, 1, 1), slots=(5, 5, 5, 5))
    p2l = search(instance, "transition", full=True, seed=0, deadline=Deadline.after(0.0, time.monotonic))
    check_map(instance, p2l)


def test_more_slots_are_never_worse_for_balance() -> None:
    instance = skewed(layers=6, experts=16, gpu_node=(0,) * 4, slots=(4,) * 4)
    seconds = []
    for slots in (4, 5, 6, 8, 12, 16):
        more = replace(instance, topology=replace(instance.topology, slots_per_gpu=(slots,) * 4))
        seconds.append(score_map(more, found(more, "dispatch", full=True)).dispatch_s)
    assert all(after <= before * (1 + 1e-3) for before, after in pairwise(seconds))


@pytest.mark.parametrize(
    ("load", "slots"),
    [
        (np.zeros((2, 4)), (2, 2)),
        (np.full((2, 4), 1e9), (2, 3)),
        (np.array([[1e9, 0, 0, 0]]), (8, 8)),
        (np.array([[5.0]]), (1,)),
        (np.array([[5.0]]), (1, 2, 0)),
        (np.array([[1.0, 2.0]]), (7,)),
    ],
)
def test_degenerate_problems_are_placed(load: np.ndarray, slots: tuple[int, ...]) -> None:
    experts = load.shape[1]
    instance = expert_instance(
        load=load,
        transitions=np.zeros((load.shape[0] - 1, experts, experts)),
        gpu_node=tuple(range(len(slots))),
        slots=slots,
    )
    for communication in ("transition", "dispatch"):
        for full in (False, True):
            check_map(instance, found(instance, communication, full=full))


def test_gpus_of_other_speed_get_their_share() -> None:
    drawn = skewed(layers=3, experts=24, gpu_node=(0, 0, 0), slots=(12, 12, 12))
    instance = replace(
        drawn,
        topology=replace(drawn.topology, gpu_speed=(1.0, 2.0, 0.5)),
        costs=replace(drawn.costs, token_copy_bytes=0.0),
    )
    assert score_map(instance, found(instance, "dispatch")).balance_max_over_mean < 1.03


@pytest.mark.parametrize("name", [name for name in REFERENCE_NAMES if name not in LARGE])
def test_reference_problems_in_fast_mode(name: str) -> None:
    instance, text, _ = reference_instance(name)
    score = score_map(instance, found(instance))
    assert score.transition_s is not None
    small = name == "eplb-readme-2x12-g8"  # 24 experts: a second of full mode finds the best known
    assert score.transition_s * 1e6 <= (1.08 if small else 1.03) * text["best_known"]["J_us"]
    eplb_s = score_map(instance, place_by_eplb(instance)).transition_s
    assert eplb_s is not None
    assert score.transition_s <= eplb_s
    assert score.duplicates == 0


PRINT_MAPS = """
from solver.compiled import COMPILING
from tests.solver.experts.test_search import some_maps
assert not COMPILING
print(some_maps())
"""


def some_maps() -> str:
    """Return maps of small problems, as text."""
    shapes = (((0, 0, 1, 1), (3, 3, 3, 3)), ((0, 0, 0), (3, 4, 2)))
    maps = []
    for gpu_node, slots in shapes:
        instance = skewed(layers=3, experts=8, gpu_node=gpu_node, slots=slots)
        for communication in ("transition", "dispatch"):
            field = Field(instance, communication)
            p2l = field.balanced()
            stage = Stage(mean_weight=1.0, replica_ratio=0.3, tries=60, passes=2)
            field.run(p2l, (stage,), np.array([5]), Deadline.after(600.0, time.monotonic))
            maps.append(p2l.tolist())
    return str(maps)


def test_compiled_and_uncompiled_maps_are_the_same() -> None:
    uncompiled = subprocess.run(
        [sys.executable, "-c", PRINT_MAPS],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert uncompiled.returncode == 0, uncompiled.stderr
    assert uncompiled.stdout.strip() == some_maps()
