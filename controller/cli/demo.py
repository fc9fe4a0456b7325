"""``ballast demo``: from a trace to the cheapest GPU mix, then a day with the planner at work, in one HTML report.

It exists so that a newcomer sees a whole answer without any data of their own: it takes the recorded Azure
conversation trace and the public ServeGen rates where the project's shared data has them, else the trace that Ballast
ships and generated rates. It decides nothing; the questions are asked in `controller.trace_study` and
`controller.day_study`, the report is drawn in `controller.reports.gpu_mix`.
"""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controller.cli.options import (
    FiniteRange,
    catalogue_option,
    common_options,
    no_timings_option,
    output_option,
    seed_option,
    time_limit_option,
    workers_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from controller.day_study import ComparedDay
    from controller.reports.gpu_mix import Run
    from controller.trace_study import Point, TraceStudy

DEFAULT_MODELS = ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-8B")
DEFAULT_GPU_TYPES = "L4,A10G,L40S,A100-80-SXM,H100-SXM,H200-SXM"
"""The four types of the Mélange paper and two that followed them. Types without any measurement behind their step
times that would win all the same (AMD) are left to the report's look at the whole catalogue."""
DEFAULT_SLO = "ttft_p99=2.0,tbt_p99=0.1"
REQUEST_SIZES = 20
"""Request sizes told apart; more change the cost by less than the performance models' error and take longer."""
RECORDED = Path("shared/data/sim/azure/AzureLLMInferenceTrace_conv.csv")
RECORDED_RATES = Path("shared/data/seeds/traces/servegen/window_rates.csv.gz")
RATES_OF, RATES_DAY = "m-large", 7
"""The service and the day (from 0) that is followed; settings were chosen on generated days."""
GENERATED_DAYS = 9
DAY_MEAN_RPS = 10.0


@click.command("demo")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False),
    help="Request trace to plan for.  [default: the recorded Azure conversation trace if the shared data has it,"
    " else the shipped generated one]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    default="out/demo.html",
    show_default=True,
    help="Where to write the report.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=DEFAULT_MODELS,
    show_default=True,
    help="Model to serve; may be repeated. Each gets the whole traffic.",
)
@click.option(
    "--gpu-types",
    default=DEFAULT_GPU_TYPES,
    show_default=True,
    help="Comma-separated GPU types to choose from.",
)
@click.option("--slo", default=DEFAULT_SLO, show_default=True, help="Latency targets.")
@catalogue_option
@click.option(
    "--hours",
    type=FiniteRange(0.0, 24.0),
    default=24.0,
    show_default=True,
    help="Hours of a day that the planner follows, beside a static fleet, an autoscaler and an oracle; 0: none.",
)
@common_options(output_option, seed_option, time_limit_option, workers_option, no_timings_option)
@click.pass_context
def demo(ctx: click.Context, /, **given: Any) -> None:
    """Plan GPUs for an hour of LLM traffic, then follow a day of it, and write a report.

    \b
    Examples:
      ballast demo
      ballast demo --trace my.csv --model meta-llama/Llama-3.1-8B --out report.html
    """  # noqa: D301 - the \b is meant: click keeps such lines as they are
    from controller.cli.answers import ballast_version, plan_exit_code
    from controller.cli.output import announce_compilation, print_structured, progress
    from controller.day_study import POLICIES
    from controller.trace_planning import TraceQuestion
    from controller.trace_study import STEPS, study_trace
    from solver.domain.errors import InputError
    from solver.domain.slo import parse_slo
    from solver.gpu_mix.solve import SolveOptions

    began_s = time.monotonic()
    out = Path(given["out"])
    if out.is_dir():
        raise InputError("is a directory", where=str(out), right="the name of an HTML file to write")
    trace, kind, words = _trace(given["trace"])
    if given["output"] == "table":
        click.echo(f"Trace: {trace.name}, {words}")
        sys.stdout.flush()
    question = TraceQuestion(
        models=tuple(given["models"]),
        slo=parse_slo(given["slo"], where="--slo"),
        gpu_types=tuple(name.strip() for name in given["gpu_types"].split(",") if name.strip()),
        largest_bucket_count=REQUEST_SIZES,
        catalogue_files=tuple(Path(name) for name in given["catalogue_files"]),
    )
    options = SolveOptions(time_limit_s=given["time_limit_s"], seed=given["seed"])
    announce_compilation()
    with progress("ballast demo", STEPS + (len(POLICIES) if given["hours"] else 0)) as advance:
        first = True

        def step(note: str) -> None:
            nonlocal first
            advance(0.0 if first else 1.0, note=note)
            first = False

        study = study_trace(trace, question, options=options, workers=given["workers"], step=step)
        day = _followed_day(trace, given["hours"], given["seed"], step) if given["hours"] else None
        from controller.reports.gpu_mix import Run, write_report

        run = Run(
            version=ballast_version(),
            trace_kind=words,
            command=_command_again(ctx, given),
            wall_s=None if given["no_timings"] else time.monotonic() - began_s,
        )
        write_report(study, out, run, day=day)
    if given["output"] == "table":
        _print(study, out, run, day)
    else:
        print_structured(demo_answer(study, out, kind, run, day), given["output"])
    sys.stdout.flush()
    ctx.exit(plan_exit_code(study.plan, gap_ratio=0.0))


def recorded_trace() -> Path | None:
    """Find the recorded trace beside the checkout this package was installed from; None elsewhere."""
    return _shared(RECORDED)


def _shared(name: Path) -> Path | None:
    """Find a file of the shared data beside the checkout this package was installed from; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    path = root.parent / name
    return path if (root / "pyproject.toml").is_file() and path.is_file() else None


def _followed_day(
    sizes: Path, hours: float, seed: int, step: "Callable[[str], None]"
) -> "ComparedDay | None":
    """Let every policy follow a day: recorded rates where there are some, sizes of the demo's own trace."""
    from controller.closed_loop.day import WINDOW_S, day_of, generated_windows, recorded_windows
    from controller.day_study import compare_day, day_scenario
    from solver.domain.errors import InputError

    recorded = _shared(RECORDED_RATES)
    if recorded is not None:
        windows, day = recorded_windows(recorded, RATES_OF), RATES_DAY
    else:
        windows, day = generated_windows(GENERATED_DAYS, seed=seed), GENERATED_DAYS - 1
    duration_s = max(1, round(hours * 3600.0 / WINDOW_S)) * WINDOW_S
    try:
        found = day_of(windows, sizes, day=day, mean_rps=DAY_MEAN_RPS, duration_s=duration_s, seed=seed)
        return compare_day(day_scenario(), found, seed=seed, step=step)
    except InputError as error:  # sizes that nobody can serve: the plan is shown all the same
        click.echo(f"no day is followed: {error}", err=True)
        return None


def _trace(given: str | None) -> tuple[Path, str, str]:
    """Return the trace, what kind it is, and that in words."""
    from telemetry.sources.traces.shipped import shipped_trace_path

    if given is not None:
        return Path(given), "given", "given with --trace"
    recorded = recorded_trace()
    if recorded is not None:
        return recorded, "recorded", "a recorded hour of conversations (Azure, November 2023)"
    return shipped_trace_path(), "shipped", "an hour of generated conversations that Ballast ships"


def _command_again(ctx: click.Context, given: dict[str, Any]) -> str:
    """Write the command that gives this report again, with what differs from the defaults."""
    words = ["ballast", "demo"]
    for parameter in ctx.command.params:
        value = given.get(parameter.name or "")
        default = parameter.get_default(ctx)
        if not parameter.opts[-1].startswith("--") or value in (None, False, (), default):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words.append(parameter.opts[-1])
            if item is not True:
                words.append(str(item))
    return shlex.join(words)


def demo_answer(
    study: "TraceStudy", out: Path, trace_kind: str, run: "Run", day: "ComparedDay | None" = None
) -> dict[str, Any]:
    """Write ``demo/1``: the plan as ``gpu-mix-plan/1``, the sweeps and the followed day in short."""
    from controller.cli.answers import gpu_mix_answer

    base = study.base
    best = base.best_single
    return {
        "schema": "demo/1",
        "version": run.version,
        "trace": {
            "name": study.trace_name,
            "kind": trace_kind,
            "sha256": study.trace_sha256,
            "requests": study.summary.requests,
            "mean_rps": study.summary.mean_rps,
        },
        "slo": str(study.question.slo),
        "planned_rps": base.rate_rps,
        "within_slo": base.settled.within_slo,
        "seed": study.options.seed,
        "plan": gpu_mix_answer(study.instance, study.plan),
        "variants": {
            model.name: [
                {
                    "gpu_type": variant.gpu_type,
                    "gpus_per_replica": variant.gpus_per_replica,
                    "precision": variant.precision,
                }
                for variant in model.variants
            ]
            for model in study.instance.models
        },
        "single_types": [
            {
                "gpu_type": single.gpu_type,
                "cost_usd_per_h": _rounded(single.together_usd_per_h),
                "per_model_usd_per_h": {name: _rounded(cost) for name, cost in single.cost_usd_per_h.items()},
                "cannot_serve": dict(single.reasons),
            }
            for single in base.singles
        ],
        "best_single_type": None
        if best is None
        else {"gpu_type": best.gpu_type, "cost_usd_per_h": _rounded(best.together_usd_per_h)},
        "best_single_type_per_model_usd_per_h": _rounded(base.own_singles_usd_per_h),
        "fractional_usd_per_h": _rounded(study.fractional_usd_per_h),
        "whole_catalogue_usd_per_h": _rounded(study.whole_catalogue.sound_usd_per_h),
        "rehearsal": [
            {
                "model": model.name,
                "planned_rps": _rounded(model.planned_rps),
                "recorded_rps": _rounded(model.recorded_rps),
                "targets": [
                    {
                        "target": str(row.target),
                        "predicted_s": _rounded(row.predicted_s),
                        "simulated_planned_s": _rounded(row.planned_s),
                        "simulated_recorded_s": _rounded(row.recorded_s),
                    }
                    for row in model.targets
                ],
                "met": model.met,
            }
            for model in study.rehearsal
        ],
        "rates": [_point(point) for point in study.rates],
        "slos": [_point(point) for point in study.slos],
        **({} if day is None else {"day": day_answer(day)}),
        "report": str(out),
        **({} if run.wall_s is None else {"wall_s": round(run.wall_s, 3)}),
    }


def day_answer(day: "ComparedDay") -> dict[str, Any]:
    """Write a followed day: figures of each policy."""
    return {
        "rates": day.day.name,
        "sizes": day.day.sizes_from,
        "requests": len(day.day.requests),
        "mean_rps": _rounded(float(day.rate_rps.mean())),
        "peak_rps": _rounded(float(day.rate_rps.max())),
        "slo": str(day.scenario.slo),
        "policies": {
            str(run.policy): {
                "cost_usd": _rounded(run.cost_usd),
                "energy_j": _rounded(run.energy_j),
                "attained_request_ratio": _rounded(run.request_ratio),
                "attained_window_ratio": _rounded(run.window_ratio),
                "rejected": run.rejected,
                "started": run.started,
                "stopped": run.stopped,
                "rules": dict(run.rules),
            }
            for run in day.runs
        },
    }


def _point(point: "Point") -> dict[str, Any]:
    best = point.best_single
    return {
        "factor": point.factor,
        "rate_rps": _rounded(point.rate_rps),
        "slo": str(point.slo),
        "status": str(point.plan.status),
        "cost_usd_per_h": _rounded(point.cost_usd_per_h),
        "within_slo": point.settled.within_slo,
        "best_single_type": None
        if best is None
        else {"gpu_type": best.gpu_type, "cost_usd_per_h": _rounded(best.together_usd_per_h)},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 9)


def _print(study: "TraceStudy", out: Path, run: "Run", day: "ComparedDay | None") -> None:
    """Print the result for people."""
    from controller.cli.output import print_table
    from controller.cli.plan_tables import STATUS_WORDS, variant_name
    from controller.trace_study import replicas_in_use

    base, plan, instance = study.base, study.plan, study.instance
    click.echo(
        f"  {study.summary.requests:,} requests; planned for {base.rate_rps:.2f} requests/s per model,"
        f" {study.question.slo}"
    )
    if plan.objective is None:
        why = "" if plan.infeasible is None else f": {plan.infeasible.message}"
        click.echo(f"No plan: {STATUS_WORDS[plan.status]}{why}")
    else:
        variants = {model.name: model.variants for model in instance.models}
        rows = []
        for name, c, n in replicas_in_use(instance, plan):
            variant = variants[name][c]
            gpus = n * variant.gpus_per_replica
            cost = gpus * instance.offer(variant.gpu_type).price_usd_per_h
            rows.append((name, variant_name(variant), n, gpus, f"{cost:.2f}"))
        print_table("What to run", ("model", "replica", "replicas", "GPUs", "US$/h"), rows, right=(2, 3, 4))
        click.echo(
            f"Cost {plan.objective:.2f} US$/h; proved bound {plan.lower_bound_usd_per_h:.2f},"
            f" gap {100 * (plan.gap_ratio or 0):.3f} %, {STATUS_WORDS[plan.status]}"
        )
        if base.settled.within_slo:
            _print_savings(base)
        else:
            click.echo(
                "  not sound: judged on the mixture routed to it, the fullest variant carries"
                f" {100 * (base.settled.worst_ratio - 1):.1f} % more than the headroom allows"
            )
        wide = study.whole_catalogue
        if wide.sound_usd_per_h is not None:
            used = sorted(
                {
                    offer.name
                    for offer, gpus in zip(
                        wide.settled.instance.gpu_types, wide.plan.bought_gpus, strict=True
                    )
                    if gpus
                }
            )
            click.echo(
                f"With all {len(wide.settled.instance.gpu_types)} priced GPU types on offer:"
                f" {wide.sound_usd_per_h:.2f} US$/h on {', '.join(used)}; see the report before you trust it"
            )
    took = "" if run.wall_s is None else f" (took {run.wall_s:.1f} s)"
    if study.rehearsal:
        _print_rehearsal(study)
    if day is not None:
        _print_day(day)
    click.echo(f"\nReport: {out}{took}")


def _print_day(day: "ComparedDay") -> None:
    """Put the policies side by side."""
    from controller.cli.output import print_table
    from controller.reports.closed_loop import day_rows

    def shown(value: float | None, form: str) -> str | None:
        return None if value is None else form.format(value)

    rows = [
        (
            row["name"],
            shown(row["cost_usd"], "{:,.0f}"),
            shown(row["against_static"], "{:.1%}"),
            shown(row["times_oracle"], "{:.3f}"),
            shown(row["kwh"], "{:,.0f}"),
            shown(row["request_ratio"], "{:.2%}"),
            shown(row["window_ratio"], "{:.1%}"),
            row["started"],
        )
        for row in day_rows(day)
    ]
    columns = (
        "policy",
        "US$",
        "below static",
        "x oracle",
        "kWh",
        "requests in SLO",
        "windows in SLO",
        "started",
    )
    hours, mean_rps = day.day.requests.arrival_s[-1] / 3600.0, float(day.rate_rps.mean())
    model = day.scenario.models[0].model
    title = f"{hours:.3g} hours of {model}, {mean_rps:.1f} requests/s ({day.day.name})"
    print_table(title, columns, rows, right=range(1, 8))


def _print_rehearsal(study: "TraceStudy") -> None:
    """Put what was predicted beside what came out when the plan was simulated."""
    from controller.cli.output import print_table

    def shown(value: float | None) -> str | None:
        return None if value is None else f"{value:.3f}"

    rows = []
    for model in study.rehearsal:
        for row in model.targets:
            limit_s = row.target.limit_s
            met = row.recorded_s is not None and limit_s is not None and row.recorded_s <= limit_s
            rows.append(
                (
                    model.name,
                    row.target.key,
                    f"{limit_s:g}",
                    shown(row.predicted_s),
                    shown(row.planned_s),
                    shown(row.recorded_s),
                    "met" if met else "missed",
                )
            )
    print_table(
        "The plan simulated, in seconds (planned load: Poisson arrivals; trace: as recorded)",
        ("model", "target", "limit", "predicted", "planned load", "trace", ""),
        rows,
        right=(2, 3, 4, 5),
    )
    if any(row[-1] == "missed" for row in rows):
        click.echo(
            "  The recorded trace bunches more than Poisson arrivals within the planning window; plan it with a\n"
            "  shorter window or more room: ballast plan gpus --trace ... --window-s 60 --headroom 0.2"
        )


def _print_savings(base: "Point") -> None:
    """Say what the mix saves against the best single type, model by model and together."""
    cost = base.cost_usd_per_h or 0.0
    for model in base.settled.instance.models:
        single = base.best_single_of(model.name)
        if single is None:
            click.echo(f"  {model.name}: no single type can serve it alone")
            continue
        alone = single.cost_usd_per_h[model.name]
        mine = base.model_cost_usd_per_h(model.name)
        click.echo(
            f"  {model.name}: {mine:.2f}, best single type {single.gpu_type} {alone:.2f}{_saved(mine, alone)}"
        )
    best, own = base.best_single, base.own_singles_usd_per_h
    if own is not None:
        click.echo(f"  each model on its own best type: {own:.2f}{_saved(cost, own)}")
    if best is None or best.together_usd_per_h is None:
        click.echo("  together: no single type serves every model")
    else:
        together = best.together_usd_per_h
        click.echo(f"  one type for all, {best.gpu_type}: {together:.2f}{_saved(cost, together)}")


def _saved(cost: float, alternative: float) -> str:
    return f" (saves {100 * (1 - cost / alternative):.1f} %)" if alternative > 0 else ""
