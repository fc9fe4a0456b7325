"""Answers how many servers a power domain holds: reads the recording, asks `solver.power.admission`, simulates.

It exists as the shell of ``ballast plan power``: it holds the clock and the files. Admission is by the criterion alone;
the simulation judges latency at the number found, and looks for the largest that keeps the SLO. It prints nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from solver.domain.errors import InputError
from solver.domain.power import (
    DEFAULT_CURVE,
    REFERENCE_SERVER,
    PowerRow,
    ServerPowerModel,
    breaker_curve,
    reference_priorities,
)
from solver.domain.power_trace import RowPowerTrace
from solver.power.admission import Admission, AdmissionQuestion, admit_servers
from telemetry.sources.power_trace import read_power_trace

if TYPE_CHECKING:
    from simulator.row.model import RowPlant
    from simulator.row.requests import RowRequests

BUDGET_W = 260_000.0
ROW_WARM_UP_S = 3600.0
"""A recorded row starts empty."""
POLCA_SLO = "low_p50=0.05,low_p99=0.5,high_p50=0.01,high_p99=0.05"
"""Increases of latency that POLCA's paper allows: recalled, not confirmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerQuestion:
    """What is asked; None where the usual value is meant."""

    trace_file: str
    servers_in_trace: int | None = None
    budget_w: float | None = None
    risk_minutes_per_year: float = 1.0
    breaker: str | None = None
    tau_s: float | None = None
    trip_ratio: float | None = None
    plant_file: str | None = None
    actuator_latency_s: float = 2.0
    low_floor_mhz: int | None = None
    high_floor_mhz: int | None = None
    warm_up_s: float | None = None
    policy: str = "guard"
    requests_file: str | None = None
    slo: str = POLCA_SLO
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target of an SLO: the most that a percentile may grow over the row without policy."""

    name: str
    group: str
    """A priority or a class of requests."""
    percentile: int
    limit_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A simulated row of so many servers."""

    servers: int
    increases: tuple[float, ...]
    """By target."""
    missed: tuple[str, ...]
    """Targets, and what else must not happen: brakes, trips, requests that are not completed."""
    seconds_over_budget: int
    duration_s: int
    brakes: int
    trips: int
    theta_max: float
    guarantee_held: bool
    completed_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPower:
    """The answer. Simulated are the servers with capping, and fewer where those miss the SLO."""

    question: PowerQuestion
    admission: Admission
    targets: tuple[Target, ...]
    simulated: tuple[Judged, ...]
    """The admitted number first."""
    servers_within_slo: int | None
    """Largest number up to the admitted one that keeps the SLO; None without requests."""
    solve_s: float

    @property
    def servers_without_capping(self) -> int:
        """By the criterion."""
        return self.admission.without.servers

    @property
    def servers_with_capping(self) -> int | None:
        """By the criterion; None where nothing caps, or the recording does not tell priorities."""
        return None if self.question.policy == "none" else self.admission.servers_with_capping


def plan_power(
    question: PowerQuestion, *, on_progress: Callable[[int], None] = lambda _: None
) -> PlannedPower:
    """Read, judge, and simulate where requests are given.

    Raises
    ------
    InputError
        In one line with file and field.
    """
    began_s = time.monotonic()
    targets = read_targets(question.slo)
    server, budget_w, timing = REFERENCE_SERVER, BUDGET_W, None
    if question.plant_file is not None:
        from simulator.row.plant_file import read_plant  # noqa: PLC0415 - the simulator is loaded where it is used

        plant = read_plant(question.plant_file)
        server, budget_w, timing = plant.server, plant.budget_w, plant.timing
    if question.budget_w is not None:
        budget_w = question.budget_w
    row = PowerRow(
        server=server,
        priorities=reference_priorities(1),
        budget_w=budget_w,
        curve=breaker_curve(
            question.breaker or DEFAULT_CURVE, tau_s=question.tau_s, trip_ratio=question.trip_ratio
        ),
        low_floor_mhz=_floor(question.low_floor_mhz, 1110, server),
        high_floor_mhz=_floor(question.high_floor_mhz, 1305, server),
        clock_latency_s=question.actuator_latency_s,
    )
    trace = read_power_trace(question.trace_file, servers_in_trace=question.servers_in_trace)
    warm_up_s = question.warm_up_s
    if warm_up_s is None:
        warm_up_s = ROW_WARM_UP_S if isinstance(trace, RowPowerTrace) else 0.0
    requests = None
    if question.requests_file is not None:
        from simulator.row.request_file import read_row_requests  # noqa: PLC0415 - as above

        requests = read_row_requests(question.requests_file)
    admission = admit_servers(
        trace,
        AdmissionQuestion(
            budget_w=budget_w,
            risk_minutes_per_year=question.risk_minutes_per_year,
            curve=row.curve,
            server=server,
            low_floor_mhz=row.low_floor_mhz,
            high_floor_mhz=row.high_floor_mhz,
            priorities=() if requests is None else requests.priorities(int(requests.server.max()) + 1),
            recourse_s=row.recourse_s(row.clock_latency_s),
            warm_up_s=warm_up_s,
            seed=question.seed,
        ),
    )
    simulated: tuple[Judged, ...] = ()
    within: int | None = None
    if requests is not None:
        most = admission.without.servers if question.policy == "none" else admission.servers_with_capping
        if most is None:
            raise InputError(
                "does not tell priorities, so that nothing says how many servers to simulate",
                where=question.trace_file,
                right="give low_priority_w, or power per server",
            )
        from simulator.row.model import REFERENCE_PLANT  # noqa: PLC0415 - as above

        judge = _judge(
            question,
            row,
            targets,
            requests=requests,
            timing=timing or REFERENCE_PLANT,
            most=most,
            on_progress=on_progress,
        )
        simulated, within = _within_slo(judge, most, likely=admission.without.servers)
    return PlannedPower(
        question=question,
        admission=admission,
        targets=targets,
        simulated=simulated,
        servers_within_slo=within,
        solve_s=time.monotonic() - began_s,
    )


def read_targets(slo: str) -> tuple[Target, ...]:
    """Read ``low_p50=0.05,search_p99=0.1``: increases of a priority's or a class's p50 or p99.

    Raises
    ------
    InputError
        For what is no such target.
    """
    found = []
    for part in slo.split(","):
        name, _, text = part.strip().partition("=")
        group, _, percentile = name.rpartition("_")
        try:
            limit = float(text)
        except ValueError:
            limit = -1.0
        if not group or percentile not in {"p50", "p99"} or not 0.0 <= limit < 1e6:
            raise InputError(
                f"{part.strip()!r:.60} is no target",
                where="--slo",
                right="like low_p99=0.5 for at most +50 %",
            )
        found.append(Target(name=name, group=group, percentile=int(percentile[1:]), limit_ratio=limit))
    return tuple(found)


def _floor(asked: int | None, usual: int, server: ServerPowerModel) -> int:
    return min(max(usual, server.min_mhz), server.max_mhz) if asked is None else asked


def _judge(
    question: PowerQuestion,
    row: PowerRow,
    targets: tuple[Target, ...],
    *,
    requests: "RowRequests",
    timing: "RowPlant",
    most: int,
    on_progress: Callable[[int], None],
) -> Callable[[int], Judged]:
    """Return what simulates so many servers."""
    from simulator.row.run import run_row  # noqa: PLC0415 - as above
    from solver.power.policies.named import policy_of  # noqa: PLC0415 - as above

    source = str(question.requests_file)
    served = int(requests.server.max()) + 1
    if served < most:
        raise InputError(
            f"requests of {served} servers only",
            where=source,
            right=f"give those of {most}: added servers bring load",
        )
    groups = ("low", "high", *requests.kinds)
    for target in targets:
        if target.group not in groups:
            raise InputError(
                f"{target.name} names nobody", where="--slo", right=f"one of {', '.join(groups)}"
            )
    policy = policy_of(question.policy)

    def judge(servers: int) -> Judged:
        on_progress(servers)
        sized = replace(row, priorities=requests.priorities(servers))
        run = run_row(requests, sized, policy, model=timing, seed=question.seed)
        increase = run.increase(run_row(requests, sized, model=timing))
        increases = tuple(increase[target.group][target.percentile == 99] for target in targets)
        missed = [t.name for t, value in zip(targets, increases, strict=True) if value > t.limit_ratio]
        missed += ["brakes"] * bool(run.brakes) + ["trips"] * bool(run.trips)
        missed += ["completed"] * (run.completed < run.offered)
        return Judged(
            servers=servers,
            increases=increases,
            missed=tuple(missed),
            seconds_over_budget=run.seconds_over_budget,
            duration_s=requests.duration_s,
            brakes=run.brakes,
            trips=run.trips,
            theta_max=run.theta_max,
            guarantee_held=run.guarantee_held,
            completed_ratio=run.completed / max(run.offered, 1),
        )

    return judge


def _within_slo(judge: Callable[[int], Judged], most: int, *, likely: int) -> tuple[tuple[Judged, ...], int]:
    """Simulate the admitted number and halve down where it misses the SLO; ``likely`` keeps it most of the time."""
    if most == 0:
        return (), 0
    told = [judge(most)]
    low, high = (most, most + 1) if not told[0].missed else (0, most)
    while high - low > 1:
        middle = likely if low == 0 and low < likely < high else (low + high) // 2
        told.append(judge(middle))
        low, high = (low, middle) if told[-1].missed else (middle, high)
    return tuple(told), low
