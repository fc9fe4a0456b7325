"""NodePowers on a real API server: what is refused and in which words, and what an agent reads."""

from typing import Any

import pytest

from controller.agent.node_power import orders_of, spec_of
from controller.operator.api import NODE_POWERS, Api
from controller.resources.node_power import NodePowerSpec
from tests.cluster.resources.good_objects import good_node
from tests.cluster.resources.offers import GONE, Rows, changed, each_of, offered, refuse

INVALID: Rows = (
    ("spec.generation", GONE, "spec.generation: Required value"),
    ("spec.generation", 0, "should be greater than or equal to 1"),
    ("spec.renewSequence", -1, "should be greater than or equal to 0"),
    ("spec.mode", "Observe", '"Recommend", "Auto"'),
    ("spec.gpus.1.uuid", "GPU-a", 'Duplicate value: {"uuid":"GPU-a"}'),
    ("spec.gpus.0.lockMaxMHz", 0, "should be greater than or equal to 1"),
    ("spec.safe.limitWatts", -5, "should be greater than or equal to 1"),
)


@pytest.mark.parametrize(("path", "value", "words"), each_of("NodePower", INVALID))
def test_an_invalid_object_is_refused_in_readable_words(api: Api, path: str, value: Any, words: str) -> None:
    refuse(api, NODE_POWERS, changed(good_node(), path, value), words)


def test_an_agent_reads_what_the_definition_takes(api: Api) -> None:
    body = good_node()
    taken = offered(api, NODE_POWERS, body)
    orders = orders_of(taken, "a test")
    assert (orders.generation, orders.renewal, orders.safe.max_mhz) == (3, 7, 1050)
    assert NodePowerSpec.model_validate(spec_of(orders)) == NodePowerSpec.model_validate(taken["spec"])
