"""Simulated runs for programs: the stable JSON answer ``cluster-simulation/1`` and the CSV of all requests."""

from collections.abc import Callable
from typing import Any

import numpy as np

from controller.cli.answers import DIGITS, ballast_version
from controller.simulation import SimulatedCluster
from simulator.metrics import Distribution, tbt_of
from simulator.record import RequestStatus
from solver.domain.trace import Floats

SCHEMA = "cluster-simulation/1"
REQUEST_COLUMNS = (
    "arrival_s,prompt_tokens,output_tokens,model,prefill_instance,decode_instance,"
    "queue_s,ttft_s,tbt_s,e2e_s,preemptions,status"
)
_ROWS_AT_ONCE = 50_000


def number(value: float | None) -> float | None:
    """Keep twelve digits, far more than any of them means, so that equal runs give equal bytes."""
    return None if value is None else float(f"{float(value):.{DIGITS}g}")


def _distribution(values: Distribution | None) -> dict[str, float | None]:
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    return {name: None if values is None else number(getattr(values, name)) for name in names}


def cluster_answer(run: SimulatedCluster, *, timings: bool = True) -> dict[str, Any]:
    """Write ``cluster-simulation/1``; without timings equal runs give equal bytes."""
    figures = run.figures
    counts, slo, power = figures.requests, figures.slo, figures.power
    timed: dict[str, Any] = {}
    if timings:
        timed = {
            "wall_s": round(run.wall_s, 6),
            "engine_s": round(run.engine_s, 6),
            "simulated_requests_per_wall_s": round(counts.offered / max(run.wall_s, 1e-9), 3),
        }
    return {
        "schema": SCHEMA,
        "version": ballast_version(),
        "scenario": run.scenario.name,
        "requests": {
            "offered": counts.offered,
            "completed": counts.completed,
            "rejected": counts.rejected,
            "incomplete": counts.incomplete,
            "counted": counts.counted,
            "rejected_because": dict(figures.rejected_because),
        },
        "ttft_s": _distribution(figures.ttft_s),
        "tbt_s": _distribution(figures.tbt_s),
        "e2e_s": _distribution(figures.e2e_s),
        "queue_s": _distribution(figures.queue_s),
        "slo": {
            "met": slo.met,
            "attainment_ratio": number(slo.attainment_ratio),
            "checks": [
                {"target": str(check.target), "value": number(check.value), "met": check.met}
                for check in slo.checks
            ],
        },
        "throughput": {
            "requests_per_s": number(figures.requests_per_s),
            "output_tokens_per_s": number(figures.output_tokens_per_s),
        },
        "utilisation": {pool.name: number(pool.utilisation_ratio) for pool in figures.pools},
        "power_w": None
        if power is None
        else {
            "mean": number(power.mean_w),
            "p99": number(power.p99_w),
            "max": number(power.max_w),
            "bin_s": number(power.bin_s),
            "budget_w": number(power.budget_w),
            "over_budget_s": number(power.over_budget_s),
        },
        "energy_j": number(figures.energy_j),
        "energy_j_per_output_token": number(figures.energy_j_per_output_token),
        "cost_usd": number(figures.cost_usd),
        "cost_usd_per_million_tokens": number(figures.cost_usd_per_million_tokens),
        "cost_usd_per_million_tokens_in_and_out": number(figures.cost_usd_per_million_tokens_in_and_out),
        "transfers": {"count": figures.transfers, "bytes": number(figures.transfer_bytes)},
        "cached_tokens": number(figures.cached_tokens),
        "preemptions": figures.preemptions,
        "end_time_s": number(figures.end_time_s),
        "horizon_s": number(figures.horizon_s),
        "saturation": str(figures.saturation),
        "stopped_early": figures.stopped_early,
        "pools": [
            {
                "name": pool.name,
                "model": used.model,
                "role": str(used.role),
                "gpu_type": used.gpu_type,
                "gpus_per_instance": used.gpus_per_instance,
                "count": used.count,
                "utilisation_ratio": number(pool.utilisation_ratio),
                "mean_running": number(pool.mean_running),
                "mean_waiting": number(pool.mean_waiting),
                "prompt_tokens": number(pool.prompt_tokens),
                "output_tokens": number(pool.output_tokens),
                "energy_j": number(pool.energy_j),
                "idle_j": number(pool.idle_j),
                "cost_usd": number(pool.cost_usd),
            }
            for pool, used in zip(figures.pools, run.pools, strict=True)
        ],
        **({} if run.planned is None else {"planner": planner_answer(run)}),
        "step_model": {
            "kind": run.step_model,
            "known_error": run.known_error,
            "pools": {
                pool.name: {
                    "kind": pool.step_model,
                    "provenance": pool.provenance,
                    "known_error": pool.known_error,
                }
                for pool in run.pools
            },
        },
        "definitions": dict(run.definitions),
        "trace": run.trace_name,
        "trace_sha256": run.trace_sha256,
        "dropped_rows": {reason: rows for reason, rows in run.dropped_rows.items() if rows},
        "seed": run.seed,
        "warm_up_s": number(figures.warm_up_s),
        **timed,
    }


def planner_answer(run: SimulatedCluster) -> dict[str, Any] | None:
    """Write what a planner decided and what came of it; None: the scenario has none."""
    planned, attained, rules = run.planned, run.attained, run.scenario.planner
    if planned is None or attained is None or rules is None:
        return None
    names = [pool.name for pool in run.pools]
    return {
        "policy": str(rules.policy),
        "interval_s": number(rules.interval_s),
        "start_s": number(rules.start_s),
        "horizon_s": number(rules.ahead_s),
        "forecast": rules.forecast,
        "violations": number(rules.violations),
        "headroom_ratio": number(rules.headroom_ratio),
        "attained_request_ratio": number(attained.request_ratio),
        "attained_window_ratio": number(attained.window_ratio),
        "window_s": number(attained.window_s),
        "mean_instances": {
            pool.name: number(float(run.record.up_s[run.record.pool_of_instance == p].sum()) / horizon_s)
            for p, pool in enumerate(run.pools)
            if (horizon_s := max(run.figures.horizon_s, 1e-9))
        },
        "started": planned.started,
        "stopped": planned.stopped,
        "rehearsed": planned.rehearsed,
        "refused": planned.refused,
        "rules": dict(planned.rules),
        "no_plan": dict(planned.no_plan),
        "actions": [
            {
                "t_s": number(decision.time_s),
                "model": decision.model,
                "rate_rps": number(decision.rate_rps),
                "rule": decision.rule,
                "instances": dict(
                    zip(
                        [pool.name for pool in run.pools if pool.model == decision.model],
                        decision.replicas,
                        strict=True,
                    )
                ),
                "why": decision.why,
            }
            for decision in planned.decisions
        ],
        "mix": [
            {
                "t_s": number(time_s),
                "asked": dict(zip(names, planned.asked[row].tolist(), strict=True)),
                "serving": dict(zip(names, planned.ready[row].tolist(), strict=True)),
                "rate_rps": number(planned.rate_rps[row]),
                "capacity_rps": number(planned.capacity_rps[row]),
                "cap_ratio": number(planned.cap_ratio[row]),
            }
            for row, time_s in enumerate(planned.times_s.tolist())
        ],
    }


def write_request_rows(run: SimulatedCluster, write: Callable[[str], object]) -> None:
    """Write one CSV row per request in the order of arrival; what did not happen is an empty cell.

    Instances are numbered from 0 in the order of their creation, pool by pool.
    """
    record, requests = run.record, run.requests
    tbt_s = tbt_of(record, requests, per_output_token=run.tbt_per_output_token)
    statuses = [status.name.lower() for status in RequestStatus]
    write(REQUEST_COLUMNS + "\n")
    for first in range(0, len(record), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        columns = (
            requests.arrival_s[rows].tolist(),
            requests.prompt_tokens[rows].tolist(),
            requests.output_tokens[rows].tolist(),
            [run.models[m] for m in run.model_of_request[rows].tolist()],
            _instances(record.prefill_instance[rows]),
            _instances(record.decode_instance[rows]),
            _seconds(record.queue_s[rows]),
            _seconds(record.ttft_s[rows]),
            _seconds(tbt_s[rows]),
            _seconds(record.e2e_s[rows]),
            record.preemptions[rows].tolist(),
            [statuses[status] for status in record.status[rows].tolist()],
        )
        write("".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True)))


def _instances(numbers: Any) -> list[int | str]:
    return [number if number >= 0 else "" for number in numbers.tolist()]


def _seconds(values: Floats) -> list[float | str]:
    known = np.isfinite(values)
    return [
        value if is_known else "" for value, is_known in zip(values.tolist(), known.tolist(), strict=True)
    ]
