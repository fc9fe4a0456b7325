"""Seeded multi-model fleets with shared limits, larger than enumeration can check."""

import numpy as np

from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant


def fleet(
    models: int, *, seed: int, types: int = 5, scarcity_ratio: float = 0.7, sizes: tuple[int, ...] = (1, 2, 4)
) -> GpuMixInstance:
    """Make models whose cheapest GPUs are too few for all of them."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(1.0, 6.0, types)
    price = np.round(speed * rng.uniform(0.8, 1.2, types), 2)
    demands = []
    favourite_gpus = np.zeros(types)
    for m in range(models):
        buckets = 5
        weight = rng.uniform(0.5, 4.0)
        rate = rng.uniform(0.5, 6.0, buckets)
        work = rng.uniform(0.3, 2.0, buckets)
        variants = [Variant(gpu_type=f"g{g}", gpus_per_replica=s) for g in range(types) for s in sizes]
        throughput = np.array(
            [
                [
                    speed[g] * s**0.9 / (weight * w) * rng.uniform(0.9, 1.1)
                    for g in range(types)
                    for s in sizes
                ]
                for w in work
            ]
        )
        throughput[rng.random(throughput.shape) < 0.05] = 0.0
        throughput[:, -1] = np.maximum(throughput[:, -1], 1.0)
        load = (rate[:, None] / np.maximum(throughput, 1e-9)).sum(axis=0)
        cost = load * np.array([price[g] * s for g in range(types) for s in sizes])
        best = int(np.argmin(np.where((throughput > 0).all(axis=0), cost, np.inf)))
        favourite_gpus[best // len(sizes)] += np.ceil(load[best]) * sizes[best % len(sizes)]
        demands.append(
            ModelDemand(
                name=f"m{m:03}",
                variants=tuple(variants),
                buckets=tuple(RequestBucket(rate_rps=float(r)) for r in rate),
                throughput_rps=tuple(tuple(float(t) for t in row) for row in throughput),
                headroom_ratio=0.05,
            )
        )
    scarce = int(np.argmax(favourite_gpus))
    offers = tuple(
        GpuOffer(
            name=f"g{g}",
            price_usd_per_h=float(price[g]),
            available=int(scarcity_ratio * favourite_gpus[g]) if g == scarce else None,
            power_w=float(100 * (g + 1)),
        )
        for g in range(types)
    )
    return GpuMixInstance(name=f"fleet-{models}-{seed}", gpu_types=offers, models=tuple(demands))
