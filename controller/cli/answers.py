"""How plans are written for programs: the stable JSON answers of the contracts, and their exit codes.

It exists so that the command, the report and the controller write one and the same answer. Numbers keep
twelve digits, far more than any tolerance needs, so that sums of prices read as people expect.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from controller.cli.exit_codes import ExitCode
from solver.domain.gpu_mix import GpuMixInstance, GpuMixPlan, PlanStatus

DIGITS = 12


def ballast_version() -> str:
    """Version of the installed distribution, or 'unknown' in a checkout that was never installed."""
    try:
        return version("kube-ballast")
    except PackageNotFoundError:
        return "unknown"


def rounded(value: float | None) -> float | None:
    """Keep so many digits that sums read as people expect, and far more than any tolerance needs."""
    return None if value is None else float(f"{float(value):.{DIGITS}g}")


def gpu_mix_answer(
    instance: GpuMixInstance, plan: GpuMixPlan, *, solve_s: float | None = None
) -> dict[str, Any]:
    """Write ``gpu-mix-plan/1``; ``solve_s`` is left out when None, so that equal runs give equal bytes."""
    names = [model.name for model in instance.models]
    timing = {} if solve_s is None else {"solve_s": round(solve_s, 6)}
    rival, single, reason = plan.second_best, plan.best_single_type, plan.infeasible
    return {
        "schema": "gpu-mix-plan/1",
        "version": ballast_version(),
        "instance": instance.name,
        "status": str(plan.status),
        "objective": rounded(plan.objective),
        "cost_usd_per_h": rounded(plan.objective),
        "running_cost_usd_per_h": rounded(plan.running_cost_usd_per_h),
        "change_cost_usd": rounded(plan.change_cost_usd),
        "lower_bound_usd_per_h": rounded(plan.lower_bound_usd_per_h),
        "gap_ratio": rounded(plan.gap_ratio),
        **timing,
        "method": plan.method,
        "replicas": dict(zip(names, map(list, plan.replicas), strict=False)),
        "routing": [
            {
                "model": share.model,
                "bucket": share.bucket,
                "config": share.config,
                "share": round(share.share, 12),
            }
            for share in plan.routing
        ],
        "load_ratio": {
            name: [rounded(load) for load in row] for name, row in zip(names, plan.load_ratio, strict=False)
        },
        "gpus": {
            offer.name: {"on_demand": bought, "spot": spot}
            for offer, bought, spot in zip(instance.gpu_types, plan.bought_gpus, plan.spot_gpus, strict=False)
        },
        "power_w": rounded(plan.power_w),
        "best_single_type": None
        if single is None
        else {"gpu_type": single.gpu_type, "cost_usd_per_h": rounded(single.cost_usd_per_h)},
        "second_best": None
        if rival is None
        else {
            "gpu_types": list(rival.gpu_types),
            "cost_usd_per_h": rounded(rival.cost_usd_per_h),
            "proved": rival.proved,
        },
        "binding": [
            {
                "kind": limit.kind,
                "name": limit.name,
                "price_usd_per_unit": rounded(limit.price_usd_per_unit),
                "step_units": limit.step_units,
            }
            for limit in plan.binding
        ],
        "infeasible": None
        if reason is None
        else {
            "kind": reason.kind,
            "models": list(reason.models),
            "buckets": list(reason.buckets),
            "gpu_types": list(reason.gpu_types),
            "message": reason.message,
        },
    }


def plan_exit_code(plan: GpuMixPlan, *, gap_ratio: float) -> int:
    """0 solved to the requested gap, 3 infeasible, 4 stopped at the time limit."""
    return solved_exit_code(plan.status, plan.gap_ratio, gap_ratio=gap_ratio)


def solved_exit_code(status: PlanStatus, reached: float | None, *, gap_ratio: float) -> int:
    """0 solved to the requested gap, 3 infeasible, 4 stopped at the time limit; ``reached`` is the gap proved."""
    if status == PlanStatus.INFEASIBLE:
        return ExitCode.MISSED
    if status == PlanStatus.OPTIMAL:
        return ExitCode.DONE
    if status == PlanStatus.FEASIBLE and reached is not None and reached <= gap_ratio:
        return ExitCode.DONE
    return ExitCode.TIMED_OUT
