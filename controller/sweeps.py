"""Runs sweeps: points in worker processes, results kept line by line, so that a sweep can be resumed.

It exists so that a grid of thousands of runs is one command. Results lie in the folder: ``runs.jsonl`` (one line a run,
appended by the parent alone and flushed) and at the end ``table.csv`` (in the order of the grid) and ``pareto.json``.
The table depends on the questions only: not on the number of processes, not on interruptions. A shard of a sweep
(``k/n``) writes ``runs-k.jsonl``; `merge` makes the table of all of them.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from controller.cluster_fleet import ClusterCatalogues, catalogues_for
from controller.processes import worker_pool
from controller.simulation import TraceInUse, read_requests, simulate_trace
from simulator.metrics import ClusterFigures, Distribution
from simulator.scenario import Scenario
from simulator.scenario_file import ScenarioDocument, read_scenario_document, scenario_of
from simulator.sweep import TABLE_FIGURES, SweepPoint, changed, front
from simulator.sweep_file import SweepSpec
from solver.domain.errors import InputError, Place
from telemetry.sources.traces.write import whole_file

RUNS = "runs.jsonl"
HEADER = "sweep-runs/1"
POINTS_PER_TASK = 4
ATTEMPTS = 2
"""How often points are tried whose process was killed."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """All rows of a sweep, in the order of the grid."""

    rows: tuple[Row, ...]
    front: tuple[int, ...]
    """Rows that meet the SLO and that nothing beats in cost, power and instances."""
    failed: int
    """Rows whose scenario was wrong."""
    ran: int
    """Runs of this call; the rest was there."""


# -- one run, in any process ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bench:
    """What a process keeps between runs: the base scenario, catalogues, traces."""

    document: ScenarioDocument
    catalogues: dict[object, ClusterCatalogues] = field(default_factory=dict)
    traces: dict[object, TraceInUse] = field(default_factory=dict)

    def row(self, point: SweepPoint) -> Row:
        """Run one point; wrong input becomes a row that says so."""
        began_s = time.monotonic()
        row: Row = {"key": point.key, "changes": dict(point.changes), "seed": point.seed, "error": None}
        try:
            scenario = scenario_of(
                replace(self.document, values=changed(self.document.values, point.changes))
            )
            row |= self._figures(scenario, point.seed)
        except InputError as error:
            row["error"] = str(error)
        row["wall_s"] = round(time.monotonic() - began_s, 6)
        return row

    def _figures(self, scenario: Scenario, seed: int) -> Row:
        step = scenario.step_model
        catalogues = self.catalogues.get((step.table, step.fit))
        if catalogues is None:
            catalogues = self.catalogues[step.table, step.fit] = catalogues_for(scenario)
        trace = self._trace(scenario, catalogues, seed)
        run = simulate_trace(scenario, catalogues, trace, seed=seed)
        figures = run.figures
        prices = [
            None if pool.price_usd_per_h is None else pool.price_usd_per_h * pool.count for pool in run.pools
        ]
        known = [price for price in prices if price is not None]
        cost_usd_per_h = sum(known) if len(known) == len(prices) else None
        if run.planned is not None and figures.cost_usd is not None:  # what ran, not all that ever ran
            cost_usd_per_h = figures.cost_usd * 3600.0 / max(figures.horizon_s, 1e-9)
        return {
            **_figures_of(figures),
            "instances": sum(pool.count for pool in run.pools),
            "cost_usd_per_h": cost_usd_per_h,
            "trace_sha256": trace.sha256,
            "warm_up_s": trace.warm_up_s,
            "step_model": run.step_model,
        }

    def _trace(self, scenario: Scenario, catalogues: ClusterCatalogues, seed: int) -> TraceInUse:
        """Read a trace once, and run its clock at the point's own speed."""
        choice = scenario.trace
        key = (
            choice.file,
            choice.warm_up_s,
            choice.duration_s,
            tuple(model.model for model in scenario.models),
            tuple(sorted(scenario.priorities.items())),
            scenario.scheduler.order,
            scenario.links.prefix_cache_blocks > 0,
            seed,
        )
        if key not in self.traces:
            plain = replace(scenario, trace=replace(choice, scale=1.0))
            self.traces[key] = read_requests(plain, catalogues, seed=seed)
        trace = self.traces[key]
        return trace if choice.scale == 1.0 else trace.faster(choice.scale)


@cache
def _bench(base: str) -> _Bench:
    """Return this process's bench for a base scenario."""
    return _Bench(document=read_scenario_document(base))


def _run_points(base: str, points: Sequence[SweepPoint]) -> list[Row]:
    return [_bench(base).row(point) for point in points]


def _figures_of(figures: ClusterFigures) -> Row:
    def of(values: Distribution | None, name: str) -> float | None:
        return None if values is None else float(getattr(values, name))

    row: Row = {"slo_met": figures.slo.met, "attainment_ratio": figures.slo.attainment_ratio}
    for metric in ("ttft", "tbt", "e2e"):
        for name in ("p50", "p99"):
            row[f"{metric}_{name}_s"] = of(getattr(figures, f"{metric}_s"), name)
    requests = figures.requests
    return {
        **row,
        "requests_per_s": figures.requests_per_s,
        "completed": requests.completed,
        "rejected": requests.rejected,
        "incomplete": requests.incomplete,
        "saturation": str(figures.saturation),
        "power_mean_w": None if figures.power is None else figures.power.mean_w,
        "cost_usd_per_million_tokens": figures.cost_usd_per_million_tokens,
        "energy_j": figures.energy_j,
    }


# -- the sweep --------------------------------------------------------------------------------------------------------


def run_sweep(
    spec: SweepSpec,
    *,
    workers: int | None = None,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    on_row: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Run what is not there yet, and write the table (not for a shard).

    Parameters
    ----------
    shard
        (k, n): only every n-th point, from the k-th on, into a file of its own.
    on_row
        Told how many rows are there and how many there will be, before the first is made and after each.

    Raises
    ------
    InputError
        If the sweep, its scenario or its folder are wrong, or the folder holds results and ``resume`` is not set.
    """
    document = read_scenario_document(spec.base)
    scenario_of(document)  # a wrong base is one error, not one per point
    points = list(spec.sweep.points())
    for name, _ in spec.sweep.axes:
        try:
            changed(document.values, [(name, 0)])  # so is an axis that leads nowhere
        except InputError as error:
            raise InputError(error.what, where=Place(spec.source, field="axes"), right=error.right) from None
    if shard is not None:
        points = points[shard[0] :: shard[1]]
    spec.out.mkdir(parents=True, exist_ok=True)
    log = spec.out / (RUNS if shard is None else f"runs-{shard[0]}.jsonl")
    digest = _digest(document)
    rows = _kept(log, digest, resume=resume)
    todo = [point for point in points if point.key not in rows]
    with log.open("a", encoding="utf-8") as file:
        if file.tell() == 0:
            _append(file, {"schema": HEADER, "base": digest})
        if on_row is not None:
            on_row(len(points) - len(todo), len(points))
        for row in _results(str(spec.base), todo, workers):
            rows[row["key"]] = row
            _append(file, row)
            if on_row is not None:
                on_row(sum(point.key in rows for point in points), len(points))
    ordered = [rows[point.key] for point in points]
    if shard is None:
        return write_tables(spec, ordered, ran=len(todo))
    return SweepResult(rows=tuple(ordered), front=(), failed=_failed(ordered), ran=len(todo))


def merge(spec: SweepSpec) -> SweepResult:
    """Make the table of the shards that lie in the sweep's folder.

    Raises
    ------
    InputError
        If runs are missing.
    """
    digest = _digest(read_scenario_document(spec.base))
    rows: dict[str, Row] = {}
    for log in sorted(spec.out.glob("runs*.jsonl")):
        rows |= _kept(log, digest, resume=True)
    points = list(spec.sweep.points())
    missing = sum(point.key not in rows for point in points)
    if missing:
        raise InputError(
            f"{missing} of {len(points)} runs are missing",
            where=str(spec.out),
            right="all shards run to their end",
        )
    return write_tables(spec, [rows[point.key] for point in points], ran=0)


def write_tables(spec: SweepSpec, rows: Sequence[Row], *, ran: int) -> SweepResult:
    """Write ``table.csv`` and ``pareto.json``."""
    names = [name for name, _ in spec.sweep.axes]
    best = front(rows)
    with whole_file(spec.out / "table.csv") as write:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*names, "seed", *TABLE_FIGURES, "error"])
        for row in rows:
            cells = [_cell(row["changes"][name]) for name in names]
            figures = [_cell(row.get(name)) for name in TABLE_FIGURES]
            table.writerow([*cells, row["seed"], *figures, row["error"] or ""])
        write(text.getvalue())
    with whole_file(spec.out / "pareto.json") as write:
        kept = [_untimed(rows[k]) for k in best]
        write(json.dumps({"schema": "sweep-pareto/1", "rows": kept}, indent=1) + "\n")
    return SweepResult(rows=tuple(rows), front=tuple(best), failed=_failed(rows), ran=ran)


def _results(base: str, todo: Sequence[SweepPoint], workers: int | None) -> Iterator[Row]:
    """Yield rows as they are done; points of a killed process are tried once more."""
    count = min(workers if workers is not None else (os.cpu_count() or 1), max(1, len(todo)))
    if count < 2:
        for point in todo:
            yield from _run_points(base, [point])
        return
    left = {point.key: point for point in todo}
    for attempt in range(ATTEMPTS):
        points = list(left.values())
        try:
            with worker_pool(count) as pool:
                futures: list[Future[list[Row]]] = [
                    pool.submit(_run_points, base, points[at : at + POINTS_PER_TASK])
                    for at in range(0, len(points), POINTS_PER_TASK)
                ]
                for future in as_completed(futures):
                    for row in future.result():
                        left.pop(row["key"])
                        yield row
        except BrokenProcessPool:
            if attempt + 1 == ATTEMPTS:
                raise InputError(
                    f"a worker process was killed twice; {len(left)} runs are left",
                    right="fewer --workers or more memory, then --resume",
                ) from None
        if not left:
            return


def _kept(log: Path, digest: str, *, resume: bool) -> dict[str, Row]:
    """Read the rows of an earlier call; a torn last line is cut off."""
    if not log.exists() or log.stat().st_size == 0:
        return {}
    if not resume:
        raise InputError("holds the results of a sweep", where=str(log), right="--resume, or another 'out'")
    rows: dict[str, Row] = {}
    good = 0
    with log.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            row = _parsed(line)
            if number == 0:
                if row.get("schema") != HEADER or row.get("base") != digest:
                    raise InputError(
                        "holds the results of another scenario", where=str(log), right="another 'out'"
                    )
            elif not {"key", "changes", "seed", "error"} <= row.keys():
                break
            else:
                rows[row["key"]] = row
            good += len(line)
    os.truncate(log, good)
    return rows


def _parsed(line: bytes) -> Row:
    """Read a line; empty if it is none of ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _append(file: io.TextIOWrapper, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, allow_nan=False) + "\n")
    file.flush()


def _digest(document: ScenarioDocument) -> str:
    return hashlib.sha256(json.dumps(document.values, sort_keys=True, default=str).encode()).hexdigest()


def _failed(rows: Sequence[Row]) -> int:
    return sum(row["error"] is not None for row in rows)


def _untimed(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "wall_s"}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9g}"
    return value if isinstance(value, str) else json.dumps(value)
