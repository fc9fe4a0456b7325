"""MoETuner's two programs: even clusters of experts in every layer, then clusters to GPUs along their traffic.

It exists to reproduce the paper (arXiv 2502.06643, section 4.2) with solvers that need no licence, and as a method to
choose. It is not the joint search: the first program knows no traffic, the second moves whole clusters only, and
neither makes replicas.

ILP 1 (per layer): min sum over clusters of |load - mean|, no cluster empty (eq. 7). Added: every expert is in exactly
one cluster, which eq. 7 leaves out; and, because an engine loads the same number of experts on every GPU, clusters
have the sizes of the GPUs' slots. `cluster_evenly` solves the printed form with free sizes too. Up to `MOST_EXACT`
experts it is solved exactly over sets of experts, or by a backend (`clustering_program`); above, by packing and swaps.

ILP 2: min sum over layer steps of the dearest pair of GPUs, copies times seconds per copy (eq. 8, the maximum over
pairs as its text says). With equal sizes the memory condition (eq. 13) always holds. All orders of a layer's clusters
are at most 720 for 6 GPUs, so that dynamic programming over them is exact; above, clusters are assigned layer by layer
to where most of their traffic stays, as long as the objective falls.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Program, SolveLimits
from solver.domain.deadline import Deadline
from solver.domain.errors import InputError
from solver.domain.moe import ExpertInstance, ExpertTopology, Floats, ProgramAnswer
from solver.experts.answers import MethodAnswer
from solver.experts.bounds import least_of_dearest
from solver.experts.kernels.chains import (
    cheapest_assignment,
    cheapest_orders,
    even_clusters,
    most_even_clusters,
)

Numbers = npt.NDArray[np.int64]

MOST_EXACT = 16
"""Experts for which sets of experts are enumerated (3^16 steps)."""
MOST_EXACT_UNLIKE = 12
"""The same for GPUs with different slots, whose clusters cannot be told in one order only."""
MOST_ORDERS = 720
"""Orders of a layer's clusters that dynamic programming walks: 6 GPUs."""
MOST_ROUNDS = 20


def place_by_moetuner(
    instance: ExpertInstance, *, deadline: Deadline, backend: BackendName | None = None
) -> MethodAnswer:
    """Return the map of both programs, and what each reached and proves.

    Parameters
    ----------
    backend
        Solve ILP 1 of every layer as an integer program in this backend, within equal parts of the time. None: exactly
        without one where the layer is small, by packing and swaps otherwise.

    Raises
    ------
    InputError
        If there are more slots than experts (the programs make no replicas), or transitions are not known.
    """
    if instance.slots > instance.experts:
        raise InputError(
            f"MoETuner makes no replicas, and {instance.slots} slots are more than {instance.experts} experts",
            where="slots_per_gpu",
            right="give as many slots as experts, or use --method ballast",
        )
    if instance.transitions is None:
        raise InputError(
            "MoETuner needs the transitions between layers, which are not known",
            where="trans",
            right="record them, or use --method ballast",
        )
    sizes = np.array(instance.topology.slots_per_gpu, dtype=np.int64)
    used = np.flatnonzero(sizes)  # a GPU without slots has no cluster
    clusters = np.empty((instance.layers, instance.experts), dtype=np.int64)
    reached = bound = 0.0
    for layer, load in enumerate(instance.load):
        part = deadline.sooner(deadline.remaining_s() / (instance.layers - layer))
        found, objective, proved = cluster_evenly(load, sizes[used], deadline=part, backend=backend)
        clusters[layer] = used[found]
        reached += objective
        bound += proved
    orders, dearest_s, least_s = order_clusters(instance, clusters, deadline=deadline)
    p2l = np.empty((instance.layers, instance.slots), dtype=np.int32)
    for layer, order in enumerate(orders):
        p2l[layer] = np.concatenate([np.flatnonzero(clusters[layer] == cluster) for cluster in order])
    return MethodAnswer(
        physical_to_logical=p2l,
        programs=(
            ProgramAnswer(
                name="ILP 1: clusters",
                unit="tokens off the mean",
                objective=reached,
                lower_bound=min(bound, reached),
            ),
            ProgramAnswer(
                name="ILP 2: clusters to GPUs",
                unit="s of the dearest pairs",
                objective=dearest_s,
                lower_bound=min(least_s, dearest_s),
            ),
        ),
    )


def cluster_evenly(
    load: Floats, sizes: Numbers, *, deadline: Deadline, backend: BackendName | None = None
) -> tuple[Numbers, float, float]:
    """Solve ILP 1 for one layer: cluster of every expert [E], sum of |load - mean|, and what no clustering goes below.

    ``sizes`` [G] are the clusters' numbers of experts; all 0: free, as printed.
    """
    mean = float(load.sum()) / sizes.size
    alike = bool((sizes == sizes[0]).all())
    free = not sizes.any()
    if backend is not None:
        limits = SolveLimits(time_limit_s=deadline.remaining_s())
        solution = solve_program(clustering_program(load, sizes), limits, backend=backend)
        if solution.found:
            chosen = solution.values[: load.size * sizes.size].reshape(load.size, sizes.size)
            found = np.asarray(chosen.argmax(axis=1), dtype=np.int64)
            return (
                found,
                _off_mean(load, found, sizes.size),
                max(solution.bound, _least_off_mean(load, sizes)),
            )
    elif load.size <= (MOST_EXACT if alike else MOST_EXACT_UNLIKE):
        found, _ = most_even_clusters(load, sizes, mean)
        objective = _off_mean(load, found, sizes.size)
        return found, objective, objective
    if free:  # about equal sizes are allowed too
        sizes = np.full(sizes.size, load.size // sizes.size)
        sizes[: load.size % sizes.size] += 1
        return (found := even_clusters(load, sizes)), _off_mean(load, found, sizes.size), 0.0
    found = even_clusters(load, sizes)
    return found, _off_mean(load, found, sizes.size), _least_off_mean(load, sizes)


def _off_mean(load: Floats, cluster: Numbers, clusters: int) -> float:
    sums = np.bincount(cluster, weights=load, minlength=clusters)
    return float(np.abs(sums - load.sum() / clusters).sum())


def _least_off_mean(load: Floats, sizes: Numbers) -> float:
    """Bound ILP 1: what the heaviest cluster has above the mean, others lack."""
    if not sizes.any():
        return 0.0
    gpus = sizes.size
    topology = ExpertTopology(
        gpu_node=(0,) * gpus, slots_per_gpu=tuple(sizes.tolist()), gpu_speed=(1.0,) * gpus
    )
    heaviest = float(least_of_dearest(load[None], topology, np.ones(gpus))[0])
    return 2.0 * max(0.0, heaviest - float(load.sum()) / gpus)


def clustering_program(load: Floats, sizes: Numbers) -> Program:
    """Write ILP 1 of one layer: x[e,c] first, row by row, then |load - mean| of every cluster."""
    program = Program()
    experts, clusters = load.size, sizes.size
    mean = float(load.sum()) / clusters
    x = [[program.add_variable(upper=1.0, integer=True) for _ in range(clusters)] for _ in range(experts)]
    for row in x:
        program.add_row(row, [1.0] * clusters, lower=1.0, upper=1.0)
    for c in range(clusters):
        column = [x[e][c] for e in range(experts)]
        size = float(sizes[c])
        program.add_row(column, [1.0] * experts, lower=size or 1.0, upper=size or np.inf)
        off = program.add_variable(cost=1.0)
        program.add_row([*column, off], [*load.tolist(), -1.0], upper=mean)
        program.add_row([*column, off], [*load.tolist(), 1.0], lower=mean)
    return program


def order_clusters(
    instance: ExpertInstance, clusters: Numbers, *, deadline: Deadline
) -> tuple[Numbers, float, float]:
    """Solve ILP 2: cluster of every GPU by layer [L, G], the sum of the dearest pairs, and its bound, in seconds.

    ``clusters`` [L, E] has clusters of the sizes of the GPUs' slots, cluster g that of GPU g: a cluster may go to any
    GPU with as many slots.
    """
    topology = instance.topology
    gpus = topology.gpus
    flows = flows_between(instance, clusters)
    copy_s = pair_copy_s(instance)
    sizes = np.array(topology.slots_per_gpu)
    found = np.tile(np.arange(gpus), (instance.layers, 1))
    if not flows.size:
        return found, 0.0, 0.0
    orders = _orders(sizes)
    if orders is not None:
        found, total_s = cheapest_orders(orders, flows, copy_s)
        return found, total_s, total_s
    forbidden = float(flows.sum() + 1.0) * max(float(copy_s.max()), 1e-30) * gpus
    unlike = np.where(sizes[:, None] == sizes[None, :], 0.0, forbidden)  # cluster, GPU
    for layer in range(1, instance.layers):  # each where least of its traffic from the layer before costs
        cost = unlike + flows[layer - 1][found[layer - 1]].T @ copy_s
        found[layer, cheapest_assignment(cost)] = np.arange(gpus)
    for _ in range(MOST_ROUNDS):
        improved = False
        for layer in range(instance.layers):
            if deadline.passed():
                break
            around = slice(max(0, layer - 1), layer + 2)
            steps = slice(max(0, layer - 1), layer + 1)
            now_s = dearest_pairs_s(flows[steps], found[around], copy_s)
            for trial in _other_orders(flows, found, layer, copy_s, unlike):
                trial_s = dearest_pairs_s(flows[steps], trial[around], copy_s)
                if trial_s < now_s * (1 - 1e-12):
                    found, now_s, improved = trial, trial_s, True
        if not improved:
            break
    best_s = dearest_pairs_s(flows, found, copy_s)
    return found, best_s, _least_dearest_s(instance, flows)


def _other_orders(
    flows: Floats, found: Numbers, layer: int, copy_s: Floats, unlike: Floats
) -> Iterator[Numbers]:
    """Yield orders that differ in one layer: where least of all its traffic costs, and swaps with the dearest pairs."""
    gpus = found.shape[1]
    cost = unlike.copy()
    dearest: set[int] = set()
    if layer > 0:
        cost += flows[layer - 1][found[layer - 1]].T @ copy_s
        paid = copy_s * flows[layer - 1][np.ix_(found[layer - 1], found[layer])]
        dearest.add(int(paid.argmax()) % gpus)
    if layer + 1 < found.shape[0]:
        cost += flows[layer][:, found[layer + 1]] @ copy_s.T
        paid = copy_s * flows[layer][np.ix_(found[layer], found[layer + 1])]
        dearest.add(int(paid.argmax()) // gpus)
    trial = found.copy()
    trial[layer, cheapest_assignment(cost)] = np.arange(gpus)
    yield trial
    for g in sorted(dearest):
        for h in range(gpus):
            if h != g and unlike[found[layer, g], h] == unlike[found[layer, h], g] == 0.0:
                trial = found.copy()
                trial[layer, [g, h]] = found[layer, [h, g]]
                yield trial


def flows_between(instance: ExpertInstance, clusters: Numbers) -> Floats:
    """Return copies between the clusters of neighbouring layers, [L - 1, G, G]."""
    gpus = instance.topology.gpus
    flows = np.zeros((max(0, instance.layers - 1), gpus, gpus))
    if instance.transitions is None:
        return flows
    for step, pairs in enumerate(instance.transitions):
        np.add.at(flows[step], (clusters[step][:, None], clusters[step + 1][None, :]), pairs / instance.top_k)
    return flows


def pair_copy_s(instance: ExpertInstance) -> Floats:
    """Return seconds per copy between two GPUs (1 / B), 0 on the diagonal, [G, G]."""
    node, costs = instance.topology.node_index, instance.costs
    seconds = np.where(node[:, None] == node[None, :], costs.intra_copy_s, costs.inter_copy_s)
    np.fill_diagonal(seconds, 0.0)
    return np.asarray(seconds)


def dearest_pairs_s(flows: Floats, orders: Numbers, copy_s: Floats) -> float:
    """Return the objective of ILP 2: sum over steps of max over pairs of copies times seconds."""
    return float(
        sum(
            (copy_s * flow[np.ix_(here, there)]).max()
            for flow, here, there in zip(flows, orders[:-1], orders[1:], strict=True)
        )
    )


def _orders(sizes: Numbers) -> Numbers | None:
    """Return every order of clusters over GPUs that keeps their sizes, [N, G]; None if there are too many."""
    kinds = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    count = 1
    for kind in kinds:
        for factor in range(2, kind.size + 1):
            count *= factor
            if count > MOST_ORDERS:
                return None
    orders = np.empty((count, sizes.size), dtype=np.int64)
    each = itertools.product(*(itertools.permutations(kind.tolist()) for kind in kinds))
    for order, choice in zip(orders, each, strict=True):
        for kind, moved in zip(kinds, choice, strict=True):
            order[kind] = moved
    return orders


def _least_dearest_s(instance: ExpertInstance, flows: Floats) -> float:
    """Bound ILP 2: of the flows of one row or column one stays on its GPU at most, and n in a node of n."""
    node, costs = instance.topology.node_index, instance.costs
    mates = int(np.bincount(node).max())
    gpus = flows.shape[1]
    least = np.zeros(flows.shape[0])
    for flow in (flows, flows.transpose(0, 2, 1)):
        ascending = np.sort(flow, axis=2)
        if gpus > 1:
            least = np.maximum(
                least, min(costs.intra_copy_s, costs.inter_copy_s) * ascending[:, :, -2].max(axis=1)
            )
        if gpus > mates:
            least = np.maximum(least, costs.inter_copy_s * ascending[:, :, -1 - mates].max(axis=1))
    return float(least.sum())
