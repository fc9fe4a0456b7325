"""The way in: methods, the map in force, moves that pay and moves that do not."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance, ExpertPlan, ExpertPlanStatus, Migration, Slots
from solver.experts.duplicates import without_duplicates
from solver.experts.place import PlaceOptions, in_old_slots, place_experts
from solver.experts.score import score_map
from tests.solver.experts.test_search import skewed
from tests.solver.experts.tiny import (
    expert_instance,
    has_avoidable_duplicate,
    reference_instance,
    tiny_instances,
)

CHEAP = Migration(expert_bytes=1.0, bytes_per_s=1e9, windows=100.0, margin_ratio=0.1)
DEAR = replace(CHEAP, expert_bytes=1e15)
HOUR = (0, 0, 1, 1), (3, 3, 3, 3)


def placed(instance: ExpertInstance, **options: object) -> ExpertPlan:
    """Place, and hold the answer to its check."""
    made = PlaceOptions(**options)  # type: ignore[arg-type]
    plan = place_experts(instance, options=made, clock=time.monotonic)
    assert check_experts(instance, plan, previous=made.previous) == ()
    return plan


def drifted(migration: Migration | None) -> tuple[ExpertInstance, Slots]:
    """Return a problem and the map that was right for another load."""
    before = skewed(layers=4, experts=9, gpu_node=HOUR[0], slots=HOUR[1], seed=1)
    now = skewed(layers=4, experts=9, gpu_node=HOUR[0], slots=HOUR[1], seed=2)
    return replace(now, migration=migration), placed(before).physical_to_logical


@settings(max_examples=40, deadline=None)
@given(
    tiny_instances(most_slots=6, most_layers=3),
    st.sampled_from(("fast", "exact")),
    st.sampled_from(("transition", "dispatch")),
)
def test_every_answer_passes_its_check(instance: ExpertInstance, mode: str, communication: str) -> None:
    plan = placed(instance, mode=mode, communication=communication)
    assert plan.lower_bound_s <= plan.objective_s * (1 + 1e-9)
    again = placed(instance, mode=mode, communication=communication, previous=plan.physical_to_logical)
    assert again.objective_s <= plan.objective_s * (1 + 1e-9)


@pytest.mark.parametrize("method", ["ballast", "moetuner", "exflow", "eplb"])
def test_every_method_answers(method: str) -> None:
    instance = skewed(layers=3, experts=8, gpu_node=(0, 0, 1, 1), slots=(2, 2, 2, 2))
    plan = placed(instance, method=method)
    assert plan.method == method
    assert bool(plan.programs) == (method in {"moetuner", "exflow"})
    assert placed(instance).objective_s <= plan.objective_s * (1 + 1e-9)


def test_a_move_that_pays_is_made_and_one_that_does_not_is_refused() -> None:
    instance, previous = drifted(CHEAP)
    moved = placed(instance, previous=previous)
    assert not moved.refused
    assert moved.move is not None
    assert moved.move.net_gain_s is not None
    assert moved.move.net_gain_s > 0
    refused = placed(replace(instance, migration=DEAR), previous=previous)
    assert refused.refused
    assert (refused.physical_to_logical == previous).all()
    assert refused.move is not None
    assert refused.move.moved_ratio == 0.0
    assert refused.proposed is not None
    assert refused.proposed.net_gain_s is not None
    assert refused.proposed.net_gain_s <= 0


def test_dearer_moves_move_less() -> None:
    instance, previous = drifted(CHEAP)
    ratios = []
    for expert_bytes in (1.0, 1e10, 1e11, 1e12, 1e15):
        dearer = replace(instance, migration=replace(CHEAP, expert_bytes=expert_bytes))
        move = placed(dearer, previous=previous).move
        assert move is not None
        ratios.append(move.moved_ratio)
    assert ratios[0] > ratios[-1] == 0.0
    assert sorted(ratios, reverse=True) == ratios


@pytest.mark.parametrize("migration", [None, CHEAP])
@pytest.mark.parametrize("most", [0.0, 0.05, 0.2])
def test_no_more_than_allowed_is_moved(migration: Migration | None, most: float) -> None:
    instance, previous = drifted(migration)
    plan = placed(instance, previous=previous, max_moved_ratio=most)
    assert plan.move is not None
    assert plan.move.moved_ratio <= most
    if most == 0.2:
        assert plan.move.moved_ratio > 0
        assert plan.objective_s < score_map(instance, previous).objective_s("transition")


def test_what_stays_on_its_gpu_stays_in_its_slot() -> None:
    before = np.array([4, 1, 2, 7], dtype=np.int32)
    assert in_old_slots(before, np.array([2, 4, 5, 1], dtype=np.int32)).tolist() == [4, 1, 2, 5]
    assert in_old_slots(before, np.array([4, 4, 2, 1], dtype=np.int32)).tolist() == [4, 1, 2, 4]


def test_experts_twice_on_a_gpu_are_mended_where_slots_allow() -> None:
    instance = expert_instance(load=np.array([[5.0, 1.0, 1.0]]), gpu_node=(0, 0), slots=(2, 4))
    mended = without_duplicates(instance, np.array([[0, 0, 1, 2, 2, 2]], dtype=np.int32))
    assert not has_avoidable_duplicate(instance, tuple(mended[0].tolist()))
    plan = placed(instance, previous=np.array([[0, 0, 1, 2, 2, 2]], dtype=np.int32), communication="dispatch")
    assert not has_avoidable_duplicate(instance, tuple(plan.physical_to_logical[0].tolist()))


def test_what_cannot_be_answered_is_told() -> None:
    instance = skewed(layers=3, experts=8, gpu_node=(0, 0), slots=(4, 4))
    unknown = replace(instance, transitions=None)
    with pytest.raises(InputError, match="--comm dispatch"):
        placed(unknown)
    assert placed(unknown, communication="dispatch").score.transition_s is None
    with pytest.raises(InputError, match="previous"):
        PlaceOptions(max_moved_ratio=0.1)
    previous = placed(instance).physical_to_logical
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="from 0 to 1"):
            PlaceOptions(previous=previous, max_moved_ratio=ratio)
    bad = previous.copy()
    bad[1][bad[1] == 3] = 4
    with pytest.raises(InputError, match="layer 1: expert 3 has no slot"):
        placed(instance, previous=bad)


def test_a_proof_is_a_proof() -> None:
    instance = skewed(layers=3, experts=6, gpu_node=(0, 0), slots=(3, 3))
    plan = placed(instance, mode="exact")
    assert plan.status is ExpertPlanStatus.OPTIMAL
    assert plan.gap_ratio == 0.0
    assert placed(instance).objective_s >= plan.objective_s * (1 - 1e-12)


def test_the_reference_drift_is_answered_with_few_moves() -> None:
    """At most 5 % of slots for a balance within 2 % of what a map from scratch reaches on later windows."""
    instance, text, arrays = reference_instance("qwen3-235b-g16-n2-r32-drift")
    migration = Migration(
        expert_bytes=text["expert_bytes"],
        bytes_per_s=text["migration_bw_GBps"] * 1e9,
        windows=text["windows_until_next"],
        margin_ratio=text["migration_margin"],
    )
    instance = replace(instance, migration=migration)
    later = replace(instance, load=arrays["load_windows"][4:].sum(axis=0).astype(float))
    scratch = placed(instance)
    plan = placed(instance, previous=arrays["previous_p2l"].astype(np.int32), max_moved_ratio=0.05)
    assert plan.move is not None
    assert plan.move.moved_ratio <= 0.05
    assert plan.move.net_gain_s is not None
    assert plan.move.net_gain_s > text["migration_reference"]["incremental"]["net_gain_s"]
    reached = score_map(later, scratch.physical_to_logical).balance_max_over_mean
    assert score_map(later, plan.physical_to_logical).balance_max_over_mean <= 1.02 * reached
