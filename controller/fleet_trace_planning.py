"""From a recorded trace to a prefill/decode fleet that has been simulated: reads, then lets the pure planner decide.

It exists so that ``ballast plan fleet --trace`` answers with a fleet it has tried: the problem is built from demand,
solved, rehearsed (`controller.fleet_rehearsal`), corrected phase by phase and solved again (`solver.phases.settle`).
It holds no decision.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from controller.fleet_planning import LEAST_LIMIT_S, verify
from controller.fleet_rehearsal import (
    RECORDED_REQUESTS,
    FleetStage,
    RehearsedFleetTarget,
    planned_load,
    recorded_load,
)
from controller.forecasting import ForeseenBuckets, OwnForecast, check_lasts, foreseen_buckets, read_history
from controller.time_limit import TimeLimitError
from controller.trace_planning import Catalogues, offers_of, read_catalogues
from simulator.fleet import InstanceKind, RouterKind
from simulator.step_models import instance_kind
from solver.domain.busiest import BusiestStretch
from solver.domain.deadline import Clock, Deadline
from solver.domain.demand import Demand, RateBasis, demand_of
from solver.domain.errors import InputError
from solver.domain.fleet import (
    FleetBudgets,
    FleetConfig,
    FleetGoal,
    FleetInstance,
    FleetPlan,
    Role,
)
from solver.domain.gpu_mix import PlanStatus, RequestBucket
from solver.domain.hardware import parse_precision
from solver.domain.slo import Slo
from solver.domain.trace import Requests
from solver.domain.trace_summary import TraceSummary, summarise
from solver.forecast.work import fleet_weights
from solver.performance.capacity import DEFAULT_ENGINE
from solver.performance.capped import capped
from solver.performance.phase_capacity import PHASE_METRICS, predicted_at
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.phases.from_demand import (
    BuiltFleet,
    LeftOutConfig,
    build_fleet_instance,
    candidate_configs,
    routed_buckets,
)
from solver.phases.nearby import improved_nearby
from solver.phases.settle import Enough, SettledFleet, settle_with_and_without
from solver.phases.solve import FleetOptions, solve_fleet
from solver.phases.tried_front import TriedFront, tried_front
from telemetry.catalogue.read import find_gpu, find_model
from telemetry.sources.traces.read import open_trace

ROUNDS = 8
FRONT_SHARE = 0.4
"""Part of the time limit that is left for a front, where one is asked for."""
FINISH_SHARE = 0.1
"""Part of it that is left for simulating the fleet's targets, and for what binds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetQuestion:
    """What to plan. Names are as users write them; aliases are fine.

    Every model gets the whole traffic of the trace.
    """

    models: tuple[str, ...]
    slo: Slo
    goal: FleetGoal = FleetGoal.COST
    budgets: FleetBudgets = field(default_factory=FleetBudgets)
    gpu_types: tuple[str, ...] = ()
    """Empty: every type of the catalogue that has a price."""
    precision: str | None = None
    """None: each model's own."""
    cap_ratios: tuple[float, ...] = ()
    """Power caps to offer beside none, as shares of each type's TDP."""
    kv_link_bytes_per_s: float = 25e9
    """What one replica's link carries of KV, in or out."""
    reference: tuple[str, int] | None = None
    """GPU type and GPUs of the instance that relative targets compare with."""
    largest_bucket_count: int = 20
    rate: RateBasis = "peak"
    window_s: float = 300.0
    rate_scale: float = 1.0
    headroom_ratio: float = 0.1
    router: RouterKind = RouterKind.JSQ
    catalogue_files: tuple[Path, ...] = ()
    own_forecast: OwnForecast | None = None
    """Plan for what the trace's own windows foretell, instead of ``rate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTarget:
    """One target of one model, in seconds or times the request alone. None: cannot be said."""

    rehearsed: RehearsedFleetTarget
    predicted: float | None
    """At the planned load, the worst of the pools that answer for the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTracePlan:
    """The question, what was read, and the fleet with what simulation says of it."""

    question: FleetQuestion
    trace_name: str
    trace_sha256: str
    dropped_rows: Mapping[str, int]
    summary: TraceSummary
    demand: Demand
    settled: SettledFleet
    built: FleetInstance
    """The problem as predicted, before any correction."""
    left_out: tuple[LeftOutConfig, ...]
    targets: Mapping[str, tuple[SimulatedTarget, ...]]
    """By model; empty without a fleet, or where time ran out before."""
    recorded_requests: int
    """Of the trace, how many were simulated."""
    foreseen: Mapping[str, ForeseenBuckets]
    """By model; empty where no forecast of the trace's own was asked for."""
    front: TriedFront | None
    """None where none was asked for, or no fleet holds."""
    runs: int
    solve_s: float

    @property
    def plan(self) -> FleetPlan:
        """The fleet itself; where time cut the search short none that misses the SLO, and none called optimal."""
        plan = self.settled.plan
        if not self.settled.cut_short or plan.status is PlanStatus.INFEASIBLE:
            return plan
        if self.settled.holds:
            return replace(plan, status=PlanStatus.FEASIBLE)
        return FleetPlan(
            instance_name=plan.instance_name,
            goal=plan.goal,
            status=PlanStatus.TIMED_OUT,
            both_only_status=PlanStatus.TIMED_OUT,
        )

    @property
    def nearest(self) -> FleetPlan | None:
        """Where time ran out before any fleet held: the one nearest to it, if one was simulated."""
        settled = self.settled
        return settled.plan if settled.cut_short and settled.verdict and not settled.holds else None

    @property
    def cut_short(self) -> bool:
        """Whether time ran out for a part of what was asked."""
        return self.settled.cut_short or (self.front is not None and self.front.cut_short)

    @property
    def planned_rps(self) -> float:
        """Requests per second that every model is planned for; with forecasts of their own, the largest."""
        if self.foreseen:
            return max(one.rate_rps for one in self.foreseen.values())
        return self.demand.rate_rps * self.question.rate_scale

    @property
    def met(self) -> bool | None:
        """Whether both simulations meet every target; None: time ran out before a fleet that holds was simulated so."""
        if not self.targets:
            return None if self.settled.holds else False
        return all(row.rehearsed.met for rows in self.targets.values() for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shop:
    """Step times of everything on offer, with each model's precision."""

    catalogues: Catalogues
    precision: Mapping[str, str]

    def performance(self, model: str, config: FleetConfig) -> PerformanceModel:
        """Find step times, capped where the config is."""
        steps = self.catalogues.book.performance(
            ReplicaKind(
                model=model,
                gpu_type=config.gpu_type,
                gpus_per_replica=config.gpus_per_replica,
                precision=self.precision[model],
            )
        )
        if config.power_cap_w is None:
            return steps
        return capped(steps, config.power_cap_w, self.catalogues.gpus[config.gpu_type])

    def kind(self, model: str, config: FleetConfig) -> InstanceKind:
        """Tabulate the same step times for the simulator."""
        return instance_kind(
            f"{config.gpus_per_replica} x {config.gpu_type}",
            self.performance(model, config),
            self.catalogues.models[model],
            max_batch=DEFAULT_ENGINE.max_batch,
            longest_step_tokens=DEFAULT_ENGINE.max_batch_tokens,
        )


def plan_fleet_trace(
    path: str | Path,
    question: FleetQuestion,
    *,
    options: FleetOptions,
    front_of: Sequence[FleetGoal] = (),
    points: int = 10,
    seed: int = 0,
    on_run: Callable[[], None] | None = None,
    clock: Clock = time.monotonic,
) -> FleetTracePlan:
    """Read a trace, plan a fleet for it, simulate and correct it; with ``front_of`` also fleets between these goals.

    ``options.time_limit_s`` covers all of it: no simulation begins after it. What comes before the first one - the
    problem itself and its first solve - is done in any case.

    Raises
    ------
    InputError
        For a relative SLO without a reference instance, models or GPU types nobody knows, and as
        `build_fleet_instance`.
    TimeLimitError
        Where the time limit is reached while a long trace is read.
    """
    began_s = clock()
    deadline = Deadline.after(options.time_limit_s, clock)
    finishing = deadline.sooner((1.0 - FINISH_SHARE) * options.time_limit_s)
    catalogues = read_catalogues(question.catalogue_files)
    shop, reference = _shop(question, catalogues)
    busiest = BusiestStretch(number=RECORDED_REQUESTS)
    with open_trace(path, seed=seed) as stream:
        summary = summarise(
            busiest.watching(read_until(deadline, stream, path)), windows_s=(question.window_s,)
        )
        name, sha256, dropped = stream.name, stream.sha256, dict(stream.dropped)
    if question.own_forecast is not None:
        check_lasts(summary, path, window_s=question.window_s)
    demand = demand_of(
        summary,
        largest_bucket_count=question.largest_bucket_count,
        rate=question.rate,
        window_s=question.window_s,
    )
    typical = tuple(
        replace(bucket, rate_rps=bucket.rate_rps * question.rate_scale) for bucket in demand.buckets
    )
    planned: dict[str, tuple[RequestBucket, ...]] = dict.fromkeys(shop.precision, typical)
    built = _built(Path(name).name, question, shop, planned, reference)
    foreseen: dict[str, ForeseenBuckets] = {}
    if question.own_forecast is not None:
        foreseen = foreseen_buckets(
            read_history(path, demand.buckets, window_s=question.window_s, seed=seed),
            demand.buckets,
            {model.name: fleet_weights(built.instance, m) for m, model in enumerate(built.instance.models)},
            question.own_forecast,
            rate_scale=question.rate_scale,
        )
        planned = {model: one.buckets for model, one in foreseen.items()}
        built = _built(Path(name).name, question, shop, planned, reference)
    recorded = recorded_load(typical, busiest.requests, speed=question.rate_scale)
    stage = FleetStage(
        loads={
            model: (planned_load(buckets, spare_ratio=question.headroom_ratio, seed=seed), recorded)
            for model, buckets in planned.items()
        },
        kinds=cache(shop.kind),
        slo=question.slo,
        reference=None if reference is None else shop.kind(*reference),
        router=question.router,
        seed=seed,
        on_run=on_run,
        enough=finishing.passed,
    )

    def solve(instance: FleetInstance, *, explain: bool = False) -> FleetPlan:
        left_s = max(LEAST_LIMIT_S, deadline.remaining_s())
        own = replace(options, time_limit_s=left_s, compare=False, explain=explain)
        plan = solve_fleet(instance, own, clock)
        verify(instance, plan)
        return plan

    def settle(share: float) -> SettledFleet:
        return settle_with_and_without(
            built.instance,
            solve=solve,
            judge=stage.verdict,
            holds=stage.holds,
            rounds=ROUNDS,
            spent=lambda: (clock() - began_s) / (share * options.time_limit_s),
            improve=lambda found, enough: improved_nearby(
                found, solve=solve, holds=stage.holds, enough=enough
            ),
        )[0]

    settled = settle(1.0 - FRONT_SHARE if front_of else 1.0)
    if (
        front_of and settled.cut_short and not settled.holds
    ):  # no front without a fleet; what was simulated is known
        settled = settle(1.0)
    front = None
    if front_of and settled.holds:
        front = tried_front(
            settled,
            front_of,
            solve=solve,
            judge=stage.verdict,
            holds=stage.holds,
            points=points,
            enough=finishing.passed,
        )
    targets = {}
    if settled.verdict is not None:
        targets = _targets(stage, settled, shop, reference, enough=deadline.passed)
        if not targets:
            settled = replace(settled, not_done=(*settled.not_done, "its targets"))
    if options.explain and (settled.plan.objective is None or not deadline.passed()):
        explained = solve(settled.instance, explain=True)
        reasons = replace(settled.plan, infeasible=explained.infeasible)
        if explained.objective == settled.plan.objective:
            reasons = replace(reasons, binding=explained.binding, binding_settled=explained.binding_settled)
        settled = replace(settled, plan=reasons)
    if settled.plan.objective is not None:
        verify(settled.instance, settled.plan)
    return FleetTracePlan(
        question=question,
        trace_name=name,
        trace_sha256=sha256,
        dropped_rows=dropped,
        summary=summary,
        demand=demand,
        settled=settled,
        built=built.instance,
        left_out=built.left_out,
        targets=targets,
        recorded_requests=len(recorded.requests),
        foreseen=foreseen,
        front=front,
        runs=stage.runs,
        solve_s=clock() - began_s,
    )


def read_until(deadline: Deadline, chunks: Iterable[Requests], path: str | Path) -> Iterator[Requests]:
    """Yield the chunks of a trace; give up once the deadline has passed, but not on a short trace."""
    read = 0
    for chunk in chunks:
        if read >= RECORDED_REQUESTS and deadline.passed():
            raise TimeLimitError(f"{path}: the time limit is reached while it is read; raise --time-limit")
        read += len(chunk)
        yield chunk


def _shop(question: FleetQuestion, catalogues: Catalogues) -> tuple[_Shop, tuple[str, FleetConfig] | None]:
    """Resolve models, their precisions and the reference instance."""
    if question.precision is not None:
        parse_precision(question.precision)
    shapes = [find_model(catalogues.models, model) for model in question.models]
    if len({shape.name for shape in shapes}) < len(shapes):
        raise InputError("a model is named twice", right="each model once")
    shop = _Shop(
        catalogues=catalogues,
        precision={shape.name: question.precision or str(shape.default_precision) for shape in shapes},
    )
    if not question.slo.relative:
        return shop, None
    if question.reference is None:
        raise InputError(
            f"the SLO {question.slo} is relative, and no reference instance is named",
            right="--reference H100-SXM:8, or limits in seconds as ttft_p99=1.0,tbt_p99=0.05",
        )
    if len(shapes) > 1:
        raise InputError("a relative SLO with several models", right="one model, or limits in seconds")
    name, gpus = question.reference
    found = find_gpu(catalogues.gpus, name)
    return shop, (shapes[0].name, FleetConfig(gpu_type=found.name, gpus_per_replica=gpus))


def _built(
    name: str,
    question: FleetQuestion,
    shop: _Shop,
    demands: Mapping[str, tuple[RequestBucket, ...]],
    reference: tuple[str, FleetConfig] | None,
) -> BuiltFleet:
    """Build the problem of a question."""
    catalogues = shop.catalogues
    offers = offers_of(catalogues, question.gpu_types)
    caps_w = {
        offer.name: tuple(ratio * catalogues.gpus[offer.name].tdp_w for ratio in question.cap_ratios)
        for offer in offers
    }
    configs = candidate_configs(offers, caps_w=caps_w, kv_link_bytes_per_s=question.kv_link_bytes_per_s)
    return build_fleet_instance(
        name=name,
        demands=demands,
        offers=offers,
        configs=dict.fromkeys(shop.precision, configs),
        performance=shop.performance,
        slo=question.slo,
        kv_bytes_per_token={model: catalogues.models[model].kv_bytes_per_token() for model in shop.precision},
        headroom_ratio=question.headroom_ratio,
        reference=None if reference is None else {reference[0]: shop.performance(*reference)},
        goal=question.goal,
        budgets=question.budgets,
    )


def _targets(
    stage: FleetStage,
    settled: SettledFleet,
    shop: _Shop,
    reference: tuple[str, FleetConfig] | None,
    *,
    enough: Enough,
) -> dict[str, tuple[SimulatedTarget, ...]]:
    """Set prediction and simulations of every target side by side; empty where there was no time to simulate them."""
    instance, plan = settled.instance, settled.plan
    simulated = stage.targets(instance, plan, enough=enough)
    if not simulated:
        return {}
    sent = routed_buckets(instance, plan)
    told = {}
    for m, model in enumerate(instance.models):
        rows = []
        for rehearsed in simulated[model.name]:
            predictions = [
                predicted_at(
                    shop.performance(model.name, model.configs[c]),
                    _of_one(buckets, plan.replicas[m][c], model.configs[c].role),
                    rehearsed.target,
                    DEFAULT_ENGINE,
                    role=model.configs[c].role,
                    replicas=1 if model.configs[c].role is Role.BOTH else plan.replicas[m][c],
                    reference=None if reference is None else shop.performance(*reference),
                )
                for (served, c), buckets in sent.items()
                if served == m and rehearsed.target.metric in PHASE_METRICS[model.configs[c].role]
            ]
            known = [value for value in predictions if value is not None]
            rows.append(
                SimulatedTarget(
                    rehearsed=rehearsed,
                    predicted=max(known) if known and len(known) == len(predictions) else None,
                )
            )
        told[model.name] = tuple(rows)
    return told


def _of_one(buckets: tuple[RequestBucket, ...], replicas: int, role: Role) -> tuple[RequestBucket, ...]:
    """Return what the formulas ask about: a pool of one phase as a whole, one replica of those that serve both."""
    if role is not Role.BOTH:
        return buckets
    return tuple(replace(bucket, rate_rps=bucket.rate_rps / replicas) for bucket in buckets)
