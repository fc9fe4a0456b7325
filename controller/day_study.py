"""One day, several who decide: Ballast beside a static fleet, Kubernetes' rule and an oracle, simulated alike.

It exists so that the demo and the benchmark compare in the same way: the same requests, pools, start-up delay and seed;
only the planner's policy differs. What is kept of each run is small. It draws and prints nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controller.closed_loop.day import Day
from controller.cluster_fleet import ClusterCatalogues, catalogues_for
from controller.simulation import SimulatedCluster, TraceInUse, simulate_trace
from simulator.scenario import PlannerPolicy, Scenario
from simulator.scenario_file import ScenarioDocument, scenario_of
from solver.domain.trace import Floats, Ints

POLICIES = (PlannerPolicy.STATIC, PlannerPolicy.HPA, PlannerPolicy.BALLAST, PlannerPolicy.ORACLE)
BUDGET_W = 32_000.0
"""What five machines of eight H100 and one of eight A100 may draw, rounded up: a static fleet for 16 requests/s."""
DAY_SCENARIO: Mapping[str, object] = {
    "schema": "scenario/1",
    "name": "a day",
    "models": [{"name": "llama-2-70b", "model": "meta-llama/Llama-2-70b-hf"}],
    "pools": [
        {"name": "h100", "gpu_type": "H100-SXM", "gpus_per_instance": 8, "count": 0},
        {"name": "a100", "gpu_type": "A100-80-SXM", "gpus_per_instance": 8, "count": 0},
    ],
    "step_model": {"kind": "table-kv"},
    "scheduler": {"max_batch": 256, "max_batch_tokens": 2048},
    "slo": "ttft_p99=2.0,tbt_p99=0.1",
    "power": {"budget_w": BUDGET_W, "policy": "caps"},
    "planner": {},
}
"""Llama-2-70B on machines of eight H100 or eight A100: the pair of types whose step times are measured."""
ALL_ROLES: tuple[Mapping[str, object], ...] = tuple(
    {"name": name + end, "gpu_type": gpu_type, "gpus_per_instance": 8, "count": 0, "role": role}
    for role, end in (("both", ""), ("prefill", "-in"), ("decode", "-out"))
    for name, gpu_type in (("h100", "H100-SXM"), ("a100", "A100-80-SXM"))
)
"""The same machines in every role, as pools of a scenario."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyDay:
    """What came of a day under one policy. T times, P pools, W windows, B bins."""

    policy: PlannerPolicy
    cost_usd: float | None
    energy_j: float | None
    request_ratio: float
    """Share of all requests inside the SLO's limits."""
    window_ratio: float
    """Share of the windows that kept the percentile."""
    rejected: int
    started: int
    stopped: int
    changes: int
    rules: Mapping[str, int]
    """Decisions by the rule that gave the rate."""
    times_s: Floats
    ready: Ints
    """[T, P] instances that serve."""
    carried_rps: Floats
    """[T, P]"""
    cap_ratio: Floats
    of_window: Floats
    """[W] share of each window's requests inside all limits."""
    power_w: Floats
    """[B]"""
    bin_s: float
    max_w: float | None
    simulated_s: float
    """Seconds that planning and simulating took."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparedDay:
    """A day and what came of it under each policy."""

    day: Day
    scenario: Scenario
    pools: tuple[str, ...]
    window_s: float
    rate_rps: Floats
    """[W] of the requests that arrived."""
    runs: tuple[PolicyDay, ...]

    def of(self, policy: PlannerPolicy) -> PolicyDay:
        """Return the run of a policy (KeyError: it was not simulated)."""
        for run in self.runs:
            if run.policy is policy:
                return run
        raise KeyError(policy)


def day_scenario(values: Mapping[str, object] | None = None) -> Scenario:
    """Return the scenario of the comparison, with other values where given (whole top-level fields)."""
    document = ScenarioDocument(values={**DAY_SCENARIO, **(values or {})}, source="a day", folder=Path())
    return scenario_of(document)


def compare_day(
    scenario: Scenario,
    day: Day,
    *,
    policies: Sequence[PlannerPolicy] = POLICIES,
    catalogues: ClusterCatalogues | None = None,
    seed: int = 0,
    step: Callable[[str], None] = lambda _note: None,
) -> ComparedDay:
    """Simulate a day under each policy.

    Raises
    ------
    InputError
        As `simulate_trace`; the scenario needs a planner.
    """
    rules = scenario.planner
    if rules is None:
        raise ValueError("the scenario has no planner")
    catalogues = catalogues_for(scenario) if catalogues is None else catalogues
    requests = day.requests
    trace = TraceInUse(
        name=day.name,
        sha256="",
        dropped_rows={},
        requests=requests,
        model_of_request=np.zeros(len(requests), dtype=np.int64),
        priority_of_request=None,
        warm_up_s=0.0,
    )
    runs = []
    for policy in policies:
        step(f"a day: {policy}")
        run = simulate_trace(
            replace(scenario, planner=replace(rules, policy=policy)),
            catalogues,
            trace,
            seed=seed,
            history=day.history,
            known_sizes=day.known_sizes,
        )
        runs.append(_kept(policy, run))
    window_s = rules.judged_window_s
    arrived = np.bincount((requests.arrival_s // window_s).astype(np.int64))
    return ComparedDay(
        day=day,
        scenario=scenario,
        pools=tuple(pool.name for pool in scenario.pools),
        window_s=window_s,
        rate_rps=arrived / window_s,
        runs=tuple(runs),
    )


def _kept(policy: PlannerPolicy, run: SimulatedCluster) -> PolicyDay:
    planned, attained, figures = run.planned, run.attained, run.figures
    if planned is None or attained is None:
        raise ValueError("the run had no planner")
    return PolicyDay(
        policy=policy,
        cost_usd=figures.cost_usd,
        energy_j=figures.energy_j,
        request_ratio=attained.request_ratio,
        window_ratio=attained.window_ratio,
        rejected=figures.requests.rejected,
        started=planned.started,
        stopped=planned.stopped,
        changes=len(planned.decisions),
        rules=planned.rules,
        times_s=planned.times_s,
        ready=planned.ready,
        carried_rps=planned.carried_rps,
        cap_ratio=planned.cap_ratio,
        of_window=attained.of_window,
        power_w=run.record.series.power_w.sum(axis=0),
        bin_s=run.record.series.bin_s,
        max_w=None if figures.power is None else figures.power.max_w,
        simulated_s=run.wall_s,
    )
