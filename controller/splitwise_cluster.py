"""Says a scenario in the words of the phase-splitting peer, for step model ``splitwise-compat``.

It exists because that engine knows three machines and two models, by its own names and constants. Whatever of a
scenario the peer has no word for is refused; what it decides by itself (no contention on links, no chunks, KV of the
whole answer reserved) is said in the known error.
"""

import numpy as np

from simulator.fleet import QueueOrder, Role, RouterKind
from simulator.metrics import Alone
from simulator.scenario import Scenario, ScenarioPool
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    STEP_KNOTS_TOKENS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseMachine,
    SplitwiseRole,
    SplitwiseScheduler,
)
from solver.domain.errors import InputError
from solver.domain.hardware import GpuType
from solver.domain.trace import Floats, Ints

GPUS_PER_MACHINE = 8
MODEL_NAMES = {"bigscience/bloom": "bloom-176b", "meta-llama/Llama-2-70b-hf": "llama2-70b"}
"""The peer's name of each model, by its name in the catalogue."""
MACHINE_NAMES = {"A100-80-SXM": "dgx-a100", "H100-SXM": "dgx-h100"}
CAPPED_MACHINE_NAMES = {"H100-SXM": "dgx-h100-pcap"}
PROVENANCE = "SplitwiseSim's medians at tensor parallelism 8 and its rules"
_SCHEDULERS = {
    RouterKind.JSQ: SplitwiseScheduler.TOKEN_JSQ,
    RouterKind.MIXED_POOL: SplitwiseScheduler.MIXED_POOL,
}
_ROLES = {
    Role.PREFILL: SplitwiseRole.PROMPT,
    Role.DECODE: SplitwiseRole.TOKEN,
    Role.BOTH: SplitwiseRole.MIXED,
}
_KIND = "splitwise-compat"


def splitwise_fleet_of(scenario: Scenario, *, model: str, gpu_types: tuple[GpuType, ...]) -> SplitwiseFleet:
    """Translate a scenario of one model; names are the catalogues'.

    Raises
    ------
    InputError
        For the first thing that the peer does not know, with its field.
    """
    if len(scenario.models) > 1:
        raise _unknown(scenario, f"{len(scenario.models)} models", "models", "one model")
    if model not in MODEL_NAMES:
        raise _unknown(scenario, model, "models[0].model", f"one of {', '.join(MODEL_NAMES)}")
    router = _SCHEDULERS.get(scenario.router.kind)
    if router is None:
        right = f"one of {', '.join(_SCHEDULERS)}"
        raise _unknown(scenario, f"router {scenario.router.kind}", "router.kind", right)
    if scenario.scheduler.order is not QueueOrder.FCFS:
        raise _unknown(scenario, "priorities", "scheduler.order", "order fcfs")
    if scenario.links.prefix_cache_blocks:
        raise _unknown(scenario, "prefix caches", "kv.prefix_cache_blocks", "0")
    if scenario.events:
        raise _unknown(scenario, "events", "events", "no events")
    for p, pool in enumerate(scenario.pools):
        if router is SplitwiseScheduler.TOKEN_JSQ and pool.role is not Role.BOTH:
            right = "role both, or router mixed-pool"
            raise _unknown(scenario, f"{pool.role} pools under router jsq", f"pools[{p}].role", right)
    return SplitwiseFleet(
        model=MODELS[MODEL_NAMES[model]],
        groups=tuple(
            SplitwiseGroup(
                machine=_machine(scenario, pool, gpu_type, f"pools[{p}]"),
                count=pool.count,
                role=_ROLES[pool.role],
            )
            for p, (pool, gpu_type) in enumerate(zip(scenario.pools, gpu_types, strict=True))
        ),
        scheduler=router,
        max_batch=scenario.scheduler.max_batch,
        max_batch_tokens=scenario.scheduler.max_batch_tokens,
        max_preemptions=scenario.scheduler.max_preemptions,
        prompt_limit_tokens=scenario.router.prompt_limit_tokens,
        link_bytes_per_s=scenario.links.bytes_per_s,
    )


def reference_machine(scenario: Scenario, gpu_type: GpuType, gpus: int) -> SplitwiseMachine:
    """Find the machine of a scenario's reference instance; raises as `splitwise_fleet_of` does."""
    if gpus != GPUS_PER_MACHINE:
        raise _unknown(scenario, f"{gpus} GPUs per instance", "reference_instance.gpus", "8")
    name = MACHINE_NAMES.get(gpu_type.name)
    if name is None:
        right = f"one of {', '.join(MACHINE_NAMES)}"
        raise _unknown(scenario, gpu_type.name, "reference_instance.gpu_type", right)
    return MACHINES[name]


def alone_on_machine(
    machine: SplitwiseMachine, model: str, prompt_tokens: Ints, output_tokens: Ints
) -> Alone:
    """Return what the peer's evaluation takes for a request alone: both tables read at the prompt's tokens."""
    times = machine.step_times[model]
    ttft_s = _read(times.prompt_s, prompt_tokens)
    tbt_s = _read(times.token_s, prompt_tokens)
    return Alone(ttft_s=ttft_s, tbt_s=tbt_s, e2e_s=ttft_s + tbt_s * (output_tokens - 1))


def _machine(scenario: Scenario, pool: ScenarioPool, gpu_type: GpuType, path: str) -> SplitwiseMachine:
    if pool.gpus_per_instance != GPUS_PER_MACHINE:
        what = f"{pool.gpus_per_instance} GPUs per instance"
        raise _unknown(scenario, what, f"{path}.gpus_per_instance", "8")
    capped = pool.power_cap_w_per_gpu is not None and pool.power_cap_w_per_gpu < gpu_type.tdp_w
    names = CAPPED_MACHINE_NAMES if capped else MACHINE_NAMES
    if gpu_type.name not in names:
        what = f"capped {gpu_type.name}" if capped else gpu_type.name
        field = "power_cap_w_per_gpu" if capped and gpu_type.name in MACHINE_NAMES else "gpu_type"
        raise _unknown(scenario, what, f"{path}.{field}", f"one of {', '.join(names)}")
    return MACHINES[names[gpu_type.name]]


def _read(values: tuple[float, ...], tokens: Ints) -> Floats:
    """Read a table of the peer: linear between knots and beyond both ends."""
    knots, seconds = np.array(STEP_KNOTS_TOKENS, dtype=np.float64), np.array(values)
    at = np.clip(np.searchsorted(knots, tokens, side="left"), 1, len(knots) - 1)
    slope = (seconds[at] - seconds[at - 1]) / (knots[at] - knots[at - 1])
    read: Floats = slope * (tokens - knots[at - 1]) + seconds[at - 1]
    return read


def _unknown(scenario: Scenario, what: str, path: str, right: str) -> InputError:
    return InputError(f"{_KIND} knows no {what}", where=scenario.place(path), right=right)
