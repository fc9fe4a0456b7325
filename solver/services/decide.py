"""Decides for all services of a cluster at once: the cheapest replicas of each within the GPUs they share.

It exists as the Planner's first stage in the operator. Services that meet no short GPU are solved alone, which is
exact: if the separate optima fit the pools together, no joint plan is cheaper. Only services that meet in a pool that
would be overdrawn are solved together. Services whose variants all serve whole requests are a plain mix; where some
serve one phase only it is the joint program of both phases. It applies nothing and knows no time but its limit.

Who counts how (contracts.md): fixed and proposed services count with the GPUs they hold now when services whose plans
are applied are decided; proposals are then made within what those leave.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from solver.domain.cluster import ClusterState, GpuPool, ServiceDecision, ServiceState, Stance
from solver.domain.deadline import Clock, Deadline
from solver.domain.errors import InputError
from solver.domain.gpu_mix import PlanStatus
from solver.services.plan import LEAST_LIMIT_S, Known, ServicesPlan, solve
from solver.services.problem import alone, together

LEAST_KNOWN = 1000
KNOWN_PER_SERVICE = 4
"""Plans of services alone that are kept: so many for each service that there is, or `LEAST_KNOWN` if that is more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideOptions:
    """Seconds for everything, the gap at which to stop, the seed of the search."""

    time_limit_s: float = 30.0
    gap_ratio: float = 1e-4
    seed: int = 0


def parts_of(state: ClusterState) -> tuple[ClusterState, ...]:
    """Split a cluster where nothing is shared: services that may use a common pool, in turn, stay together.

    Fixed services tie nothing together; each part holds those that use its pools. Small parts come first.
    """
    leader = {pool.name: pool.name for pool in state.pools}

    def found(pool: str) -> str:
        while leader.setdefault(pool, pool) != pool:
            leader[pool] = leader[leader[pool]]
            pool = leader[pool]
        return pool

    moving = [service for service in state.services if service.stance is not Stance.FIXED]
    for service in moving:
        first = found(service.variants[0].pool)
        for variant in service.variants[1:]:
            leader[found(variant.pool)] = first
    members: dict[str, list[ServiceState]] = {found(service.variants[0].pool): [] for service in moving}
    for service in state.services:
        roots = {found(variant.pool) for variant in service.variants} if service.variants else set()
        for root in roots & members.keys():
            members[root].append(service)
    pools: dict[str, list[GpuPool]] = {root: [] for root in members}
    for pool in state.pools:
        if found(pool.name) in pools:
            pools[found(pool.name)].append(pool)
    parts = [
        ClusterState(pools=tuple(pools[root]), services=tuple(services)) for root, services in members.items()
    ]
    return tuple(sorted(parts, key=lambda part: len(part.services)))


def decide(
    state: ClusterState,
    *,
    options: DecideOptions,
    clock: Clock,
    known: Known | None = None,
    at: Callable[[str], None] = lambda _: None,
) -> tuple[ServiceDecision, ...]:
    """Decide for every service that is not fixed, in the order of the state.

    ``known`` keeps what was solved alone, so that a service whose inputs did not change is not solved again; it is
    filled in place, and what was not asked for longest goes first when it holds more than a few plans of each service.
    ``at`` is told what is solved next (names of services joined by +), so that whoever must stop a solve knows whose
    it was.

    Raises
    ------
    RuntimeError
        If a plan fails its independent check: that is a bug, and nothing of it may be applied.
    """
    deadline = Deadline.after(options.time_limit_s, clock)
    kept = {} if known is None else known
    decided: dict[str, ServiceDecision] = {}
    for part in parts_of(state):
        decided |= _decide_part(part, options=options, deadline=deadline, clock=clock, known=kept, at=at)
    most = max(LEAST_KNOWN, KNOWN_PER_SERVICE * len(state.services))
    for stale in list(islice(kept, max(0, len(kept) - most))):
        del kept[stale]
    return tuple(decided[service.name] for service in state.services if service.stance is not Stance.FIXED)


def _decide_part(
    state: ClusterState,
    *,
    options: DecideOptions,
    deadline: Deadline,
    clock: Clock,
    known: Known,
    at: Callable[[str], None],
) -> dict[str, ServiceDecision]:
    moving = {service.name: service for service in state.services if service.stance is not Stance.FIXED}
    capacity = {pool.name: pool.gpus for pool in state.pools}
    held = {service.name: _held(service) for service in state.services}
    decided: dict[str, ServiceDecision] = {}
    for stance in (Stance.APPLIED, Stance.PROPOSED):
        group = {service.name: service for service in moving.values() if service.stance is stance}
        if not group:
            continue
        others = [use for name, use in held.items() if name not in group]
        free = {pool: gpus - sum(use.get(pool, 0) for use in others) for pool, gpus in capacity.items()}
        for decision in _decide_group(
            tuple(group.values()), free, options=options, deadline=deadline, clock=clock, known=known, at=at
        ):
            decided[decision.service] = decision
            if decision.replicas is not None and stance is Stance.APPLIED:
                held[decision.service] = _use(moving[decision.service], decision.replicas)
    return decided


def _held(service: ServiceState) -> dict[str, int]:
    return _use(service, [variant.held for variant in service.variants])


def _use(service: ServiceState, replicas: Iterable[int]) -> dict[str, int]:
    """GPUs by pool."""
    use: dict[str, int] = {}
    for variant, count in zip(service.variants, replicas, strict=True):
        use[variant.pool] = use.get(variant.pool, 0) + variant.gpus_per_replica * count
    return use


def _decide_group(
    group: Sequence[ServiceState],
    free: Mapping[str, int],
    *,
    options: DecideOptions,
    deadline: Deadline,
    clock: Clock,
    known: Known,
    at: Callable[[str], None],
) -> list[ServiceDecision]:
    plans: dict[str, ServicesPlan] = {}
    decisions: dict[str, ServiceDecision] = {}
    for waiting, service in zip(range(len(group), 0, -1), group, strict=True):
        try:
            problem = alone(service)
        except Exception:
            at(service.name)
            raise
        plan = known.pop(problem, None)
        if plan is None and deadline.passed():
            plan = ServicesPlan(status=PlanStatus.TIMED_OUT)
        elif plan is None:
            share_s = max(LEAST_LIMIT_S, 4 * deadline.remaining_s() / (waiting + 3))
            at(service.name)
            try:
                plan = solve(
                    problem,
                    time_limit_s=min(share_s, deadline.remaining_s()),
                    gap_ratio=options.gap_ratio,
                    clock=clock,
                    seed=options.seed,
                )
            except InputError as error:  # more than floating-point numbers tell apart
                plan = ServicesPlan(status=PlanStatus.INFEASIBLE)
                decisions[service.name] = _refused(service, str(error))
        if plan.status is not PlanStatus.TIMED_OUT and service.name not in decisions:
            known[problem] = plan  # last of all: it was just asked for
        plans[service.name] = plan
        decisions.setdefault(service.name, _described(service, plan, 0, plan))
    for crowd in _crowds(group, decisions, free):
        names = {service.name for service in crowd}
        budget = dict(free)
        for service in group:  # services that have no plan keep what they hold
            if service.name not in names:
                replicas = decisions[service.name].replicas
                use = _held(service) if replicas is None else _use(service, replicas)
                for pool, gpus in use.items():
                    budget[pool] = budget.get(pool, 0) - gpus
        at("+".join(service.name for service in crowd))
        joint = solve(
            together(crowd, budget),
            time_limit_s=deadline.remaining_s(),
            gap_ratio=options.gap_ratio,
            clock=clock,
            seed=options.seed,
        )
        for m, service in enumerate(crowd):
            decisions[service.name] = _described(service, joint, m, plans[service.name], crowd=len(crowd))
    return [decisions[service.name] for service in group]


def _refused(service: ServiceState, message: str) -> ServiceDecision:
    return ServiceDecision(
        service=service.name, status=PlanStatus.INFEASIBLE.value, reason="out-of-range", message=message
    )


def _crowds(
    group: Sequence[ServiceState], decisions: Mapping[str, ServiceDecision], free: Mapping[str, int]
) -> list[list[ServiceState]]:
    """Services that meet in a pool that would be overdrawn, with all they share pools with in turn."""
    use = dict.fromkeys(free, 0)
    for service in group:
        replicas = decisions[service.name].replicas
        spent = _held(service) if replicas is None else _use(service, replicas)
        for pool, gpus in spent.items():
            use[pool] = use.get(pool, 0) + gpus
    short = {pool for pool, gpus in use.items() if gpus > free.get(pool, 0)}
    if not short:
        return []
    able = {service.name: service for service in group if decisions[service.name].replicas is not None}
    users: dict[str, list[str]] = {}
    for name, service in able.items():
        for pool in {variant.pool for variant in service.variants}:
            users.setdefault(pool, []).append(name)
    crowds: list[list[ServiceState]] = []
    reached: set[str] = set()
    for start in sorted(short):
        if start in reached:
            continue
        crowd: set[str] = set()
        ahead = [start]
        reached.add(start)
        while ahead:
            for name in users.get(ahead.pop(), ()):
                if name not in crowd:
                    crowd.add(name)
                    further = {variant.pool for variant in able[name].variants} - reached
                    reached |= further
                    ahead.extend(further)
        if crowd:
            crowds.append([service for name, service in able.items() if name in crowd])
    return crowds


def _described(
    service: ServiceState, plan: ServicesPlan, index: int, apart: ServicesPlan, *, crowd: int = 0
) -> ServiceDecision:
    """Take one service's part out of a plan; its bound is that of the service alone, which holds in company too."""
    if not plan.replicas:
        return ServiceDecision(
            service=service.name,
            status=plan.status.value,
            reason=plan.reason or "timed-out",
            message=plan.message or "no plan was found within the time limit",
            together_with=crowd,
        )
    replicas = plan.replicas[index]
    cost = sum(v.price_usd_per_h * n for v, n in zip(service.variants, replicas, strict=True))
    change = 0.0
    for variant, count in zip(service.variants, replicas, strict=True):
        more = count - variant.replicas
        per_gpu = service.start_cost_usd if more > 0 else service.stop_cost_usd
        change += abs(more) * variant.gpus_per_replica * per_gpu
    bound = apart.bound_usd_per_h
    if bound is not None:  # of cost and change together; what is stated speaks of the cost
        bound = max(0.0, cost - max(0.0, cost + change - bound))
    return ServiceDecision(
        service=service.name,
        status=plan.status.value,
        replicas=replicas,
        cost_usd_per_h=cost,
        lower_bound_usd_per_h=bound,
        gap_ratio=None if bound is None else (cost - bound) / max(abs(cost), 1e-9),
        routing=plan.routing[index],
        together_with=crowd,
    )
