"""The part of a report that shows a day under several policies: figures side by side, and the plots.

It exists so that the demo's report need not know how a `ComparedDay` is drawn. It decides nothing: here are only
differences and ratios of what was simulated.
"""

from typing import Any

from markupsafe import Markup

from controller.day_study import ComparedDay, PolicyDay
from controller.reports import closed_loop_plots as plots
from simulator.scenario import PlannerPolicy

WORDS = {
    PlannerPolicy.STATIC: "static peak",
    PlannerPolicy.HPA: "HPA",
    PlannerPolicy.BALLAST: "Ballast",
    PlannerPolicy.ORACLE: "oracle",
}


def day_rows(compared: ComparedDay) -> list[dict[str, Any]]:
    """Return the figures of each policy, with differences and ratios."""
    known = {run.policy: run for run in compared.runs}
    return [_row(run, known) for run in compared.runs]


def day_context(compared: ComparedDay) -> dict[str, Any]:
    """Return what the template of the day needs."""
    runs = compared.runs
    end_s = float(compared.day.requests.arrival_s[-1])
    labels = tuple(WORDS[run.policy] for run in runs)
    known = {run.policy: run for run in runs}
    own = known.get(PlannerPolicy.BALLAST)
    percentiles = [target.percentile for target in compared.scenario.slo.targets]
    return {
        "compared": compared,
        "rules": compared.scenario.planner,
        "slo": str(compared.scenario.slo),
        "budget_kw": None
        if compared.scenario.power.budget_w is None
        else compared.scenario.power.budget_w / 1000.0,
        "caps": compared.scenario.power.caps,
        "rows": day_rows(compared),
        "requests": len(compared.day.requests),
        "mean_rps": float(compared.rate_rps.mean()),
        "peak_rps": float(compared.rate_rps.max()),
        "hours": end_s / 3600.0,
        "history_days": -compared.day.history.start_s / 86_400.0,
        "against_static": _less(own, known.get(PlannerPolicy.STATIC)),
        "against_hpa": _less(own, known.get(PlannerPolicy.HPA)),
        "own": None if own is None else _row(own, known),
        "forecasts": {} if own is None else dict(own.rules),
        "pools": [f"{pool.gpus_per_instance}×{pool.gpu_type}" for pool in compared.scenario.pools],
        "model": compared.scenario.models[0].model,
        "mix": _svg(
            plots.mix_over_time(
                [
                    plots.MixPanel(
                        label=label,
                        times_s=run.times_s,
                        carried_rps=run.carried_rps,
                        cap_ratio=run.cap_ratio,
                    )
                    for label, run in zip(labels, runs, strict=True)
                ],
                compared.pools,
                rate_rps=compared.rate_rps,
                window_s=compared.window_s,
                end_s=end_s,
            )
        ),
        "missed": _svg(
            plots.missed_windows(
                plots.Rows(
                    labels=labels,
                    step_s=compared.window_s,
                    values=tuple(1.0 - run.of_window for run in runs),
                ),
                allowed_ratio=1.0 - min(percentiles, default=100.0) / 100.0,
            )
        ),
        "watts": _svg(
            plots.watts(
                plots.Rows(labels=labels, step_s=runs[0].bin_s, values=tuple(run.power_w for run in runs)),
                budget_w=compared.scenario.power.budget_w,
            )
        ),
    }


def _svg(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - our own SVG; every text in it is escaped


def _row(run: PolicyDay, known: dict[PlannerPolicy, PolicyDay]) -> dict[str, Any]:
    return {
        "name": WORDS[run.policy],
        "cost_usd": run.cost_usd,
        "against_static": _less(run, known.get(PlannerPolicy.STATIC)),
        "times_oracle": _times(run, known.get(PlannerPolicy.ORACLE)),
        "kwh": None if run.energy_j is None else run.energy_j / 3.6e6,
        "request_ratio": run.request_ratio,
        "window_ratio": run.window_ratio,
        "started": run.started,
        "max_kw": None if run.max_w is None else run.max_w / 1000.0,
    }


def _less(run: PolicyDay | None, other: PolicyDay | None) -> float | None:
    """Share of the other's cost that is saved."""
    if run is None or other is None or run.cost_usd is None or not other.cost_usd:
        return None
    return 1.0 - run.cost_usd / other.cost_usd


def _times(run: PolicyDay, other: PolicyDay | None) -> float | None:
    if other is None or run.cost_usd is None or not other.cost_usd:
        return None
    return run.cost_usd / other.cost_usd
