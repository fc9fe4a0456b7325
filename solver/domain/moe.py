"""The vocabulary of expert placement: the problem (`ExpertInstance`), a map and its answer (`ExpertPlan`).

It exists so that readers of loads, solvers, checker, simulator and commands speak about the same values. It holds no
decision and no file format: `telemetry.experts` reads and writes those.

Symbols used in the docstrings of `solver.experts`: MoE layers l < L, logical experts e < E, GPUs g < G, physical slots
s < S (slots are ordered by GPU: GPU 0 owns the first), r[l,e] slots that hold e, x[l,e,g] = (slots of e on g) / r[l,e].
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from solver.domain.errors import InputError

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int32]
"""Physical to logical: the logical expert of every slot, [L, S]."""

Communication = Literal["transition", "dispatch"]
"""transition: tokens stay on the GPU of their last expert (ExFlow, MoETuner). dispatch: they return to their own rank
after every layer (vLLM, SGLang, TensorRT-LLM), so that only loads matter."""


@dataclass(frozen=True, kw_only=True)
class ExpertTopology:
    """GPUs of one expert-parallel group: where they are, how many experts of a layer they hold, how fast they are."""

    gpu_node: tuple[int, ...]
    """By GPU: its node, any integers."""
    slots_per_gpu: tuple[int, ...]
    """By GPU: experts that it holds in each MoE layer."""
    gpu_speed: tuple[float, ...]
    """By GPU: 1.0 is the reference."""

    def __post_init__(self) -> None:
        """Refuse what is no topology."""
        if not self.gpu_node:
            raise InputError("there is no GPU", where="gpu_node", right="name at least one")
        for name in ("slots_per_gpu", "gpu_speed"):
            found = len(getattr(self, name))
            if found != self.gpus:
                raise InputError(f"{found} values for {self.gpus} GPUs", where=name, right="give one per GPU")
        for g, (slots, speed) in enumerate(zip(self.slots_per_gpu, self.gpu_speed, strict=True)):
            if slots < 0:
                raise InputError(
                    f"GPU {g} has {slots} slots", where="slots_per_gpu", right="it must be 0 or more"
                )
            if not 0.0 < speed < float("inf"):
                raise InputError(
                    f"GPU {g} has speed {speed:g}", where="gpu_speed", right="it must be above 0"
                )

    @property
    def gpus(self) -> int:
        """G."""
        return len(self.gpu_node)

    @property
    def slots(self) -> int:
        """S."""
        return sum(self.slots_per_gpu)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(set(self.gpu_node))

    @cached_property
    def slot_gpu(self) -> Slots:
        """GPU of every slot, [S]."""
        return np.repeat(np.arange(self.gpus, dtype=np.int32), self.slots_per_gpu)

    @cached_property
    def node_index(self) -> Slots:
        """Node of every GPU, numbered from 0 in order of appearance, [G]."""
        numbers = {node: index for index, node in enumerate(dict.fromkeys(self.gpu_node))}
        return np.array([numbers[node] for node in self.gpu_node], dtype=np.int32)

    @property
    def is_uniform(self) -> bool:
        """All GPUs have equally many slots and the same speed."""
        return len(set(self.slots_per_gpu)) == 1 and len(set(self.gpu_speed)) == 1


@dataclass(frozen=True, kw_only=True)
class ExpertCosts:
    """What a routed token and a moved copy of it cost."""

    token_expert_s: float
    """Seconds of one routed token on a GPU of speed 1."""
    token_copy_bytes: float
    """Bytes that go to another GPU and come back, per token and expert."""
    intra_node_bytes_per_s: float
    """Per GPU and direction."""
    inter_node_bytes_per_s: float
    """Per GPU and direction."""

    def __post_init__(self) -> None:
        """Refuse times below zero and links without bandwidth."""
        for name in ("token_expert_s", "token_copy_bytes"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise InputError(f"{value:g}", where=name, right="it must be 0 or more")
        for name in ("intra_node_bytes_per_s", "inter_node_bytes_per_s"):
            value = getattr(self, name)
            if not value > 0.0:
                raise InputError(f"{value:g}", where=name, right="it must be above 0")

    @property
    def intra_copy_s(self) -> float:
        """Seconds per token copy within a node (u_in)."""
        return self.token_copy_bytes / self.intra_node_bytes_per_s

    @property
    def inter_copy_s(self) -> float:
        """Seconds per token copy between nodes (u_out)."""
        return self.token_copy_bytes / self.inter_node_bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What moving an expert costs, and for how long the new map will serve."""

    expert_bytes: float
    """Weights of one expert in one layer."""
    bytes_per_s: float
    """Per receiving GPU."""
    windows: float
    """Windows (of the loads' length) that the new map will serve."""
    margin_ratio: float = 0.0
    """A move must pay for so much more than it takes."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("expert_bytes", "windows", "margin_ratio"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise InputError(f"{value:g}", where=name, right="it must be 0 or more")
        if not self.bytes_per_s > 0.0:
            raise InputError(f"{self.bytes_per_s:g}", where="bytes_per_s", right="it must be above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertInstance:
    """One problem of expert placement. Arrays are not to be written to."""

    name: str
    load: Floats
    """Routed tokens per window, [L, E]."""
    top_k: int
    transitions: Floats | None
    """Pairs (expert e of layer l, expert f of layer l + 1) over all tokens, k·k per token, [L - 1, E, E]."""
    topology: ExpertTopology
    costs: ExpertCosts
    migration: Migration | None = None
    token_sample: npt.NDArray[np.int32] | None = None
    """Expert ids, [tokens, L, k]."""
    load_windows: Floats | None = None
    """Load per window of a longer recording, [W, L, E]."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit, counts that are none, and more experts than slots."""
        if self.load.ndim != 2 or not self.load.size:
            raise InputError(
                f"shape {list(self.load.shape)}",
                where="load",
                right="give [layers][experts], at least one of each",
            )
        self._refuse_bad_counts("load", self.load)
        if self.top_k < 1 or self.top_k > self.experts:
            raise InputError(
                f"{self.top_k} of {self.experts} experts", where="top_k", right="it must be 1 to experts"
            )
        if self.transitions is not None:
            right = (self.layers - 1, self.experts, self.experts)
            if self.transitions.shape != right:
                raise InputError(
                    f"shape {list(self.transitions.shape)}", where="trans", right=f"it must be {list(right)}"
                )
            self._refuse_bad_counts("trans", self.transitions)
        if self.topology.slots < self.experts:
            raise InputError(
                f"{self.experts} experts do not fit into {self.topology.slots} slots",
                where="slots_per_gpu",
                right="give more GPUs, or more slots per GPU",
            )
        if self.load_windows is not None:
            if self.load_windows.shape[1:] != self.load.shape:
                raise InputError(
                    f"shape {list(self.load_windows.shape)}",
                    where="load_windows",
                    right=f"it must be [windows, {self.layers}, {self.experts}]",
                )
            for window in self.load_windows:
                self._refuse_bad_counts("load_windows", window)
        if self.token_sample is not None:
            sample = self.token_sample
            if sample.ndim != 3 or sample.shape[1:] != (self.layers, self.top_k):
                raise InputError(
                    f"shape {list(sample.shape)}",
                    where="token_sample",
                    right=f"it must be [tokens, {self.layers}, {self.top_k}]",
                )
            if sample.size and not (int(sample.min()) >= 0 and int(sample.max()) < self.experts):
                layer = int(np.argwhere((sample < 0) | (sample >= self.experts))[0][1])
                raise InputError(
                    f"layer {layer} names an expert outside 0 to {self.experts - 1}", where="token_sample"
                )

    def _refuse_bad_counts(self, name: str, counts: Floats) -> None:
        wrong = ~np.isfinite(counts) | (counts < 0)
        if wrong.any():
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            what = ", ".join(f"expert {index}" for index in place[1:])
            raise InputError(
                f"layer {place[0]}, {what}: {counts[place]:g}",
                where=name,
                right="counts must be finite and not negative",
            )

    @property
    def layers(self) -> int:
        """L, MoE layers only."""
        return int(self.load.shape[0])

    @property
    def experts(self) -> int:
        """E, logical experts of a layer."""
        return int(self.load.shape[1])

    @property
    def slots(self) -> int:
        """S, physical slots of a layer."""
        return self.topology.slots


def check_map(instance: ExpertInstance, physical_to_logical: npt.NDArray[np.int_] | Slots) -> Slots:
    """Return a map as an array that fits the instance.

    Raises
    ------
    InputError
        With the layer, and the slot or expert: wrong shape, an id outside 0..E-1, an expert without a slot.
    """
    found = np.asarray(physical_to_logical)
    right = (instance.layers, instance.slots)
    if found.shape != right:
        raise InputError(
            f"shape {list(found.shape)}",
            where="physical_to_logical_map",
            right=f"it must be [{right[0]} layers][{right[1]} slots]",
        )
    for layer, row in enumerate(found):
        wrong = np.flatnonzero((row < 0) | (row >= instance.experts))
        if wrong.size:
            raise InputError(
                f"layer {layer}, slot {int(wrong[0])}: expert {int(row[wrong[0]])}",
                where="physical_to_logical_map",
                right=f"ids are 0 to {instance.experts - 1}",
            )
        absent = np.setdiff1d(np.arange(instance.experts), row)
        if absent.size:
            raise InputError(
                f"layer {layer}: expert {int(absent[0])} has no slot",
                where="physical_to_logical_map",
                right="every expert needs one",
            )
    return np.ascontiguousarray(found, dtype=np.int32)


class ExpertPlanStatus(StrEnum):
    """How far a solver came."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"


@dataclass(frozen=True, kw_only=True)
class ExpertScore:
    """What a map costs per window, and how it spreads."""

    compute_s: float
    """Sum over layers of the slowest GPU's time."""
    transition_all_to_all_s: float | None
    """Sum over layer steps of the busiest port; None where transitions are not known."""
    dispatch_all_to_all_s: float
    balance_max_over_mean: float
    """Mean over layers of max(load / speed) over (all load / all speed)."""
    balance_worst: float
    """The same of the worst layer."""
    cross_gpu_ratio: float | None
    """Share of token copies that change GPU between layers (transition); None where transitions are not known."""
    cross_node_ratio: float | None
    nodes_per_token: float | None
    """Distinct nodes that a sampled token needs in a layer (first replica); None without a token sample."""
    gpus_per_token: float | None
    duplicates: int
    """Slots that hold an expert which their GPU holds already."""

    @property
    def transition_s(self) -> float | None:
        """J."""
        all_to_all_s = self.transition_all_to_all_s
        return None if all_to_all_s is None else self.compute_s + all_to_all_s

    @property
    def dispatch_s(self) -> float:
        """J_disp."""
        return self.compute_s + self.dispatch_all_to_all_s

    def objective_s(self, communication: Communication) -> float:
        """J under a way of communication.

        Raises
        ------
        InputError
            If transitions are asked for and not known.
        """
        if communication == "dispatch":
            return self.dispatch_s
        if self.transition_s is None:
            raise InputError(
                "transitions between layers are not known",
                where="trans",
                right="record them, or use --comm dispatch",
            )
        return self.transition_s


@dataclass(frozen=True, kw_only=True)
class Move:
    """What going from one map to another takes and brings. None: the instance states no migration costs."""

    moved_ratio: float
    """Share of holdings that must be fetched."""
    bytes_in: tuple[float, ...] | None
    """By GPU."""
    move_s: float | None
    gain_s: float | None
    """Saved over the windows that the new map serves."""
    net_gain_s: float | None
    """Gain less move time and its margin; the move is worth it only above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramAnswer:
    """One program of a paper: what was reached and what is proved, in the program's own unit."""

    name: str
    unit: str
    objective: float
    lower_bound: float
    """No answer to the program is below."""

    @property
    def gap_ratio(self) -> float:
        """How far from the bound, relative to the objective; 0 is proved optimal."""
        return max(0.0, (self.objective - self.lower_bound) / max(abs(self.objective), 1e-15))


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertPlan:
    """The answer: a map, what it costs, and how good it can be at best."""

    instance_name: str
    status: ExpertPlanStatus
    method: str
    communication: Communication
    physical_to_logical: Slots
    score: ExpertScore
    lower_bound_s: float
    """No map without avoidable duplicates costs less in the chosen communication."""
    lower_bound_by_layer_s: tuple[tuple[float, float], ...]
    """Compute and all-to-all, layer by layer."""
    move: Move | None = None
    """From the map in force; None where there is none."""
    refused: bool = False
    """A better map was found, but moving to it does not pay: the map in force stays."""
    proposed: Move | None = None
    """What was refused."""
    programs: tuple[ProgramAnswer, ...] = ()
    """A paper's own programs, where its method was asked for."""
    cut_short: bool = False
    """The time limit ended the search."""

    @property
    def objective_s(self) -> float:
        """J in the chosen communication."""
        return self.score.objective_s(self.communication)

    @property
    def gap_ratio(self) -> float:
        """How far from the bound."""
        return max(0.0, (self.objective_s - self.lower_bound_s) / max(abs(self.objective_s), 1e-15))
