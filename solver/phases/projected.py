"""Fleets by cuts on replicas: a small program of replicas and nodes learns what serving needs.

It exists for problems whose routing shares outnumber their replicas a hundredfold (12 GPU types x 4 sizes x 3 roles x
4 caps x 60 buckets): the master program holds replicas, nodes and budgets only; each answer that does not carry the
traffic is cut off by the prices that prove it (`cuts`). The master's bound is a bound of the whole problem.

The master's answers tend to fail by a hair, so fleets are looked for beside it: a master of the most promising configs
whose cuts ask for a little more than enough, and greedy completion of what nearly suffices. Both add cuts on the way.
Configs whose reduced cost exceeds the gap are left out, which keeps the master small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Program, Solution, SolveLimits, SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.cuts import Carried, Cut, carried, cut_from, price_start
from solver.phases.direct import SMALLEST_FACTOR, STEP_SHARE, Counts, FleetAnswer, scaled, solve_direct
from solver.phases.exchange import exchanges, promised_factor
from solver.phases.holdings import Holdings
from solver.phases.prepare import ServedPhases
from solver.phases.program import add_goal, add_replicas, buy, objective_step
from solver.phases.routing import FIT_TOLERANCE
from solver.pools.grid import next_step
from solver.pools.serving import least_replicas

Floats = NDArray[np.float64]

RELAXED_ROUNDS = 60
INNER = 0.6
"""Cuts are sought so far on the way from the master's answer to replicas that suffice."""
RELAXED_TOLERANCE = 1e-4
"""The relaxed master is good enough once its replicas carry all rates but so much."""
FIRST_GAP_RATIO = 1e-3
"""While cuts are few the master need not be solved more exactly."""
LEAST_GAP_RATIO = 2e-7
MOST_REPAIRS = 60
MOST_REMOVALS = 12
MOST_PROMISING = 40
"""Configs of a model among which fleets are looked for beside the master."""
LOOKS = 3
EXCHANGES = 24
"""That are judged from one start."""
FIRST_AIM = 0.4
"""The first whole master is solved to so much of the gap that is asked for."""
MARGINS = (0.002, 0.005, 0.0125)
"""How much more than enough the first fleets are asked for, until one suffices."""
SPARE_ENOUGH = 0.01
"""No fleet need have more to spare than this."""
SPARE_GAP_RATIO = 1e-3
AIM = 0.9
"""Fleets are looked for within so much of the gap that is asked for."""
RESCALE_BELOW = 0.3
BLUNT = 1e-7
"""A cut that rounding keeps from cutting off its own replicas is sharpened by so much."""


@dataclass(slots=True)
class _MasterAnswer:
    solution: Solution
    counts: list[Floats]
    reduced: list[Floats]
    """Reduced cost of each config's replicas, only of the relaxed master."""

    @property
    def proved(self) -> bool:
        """Whether a relaxed master was solved to the end: only then are its objective and duals bounds."""
        return self.solution.status is SolveStatus.OPTIMAL


@dataclass(slots=True)
class FleetSearch:
    """One search; objectives are minimised inside (goal rate as -lambda, in units in which lambda is about 1)."""

    instance: FleetInstance
    models: tuple[ServedPhases, ...]
    deadline: Deadline
    gap_ratio: float
    backend: BackendName
    cuts: list[Cut] = field(default_factory=list)
    bound: float = -np.inf
    best: Counts = ()
    best_objective: float = np.inf
    holdings: Holdings = field(init=False)
    step: float = field(init=False)
    seen: set[Counts] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.holdings = Holdings(self.instance, self.models)
        self.step = objective_step(self.instance, self.models)

    @property
    def maximised(self) -> bool:
        """Whether the goal is the rate."""
        return self.instance.goal is FleetGoal.RATE

    @property
    def most(self) -> float:
        """Proved upper bound on lambda."""
        return max(-self.bound, 0.0) if self.maximised and np.isfinite(self.bound) else 1.0

    @property
    def closed(self) -> bool:
        """Whether the requested gap is reached."""
        if not np.isfinite(self.best_objective):
            return False
        gap = self.best_objective - self.bound
        return bool(gap <= self.gap_ratio * abs(self.best_objective) or gap <= self._within_step())

    def _within_step(self) -> float:
        """Less than a step of the objective is nothing, where the step stands out of the noise of the backend."""
        noise = 1e-8 * max(1.0, abs(self.best_objective))
        return self.step - noise if noise < (1 - STEP_SHARE) * self.step else 0.0

    def master(
        self,
        *,
        whole: bool,
        gap_ratio: float = 0.0,
        margin: float = 0.0,
        among: Sequence[NDArray[np.bool_]] | None = None,
        within: float | None = None,
    ) -> _MasterAnswer:
        """Solve the master: goal s.t. cuts, stock, budgets; replicas whole or not.

        Three ways to look for fleets, which prove nothing: with a ``margin`` cuts ask for so much more than enough;
        ``among`` [model][C] leaves the other configs out; ``within`` is a budget on the goal, under which the least
        left side of the cuts is maximised instead.
        """
        program = Program()
        instance = self.instance if within is None else _within(self.instance, within)
        factor = None
        if instance.goal is FleetGoal.RATE:
            factor = program.add_variable(upper=np.inf if within is None else 1.0 + SPARE_ENOUGH)
        chosen = self.models
        if among is not None:
            chosen = tuple(
                replace(model, upper=np.where(mask, model.upper, 0.0))
                for model, mask in zip(self.models, among, strict=True)
            )
        replicas = [add_replicas(program, model) for model in chosen]
        for model, variables in zip(self.models, replicas, strict=True):
            least_replicas(program, model.least_replicas, variables)
        configs = [np.fromiter(variables, dtype=np.int64) for variables in replicas]
        columns = [np.fromiter(variables.values(), dtype=np.int64) for variables in replicas]
        for cut in self.cuts:
            weights = cut.weights[configs[cut.position]]
            earning = weights > 0
            unit = float(weights.max(initial=0.0)) or 1.0  # so that no weight is too small for a backend
            row = (weights[earning] / unit).tolist()
            held = columns[cut.position][earning].tolist()
            if factor is None:
                program.add_row(held, row, lower=(1.0 + margin) / unit)
            else:
                program.add_row([*held, factor], [*row, -1.0 / unit], lower=0.0)
        purchase = buy(program, instance, self.models, replicas)
        add_goal(program, instance.goal, purchase, factor)
        limits = SolveLimits(
            time_limit_s=self.deadline.remaining_s(),
            gap_ratio=gap_ratio,
            gap_absolute=STEP_SHARE * self.step if within is None else 0.0,
        )
        solution = _solve_scaled(program, limits, backend=self.backend, relaxed=not whole)
        counts, reduced = [], []
        slope = _reduced_costs(program, solution) if not whole and len(solution.row_duals) else None
        for model, variables in zip(self.models, replicas, strict=True):
            found, costs = np.zeros(model.configs), np.zeros(model.configs)
            for c, n in variables.items():
                if solution.found:
                    found[c] = solution.values[n]
                if slope is not None:
                    costs[c] = slope[n]
            counts.append(np.round(found) if whole else found)
            reduced.append(costs)
        return _MasterAnswer(solution, counts, reduced)

    def judge(self, counts: Sequence[Floats], *, learn: bool = False) -> list[Carried | None]:
        """Ask what each model's replicas carry, and learn from those that do not carry lambda_max of the rates.

        ``learn``: from all of them.
        """
        found: list[Carried | None] = []
        for position, (model, row) in enumerate(zip(self.models, counts, strict=True)):
            if model.buckets == 0:
                found.append(None)
                continue
            prices = carried(model, row, self.backend)
            found.append(prices)
            if learn or prices.factor < self.most * (1 - FIT_TOLERANCE):
                self.cuts.append(cut_from(model, position, prices, most=max(self.most, 1e-12)))
        return found

    def relax(self) -> _MasterAnswer:
        """Cut until the relaxed master's replicas carry the traffic.

        Answers of a master with few cuts lie far apart, so cuts are sought between its answer and the best replicas
        seen that carry all (Ben-Ameur and Neto 2007, in-out separation); at the answer itself where that cuts nothing.
        """
        answer = self.master(whole=False)
        inner: list[Floats] | None = None
        least = np.inf
        for _ in range(RELAXED_ROUNDS):
            if not answer.proved or self.deadline.passed():
                break
            self.prove(answer.solution.objective)
            at, cut = answer.counts, False
            if inner is not None:
                at = [
                    INNER * near + (1 - INNER) * far for near, far in zip(inner, answer.counts, strict=True)
                ]
                known = len(self.cuts)
                found = self.judge(at, learn=True)
                cut = self._cut_off(answer, self.cuts[known:])
            if not cut:
                at = answer.counts
                found = self.judge(at)
                if all(
                    prices is None or prices.factor >= self.most * (1 - RELAXED_TOLERANCE) for prices in found
                ):
                    break
            factor = _factor_of(found)
            if factor > 0:
                carrying = at if self.maximised else [row / factor for row in at]
                objective = -factor if self.maximised else self._price(carrying)
                if objective < least:
                    inner, least = carrying, objective
            answer = self.master(whole=False)
        if answer.proved:
            self.prove(answer.solution.objective)
        return answer

    def _cut_off(self, answer: _MasterAnswer, cuts: Sequence[Cut]) -> bool:
        """Whether some of these cuts forbid an answer of the relaxed master."""
        asked = -answer.solution.objective if self.maximised else 1.0
        return any(
            float(cut.weights @ answer.counts[cut.position]) < asked * (1 - RELAXED_TOLERANCE) for cut in cuts
        )

    def _price(self, counts: Sequence[Floats]) -> float:
        """Return what replicas cost, nodes in part allowed: for comparisons only."""
        return sum(
            float(self.holdings.start_prices(model) @ row)
            for model, row in zip(self.models, counts, strict=True)
        )

    def prove(self, bound: float) -> None:
        """Take a proved bound, rounded up to the next value an objective can have."""
        if np.isfinite(bound):
            self.bound = max(self.bound, next_step(bound, self.step))

    def offer(self, counts: Sequence[Floats], found: Sequence[Carried | None]) -> bool:
        """Take replicas as the answer if they suffice and are better; returns whether they suffice."""
        factor = _factor_of(found)
        if (not self.maximised and factor < 1 - FIT_TOLERANCE) or self._short_of_replicas(counts) is not None:
            return False
        objective = -factor if self.maximised else self.holdings.objective(counts)
        if objective < self.best_objective - 1e-12 * abs(objective):
            self.best_objective = objective
            self.best = tuple(tuple(int(n) for n in row) for row in counts)
        return True

    def _short_of_replicas(self, counts: Sequence[Floats]) -> int | None:
        """Position of a model with fewer replicas than are asked for."""
        for position, (model, row) in enumerate(zip(self.models, counts, strict=True)):
            if row.sum() < model.least_replicas:
                return position
        return None

    def complete(self, counts: list[Floats], found: list[Carried | None]) -> None:
        """Add replicas one by one, the most valuable per objective first, while the answer does not suffice.

        Goal rate: while any fits the budgets. Every step is judged, so it also learns.
        """
        counts = [row.copy() for row in counts]
        for _ in range(MOST_REPAIRS):
            if self.deadline.passed() or (self.offer(counts, found) and not self.maximised):
                break
            short = self._short_of_replicas(counts)
            if short is not None:
                c = self.holdings.next_replica(counts, short, np.ones(self.models[short].configs))
                if c is None:
                    break
                counts[short][c] += 1
                if self.models[short].buckets:
                    found[short] = carried(self.models[short], counts[short], self.backend)
                continue
            served = [(prices.factor, p, prices) for p, prices in enumerate(found) if prices is not None]
            if not served:
                break
            _, position, prices = min(served, key=lambda entry: entry[:2])
            weights = cut_from(self.models[position], position, prices, most=max(self.most, 1e-12)).weights
            missing = max(self.most - float(weights @ counts[position]), 1e-9)
            c = self.holdings.next_replica(counts, position, np.minimum(weights, missing))
            if c is None or self.holdings.objective_after(counts, position, c) >= self._worth_reaching():
                break
            counts[position][c] += 1
            prices = carried(self.models[position], counts[position], self.backend)
            found[position] = prices
            if prices.factor < self.most * (1 - FIT_TOLERANCE):
                cut = cut_from(self.models[position], position, prices, most=max(self.most, 1e-12))
                self.cuts.append(cut)
        else:
            self.offer(counts, found)

    def _worth_reaching(self) -> float:
        return np.inf if self.maximised else self.best_objective

    def thin(self) -> None:
        """Take replicas out of the best answer while the rest suffices, where that saves anything."""
        if self.maximised or not self.best:
            return
        counts = [np.array(row, dtype=float) for row in self.best]
        tried = 0
        for position, c in self.holdings.removals(counts):
            if tried >= MOST_REMOVALS or self.deadline.passed():
                return
            if counts[position].sum() <= self.models[position].least_replicas or counts[position][c] < 1:
                continue
            trial = [row.copy() for row in counts]
            trial[position][c] -= 1
            if self.holdings.objective(trial) >= self.best_objective:
                continue
            tried += 1
            if self.offer(trial, self.judge(trial)):
                counts = trial

    def exchange(self, start: Sequence[Floats], found: Sequence[Carried | None]) -> None:
        """Goal rate: improve replicas by exchanging one at a time while that helps; judging them also adds cuts."""
        counts, factor = [row.copy() for row in start], _factor_of(found)
        left, helped = EXCHANGES, True
        while helped:
            helped = False
            for trial, position in exchanges(self.holdings, self.models, self.cuts, counts, factor):
                if left <= 0 or self.closed or self.deadline.passed():
                    return
                if promised_factor(self.cuts, trial, position) <= factor:  # by a cut that came meanwhile
                    continue
                left -= 1
                carries = self.judge(trial)
                self.offer(trial, carries)
                reached = _factor_of(carries)
                if reached > factor:
                    counts, factor, helped = trial, reached, True
                    break

    def promising(self, relaxed: _MasterAnswer) -> list[NDArray[np.bool_]]:
        """[model][C] the configs that the relaxed master uses, and those of least reduced cost."""
        among = []
        for model, reduced, counts in zip(self.models, relaxed.reduced, relaxed.counts, strict=True):
            order = np.lexsort((np.arange(model.configs), np.where(counts > 0, -np.inf, reduced)))
            order = order[model.upper[order] > 0][:MOST_PROMISING]
            mask = np.zeros(model.configs, dtype=bool)
            mask[order] = True
            among.append(mask)
        return among

    def look_above(self, among: Sequence[NDArray[np.bool_]]) -> None:
        """Look for a first fleet that suffices with a little to spare, or a little more."""
        for margin in MARGINS:
            if self.closed or self.deadline.passed():
                return
            gap_ratio = max(FIRST_GAP_RATIO, self.gap_ratio / 2)
            answer = self.master(whole=True, gap_ratio=gap_ratio, margin=margin, among=among)
            if not answer.solution.found:
                return
            found = self.judge(answer.counts)
            enough = self.offer(answer.counts, found)
            if not enough:
                self.look_within(answer.solution.objective, among)
                if self.best_objective <= answer.solution.objective * (1 + 1e-9):
                    return
                self.complete(answer.counts, found)
            self.thin()
            if enough:
                return

    def look_around(self, among: Sequence[NDArray[np.bool_]]) -> None:
        """Goal rate: look for a fleet of the promising configs, and around it."""
        if self.closed or self.deadline.passed():
            return
        answer = self.master(whole=True, gap_ratio=max(FIRST_GAP_RATIO, self.gap_ratio / 4), among=among)
        if answer.solution.found:
            found = self.judge(answer.counts)
            self.complete(answer.counts, found)
            self.exchange(answer.counts, found)

    def look_within(self, target: float, among: Sequence[NDArray[np.bool_]]) -> None:
        """Look for a fleet of at most the target, the one with most to spare first."""
        for _ in range(LOOKS):
            if self.closed or self.deadline.passed():
                return
            answer = self.master(whole=True, gap_ratio=SPARE_GAP_RATIO, among=among, within=target)
            if not answer.solution.found or -answer.solution.objective < 1.0:
                return
            if self.offer(answer.counts, self.judge(answer.counts)):
                return

    def leave_out(self, relaxed: _MasterAnswer) -> None:
        """Fix replicas at 0 whose reduced cost shows that one of them makes any answer worse than the best."""
        if not np.isfinite(self.best_objective) or not relaxed.proved:
            return
        room = self.best_objective - relaxed.solution.objective
        room += 1e-6 * abs(self.best_objective)
        kept = []
        for model, reduced in zip(self.models, relaxed.reduced, strict=True):
            upper = model.upper.copy()
            upper[reduced > room] = 0.0
            kept.append(replace(model, upper=upper))
        self.models = tuple(kept)

    def run(self) -> SolveStatus:
        """Search until the gap is reached or time is up."""
        for position, model in enumerate(self.models):
            if model.buckets:
                price = self.holdings.start_prices(model)
                self.cuts.append(
                    cut_from(model, position, price_start(model, price), most=self._start_most())
                )
        relaxed = self.relax()
        if not relaxed.proved:
            status = relaxed.solution.status
            return SolveStatus.INFEASIBLE if status is SolveStatus.INFEASIBLE else SolveStatus.TIMED_OUT
        start = [np.floor(row + 1e-6) for row in relaxed.counts]
        if self.holdings.fits(start):
            self.complete(start, self.judge(start))
            self.thin()
        among = self.promising(relaxed)
        if self.maximised:
            self.look_around(among)
        else:
            self.look_above(among)
        gap_ratio = max(FIRST_GAP_RATIO, FIRST_AIM * self.gap_ratio)
        while not self.closed and not self.deadline.passed():
            relaxed = self.relax()
            if relaxed.proved:
                among = self.promising(relaxed)
                self.leave_out(relaxed)
            answer = self.master(whole=True, gap_ratio=gap_ratio)
            if answer.solution.status is SolveStatus.INFEASIBLE:
                if not self.best:
                    return SolveStatus.INFEASIBLE
                self.bound = self.best_objective  # what was left out is no better
                break
            self.prove(min(answer.solution.bound, self.best_objective))
            if not answer.solution.found or self.closed:
                break
            among = [mask | (row > 0) for mask, row in zip(among, answer.counts, strict=True)]
            found = self.judge(answer.counts)
            key = tuple(tuple(int(n) for n in row) for row in answer.counts)
            kept = self.offer(answer.counts, found)
            if self.maximised:
                promised = -answer.solution.objective
                kept = all(each is None or each.factor >= promised * (1 - FIT_TOLERANCE) for each in found)
            if kept:
                gap_ratio = max(LEAST_GAP_RATIO, gap_ratio / 10)
            if self.maximised:
                self.complete(answer.counts, found)
                self.exchange(answer.counts, found)
                self.look_around(among)
            elif not self.closed:
                self.complete(answer.counts, found)
                self.thin()
                self.look_within(
                    max(answer.solution.objective, self.bound * (1 + AIM * self.gap_ratio)), among
                )
            if key in self.seen:
                gap_ratio = max(LEAST_GAP_RATIO, gap_ratio / 10)
                self._sharpen()
            self.seen.add(key)
        if not self.best:
            return SolveStatus.TIMED_OUT
        return SolveStatus.OPTIMAL if self.closed else SolveStatus.FEASIBLE

    def _start_most(self) -> float:
        """Bound on lambda of the first cuts: none is known for goal rate."""
        return 1e9 if self.maximised else 1.0

    def _sharpen(self) -> None:
        """Sharpen the newest cut of each model a little: its own replicas came back."""
        for position in range(len(self.models)):
            newest = next(
                (k for k in range(len(self.cuts) - 1, -1, -1) if self.cuts[k].position == position), None
            )
            if newest is not None:
                cut = self.cuts[newest]
                self.cuts[newest] = Cut(position, cut.weights * (1 - BLUNT))


def _factor_of(found: Sequence[Carried | None]) -> float:
    """Return the factor that all models carry."""
    return min((prices.factor for prices in found if prices is not None), default=1.0)


def _within(instance: FleetInstance, target: float) -> FleetInstance:
    """Turn the goal into a budget and ask for the largest factor."""
    budgets = instance.budgets
    field_of = {FleetGoal.COST: "cost_usd_per_h", FleetGoal.POWER: "power_w", FleetGoal.MACHINES: "machines"}
    name = field_of[instance.goal]
    limit = getattr(budgets, name)
    limit = target * (1 + 1e-9) if limit is None else min(limit, target * (1 + 1e-9))
    return replace(instance, goal=FleetGoal.RATE, budgets=replace(budgets, **{name: limit}))


def _solve_scaled(program: Program, limits: SolveLimits, *, backend: BackendName, relaxed: bool) -> Solution:
    """Solve in units in which the largest cost is 1 where costs are large (watts of whole nodes)."""
    unit = max(float(np.abs(program.cost).max(initial=0.0)), 1.0)
    program.cost = [cost / unit for cost in program.cost]
    limits = replace(limits, gap_absolute=limits.gap_absolute / unit)
    solution = solve_program(program, limits, backend=backend, relaxed=relaxed)
    program.cost = [cost * unit for cost in program.cost]
    return replace(
        solution,
        objective=solution.objective * unit,
        bound=solution.bound * unit,
        row_duals=solution.row_duals * unit,
    )


def _reduced_costs(program: Program, solution: Solution) -> Floats:
    """Cost minus what the rows' duals pay for each variable."""
    rows = np.asarray(program.entry_rows, dtype=np.int64)
    columns = np.asarray(program.entry_columns, dtype=np.int64)
    paid = np.bincount(
        columns,
        weights=np.asarray(program.entry_values, dtype=float) * solution.row_duals[rows],
        minlength=program.variables,
    )
    slope: Floats = np.asarray(program.cost, dtype=float) - paid
    return slope


def solve_projected(
    instance: FleetInstance,
    models: Sequence[ServedPhases],
    *,
    deadline: Deadline,
    gap_ratio: float,
    backend: BackendName,
) -> FleetAnswer:
    """Solve by cuts; goal rate in units of its relaxation, so that factors far from 1 cost no accuracy."""
    unit = 1.0
    search = FleetSearch(instance, tuple(models), deadline, gap_ratio, backend)
    if search.maximised:
        for _ in range(3):
            bound = _rate_bound(search)
            if (
                bound is None or bound <= SMALLEST_FACTOR
            ):  # nothing can be served, or replicas asked for do not fit
                return solve_direct(instance, models, deadline=deadline, gap_ratio=gap_ratio, backend=backend)
            unit *= bound
            search = FleetSearch(instance, scaled(models, unit), deadline, gap_ratio, backend)
            if bound > RESCALE_BELOW:
                break
    status = search.run()
    sign = -unit if search.maximised else 1.0
    return FleetAnswer(
        status=status,
        counts=search.best,
        objective=sign * search.best_objective if search.best else None,
        bound=sign * search.bound if np.isfinite(search.bound) else None,
        method="projected",
    )


def _rate_bound(search: FleetSearch) -> float | None:
    """Bound the rate factor by the first cuts alone."""
    for position, model in enumerate(search.models):
        if model.buckets:
            prices = price_start(model, search.holdings.start_prices(model))
            search.cuts.append(cut_from(model, position, prices, most=1e9))
    answer = search.master(whole=False)
    return -answer.solution.objective if answer.proved else None
