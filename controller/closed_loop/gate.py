"""Rehearses a change of a fleet on the last window of traffic: what runs beside what is planned, before anything moves.

It exists so that a plan whose SLO attainment would fall is refused, by the same engine and the same judgement as the
simulated cluster itself. The simulated cluster (`controller.closed_loop`) hands it the requests that arrived, the
operator (`controller.operator.rehearsal`) recorded ones or ones drawn from what it measured. It decides no replicas.

Both fleets begin empty, so the window's first seconds flatter both alike. A fall is no reason to refuse while the
attainment stays at the percentile that the SLO asks for: any saving makes some request a little slower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controller.closed_loop.judge import attained_of
from controller.closed_loop.lanes import apart, drawn_lanes
from controller.cluster_fleet import ClusterCatalogues, resolve
from simulator.engine.run import simulate
from simulator.fleet import Fleet
from simulator.metrics import Alone
from simulator.scenario import Scenario
from simulator.splitwise.machines import SplitwiseFleet
from solver.domain.gpu_mix import RequestBucket
from solver.domain.trace import Floats, Ints, Requests

FEWEST_REQUESTS = 50
"""Fewer than these say nothing; the change is let pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """Shares of the window's requests inside all limits, and whether the change may be made."""

    requests: int
    running_ratio: float | None
    """None: too few requests, or nothing runs."""
    planned_ratio: float | None
    allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manned:
    """A fleet in so many instances, and where requests go in it."""

    counts: Mapping[str, int]
    """By pool; one that is not named has none."""
    weights: Floats
    """[rows, pools] what requests are spread over the pools of their model by."""


def rehearse_change(
    scenario: Scenario,
    catalogues: ClusterCatalogues,
    requests: Requests,
    model_of_request: Ints,
    *,
    running: Mapping[str, int],
    planned: Mapping[str, int],
    carried_rps: Mapping[str, float],
    seed: int = 0,
) -> Rehearsed:
    """Serve a window with a scenario's pools as they run and as they are planned; as `rehearse_on`.

    Parameters
    ----------
    requests
        Of the last minutes, from 0.
    running, planned
        Instances by pool; a pool that is not named has none.
    carried_rps
        By pool, what one instance carries: requests are spread over the pools of a model by it.

    Raises
    ------
    InputError
        As `resolve`.
    """
    if _says_nothing(requests, running):
        return Rehearsed(requests=len(requests), running_ratio=None, planned_ratio=None, allowed=True)
    fixed = replace(scenario, planner=None, events=())
    cluster = resolve(fixed, catalogues, longest_prompt_tokens=int(requests.prompt_tokens.max()))
    if isinstance(cluster.fleet, SplitwiseFleet):
        raise TypeError("a planner never runs machines of the phase-splitting peer")
    alone = None
    if fixed.slo.relative and cluster.alone is not None:
        alone = cluster.alone(requests, model_of_request)
    carried = np.array([carried_rps.get(pool.name, 0.0) for pool in scenario.pools])
    before, after = (
        Manned(
            counts=counts,
            weights=carried[None, :] * [counts.get(pool.name, 0) for pool in scenario.pools],
        )
        for counts in (running, planned)
    )
    return rehearse_on(
        fixed,
        cluster.fleet,
        requests,
        model_of_request,
        running=before,
        planned=after,
        row_of_request=np.zeros(len(requests), dtype=np.int64),
        alone=alone,
        seed=seed,
    )


def rehearse_on(
    scenario: Scenario,
    fleet: Fleet,
    requests: Requests,
    model_of_request: Ints,
    *,
    running: Manned,
    planned: Manned,
    row_of_request: Ints,
    alone: Alone | None = None,
    seed: int = 0,
) -> Rehearsed:
    """Serve a window with the instances that run and with those that are planned.

    Parameters
    ----------
    scenario
        Models, pools and SLO by name.
    fleet
        Its pools, in its order, as the engine takes them; how many they are is given by the next two.
    requests
        Of the last minutes, from 0.
    row_of_request
        Row of the weights that holds for each of them: its size, where sizes go different ways.
    alone
        Latencies of the requests alone on the reference instance, for relative targets.
    """
    if _says_nothing(requests, running.counts):
        return Rehearsed(requests=len(requests), running_ratio=None, planned_ratio=None, allowed=True)
    before, after = (
        _attained(
            scenario,
            fleet,
            requests,
            model_of_request,
            manned=manned,
            row_of_request=row_of_request,
            alone=alone,
            seed=seed,
        )
        for manned in (running, planned)
    )
    asked = min(target.percentile for target in scenario.slo.targets) / 100.0
    return Rehearsed(
        requests=len(requests),
        running_ratio=before,
        planned_ratio=after,
        allowed=after >= before or after >= asked,
    )


def _says_nothing(requests: Requests, running: Mapping[str, int]) -> bool:
    return len(requests) < FEWEST_REQUESTS or not any(running.values())


def window_before(requests: Requests, now_s: float, window_s: float) -> tuple[Requests, slice]:
    """Return the requests that arrived in the last seconds, on a clock of their own, and which they are."""
    first, last = np.searchsorted(requests.arrival_s, (now_s - window_s, now_s)).tolist()
    rows = slice(first, last)
    return (
        Requests(
            arrival_s=requests.arrival_s[rows] - max(0.0, now_s - window_s),
            prompt_tokens=requests.prompt_tokens[rows],
            output_tokens=requests.output_tokens[rows],
        ),
        rows,
    )


def drawn_window(
    buckets: Sequence[RequestBucket], window_s: float, *, fewest: int, most: int, seed: int
) -> tuple[Requests, Ints]:
    """Draw a window where requests are not known one by one: Poisson arrivals at the rates of the buckets.

    Parameters
    ----------
    buckets
        Sizes with their rates, of which one at least is above 0.
    fewest, most
        Requests: a low rate is drawn for longer than the window, a high one for less.

    Returns
    -------
    Requests, Ints
        The requests, and the bucket of each.
    """
    randomness = np.random.default_rng([seed, 5])
    rates = np.array([bucket.rate_rps for bucket in buckets])
    total_rps = float(rates.sum())
    number = int(np.clip(round(total_rps * window_s), fewest, most))
    chosen: Ints = randomness.choice(len(rates), size=number, p=rates / total_rps)
    prompt = np.array([max(1, round(bucket.input_tokens or 1.0)) for bucket in buckets])
    output = np.array([max(1, round(bucket.output_tokens or 1.0)) for bucket in buckets])
    requests = Requests(
        arrival_s=np.cumsum(randomness.exponential(1.0 / total_rps, number)),
        prompt_tokens=prompt[chosen],
        output_tokens=output[chosen],
    )
    return requests, chosen


def _attained(
    scenario: Scenario,
    fleet: Fleet,
    requests: Requests,
    model_of_request: Ints,
    *,
    manned: Manned,
    row_of_request: Ints,
    alone: Alone | None,
    seed: int,
) -> float:
    """Share of the requests inside all limits with so many instances of each pool."""
    if not any(manned.counts.values()):
        return 0.0
    pools = tuple(replace(pool, count=manned.counts.get(pool.name, 0)) for pool in fleet.pools)
    fleet, asked_for = replace(fleet, pools=pools), model_of_request
    lanes = drawn_lanes(scenario, model_of_request, manned.weights, row_of_request, seed=seed)
    if lanes is not None:
        fleet, asked_for = apart(fleet), lanes
    record = simulate(fleet, requests, model_of_request=asked_for, seed=seed)
    window_s = float(requests.arrival_s[-1]) + 1.0
    return attained_of(record, requests, scenario.slo, alone=alone, window_s=window_s).request_ratio
