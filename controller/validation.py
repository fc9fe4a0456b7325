"""Holds a scenario against requests that were really served: errors of latency percentiles, before and after a fit.

It exists so that nobody has to believe a simulation: the observed arrivals and sizes go through the scenario's fleet,
and the latencies that come out stand beside the observed ones. With a calibration, step times are fitted to the first
part of the requests (`solver.performance.fitted`) and both the scenario as it is and the fitted one are judged on the
rest, which the fit has not seen. It prints nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.cluster_fleet import ClusterCatalogues, PoolInUse, catalogues_for, replicas_of, resolve
from controller.simulation import TraceInUse, read_requests, refuse_planner, run_cluster
from simulator.fleet import EventKind
from simulator.metrics import Distribution, distribution, tbt_of
from simulator.record import RunRecord
from simulator.scenario import Scenario, StepModelChoice, StepModelKind
from solver.domain.errors import InputError
from solver.domain.slo import Slo
from solver.domain.trace import Floats
from solver.performance.fitted import ObservedRequests, StepFit, fit_from_requests
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from telemetry.sources.observed_requests import read_observed

METRICS = ("ttft_s", "tbt_s", "e2e_s")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
FIT_SHARE = 0.6
"""Share of the requests, first come, that a calibration may see."""
FEWEST_JUDGED = 20
DEFINITIONS = {
    "ttft_s": "end of the iteration that completes the prompt - arrival",
    "tbt_s": "(E2E - TTFT) / (output tokens - 1), on both sides; requests of one output token have none",
    "e2e_s": "last token - arrival",
    "error_ratio": "simulated / observed - 1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One statistic of one latency, simulated and observed."""

    simulated: float
    observed: float

    @property
    def error_ratio(self) -> float | None:
        """Simulated over observed, less 1; None where the observed one is 0."""
        return None if self.observed == 0.0 else self.simulated / self.observed - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A simulated run beside the observed requests."""

    step_model: str
    known_error: str
    judged: int
    """Requests that have an end on both sides."""
    only_observed: int
    """Requests that were served and are not in the simulation (rejected or incomplete)."""
    agreement: Mapping[str, Mapping[str, Agreement] | None]
    """By latency and statistic; None: no request has this latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Everything that validating a scenario tells."""

    scenario: Scenario
    observed_name: str
    observed_sha256: str
    seed: int
    requests: int
    fitted_on: int
    """Requests that the fit has seen, and that are not judged; 0: no calibration."""
    plain: Judged
    """The scenario as it is."""
    calibrated: Judged | None
    fits: tuple[StepFit, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Case:
    """What a run is held against."""

    trace: TraceInUse
    observed: ObservedRequests
    judged: NDArray[np.bool_]
    """The requests that count."""
    file: str
    seed: int


def validate_scenario(
    scenario: Scenario,
    observed_file: str | Path,
    *,
    calibrate: bool = False,
    catalogue_files: Sequence[Path] = (),
    seed: int = 0,
) -> Validation:
    """Simulate a scenario with the observed arrivals and sizes, and compare.

    The trace of the scenario is not read. Its warm-up holds (on the observed clock), its duration does not.

    Raises
    ------
    InputError
        For everything in the scenario or the file that makes no sense, and where too little is left to judge.
    """
    refuse_planner(scenario)
    observed = read_observed(observed_file)
    speed = scenario.trace.scale
    trace_choice = replace(
        scenario.trace,
        file=str(observed_file),
        scale=1.0,
        warm_up_s=scenario.trace.warm_up_s / speed,
        duration_s=None,
    )
    # Nothing is asked of the run but its latencies, so what targets compare with need not be there.
    plain = replace(scenario, trace=trace_choice, slo=Slo(), reference=None)
    catalogues = catalogues_for(plain, catalogue_files)
    trace = read_requests(plain, catalogues, trace_format="plain", seed=seed)
    fitted_on = int(len(observed) * FIT_SHARE) if calibrate else 0
    judged = (np.arange(len(observed)) >= fitted_on) & (observed.arrival_s >= trace.warm_up_s)
    case = _Case(trace=trace, observed=observed, judged=judged, file=str(observed_file), seed=seed)
    as_it_is = _run(plain, catalogues, case)
    fits: tuple[StepFit, ...] = ()
    calibrated = None
    if calibrate:
        fits = calibrated_steps(plain, catalogues, observed.take(slice(0, fitted_on)), str(observed_file))
        chosen = StepModelChoice(kind=StepModelKind.FITTED, fit=str(observed_file))
        calibrated = _run(replace(plain, step_model=chosen), replace(catalogues, fits=fits, kinds={}), case)
    return Validation(
        scenario=scenario,
        observed_name=trace.name,
        observed_sha256=trace.sha256,
        seed=seed,
        requests=len(observed),
        fitted_on=fitted_on,
        plain=as_it_is,
        calibrated=calibrated,
        fits=fits,
    )


def calibrated_steps(
    scenario: Scenario, catalogues: ClusterCatalogues, observed: ObservedRequests, file: str
) -> tuple[StepFit, ...]:
    """Fit the step times of every kind of replica in the scenario to requests that its instances served.

    Raises
    ------
    InputError
        If the file does not say who served a request, names instances that the scenario has not, or the scenario
        changes speeds or skips prompt tokens, so that one set of coefficients cannot say what happened.
    """
    _can_be_fitted(scenario)
    if np.all(np.isnan(observed.queue_s)) or np.all(observed.prefill_instance < 0):
        raise InputError(
            "does not say when and where requests began",
            where=file,
            right="columns queue_s, prefill_instance and decode_instance, for a calibration",
        )
    instances = np.repeat(np.arange(len(scenario.pools)), [pool.count for pool in scenario.pools])
    highest = int(max(observed.prefill_instance.max(), observed.decode_instance.max()))
    if highest >= len(instances):
        raise InputError(
            f"names instance {highest}, and the scenario has {len(instances)}",
            where=file,
            right="instances numbered from 0, pool by pool in the order of the scenario",
        )
    of_pool = replicas_of(scenario, catalogues)
    scheduler = scenario.scheduler
    fits = []
    for kind in dict.fromkeys(of_pool):
        pools = [p for p, other in enumerate(of_pool) if other == kind]
        fits.append(
            fit_from_requests(
                observed,
                kind,
                instances=np.flatnonzero(np.isin(instances, pools)),
                chunk_tokens=scheduler.max_batch_tokens if scheduler.chunked_prefill else None,
                otherwise=_roofline(kind, catalogues),
                source=f"{len(observed):,} requests of {Path(file).name}",
            )
        )
    return tuple(fits)


def _can_be_fitted(scenario: Scenario) -> None:
    for p, pool in enumerate(scenario.pools):
        if pool.power_cap_w_per_gpu is not None:
            raise InputError(
                "a capped pool is not calibrated",
                where=scenario.place(f"pools[{p}].power_cap_w_per_gpu"),
                right="no cap: the fit then is of the capped instances",
            )
    for e, event in enumerate(scenario.events):
        if event.kind is EventKind.CAP:
            raise InputError(
                "speeds that change mid-run are not calibrated",
                where=scenario.place(f"events[{e}]"),
                right="no cap events",
            )
    if scenario.links.prefix_cache_blocks:
        raise InputError(
            "with a prefix cache it is not seen which prompt tokens were processed",
            where=scenario.place("kv.prefix_cache_blocks"),
            right="0 for a calibration",
        )


def _roofline(kind: ReplicaKind, catalogues: ClusterCatalogues) -> Roofline:
    return Roofline.of(kind, catalogues.gpus[kind.gpu_type], catalogues.models[kind.model])


def _run(scenario: Scenario, catalogues: ClusterCatalogues, case: _Case) -> Judged:
    longest = int(case.trace.requests.prompt_tokens.max())
    cluster = resolve(scenario, catalogues, longest_prompt_tokens=longest)
    record = run_cluster(cluster, case.trace, seed=case.seed)
    return _judge(cluster.pools, record, case)


def _judge(pools: Sequence[PoolInUse], record: RunRecord, case: _Case) -> Judged:
    observed = case.observed
    ended = case.judged & np.isfinite(observed.e2e_s) & np.isfinite(observed.ttft_s)
    both = ended & record.completed()
    if int(both.sum()) < FEWEST_JUDGED:
        seen, shared = int(ended.sum()), int(both.sum())
        raise InputError(
            f"{shared} of its {seen} finished requests finish in the simulation"
            if seen >= FEWEST_JUDGED
            else f"{seen} finished requests to judge",
            where=case.file,
            right=f"at least {FEWEST_JUDGED}, after the warm-up and what a calibration fits",
        )
    simulated = {"ttft_s": record.ttft_s, "tbt_s": tbt_of(record, case.trace.requests), "e2e_s": record.e2e_s}
    return Judged(
        step_model=", ".join(dict.fromkeys(pool.step_model for pool in pools)),
        known_error="; ".join(dict.fromkeys(pool.known_error for pool in pools)),
        judged=int(both.sum()),
        only_observed=int((ended & ~both).sum()),
        agreement={
            metric: _agreement(simulated[metric][both], getattr(observed, metric)[both]) for metric in METRICS
        },
    )


def _agreement(simulated: Floats, observed: Floats) -> dict[str, Agreement] | None:
    told, seen = (
        distribution(simulated[np.isfinite(simulated)]),
        distribution(observed[np.isfinite(observed)]),
    )
    if told is None or seen is None:
        return None
    return {
        name: Agreement(simulated=_statistic(told, name), observed=_statistic(seen, name))
        for name in STATISTICS
    }


def _statistic(values: Distribution, name: str) -> float:
    return float(getattr(values, name))
