"""Splitwise's question answered by the program: the design of the largest rate within a power, cost or machine budget.

It exists to hold `solver.phases` against the paper's own designs and against the best point of its whole provisioning
grid, by simulation, under both readings of the measurements (benchmarks/papers.py). The method is the one
``ballast plan fleet`` uses: predict what each pool sustains, let the integer program divide the budget, simulate,
correct each phase by what was simulated, and let it decide again; at the end machines are moved between the phases
while that helps. Designs are found on `DESIGN_SEEDS` and reported on others.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.splitwise_runs import (
    MACHINE_OF,
    MODEL,
    NINE_CONDITIONS,
    Design,
    Load,
    Simulator,
    by_batch_and_context,
    by_the_papers_rules,
    judged,
    measured_steps,
    replica_kind,
    split,
)
from simulator.splitwise.machines import MACHINES, MODELS, STEP_KNOTS_TOKENS
from solver.domain.demand import representative_buckets
from solver.domain.fleet import (
    FleetBudgets,
    FleetConfig,
    FleetGoal,
    FleetInstance,
    FleetPlan,
    Role,
)
from solver.domain.gpu_mix import GpuOffer, RequestBucket
from solver.domain.slo import SloMetric
from solver.domain.trace_summary import size_histogram
from solver.performance.iteration import EngineSettings
from solver.performance.protocol import PerformanceModel, ReplicaKind
from solver.phases.from_demand import build_fleet_instance
from solver.phases.settle import Verdict, settle_fleet
from solver.phases.solve import FleetOptions, solve_fleet

DESIGN_SEEDS = (11, 12, 13)
BASE_RPS = 100.0
"""Rate of the instance; the answer is a multiple of it."""
LARGEST_RPS = 320.0
ENGINE = EngineSettings(max_batch=512, max_batch_tokens=2048)
FAMILIES = ("A", "H", "AA", "AH", "AC", "HA", "HH", "HC")
"""Machines of prompts and of tokens; one letter: both phases on the same machines."""
HOPELESS_RATIO = 0.75
"""A family whose corrected program promises less than this share of the best found is not simulated further."""
WORTH_CLIMBING_RATIO = 0.95
MOVES = (4, 2, 1)
GPUS = 8
_FORTY = Design(name="Baseline-H100 40", prompt=("H", 40))
_SEVENTY = Design(name="Baseline-A100 70", prompt=("A", 70))
BUDGETS: Mapping[str, FleetBudgets] = {
    "power": FleetBudgets(power_w=_FORTY.power),
    "cost": FleetBudgets(cost_usd_per_h=GPUS * _FORTY.cost),
    "count": FleetBudgets(machines=40),
}
"""Of 40 DGX H100; power in the paper's units instead of watts."""
CLAIMS: Mapping[str, FleetBudgets] = {
    "20 % cheaper than Baseline-H100 40": FleetBudgets(cost_usd_per_h=0.8 * GPUS * _FORTY.cost),
    "cost and power of Baseline-A100 70": FleetBudgets(
        cost_usd_per_h=GPUS * _SEVENTY.cost, power_w=_SEVENTY.power
    ),
}
"""The budgets of the paper's abstract: 1.4 times the rate at 20 % lower cost, 2.35 times at the same cost and power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatSteps:
    """The paper's simulator as a performance model: decode by the number of sequences, 1 KV slot as it counts bytes."""

    letter: str

    @property
    def kind(self) -> ReplicaKind:
        """Its replica."""
        return replica_kind(self.letter)

    def prefill_s(self, new_tokens: float, *, context_tokens: float = 0.0) -> float:
        """Read the prompt table; context is free, as prompts are never cut."""
        times = MACHINES[MACHINE_OF[self.letter]].step_times[MODEL]
        return _read(times.prompt_s, new_tokens) + 0.0 * context_tokens if new_tokens > 0.0 else 0.0

    def decode_iteration_s(self, sequences: float, kv_tokens: float) -> float:
        """Read the token table at the number of sequences."""
        times = MACHINES[MACHINE_OF[self.letter]].step_times[MODEL]
        return _read(times.token_s, sequences) + 0.0 * kv_tokens if sequences > 0.0 else 0.0

    def prefill_w(self, new_tokens: float) -> float:
        """Watts of prompts."""
        return GPUS * MACHINES[MACHINE_OF[self.letter]].prompt_w_per_gpu + 0.0 * new_tokens

    def decode_w(self, sequences: float, kv_tokens: float) -> float:
        """Watts of tokens."""
        return GPUS * MACHINES[MACHINE_OF[self.letter]].token_w_per_gpu + 0.0 * (sequences + kv_tokens)

    def idle_w(self) -> float:
        """Idle watts."""
        return GPUS * MACHINES[MACHINE_OF[self.letter]].idle_w_per_gpu

    def kv_capacity_tokens(self) -> int:
        """Tokens beside the weights, by the peer's bytes per token."""
        machine, model = MACHINES[MACHINE_OF[self.letter]], MODELS[MODEL]
        return (machine.memory_bytes - model.weights_bytes) // model.kv_bytes_per_token


def _read(values: tuple[float, ...], tokens: float) -> float:
    knots = STEP_KNOTS_TOKENS
    at = min(max(int(np.searchsorted(knots, tokens, side="left")), 1), len(knots) - 1)
    slope = (values[at] - values[at - 1]) / (knots[at] - knots[at - 1])
    return slope * (tokens - knots[at - 1]) + values[at - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to charge the same measurements."""

    name: str
    simulator: Simulator
    peers_tbt: bool
    steps: Callable[[str], PerformanceModel]


READINGS = (
    Reading(
        name="splitwise-compat",
        simulator=by_the_papers_rules,
        peers_tbt=True,
        steps=lambda letter: CompatSteps(letter=letter),
    ),
    Reading(name="table-kv", simulator=by_batch_and_context, peers_tbt=False, steps=measured_steps),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    ttft: bool
    tbt: bool
    met: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Laboratory:
    """Simulates designs on one set of loads and counts the runs; the same run is never made twice."""

    reading: Reading
    loads: Sequence[Load]
    duration_s: float
    runs: int = 0
    _known: dict[tuple[Design, int, float], _Judged] = field(default_factory=dict)

    def judged(self, design: Design, load: int, rate_rps: float) -> _Judged:
        """Simulate one design at one rate on one load."""
        key = (design, load, rate_rps)
        if key not in self._known:
            self.runs += 1
            self._known[key] = self._simulate(design, self.loads[load], rate_rps)
        return self._known[key]

    def _simulate(self, design: Design, load: Load, rate_rps: float) -> _Judged:
        requests = load.at(rate_rps, self.duration_s)
        record = self.reading.simulator(design, requests)
        if record.stopped_early:
            # Which phase gave way is told by what the unfinished requests wait for: a first token, or the others.
            unfinished = (requests.arrival_s < record.end_time_s) & ~np.isfinite(record.e2e_s)
            prompts_late = bool(np.mean(~np.isfinite(record.ttft_s[unfinished])) > 0.5)
            return _Judged(ttft=not prompts_late, tbt=prompts_late, met=False)
        figures = judged(design, requests, record, peers_tbt=self.reading.peers_tbt)
        by_metric = {
            metric: all(check.met for check in figures.slo.checks if check.target.metric is metric)
            for metric in SloMetric
        }
        met = bool(figures.slo.met)
        ttft, tbt = by_metric[SloMetric.TTFT], by_metric[SloMetric.TBT]
        if not met and ttft and tbt:  # only end to end fails: both answer for it
            ttft = tbt = False
        return _Judged(ttft=ttft, tbt=tbt, met=met)

    def met(self, design: Design, rate_rps: float) -> bool:
        """Whether more than half of the loads are served within the SLO."""
        yes = no = 0
        for load in range(len(self.loads)):
            if self.judged(design, load, rate_rps).met:
                yes += 1
            else:
                no += 1
            if 2 * max(yes, no) > len(self.loads):
                break
        return yes > no

    def rate_rps(self, design: Design, *, at_least: float = 0.0, guess: float = 64.0) -> float:
        """Largest whole rate that is met, ``at_least`` being known to be: the median over the loads."""
        low, high = at_least, math.inf
        step = 2.0
        rate = max(low + step, float(round(guess)))
        while high == math.inf:
            if rate >= LARGEST_RPS:
                high = LARGEST_RPS
            elif self.met(design, rate):
                low, rate, step = rate, rate + step, 2.0 * step
            else:
                high = rate
        if low == at_least and high > low + 2.0:  # the guess was too high: come down in growing steps
            step = 2.0
            while high - step > at_least:
                if self.met(design, high - step):
                    low = high - step
                    break
                high, step = high - step, 2.0 * step
        while high - low > 1.0:
            middle = math.floor((low + high) / 2.0)
            if self.met(design, middle):
                low = middle
            else:
                high = middle
        return low

    def phase_rates(self, design: Design, guess_rps: float) -> dict[str, float]:
        """Largest rates (to 2 %) at which all, the TTFT and the TBT targets are met on the first load."""
        return {what: self._phase_rate(design, what, guess_rps) for what in ("met", "ttft", "tbt")}

    def _phase_rate(self, design: Design, what: str, guess_rps: float) -> float:
        def good(rate: float) -> bool:
            return bool(getattr(self.judged(design, 0, rate), what))

        low, high, rate = 0.0, math.inf, float(max(1, round(guess_rps)))
        while low == 0.0 or high == math.inf:
            if good(rate):
                low = rate
                if rate >= LARGEST_RPS:
                    return rate
                rate = min(math.ceil(rate * 1.25), LARGEST_RPS)
            else:
                high = rate
                if rate <= 1.0:
                    return 1.0
                rate = max(1.0, math.floor(rate * 0.8))
        while high - low > max(1.0, 0.02 * low):
            middle = float(round((low + high) / 2.0))
            if good(middle):
                low = middle
            else:
                high = middle
        return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The program's design for one budget."""

    design: Design
    rate_rps: float
    """On the design loads."""
    predicted_rps: float
    """What the program promised for the design before any simulation of this family."""
    runs: int


def buckets_of(load: Load, *, count: int = 24, sizes: int = 4000) -> tuple[RequestBucket, ...]:
    """Represent the sizes of a load by a few buckets at the base rate."""
    histogram = size_histogram(load.prompt_tokens[:sizes], load.output_tokens[:sizes])
    return representative_buckets(histogram, largest_bucket_count=count, rate_rps=BASE_RPS).buckets


def instance_of(
    reading: Reading, buckets: Sequence[RequestBucket], family: str, budgets: FleetBudgets
) -> FleetInstance | None:
    """Ask for the largest rate of one family within the budgets; None where a machine cannot serve its phase."""
    a, h = MACHINES["dgx-a100"], MACHINES["dgx-h100"]
    offers = tuple(
        GpuOffer(
            name=machine.name,
            price_usd_per_h=machine.cost_usd_per_gpu_h,
            power_w=machine.power_units / GPUS,
            gpus_per_node=GPUS,
            whole_nodes=True,
        )
        for machine in (a, h)
    )
    roles = (Role.BOTH,) if len(family) == 1 else (Role.PREFILL, Role.DECODE)
    configs = {
        FleetConfig(
            gpu_type=a.name if letter == "A" else h.name,
            gpus_per_replica=GPUS,
            role=role,
            power_w=MACHINES[MACHINE_OF[letter]].power_units / GPUS,
        ): letter
        for letter, role in zip(family, roles, strict=True)
    }
    built = build_fleet_instance(
        name=family,
        demands={MODEL: buckets},
        offers=offers,
        configs={MODEL: tuple(configs)},
        performance=lambda _, config: reading.steps(configs[config]),
        slo=NINE_CONDITIONS,
        engine=ENGINE,
        reference={MODEL: reading.steps("A")},
        goal=FleetGoal.RATE,
        budgets=budgets,
    )
    return None if built.left_out else built.instance


def by_the_program(instance: FleetInstance) -> FleetPlan:
    """Solve an instance to the end."""
    return solve_fleet(instance, FleetOptions(compare=False, explain=False), time.monotonic)


def design_of(family: str, plan: FleetPlan) -> Design:
    """Name the design of a plan for one family."""
    counts = plan.replicas[0]
    if len(family) == 1:
        return Design(name=f"Baseline-{family} {counts[0]}", prompt=(family, counts[0]))
    return split(family.replace("C", "Hcap"), family[0], counts[0], family[1], counts[1])


def within(design: Design, budgets: FleetBudgets) -> bool:
    """Whether a design keeps the budgets (in the paper's units)."""
    machines = sum(count for _, count in design.parts)
    return (
        (budgets.power_w is None or design.power <= budgets.power_w + 1e-6)
        and (budgets.cost_usd_per_h is None or GPUS * design.cost <= budgets.cost_usd_per_h + 1e-6)
        and (budgets.machines is None or machines <= budgets.machines)
    )


def moved(design: Design, budgets: FleetBudgets, number: int) -> list[Design]:
    """Move so many machines from one phase to the other, and fill the budget there."""
    if design.token is None:
        return []
    family = design.name.split()[0]
    (p, prompts), (t, tokens) = design.prompt, design.token

    def filled(prompts: int, tokens: int, *, grow_tokens: bool) -> Design | None:
        if prompts < 1 or tokens < 1:
            return None
        found = split(family, p, prompts, t, tokens)
        if not within(found, budgets):
            return None
        while True:
            more = (
                split(family, p, prompts, t, tokens + 1)
                if grow_tokens
                else split(family, p, prompts + 1, t, tokens)
            )
            if not within(more, budgets):
                return found
            found, prompts, tokens = more, more.prompt[1], more.parts[1][1]

    options = [
        filled(prompts - number, tokens, grow_tokens=True),
        filled(prompts, tokens - number, grow_tokens=False),
    ]
    return [option for option in options if option is not None and option != design]


def program_design(
    laboratory: Laboratory,
    buckets: Sequence[RequestBucket],
    budgets: FleetBudgets,
    *,
    solve: Callable[[FleetInstance], FleetPlan] | None = None,
    rounds: int = 5,
    say: Callable[[str], None] = lambda _: None,
) -> Found:
    """Program, simulate, correct each phase, program again; then move machines between phases while that helps."""
    solve = by_the_program if solve is None else solve
    started = laboratory.runs
    candidates: list[tuple[float, float, Design]] = []
    starts = []
    for family in FAMILIES:
        instance = instance_of(laboratory.reading, buckets, family, budgets)
        if instance is None:
            continue
        plan = solve(instance)
        if plan.objective is not None:
            starts.append((plan.objective * BASE_RPS, family, instance))
    optimism = 1.0  # simulated over promised, of the families tried so far: what is true of all of them
    best = 0.0
    for promised, family, instance in sorted(starts, key=lambda start: -start[0]):
        if promised * optimism < HOPELESS_RATIO * best:
            say(f"  {family}: promised {promised:.0f}, not simulated")
            continue

        def judge(current: FleetInstance, plan: FleetPlan, family: str = family) -> Verdict:
            return _simulated(laboratory, family, current, plan)

        settled = settle_fleet(instance, solve=solve, judge=judge, rounds=rounds)
        rate = settled.sustained_factor * BASE_RPS
        design = design_of(family, settled.plan)
        say(f"  {family}: promised {promised:.0f}, {design.name} {rate:.0f}, {settled.rounds} rounds")
        candidates.append((rate, promised, design))
        best = max(best, rate)
        optimism = max(rate / promised for rate, promised, _ in candidates)
    # The first rate of a family is that of one load, and a lucky one: all loads decide from here on.
    settled_rates = [
        (laboratory.rate_rps(design, guess=rate), promised, design) for rate, promised, design in candidates
    ]
    found, promised, winner = -1.0, 0.0, candidates[0][2]
    for rate, promise, design in sorted(settled_rates, key=lambda candidate: -candidate[0]):
        if rate < WORTH_CLIMBING_RATIO * found:
            break
        climbed, climbed_rate = climb(laboratory, design, rate, budgets)
        if climbed_rate > found:
            found, promised, winner = climbed_rate, promise, climbed
    say(f"  -> {winner.name} {found:.0f}, {laboratory.runs - started} runs")
    return Found(design=winner, rate_rps=found, predicted_rps=promised, runs=laboratory.runs - started)


def climb(laboratory: Laboratory, design: Design, rate: float, budgets: FleetBudgets) -> tuple[Design, float]:
    """Move machines between the phases, several first, while the simulated rate grows; one test says no."""
    for number in MOVES:
        improved = True
        while improved:
            improved = False
            for other in moved(design, budgets, number):
                if laboratory.met(other, rate + 1.0):
                    design, rate = other, laboratory.rate_rps(other, at_least=rate + 1.0, guess=rate + 2.0)
                    improved = True
                    break
    return design, rate


def _simulated(laboratory: Laboratory, family: str, instance: FleetInstance, plan: FleetPlan) -> Verdict:
    """Say what each phase of a plan's design really sustains, each by its own targets."""
    before = laboratory.runs
    planned = (plan.rate_factor or 1.0) * BASE_RPS
    rates = laboratory.phase_rates(design_of(family, plan), planned)
    model = instance.models[0]
    phase = {Role.BOTH: "met", Role.PREFILL: "ttft", Role.DECODE: "tbt"}
    return Verdict(
        sustained_ratio=rates["met"] / planned,
        factors={
            (model.name, c): plan.load_ratio[0][c] * rates[phase[config.role]] / planned
            for c, config in enumerate(model.configs)
        },
        runs=laboratory.runs - before,
    )


def grid(budget: str) -> dict[str, list[Design]]:
    """List the paper's provisioning grid at one of `BUDGETS`: every split, one list per family."""
    forty = range(1, 40)
    if budget == "power":
        a100 = int(40 * 44 // 24.8)
        return {
            "AA": [split("AA", "A", p, "A", a100 - p) for p in range(1, a100)],
            "HH": [split("HH", "H", p, "H", 40 - p) for p in forty],
            "HA": [split("HA", "H", p, "A", int(44 * (40 - p) // 24.8)) for p in forty],
            "HHcap": [split("HHcap", "H", p, "C", int(44 * (40 - p) // 30.8)) for p in forty],
        }
    a100 = int(4.76 * 40 // 2.21) if budget == "cost" else 40
    token = (lambda p: int(4.76 * (40 - p) // 2.21)) if budget == "cost" else (lambda p: 40 - p)
    return {
        "AA": [split("AA", "A", p, "A", a100 - p) for p in range(1, a100)],
        "HH": [split("HH", "H", p, "H", 40 - p) for p in forty],
        "HA": [split("HA", "H", p, "A", token(p)) for p in forty],
        "HHcap": [split("HHcap", "H", p, "C", 40 - p) for p in forty],
    }


def best_of(laboratory: Laboratory, points: Sequence[Design]) -> tuple[Design, float]:
    """Find the point of the largest rate; all are tried, most by one run per load that says no to more."""
    middle = len(points) // 2
    coarse = [*points[middle::6], *points[max(middle - 6, 0) :: -6]]
    best, rate = coarse[0], laboratory.rate_rps(coarse[0])
    fine = [point for point in points if point not in coarse]
    for point in coarse[1:]:
        if laboratory.met(point, rate + 1.0):
            best, rate = point, laboratory.rate_rps(point, at_least=rate + 1.0, guess=rate + 2.0)
    near = points.index(best)
    for point in sorted(fine, key=lambda point: abs(points.index(point) - near)):
        if laboratory.met(point, rate + 1.0):
            best, rate = point, laboratory.rate_rps(point, at_least=rate + 1.0, guess=rate + 2.0)
    return best, rate


class Notebook:
    """What was found so far, a JSON object per line, so that an interrupted run goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.known[entry.pop("key")] = entry

    def ask(self, key: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is known under a key, or find it and write it down."""
        if key not in self.known:
            self.known[key] = find()
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, **self.known[key]}) + "\n")
        return self.known[key]


def written(design: Design) -> dict[str, Any]:
    """Write a design down."""
    return {"name": design.name, "parts": [list(part) for part in design.parts]}


def read_back(entry: Mapping[str, Any]) -> Design:
    """Read what `written` wrote."""
    parts = [(str(letter), int(count)) for letter, count in entry["parts"]]
    return Design(name=entry["name"], prompt=parts[0], token=parts[1] if len(parts) > 1 else None)
