"""The checker of expert plans: a sound plan passes, and each rule fails when just that rule is broken."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.check.experts import check_experts
from solver.domain.moe import (
    Communication,
    ExpertInstance,
    ExpertPlan,
    ExpertPlanStatus,
    ExpertScore,
    Migration,
    Move,
    ProgramAnswer,
    Slots,
)
from solver.experts.bounds import lower_bounds_s
from solver.experts.score import move_between, score_map
from tests.solver.experts.tiny import (
    REFERENCE_NAMES,
    all_rows,
    expert_instance,
    has_avoidable_duplicate,
    reference_instance,
    tiny_instances,
)

LOAD = np.array([[4.0, 2.0, 1.0, 3.0], [1.0, 5.0, 2.0, 2.0]])
INSTANCE = replace(
    expert_instance(
        load=LOAD,
        transitions=np.outer(LOAD[0], LOAD[1])[None] / 10.0,
        gpu_node=(0, 0, 1),
        slots=(2, 2, 1),
        speed=(1.0, 1.0, 0.5),
    ),
    migration=Migration(expert_bytes=8.0, bytes_per_s=4.0, windows=10.0, margin_ratio=0.5),
    token_sample=np.array([[[0], [1]], [[3], [2]]], dtype=np.int32),
)
GOOD: Slots = np.array([[0, 2, 1, 0, 3], [1, 2, 1, 3, 0]], dtype=np.int32)
OLD: Slots = np.array([[3, 2, 1, 3, 0], [1, 0, 3, 0, 2]], dtype=np.int32)


def plan_of(
    instance: ExpertInstance,
    p2l: Slots,
    *,
    communication: Communication = "transition",
    old: Slots | None = None,
) -> ExpertPlan:
    score = score_map(instance, p2l)
    bounds = lower_bounds_s(instance, communication)
    move = None
    if old is not None:
        saved_s = score_map(instance, old).objective_s(communication) - score.objective_s(communication)
        move = move_between(instance, old, p2l, saved_s=saved_s)
    return ExpertPlan(
        instance_name=instance.name,
        status=ExpertPlanStatus.FEASIBLE,
        method="by hand",
        communication=communication,
        physical_to_logical=p2l,
        score=score,
        lower_bound_s=float(bounds.sum()),
        lower_bound_by_layer_s=tuple((float(a), float(b)) for a, b in bounds),
        move=move,
    )


PLAN = plan_of(INSTANCE, GOOD)
MOVED = plan_of(INSTANCE, GOOD, old=OLD)


def with_score(plan: ExpertPlan, **changes: float | None) -> ExpertPlan:
    return replace(plan, score=replace(plan.score, **changes))  # type: ignore[arg-type]


def with_move(**changes: object) -> ExpertPlan:
    assert MOVED.move is not None
    return replace(MOVED, move=replace(MOVED.move, **changes))  # type: ignore[arg-type]


def with_map(row: list[int]) -> ExpertPlan:
    return replace(PLAN, physical_to_logical=np.array([row, GOOD[1]], dtype=np.int32))


def test_sound_plans_pass() -> None:
    assert check_experts(INSTANCE, PLAN) == ()
    assert MOVED.move is not None
    assert MOVED.move.net_gain_s is not None
    assert MOVED.move.net_gain_s > 0
    assert check_experts(INSTANCE, MOVED) == ()
    assert check_experts(INSTANCE, MOVED, previous=OLD) == ()
    assert check_experts(INSTANCE, plan_of(INSTANCE, GOOD, communication="dispatch")) == ()


@settings(max_examples=60, deadline=None)
@given(instance=tiny_instances(most_slots=6), data=st.data())
def test_any_scored_map_passes(instance: ExpertInstance, data: st.DataObject) -> None:
    rows = st.sampled_from(all_rows(instance))
    p2l = np.array([data.draw(rows) for _ in range(instance.layers)], dtype=np.int32)
    communication: Communication = data.draw(st.sampled_from(("transition", "dispatch")))
    wrong = check_experts(instance, plan_of(instance, p2l, communication=communication))
    doubled = any(has_avoidable_duplicate(instance, tuple(row)) for row in p2l.tolist())
    assert bool(wrong) == doubled
    assert all("times" in sentence for sentence in wrong)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_maps_pass(name: str) -> None:
    instance, _, arrays = reference_instance(name)
    plan = plan_of(instance, arrays["best_known_p2l"].astype(np.int32))
    assert check_experts(instance, plan) == ()


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (replace(PLAN, instance_name="other"), "the plan answers 'other'"),
        (replace(PLAN, physical_to_logical=GOOD[:, :4]), r"shape \[2, 4\]"),
        (with_map([0, 2, 1, 0, 4]), "layer 0 names expert 4"),
        (with_map([0, -1, 1, 0, 3]), "layer 0 names expert -1"),
        (with_map([0, 2, 1, 0, 1]), "layer 0: expert 3 has no slot"),
        (
            plan_of(INSTANCE, np.array([[0, 0, 1, 2, 3], GOOD[1]], dtype=np.int32)),
            "GPU 0 holds expert 0 2 ti",
        ),
        (replace(PLAN, lower_bound_s=PLAN.objective_s * 1.1), "is above the map's own"),
        (replace(PLAN, lower_bound_s=float("nan")), "bounds nothing"),
        (replace(PLAN, lower_bound_s=PLAN.lower_bound_s / 2), "below the sum of the layers'"),
        (replace(PLAN, status=ExpertPlanStatus.OPTIMAL), "called optimal"),
        (replace(PLAN, lower_bound_by_layer_s=()), "not two numbers per layer"),
        (
            replace(PLAN, lower_bound_by_layer_s=((PLAN.score.compute_s, 0.0), (0.0, 0.0))),
            "layer 0: compute is bounded by",
        ),
        (
            replace(PLAN, lower_bound_by_layer_s=((0.0, 0.0), (0.0, 0.01))),
            "layer 1: the all-to-all takes",
        ),
        (
            replace(PLAN, programs=(ProgramAnswer(name="P", unit="s", objective=1.0, lower_bound=2.0),)),
            "P: reached 1, below its bound 2",
        ),
        (replace(PLAN, refused=True), "yet a proposed move is not given"),
        (replace(MOVED, proposed=MOVED.move), "yet a proposed move is given"),
        (replace(PLAN, refused=True, proposed=MOVED.move), "a move was refused that pays"),
        (replace(MOVED, refused=True, proposed=MOVED.move), "yet experts are to be moved"),
        (plan_of(INSTANCE, OLD, old=GOOD), "and was not refused"),
        (with_move(moved_ratio=1.5), "which is no share"),
        (with_move(move_s=None), "does not state what it takes"),
        (with_move(bytes_in=(1.0,)), "bytes for 1 of 3 GPUs"),
        (with_move(bytes_in=(0.0, 0.0, 8.0)), "its share of holdings is"),
        (with_move(move_s=0.1), "stated are 0.1 s"),
        (with_move(net_gain_s=1000.0), "stated are 1000 s"),
    ],
)
def test_each_rule_fires(plan: ExpertPlan, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        assert not check_experts(INSTANCE, plan), "; ".join(check_experts(INSTANCE, plan))


@pytest.mark.parametrize("name", [field.name for field in fields(ExpertScore)])
@pytest.mark.parametrize("change", [0.01, None])
def test_each_figure_is_computed_again(name: str, change: float | None) -> None:
    value = None if change is None else getattr(PLAN.score, name) + change
    wrong = check_experts(INSTANCE, with_score(PLAN, **{name: value}))
    assert [sentence.split(" is stated as ")[0] for sentence in wrong] == [name]


def test_moves_are_compared_with_the_map_in_force() -> None:
    assert "yet no move is stated" in check_experts(INSTANCE, PLAN, previous=OLD)[0]
    assert any("moved_ratio" in wrong for wrong in check_experts(INSTANCE, MOVED, previous=GOOD))
    assert any("bytes_in" in wrong for wrong in check_experts(INSTANCE, MOVED, previous=GOOD))
    assert any("gain_s" in wrong for wrong in check_experts(INSTANCE, MOVED, previous=GOOD))


def test_a_refused_plan_keeps_the_map_in_force_whatever_it_is() -> None:
    doubled = np.array([[0, 0, 1, 2, 3], GOOD[1]], dtype=np.int32)
    still = Move(moved_ratio=0.0, bytes_in=(0.0, 0.0, 0.0), move_s=0.0, gain_s=0.0, net_gain_s=0.0)
    lost = Move(moved_ratio=0.1, bytes_in=(8.0, 0.0, 0.0), move_s=2.0, gain_s=1.0, net_gain_s=-2.0)
    plan = replace(plan_of(INSTANCE, doubled), refused=True, proposed=lost, move=still)
    assert check_experts(INSTANCE, plan, previous=doubled) == ()
    plan = replace(plan, refused=False, proposed=None)
    assert check_experts(INSTANCE, plan, previous=doubled) == ()
    assert "holds expert 0 2 times" in check_experts(INSTANCE, replace(plan, move=None))[0]


def test_moves_state_no_costs_where_there_are_none() -> None:
    bare = replace(INSTANCE, migration=None)
    assert check_experts(bare, plan_of(bare, GOOD, old=OLD), previous=OLD) == ()
    assert "has no migration costs" in check_experts(bare, MOVED)[0]


def test_a_plan_for_unknown_transitions_is_refused() -> None:
    bare = replace(INSTANCE, transitions=None)
    assert check_experts(bare, plan_of(bare, GOOD, communication="dispatch")) == ()
    plan = replace(plan_of(bare, GOOD, communication="dispatch"), communication="transition")
    assert "does not know" in check_experts(bare, plan)[0]
