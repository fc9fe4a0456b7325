"""A GpuProfile says whether its GPUs are there and who stands on it."""

import pytest

from controller.operator.inventory import Inventory
from controller.operator.profile_status import profile_status
from controller.resources.gpu_profile import GpuProfileSpec

SPEC = GpuProfileSpec.model_validate(
    {
        "model": "m",
        "gpuType": "H100",
        "priceUsdPerHour": 2.0,
        "provenance": {"kind": "modelled"},
        "modelled": True,
    }
)
THERE = Inventory(gpus={"H100": 12}, by_node={"H100": {"a": 8, "b": 4}}, closed={"H100": ["c"]})
GONE = Inventory(gpus={"H100": 0}, by_node={"H100": {}}, closed={"H100": []})


@pytest.mark.parametrize(
    ("spec", "inventory", "status", "reason", "message"),
    [
        (
            SPEC,
            THERE,
            "True",
            "NodesFound",
            "2 nodes with 12 GPUs, 1 more take no pods now; named by 3 variants",
        ),
        (SPEC, GONE, "False", "NoNodes", "see nodeSelector"),
        (SPEC, Inventory(), "Unknown", "NotUsed", "no ModelService names it"),
        (None, THERE, "False", "InvalidSpec", "spec.model: wrong"),
    ],
)
def test_every_state_has_a_reason(
    spec: GpuProfileSpec | None, inventory: Inventory, status: str, reason: str, message: str
) -> None:
    body = {"metadata": {"name": "p", "generation": 4}}
    said = profile_status(
        body, spec, trouble="spec.model: wrong", pool="H100", inventory=inventory, users=3, now="t"
    )
    (condition,) = said["conditions"]
    assert (condition["status"], condition["reason"]) == (status, reason)
    assert message in said["message"]
    assert said["observedGeneration"] == 4
