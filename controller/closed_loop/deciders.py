"""Who decides how many instances run, and when: Ballast's Planner and what it is compared with.

It exists so that the Planner, a static fleet, Kubernetes' autoscaling rule and an oracle stand behind one interface and
are simulated alike. The Planner is the operator's: `solver.services.decide`, then `solver.services.settle`; here it is
only asked. Nobody here looks at a request: static and oracle, who know what comes, say so by asking `Seen` late.

    ballast  rate = max(largest sample of the stabilisation time, forecast capacity rate); decide, then settle
    static   rate = the 99.9th percentile of the judged windows of the whole trace; decided once
    hpa      on the pool that carries a whole request cheapest (where there is none: on the cheapest of prefill and the
             cheapest of decode, each for itself): replicas = ceil(rate / (target x carried)), changed when off by more
             than 10 %, every 15 s, down only to the largest wish of 300 s
             (Kubernetes documentation, "Horizontal Pod Autoscaling", algorithm details, defaults)
    oracle   rate = the largest of the judged windows that meet [now, now + start_s]; decided at their edges and start_s
             before them
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from controller.closed_loop.seen import Seen
from simulator.scenario import PlannerPolicy, PlannerRules
from solver.domain.cluster import ClusterState, GpuPool, ServiceDecision, ServiceState
from solver.domain.fleet import Role
from solver.domain.rate_windows import RateWindows
from solver.forecast.capacity import CapacityRate, capacity_rate, carried_windows, planned_rate
from solver.services.decide import DecideOptions, decide
from solver.services.plan import Known
from solver.services.settle import MEASURED_SLACK_RATIO, Standing, added, settle

HPA_SYNC_S = 15.0
HPA_STABILISATION_S = 300.0
HPA_TOLERANCE_RATIO = 0.1
HPA_METRIC_S = 60.0
"""Rates are read over so long, as of Prometheus."""
STATIC_SHARE = 0.999
REACTIVE = "largest sample"
_EDGE_S = 1e-6
_LIMIT_S = 30.0
_LEAST_REST_RATIO = 0.1
"""Of a window: less of it at the end of a trace says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The rate that capacity is asked for, and where it comes from."""

    rate_rps: float
    rule: str
    settled: bool = True
    """Capacity may go down on its account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a model should run, by pool of the model."""

    model: str
    replicas: tuple[int, ...]
    asked: Asked
    why: str
    at_once: bool = False
    """Written as it is, without an order of steps."""


StateOf = Callable[[Seen, float], ServiceState]
"""Writes a model down as a service with that rate, as things stand."""


class Decider(Protocol):
    """Decides for all models."""

    def times(self, from_s: float, to_s: float) -> Iterator[float]:
        """Yield when it decides, rising."""
        ...

    def asked(self, seen: Seen, now_s: float) -> Asked | None:
        """Return the rate to have capacity for; None: nothing is known."""
        ...

    def needed(self, states: Sequence[ServiceState]) -> Mapping[str, tuple[int, ...] | None]:
        """Return the replicas that carry what the states say; None: there is no plan. Changes nothing."""
        ...

    def wishes(
        self, states: Sequence[ServiceState], asked: Mapping[str, Asked], now_s: float
    ) -> tuple[Wish, ...]:
        """Return what is to change."""
        ...

    def refused(self, model: str, running: tuple[int, ...]) -> None:
        """Hear that the last wish for a model is not carried out: it keeps what runs."""
        ...


@dataclass(slots=True, kw_only=True)
class _Planner:
    """The Planner of the operator, asked for states and remembering what it solved."""

    gpus: Mapping[str, int]
    """GPUs by type."""
    no_plan: dict[str, int] = field(default_factory=dict)
    """Why there was no plan, and how often."""
    _known: Known = field(default_factory=dict)
    _last: tuple[tuple[ServiceState, ...], tuple[ServiceDecision, ...]] | None = None

    def decide(self, states: Sequence[ServiceState]) -> tuple[ServiceDecision, ...]:
        # Where changes cost nothing, what runs changes no plan: without it more problems are known ones.
        states = tuple(
            state
            if state.start_cost_usd or state.stop_cost_usd
            else replace(state, variants=tuple(replace(v, replicas=0, ready=0) for v in state.variants))
            for state in states
        )
        if self._last is None or self._last[0] != states:
            pools = tuple(GpuPool(name=name, gpus=gpus) for name, gpus in self.gpus.items())
            decisions = decide(
                ClusterState(pools=pools, services=states),
                options=DecideOptions(time_limit_s=_LIMIT_S),
                clock=time.monotonic,
                known=self._known,
            )
            self._last = states, decisions
            for decision in decisions:
                if decision.replicas is None:
                    self.no_plan[decision.message] = self.no_plan.get(decision.message, 0) + 1
        return self._last[1]

    def needed(self, states: Sequence[ServiceState]) -> Mapping[str, tuple[int, ...] | None]:
        return {decision.service: decision.replicas for decision in self.decide(states)}


@dataclass(slots=True, kw_only=True)
class Ballast:
    """The Planner, as the operator runs it."""

    rules: PlannerRules
    planner: _Planner
    _standing: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    _forecasts: dict[tuple[str, range], CapacityRate] = field(default_factory=dict)
    """The last ones, and how many windows had ended: what they learnt is carried on."""

    def times(self, from_s: float, to_s: float) -> Iterator[float]:
        """Every interval."""
        return _every(self.rules.interval_s, from_s, to_s)

    def asked(self, seen: Seen, now_s: float) -> Asked | None:
        """Return the larger of what was just seen and what is forecast."""
        rules = self.rules
        step_s = min(rules.interval_s, rules.sample_s)
        number = 1 + max(0, math.floor((rules.stabilisation_s - rules.sample_s) / step_s + 1e-9))
        samples = [
            seen.rate_rps(now_s - k * step_s - rules.sample_s, now_s - k * step_s) for k in range(number)
        ]
        known = [sample for sample in samples if sample is not None]
        reactive = max(known, default=None)
        forecast = self._forecast(seen, now_s) if rules.forecast else None
        settled = len(known) == number
        if reactive is None and forecast is None:
            return None
        if reactive is None or forecast is None:
            rate = reactive if forecast is None else forecast.rate_rps
        else:
            rate = planned_rate(reactive, forecast)
        rule = REACTIVE if forecast is None or rate == reactive else forecast.rule
        return Asked(rate_rps=_rounded(rate or 0.0), rule=rule, settled=settled)

    def _forecast(self, seen: Seen, now_s: float) -> CapacityRate | None:
        rules = self.rules
        history = seen.windows(rules.window_s, now_s=now_s)
        if not len(history) or np.isnan(history.rate_rps).all():
            return None
        ended_s = history.start_s + history.duration_s
        # What is decided now serves from start_s on, until what the next decision starts serves.
        lead_s = now_s - ended_s + rules.ahead_s
        hold_s = rules.ahead_s - rules.start_s
        ahead = carried_windows(history.window_s, lead_s=lead_s, hold_s=hold_s)
        last = self._forecasts.get((seen.name, ahead))
        if last is None or len(last.learnt) != len(history):
            last = capacity_rate(
                history,
                lead_s=lead_s,
                hold_s=hold_s,
                violations=rules.violations,
                earlier=None if last is None else last.learnt,
            )
            self._forecasts[seen.name, ahead] = last
        return last

    def needed(self, states: Sequence[ServiceState]) -> Mapping[str, tuple[int, ...] | None]:
        """Return the cheapest replicas."""
        return self.planner.needed(states)

    def wishes(
        self, states: Sequence[ServiceState], asked: Mapping[str, Asked], now_s: float
    ) -> tuple[Wish, ...]:
        """Decide, and let a new plan replace the standing one as the operator does."""
        wishes = []
        for state, decision in zip(states, self.planner.decide(states), strict=True):
            if decision.replicas is None:
                continue
            old, made_s = self._standing.get(state.name, (None, -math.inf))
            verdict = settle(
                state,
                decision.replicas,
                Standing(replicas=old, same_wish=True, since_s=now_s - made_s, reached=old == state.replicas),
                settled=asked[state.name].settled,
                slack_ratio=MEASURED_SLACK_RATIO,
                overdrawn=False,
                min_interval_s=self.rules.min_interval_s,
            )
            if not verdict.replace:
                continue
            replicas = decision.replicas
            if verdict.add_only and old is not None and not decision.together_with:
                replicas = added(state, decision.replicas, old)
            self._standing[state.name] = (tuple(replicas), now_s)
            wishes.append(
                Wish(model=state.name, replicas=tuple(replicas), asked=asked[state.name], why=verdict.why)
            )
        return tuple(wishes)

    def refused(self, model: str, running: tuple[int, ...]) -> None:
        """Let what runs be the standing plan, made when the refused one was."""
        if model in self._standing:
            self._standing[model] = (running, self._standing[model][1])


@dataclass(slots=True, kw_only=True)
class Oracle:
    """Knows the judged windows to come."""

    rules: PlannerRules
    planner: _Planner
    end_s: float

    def times(self, from_s: float, to_s: float) -> Iterator[float]:
        """At the edges of windows, and so early that what starts is ready there."""
        width_s = self.rules.judged_window_s
        edges = [width_s * k for k in range(math.floor(from_s / width_s), math.ceil(to_s / width_s) + 1)]
        times = sorted({time_s for edge in edges for time_s in (edge, edge - self.rules.start_s)})
        return (time_s for time_s in times if from_s - _EDGE_S <= time_s <= to_s)

    def asked(self, seen: Seen, now_s: float) -> Asked | None:
        """Return the largest rate of the windows from now until what is started now would serve."""
        windows = self._windows(seen)
        first = int((now_s - windows.start_s + _EDGE_S) // windows.window_s)
        last = int((now_s + self.rules.start_s - windows.start_s + _EDGE_S) // windows.window_s)
        rates = windows.rate_rps[max(0, first) : max(0, last + 1)]
        rates = rates[~np.isnan(rates)]
        return None if not len(rates) else Asked(rate_rps=_rounded(float(rates.max())), rule="what will come")

    def _windows(self, seen: Seen) -> RateWindows:
        """Return all windows of the trace, the last one over what there is of it."""
        width_s = self.rules.judged_window_s
        whole = math.floor(self.end_s / width_s)
        windows = seen.windows(width_s, now_s=(whole + 1) * width_s)
        rest_s = self.end_s - whole * width_s
        if whole and rest_s < _LEAST_REST_RATIO * width_s:
            return replace(windows, rate_rps=windows.rate_rps[:-1])
        rates = windows.rate_rps.copy()
        rates[-1] *= width_s / max(rest_s, 1.0)
        return replace(windows, rate_rps=rates)

    def needed(self, states: Sequence[ServiceState]) -> Mapping[str, tuple[int, ...] | None]:
        """Return the cheapest replicas."""
        return self.planner.needed(states)

    def wishes(
        self,
        states: Sequence[ServiceState],
        asked: Mapping[str, Asked],
        now_s: float,  # noqa: ARG002
    ) -> tuple[Wish, ...]:
        """Return the cheapest replicas wherever they differ."""
        return tuple(
            Wish(
                model=state.name, replicas=decision.replicas, asked=asked[state.name], why="it will be needed"
            )
            for state, decision in zip(states, self.planner.decide(states), strict=True)
            if decision.replicas is not None and decision.replicas != state.replicas
        )

    def refused(self, model: str, running: tuple[int, ...]) -> None:
        """Do nothing: no plan is remembered."""


@dataclass(slots=True, kw_only=True)
class Static(Oracle):
    """Enough for the busiest windows, all the time."""

    def times(self, from_s: float, to_s: float) -> Iterator[float]:  # noqa: ARG002
        """Once."""
        yield from_s

    def asked(self, seen: Seen, now_s: float) -> Asked | None:  # noqa: ARG002
        """Return the percentile of the judged windows of the trace."""
        windows = self._windows(seen)
        rates = windows.rate_rps[max(0, round(-windows.start_s / windows.window_s)) :]
        if not len(rates):
            return None
        rate = float(np.percentile(rates, 100.0 * STATIC_SHARE))
        return Asked(rate_rps=_rounded(rate), rule=f"{100 * STATIC_SHARE:g} % of the windows")


@dataclass(slots=True, kw_only=True)
class Hpa:
    """Kubernetes' rule on the cheapest pool of each model, or of each of its phases."""

    gpus: Mapping[str, int]
    target_ratio: float
    _wanted: dict[tuple[str, int], list[tuple[float, int]]] = field(default_factory=dict)
    """By model and pool: what was wished for, and when."""

    def times(self, from_s: float, to_s: float) -> Iterator[float]:
        """Every sync period."""
        return _every(HPA_SYNC_S, from_s, to_s)

    def asked(self, seen: Seen, now_s: float) -> Asked | None:
        """Return what was just measured."""
        rate = seen.rate_rps(now_s - HPA_METRIC_S, now_s) if now_s - HPA_METRIC_S >= seen.since_s else None
        return (
            None
            if rate is None
            else Asked(rate_rps=rate, rule=f"measured, {100 * self.target_ratio:g} % target")
        )

    def needed(self, states: Sequence[ServiceState]) -> Mapping[str, tuple[int, ...] | None]:
        """Return the replicas at the target."""
        return {
            state.name: self._replicas(state, {pool: self._raw(state, pool) for pool in _scaled(state)})
            for state in states
        }

    def wishes(
        self, states: Sequence[ServiceState], asked: Mapping[str, Asked], now_s: float
    ) -> tuple[Wish, ...]:
        """Apply tolerance and stabilisation."""
        wishes = []
        for state in states:
            wanted = {pool: self._stable(state, pool, now_s) for pool in _scaled(state)}
            replicas = self._replicas(state, wanted)
            if replicas is not None and replicas != state.replicas:
                why = f"{state.rate_rps:.3g} requests/s measured"
                wishes.append(
                    Wish(model=state.name, replicas=replicas, asked=asked[state.name], why=why, at_once=True)
                )
        return tuple(wishes)

    def refused(self, model: str, running: tuple[int, ...]) -> None:
        """Do nothing: no plan is remembered."""

    def _stable(self, state: ServiceState, pool: int, now_s: float) -> int:
        running = state.variants[pool].replicas
        wanted = self._raw(state, pool)
        if running and abs(state.rate_rps / self._target(state, pool) / running - 1.0) <= HPA_TOLERANCE_RATIO:
            wanted = running
        past = self._wanted.setdefault((state.name, pool), [])
        past.append((now_s, wanted))
        past[:] = [(at_s, count) for at_s, count in past if at_s >= now_s - HPA_STABILISATION_S]
        if wanted < running:
            wanted = min(running, max(count for _, count in past))
        return wanted

    def _target(self, state: ServiceState, pool: int) -> float:
        return self.target_ratio * state.variants[pool].throughput_rps[0]

    def _raw(self, state: ServiceState, pool: int) -> int:
        return max(1, math.ceil(state.rate_rps / self._target(state, pool) - 1e-9))

    def _replicas(self, state: ServiceState, wanted: Mapping[int, int]) -> tuple[int, ...] | None:
        if not wanted:
            return None
        most = [
            max(variant.replicas, self.gpus[variant.pool] // variant.gpus_per_replica)
            for variant in state.variants
        ]
        return tuple(min(wanted.get(v, 0), most[v]) for v in range(len(state.variants)))


def _scaled(state: ServiceState) -> tuple[int, ...]:
    """Return the pools that are scaled: the one that carries whole requests cheapest, else one of each phase."""
    both = _cheapest(state, Role.BOTH)
    if both is not None:
        return (both,)
    phases = (_cheapest(state, Role.PREFILL), _cheapest(state, Role.DECODE))
    return tuple(pool for pool in phases if pool is not None) if None not in phases else ()


def _cheapest(state: ServiceState, role: Role) -> int | None:
    """Return the pool of a role that carries a request at the least price; None: none can."""
    able = [
        v
        for v, variant in enumerate(state.variants)
        if variant.role is role and variant.throughput_rps[0] > 0.0
    ]
    return min(
        able,
        key=lambda v: (state.variants[v].price_usd_per_h / state.variants[v].throughput_rps[0], v),
        default=None,
    )


def decider_of(
    rules: PlannerRules, gpus: Mapping[str, int], *, end_s: float, no_plan: dict[str, int]
) -> Decider:
    """Return who decides.

    Parameters
    ----------
    gpus
        Those that may be used, by type.
    end_s
        End of the trace.
    no_plan
        Filled in place: why there was no plan, and how often.
    """
    if rules.policy is PlannerPolicy.HPA:
        return Hpa(gpus=gpus, target_ratio=rules.target_ratio)
    planner = _Planner(gpus=gpus, no_plan=no_plan)
    if rules.policy is PlannerPolicy.ORACLE:
        return Oracle(rules=rules, planner=planner, end_s=end_s)
    if rules.policy is PlannerPolicy.STATIC:
        return Static(rules=rules, planner=planner, end_s=end_s)
    return Ballast(rules=rules, planner=planner)


def _every(step_s: float, from_s: float, to_s: float) -> Iterator[float]:
    for k in range(math.ceil(from_s / step_s - 1e-9), math.floor(to_s / step_s + 1e-9) + 1):
        yield k * step_s


def _rounded(rate_rps: float) -> float:
    """Keep three digits, as the operator does: plans need not change for less."""
    return float(f"{rate_rps:.3g}")
