"""Hypothesis strategies for tiny fleet problems, feasible or not.

They exist so that the solver, the checker and the file format are tried on the same kind of problems. Numbers are drawn
from coarse grids: near-ties within solver tolerances would make two right answers look different.
"""

from hypothesis import strategies as st

from solver.domain.fleet import FleetBudgets, FleetConfig, FleetGoal, FleetInstance, FleetModel, Role
from solver.domain.gpu_mix import GpuOffer, RequestBucket

PRICES_USD_PER_H = (0.0, 0.5, 0.7, 1.01, 2.25)
RATES_RPS = (0.0, 0.3, 1.1, 2.7)
THROUGHPUTS_RPS = (0.0, 0.61, 1.37, 2.9, 6.1)
LINKS = (None, None, 0.0, 700.0, 2500.0)
"""Bytes per second, beside prompts of some hundred bytes."""


@st.composite
def _offers(draw: st.DrawFn, name: str) -> GpuOffer:
    whole_nodes = draw(st.booleans())
    gpus_per_node = draw(st.sampled_from((1, 2, 4)))
    return GpuOffer(
        name=name,
        price_usd_per_h=draw(st.sampled_from(PRICES_USD_PER_H)),
        available=draw(st.sampled_from((None, None, 2, 4, 7))),
        power_w=draw(st.sampled_from((70.0, 300.0, 700.0))),
        gpus_per_node=gpus_per_node,
        whole_nodes=whole_nodes,
        reserved=draw(st.sampled_from((0, 0, 1))) * gpus_per_node,
    )


@st.composite
def _configs(draw: st.DrawFn, offers: tuple[GpuOffer, ...], *, split: bool) -> FleetConfig:
    offer = draw(st.sampled_from(offers))
    role = draw(st.sampled_from(tuple(Role))) if split else Role.BOTH
    return FleetConfig(
        gpu_type=offer.name,
        gpus_per_replica=draw(st.sampled_from((1, 1, 2, 3))),
        role=role,
        power_w=draw(st.sampled_from((None, None, 60.0, 350.0))) if split else None,
        kv_link_bytes_per_s=draw(st.sampled_from(LINKS)) if role is not Role.BOTH else None,
    )


@st.composite
def _models(
    draw: st.DrawFn, name: str, offers: tuple[GpuOffer, ...], most_configs: int, *, split: bool
) -> FleetModel:
    configs = tuple(draw(st.lists(_configs(offers, split=split), min_size=1, max_size=most_configs)))
    rates = draw(st.lists(st.sampled_from(RATES_RPS), min_size=0, max_size=2))
    return FleetModel(
        name=name,
        configs=configs,
        buckets=tuple(
            RequestBucket(rate_rps=rate, input_tokens=100.0 * (index + 1), output_tokens=50.0)
            for index, rate in enumerate(rates)
        ),
        throughput_rps=tuple(tuple(draw(st.sampled_from(THROUGHPUTS_RPS)) for _ in configs) for _ in rates),
        headroom_ratio=draw(st.sampled_from((0.0, 0.0, 0.1))),
        min_total_replicas=draw(st.sampled_from((0, 0, 0, 2))),
        kv_bytes_per_prompt_token=draw(st.sampled_from((0.0, 4.0))),
        kv_utilisation_max_ratio=draw(st.sampled_from((1.0, 0.5))),
    )


@st.composite
def fleet_instances(
    draw: st.DrawFn,
    *,
    max_models: int = 2,
    split: bool = True,
    goals: tuple[FleetGoal, ...] = tuple(FleetGoal),
) -> FleetInstance:
    """Draw a problem of one or two GPU types; ``split`` False draws configs of role both without watts of their own."""
    offers = tuple(draw(_offers(name)) for name in ("A", "B")[: draw(st.integers(1, 2))])
    count = draw(st.integers(1, max_models))
    models = tuple(
        draw(_models(f"m{index}", offers, 3 if count == 1 else 2, split=split)) for index in range(count)
    )
    return FleetInstance(
        name="drawn",
        gpu_types=offers,
        models=models,
        goal=draw(st.sampled_from(goals)),
        budgets=FleetBudgets(
            cost_usd_per_h=draw(st.sampled_from((None, None, 4.0, 9.0))),
            power_w=draw(st.sampled_from((None, None, 900.0, 2500.0))),
            machines=draw(st.sampled_from((None, None, 2.0, 5.0))),
        ),
    )
