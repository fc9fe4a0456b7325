"""Rehearses a prefill/decode fleet before anyone runs it: simulates the planned load and the recorded trace on it.

It exists because a fleet rests on queueing formulas, and splitting on two of them at once: the simulator, which shares
with them only the step times, says what every pool really sustains. What it says is a `Verdict`, by which
`solver.phases.settle` corrects each phase and plans again. Two loads are tried, as for a GPU mix: the *planned* one
(Poisson arrivals at the planned rate, sizes drawn from the buckets) must leave the headroom free, the *recorded* one
(the trace, its bursts included) must be served as it stands.

A fleet is rehearsed lane by lane: each config of role both is a lane, all prefill and decode pools of a model together
are one. A request goes to the lane the plan routes its size to; lanes share nothing, so each is a run of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from simulator.alone import alone_on
from simulator.engine.run import simulate
from simulator.fleet import Fleet, InstanceKind, Links, Pool, Router, RouterKind, Scheduler
from simulator.fleet import Role as PoolRole
from simulator.metrics import Alone, ClusterFigures, figures_of, percentile_with_missing, tbt_of
from simulator.record import RequestStatus, RunRecord
from solver.domain.bucket_windows import nearest_bucket
from solver.domain.fleet import FleetConfig, FleetInstance, FleetPlan, Phase, Role
from solver.domain.gpu_mix import RequestBucket
from solver.domain.slo import Slo, SloMetric, SloTarget
from solver.domain.trace import Floats, Ints, Requests
from solver.performance.capacity import DEFAULT_ENGINE
from solver.performance.iteration import EngineSettings
from solver.phases.settle import Enough, Verdict

PLANNED_REQUESTS = 12_000
"""Requests of planned load that are simulated."""
RECORDED_REQUESTS = 40_000
"""A longer trace is represented by its busiest stretch of so many requests (`solver.domain.busiest`)."""
WARM_UP_RATIO = 0.1
STEP_RATIO = 1.04
"""Loads are tried in steps of this factor, the planned load (with its headroom) being one of them."""
MOST_STEPS = 36
SEEN_STEPS = 8
"""A phase is not believed to sustain more than so many steps above what the whole lane does: it was not tried."""
POOL_ROLES = {Role.BOTH: PoolRole.BOTH, Role.PREFILL: PoolRole.PREFILL, Role.DECODE: PoolRole.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetLoad:
    """Requests that a model's fleet must serve."""

    name: str
    requests: Requests
    bucket_of: Ints
    """Index of the bucket whose routing each request follows."""
    spare_ratio: float
    """Share of the fleet that must stay free: served at 1 / (1 - spare) times the speed."""
    warm_up_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsedFleetTarget:
    """One target of one model, in seconds or times the request alone.

    Infinite: requests are left without it. None: no request has the quantity (which meets the target), or there is no
    such load.
    """

    target: SloTarget
    planned: float | None
    """At the planned load."""
    recorded: float | None
    """With the recorded trace."""

    @property
    def met(self) -> bool:
        """Whether the target is met under all loads."""
        limit = self.target.limit_ratio if self.target.limit_s is None else self.target.limit_s
        return all(
            value is None or (limit is not None and value <= limit) for value in (self.planned, self.recorded)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    model: int
    pools: tuple[tuple[int, int], ...]
    """Config index and replicas."""
    start: tuple[float, ...]
    """Share of each bucket of the model that the lanes before it take: draws from here on are its own."""
    shares: tuple[float, ...]
    """Of each bucket of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    ttft: bool
    later: bool
    met: bool


class _TimeUpError(Exception):
    """A simulation that is needed was not begun."""


@dataclass(slots=True, kw_only=True, eq=False)
class FleetStage:
    """Simulates fleets of one problem; the same run is never made twice, and runs are counted.

    No simulation begins once ``enough`` says so; one that has begun runs to its end.
    """

    loads: Mapping[str, Sequence[FleetLoad]]
    """By model; the same requests for every fleet."""
    kinds: Callable[[str, FleetConfig], InstanceKind]
    slo: Slo
    reference: InstanceKind | None = None
    """What relative targets compare with."""
    engine: EngineSettings = DEFAULT_ENGINE
    router: RouterKind = RouterKind.JSQ
    links: Links = field(default_factory=Links)
    seed: int = 0
    runs: int = 0
    on_run: Callable[[], None] | None = None
    enough: Enough = lambda: False
    """Asked before each simulation of `verdict` and `holds`."""
    _known: dict[tuple[object, ...], _Seen] = field(default_factory=dict)
    _hardest: str = ""

    def verdict(self, instance: FleetInstance, plan: FleetPlan) -> Verdict | None:
        """Say what every lane of a fleet sustains, each phase by its own targets; None: time ran out before."""
        try:
            return self._verdict(instance, plan)
        except _TimeUpError:
            return None

    def _verdict(self, instance: FleetInstance, plan: FleetPlan) -> Verdict:
        before = self.runs
        sustained, factors = float("inf"), {}
        for lane in _lanes(instance, plan):
            model = instance.models[lane.model]
            split = len({model.configs[c].role for c, _ in lane.pools}) > 1
            most = {
                phase: min(self._steps(instance, plan, lane, load, phase) for load in self.loads[model.name])
                for phase in (("met", "ttft", "later") if split else ("met",))
            }
            sustained = min(sustained, STEP_RATIO ** most["met"])
            for c, _ in lane.pools:
                phase = {Role.PREFILL: "ttft", Role.DECODE: "later"}.get(model.configs[c].role, "met")
                steps = min(most[phase], most["met"] + SEEN_STEPS) if split else most["met"]
                factors[model.name, c] = (
                    plan.load_ratio[lane.model][c] / (1.0 - model.headroom_ratio) * STEP_RATIO**steps
                )
        return Verdict(sustained_ratio=sustained, factors=factors, runs=self.runs - before)

    def holds(self, instance: FleetInstance, plan: FleetPlan) -> bool | None:
        """Whether all lanes serve all loads within the SLO; None: time ran out before that was known."""
        try:
            return self._holds(instance, plan)
        except _TimeUpError:
            return None

    def _holds(self, instance: FleetInstance, plan: FleetPlan) -> bool:
        for lane in _lanes(instance, plan):
            loads = self.loads[instance.models[lane.model].name]
            # The load that the last fleet failed is likeliest to fail this one too.
            for load in sorted(loads, key=lambda load: load.name != self._hardest):
                if not self._seen(instance, plan, lane, load, 0).met:
                    self._hardest = load.name
                    return False
        return True

    def targets(
        self, instance: FleetInstance, plan: FleetPlan, *, enough: Enough = lambda: False
    ) -> dict[str, list[RehearsedFleetTarget]]:
        """Simulate all loads at their own speed (no headroom taken) and give every target's value by model.

        Empty: ``enough`` said that time was up before all were simulated.
        """
        rehearsed = {}
        for m, model in enumerate(instance.models):
            lanes = [lane for lane in _lanes(instance, plan) if lane.model == m]
            try:
                values = [
                    self._values(instance, plan, lanes, load, enough) for load in self.loads[model.name]
                ]
            except _TimeUpError:
                return {}
            rehearsed[model.name] = [
                RehearsedFleetTarget(
                    target=target,
                    planned=values[0][place],
                    recorded=values[1][place] if len(values) > 1 else None,
                )
                for place, target in enumerate(self.slo.targets)
            ]
        return rehearsed

    # -- one lane ---------------------------------------------------------------------------------------------------

    def _steps(
        self, instance: FleetInstance, plan: FleetPlan, lane: _Lane, load: FleetLoad, phase: str
    ) -> int:
        """Return the largest number of steps above the load (below it: negative) that keep a phase in its targets."""

        def good(steps: int) -> bool:
            return bool(getattr(self._seen(instance, plan, lane, load, steps), phase))

        low, high, reach = -MOST_STEPS, MOST_STEPS, 4
        if good(0):
            low = 0
            while reach < high and good(reach):
                low, reach = reach, 2 * reach
            high = min(high, reach)
        else:
            high = 0
            while -reach > low and not good(-reach):
                high, reach = -reach, 2 * reach
            low = max(low, -reach)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if good(middle) else (low, middle)
        return low

    def _seen(
        self, instance: FleetInstance, plan: FleetPlan, lane: _Lane, load: FleetLoad, steps: int
    ) -> _Seen:
        model = instance.models[lane.model]
        pools = tuple((model.configs[c], n) for c, n in lane.pools)
        speed = STEP_RATIO**steps / (1.0 - load.spare_ratio) * (plan.rate_factor or 1.0)
        key = (model.name, pools, lane.shares, load.name, round(speed, 9))
        if key not in self._known:
            requests = self._sent(lane, load, speed)
            if len(requests):
                record = self._run(model.name, pools, requests, stop=True, enough=self.enough)
                self._known[key] = self._judged(requests, record, load.warm_up_s / speed)
            else:
                self._known[key] = _Seen(ttft=True, later=True, met=True)
        return self._known[key]

    def _sent(self, lane: _Lane, load: FleetLoad, speed: float) -> Requests:
        """Draw the lane of each request by the plan's shares of its bucket; the draw is the same for all fleets."""
        draws = np.random.default_rng([self.seed, 3]).random(len(load.requests))
        low = np.array(lane.shares)[load.bucket_of]
        start = np.array(lane.start)[load.bucket_of]
        mine = load.requests.take(np.flatnonzero((draws >= start) & (draws < start + low)))
        return mine.at_times(mine.arrival_s / speed)

    def _run(
        self,
        model: str,
        pools: Sequence[tuple[FleetConfig, int]],
        requests: Requests,
        *,
        stop: bool,
        enough: Enough,
    ) -> RunRecord:
        if enough():
            raise _TimeUpError
        self.runs += 1
        if self.on_run is not None:
            self.on_run()
        kinds = tuple(self.kinds(model, config) for config, _ in pools)
        links = [c.kv_link_bytes_per_s for c, _ in pools if c.kv_link_bytes_per_s is not None]
        fleet = Fleet(
            models=(model,),
            kinds=kinds,
            pools=tuple(
                Pool(name=f"{p} {config.role}", kind=p, count=count, role=POOL_ROLES[config.role])
                for p, (config, count) in enumerate(pools)
            ),
            scheduler=Scheduler(
                max_batch=self.engine.max_batch,
                max_batch_tokens=self.engine.max_batch_tokens,
                chunked_prefill=self.engine.chunked_prefill,
            ),
            router=Router(kind=self.router),
            links=replace(self.links, bytes_per_s=min(links)) if links else self.links,
        )
        return simulate(fleet, requests, seed=self.seed, stop_when_overloaded=stop)

    def _alone(self, requests: Requests) -> Alone | None:
        if not self.slo.relative or self.reference is None:
            return None
        return alone_on(
            (self.reference,),
            np.zeros(len(requests), dtype=np.int64),
            requests.prompt_tokens,
            requests.output_tokens,
            chunk_tokens=self.engine.max_batch_tokens if self.engine.chunked_prefill else None,
        )

    def _judged(self, requests: Requests, record: RunRecord, warm_up_s: float) -> _Seen:
        if record.stopped_early:
            prompts_late = prompts_at_fault(requests, record)
            return _Seen(ttft=not prompts_late, later=prompts_late, met=False)
        figures: ClusterFigures = figures_of(
            record,
            requests,
            pools=[str(p) for p in range(int(record.pool_of_instance.max()) + 1)],
            price_usd_per_h=[None] * (int(record.pool_of_instance.max()) + 1),
            slo=self.slo,
            alone=self._alone(requests),
            warm_up_s=warm_up_s,
        )
        met = figures.slo.met is not False and not figures.requests.incomplete
        ttft = all(check.met for check in figures.slo.checks if check.target.metric is SloMetric.TTFT)
        later = all(check.met for check in figures.slo.checks if check.target.metric is not SloMetric.TTFT)
        if not met and ttft and later:  # something never ended: both phases answer for it
            ttft = later = False
        return _Seen(ttft=ttft, later=later, met=met)

    def _values(
        self,
        instance: FleetInstance,
        plan: FleetPlan,
        lanes: Sequence[_Lane],
        load: FleetLoad,
        enough: Enough,
    ) -> list[float | None]:
        """Percentiles over all lanes of a model together."""
        speed = plan.rate_factor or 1.0
        columns: dict[SloMetric, list[Floats]] = {metric: [] for metric in SloMetric}
        missing = 0
        for lane in lanes:
            model = instance.models[lane.model]
            requests = self._sent(lane, load, speed)
            if not len(requests):
                continue
            pools = tuple((model.configs[c], n) for c, n in lane.pools)
            record = self._run(model.name, pools, requests, stop=False, enough=enough)
            counted = requests.arrival_s >= load.warm_up_s / speed
            done = counted & record.completed()
            missing += int((counted & (record.status != RequestStatus.COMPLETED)).sum())
            alone = self._alone(requests)
            for metric, values in (
                (SloMetric.TTFT, record.ttft_s),
                (SloMetric.TBT, tbt_of(record, requests)),
                (SloMetric.E2E, record.e2e_s),
            ):
                relative = 1.0 if alone is None else getattr(alone, f"{metric}_s")
                columns[metric].append(np.stack((values[done], (values / relative)[done])))
        reached: list[float | None] = []
        for target in self.slo.targets:
            both = (
                np.concatenate(columns[target.metric], axis=1) if columns[target.metric] else np.zeros((2, 0))
            )
            values = both[0 if target.limit_s is not None else 1]
            value = percentile_with_missing(values[np.isfinite(values)], target.percentile, missing)
            reached.append(None if np.isnan(value) else value)
        return reached


def prompts_at_fault(requests: Requests, record: RunRecord) -> bool:
    """Whether most of what an overloaded run left unfinished waits for its first token."""
    unfinished = (requests.arrival_s < record.end_time_s) & ~np.isfinite(record.e2e_s)
    return bool(np.mean(~np.isfinite(record.ttft_s[unfinished])) > 0.5) if unfinished.any() else True


def planned_load(
    buckets: Sequence[RequestBucket], *, spare_ratio: float, seed: int, requests: int = PLANNED_REQUESTS
) -> FleetLoad:
    """Draw the planned load of one model: Poisson arrivals, buckets by their rates."""
    randomness = np.random.default_rng([seed, 1])
    rates = np.array([bucket.rate_rps for bucket in buckets])
    chosen = randomness.choice(len(rates), size=requests, p=rates / rates.sum())
    prompt = np.array([max(1, round(bucket.input_tokens or 1)) for bucket in buckets])
    output = np.array([max(1, round(bucket.output_tokens or 1)) for bucket in buckets])
    arrival_s = np.cumsum(randomness.exponential(1.0 / rates.sum(), requests))
    return FleetLoad(
        name="planned",
        requests=Requests(arrival_s=arrival_s, prompt_tokens=prompt[chosen], output_tokens=output[chosen]),
        bucket_of=chosen,
        spare_ratio=spare_ratio,
        warm_up_s=WARM_UP_RATIO * float(arrival_s[-1]),
    )


def recorded_load(buckets: Sequence[RequestBucket], busiest: Requests, *, speed: float = 1.0) -> FleetLoad:
    """Take a trace, or its busiest stretch, for the load; each request follows the bucket nearest to its size."""
    part = busiest.at_times((busiest.arrival_s - busiest.arrival_s[0]) / speed)
    return FleetLoad(name="recorded", requests=part, bucket_of=nearest_bucket(buckets, part), spare_ratio=0.0)


def _lanes(instance: FleetInstance, plan: FleetPlan) -> list[_Lane]:
    lanes: list[_Lane] = []
    for m, model in enumerate(instance.models):
        shares = {phase: np.zeros((len(model.configs), len(model.buckets))) for phase in Phase}
        for flow in plan.flows:
            if flow.model == model.name:
                shares[flow.phase][flow.config, flow.bucket] += flow.share
        start = np.zeros(len(model.buckets))

        def add(pools: tuple[tuple[int, int], ...], sent: Floats, m: int = m, start: Floats = start) -> None:
            if pools and sent.any():
                lanes.append(
                    _Lane(model=m, pools=pools, start=tuple(start.tolist()), shares=tuple(sent.tolist()))
                )
                start += sent

        used = [(c, replicas) for c, replicas in enumerate(plan.replicas[m]) if replicas]
        for c, replicas in used:
            if model.configs[c].role is Role.BOTH:
                add(((c, replicas),), shares[Phase.BOTH][c])
        add(
            tuple((c, n) for c, n in used if model.configs[c].role is not Role.BOTH),
            shares[Phase.PREFILL].sum(axis=0),
        )
        unrouted = start < 1.0 - 1e-9  # a bucket of no traffic has no routing: let the last lane take it
        if lanes and lanes[-1].model == m and unrouted.any():
            last = lanes[-1]
            rest = tuple(
                share + (1.0 - end if end < 1.0 - 1e-9 else 0.0)
                for share, end in zip(last.shares, start.tolist(), strict=True)
            )
            lanes[-1] = replace(last, shares=rest)
    return lanes
