"""Where loads come from and whose they are: pods and ranks, dumps, Prometheus, volumes, recordings."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.operator.api import (
    CONFIG_MAPS,
)
from controller.operator.experts.group import topology_of
from controller.operator.experts.recorded import look
from controller.operator.experts.smoothing import Smoothed
from controller.resources.expert_placement import ExpertPlacementSpec
from solver.domain.errors import InputError
from telemetry.experts.recording import ExpertRecording
from tests.controller.experts_stage import HOT_FIRST, KEY, SPACE, Stage, pod, source, spec_of, staged, wish
from tests.telemetry.loopback import say, serving


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as one:
        yield one


def test_ranks_follow_the_ordinals_of_pods() -> None:
    body = wish(
        targetRef={"kind": "LeaderWorkerSet", "apiVersion": "leaderworkerset.x-k8s.io/v1", "name": "e"}
    )
    del body["spec"]["topology"]["nodes"]
    body["spec"] |= {"epSize": 24, "redundantExperts": 16}
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    owner = ("LeaderWorkerSet", "e")
    names = ["e-0", *(f"e-0-{index}" for index in range(1, 12))]
    pods = {
        (SPACE, name): pod(name, f"n{place // 4}", 2, owner) for place, name in reversed([*enumerate(names)])
    }
    pods[SPACE, "other"] = pod("other", "n9", 8, ("StatefulSet", "e"))
    topology = topology_of(KEY, spec, pods)
    assert topology.gpu_node == (0,) * 8 + (1,) * 8 + (2,) * 8
    del pods[SPACE, "e-0-3"]
    with pytest.raises(InputError, match="22 GPUs of all its pods, epSize is 24"):
        topology_of(KEY, spec, pods)


def test_nobody_knows_the_ranks_of_a_deployments_pods() -> None:
    body = wish(targetRef={"kind": "Deployment", "name": "e"})
    del body["spec"]["topology"]["nodes"]
    spec = ExpertPlacementSpec.model_validate(body["spec"])
    owner = ("Deployment", "e")
    with pytest.raises(InputError, match="nobody knows their ranks"):
        topology_of(
            KEY, spec, {(SPACE, f"e-{index}"): pod(f"e-{index}", "n", 2, owner) for index in range(2)}
        )
    one = topology_of(KEY, spec, {(SPACE, "e"): pod("e", "n", 4, owner)})
    assert one.gpu_node == (0, 0, 0, 0)


def test_windows_are_weighed() -> None:
    def recording(*windows: float) -> ExpertRecording:
        rows = np.array([[[value]] for value in windows])
        return ExpertRecording(source="s", load=rows.sum(axis=0), windows=rows if len(windows) > 1 else None)

    smoothed = Smoothed()
    smoothed.add(recording(100.0), 0.25)
    smoothed.add(recording(200.0), 0.25)
    assert smoothed.load is not None
    assert smoothed.load.tolist() == [[125.0]]
    assert smoothed.windows == 2
    smoothed.add(recording(10.0, 20.0), 0.5)  # a recording with windows brings its history along
    assert smoothed.load.tolist() == [[15.0]]


def test_a_dump_over_http_is_read_within_bounds() -> None:
    api: Any = None
    good = say(json.dumps({"logical_count": [[[0] * 8, *[[5] * 8] * 2]]}))
    with serving({"/good": good, "/bad": say("[]"), "/none": say("", 404)}) as address:
        found = look(api, KEY, spec_of({"httpDump": {"url": f"{address}/good"}}), folder="")
        assert found.recording is not None
        assert found.recording.load.tolist() == [[5.0] * 8] * 2
        for path, words in (("bad", "not an object"), ("none", "HTTP 404")):
            found = look(api, KEY, spec_of({"httpDump": {"url": f"{address}/{path}"}}), folder="")
            assert found.reason == "LoadInvalid"
            assert words in found.message


def test_a_prometheus_is_asked_once_per_window(stage: Stage) -> None:
    asked = []

    def answer(request: Any, form: dict[str, str]) -> None:
        asked.append(form["query"])
        result = [
            {"metric": {"layer": str(layer), "expert": str(expert)}, "value": [0, str(count)]}
            for layer, row in enumerate(HOT_FIRST)
            for expert, count in enumerate(row)
        ]
        say(json.dumps({"data": {"resultType": "vector", "result": result}}))(request, form)

    with serving({"/api/v1/query": answer}) as address:
        stage.now_s = time.time()  # what is measured is of now
        prometheus = {"url": address, "metric": "tokens_total"}
        stage.put(wish(loadSource={"prometheus": prometheus, "windowSeconds": 60}))
        assert stage.go(3)["phase"] == "Applied"
    assert asked == ["sum by (layer, expert) (increase(tokens_total{}[60s]))"]
    held = stage.maps()
    stage.loop._books[KEY].next_look_s = 0.0  # the window is over, and the server gone
    assert stage.go(2)["phase"] == "Held"
    assert stage.condition("Stale")["reason"] == "LoadInvalid"
    assert stage.maps() == held


def test_a_volume_is_read_in_the_folder_of_the_namespace_only(tmp_path: Path) -> None:
    api: Any = None
    own = tmp_path / "loads" / SPACE
    own.mkdir(parents=True)
    (tmp_path / "secret.json").write_text(json.dumps({"load": HOT_FIRST}), encoding="utf-8")
    spec = spec_of({"pvc": {"claim": "loads", "path": "now.json"}})
    assert look(api, KEY, spec, folder="").reason == "LoadMissing"
    assert look(api, KEY, spec, folder=str(tmp_path)).reason == "LoadMissing"
    (own / "now.json").symlink_to(tmp_path / "secret.json")
    assert look(api, KEY, spec, folder=str(tmp_path)).reason == "LoadUnreadable"
    (own / "now.json").unlink()
    (own / "now.json").write_text(json.dumps({"load": HOT_FIRST}), encoding="utf-8")
    found = look(api, KEY, spec, folder=str(tmp_path))
    assert found.recording is not None
    assert look(api, KEY, spec, folder=str(tmp_path), known=found) is found  # not read twice
    (own / "now.json").write_text("{", encoding="utf-8")
    broken = look(api, KEY, spec, folder=str(tmp_path), known=found)
    assert broken.reason == "LoadInvalid"
    assert str(tmp_path) not in broken.message


def test_old_recordings_are_stale_where_an_age_is_given(stage: Stage) -> None:
    stage.put(wish(loadSource=source(maxAgeSeconds=60)))
    stage.load(HOT_FIRST)
    stage.cluster.objects[CONFIG_MAPS.kind, "moe"]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    stage.go()
    assert stage.condition("Stale")["reason"] == "LoadOld"
    assert stage.maps() is None
