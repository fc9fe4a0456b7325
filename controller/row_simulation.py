"""Simulates a row for the command: reads its files, runs it with and without policy, and keeps what the answer needs.

It exists as the shell around `simulator.row`: it holds the clock. It prints nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from simulator.row.faults import RowFaults, read_row_faults
from simulator.row.generate import generate_requests
from simulator.row.model import REFERENCE_PLANT, RowPlant
from simulator.row.plant_file import read_plant
from simulator.row.request_file import read_row_requests
from simulator.row.requests import RowRequests
from simulator.row.run import RowRun, run_row, run_uncapped
from solver.domain.errors import InputError, Place
from solver.domain.power import (
    DEFAULT_CURVE,
    REFERENCE_SERVER,
    START_THETA,
    PowerRow,
    breaker_curve,
)
from solver.domain.power_trace import RowPowerTrace
from solver.power.policies.named import policy_of
from solver.power.policies.protocol import Policy
from solver.power.policies.training import train_polca

_BUDGET_W, _BASE_SERVERS = 260_000.0, 40


@dataclass(frozen=True, kw_only=True)
class RowQuestion:
    """What is asked; None where the usual value is meant."""

    requests_file: str | None
    """None: they are generated."""
    servers: int
    policy: str
    plant_file: str | None = None
    breaker: str | None = None
    budget_w: float | None = None
    actuator_latency_s: float = 2.0
    faults_file: str | None = None
    duration_s: int | None = None
    start_s: float = 0.0
    """Time of day at which generated requests start."""
    train_file: str | None = None
    """Recorded power to take POLCA's thresholds from."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedRow:
    """A run and the same requests without policy."""

    question: RowQuestion
    requests: RowRequests
    row: PowerRow
    policy: Policy
    timing: RowPlant
    faults: RowFaults
    start_theta: float
    base_servers: int
    run: RowRun
    uncapped: RowRun
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class RowSize:
    """The same policy on a row of another size."""

    servers: int
    increase: dict[str, tuple[float, float]]
    """By priority and class: of p50 and p99."""
    over_budget_s: int
    brakes: int
    completed_ratio: float


def simulate_row(question: RowQuestion) -> SimulatedRow:
    """Read, run, and run again without policy.

    Raises
    ------
    InputError
        In one line with file and field.
    """
    began_s = time.monotonic()
    server, timing, budget_w, base = REFERENCE_SERVER, REFERENCE_PLANT, _BUDGET_W, _BASE_SERVERS
    if question.plant_file is not None:
        plant = read_plant(question.plant_file)
        server, timing, budget_w, base = plant.server, plant.timing, plant.budget_w, plant.base_servers
    faults = RowFaults()
    if question.faults_file is not None:
        faults = read_row_faults(question.faults_file, servers=question.servers)
    if question.budget_w is not None or faults.budget_w is not None:
        budget_w = question.budget_w or faults.budget_w or budget_w
    curve = breaker_curve(question.breaker or DEFAULT_CURVE)
    if question.breaker is None and faults.curve is not None:
        curve = faults.curve
    if question.requests_file is None:
        requests = generate_requests(
            servers=question.servers,
            seconds=question.duration_s or 86_400,
            seed=question.seed,
            start_s=question.start_s,
        )
    else:
        requests = read_row_requests(question.requests_file, duration_s=question.duration_s)
    if not (requests.server < question.servers).any():
        raise InputError(
            f"no request is for the first {question.servers} servers",
            where=requests.name,
            right="give requests of server 0 and up",
        )
    row = PowerRow(
        server=server,
        priorities=requests.priorities(question.servers),
        budget_w=budget_w,
        curve=curve,
        low_floor_mhz=min(max(1110, server.min_mhz), server.max_mhz),
        high_floor_mhz=min(max(1305, server.min_mhz), server.max_mhz),
        clock_latency_s=question.actuator_latency_s,
    )
    idle_w = question.servers * server.idle_w
    if idle_w > budget_w:
        raise InputError(
            f"{budget_w:g} W is below what {question.servers} idle servers draw ({idle_w:.0f} W)",
            where="--budget-w"
            if faults.budget_w is None
            else Place(str(question.faults_file), field="budget_w"),
            right="give a larger budget or fewer servers",
        )
    policy = _policy(question, row, base)
    theta = START_THETA if faults.start_theta is None else faults.start_theta
    run = run_row(requests, row, policy, model=timing, start_theta=theta, faults=faults, seed=question.seed)
    # Work that waits for a lost GPU waits without policy too: the increase is the policy's alone.
    losses = RowFaults(events=tuple(event for event in faults.events if event.kind == "gpu_lost"))
    uncapped = run
    if question.policy != "none" or faults.events:
        uncapped = run_uncapped(requests, row, model=timing, start_theta=theta, faults=losses)
    return SimulatedRow(
        question=question,
        requests=requests,
        row=row,
        policy=policy,
        timing=timing,
        faults=faults,
        start_theta=theta,
        base_servers=base,
        run=run,
        uncapped=uncapped,
        wall_s=time.monotonic() - began_s,
    )


def _policy(question: RowQuestion, row: PowerRow, base_servers: int) -> Policy:
    """Return the policy that is asked for, with thresholds from recorded power if there is some."""
    if question.train_file is None:
        return policy_of(question.policy)
    from telemetry.sources.power_trace import read_power_trace  # noqa: PLC0415 - only where something is trained

    trace = read_power_trace(question.train_file, servers_in_trace=base_servers)
    if not isinstance(trace, RowPowerTrace):
        raise InputError(
            "power of single servers",
            where=question.train_file,
            right=f"a table t_s,row_w of {base_servers} servers",
        )
    return train_polca(
        trace.row_w,
        period_s=trace.period_s,
        budget_w=row.budget_w,
        servers_in_trace=base_servers,
        servers=row.servers,
        clock_latency_s=row.clock_latency_s,
    ).policy


def other_sizes(
    simulated: SimulatedRow, *, on_progress: Callable[[int], None] = lambda _: None
) -> tuple[RowSize, ...]:
    """Run the policy, without faults, on rows from the provisioned size to what there are requests for."""
    most = int(simulated.requests.server.max()) + 1
    base, asked = simulated.base_servers, simulated.row.servers
    sizes = {round(base * (1.0 + extra)) for extra in (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)}
    found = []
    for servers in sorted({size for size in sizes if 1 <= size <= most} | {asked}):
        on_progress(servers)
        row = replace(simulated.row, priorities=simulated.requests.priorities(servers))
        model, theta = simulated.timing, simulated.start_theta
        run = run_row(simulated.requests, row, simulated.policy, model=model, start_theta=theta)
        uncapped = run_uncapped(simulated.requests, row, model=model, start_theta=theta)
        found.append(
            RowSize(
                servers=servers,
                increase=run.increase(uncapped),
                over_budget_s=run.seconds_over_budget,
                brakes=run.brakes,
                completed_ratio=run.completed / max(run.offered, 1),
            )
        )
    return tuple(found)


def write_row_trace(run: RowRun, path: Path) -> None:
    """Write one line per second of the measured time.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    from telemetry.sources.traces.write import whole_file  # noqa: PLC0415 - only where a trace is asked for

    with whole_file(path) as write:
        write("t_s,row_w,budget_w,theta,low_mhz,high_mhz,brake\n")
        rows = zip(
            run.row_w.tolist(),
            run.budget_w.tolist(),
            run.theta.tolist(),
            run.low_mhz.tolist(),
            run.high_mhz.tolist(),
            run.braked.tolist(),
            strict=True,
        )
        for t_s, (row_w, budget_w, theta, low_mhz, high_mhz, braked) in enumerate(rows):
            write(
                f"{t_s},{row_w:.1f},{budget_w:.1f},{theta:.6f},{low_mhz:.1f},{high_mhz:.1f},{int(braked)}\n"
            )
