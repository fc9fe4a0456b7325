"""Seeded random GPU-type selection problems, alike for all methods that are compared.

They exist because no public table of throughput per request size over many GPU types does. The throughput is a
plain roofline with noise, so these are test problems, not measurements: say nothing about real GPUs from them.
"""

from dataclasses import dataclass

import numpy as np

from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant

INPUT_TOKENS = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
OUTPUT_TOKENS = (25, 100, 250, 500, 1000, 2000)
LARGE_INPUT_TOKENS = tuple(int(size) for size in np.geomspace(25, 16000, 20))
LARGE_OUTPUT_TOKENS = tuple(int(size) for size in np.geomspace(25, 2000, 20))

PARAMETERS = 7e9
WEIGHT_BYTES = 2 * PARAMETERS
KV_BYTES_PER_TOKEN = 524_288.0
TBT_SLO_S = 0.12
# Shares of the peak that a good kernel reaches; with a lower one for bandwidth the two small types never pay,
# the problem is one of two types, and both sides solve it faster.
COMPUTE_EFFICIENCY_RATIO = 0.5
BANDWIDTH_EFFICIENCY_RATIO = 0.8
NOISE_RATIO = 0.07


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticGpu:
    """The four numbers that the roofline needs; round, in the region of the GPU that lends its name."""

    name: str
    price_usd_per_h: float
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flop_per_s: float


# Prices as in the Mélange paper (arXiv 2404.14527); those of L4 and H100 are recalled.
FOUR_GPUS = (
    SyntheticGpu(
        name="L4", price_usd_per_h=0.70, memory_bytes=24e9, bandwidth_bytes_per_s=0.30e12, flop_per_s=121e12
    ),
    SyntheticGpu(
        name="A10G", price_usd_per_h=1.01, memory_bytes=24e9, bandwidth_bytes_per_s=0.60e12, flop_per_s=70e12
    ),
    SyntheticGpu(
        name="A100", price_usd_per_h=3.67, memory_bytes=80e9, bandwidth_bytes_per_s=2.0e12, flop_per_s=312e12
    ),
    SyntheticGpu(
        name="H100",
        price_usd_per_h=7.516,
        memory_bytes=80e9,
        bandwidth_bytes_per_s=3.35e12,
        flop_per_s=989e12,
    ),
)


def roofline_throughput_rps(gpu: SyntheticGpu, input_tokens: float, output_tokens: float) -> float:
    """Return the rate that one GPU sustains with the largest batch that fits memory and the TBT objective.

    Prefill is compute-bound, a decode step reads the weights and the batch's KV cache or
    computes, whichever takes longer; 0 where no batch fits.
    """
    kv_bytes = KV_BYTES_PER_TOKEN * (input_tokens + output_tokens)
    flop_per_s = COMPUTE_EFFICIENCY_RATIO * gpu.flop_per_s
    bandwidth_bytes_per_s = BANDWIDTH_EFFICIENCY_RATIO * gpu.bandwidth_bytes_per_s
    read_s = KV_BYTES_PER_TOKEN * (input_tokens + output_tokens / 2) / bandwidth_bytes_per_s
    weights_s = WEIGHT_BYTES / bandwidth_bytes_per_s
    by_memory = (0.9 * gpu.memory_bytes - WEIGHT_BYTES) / kv_bytes
    by_latency = (TBT_SLO_S - weights_s) / read_s
    batch = int(min(256.0, by_memory, by_latency))
    if batch < 1:
        return 0.0
    prefill_s = 2 * PARAMETERS * input_tokens / flop_per_s
    step_s = max(weights_s + batch * read_s, 2 * PARAMETERS * batch / flop_per_s)
    return 1 / (prefill_s + output_tokens * step_s / batch)


def random_gpu(rng: np.random.Generator, name: str) -> SyntheticGpu:
    """Draw a GPU whose price follows its speed, with noise."""
    speed = float(np.exp(rng.uniform(np.log(0.3), np.log(8.0))))
    return SyntheticGpu(
        name=name,
        price_usd_per_h=round(0.9 * speed**0.95 * float(rng.uniform(0.8, 1.25)), 3),
        memory_bytes=float(rng.choice([24e9, 48e9, 80e9, 141e9])),
        bandwidth_bytes_per_s=0.5e12 * speed * float(rng.uniform(0.8, 1.25)),
        flop_per_s=90e12 * speed * float(rng.uniform(0.8, 1.25)),
    )


def random_instance(seed: int, *, large: bool = False, rate_rps: float | None = None) -> GpuMixInstance:
    """Draw 60 request sizes on 4 GPU types (``large``: 400 on 20); same seed, same problem.

    The total rate is log-uniform from 1 to 10,000 requests/s unless given; the mix of sizes is drawn from a
    Dirichlet distribution around a ridge of a random middle size.
    """
    rng = np.random.default_rng([seed, int(large)])
    drawn_rps = float(np.exp(rng.uniform(np.log(1.0), np.log(10_000.0))))
    total_rps = drawn_rps if rate_rps is None else rate_rps
    gpus = tuple(random_gpu(rng, f"G{index:02d}") for index in range(20)) if large else FOUR_GPUS
    inputs, outputs = (LARGE_INPUT_TOKENS, LARGE_OUTPUT_TOKENS) if large else (INPUT_TOKENS, OUTPUT_TOKENS)
    middle_in, middle_out = rng.uniform(np.log(100), np.log(4000)), rng.uniform(np.log(50), np.log(800))
    sizes = [(float(tokens_in), float(tokens_out)) for tokens_in in inputs for tokens_out in outputs]
    distance = np.array([(np.log(i) - middle_in) ** 2 + (np.log(o) - middle_out) ** 2 for i, o in sizes])
    weights = rng.dirichlet(np.exp(-distance / 4) * 10 + 0.5)
    table = np.array([[roofline_throughput_rps(gpu, i, o) for gpu in gpus] for i, o in sizes])
    table *= rng.uniform(1 - NOISE_RATIO, 1 + NOISE_RATIO, table.shape)
    # A size that no GPU serves inside the objective would make the whole problem infeasible: no traffic there.
    rates_rps = np.where(table.max(axis=1) > 0, weights, 0.0)
    rates_rps *= total_rps / rates_rps.sum()
    return GpuMixInstance(
        name=f"random-{len(sizes)}x{len(gpus)}-{seed}",
        gpu_types=tuple(GpuOffer(name=gpu.name, price_usd_per_h=gpu.price_usd_per_h) for gpu in gpus),
        models=(
            ModelDemand(
                name="model",
                variants=tuple(Variant(gpu_type=gpu.name, gpus_per_replica=1) for gpu in gpus),
                buckets=tuple(
                    RequestBucket(rate_rps=round(float(rate), 9), input_tokens=i, output_tokens=o)
                    for rate, (i, o) in zip(rates_rps, sizes, strict=True)
                ),
                throughput_rps=tuple(tuple(round(float(cell), 6) for cell in row) for row in table),
            ),
        ),
    )
