"""What people see on a GpuProfile: whether its GPUs are there, and who stands on it.

It exists so that a profile that selects no node, or a GPU type nobody knows, says so itself. It writes nothing.
"""

from collections.abc import Mapping
from typing import Any

from controller.operator.conditions import READY, Finding, written
from controller.operator.inventory import Inventory
from controller.resources.gpu_profile import GpuProfileSpec


def profile_status(
    body: Mapping[str, Any],
    spec: GpuProfileSpec | None,
    *,
    trouble: str,
    pool: str,
    inventory: Inventory,
    users: int,
    now: str,
) -> dict[str, Any]:
    """Return the status of a profile; ``users`` variants name it."""
    generation = int(body["metadata"].get("generation") or 0)
    if spec is None:
        finding = Finding(type=READY, status=False, reason="InvalidSpec", message=trouble)
    elif pool not in inventory.gpus:
        finding = Finding(type=READY, status=None, reason="NotUsed", message="no ModelService names it")
    else:
        nodes, closed = inventory.by_node.get(pool, {}), inventory.closed.get(pool, [])
        shut = f", {len(closed)} more take no pods now" if closed else ""
        if nodes:
            text = f"{len(nodes)} nodes with {inventory.gpus[pool]} GPUs{shut}; named by {users} variants"
            finding = Finding(type=READY, status=True, reason="NodesFound", message=text)
        else:
            text = f"no node that takes pods has GPUs that it selects{shut}; see nodeSelector"
            finding = Finding(type=READY, status=False, reason="NoNodes", message=text)
    before = (body.get("status") or {}).get("conditions") or []
    return {
        "observedGeneration": generation,
        "conditions": written([finding], before, generation=generation, now=now),
        "message": finding.message,
    }
