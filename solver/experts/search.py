"""Ballast's own search: replicas and places together, on the true objective, for any nodes, slots and speeds.

It exists because load and traffic pull apart: maps that only balance pay at the links, maps that only follow affinity
pay at the slowest GPU. Three ideas carry it. Mean traffic is first weighed far above the objective and then less and
less, so that experts that follow each other gather (the objective itself is a sum of maxima, which says little about
which way to go). Communities are found between nodes first, where a try costs almost nothing, and spread over GPUs
afterwards. Every try is an exact, incremental evaluation (`solver.experts.kernels.search`).

It is deterministic in its seed as long as the deadline does not cut it short. It proves nothing: bounds are
`solver.experts.bounds`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from solver.domain.deadline import Deadline
from solver.domain.moe import Communication, ExpertInstance, Floats, Slots
from solver.experts.duplicates import without_duplicates
from solver.experts.kernels.balance import balance_layers, pack_in_nodes
from solver.experts.kernels.search import Counts, Held, search_pass, shake
from solver.experts.kernels.traffic import loads_of
from solver.experts.score import dispatch_copy_s, score_map

BALANCED_RATIO = 3e-4
"""A layer so close to its bound is balanced; loads drift more than that within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Some passes over all layers with one set of weights."""

    mean_weight: float
    compute_weight: float = 1.0
    ports_weight: float = 0.0
    square_weight: float = 0.1
    replica_ratio: float = 0.05
    tries: int
    passes: int


def _between_nodes(
    ratio: float, *, tries: int, passes: int, replica_ratios: tuple[float, float, float] = (0.0, 0.02, 0.05)
) -> tuple[Stage, ...]:
    """Weights between nodes; ``ratio`` is the weight of compute beside that of mean traffic."""
    return tuple(
        Stage(
            mean_weight=weight,
            compute_weight=ratio * weight,
            square_weight=2.0,
            replica_ratio=replicas,
            tries=tries,
            passes=passes,
        )
        for weight, replicas in zip((30.0, 10.0, 3.0), replica_ratios, strict=True)
    )


GATHER = (
    Stage(mean_weight=30.0, replica_ratio=0.0, tries=1500, passes=2),
    Stage(mean_weight=10.0, tries=1500, passes=2),
)
"""From a balanced map: let experts that follow each other gather."""
SETTLE = (
    Stage(mean_weight=3.0, tries=1500, passes=2),
    Stage(mean_weight=1.0, tries=1500, passes=2),
)
POLISH = (
    Stage(mean_weight=3.0, tries=2200, passes=1),
    Stage(mean_weight=1.0, tries=2200, passes=3),
    Stage(mean_weight=0.3, tries=2200, passes=1),
)
TO_AND_FRO = (
    Stage(mean_weight=3.0, tries=8000, passes=1),
    Stage(mean_weight=1.0, tries=8000, passes=2),
    Stage(mean_weight=0.0, ports_weight=0.03, square_weight=0.1, tries=8000, passes=2),
)
"""Mean traffic shakes a polished map gently; the 4-norm then sees only the ports that are nearly the busiest."""
LONG_POLISH = (
    *(Stage(mean_weight=weight, tries=8000, passes=2) for weight in (5.0, 3.0, 2.0, 1.0)),
    *TO_AND_FRO,
)
SHORT_POLISH = (
    Stage(mean_weight=1.0, tries=8000, passes=1),
    Stage(mean_weight=0.3, square_weight=0.05, tries=8000, passes=1),
    Stage(mean_weight=0.05, square_weight=0.02, tries=8000, passes=2),
)
SHAKEN_RATIOS = (0.3, 0.1, 0.03, 1.0)
EVEN_OUT = (Stage(mean_weight=0.0, square_weight=0.3, replica_ratio=0.3, tries=3000, passes=1),)
"""Without traffic only loads count."""
COMPUTE_RATIOS = (0.15, 0.5)
KEPT = (0.0, 0.0, 0.0)
FULL_NODE_STAGES = (
    _between_nodes(0.05, tries=3000, passes=10, replica_ratios=KEPT),
    _between_nodes(0.15, tries=3000, passes=10, replica_ratios=KEPT),
    _between_nodes(0.15, tries=3000, passes=10),
    _between_nodes(0.5, tries=3000, passes=10),
)
"""Replicas traded between nodes follow traffic; with few slots to a GPU they then cannot be packed evenly any more."""
FAST_NODE_STAGES = tuple(_between_nodes(ratio, tries=1700, passes=3) for ratio in COMPUTE_RATIOS)
FULL_STARTS = 2
MOST_TO_AND_FRO = 16
WORTH_RATIO = 5e-5
"""A round to and fro that gains less is the last."""
FAST_WORK = 1e7
FULL_WORK = 4e8
EVEN_OUT_WORK = 2e7
"""Small problems are tried again until about so many steps of kernels were done."""
MOST_ROUNDS = 1500


class Field:
    """One problem as arrays, ready for the kernels, between GPUs or between nodes."""

    def __init__(self, instance: ExpertInstance, communication: Communication) -> None:
        topology, costs = instance.topology, instance.costs
        gpus = topology.gpus
        self.instance = instance
        self.slot_gpu = topology.slot_gpu
        self.slots_per_gpu = np.array(topology.slots_per_gpu, dtype=np.int32)
        self.most_held = np.maximum(1, -(-self.slots_per_gpu // instance.experts)).astype(np.int32)
        self.token_s = costs.token_expert_s / np.array(topology.gpu_speed)
        self.linked = communication == "transition" and instance.layers > 1
        self.transitions = (
            instance.transitions if self.linked and instance.transitions is not None else np.zeros((0, 1, 1))
        )
        self.port_s = dispatch_copy_s(instance) if communication == "dispatch" else np.zeros(gpus)
        node = topology.node_index
        self.same = ((node[:, None] == node[None, :]) & ~np.eye(gpus, dtype=bool)).astype(float)
        self.other = (node[:, None] != node[None, :]).astype(float)
        self.intra_s = np.full(gpus, costs.intra_copy_s)
        self.inter_s = np.full(gpus, costs.inter_copy_s)
        self.original: Held = np.zeros((0, 1, 1), dtype=np.uint8)
        self.fetch_s = 0.0
        self.room: Counts = np.array([np.iinfo(np.int64).max // 2])

    def work_of(self, stage: Stage) -> float:
        """Return about how many steps of kernels a stage takes."""
        layers, slots = self.instance.layers, self.instance.slots
        tries = self._tries(stage) * len(self.token_s) if self.linked else self._tries(stage)
        return stage.passes * layers * (tries + (slots * self.instance.experts if self.linked else slots))

    def _tries(self, stage: Stage) -> int:
        return min(stage.tries, 8 * len(self.slot_gpu) ** 2)

    def run(self, p2l: Slots, stages: Sequence[Stage], chance: Counts, deadline: Deadline) -> None:
        """Improve a map in place, stage by stage, forth and back over the layers; ends early at the deadline."""
        forth = np.arange(self.instance.layers)
        back = forth[::-1].copy()
        for stage in stages:
            for number in range(stage.passes):
                if deadline.passed():
                    return
                search_pass(
                    p2l,
                    back if number % 2 else forth,
                    self.slot_gpu,
                    self.most_held,
                    self.instance.load,
                    self.transitions,
                    1.0 / self.instance.top_k,
                    self.token_s * stage.compute_weight,
                    self.port_s,
                    self.intra_s,
                    self.inter_s,
                    self.same,
                    self.other,
                    stage.mean_weight,
                    stage.ports_weight,
                    stage.square_weight,
                    self._tries(stage),
                    stage.replica_ratio if self.instance.slots > self.instance.experts else 0.0,
                    self.original,
                    self.fetch_s,
                    self.room,
                    chance,
                )

    def shake(self, p2l: Slots, ratio: float, chance: Counts) -> None:
        """Change about a ratio of all slots at random, in place."""
        spare = self.instance.slots > self.instance.experts
        shake(
            p2l,
            self.slot_gpu,
            self.most_held,
            self.instance.experts,
            ratio,
            0.3 if spare else 0.0,
            chance,
        )

    def balanced(self) -> Slots:
        """Return a map with even loads, [L, S]."""
        load, topology = self.instance.load, self.instance.topology
        even_s = self.instance.costs.token_expert_s * load.sum(axis=1) / sum(topology.gpu_speed)
        packed = balance_layers(
            load, self.slots_per_gpu, self.most_held, self.token_s, even_s, BALANCED_RATIO
        )
        return without_duplicates(self.instance, packed)


class NodeField(Field):
    """The same problem between nodes: each is one GPU with all slots, speeds and links of its own."""

    def __init__(self, instance: ExpertInstance) -> None:
        super().__init__(instance, "transition")
        node = instance.topology.node_index
        nodes = instance.topology.nodes
        self.gpu_field = (self.slots_per_gpu, self.most_held, self.token_s)
        self.node_gpus = np.argsort(node, kind="stable").astype(np.int32)
        self.node_first_gpu = _starts(np.bincount(node, minlength=nodes))
        slot_node = node[self.slot_gpu]
        self.slot_order = np.argsort(slot_node, kind="stable")
        self.slot_gpu = slot_node[self.slot_order].astype(np.int32)
        self.node_first = _starts(np.bincount(slot_node, minlength=nodes))
        self.most_held = np.bincount(
            node, weights=self.most_held * (self.slots_per_gpu > 0), minlength=nodes
        ).astype(np.int32)
        gpus = np.bincount(node, minlength=nodes)
        speed = np.bincount(node, weights=np.array(instance.topology.gpu_speed), minlength=nodes)
        self.token_s = instance.costs.token_expert_s / speed
        self.port_s = np.zeros(nodes)
        self.intra_s = np.zeros(nodes)
        self.inter_s = instance.costs.inter_copy_s / gpus
        self.same = np.zeros((nodes, nodes))
        self.other = 1.0 - np.eye(nodes)

    def gathered(self, p2l: Slots, stages: Sequence[Stage], chance: Counts, deadline: Deadline) -> Slots:
        """Return a map whose communities were found between nodes and spread inside them."""
        by_node = np.ascontiguousarray(p2l[:, self.slot_order])
        self.run(by_node, stages, chance, deadline)
        slots_per_gpu, most_held, token_s = self.gpu_field
        spread = np.array(
            [
                pack_in_nodes(
                    row,
                    self.node_first,
                    self.node_gpus,
                    self.node_first_gpu,
                    self.instance.load[layer],
                    slots_per_gpu,
                    most_held,
                    token_s,
                )
                for layer, row in enumerate(by_node)
            ]
        )
        return without_duplicates(self.instance, spread)


def _starts(counts: Counts) -> Slots:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)


def search(
    instance: ExpertInstance,
    communication: Communication,
    *,
    full: bool,
    seed: int,
    deadline: Deadline,
) -> Slots:
    """Find a map, [L, S]; always one, however early the deadline.

    Parameters
    ----------
    full
        More starts and far longer polishing.
    seed
        Two runs with the same seed give the same map.
    """
    field = Field(instance, communication)
    chance = np.array([1 + seed % 2147483645], dtype=np.int64)
    balanced = field.balanced()
    if not field.linked:
        return _evened(field, balanced, full=full, chance=chance, deadline=deadline)
    if not full:
        starts = [balanced, *_starting_maps(field, balanced, full=False, chance=chance, deadline=deadline)]
        p2l = _best(instance, communication, starts).copy()
        field.run(p2l, POLISH, chance, deadline)
        p2l = _best(instance, communication, [p2l, balanced])
        return _shaken(field, p2l, work=FAST_WORK, chance=chance, deadline=deadline)
    starts = [*_starting_maps(field, balanced, full=True, chance=chance, deadline=deadline)]
    ranked = sorted(starts, key=lambda p2l: score_map(instance, p2l).objective_s(communication))
    return _best(
        instance,
        communication,
        [balanced, _polished(field, ranked[:FULL_STARTS] or [balanced], chance=chance, deadline=deadline)],
    )


def _rounds(field: Field, stages: Sequence[Stage], work: float) -> int:
    """Return how often stages are worth repeating: small problems have time for many tries."""
    per_round = sum(field.work_of(stage) for stage in stages)
    return int(min(MOST_ROUNDS, work / max(1.0, per_round)))


def _evened(field: Field, balanced: Slots, *, full: bool, chance: Counts, deadline: Deadline) -> Slots:
    """Let chance replace replicas: greedy counts are best for the largest share, not for what fits beside it."""
    best, best_s = balanced, _unlinked_s(field, balanced)
    uneven = not field.instance.topology.is_uniform
    rounds = _rounds(field, EVEN_OUT, EVEN_OUT_WORK) if full else int(uneven)
    for number in range(rounds):
        if deadline.passed():
            break
        p2l = best.copy()
        if number:
            field.shake(p2l, SHAKEN_RATIOS[number % len(SHAKEN_RATIOS)], chance)
        field.run(p2l, EVEN_OUT, chance, deadline)
        value_s = _unlinked_s(field, p2l)
        better = value_s < best_s
        best[better] = p2l[better]  # without traffic layers are strangers to each other
        best_s = np.minimum(value_s, best_s)
    return best


def _unlinked_s(field: Field, p2l: Slots) -> Floats:
    """Return the objective of every layer without traffic between them, [L]."""
    instance = field.instance
    loads = loads_of(p2l, field.slot_gpu, instance.load, instance.topology.gpus)
    return np.asarray((loads * field.token_s).max(axis=1) + (loads * field.port_s).max(axis=1))


def _starting_maps(
    field: Field, balanced: Slots, *, full: bool, chance: Counts, deadline: Deadline
) -> Iterator[Slots]:
    """Gather in several ways, each settled shortly: which basin is best shows only then."""
    instance = field.instance
    nodes = instance.topology.nodes
    if nodes == 1 or full:
        p2l = balanced.copy()
        field.run(p2l, (*GATHER, *SETTLE), chance, deadline)
        yield p2l
    if nodes > 1:
        between = NodeField(instance)
        for stages in FULL_NODE_STAGES if full else FAST_NODE_STAGES:
            if deadline.passed():
                return
            p2l = between.gathered(balanced, stages, chance, deadline)
            field.run(p2l, SETTLE, chance, deadline)
            yield p2l


def _polished(field: Field, starts: Sequence[Slots], *, chance: Counts, deadline: Deadline) -> Slots:
    """Polish each start, then go to and fro from the best as long as it pays."""
    best, best_s = starts[0], math.inf
    for start in starts:
        if deadline.passed() and best_s < math.inf:
            break
        p2l = start.copy()
        field.run(p2l, LONG_POLISH, chance, deadline)
        value_s = score_map(field.instance, p2l).objective_s("transition")
        if value_s < best_s:
            best, best_s = p2l, value_s
    p2l = best.copy()
    for _ in range(MOST_TO_AND_FRO):
        if deadline.passed():
            break
        before_s = score_map(field.instance, p2l).objective_s("transition")
        field.run(p2l, TO_AND_FRO, chance, deadline)
        value_s = score_map(field.instance, p2l).objective_s("transition")
        if value_s < best_s:
            best, best_s = p2l.copy(), value_s
        if value_s > before_s * (1.0 - WORTH_RATIO):
            break
    return _shaken(field, best, work=FULL_WORK, chance=chance, deadline=deadline)


def _shaken(field: Field, best: Slots, *, work: float, chance: Counts, deadline: Deadline) -> Slots:
    """Shake the best map and search on, again and again, for so much work."""
    best_s = score_map(field.instance, best).objective_s("transition")
    for number in range(_rounds(field, SHORT_POLISH, work)):
        if deadline.passed():
            break
        p2l = best.copy()
        field.shake(p2l, SHAKEN_RATIOS[number % len(SHAKEN_RATIOS)], chance)
        # mean traffic shows the way, but always the same way: every other time the objective is nearly alone
        field.run(p2l, SHORT_POLISH[2 * (number % 2) :], chance, deadline)
        value_s = score_map(field.instance, p2l).objective_s("transition")
        if value_s < best_s:
            best, best_s = p2l, value_s
    return best


def _best(
    instance: ExpertInstance, communication: Communication, maps: Sequence[Slots] | Iterator[Slots]
) -> Slots:
    return min(maps, key=lambda p2l: score_map(instance, p2l).objective_s(communication))


def held_by(instance: ExpertInstance, p2l: Slots) -> Held:
    """Return what each GPU holds, [L, E, G]."""
    held = np.zeros((instance.layers, instance.experts, instance.topology.gpus), dtype=np.uint8)
    layer = np.arange(instance.layers)[:, None]
    held[layer, p2l, instance.topology.slot_gpu[None, :]] = 1
    return held
