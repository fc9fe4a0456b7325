"""A sweep as a value: a scenario, axes to change it along, seeds to repeat it with; its points in order and its table.

It exists so that a grid of runs is the same list for one process, many processes or a cluster, and so that an
interrupted one can go on: every point has a key that depends on nothing but what it asks. It runs nothing and reads no
file (`controller.sweeps` does).
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.search import pareto
from solver.domain.errors import InputError

LARGEST_POINTS = 1_000_000

NAMED_LISTS = ("pools", "models")
"""Lists of a scenario whose members an axis calls by name: ``pools.prompt.count``."""

TABLE_FIGURES = (
    "slo_met",
    "attainment_ratio",
    "ttft_p50_s",
    "ttft_p99_s",
    "tbt_p50_s",
    "tbt_p99_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "requests_per_s",
    "completed",
    "rejected",
    "incomplete",
    "saturation",
    "instances",
    "power_mean_w",
    "cost_usd_per_h",
    "cost_usd_per_million_tokens",
    "energy_j",
    "step_model",
    "warm_up_s",
    "trace_sha256",
)
"""Columns of the table after the axes and the seed."""

PARETO_FIGURES = ("cost_usd_per_h", "power_mean_w", "instances")
"""What a fleet should have little of, among the runs that meet the SLO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One run of a sweep."""

    index: int
    """In the order of the table."""
    changes: tuple[tuple[str, Any], ...]
    """Axis and value, in the order of the axes."""
    seed: int

    @property
    def key(self) -> str:
        """What tells this point from all others, whatever the grid around it."""
        text = json.dumps([sorted(self.changes), self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All points: the product of the axes, each repeated with every seed, the last axis changing fastest."""

    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name, values in self.axes:
            if not values:
                raise InputError(f"axis {name} has no values", right="a list of at least one value")
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                raise InputError(f"axis {name} has a value twice", right="each value once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("repeat_seeds must name at least one seed, each once", right="e.g. [1, 2, 3]")
        if len(self) > LARGEST_POINTS:
            raise InputError(f"{len(self)} runs", right=f"at most {LARGEST_POINTS}")

    def __len__(self) -> int:
        count = len(self.seeds)
        for _, values in self.axes:
            count *= len(values)
        return count

    def points(self) -> Iterator[SweepPoint]:
        """Yield the points in the order of the table."""
        names = [name for name, _ in self.axes]
        index = 0
        for values in itertools.product(*(values for _, values in self.axes)):
            for seed in self.seeds:
                yield SweepPoint(index=index, changes=tuple(zip(names, values, strict=True)), seed=seed)
                index += 1


def changed(scenario: Mapping[str, Any], changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a scenario (as its file says it) with fields set by path: ``trace.scale``, ``pools.prompt.count``.

    A path may name a field that the file leaves out, but only below a mapping, a pool or a model that exists.

    Raises
    ------
    InputError
        If a path leads nowhere.
    """
    result: dict[str, Any] = copy.deepcopy(dict(scenario))
    for path, value in changes:
        parts = path.split(".")
        place: Any = result
        for depth, part in enumerate(parts[:-1]):
            place = _below(place, part, parts, depth)
        if not isinstance(place, dict):
            raise InputError(f"axis {path} leads to no field", right="e.g. trace.scale or pools.NAME.count")
        place[parts[-1]] = copy.deepcopy(value)
    return result


def _below(place: Any, part: str, parts: Sequence[str], depth: int) -> Any:
    path = ".".join(parts)
    if isinstance(place, list):
        for member in place:
            if isinstance(member, dict) and member.get("name") == part:
                return member
        names = ", ".join(str(m.get("name")) for m in place if isinstance(m, dict)) or "none"
        raise InputError(
            f"axis {path}: no {parts[depth - 1]} member called {part!r}", right=f"one of {names}"
        )
    if isinstance(place, dict):
        found = place.setdefault(part, {})
        if found is None:
            found = place[part] = {}
        if isinstance(found, dict) or (isinstance(found, list) and part in NAMED_LISTS):
            return found
    raise InputError(f"axis {path} leads through {part!r}, which has no fields", right="e.g. trace.scale")


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the rows (indices) that meet the SLO and that no other such row beats in cost, power and instances.

    Rows repeated with several seeds count as one point, which meets the SLO only if all its repetitions do; its figures
    are the largest. Points under another load (axes of the trace) do not compete. A figure that is not known counts as
    equal for all.
    """
    groups: dict[str, list[int]] = {}
    for k, row in enumerate(rows):
        groups.setdefault(json.dumps(row["changes"], sort_keys=True), []).append(k)
    chosen = [members for members in groups.values() if all(rows[k].get("slo_met") is True for k in members)]
    loads: dict[str, list[list[int]]] = {}
    for members in chosen:
        load = {
            axis: value for axis, value in rows[members[0]]["changes"].items() if axis.startswith("trace.")
        }
        loads.setdefault(json.dumps(load, sort_keys=True), []).append(members)
    kept: list[int] = []
    for rivals in loads.values():
        points = [
            [max(float(rows[k].get(name) or 0.0) for k in members) for name in PARETO_FIGURES]
            for members in rivals
        ]
        kept += [rivals[k][0] for k in pareto(points)]
    return kept
