"""What replica counts hold and cost, as arrays: which replica to add next, which to take away.

It exists because greedy steps ask for the price of every possible next replica at once. `bill` states the same sums
exactly, one fleet at a time; this is its fast twin for search only, and no figure of it is ever shown.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from solver.domain.fleet import FleetGoal, FleetInstance
from solver.phases.prepare import ServedPhases

Floats = NDArray[np.float64]

SLACK = 1e-9
TIE_PART = 1e-3
"""What a replica that costs nothing more now counts of its list price, so that smaller ones go first."""


class Holdings:
    """Prices, stock and budgets of an instance as arrays over its GPU types [G]."""

    def __init__(self, instance: FleetInstance, models: Sequence[ServedPhases]) -> None:
        offers = instance.gpu_types
        self.goal = instance.goal
        self.models = models
        self.price = np.array([offer.price_usd_per_h for offer in offers])
        self.watts = np.array([offer.power_w or 0.0 for offer in offers])
        self.reserved = np.array([float(offer.reserved) for offer in offers])
        self.stock = np.array([np.inf if offer.available is None else offer.available for offer in offers])
        self.per_machine = np.array([float(offer.gpus_per_node or 1) for offer in offers])
        self.lot = np.array(
            [float(offer.gpus_per_node or 1) if offer.whole_nodes else 1.0 for offer in offers]
        )
        budgets = instance.budgets
        self.limits = np.array(
            [
                np.inf if limit is None else limit
                for limit in (budgets.cost_usd_per_h, budgets.power_w, budgets.machines)
            ]
        )

    def start_prices(self, model: ServedPhases) -> Floats:
        """[C] what a replica takes of the goal (or, for goal rate, of the budgets), nodes in part allowed."""
        gpus = model.gpus.astype(float)
        figures = np.stack(
            [
                self.price[model.gpu] * gpus,
                self.watts[model.gpu] * gpus + model.extra_w,
                gpus / self.per_machine[model.gpu],
            ]
        )
        if self.goal is FleetGoal.RATE:
            limited = np.isfinite(self.limits) & (self.limits > 0)
            if not limited.any():
                return gpus
            taken: Floats = (figures[limited] / self.limits[limited][:, None]).sum(axis=0)
            return taken
        row = {FleetGoal.COST: 0, FleetGoal.POWER: 1, FleetGoal.MACHINES: 2}[self.goal]
        one: Floats = figures[row]
        return one

    def _held(self, counts: Sequence[Floats]) -> tuple[Floats, float]:
        """GPUs in use [G], and the watts of replicas beyond their types' figures."""
        used = np.zeros(len(self.price))
        extra = 0.0
        for model, row in zip(self.models, counts, strict=True):
            np.add.at(used, model.gpu, row * model.gpus)
            extra += float(model.extra_w @ row)
        return used, extra

    def _bought(self, used: Floats) -> Floats:
        bought: Floats = np.ceil(used / self.lot - SLACK) * self.lot
        return bought

    def _figures(self, used: Floats, extra: float) -> Floats:
        """[3] cost, watts, machines."""
        bought = self._bought(used)
        return np.array(
            [
                float(self.price @ np.maximum(bought - self.reserved, 0.0)),
                float(self.watts @ bought) + extra,
                float((bought / self.per_machine).sum()),
            ]
        )

    def _goal_of(self, figures: Floats) -> Floats:
        row = {FleetGoal.COST: 0, FleetGoal.POWER: 1, FleetGoal.MACHINES: 2}.get(self.goal, 0)
        one: Floats = figures[row]
        return one

    def objective(self, counts: Sequence[Floats]) -> float:
        """Cost, power or machines of counts, whichever is the goal (cost for goal rate)."""
        return float(self._goal_of(self._figures(*self._held(counts))))

    def fits(self, counts: Sequence[Floats]) -> bool:
        """Whether counts keep stock and budgets."""
        used, extra = self._held(counts)
        stocked = bool((self._bought(used) <= self.stock + SLACK).all())
        figures = self._figures(used, extra)
        return stocked and bool((figures <= self.limits * (1 + SLACK) + SLACK).all())

    def _after(
        self, counts: Sequence[Floats], position: int, times: int = 1
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """[3, C] figures with so many more replicas of each config of a model; whether stock and budgets allow it."""
        model = self.models[position]
        used, extra = self._held(counts)
        now = self._figures(used, extra)
        own = used[model.gpu]
        before = np.ceil(own / self.lot[model.gpu] - SLACK) * self.lot[model.gpu]
        after = np.ceil((own + times * model.gpus) / self.lot[model.gpu] - SLACK) * self.lot[model.gpu]
        paid = np.maximum(after - self.reserved[model.gpu], 0.0) - np.maximum(
            before - self.reserved[model.gpu], 0.0
        )
        figures = now[:, None] + np.stack(
            [
                self.price[model.gpu] * paid,
                self.watts[model.gpu] * (after - before) + times * model.extra_w,
                (after - before) / self.per_machine[model.gpu],
            ]
        )
        allowed = (after <= self.stock[model.gpu] + SLACK) & (
            figures <= self.limits[:, None] * (1 + SLACK) + SLACK
        ).all(axis=0)
        return figures, allowed & (counts[position] + times <= model.upper)

    def next_replica(self, counts: Sequence[Floats], position: int, value: Floats) -> int | None:
        """Return the config of most ``value`` [C] for what one more replica of it takes; None if none fits."""
        figures, allowed = self._after(counts, position)
        allowed &= value > 0
        if not allowed.any():
            return None
        model = self.models[position]
        taken = self._goal_of(figures) - self.objective(counts)
        listed = np.maximum(self.start_prices(model), 1e-12)
        score = np.where(allowed, value / (np.maximum(taken, 0.0) + TIE_PART * listed), -np.inf)
        return int(np.argmax(score))

    def allowed_after(self, counts: Sequence[Floats], position: int, times: int) -> NDArray[np.bool_]:
        """[C] whether stock and budgets allow so many more replicas of a config of a model."""
        return self._after(counts, position, times)[1]

    def objective_after(self, counts: Sequence[Floats], position: int, config: int) -> float:
        """Objective with one more replica."""
        figures, _ = self._after(counts, position)
        return float(self._goal_of(figures)[config])

    def removals(self, counts: Sequence[Floats]) -> Iterator[tuple[int, int]]:
        """Yield (model, config) with replicas, those first that take most of the goal."""
        entries = []
        for position, (model, row) in enumerate(zip(self.models, counts, strict=True)):
            prices = self.start_prices(model)
            entries += [(-float(prices[c]), position, int(c)) for c in np.flatnonzero(row > 0)]
        for _, position, c in sorted(entries):
            yield position, c
