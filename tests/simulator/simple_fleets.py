"""Hand-made fleets whose times can be worked out on paper: 1 ms per prompt token, 10 ms per decode iteration."""

from typing import Any

import numpy as np

from simulator.fleet import Fleet, InstanceKind, Links, Pool, Role, Scheduler
from simulator.step_table import StepTable
from solver.domain.trace import Requests

PROMPT_TOKEN_S = 1e-3
DECODE_S = 10e-3
LARGEST_BATCH = 64


def table(**changes: Any) -> StepTable:
    """Prompts take 1 ms per token, iterations with decodes 10 ms, together whichever is longer."""
    shape = (LARGEST_BATCH + 1, 1)
    values: dict[str, Any] = {
        "prefill_s": np.arange(2) * PROMPT_TOKEN_S,
        "prefill_w": np.full(2, 300.0),
        "kv_knots_tokens": np.zeros(1),
        "decode_s": np.full(shape, DECODE_S),
        "decode_slope_s": np.zeros(shape),
        "decode_j": np.full(shape, 2.0),
        "decode_slope_j": np.zeros(shape),
        "shared_s": 1e6,
        "idle_w": 50.0,
    }
    return StepTable(**{**values, **changes})


def kind(capacity: int = 1000, *, step_table: StepTable | None = None, **changes: Any) -> InstanceKind:
    """One byte of KV per token and two layers."""
    values: dict[str, Any] = {
        "name": "plain",
        "gpu_type": "none",
        "gpus": 1,
        "table": table() if step_table is None else step_table,
        "kv_capacity_tokens": capacity,
        "kv_bytes_per_token": 1.0,
        "layers": 2,
    }
    return InstanceKind(**{**values, **changes})


def pool(role: Role = Role.BOTH, count: int = 1, **changes: Any) -> Pool:
    values: dict[str, Any] = {"name": role.value, "kind": 0, "count": count, "role": role}
    return Pool(**{**values, **changes})


def fleet(*pools: Pool, kinds: tuple[InstanceKind, ...] | None = None, **changes: Any) -> Fleet:
    """Build a fleet of one model; one kind of 1000 KV tokens unless others are given."""
    values: dict[str, Any] = {
        "models": ("m",),
        "kinds": (kind(),) if kinds is None else kinds,
        "pools": pools or (pool(),),
        "scheduler": Scheduler(max_batch=8, max_batch_tokens=2048, watermark_ratio=0.0),
        "links": Links(bytes_per_s=1e3),
    }
    return Fleet(**{**values, **changes})


def requests(*rows: tuple[float, int, int], **columns: Any) -> Requests:
    """Rows of (arrival, prompt tokens, output tokens)."""
    arrival_s, prompts, outputs = zip(*rows, strict=True)
    return Requests(
        arrival_s=np.array(arrival_s),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
        **columns,
    )
