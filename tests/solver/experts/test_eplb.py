"""EPLB's rule: against a plain loop over its description, against its published example and the reference figures."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance, Slots, check_map
from solver.experts.eplb import place_by_eplb
from solver.experts.score import score_map
from tests.solver.experts.tiny import REFERENCE_NAMES, expert_instance, reference_instance


def plain_pack(weights: list[float], packs: int) -> list[list[int]]:
    size = len(weights) // packs
    if size == 1:
        return [[item] for item in range(packs)]
    held: list[list[int]] = [[] for _ in range(packs)]
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        open_packs = [p for p in range(packs) if len(held[p]) < size]
        held[min(open_packs, key=lambda p: sum(weights[i] for i in held[p]))].append(item)
    return held


def plain_eplb(load: list[float], slots: int, *, groups: int, nodes: int, gpus: int) -> list[int]:
    """Follow the rule for one layer, word by word."""
    size = len(load) // groups
    node_groups = plain_pack([sum(load[g * size : (g + 1) * size]) for g in range(groups)], nodes)
    answer: list[int] = []
    for held in node_groups:
        experts = [g * size + i for g in held for i in range(size)]
        copies = dict.fromkeys(experts, 1)
        slot_experts = list(experts)
        while len(slot_experts) < slots // nodes:
            heaviest = max(experts, key=lambda e: load[e] / copies[e])
            copies[heaviest] += 1
            slot_experts.append(heaviest)
        packs = plain_pack([load[e] / copies[e] for e in slot_experts], gpus // nodes)
        answer += [slot_experts[i] for pack in packs for i in pack]
    return answer


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_rule_agrees_with_a_plain_loop(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(1, 3))
    gpus = nodes * data.draw(st.integers(1, 2))
    groups = nodes * data.draw(st.integers(1, 2))
    experts = groups * data.draw(st.integers(1, 3))
    per_gpu = -(-experts // gpus) + data.draw(st.integers(0, 2))
    whole = st.integers(0, 64)
    load = [data.draw(st.lists(whole, min_size=experts, max_size=experts)) for _ in range(2)]
    instance = expert_instance(
        load=np.array(load, dtype=float),
        gpu_node=tuple(np.repeat(np.arange(nodes), gpus // nodes).tolist()),
        slots=(per_gpu,) * gpus,
    )
    slots = per_gpu * gpus
    hierarchical = place_by_eplb(instance, groups=groups, hierarchical=True)
    overall = place_by_eplb(instance, hierarchical=False)
    check_map(instance, hierarchical)
    check_map(instance, overall)
    for layer, row in enumerate(load):
        for p2l, shape in (
            (hierarchical, {"groups": groups, "nodes": nodes}),
            (overall, {"groups": 1, "nodes": 1}),
        ):
            plain = plain_eplb([float(value) for value in row], slots, gpus=gpus, **shape)
            assert p2l[layer].tolist() == plain


def test_the_published_example() -> None:
    load = np.array(
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ]
    )
    instance = expert_instance(load=load, gpu_node=(0, 0, 0, 0, 1, 1, 1, 1), slots=(2,) * 8)
    assert place_by_eplb(instance, groups=4, hierarchical=True).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


def test_nodes_may_be_interleaved() -> None:
    load = np.array([[8.0, 1.0, 1.0, 8.0, 2.0, 2.0, 3.0, 3.0]])
    apart = expert_instance(load=load, gpu_node=(0, 0, 1, 1), slots=(2,) * 4)
    mixed = expert_instance(load=load, gpu_node=(0, 1, 0, 1), slots=(2,) * 4)
    first, second = (place_by_eplb(i, groups=4, hierarchical=True)[0] for i in (apart, mixed))
    assert second.tolist() == [*first[:2], *first[4:6], *first[2:4], *first[6:]]


@pytest.mark.parametrize(
    ("slots", "gpu_node", "groups", "sentence"),
    [
        ((3, 2, 2, 2), (0, 0, 1, 1), 4, "equally many slots on every GPU, found 2 to 3"),
        ((2, 2, 2, 2), (0, 0, 0, 1), 4, "equally many GPUs on every node, found 1 to 3"),
        ((2, 2, 2, 2), (0, 0, 1, 1), 3, "8 experts do not divide into 3 groups"),
        ((2, 2, 2, 2), (0, 0, 1, 1), 0, "8 experts do not divide into 0 groups"),
        ((2, 2, 2, 2), (0, 0, 1, 1), 1, "1 groups do not divide among 2 nodes"),
    ],
)
def test_what_the_rule_cannot_express_is_told(
    slots: tuple[int, ...], gpu_node: tuple[int, ...], groups: int, sentence: str
) -> None:
    instance = expert_instance(load=np.ones((1, 8)), gpu_node=gpu_node, slots=slots)
    with pytest.raises(InputError, match=sentence) as caught:
        place_by_eplb(instance, groups=groups, hierarchical=True)
    assert "\n" not in str(caught.value)
    if len(set(slots)) == 1:
        place_by_eplb(instance, groups=groups)  # the global rule remains


def objective_s(instance: ExpertInstance, p2l: Slots) -> float:
    return score_map(instance, p2l).objective_s("transition")


def test_the_better_variant_is_chosen() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        instance = expert_instance(
            load=rng.integers(1, 100, (2, 8)).astype(float),
            transitions=rng.integers(0, 9, (1, 8, 8)).astype(float),
            gpu_node=(0, 0, 1, 1),
            slots=(3,) * 4,
        )
        either = [
            place_by_eplb(instance, hierarchical=False),
            place_by_eplb(instance, groups=4, hierarchical=True),
        ]
        chosen = objective_s(instance, place_by_eplb(instance, groups=4))
        assert chosen == min(objective_s(instance, p2l) for p2l in either)
        bare = replace(instance, transitions=None)
        chosen = score_map(bare, place_by_eplb(bare, groups=4)).dispatch_s
        assert chosen == min(score_map(bare, p2l).dispatch_s for p2l in either)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_reference_figures_are_met(name: str) -> None:
    instance, text, _ = reference_instance(name)
    groups = {"deepseek-v3": 8, "eplb-readme": 4}.get(text["model"])
    for kind, hierarchical in (("eplb_global", False), ("eplb_hierarchical", True)):
        published = text["baselines"].get(kind, {}).get("J_us")
        if published is not None:
            p2l = place_by_eplb(instance, groups=groups, hierarchical=hierarchical)
            assert objective_s(instance, p2l) * 1e6 == pytest.approx(published, rel=0.005)
