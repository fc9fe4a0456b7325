"""Seeded random prefill/decode fleet problems of a realistic shape, alike for all methods that are compared.

They exist because no public table gives throughput per phase, request size, tensor parallelism and power cap over
many GPU types. Speeds are a roofline with noise, so these are test problems, not measurements: say nothing about real
GPUs from them. What is kept true: more GPUs and more watts never serve less, dearer GPUs are faster, a cap slows
prefill much and decode little, a model that does not fit serves nothing.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuOffer, RequestBucket

INPUT_TOKENS = (50, 150, 400, 800, 1500, 2500, 4000, 6000, 9000, 14000)
OUTPUT_TOKENS = (15, 50, 130, 300, 600, 1200)
TENSOR_PARALLEL = (1, 2, 4, 8)
CAP_RATIOS = (None, 0.85, 0.7, 0.55)
"""Power caps as parts of the board power; None: uncapped."""
HOST_W = 350.0
"""What a GPU's part of the host draws, so that a cap on the board does not scale all watts."""

PARAMETERS = 34e9
WEIGHT_BYTES = 2 * PARAMETERS
KV_BYTES_PER_TOKEN = 196_608.0
TBT_SLO_S = 0.08
TTFT_SLO_S = 3.0
PREFILL_UTILISATION = 0.8
COMPUTE_EFFICIENCY_RATIO = 0.5
BANDWIDTH_EFFICIENCY_RATIO = 0.8
MEMORY_RATIO = 0.9
DOUBLING_EFFICIENCY_RATIO = 0.93
"""Speed of twice the GPUs over twice the speed."""
LINK_SHARE = 1 / 8
"""A replica has so much of its node's network per GPU."""
MOST_BATCH = 256
NOISE_RATIO = 0.05
"""Per GPU type and phase, so that capped and larger replicas keep their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetGpu:
    """What the roofline needs to know of a GPU type; rounded figures in the region of the GPU that lends its name."""

    name: str
    price_usd_per_h: float
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flop_per_s: float
    board_w: float
    node_link_bytes_per_s: float


TWELVE_GPUS = tuple(
    FleetGpu(
        name=name,
        price_usd_per_h=price,
        memory_bytes=memory_gb * 1e9,
        bandwidth_bytes_per_s=bandwidth_tb * 1e12,
        flop_per_s=tflops * 1e12,
        board_w=watts,
        node_link_bytes_per_s=link_gb * 1e9,
    )
    for name, price, memory_gb, bandwidth_tb, tflops, watts, link_gb in (
        ("T4", 0.35, 16, 0.32, 65, 70, 6.25),
        ("L4", 0.70, 24, 0.30, 121, 72, 12.5),
        ("A10G", 1.01, 24, 0.60, 125, 150, 12.5),
        ("V100", 1.25, 32, 0.90, 125, 300, 12.5),
        ("A40", 1.10, 48, 0.70, 150, 300, 25.0),
        ("L40S", 1.60, 48, 0.86, 362, 350, 25.0),
        ("A100-40", 1.80, 40, 1.55, 312, 400, 50.0),
        ("A100-80", 2.21, 80, 2.04, 312, 400, 200.0),
        ("H100", 4.76, 80, 3.35, 989, 700, 400.0),
        ("H200", 5.60, 141, 4.80, 989, 700, 400.0),
        ("MI300X", 5.10, 192, 5.30, 1300, 750, 400.0),
        ("B200", 8.40, 180, 8.00, 2250, 1000, 800.0),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speed:
    """One replica: seconds per prompt and decode step come from these."""

    flop_per_s: float
    bandwidth_bytes_per_s: float
    memory_bytes: float

    def prompt_s(self, tokens: float) -> float:
        return 2 * PARAMETERS * tokens / (COMPUTE_EFFICIENCY_RATIO * self.flop_per_s) + 0.01

    def step_s(self, batch: float, kv_tokens: float) -> float:
        read = (WEIGHT_BYTES + KV_BYTES_PER_TOKEN * kv_tokens) / (
            BANDWIDTH_EFFICIENCY_RATIO * self.bandwidth_bytes_per_s
        )
        compute = 2 * PARAMETERS * batch / (COMPUTE_EFFICIENCY_RATIO * self.flop_per_s)
        return max(read, compute) + 0.003

    def largest_batch(self, prompt: float, output: float, per_sequence_s: float) -> int:
        """Most sequences that fit memory and keep the TBT objective, each delaying a step by ``per_sequence_s``."""
        room = MEMORY_RATIO * self.memory_bytes - WEIGHT_BYTES
        fit = min(MOST_BATCH, int(room / (KV_BYTES_PER_TOKEN * (prompt + output))) if room > 0 else 0)
        low, high = 0, fit
        while low < high:
            middle = (low + high + 1) // 2
            step_s = self.step_s(middle, middle * (prompt + output / 2)) + per_sequence_s * (middle - 1)
            low, high = (middle, high) if step_s <= TBT_SLO_S else (low, middle - 1)
        return low

    def throughput_rps(self, role: Role, prompt: float, output: float) -> float:
        """Rate of one size that a replica sustains in a role; the rules of the public fleet problems."""
        prompt_s = self.prompt_s(prompt)
        fits = MEMORY_RATIO * self.memory_bytes > WEIGHT_BYTES + KV_BYTES_PER_TOKEN * prompt
        if role is Role.PREFILL:
            return PREFILL_UTILISATION / prompt_s if fits and prompt_s <= TTFT_SLO_S else 0.0
        both = role is Role.BOTH
        if both and prompt_s > TTFT_SLO_S:
            return 0.0
        batch = self.largest_batch(prompt, output, 1.1 * prompt_s / output if both else 0.0)
        if batch < 1:
            return 0.0
        step_s = self.step_s(batch, batch * (prompt + output / 2))
        prefill_s = 1.1 * batch * prompt_s / PREFILL_UTILISATION if both else 0.0
        return batch / (output * step_s + prefill_s)


def _speed(gpu: FleetGpu, gpus: int, cap_ratio: float | None, noise: tuple[float, float]) -> _Speed:
    """Speed of a replica; a cap slows the clock (compute) by a cube-root rule and leaves most of the bandwidth."""
    parallel = gpus * DOUBLING_EFFICIENCY_RATIO ** math.log2(gpus)
    clock = 1.0 if cap_ratio is None else ((cap_ratio - 0.25) / 0.75) ** (1 / 2)
    memory = 1.0 if cap_ratio is None else min(1.0, 0.75 + 0.25 * clock / 0.8)
    return _Speed(
        flop_per_s=noise[0] * clock * parallel * gpu.flop_per_s,
        bandwidth_bytes_per_s=noise[1] * memory * parallel * gpu.bandwidth_bytes_per_s,
        memory_bytes=gpus * gpu.memory_bytes,
    )


def _configs(
    gpus: tuple[FleetGpu, ...], noises: list[tuple[float, float]]
) -> tuple[list[FleetConfig], list[tuple[_Speed, Role]]]:
    configs, speeds = [], []
    for gpu, noise in zip(gpus, noises, strict=True):
        for size in TENSOR_PARALLEL:
            for role in Role:
                for cap in CAP_RATIOS:
                    configs.append(
                        FleetConfig(
                            gpu_type=gpu.name,
                            gpus_per_replica=size,
                            role=role,
                            power_w=None if cap is None else round(HOST_W + cap * gpu.board_w, 1),
                            power_cap_w=None if cap is None else round(cap * gpu.board_w, 1),
                            kv_link_bytes_per_s=None
                            if role is Role.BOTH
                            else round(gpu.node_link_bytes_per_s * LINK_SHARE * size),
                        )
                    )
                    speeds.append((_speed(gpu, size, cap, noise), role))
    return configs, speeds


def random_fleet(
    seed: int,
    *,
    goal: FleetGoal = FleetGoal.COST,
    types: int = 12,
    rate_rps: float | None = None,
    buckets: int = 60,
) -> FleetInstance:
    """Draw a problem of ``types`` GPU types x 4 tensor parallelisms x 3 roles x 4 caps; same seed, same problem.

    The total rate is log-uniform from 10 to 1,000 requests/s unless given. Nodes are of eight GPUs and bought whole;
    about half of the types are scarce. Goal rate asks for the largest factor within the cost of a plain fleet.
    """
    rng = np.random.default_rng([seed, types, buckets])
    drawn_rps = float(np.exp(rng.uniform(np.log(10.0), np.log(1000.0))))
    total_rps = drawn_rps if rate_rps is None else rate_rps
    first = (len(TWELVE_GPUS) - types) // 2 if types <= len(TWELVE_GPUS) else 0
    gpus = TWELVE_GPUS[first : first + types]
    noises = [tuple(rng.uniform(1 - NOISE_RATIO, 1 + NOISE_RATIO, 2).tolist()) for _ in gpus]
    prices = [
        round(gpu.price_usd_per_h * float(rng.uniform(1 - NOISE_RATIO, 1 + NOISE_RATIO)), 2) for gpu in gpus
    ]
    scarce = rng.random(len(gpus)) < 0.5
    stock = rng.integers(2, 12, len(gpus)) * 8
    offers = tuple(
        GpuOffer(
            name=gpu.name,
            price_usd_per_h=price,
            available=int(amount) if short else None,
            power_w=HOST_W + gpu.board_w,
            gpus_per_node=8,
            whole_nodes=True,
        )
        for gpu, price, amount, short in zip(gpus, prices, stock, scarce, strict=True)
    )
    configs, speeds = _configs(gpus, noises)
    sizes = [(float(i), float(o)) for i in INPUT_TOKENS for o in OUTPUT_TOKENS]
    if buckets < len(sizes):
        sizes = [sizes[index] for index in sorted(rng.choice(len(sizes), buckets, replace=False).tolist())]
    middle_in, middle_out = rng.uniform(np.log(300), np.log(3000)), rng.uniform(np.log(60), np.log(500))
    distance = np.array([(np.log(i) - middle_in) ** 2 + (np.log(o) - middle_out) ** 2 for i, o in sizes])
    weights = rng.dirichlet(np.exp(-distance / 3) * 20 + 0.3)
    table = np.array([[speed.throughput_rps(role, i, o) for speed, role in speeds] for i, o in sizes])
    roles = np.array([role.value for _, role in speeds])
    both = table[:, roles == "both"].max(axis=1) > 0
    split = (table[:, roles == "prefill"].max(axis=1) > 0) & (table[:, roles == "decode"].max(axis=1) > 0)
    # A size that no machine serves inside the objective would make the whole problem infeasible: no traffic there.
    rates = np.where(both | split, weights, 0.0)
    rates *= total_rps / rates.sum()
    model = FleetModel(
        name="model",
        configs=tuple(configs),
        buckets=tuple(
            RequestBucket(rate_rps=round(float(rate), 6), input_tokens=i, output_tokens=o)
            for rate, (i, o) in zip(rates, sizes, strict=True)
        ),
        throughput_rps=tuple(tuple(float(f"{cell:.5g}") for cell in row) for row in table.tolist()),
        kv_bytes_per_prompt_token=KV_BYTES_PER_TOKEN,
        kv_utilisation_max_ratio=0.6,
    )
    instance = FleetInstance(
        name=f"random-fleet-{goal.value}-{len(configs)}x{len(sizes)}-{seed}",
        gpu_types=offers,
        models=(model,),
        goal=goal,
    )
    if goal is FleetGoal.RATE:
        return replace(instance, budgets=FleetBudgets(cost_usd_per_h=round(_plain_cost(instance), 2)))
    return instance


def _plain_cost(instance: FleetInstance) -> float:
    """US$ per hour of serving every size on its cheapest role-both config, fractions of replicas allowed."""
    (model,) = instance.models
    price = np.array([instance.offer(c.gpu_type).price_usd_per_h * c.gpus_per_replica for c in model.configs])
    table = np.array(model.throughput_rps)
    rate = np.array([bucket.rate_rps for bucket in model.buckets])
    usable = (table > 0) & np.array([c.role is Role.BOTH for c in model.configs])
    per_request = np.where(usable, price / np.where(usable, table, 1.0), np.inf).min(axis=1)
    return float((rate * np.where(np.isfinite(per_request), per_request, 0.0)).sum())
