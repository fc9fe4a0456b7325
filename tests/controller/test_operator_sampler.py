"""Traces out of ConfigMaps: read once per version, and forgotten with the last service that names them."""

from dataclasses import dataclass, field
from typing import Any

import pytest

import controller.operator.sampler
from controller.operator.api import Resource
from controller.operator.sampler import Sampler
from controller.operator.world import Key, World
from controller.resources.model_service import ModelServiceSpec

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
Object = dict[str, Any]


@dataclass(slots=True)
class Shelf:
    """ConfigMaps by namespace and name, as the API server would give them."""

    version: int = 0
    maps: dict[Key, Object] = field(default_factory=dict)

    def put(self, key: Key, requests: int) -> None:
        self.version += 1
        rows = [f"2026-11-01 12:00:{second:02d}.0000000,100,10\n" for second in range(requests)]
        self.maps[key] = {
            "metadata": {"resourceVersion": str(self.version)},
            "data": {"trace.csv": HEADER + "".join(rows)},
        }

    def get(self, _resource: Resource, namespace: str, name: str) -> Object | None:
        return self.maps.get((namespace, name))


def asking(config_map: str) -> ModelServiceSpec:
    """Return a service whose traffic is the trace in a ConfigMap."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"}
    return ModelServiceSpec.model_validate(
        {
            "model": "m",
            "slo": {"ttftSeconds": 1.0, "tbtSeconds": 0.05},
            "traffic": {"traceConfigMap": {"name": config_map, "key": "trace.csv"}},
            "variants": [{"name": "a", "targetRef": target, "gpuProfile": "p"}],
        }
    )


def test_a_trace_is_read_once_per_version_and_only_the_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, reads = Shelf(), 0
    read = controller.operator.sampler._read_trace

    def counted(text: str, name: str) -> Any:
        nonlocal reads
        reads += 1
        return read(text, name)

    monkeypatch.setattr(controller.operator.sampler, "_read_trace", counted)
    api: Any = shelf
    sampler = Sampler(world=World(), api=api)
    both = {("team", "chat"): asking("day"), ("team", "mail"): asking("day")}
    rates = set()
    for version in range(1, 6):
        shelf.put(("team", "day"), requests=10 * version)
        sampler.once(both)
        sampler.once(both)
        assert reads == version
        assert len(sampler._traces) == 1
        (rate,) = {sampler._read[key].rate_rps for key in both}
        rates.add(rate)
        assert len(rates) == version


def test_a_trace_that_nobody_names_any_more_is_forgotten() -> None:
    shelf = Shelf()
    shelf.put(("team", "day"), requests=10)
    shelf.put(("team", "night"), requests=20)
    api: Any = shelf
    sampler = Sampler(world=World(), api=api)
    sampler.once({("team", "chat"): asking("day"), ("team", "mail"): asking("night")})
    assert len(sampler._traces) == 2
    sampler.once({("team", "chat"): asking("day")})
    assert [place[1] for place in sampler._traces] == ["day"]
    sampler.once({})
    assert not sampler._traces
