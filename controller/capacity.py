"""Searches over simulated scenarios: the largest rate a fleet sustains, and the smallest fleets that sustain a rate.

It exists so that both commands, sweeps of them and reports run scenarios in one way. The searches themselves are
`simulator.search`, one run is `controller.simulation`. It prints nothing.

Common random numbers: every rate serves the same requests in the same order, only the clock runs faster. How sure a
rate is, is asked with resampled traces: stretches of a `BLOCKS`-th of the recording are drawn with replacement and put
one after the other (moving blocks, so that bursts, sizes and their order within a stretch survive); each resampled
trace is searched in the same way, and the interval is Student's around the answer.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from controller.cluster_fleet import ClusterCatalogues, catalogues_for, resolve
from controller.planning import spawned
from controller.simulation import TraceInUse, judge, read_requests, refuse_planner, run_cluster
from controller.time_limit import TimeLimitError, within
from simulator.fleet import Role
from simulator.metrics import ClusterFigures
from simulator.record import Saturation
from simulator.scenario import Scenario, ScenarioPool
from simulator.search import LargestRate, Verdict, interval_90, largest_rate, pareto, smallest_splits
from solver.domain.errors import InputError
from solver.domain.slo import Slo
from solver.domain.trace import Requests, concatenate
from telemetry.catalogue.read import find_gpu

BLOCKS = 12
"""Stretches that a trace is cut into to resample it."""
REPLICATE_TOLERANCE = 0.02
LARGEST_FACTOR = 4096.0
OBJECTIVES = ("cost", "power", "count")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A scenario and its trace, ready to be asked at any rate."""

    scenario: Scenario
    catalogues: ClusterCatalogues
    trace: TraceInUse
    seed: int

    @property
    def rate_rps(self) -> float:
        """Requests per second of the trace as it stands."""
        return _rate_rps(self.trace.requests)

    def figures(self, trace: TraceInUse) -> tuple[ClusterFigures, bool]:
        """Simulate a trace; the second is True if the run was broken off as overloaded."""
        cluster = resolve(
            self.scenario, self.catalogues, longest_prompt_tokens=int(trace.requests.prompt_tokens.max())
        )
        record = run_cluster(cluster, trace, seed=self.seed, stop_when_overloaded=True)
        return judge(cluster, trace, record), record.stopped_early

    def verdict(self, trace: TraceInUse) -> Verdict:
        """Say whether a trace is served within the SLO by a fleet that keeps up."""
        figures, stopped = self.figures(trace)
        limiting = figures.slo.limiting
        name = None if limiting is None else limiting.target.key
        overloaded = stopped or figures.saturation is Saturation.OVERLOADED
        met = figures.slo.met is not False and not overloaded and not figures.requests.incomplete
        return Verdict(met=met, limiting="overload" if overloaded and name is None else name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The largest rate of a scenario within its SLO."""

    rate_rps: float
    """0: the smallest rate tried misses the SLO."""
    first_missed_rps: float | None
    """None: every rate tried is met."""
    limiting_target: str | None
    interval_90: tuple[float, float] | None
    replicates: tuple[float, ...]
    runs: int
    complete: bool
    """False: the time limit was reached; larger rates may be met, and the interval rests on fewer traces."""
    figures: ClusterFigures | None
    """At the largest rate."""


def ask(
    scenario: Scenario,
    *,
    slo: Slo | None = None,
    trace_file: str | None = None,
    catalogue_files: Sequence[Path] = (),
    seed: int = 0,
) -> Question:
    """Read what a search needs, once.

    Raises
    ------
    InputError
        For everything in scenario, trace or catalogues that makes no sense, and for a scenario without SLO.
    """
    if slo is not None:
        scenario = replace(scenario, slo=slo)
    if not scenario.slo.targets:
        raise InputError(
            "no SLO", where=scenario.place("slo"), right="slo in the scenario, or --slo ttft_p99=2.0"
        )
    refuse_planner(scenario)
    catalogues = catalogues_for(scenario, catalogue_files)
    trace = read_requests(scenario, catalogues, trace_file=trace_file, seed=seed)
    if len(trace.requests) < 2 or trace.requests.arrival_s[-1] <= trace.requests.arrival_s[0]:
        raise InputError(f"{trace.name} has no rate", right="a trace with requests at two times at least")
    return Question(scenario=scenario, catalogues=catalogues, trace=trace, seed=seed)


def capacity_of(
    question: Question,
    *,
    tolerance_ratio: float = 0.01,
    replicates: int = 8,
    workers: int | None = None,
    time_limit_s: float | None = None,
    began_s: float | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Capacity:
    """Find the largest rate, and how much it varies over traces of the same kind."""
    base_rps = question.rate_rps
    began_s = time.monotonic() if began_s is None else began_s
    say = on_step or (lambda _note: None)

    tried: dict[float, Verdict] = {}

    def at(rate_rps: float) -> Verdict:
        say(f"{rate_rps:.3g} requests/s")
        tried[rate_rps] = question.verdict(question.trace.faster(rate_rps / base_rps))
        return tried[rate_rps]

    rates: list[float] = []
    complete = False
    found = None
    try:
        with within(time_limit_s, began_s=began_s):
            found = largest_rate(
                at,
                start=base_rps,
                tolerance_ratio=tolerance_ratio,
                smallest=base_rps / LARGEST_FACTOR,
                largest=base_rps * LARGEST_FACTOR,
            )
            if found.rate > 0.0 and replicates > 0:
                tasks = [(question, found.rate, number) for number in range(replicates)]
                with spawned(workers, tasks=len(tasks)) as executor:
                    for rate in _mapped(executor, _replicate, tasks):
                        rates.append(rate)
                        say(f"resampled trace {len(rates)} of {replicates}")
            complete = True
    except TimeLimitError:
        if found is None:
            found = _so_far(tried)
    figures = None
    if found.rate > 0.0:
        figures, _ = question.figures(question.trace.faster(found.rate / base_rps))
    return Capacity(
        rate_rps=found.rate,
        first_missed_rps=found.first_missed,
        limiting_target=found.limiting,
        interval_90=interval_90(found.rate, rates),
        replicates=tuple(rates),
        runs=found.runs,
        complete=complete,
        figures=figures,
    )


def _so_far(tried: Mapping[float, Verdict]) -> LargestRate:
    """Say what a search that was broken off had found."""
    met = max((rate for rate, verdict in tried.items() if verdict.met), default=0.0)
    missed = min((rate for rate, verdict in tried.items() if not verdict.met), default=None)
    limiting = None if missed is None else tried[missed].limiting
    return LargestRate(rate=met, first_missed=missed, limiting=limiting, runs=len(tried))


def _replicate(task: tuple[Question, float, int]) -> float:
    """Search one resampled trace, beginning at the answer of the recorded one."""
    question, rate_rps, number = task
    trace = resampled(question.trace, seed=question.seed, number=number)
    base_rps = _rate_rps(trace.requests)
    return largest_rate(
        lambda rate: question.verdict(trace.faster(rate / base_rps)),
        start=rate_rps,
        tolerance_ratio=REPLICATE_TOLERANCE,
    ).rate


def resampled(trace: TraceInUse, *, seed: int, number: int) -> TraceInUse:
    """Draw stretches of a trace with replacement and put them one after the other."""
    requests = trace.requests
    first_s, last_s = float(requests.arrival_s[0]), float(requests.arrival_s[-1])
    width_s = (last_s - first_s) / BLOCKS
    randomness = np.random.default_rng([seed, number])
    starts_s = first_s + randomness.random(BLOCKS) * (last_s - first_s - width_s)
    parts: list[Requests] = []
    index = []
    for place, start_s in enumerate(starts_s):
        low, high = np.searchsorted(requests.arrival_s, [start_s, start_s + width_s]).tolist()
        part = requests.take(slice(low, high))
        parts.append(part.at_times(part.arrival_s - start_s + first_s + place * width_s))
        index.append(np.arange(low, high))
    chosen = np.concatenate(index)
    if len(chosen) < 2:
        return trace
    return replace(
        trace,
        requests=concatenate(parts),
        model_of_request=trace.model_of_request[chosen],
        priority_of_request=None if trace.priority_of_request is None else trace.priority_of_request[chosen],
    )


def _rate_rps(requests: Requests) -> float:
    return len(requests) / float(requests.arrival_s[-1] - requests.arrival_s[0])


Task = TypeVar("Task")
Answer = TypeVar("Answer")


def _mapped(
    executor: Executor | None, work: Callable[[Task], Answer], tasks: Sequence[Task]
) -> Iterator[Answer]:
    """Work on tasks here or in processes; answers come in the order of the tasks."""
    return iter(executor.map(work, tasks)) if executor is not None else (work(task) for task in tasks)


# -- provisioning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Designs that differ in their counts only: one pool of both roles, or a prefill and a decode pool."""

    pools: tuple[ScenarioPool, ...]

    @property
    def name(self) -> str:
        """Say which GPUs, and how they are split."""
        words = []
        for pool in self.pools:
            cap = "" if pool.power_cap_w_per_gpu is None else f" at {pool.power_cap_w_per_gpu:g} W"
            words.append(f"{pool.gpus_per_instance} x {pool.gpu_type}{cap}")
        return " | ".join(words) if len(words) > 1 else words[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A fleet that meets the SLO at the rate, and of which no instance can be spared within its family."""

    family: str
    pools: tuple[ScenarioPool, ...]
    cost_usd_per_h: float | None
    """None: a price is not known."""
    power_w: float | None
    """Simulated mean; None: watts are not known."""
    instances: int
    gpus: int
    step_model: str
    known_error: str
    figures: ClusterFigures

    def value(self, objective: str) -> float:
        """Return what an objective wants small; infinite where not known."""
        known = {"cost": self.cost_usd_per_h, "power": self.power_w, "count": float(self.instances)}[
            objective
        ]
        return math.inf if known is None else known


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """All designs found, and which of them nothing beats."""

    designs: tuple[Design, ...]
    """In the order of the families."""
    front: tuple[int, ...]
    """Designs that no other beats in cost, power and count."""
    best: int | None
    """By the objective; None: nothing tried meets the SLO."""
    runs: int
    complete: bool
    """False: the time limit was reached before all families were tried."""


def families_of(
    scenario: Scenario, catalogues: ClusterCatalogues, *, gpu_types: Sequence[str], caps: Sequence[float]
) -> list[Family]:
    """List the families: each type alone, and each pair of types split into prefill and decode, its decode capped.

    ``caps`` are shares of the TDP at which decode pools are tried; 1 is no cap.

    Raises
    ------
    InputError
        If the scenario serves several models, or a type is unknown.
    """
    if len(scenario.models) > 1:
        raise InputError(
            "provisioning is for one model", where=scenario.place("models"), right="a scenario per model"
        )
    pattern = scenario.pools[0]
    gpus_of = {pool.gpu_type: pool.gpus_per_instance for pool in reversed(scenario.pools)}
    names = [find_gpu(catalogues.gpus, name).name for name in gpu_types] or list(
        dict.fromkeys(p.gpu_type for p in scenario.pools)
    )

    def pool(name: str, gpu_type: str, role: Role, cap: float = 1.0) -> ScenarioPool:
        watts = None if cap == 1.0 else cap * find_gpu(catalogues.gpus, gpu_type).tdp_w
        return replace(
            pattern,
            name=name,
            gpu_type=gpu_type,
            gpus_per_instance=gpus_of.get(gpu_type, pattern.gpus_per_instance),
            count=1,
            role=role,
            power_cap_w_per_gpu=watts,
        )

    alone = [Family(pools=(pool("all", name, Role.BOTH),)) for name in names]
    pairs = [
        Family(pools=(pool("prefill", prefill, Role.PREFILL), pool("decode", decode, Role.DECODE, cap)))
        for prefill in names
        for decode in names
        for cap in caps
    ]
    return [*alone, *pairs]


def provision(
    question: Question,
    families: Sequence[Family],
    *,
    rate_rps: float,
    objective: str,
    largest_count: int,
    workers: int | None = None,
    time_limit_s: float | None = None,
    began_s: float | None = None,
    on_family: Callable[[str], None] | None = None,
) -> Provision:
    """Find the smallest fleets of all families that serve ``rate_rps`` within the SLO."""
    began_s = time.monotonic() if began_s is None else began_s
    trace = question.trace.faster(rate_rps / question.rate_rps)
    asked = replace(question, trace=trace)
    tasks = [(asked, family, largest_count) for family in families]
    designs: list[Design] = []
    runs = 0
    complete = False
    try:
        with (
            within(time_limit_s, began_s=began_s),
            spawned(workers, tasks=len(tasks)) as executor,
        ):
            for family, (found, tried) in zip(families, _mapped(executor, _smallest, tasks), strict=True):
                designs += found
                runs += tried
                if on_family is not None:
                    on_family(family.name)
            complete = True
    except TimeLimitError:
        pass
    if objective == "cost" and designs and all(design.cost_usd_per_h is None for design in designs):
        raise InputError(
            "no price of these GPU types is known",
            right="--catalogue FILE with prices, or another --objective",
        )
    front = pareto([[design.value(name) for name in OBJECTIVES] for design in designs])
    order = sorted(
        range(len(designs)),
        key=lambda k: (designs[k].value(objective), *map(designs[k].value, OBJECTIVES), k),
    )
    return Provision(
        designs=tuple(designs),
        front=tuple(front),
        best=order[0] if designs else None,
        runs=runs,
        complete=complete,
    )


def _smallest(task: tuple[Question, Family, int]) -> tuple[list[Design], int]:
    """Find the counts of one family of which none can be spared."""
    question, family, largest_count = task
    known: dict[tuple[int, ...], ClusterFigures] = {}

    def judged(*counts: int) -> Verdict:
        asked = replace(question, scenario=with_pools(question.scenario, family, counts))
        figures, stopped = asked.figures(question.trace)
        met = figures.slo.met is not False and not figures.requests.incomplete
        met = met and not stopped and figures.saturation is not Saturation.OVERLOADED
        if met:
            known[counts] = figures
        return Verdict(met=met)

    if len(family.pools) == 1:
        corners, runs = _smallest_count(judged, largest_count)
    else:
        pairs, runs = smallest_splits(judged, largest_first=largest_count, largest_second=largest_count)
        corners = [tuple(pair) for pair in pairs]
    return [_design(question, family, counts, known[counts]) for counts in corners], runs


def _smallest_count(judge_count: Callable[[int], Verdict], largest: int) -> tuple[list[tuple[int, ...]], int]:
    low, high, runs = 0, largest + 1, 0
    step = 1
    while step <= largest:  # doubling first: small fleets are the cheaper runs
        runs += 1
        if judge_count(step).met:
            high = step
            break
        low = step
        step = largest if step < largest < 2 * step else 2 * step
    while high - low > 1 and high <= largest:
        middle = (low + high) // 2
        runs += 1
        if judge_count(middle).met:
            high = middle
        else:
            low = middle
    return ([(high,)] if high <= largest else []), runs


def with_pools(scenario: Scenario, family: Family, counts: Sequence[int]) -> Scenario:
    """Return the scenario with the pools of a family in so many instances; events go with the old pools."""
    pools = tuple(replace(pool, count=count) for pool, count in zip(family.pools, counts, strict=True))
    return replace(scenario, pools=pools, events=())


def _design(question: Question, family: Family, counts: Sequence[int], figures: ClusterFigures) -> Design:
    scenario = with_pools(question.scenario, family, counts)
    cluster = resolve(
        scenario,
        question.catalogues,
        longest_prompt_tokens=int(question.trace.requests.prompt_tokens.max()),
    )
    prices = [
        None if pool.price_usd_per_h is None else pool.price_usd_per_h * pool.count for pool in cluster.pools
    ]
    known = [price for price in prices if price is not None]
    return Design(
        family=family.name,
        pools=scenario.pools,
        cost_usd_per_h=sum(known) if len(known) == len(prices) else None,
        power_w=None if figures.power is None else figures.power.mean_w,
        instances=sum(pool.count for pool in scenario.pools),
        gpus=sum(pool.count * pool.gpus_per_instance for pool in scenario.pools),
        step_model=", ".join(dict.fromkeys(pool.step_model for pool in cluster.pools)),
        known_error="; ".join(dict.fromkeys(pool.known_error for pool in cluster.pools)),
        figures=figures,
    )
