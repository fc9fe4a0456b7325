"""Verifies an expert placement against the problem it answers, without the scorer and solver that made it.

It exists so that no map is written for an engine on the word of a solver: shape, ids, duplicates and every stated
figure are computed again here from the instance alone, and every rule that is broken becomes a sentence. It says
nothing about how good a map is beyond what the plan itself claims, and it cannot prove a bound: only that the map in
hand does not contradict it.
"""

import math
from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from solver.domain.moe import (
    ExpertInstance,
    ExpertPlan,
    ExpertPlanStatus,
    ExpertScore,
    Floats,
    Move,
    Slots,
)


def check_experts(
    instance: ExpertInstance, plan: ExpertPlan, *, previous: Slots | None = None, tolerance: float = 1e-6
) -> tuple[str, ...]:
    """Return what is wrong with a plan, one sentence each; empty means sound.

    Parameters
    ----------
    instance
        The problem.
    plan
        The answer to verify.
    previous
        The map in force, [L, S], if the plan was made against one. Without it only the consistency of the stated move
        is checked.
    tolerance
        Relative, on all stated figures.
    """
    if plan.instance_name != instance.name:
        return (f"the plan answers {plan.instance_name!r}, the instance is {instance.name!r}",)
    wrong = [*_map(instance, plan)]
    if wrong:
        return tuple(wrong)  # nothing can be scored
    if plan.communication == "transition" and instance.transitions is None:
        return ("the plan is for transitions between layers, which the instance does not know",)
    score, by_layer = _score(instance, plan.physical_to_logical)
    wrong += _duplicates(instance, plan)
    wrong += _figures(plan.score, score, tolerance)
    wrong += _bounds(plan, score, by_layer, tolerance)
    wrong += _moves(instance, plan, previous, score, tolerance)
    return tuple(wrong)


def _close(stated: float, true: float, tolerance: float) -> bool:
    return math.isfinite(stated) and abs(stated - true) <= tolerance * abs(true) + 1e-12


def _map(instance: ExpertInstance, plan: ExpertPlan) -> Iterator[str]:
    found = plan.physical_to_logical
    right = (instance.layers, instance.slots)
    if found.shape != right:
        yield f"the map has shape {list(found.shape)}, the instance needs {list(right)}"
        return
    for layer, row in enumerate(found.tolist()):
        outside = [expert for expert in row if not 0 <= expert < instance.experts]
        if outside:
            yield f"layer {layer} names expert {outside[0]}, ids are 0 to {instance.experts - 1}"
            continue
        absent = sorted(set(range(instance.experts)) - set(row))
        if absent:
            yield f"layer {layer}: expert {absent[0]} has no slot"


def _duplicates(instance: ExpertInstance, plan: ExpertPlan) -> Iterator[str]:
    if plan.refused or (plan.move is not None and plan.move.moved_ratio == 0.0):
        return  # the map in force stays, whoever made it
    for layer, row in enumerate(plan.physical_to_logical):
        held = _held(instance, row)
        for gpu, slots in enumerate(instance.topology.slots_per_gpu):
            most = max(1, -(-slots // instance.experts))
            if held[:, gpu].max(initial=0) > most:
                expert = int(held[:, gpu].argmax())
                count = int(held[expert, gpu])
                yield f"layer {layer}: GPU {gpu} holds expert {expert} {count} times, {most} would do"


def _held(instance: ExpertInstance, row: Slots) -> Floats:
    """Slots by expert and GPU, [E, G]."""
    topology = instance.topology
    held = np.zeros((instance.experts, topology.gpus))
    start = 0
    for gpu, slots in enumerate(topology.slots_per_gpu):
        held[:, gpu] = np.bincount(row[start : start + slots], minlength=instance.experts)
        start += slots
    return held


def _score(instance: ExpertInstance, p2l: Slots) -> tuple[ExpertScore, Floats]:
    """Score a map from the formulas; also seconds by layer: compute, all-to-all of transition and of dispatch."""
    topology, costs = instance.topology, instance.costs
    node = np.array(topology.gpu_node)
    mates = (node[:, None] == node[None, :]).sum(axis=1)
    speed = np.array(topology.gpu_speed)
    inside_s = costs.token_copy_bytes / costs.intra_node_bytes_per_s
    outside_s = costs.token_copy_bytes / costs.inter_node_bytes_per_s
    by_layer = np.zeros((instance.layers, 3))
    imbalance = np.ones(instance.layers)
    copies = np.zeros(3)  # all, on their GPU, in their node
    duplicates = 0
    for layer, row in enumerate(p2l):
        held = _held(instance, row)
        duplicates += int(np.maximum(held - 1, 0).sum())
        share = held / held.sum(axis=1, keepdims=True)
        load = np.einsum("e,eg->g", instance.load[layer], share)
        by_layer[layer, 0] = (costs.token_expert_s * load / speed).max()
        inside = inside_s * load * (mates - 1) / topology.gpus
        outside = outside_s * load * (topology.gpus - mates) / topology.gpus
        by_layer[layer, 2] = max(inside.max(), outside.max())
        if instance.load[layer].any():
            imbalance[layer] = (load / speed).max() / (instance.load[layer].sum() / speed.sum())
        if instance.transitions is not None and layer + 1 < instance.layers:
            there = _held(instance, p2l[layer + 1])
            there /= there.sum(axis=1, keepdims=True)
            to = np.einsum("ef,fh->eh", instance.transitions[layer] / instance.top_k, there)
            flow = np.einsum("eg,eh->gh", share, to)
            same = node[:, None] == node[None, :]
            copies += (flow.sum(), np.trace(flow), flow[same].sum())
            others = np.where(same, 0.0, flow)
            mine = np.where(same, flow, 0.0)
            np.fill_diagonal(mine, 0.0)
            by_layer[layer, 1] = max(
                inside_s * max(mine.sum(axis=0).max(), mine.sum(axis=1).max()),
                outside_s * max(others.sum(axis=0).max(), others.sum(axis=1).max()),
            )
    known = instance.transitions is not None
    nodes_per_token, gpus_per_token = _spread(instance, p2l)
    score = ExpertScore(
        compute_s=float(by_layer[:, 0].sum()),
        transition_all_to_all_s=float(by_layer[:, 1].sum()) if known else None,
        dispatch_all_to_all_s=float(by_layer[:, 2].sum()),
        balance_max_over_mean=float(imbalance.mean()),
        balance_worst=float(imbalance.max()),
        cross_gpu_ratio=_left(copies[0], copies[1]) if known else None,
        cross_node_ratio=_left(copies[0], copies[2]) if known else None,
        nodes_per_token=nodes_per_token,
        gpus_per_token=gpus_per_token,
        duplicates=duplicates,
    )
    return score, by_layer


def _left(total: float, stayed: float) -> float:
    return float(1.0 - stayed / total) if total else 0.0


def _spread(instance: ExpertInstance, p2l: Slots) -> tuple[float | None, float | None]:
    """Distinct nodes and GPUs per sampled token and layer, at the first slot of each expert."""
    if instance.token_sample is None:
        return None, None
    node = np.array(instance.topology.gpu_node)
    counts = np.zeros(2)
    for layer, row in enumerate(p2l):
        _, first = np.unique(row, return_index=True)
        gpu = instance.topology.slot_gpu[first]
        for token in instance.token_sample[:, layer]:
            counts += (len(set(node[gpu[token]].tolist())), len(set(gpu[token].tolist())))
    counts /= max(1, instance.token_sample.shape[0] * instance.layers)
    return float(counts[0]), float(counts[1])


def _figures(stated: ExpertScore, true: ExpertScore, tolerance: float) -> Iterator[str]:
    for field in fields(ExpertScore):
        said, right = getattr(stated, field.name), getattr(true, field.name)
        if said is None or right is None:
            if said is not right:
                yield f"{field.name} is stated as {said}, it is {right}"
        elif not (
            abs(said - right) <= tolerance  # a ratio near 0 is a difference of equal sums
            if field.name.endswith("_ratio")
            else _close(said, right, tolerance)
        ):
            yield f"{field.name} is stated as {said:.9g}, it is {right:.9g}"


def _bounds(plan: ExpertPlan, score: ExpertScore, by_layer: Floats, tolerance: float) -> Iterator[str]:
    objective_s = score.objective_s(plan.communication)
    allowed = tolerance * abs(objective_s) + 1e-12
    bounds = np.array(plan.lower_bound_by_layer_s, dtype=float)
    if not (math.isfinite(plan.lower_bound_s) and plan.lower_bound_s >= 0.0):
        yield f"the bound is {plan.lower_bound_s:g}, which bounds nothing"
        return
    if plan.lower_bound_s > objective_s + allowed:
        yield f"the bound {plan.lower_bound_s:.9g} s is above the map's own {objective_s:.9g} s"
    if plan.status is ExpertPlanStatus.OPTIMAL and plan.lower_bound_s < objective_s - allowed:
        yield f"called optimal at {objective_s:.9g} s, yet the bound is {plan.lower_bound_s:.9g} s"
    if bounds.shape != (by_layer.shape[0], 2) or not np.isfinite(bounds).all():
        yield "the bounds by layer are not two numbers per layer"
        return
    if plan.lower_bound_s < bounds.sum() - allowed:
        yield f"the bound {plan.lower_bound_s:.9g} s is below the sum of the layers' {bounds.sum():.9g} s"
    for program in plan.programs:
        if not program.lower_bound <= program.objective + tolerance * abs(program.objective):
            yield f"{program.name}: reached {program.objective:.9g}, below its bound {program.lower_bound:.9g}"
    all_to_all = by_layer[:, 1 if plan.communication == "transition" else 2]
    for layer, (compute, whole) in enumerate(zip(by_layer[:, 0], by_layer[:, 0] + all_to_all, strict=True)):
        if bounds[layer, 0] > compute + tolerance * abs(compute) + 1e-12:
            yield f"layer {layer}: compute is bounded by {bounds[layer, 0]:.9g} s and takes {compute:.9g} s"
        # under dispatch the second bound is what both cost beyond the first
        if plan.communication == "transition":
            above = bounds[layer, 1] - all_to_all[layer]
        else:
            above = bounds[layer].sum() - whole
        if above > tolerance * abs(whole) + 1e-12:
            yield f"layer {layer}: the all-to-all takes {all_to_all[layer]:.9g} s, less than its bound"


def _moves(
    instance: ExpertInstance,
    plan: ExpertPlan,
    previous: Slots | None,
    score: ExpertScore,
    tolerance: float,
) -> Iterator[str]:
    for name, move in (("move", plan.move), ("proposed move", plan.proposed)):
        if move is not None:
            yield from _move(instance, name, move, tolerance)
    if plan.refused != (plan.proposed is not None):
        yield f"refused is {plan.refused}, yet a proposed move is {'not ' * plan.refused}given"
    pays = plan.proposed is not None and (plan.proposed.net_gain_s or 0.0) > 0.0
    if plan.refused and pays:
        yield "a move was refused that pays"
    stated = plan.move
    if stated is not None and stated.moved_ratio > 0.0:
        if plan.refused:
            yield "a move was refused, yet experts are to be moved"
        elif stated.net_gain_s is not None and stated.net_gain_s <= 0.0:
            yield f"the move loses {-stated.net_gain_s:.9g} s and was not refused"
    if previous is None:
        return
    if stated is None:
        if not plan.refused:
            yield "there is a map in force, yet no move is stated"
        return
    fetched = np.zeros(instance.topology.gpus)
    for old, new in zip(previous, plan.physical_to_logical, strict=True):
        fetched += ((_held(instance, new) > 0) & (_held(instance, old) == 0)).sum(axis=0)
    ratio = float(fetched.sum()) / (instance.layers * instance.slots)
    if not _close(stated.moved_ratio, ratio, tolerance):
        yield f"moved_ratio is stated as {stated.moved_ratio:.9g}, it is {ratio:.9g}"
    migration = instance.migration
    if migration is None:
        return
    bytes_in = fetched * migration.expert_bytes
    if stated.bytes_in is not None and not np.allclose(stated.bytes_in, bytes_in, rtol=tolerance, atol=0.0):
        yield "bytes_in are not those of the experts that each GPU fetches"
    old_s = _score(instance, previous)[0].objective_s(plan.communication)
    saved_s = old_s - score.objective_s(plan.communication)
    if stated.gain_s is not None and (
        abs(stated.gain_s - saved_s * migration.windows) > tolerance * old_s * migration.windows + 1e-12
    ):
        yield f"gain_s is stated as {stated.gain_s:.9g}, it is {saved_s * migration.windows:.9g}"


def _move(instance: ExpertInstance, name: str, move: Move, tolerance: float) -> Iterator[str]:
    if not 0.0 <= move.moved_ratio <= 1.0:
        yield f"the {name} fetches {move.moved_ratio:g} of all holdings, which is no share"
        return
    migration = instance.migration
    figures = (move.bytes_in, move.move_s, move.gain_s, move.net_gain_s)
    if migration is None:
        if any(figure is not None for figure in figures):
            yield f"the {name} states what it takes, yet the instance has no migration costs"
        return
    if move.bytes_in is None or move.move_s is None or move.gain_s is None or move.net_gain_s is None:
        yield f"the {name} does not state what it takes and gains"
        return
    if len(move.bytes_in) != instance.topology.gpus:
        yield f"the {name} states bytes for {len(move.bytes_in)} of {instance.topology.gpus} GPUs"
        return
    total = move.moved_ratio * instance.layers * instance.slots * migration.expert_bytes
    if not _close(sum(move.bytes_in), total, tolerance):
        yield f"the {name} fetches {sum(move.bytes_in):.9g} bytes, its share of holdings is {total:.9g} bytes"
    move_s = max(move.bytes_in) / migration.bytes_per_s
    if not _close(move.move_s, move_s, tolerance):
        yield f"the {name} takes {move_s:.9g} s, stated are {move.move_s:.9g} s"
    net_s = move.gain_s - move_s * (1.0 + migration.margin_ratio)
    if abs(move.net_gain_s - net_s) > tolerance * max(abs(move.gain_s), move_s) + 1e-12:
        yield f"the {name} gains {net_s:.9g} s net, stated are {move.net_gain_s:.9g} s"
