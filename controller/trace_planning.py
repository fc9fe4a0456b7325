"""From a recorded trace to a plan: reads trace and catalogues, then lets the pure planner decide.

It exists so that ``ballast plan gpus --trace`` and ``ballast demo`` ask the same question in the same way. It holds
no decision: which variants exist, what they sustain and which are bought is decided in ``solver``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from controller.forecasting import ForeseenBuckets, OwnForecast, check_lasts, foreseen_buckets, read_history
from controller.planning import LEAST_LIMIT_S, verify, worker_processes
from solver.domain.demand import Demand, RateBasis, demand_of
from solver.domain.errors import InputError
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, GpuOffer, RequestBucket
from solver.domain.hardware import GpuType, parse_precision
from solver.domain.llm import ModelShape
from solver.domain.slo import Slo
from solver.domain.trace_summary import TraceSummary, summarise
from solver.forecast.work import mix_weights
from solver.gpu_mix.from_demand import (
    KnownCapacities,
    LeftOut,
    RoutedLoad,
    build_gpu_mix_instance,
    candidate_variants,
    offer_of,
    routed_loads,
)
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.gpu_mix.sound import SoundPlan, plan_within_slo
from solver.performance.book import PerformanceBook
from solver.performance.capacity import MatrixRule
from telemetry.catalogue.read import by_kind, find_gpu, find_model, read_gpus, read_models
from telemetry.catalogue.read_profiles import read_profiles
from telemetry.sources.traces.read import open_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuestion:
    """What to plan: models, GPU types, SLO, rate. Names are as users write them; aliases are fine.

    Every model is planned for the whole traffic of the trace.
    """

    models: tuple[str, ...]
    slo: Slo
    gpu_types: tuple[str, ...] = ()
    """Empty: every type of the catalogue that has a price and known watts."""
    precisions: tuple[str, ...] = ()
    """Empty: each model's own."""
    largest_bucket_count: int = 30
    rate: RateBasis = "peak"
    window_s: float = 300.0
    rate_scale: float = 1.0
    headroom_ratio: float = 0.1
    catalogue_files: tuple[Path, ...] = ()
    own_forecast: OwnForecast | None = None
    """Plan for what the trace's own windows foretell, instead of ``rate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogues:
    """What is known of GPUs and models, and the performance models made of it."""

    gpus: Mapping[str, GpuType]
    models: Mapping[str, ModelShape]
    book: PerformanceBook
    capacities: KnownCapacities = field(default_factory=dict, repr=False, compare=False)
    """What the book's models sustain on mixtures that came up before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltDemand:
    """The problem of a question, once with each rule for throughputs, and the variants that were left out."""

    starts: tuple[GpuMixInstance, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def instance(self) -> GpuMixInstance:
        """The first of them."""
        return self.starts[0]

    def changed(self, change: Callable[[GpuMixInstance], GpuMixInstance]) -> "BuiltDemand":
        """Change all of them alike."""
        return replace(self, starts=tuple(change(start) for start in self.starts))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandPlan:
    """A settled plan, and the variants that could not be offered with the reason why."""

    settled: SoundPlan
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlan:
    """The question, what was read, and the settled plan."""

    question: TraceQuestion
    trace_name: str
    trace_sha256: str
    dropped_rows: Mapping[str, int]
    summary: TraceSummary
    demand: Demand
    settled: SoundPlan
    left_out: tuple[LeftOut, ...]
    foreseen: Mapping[str, ForeseenBuckets]
    """By model; empty where no forecast of the trace's own was asked for."""
    solve_s: float

    @property
    def plan(self) -> GpuMixPlan:
        """The plan itself."""
        return self.settled.plan


def read_catalogues(files: Sequence[Path] = ()) -> Catalogues:
    """Read the shipped catalogues, with the user's files on top."""
    gpu_files, model_files = by_kind(files)
    gpus, models = read_gpus(gpu_files), read_models(model_files)
    tables = read_profiles(gpus, models)
    return Catalogues(gpus=gpus, models=models, book=PerformanceBook(gpus=gpus, models=models, tables=tables))


def offers_of(catalogues: Catalogues, names: Sequence[str]) -> tuple[GpuOffer, ...]:
    """Offer the named GPU types, or all with a price."""
    if names:
        found = [find_gpu(catalogues.gpus, name) for name in names]
    else:
        found = [gpu for gpu in catalogues.gpus.values() if gpu.price_usd_per_h is not None]
    return tuple(offer_of(gpu) for gpu in dict.fromkeys(found))


def summarise_trace(
    path: str | Path,
    *,
    window_s: float,
    more_windows_s: Sequence[float] = (),
    trace_format: str | None = None,
    seed: int = 0,
) -> tuple[TraceSummary, str, str, dict[str, int]]:
    """Read a trace once in bounded memory; returns summary, name, sha256 and what was dropped why."""
    with open_trace(path, format=trace_format, seed=seed) as stream:
        summary = summarise(stream, windows_s=tuple(dict.fromkeys((window_s, *more_windows_s))))
        return summary, stream.name, stream.sha256, dict(stream.dropped)


def scaled_buckets(demand: Demand, factor: float) -> tuple[RequestBucket, ...]:
    """Multiply all rates."""
    return tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)


def build_instance(
    buckets: Sequence[RequestBucket] | Mapping[str, Sequence[RequestBucket]],
    question: TraceQuestion,
    catalogues: Catalogues,
    *,
    name: str,
    rules: Sequence[MatrixRule] = tuple(MatrixRule),
) -> BuiltDemand:
    """Build the problem of a question; the slow part of planning, and the same for every rate (`at_rate`).

    ``buckets`` are those of all models, or by name of each.
    """
    if question.slo.relative:
        raise InputError(
            f"the SLO {question.slo} is relative, and a trace names no reference instance",
            right="limits in seconds, as ttft_p99=1.0,tbt_p99=0.05",
        )
    for precision in question.precisions:
        parse_precision(precision)  # one that nobody knows is a slip of the pen, not a variant to leave out
    shapes = [find_model(catalogues.models, model) for model in question.models]
    if len({shape.name for shape in shapes}) < len(shapes):
        raise InputError("a model is named twice", right="each model once")
    offers = offers_of(catalogues, question.gpu_types)
    variants = {
        shape.name: candidate_variants(
            offers, precisions=question.precisions or (str(shape.default_precision),)
        )
        for shape in shapes
    }
    built = [
        build_gpu_mix_instance(
            name=name,
            demands={
                shape.name: buckets[shape.name] if isinstance(buckets, Mapping) else buckets
                for shape in shapes
            },
            offers=offers,
            variants=variants,
            performance=catalogues.book.performance,
            slo=question.slo,
            headroom_ratio=question.headroom_ratio,
            rule=rule,
        )
        for rule in rules
    ]
    return BuiltDemand(starts=tuple(one.instance for one in built), left_out=built[0].left_out)


def at_rate(instance: GpuMixInstance, factor: float) -> GpuMixInstance:
    """Multiply all rates of an instance that `build_instance` made.

    Its throughputs stay: they depend on the sizes and at most on the proportions of the rates (`MatrixRule`).
    """
    models = tuple(
        replace(
            model,
            buckets=tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in model.buckets),
        )
        for model in instance.models
    )
    return replace(instance, models=models)


def settle_demand(
    built: BuiltDemand,
    question: TraceQuestion,
    catalogues: Catalogues,
    *,
    options: SolveOptions,
    workers: int | None = None,
) -> SoundPlan:
    """Plan a question so that the mixtures it routes fit."""
    deadline_s = time.monotonic() + options.time_limit_s

    def judge(instance: GpuMixInstance, plan: GpuMixPlan) -> tuple[RoutedLoad, ...]:
        return routed_loads(
            instance,
            plan,
            performance=catalogues.book.performance,
            slo=question.slo,
            known=catalogues.capacities,
        )

    with worker_processes(len(built.instance.models), workers) as executor:

        def solve(instance: GpuMixInstance) -> GpuMixPlan:
            left_s = max(LEAST_LIMIT_S, deadline_s - time.monotonic())
            left = replace(options, time_limit_s=left_s)
            plan = solve_gpu_mix(instance, options=left, clock=time.monotonic, executor=executor)
            verify(instance, plan)
            return plan

        return plan_within_slo(built.starts, solve=solve, judge=judge)


def left_out_of(built: BuiltDemand, settled: SoundPlan) -> tuple[LeftOut, ...]:
    """List what was left out of a settled problem: of the problem as built, and while looking for a sound plan."""
    dropped = [
        LeftOut(
            model=model.name,
            variant=variant,
            reason="no mixture with it was found that holds the SLO and costs less",
        )
        for model, kept in zip(built.instance.models, settled.instance.models, strict=True)
        for variant in model.variants
        if variant not in kept.variants
    ]
    return (*built.left_out, *dropped)


def plan_demand(
    demand: Demand,
    question: TraceQuestion,
    catalogues: Catalogues,
    *,
    name: str,
    options: SolveOptions,
    workers: int | None = None,
    foreseen: Mapping[str, ForeseenBuckets] | None = None,
) -> DemandPlan:
    """Plan one demand for all models of a question, or what is foreseen of each."""
    buckets: Sequence[RequestBucket] | Mapping[str, Sequence[RequestBucket]]
    if foreseen:
        buckets = {model: one.buckets for model, one in foreseen.items()}
    else:
        buckets = scaled_buckets(demand, question.rate_scale)
    built = build_instance(buckets, question, catalogues, name=name)
    settled = settle_demand(built, question, catalogues, options=options, workers=workers)
    return DemandPlan(settled=settled, left_out=left_out_of(built, settled))


def plan_trace(
    path: str | Path,
    question: TraceQuestion,
    *,
    options: SolveOptions,
    workers: int | None = None,
    trace_format: str | None = None,
) -> TracePlan:
    """Read a trace and plan for it."""
    began_s = time.monotonic()
    catalogues = read_catalogues(question.catalogue_files)
    summary, name, sha256, dropped = summarise_trace(
        path, window_s=question.window_s, trace_format=trace_format, seed=options.seed
    )
    if question.own_forecast is not None:
        check_lasts(summary, path, window_s=question.window_s)
    demand = demand_of(
        summary,
        largest_bucket_count=question.largest_bucket_count,
        rate=question.rate,
        window_s=question.window_s,
    )
    foreseen: dict[str, ForeseenBuckets] = {}
    if question.own_forecast is not None:
        history = read_history(
            path, demand.buckets, window_s=question.window_s, trace_format=trace_format, seed=options.seed
        )
        typical = build_instance(
            demand.buckets, question, catalogues, name=name, rules=tuple(MatrixRule)[:1]
        ).instance
        foreseen = foreseen_buckets(
            history,
            demand.buckets,
            {model.name: mix_weights(typical, m) for m, model in enumerate(typical.models)},
            question.own_forecast,
            rate_scale=question.rate_scale,
        )
    planned = plan_demand(
        demand,
        question,
        catalogues,
        name=Path(name).name,
        options=options,
        workers=workers,
        foreseen=foreseen,
    )
    return TracePlan(
        question=question,
        trace_name=name,
        trace_sha256=sha256,
        dropped_rows=dropped,
        summary=summary,
        demand=demand,
        settled=planned.settled,
        left_out=planned.left_out,
        foreseen=foreseen,
        solve_s=time.monotonic() - began_s,
    )
