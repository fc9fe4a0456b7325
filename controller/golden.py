"""Runs the reference runs of other simulators again and says how far each comes out from its recorded results.

It exists because neither the readers nor the engines may know each other. Runs of splitwise-sim go to
`simulator.splitwise`, those of BLIS to `simulator.blis`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from simulator.blis import FINISH_US, simulate_blis
from simulator.fleet import RouterKind
from simulator.golden import Agreement, compare_times
from simulator.splitwise.machines import (
    MACHINES,
    MODELS,
    SplitwiseFleet,
    SplitwiseGroup,
    SplitwiseModel,
    SplitwiseRole,
    SplitwiseScheduler,
)
from simulator.splitwise.run import run_splitwise
from solver.domain.errors import InputError, Place
from solver.domain.hardware import Precision
from solver.domain.trace import Floats
from solver.performance.protocol import ReplicaKind
from solver.performance.roofline import Roofline
from solver.performance.trained_physics import TrainedPhysics
from telemetry.catalogue.read import find_model, read_gpus, read_models
from telemetry.sources.golden import BlisSetup, GoldenRun, SplitwiseSetup, read_golden_runs

BLIS_GPUS = {"A100": "A100-80-SXM", "H100": "H100-SXM", "L40S": "L40S"}
BLIS_ROUTERS = {"round-robin": RouterKind.ROUND_ROBIN}
"""Names that the peer uses, and ours. Other routers of the peer look at its own snapshots and are not reproduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenResult:
    """One reference run and how far ours is from it."""

    id: str
    peer: str
    agreement: Agreement
    wall_s: float
    """Of the simulation, kernels being compiled already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Simulated:
    """What a comparison needs of a run."""

    times_s: dict[str, Floats]
    counters: dict[str, int]
    end_time_s: float


def check_golden(
    folder: str | Path, *, on_run: Callable[[str], None] | None = None
) -> tuple[GoldenResult, ...]:
    """Simulate every reference run of a folder again.

    Parameters
    ----------
    on_run
        Told the id of each run before it starts.

    Raises
    ------
    InputError
        If a file of the folder is not a sound reference run, or names something unknown.
    """
    results = []
    for run in read_golden_runs(folder):
        if on_run is not None:
            on_run(run.id)
        _simulated(replace(run, requests=run.requests.take(slice(0, 1))))  # loads the kernels
        started = time.perf_counter()
        ours = _simulated(run)
        wall_s = time.perf_counter() - started
        recorded = {"ttft_s": run.ttft_s, "e2e_s": run.e2e_s}
        agreement = compare_times(
            ours.times_s, recorded, run.metrics, counters_differ=tuple(_differing(run, ours))
        )
        results.append(GoldenResult(id=run.id, peer=run.peer, agreement=agreement, wall_s=wall_s))
    return tuple(results)


def _simulated(run: GoldenRun) -> _Simulated:
    """Run the engine that has the peer's rules."""
    if isinstance(run.setup, SplitwiseSetup):
        return _by_splitwise_rules(run, run.setup)
    return _by_blis_rules(run, run.setup)


def _unknown_to_blis(run: GoldenRun, field: str, name: str, names: Mapping[str, object]) -> InputError:
    return InputError(
        f"unknown {field} {name!r}", where=Place(run.source, field=field), right=f"one of {', '.join(names)}"
    )


def _by_blis_rules(run: GoldenRun, setup: BlisSetup) -> _Simulated:
    gpu = BLIS_GPUS.get(setup.hardware)
    router = BLIS_ROUTERS.get(setup.routing)
    if gpu is None:
        raise _unknown_to_blis(run, "hardware", setup.hardware, BLIS_GPUS)
    if router is None:
        raise _unknown_to_blis(run, "routing", setup.routing, BLIS_ROUTERS)
    models = read_models()
    model = find_model(models, setup.model).name
    kind = ReplicaKind(
        model=model, gpu_type=gpu, gpus_per_replica=setup.tensor_parallel, precision=Precision.BF16.value
    )
    physics = TrainedPhysics(roofline=Roofline.of(kind, read_gpus()[gpu], models[model]))
    record = simulate_blis(
        physics,
        run.requests,
        instances=setup.instances,
        max_batch=setup.max_batch,
        max_batch_tokens=setup.max_batch_tokens,
        router=router,
    )
    gaps = np.maximum(run.requests.output_tokens - 1, 1)
    itl_mean_s = (record.e2e_s - FINISH_US * 1e-6 - record.ttft_s) / gaps
    return _Simulated(
        times_s={"ttft_s": record.ttft_s, "e2e_s": record.e2e_s, "itl_mean_s": itl_mean_s},
        counters={},
        end_time_s=record.end_time_s,
    )


def _by_splitwise_rules(run: GoldenRun, setup: SplitwiseSetup) -> _Simulated:
    ours = run_splitwise(_fleet(run, setup), run.requests)
    record = ours.record
    return _Simulated(
        times_s={
            "ttft_s": record.ttft_s,
            "tbt_s": (record.e2e_s - record.ttft_s) / run.requests.output_tokens,  # the peer's divisor
            "e2e_s": record.e2e_s,
        },
        counters=asdict(ours.rules),
        end_time_s=record.end_time_s,
    )


def _fleet(run: GoldenRun, setup: SplitwiseSetup) -> SplitwiseFleet:
    def known(what: str, name: str, names: tuple[str, ...]) -> str:
        if name not in names:
            raise InputError(
                f"unknown {what} {name!r}", where=Place(run.source, field=what), right=", ".join(names)
            )
        return name

    machines = [known("machine", group.machine, tuple(MACHINES)) for group in setup.machines]
    roles = [known("role", group.role, tuple(SplitwiseRole)) for group in setup.machines]
    model = MODELS[known("model", setup.model, tuple(MODELS))]
    fleet = SplitwiseFleet(
        model=SplitwiseModel(
            name=model.name,
            weights_bytes=setup.weights_bytes,
            kv_bytes_per_token=setup.kv_bytes_per_token,
        ),
        groups=tuple(
            SplitwiseGroup(
                machine=replace(MACHINES[machine], memory_bytes=setup.machine_memory_bytes),
                role=SplitwiseRole(role),
                count=group.count,
            )
            for machine, role, group in zip(machines, roles, setup.machines, strict=True)
        ),
        scheduler=SplitwiseScheduler(known("scheduler", setup.scheduler, tuple(SplitwiseScheduler))),
        max_batch=setup.max_batch,
        max_batch_tokens=setup.max_batch_tokens,
        max_preemptions=setup.max_preemptions,
    )
    if setup.prompt_limit_tokens is not None:
        fleet = replace(fleet, prompt_limit_tokens=setup.prompt_limit_tokens)
    if setup.link_gib_per_s is not None:
        fleet = replace(fleet, link_bytes_per_s=setup.link_gib_per_s * 2.0**30)
    return fleet


def _differing(run: GoldenRun, ours: _Simulated) -> list[str]:
    """Name the recorded counters that came out different."""
    names = []
    if isinstance(run.setup, SplitwiseSetup):
        names = [name for name, value in run.setup.counters.items() if ours.counters.get(name) != value]
    if run.end_time_s is not None and not np.isclose(ours.end_time_s, run.end_time_s, rtol=0.0, atol=1e-9):
        names.append("end_time_s")
    return names
