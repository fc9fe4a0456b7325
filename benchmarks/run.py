"""``make bench``: what solver and simulator must reach, side by side with peers' methods in one run.

It exists because a ratio measured on one machine in one run means something where a time alone does not. It is not a
test: nothing here fails a build, the table and ``BENCH_JSON`` say what was met.

Options: ``--only NAME`` (repeatable), ``--quick`` (a taste of everything), ``--instances N``, ``--data DIR``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_loop import bench_closed_loop
from benchmarks.experts import bench_experts
from benchmarks.fleet import bench_fleet
from benchmarks.fleet_simulated import bench_fleet_simulated, bench_phase_formulas
from benchmarks.forecast import bench_forecast
from benchmarks.forecast_sizes import bench_forecast_sizes
from benchmarks.hundredths import solve_hundredths
from benchmarks.instances import random_instance
from benchmarks.power import bench_power
from benchmarks.results import Result, Setting, at_most, say
from benchmarks.simulation import bench_simulation
from benchmarks.slice_model import solve_slice_model
from controller.cli.output import foreign_lines_on_stderr, print_table
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus
from solver.gpu_mix.solve import SolveOptions, solve_gpu_mix
from telemetry.sources.gpu_mix_file import gpu_mix_instance_to_json, read_gpu_mix_instance

SAME_COST = 1e-6
"""Relative difference up to which two costs count as equal."""
NOISE_RATIO = 0.02
CHANGE_COST_USD_PER_GPU = 2.0
"""For starting and for stopping a GPU, in the stability run: about 16 minutes of the dearest one."""
STEP_H = 0.25
"""Time between two plans of the stability run, and the horizon that change cost is spread over."""


def solve(instance: GpuMixInstance, *, time_limit_s: float = 60.0) -> tuple[GpuMixPlan, float]:
    """Return our plan and the wall seconds of building and solving."""
    started_s = time.perf_counter()
    plan = solve_gpu_mix(instance, options=SolveOptions(time_limit_s=time_limit_s), clock=time.monotonic)
    return plan, time.perf_counter() - started_s


def cost_of(plan: GpuMixPlan) -> float:
    """Return the objective; infinite where there is no plan."""
    return float("inf") if plan.objective is None else plan.objective


def is_dearer(ours_usd_per_h: float, theirs_usd_per_h: float | None) -> bool:
    """Tell whether our plan costs more than theirs (which may not exist)."""
    return theirs_usd_per_h is not None and ours_usd_per_h > theirs_usd_per_h * (1 + SAME_COST)


def bench_reference(setting: Setting) -> Iterator[Result]:
    """Check every public problem: proved costs, and reasons of the infeasible."""
    errors, wrong, seconds = [], [], []
    for path in sorted(setting.gputype.glob("*.json")):
        expected = json.loads(path.read_text(encoding="utf-8"))["expected"]
        if expected["status"] == "bounded":
            continue
        plan, wall_s = solve(read_gpu_mix_instance(path))
        seconds.append(wall_s)
        if expected["status"] == "optimal":
            error = abs(cost_of(plan) / expected["cost_per_hour"] - 1)
            errors.append(error)
            right = error <= SAME_COST and plan.status is PlanStatus.OPTIMAL
        else:
            kinds = {expected.get("infeasible_kind", "gpu-limit"), *expected.get("feasible_when_dropped", ())}
            right = plan.infeasible is not None and plan.infeasible.kind in kinds
        if not right:
            wrong.append(path.stem)
        say(f"reference: {path.stem} {wall_s:.2f} s{'' if right else ' WRONG'}")
    if not seconds:
        return
    yield at_most(f"reference: wrong of {len(seconds)} public problems", len(wrong), "problems", 0)
    yield at_most("reference: worst error of a proved cost", max(errors), "ratio", SAME_COST)
    yield Result(name="reference: slowest problem", value=max(seconds), unit="s")


def bench_slices(setting: Setting) -> Iterator[Result]:
    """Compare with the slice model of the paper: factor 4, CBC on one thread, 60 s cap, building counted."""
    ours_s, ratios, theirs_s, dearer, cheaper, capped, unproved = [], [], [], [], 0, 0, 0
    solve(random_instance(10**6))  # imports and first-use costs are start-up, measured elsewhere
    for seed in range(setting.n_instances):
        instance = random_instance(seed)
        plan, wall_s = solve(instance)
        peer = solve_slice_model(instance)
        ours_s.append(wall_s)
        theirs_s.append(peer.seconds)
        ratios.append(peer.seconds / wall_s)
        unproved += plan.status is not PlanStatus.OPTIMAL
        capped += not peer.proved
        if is_dearer(cost_of(plan), peer.cost_usd_per_h):
            dearer.append(seed)
        elif peer.cost_usd_per_h is None or peer.cost_usd_per_h > cost_of(plan) * (1 + SAME_COST):
            cheaper += 1
        say(
            f"slices: {seed + 1}/{setting.n_instances} ours {wall_s:.3f} s {cost_of(plan):.3f} US$/h,"
            f" slice model {peer.seconds:.2f} s {peer.cost_usd_per_h} US$/h"
        )
    yield at_most(f"slice model: ours dearer, of {len(ratios)}", len(dearer), "problems", 0)
    yield Result(name=f"slice model: ours cheaper, of {len(ratios)}", value=cheaper, unit="problems")
    median = statistics.median(ratios)
    yield Result(
        name="slice model: median speed ratio",
        value=statistics.median(ours_s),
        unit="s",
        peer_value=statistics.median(theirs_s),
        ratio=median,
        target="ratio >= 10",
        met=median >= 10,
    )
    yield at_most("slice model: own p50", statistics.median(ours_s), "s", 0.15)
    worst = max(range(len(ours_s)), key=ours_s.__getitem__)
    yield at_most(
        f"slice model: own worst (seed {worst})",
        ours_s[worst],
        "s",
        1.0,
        peer_value=max(theirs_s),
        ratio=max(theirs_s) / ours_s[worst],
    )
    yield at_most("slice model: not proved optimal", unproved, "problems", 0, peer_value=float(capped))


def bench_large(setting: Setting) -> Iterator[Result]:
    """Solve 400 buckets on 20 types."""
    seconds, unproved = [], 0
    for seed in range(2 if setting.quick else 10):
        plan, wall_s = solve(random_instance(seed, large=True))
        seconds.append(wall_s)
        unproved += plan.status is not PlanStatus.OPTIMAL
        say(f"large: {seed + 1} {wall_s:.2f} s {plan.status}")
    yield at_most(f"400 x 20: worst of {len(seconds)}", max(seconds), "s", 2.0)
    yield Result(name="400 x 20: median", value=statistics.median(seconds), unit="s")
    yield at_most("400 x 20: plans not proved optimal", unproved, "problems", 0)


def ballast_plan(file: Path, *more: str) -> tuple[dict[str, Any], float]:
    """Run the command in a process of its own; return its answer and the wall seconds, start-up included."""
    command = Path(sys.executable).with_name("ballast")
    started_s = time.perf_counter()
    done = subprocess.run(
        [command, "plan", "gpus", file, "-o", "json", *more], capture_output=True, text=True, check=False
    )
    wall_s = time.perf_counter() - started_s
    if not done.stdout:
        raise SystemExit(f"ballast plan gpus {file}: exit {done.returncode}: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, wall_s


def bench_many_models(setting: Setting) -> Iterator[Result]:
    """Prove a gap on 100 models, 20 limited types and replicas of 1 to 8 GPUs, through the command."""
    path = setting.gputype / "p15-scale-100x20.json"
    if not path.is_file():
        return
    expected = json.loads(path.read_text(encoding="utf-8"))["expected"]
    for limit_s, most_gap in [(5.0, 0.05)] if setting.quick else [(5.0, 0.05), (60.0, 0.005)]:
        answer, wall_s = ballast_plan(path, "--time-limit", f"{limit_s:g}")
        gap = float("inf") if answer["gap_ratio"] is None else answer["gap_ratio"]
        say(f"100 models, {limit_s:g} s: gap {gap:.4%} in {wall_s:.1f} s, {answer['objective']} US$/h")
        name = f"100 models x 20 types, limit {limit_s:g} s"
        yield at_most(f"{name}: gap", gap, "ratio", most_gap)
        yield at_most(f"{name}: solving", answer["solve_s"], "s", limit_s)
        yield Result(name=f"{name}: whole command", value=wall_s, unit="s")
        if answer["objective"] is not None:
            yield Result(
                name=f"{name}: cost against best known",
                value=answer["objective"],
                unit="US$/h",
                peer_value=expected["best_known_cost_per_hour"],
                ratio=expected["best_known_cost_per_hour"] / answer["objective"],
            )


def bench_hundredths(setting: Setting) -> Iterator[Result]:
    """Compare with AIBrix's rule: hundredths of a GPU optimised, then rounded up per type."""
    names = (
        "p01-toy",
        "p03-sim-a40-a100-r10",
        "p04-sim-a40-a100-r200",
        "p05-grid60-r1",
        "p06-grid60-r4-slo40",
        "p07-grid60-r32",
    )
    paths = [setting.gputype / f"{name}.json" for name in names]
    instances = [read_gpu_mix_instance(path) for path in paths if path.is_file()]
    instances += [
        random_instance(seed) for seed in range(min(setting.n_instances, 5 if setting.quick else 50))
    ]
    dearer, more_usd = 0, []
    for instance in instances:
        ours = cost_of(solve(instance)[0])
        theirs = solve_hundredths(instance).cost_usd_per_h
        dearer += is_dearer(ours, theirs)
        if theirs is not None:
            more_usd.append(theirs / ours)
        say(f"hundredths: {instance.name} ours {ours:.3f}, rounded-up hundredths {theirs} US$/h")
    yield at_most(f"AIBrix's rule: ours dearer, of {len(instances)}", dearer, "problems", 0)
    yield Result(
        name="AIBrix's rule: its cost, median",
        value=1.0,
        unit="of ours",
        peer_value=statistics.median(more_usd),
        ratio=statistics.median(more_usd),
    )
    yield Result(
        name="AIBrix's rule: its cost, worst",
        value=1.0,
        unit="of ours",
        peer_value=max(more_usd),
        ratio=max(more_usd),
    )


def bench_startup(setting: Setting) -> Iterator[Result]:
    """Time the whole command on a small problem."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.json"
        path.write_text(
            json.dumps(gpu_mix_instance_to_json(random_instance(3, rate_rps=4.0))), encoding="utf-8"
        )
        runs = 3 if setting.quick else 7
        walls_s = [ballast_plan(path)[1] for _ in range(runs)]
    say(f"startup: {', '.join(f'{wall_s:.2f}' for wall_s in walls_s)} s")
    yield at_most(f"ballast plan gpus, small: median of {runs}", statistics.median(walls_s), "s", 1.0)


def with_current(instance: GpuMixInstance, counts: Sequence[int]) -> GpuMixInstance:
    """Let the replicas run and charge changes."""
    model = instance.models[0]
    variants = tuple(
        replace(variant, current_replicas=count)
        for variant, count in zip(model.variants, counts, strict=True)
    )
    return replace(
        instance,
        models=(replace(model, variants=variants),),
        start_cost_usd=CHANGE_COST_USD_PER_GPU,
        stop_cost_usd=CHANGE_COST_USD_PER_GPU,
        horizon_h=STEP_H,
    )


def bench_stability(setting: Setting) -> Iterator[Result]:
    """Follow a rate that is noisy by 2 % for 100 steps, with change cost, against the memoryless optimum."""
    steps = 20 if setting.quick else 100
    ours_changes, memoryless_changes, overs, overs_fixed, overs_all_in = [], [], [], [], []
    for seed, rate_rps in enumerate((4.0, 32.0, 256.0)):
        rng = np.random.default_rng([2, seed])
        ours: list[GpuMixPlan] = []
        memoryless: list[GpuMixPlan] = []
        for _ in range(steps):
            factor = float(rng.uniform(1 - NOISE_RATIO, 1 + NOISE_RATIO))
            noisy = random_instance(seed, rate_rps=rate_rps * factor)
            memoryless.append(solve(noisy)[0])
            ours.append(solve(with_current(noisy, ours[-1].replicas[0]))[0] if ours else memoryless[0])
        ours_changes.append(_changes(ours))
        memoryless_changes.append(_changes(memoryless))
        running = [sum(plan.running_cost_usd_per_h or 0.0 for plan in plans) for plans in (ours, memoryless)]
        overs.append(running[0] / running[1] - 1)
        # Whoever never changes needs at least the plan of the dearest step.
        overs_fixed.append(max(map(cost_of, memoryless)) * steps / running[1] - 1)
        all_in_usd = [
            STEP_H * cost + CHANGE_COST_USD_PER_GPU * _changed_gpus(plans)
            for cost, plans in zip(running, (ours, memoryless), strict=True)
        ]
        overs_all_in.append(all_in_usd[0] / all_in_usd[1] - 1)
        say(
            f"stability: {rate_rps:g}/s {ours_changes[-1]} changes,"
            f" running cost {overs[-1]:+.2%} (best fixed plan {overs_fixed[-1]:+.2%}) over memoryless"
            f" ({memoryless_changes[-1]} changes), {overs_all_in[-1]:+.2%} with change cost on both sides"
        )
    name = f"stability, {steps} steps"
    yield at_most(
        f"{name}: plan changes, worst of 3",
        max(ours_changes),
        "changes",
        3,
        peer_value=float(max(memoryless_changes)),
    )
    yield at_most(
        f"{name}: cost over memoryless (peer: fixed)", max(overs), "ratio", 0.02, peer_value=max(overs_fixed)
    )
    yield Result(name=f"{name}: same, change cost on both", value=max(overs_all_in), unit="ratio")


def _changes(plans: Sequence[GpuMixPlan]) -> int:
    return sum(before.replicas != after.replicas for before, after in pairwise(plans))


def _changed_gpus(plans: Sequence[GpuMixPlan]) -> int:
    """Count GPUs started or stopped; every variant of the random problems is one GPU."""
    return sum(
        abs(a - b)
        for before, after in pairwise(plans)
        for a, b in zip(before.replicas[0], after.replicas[0], strict=True)
    )


def bench_operator_scale(setting: Setting) -> Iterator[Result]:
    """Run the operator on 1,000 nodes with 5,000 services (quick: 20 and 50) of a real control plane."""
    from benchmarks import operator_scale  # noqa: PLC0415 - needs the test bed, which the other benchmarks do not

    quick = operator_scale.Size(nodes=20, services=50, changes=5, idle_s=20.0)
    yield from operator_scale.bench(quick if setting.quick else operator_scale.Size())


BENCHES: dict[str, Callable[[Setting], Iterator[Result]]] = {
    "reference": bench_reference,
    "startup": bench_startup,
    "large": bench_large,
    "many-models": bench_many_models,
    "stability": bench_stability,
    "hundredths": bench_hundredths,
    "slices": bench_slices,
    "simulation": bench_simulation,
    "experts": bench_experts,
    "fleet": bench_fleet,
    "power": bench_power,
    "forecast": bench_forecast,
    "forecast-sizes": bench_forecast_sizes,
    "fleet-simulated": bench_fleet_simulated,
    "fleet-formulas": bench_phase_formulas,
    "closed-loop": bench_closed_loop,
    "operator-scale": bench_operator_scale,
}


def number(value: float | None) -> str | None:
    """Print four significant digits."""
    return None if value is None else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table and keep it in ``BENCH_JSON``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(BENCHES), help="run just this (repeatable)")
    parser.add_argument("--quick", action="store_true", help="a taste of everything")
    parser.add_argument("--instances", type=int, default=None, help="random problems (default 200, quick 5)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the public data")
    options = parser.parse_args(arguments)
    n_instances = options.instances or (5 if options.quick else 200)
    setting = Setting(data=options.data, n_instances=n_instances, quick=options.quick)
    if not setting.gputype.is_dir():
        say(f"{setting.gputype} is not there: the public problems are left out (--data DIR)")
    results: list[Result] = []
    keep = os.environ.get("BENCH_JSON")
    for name, bench in BENCHES.items():
        if options.only and name not in options.only:
            continue
        say(f"--- {name}: {(bench.__doc__ or '').splitlines()[0]}")
        with foreign_lines_on_stderr():
            results += bench(setting)
        if keep:  # after each part, so that an interrupted run keeps what it has
            Path(keep).write_text(
                json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8"
            )
    rows = [
        (
            result.name,
            number(result.value),
            result.unit,
            number(result.peer_value),
            number(result.ratio),
            result.target or None,
            None if result.met is None else ("yes" if result.met else "NO"),
        )
        for result in results
    ]
    print_table("", ("what", "ours", "unit", "peer", "ratio", "target", "met"), rows, right=(1, 3, 4))


if __name__ == "__main__":
    main()
