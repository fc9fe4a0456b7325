"""The GPU-mix report: one HTML file that needs no network, with the answers of a `TraceStudy` and what they mean.

It exists so that people can judge a plan without running anything. It draws and decides nothing: every figure was
computed by the solver; here are only differences and ratios of them. The file appears whole or not at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from controller.day_study import ComparedDay
from controller.reports import gpu_mix_plots as plots
from controller.reports.closed_loop import day_context
from controller.reports.gpu_mix_plots import count_label, short_model, slo_label, variant_label
from controller.reports.known_errors import CAPACITY, JUDGED_GPU_TYPES, STEP_TIMES, WATTS
from controller.reports.page import page_environment, write_page
from controller.reports.svg import number
from controller.trace_study import Point, TraceStudy, replicas_in_use
from solver.domain.gpu_mix import PlanStatus
from solver.performance.protocol import ReplicaKind

STATUS = {
    PlanStatus.OPTIMAL: "proved optimal",
    PlanStatus.FEASIBLE: "feasible; the time limit came before the proof",
    PlanStatus.INFEASIBLE: "infeasible",
    PlanStatus.TIMED_OUT: "no plan within the time limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the command knows about the run beside its answers."""

    version: str
    trace_kind: str
    """Where the trace comes from, in words."""
    command: str
    """The command that makes this report again."""
    wall_s: float | None
    """None: leave out what times the run, so that equal runs give equal bytes."""


def write_report(study: TraceStudy, path: Path, run: Run, *, day: ComparedDay | None = None) -> None:
    """Write the report, with a followed day where there is one; its folder is made if it is missing.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    text = render_report(study, run, day=day)
    write_page(path, text)


def render_report(study: TraceStudy, run: Run, *, day: ComparedDay | None = None) -> str:
    """Return the report as HTML text."""
    environment = page_environment()
    environment.filters["number"] = number
    environment.filters["usd"] = lambda value: f"{value:,.2f}"
    environment.filters["percent"] = lambda ratio, digits=1: f"{100 * ratio:.{digits}f} %"
    found = study.plan.objective is not None
    drawn = {
        "sizes": Markup(plots.request_sizes(study)),  # noqa: S704 - our own SVG; every text in it is escaped
        "arrivals": Markup(plots.arrivals(study)),  # noqa: S704 - as above
        "rates": Markup(plots.rates(study)),  # noqa: S704 - as above
        "slos": Markup(plots.slos(study)),  # noqa: S704 - as above
    }
    if found:
        drawn["routing"] = Markup(plots.routing(study))  # noqa: S704 - as above
        drawn["singles"] = Markup(plots.singles(study))  # noqa: S704 - as above
        drawn["bound"] = Markup(plots.bound(study))  # noqa: S704 - as above
    return environment.get_template("gpu_mix.html.j2").render(
        study=study,
        plan=study.plan,
        base=study.base,
        run=run,
        found=found,
        plots=drawn,
        status=STATUS[study.plan.status],
        orders=mix_orders(study.base),
        wide_orders=mix_orders(study.whole_catalogue),
        wide_types=len(study.whole_catalogue.settled.instance.gpu_types),
        wide_unjudged=_unjudged(study.whole_catalogue),
        saving=saving_ratio(study.base.sound_usd_per_h, _single_usd(study.base)),
        own_saving=saving_ratio(study.base.sound_usd_per_h, study.base.own_singles_usd_per_h),
        running=_running(study),
        per_model=_per_model(study.base),
        routes=_routes(study),
        dearer=_where(study, _dearer),
        unsettled=_where(study, lambda point: bool(point.settled.loads) and not point.settled.within_slo),
        overfull_ratio=study.base.settled.worst_ratio - 1,
        slo_words=slo_label(study.question.slo).replace("\n", ", "),
        left_out=_left_out(study),
        prices=_prices(study),
        provenance=_provenance(study),
        step_times=STEP_TIMES,
        watts=WATTS,
        capacity=CAPACITY,
        short=short_model,
        dropped={reason.replace("_", " "): rows for reason, rows in study.dropped_rows.items() if rows},
        day=None if day is None else day_context(day),
    )


def saving_ratio(cost_usd_per_h: float | None, alternative_usd_per_h: float | None) -> float | None:
    """Return the share of the alternative's cost that is saved; None if one is missing or the alternative is free."""
    if cost_usd_per_h is None or not alternative_usd_per_h:
        return None
    return 1 - cost_usd_per_h / alternative_usd_per_h


def mix_orders(point: Point) -> list[tuple[str, str]]:
    """Say what to run, as (model, '1 × (4×H100-SXM) + 2 × L4')."""
    variants = {model.name: model.variants for model in point.settled.instance.models}
    parts: dict[str, list[str]] = {}
    for model, c, n in replicas_in_use(point.settled.instance, point.plan):
        parts.setdefault(model, []).append(count_label(n, variants[model][c]))
    return [(short_model(model), " + ".join(words)) for model, words in parts.items()]


def _single_usd(point: Point) -> float | None:
    best = point.best_single
    return None if best is None else best.together_usd_per_h


def _dearer(point: Point) -> bool:
    """Whether some single type, settled by itself, came out cheaper than the mix."""
    cost, single = point.sound_usd_per_h, point.own_singles_usd_per_h
    return cost is not None and single is not None and cost > single * (1 + 1e-6)


def _where(study: TraceStudy, holds: Callable[[Point], bool]) -> list[str]:
    """Name the points of both sweeps for which something holds."""
    names = [f"rate ×{point.factor:g}" for point in study.rates if holds(point)]
    names += [
        slo_label(point.slo).replace("\n", ", ")
        for point in study.slos
        if point is not study.base and holds(point)
    ]
    return names


def _running(study: TraceStudy) -> list[dict[str, Any]]:
    """One row per variant in use."""
    instance, plan = study.instance, study.plan
    loads = {(load.model, load.config): load for load in study.base.settled.loads}
    by_type = plots.colours(study)
    rows = []
    for name, c, n in replicas_in_use(instance, plan):
        model = next(model for model in instance.models if model.name == name)
        position = instance.models.index(model)
        variant = model.variants[c]
        served = sum(
            share.share * model.buckets[share.bucket].rate_rps
            for share in plan.routing
            if share.model == name and share.config == c
        )
        load = loads.get((name, c))
        gpus = n * variant.gpus_per_replica
        rows.append(
            {
                "model": short_model(name),
                "variant": variant_label(variant),
                "precision": variant.precision or "",
                "colour": _hex(plots.shade(by_type[variant.gpu_type], variant.gpus_per_replica)),
                "replicas": n,
                "gpus": gpus,
                "cost": gpus * instance.offer(variant.gpu_type).price_usd_per_h,
                "share": served / model.rate_rps if model.rate_rps else 0.0,
                "linear": plan.load_ratio[position][c],
                "routed": None if load is None else load.load_ratio,
                "limit": "-" if load is None else str(load.capacity.limit),
                "ttft": None if load is None else load.capacity.ttft_mean_s,
                "tbt": None if load is None else load.capacity.tbt_mean_s,
            }
        )
    return rows


def _per_model(base: Point) -> list[dict[str, Any]]:
    """Cost of the mix and of the best single type, model by model."""
    rows: list[dict[str, Any]] = []
    if base.cost_usd_per_h is None:
        return rows
    for model in base.settled.instance.models:
        best = base.best_single_of(model.name)
        cost = base.model_cost_usd_per_h(model.name)
        alone = None if best is None else best.cost_usd_per_h[model.name]
        rows.append(
            {
                "model": short_model(model.name),
                "cost": cost,
                "best": "none can" if best is None else best.gpu_type,
                "alone": alone,
                "saving": saving_ratio(cost, alone) if base.settled.within_slo else None,
            }
        )
    return rows


def _routes(study: TraceStudy) -> list[dict[str, Any]]:
    """Every bucket of every model with the shares of its variants."""
    rows = []
    for model in study.instance.models:
        for b, bucket in enumerate(model.buckets):
            shares = [
                (variant_label(model.variants[share.config]), share.share)
                for share in study.plan.routing
                if share.model == model.name and share.bucket == b
            ]
            rows.append(
                {
                    "model": short_model(model.name),
                    "prompt": bucket.input_tokens,
                    "output": bucket.output_tokens,
                    "rate": bucket.rate_rps,
                    "to": ", ".join(
                        name if share > 1 - 1e-9 else f"{name} {100 * share:.1f} %" for name, share in shares
                    ),
                }
            )
    return rows


def _left_out(study: TraceStudy) -> list[tuple[str, str, str]]:
    """Return (model, variants, reason), like reasons together."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for item in study.base.left_out:
        grouped.setdefault((short_model(item.model), item.reason), []).append(variant_label(item.variant))
    return [(model, ", ".join(names), reason) for (model, reason), names in grouped.items()]


def _prices(study: TraceStudy) -> list[dict[str, Any]]:
    """Return the GPU types on offer with price, mark, date, and whether measurements checked the model there."""
    by_type = plots.colours(study)
    rows = []
    for offer in study.instance.gpu_types:
        gpu = study.catalogues.gpus[offer.name]
        rows.append(
            {
                "name": offer.name,
                "colour": by_type[offer.name],
                "price": offer.price_usd_per_h,
                "mark": gpu.price_mark or "your own",
                "date": gpu.price_date or "-",
                "source": gpu.price_from or "-",
                "judged": "yes" if offer.name in JUDGED_GPU_TYPES else "no",
            }
        )
    return rows


def _unjudged(point: Point) -> list[str]:
    names = [
        offer.name
        for offer, gpus in zip(point.settled.instance.gpu_types, point.plan.bought_gpus, strict=False)
        if gpus and offer.name not in JUDGED_GPU_TYPES
    ]
    return sorted(names)


def _provenance(study: TraceStudy) -> Sequence[tuple[str, str]]:
    """Return where the step times of each variant in use come from."""
    rows: dict[str, list[str]] = {}
    for name, c, _ in replicas_in_use(study.instance, study.plan):
        model = next(model for model in study.instance.models if model.name == name)
        variant = model.variants[c]
        kind = ReplicaKind(
            model=name,
            gpu_type=variant.gpu_type,
            gpus_per_replica=variant.gpus_per_replica,
            precision=variant.precision or "",
        )
        source = study.catalogues.book.entry(kind).provenance
        rows.setdefault(source, []).append(f"{short_model(name)} on {variant_label(variant)}")
    return [(source, ", ".join(names)) for source, names in rows.items()]


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
