"""Solves a problem of services by the program it is written for, and says the answer in one form.

It exists so that whoever decides, explains or steps need not know whether a service splits its phases: the plain mix is
solved by `solver.gpu_mix`, phases by the joint program of `solver.phases`, and both answers are held against their
independent checks. It chooses nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solver.backends.program import BackendError
from solver.check.fleet import check_fleet
from solver.check.gpu_mix import check_gpu_mix
from solver.domain.cluster import ServiceState
from solver.domain.deadline import Clock
from solver.domain.errors import InputError
from solver.domain.fleet import FleetInstance, FleetPlan
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix.prepare import serve_model as serve_mix
from solver.gpu_mix.routing import route as route_mix
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from solver.phases.prepare import serve_model as serve_phases
from solver.phases.routing import FIT_TOLERANCE
from solver.phases.routing import route as route_phases
from solver.phases.solve import FleetOptions, solve_fleet
from solver.services.problem import Problem, alone

LEAST_LIMIT_S = 0.05

Shares = tuple[tuple[int, int, float], ...]
"""Bucket, variant, share: those of variants of both phases and of prefill sum to 1, those of decode to prefill's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesPlan:
    """What the services of a problem should run, in its order."""

    status: PlanStatus
    objective_usd_per_h: float | None = None
    """Changes counted, spread over `solver.services.problem.HORIZON_H`; None without a plan."""
    bound_usd_per_h: float | None = None
    """Of cost and changes together."""
    replicas: tuple[tuple[int, ...], ...] = ()
    """[service][variant]; empty without a plan."""
    routing: tuple[Shares, ...] = ()
    """[service]."""
    reason: str = ""
    """Why there is no plan: a kind of `Infeasibility` or `FleetInfeasibility`."""
    message: str = ""


Known = dict[Problem, ServicesPlan]
"""Plans of problems that were solved before."""


def solve(
    problem: Problem,
    *,
    time_limit_s: float,
    gap_ratio: float,
    clock: Clock,
    seed: int = 0,
) -> ServicesPlan:
    """Find the cheapest replicas.

    Raises
    ------
    InputError
        If numbers are larger than solvers tell apart.
    RuntimeError
        If a plan fails its independent check: that is a bug, and nothing of it may be applied.
    """
    limit_s = max(LEAST_LIMIT_S, time_limit_s)
    if isinstance(problem, FleetInstance):
        options = FleetOptions(time_limit_s=limit_s, gap_ratio=gap_ratio, compare=False, binding=False)
        fleet = solve_fleet(problem, options, clock)
        _raise_if(problem, check_fleet(problem, fleet))
        return _of_fleet(problem, fleet)
    plan = solve_gpu_mix(
        problem, options=SolveOptions(time_limit_s=limit_s, gap_ratio=gap_ratio, seed=seed), clock=clock
    )
    _raise_if(problem, check_gpu_mix(problem, plan))
    return of_mix(problem, plan)


def _raise_if(problem: Problem, violations: Sequence[str]) -> None:
    if violations:
        raise RuntimeError(f"the plan of {problem.name} fails its check: {violations[0]}")


def of_mix(problem: GpuMixInstance, plan: GpuMixPlan) -> ServicesPlan:
    """Say a GPU mix as a plan of services."""
    reason = plan.infeasible
    return ServicesPlan(
        status=plan.status,
        objective_usd_per_h=plan.objective,
        bound_usd_per_h=plan.lower_bound_usd_per_h,
        replicas=plan.replicas,
        routing=tuple(
            tuple((s.bucket, s.config, s.share) for s in plan.routing if s.model == model.name)
            for model in problem.models
        ),
        reason="" if reason is None else reason.kind,
        message="" if reason is None else reason.message,
    )


def _of_fleet(problem: FleetInstance, plan: FleetPlan) -> ServicesPlan:
    reason = plan.infeasible
    return ServicesPlan(
        status=plan.status,
        objective_usd_per_h=plan.objective,
        bound_usd_per_h=plan.bound,
        replicas=plan.replicas,
        routing=tuple(
            tuple((f.bucket, f.config, f.share) for f in plan.flows if f.model == model.name)
            for model in problem.models
        ),
        reason="" if reason is None else reason.kind,
        message="" if reason is None else reason.message,
    )


def serves(service: ServiceState, replicas: Sequence[int], *, headroom_ratio: float = 0.0) -> bool:
    """Whether so many replicas carry the traffic of the service, in every phase, with so much room to spare."""
    routed = _routed(service, replicas, headroom_ratio)
    return routed is not None and routed.fits


def routing_of(service: ServiceState, replicas: Sequence[int]) -> Shares:
    """Return who serves what with so many replicas; nothing if they cannot serve all."""
    routed = _routed(service, replicas, service.headroom_ratio)
    if routed is None:
        return ()
    return tuple(
        (int(bucket), variant, float(share))
        for bucket, shares in zip(routed.buckets, routed.shares, strict=True)
        for variant, share in enumerate(shares)
        if share > 0
    )


@dataclass(frozen=True, slots=True)
class _Routed:
    """``shares`` [B, C] over the buckets with traffic, whose indices are ``buckets`` [B]."""

    buckets: NDArray[np.int64]
    shares: NDArray[np.float64]
    fits: bool


def _routed(service: ServiceState, replicas: Sequence[int], headroom_ratio: float) -> _Routed | None:
    """Route the traffic over so many replicas; None: it cannot be, or would need more than solvers tell apart."""
    try:
        return _route(service, replicas, headroom_ratio)
    except (InputError, BackendError):  # one odd service must not stop those that are looked at beside it
        return None


def _route(service: ServiceState, replicas: Sequence[int], headroom_ratio: float) -> _Routed | None:
    problem = alone(replace(service, headroom_ratio=headroom_ratio, survive=0))
    if isinstance(problem, FleetInstance):
        phases = serve_phases(problem, 0)
        flows = route_phases(phases, replicas)
        if flows is None:
            return None
        return _Routed(phases.bucket_index, flows.shares, flows.factor >= 1.0 - FIT_TOLERANCE)
    model = serve_mix(problem, 0)
    routing = route_mix(model, replicas)
    return None if routing is None else _Routed(model.bucket_index, routing.shares, routing.fits)
