"""How good and how fast fleet planning is: public optima, and large problems beside the plain program.

It exists so that the targets of fleet planning are measured in one run. The peer is the same program handed to the
same solver in one piece, every config and share in it: what a plain implementation of the formulation would do. The
gain of splitting is measured against the best fleet of role both only, on the same problems. Seconds are process time,
so that a busy machine does not spoil them; solvers and planner run in one thread.
"""

import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fleet_instances import random_fleet
from benchmarks.results import Result, Setting, at_most, say
from solver.check.fleet import check_fleet
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal, FleetInstance, FleetPlan
from solver.domain.gpu_mix import PlanStatus
from solver.phases.direct import solve_direct
from solver.phases.prepare import serve_all
from solver.phases.solve import FleetOptions, solve_fleet
from telemetry.sources.fleet_file import read_fleet_instance

SAME = 1e-6
GAP_RATIO = 0.005
LIMIT_S = 5.0
LONG_LIMIT_S = 60.0
GOALS = (FleetGoal.COST, FleetGoal.RATE, FleetGoal.POWER)
FIRST_SEED = 100
"""Other problems than those that settings were chosen on."""


def bench_fleet(setting: Setting) -> Iterator[Result]:
    """Plan prefill/decode fleets: public problems, and 12 GPU types x 4 sizes x 3 roles x 4 caps with 60 buckets."""
    folder = setting.data / "fleet" / "instances"
    if folder.is_dir():
        yield from _public(folder)
    else:
        say(f"{folder} is not there: the public problems are left out (--data DIR)")
    for goal in GOALS:
        yield from _generated(goal, seeds=1 if setting.quick else 5, long_peer=not setting.quick)


def _solved(instance: FleetInstance, options: FleetOptions) -> tuple[FleetPlan, float]:
    """Plan, check, and return the CPU seconds of planning."""
    began_s = time.process_time()
    plan = solve_fleet(instance, options, time.process_time)
    cpu_s = time.process_time() - began_s
    violations = check_fleet(instance, plan)
    if violations:
        raise RuntimeError(f"{instance.name}: {violations[0]}")
    return plan, cpu_s


def _public(folder: Path) -> Iterator[Result]:
    wrong, errors, seconds = [], [], []
    for path in sorted(folder.glob("*.json")):
        expected = json.loads(path.read_text(encoding="utf-8"))["expected"]
        plan, cpu_s = _solved(read_fleet_instance(path), FleetOptions())
        seconds.append(cpu_s)
        if expected["status"] == "infeasible":
            right = plan.infeasible is not None and plan.infeasible.kind == expected["infeasible_kind"]
        else:
            error = abs((plan.objective or math.inf) / expected["objective_value"] - 1)
            errors.append(error)
            right = plan.status is PlanStatus.OPTIMAL and error <= SAME
            right = right and plan.worth_splitting == (expected["gain_of_splitting_ratio"] != 1.0)
        if not right:
            wrong.append(path.stem)
        say(f"fleet: {path.stem} {cpu_s:.2f} s{'' if right else ' WRONG'}")
    if seconds:
        yield at_most(f"fleet: wrong of {len(seconds)} public problems", len(wrong), "problems", 0)
        yield at_most("fleet: worst error of a proved optimum", max(errors, default=0.0), "ratio", SAME)
        yield Result(
            name="fleet: slowest public problem, all that is told of it", value=max(seconds), unit="CPU s"
        )


def _peer(instance: FleetInstance, limit_s: float) -> tuple[float, float]:
    """Return gap (infinite without a plan) and CPU seconds of the plain program."""
    began_s = time.process_time()
    answer = solve_direct(
        instance,
        serve_all(instance),
        deadline=Deadline.after(limit_s, time.process_time),
        gap_ratio=GAP_RATIO,
        backend="highs",
    )
    return answer.gap_ratio, time.process_time() - began_s


def _generated(goal: FleetGoal, *, seeds: int, long_peer: bool) -> Iterator[Result]:
    gaps, seconds, optimum_s, peer_gaps, gains = [], [], [], [], []
    what = f"fleet: 576 configs x 60 sizes, {goal.value}"
    options = FleetOptions(time_limit_s=LIMIT_S, gap_ratio=GAP_RATIO, explain=False)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        instance = random_fleet(seed, goal=goal)
        plan, cpu_s = _solved(instance, options)
        gaps.append(math.inf if plan.gap_ratio is None else plan.gap_ratio)
        seconds.append(cpu_s)
        peer_gap, _ = _peer(instance, LIMIT_S)
        peer_gaps.append(peer_gap)
        proved, proved_s = _solved(instance, FleetOptions(explain=False))
        if proved.status is PlanStatus.OPTIMAL:
            optimum_s.append(proved_s)
        ours, alone = proved.objective, proved.both_only_objective
        if ours and alone:
            gains.append(ours / alone if goal.maximised else alone / ours)
        say(f"{what}, seed {seed}: {cpu_s:.2f} s, gap {gaps[-1]:.4f}, plain program {peer_gap:.4g}")
    worst_peer = max(peer_gaps)
    yield at_most(
        f"{what}: worst gap of {seeds} (peer: plain program, {LIMIT_S:g} s)",
        max(gaps),
        "ratio",
        GAP_RATIO,
        peer_value=worst_peer if math.isfinite(worst_peer) else None,
    )
    yield Result(
        name=f"{what}: not within 0.5 % after {LIMIT_S:g} s (peer: plain program)",
        value=sum(gap > GAP_RATIO for gap in gaps),
        unit="problems",
        peer_value=float(sum(gap > GAP_RATIO for gap in peer_gaps)),
    )
    yield at_most(f"{what}: slowest to 0.5 %, comparison included", max(seconds), "CPU s", LIMIT_S)
    yield Result(name=f"{what}: proved optimal (gap 0) of {seeds}", value=len(optimum_s), unit="problems")
    if optimum_s:
        yield Result(name=f"{what}: proved optimum, median", value=statistics.median(optimum_s), unit="CPU s")
    if gains:
        yield Result(
            name=f"{what}: gain over role both only, median", value=statistics.median(gains), unit="ratio"
        )
    if long_peer:
        instance = random_fleet(FIRST_SEED, goal=goal)
        gap, peer_s = _peer(instance, LONG_LIMIT_S)
        yield Result(
            name=f"{what}: time to 0.5 %, seed {FIRST_SEED} (peer: plain program, gap {gap:.2g})",
            value=seconds[0],
            unit="CPU s",
            peer_value=peer_s,
            ratio=peer_s / seconds[0],
        )
