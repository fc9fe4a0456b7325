"""From demand to a fleet problem: which pools exist and what one replica of each sustains, role by role.

It exists so that a trace, a benchmark and a test build the same prefill/decode problem in the same way: every GPU type
on offer times every replica size times every role times every power cap, and for each request size the rate that
`solver.performance.phase_capacity` predicts inside the SLO. It solves nothing and reads nothing. `predicted_verdict`
is the way back: what the pools of a fleet really carry with the mixture and the pool sizes it chose, since the program
adds loads linearly (`solver.phases.settle` corrects with it).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from solver.domain.errors import InputError
from solver.domain.fleet import (
    FleetBudgets,
    FleetConfig,
    FleetGoal,
    FleetInstance,
    FleetModel,
    FleetPlan,
    Phase,
    Role,
)
from solver.domain.gpu_mix import GpuOffer, RequestBucket
from solver.domain.slo import Slo
from solver.performance.capacity import DEFAULT_ENGINE
from solver.performance.iteration import EngineSettings
from solver.performance.phase_capacity import PoolCapacity, pool_capacity
from solver.performance.protocol import OutsideRangeError, PerformanceModel
from solver.phases.settle import Verdict

PerformanceOfConfig = Callable[[str, FleetConfig], PerformanceModel]
"""Finds the step times of a config of a model (its name first); the role does not matter to it."""

REPLICA_SIZES = (1, 2, 4, 8)
POOL_SIZE_GUESSED = 8
"""Replicas of a pool before any plan says how many: large enough for most of what pooling gains."""
ROLE_OF_PHASE = {Phase.BOTH: Role.BOTH, Phase.PREFILL: Role.PREFILL, Phase.DECODE: Role.DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutConfig:
    """A config that is not in the instance, and why, in words for people."""

    model: str
    config: FleetConfig
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFleet:
    """The instance and what was kept out of it."""

    instance: FleetInstance
    left_out: tuple[LeftOutConfig, ...]


def candidate_configs(
    offers: Iterable[GpuOffer],
    *,
    roles: Sequence[Role] = tuple(Role),
    replica_sizes: Sequence[int] = REPLICA_SIZES,
    caps_w: Mapping[str, Sequence[float]] | None = None,
    kv_link_bytes_per_s: float | None = None,
) -> tuple[FleetConfig, ...]:
    """List every GPU type x replica size within a node x role, uncapped and at each cap (W per GPU) of its type."""
    configs = []
    for offer, size, role in product(offers, replica_sizes, roles):
        if offer.gpus_per_node is not None and size > offer.gpus_per_node:
            continue
        link = None if role is Role.BOTH else kv_link_bytes_per_s
        config = FleetConfig(gpu_type=offer.name, gpus_per_replica=size, role=role, kv_link_bytes_per_s=link)
        configs.append(config)
        configs += [
            replace(config, power_cap_w=cap_w, power_w=cap_w) for cap_w in (caps_w or {}).get(offer.name, ())
        ]
    return tuple(configs)


def build_fleet_instance(
    *,
    name: str,
    demands: Mapping[str, Sequence[RequestBucket]],
    offers: Sequence[GpuOffer],
    configs: Mapping[str, Sequence[FleetConfig]],
    performance: PerformanceOfConfig,
    slo: Slo | Mapping[str, Slo],
    kv_bytes_per_token: Mapping[str, float] | None = None,
    engine: EngineSettings = DEFAULT_ENGINE,
    headroom_ratio: float = 0.0,
    kv_utilisation_max_ratio: float = 1.0,
    reference: Mapping[str, PerformanceModel] | None = None,
    pool_size: int = POOL_SIZE_GUESSED,
    goal: FleetGoal = FleetGoal.COST,
    budgets: FleetBudgets | None = None,
) -> BuiltFleet:
    """Build the problem; nothing is dropped silently.

    Throughputs are those of a pool of ``pool_size`` replicas that serves the model's whole mixture, split over sizes
    by the work they make (`PoolCapacity.throughput_rps`).

    Parameters
    ----------
    performance
        Its `InputError` and `OutsideRangeError` become reasons to leave a config out.
    kv_bytes_per_token
        Per model, of the whole replica; a model it lacks moves its KV for nothing.
    reference
        Per model the instance that relative targets compare with.

    Raises
    ------
    InputError
        For a model without configs, SLO, traffic, or with a bucket whose sizes are not known.
    """
    models, left_out = [], []
    for model, buckets in demands.items():
        _check(model, buckets, configs, slo)
        columns: dict[FleetConfig, tuple[float, ...]] = {}
        dropped: list[LeftOutConfig] = []
        for config in configs[model]:
            capacity, reason = _capacity(
                model,
                config,
                buckets,
                slo if isinstance(slo, Slo) else slo[model],
                performance=performance,
                engine=engine,
                replicas=pool_size,
                reference=None if reference is None else reference.get(model),
            )
            if capacity is None:
                dropped.append(LeftOutConfig(model=model, config=config, reason=reason))
                continue
            columns[config] = capacity.throughput_rps
        if not columns:  # solving then says which size nobody can serve
            columns = {item.config: (0.0,) * len(buckets) for item in dropped}
        left_out += dropped
        own_slo = slo if isinstance(slo, Slo) else slo[model]
        models.append(
            FleetModel(
                name=model,
                configs=tuple(columns),
                buckets=tuple(buckets),
                throughput_rps=tuple(zip(*columns.values(), strict=True)),
                headroom_ratio=headroom_ratio,
                kv_bytes_per_prompt_token=(kv_bytes_per_token or {}).get(model, 0.0),
                kv_utilisation_max_ratio=kv_utilisation_max_ratio,
                ttft_slo_s=_limit_s(own_slo, "ttft"),
                tbt_slo_s=_limit_s(own_slo, "tbt"),
            )
        )
    instance = FleetInstance(
        name=name,
        gpu_types=tuple(offers),
        models=tuple(models),
        goal=goal,
        budgets=FleetBudgets() if budgets is None else budgets,
    )
    return BuiltFleet(instance=instance, left_out=tuple(left_out))


def routed_buckets(
    instance: FleetInstance, plan: FleetPlan
) -> dict[tuple[int, int], tuple[RequestBucket, ...]]:
    """Return what each config of a plan is sent, by (model index, config index): buckets at their routed rates."""
    sent: dict[tuple[int, int], list[RequestBucket]] = {}
    factor = 1.0 if plan.rate_factor is None else plan.rate_factor
    for m, model in enumerate(instance.models):
        for flow in plan.flows:
            bucket = model.buckets[flow.bucket]
            rate_rps = bucket.rate_rps * flow.share * factor
            if flow.model == model.name and rate_rps > 0.0:
                sent.setdefault((m, flow.config), []).append(replace(bucket, rate_rps=rate_rps))
    return {key: tuple(buckets) for key, buckets in sent.items()}


def predicted_verdict(
    instance: FleetInstance,
    plan: FleetPlan,
    *,
    performance: PerformanceOfConfig,
    slo: Slo | Mapping[str, Slo],
    engine: EngineSettings = DEFAULT_ENGINE,
    reference: Mapping[str, PerformanceModel] | None = None,
) -> Verdict:
    """Judge a plan by the capacity of its own pools: their sizes, and the mixtures routed to them."""
    sustained = float("inf")
    factors = {}
    for (m, config), buckets in routed_buckets(instance, plan).items():
        model = instance.models[m]
        replicas = plan.replicas[m][config]
        rate_rps = sum(bucket.rate_rps for bucket in buckets)
        capacity = pool_capacity(
            performance(model.name, model.configs[config]),
            buckets,
            slo if isinstance(slo, Slo) else slo[model.name],
            engine,
            role=model.configs[config].role,
            replicas=max(replicas, 1),
            reference=None if reference is None else reference.get(model.name),
        )
        room = replicas * capacity.rate_rps
        load = rate_rps / room if room > 0.0 else float("inf")
        sustained = min(sustained, (1.0 - model.headroom_ratio) / load)
        factors[model.name, config] = plan.load_ratio[m][config] / load
    return Verdict(sustained_ratio=sustained, factors=factors)


def _capacity(
    model: str,
    config: FleetConfig,
    buckets: Sequence[RequestBucket],
    slo: Slo,
    *,
    performance: PerformanceOfConfig,
    engine: EngineSettings,
    replicas: int,
    reference: PerformanceModel | None,
) -> tuple[PoolCapacity | None, str]:
    """Throughputs of one config, or why it is left out."""
    try:
        steps = performance(model, config)
        if steps.kv_capacity_tokens() <= 0:
            return None, "the weights do not fit its memory"
        capacity = pool_capacity(
            steps, buckets, slo, engine, role=config.role, replicas=replicas, reference=reference
        )
    except OutsideRangeError as error:
        return None, f"not measured there: {error}"
    except InputError as error:
        return None, str(error)
    if capacity.rate_rps <= 0.0:
        return None, f"one replica alone cannot meet the SLO ({capacity.limit})"
    return capacity, ""


def _limit_s(slo: Slo, metric: str) -> float | None:
    limits = [t.limit_s for t in slo.targets if str(t.metric) == metric and t.limit_s is not None]
    return min(limits, default=None)


def _check(
    model: str,
    buckets: Sequence[RequestBucket],
    configs: Mapping[str, Sequence[FleetConfig]],
    slo: Slo | Mapping[str, Slo],
) -> None:
    if not any(bucket.rate_rps > 0.0 for bucket in buckets):
        raise InputError(f"model {model!r} has no traffic", right="at least one bucket with a rate above 0")
    if not configs.get(model):
        raise InputError(f"model {model!r} has no configs", right="at least one GPU type, size and role")
    if not isinstance(slo, Slo) and model not in slo:
        raise InputError(f"model {model!r} has no SLO", right="one SLO for all, or one per model")
    for index, bucket in enumerate(buckets):
        if bucket.input_tokens is None or bucket.output_tokens is None:
            raise InputError(
                f"bucket {index} of model {model!r} has no size", right="input_tokens and output_tokens"
            )
