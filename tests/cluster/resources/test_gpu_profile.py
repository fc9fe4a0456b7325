"""GpuProfiles on a real API server: what is refused and in which words, and what text they may hold."""

from typing import Any

import pytest

from controller.operator.api import GPU_PROFILES, Api, ApiError
from tests.cluster import scene
from tests.cluster.resources.good_objects import good_profile
from tests.cluster.resources.offers import GONE, Rows, changed, each_of, offered, refuse

ROW = {"inputTokens": 1, "outputTokens": 1, "ttftSeconds": 1, "tbtSeconds": 1, "maxRps": 1}

INVALID: Rows = (
    ("spec.model", "a b", "is no name of a model"),
    ("spec.gpuType", "A100 80GB", "is no GPU type: letters and digits"),
    ("spec.gpuType", "", "should be at least 1 chars long"),
    ("spec.gpusPerReplica", 0, "should be greater than or equal to 1"),
    ("spec.gpusPerReplica", 1025, "should be less than or equal to 1024"),
    ("spec.priceUsdPerHour", -1, "should be greater than or equal to 0"),
    ("spec.priceUsdPerHour", GONE, "spec.priceUsdPerHour: Required value"),
    ("spec.priceUsdPerHour", "1.006", "must be of type number"),
    (
        "spec.nodeSelector",
        {"two words": "x"},
        "a key is no name of a label, such as nvidia.com",
    ),
    ("spec.nodeSelector", {"a/b/c": "x"}, "a key is no name of a label"),
    ("spec.nodeSelector", {"a": "two words"}, "is no value of a label"),
    ("spec.nodeSelector", {"a": "b" * 64}, "may not be more than 63"),
    ("spec.nodeSelector", {"a": 1}, "must be of type string"),
    ("spec.nodeSelector", {f"k{i}": "v" for i in range(17)}, "must have at most 16 items"),
    ("spec.provenance", GONE, "spec.provenance: Required value"),
    ("spec.provenance.kind", "guessed", 'supported values: "measured", "modelled"'),
    ("spec.provenance.date", "2026-02-30", "must be of type date"),
    ("spec.provenance.date", "yesterday", "must be of type date"),
    ("spec.modelled", True, "give either rows of throughput or modelled: true"),
    ("spec.throughput", [], "give either rows of throughput or modelled: true"),
    ("spec.throughput", [ROW] * 513, "must have at most 512 items"),
    ("spec.throughput.0.maxRps", 0, "should be greater than 0"),
    ("spec.throughput.0.maxRps", 1e-7, "is less than 0.000001 requests per second"),
    ("spec.throughput.0.ttftSeconds", 0, "should be greater than 0"),
    ("spec.throughput.0.inputTokens", 0, "should be greater than 0"),
    ("spec.power", {"idleWatts": -1}, "should be greater than or equal to 0"),
    (
        "spec.power",
        {"idleWatts": 9, "prefillWatts": 8},
        "idleWatts is larger than prefillWatts",
    ),
    ("spec.power", {"idleWatts": 9, "decodeWatts": 8}, "idleWatts is larger than decodeWatts"),
    ("spec.throughput.0.role", "prompt", '"both", "prefill", "decode"'),
    ("spec.kvLinkGbytesPerSecond", 0, "should be greater than 0"),
    ("spec.kvLinkGbytesPerSecond", 1e-9, "is less than 0.001 GB/s"),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("GpuProfile", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, GPU_PROFILES, changed(good_profile(), path, value), words)


@pytest.mark.parametrize(
    ("role", "time", "taken"),
    [
        ("prefill", "ttftSeconds", True),
        ("prefill", "tbtSeconds", False),
        ("decode", "tbtSeconds", True),
        ("decode", "ttftSeconds", False),
        ("both", "ttftSeconds", False),
        ("both", "tbtSeconds", False),
    ],
)
def test_a_row_has_the_time_that_its_role_answers_for(api: Api, role: str, time: str, *, taken: bool) -> None:
    body = good_profile()
    row = {"role": role, "inputTokens": 512, "outputTokens": 128, "maxRps": 2.0, time: 0.01}
    body["spec"]["throughput"] = [row]
    if taken:
        offered(api, GPU_PROFILES, body)
        return
    with pytest.raises(ApiError, match="is needed, but for rows of role"):
        offered(api, GPU_PROFILES, body)


@pytest.mark.parametrize(
    "text", ["\U0001f600", "\x7f\x80\u2028\ufeff\ufffe", "a\\ud83d\\ude00", "\x00\n\t\"'", "é→"]
)
def test_any_text_can_be_applied(api: Api, text: str) -> None:
    body = changed(good_profile(), "spec.provenance.source", text)
    assert scene.put(api, GPU_PROFILES, body)["spec"]["provenance"]["source"] == text
    scene.drop(api, GPU_PROFILES, None, "good")
