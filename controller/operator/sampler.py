"""Reads the traffic of services in the background: recorded traces now, metrics of pods and Prometheus with them.

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

from controller.operator.api import CONFIG_MAPS, Api, ApiError
from controller.operator.times import written_time
from controller.operator.traffic import Traffic, Window, stated
from controller.operator.world import Key, World
from controller.resources.model_service import ModelServiceSpec, TraceSource
from controller.trace_planning import summarise_trace
from solver.domain.demand import demand_of
from solver.domain.errors import InputError
from solver.domain.gpu_mix import RequestBucket

log = structlog.get_logger(__name__)
Specs = Mapping[Key, tuple[Mapping[str, Any], ModelServiceSpec | None, str]]
MOST_TRACE_BYTES = 2**20
TRACE_BUCKETS = 8


@dataclass(slots=True, kw_only=True)
class Sampler:
    """What is known of all services' traffic. ``sample_s``: seconds between readings."""

    world: World
    api: Api
    sample_s: float = 15.0
    active: Callable[[], bool] = lambda: True
    """Only the leader samples."""
    stopping: threading.Event = field(default_factory=threading.Event)
    _stated: dict[Key, tuple[ModelServiceSpec, Traffic]] = field(default_factory=dict)
    _read: dict[Key, Traffic] = field(default_factory=dict)
    _windows: dict[Key, Window] = field(default_factory=dict)
    _traces: dict[tuple[str, str, str, str], Traffic] = field(default_factory=dict)
    _asked: dict[Key, ModelServiceSpec] = field(default_factory=dict)
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
            for gone in self._read.keys() - asked.keys():
                self._read.pop(gone, None)
                self._windows.pop(gone, None)
            try:
                self.once(asked)
            except Exception:
                log.exception("sampling failed")

    def once(self, asked: Mapping[Key, ModelServiceSpec]) -> None:
        """Read every source once."""
        changed = False
        for key, spec in asked.items():
            source = spec.traffic.trace_config_map
            if source is not None:
                changed |= self._take(key, self._trace(key, source))
        if changed:
            self.world.note()

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
        version = (key[0], source.name, source.key, str(body["metadata"]["resourceVersion"]))
        if version not in self._traces:
            try:
                self._traces[version] = _read_trace(text, source.key)
            except InputError as error:
                return self._held(key, "TraceInvalid", f"ConfigMap {source.name}, {source.key}: {error}")
        return self._traces[version]

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
