"""The problem of one ExpertPlacement: its GPUs in the order of their ranks, its costs, its loads.

It exists so that what the spec says in foreign units and what pods show become one `ExpertInstance`. It reads the
`World` and asks nobody.
"""

import re
from collections.abc import Mapping
from typing import Any

from controller.operator.experts.smoothing import Smoothed
from controller.operator.world import Key, Pod
from controller.resources.expert_placement import ExpertPlacementSpec, Topology
from solver.domain.errors import InputError
from solver.domain.moe import ExpertCosts, ExpertInstance, ExpertTopology, Migration

GIGA = 1e9


def topology_of(key: Key, spec: ExpertPlacementSpec, pods: Mapping[Key, Any]) -> ExpertTopology:
    """Return the GPUs of the group: as stated, else as the pods of the target have them.

    Raises
    ------
    InputError
        If the pods do not show them: their number differs, or nobody can know the order of their ranks.
    """
    each = (spec.model_ref.experts + spec.redundant_experts) // spec.ep_size
    if spec.topology.nodes is not None:
        gpus = [(place, gpu) for place, node in enumerate(spec.topology.nodes) for gpu in node.gpus]
        return ExpertTopology(
            gpu_node=tuple(place for place, _ in gpus),
            slots_per_gpu=tuple(each if gpu.slots is None else gpu.slots for _, gpu in gpus),
            gpu_speed=tuple(gpu.speed for _, gpu in gpus),
        )
    nodes = _nodes_of_pods(key, spec, pods)
    return ExpertTopology(gpu_node=nodes, slots_per_gpu=(each,) * len(nodes), gpu_speed=(1.0,) * len(nodes))


def _nodes_of_pods(key: Key, spec: ExpertPlacementSpec, pods: Mapping[Key, Any]) -> tuple[int, ...]:
    target = spec.target_ref
    if target is None:
        raise InputError("neither nodes nor a target", where="topology", right="name one of them")
    where = f"{target.kind} {target.name}"
    mine: list[Pod] = [
        pod
        for pod in pods.values()
        if pod.key[0] == key[0] and pod.owner == (target.kind, target.name) and pod.gpus
    ]
    found = sum(pod.gpus for pod in mine)
    placed = [pod for pod in mine if pod.node]
    if len(placed) < len(mine) or found != spec.ep_size:
        raise InputError(
            f"{len(placed)} pods on nodes, {found} GPUs of all its pods, epSize is {spec.ep_size}",
            where=where,
            right="wait until all run, or name topology.nodes",
        )
    if target.kind == "Deployment" and len(mine) > 1:
        raise InputError(
            f"{len(mine)} pods without an order: nobody knows their ranks",
            where=where,
            right="use a StatefulSet or LeaderWorkerSet, or name topology.nodes",
        )
    placed.sort(key=_ordinals)
    numbers = {node: index for index, node in enumerate(dict.fromkeys(pod.node for pod in placed))}
    return tuple(numbers[pod.node] for pod in placed for _ in range(pod.gpus))


def _ordinals(pod: Pod) -> tuple[int, ...]:
    """Numbers at the end of a pod's name: ``engine-2``, or ``engine-0-3`` in a group."""
    ending = re.search(r"(?:-\d+)+$", pod.key[1])
    return () if ending is None else tuple(int(part) for part in ending[0].split("-") if part)


def instance_of(
    key: Key, spec: ExpertPlacementSpec, topology: ExpertTopology, smoothed: Smoothed
) -> ExpertInstance:
    """Return the problem.

    Raises
    ------
    InputError
        If the loads do not fit, or transitions are needed and not recorded.
    """
    if smoothed.load is None:
        raise InputError("no loads are known", where="loadSource")
    transition = spec.comm_model == "transition"
    if transition and smoothed.transitions is None and spec.model_ref.moe_layers > 1:
        raise InputError(
            "commModel transition needs recorded transitions",
            where="loadSource",
            right="record them, or use commModel dispatch",
        )
    migration = spec.migration
    return ExpertInstance(
        name=f"{key[0]}/{key[1]}",
        load=smoothed.load,
        top_k=spec.model_ref.top_k,
        transitions=smoothed.transitions,
        topology=topology,
        costs=_costs(spec, spec.topology),
        migration=Migration(
            expert_bytes=float(spec.model_ref.expert_bytes),
            bytes_per_s=migration.bandwidth_g_bps * GIGA,
            windows=float(migration.windows_until_next),
            margin_ratio=migration.margin,
        ),
    )


def _costs(spec: ExpertPlacementSpec, links: Topology) -> ExpertCosts:
    return ExpertCosts(
        token_expert_s=spec.objective.us_per_token_expert * 1e-6,
        token_copy_bytes=float(spec.objective.bytes_per_token_copy),
        intra_node_bytes_per_s=links.bw_intra_g_bps * GIGA,
        inter_node_bytes_per_s=links.bw_inter_g_bps * GIGA,
    )
