"""PowerDomains on a real API server: what is refused and in which words, and what is filled in."""

from typing import Any

import pytest

from controller.operator.api import POWER_DOMAINS, Api, ApiError
from controller.resources.power_domain import PowerDomainSpec
from tests.cluster.resources.good_objects import good_domain
from tests.cluster.resources.offers import GONE, NAME, Rows, changed, each_of, offered, refuse

INVALID: Rows = (
    ("spec.budgetWatts", GONE, "spec.budgetWatts: Required value"),
    ("spec.budgetWatts", -1, "should be greater than or equal to 1"),
    ("spec.budgetWatts", 6_000, "budgetWatts is below what the nodes draw without work"),
    (
        "spec.members.staticWatts",
        6_000,
        "budgetWatts is below what the nodes draw without work",
    ),
    ("spec.members.staticWatts", -1, "should be greater than or equal to 0"),
    ("spec.members", {}, "exactly one of nodes and nodeSelector is needed"),
    (
        "spec.members.nodeSelector",
        {"row": "a"},
        "exactly one of nodes and nodeSelector is needed",
    ),
    ("spec.members", {"nodeSelector": {"two words": "x"}}, "a key is no name of a label"),
    ("spec.members.nodes", [], "should have at least 1 items"),
    ("spec.members.nodes", ["UPPER"], NAME),
    ("spec.parentRef", "two words", NAME),
    ("spec.level", "hall", '"site", "ups", "row", "rack", "node"'),
    ("spec.breaker", {"curve": "fuse"}, '"rack_rpp_110pct_17min"'),
    ("spec.breaker", {"tauSeconds": 100}, "are given with curve custom only"),
    ("spec.breaker", {"curve": "custom"}, "curve custom needs tauSeconds and tripFactor"),
    (
        "spec.breaker",
        {"curve": "custom", "tauSeconds": 100},
        "curve custom needs tauSeconds and tripFactor",
    ),
    (
        "spec.breaker",
        {"curve": "custom", "tauSeconds": -1, "tripFactor": 1.1},
        "should be greater than 0",
    ),
    (
        "spec.breaker",
        {"curve": "custom", "tauSeconds": 0, "tripFactor": 1.1},
        "should be greater than 0",
    ),
    (
        "spec.breaker",
        {"curve": "custom", "tauSeconds": 60, "tripFactor": 0.9},
        "should be greater than or equal to 1",
    ),
    ("spec.breaker", {"marginFraction": 1}, "should be less than 1"),
    ("spec.failover", {"budgetFactor": 1.5}, "should be less than or equal to 1"),
    ("spec.failover", {"budgetFactor": 0}, "should be greater than 0"),
    ("spec.mode", "auto", '"Observe", "Recommend", "Auto"'),
    ("spec.algorithm", "mpc", '"guard", "polca"'),
    ("spec.target", 1.5, "should be less than or equal to 1"),
    ("spec.thresholds", {"t1": 0.8}, "thresholds belong to algorithm polca"),
    ("spec.actuator", "fans", '"clocks", "powerLimit", "both"'),
    ("spec.actuatorLatencySeconds", 0, "should be greater than or equal to 1"),
    ("spec.leaseDurationSeconds", 1, "should be greater than or equal to 6"),
    ("spec.classes", [], "should have at least 1 items"),
    (
        "spec.classes",
        [{"name": "low", "priority": 0, "minMHz": 1110}] * 2,
        'Duplicate value: {"name":"low"}',
    ),
    ("spec.brake", {"at": "noon"}, '"theta", "power"'),
    ("spec.telemetry", {"source": "pdu"}, "a meter needs url and query of a Prometheus"),
    ("spec.telemetry", {"periodSeconds": 5}, "should be less than or equal to 2"),
    ("spec.server", {"minMHz": 1500}, "minMHz is larger than maxMHz"),
    ("spec.schedule", [{"cron": "soon", "budgetFactor": 1}], "is no cron line"),
    ("spec.train", {}, "train belongs to algorithm polca"),
    ("spec.admission", {"horizonHours": 1}, "should be greater than or equal to 24"),
    ("spec.admission", {"riskMinutesPerYear": 0}, "should be greater than 0"),
    ("spec.brake", {"releaseJitterSeconds": 60}, "should be less than or equal to 10"),
    (
        "spec.classes",
        [{"name": "low", "priority": 0, "minMHz": 1110, "maxMHz": 1000}],
        "minMHz is larger than maxMHz",
    ),
    (
        "spec.classes",
        [{"name": "low", "priority": 0, "minMHz": 1110, "slo": {"maxIncrease": -1}}],
        "should be greater than or equal to 0",
    ),
    (
        "spec.demandResponse",
        [
            {
                "name": "e",
                "budgetFactor": 0.9,
                "deadline": "2026-11-21T20:00:00Z",
                "until": "2026-11-21T17:00:00+00:00",
            }
        ],
        "until is not after deadline",
    ),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("PowerDomain", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, POWER_DOMAINS, changed(good_domain(), path, value), words)


def test_a_power_domain_is_filled_in_by_the_server_as_by_the_model(api: Api) -> None:
    body = good_domain()
    filled = offered(api, POWER_DOMAINS, body)["spec"]
    assert PowerDomainSpec.model_validate(body["spec"]) == PowerDomainSpec.model_validate(filled)
    assert (filled["mode"], filled["algorithm"], filled["level"]) == ("Recommend", "guard", "row")
    assert [(c["name"], c["minMHz"]) for c in filled["classes"]] == [("low", 1110), ("high", 1305)]
    assert filled["server"]["maxMHz"] == 1410
    both = changed(good_domain(), "spec.algorithm", "polca")
    trained = changed(both, "spec.train", {})
    assert offered(api, POWER_DOMAINS, trained)["spec"]["train"] == {"windowHours": 168}
    with pytest.raises(ApiError, match="thresholds are given or trained, not both"):
        offered(api, POWER_DOMAINS, changed(trained, "spec.thresholds", {}))
    assert filled["breaker"]["curve"] == "rack_rpp_110pct_17min"
    selected = changed(good_domain(), "spec.members", {"nodeSelector": {"row": "a"}})
    assert offered(api, POWER_DOMAINS, changed(selected, "spec.budgetWatts", 1))  # nobody knows how many yet
    site = changed(good_domain(), "spec.members", GONE)
    assert offered(api, POWER_DOMAINS, site)
    with pytest.raises(ApiError, match="a rack or node needs its members"):
        offered(api, POWER_DOMAINS, changed(site, "spec.level", "rack"))
