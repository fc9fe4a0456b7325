"""Hypothesis strategies for small GPU-type selection problems, feasible or not, of both schema versions.

They exist so that the solver, the checker and the file format are tried on the same kind of problems. Numbers
are drawn from coarse grids: near-ties within solver tolerances would make two right answers look different.
"""

from hypothesis import strategies as st

from solver.domain.gpu_mix import GpuMixInstance, GpuOffer, ModelDemand, RequestBucket, Variant

PRICES_USD_PER_H = (0.0, 0.5, 0.7, 1.01, 2.25, 3.67, 7.5)
RATES_RPS = (0.0, 0.3, 1.1, 2.7, 5.3)
THROUGHPUTS_RPS = (0.0, 0.61, 1.37, 2.9, 6.1, 13.3)


def _maybe(strategy: st.SearchStrategy[int], *, often: int = 1) -> st.SearchStrategy[int | None]:
    """Draw None in all but one of ``often`` + 1 cases."""
    return st.one_of(*[st.none()] * often, strategy)


@st.composite
def _offers(draw: st.DrawFn, name: str, version: int, *, free: bool) -> GpuOffer:
    price_usd_per_h = draw(st.sampled_from(PRICES_USD_PER_H if free else PRICES_USD_PER_H[1:]))
    available = draw(_maybe(st.integers(0, 6)))
    power_w = draw(st.sampled_from((70.0, 300.0, 700.0)))
    if version == 1:
        return GpuOffer(name=name, price_usd_per_h=price_usd_per_h, available=available, power_w=power_w)
    whole_nodes = draw(st.sampled_from((False, False, True)))
    gpus_per_node = draw(st.sampled_from((2, 4))) if whole_nodes else None
    spot = not whole_nodes and draw(st.booleans())
    reserved = draw(st.sampled_from((0, 0, 1, 2))) if free else 0
    return GpuOffer(
        name=name,
        price_usd_per_h=price_usd_per_h,
        available=available,
        power_w=power_w,
        gpus_per_node=gpus_per_node,
        whole_nodes=whole_nodes,
        reserved=reserved * (gpus_per_node or 1),
        spot_price_usd_per_h=round(price_usd_per_h * 0.4, 3) if spot else None,
        spot_available=draw(_maybe(st.integers(0, 3))) if spot else None,
    )


@st.composite
def _variants(draw: st.DrawFn, offers: tuple[GpuOffer, ...], version: int, *, limits: bool) -> Variant:
    offer = draw(st.sampled_from(offers))
    gpus_per_replica = draw(st.sampled_from((1, 1, 2)))
    current_replicas = draw(_maybe(st.integers(0, 2), often=2))
    if version == 1:
        return Variant(
            gpu_type=offer.name, gpus_per_replica=gpus_per_replica, current_replicas=current_replicas
        )
    return Variant(
        gpu_type=offer.name,
        gpus_per_replica=gpus_per_replica,
        spot=offer.spot_price_usd_per_h is not None and draw(st.booleans()),
        precision=draw(st.sampled_from((None, "bf16", "fp8"))),
        quality_ratio=draw(st.sampled_from((1.0, 1.0, 0.98, 0.9))),
        current_replicas=current_replicas,
        min_replicas=draw(st.sampled_from((0, 0, 0, 1))) if limits else 0,
        max_replicas=draw(st.sampled_from((None, None, None, 1, 2, 3))) if limits else None,
    )


@st.composite
def _models(
    draw: st.DrawFn, name: str, offers: tuple[GpuOffer, ...], version: int, sizes: int, *, limits: bool
) -> ModelDemand:
    variants = tuple(draw(st.lists(_variants(offers, version, limits=limits), min_size=1, max_size=3)))
    rates_rps = draw(st.lists(st.sampled_from(RATES_RPS), min_size=0, max_size=sizes))
    throughput_rps = tuple(tuple(draw(st.sampled_from(THROUGHPUTS_RPS)) for _ in variants) for _ in rates_rps)
    later = version == 2
    return ModelDemand(
        name=name,
        variants=variants,
        buckets=tuple(
            RequestBucket(rate_rps=rate_rps, input_tokens=100.0 * (index + 1), output_tokens=50.0)
            for index, rate_rps in enumerate(rates_rps)
        ),
        throughput_rps=throughput_rps,
        headroom_ratio=draw(st.sampled_from((0.0, 0.0, 0.1))),
        min_total_replicas=draw(st.sampled_from((0, 0, 1, 2))),
        min_quality_ratio=draw(st.sampled_from((0.0, 0.0, 0.95))) if later else 0.0,
        max_spot_load_ratio=draw(st.sampled_from((1.0, 0.35, 0.0))) if later else 1.0,
        survive=draw(st.sampled_from((0, 0, 1, 2))) if later else 0,
    )


@st.composite
def gpu_mix_instances(
    draw: st.DrawFn, *, max_models: int = 2, max_buckets: int = 3, free: bool = True, limits: bool = True
) -> GpuMixInstance:
    """Draw a problem of one to three GPU types and at most three variants per model, often with limits.

    ``free`` allows GPUs that cost nothing: price 0, or reserved. ``limits`` gives variants a least and most of
    replicas, which files have no word for.
    """
    version = draw(st.sampled_from((1, 2)))
    offers = tuple(
        draw(_offers(name, version, free=free)) for name in ("A", "B", "C")[: draw(st.integers(1, 3))]
    )
    models = tuple(
        draw(_models(f"m{index}", offers, version, max_buckets, limits=limits))
        for index in range(draw(st.integers(1, max_models)))
    )
    later = version == 2
    return GpuMixInstance(
        name="drawn",
        gpu_types=offers,
        models=models,
        start_cost_usd=draw(st.sampled_from((0.0, 0.8))),
        stop_cost_usd=draw(st.sampled_from((0.0, 0.2))),
        horizon_h=draw(st.sampled_from((1.0, 4.0))) if later else 1.0,
        power_limit_w=draw(st.none() | st.sampled_from((650.0, 1500.0, 4000.0))),
        budget_usd_per_h=draw(st.none() | st.sampled_from((3.0, 9.0, 30.0))) if later else None,
    )
