"""Draws the plots of the GPU-mix report as SVG text.

It exists apart from the report so that nothing else pays for importing matplotlib. It draws what a `TraceStudy` holds
and decides nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from controller.reports.svg import FAINT, INK, PALETTE, STYLE, Plot, number
from controller.trace_study import ARRIVAL_WINDOW_S, Point, TraceStudy, replicas_in_use
from solver.domain.gpu_mix import Variant
from solver.domain.slo import Slo, SloMetric

MODEL_SHADES = ("#33475b", "#a3b3c2", "#6f8396", "#cbd5de")
LIGHTEST = {1: 0.45, 2: 0.2, 4: 0.0}
"""Share of white by GPUs per replica; larger replicas are darker still."""
MOST_ARRIVAL_POINTS = 240
LARGEST_PIE = 420.0
CUT_AT = 3.0
"""Bars are cut at so many times the cost of the mix, or one hopeless type would flatten all others."""


def short_model(name: str) -> str:
    """Drop the organisation from a model's name."""
    return name.rpartition("/")[2]


def variant_label(variant: Variant) -> str:
    """Name a variant briefly: '4×H100-SXM'."""
    return f"{variant.gpus_per_replica}×{variant.gpu_type}"


def count_label(replicas: int, variant: Variant) -> str:
    """Say how many replicas of a variant: '2 × A100' or, for replicas of several GPUs, '2 × (4×H100)'."""
    if variant.gpus_per_replica == 1:
        return f"{replicas} × {variant.gpu_type}"
    return f"{replicas} × ({variant_label(variant)})"


def colours(study: TraceStudy) -> dict[str, str]:
    """Give every GPU type on offer a colour."""
    names = [offer.name for offer in study.instance.gpu_types]
    return {name: PALETTE[position % len(PALETTE)] for position, name in enumerate(names)}


def shade(colour: str, gpus: int) -> tuple[float, float, float]:
    """Lighten a type's colour for small replicas, darken it for large ones."""
    rgb = np.array(to_rgb(colour))
    if gpus > max(LIGHTEST):
        mixed = rgb * 0.68
    else:
        white = LIGHTEST.get(gpus, 0.1)
        mixed = rgb * (1 - white) + white
    return (float(mixed[0]), float(mixed[1]), float(mixed[2]))


def _tokens_axes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("prompt tokens")
    axes.set_ylabel("output tokens")
    axes.grid(visible=True)


def request_sizes(study: TraceStudy) -> str:
    """Joint histogram of prompt and output tokens, with the buckets that stand for them."""
    with rc_context(STYLE):
        says = (
            f"Joint histogram of prompt and output tokens of {study.summary.requests:,} requests on logarithmic axes,"
            f" with {len(study.demand.buckets)} representative sizes as circles whose area is their rate"
        )
        plot = Plot("sizes", 4.2, says)
        axes = plot.figure.add_subplot()
        # Whole octaves are too coarse and eighths are noisy where tokens are few: half octaves.
        per_octave = 2
        cells = study.summary.sizes
        centre_x = np.log2(cells.prompt / cells.counts)
        centre_y = np.log2(cells.output / cells.counts)
        edges_x = np.arange(math.floor(centre_x.min()), math.ceil(centre_x.max()) + 1.01, 1 / per_octave)
        edges_y = np.arange(math.floor(centre_y.min()), math.ceil(centre_y.max()) + 1.01, 1 / per_octave)
        counts, _, _ = np.histogram2d(centre_x, centre_y, bins=(edges_x, edges_y), weights=cells.counts)
        ramp = LinearSegmentedColormap.from_list("ballast", ["#eef4fa", "#9cc3e2", "#2f7ab5", "#0b3c64"])
        mesh = axes.pcolormesh(
            2**edges_x,
            2**edges_y,
            np.ma.masked_equal(counts.T, 0),
            norm=LogNorm(vmin=1, vmax=max(2.0, float(counts.max()))),
            cmap=ramp,
            linewidth=0,
            rasterized=False,
        )
        _tokens_axes(axes)
        largest = max(bucket.rate_rps for bucket in study.demand.buckets)
        axes.scatter(
            [bucket.input_tokens or 0.0 for bucket in study.demand.buckets],
            [bucket.output_tokens or 0.0 for bucket in study.demand.buckets],
            s=[20 + 300 * bucket.rate_rps / largest for bucket in study.demand.buckets],
            facecolor="#E69F00d0",
            edgecolor="white",
            linewidth=1.2,
            label="representative size (area: its rate)",
        )
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, handletextpad=0.6)
        bar = plot.figure.colorbar(mesh, ax=axes, pad=0.015, aspect=28)
        bar.outline.set_visible(False)
        if bar.solids is not None:  # matplotlib would embed it as a bitmap
            bar.solids.set(rasterized=False, edgecolor="face")
        bar.set_label("requests per cell")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return plot.svg()


def arrivals(study: TraceStudy) -> str:
    """Rate over time in windows, with mean, p99 and the rate that is planned for."""
    with rc_context(STYLE):
        counted = study.summary.windows_of(ARRIVAL_WINDOW_S)
        rates = counted.rates_rps
        together = max(1, math.ceil(len(rates) / MOST_ARRIVAL_POINTS))
        whole = len(rates) // together * together
        shown = rates[:whole].reshape(-1, together).mean(axis=1) if whole else rates
        window_s = ARRIVAL_WINDOW_S * together
        planned, mean = study.demand.rate_rps, study.summary.mean_rps
        p99 = counted.quantile_rps(0.99)
        says = f"Requests per second in windows of {window_s:g} seconds, planned rate {planned:.2f} requests per second"
        plot = Plot("arrivals", 2.7, says)
        axes = plot.figure.add_subplot()
        hours = len(shown) * window_s > 4 * 3600
        unit_s = 3600.0 if hours else 60.0
        edges = np.arange(len(shown) + 1) * window_s / unit_s
        axes.stairs(shown, edges, fill=True, color="#cfe0ee")
        axes.stairs(shown, edges, color="#2f7ab5", linewidth=1.2)
        end = float(edges[-1])
        lines: list[tuple[float, str, str, Any]] = [
            (planned, "planned for", "#D55E00", "-"),
            (p99, "p99 of the windows", FAINT, (0, (4, 2))),
        ]
        if mean is not None:
            lines.append((mean, "mean", FAINT, (0, (1, 2))))
        axes.set_ylim(0, 1.12 * max(float(shown.max()), planned, p99))
        axes.set_xlim(0, end)
        handles = []
        for value, words, colour, dashes in lines:
            axes.axhline(value, color=colour, linewidth=1.5, linestyle=dashes)
            handles.append(
                Line2D([], [], color=colour, linewidth=1.5, linestyle=dashes, label=f"{words} {value:.2f}")
            )
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
        axes.set_xlabel("hours from the first request" if hours else "minutes from the first request")
        axes.set_ylabel("requests/s")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=True, axis="y")
        return plot.svg()


def routing(study: TraceStudy) -> str:
    """Which request sizes go to which variant, one panel per model."""
    with rc_context(STYLE):
        instance, plan = study.instance, study.plan
        by_type = colours(study)
        columns = min(2, len(instance.models))
        rows = math.ceil(len(instance.models) / columns)
        says = "Request sizes of each model as pies: area is the rate, colours are the variants that serve it"
        plot = Plot("routing", 0.4 + 3.9 * rows, says)
        grid = plot.figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(instance.models) :]:
            axes.set_axis_off()
        for axes, model in zip(grid.flat, instance.models, strict=False):
            _tokens_axes(axes)
            axes.set_title(short_model(model.name))
            largest = max(bucket.rate_rps for bucket in model.buckets)
            used = set()
            for b, bucket in sorted(enumerate(model.buckets), key=lambda entry: -entry[1].rate_rps):
                shares = [
                    (s.config, s.share) for s in plan.routing if s.model == model.name and s.bucket == b
                ]
                start = 0.0
                for config, share in sorted(shares):
                    variant = model.variants[config]
                    used.add(config)
                    angles = 2 * math.pi * np.linspace(start, start + share, max(3, round(60 * share)))
                    start += share
                    outline = np.column_stack([np.sin(angles), np.cos(angles)])
                    if share < 1 - 1e-9:
                        outline = np.vstack([[0.0, 0.0], outline])
                    size = 26 + LARGEST_PIE * bucket.rate_rps / largest
                    axes.scatter(
                        [bucket.input_tokens or 0.0],
                        [bucket.output_tokens or 0.0],
                        marker=outline,
                        s=size * float(np.abs(outline).max()) ** 2,
                        facecolor=shade(by_type[variant.gpu_type], variant.gpus_per_replica),
                        edgecolor="white",
                        linewidth=0.6,
                        alpha=0.92,
                    )
            handles = [
                Patch(
                    color=shade(by_type[model.variants[c].gpu_type], model.variants[c].gpus_per_replica),
                    label=variant_label(model.variants[c]),
                )
                for c in sorted(used)
            ]
            axes.legend(
                handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, handlelength=1.0
            )
        return plot.svg()


def singles(study: TraceStudy) -> str:
    """Cost of the mix beside every single type, stacked by model; types that cannot serve all say so."""
    with rc_context(STYLE):
        names = [model.name for model in study.instance.models]
        base = study.base
        mix_usd = base.cost_usd_per_h or 0.0
        bars: list[tuple[str, list[float], str, bool]] = [
            ("this mix", [base.model_cost_usd_per_h(name) for name in names], number(mix_usd), True)
        ]
        own = base.own_singles_usd_per_h
        if own is not None:
            parts = []
            for name in names:
                best = base.best_single_of(name)
                parts.append(best.cost_usd_per_h[name] if best is not None else 0.0)
            bars.append(("best type per model", parts, number(own), False))
        able = [single for single in base.singles if single.together_usd_per_h is not None]
        for single in sorted(able, key=lambda s: (s.together_usd_per_h or 0.0, s.gpu_type)):
            parts = [single.cost_usd_per_h[name] for name in names]
            bars.append((f"only {single.gpu_type}", parts, number(sum(parts)), False))
        unable = [single for single in base.singles if single.together_usd_per_h is None]
        rows = len(bars) + len(unable)
        says = "Cost in US dollars per hour: " + ", ".join(f"{label} {total}" for label, _, total, _ in bars)
        says += "".join(f", only {single.gpu_type} cannot serve every model" for single in unable)
        plot = Plot("singles", 0.9 + 0.36 * rows, says)
        axes = plot.figure.add_subplot()
        limit = CUT_AT * mix_usd
        widest = min(limit, max(sum(parts) for _, parts, _, _ in bars))
        for row, (_, parts, total, ours) in enumerate(bars):
            left = 0.0
            for position, part in enumerate(parts):
                width = max(0.0, min(part, limit - left))
                axes.barh(
                    row,
                    width,
                    left=left,
                    height=0.66,
                    color=MODEL_SHADES[position % len(MODEL_SHADES)],
                    edgecolor="white",
                    linewidth=0.8,
                )
                left += width
            cut = sum(parts) > limit
            more = "" if ours or mix_usd <= 0 else f"  ({100 * (sum(parts) / mix_usd - 1):+,.0f} %)"
            axes.text(
                left + 0.01 * widest,
                row,
                ("… " if cut else "") + total + more,
                va="center",
                fontweight="bold" if ours else "normal",
            )
        for offset, single in enumerate(unable):
            why = "; ".join(f"{short_model(name)}: {reason}" for name, reason in single.reasons.items())
            axes.text(
                0.004 * widest,
                len(bars) + offset,
                f"cannot: {why}",
                va="center",
                color=FAINT,
                fontstyle="italic",
            )
        axes.set_yticks(range(rows), [bar[0] for bar in bars] + [f"only {s.gpu_type}" for s in unable])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(rows - 0.45, -0.55)
        axes.set_xlim(0, 1.22 * widest)
        axes.set_xlabel("US$/h")
        axes.grid(visible=True, axis="x")
        handles = [
            Patch(color=MODEL_SHADES[position % len(MODEL_SHADES)], label=short_model(name))
            for position, name in enumerate(names)
        ]
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=4,
            handlelength=1.0,
            borderaxespad=0.2,
        )
        return plot.svg()


def bound(study: TraceStudy) -> str:
    """Cost of the plan, the proved bound, the relaxation, the best single type: four bars from zero."""
    with rc_context(STYLE):
        plan = study.plan
        best = study.base.best_single
        bars = [
            ("GPUs in fractions", study.fractional_usd_per_h, "#cbd5de"),
            ("proved lower bound", plan.lower_bound_usd_per_h, "#9aa5b1"),
            ("this mix", plan.objective, "#0072B2"),
            ("best single type", None if best is None else best.together_usd_per_h, "#33475b"),
        ]
        shown = [(label, value, colour) for label, value, colour in bars if value is not None]
        says = "US dollars per hour: " + ", ".join(f"{label} {value:.3f}" for label, value, _ in shown)
        plot = Plot("bound", 0.75 + 0.36 * len(shown), says)
        axes = plot.figure.add_subplot()
        widest = max(value for _, value, _ in shown)
        for row, (_, value, colour) in enumerate(shown):
            axes.barh(row, value, height=0.62, color=colour)
            axes.text(value + 0.01 * widest, row, f"{value:.3f}", va="center")
        axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * widest)
        axes.set_xlabel("US$/h")
        axes.grid(visible=True, axis="x")
        return plot.svg()


def rates(study: TraceStudy) -> str:
    """How each model's mix changes with the rate, and the cost per 1000 requests/s of all."""
    with rc_context(STYLE):
        points = study.rates
        models = [model.name for model in study.instance.models]
        labels = [f"{_factor(point.factor)}\n{number(point.rate_rps)}/s" for point in points]
        says = (
            f"Share of each model's cost by variant at {len(points)} rates from {_factor(points[0].factor)} to"
            f" {_factor(points[-1].factor)}, and cost per 1000 requests per second of mix and best single type"
        )
        plot = Plot("rates", 2.6 * len(models) + 2.5, says)
        grid = plot.figure.subplots(len(models) + 1, 1)
        for axes, model in zip(grid, models, strict=False):
            _stacks(axes, study, points, model, share=True)
            axes.set_title(f"{short_model(model)}: share of cost, with replicas in the bars")
            axes.set_xticks(range(len(points)), labels)
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes = grid[-1]
        axes.set_title("Cost per 1000 requests/s to each model, US$/h")
        mix = [_per_thousand(point, point.sound_usd_per_h) for point in points]
        best = [point.best_single for point in points]
        alone = [
            _per_thousand(point, None if single is None else single.together_usd_per_h)
            for point, single in zip(points, best, strict=True)
        ]
        positions = range(len(points))
        axes.plot(
            positions,
            alone,
            color="#33475b",
            linestyle=(0, (4, 2)),
            marker="s",
            markersize=4,
            label="best single type",
        )
        axes.plot(positions, mix, color="#0072B2", marker="o", markersize=5, linewidth=2, label="mix")
        top = max((value for value in (*mix, *alone) if not math.isnan(value)), default=1.0)
        for position, (value, other) in enumerate(zip(mix, alone, strict=True)):
            if not math.isnan(value):
                below = math.isnan(other) or value <= other
                axes.text(
                    position,
                    value + (-0.05 if below else 0.05) * top,
                    f"{value:,.0f}",
                    ha="center",
                    va="top" if below else "bottom",
                    color="#005a8d",
                )
            if not math.isnan(other):
                single = best[position]
                axes.text(
                    position,
                    other + 0.08 * top,
                    "" if single is None else single.gpu_type,
                    ha="center",
                    va="bottom",
                    color=FAINT,
                    fontsize=9,
                )
        axes.set_xticks(positions, labels)
        axes.set_xlim(-0.6, len(points) - 0.4)
        axes.set_ylim(0, 1.25 * top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(loc="upper right", ncols=2)
        axes.grid(visible=True, axis="y")
        axes.set_xlabel("rate, relative to the planned one and in requests/s to each model")
        return plot.svg()


def slos(study: TraceStudy) -> str:
    """How each model's mix and cost change with the SLO."""
    with rc_context(STYLE):
        points = study.slos
        models = [model.name for model in study.instance.models]
        labels = [slo_label(point.slo) for point in points]
        says = f"Cost by variant of each model at {len(points)} SLOs, strictest first, with the best single type marked"
        plot = Plot("slos", 2.9 * len(models), says)
        grid = np.atleast_1d(plot.figure.subplots(len(models), 1))
        for axes, model in zip(grid, models, strict=True):
            top = _stacks(axes, study, points, model, share=False)
            axes.set_title(f"{short_model(model)}: US$/h, with replicas in the bars")
            axes.set_xticks(range(len(points)), labels)
            for position, point in enumerate(points):
                best = point.best_single_of(model)
                if best is None:
                    continue
                value = best.cost_usd_per_h[model]
                stack = sum(cost for _, _, cost in _cost_by_variant(point, model))
                top = max(top, value)
                axes.hlines(value, position - 0.42, position + 0.42, color=INK, linewidth=1.6)
                axes.annotate(
                    f"{best.gpu_type} {number(value)}",
                    (position, max(value, stack)),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=9,
                    color=FAINT,
                )
            axes.set_ylim(0, 1.16 * top if top > 0 else 1)
            axes.grid(visible=True, axis="y")
        return plot.svg()


def _stacks(axes: Axes, study: TraceStudy, points: Sequence[Point], model: str, *, share: bool) -> float:
    """Stack the cost of a model's variants at every point; return the tallest stack."""
    by_type = colours(study)
    height_in_points = 2.0 * 72
    seen: dict[tuple[int, int], Variant] = {}
    types = list(by_type)
    tallest = 0.0
    stacks = [_cost_by_variant(point, model) for point in points]
    for parts in stacks:
        tallest = max(tallest, sum(cost for _, _, cost in parts))
    for position, parts in enumerate(stacks):
        total = sum(cost for _, _, cost in parts)
        if not parts:
            axes.text(position, 0.02 * (1 if share else max(tallest, 1)), "no plan", ha="center", color=FAINT)
            continue
        sound = points[position].settled.within_slo
        if not sound:
            axes.text(
                position,
                (1.0 if share else total) / 2,
                "not sound",
                ha="center",
                va="center",
                rotation=90,
                color=FAINT,
                fontstyle="italic",
                fontsize=8,
            )
        bottom = 0.0
        scale = (total or 1.0) if share else 1.0
        for variant, n, cost in parts:
            key = (types.index(variant.gpu_type), variant.gpus_per_replica)
            seen[key] = variant
            colour = shade(by_type[variant.gpu_type], variant.gpus_per_replica)
            height = cost / scale
            axes.bar(
                position,
                height,
                bottom=bottom,
                width=0.74,
                color=colour,
                edgecolor="white",
                linewidth=0.8,
                alpha=1.0 if sound else 0.25,
            )
            if sound and height / (1.0 if share else max(tallest, 1e-9)) * height_in_points > 12:
                dark = sum(colour) < 1.75
                words = count_label(n, variant) if len(points) <= 5 else f"{n} × {variant.gpus_per_replica}"
                axes.text(
                    position,
                    bottom + height / 2,
                    words,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else INK,
                )
            bottom += height
    axes.set_xlim(-0.6, len(points) - 0.4)
    handles = [
        Patch(color=shade(by_type[variant.gpu_type], variant.gpus_per_replica), label=variant_label(variant))
        for _, variant in sorted(seen.items(), reverse=True)
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.0)
    return tallest


def _cost_by_variant(point: Point, model: str) -> list[tuple[Variant, int, float]]:
    """Return (variant, replicas, US$/h) of one model, types in the order of the offer, then by replica size."""
    instance = point.settled.instance
    demand = next(entry for entry in instance.models if entry.name == model)
    order = [offer.name for offer in instance.gpu_types]
    parts = []
    for name, c, n in replicas_in_use(instance, point.plan):
        if name == model:
            variant = demand.variants[c]
            price = instance.offer(variant.gpu_type).price_usd_per_h
            parts.append((variant, n, n * variant.gpus_per_replica * price))
    return sorted(parts, key=lambda part: (order.index(part[0].gpu_type), part[0].gpus_per_replica))


def _per_thousand(point: Point, cost_usd_per_h: float | None) -> float:
    return float("nan") if cost_usd_per_h is None else 1000 * cost_usd_per_h / point.rate_rps


def _factor(factor: float) -> str:
    return f"×{factor:g}" if factor >= 1 else f"×1/{1 / factor:g}"


def slo_label(slo: Slo) -> str:
    """Write an SLO in short lines for an axis: 'TTFT 2 s' above 'TBT 100 ms'."""
    lines = []
    for target in slo.targets:
        if target.limit_s is None:
            limit = f"{target.limit_ratio:g}x"
        elif target.metric is SloMetric.TBT:
            limit = f"{1000 * target.limit_s:g} ms"
        else:
            limit = f"{target.limit_s:g} s"
        lines.append(f"{target.metric.upper()} p{target.percentile:g} {limit}")
    return "\n".join(lines)
