"""Many models that share limits: column generation with a proved Lagrangian bound.

It exists because the whole problem is out of reach of one program at a hundred models: instead each model proposes
whole plans for itself (columns) at the prices that the shared limits put on GPUs, a master program combines them, and
the prices follow. The bound is Lagrange's: for any prices pi_g on GPUs in use,

    L(pi) = sum over m of min over plans p of m [ change_m(p) / H + sum over g of pi_g used_g(p) ]
            + min over bought [ running cost - sum over g of pi_g used_g ],   L(pi) <= optimum.

The answer is then improved by solving a few models at a time exactly beside the others (`improve`).
Source: Dantzig-Wolfe decomposition; smoothing of prices after Wentges (1997).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from solver.backends.choose import BackendName, solve_program
from solver.backends.program import Expression, Program, Solution, SolveLimits, SolveStatus
from solver.domain.deadline import Deadline
from solver.domain.gpu_mix import GpuMixInstance
from solver.gpu_mix.cost_step import cost_step_usd
from solver.gpu_mix.direct import OtherUse, Replicas, buy, solve_direct
from solver.gpu_mix.prepare import ServedModel
from solver.gpu_mix.pricing import PricedAnswer, PricingTask, price_model
from solver.gpu_mix.relaxation import Prices, relaxed_prices
from solver.pools.grid import next_step
from solver.pools.purchase import change_cost_usd

PRICING_GAP_RATIO = 1e-5
HASTY_PRICING_GAP_RATIO = 1e-2
HASTY_MODEL_LIMIT_S = 0.05
HASTY_BELOW_S = 15.0
"""With less time than this models are priced less exactly, so that prices can move a few times."""
LEAST_LIMIT_S = 0.2
SKETCH_RATIO = 0.15
"""First columns only use variants that serve some bucket at most so much dearer than the cheapest one."""
FIRST_PASS_SHARE = 0.6
"""Part of the time left after which models without a column get a quick one."""
LAST_PASS_SHARE = 0.9
LEAST_PASS_SHARE = 0.3
"""Another pass starts if so much of the time of the last one is left: dear models come first, so half a pass helps."""
SMOOTHING = 0.5
"""Weight of the best prices so far in the prices that are tried next."""
CONVERGED_RATIO = 1e-5
NEIGHBOURHOOD = 6
"""Models solved together when an answer is improved."""
NEIGHBOURHOOD_LIMIT_S = 4.0
STALE_ROUNDS = 4
"""More models are solved together once each was in so many rounds in a row without a gain."""
SMALLEST_GAIN_USD = 1e-7
WHOLE_UP_TO_INTEGERS = 250
"""Up to so many replica counts one program gets half of the time that is left, since it can prove an optimum."""
COMBINE_LIMIT_S = 10.0
MOST_OVERRUNS = 6
OVERRUN_STEP = 4.0
"""Factor by which exceeding a limit in the master gets dearer while no answer keeps all limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A plan of one model: replicas, change cost (US$ per hour) and GPUs in use per type."""

    counts: tuple[int, ...]
    change_usd_per_h: float
    used: NDArray[np.float64]
    spot: NDArray[np.float64]


@dataclass(slots=True)
class Master:
    """All columns so far, per model in the order of ``models``."""

    instance: GpuMixInstance
    models: Sequence[ServedModel]
    columns: list[list[Column]] = field(default_factory=list)
    known: list[set[tuple[int, ...]]] = field(default_factory=list)
    bounds: list[list[tuple[NDArray[np.float64], float]]] = field(default_factory=list)
    """Per model: prices per replica and the proved bound on its cost at these prices."""

    def __post_init__(self) -> None:
        self.columns = [[] for _ in self.models]
        self.known = [set() for _ in self.models]
        self.bounds = [[] for _ in self.models]

    def known_bound(self, position: int, prices: NDArray[np.float64]) -> float:
        """Best bound that earlier prices prove: the least cost never falls when no price falls.

        Without any, the bound of Mélange's relaxation: every bucket at its cheapest variant, fractions allowed.
        """
        proved = [bound for earlier, bound in self.bounds[position] if (prices >= earlier - 1e-12).all()]
        model = self.models[position]
        if model.buckets:
            proved.append(float(model.priced_load(prices).min(axis=1).sum()) / model.capacity_ratio)
        return max(proved, default=0.0)

    def size(self, position: int) -> float:
        """How much of the cost a model is about: its relaxation at list prices."""
        model = self.models[position]
        if not model.buckets:
            return 0.0
        list_prices = np.array([offer.price_usd_per_h for offer in self.instance.gpu_types])
        return float(model.priced_load(list_prices[model.gpu] * model.gpus).min(axis=1).sum())

    def cheapest(self, position: int, prices: NDArray[np.float64]) -> float:
        """Cost of the cheapest known column of a model at prices per replica."""
        return min(
            (
                float(np.dot(column.counts, prices)) + column.change_usd_per_h
                for column in self.columns[position]
            ),
            default=np.inf,
        )

    def propose(self, position: int, counts: tuple[int, ...]) -> bool:
        """Add a plan of a model; False if it is known."""
        if counts in self.known[position]:
            return False
        model = self.models[position]
        used, spot = model.gpus_in_use(counts, len(self.instance.gpu_types))
        change = sum(
            change_cost_usd(self.instance, variant, n)
            for variant, n in zip(model.variants, counts, strict=True)
        )
        column = Column(
            counts=counts,
            change_usd_per_h=change / self.instance.horizon_h,
            used=used,
            spot=spot,
        )
        self.known[position].add(counts)
        self.columns[position].append(column)
        return True


@dataclass(slots=True)
class _MasterProgram:
    program: Program
    choice: list[range]
    used_rows: list[int]
    spot_rows: list[int]
    overruns: list[int]


def _master_program(master: Master, *, whole: bool, overrun_usd: float | None = None) -> _MasterProgram:
    """Choose one column per model (sum of choices 1) under the limits; used_g >= sum of the columns' use.

    With ``overrun_usd`` limits may be exceeded at the price of so much for as much again as the limit, so that
    there is always an answer to take prices from.
    """
    program = Program()
    types = range(len(master.instance.gpu_types))
    used = [program.add_variable() for _ in types]
    spot = [program.add_variable() for _ in types]
    used_rows = [Expression([used[g]], [1.0]) for g in types]
    spot_rows = [Expression([spot[g]], [1.0]) for g in types]
    choice = []
    for columns in master.columns:
        first = program.variables
        for column in columns:
            j = program.add_variable(upper=1.0, cost=column.change_usd_per_h, integer=whole)
            for g in np.flatnonzero(column.used):
                used_rows[g].add(j, -float(column.used[g]))
            for g in np.flatnonzero(column.spot):
                spot_rows[g].add(j, -float(column.spot[g]))
        choice.append(range(first, program.variables))
        program.add_row(list(choice[-1]), [1.0] * len(columns), lower=1.0, upper=1.0)
    rows = [program.add_expression_row(row, lower=0.0) for row in (*used_rows, *spot_rows)]
    purchase = buy(
        program,
        master.instance,
        [Expression([j], [1.0]) for j in used],
        [Expression([j], [1.0]) for j in spot],
    )
    overruns = []
    if overrun_usd is not None:
        for row in purchase.limit_rows.values():
            j = program.add_variable(cost=overrun_usd / max(1.0, program.row_upper[row]))
            overruns.append(j)
            program.entry_rows.append(row)
            program.entry_columns.append(j)
            program.entry_values.append(-1.0)
    count = len(used_rows)
    return _MasterProgram(program, choice, rows[:count], rows[count:], overruns)


def purchase_bound(
    instance: GpuMixInstance,
    prices: Prices,
    models: Sequence[ServedModel],
    limits: SolveLimits,
    backend: BackendName,
) -> float:
    """Solve min over bought [ running cost - sum of prices x use ] under the limits: the purchase part of L(pi)."""
    program = Program()
    used, spot = [], []
    for g in range(len(instance.gpu_types)):
        most = float(sum((m.upper * m.gpus)[(m.gpu == g)].sum() for m in models))
        used.append(program.add_variable(upper=most, cost=-float(prices.used[g])))
        spot.append(program.add_variable(upper=most, cost=-float(prices.spot[g])))
    buy(program, instance, [Expression([j], [1.0]) for j in used], [Expression([j], [1.0]) for j in spot])
    return solve_program(program, limits, backend=backend).bound


@dataclass(slots=True)
class ColumnSearch:
    """One run: master, bound and answer so far. ``seed`` fixes which models are improved together."""

    instance: GpuMixInstance
    models: Sequence[ServedModel]
    deadline: Deadline
    gap_ratio: float
    backend: BackendName
    executor: Executor | None
    seed: int
    master: Master = field(init=False)
    bare: GpuMixInstance = field(init=False)
    """The instance without its models: all that a pricing process needs to know of it."""
    step_usd: float = field(init=False)
    bound: float = -np.inf
    best: tuple[tuple[int, ...], ...] | None = None
    best_cost: float = np.inf
    overrun_usd: float = 0.0
    hasty: bool = False

    def __post_init__(self) -> None:
        self.master = Master(self.instance, self.models)
        self.bare = replace(self.instance, models=())
        self.step_usd = cost_step_usd(self.instance, self.models)

    def prove(self, bound: float) -> None:
        """Take a proved bound, rounded up to the next cost that a plan can have."""
        self.bound = max(self.bound, next_step(bound, self.step_usd))

    @property
    def close_enough(self) -> bool:
        """Whether the requested gap is reached."""
        return self.best is not None and self.best_cost - self.bound <= max(self.gap_ratio, 1e-9) * abs(
            self.best_cost
        )

    def price_all(self, prices: Prices, *, share: float = 1.0) -> bool:
        """Price every model exactly, keep the new columns and the bound; returns whether any column is new.

        A model is not solved again where an earlier bound proves that a known column is still best: its bound at
        prices p holds at all prices >= p. Models whose answer is not there after ``share`` of the time that is left
        count with such a bound too.
        """
        until = self.deadline.sooner(share * self.deadline.remaining_s())
        gap_ratio = HASTY_PRICING_GAP_RATIO if self.hasty else PRICING_GAP_RATIO
        proved: list[float] = []
        tasks: dict[int, PricingTask] = {}
        for position, model in enumerate(self.models):
            replica_prices = model.replica_prices(prices.used, prices.spot)
            known = self.master.known_bound(position, replica_prices)
            proved.append(known)
            if self.master.cheapest(position, replica_prices) > known + gap_ratio * abs(known):
                tasks[position] = self._task(model, replica_prices, gap_ratio)
        new = False
        for position, answer in self._answers(tasks, until):
            proved[position] = max(proved[position], answer.bound)
            self.master.bounds[position].append((tasks[position].prices, answer.bound))
            if answer.counts is not None:
                new |= self.master.propose(position, answer.counts)
        limits = SolveLimits(time_limit_s=max(LEAST_LIMIT_S, self.deadline.remaining_s()))
        proved.append(purchase_bound(self.instance, prices, self.models, limits, self.backend))
        self.prove(sum(proved))
        return new

    def sketch_missing(self, prices: Prices) -> None:
        """Propose a column for models without any from their most competitive variants: quick, proves nothing."""
        tasks = {}
        for position, model in enumerate(self.models):
            if not self.master.columns[position]:
                replica_prices = model.replica_prices(prices.used, prices.spot)
                task = self._task(model, replica_prices, HASTY_PRICING_GAP_RATIO)
                tasks[position] = replace(task, competitive_ratio=SKETCH_RATIO)
        for position, answer in self._answers(tasks, self.deadline):
            if answer.counts is not None:
                self.master.propose(position, answer.counts)

    def _task(self, model: ServedModel, replica_prices: NDArray[np.float64], gap_ratio: float) -> PricingTask:
        limit_s = max(LEAST_LIMIT_S, self.deadline.remaining_s())
        return PricingTask(
            instance=self.bare,
            model=model,
            prices=replica_prices,
            gap_ratio=gap_ratio,
            time_limit_s=min(limit_s, HASTY_MODEL_LIMIT_S) if self.hasty else limit_s,
            deadline=self.deadline,
            backend=self.backend,
        )

    def _answers(
        self, tasks: Mapping[int, PricingTask], until: Deadline
    ) -> Iterator[tuple[int, PricedAnswer]]:
        """Yield answers, dearest models first; those not there in time are left out."""
        order = sorted(tasks, key=lambda position: (-self.master.size(position), position))
        if self.executor is None:
            for position in order:
                if until.passed():
                    return
                yield position, price_model(tasks[position])
            return
        futures = {position: self.executor.submit(price_model, tasks[position]) for position in order}
        for position, future in futures.items():
            try:
                yield position, future.result(timeout=until.remaining_s())
            except TimeoutError:
                future.cancel()

    def combine(self, seconds: float) -> None:
        """Take the best whole choice of columns as the answer, if it beats the one so far."""
        whole = _master_program(self.master, whole=True)
        limit = min(seconds, self.deadline.remaining_s())
        limits = SolveLimits(time_limit_s=limit, gap_ratio=max(self.gap_ratio / 4, 1e-6))
        solution = solve_program(whole.program, limits, backend=self.backend)
        if solution.found and solution.objective < self.best_cost - 1e-9:
            self.best_cost = solution.objective
            self.best = tuple(
                columns[int(np.argmax(solution.values[list(chosen)]))].counts
                for columns, chosen in zip(self.master.columns, whole.choice, strict=True)
            )

    def relaxed_master(self) -> tuple[Solution, Prices]:
        """Solve the master without integrality; prices are the duals of the use rows."""
        relaxed = _master_program(self.master, whole=False, overrun_usd=self.overrun_usd)
        limits = SolveLimits(time_limit_s=max(LEAST_LIMIT_S, self.deadline.remaining_s()))
        solution = solve_program(relaxed.program, limits, backend=self.backend, relaxed=True)
        duals = solution.row_duals
        return solution, Prices(
            used=np.maximum(duals[relaxed.used_rows], 0.0), spot=np.maximum(duals[relaxed.spot_rows], 0.0)
        )

    def improve(self) -> None:
        """Solve a few models exactly beside the others, again and again, until time or gap is reached.

        When many rounds in a row change nothing, more models are taken together; all together settle the problem.
        """
        rng = np.random.default_rng(self.seed)
        size = min(NEIGHBOURHOOD, len(self.models))
        stale = 0
        while self.best is not None and not self.deadline.passed() and not self.close_enough:
            if size == len(self.models):
                self.solve_whole(self.deadline)
                return
            chosen = sorted(rng.choice(len(self.models), size=size, replace=False).tolist())
            stale = 0 if self._solve_together(chosen) else stale + 1
            if stale * size > STALE_ROUNDS * len(self.models):
                stale, size = 0, min(2 * size, len(self.models))

    def solve_whole(self, deadline: Deadline) -> SolveStatus:
        """Solve the whole problem as one program for a while; its bound counts too. Returns its verdict."""
        answer = solve_direct(
            self.instance, self.models, deadline=deadline, gap_ratio=self.gap_ratio, backend=self.backend
        )
        self.prove(answer.bound)
        if answer.counts and answer.objective < self.best_cost - SMALLEST_GAIN_USD:
            self.best, self.best_cost = answer.counts, answer.objective
        return answer.status

    def _solve_together(self, chosen: Sequence[int]) -> bool:
        """Solve the chosen models beside the others; returns whether the answer got cheaper."""
        if self.best is None:
            return False
        together = set(chosen)
        answer = solve_direct(
            self.instance,
            [self.models[i] for i in chosen],
            deadline=self.deadline.sooner(NEIGHBOURHOOD_LIMIT_S),
            gap_ratio=1e-6,
            backend=self.backend,
            others=self._use_of_others(together),
        )
        fixed = sum(self._change(i) for i in range(len(self.models)) if i not in together)
        if not answer.counts or answer.objective + fixed >= self.best_cost - SMALLEST_GAIN_USD:
            return False
        self.best_cost = answer.objective + fixed
        best = list(self.best)
        for i, counts in zip(chosen, answer.counts, strict=True):
            best[i] = counts
            self.master.propose(i, counts)
        self.best = tuple(best)
        return True

    def _change(self, position: int) -> float:
        assert self.best is not None  # noqa: S101 - only called with an answer
        pairs = zip(self.models[position].variants, self.best[position], strict=True)
        return (
            sum(change_cost_usd(self.instance, variant, n) for variant, n in pairs) / self.instance.horizon_h
        )

    def _use_of_others(self, chosen: set[int]) -> OtherUse:
        types = len(self.instance.gpu_types)
        used, spot = np.zeros(types), np.zeros(types)
        assert self.best is not None  # noqa: S101 - only called with an answer
        for position, model in enumerate(self.models):
            if position in chosen:
                continue
            own_used, own_spot = model.gpus_in_use(self.best[position], types)
            used += own_used
            spot += own_spot
        return OtherUse(used, spot)


def _first_answer(search: ColumnSearch, prices: Prices) -> None:
    """Find a first answer; exceeding limits costs more and more as long as no choice of columns keeps them."""
    search.price_all(prices, share=FIRST_PASS_SHARE)
    search.sketch_missing(prices)
    for _ in range(MOST_OVERRUNS):
        if search.deadline.passed() or not all(search.master.columns):
            return
        _, prices = search.relaxed_master()
        search.combine(COMBINE_LIMIT_S)
        if search.best is not None:
            return
        if not search.price_all(prices, share=FIRST_PASS_SHARE):
            search.overrun_usd *= OVERRUN_STEP


def _generate(search: ColumnSearch, prices: Prices) -> None:
    """Let prices and columns follow each other until the bound meets the master or time runs short."""
    clock = search.deadline.clock
    search.hasty = search.deadline.remaining_s() < HASTY_BELOW_S
    began_s = clock()
    _first_answer(search, prices)
    centre = prices
    overruns = 0
    while not search.deadline.passed() and all(search.master.columns):
        pass_s = clock() - began_s
        solution, target = search.relaxed_master()
        if solution.objective < search.best_cost:
            search.combine(max(0.5, 0.2 * search.deadline.remaining_s()))
        if search.close_enough or solution.objective - search.bound <= CONVERGED_RATIO * abs(
            solution.objective
        ):
            return
        if search.best is not None and search.deadline.remaining_s() < LEAST_PASS_SHARE * pass_s:
            return
        began_s, before = clock(), search.bound
        trial = target.towards(centre, SMOOTHING if search.best is not None else 0.0)
        new = search.price_all(trial, share=LAST_PASS_SHARE)
        if search.bound > before:
            centre = trial
        if not new and not search.price_all(target):
            overruns += 1
            if search.best is not None or overruns > MOST_OVERRUNS:
                return
            search.overrun_usd *= OVERRUN_STEP


def solve_by_columns(
    instance: GpuMixInstance,
    models: Sequence[ServedModel],
    *,
    deadline: Deadline,
    gap_ratio: float,
    backend: BackendName,
    executor: Executor | None,
    seed: int,
) -> Replicas:
    """Solve by column generation, then improve until the gap or the deadline is reached."""
    start, prices = relaxed_prices(instance, models, deadline=deadline, backend=backend)
    if start.status == SolveStatus.INFEASIBLE:
        return Replicas(status=SolveStatus.INFEASIBLE)
    search = ColumnSearch(instance, models, deadline, gap_ratio, backend, executor, seed)
    if start.found:
        search.prove(start.objective)
        search.overrun_usd = abs(start.objective)
    _generate(search, prices)
    search.combine(COMBINE_LIMIT_S)
    integers = sum(int((model.upper > 0).sum()) for model in models)
    if search.best is None or (not search.close_enough and integers <= WHOLE_UP_TO_INTEGERS):
        share = 1.0 if search.best is None else 0.5
        if search.solve_whole(deadline.sooner(share * deadline.remaining_s())) == SolveStatus.INFEASIBLE:
            return Replicas(status=SolveStatus.INFEASIBLE)
    search.improve()
    if search.best is None:
        return Replicas(status=SolveStatus.TIMED_OUT, bound=search.bound)
    return Replicas(
        status=SolveStatus.OPTIMAL if search.close_enough else SolveStatus.FEASIBLE,
        counts=search.best,
        objective=search.best_cost,
        bound=min(search.bound, search.best_cost),
    )
