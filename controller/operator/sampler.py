"""Reads the traffic of services in the background: metrics of their pods, Prometheus, recorded traces.

It exists so that a slow or dead source delays nobody. The loop asks `Sampler.traffic_of`, which answers at once with
what is known; what is stated in the ModelService needs no reading at all.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from controller.operator.api import CONFIG_MAPS, PODS, Api, ApiError
from controller.operator.outlook import Outlook, Reader
from controller.operator.times import written_time
from controller.operator.traffic import Traffic, Window, foreseen, stated
from controller.operator.world import Key, Pod, Target, World
from controller.resources.model_service import ModelServiceSpec, PrometheusSource, TraceSource
from controller.trace_planning import summarise_trace
from solver.domain.demand import demand_of
from solver.domain.errors import InputError
from solver.domain.fleet import Role
from solver.domain.gpu_mix import RequestBucket
from telemetry.engine_sample import EngineSample
from telemetry.sources.prometheus import PrometheusTraffic, all_read
from telemetry.sources.prometheus_access import PrometheusServers
from telemetry.sources.scrape import metrics_url, scraped
from telemetry.traffic import MeasuredTraffic, StaleTraffic, TrafficEstimator

log = structlog.get_logger(__name__)
Specs = Mapping[Key, tuple[Mapping[str, Any], ModelServiceSpec | None, str]]
MOST_TRACE_BYTES = 2**20
TRACE_BUCKETS = 8
NOTHING_RUNS = Traffic(
    buckets=(RequestBucket(rate_rps=0.0, input_tokens=1.0, output_tokens=1.0),),
    fresh=True,
    settled=True,
    stated=True,
    reason="NothingRuns",
    message="no replica runs, so no traffic can be measured: minReplicas holds until one does",
)


@dataclass(slots=True, kw_only=True)
class Sampler:
    """What is known of all services' traffic. ``sample_s``: seconds between readings."""

    world: World
    api: Api
    sample_s: float = 15.0
    window_s: float = 60.0
    """Rates are measured over so many seconds."""
    active: Callable[[], bool] = lambda: True
    """Only the leader samples."""
    servers: PrometheusServers = field(default_factory=PrometheusServers)
    """What Prometheus servers are brought."""
    past_rates: Reader | None = None
    """Reads what the database knows of a service's rates, for its forecast."""
    stopping: threading.Event = field(default_factory=threading.Event)
    _stated: dict[Key, tuple[ModelServiceSpec, Traffic]] = field(default_factory=dict)
    _read: dict[Key, Traffic] = field(default_factory=dict)
    _windows: dict[Key, Window] = field(default_factory=dict)
    _outlooks: dict[Key, tuple[Outlook, tuple[RequestBucket, ...]]] = field(default_factory=dict)
    """With the last sizes of requests that were seen at a rate above 0."""
    _traces: dict[tuple[str, str, str], tuple[str, Traffic]] = field(default_factory=dict)
    """By namespace, ConfigMap and key: its version, and what the trace in it says."""
    _asked: dict[Key, ModelServiceSpec] = field(default_factory=dict)
    _estimators: dict[Key, TrafficEstimator] = field(default_factory=dict)
    _readers: dict[Key, tuple[PrometheusSource, PrometheusTraffic]] = field(default_factory=dict)
    _new: threading.Event = field(default_factory=threading.Event)

    def traffic_of(self, specs: Specs) -> dict[Key, Traffic]:
        """Return what is known of each service's traffic now."""
        found: dict[Key, Traffic] = {}
        asked: dict[Key, ModelServiceSpec] = {}
        for key, (_, spec, _) in specs.items():
            if spec is None:
                continue
            if spec.traffic.histogram is not None:
                known = self._stated.get(key)
                if known is None or known[0] is not spec:
                    buckets = tuple(
                        RequestBucket(
                            rate_rps=bucket.rate_rps,
                            input_tokens=float(bucket.input_tokens),
                            output_tokens=float(bucket.output_tokens),
                        )
                        for bucket in spec.traffic.histogram.buckets
                    )
                    known = (spec, stated(buckets, at=written_time(time.time())))
                    self._stated[key] = known
                found[key] = known[1]
            else:
                asked[key] = spec
                found[key] = self._read.get(key, Traffic(message="the traffic was not sampled yet"))
        for gone in self._stated.keys() - specs.keys():
            del self._stated[gone]
        if asked.keys() - self._asked.keys():
            self._new.set()
        self._asked = asked
        return found

    def run(self) -> None:
        """Read until stopped."""
        while not self.stopping.is_set():
            self._new.wait(self.sample_s)
            self._new.clear()
            if self.stopping.is_set() or not self.active():
                continue
            asked = dict(self._asked)
            for kept in (self._read, self._windows, self._estimators, self._outlooks):
                for gone in kept.keys() - asked.keys():
                    kept.pop(gone, None)
            try:
                self.once(asked)
            except Exception:
                log.exception("sampling failed")

    def once(self, asked: Mapping[Key, ModelServiceSpec]) -> None:
        """Read every source once."""
        changed = self._scrape(asked) | self._query(asked)
        named = set()
        for key, spec in asked.items():
            source = spec.traffic.trace_config_map
            if source is not None:
                named.add((key[0], source.name, source.key))
                changed |= self._take(key, self._trace(key, source))
        for gone in self._traces.keys() - named:
            del self._traces[gone]
        if changed:
            self.world.note()

    def _scrape(self, asked: Mapping[Key, ModelServiceSpec]) -> bool:
        """Ask the pods of all services whose traffic is scraped, all at once."""
        pods: dict[tuple[str, str, str], list[Pod]] = {}
        for pod in self.world.all(PODS.kind).values():
            if pod.ready and pod.ip and pod.serves:
                pods.setdefault((pod.owner[0], pod.key[0], pod.owner[1]), []).append(pod)
        urls: dict[str, dict[str, str]] = {}
        names: dict[Key, dict[str, Role]] = {}
        for key, spec in asked.items():
            scrape = spec.traffic.scrape
            if scrape is None:
                continue
            names[key] = {}
            for variant in spec.variants:
                for pod in pods.get((variant.target_ref.kind, key[0], variant.target_ref.name), ()):
                    name = f"{pod.key[0]}/{pod.key[1]}"
                    names[key][name] = variant.role
                    urls.setdefault(str(scrape.engine), {})[name] = metrics_url(
                        pod.ip, scrape.port, scrape.path
                    )
        answers: dict[str, EngineSample | str] = {}
        for engine, addresses in urls.items():
            answers |= scraped(
                addresses, engine=engine, clock=time.time, timeout_s=min(5.0, 4 * self.sample_s)
            )
        changed = False
        now_s = time.time()
        for key, own in names.items():
            spec = asked[key]
            if all(role is Role.DECODE for role in own.values()) and self._nothing_runs(key, spec):
                changed |= self._take(key, NOTHING_RUNS)
                continue
            estimator = self._estimators.get(key)
            if estimator is None:
                estimator = TrafficEstimator(interval_s=self.sample_s, window_s=self.window_s)
                self._estimators[key] = estimator
            estimator.update(now_s, {name: answers[name] for name in own}, roles=own)
            changed |= self._judge(key, spec, estimator.measure(now_s))
        return changed

    def _query(self, asked: Mapping[Key, ModelServiceSpec]) -> bool:
        """Ask the Prometheus servers of all services that name one, side by side."""
        readers: dict[Key, PrometheusTraffic] = {}
        answers: dict[Key, MeasuredTraffic | StaleTraffic] = {}
        for key, spec in asked.items():
            source = spec.traffic.prometheus
            if source is None:
                continue
            known = self._readers.get(key)
            if known is None or known[0] != source:
                try:
                    reader = PrometheusTraffic(
                        url=source.url,
                        selector=source.selector,
                        output_selector=source.output_selector,
                        engine=str(source.engine),
                        model_name=spec.model,
                        interval_s=self.window_s,  # Prometheus looks less often than we do
                        window_s=2 * self.window_s,
                        servers=self.servers,
                        namespace=key[0],
                    )
                except InputError as error:
                    answers[key] = StaleTraffic(reason=f"spec.traffic.prometheus: {error}")
                    continue
                known = (source, reader)
                self._readers[key] = known
            readers[key] = known[1]
        for gone in self._readers.keys() - asked.keys():
            del self._readers[gone]
        if readers:
            expected = {key: self._ready_pods(key, asked[key]) for key in readers}
            answers |= all_read(readers, now_s=time.time(), expected_pods=expected)
        changed = False
        for key, answer in answers.items():
            if isinstance(answer, StaleTraffic) and self._nothing_runs(key, asked[key]):
                changed |= self._take(key, NOTHING_RUNS)
            else:
                changed |= self._judge(key, asked[key], answer)
        return changed

    def _ready_pods(self, key: Key, spec: ModelServiceSpec) -> int:
        """How many engines should answer: those that take requests in."""
        return sum(target.ready for target in self._entered(key, spec) if target is not None)

    def _nothing_runs(self, key: Key, spec: ModelServiceSpec) -> bool:
        """Whether every variant that takes requests in is asked to have no replicas.

        Then nobody can be asked, and minReplicas holds; decode replicas alone would serve nobody.
        """
        targets = self._entered(key, spec)
        return bool(targets) and all(target is not None and target.replicas == 0 for target in targets)

    def _entered(self, key: Key, spec: ModelServiceSpec) -> list[Target | None]:
        """Targets of the variants that requests are sent to."""
        return [
            self.world.get(variant.target_ref.kind, (key[0], variant.target_ref.name))
            for variant in spec.variants
            if variant.role is not Role.DECODE
        ]

    def _judge(self, key: Key, spec: ModelServiceSpec, measured: MeasuredTraffic | StaleTraffic) -> bool:
        """Put a measurement, or that there is none, into the service's window."""
        window = self._windows.get(key)
        if window is None or window.window_s != spec.change.min_interval_seconds:
            window = Window(window_s=float(spec.change.min_interval_seconds))
            self._windows[key] = window
        if isinstance(measured, StaleTraffic):
            age = "" if measured.age_s is None else f" (last sample {measured.age_s:.0f} s ago)"
            lacking = f"; missing series: {', '.join(measured.missing)}" if measured.missing else ""
            unread = "AccessDenied" if measured.denied else "Stale"
            now = Traffic(
                fresh=False,
                reason="SeriesMissing" if measured.missing else unread,
                message=f"{measured.reason}{age}{lacking}; the last plan stays",
            )
        else:
            now = Traffic(
                buckets=tuple(
                    replace(
                        bucket,
                        input_tokens=float(f"{bucket.input_tokens or 1.0:.2g}"),
                        output_tokens=float(f"{bucket.output_tokens or 1.0:.2g}"),
                    )
                    for bucket in measured.buckets
                ),
                rate_rps=measured.rate_rps,
                sampled_at=written_time(measured.sampled_at_s),
                fresh=True,
                reason="Fresh" if measured.complete else "Partial",
                message=measured.note,
            )
        judged = window.add(now, now_s=time.monotonic(), gap_s=3 * self.sample_s)
        if not isinstance(measured, StaleTraffic) and not measured.complete:
            judged = replace(judged, settled=False)
        return self._take(key, self._looked_ahead(key, spec, judged))

    def _looked_ahead(self, key: Key, spec: ModelServiceSpec, judged: Traffic) -> Traffic:
        """Plan for what is forecast, where that is wished."""
        if spec.forecast is None:
            self._outlooks.pop(key, None)
            return judged
        outlook, mix = self._outlooks.get(key, (None, ()))
        if outlook is None or outlook.spec != spec.forecast:
            outlook = Outlook(service=f"{key[0]}/{key[1]}", spec=spec.forecast, read=self.past_rates)
        if judged.fresh and judged.rate_rps is not None:
            outlook.add(judged.rate_rps, time.time())
        planned = sum(bucket.rate_rps for bucket in judged.buckets)
        if planned > 0:
            mix = judged.buckets
        self._outlooks[key] = outlook, mix
        return foreseen(judged, outlook.foreseen(planned), mix)

    def _take(self, key: Key, traffic: Traffic) -> bool:
        same = self._read.get(key) == traffic
        self._read[key] = traffic
        return not same

    def _trace(self, key: Key, source: TraceSource) -> Traffic:
        """Read a trace out of a ConfigMap: its sizes at the rate of its busiest minute."""
        try:
            body = self.api.get(CONFIG_MAPS, key[0], source.name)
        except ApiError as error:
            return self._held(key, "TraceUnreadable", f"ConfigMap {source.name}: {error}")
        if body is None:
            return self._held(key, "TraceMissing", f"ConfigMap {source.name} does not exist in {key[0]}")
        text = (body.get("data") or {}).get(source.key)
        if text is None:
            return self._held(key, "TraceMissing", f"ConfigMap {source.name} has no key {source.key}")
        place, version = (key[0], source.name, source.key), str(body["metadata"]["resourceVersion"])
        known = self._traces.get(place)
        if known is None or known[0] != version:
            try:
                known = (version, _read_trace(text, source.key))
            except InputError as error:
                return self._held(key, "TraceInvalid", f"ConfigMap {source.name}, {source.key}: {error}")
            self._traces[place] = known
        return known[1]

    def _held(self, key: Key, reason: str, message: str) -> Traffic:
        """Keep the last traffic, and say that it is not fresh."""
        return replace(
            self._read.get(key, Traffic()), fresh=False, settled=False, reason=reason, message=message
        )


def _read_trace(text: str, name: str) -> Traffic:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_text(text, encoding="utf-8")
        summary, _, _, _ = summarise_trace(path, window_s=60.0)
    demand = demand_of(summary, largest_bucket_count=TRACE_BUCKETS, rate="peak", window_s=60.0)
    return stated(demand.buckets, at=written_time(time.time()))
