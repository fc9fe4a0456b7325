"""What is to be rehearsed: a service's traffic, what runs, what is planned; and the answer. Plain values.

It exists so that the question travels to a process of its own as a value, and so that what cannot be rehearsed is said
where the service is known. It simulates nothing (`controller.operator.rehearsal.replay` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controller.operator.plans import usable
from controller.operator.views import ServiceView
from controller.operator.world import Key
from controller.resources.model_service import TraceSource
from solver.domain.cluster import ServiceState, VariantState
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from solver.services.plan import routing_of

HOLDS = "AttainmentHolds"
FALLS = "AttainmentFalls"
NOT_NEEDED = "NoRehearsalNeeded"
WAITS = "Rehearsing"
CANNOT = "CannotRehearse"
TOO_FEW = "TooFewRequests"
OVERRAN = "RehearsalOverran"
MEMORY = "RehearsalOutOfMemory"
CRASHED = "RehearsalCrashed"

SAME_RATE_RATIO = 0.05
"""Rates that differ by no more are the same."""


Shares = tuple[tuple[float, ...], ...]
"""Of each bucket, by variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedVariant:
    """One variant: what a replica is, what it carries, how many run and how many are planned."""

    name: str
    gpu_profile: str
    model: str
    precision: str
    gpu_type: str
    gpus_per_replica: int
    role: Role = Role.BOTH
    serves: tuple[int, ...]
    """Buckets of the question that it can serve inside the SLO."""
    carried_rps: float
    """Of the mixture of those, by its GpuProfile; of its phase, where it serves only one."""
    measured: bool
    """By rows of a load test; False: by the performance model."""
    running: int
    planned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalQuestion:
    """Whether the SLO would be kept less with the plan than with what runs."""

    service: str
    digest: str
    """Of the Plan."""
    solve_id: str
    """Seeds what is drawn, so that the same plan is rehearsed with the same requests."""
    buckets: tuple[RequestBucket, ...]
    """Sizes and rates that the plan was made for."""
    trace: TraceSource | None
    """Recorded requests are replayed instead of drawn ones."""
    window_s: float
    slo: str
    percentile: float
    link_bytes_per_s: float | None = None
    """What the slowest replica sends or takes of KV cache between prefill and decode; None: no limit."""
    kv_bytes_per_token: float | None = None
    """Of a prompt, that goes from prefill to decode; None: as the catalogue's model has it."""
    variants: tuple[RehearsedVariant, ...]
    by_size: tuple[Shares, Shares] | None = None
    """Where each size goes, with what runs and with what is planned; None: all go by what the variants carry."""

    @property
    def rate_rps(self) -> float:
        """Requests per second over all buckets."""
        return sum(bucket.rate_rps for bucket in self.buckets)

    @property
    def key(self) -> Key:
        """Namespace and name of the service."""
        namespace, _, name = self.service.partition("/")
        return namespace, name

    def much_like(self, other: "RehearsalQuestion") -> bool:
        """Whether the answer to another question stands for this one: the same but for a little in the rates."""
        if _without_rates(self) != _without_rates(other):
            return False
        carried = zip(self.variants, other.variants, strict=True)
        return _near(self.rate_rps, other.rate_rps) and all(
            _near(one.carried_rps, another.carried_rps) for one, another in carried
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalAnswer:
    """What the rehearsal came to."""

    allowed: bool | None
    """None: it is not known."""
    reason: str
    message: str
    running_ratio: float | None = None
    """Share of the requests inside the SLO."""
    planned_ratio: float | None = None
    requests: int = 0
    wall_s: float = 0.0


def question_of(view: ServiceView) -> RehearsalQuestion | str:
    """Ask about the Plan of a service; or say why it cannot be rehearsed."""
    spec, state, plan = view.spec, view.state, view.plan
    if spec is None or state is None or plan is None or spec.rehearsal is None:
        raise ValueError(f"{view.name} has nothing to rehearse")
    wanted = {entry.variant: entry.replicas for entry in plan.spec.desired}
    places, variants = [], []
    for place, (found, known) in enumerate(zip(usable(view), state.variants, strict=True)):
        profile, planned = found.profile, wanted.get(known.name, 0)
        serves = tuple(b for b, most_rps in enumerate(known.throughput_rps) if most_rps > 0.0)
        carried_rps = carried_of(state, known)
        if profile is None or not carried_rps or (not known.replicas and not planned):
            continue
        places.append(place)
        variants.append(
            RehearsedVariant(
                name=known.name,
                gpu_profile=found.spec.gpu_profile,
                model=profile.model,
                precision=str(profile.precision),
                gpu_type=profile.gpu_type,
                gpus_per_replica=profile.gpus_per_replica,
                role=known.role,
                serves=serves,
                carried_rps=carried_rps,
                measured=not profile.modelled,
                running=known.replicas,
                planned=planned,
            )
        )
    if (
        len({variant.role for variant in variants} - {Role.BOTH}) == 1
    ):  # nobody does the rest: they get no requests
        whole = [index for index, variant in enumerate(variants) if variant.role is Role.BOTH]
        places, variants = [places[index] for index in whole], [variants[index] for index in whole]
    if not variants:
        return "no variant serves any of the request sizes within the SLO"
    by_size = _ways(view, state, variants, places, wanted)
    if isinstance(by_size, str):
        return by_size
    slo = spec.slo
    return RehearsalQuestion(
        service=view.name,
        digest=plan.spec.digest,
        solve_id=plan.spec.solve_id,
        buckets=state.buckets,
        trace=spec.traffic.trace_config_map,
        window_s=float(spec.rehearsal.window_seconds),
        slo=f"ttft_p{slo.percentile}={slo.ttft_seconds},tbt_p{slo.percentile}={slo.tbt_seconds}",
        percentile=float(slo.percentile),
        link_bytes_per_s=min(
            (v.kv_link_bytes_per_s for v in state.variants if v.kv_link_bytes_per_s is not None), default=None
        ),
        kv_bytes_per_token=state.kv_bytes_per_prompt_token or None,
        variants=tuple(variants),
        by_size=by_size,
    )


def _ways(
    view: ServiceView,
    state: ServiceState,
    variants: Sequence[RehearsedVariant],
    places: Sequence[int],
    wanted: Mapping[str, int],
) -> tuple[Shares, Shares] | str | None:
    """Say where each size goes, if some variant does not serve all of them; or why that is not known."""
    busy = {b for b, bucket in enumerate(state.buckets) if bucket.rate_rps > 0.0}
    partial = [variant.name for variant in variants if not busy <= set(variant.serves)]
    if not partial:
        return None
    only = f"variant {partial[0]} serves only some of the request sizes"
    if view.spec is not None and view.spec.http_route is not None:
        return f"{only}, and an HTTPRoute does not tell them apart"
    if state.splits:
        return f"{only}, which is not rehearsed where variants serve prefill and decode apart"
    ways = []
    for replicas in (state.replicas, tuple(wanted.get(variant.name, 0) for variant in state.variants)):
        routing = routing_of(state, replicas)
        if not routing:
            return f"{only}, and the others do not carry the rest"
        shares = np.zeros((len(state.buckets), len(state.variants)))
        for bucket, variant, share in routing:
            shares[bucket, variant] = share
        ways.append(tuple(tuple(row) for row in shares[:, list(places)].tolist()))
    return ways[0], ways[1]


def carried_of(state: ServiceState, variant: VariantState) -> float:
    """Return what one replica carries of the mixture of those sizes that it serves, loads added up; 0: of none."""
    served = [
        (bucket.rate_rps, bucket.rate_rps / most_rps)
        for bucket, most_rps in zip(state.buckets, variant.throughput_rps, strict=True)
        if bucket.rate_rps > 0.0 and most_rps > 0.0
    ]
    load = sum(load for _, load in served)
    return sum(rate for rate, _ in served) / load if load > 0.0 else 0.0


def _without_rates(question: RehearsalQuestion) -> RehearsalQuestion:
    return replace(
        question,
        buckets=tuple(replace(bucket, rate_rps=0.0) for bucket in question.buckets),
        by_size=None,
        variants=tuple(replace(variant, carried_rps=0.0) for variant in question.variants),
    )


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_RATE_RATIO * max(one, other)
