"""Whether a new decision should replace the plan that stands: need at once, savings only now and then.

It exists so that replicas do not swing with every sample. More capacity for more traffic, fewer GPUs than are held and
a changed wish never wait; a saving waits for its interval, for a whole window of fresh samples, and must be one. Within
the interval after a change more traffic only adds replicas: what was just started is not stopped for a better mix.
Sources: platform reference R16; WVA issues 380 and 508, Karpenter issue 2388 (like for like replaced).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from solver.domain.cluster import ServiceDecision, ServiceState
from solver.services.plan import routing_of, serves

LEAST_SAVING_RATIO = 1e-6
MEASURED_SLACK_RATIO = 0.5
"""Measured traffic may use half of the headroom before more capacity is called for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The plan that stands, and what is known of its time."""

    replicas: tuple[int, ...] | None
    """By variant of the service as it is now; None: there is no plan."""
    same_wish: bool
    """It was made for the service as its owner wishes it now."""
    since_s: float
    """Seconds since it was made."""
    reached: bool
    """It was applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to replace the plan, and why (or what it waits for)."""

    replace: bool
    why: str
    add_only: bool = False
    """It is too early to take anything away: go to `added` rather than to what was decided, if that fits."""


def change_usd(service: ServiceState, replicas: Sequence[int]) -> float:
    """US$ for going from what is asked for now to so many replicas."""
    total = 0.0
    for variant, count in zip(service.variants, replicas, strict=True):
        more = count - variant.replicas
        per_gpu = service.start_cost_usd if more > 0 else service.stop_cost_usd
        total += abs(more) * variant.gpus_per_replica * per_gpu
    return total


def cost_usd_per_h(service: ServiceState, replicas: Sequence[int]) -> float:
    """US$ per hour of so many replicas."""
    return sum(
        variant.price_usd_per_h * count for variant, count in zip(service.variants, replicas, strict=True)
    )


def settle(
    service: ServiceState,
    decided: Sequence[int],
    standing: Standing,
    *,
    settled: bool,
    slack_ratio: float,
    overdrawn: bool,
    min_interval_s: float,
) -> Verdict:
    """Judge a decision.

    ``settled``: a whole window of fresh samples is known. ``slack_ratio``: the share of the headroom that traffic may
    use before more capacity is called for (0 where traffic is stated). ``overdrawn``: some pool of the service has
    fewer GPUs than are held in it.
    """
    old = standing.replicas
    if old is None:
        return Verdict(replace=True, why="first plan")
    if tuple(decided) == tuple(old):
        if standing.reached and service.replicas != tuple(old):
            return Verdict(replace=True, why="replicas are not what was planned")
        return Verdict(replace=False, why="the plan stands")
    if not standing.same_wish:
        return Verdict(replace=True, why="the ModelService changed")
    if overdrawn:
        return Verdict(replace=True, why="there are fewer GPUs than are held")
    outside = [
        variant.name
        for variant, count in zip(service.variants, old, strict=True)
        if count < variant.min_replicas
        or (variant.max_replicas is not None and count > variant.max_replicas)
        or (variant.locked and count != variant.replicas)
    ]
    if outside:
        return Verdict(replace=True, why=f"the bounds of {', '.join(outside)} changed")
    if not serves(service, old, headroom_ratio=service.headroom_ratio * (1.0 - slack_ratio)):
        early = standing.since_s < min_interval_s
        why = "the planned replicas would not carry the traffic"
        return Verdict(replace=True, why=why, add_only=early and _takes(decided, old))
    if not settled and _takes(decided, old):
        return Verdict(replace=False, why="less traffic is believed after a whole window of samples")
    saving = (
        cost_usd_per_h(service, old)
        + change_usd(service, old)
        - cost_usd_per_h(service, decided)
        - change_usd(service, decided)
    )
    if saving <= LEAST_SAVING_RATIO * max(1.0, cost_usd_per_h(service, old)):
        return Verdict(replace=False, why="nothing is gained by a change")
    if standing.since_s < min_interval_s:
        return Verdict(
            replace=False,
            why=f"a saving of {saving:.2f} US$/h waits for {min_interval_s:g} s between changes",
        )
    return Verdict(replace=True, why=f"saves {saving:.2f} US$/h, changes counted")


def _takes(decided: Sequence[int], old: Sequence[int]) -> bool:
    return any(new < was for new, was in zip(decided, old, strict=True))


def added(service: ServiceState, decided: Sequence[int], old: Sequence[int]) -> tuple[int, ...]:
    """Add of the decided replicas to the old ones what the traffic needs, dear ones no more than must be."""
    counts = [max(new, was) for new, was in zip(decided, old, strict=True)]
    if service.survive:
        return tuple(counts)  # with less, losses might not be survived
    dear_first = sorted(range(len(counts)), key=lambda v: -service.variants[v].price_usd_per_h)
    for variant in dear_first:
        fewest, enough = old[variant], counts[variant]
        while fewest < enough:
            middle = (fewest + enough) // 2
            less = [*counts[:variant], middle, *counts[variant + 1 :]]
            if serves(service, less, headroom_ratio=service.headroom_ratio):
                enough = middle
            else:
                fewest = middle + 1
        counts[variant] = enough
    return tuple(counts)


def restated(service: ServiceState, decision: ServiceDecision, replicas: Sequence[int]) -> ServiceDecision:
    """Return a decision with other replicas: what they cost, how much less another plan could, who serves what."""
    cost = cost_usd_per_h(service, replicas)
    bound = decision.lower_bound_usd_per_h
    if bound is not None and decision.replicas is not None:
        least = bound + change_usd(service, decision.replicas)  # of cost and change together
        bound = max(0.0, cost - max(0.0, cost + change_usd(service, replicas) - least))
    return replace(
        decision,
        replicas=tuple(replicas),
        cost_usd_per_h=cost,
        lower_bound_usd_per_h=bound,
        gap_ratio=None if bound is None else (cost - bound) / max(abs(cost), 1e-9),
        routing=routing_of(service, replicas),
    )
