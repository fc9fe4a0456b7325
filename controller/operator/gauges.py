"""What the gauges of services and pools say, made from the last whole round when somebody asks.

It exists so that thousands of series cost nothing while nobody reads them. It knows no HTTP and decides nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from controller.operator.metrics import Metrics, Row
from controller.operator.times import parse_time
from controller.operator.views import PlanView, ServiceView
from controller.operator.world import Key
from controller.resources.plan import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How things stood after a round."""

    views: Mapping[Key, ServiceView] = field(default_factory=dict)
    gpus: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """GPUs by state and pool."""


def follow(metrics: Metrics, standing: Callable[[], Standing]) -> None:
    """Let the gauges tell what stands whenever they are read."""
    metrics.desired.rows = lambda: _desired(standing())
    metrics.ready.rows = lambda: _ready(standing())
    metrics.cost.rows = lambda: _cost(standing())
    metrics.demand.rows = lambda: _demand(standing())
    metrics.forecast.rows = lambda: _forecast(standing())
    metrics.telemetry_age.rows = lambda: _telemetry_age(standing(), time.time())
    metrics.gap.rows = lambda: _gap(standing())
    metrics.plan_age.rows = lambda: _plan_age(standing(), time.time())
    metrics.pool.rows = lambda: _pool(standing())


def _plans(standing: Standing) -> Iterator[tuple[Key, PlanView]]:
    """Plans that are not superseded."""
    for key, view in standing.views.items():
        if view.plan is not None and view.plan.current.phase is not Phase.SUPERSEDED:
            yield key, view.plan


def _desired(standing: Standing) -> Iterator[Row]:
    for key, view in standing.views.items():
        wanted: Mapping[str, int] = {}
        if view.plan is not None and view.plan.current.phase not in {Phase.SUPERSEDED, Phase.PROPOSED}:
            wanted = {w.variant: w.replicas for w in view.plan.spec.desired}
        for variant in view.variants:
            if variant.target is not None:
                count = wanted.get(variant.spec.name, variant.target.replicas)
                yield (*key, variant.spec.name, variant.pool, variant.target.key[1]), float(count)


def _ready(standing: Standing) -> Iterator[Row]:
    for key, view in standing.views.items():
        for variant in view.variants:
            if variant.target is not None:
                yield (*key, variant.spec.name), float(variant.target.ready)


def _cost(standing: Standing) -> Iterator[Row]:
    for key, view in standing.views.items():
        if view.state is not None:
            yield key, view.state.cost_usd_per_h


def _demand(standing: Standing) -> Iterator[Row]:
    for key, view in standing.views.items():
        if view.traffic.rate_rps is not None:
            yield key, view.traffic.rate_rps


def _forecast(standing: Standing) -> Iterator[Row]:
    """Rates of services that have a forecast to go by."""
    for key, view in standing.views.items():
        found = view.traffic.forecast
        if found is not None and not found.fallback:
            yield key, found.rate_rps


def _telemetry_age(standing: Standing, now_s: float) -> Iterator[Row]:
    for key, view in standing.views.items():
        if view.traffic.rate_rps is not None and not view.traffic.stated:
            source = "pods" if view.spec is not None and view.spec.traffic.scrape else "prometheus"
            yield (*key, source), max(0.0, now_s - parse_time(view.traffic.sampled_at))


def _gap(standing: Standing) -> Iterator[Row]:
    for key, plan in _plans(standing):
        if plan.spec.gap_ratio is not None:
            yield key, plan.spec.gap_ratio


def _plan_age(standing: Standing, now_s: float) -> Iterator[Row]:
    for key, plan in _plans(standing):
        yield key, max(0.0, now_s - parse_time(plan.spec.made_at))


def _pool(standing: Standing) -> Iterator[Row]:
    for state, pools in standing.gpus.items():
        for name, gpus in pools.items():
            yield (name, state), float(gpus)
