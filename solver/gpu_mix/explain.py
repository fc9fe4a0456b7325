"""What a user wants to know beside the plan: the best single GPU type, the next best set of types, what binds.

It exists apart from the solver because each answer is a varied problem solved again with the same solver; nothing
here changes the plan. On problems too large for one program the answers come from the relaxation and from small
changes to the plan, and say so (`proved` false, `step_units` 0).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from solver.backends.choose import solve_program
from solver.backends.program import SolveLimits
from solver.domain.deadline import Clock, Deadline
from solver.domain.gpu_mix import (
    BindingLimit,
    GpuMixInstance,
    GpuMixPlan,
    PlanStatus,
    RivalPlan,
    SingleTypePlan,
)
from solver.gpu_mix.direct import OtherUse, read_counts, solve_direct, unsurvived_cases, whole_program
from solver.gpu_mix.prepare import ServedModel, serve_all
from solver.gpu_mix.relaxation import limit_prices
from solver.gpu_mix.solve import SolveOptions, bill, solve_gpu_mix
from solver.gpu_mix.variations import change_model, change_offer, without_gpu_types
from solver.pools.losses import LossCase, SurvivalTimeoutError

WHOLE_UP_TO_INTEGERS = 120
"""Larger problems are not solved again as a whole."""
MOST_STEPS = 8
"""A limit is widened by 1, 2, 4, ... purchasable steps until that saves anything, so many times at most."""
SAVING_RATIO = 1e-7
FEW_MODELS = 6
LARGE_LEAST_S = 1.0
"""With less time than this a large problem is left unexplained."""
EXPLAIN_GAP_RATIO = 5e-7


@dataclass(frozen=True, slots=True)
class _Widening:
    """A limit that may be widened, and by how much at least."""

    kind: str
    name: str
    unit: float
    """The least that can make a difference, in units of the limit."""


def explain_plan(
    instance: GpuMixInstance, plan: GpuMixPlan, *, options: SolveOptions, clock: Clock
) -> GpuMixPlan:
    """Add best single type, second best and binding limits to a plan; the time limit is one for all of them."""
    if plan.objective is None:
        return plan
    deadline = Deadline.after(options.time_limit_s, clock)
    explainer = _Explainer(instance, plan, options, deadline)
    if not explainer.small and deadline.remaining_s() < LARGE_LEAST_S:
        return plan
    if explainer.small and plan.status != PlanStatus.OPTIMAL:
        # What a varied problem would cost says nothing about a plan that is not the best of its own.
        return replace(plan, best_single_type=explainer.best_single_type())
    return replace(
        plan,
        best_single_type=explainer.best_single_type(),
        second_best=explainer.second_best(),
        binding=tuple(explainer.binding()),
    )


class _Explainer:
    """One plan to explain."""

    def __init__(
        self, instance: GpuMixInstance, plan: GpuMixPlan, options: SolveOptions, deadline: Deadline
    ) -> None:
        self.instance = instance
        self.plan = plan
        self.options = options
        self.deadline = deadline
        self.models = serve_all(instance)
        self.small = sum(int((model.upper > 0).sum()) for model in self.models) <= WHOLE_UP_TO_INTEGERS

    def _cost(self, instance: GpuMixInstance) -> float | None:
        """Objective of the best plan of a varied problem, None if there is none or it was not proved in time."""
        remaining_s = self.deadline.remaining_s()
        if remaining_s <= 0:
            return None
        options = replace(self.options, time_limit_s=remaining_s, gap_ratio=EXPLAIN_GAP_RATIO, explain=False)
        plan = solve_gpu_mix(instance, options=options, clock=self.deadline.clock)
        return plan.objective if plan.status == PlanStatus.OPTIMAL else None

    def best_single_type(self) -> SingleTypePlan | None:
        """Cheapest plan that keeps to one GPU type for all models."""
        names = [offer.name for offer in self.instance.gpu_types]
        best: SingleTypePlan | None = None
        for name, bound in sorted(self._single_type_bounds().items(), key=lambda entry: (entry[1], entry[0])):
            if best is not None and bound >= best.cost_usd_per_h:
                break
            cost = self._cost(without_gpu_types(self.instance, set(names) - {name}))
            if cost is not None and (best is None or cost < best.cost_usd_per_h):
                best = SingleTypePlan(gpu_type=name, cost_usd_per_h=cost)
        return best

    def _single_type_bounds(self) -> dict[str, float]:
        """Lower bound per type that can serve everything: every bucket at its cheapest variant, fractions allowed."""
        bounds = {}
        for g, offer in enumerate(self.instance.gpu_types):
            total = 0.0
            for model in self.models:
                own = (model.gpu == g) & (model.upper > 0)
                if model.buckets and not model.served_by[:, own].any(axis=1).all():
                    break
                if model.least_replicas and not own.any():
                    break
                types = len(self.instance.gpu_types)
                price = model.replica_prices(
                    np.full(types, offer.price_usd_per_h), np.full(types, offer.spot_price_usd_per_h or 0.0)
                )
                if model.buckets:
                    total += float(model.priced_load(price)[:, own].min(axis=1).sum())
            else:
                # Reserved GPUs are free, so a bound must not charge them.
                bounds[offer.name] = max(0.0, total - offer.reserved * offer.price_usd_per_h)
        return bounds

    def used_types(self, counts: Sequence[Sequence[int]]) -> frozenset[str]:
        """GPU types of which any replica runs."""
        return frozenset(
            variant.gpu_type
            for model, row in zip(self.instance.models, counts, strict=True)
            for variant, n in zip(model.variants, row, strict=True)
            if n > 0
        )

    def second_best(self) -> RivalPlan | None:
        """Cheapest plan that uses another set of GPU types; None if there is none, or none was found in time."""
        try:
            return self._other_set() if self.small else self._other_set_nearby()
        except SurvivalTimeoutError:
            return None

    def _other_set(self) -> RivalPlan | None:
        """Solve the whole problem with one more rule: the set of types in use differs from the plan's.

        Binaries z_g; sum over g in the set of (1 - z_g) + sum over g outside of z_g >= 1; n_g <= U_g z_g for g in
        the set (z_g = 0 means unused) and z_g <= n_g outside (z_g = 1 means used).
        """
        taken = self.used_types(self.plan.replicas)
        cases: dict[int, list[LossCase]] = {}
        while not self.deadline.passed():
            whole = whole_program(self.instance, self.models, cases)
            program = whole.program
            columns: list[int] = []
            signs: list[float] = []
            for g, offer in enumerate(self.instance.gpu_types):
                variables = [
                    (n, float(model.upper[c]))
                    for model, replicas in zip(self.models, whole.replicas, strict=True)
                    for c, n in replicas.items()
                    if model.gpu[c] == g
                ]
                if not variables:
                    continue
                z = program.add_variable(upper=1.0, integer=True)
                columns.append(z)
                numbers = [n for n, _ in variables]
                if offer.name in taken:
                    signs.append(-1.0)
                    for n, upper in variables:
                        program.add_row([z, n], [upper, -1.0], lower=0.0)
                else:
                    signs.append(1.0)
                    program.add_row([z, *numbers], [-1.0] + [1.0] * len(numbers), lower=0.0)
            program.add_row(columns, signs, lower=1.0 - len(taken))
            limits = SolveLimits(time_limit_s=self.deadline.remaining_s(), gap_ratio=EXPLAIN_GAP_RATIO)
            solution = solve_program(program, limits, backend=self.options.backend)
            if not solution.found:
                return None
            counts = read_counts(self.models, whole.replicas, solution.values)
            missing = {
                model.index: found
                for model, row in zip(self.models, counts, strict=True)
                if (
                    found := unsurvived_cases(
                        model, row, backend=self.options.backend, deadline=self.deadline
                    )
                )
            }
            if not missing:
                return self._rival(counts, proved=solution.status == "optimal")
            for index, found in missing.items():
                cases.setdefault(index, []).extend(found)
        return None

    def _rival(self, counts: Sequence[Sequence[int]], *, proved: bool) -> RivalPlan:
        total = bill(self.instance, counts)
        names = self.used_types(counts)
        return RivalPlan(
            gpu_types=tuple(offer.name for offer in self.instance.gpu_types if offer.name in names),
            cost_usd_per_h=total.running_cost_usd_per_h + total.change_cost_usd / self.instance.horizon_h,
            proved=proved,
        )

    def _other_set_nearby(self) -> RivalPlan | None:
        """Take one type away from the few models that use it and solve these again beside the others."""
        best: RivalPlan | None = None
        users: dict[int, list[int]] = {}
        for position, (model, row) in enumerate(zip(self.models, self.plan.replicas, strict=True)):
            for g in {int(model.gpu[c]) for c, n in enumerate(row) if n > 0}:
                users.setdefault(g, []).append(position)
        for g, positions in sorted(users.items(), key=lambda entry: (len(entry[1]), entry[0])):
            if len(positions) > FEW_MODELS or self.deadline.passed():
                break
            counts = self._without_type(g, positions)
            if counts is None:
                continue
            rival = self._rival(counts, proved=False)
            if rival.cost_usd_per_h < (self.plan.objective or 0.0):
                continue  # the plan itself was not proved best; that its neighbour is cheaper makes no second best
            if best is None or rival.cost_usd_per_h < best.cost_usd_per_h:
                best = rival
        return best

    def _without_type(self, g: int, positions: Sequence[int]) -> list[tuple[int, ...]] | None:
        types = len(self.instance.gpu_types)
        used, spot = np.zeros(types), np.zeros(types)
        for position, model in enumerate(self.models):
            if position not in positions:
                own_used, own_spot = model.gpus_in_use(self.plan.replicas[position], types)
                used += own_used
                spot += own_spot
        subset = [_banned(self.models[position], g) for position in positions]
        answer = solve_direct(
            self.instance,
            subset,
            deadline=self.deadline.sooner(self.deadline.remaining_s() / 3),
            gap_ratio=1e-4,
            backend=self.options.backend,
            others=OtherUse(used, spot),
        )
        if not answer.counts:
            return None
        counts = list(self.plan.replicas)
        for position, row in zip(positions, answer.counts, strict=True):
            counts[position] = row
        return counts

    def binding(self) -> Iterator[BindingLimit]:
        """Limits without which the plan would be cheaper, each with its price."""
        if not self.small:
            prices = limit_prices(
                self.instance, self.models, deadline=self.deadline, backend=self.options.backend
            )
            for limit, price in prices.items():
                if price > 0:
                    yield BindingLimit(
                        kind=limit.kind, name=limit.name, price_usd_per_unit=price, step_units=0.0
                    )
            return
        for widening in self._limits():
            bound = self._price(widening)
            if bound is not None:
                yield bound

    def _limits(self) -> Iterator[_Widening]:
        """All limits that are set, with the least widening that can matter."""
        for g, offer in enumerate(self.instance.gpu_types):
            replicas = [
                (int(model.gpus[c]), bool(model.spot[c]))
                for model in self.models
                for c in range(len(model.variants))
                if model.gpu[c] == g
            ]
            on_demand = [gpus for gpus, is_spot in replicas if not is_spot]
            spot = [gpus for gpus, is_spot in replicas if is_spot]
            if offer.available is not None and on_demand:
                step = offer.gpus_per_node if offer.whole_nodes and offer.gpus_per_node else min(on_demand)
                yield _Widening("gpu-limit", offer.name, float(step))
            if offer.spot_available is not None and spot:
                yield _Widening("spot-limit", offer.name, float(min(spot)))
        if self.instance.power_limit_w is not None:
            yield _Widening("power-limit", "power", max(1.0, 0.01 * self.instance.power_limit_w))
        if self.instance.budget_usd_per_h is not None:
            yield _Widening("budget", "budget", max(0.01, 0.01 * self.instance.budget_usd_per_h))
        for demand in self.instance.models:
            if demand.survive:
                yield _Widening("survive", demand.name, 1.0)
            if demand.min_total_replicas:
                yield _Widening("min-replicas", demand.name, 1.0)
            if demand.max_spot_load_ratio < 1.0:
                yield _Widening("spot-share", demand.name, 0.01)
            if demand.min_quality_ratio > 0.0:
                yield _Widening("quality", demand.name, 0.01)

    def _price(self, widening: _Widening) -> BindingLimit | None:
        """Price of a limit: the saving over the least widening (1, 2, 4, ... steps) that saves anything."""
        now = self.plan.objective or 0.0
        least = SAVING_RATIO * max(1.0, abs(now))
        free = self._cost(_widened(self.instance, widening, None))
        if free is None or free > now - least:
            return None
        for exponent in range(MOST_STEPS):
            units = widening.unit * 2**exponent
            cost = self._cost(_widened(self.instance, widening, units))
            if cost is not None and cost <= now - least:
                return BindingLimit(
                    kind=widening.kind,
                    name=widening.name,
                    price_usd_per_unit=(now - cost) / units,
                    step_units=units,
                )
        return BindingLimit(kind=widening.kind, name=widening.name, price_usd_per_unit=0.0, step_units=0.0)


def _banned(model: ServedModel, g: int) -> ServedModel:
    upper = np.where(model.gpu == g, model.lower, model.upper)
    load = np.where((model.gpu == g)[None, :], np.inf, model.load)
    return replace(model, upper=upper, load=load)


def _widened(instance: GpuMixInstance, widening: _Widening, units: float | None) -> GpuMixInstance:
    """Return the instance with ``units`` more of a limit; None drops the limit."""
    kind, name = widening.kind, widening.name
    if kind in ("gpu-limit", "spot-limit"):
        offer = instance.offer(name)
        field = "available" if kind == "gpu-limit" else "spot_available"
        stock = getattr(offer, field)
        return change_offer(instance, name, **{field: None if units is None else stock + int(units)})
    if kind == "power-limit":
        limit_w = instance.power_limit_w or 0.0
        return replace(instance, power_limit_w=None if units is None else limit_w + units)
    if kind == "budget":
        budget = instance.budget_usd_per_h or 0.0
        return replace(instance, budget_usd_per_h=None if units is None else budget + units)
    demand = next(model for model in instance.models if model.name == name)
    if kind == "spot-share":
        ratio = 1.0 if units is None else min(1.0, demand.max_spot_load_ratio + units)
        return change_model(instance, name, max_spot_load_ratio=ratio)
    if kind == "quality":
        ratio = 0.0 if units is None else max(0.0, demand.min_quality_ratio - units)
        return change_model(instance, name, min_quality_ratio=ratio)
    field = "survive" if kind == "survive" else "min_total_replicas"
    now = getattr(demand, field)
    return change_model(instance, name, **{field: 0 if units is None else max(0, now - int(units))})
