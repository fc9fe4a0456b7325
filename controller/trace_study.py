"""Everything the demo asks about one trace: the plan, every single GPU type, other rates, other SLOs, a wider choice.

It exists so that the command and its report show answers and decide nothing: every figure here comes from the solver,
each question asked through `controller.trace_planning`. The matrix of throughputs is built once per SLO and shared by
all rates. It draws and prints nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from controller.planning import explained
from controller.rehearsal import RehearsedModel, rehearse
from controller.trace_planning import (
    BuiltDemand,
    Catalogues,
    TraceQuestion,
    at_rate,
    build_instance,
    left_out_of,
    read_catalogues,
    scaled_buckets,
    settle_demand,
    summarise_trace,
)
from solver.domain.deadline import Deadline
from solver.domain.demand import Demand, demand_of
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, ModelDemand, PlanStatus
from solver.domain.slo import Slo
from solver.domain.trace import scaled
from solver.domain.trace_summary import TraceSummary
from solver.gpu_mix.from_demand import LeftOut
from solver.gpu_mix.prepare import serve_all
from solver.gpu_mix.relaxation import relaxed_prices
from solver.gpu_mix.solve import SolveOptions, bill
from solver.gpu_mix.sound import SoundPlan
from solver.gpu_mix.variations import on_one_type, only_models
from solver.performance.capacity import MatrixRule
from telemetry.sources.traces.read import read_trace

RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SLO_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on every limit of the SLO: below 1 is stricter."""
ARRIVAL_WINDOW_S = 60.0
LEAST_LIMIT_S = 0.05
STEPS = 5 + len(RATE_FACTORS) + len(SLO_FACTORS)
"""How often `study_trace` reports a step."""
LARGEST_REHEARSED = 5_000_000
"""Requests of a trace up to which the plan is simulated with it."""

Step = Callable[[str], None]
"""Told before each piece of work what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleType:
    """What one GPU type alone would cost, model by model; a model it cannot serve has a reason instead of a cost."""

    gpu_type: str
    cost_usd_per_h: Mapping[str, float]
    reasons: Mapping[str, str]

    @property
    def together_usd_per_h(self) -> float | None:
        """All models on this one type; None if it cannot serve them all."""
        return None if self.reasons else sum(self.cost_usd_per_h.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One question of a sweep and its answers."""

    factor: float
    slo: Slo
    rate_rps: float
    """Of each model."""
    settled: SoundPlan
    left_out: tuple[LeftOut, ...]
    singles: tuple[SingleType, ...]

    @property
    def plan(self) -> GpuMixPlan:
        """The mix."""
        return self.settled.plan

    @property
    def cost_usd_per_h(self) -> float | None:
        """Cost of the mix; None if there is no plan."""
        return self.plan.objective

    @property
    def sound_usd_per_h(self) -> float | None:
        """Cost of the mix if the mixtures it routes hold the SLO with their headroom, else None.

        Savings count from this; single types that are a little overfull keep the benefit of the doubt.
        """
        return self.cost_usd_per_h if self.settled.within_slo else None

    @property
    def best_single(self) -> SingleType | None:
        """The cheapest type that serves every model alone."""
        able = [single for single in self.singles if single.together_usd_per_h is not None]
        return min(able, key=lambda single: (single.together_usd_per_h or 0.0, single.gpu_type), default=None)

    def best_single_of(self, model: str) -> SingleType | None:
        """Return the cheapest type for one model alone; None if no type can serve it."""
        able = [single for single in self.singles if model in single.cost_usd_per_h]
        return min(able, key=lambda single: (single.cost_usd_per_h[model], single.gpu_type), default=None)

    @property
    def own_singles_usd_per_h(self) -> float | None:
        """Each model on the single type that is best for it; None if some model has none."""
        best = [self.best_single_of(model.name) for model in self.settled.instance.models]
        costs = [
            single.cost_usd_per_h[model.name]
            for single, model in zip(best, self.settled.instance.models, strict=True)
            if single is not None
        ]
        return sum(costs) if len(costs) == len(best) else None

    def model_cost_usd_per_h(self, model: str) -> float:
        """Part of the cost that one model's replicas make."""
        instance = self.settled.instance
        position = [demand.name for demand in instance.models].index(model)
        counts = [self.plan.replicas[position]]
        return bill(only_models(instance, {model}), counts).running_cost_usd_per_h


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStudy:
    """What was asked, what was read, and all answers."""

    question: TraceQuestion
    trace_name: str
    trace_sha256: str
    dropped_rows: Mapping[str, int]
    summary: TraceSummary
    demand: Demand
    catalogues: Catalogues
    base: Point
    fractional_usd_per_h: float | None
    """Cost of the base problem if GPUs could be bought in fractions (linear relaxation)."""
    rates: tuple[Point, ...]
    slos: tuple[Point, ...]
    rehearsal: tuple[RehearsedModel, ...]
    """The base plan, simulated; empty without a plan, or for a trace of more than `LARGEST_REHEARSED` requests."""
    whole_catalogue: Point
    """The base question with every priced GPU type on offer; no single types."""
    options: SolveOptions
    study_s: float

    @property
    def instance(self) -> GpuMixInstance:
        """The base problem, as settled."""
        return self.base.settled.instance

    @property
    def plan(self) -> GpuMixPlan:
        """The base plan, explained."""
        return self.base.plan


def _rehearsed(
    path: str | Path,
    base: Point,
    question: TraceQuestion,
    catalogues: Catalogues,
    *,
    requests: int,
    seed: int,
) -> tuple[RehearsedModel, ...]:
    """Simulate the base plan on the trace."""
    if base.plan.objective is None or requests > LARGEST_REHEARSED:
        return ()
    read = read_trace(path).requests
    from_zero = replace(
        read, arrival_s=read.arrival_s - read.arrival_s[0]
    )  # times since 1970 stretch too far
    recorded = scaled(from_zero, rate_ratio=question.rate_scale)
    return rehearse(
        base.settled.instance, base.plan, book=catalogues.book, slo=question.slo, recorded=recorded, seed=seed
    )


def study_trace(
    path: str | Path,
    question: TraceQuestion,
    *,
    options: SolveOptions,
    workers: int | None = None,
    step: Step = lambda _note: None,
) -> TraceStudy:
    """Read a trace and ask everything about it; the time limit is that of each plan.

    Raises
    ------
    InputError
        For a trace, model, GPU type or catalogue that cannot be read, in one line.
    """
    began_s = time.monotonic()
    step("reading the trace")
    catalogues = read_catalogues(question.catalogue_files)
    summary, name, sha256, dropped = summarise_trace(
        path, window_s=question.window_s, more_windows_s=(ARRIVAL_WINDOW_S,), seed=options.seed
    )
    demand = demand_of(
        summary,
        largest_bucket_count=question.largest_bucket_count,
        rate=question.rate,
        window_s=question.window_s,
    )
    asker = _Asker(
        demand=demand,
        question=question,
        catalogues=catalogues,
        name=Path(name).name,
        options=options,
        workers=workers,
    )
    step("planning")
    base = asker.point(asker.built(question), question)
    if base.plan.objective is not None:
        plan = explained(base.settled.instance, base.plan, options=options, spent_s=0.0)
        base = replace(base, settled=replace(base.settled, plan=plan))
    step("every GPU type of the catalogue")
    wide = replace(question, gpu_types=())
    whole = asker.point(asker.built(wide), wide, singles=False)
    rates = tuple(asker.rates(base, step))
    slos = tuple(asker.slos(base, step))
    step("simulating the plan")
    rehearsal = _rehearsed(path, base, question, catalogues, requests=summary.requests, seed=options.seed)
    step("writing")
    return TraceStudy(
        rehearsal=rehearsal,
        question=question,
        trace_name=name,
        trace_sha256=sha256,
        dropped_rows=dropped,
        summary=summary,
        demand=demand,
        catalogues=catalogues,
        base=base,
        fractional_usd_per_h=_fractional_usd_per_h(base.settled.instance, options),
        rates=rates,
        slos=slos,
        whole_catalogue=whole,
        options=options,
        study_s=time.monotonic() - began_s,
    )


class _Asker:
    """Asks questions about one demand; each plan has the whole time limit."""

    def __init__(
        self,
        *,
        demand: Demand,
        question: TraceQuestion,
        catalogues: Catalogues,
        name: str,
        options: SolveOptions,
        workers: int | None,
    ) -> None:
        self._buckets = scaled_buckets(demand, question.rate_scale)
        self._question = question
        self._catalogues = catalogues
        self._name = name
        self._options = options
        self._workers = workers
        self._matrices: dict[tuple[Slo, tuple[str, ...]], BuiltDemand] = {}

    def built(self, question: TraceQuestion) -> BuiltDemand:
        """Return the problem of a question at the planned rate, built once."""
        key = (question.slo, question.gpu_types)
        if key not in self._matrices:
            # Both rules for the question itself; all types of the catalogue are a side look, half as slow with one.
            rules = tuple(MatrixRule) if question.gpu_types else (MatrixRule.STANDALONE,)
            self._matrices[key] = build_instance(
                self._buckets, question, self._catalogues, name=self._name, rules=rules
            )
        return self._matrices[key]

    def point(
        self, built: BuiltDemand, question: TraceQuestion, *, factor: float = 1.0, singles: bool = True
    ) -> Point:
        """Plan the mix and, if asked for, each GPU type alone."""
        instance = built.instance
        settled = self._settled(built, question)
        return Point(
            factor=factor,
            slo=question.slo,
            rate_rps=instance.models[0].rate_rps,
            settled=settled,
            left_out=left_out_of(built, settled),
            singles=tuple(self._single(built, question, offer.name) for offer in instance.gpu_types)
            if singles
            else (),
        )

    def rates(self, base: Point, step: Step) -> Iterator[Point]:
        """Plan the base question at other rates, with the same throughputs."""
        built = self.built(self._question)
        for factor in RATE_FACTORS:
            step(f"rate × {factor:g}")
            if factor == 1.0:
                yield base
                continue
            scaled = built.changed(partial(at_rate, factor=factor))
            yield self.point(scaled, self._question, factor=factor)

    def slos(self, base: Point, step: Step) -> Iterator[Point]:
        """Plan the base question with all limits of the SLO scaled."""
        for factor in SLO_FACTORS:
            step(f"SLO × {factor:g}")
            if factor == 1.0:
                yield base
                continue
            question = replace(self._question, slo=scaled_slo(self._question.slo, factor))
            yield self.point(self.built(question), question, factor=factor)

    def _settled(self, built: BuiltDemand, question: TraceQuestion) -> SoundPlan:
        return settle_demand(built, question, self._catalogues, options=self._options, workers=self._workers)

    def _single(self, built: BuiltDemand, question: TraceQuestion, gpu_type: str) -> SingleType:
        """Plan each model on one type alone; models share nothing, so one by one is no different."""
        costs, reasons = {}, {}
        for m, model in enumerate(built.instance.models):
            alone = [on_one_type(replace(s, models=(s.models[m],)), gpu_type) for s in built.starts]
            starts = tuple(start for start in alone if start is not None)
            if not starts:
                reasons[model.name] = _why_left_out(built.left_out, model.name, gpu_type)
                continue
            unserved = min(_unserved(start.models[0]) for start in starts)
            if unserved:
                reasons[model.name] = f"misses the SLO for {unserved} of {len(model.buckets)} request sizes"
                continue
            plan = self._settled(replace(built, starts=starts), question).plan
            if plan.objective is None:
                reasons[model.name] = f"no plan: {plan.status}"
            else:
                costs[model.name] = plan.objective
        return SingleType(gpu_type=gpu_type, cost_usd_per_h=costs, reasons=reasons)


def scaled_slo(slo: Slo, factor: float) -> Slo:
    """Multiply every limit."""
    return Slo(
        targets=tuple(
            replace(
                target,
                limit_s=None if target.limit_s is None else target.limit_s * factor,
                limit_ratio=None if target.limit_ratio is None else target.limit_ratio * factor,
            )
            for target in slo.targets
        )
    )


def _unserved(model: ModelDemand) -> int:
    return sum(
        bucket.rate_rps > 0 and not any(rate > 0 for rate in row)
        for bucket, row in zip(model.buckets, model.throughput_rps, strict=True)
    )


def _why_left_out(left_out: Iterable[LeftOut], model: str, gpu_type: str) -> str:
    reasons = [item.reason for item in left_out if item.model == model and item.variant.gpu_type == gpu_type]
    return "; ".join(dict.fromkeys(reasons)) or "no variant of it on offer"


def _fractional_usd_per_h(instance: GpuMixInstance, options: SolveOptions) -> float | None:
    models = serve_all(instance)
    if any(not model.served_by.any(axis=1).all() for model in models):
        return None
    deadline = Deadline.after(options.time_limit_s, time.monotonic)
    solution, _ = relaxed_prices(instance, models, deadline=deadline, backend=options.backend)
    return float(solution.objective) if solution.found else None


def replicas_in_use(instance: GpuMixInstance, plan: GpuMixPlan) -> Sequence[tuple[str, int, int]]:
    """List (model, index of the variant, replicas) of everything that runs."""
    if plan.status not in (PlanStatus.OPTIMAL, PlanStatus.FEASIBLE):
        return ()
    return [
        (model.name, c, n)
        for model, row in zip(instance.models, plan.replicas, strict=True)
        for c, n in enumerate(row)
        if n > 0
    ]
