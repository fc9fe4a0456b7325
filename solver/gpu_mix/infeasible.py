"""Why no plan exists: the bucket nobody can serve, or the smallest set of models and limits that clash.

It exists because "infeasible" alone helps nobody. The kind is the first rule whose removal alone makes the problem
feasible (README of gputype-instance/2); models and GPU types are reduced one by one as long as the rest still
clashes (a deletion filter), so that no smaller part of what is named would do.
"""

from collections.abc import Sequence

from solver.backends.choose import BackendName
from solver.backends.program import SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance, Infeasibility, InfeasibleKind
from solver.gpu_mix.direct import solve_direct
from solver.gpu_mix.prepare import ServedModel, serve_all
from solver.gpu_mix.relaxation import relaxed_prices
from solver.gpu_mix.variations import (
    RULES,
    has_rule,
    only_models,
    without_rule,
    without_stock_limits,
)

ANY_ANSWER_GAP_RATIO = 1e9
"""A gap that every answer has: the first feasible one is enough."""


def is_feasible(instance: GpuMixInstance, *, deadline: Deadline, backend: BackendName) -> bool | None:
    """Whether a plan exists; None if that was not settled in time."""
    models = serve_all(instance)
    if any(not model.served_by.any(axis=1).all() for model in models):
        return False
    relaxed, _ = relaxed_prices(instance, models, deadline=deadline, backend=backend)
    if relaxed.status == SolveStatus.INFEASIBLE:
        return False
    answer = solve_direct(
        instance, models, deadline=deadline, gap_ratio=ANY_ANSWER_GAP_RATIO, backend=backend
    )
    if answer.counts:
        return True
    return False if answer.status == SolveStatus.INFEASIBLE else None


def explain_infeasible(
    instance: GpuMixInstance, *, deadline: Deadline, backend: BackendName
) -> Infeasibility:
    """Name a minimal reason for a problem that is known to have no plan."""
    unservable = _unservable(instance)
    if unservable is not None:
        return unservable
    kind: InfeasibleKind = "combination"
    verdicts = {
        rule: is_feasible(without_rule(instance, rule), deadline=deadline, backend=backend)
        for rule in RULES
        if has_rule(instance, rule)
    }
    enough = [rule for rule, feasible in verdicts.items() if feasible]
    unsettled = [rule for rule, feasible in verdicts.items() if feasible is None]
    if enough or unsettled:
        kind = (enough or unsettled)[0]
    core = _fewest_models(instance, deadline, backend)
    core, gpu_types = _fewest_stock_limits(core, deadline, backend)
    models = tuple(model.name for model in core.models)
    buckets = _buckets_without_variant(core) if kind == "quality" else ()
    return Infeasibility(
        kind=kind,
        models=models,
        buckets=buckets,
        gpu_types=gpu_types,
        message=_message(core, kind, enough, gpu_types)
        + ("" if enough or not unsettled else " (not settled in time; raise --time-limit)"),
    )


def _unservable(instance: GpuMixInstance) -> Infeasibility | None:
    """Find buckets with traffic that no variant of the model can serve at any quality."""
    for model in instance.models:
        buckets = tuple(
            index
            for index, (bucket, row) in enumerate(zip(model.buckets, model.throughput_rps, strict=True))
            if bucket.rate_rps > 0 and not any(rate > 0 for rate in row)
        )
        if buckets:
            first = model.buckets[buckets[0]]
            size = (
                ""
                if first.input_tokens is None or first.output_tokens is None
                else f" ({first.input_tokens:.0f} input, {first.output_tokens:.0f} output tokens)"
            )
            more = f" and {len(buckets) - 1} more" if len(buckets) > 1 else ""
            return Infeasibility(
                kind="bucket-unservable",
                models=(model.name,),
                buckets=buckets,
                gpu_types=(),
                message=(
                    f"no variant of model {model.name} can serve bucket {buckets[0]}{size}{more} inside the SLO; "
                    "offer a larger GPU or replica, or relax the SLO"
                ),
            )
    return None


def _fewest_models(instance: GpuMixInstance, deadline: Deadline, backend: BackendName) -> GpuMixInstance:
    """Drop models while the rest still clashes; halves first, so that many models need few trials."""
    names = [model.name for model in instance.models]
    size = len(names) // 2
    while size >= 1 and not deadline.passed():
        position = 0
        while position < len(names) and not deadline.passed():
            rest = names[:position] + names[position + size :]
            if rest and _still_clashes(only_models(instance, set(rest)), deadline, backend):
                names = rest
            else:
                position += size
        size = min(size // 2, len(names) // 2) if size > 1 else 0
    return only_models(instance, set(names))


def _fewest_stock_limits(
    instance: GpuMixInstance, deadline: Deadline, backend: BackendName
) -> tuple[GpuMixInstance, tuple[str, ...]]:
    """Lift stock limits while the rest still clashes; returns the instance and whose limits are left."""
    needed = []
    for offer in instance.gpu_types:
        if offer.available is None and offer.spot_available is None:
            continue
        lifted = without_stock_limits(instance, {offer.name})
        if _still_clashes(lifted, deadline, backend):
            instance = lifted
        else:
            needed.append(offer.name)
    return instance, tuple(needed)


def _still_clashes(instance: GpuMixInstance, deadline: Deadline, backend: BackendName) -> bool:
    return is_feasible(instance, deadline=deadline, backend=backend) is False


def _buckets_without_variant(instance: GpuMixInstance) -> tuple[int, ...]:
    """Buckets of the first model that no variant of sufficient quality can serve."""
    for model in serve_all(instance):
        missing = _missing(model)
        if missing:
            return missing
    return ()


def _missing(model: ServedModel) -> tuple[int, ...]:
    return tuple(int(model.bucket_index[b]) for b in range(model.buckets) if not model.served_by[b].any())


def _message(
    core: GpuMixInstance, kind: InfeasibleKind, enough: Sequence[str], gpu_types: Sequence[str]
) -> str:
    """Say in one sentence who clashes with what and what would help."""
    who = ", ".join(model.name for model in core.models[:5]) + (" ..." if len(core.models) > 5 else "")
    clash = []
    if gpu_types:
        stock = {offer.name: offer for offer in core.gpu_types}
        clash.append(
            "the GPUs available ("
            + ", ".join(
                f"{name} {'no limit' if stock[name].available is None else stock[name].available}"
                + ("" if stock[name].spot_available is None else f" + {stock[name].spot_available} spot")
                for name in gpu_types
            )
            + ")"
        )
    if core.power_limit_w is not None and kind in ("power-limit", "combination"):
        clash.append(f"the power limit of {core.power_limit_w:g} W")
    if core.budget_usd_per_h is not None and kind in ("budget", "combination"):
        clash.append(f"the budget of {core.budget_usd_per_h:g} US$/h")
    if kind == "quality":
        clash.append("the minimum quality")
    survive = max((model.survive for model in core.models), default=0)
    if survive and kind in ("survive", "combination", "gpu-limit"):
        clash.append(f"surviving the loss of {survive} replica{'s' if survive > 1 else ''}")
    plural = "s" if len(core.models) > 1 else ""
    what = " and ".join(clash) if clash else "the given limits"
    advice = "; no single rule alone is to blame" if kind == "combination" else ""
    if enough:
        advice = f"; enough to drop one of: {', '.join(enough)}"
    return f"model{plural} {who} cannot be served within {what}{advice}"
