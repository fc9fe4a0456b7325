"""Rehearses a GPU mix before anyone runs it: simulates the planned load and the recorded trace on the planned replicas.

It exists because a plan rests on a queueing approximation: the simulator, which shares with it only the step times,
says what its SLO comes to, iteration by iteration. Two loads are tried. The *planned* load is what the plan was made
for: Poisson arrivals at the planned rate, sizes drawn from the buckets, each replica chosen at random; here prediction
and simulation should agree. The *recorded* load is the trace itself, its bursts included, each request going to the
variant the plan routes its size to and there to the replica with the fewest outstanding tokens. It decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Pool, Router, RouterKind, Scheduler
from simulator.metrics import ClusterFigures, figures_of
from simulator.step_models import instance_kind
from solver.domain.bucket_windows import nearest_bucket
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, ModelDemand, RequestBucket, Variant
from solver.domain.llm import ModelShape
from solver.domain.slo import Slo, SloTarget
from solver.domain.trace import Ints, Requests
from solver.performance.book import PerformanceBook
from solver.performance.capacity import DEFAULT_ENGINE
from solver.performance.prediction import predicted_s
from solver.performance.protocol import ReplicaKind

PLANNED_S = 1200.0
"""Seconds of planned load that are simulated."""
WARM_UP_S = 120.0
FEWEST_REQUESTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedTarget:
    """One target of the SLO for one model: limit, prediction, simulations. None: cannot be said."""

    target: SloTarget
    predicted_s: float | None
    """At the planned load; the worst of the model's variants."""
    planned_s: float | None
    """Simulated at the planned load, over all requests of the model."""
    recorded_s: float | None
    """Simulated with the recorded trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedModel:
    """One served model."""

    name: str
    planned_rps: float
    recorded_rps: float
    targets: tuple[RehearsedTarget, ...]
    planned: ClusterFigures
    recorded: ClusterFigures

    @property
    def met(self) -> bool:
        """Whether both simulations meet the SLO."""
        return self.planned.slo.met is not False and self.recorded.slo.met is not False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """A variant in use: its replicas and what the plan sends it."""

    kind: InstanceKind
    replicas: int
    shares: tuple[float, ...]
    """Of each bucket of the model."""


def rehearse(
    instance: GpuMixInstance,
    plan: GpuMixPlan,
    *,
    book: PerformanceBook,
    slo: Slo,
    recorded: Requests,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> tuple[RehearsedModel, ...]:
    """Simulate every model of a plan; ``recorded`` is what each of them gets in full."""
    rehearsed = []
    for m, model in enumerate(instance.models):
        if step is not None:
            step(f"simulating {model.name}")
        rehearsed.append(_rehearse_model(m, model, plan, book=book, slo=slo, recorded=recorded, seed=seed))
    return tuple(rehearsed)


def _rehearse_model(
    m: int,
    model: ModelDemand,
    plan: GpuMixPlan,
    *,
    book: PerformanceBook,
    slo: Slo,
    recorded: Requests,
    seed: int,
) -> RehearsedModel:
    shape = book.models[model.name]
    lanes = _lanes(m, model, plan, book, shape)
    rate_rps = model.rate_rps
    planned, drawn = _planned_load(model, seed)
    planned_figures = _simulated(
        lanes,
        planned,
        _lane_of(lanes, drawn, seed),
        slo=slo,
        router=RouterKind.RANDOM,
        seed=seed,
        warm_up_s=WARM_UP_S,
    )
    recorded_figures = _simulated(
        lanes,
        recorded,
        _lane_of(lanes, nearest_bucket(model.buckets, recorded), seed),
        slo=slo,
        router=RouterKind.JSQ,
        seed=seed,
        warm_up_s=0.0,
    )
    targets = []
    for place, target in enumerate(slo.targets):
        predictions = [
            predicted_s(
                book.performance(_replica_kind(model, variant)),
                _per_replica(model, lane),
                target.metric,
                target.percentile,
                DEFAULT_ENGINE,
            )
            for variant, lane in lanes
        ]
        known = [value for value in predictions if value is not None]
        targets.append(
            RehearsedTarget(
                target=target,
                predicted_s=max(known) if len(known) == len(predictions) and known else None,
                planned_s=planned_figures.slo.checks[place].value,
                recorded_s=recorded_figures.slo.checks[place].value,
            )
        )
    duration_s = float(recorded.arrival_s[-1] - recorded.arrival_s[0])
    return RehearsedModel(
        name=model.name,
        planned_rps=rate_rps,
        recorded_rps=len(recorded) / duration_s if duration_s > 0 else 0.0,
        targets=tuple(targets),
        planned=planned_figures,
        recorded=recorded_figures,
    )


def _replica_kind(model: ModelDemand, variant: Variant) -> ReplicaKind:
    return ReplicaKind(
        model=model.name,
        gpu_type=variant.gpu_type,
        gpus_per_replica=variant.gpus_per_replica,
        precision=variant.precision or "bf16",
    )


def _lanes(
    m: int, model: ModelDemand, plan: GpuMixPlan, book: PerformanceBook, shape: ModelShape
) -> list[tuple[Variant, _Lane]]:
    shares = np.zeros((len(model.variants), len(model.buckets)))
    for routed in plan.routing:
        if routed.model == model.name:
            shares[routed.config, routed.bucket] += routed.share
    lanes = []
    for c, variant in enumerate(model.variants):
        replicas = plan.replicas[m][c]
        if not replicas or not shares[c].any():
            continue
        kind = instance_kind(
            f"{variant.gpus_per_replica} x {variant.gpu_type}",
            book.performance(_replica_kind(model, variant)),
            shape,
            max_batch=DEFAULT_ENGINE.max_batch,
            longest_step_tokens=DEFAULT_ENGINE.max_batch_tokens,
        )
        lanes.append((variant, _Lane(kind=kind, replicas=replicas, shares=tuple(shares[c].tolist()))))
    return lanes


def _per_replica(model: ModelDemand, lane: _Lane) -> list[RequestBucket]:
    """Return what one replica of a lane is sent."""
    sent = [
        replace(bucket, rate_rps=bucket.rate_rps * share / lane.replicas)
        for bucket, share in zip(model.buckets, lane.shares, strict=True)
    ]
    return [bucket for bucket in sent if bucket.rate_rps > 0.0]


def _planned_load(model: ModelDemand, seed: int) -> tuple[Requests, Ints]:
    """Draw the planned load: Poisson arrivals, buckets by their rates."""
    randomness = np.random.default_rng([seed, 1])
    rates = np.array([bucket.rate_rps for bucket in model.buckets])
    number = max(FEWEST_REQUESTS, int(rates.sum() * (PLANNED_S + WARM_UP_S)))
    chosen = randomness.choice(len(rates), size=number, p=rates / rates.sum())
    prompt = np.array([max(1, round(bucket.input_tokens or 1)) for bucket in model.buckets])
    output = np.array([max(1, round(bucket.output_tokens or 1)) for bucket in model.buckets])
    requests = Requests(
        arrival_s=np.cumsum(randomness.exponential(1.0 / rates.sum(), number)),
        prompt_tokens=prompt[chosen],
        output_tokens=output[chosen],
    )
    return requests, chosen


def _lane_of(lanes: Sequence[tuple[Variant, _Lane]], bucket_of: Ints, seed: int) -> Ints:
    """Draw the variant of each request by the plan's shares of its bucket."""
    shares = np.array([lane.shares for _, lane in lanes])
    unrouted = shares.sum(axis=0) <= 0.0
    shares[:, unrouted] = 1.0  # a bucket of no traffic has no routing
    limits = np.cumsum(shares / shares.sum(axis=0), axis=0)
    draws = np.random.default_rng([seed, 2]).random(len(bucket_of))
    lane: Ints = (draws[None, :] >= limits[:, bucket_of]).sum(axis=0)
    return np.minimum(lane, len(lanes) - 1)


def _simulated(
    lanes: Sequence[tuple[Variant, _Lane]],
    requests: Requests,
    lane_of: Ints,
    *,
    slo: Slo,
    router: RouterKind,
    seed: int,
    warm_up_s: float,
) -> ClusterFigures:
    """Simulate one model; a variant is a model of its own to the router, so that nothing crosses over."""
    fleet = Fleet(
        models=tuple(lane.kind.name for _, lane in lanes),
        kinds=tuple(lane.kind for _, lane in lanes),
        pools=tuple(
            Pool(name=lane.kind.name, kind=at, count=lane.replicas, model=at)
            for at, (_, lane) in enumerate(lanes)
        ),
        scheduler=Scheduler(
            max_batch=DEFAULT_ENGINE.max_batch,
            max_batch_tokens=DEFAULT_ENGINE.max_batch_tokens,
            chunked_prefill=DEFAULT_ENGINE.chunked_prefill,
        ),
        router=Router(kind=router),
    )
    record = simulate(fleet, requests, model_of_request=lane_of, seed=seed)
    return figures_of(
        record,
        requests,
        pools=[pool.name for pool in fleet.pools],
        price_usd_per_h=[None] * len(fleet.pools),
        slo=slo,
        warm_up_s=warm_up_s,
    )
