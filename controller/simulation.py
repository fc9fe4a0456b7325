"""From a scenario to a simulated run: looks names up, reads the trace, runs the engine, judges the record.

It exists so that the command, searches, sweeps and reports all run a scenario in the same way. It holds no rule of the
simulation (`simulator`) and prints nothing.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controller.closed_loop.judge import Attained, attained_of
from controller.closed_loop.lanes import apart
from controller.closed_loop.record import PlannedRun
from controller.closed_loop.run import plan_over_time
from controller.cluster_fleet import (
    ClusterCatalogues,
    PoolInUse,
    ResolvedCluster,
    catalogues_for,
    resolve,
)
from simulator.blis import at_microseconds, in_seconds
from simulator.engine.run import simulate
from simulator.fleet import Fleet, QueueOrder
from simulator.metrics import Alone, ClusterFigures, definitions, figures_of
from simulator.record import RequestStatus, RunRecord
from simulator.scenario import SHIPPED_TRACE, Scenario
from simulator.splitwise.machines import SplitwiseFleet
from simulator.splitwise.run import simulate_splitwise
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket
from solver.domain.rate_windows import RateWindows
from solver.domain.trace import Ints, Labels, Requests, between, concatenate, scaled
from telemetry.catalogue.read import find_model
from telemetry.sources.traces.read import open_trace
from telemetry.sources.traces.shipped import shipped_trace_path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceInUse:
    """The requests of a scenario: cut, scaled, each with its model and its priority."""

    name: str
    sha256: str
    dropped_rows: Mapping[str, int]
    """Rows of the file that were left out, by reason."""
    requests: Requests
    model_of_request: Ints
    """Index into the scenario's models."""
    priority_of_request: Ints | None
    """None: all alike."""
    warm_up_s: float
    """On the clock of the simulation."""

    def faster(self, ratio: float) -> "TraceInUse":
        """Return the same requests arriving ``ratio`` times as fast (common random numbers)."""
        return replace(
            self,
            requests=scaled(self.requests, rate_ratio=ratio),
            warm_up_s=self.warm_up_s / ratio,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedCluster:
    """A finished run of a scenario with everything that outputs tell about it."""

    scenario: Scenario
    pools: tuple[PoolInUse, ...]
    models: tuple[str, ...]
    """As the scenario calls them."""
    requests: Requests
    """As simulated: cut and scaled."""
    model_of_request: Ints
    """Index into ``models``."""
    record: RunRecord
    figures: ClusterFigures
    trace_name: str
    trace_sha256: str
    dropped_rows: Mapping[str, int]
    """Rows of the trace that were left out, by reason."""
    seed: int
    step_model: str
    """Kind of the step model; several joined by commas where pools differ."""
    known_error: str
    definitions: Mapping[str, str]
    """What the figures mean, in words, by figure."""
    tbt_per_output_token: bool
    """True: TBT divides by output tokens (splitwise-compat), else by the gaps between them."""
    wall_s: float
    """Seconds that reading, preparing, compiling and simulating took."""
    engine_s: float
    """Seconds of the engine alone, compiling included."""
    command: str
    """The command that was called, or empty."""
    planned: PlannedRun | None = None
    """What a planner decided meanwhile; None: the scenario has none."""
    attained: Attained | None = None
    """How the planner's SLO was kept; None: the scenario has no planner."""


def simulate_scenario(
    scenario: Scenario,
    *,
    trace_file: str | Path | None = None,
    trace_format: str | None = None,
    catalogue_files: Sequence[Path] = (),
    seed: int = 0,
    stop_when_overloaded: bool = False,
    on_progress: Callable[[int], None] | None = None,
    command: str = "",
) -> SimulatedCluster:
    """Run a scenario.

    Parameters
    ----------
    trace_file
        Wins over the scenario's own trace.
    on_progress
        Told now and then how many requests have arrived.

    Raises
    ------
    InputError
        For everything in the scenario, the catalogues or the trace that makes no sense.
    """
    began_s = time.monotonic()
    catalogues = catalogues_for(scenario, catalogue_files)
    trace = read_requests(scenario, catalogues, trace_file=trace_file, trace_format=trace_format, seed=seed)
    return simulate_trace(
        scenario,
        catalogues,
        trace,
        seed=seed,
        stop_when_overloaded=stop_when_overloaded,
        on_progress=on_progress,
        command=command,
        began_s=began_s,
    )


def simulate_trace(
    scenario: Scenario,
    catalogues: ClusterCatalogues,
    trace: TraceInUse,
    *,
    seed: int = 0,
    history: RateWindows | None = None,
    known_sizes: tuple[RequestBucket, ...] | None = None,
    stop_when_overloaded: bool = False,
    on_progress: Callable[[int], None] | None = None,
    command: str = "",
    began_s: float | None = None,
) -> SimulatedCluster:
    """Run a scenario on requests that were read before.

    Parameters
    ----------
    history, known_sizes
        What a planner knows at the start, instead of the files that it names (`plan_over_time`).
    began_s
        Monotonic time from which the seconds of the run are counted; None: now.

    Raises
    ------
    InputError
        As `simulate_scenario`.
    """
    began_s = time.monotonic() if began_s is None else began_s
    planned = None
    lanes = None
    if scenario.planner is not None:
        planned = plan_over_time(
            scenario,
            catalogues,
            trace.requests,
            trace.model_of_request,
            seed=seed,
            history=history,
            known_sizes=known_sizes,
        )
        scenario, lanes = planned.scenario, planned.lane_of_request
    cluster = resolve(scenario, catalogues, longest_prompt_tokens=int(trace.requests.prompt_tokens.max()))
    engine_began_s = time.monotonic()
    record = run_cluster(
        cluster,
        trace,
        lane_of_request=lanes,
        seed=seed,
        stop_when_overloaded=stop_when_overloaded,
        on_progress=on_progress,
    )
    engine_s = time.monotonic() - engine_began_s
    figures = judge(cluster, trace, record)
    attained = None
    if scenario.planner is not None:
        attained = attained_of(
            record,
            trace.requests,
            scenario.slo,
            alone=_alone(cluster, trace, record),
            warm_up_s=trace.warm_up_s,
            window_s=scenario.planner.judged_window_s,
        )
    return SimulatedCluster(
        scenario=scenario,
        pools=cluster.pools,
        models=cluster.models,
        requests=trace.requests,
        model_of_request=trace.model_of_request,
        record=record,
        figures=figures,
        trace_name=trace.name,
        trace_sha256=trace.sha256,
        dropped_rows=trace.dropped_rows,
        seed=seed,
        step_model=", ".join(dict.fromkeys(pool.step_model for pool in cluster.pools)),
        known_error="; ".join(
            dict.fromkeys(part for pool in cluster.pools for part in pool.known_error.split("; "))
        ),
        definitions=definitions(tbt_per_output_token=cluster.tbt_per_output_token),
        tbt_per_output_token=cluster.tbt_per_output_token,
        wall_s=time.monotonic() - began_s,
        engine_s=engine_s,
        command=command,
        planned=planned,
        attained=attained,
    )


def refuse_planner(scenario: Scenario) -> None:
    """Refuse a scenario whose pools change by themselves, where it is asked what a fixed fleet does.

    Raises
    ------
    InputError
        If it has a planner.
    """
    if scenario.planner is not None:
        raise InputError(
            "a planner changes the pools",
            where=scenario.place("planner"),
            right="planner: null here; ballast simulate cluster runs planners",
        )


def run_cluster(
    cluster: ResolvedCluster,
    trace: TraceInUse,
    *,
    lane_of_request: Ints | None = None,
    seed: int = 0,
    stop_when_overloaded: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> RunRecord:
    """Let the engine of the scenario's step model serve the requests.

    ``lane_of_request`` sends each request to one pool of its model, the router only choosing within that pool.
    """
    if isinstance(cluster.fleet, SplitwiseFleet):
        return simulate_splitwise(cluster.fleet, trace.requests, stop_when_overloaded=stop_when_overloaded)
    fleet, model_of_request = cluster.fleet, trace.model_of_request
    if lane_of_request is not None:  # to the engine each pool serves a model of its own
        fleet, model_of_request = apart(fleet), lane_of_request
    elif any(pool.longest_prompt_tokens is not None for pool in cluster.scenario.pools):
        fleet, model_of_request = _by_length(cluster.scenario, fleet, trace)
    record = simulate(
        fleet,
        at_microseconds(trace.requests) if cluster.whole_us else trace.requests,
        model_of_request=model_of_request,
        priority_of_request=trace.priority_of_request,
        seed=seed,
        stop_when_overloaded=stop_when_overloaded,
        on_progress=on_progress,
    )
    return in_seconds(record) if cluster.whole_us else record


def _by_length(scenario: Scenario, fleet: Fleet, trace: TraceInUse) -> tuple[Fleet, Ints]:
    """Route by prompt length: to the engine, pools of a model with one bound serve a model of their own."""
    bounds = [
        (pool.model, math.inf if pool.longest_prompt_tokens is None else float(pool.longest_prompt_tokens))
        for pool in scenario.pools
    ]
    lanes = sorted(set(bounds))
    lane_of_request = np.zeros(len(trace.requests), dtype=np.int64)
    for m, model in enumerate(model.name for model in scenario.models):
        own = [lane for lane, (name, _) in enumerate(lanes) if name == model]
        limits = np.array([lanes[lane][1] for lane in own])
        mine = trace.model_of_request == m
        # Lanes of a model are sorted by their bounds, and the last has none.
        chosen = np.searchsorted(limits, trace.requests.prompt_tokens[mine], side="left")
        lane_of_request[mine] = np.array(own)[chosen]
    return (
        replace(
            fleet,
            models=tuple(f"{model} up to {bound:g}" for model, bound in lanes),
            pools=tuple(
                replace(pool, model=lanes.index(bound))
                for pool, bound in zip(fleet.pools, bounds, strict=True)
            ),
        ),
        lane_of_request,
    )


def judge(cluster: ResolvedCluster, trace: TraceInUse, record: RunRecord) -> ClusterFigures:
    """Form the figures of a run of the scenario."""
    scenario = cluster.scenario
    return figures_of(
        record,
        trace.requests,
        pools=[pool.name for pool in cluster.pools],
        price_usd_per_h=[pool.price_usd_per_h for pool in cluster.pools],
        watts_known=all(pool.idle_w is not None for pool in cluster.pools),
        slo=scenario.slo,
        alone=_alone(cluster, trace, record),
        warm_up_s=trace.warm_up_s,
        tbt_per_output_token=cluster.tbt_per_output_token,
        budget_w=scenario.power.budget_w,
    )


def _alone(cluster: ResolvedCluster, trace: TraceInUse, record: RunRecord) -> Alone | None:
    """Return the latencies of the requests alone on the reference instance, where the SLO compares with them."""
    if not cluster.scenario.slo.relative or cluster.alone is None:
        return None
    return cluster.alone(_served(trace.requests, record), trace.model_of_request)


def _served(requests: Requests, record: RunRecord) -> Requests:
    """Make rejected requests short: they are infinitely late, and may be too long to be followed to their end."""
    rejected = record.status == RequestStatus.REJECTED
    return replace(
        requests,
        prompt_tokens=np.where(rejected, 1, requests.prompt_tokens),
        output_tokens=np.where(rejected, 1, requests.output_tokens),
        blocks=None,
    )


def read_requests(
    scenario: Scenario,
    catalogues: ClusterCatalogues,
    *,
    trace_file: str | Path | None = None,
    trace_format: str | None = None,
    seed: int = 0,
) -> TraceInUse:
    """Read the trace of a scenario, cut it, run its clock faster, and find each request's model and priority.

    Raises
    ------
    InputError
        If no trace is named, it is not sound, nothing is left of it, or its models or classes are not known.
    """
    choice = scenario.trace
    named = choice.file if trace_file is None else trace_file
    if named is None:
        raise InputError(
            "no trace is named",
            where=scenario.place("trace.file"),
            right=f"a trace file, {SHIPPED_TRACE!r}, or --trace FILE",
        )
    path = shipped_trace_path() if named == SHIPPED_TRACE else Path(named)
    with open_trace(path, format=trace_format, seed=seed) as stream:
        end_s = np.inf if choice.duration_s is None else choice.duration_s
        requests = concatenate(between(chunk, -np.inf, end_s) for chunk in stream)
        name, sha256, dropped = stream.name, stream.sha256, dict(stream.dropped)
    if not len(requests):
        raise InputError(
            f"no request of {name} arrives in the first {choice.duration_s:g} s",
            where=scenario.place("trace.duration_s"),
            right="a longer duration_s",
        )
    if requests.arrival_s[-1] < choice.warm_up_s:
        raise InputError(
            f"the last request of {name} arrives at {requests.arrival_s[-1]:g} s",
            where=scenario.place("trace.warm_up_s"),
            right="a shorter warm-up",
        )
    model_of_request = _models(scenario, catalogues, requests.model, len(requests), name)
    priority_of_request = _priorities(scenario, requests.request_class, name)
    served = Requests(
        arrival_s=requests.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        blocks=requests.blocks if scenario.links.prefix_cache_blocks else None,
    )
    if scenario.links.prefix_cache_blocks and requests.blocks is None:
        raise InputError(
            f"{name} carries no prefix blocks",
            where=scenario.place("kv.prefix_cache_blocks"),
            right="0, or a trace with block hashes (Mooncake)",
        )
    trace = TraceInUse(
        name=name,
        sha256=sha256,
        dropped_rows=dropped,
        requests=served,
        model_of_request=model_of_request,
        priority_of_request=priority_of_request,
        warm_up_s=choice.warm_up_s,
    )
    return trace if choice.scale == 1.0 else trace.faster(choice.scale)


def _models(
    scenario: Scenario,
    catalogues: ClusterCatalogues,
    column: Labels | None,
    total: int,
    trace: str,
) -> Ints:
    """Find the model of each request; a scenario of one model serves all, whatever the trace calls it."""
    models = scenario.models
    if len(models) == 1:
        return np.zeros(total, dtype=np.int64)
    if column is None:
        raise InputError(
            f"{trace} does not say which of the {len(models)} models a request is for",
            where=scenario.place("models"),
            right="a trace with a column 'model', or one model",
        )
    index = {model.name: m for m, model in enumerate(models)}
    by_shape: dict[str, list[int]] = {}
    for m, model in enumerate(models):
        by_shape.setdefault(_catalogue_name(catalogues, model.model), []).append(m)
    table = np.zeros(len(column.names), dtype=np.int64)
    asked = set(np.unique(column.codes).tolist())
    for code, name in enumerate(column.names):
        same = by_shape.get(_catalogue_name(catalogues, name), []) if name not in index else []
        if name in index:
            table[code] = index[name]
        elif len(same) == 1:
            table[code] = same[0]
        elif code in asked:
            raise InputError(
                f"{trace} asks for model {name!r}",
                where=scenario.place("models"),
                right=f"only {', '.join(index)}",
            )
    found: Ints = table[column.codes]
    return found


def _catalogue_name(catalogues: ClusterCatalogues, name: str) -> str:
    """Return a model's own name for any of its aliases; the name itself where none is known."""
    try:
        return find_model(catalogues.models, name).name
    except InputError:
        return name


def _priorities(scenario: Scenario, column: Labels | None, trace: str) -> Ints | None:
    if scenario.scheduler.order is not QueueOrder.PRIORITY:
        return None
    where = scenario.place("scheduler.priorities" if scenario.priorities else "scheduler.order")
    if column is None:
        raise InputError(f"{trace} carries no classes", where=where, right="a trace with a column 'class'")
    levels = []
    for name in column.names:
        level = scenario.priorities.get(name)
        if level is None:
            if scenario.priorities or not name.isdecimal():
                known = ", ".join(scenario.priorities) or "whole numbers"
                raise InputError(f"{trace} has a class {name!r}", where=where, right=f"classes {known}")
            level = int(name)
        levels.append(level)
    found: Ints = np.array(levels, dtype=np.int64)[column.codes]
    return found
