"""Fleet problems that can be checked by hand."""

from dataclasses import replace
from typing import Any

from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuOffer, RequestBucket

PLAIN = FleetInstance(
    name="plain",
    gpu_types=(
        GpuOffer(name="A", price_usd_per_h=1.0, power_w=100.0, gpus_per_node=4, whole_nodes=True),
        GpuOffer(name="B", price_usd_per_h=3.0, power_w=250.0, gpus_per_node=4, whole_nodes=True),
    ),
    models=(
        FleetModel(
            name="m",
            configs=(
                FleetConfig(gpu_type="A", gpus_per_replica=4),
                FleetConfig(gpu_type="A", gpus_per_replica=4, role=Role.DECODE, kv_link_bytes_per_s=4000.0),
                FleetConfig(gpu_type="B", gpus_per_replica=4, role=Role.PREFILL, kv_link_bytes_per_s=8000.0),
            ),
            buckets=(
                RequestBucket(rate_rps=8.0, input_tokens=100.0, output_tokens=10.0),
                RequestBucket(rate_rps=2.0, input_tokens=300.0, output_tokens=10.0),
            ),
            throughput_rps=((1.0, 4.0, 16.0), (0.5, 4.0, 4.0)),
            kv_bytes_per_prompt_token=2.0,
            kv_utilisation_max_ratio=0.5,
        ),
    ),
)
"""Both: 8/1 + 2/0.5 = 12 nodes of A at 4 US$/h each, 48. Split: one prefill B (8/16 + 2/4 = 1.0 full) at 12, decodes
8/4 + 2/4 = 2.5, so 3 nodes of A at 12: 24 US$/h in all.
KV: 8 x 200 + 2 x 600 = 2800 bytes/s; one B link may send 4000."""


def problem(goal: FleetGoal = FleetGoal.COST, **budgets: float) -> FleetInstance:
    """Ask another question about the plain problem."""
    return replace(PLAIN, goal=goal, budgets=FleetBudgets(**budgets))


def with_configs(instance: FleetInstance, role: Role, **changes: Any) -> FleetInstance:
    """Change the configs of a role."""
    (model,) = instance.models
    configs = tuple(replace(c, **changes) if c.role is role else c for c in model.configs)
    return replace(instance, models=(replace(model, configs=configs),))
