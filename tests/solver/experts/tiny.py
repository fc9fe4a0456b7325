"""Expert placement problems so small that all maps can be tried, and their scores from the formulas alone.

It exists as the second opinion on scorer, bounds and methods: it imports no solver. `reference_instance` reads the
larger problems where they lie beside the checkout.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from solver.domain.moe import (
    Communication,
    ExpertCosts,
    ExpertInstance,
    ExpertTopology,
    Floats,
    Slots,
)

REFERENCE = Path("../shared/data/moe")
REFERENCE_NAMES = tuple(sorted(path.stem for path in REFERENCE.glob("*.json")))


def reference_instance(name: str) -> tuple[ExpertInstance, dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read a reference problem: the instance, what its file says, and its arrays."""
    path = REFERENCE / f"{name}.json"
    if not path.exists():
        pytest.skip("the reference problems are not beside this checkout")
    text = json.loads(path.read_text())
    with np.load(REFERENCE / text["arrays"]) as stored:
        arrays = dict(stored)
    instance = ExpertInstance(
        name=name,
        load=arrays["load"].astype(float),
        top_k=text["top_k"],
        transitions=arrays["trans"].astype(float),
        topology=ExpertTopology(
            gpu_node=tuple(text["gpu_node"]),
            slots_per_gpu=tuple(text["slots_per_gpu"]),
            gpu_speed=tuple(text["gpu_speed"]),
        ),
        costs=ExpertCosts(
            token_expert_s=text["us_per_token_expert"] * 1e-6,
            token_copy_bytes=text["bytes_per_token_copy"],
            intra_node_bytes_per_s=text["bw_intra_GBps"] * 1e9,
            inter_node_bytes_per_s=text["bw_inter_GBps"] * 1e9,
        ),
    )
    return instance, text, arrays


def expert_instance(
    *,
    load: Floats,
    transitions: Floats | None = None,
    gpu_node: tuple[int, ...],
    slots: tuple[int, ...],
    speed: tuple[float, ...] | None = None,
    top_k: int = 1,
    costs: ExpertCosts | None = None,
) -> ExpertInstance:
    """Make a problem with short words for what tests vary."""
    return ExpertInstance(
        name="tiny",
        load=np.asarray(load, dtype=float),
        top_k=top_k,
        transitions=None if transitions is None else np.asarray(transitions, dtype=float),
        topology=ExpertTopology(
            gpu_node=gpu_node, slots_per_gpu=slots, gpu_speed=speed or (1.0,) * len(gpu_node)
        ),
        costs=costs
        or ExpertCosts(
            token_expert_s=1.0,
            token_copy_bytes=1.0,
            intra_node_bytes_per_s=2.0,
            inter_node_bytes_per_s=0.5,
        ),
    )


@st.composite
def tiny_instances(
    draw: st.DrawFn,
    *,
    most_slots: int = 4,
    most_gpus: int = 4,
    most_layers: int = 2,
    equal: bool = False,
) -> ExpertInstance:
    """Draw a problem of few slots: unequal slots, speeds and nodes unless ``equal``."""
    gpus = draw(st.integers(1, most_gpus))
    if equal:
        slots = (draw(st.integers(1, max(1, most_slots // gpus))),) * gpus
    else:
        slots = tuple(draw(st.integers(0, 3)) for _ in range(gpus))
        if not 1 <= sum(slots) <= most_slots:
            slots = (1,) * min(gpus, most_slots) + (0,) * (gpus - min(gpus, most_slots))
    experts = sum(slots) if equal else draw(st.integers(1, sum(slots)))
    layers = draw(st.integers(1, most_layers))
    count = st.integers(0, 20)
    pairs = [draw(st.lists(count, min_size=experts**2, max_size=experts**2)) for _ in range(layers - 1)]
    return expert_instance(
        load=np.array([draw(st.lists(count, min_size=experts, max_size=experts)) for _ in range(layers)]),
        transitions=np.array(pairs, dtype=float).reshape(layers - 1, experts, experts),
        gpu_node=tuple(draw(st.integers(0, 2)) for _ in range(gpus)),
        slots=slots,
        speed=None if equal else tuple(draw(st.sampled_from((0.5, 1.0, 1.25))) for _ in range(gpus)),
        top_k=draw(st.integers(1, min(2, experts))),
        costs=ExpertCosts(
            token_expert_s=draw(st.sampled_from((0.0, 0.3, 1.0))),
            token_copy_bytes=draw(st.sampled_from((0.0, 1.0))),
            intra_node_bytes_per_s=draw(st.sampled_from((1.0, 4.0))),
            inter_node_bytes_per_s=draw(st.sampled_from((0.5, 1.0, 8.0))),
        ),
    )


def all_rows(instance: ExpertInstance) -> list[tuple[int, ...]]:
    """Every way to fill the slots of a layer, up to the order inside a GPU, duplicates included."""
    by_gpu = [
        list(itertools.combinations_with_replacement(range(instance.experts), count))
        for count in instance.topology.slots_per_gpu
    ]
    rows: Iterator[tuple[int, ...]] = (
        tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*by_gpu)
    )
    return [row for row in rows if len(set(row)) == instance.experts]


def has_avoidable_duplicate(instance: ExpertInstance, row: tuple[int, ...]) -> bool:
    """Whether a GPU holds an expert more often than its slots force it to."""
    start = 0
    for count in instance.topology.slots_per_gpu:
        held = row[start : start + count]
        start += count
        most = -(-count // instance.experts)
        if any(held.count(expert) > most for expert in held):
            return True
    return False


def shares(instance: ExpertInstance, row: tuple[int, ...] | Slots) -> Floats:
    """x[e,g]."""
    held = np.zeros((instance.experts, instance.topology.gpus))
    np.add.at(held, (np.asarray(row), instance.topology.slot_gpu), 1.0)
    return np.asarray(held / held.sum(axis=1, keepdims=True))


def compute_s(instance: ExpertInstance, layer: int, row: tuple[int, ...] | Slots) -> float:
    """Seconds of the slowest GPU of a layer."""
    loads = instance.load[layer] @ shares(instance, row)
    return float((instance.costs.token_expert_s * loads / np.array(instance.topology.gpu_speed)).max())


def step_s(
    instance: ExpertInstance, step: int, here: tuple[int, ...] | Slots, there: tuple[int, ...] | Slots
) -> float:
    """Seconds of the busiest port between two layers (transition)."""
    assert instance.transitions is not None
    flow = shares(instance, here).T @ instance.transitions[step] @ shares(instance, there) / instance.top_k
    node = np.array(instance.topology.gpu_node)
    same = (node[:, None] == node[None, :]) & ~np.eye(node.size, dtype=bool)
    other = node[:, None] != node[None, :]
    costs = instance.costs
    inside = costs.token_copy_bytes / costs.intra_node_bytes_per_s
    outside = costs.token_copy_bytes / costs.inter_node_bytes_per_s
    return float(
        max(
            *(inside * (flow * same).sum(axis=axis).max() for axis in (0, 1)),
            *(outside * (flow * other).sum(axis=axis).max() for axis in (0, 1)),
        )
    )


def dispatch_s(instance: ExpertInstance, layer: int, row: tuple[int, ...] | Slots) -> float:
    """Seconds of the busiest port of a layer (dispatch)."""
    loads = instance.load[layer] @ shares(instance, row)
    node, costs = instance.topology.gpu_node, instance.costs
    worst = 0.0
    for g, load in enumerate(loads):
        mates = node.count(node[g])
        worst = max(
            worst,
            costs.token_copy_bytes / costs.intra_node_bytes_per_s * load * (mates - 1) / len(node),
            costs.token_copy_bytes / costs.inter_node_bytes_per_s * load * (len(node) - mates) / len(node),
        )
    return worst


def objective_s(instance: ExpertInstance, p2l: Slots, communication: Communication) -> float:
    """J or J_disp of a map."""
    total = sum(compute_s(instance, layer, row) for layer, row in enumerate(p2l))
    if communication == "dispatch":
        return total + sum(dispatch_s(instance, layer, row) for layer, row in enumerate(p2l))
    return total + sum(step_s(instance, k, p2l[k], p2l[k + 1]) for k in range(instance.layers - 1))
